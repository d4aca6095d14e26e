# Copyright 2026 The trl_distill authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Is the package right on this device: chunked kernels, the fixed point, a few steps, accelerate configurations."""

import subprocess
import sys
from pathlib import Path

import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import is_deepspeed_available
from datasets import Dataset

from benchmarks.laboratory import write_lines
from benchmarks.smollm2 import random_model
from trl_distill import MiniLLMConfig, MiniLLMTrainer
from trl_distill.divergence import LMHead, token_divergence, token_logps
from trl_distill.training import accelerate_config_path


ROOT = Path(__file__).parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def options(args, folder: Path, seed: int = 0, **settings) -> dict:
    """Training arguments that all trainers here share."""
    shared = dict(
        output_dir=str(folder / "trainer"),
        bf16=DEVICE == "cuda",
        use_cpu=DEVICE == "cpu",
        gradient_checkpointing=False,
        logging_steps=1 if args.smoke else 10,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        save_strategy="no",
        report_to="none",
        seed=seed,
    )
    return shared | settings


def correctness(args, folder: Path) -> dict:
    return {
        "chunked_against_dense": [chunked_against_dense(dtype) for dtype in (torch.float32, torch.bfloat16)],
        "teacher_is_student_gradient_norm": {str(alpha): same_teacher(args, folder, alpha) for alpha in (0.0, 0.2)},
        "trained_losses": few_steps(args, folder),
        "accelerate_configs": accelerate_configs(folder),
    }


def chunked_against_dense(dtype, tokens=1500, hidden=128, vocabulary=40_000) -> dict:
    """Largest relative errors of value and gradient on this device, against float64 on dense logits."""
    torch.manual_seed(0)
    shapes = ((tokens, hidden), (vocabulary, hidden), (tokens, hidden), (vocabulary, hidden))
    inputs = [
        (torch.randn(shape, device=DEVICE) * scale).to(dtype)
        for shape, scale in zip(shapes, (1, 0.3) * 2, strict=True)
    ]
    picked = torch.randint(vocabulary, (tokens,), device=DEVICE)
    results = []
    for precise in (False, True):
        state, weight, teacher_state, teacher_weight = (x.double() if precise else x.clone() for x in inputs)
        state.requires_grad_(), weight.requires_grad_()
        if precise:
            logps = (state @ weight.T).log_softmax(-1)
            kl = (logps.exp() * (logps - (teacher_state @ teacher_weight.T).log_softmax(-1))).sum(-1)
            logps = logps.gather(1, picked[:, None])[:, 0]
        else:
            kl, _ = token_divergence(state, LMHead(weight), teacher_state, LMHead(teacher_weight))
            logps = token_logps(state, LMHead(weight), picked)
        (kl.sum() + logps.sum()).backward()
        results.append({"kl": kl, "logps": logps, "state": state.grad, "weight": weight.grad})
    ours, exact = results
    errors = {name: ((ours[name] - exact[name]).norm() / exact[name].norm()).item() for name in exact}
    limit = 1e-4 if dtype == torch.float32 else 2e-2
    return {"dtype": str(dtype), "relative_errors": errors, "limit": limit, "ok": max(errors.values()) < limit}


def few_minillm_steps(args, folder: Path, teacher_seed: int, **settings) -> list[dict]:
    rows = {"prompt": [f"{i} and {i + 1} make" for i in range(32)]}
    trainer = MiniLLMTrainer(
        model=random_model(folder, 0),
        teacher_model=random_model(folder, teacher_seed),
        args=MiniLLMConfig(
            **options(args, folder, per_device_train_batch_size=8, max_completion_length=16, **settings)
            | {"logging_steps": 1, "warmup_steps": 0}
        ),
        train_dataset=Dataset.from_dict(rows),
    )
    trainer.train()
    return [log for log in trainer.state.log_history if "loss" in log]


def same_teacher(args, folder: Path, alpha: float) -> float:
    return few_minillm_steps(args, folder, 0, teacher_mix_alpha=alpha, max_steps=1, bf16=False)[0]["grad_norm"]


def few_steps(args, folder: Path) -> list[float]:
    return [log["kl"] for log in few_minillm_steps(args, folder, 1, max_steps=24, learning_rate=1e-2)]


def accelerate_configs(folder: Path) -> dict[str, str]:
    """Parse every configuration, and train two steps with each that this machine can run."""
    outcome, gpus = {}, torch.cuda.device_count()
    data = write_lines(folder / "prompts.jsonl", ({"prompt": f"{i} and {i + 1} make"} for i in range(64)))
    for name in ("cpu", "single_gpu", "ddp", "fsdp2", "zero2", "zero3"):
        path = accelerate_config_path(name)
        kind = load_config_from_file(path).distributed_type
        if (name == "cpu") != (gpus == 0):
            outcome[name] = f"parsed ({kind}), not run: {gpus} GPUs"
            continue
        if name.startswith("zero") and not is_deepspeed_available():
            outcome[name] = f"parsed ({kind}), not run: deepspeed is not installed"
            continue
        settings = {"output_dir": folder / name, "dataset_name": data, "max_steps": 2, "report_to": "none"}
        settings |= {
            "model_name_or_path": random_model(folder, 0),
            "teacher_model_name_or_path": random_model(folder, 1),
        }
        settings |= {"max_completion_length": 8, "per_device_train_batch_size": 4, "save_strategy": "no"}
        flags = [str(part) for field, value in settings.items() for part in (f"--{field}", value)]
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", path]
        launch += ["--num_processes", str(1 if name in ("cpu", "single_gpu") else gpus)]
        command = [*launch, "-m", "trl_distill.scripts.minillm", *flags, *(("--use_cpu", "true") if not gpus else ())]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        outcome[name] = "ran" if done.returncode == 0 else f"FAILED: {done.stderr[-600:]}"
    return outcome

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


"""
What is lost of a teacher by keeping its K likeliest tokens, and what they take on the disk.

SmolLM2-135M-Instruct is the teacher; it answers prompts of the demo at temperature 1. The students are its copy with
two thirds of the layers, as it is and after some epochs on recorded tokens. For each K the teacher is recorded into a
store of its own, and the loss and gradient on that are compared with those over the whole vocabulary, which come from
both models in memory by other code (`token_divergence`).

    python -m benchmarks.quality.recorded_top_k
"""

import argparse
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.laboratory import provenance, quiet, save
from benchmarks.smollm2 import NAME, demo_prompts, prune, smollm2
from examples.demo import SMOLLM2_LAYERS
from trl_distill import (
    OfflineDistillationConfig,
    OfflineDistillationTrainer,
    RecordConfig,
    load_recorded,
    record_teacher,
)
from trl_distill.divergence import backbone_states, lm_head, token_divergence
from trl_distill.generation import (
    batches_by_length,
    encode_prompts,
    generate_ids,
    generating,
    generation_config,
    pad_ids,
)
from trl_distill.models import end_token_ids


BETAS = {"forward": 0.0, "reverse": 1.0}


def answers(teacher, tokenizer, args) -> list[dict]:
    """Rows of prompts and sampled answers, as conversations."""
    rows = [
        {
            "prompt": [
                {"role": "system", "content": "Answer in one short sentence."},
                {"role": "user", "content": prompt},
            ]
        }
        for prompt in demo_prompts()[: args.rows]
    ]
    ids = encode_prompts(rows, tokenizer)
    config = generation_config(tokenizer, end_token_ids(teacher, tokenizer), args.max_new_tokens)
    with generating([teacher]), torch.no_grad():
        torch.manual_seed(0)
        for batch in batches_by_length(ids, 16):
            prompt = pad_ids([ids[i] for i in batch], tokenizer.pad_token_id, "left", teacher.device)
            for i, answer in zip(batch, generate_ids(teacher, *prompt, config), strict=True):
                text = tokenizer.decode(answer, skip_special_tokens=True)
                rows[i]["completion"] = [{"role": "assistant", "content": text}]
    return rows


def make_trainer(student, rows, tokenizer, cache: Path, **settings) -> OfflineDistillationTrainer:
    args = OfflineDistillationConfig(
        str(cache / "run"),
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    return OfflineDistillationTrainer(student, args, rows, processing_class=tokenizer)


def dot(a: torch.Tensor, b: torch.Tensor) -> float:
    """In float64: summed in fp32, a product of so many numbers is off by some percent."""
    return sum((x.double() @ y.double()).item() for x, y in zip(a.split(2**20), b.split(2**20), strict=True))


def gradient_of(model, loss) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def whole(student, teacher, rows, beta: float, tokens: int, vocab_size: int):
    """Loss and gradient over the whole vocabulary, with the teacher in memory."""
    loss = 0.0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        mask = torch.tensor(row["labels"][1:]) != -100
        with torch.no_grad():
            theirs = backbone_states(teacher, ids, torch.ones_like(ids))[0, :-1][mask]
        ours = backbone_states(student, ids, torch.ones_like(ids))[0, :-1][mask]
        heads = lm_head(student, vocab_size), lm_head(teacher, vocab_size)
        loss = loss + token_divergence(ours, heads[0], theirs, heads[1], beta)[0].sum() / tokens
    return loss.item(), gradient_of(student, loss)


def recorded(trainer, rows, tokens: int):
    """Loss and gradient, from a store."""
    loss = 0.0
    for row in rows:
        loss = loss + trainer.compute_loss(trainer.model, trainer.data_collator([row]), num_items_in_batch=tokens)
    return loss.item(), gradient_of(trainer.model, loss)


def tail(rows) -> float:
    """Mean probability that the teacher gives to all tokens that were not kept."""
    shards = [load_file(file)["teacher_logps"][:, -1].float().exp() for file in sorted(set(rows["teacher_file"]))]
    return torch.cat(shards).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rows", type=int, default=32)
    add("--max_new_tokens", type=int, default=48)
    add("--top_k", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    add("--gradient_rows", type=int, default=8, help="rows of the loss and of the gradient that are compared")
    add("--epochs", type=int, default=3)
    add("--cache", type=Path, default=Path("build/recorded_top_k"))
    add("--output", type=Path, default=Path("benchmarks/results/quality_recorded_top_k.json"))
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    folder = smollm2(args.cache / "teacher", torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    completions = answers(teacher, tokenizer, args)

    stores, manifests, seconds = {}, {}, {}
    for top_k in args.top_k:
        output = args.cache / f"top_{top_k}"
        shutil.rmtree(output, ignore_errors=True)
        config = RecordConfig(folder, output_dir=str(output), loss_top_k=top_k, device="cpu", dtype="float32")
        start = time.process_time()
        manifests[top_k] = record_teacher(config, completions)
        seconds[top_k], stores[top_k] = time.process_time() - start, load_recorded(output)
    tokens, vocab_size = manifests[args.top_k[0]].tokens, manifests[args.top_k[0]].vocab_size

    student, _ = prune(teacher, SMOLLM2_LAYERS, 20)
    result = {
        "benchmark": "quality/recorded_top_k",
        "settings": {
            "teacher": NAME,
            "student_layers": 20,
            **{k: v for k, v in vars(args).items() if k not in ("cache", "output")},
        },
        "rows": len(completions),
        "tokens": tokens,
        "vocab_size": vocab_size,
        "stores": [
            {
                "top_k": top_k,
                "bytes_per_token": sum(f.stat().st_size for f in (args.cache / f"top_{top_k}").glob("*.safetensors"))
                / tokens,
                "tail": tail(stores[top_k]),
                "processor_seconds": round(seconds[top_k], 1),
            }
            for top_k in args.top_k
        ],
        "students": [],
        "provenance": provenance(),
    }
    first = list(stores[args.top_k[0]].select(range(args.gradient_rows)))
    count = sum(label != -100 for row in first for label in row["labels"][1:])
    for name in ("pruned", "trained"):
        if name == "trained":
            settings = dict(
                per_device_train_batch_size=8, num_train_epochs=args.epochs, learning_rate=3e-4, logging_steps=1
            )
            trainer = make_trainer(
                student.train(), stores[64 if 64 in stores else args.top_k[-1]], tokenizer, args.cache, **settings
            )
            trainer.train()
            result["training"] = [entry["divergence"] for entry in trainer.state.log_history if "grad_norm" in entry]
            student = trainer.model
        student.eval()
        for direction, beta in BETAS.items():
            exact, gradient = whole(student, teacher, first, beta, count, vocab_size)
            entry = {"student": name, "direction": direction, "nats": exact, "recorded": []}
            for top_k in args.top_k:
                trainer = make_trainer(student, stores[top_k], tokenizer, args.cache, beta=beta)
                trainer.model.eval()
                rows = list(stores[top_k].select(range(args.gradient_rows)))
                loss, ours = recorded(trainer, rows, count)
                entry["recorded"].append(
                    {
                        "top_k": top_k,
                        "share_of_loss": loss / exact,
                        "gradient_cosine": dot(ours, gradient) / (dot(ours, ours) * dot(gradient, gradient)) ** 0.5,
                        "gradient_error": (dot(ours - gradient, ours - gradient) / dot(gradient, gradient)) ** 0.5,
                    }
                )
                print(name, direction, f"{exact:.3f}", entry["recorded"][-1], flush=True)
            result["students"].append(entry)
            save(result, args.output)


if __name__ == "__main__":
    main()

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
Tokens per second and peak memory of a whole training step (rollout, scoring, forward, backward, optimizer) of
`MiniLLMTrainer`, of `trl.DistillationTrainer(beta=1)`, and of the same MiniLLM loss on dense logits in plain torch.

Models have random weights, so rows never end early and all arms train on the same number of tokens. Times are taken in
turns in one process, the memory of each arm in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from transformers import PrinterCallback, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from transformers.utils import logging
from trl import DistillationConfig, DistillationTrainer

from benchmarks.smollm2 import byte_tokenizer
from benchmarks.speed.measuring import finish, held, in_turns, make_parser, now, peak, ratio, spread, use_one_clock
from trl_distill import MiniLLMConfig, MiniLLMTrainer
from trl_distill.divergence import LMHead, policy_loss
from trl_distill.minillm.credit import advantages, long_term_loss, token_rewards


TRL = "trl.DistillationTrainer, 1 pass"
DENSE = "dense logits, 1 pass"
DEFAULTS = "MiniLLM, mixed rollout, 4 passes"
# Name: trainer, and its settings beyond the shared ones. Every pass over a rollout is an optimizer step.
ARMS = {
    TRL: (DistillationTrainer, DistillationConfig, {"beta": 1.0}),
    "MiniLLM, 1 pass": (MiniLLMTrainer, MiniLLMConfig, {"teacher_mix_alpha": 0.0, "num_iterations": 1}),
    DEFAULTS: (MiniLLMTrainer, MiniLLMConfig, {}),
    DENSE: (None, None, {}),
}


def make_models(args, vocabulary: int):
    """Student and teacher with random weights, fp32, in mixed precision a bf16 teacher, as the trainers hold them."""

    def build(seed, hidden, layers):
        torch.manual_seed(seed)
        config = Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
        with torch.device(args.device):
            return Qwen2ForCausalLM(config)

    teacher = build(1, args.teacher_hidden, args.teacher_layers).requires_grad_(False).eval()
    return build(0, args.hidden, args.layers), teacher.to(torch.bfloat16) if args.bf16 else teacher


class StepTimes(TrainerCallback):
    def __init__(self, device):
        self.device, self.seconds = device, []

    def on_step_begin(self, *args, **kwargs):
        self.start = now(self.device)

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(now(self.device) - self.start)


def make_runner(args, vocabulary: int, arm: str, rollout: bool):
    """A function that trains on two rollouts and returns the seconds of the second and its optimizer steps."""
    student, teacher = make_models(args, vocabulary)
    trainer_class, config_class, settings = ARMS[arm]
    passes = 4 if arm == DEFAULTS else 1

    def free_completions(prompts):
        return torch.randint(2, vocabulary, (len(prompts), args.completion_tokens), device=args.device)

    if not rollout and arm == TRL:
        student.generate = lambda input_ids, **kwargs: torch.cat([input_ids, free_completions(input_ids)], dim=1)
    if not rollout and trainer_class is MiniLLMTrainer:
        settings = settings | {"score_from": "forward"}  # free completions come without hidden states
    if trainer_class is None:
        step = make_dense_step(args, student, teacher, vocabulary)

        def run_dense():
            step()
            start = now(args.device)
            step()
            return now(args.device) - start, 1

        return run_dense

    times = StepTimes(args.device)
    trainer = trainer_class(
        model=student,
        teacher_model=teacher,
        args=config_class(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=args.batch_size,
            max_steps=2 * passes,
            max_completion_length=args.completion_tokens,
            learning_rate=1e-6,
            bf16=args.bf16,
            use_cpu=args.device == "cpu",
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["a" * args.prompt_tokens] * args.batch_size * 2 * passes}),
        processing_class=byte_tokenizer(),
        callbacks=[times],
    )
    trainer.remove_callback(PrinterCallback)
    if not rollout and trainer_class is MiniLLMTrainer:
        trainer._roll_out = lambda prompt_ids: free_completions(prompt_ids).tolist()

    def run_trainer():
        times.seconds.clear()
        trainer.train()
        return sum(times.seconds[passes:]), passes

    return run_trainer


def dense_loss(student, teacher, ids, prompt_tokens: int):
    """The loss of MiniLLM in its first pass, on logits `(B, T, V)` of both models: what one writes first."""
    completion = ids[:, prompt_tokens:, None]  # (B, T, 1)
    keep = dict(logits_to_keep=completion.shape[1] + 1, use_cache=False)
    with torch.no_grad():
        teacher_logps = teacher(ids, **keep).logits[:, :-1].float().log_softmax(-1)  # (B, T, V)
    logps = student(ids, **keep).logits[:, :-1].float().log_softmax(-1)  # (B, T, V)
    token_logps = logps.gather(-1, completion)[..., 0]  # (B, T)
    mask = torch.ones_like(token_logps, dtype=torch.bool)
    rewards = token_rewards(token_logps, teacher_logps.gather(-1, completion)[..., 0], mask)
    long, _ = long_term_loss(token_logps, token_logps.detach(), advantages(rewards, mask), 0.2)
    single = (logps.exp() * (logps - teacher_logps)).sum(-1)
    return (long + single).mean()


def make_dense_step(args, student, teacher, vocabulary: int):
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6)
    shape = (args.batch_size, args.prompt_tokens + args.completion_tokens)

    def step():
        ids = torch.randint(2, vocabulary, shape, device=args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            loss = dense_loss(student, teacher, ids, args.prompt_tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_chunk_step(args, vocabulary: int, chunk_tokens: int):
    """Forward and backward of the whole loss of a pass on 2048 tokens."""
    torch.manual_seed(0)
    tensors = [torch.randn(rows, args.hidden, device=args.device) for rows in (2048, vocabulary, 2048, vocabulary)]
    tokens, credit = torch.randint(vocabulary, (2048,), device=args.device), torch.randn(2048, device=args.device)
    student, student_head, teacher, teacher_head = (tensor.mul_(0.1) for tensor in tensors)
    student.requires_grad_(), student_head.requires_grad_()

    def step():
        start = now(args.device)
        models = student, LMHead(student_head), teacher, LMHead(teacher_head)
        loss, _ = policy_loss(*models, tokens, 1.0, chunk_tokens, lambda logps, block: -credit[block] * logps)
        (loss / 2048).backward()
        student.grad = student_head.grad = None
        return now(args.device) - start

    return step


def memory_of(args):
    """Run one arm, chosen by `--memory-of`, and print by how much it lifted the peak above the loaded models."""
    vocabulary, arm = args.vocabularies[0], args.memory_of
    if arm.isdigit():
        work = make_chunk_step(args, vocabulary, int(arm))
    else:
        work = make_runner(args, vocabulary, arm, rollout=False)
    before = held(args.device)
    work()
    print(peak(args.device) - before)


def peak_of(args, vocabulary: int, arm: str) -> float:
    """MiB above the loaded models that `arm` takes at its peak, measured in a new process."""
    shape = ["hidden", "layers", "teacher_hidden", "teacher_layers", "prompt_tokens", "completion_tokens"]
    flags = [part for name in shape for part in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    flags += ["--batch-size", str(args.memory_batch_size), *["--bf16"] * args.bf16]
    command = [sys.executable, "-m", __spec__.name, "--memory-of", arm, "--vocabularies", str(vocabulary)]
    command += ["--device", args.device, *flags]
    return float(subprocess.check_output(command, cwd=Path(__file__).parents[2], text=True).split()[-1])


def measure(args, vocabulary: int, rollout: bool) -> list[dict]:
    arms = [arm for arm in args.arms if arm != (DENSE if rollout else DEFAULTS)]
    runners = {arm: make_runner(args, vocabulary, arm, rollout) for arm in arms}
    steps = {}

    def timed(arm, repeat):
        seconds, steps[arm] = runners[arm]()
        return seconds / steps[arm]

    seconds = in_turns(arms, timed, args.repeats)
    tokens = args.batch_size * args.completion_tokens
    rows = []
    for arm in arms:
        row = {"vocabulary": vocabulary, "rollout": rollout, "arm": arm}
        row["seconds_per_optimizer_step"] = spread(seconds[arm])
        row["tokens_per_second"] = tokens / spread(seconds[arm])["median"]
        rows.append(row | {"time_ratio_to_trl": ratio(seconds[arm], seconds[TRL])})
    return rows


def options() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, repeats=2)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[49152, 151936])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help=f"must hold {TRL!r}")
    parser.add_argument("--hidden", type=int, default=256, help="width of the student, a multiple of 64")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--teacher-hidden", type=int, default=256)
    parser.add_argument("--teacher-layers", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--memory-batch-size", type=int, default=16, help="batch size where memory is measured")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--completion-tokens", type=int, default=48)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="mixed precision; always on a GPU")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> dict | None:
    args = options().parse_args(argv)
    args.bf16 = args.bf16 or args.device == "cuda"
    logging.set_verbosity_error()
    disable_progress_bars()
    clock = use_one_clock(args.device)
    if args.memory_of:
        return memory_of(args)

    rows, chunks = [], []
    for vocabulary in args.vocabularies:
        peaks = {arm: peak_of(args, vocabulary, arm) for arm in args.arms if arm != DEFAULTS}
        for rollout in (False, True):
            for row in measure(args, vocabulary, rollout):
                if not rollout:
                    peak = peaks[row["arm"]]
                    row |= {"peak_mib": peak, "peak_ratio_to_trl": peak / peaks[TRL]}
                rows.append(row)
                print(json.dumps(row), flush=True)
    vocabulary, sizes = args.vocabularies[0], ("64", "256", "1024")
    steps = {size: make_chunk_step(args, vocabulary, int(size)) for size in sizes}
    seconds = in_turns(sizes, lambda size, repeat: steps[size](), args.repeats)
    for size in sizes:
        chunks.append(
            {
                "chunk_tokens": int(size),
                "vocabulary": vocabulary,
                "seconds": spread(seconds[size]),
                "time_ratio_to_256": ratio(seconds[size], seconds["256"]),
                "peak_mib": peak_of(args, vocabulary, size),
            }
        )
        print(json.dumps(chunks[-1]), flush=True)
    return finish("training_step", args, clock, hidden="memory_of", rows=rows, chunks=chunks)


if __name__ == "__main__":
    main()

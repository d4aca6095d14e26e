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
Processor time and peak memory from the construction of a trainer to the end of its first step, of `MiniLLMTrainer` and
of `trl.DistillationTrainer`, with many prompts.

The models are tiny, so that what grows with the prompts is seen. Times are taken in turns in one process, the memory
of each arm in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars, load_from_disk
from transformers import PrinterCallback, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging
from trl import DistillationConfig, DistillationTrainer

from benchmarks.smollm2 import byte_tokenizer
from benchmarks.speed.measuring import finish, held, in_turns, make_parser, now, peak, ratio, spread, use_one_clock
from trl_distill import MiniLLMConfig, MiniLLMTrainer


TRL, OURS = "trl.DistillationTrainer", "MiniLLMTrainer"
ARMS = {TRL: (DistillationTrainer, DistillationConfig), OURS: (MiniLLMTrainer, MiniLLMConfig)}
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
CPU = "cpu"


def make_prompts(kind: str, count: int) -> Dataset:
    texts = (f"Say in a few words what is known of the number {number}." for number in range(count))
    rows = ({"prompt": [{"role": "user", "content": text}] if kind == "conversational" else text} for text in texts)
    return Dataset.from_list(list(rows))


def make_model(seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    sizes = dict(
        hidden_size=8, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    ends = dict(pad_token_id=0, bos_token_id=None, eos_token_id=1)
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=512, max_position_embeddings=1024, **sizes, **ends))


def first_step(arm: str, prompts: Dataset) -> float:
    """Seconds from the construction of a trainer to the end of its first step."""
    student, teacher, tokenizer = make_model(0), make_model(1), byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    trainer_class, config_class = ARMS[arm]
    start = now(CPU)
    trainer = trainer_class(
        model=student,
        teacher_model=teacher,
        args=config_class(
            output_dir=tempfile.mkdtemp(),
            max_steps=1,
            max_completion_length=8,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return now(CPU) - start


def memory_of(arm: str, folder: str) -> None:
    """Print by how many MiB an arm lifts the memory of a process that holds the prompts in this folder."""
    prompts = load_from_disk(folder)
    first_step(arm, prompts.select(range(min(100, len(prompts)))))  # what a library loads when it is first used
    before = held(CPU)
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    first_step(arm, prompts)
    print(peak(CPU) - before)


def peak_of(arm: str, prompts: Dataset) -> float:
    """MiB that `arm` takes at its peak, measured in a new process, which has not made the prompts."""
    with tempfile.TemporaryDirectory() as folder:
        prompts.save_to_disk(folder)
        command = [sys.executable, "-m", __spec__.name, "--memory-of", arm, folder]
        return float(subprocess.check_output(command, cwd=Path(__file__).parents[2], text=True).split()[-1])


def measure(kind: str, count: int, repeats: int) -> list[dict]:
    prompts = make_prompts(kind, count)
    seconds = in_turns(ARMS, lambda arm, repeat: first_step(arm, prompts), repeats)
    rows = []
    for arm in ARMS:
        row = {"prompts": count, "kind": kind, "arm": arm, "seconds": spread(seconds[arm])}
        row["time_ratio_to_trl"] = ratio(seconds[arm], seconds[TRL])
        rows.append(row | {"peak_mib": peak_of(arm, prompts)})
    return rows


def main(argv: list[str] | None = None) -> dict | None:
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--prompts", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument(
        "--kinds", nargs="+", choices=["standard", "conversational"], default=["standard", "conversational"]
    )
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    logging.set_verbosity_error()
    disable_progress_bars()
    clock = use_one_clock(CPU)
    if args.memory_of:
        return memory_of(*args.memory_of)
    rows = []
    for count in args.prompts:
        for kind in args.kinds:
            for row in measure(kind, count, args.repeats):
                rows.append(row)
                print(json.dumps(row), flush=True)
    return finish("construction", args, clock, hidden="memory_of", rows=rows)


if __name__ == "__main__":
    main()

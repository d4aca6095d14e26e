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
One round of Lion on a processor, by the command: teacher, referee and generator are SmolLM2-135M-Instruct behind a
server, the student is the same model with half of its layers left out.

    python -m benchmarks.lion.real_run --data instructions.jsonl --work build/lion_real_run

Rows as for `trl-distill lion`, such as those of Self-Instruct. The results hold counts and scores, and no text of the
data.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.laboratory import provenance, read_lines, save, turn, write_lines
from benchmarks.serving import check_server, served
from benchmarks.smollm2 import NAME, demo_prompts, save_pruned, smollm2


TRAINING = {
    "bf16": False,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "per_device_train_batch_size": 4,
    "max_length": 256,
    "learning_rate": 1e-4,
    "num_train_epochs": 3,
    "warmup_steps": 0.1,
    "lr_scheduler_type": "cosine",
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 0,
}


def read_instructions(file: Path, most_characters: int) -> list[dict]:
    """Rows of a JSON Lines file whose instruction, with its input, is not too long for a small referee."""

    def length(row: dict) -> int:
        inputs = [row.get("input"), *(instance.get("input") for instance in row.get("instances") or [])]
        return len(row["instruction"]) + len(inputs[0] or (inputs[1] if len(inputs) > 1 else "") or "")

    return [row for row in read_lines(file) if length(row) <= most_characters]


def answered(teacher: str) -> list[dict]:
    """Greedy answers of the teacher to some prompts that ship with the package, with labels."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16).eval()
    rows = []
    for prompt in demo_prompts()[:12]:
        settings = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        ids = tokenizer.apply_chat_template(turn(prompt), **settings)
        start = ids["input_ids"].shape[1]
        tokens = model.generate(**ids, max_new_tokens=32, do_sample=False)[0]
        rows.append({"input_ids": tokens.tolist(), "labels": [-100] * start + tokens[start:].tolist()})
    return rows


def entry(folder: str, address: str, temperature: float) -> dict:
    """The server's model. It draws only if the generation config says so, and takes the temperature from there."""
    drawing = json.dumps({"do_sample": True, "top_k": 0, "temperature": temperature})
    return {
        "model": folder,
        "name": NAME,
        "base_url": address,
        "concurrency": 1,  # the server answers one request at a time
        "prompt_price": 0.0,
        "completion_price": 0.0,
        "extra_body": {"generation_config": drawing},
    }


def command(config: Path, log: Path) -> tuple[dict[str, float], str | None]:
    """Runs `trl-distill lion`. Seconds of each stage by its own messages, and its last line if it stopped."""
    start = last = time.perf_counter()
    stages, name = {}, "start"
    arguments = [sys.executable, "-m", "trl_distill.cli", "lion", "--config", str(config)]
    with open(log, "w") as file:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        line = ""
        for line in process.stdout:
            file.write(line)
            file.flush()
            if found := re.search(r"Round (\d+): (\w+)\.$", line.strip()):
                now = time.perf_counter()
                stages[name], last, name = round(now - last, 1), now, f"round {found[1]}, {found[2]}"
        code = process.wait()
    end = time.perf_counter()
    return stages | {name: round(end - last, 1), "the command": round(end - start, 1)}, line.strip() if code else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="instructions as JSON Lines, may be compressed")
    add("--work", type=Path, default=Path("build/lion_real_run"))
    add("--output", type=Path, default=Path("benchmarks/results/lion_real_run.json"))
    add("--most_characters", type=int, default=150, help="longer instructions are left out")
    add("--instructions", type=int, default=32, help="how many of the others to take, at random")
    add("--student_layers", type=int, default=15)
    add("--heldout_size", type=int, default=8)
    add("--cache_sample", type=int, default=16)
    add("--n_new", type=int, default=10)
    add("--max_tokens", type=int, default=80, help="longest answer")
    add("--referee_max_tokens", type=int, default=40, help="room for the scores alone: see README.md")
    add("--referee_orders", type=int, default=1)
    add("--max_reasks", type=int, default=5)
    add("--tau", type=float, default=0.0, help="0: hard where the student is not ahead, since most scores are ties")
    add("--run", default="run", help="folder of the run in the working folder")
    add("--calls", type=Path, help="calls.sqlite of an earlier run: what was asked in the same way is not asked again")
    add("--port", type=int, default=8931, help="of the server; the same one to go on with a run that was stopped")
    args = parser.parse_args()
    check_server()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))

    rows = read_instructions(args.data, args.most_characters)
    rows = random.Random(0).sample(rows, min(args.instructions, len(rows)))
    pool = write_lines(args.work / "instructions.jsonl", rows)
    start = time.perf_counter()
    teacher, student = smollm2(args.work / "teacher", torch.bfloat16), args.work / "student"
    kept, parameters = save_pruned(teacher, student, answered(teacher), args.student_layers)
    seconds = {"pruning": round(time.perf_counter() - start, 1)}

    tokens = {f"{role}_max_tokens": args.max_tokens for role in ("teacher", "student")}
    same = ("n_new", "heldout_size", "cache_sample", "tau", "referee_orders", "max_reasks")
    fields = {
        "dataset_name": str(pool),
        "output_dir": str(args.work / args.run),
        "student_model": str(student),
        "training": TRAINING,
        "rounds": 1,
        **{name: getattr(args, name) for name in same},
        **tokens,
        "referee_max_tokens": args.referee_max_tokens,
        "generator_max_tokens": 64,
        "teacher_temperature": 0.7,
        "referee_temperature": 0.2,
        "generator_temperature": 1.0,
    }
    if args.calls is not None:
        (args.work / args.run).mkdir(exist_ok=True)
        shutil.copy(args.calls, args.work / args.run / "calls.sqlite")
    with served(teacher, args.work / "serve.log", args.port) as address:
        roles = ("teacher", "referee", "generator")
        entries = {role: entry(teacher, address, fields[f"{role}_temperature"]) for role in roles}
        config = args.work / "lion.yaml"
        config.write_text(yaml.safe_dump(fields | entries, sort_keys=False), encoding="utf-8")
        stages, error = command(config, args.work / "lion.log")

    report = json.loads((args.work / args.run / "report.json").read_text())
    paths = ("dataset_name", "output_dir", "student_model")
    settings = {name: value for name, value in fields.items() if name not in paths}
    made = provenance()
    made["command"] = ["benchmarks.lion.real_run"]  # its arguments are in the settings, without paths
    results = {
        "benchmark": "lion/real_run",
        "provenance": made,
        "clock": "wall",
        "settings": settings | {"most_characters": args.most_characters, "instructions": len(rows)},
        "models": {
            "teacher, referee, generator": NAME,
            "student": f"{NAME} with {len(kept)} of its layers",
            "layers": kept,
            "parameters": parameters,
        },
        "seconds": seconds | stages,
        "error": error and error.replace(f"{args.work}/", ""),
        "report": report,
    }
    save(results, args.output)


if __name__ == "__main__":
    main()

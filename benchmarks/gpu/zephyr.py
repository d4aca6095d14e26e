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
The QLoRA recipes of Zephyr on a GPU: what a step of dSFT and of dDPO takes in seconds and in memory.

Two models go through the recipes as they are, but for data and number of steps: SmolLM2-135M, and a model of random
weights in the shape of Mistral-7B, which has the memory and the speed of the real one and learns nothing. Rows are
random words that fill `max_length`, the worst case of a batch. Each stage is a process of its own; a stage that has
its result is not run again.

    python -m benchmarks.gpu.zephyr --output FOLDER        # a GPU of 24 GB or more, 40 GB of disk
    python -m benchmarks.gpu.zephyr --smoke                # tiny models on any machine, nothing is kept
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import MistralConfig, MistralForCausalLM, TrainerCallback

from benchmarks.laboratory import provenance, save, write_lines
from benchmarks.smollm2 import byte_tokenizer, smollm2
from trl_distill.scripts import dpo, sft
from trl_distill.scripts.arguments import parse_strictly
from trl_distill.training import resolve


ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "zephyr"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Vocabulary, width, width inside, layers, heads, heads of keys and values, longest text: Mistral-7B-v0.1, and one that
# any machine can train
SHAPES = {"mistral-7b": (32000, 4096, 14336, 32, 32, 8, 32768), "tiny": (49152, 64, 128, 2, 4, 2, 4096)}
NAMES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
NAMES += ("num_key_value_heads", "max_position_embeddings")


def make_model(name: str, folder: Path) -> str:
    """Folder of a model with a tokenizer."""
    path = folder / name
    if name == "smollm2":
        return smollm2(path, torch.bfloat16)
    if not (path / "config.json").exists():
        tokenizer = byte_tokenizer()  # rows of bytes fill any `max_length`
        tokenizer.bos_token = "<pad>"
        ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
        config = MistralConfig(**dict(zip(NAMES, SHAPES[name], strict=True)), **ids, tie_word_embeddings=False)
        with torch.device(DEVICE):
            model = MistralForCausalLM._from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return str(path)


def write_rows(folder: Path, rows: int, words: int) -> None:
    """Conversations and pairs of random words, long enough to fill any `max_length`."""
    draw = random.Random(0)
    vocabulary = "the of and to in is that for it as with on be at by this from or an are not have which they".split()

    def say(role: str, count: int) -> dict[str, str]:
        return {"role": role, "content": " ".join(draw.choices(vocabulary, k=count))}

    def pair() -> dict:
        sides = {side: [say("assistant", words)] for side in ("chosen", "rejected")}
        return {"prompt": [say("user", words // 8)], **sides}

    dialogues = [{"messages": [say("user", words // 8), say("assistant", words)]} for _ in range(rows)]
    write_lines(folder / "sft.jsonl", dialogues)
    write_lines(folder / "pairs.jsonl", (pair() for _ in range(rows)))


def train(command: str, config: list[str], result: Path) -> None:
    """One stage, in this process: its time for a step after two to warm up, its peak memory, and its first metrics."""

    class Clock(TrainerCallback):
        ends: list[float] = []

        def on_step_end(self, args, state, control, **kwargs):
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())

    script = {"sft": sft, "dpo": dpo}[command]
    arguments = parse_strictly(script.make_parser(), config)
    resolve(arguments[0], arguments[1], arguments[3])
    trainer, clock = script.build_trainer(*arguments), Clock()
    trainer.add_callback(clock)
    trainer.train()
    trainer.save_model()
    steps = [after - before for before, after in zip(clock.ends[1:], clock.ends[2:], strict=False)]
    first = next(row for row in trainer.state.log_history if "loss" in row)
    facts = {
        "steps": len(clock.ends),
        "seconds_per_step": sorted(steps)[len(steps) // 2] if steps else None,
        "rows_per_step": trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps,
        "max_length": trainer.args.max_length,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "first_metrics": {k: first[k] for k in ("loss", "rewards/chosen", "rewards/rejected") if k in first},
    }
    if DEVICE == "cuda":
        facts["peak_gib_allocated"] = torch.cuda.max_memory_allocated() / 2**30
        facts["peak_gib_reserved"] = torch.cuda.max_memory_reserved() / 2**30
    result.write_text(json.dumps(facts, indent=2) + "\n")


def run(model: str, output: Path, folder: Path, steps: int, smoke: bool) -> dict[str, Any]:
    """dSFT, merge and dDPO of one model, as the recipes have them."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    write_rows(data, rows=64 if smoke else 512, words=40 if smoke else 2400)
    start, results = make_model(model, folder), {}
    shared = ["--eval_strategy", "no", "--save_strategy", "no", "--report_to", "none", "--max_steps", str(steps)]
    shared += ["--logging_steps", "1"]
    if smoke:
        shared += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--bf16", "false"]
        shared += ["--max_length", "128"]
    if DEVICE == "cpu":
        shared += ["--use_cpu", "--optim", "adamw_torch"]
    merged = folder / f"{model}-merged"
    for command, recipe, base, rows in (
        ("sft", "dsft_qlora", start, "sft.jsonl"),
        ("dpo", "ddpo_qlora", str(merged), "pairs.jsonl"),
    ):
        result, trained = output / f"{model}_{command}.json", folder / f"{model}-{command}"
        if command == "dpo" and not merged.exists():
            adapter = str(folder / f"{model}-sft")
            module = [sys.executable, "-m", "trl_distill.cli", "merge", adapter, "--output", str(merged)]
            subprocess.run(module, check=True, cwd=ROOT)
        if not result.exists():
            fields = ["--config", str(RECIPES / f"{recipe}.yaml"), "--model_name_or_path", base]
            fields += ["--dataset_name", str(data / rows), "--dataset_train_split", "train"]
            fields += ["--output_dir", str(trained), *shared]
            stage = [sys.executable, "-m", "benchmarks.gpu.zephyr", "--stage", command, "--result", str(result)]
            subprocess.run([*stage, *fields], check=True, cwd=ROOT)
        results[command] = json.loads(result.read_text())
        print(model, command, json.dumps(results[command]), flush=True)
    return results


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="folder for results and models")
    parser.add_argument("--models", nargs="+", default=["smollm2", "mistral-7b"], choices=["smollm2", *SHAPES])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--smoke", action="store_true", help="a tiny model and few steps, to see that it runs")
    parser.add_argument("--stage", choices=["sft", "dpo"], help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args, fields = parser.parse_known_args(argv)
    if args.stage:
        return train(args.stage, fields, args.result)
    if fields:
        parser.error(f"unknown arguments: {' '.join(fields)}")
    if args.smoke and args.output:
        parser.error("--smoke numbers are no results: leave out --output")
    if not args.smoke and (args.output is None or DEVICE == "cpu"):
        parser.error("a real run needs --output and a GPU; to try the script on a CPU use --smoke")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) if args.smoke else args.output
        output.mkdir(parents=True, exist_ok=True)
        models, steps = (["tiny"], 3) if args.smoke else (args.models, args.steps)
        results = {model: run(model, output, Path(folder), steps, args.smoke) for model in models}
        text = {"benchmark": "gpu/zephyr", "models": results, "provenance": provenance()}
        save(text, output / "zephyr_gpu.json", indent=2)
    if args.smoke:
        print("Smoke run finished. Nothing was kept: its numbers mean nothing.")


if __name__ == "__main__":
    main()

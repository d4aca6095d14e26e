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

"""What the laboratories share: results saved as they come, models of small worlds, intervals, and tables."""

import argparse
import gzip
import json
import logging
import math
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import datasets
import torch
import transformers
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, PrinterCallback, Qwen2Config, Qwen2ForCausalLM


THREADS = int(os.environ.get("OMP_NUM_THREADS", 1))  # of each process
PAD, EOS = 0, 1


# ------------------------------------------------------------------------------------------------------------ results


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or "CPU"


def provenance() -> dict:
    """Commit, versions, device and time, for the JSON of a result."""

    def git(*command: str) -> str | None:
        try:
            done = subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.decode().strip()

    return {
        # A copy of the tree on another machine has no history, but whoever copied it knows the commit
        "commit": os.environ.get("GIT_COMMIT") or git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain")),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate")},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def save(results: dict, output: Path, indent: int | None = 1) -> None:
    """Writes results so that a stop in the middle leaves the last ones whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=indent) + "\n", encoding="utf-8")
    partial.replace(output)


def resume(output: Path, empty: dict, **facts) -> dict:
    """Results of earlier starts, or empty ones, with an entry of provenance for this one: each run names its own."""
    results = json.loads(output.read_text()) if output.exists() else empty
    results.setdefault("provenance", []).append(provenance() | facts)
    return results


def make_parser(about: str, name: str, arms: Iterable[str], seeds: int, cache: str | None = None):
    """Options of every laboratory."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--arms", nargs="+", choices=list(arms), default=list(arms))
    add("--seeds", nargs="+", type=int, default=list(range(seeds)))
    add("--output", type=Path, default=Path(f"benchmarks/results/{name}.json"))
    add("--cache", type=Path, default=Path(cache or f"build/{name}"), help="where models and data are kept")
    return parser


def quiet(flush_denormal: bool = True) -> None:
    """Threads of a process, and no notes of the libraries."""
    torch.set_num_threads(THREADS)
    torch.set_flush_denormal(flush_denormal)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def in_processes(
    tasks: Iterable,
    perform: Callable,
    processes: int,
    may_start: Callable[..., bool] = lambda task: True,
    flush_denormal: bool = True,
) -> Iterator[tuple]:
    """
    Does tasks in parallel, and yields each with its result, and with the minutes that are left, as it comes.

    A task that fails is named and left out. One that `may_start` never allows is named at the end.
    """
    todo, running, count, start = list(tasks), {}, 0, time.perf_counter()
    # spawn: threads of PyTorch do not survive a fork
    context, initargs = get_context("spawn"), (flush_denormal,)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=quiet, initargs=initargs) as pool:
        while True:
            for task in [task for task in todo if may_start(task)][: processes - len(running)]:
                todo.remove(task)
                running[pool.submit(perform, task)] = task
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, count = running.pop(future), count + 1
                if error := future.exception():
                    print(f"{task} failed: {error!r}", flush=True)
                    continue
                minutes = (time.perf_counter() - start) / 60
                yield task, future.result(), minutes / count * (len(todo) + len(running))
    if todo:
        print(f"Not done, for want of what they need: {', '.join(map(str, todo))}", flush=True)


def read_lines(path: Path) -> list[dict]:
    """Rows of a JSON Lines file, compressed or not."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# Dolly comes without its passages, and a question about a passage cannot be answered
PASSAGE = "passage paragraph text article context reference given following provided above below".replace(" ", "|")
ABOUT_A_PASSAGE = re.compile(rf"\b({PASSAGE})\b", re.IGNORECASE)


def read_dolly(folder: Path) -> list[tuple[str, str]]:
    """Instructions that need no passage, and their responses, from `dolly_5900.jsonl.gz`."""
    rows = [(row["instruction"], row["response"]) for row in read_lines(folder / "dolly_5900.jsonl.gz")]
    return [(question, answer) for question, answer in rows if answer and not ABOUT_A_PASSAGE.search(question)]


def read_self_instruct(folder: Path) -> list[tuple[str, str]]:
    """The user-oriented instructions with their inputs, and their outputs, from `self_instruct_eval_252.jsonl.gz`."""
    rows = [
        (row["instruction"], row["instances"][0]) for row in read_lines(folder / "self_instruct_eval_252.jsonl.gz")
    ]
    return [(f"{instruction}\n\n{case['input']}".strip(), case["output"]) for instruction, case in rows]


def write_lines(path: Path, rows: Iterable[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turn(prompt: str, answer: str | None = None) -> list[dict[str, str]]:
    """A dialogue of one turn, or its beginning."""
    said = [{"role": "user", "content": prompt}]
    return said if answer is None else [*said, {"role": "assistant", "content": answer}]


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def facts(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.wall, "cpu_seconds": time.process_time() - self.cpu}


# ------------------------------------------------------------------------------------------------------- small worlds


class World(ABC):
    """
    A small world of text that knows its true process: it draws rows of (prompt, completion), and says what can be
    checked about a completion. Tokens are words, separated by spaces.

    Attributes:
        name (`str`):
            Name in the results.
        vocabulary (`list[str]`):
            All words, without the padding and the end-of-sequence token.
        max_completion_length (`int`):
            Tokens of the longest completion, its end-of-sequence token included.
        teacher, student (`dict`):
            Size of the two models, keywords of [`~transformers.Qwen2Config`].
        teacher_steps, warm_steps (`int`):
            Optimizer steps of the teacher and of the warm start that all arms share.
    """

    name: str
    vocabulary: list[str]
    max_completion_length: int
    teacher: dict
    student: dict
    teacher_steps: int = 0
    warm_steps: int = 0

    @abstractmethod
    def prompt(self, generator: random.Random) -> str:
        """Draws a prompt."""

    @abstractmethod
    def complete(self, prompt: str, generator: random.Random) -> str:
        """Draws one of the completions of a prompt from the true process."""

    def sample(self, generator: random.Random) -> tuple[str, str]:
        prompt = self.prompt(generator)
        return prompt, self.complete(prompt, generator)

    def correct(self, prompt: str, completion: str) -> bool | None:
        """Whether the answer is right, `None` where there is nothing to check."""
        return None


def word_tokenizer(
    vocabulary: Iterable[str], roles: Sequence[str] = (), chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """One token a word, padding on the left. `roles` are special tokens of the chat template."""
    ids = {word: i for i, word in enumerate(["<pad>", "<eos>", *roles, *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=list(roles),
        chat_template=chat_template,
        padding_side="left",
    )


def build(world, size: dict, seed: int, max_length: int = 64) -> Qwen2ForCausalLM:
    """A model with fresh weights for the words of a world."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(world.vocabulary) + 2,
        num_key_value_heads=size["num_attention_heads"],
        max_position_embeddings=max_length,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **size,
    )
    return Qwen2ForCausalLM(config)


def encode(tokenizer, rows: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Rows of (prompt, completion) as `input_ids`, `attention_mask` and `labels`, of shape `(B, P + T)`."""
    tokens = tokenizer([f"{prompt} {completion} <eos>" for prompt, completion in rows])["input_ids"]
    width = max(map(len, tokens))
    input_ids = torch.full((len(rows), width), PAD)
    labels = torch.full((len(rows), width), -100)
    for row, (ids, (prompt, _)) in enumerate(zip(tokens, rows, strict=True)):
        start = len(prompt.split())
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, start : len(ids)] = torch.tensor(ids[start:])
    return {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long(), "labels": labels}


def fit(model: PreTrainedModel, batches: Iterator[dict], steps: int, learning_rate: float) -> None:
    """Trains a model by cross-entropy: AdamW, linear decay after 50 steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, max(1 - step / steps, 0.02))
    )
    model.train()
    for _ in range(steps):
        model(**next(batches)).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def kept_model(
    world: World, size: dict, path: Path, seed: int, data_seed: int, steps: int, learning_rate: float
) -> PreTrainedModel:
    """A model that has read ever new rows of a world, kept in a file once it is trained."""
    model = build(world, size, seed)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        generator, tokenizer = random.Random(data_seed), word_tokenizer(world.vocabulary)
        batches = iter(lambda: encode(tokenizer, [world.sample(generator) for _ in range(128)]), None)
        fit(model, batches, steps, learning_rate)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    return model.eval()


def teacher_of(world: World, cache: Path) -> PreTrainedModel:
    """The teacher of a world, one for all seeds."""
    settings = {"seed": 0, "data_seed": 0, "steps": world.teacher_steps, "learning_rate": 3e-3}
    return kept_model(world, world.teacher, cache / f"{world.name}-teacher.pt", **settings).requires_grad_(False)


def student_of(world: World, seed: int, cache: Path) -> PreTrainedModel:
    """The student that all arms of a seed start from: fine-tuned on the true process for a short while."""
    settings = {"seed": seed, "data_seed": 1000 + seed, "steps": world.warm_steps, "learning_rate": 6e-3}
    return kept_model(world, world.student, cache / f"{world.name}-student-{seed}.pt", **settings)


def training_arguments(output: Path, seed: int, **settings) -> dict:
    """What the trainers of all laboratories are told, and what one of them adds."""
    return {
        "output_dir": str(output),
        "weight_decay": 0.0,
        "seed": seed,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        **settings,
    }


def train_quietly(trainer) -> None:
    """Trains without the summary at the end, which is not wanted a hundred times."""
    for one in filter(None, (trainer, getattr(trainer, "negative_trainer", None))):
        one.remove_callback(PrinterCallback)
    trainer.train()


# ---------------------------------------------------------------------------------------------------------- intervals


def pack(right: Sequence[bool]) -> str:
    """Verdicts as hexadecimal digits, four in each, for the results."""
    bits = "".join("01"[value] for value in right)
    return f"{len(right)}:{int(bits or '0', 2):x}"


def unpack(packed: str) -> list[bool]:
    count, digits = packed.split(":")
    return [bit == "1" for bit in f"{int(digits, 16):0{count}b}"] if int(count) else []


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of Student's 95 % interval, which is infinite for one seed."""
    more = len(values) - 1
    return statistics.mean(values), stats.t.ppf(0.975, more) * stats.sem(values) if more else math.inf


def over_questions(values: Sequence[float]) -> tuple[float, float]:
    """Mean of one value a question, and half of its normal 95 % interval: what other questions might have given."""
    return statistics.mean(values), stats.norm.ppf(0.975) * stats.sem(values) if len(values) > 1 else math.inf


def paired(arm: dict[int, Sequence[float]], baseline: dict[int, Sequence[float]]) -> dict:
    """
    Difference of two arms on the same questions, over the seeds that both have.

    Args:
        arm, baseline (`dict[int, Sequence[float]]`):
            For each seed what each question was worth, such as whether it was answered rightly.

    Returns:
        `dict`: `difference`; half of its interval `over_seeds` (other runs on these questions) and `over_questions`
        (other questions to these students); and the differences of each seed.
    """
    seeds = sorted(arm.keys() & baseline.keys())
    gains = [[a - b for a, b in zip(arm[seed], baseline[seed], strict=True)] for seed in seeds]
    each = [statistics.mean(gain) for gain in gains]
    difference, spread = over_seeds(each)
    of_question = [statistics.mean(column) for column in zip(*gains, strict=True)]
    return {
        "difference": difference,
        "over_seeds": spread,
        "over_questions": over_questions(of_question)[1],
        "each": each,
    }


# ------------------------------------------------------------------------------------------------------------- tables


def markdown(heads: Sequence, rows: Iterable[Sequence]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def mean(values: Iterable[float], scale: float = 100, digits: int = 1) -> str:
    """A mean, by default in percent, with its interval over seeds."""
    center, spread = over_seeds([scale * value for value in values])
    return f"{center:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread < math.inf else "")


def gain(arm: dict[int, Sequence[float]], baseline: dict[int, Sequence[float]]) -> str:
    """A difference in points: its intervals over seeds and, in brackets, over questions; how often it is above 0."""
    if not arm.keys() & baseline.keys():
        return ""
    result = paired(arm, baseline)
    spread, of_questions = (100 * result[name] for name in ("over_seeds", "over_questions"))
    text = f"{100 * result['difference']:+.1f} ± " + (f"{spread:.1f}" if spread < math.inf else "?")
    text += f" (± {of_questions:.1f})" if of_questions < math.inf else ""
    return f"{text}, {sum(value > 0 for value in result['each'])} of {len(result['each'])}"


def average(values: Iterable[float], digits: int = 0, scale: float = 1) -> str:
    """A mean alone."""
    return f"{scale * statistics.mean(values):,.{digits}f}"


def print_table(about: str, table: Callable[[dict], str], name: str) -> None:
    """The command that prints the results of a laboratory."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path(f"benchmarks/results/{name}.json"))
    print(table(json.loads(parser.parse_args().results.read_text())))

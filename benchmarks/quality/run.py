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
Runs the laboratory: every arm in every world, from the same student, on the same prompts.

Results are saved as they come. Started again, it does what is missing.

    python -m benchmarks.quality.run --seeds 0 1 2 --output benchmarks/results/quality.json
"""

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import datasets
import torch
import transformers

from benchmarks.provenance import provenance

from .arms import ARMS, FAMILY, train
from .measure import measure, teacher_facts
from .models import student_of, teacher_of, tokenizer_of
from .worlds import WORLDS


THREADS = int(os.environ.get("OMP_NUM_THREADS", 1))  # of each process


def prepare(world_name: str, seeds: list[int], cache: Path) -> dict:
    """Trains the teacher and the students of a world, and describes them."""
    world = WORLDS[world_name]
    tokenizer, teacher = tokenizer_of(world), teacher_of(world, cache)
    for seed in seeds:
        student = student_of(world, seed, cache)
    return {
        "teacher": teacher_facts(world, teacher, tokenizer) | measure(world, teacher, teacher, tokenizer),
        "teacher_parameters": teacher.num_parameters(),
        "student_parameters": student.num_parameters(),
        "rollouts": world.rollouts,
        "max_completion_length": world.max_completion_length,
    }


def learning_rate_of(world_name: str, arm: str) -> float | None:
    return None if arm == "start" else WORLDS[world_name].learning_rates[FAMILY[arm]]


def run(world_name: str, arm: str, seed: int, learning_rate: float | None, cache: Path) -> dict:
    """One arm in one world with one seed. The arm `start` is the student that the others start from."""
    world = WORLDS[world_name]
    tokenizer, teacher, student = tokenizer_of(world), teacher_of(world, cache), student_of(world, seed, cache)
    result = {"world": world_name, "arm": arm, "seed": seed}
    if arm != "start":
        with tempfile.TemporaryDirectory() as folder:
            rate = learning_rate_of(world_name, arm) if learning_rate is None else learning_rate
            result |= train(arm, world, student, teacher, tokenizer, seed, Path(folder), rate)
    return result | measure(world, student, teacher, tokenizer)


def _quiet():
    torch.set_num_threads(THREADS)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _save(results: dict, output: Path):
    results["runs"].sort(key=lambda run: (run["world"], run["seed"], ["start", *ARMS].index(run["arm"])))
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(output)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--arms", nargs="+", choices=["start", *ARMS], default=["start", *ARMS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quality.json"))
    parser.add_argument("--cache", type=Path, default=Path("build/laboratory"), help="where models are kept")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--learning-rates", nargs="+", type=float, default=[None], help="for all arms, in place of the worlds' own"
    )
    args = parser.parse_args()

    results = json.loads(args.output.read_text()) if args.output.exists() else {"worlds": {}, "runs": []}
    made = provenance() | {"seeds": args.seeds, "processes": args.processes, "threads": THREADS}
    results.setdefault("provenance", []).append(made)  # one entry a start; each run names its entry
    done = {(run["world"], run["arm"], run["seed"], run.get("learning_rate")) for run in results["runs"]}
    todo = [
        (world, arm, seed, rate)
        for seed in args.seeds
        for world in args.worlds
        for arm in args.arms
        for rate in ([None] if arm == "start" else args.learning_rates)
        if (world, arm, seed, learning_rate_of(world, arm) if rate is None else rate) not in done
    ]
    print(f"{len(todo)} runs to do, {len(done)} done.", flush=True)

    # spawn: threads of PyTorch do not survive a fork
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn"), initializer=_quiet) as pool:
        worlds = {pool.submit(prepare, world, args.seeds, args.cache): world for world in args.worlds}
        for future in as_completed(worlds):
            results["worlds"][worlds[future]] = future.result()
            print(f"{worlds[future]}: models ready", flush=True)
        start = time.perf_counter()
        futures = {pool.submit(run, *task, args.cache): task for task in todo}
        for count, future in enumerate(as_completed(futures), 1):
            if error := future.exception():
                print(f"{futures[future]} failed: {error!r}", flush=True)
                continue
            record = future.result() | {"provenance": len(results["provenance"]) - 1}
            results["runs"].append(record)
            _save(results, args.output)
            left = (time.perf_counter() - start) / count * (len(todo) - count)
            print(
                f"{count}/{len(todo)} {record['world']}, {record['arm']}, seed {record['seed']}: reverse KL "
                f"{record['reverse_kl']:.2f}, {record.get('seconds', 0):.0f} s. About {left / 60:.0f} min left.",
                flush=True,
            )
    _save(results, args.output)


if __name__ == "__main__":
    main()

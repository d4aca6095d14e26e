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
Runs the laboratory of Lion: every arm from the same base model and the same pool, with the same number of new rows.

Results are saved as they come. Started again, it does what is missing.

    python -m benchmarks.lion.run --seeds 0 1 2
"""

import argparse
import json
import logging
import os
import statistics
import time
import warnings
from pathlib import Path

import datasets
import torch
import transformers

from benchmarks.provenance import provenance
from benchmarks.rationales.intervals import unpack

from .laboratory import ARMS, Laboratory


THREADS = int(os.environ.get("OMP_NUM_THREADS", 1))


def save(results: dict, output: Path):
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(output)


def describe(laboratory: Laboratory) -> dict:
    """The base model: its size, and how well it knows the books that it has read."""
    world, base = laboratory.world(0), laboratory.base()
    tasks = world.drills(1000)
    right = [world.right(*pair) == 1 for pair in zip(tasks, laboratory.answers(base, tasks), strict=True)]
    return {"parameters": laboratory.parameters(), "right on drills": statistics.mean(right)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/lion.json"))
    parser.add_argument("--cache", type=Path, default=Path("build/lion"), help="where models and runs are kept")
    args = parser.parse_args()

    torch.set_num_threads(THREADS)
    torch.set_flush_denormal(True)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()

    laboratory = Laboratory(args.cache)
    empty = {"benchmark": "lion", "provenance": [], "seeds": {}, "runs": []}
    results = json.loads(args.output.read_text()) if args.output.exists() else empty
    results["provenance"].append(provenance() | {"sizes": laboratory.sizes()})  # one entry a start
    if "base" not in results:
        start = time.process_time()
        laboratory.base()
        results["base"] = {"cpu_seconds": time.process_time() - start, **describe(laboratory)}
    done = {(run["arm"], run["seed"]) for run in results["runs"]}
    todo = [(arm, seed) for seed in args.seeds for arm in args.arms if (arm, seed) not in done]
    print(f"{len(todo)} runs to do, {len(done)} done.", flush=True)
    for count, (arm, seed) in enumerate(todo, start=1):
        run = laboratory.run(arm, seed)
        world = laboratory.world(seed)
        results["seeds"][str(seed)] = {"families": world.families, "weak": world.weak}
        results["runs"].append(run | {"provenance": len(results["provenance"]) - 1})
        results["runs"].sort(key=lambda run: (run["seed"], list(ARMS).index(run["arm"])))
        save(results, args.output)
        of_round = [100 * statistics.mean(unpack(score["right"])) for score in run["rounds"]]
        scores = ", ".join(f"{value:.1f}" for value in of_round)
        print(f"{count}/{len(todo)} {arm}, seed {seed}: {scores} %, {run['cpu_seconds']:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()

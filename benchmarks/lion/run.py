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

    python -m benchmarks.lion.run                                  # the world whose books share nothing
    python -m benchmarks.lion.run --world shared                   # books of a kind have a half in common
    python -m benchmarks.lion.run --check --threads 2              # does the order hold on this machine?

`--check` runs one seed of three arms anew, base model included, and compares their order with the results, for each
two of which these know who is ahead. It ends with exit code 1 if one of them has changed places.
"""

import itertools
import shutil
import statistics
import sys
from pathlib import Path

import torch

from benchmarks.laboratory import make_parser, paired, quiet, resume, save, unpack

from .laboratory import ARMS, DEFAULT, Laboratory
from .table import accuracies, by_arm


WORLDS = {"apart": 0.0, "shared": 0.5}  # what books of a kind have in common
CHECKED = [DEFAULT, "random", "adversarial, replay all"]
STRONG = 0.97  # what strong families must know after the first imitation, or nothing could be forgotten


def work(
    laboratory: Laboratory, world: str, results: dict, output: Path, arms: list, seeds: list, rates: list
) -> None:
    """Runs what is missing in the results. `rates` are tried for the arms in place of their own."""
    known = {(run["world"], run["arm"], run["seed"], run["learning_rate"]) for run in results["runs"]}
    tasks = [(world, arm, seed, rate) for seed in seeds for arm in arms for rate in rates or [ARMS[arm].learning_rate]]
    todo = [task for task in tasks if task not in known]
    print(f"{len(todo)} runs to do, {len(tasks) - len(todo)} done.", flush=True)
    results["parameters"] = laboratory.parameters()
    for count, (_, arm, seed, rate) in enumerate(todo, start=1):
        of_seed = laboratory.world(seed)
        facts = {"families": of_seed.families, "weak": of_seed.weak, "base": laboratory.base_facts(seed)}
        results["seeds"].setdefault(str(seed), facts)
        run = {"world": world, **laboratory.run(arm, seed, rate), "provenance": len(results["provenance"]) - 1}
        results["runs"].append(run)
        results["runs"].sort(key=lambda run: (run["world"], run["seed"], list(ARMS).index(run["arm"])))
        save(results, output, indent=None)
        of_round = [100 * statistics.mean(unpack(score["right"])) for score in run["rounds"]]
        scores = ", ".join(f"{value:.1f}" for value in of_round)
        print(
            f"{count}/{len(todo)} {arm}, seed {seed}, {rate:g}: {scores} %, {run['cpu_seconds']:.0f} CPU s", flush=True
        )


def check(results: dict, again: dict) -> bool:
    """Whether arms that were run again keep the order that the results are sure of, and strong families begin high."""
    committed, repeated = by_arm(results), by_arm(again)
    base = next(iter(again["seeds"].values()))["base"]
    first = accuracies(again, again["runs"], 0, "strong")
    strong = min(value for [value] in first.values())
    print(f"Base: {base['right']:.1%} of new drills after {base['courses']} courses.")
    print(f"Strong families after the first imitation: {strong:.1%}, wanted {STRONG:.0%}.")
    agrees, compared = strong >= STRONG, 0
    for one, other in itertools.combinations([arm for arm in repeated if arm in committed], 2):
        ours, theirs = (
            paired(*(accuracies(source, arms[name], -1, "all") for name in (one, other)))
            for source, arms in ((again, repeated), (results, committed))
        )
        said = f"{one} minus {other}: here {100 * ours['difference']:+.1f} points, "
        said += f"results {100 * theirs['difference']:+.1f} ± {100 * theirs['over_seeds']:.1f}"
        if abs(theirs["difference"]) <= theirs["over_seeds"]:
            print(f"{said}: no order to compare")
            continue
        same, compared = ours["difference"] * theirs["difference"] > 0, compared + 1
        agrees &= same
        print(f"{said}: {'the same order' if same else 'ANOTHER ORDER'}")
    if not compared:
        print("The results know no order of these arms: name others by `--arms`.")
    return agrees and compared > 0


def main():
    parser = make_parser(__doc__, "lion", ARMS, seeds=5)
    parser.set_defaults(arms=None, seeds=None)
    add = parser.add_argument
    add("--world", choices=list(WORLDS), default="apart", help="what the code books share")
    add("--learning_rates", nargs="+", type=float, default=[], help="to try for the arms named, in place of their own")
    add("--check", action="store_true", help="run three arms again, and compare their order with the results")
    add("--threads", type=int, help="of PyTorch, in place of OMP_NUM_THREADS")
    args = parser.parse_args()
    quiet()
    if args.threads:
        torch.set_num_threads(args.threads)
    name = "lion/learning_rates" if args.learning_rates else "lion"
    empty = {"benchmark": name, "provenance": [], "seeds": {}, "runs": []}
    shared = WORLDS[args.world]
    if args.check:
        results, cache = resume(args.output, empty), args.cache / "check"
        results["runs"] = [run for run in results["runs"] if run["world"] == args.world]
        seeds = args.seeds or [min((run["seed"] for run in results["runs"]), default=0)]
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        again = cache / "results.json"
        laboratory = Laboratory(cache, shared)
        repeated = resume(again, empty | {"seeds": {}, "runs": []}, sizes=laboratory.sizes())
        work(laboratory, args.world, repeated, again, args.arms or CHECKED, seeds, [])
        sys.exit(0 if check(results, repeated) else 1)
    laboratory = Laboratory(args.cache, shared)
    results = resume(args.output, empty, sizes=laboratory.sizes())
    seeds = list(range(5)) if args.seeds is None else args.seeds
    work(laboratory, args.world, results, args.output, args.arms or list(ARMS), seeds, args.learning_rates)


if __name__ == "__main__":
    main()

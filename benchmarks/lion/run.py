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

import statistics

from benchmarks.laboratory import Clock, make_parser, quiet, resume, save, unpack

from .laboratory import ARMS, Laboratory


def describe(laboratory: Laboratory) -> dict:
    """The base model: its size, and how well it knows the books that it has read."""
    world, base = laboratory.world(0), laboratory.base()
    tasks = world.drills(1000)
    right = [world.right(*pair) == 1 for pair in zip(tasks, laboratory.answers(base, tasks), strict=True)]
    return {"parameters": laboratory.parameters(), "right on drills": statistics.mean(right)}


def main():
    args = make_parser(__doc__, "lion", ARMS, seeds=5).parse_args()
    quiet()
    laboratory = Laboratory(args.cache)
    empty = {"benchmark": "lion", "provenance": [], "seeds": {}, "runs": []}
    results = resume(args.output, empty, sizes=laboratory.sizes())
    if "base" not in results:
        clock = Clock()
        laboratory.base()
        results["base"] = {"cpu_seconds": clock.facts()["cpu_seconds"], **describe(laboratory)}
    done = {(run["arm"], run["seed"]) for run in results["runs"]}
    todo = [(arm, seed) for seed in args.seeds for arm in args.arms if (arm, seed) not in done]
    print(f"{len(todo)} runs to do, {len(done)} done.", flush=True)
    for count, (arm, seed) in enumerate(todo, start=1):
        run, world = laboratory.run(arm, seed), laboratory.world(seed)
        results["seeds"][str(seed)] = {"families": world.families, "weak": world.weak}
        results["runs"].append(run | {"provenance": len(results["provenance"]) - 1})
        results["runs"].sort(key=lambda run: (run["seed"], list(ARMS).index(run["arm"])))
        save(results, args.output)
        of_round = [100 * statistics.mean(unpack(score["right"])) for score in run["rounds"]]
        scores = ", ".join(f"{value:.1f}" for value in of_round)
        print(f"{count}/{len(todo)} {arm}, seed {seed}: {scores} %, {run['cpu_seconds']:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()

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
Runs the laboratory of Zephyr: dSFT, AI feedback and dDPO from one base model, and the arms beside them.

Results are saved as they come. Started again, it does what is missing.

    python -m benchmarks.zephyr.run --seeds 0 1 2
"""

from pathlib import Path

from benchmarks.laboratory import Clock, make_parser, quiet, resume, save

from .arms import ARMS, FEEDBACK, LEARNING_RATES, describe, folder_of, measure, train
from .laboratory import Laboratory


def starts_of(arms: list[str]) -> list[str]:
    """The arms, with those that they start from before them."""
    needed = []
    for name in arms:
        student = ["dsft"] if ARMS[name].answers.startswith("student") else []
        for start in [ARMS[name].start, *student]:
            needed += [] if start == "base" or start in needed else starts_of([start])
        needed += [name]
    return list(dict.fromkeys(needed))


def work(laboratory: Laboratory, results: dict, output: Path, arms: list[str], seeds: list[int], rates: list[float]):
    """Trains and measures what is missing in the results. `rates` are tried for the arms that are named."""
    runs = results["runs"]
    done = {(run["arm"], run["seed"], run.get("learning_rate")) for run in runs}
    tasks = []
    for seed in seeds:
        tasks.append(("base", seed, None))
        for name in starts_of(arms):
            own = rates if rates and name in arms else [ARMS[name].learning_rate]
            tasks += [(name, seed, rate) for rate in own]
    tasks = [task for task in tasks if task not in done]
    for count, (name, seed, rate) in enumerate(tasks, start=1):
        clock = Clock()
        facts = {} if name == "base" else train(laboratory, name, seed, rate)
        scores = measure(laboratory, folder_of(laboratory, name, seed, rate), seed)
        runs.append({"arm": name, "seed": seed, **facts, **scores, "provenance": len(results["provenance"]) - 1})
        made = results["feedback"].setdefault(str(seed), {})
        for answers in FEEDBACK:
            if answers not in made and (laboratory.folder(seed, f"feedback {answers}") / "report.json").exists():
                made[answers] = describe(laboratory, seed, answers)
        save(results, output)
        print(
            f"{count}/{len(tasks)} {name}, seed {seed}, {rate}: sampled {scores['sampled']['quality']:.3f}, greedy "
            f"{scores['greedy']['quality']:.3f}, {clock.facts()['cpu_seconds']:.0f} CPU s",
            flush=True,
        )


def main():
    parser = make_parser(__doc__, "zephyr", ARMS, seeds=3)
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[], help="to try for the arms named")
    args = parser.parse_args()
    quiet()
    laboratory = Laboratory(args.cache)
    empty = {"benchmark": "zephyr", "provenance": [], "base": {}, "feedback": {}, "runs": []}
    sizes = {name: value for name, value in vars(laboratory).items() if isinstance(value, (int, dict))}
    results = resume(args.output, empty, sizes=sizes, learning_rates=LEARNING_RATES)
    clock, fresh = Clock(), not (args.cache / "base" / "model.safetensors").exists()
    results["base"]["parameters"] = laboratory.load(laboratory.base()).num_parameters()
    if fresh:
        results["base"]["cpu_seconds"] = clock.facts()["cpu_seconds"]
    work(laboratory, results, args.output, args.arms, args.seeds, args.learning_rates)


if __name__ == "__main__":
    main()

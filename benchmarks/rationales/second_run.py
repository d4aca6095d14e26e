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
Runs the second laboratory of rationales in the order of `PLAN.md`: for each regime learning rates on the pilot seed,
then the seeds. Results are saved as they come. Started again, it does what is missing.

    python -m benchmarks.rationales.second_run
"""

import random
import statistics

from datasets import Dataset

from benchmarks.laboratory import THREADS, make_parser, pack, quiet, resume, save
from trl_distill.chat import Samples

from .second import PILOT, Run, SecondLaboratory
from .uses import ARMS, FULL, GRID, kept, train
from .voting import vote


VOTERS = ("rft", "first wrong token, ul")


def accuracy(run: dict) -> float:
    count, digits = run["right"].split(":")
    return int(digits, 16).bit_count() / int(count)


def chosen(results: dict, full: bool, share: float) -> dict[str, float]:
    """The learning rate of each arm that did best on the pilot seed."""
    pilots = [run for run in results["runs"] if (run["full"], run["share"], run["seed"]) == (full, share, PILOT)]
    best = {}
    for run in sorted(pilots, key=accuracy):
        best[run["arm"]] = run["rate"]
    return best


def prepare(laboratory: SecondLaboratory, seed: int) -> dict:
    """The data of a seed, and what the base model makes of the test."""
    rationales, questions = laboratory.rationales(seed), laboratory.test(seed)
    right, wrong = ({row["prompt"] for row in rationales if row["label"] is label} for label in (True, False))
    return {
        "base": pack(laboratory.accuracy(laboratory.base(), questions)),
        "easy": pack([laboratory.pupil.is_easy(question) for question in questions]),
        "right": sum(rationales["label"]),
        "wrong": len(rationales) - sum(rationales["label"]),
        "wrong only": len(wrong - right) / laboratory.questions,
        "right before the first mistake": statistics.mean(
            laboratory.pupil.right_steps(row["prompt"], row["completion"]) / len(row["completion"].split())
            for row in rationales
            if not row["label"]
        ),
        "parameters": laboratory.base().num_parameters(),
    }


def further(results: dict, full: bool, share: float, arm: str) -> float | None:
    """The rate beyond the best of an arm on the pilot seed, if that is the lowest or the highest of at most four."""
    tried = sorted(
        run["rate"]
        for run in results["runs"]
        if (run["full"], run["share"], run["seed"], run["arm"]) == (full, share, PILOT, arm)
    )
    best, grid = chosen(results, full, share)[arm], [rate * (0.1 if full else 1) for rate in GRID]
    if arm in ("cot kd", "contrast") or len(tried) > 4 or best not in (tried[0], tried[-1]):
        return None
    beyond = grid.index(best) + (1 if best == tried[-1] else -1)
    return grid[beyond] if 0 <= beyond < len(grid) else None


def votes(laboratory: SecondLaboratory, share: float, seed: int, rates: dict[str, float]) -> list[dict]:
    """Votes of the best two uses, with a ranker that has read the rows of the regime."""
    run = Run(laboratory, "vote", share, seed, 0.0, False, rates)
    questions, generator = laboratory.test(seed)[: laboratory.vote_questions], random.Random(seed)
    drawn = [Samples([laboratory.pupil.complete(question, generator)], [], []) for question in questions]
    students = {arm: kept(run, arm).eval() for arm in VOTERS}
    rows = Dataset.from_list([*run.right, *run.wrong])
    return vote(laboratory, seed, students, rows, laboratory.label(questions, drawn))


def main():
    parser = make_parser(__doc__, "rationales_second", ARMS, seeds=5)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 1.0], help="of the right rows")
    parser.add_argument("--full", action="store_true", help="train all weights, where `PLAN.md` says so")
    parser.add_argument(
        "--rates-of", type=float, help="share whose pilot chooses the rates of all, without another pilot"
    )
    parser.add_argument("--votes", action="store_true", help="of the students that the seeds have, and nothing else")
    args = parser.parse_args()
    quiet()

    laboratory = SecondLaboratory(args.cache)
    sizes = {name: value for name, value in vars(laboratory).items() if isinstance(value, int)}
    empty = {"benchmark": "rationales/second", "provenance": [], "prepare": {}, "runs": []}
    results = resume(args.output, empty, sizes=sizes, threads=THREADS)
    names = ("full", "share", "seed", "arm", "rate")
    done = {tuple(run[name] for name in names) for run in results["runs"]}
    arms = [arm for arm in args.arms if (arm in FULL or not args.full) and not args.votes]
    for share in args.shares:
        for seed in (PILOT, *args.seeds) if args.rates_of is None else args.seeds:
            if str(seed) not in results["prepare"]:
                results["prepare"][str(seed)] = prepare(laboratory, seed)
            if args.votes and seed != PILOT:
                of_share = results.setdefault("vote", {}).setdefault(f"{share:g}", {})
                if str(seed) not in of_share:
                    rates = chosen(results, args.full, args.rates_of or share)
                    of_share[str(seed)] = votes(laboratory, share, seed, rates)
                    save(results, args.output)
            for arm in arms:
                rates = chosen(results, args.full, args.rates_of or share)
                todo = [rate * (0.1 if args.full else 1) for rate in ARMS[arm][1]] if seed == PILOT else [rates[arm]]
                while todo:
                    rate = todo.pop(0)
                    if (args.full, share, seed, arm, rate) not in done:
                        done.add((args.full, share, seed, arm, rate))
                        result = train(Run(laboratory, arm, share, seed, rate, args.full, rates))
                        right = result.pop("right")
                        about = {"right": pack(right), "provenance": len(results["provenance"]) - 1}
                        results["runs"].append(result | about)
                        save(results, args.output)
                        score = f"{100 * sum(right) / len(right):.1f} %, {result['cpu_seconds']:.0f} s"
                        print(f"{share:g} {seed} {arm} {rate:g}: {score}", flush=True)
                    if seed == PILOT and not todo and (rate := further(results, args.full, share, arm)):
                        todo = [rate]


if __name__ == "__main__":
    main()

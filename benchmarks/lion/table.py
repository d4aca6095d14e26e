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
Prints the results of the laboratory of Lion as Markdown.

    python -m benchmarks.lion.table benchmarks/results/lion.json
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.rationales.intervals import over_seeds, unpack
from benchmarks.rationales.table import mean

from .laboratory import ARMS


# What an arm is compared with, so that one thing differs
CONTROL = {
    "adversarial": "random",
    "adversarial, hard only": "random",
    "adversarial, easy only": "random",
    "no new rows": "random",
    "adversarial, one order": "adversarial",
    "adversarial, from the base": "random, from the base",
}
KINDS = ("weak", "strong", "all")


def accuracies(results: dict, runs: list[dict], round: int, kind: str) -> dict[int, float]:
    """By seed the accuracy of the student of a round on tasks of weak or of strong families, or on all."""
    found = {}
    for run in runs:
        if round < len(run["rounds"]):
            world, right = results["seeds"][str(run["seed"])], unpack(run["rounds"][round]["right"])
            size = len(right) // len(world["families"])
            of_kind = [
                value
                for i, value in enumerate(right)
                if kind == "all" or (world["families"][i // size] in world["weak"]) == (kind == "weak")
            ]
            found[run["seed"]] = statistics.mean(of_kind)
    return found


def gain(arm: dict[int, float], control: dict[int, float]) -> str:
    """A difference in points over the seeds that both have, its interval, and how often it is above 0."""
    each = [100 * (arm[seed] - control[seed]) for seed in sorted(arm.keys() & control.keys())]
    if not each:
        return ""
    difference, spread = over_seeds(each)
    return f"{difference:+.1f} ± {spread:.1f}, {sum(value > 0 for value in each)} of {len(each)}"


def by_arm(results: dict) -> dict[str, list[dict]]:
    arms: dict[str, list[dict]] = {}
    for run in sorted(results["runs"], key=lambda run: (list(ARMS).index(run["arm"]), run["seed"])):
        arms.setdefault(run["arm"], []).append(run)
    return arms


def _rows(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def scores_table(results: dict) -> str:
    """Accuracy by round and kind of family, and paired differences at the end."""
    arms = by_arm(results)
    last = max(score["round"] for run in results["runs"] for score in run["rounds"])
    heads = [
        "arm",
        "round",
        *(f"{kind} %" for kind in KINDS),
        "control",
        *(f"{kind}, points" for kind in KINDS),
    ]
    rows = []
    for round in range(last + 1):
        for arm in list(arms)[: 1 if round == 0 else None]:  # round 0 is the same for all
            control = CONTROL.get(arm, "") if round else ""
            scores = [accuracies(results, arms[arm], round, kind) for kind in KINDS]
            cells = [arm if round else "all", str(round), *(mean(of_kind.values()) for of_kind in scores)]
            others = [accuracies(results, arms.get(control, []), round, kind) for kind in KINDS]
            rows.append([*cells, control, *(gain(*pair) for pair in zip(scores, others, strict=True))])
    return _rows(heads, rows)


def work_table(results: dict) -> str:
    """What was mined and what it cost."""

    def share(part: Callable[[dict], float], whole: Callable[[dict], float]) -> str:
        values = [100 * part(score) / whole(score) for score in mined if whole(score)]
        return f"{statistics.mean(values):.0f}" if values else ""

    heads = [
        "arm",
        "round",
        "hard, % of the pool",
        "weak, % of the hard",
        "weak, % of the new",
        "no family, % of the new",
    ]
    heads += ["requests to the generator", "of these: similar", "too short"]
    rows = []
    for arm, runs in by_arm(results).items():
        for round in range(1, max(len(run["rounds"]) for run in runs)):
            mined = [run["rounds"][round] for run in runs if "new" in run["rounds"][round]]
            if not mined:
                continue
            scored = [score for score in mined if "discrimination" in score]
            cells = [arm, str(round), "", ""]
            if scored:
                counts = [score["discrimination"] for score in scored]
                cells[2] = f"{100 * statistics.mean(c['hard'] / (c['hard'] + c['easy']) for c in counts):.0f}"
                cells[3] = share(lambda score: score["hard"].get("weak", 0), lambda score: sum(score["hard"].values()))
            cells += [
                share(lambda score, kind=kind: score["new"].get(kind, 0), lambda score: sum(score["new"].values()))
                for kind in ("weak", "none")
            ]
            cells += [
                f"{statistics.mean(score['generation'].get(name, 0) for score in mined):.0f}"
                for name in ("requests", "similar", "too_short")
            ]
            rows.append(cells)
    roles = ("teacher", "referee", "generator", "student")
    calls = [
        [
            arm,
            *(f"{statistics.mean(run['calls'].get(role, 0) for run in runs):,.0f}" for role in roles),
            f"{statistics.mean(run['cpu_seconds'] for run in runs):.0f}",
        ]
        for arm, runs in by_arm(results).items()
    ]
    return f"{_rows(heads, rows)}\n\n{_rows(['arm', *(f'calls, {role}' for role in roles), 'CPU s'], calls)}"


def facts(results: dict) -> str:
    sizes, base = results["provenance"][-1]["sizes"], results["base"]
    seeds = sorted({run["seed"] for run in results["runs"]})
    world = results["seeds"][str(seeds[0])]
    weak, strong = len(world["weak"]), len(world["families"]) - len(world["weak"])
    return (
        f"Seeds {', '.join(map(str, seeds))}. Student of {base['parameters']:,} parameters, whose base is right on "
        f"{100 * base['right on drills']:.1f} % of the drills. Pool: {strong} strong families of {sizes['strong_rows']} rows, "
        f"{weak} weak ones of {sizes['weak_rows']}; {sizes['n_new']} new rows a round."
    )


def table(results: dict) -> str:
    return "\n\n".join([facts(results), scores_table(results), work_table(results)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("benchmarks/results/lion.json"))
    print(table(json.loads(parser.parse_args().results.read_text())))


if __name__ == "__main__":
    main()

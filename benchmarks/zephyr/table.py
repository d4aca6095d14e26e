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
Prints the results of the laboratory of Zephyr as Markdown.

    python -m benchmarks.zephyr.table benchmarks/results/zephyr.json
"""

import argparse
import json
import statistics
from pathlib import Path

from benchmarks.rationales.intervals import over_questions, over_seeds

from .arms import ARMS, unpack


def mean(values: list[float], scale: float = 100, digits: int = 1) -> str:
    """A mean with Student's 95 % interval over seeds."""
    center, spread = over_seeds([scale * value for value in values])
    return f"{center:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread < float("inf") else "")


def gain(arm: dict[int, list[float]], baseline: dict[int, list[float]]) -> str:
    """A difference in points: its intervals over seeds and over prompts, and in how many seeds it is above 0."""
    seeds = sorted(arm.keys() & baseline.keys())
    gains = [[100 * (a - b) for a, b in zip(arm[seed], baseline[seed], strict=True)] for seed in seeds]
    each = [statistics.mean(values) for values in gains]
    center, spread = over_seeds(each)
    _, of_prompts = over_questions([statistics.mean(column) for column in zip(*gains, strict=True)])
    over = f"{spread:.1f}" if len(each) > 1 else "?"
    return f"{center:+.1f} ± {over} (± {of_prompts:.1f}), {sum(value > 0 for value in each)} of {len(each)}"


def win_rate(arm: dict[int, list[float]], baseline: dict[int, list[float]]) -> str:
    """Share of prompts on which an arm's answer is the better one; ties are half a win."""
    rates = [
        statistics.mean((a > b) + (a == b) / 2 for a, b in zip(arm[seed], baseline[seed], strict=True))
        for seed in sorted(arm.keys() & baseline.keys())
    ]
    return mean(rates)


def arms_table(results: dict) -> str:
    """All arms, each against dSFT on the same prompts."""
    order = ["base", *ARMS]
    of_arm: dict[tuple, list[dict]] = {}
    for run in sorted(
        results["runs"], key=lambda run: (order.index(run["arm"]), run.get("learning_rate", 0), run["seed"])
    ):
        of_arm.setdefault((run["arm"], run.get("learning_rate")), []).append(run)
    tuned = len(of_arm) > len({arm for arm, _ in of_arm})  # the file in which learning rates are chosen
    qualities = {
        key: {run["seed"]: unpack(run["sampled"]["qualities"]) for run in runs} for key, runs in of_arm.items()
    }
    baseline = next((qualities[key] for key in of_arm if key[0] == "dsft"), None)
    heads = ["arm", "quality, sampled %", "greedy %", "minus dSFT, points", "win rate against dSFT %", "perfect %"]
    heads += ["words", "came to an end %", "accuracy of rewards %", "margin", "steps", "CPU s"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (arm, rate), runs in of_arm.items():
        sampled = [run["sampled"] for run in runs]
        cells = [mean([run["quality"] for run in sampled]), mean([run["greedy"]["quality"] for run in runs])]
        compared = arm != "dsft" and baseline is not None and not tuned
        cells += (
            [gain(qualities[arm, rate], baseline), win_rate(qualities[arm, rate], baseline)] if compared else ["", ""]
        )
        cells += [mean([run["perfect"] for run in sampled]), mean([run["words"] for run in sampled], scale=1)]
        cells.append(f"{100 * statistics.mean(run['ended'] for run in sampled):.1f}")
        if "first_loss" in runs[0]:
            cells.append(f"{100 * statistics.mean(run['last rewards/accuracies'] for run in runs):.0f}")
            cells.append(f"{statistics.mean(run['last rewards/margins'] for run in runs):.2f}")
        else:
            cells += ["", ""]
        if arm == "base":
            cells += ["", ""]
        else:
            cells.append(f"{statistics.mean(run['optimizer_steps'] for run in runs):.0f}")
            cells.append(f"{statistics.mean(run['cpu_seconds'] for run in runs):.0f}")
        lines.append(f"| {arm}{f', {rate:g}' if tuned and rate else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def feedback_table(results: dict) -> str:
    """What the pairs of each feedback are worth, by the true quality of their answers."""
    heads = ["answers", "pairs", "tied prompts", "quality of chosen %", "of rejected %", "words chosen", "rejected"]
    heads += ["better chosen %", "worse chosen %", "chosen from"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    kinds = list(dict.fromkeys(kind for of_seed in results["feedback"].values() for kind in of_seed))
    for kind in kinds:
        all_ = [of_seed[kind] for of_seed in results["feedback"].values() if kind in of_seed]
        cells = [f"{statistics.mean(one['counts'][name] for one in all_):.0f}" for name in ("pairs", "tied")]
        for name, scale in (("quality", 100), ("words", 1)):
            cells += [
                f"{scale * statistics.mean(one[name][side] for one in all_):.1f}" for side in ("chosen", "rejected")
            ]
        cells += [
            f"{100 * statistics.mean(one[name] for one in all_):.1f}" for name in ("better chosen", "worse chosen")
        ]
        models = sorted({model for one in all_ for model in one["chosen"]})
        shares = {model: statistics.mean(one["chosen"].get(model, 0) for one in all_) for model in models}
        cells.append(", ".join(f"{model} {100 * share:.0f} %" for model, share in shares.items()))
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(results: dict) -> str:
    seeds = ", ".join(results["feedback"])
    first = [run["first_loss"] for run in results["runs"] if "first_loss" in run]
    about = f"Seeds {seeds}. Base of {results['base']['parameters']:,} parameters."
    if first:
        about += f" First losses of DPO: {min(first):.4f} to {max(first):.4f}."
    parts = [about, arms_table(results)]
    return "\n\n".join(parts + ([feedback_table(results)] if any(results["feedback"].values()) else []))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("benchmarks/results/zephyr.json"))
    print(table(json.loads(parser.parse_args().results.read_text())))


if __name__ == "__main__":
    main()

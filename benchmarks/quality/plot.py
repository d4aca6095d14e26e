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
Draws what happens in the world of modes: reverse KL and the share of hopeless starts against the samples seen. Each
line ends at the figure that the pages quote, from 2,048 samples; the points before it are from fewer.

    python -m benchmarks.quality.plot
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from .arms import DEFAULT  # noqa: E402


ARMS = {
    "distillation": ("TRL's DistillationTrainer", "black"),
    "minillm paper": ("MiniLLM, the paper's setting", "tab:orange"),
    "minillm released": ("MiniLLM, the released setting", "tab:red"),
    DEFAULT: ("MiniLLM here (default)", "tab:blue"),
    "minillm exact no-length-norm whitened": ("with exact credit", "tab:green"),
}
MEASURES = {
    "reverse_kl": ("reverse KL, nats an answer", 1, "{:.2f}"),
    "hopeless": ("hopeless answers, %", 100, "{:.0f} %"),
}


def apart(places: list[float], gap: float) -> list[float]:
    """Places of labels from the lowest up, moved up where two would stand closer than `gap`."""
    moved = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    return moved


def draw(axis, runs: list[dict], key: str, names: bool) -> None:
    label, factor, form = MEASURES[key]
    ends = []
    for arm, (name, color) in ARMS.items():
        of_arm = [run for run in runs if run["arm"] == arm]
        points = list(zip(*([*run["curve"], run] for run in of_arm), strict=True))  # seeds measure at the same steps
        places = [statistics.mean(measured["samples"] for measured in point) for point in points]
        values = [[factor * measured[key] for measured in point] for point in points]
        means = list(map(statistics.mean, values))
        width = 3.5 if arm == DEFAULT else 1.5
        axis.plot(places, means, color=color, linewidth=width, zorder=3 if arm == DEFAULT else 2)
        axis.fill_between(places, list(map(min, values)), list(map(max, values)), color=color, alpha=0.12, linewidth=0)
        text = form.format(means[-1]) + (f"  {name}" if names else "")
        ends.append((means[-1], text, color, "bold" if arm == DEFAULT else "normal"))
    ends.sort()
    top = axis.get_ylim()[1]
    for place, (_, text, color, weight) in zip(apart([end[0] for end in ends], top / 18), ends, strict=True):
        axis.annotate(text, (8400, place), color=color, weight=weight, va="center", annotation_clip=False, fontsize=9)
    axis.set(xlabel="samples seen", title=label, xlim=(0, 8192), ylim=(0, top))
    axis.spines[["top", "right"]].set_visible(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("benchmarks/results/quality_credit.json"))
    parser.add_argument("--output", type=Path, default=Path("docs/images/laboratory_modes.png"))
    args = parser.parse_args()
    runs = [run for run in json.loads(args.results.read_text())["runs"] if run["world"] == "modes"]

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(1, 0.8))
    draw(left, runs, "reverse_kl", names=True)
    draw(right, runs, "hopeless", names=False)
    left.axhline(math.log(2), color="gray", linestyle=":", linewidth=1)
    left.annotate("best without the hopeless answers", (300, math.log(2) - 0.45), color="gray", fontsize=8)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=200)
    print(args.output)


if __name__ == "__main__":
    main()

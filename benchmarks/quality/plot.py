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
Draws what happens in the world of modes: reverse KL against the samples seen and against processor time, and the share
of hopeless starts.

    python -m benchmarks.quality.plot
"""

import argparse
import json
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from .arms import DEFAULT  # noqa: E402


ARMS = {
    "distillation": ("TRL DistillationTrainer (beta=1)", "black"),
    "minillm released": ("MiniLLM, released code's setting", "tab:red"),
    "minillm paper": ("MiniLLM, paper's setting", "tab:orange"),
    "minillm": ("length norm, weight outside the clip", "tab:olive"),
    "minillm exact whitened": ("... whitened, exact credit", "tab:green"),
    "minillm no-length-norm weight-in-clip": ("no length norm, weight inside the clip", "tab:purple"),
    "minillm no-length-norm whitened": ("no length norm, weight outside, whitened (default)", "tab:cyan"),
    "minillm exact no-length-norm whitened": ("... exact credit", "tab:pink"),
    "minillm no-length-norm": ("no length norm, weight outside, not whitened", "tab:blue"),
    "minillm exact no-length-norm": ("... exact credit", "tab:brown"),
    "minillm no-length-norm four-answers": ("... four answers a prompt", "tab:gray"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("benchmarks/results/quality_credit.json"))
    parser.add_argument("--output", type=Path, default=Path("docs/images/laboratory_modes.png"))
    args = parser.parse_args()
    runs = json.loads(args.results.read_text())["runs"]

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    for arm, (label, color) in ARMS.items():
        curves = [run["curve"] for run in runs if run["world"] == "modes" and run["arm"] == arm]
        if not curves:
            continue
        points = list(zip(*curves, strict=True))  # seeds measure at the same steps
        for axis, x, key, factor in (
            (left, "samples", "reverse_kl", 1),
            (middle, "cpu_seconds", "reverse_kl", 1),
            (right, "samples", "hopeless", 100),
        ):
            places = [sum(measured[x] for measured in point) / len(point) for point in points]
            values = [[factor * measured[key] for measured in point] for point in points]
            width = 3 if arm == DEFAULT else 1.5
            axis.plot(places, [sum(v) / len(v) for v in values], color=color, label=label, linewidth=width)
            axis.fill_between(places, list(map(min, values)), list(map(max, values)), color=color, alpha=0.15)
    for axis in (left, middle):
        axis.axhline(0.693, color="gray", linestyle=":", label="best without the hopeless modes (log 2)")
    left.set(ylabel="KL(student || teacher), nats a sequence", xlabel="samples seen")
    middle.set(ylabel="KL(student || teacher), nats a sequence", xlabel="processor seconds of training")
    right.set(ylabel="samples in hopeless modes, %", xlabel="samples seen")
    for axis in (left, middle, right):
        axis.set_ylim(bottom=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle("Two of the teacher's four modes are beyond the student (lines: mean of the seeds, bands: range)")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=150)
    print(args.output)


if __name__ == "__main__":
    main()

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
Prints the laboratory's results as Markdown: mean and standard deviation over seeds, one table a world.

    python -m benchmarks.quality.table benchmarks/results/quality.json
"""

import statistics

from benchmarks.laboratory import markdown, print_table

from .arms import ARMS, DEFAULT


# Key of a run, heading, decimals, factor
COLUMNS = [
    ("reverse_kl", "reverse KL", 2, 1),
    ("hopeless", "hopeless %", 1, 100),
    ("forward_kl", "forward KL", 2, 1),
    ("rouge_l", "Rouge-L", 1, 1),
    ("accuracy", "accuracy %", 1, 100),
    ("exposure", "ExAccErr %", 0, 1),
    ("length", "length", 2, 1),
    ("distinct_4", "distinct-4", 3, 1),
    ("cpu_seconds", "CPU s", 1, 1),
    ("seconds", "wall s", 1, 1),
]


def cell(values: list[float | None], decimals: int, factor: float) -> str:
    values = [factor * value for value in values if value is not None]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{decimals}f}"
    return f"{mean} ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else mean


def table(world: str, results: dict) -> str:
    """Markdown table of one world."""
    runs = [run for run in results["runs"] if run["world"] == world]
    about = results["worlds"][world]
    teacher = about["teacher"]
    columns = [column for column in COLUMNS if any(column[0] in run for run in runs)]
    seeds = sorted({run["seed"] for run in runs})
    samples = max(run.get("samples", 0) for run in runs)
    # The students that seeds start from differ more than the arms do, so arms are also compared seed by seed
    distillation = [run for run in runs if run["arm"] == "distillation"]
    baseline = {run["seed"]: run["reverse_kl"] for run in distillation}
    if len(baseline) < len(distillation):  # several learning rates
        baseline = {}
    about = (
        f"Teacher {about['teacher_parameters']:,} parameters, loss {teacher['loss']:.2f} nats a sequence (the true "
        f"process: {teacher['process_loss']:.2f}); student {about['student_parameters']:,}. {samples:,} prompts an "
        f"arm. Seeds {', '.join(map(str, seeds))}: mean ± standard deviation. KL in nats a sequence."
    )
    of_arm = {("teacher", None): [teacher]}
    for arm in ["start", *ARMS]:
        for rate in sorted({run.get("learning_rate") or 0 for run in runs if run["arm"] == arm}):
            of_arm[arm, rate] = [run for run in runs if run["arm"] == arm and (run.get("learning_rate") or 0) == rate]
    rows = []
    for (arm, rate), chosen in of_arm.items():
        cells = [cell([run.get(key) for run in chosen], *form) for key, _, *form in columns]
        differences = [run["reverse_kl"] - baseline[run["seed"]] for run in chosen if run.get("seed") in baseline]
        label = f"**{arm}** (our default)" if arm == DEFAULT else arm
        if sum(other == arm for other, _ in of_arm) > 1:
            label += f", learning rate {rate:g}"
        if arm != "teacher" and len(chosen) < len(seeds):
            label += f" ({len(chosen)} of {len(seeds)} seeds)"
        rows.append([label, *cells, "" if arm == "distillation" else cell(differences, 2, 1)])
    heads = ["arm", *(heading for _, heading, *_ in columns), "reverse KL minus distillation's"]
    return f"### {world}\n\n{about}\n\n{markdown(heads, rows)}"


def tables(results: dict) -> str:
    worlds = [world for world in results["worlds"] if any(run["world"] == world for run in results["runs"])]
    return "\n\n".join(table(world, results) for world in worlds)


if __name__ == "__main__":
    print_table(__doc__, tables, "quality")

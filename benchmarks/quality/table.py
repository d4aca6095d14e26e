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
Prints results as Markdown. The laboratory's: mean and standard deviation over seeds, one table a world. Those of the
real run: mean and 95 % interval over seeds, one table at equal processor time and one at equal samples.

    python -m benchmarks.quality.table benchmarks/results/quality.json
    python -m benchmarks.quality.table benchmarks/results/quality_real_run.json
    python -m benchmarks.quality.table benchmarks/results/quality_recorded_top_k.json
"""

import math
import statistics

from benchmarks.laboratory import markdown, mean, paired, print_table

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


# Set of questions, score, heading, decimals
SCORES = [
    ("dolly", "reverse_kl", "reverse KL", 2),
    ("dolly", "rouge_l", "Rouge-L, Dolly", 1),
    ("self_instruct", "rouge_l", "Rouge-L, Self-Instruct", 1),
]


def against(points: dict[int, dict], baseline: dict[int, dict], test: str, score: str, decimals: int) -> str:
    """Paired difference with its 95 % intervals over seeds and, in brackets, over questions."""
    if points is baseline or not points.keys() & baseline.keys():
        return ""
    values = ({seed: point[test][score] for seed, point in found.items()} for found in (points, baseline))
    difference, seeds, questions, _ = paired(*values).values()
    spread = f"{seeds:.{decimals}f}" if seeds < math.inf else "?"
    return f"{difference:+.{decimals}f} ± {spread} (± {questions:.{decimals}f})"


def reached(results: dict, mark: str) -> dict[str, dict[int, dict]]:
    """What each arm and seed was worth at a mark."""
    found = {}
    for run in results["runs"]:
        for point in run["points"]:
            if mark in point["reached"]:
                found.setdefault(run["arm"], {})[run["seed"]] = point
    return found


def at_mark(results: dict, mark: str) -> str:
    arms, rows = reached(results, mark), []
    for name, point in results["before"].items():
        scores = [cell for test, score, _, digits in SCORES for cell in (mean(point[test][score], 1, digits), "")]
        rows.append([name, "", "", *scores, mean(point["dolly"]["length"], 1)])
    for arm, points in arms.items():
        cells = [mean((point[name] for point in points.values()), 1, 0) for name in ("samples", "cpu_seconds")]
        for test, score, _, digits in SCORES:
            cells.append(mean((statistics.mean(point[test][score]) for point in points.values()), 1, digits))
            cells.append(against(points, arms.get("distillation", {}), test, score, digits))
        cells.append(mean((statistics.mean(point["dolly"]["length"]) for point in points.values()), 1))
        rows.append([f"{arm} ({len(points)} seeds)", *cells])
    columns = [cell for *_, heading, _ in SCORES for cell in (heading, "minus distillation's")]
    return f"After {mark}\n\n{markdown(['arm', 'samples', 'CPU s', *columns, 'length'], rows)}"


def real_run(results: dict) -> str:
    """Tables at the last mark of both kinds."""
    models, settings = results["models"], results["settings"]
    rates = ", ".join(
        f"{family} {min(tried, key=lambda entry: entry['reverse_kl'])['learning_rate']:g}"
        for family, tried in results["learning_rates"].items()
    )
    rows = models["rows"]
    about = (
        f"{settings['model']}: teacher {models['parameters']['teacher']:,} parameters, student "
        f"{models['parameters']['student']:,}. {rows['train']:,} training prompts, {rows['dolly']} held-out ones of "
        f"Dolly, {rows['self_instruct']} of Self-Instruct, answers of at most {settings['max_tokens']} tokens sampled "
        f"at temperature 1. Learning rates: {rates}. Arms: mean ± 95 % interval over seeds; differences also over "
        "questions, in brackets. Models before: ± over questions. KL in nats an answer."
    )
    marks = [f"{name} {max(settings[name]):g}" for name in ("cpu_seconds", "samples")]
    return "\n\n".join([about, *(at_mark(results, mark) for mark in marks if reached(results, mark))])


def recorded_top_k(results: dict) -> str:
    """What is kept of loss and gradient, and bytes a token, one row a number of tokens."""
    settings, students = results["settings"], results["students"]
    about = (
        f"{settings['teacher']} and its copy with {settings['student_layers']} layers, as it is (pruned) and after "
        f"{settings['epochs']} epochs on the likeliest 64 (trained); {results['tokens']:,} tokens of "
        f"{results['rows']} answers, loss and gradient on {settings['gradient_rows']} of them. Each cell: share of "
        "the loss of the whole vocabulary, and cosine of the gradients."
    )
    heads = ["K", "bytes a token", "tail %"]
    heads += [f"{entry['student']}, {entry['direction']} ({entry['nats']:.2f} nats)" for entry in students]
    rows = []
    for i, store in enumerate(results["stores"]):
        found = [entry["recorded"][i] for entry in students]
        cells = [f"{entry['share_of_loss']:.3f}, {entry['gradient_cosine']:.3f}" for entry in found]
        rows.append([store["top_k"], f"{store['bytes_per_token']:.0f}", f"{100 * store['tail']:.2f}", *cells])
    return f"{about}\n\n{markdown(heads, rows)}"


def show(results: dict) -> str:
    if results.get("benchmark") == "quality/recorded_top_k":
        return recorded_top_k(results)
    return tables(results) if "worlds" in results else real_run(results)


if __name__ == "__main__":
    print_table(__doc__, show, "quality")

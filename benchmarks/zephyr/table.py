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

import statistics

from benchmarks.laboratory import average, gain, markdown, mean, print_table

from .arms import ARMS, unpack


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
    rows = []
    for (arm, rate), runs in of_arm.items():
        sampled = [run["sampled"] for run in runs]
        compared = arm != "dsft" and baseline is not None and not tuned
        quality, dpo = qualities[arm, rate], "first_loss" in runs[0]
        rows.append(
            [
                f"{arm}, {rate:g}" if tuned and rate else arm,
                mean(run["quality"] for run in sampled),
                mean(run["greedy"]["quality"] for run in runs),
                gain(quality, baseline) if compared else "",
                win_rate(quality, baseline) if compared else "",
                mean(run["perfect"] for run in sampled),
                mean((run["words"] for run in sampled), scale=1),
                average((run["ended"] for run in sampled), 1, 100),
                average((run["last rewards/accuracies"] for run in runs), 0, 100) if dpo else "",
                average((run["last rewards/margins"] for run in runs), 2) if dpo else "",
                *(
                    "" if arm == "base" else average(run[name] for run in runs)
                    for name in ("optimizer_steps", "cpu_seconds")
                ),
            ]
        )
    return markdown(heads, rows)


def feedback_table(results: dict) -> str:
    """What the pairs of each feedback are worth, by the true quality of their answers."""
    heads = ["answers", "pairs", "tied prompts", "quality of chosen %", "of rejected %", "words chosen", "rejected"]
    heads += ["better chosen %", "worse chosen %", "chosen from"]
    rows = []
    kinds = list(dict.fromkeys(kind for of_seed in results["feedback"].values() for kind in of_seed))
    for kind in kinds:
        all_ = [of_seed[kind] for of_seed in results["feedback"].values() if kind in of_seed]
        cells = [f"{statistics.mean(one['counts'][name] for one in all_):.0f}" for name in ("pairs", "tied")]
        for name, scale in (("quality", 100), ("words", 1)):
            cells += [average((one[name][side] for one in all_), 1, scale) for side in ("chosen", "rejected")]
        cells += [average((one[name] for one in all_), 1, 100) for name in ("better chosen", "worse chosen")]
        models = sorted({model for one in all_ for model in one["chosen"]})
        shares = {model: statistics.mean(one["chosen"].get(model, 0) for one in all_) for model in models}
        cells.append(", ".join(f"{model} {100 * share:.0f} %" for model, share in shares.items()))
        rows.append([kind, *cells])
    return markdown(heads, rows)


def table(results: dict) -> str:
    seeds = ", ".join(results["feedback"])
    first = [run["first_loss"] for run in results["runs"] if "first_loss" in run]
    about = f"Seeds {seeds}. Base of {results['base']['parameters']:,} parameters."
    if first:
        about += f" First losses of DPO: {min(first):.4f} to {max(first):.4f}."
    parts = [about, arms_table(results)]
    return "\n\n".join(parts + ([feedback_table(results)] if any(results["feedback"].values()) else []))


def end_to_end(result: dict) -> str:
    about = (
        f"Base of {result['models']['parameters']['base']:,} parameters, teacher of "
        f"{result['models']['parameters']['teacher']:,}. Held-out: negative log-likelihood of the teacher's greedy "
        f"answers in nats a token, and Rouge-L of the model's own. {result['seconds'] / 60:.1f} minutes in all."
    )
    held_out = [
        [
            name,
            f"{scores['nll']:.3f}",
            f"{scores['rouge_l']:.1f} ± {scores['rouge_l_standard_error']:.1f}",
            f"{scores['words']:.0f}",
        ]
        for name, scores in result["held out"].items()
    ]
    trained = [
        [
            name,
            result[name]["steps"],
            f"{result[name]['first_loss']:.4f}",
            *(f"{value:.3f}" for value in list(result[name]["last quarter"].values())[:3]),
            *[""] * (3 - len(result[name]["last quarter"])),
            f"{result[name]['reload']['largest difference']:.4f}",
            f"{result[name]['adapter_on_4_bit']['nll']:.3f}",
        ]
        for name in ("dsft", "ddpo")
    ]
    feedback = [
        [
            name,
            report["prompts"]["kept"],
            report["pairs"]["candidates"],
            report["pairs"]["unscored"],
            report["pairs"]["pairs"],
            *(sum(row["calls"] for row in report["ledger"] if row["role"] == role) for role in ("responder", "judge")),
        ]
        for name, report in result["feedback"].items()
    ]
    stages = [
        [name, *(stage.get(key, "") for key in ("seconds", "cpu_seconds", "peak_gib"))]
        for name, stage in result["stages"].items()
    ]
    trained_heads = ["stage", "steps", "first loss", "last loss", "accuracy", "margin", "reload, largest difference"]
    return "\n\n".join(
        [
            about,
            markdown(["model", "NLL", "Rouge-L", "words"], held_out),
            markdown([*trained_heads, "NLL on 4 bit"], trained),
            markdown(["judge", "prompts", "answers", "unscored", "pairs", "calls to answer", "to judge"], feedback),
            markdown(["stage", "seconds", "CPU seconds", "peak GiB"], stages),
        ]
    )


if __name__ == "__main__":
    print_table(__doc__, table, "zephyr")

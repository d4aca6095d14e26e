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

"""What came out of a run of AI feedback, in numbers and as a picture."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def pair_statistics(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    Margins and lengths of pairs.

    Args:
        pairs (`list[dict]`):
            Pairs of [`preference_pairs`].

    Returns:
        `dict[str, Any]`: `margin` (mean, median, least, most, histogram of ten bins), `chosen_longer` (share of pairs),
        `mean_characters` of the chosen and the rejected texts. Empty without pairs.
    """
    if not pairs:
        return {}
    margins = _margins(pairs)
    least, most = min(margins), max(margins)
    width = (most - least) / 10 or 1.0
    bins = Counter(min(int((margin - least) / width), 9) for margin in margins)
    chosen, rejected = _lengths(pairs)
    return {
        "margin": {
            "mean": statistics.fmean(margins),
            "median": statistics.median(margins),
            "least": least,
            "most": most,
            "histogram": {
                "edges": [round(least + i * width, 6) for i in range(11)],
                "counts": [bins[i] for i in range(10)],
            },
        },
        "chosen_longer": sum(c > r for c, r in zip(chosen, rejected, strict=True)) / len(pairs),
        "mean_characters": {"chosen": statistics.fmean(chosen), "rejected": statistics.fmean(rejected)},
    }


def model_statistics(ratings: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """
    How each model did.

    Args:
        ratings (`list[dict]`):
            Rows of `ratings.jsonl`.
        pairs (`list[dict]`):
            Pairs of [`preference_pairs`].

    Returns:
        `dict[str, dict]`: By model `answers`, `scored`, `mean_score` (`None` without a scored one), and how often it was
        `chosen` and `rejected`.
    """
    scores: dict[str, list[float | None]] = defaultdict(list)
    for row in ratings:
        for candidate in row["candidates"]:
            scores[candidate["model"]].append(candidate["score"])
    chosen, rejected = (Counter(pair[f"{side}_model"] for pair in pairs) for side in ("chosen", "rejected"))
    known = {model: [score for score in of_model if score is not None] for model, of_model in scores.items()}
    return {
        model: {
            "answers": len(scores[model]),
            "scored": len(known[model]),
            "mean_score": statistics.fmean(known[model]) if known[model] else None,
            "chosen": chosen[model],
            "rejected": rejected[model],
        }
        for model in sorted(scores)
    }


def draw_report(path: Path, report: dict[str, Any], pairs: Sequence[dict[str, Any]]) -> None:
    """
    Draw margins, scores by model, scores by place, and lengths.

    Args:
        path (`Path`):
            The PNG file, whatever its name ends in.
        report (`dict[str, Any]`):
            What `report.json` holds.
        pairs (`list[dict]`):
            The pairs, one or more.

    Raises:
        `ImportError`: If matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5))
    (margins, models), (slots, lengths) = figure.subplots(2, 2)
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.07, top=0.95, wspace=0.16, hspace=0.28)
    _draw_margins(margins, pairs)
    _draw_models(models, report["models"])
    _draw_slots(slots, report["judges"], report["settings"]["judge_scale"])
    _draw_lengths(lengths, pairs, report["pair_statistics"]["chosen_longer"])
    figure.savefig(path, format="png", dpi=120)


def _draw_margins(axes: Any, pairs: Sequence[dict[str, Any]]) -> None:
    axes.hist(_margins(pairs), bins=20, color="tab:blue")
    axes.set(
        title=f"Margins of {len(pairs):,} pairs", xlabel="score of chosen minus score of rejected", ylabel="pairs"
    )


def _draw_models(axes: Any, models: dict[str, dict[str, Any]]) -> None:
    scored = sorted((row["mean_score"], name, row["scored"]) for name, row in models.items() if row["scored"])
    axes.barh(range(len(scored)), [mean for mean, *_ in scored], color="lightsteelblue")
    for i, (mean, name, count) in enumerate(scored):  # in the bars: beside them long names would take half the picture
        name = name if len(name) <= 44 else f"...{name[-41:]}"
        axes.annotate(
            f"{_plain(name)}: {mean:.2f} ({count:,})", (0, i), (4, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks([])
    axes.set(title="Mean score by model (scored answers)", xlabel="score")


def _draw_slots(axes: Any, judges: dict[str, dict[str, Any]], scale: Sequence[float]) -> None:
    most = 1
    for judge, of_judge in judges.items():
        slots = of_judge["position"]["by_slot"]
        axes.plot([row["slot"] + 1 for row in slots], [row["mean"] for row in slots], marker="o", label=_plain(judge))
        most = max(most, len(slots))
    axes.set_xticks(range(1, most + 1))
    axes.set_ylim(*scale)
    axes.set(
        title="Mean rating by place (flat: no position bias)", xlabel="place in the judge's prompt", ylabel="rating"
    )
    axes.legend()


def _draw_lengths(axes: Any, pairs: Sequence[dict[str, Any]], longer: float) -> None:
    chosen, rejected = _lengths(pairs)
    ends = [min(chosen + rejected), max(chosen + rejected)]
    axes.scatter(rejected, chosen, s=8, alpha=0.5, linewidths=0)
    axes.plot(ends, ends, color="gray", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(
        title=f"Lengths: chosen is longer in {longer:.0%}",
        xlabel="characters of rejected",
        ylabel="characters of chosen",
    )


def _plain(name: str) -> str:
    """A name that matplotlib does not read as a formula."""
    return name.replace("$", r"\$")


def _lengths(pairs: Sequence[dict[str, Any]]) -> list[list[int]]:
    return [[len(pair[side][0]["content"]) for pair in pairs] for side in ("chosen", "rejected")]


def _margins(pairs: Sequence[dict[str, Any]]) -> list[float]:
    return [pair["score_chosen"] - pair["score_rejected"] for pair in pairs]

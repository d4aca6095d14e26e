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

import contextlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..files import whole_path


def pair_statistics(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    Margins and lengths of the pairs of [`preference_pairs`]; empty without pairs.

    `margin` has mean, median, least, most and a histogram of ten bins; `chosen_longer` is the share of pairs in which
    the chosen answer is the longer one; `mean_characters` are those of the chosen and the rejected texts.
    """
    if not pairs:
        return {}
    margins = _margins(pairs)
    least, most = min(margins), max(margins)
    width = (most - least) / 10 or 1.0
    bins = Counter(min(int((margin - least) / width), 9) for margin in margins)
    edges = [round(least + i * width, 6) for i in range(11)]
    chosen, rejected = _lengths(pairs)
    return {
        "margin": {
            "mean": statistics.fmean(margins),
            "median": statistics.median(margins),
            "least": least,
            "most": most,
            "histogram": {"edges": edges, "counts": [bins[i] for i in range(10)]},
        },
        "chosen_longer": sum(c > r for c, r in zip(chosen, rejected, strict=True)) / len(pairs),
        "mean_characters": {"chosen": statistics.fmean(chosen), "rejected": statistics.fmean(rejected)},
    }


def model_statistics(ratings: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """
    How each model did, from the rows of `ratings.jsonl` and the pairs of [`preference_pairs`].

    By model `answers`, `scored`, `mean_score` (`None` without one), and how often it was `chosen` and `rejected`.
    """
    scores: dict[str, list[float | None]] = defaultdict(list)
    for candidate in (candidate for row in ratings for candidate in row["candidates"]):
        scores[candidate["model"]].append(candidate["score"])
    chosen, rejected = (Counter(pair[f"{side}_model"] for pair in pairs) for side in ("chosen", "rejected"))
    result = {}
    for model, every in sorted(scores.items()):
        known = [score for score in every if score is not None]
        result[model] = {
            "answers": len(every),
            "scored": len(known),
            "mean_score": statistics.fmean(known) if known else None,
            "chosen": chosen[model],
            "rejected": rejected[model],
        }
    return result


def call_statistics(report: dict[str, Any]) -> list[dict[str, Any]]:
    """
    By `role` and `model`: `calls`, those `answered` and `failed`, answers that were `cut_off`, replies of a judge that
    were `unreadable` and asked again, and `cost_usd`, `None` if a price is not known.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for line in report["ledger"]:
        answered = line["calls"] - line["failures"] - line["unanswered"]
        known = {"calls": line["calls"], "answered": answered, "failed": line["failures"], "cut_off": line["cut_off"]}
        row = rows.setdefault(
            (line["role"], line["model"]), dict.fromkeys(known, 0) | {"unreadable": 0, "cost_usd": 0.0}
        )
        for name, count in known.items():
            row[name] += count
        cost = None in (row["cost_usd"], line["cost_usd"])
        row["cost_usd"] = None if cost else row["cost_usd"] + line["cost_usd"]
    for name, of_judge in report["judges"].items():
        if ("judge", name) in rows:
            rows["judge", name]["unreadable"] = of_judge["reasks"]
    return [{"role": role, "model": model} | row for (role, model), row in rows.items()]


def draw_report(path: Path, report: dict[str, Any], pairs: Sequence[dict[str, Any]]) -> None:
    """Draw margins, scores by model, scores by place, and lengths, as PNG whatever the name of the file ends in."""
    from matplotlib.figure import Figure

    calls = [_in_words(row) for row in call_statistics(report) if row["answered"]]
    figure = Figure(figsize=(10, 7.5 + 0.2 * len(calls)))
    below = 0.2 * (len(calls) + 0.5) / figure.get_figheight()  # lines of text
    (margins, models), (slots, lengths) = figure.subplots(2, 2)
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.07 + below, top=0.95, wspace=0.16, hspace=0.28)
    figure.text(0.07, below, "\n".join(calls), va="top", fontsize=8)

    margins.hist(_margins(pairs), bins=20, color="tab:blue")
    margins.set_title(f"Margins of {len(pairs):,} pairs")
    margins.set(xlabel="score of chosen minus score of rejected", ylabel="pairs")

    rows = report["models"].items()
    scored = sorted((row["mean_score"], name, row["scored"]) for name, row in rows if row["scored"])
    models.barh(range(len(scored)), [mean for mean, *_ in scored], color="lightsteelblue")
    for i, (mean, name, count) in enumerate(scored):  # in the bars: beside them long names would take half the picture
        name = plain(name if len(name) <= 44 else f"...{name[-41:]}")
        models.annotate(f"{name}: {mean:.2f} ({count:,})", (0, i), (4, 0), textcoords="offset points", va="center")
    models.set_yticks([])
    models.set(title="Mean score by model (scored answers)", xlabel="score")

    by_judge = {judge: of_judge["position"]["by_slot"] for judge, of_judge in report["judges"].items()}
    for judge, of_judge in by_judge.items():
        places, means = [row["slot"] + 1 for row in of_judge], [row["mean"] for row in of_judge]
        slots.plot(places, means, marker="o", label=plain(judge))
    slots.set_xticks(range(1, max(1, *map(len, by_judge.values())) + 1))
    slots.set_title("Mean rating by place (flat: no position bias)")
    slots.set(xlabel="place in the judge's prompt", ylabel="rating", ylim=report["settings"]["judge_scale"])
    slots.legend()

    chosen, rejected = _lengths(pairs)
    ends = [min(chosen + rejected), max(chosen + rejected)]
    lengths.scatter(rejected, chosen, s=8, alpha=0.5, linewidths=0)
    lengths.plot(ends, ends, color="gray", linewidth=1)
    lengths.set_title(f"Lengths: chosen is longer in {report['pair_statistics']['chosen_longer']:.0%}")
    lengths.set(xlabel="characters of rejected", ylabel="characters of chosen", xscale="log", yscale="log")
    figure.savefig(path, format="png", dpi=200)


def _in_words(row: dict[str, Any]) -> str:
    # Of the answers alone: calls that a kill has cut are in the ledger, and must not be in the picture
    shares = {"unreadable": "unreadable", "cut_off": "cut off"}
    said = [f"{row[name] / row['answered']:.0%} {label}" for name, label in shares.items() if row[name]]
    return f"{row['role']} {plain(row['model'])}: " + ", ".join([f"{row['answered']:,} answers", *said])


def save_picture(path: Path, draw: Callable[..., None], *args: Any) -> None:
    """Have `draw(path, *args)` make a picture, as a whole; none without matplotlib, which the run has said."""
    with contextlib.suppress(ImportError), whole_path(path) as new:
        draw(new, *args)


def plain(name: str) -> str:
    """A name that matplotlib does not read as a formula."""
    return name.replace("$", r"\$")


def _lengths(pairs: Sequence[dict[str, Any]]) -> list[list[int]]:
    return [[len(pair[side][0]["content"]) for pair in pairs] for side in ("chosen", "rejected")]


def _margins(pairs: Sequence[dict[str, Any]]) -> list[float]:
    return [pair["score_chosen"] - pair["score_rejected"] for pair in pairs]

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

"""What came out of a comparison: a verdict on each pair, numbers over all of them, and a picture."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..chat import JudgeItem, Judgement
from .questions import Answer, Question
from .report import plain
from .win_rate import length_statistics, order_statistics, win_rate


def judge_items(questions: Sequence[Question], answers: Mapping[str, Sequence[Answer]]) -> dict[int, JudgeItem]:
    """What the judge is asked, by the number of the question: pairs of answers that are there and differ."""
    names = sorted(answers)  # so that the other way round is the same requests
    items = {}
    for i, question in enumerate(questions):
        pair = [answers[name][i] for name in names]
        if not any(answer.error for answer in pair) and not _identical(*pair):
            texts = [answer.text for answer in pair]
            items[i] = JudgeItem(question.id, question.asked, texts, names, question.reference)
    return items


def _identical(one: Answer, other: Answer) -> bool:
    return [text.strip() for text in one.turns] == [text.strip() for text in other.turns]


def pair_row(question: Question, answers: Mapping[str, Answer], judgement: Judgement | None) -> dict[str, Any]:
    """
    The row of a question in `pairs.jsonl`: both answers, what the judge gave them in each order, and the verdict on
    the first one, `"win"`, `"tie"` or `"loss"`. Without scores it is `None` and the reason is in `unscored`; answers
    that are the same are a tie, about which no judge was asked.
    """
    names, ranked = list(answers), sorted(answers)
    orders: dict[int, dict[str, Any]] = {}
    for reading in sorted(judgement.readings if judgement else [], key=lambda reading: (reading.order, reading.slot)):
        name = ranked[reading.answer]
        orders.setdefault(reading.order, {"first": name, "scores": {}})["scores"][name] = reading.score
    scores, verdict, unscored = dict.fromkeys(names), None, None
    if judgement is not None:
        scores = {name: judgement.scores[ranked.index(name)] for name in names}
        unscored = judgement.unscored[0]  # a reply gives scores to both or to none
        if unscored is None:
            first, second = scores.values()
            verdict = "win" if first > second else "loss" if first < second else "tie"
    elif failed := [f"no answer: {name}: {answer.error}" for name, answer in answers.items() if answer.error]:
        unscored = "; ".join(failed)
    else:
        verdict = "tie"
    return {
        "prompt_id": question.id,
        **({} if question.category is None else {"category": question.category}),
        "prompt": question.asked,
        "answers": {name: None if answer.error else answer.text for name, answer in answers.items()},
        "orders": list(orders.values()),
        "scores": scores,
        "verdict": verdict,
        "identical": judgement is None and unscored is None,
        "unscored": unscored,
    }


def comparison(pairs: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """
    Numbers over the rows of [`pair_row`].

    Returns:
        `dict[str, Any]`:

            - `model`, `baseline`: whose win rate over whom it is.
            - `win_rate`, and `categories`, the same by category: see [`win_rate`].
            - `identical`, `unscored`: pairs of equal answers, and those without a verdict by the class of the reason.
            - `orders`: see [`order_statistics`]. `length`: see [`length_statistics`].
            - `warnings`: texts for what makes the win rate useless.
    """
    verdicts = [pair["verdict"] for pair in pairs]
    by_category: defaultdict[str, list[str | None]] = defaultdict(list)
    for pair in pairs:
        if "category" in pair:
            by_category[pair["category"]].append(pair["verdict"])
    orders = order_statistics(_margins(pairs, names))
    lengths = [tuple(len(text or "") for text in pair["answers"].values()) for pair in pairs]
    length = length_statistics(lengths, verdicts)
    if length["mean_characters"] is not None:
        length["mean_characters"] = dict(zip(names, length["mean_characters"], strict=True))
    warnings = []
    contradicted = orders["first_place"] + orders["last_place"]
    if contradicted > orders["agree"]:
        place = "first" if orders["first_place"] >= orders["last_place"] else "last"
        warnings.append(
            f"In {contradicted} of {orders['judged']} judged pairs the two orders contradict each other, mostly for "
            f"the answer in {place} place: this win rate says more about the judge than about the models."
        )
    return {
        "model": names[0],
        "baseline": names[1],
        "win_rate": win_rate(verdicts),
        "categories": {category: win_rate(of_one) for category, of_one in sorted(by_category.items())},
        "identical": sum(pair["identical"] for pair in pairs),
        "unscored": dict(sorted(Counter(p["unscored"].split(":")[0] for p in pairs if p["unscored"]).items())),
        "orders": orders,
        "length": length,
        "warnings": warnings,
    }


def _margins(pairs: Sequence[dict[str, Any]], names: Sequence[str]) -> list[tuple[float, float]]:
    """Score of the first model minus that of the second, shown first and shown last, of each judged pair."""
    judged = [pair["orders"] for pair in pairs if pair["verdict"] is not None and pair["orders"]]
    of_pairs = [{o["first"]: o["scores"][names[0]] - o["scores"][names[1]] for o in orders} for orders in judged]
    return [tuple(of_pair[name] for name in names) for of_pair in of_pairs]


def count_answers(answers: Sequence[Answer]) -> dict[str, int]:
    """How many answers came, how many did not, and how many were cut off or have no text."""
    given = [answer for answer in answers if answer.error is None]
    return {
        "answers": len(given),
        "failed": len(answers) - len(given),
        "cut_off": sum(answer.cut_off for answer in given),
        "empty": sum(not "".join(answer.turns).strip() for answer in given),
    }


def draw_comparison(path: Path, report: dict[str, Any], pairs: Sequence[dict[str, Any]]) -> None:
    """Draw win rates, what the two orders say, and lengths against scores, as PNG whatever the file's name ends in."""
    from matplotlib.figure import Figure

    names = report["model"], report["baseline"]
    rates = [("all", report["win_rate"])]
    rates += [(name, row) for name, row in report["categories"].items() if row["win_rate"] is not None]
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplot_mosaic([["rates", "orders"], ["rates", "lengths"]])

    places = range(len(rates), 0, -1)
    axes["rates"].axvline(50, color="gray", linewidth=1)
    for place, (_, row) in zip(places, rates, strict=True):
        low, high = (100 * bound for bound in row["interval"])
        axes["rates"].plot([low, high], [place] * 2, color="tab:blue" if place == len(rates) else "lightsteelblue")
        axes["rates"].plot(100 * row["win_rate"], place, "o", color="tab:blue")
    axes["rates"].set_yticks(places, [f"{plain(name)} ({row['pairs']:,})" for name, row in rates])
    axes["rates"].set_title(f"Win rate of {plain(names[0])} over {plain(names[1])}")
    axes["rates"].set(xlabel="%, with 95 % interval", xlim=(0, 100), ylim=(0.5, len(rates) + 0.5))

    labels = {
        "agree": "both orders agree",
        "one_tied": "a tie in one order",
        "first_place": "first place wins twice",
        "last_place": "last place wins twice",
    }
    counts = [report["orders"][name] for name in labels]
    bars = axes["orders"].barh(list(labels.values()), counts, color="lightsteelblue")
    axes["orders"].bar_label(bars, padding=3)
    axes["orders"].invert_yaxis()
    axes["orders"].set(title="What the judge says in two orders", xlabel="pairs", xlim=(0, 1.15 * max(1, *counts)))

    scored = [pair for pair in pairs if None not in pair["scores"].values()]
    longer, better = (
        [measure(pair[key][names[0]]) - measure(pair[key][names[1]]) for pair in scored]
        for key, measure in (("answers", len), ("scores", float))
    )
    for line in (axes["lengths"].axhline, axes["lengths"].axvline):
        line(0, color="gray", linewidth=1)
    axes["lengths"].scatter(longer, better, s=10, alpha=0.5, linewidths=0)
    axes["lengths"].set_title("Length and score of the pairs")
    axes["lengths"].set(
        xlabel=f"characters minus those of {plain(names[1])}", ylabel=f"score minus that of {plain(names[1])}"
    )
    figure.savefig(path, format="png", dpi=200)

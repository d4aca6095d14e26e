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

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_distill.rationales.asc.voting import (
    adaptive_self_consistency,
    canonical_answer,
    self_consistency,
    vote,
    weighted_self_consistency,
)


ANSWERS, SCORES = ["4", "5", "5"], [0.9, 0.2, 0.3]

# Eighths add up without rounding, so that ties are exact ties
WEIGHTS = st.integers(0, 40).map(lambda k: k / 8)
CANDIDATES = st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), WEIGHTS | st.none()), min_size=1, max_size=8)
few = settings(max_examples=60, deadline=None)


def by_definition(candidates):
    """The vote in exact arithmetic, straight from the rules."""
    kept = [(y, None if w is None else Fraction(w)) for y, w in candidates if y is not None]
    given_weights = [w for _, w in kept if w is not None]
    mean = Fraction(sum(given_weights), len(given_weights)) if given_weights else Fraction(1)
    best = None
    for y in sorted({y for y, _ in kept}, reverse=True):  # the smallest comes last and wins what is still tied
        mine = [mean if w is None else w for z, w in kept if z == y]
        if best is None or (sum(mine), len(mine)) >= best[:2]:
            best = (sum(mine), len(mine), y)
    return best and best[2]


def split(candidates):
    return [y for y, _ in candidates], [w for _, w in candidates]


class TestExamples:
    def test_scores_against_counts(self):
        assert adaptive_self_consistency(ANSWERS, SCORES) == "4"
        assert self_consistency(ANSWERS) == "5"
        assert vote(ANSWERS, [1 + s for s in SCORES]) == "5"  # 1.9 against 2.5

    @pytest.mark.parametrize(("score", "winner"), [(0.9, "5"), (0.99, "5"), (1.01, "4")])
    def test_an_unscored_candidate_weighs_the_mean(self, score, winner):
        # 0.4667 at a score of 0.9. In general (score + 0.5) / 3, so 5 has more than `score` below a score of exactly 1
        assert adaptive_self_consistency(["4", "5", "5", "5"], [score, 0.2, 0.3, None]) == winner

    def test_weights_of_weighted_self_consistency_are_geometric_means(self):
        # exp(-0.1) = 0.905 against 2 exp(-0.8) = 0.899 and 2 exp(-0.79) = 0.908
        assert weighted_self_consistency(ANSWERS, [-0.1, -0.8, -0.8]) == "4"
        assert weighted_self_consistency(ANSWERS, [-0.1, -0.79, -0.79]) == "5"
        assert weighted_self_consistency(ANSWERS, [-math.inf, None, -3.0]) == "5"
        assert weighted_self_consistency(ANSWERS, [None, None, None]) == "5"

    def test_ties(self):
        assert vote(["b", "a"]) == "a"  # equal weight and count: the smaller string
        assert vote(["a", "b", "b"], [1.0, 0.5, 0.5]) == "b"  # equal weight: the higher count
        assert vote(["b", "a", "a"], [0.0, 0.0, 0.0]) == "a"
        assert vote(["b", *["a"] * 10], [1.0, *[0.1] * 10]) == "a"  # added up one by one, 0.1 ten times is less than 1

    def test_samples_without_an_answer(self):
        assert vote([None, None]) is None and adaptive_self_consistency([None], [0.9]) is None
        assert vote([None, "3", None]) == "3"
        # What a dropped sample weighs is nobody's mean: 5 has 0.1 + 0.1, not 0.1 + 0.5
        assert vote([None, "5", "5", "4"], [0.9, 0.1, None, 0.25]) == "5"
        assert vote([None, "5", "5", "4"], [9.0, 0.1, None, 0.5]) == "4"

    def test_spellings_are_united(self):
        assert self_consistency(["7", "1/2", "0.5"]) == "0.5"
        assert vote(["7", "1/2", "0.5"], normalise=str) == "0.5"
        assert vote(["1/2", "7", "0.5", "7"], [1, 1, 1, 0.5]) == "0.5"


class TestInvariances:
    @few
    @given(CANDIDATES)
    def test_is_its_definition(self, candidates):
        assert vote(*split(candidates)) == by_definition(candidates)

    @few
    @given(CANDIDATES, st.randoms())
    def test_order(self, candidates, random):
        shuffled = random.sample(candidates, len(candidates))
        assert vote(*split(shuffled)) == vote(*split(candidates))

    @few
    @given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1)), min_size=1, max_size=8), st.randoms())
    def test_order_with_weights_that_round(self, candidates, random):
        shuffled = random.sample(candidates, len(candidates))
        assert vote(*split(shuffled)) == vote(*split(candidates))

    @few
    @given(CANDIDATES, st.sampled_from([0.125, 2.0, 64.0]))
    def test_scale_of_the_scores(self, candidates, scale):
        answers, weights = split([(y, w) for y, w in candidates if w is not None] or [("a", 1.0)])
        assert vote(answers, [scale * w for w in weights]) == vote(answers, weights)

    @few
    @given(st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=8), st.sampled_from([0.25, 3.0]))
    def test_equal_scores_are_the_majority(self, answers, score):
        assert adaptive_self_consistency(answers, [score] * len(answers)) == self_consistency(answers)
        assert adaptive_self_consistency(answers, [None] * len(answers)) == self_consistency(answers)

    @few
    @given(CANDIDATES, st.integers(1, 3), WEIGHTS)
    def test_samples_without_an_answer_change_nothing(self, candidates, count, weight):
        answers, weights = split(candidates)
        assert vote([*answers, *[None] * count], [*weights, *[weight] * count]) == vote(answers, weights)


class TestCanonicalAnswer:
    @pytest.mark.parametrize(
        "spellings",
        [
            ["1/2", "0.5", ".50", "2/4", r"\frac{1}{2}", r"\dfrac12", r"$\frac{1}{2}$", " 0.5 ."],
            ["1234", "1,234", "1,234.0", r"\$1,234", "+1234"],
            ["-3", "-3.0", "-6/2", r"-\frac{6}{2}"],
            ["x+1", "x + 1", r"x\,+\,1", "X+1."],
            [r"\left(1, 2\right)", "(1,2)"],
            ["5", r"5\%", "5%", r"5 \text{ cm}", "x = 5", "$5$."],
            [r"\sqrt3", r"\sqrt{3}"],
            ["3", "3 hours", r"3\text{ hours}"],
            ["5 million", "5,000,000", "5000000 dollars", "$5 million"],
            ["3 dozen", "36 eggs"],
        ],
    )
    def test_one_answer(self, spellings):
        assert len({canonical_answer(text) for text in spellings}) == 1

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("1/2", "1/3"),
            ("12", "1,2"),
            ("(1,234)", "1234"),
            ("1/0", "0"),
            ("x", "y"),
            ("9" * 5000, "9" * 5001),
            (r"3\frac12", "31/2"),
            ("5 million", "5"),
            ("3:1", "3"),
        ],
    )
    def test_two_answers(self, one, other):
        assert canonical_answer(one) != canonical_answer(other)

    @few
    @given(st.text(max_size=12))
    def test_any_text(self, text):
        once = canonical_answer(text)
        assert canonical_answer(once) == once or not once.isascii()

    @few
    @given(st.fractions(max_denominator=50))
    def test_fractions(self, number):
        assert canonical_answer(f"{number.numerator * 3}/{number.denominator * 3}") == str(number)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vote([]), "no candidates to vote on"),
        (lambda: adaptive_self_consistency([], []), "no candidates to vote on"),
        (lambda: vote(["1", "2"], [1.0]), "2 answers and 1 weights"),
        (lambda: vote(["1"], [-0.5]), "0 or more and finite, got -0.5"),
        (lambda: vote(["1"], [math.nan]), "0 or more and finite, got nan"),
        (lambda: vote(["1"], [math.inf]), "0 or more and finite, got inf"),
        (lambda: weighted_self_consistency(["1"], [0.7]), "Pass logarithms"),
        (lambda: weighted_self_consistency(["1"], [math.nan]), "at most 0, got nan"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

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

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

from trl_distill.rationales.asc.comparison import bootstrap_interval, compare_votes, vote_on_row, wilson_interval


def row(completions, logps=None, **columns):
    return {"prompt": "q", "completions": completions, "mean_logps": logps or [-1.0] * len(completions), **columns}


class TestVoteOnRow:
    def test_a_question(self):
        texts = ["The answer is 4.", "so the answer is 5.", "The answer is 5.", "no idea"]
        result = vote_on_row(row(texts, [-0.1, -3.0, -3.0, -0.1], answer="4"), [0.9, 0.2, 0.3, 0.99])
        assert result["answers"] == ["4", "5", "5", None] and result["completions"] == texts
        assert result["votes"] == {"sc": "5", "ws": "4", "asc": "4"}
        assert result["reference"] == "4"
        assert result["right"] == {"samples": [True, False, False, False], "sc": False, "ws": True, "asc": True}

    def test_without_reference_log_probabilities_or_answer(self):
        result = vote_on_row({"prompt": "q", "completions": ["who knows"]}, [None], weighted=False)
        assert result["votes"] == {"sc": None, "asc": None} and "right" not in result
        result = vote_on_row(row(["who knows"], answer="4"), [0.5])
        assert result["right"] == {"samples": [False], "sc": False, "ws": False, "asc": False}

    def test_answers_are_judged_by_value(self):
        result = vote_on_row(row([r"\boxed{0.5}", r"\boxed{\frac12}", r"\boxed{3}"], answer="1/2"), [0.1, 0.2, 0.25])
        assert result["right"] == {"samples": [True, True, False], "sc": True, "ws": True, "asc": True}

    def test_what_was_cut_off_does_not_vote(self):
        texts = ["The answer is 4.", "3 + 5 makes 8", "first 8", "then 8"]
        cut = row(texts, [-2.0, -0.1, -0.1, -0.1], answer="4", truncated=[False, True, True, True])
        result = vote_on_row(cut, [0.1, 0.9, 0.9, 0.9])
        assert result["answers"] == ["4", None, None, None] and set(result["votes"].values()) == {"4"}
        assert result["right"]["samples"] == [True, False, False, False]

    @pytest.mark.parametrize(
        ("rule", "answers", "sc"),
        [
            ("last_number", ["7", "7", "6", "9"], True),
            ("marked", ["7", None, "6", None], False),
            ("release", [None, None, "6", None], False),
        ],
    )
    def test_rules(self, rule, answers, sc):
        texts = ["The answer is 7.", "It is 7", r"\boxed{6}", "9"]
        result = vote_on_row(row(texts, answer="7"), [0.1] * 4, rule=rule)
        assert result["answers"] == answers and result["right"]["sc"] is sc

    def test_what_cannot_be_compared_is_neither_right_nor_wrong(self):
        result = vote_on_row(row([rf"\boxed{{{'3' * 5000}}}", r"\boxed{3}"], answer="3"), [0.9, 0.1])
        assert result["right"]["samples"] == [None, True] and result["right"]["asc"] is None
        assert compare_votes([result])["accuracy"]["asc"]["value"] == 0
        assert compare_votes([result])["accuracy"]["single"]["value"] == 0.5


class TestIntervals:
    @pytest.mark.parametrize(("share", "count"), [(0.0, 10), (0.3, 10), (0.5, 400), (1.0, 25)])
    def test_wilson_bounds_are_where_the_normal_test_turns(self, share, count):
        """The bounds are the true shares that are 1.96 of their own standard errors away."""
        z = NormalDist().inv_cdf(0.975)
        for bound in wilson_interval(share, count):
            if 0 < bound < 1:
                assert abs(share - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / count), rel=1e-5)
            else:
                assert bound == share

    def test_bootstrap_is_the_distribution_of_all_resamples(self):
        values = [0.0, 0.25, 1.0, -1.0, 0.5]
        means = [sum(sample) / 5 for sample in itertools.product(values, repeat=5)]
        for bound, share in zip(bootstrap_interval(values), (0.025, 0.975), strict=True):
            near = [np.quantile(means, share + shift) for shift in (-0.006, 0.006)]
            assert near[0] - 1e-9 <= bound <= near[1] + 1e-9
        assert bootstrap_interval([0.25] * 4) == (0.25, 0.25)
        assert bootstrap_interval(values) == bootstrap_interval(values)


class TestCompareVotes:
    def test_accuracies_and_paired_differences(self):
        # 20 questions: ASC is right where SC is, and on 4 more; two of four samples are right everywhere
        rows = []
        for i in range(20):
            right = {"samples": [True, True, False, False], "sc": i < 10, "ws": i >= 8, "asc": i < 14}
            rows.append({"right": right})
        rows.append({"reference": None})
        result = compare_votes(rows)
        values = {name: entry["value"] for name, entry in result["accuracy"].items()}
        assert values == pytest.approx({"single": 0.5, "sc": 0.5, "ws": 0.6, "asc": 0.7})
        assert result["accuracy"]["asc"]["interval"] == list(wilson_interval(0.7, 20))
        differences = {name: entry["value"] for name, entry in result["differences"].items()}
        assert differences == pytest.approx({"sc - single": 0.0, "ws - sc": 0.1, "asc - sc": 0.2, "asc - ws": 0.1})
        gains = [float(10 <= i < 14) for i in range(20)]
        assert result["differences"]["asc - sc"]["interval"] == list(bootstrap_interval(gains))
        low, high = result["differences"]["asc - sc"]["interval"]
        assert 0 < low < 0.2 < high < 0.45  # pairing matters: unpaired, 0.3 around it would hold 0
        assert result["differences"]["asc - ws"]["interval"][0] < 0

    def test_without_weights_or_references(self):
        result = compare_votes([{"right": {"samples": [True], "sc": True, "asc": False}}])
        assert set(result["accuracy"]) == {"single", "sc", "asc"}
        assert set(result["differences"]) == {"sc - single", "asc - sc"}
        assert compare_votes([{"reference": None}]) == {"accuracy": {}, "differences": {}}

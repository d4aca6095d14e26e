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
"""The report on a judge, against numbers worked out by hand and judges whose bias is known."""

import json
import random

import pytest

from trl_distill.chat import FunctionChatModel, Judge, JudgeItem, Judgement, Reading, judge_report


def item_of(id, texts, models=None):
    return JudgeItem(id, "?", texts, models=models)


def judgement_of(scores, readings=(), unscored=None, calls=1, reasks=0):
    return Judgement(scores, {"overall": scores}, list(readings), unscored or [None] * len(scores), calls, reasks)


@pytest.fixture
def report():
    """Answers of 1 to 7 characters to three prompts; the last one has no score."""
    items = [
        item_of("a", ["x", "xx", "xxx"], ["small", "large", "judge"]),
        item_of("b", ["xxxx", "xxxxx"], ["small", "judge"]),
        item_of("c", ["xxxxxx", "xxxxxxx"], ["small", "large"]),
    ]
    judgements = [
        judgement_of([2.0, 4.0, 9.0], calls=3),
        judgement_of([6.0, 6.0], calls=4, reasks=2),
        judgement_of([3.0, None], unscored=[None, "out of range: 80, in words: eighty"], calls=5, reasks=1),
    ]
    return judge_report(items, judgements, "judge")


def test_counts_and_means(report):
    counts = {"judge": "judge", "items": 3, "answers": 7, "scored": 6, "calls": 12, "reasks": 3}
    assert report.items() >= counts.items()
    assert report["unscored"] == {"out of range": 1}
    assert report["mean_score"] == 5.0 and not report["constant"] and report["warnings"] == []
    assert report["models"] == {
        "judge": {"mean": 7.5, "count": 2},
        "large": {"mean": 4.0, "count": 1},
        "small": {"mean": pytest.approx(11 / 3), "count": 3},
    }


def test_ties_and_self_preference(report):
    assert report["ties"] == {"best": 1 / 2, "pairs": 1 / 4}
    # Margins 9 - (2 + 4) / 2 = 6 and 6 - 6 = 0: standard deviation sqrt(18), over sqrt(2)
    assert report["self_preference"] == {"margin": 3.0, "standard_error": pytest.approx(3.0), "items": 2}


def test_length_within_prompts(report):
    # Lengths -1, 0, 1 with scores -3, -1, 4, and lengths -1/2, 1/2 with scores 0, 0: 7 / sqrt(2.5 * 26)
    assert report["length"]["pearson"] == pytest.approx(7 / 65**0.5)
    # Ranks -1, 0, 1 with -1, 0, 1, and -1/2, 1/2 with 0, 0: 2 / sqrt(2.5 * 2)
    assert report["length"]["spearman"] == pytest.approx(2 / 5**0.5)


def test_length_by_decile():
    items = [item_of(str(n), ["x" * n]) for n in range(1, 21)]
    lengths = list(range(1, 21))
    random.Random(0).shuffle(lengths)
    judgements = [judgement_of([n / 2]) for n in lengths]
    deciles = judge_report([items[n - 1] for n in lengths], judgements)["length"]["deciles"]
    assert deciles == [{"characters": [n, n + 1], "mean": n / 2 + 0.25, "count": 2} for n in range(1, 20, 2)]
    equal = judge_report([item_of("a", ["xx", "xx"])], [judgement_of([1.0, 4.0])])["length"]
    assert equal == {"deciles": [{"characters": [2, 2], "mean": 2.5, "count": 2}], "pearson": None, "spearman": None}


def test_equal_values_share_the_middle_of_their_ranks():
    """Ranks -1, -1, 0.5, 1.5 of the lengths with -1.5, -0.5, 0.5, 1.5 of the scores, each around its mean."""
    item = item_of("a", ["x", "y", "xx", "xxxxxxxxx"])
    length = judge_report([item], [judgement_of([1.0, 2.0, 3.0, 9.0])])["length"]
    assert length["spearman"] == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert [decile["count"] for decile in length["deciles"]] == [2, 1, 1]


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, -1.0)])
def test_lengths_of_different_prompts_do_not_count(sign, expected):
    """Long prompts with low scores: only the order within a prompt is the judge's taste."""
    items = [item_of(str(n), ["x" * n, "x" * (n + 3)]) for n in (1, 50, 900)]
    judgements = [judgement_of([base + 0.1, base + 0.1 + sign]) for base in (8.0, 5.0, 2.0)]
    length = judge_report(items, judgements)["length"]
    assert length["pearson"] == pytest.approx(expected) and length["spearman"] == pytest.approx(expected)


@pytest.mark.parametrize("bonus", [0, 3, -2])
def test_a_bonus_for_the_first_slot_is_measured(bonus):
    def judge(request):  # answers are numbers; the blocks of a prompt begin with "<answer LABEL code>"
        blocks = request.messages[0]["content"].split("<answer ")[1:]
        scores = {block[0]: int(block.split("\n")[1]) for block in blocks}
        scores[blocks[0][0]] += bonus
        return json.dumps({"scores": scores})

    rng = random.Random(0)
    items = [item_of(str(i), [str(n) for n in rng.sample(range(20), 3)]) for i in range(30)]
    judge = FunctionChatModel(judge, "biased")
    position = judge_report(items, Judge(judge, scale=(-9, 30)).judge(items))["position"]
    assert position["first_minus_last"] == pytest.approx(bonus)
    assert position["standard_error"] == pytest.approx(0.0, abs=1e-12) and position["items"] == 30
    first, second, third = position["by_slot"]
    assert [slot["slot"] for slot in (first, second, third)] == [0, 1, 2] and first["count"] == third["count"] == 90
    assert first["mean"] - bonus == pytest.approx(second["mean"]) == pytest.approx(third["mean"])

    one = judge_report(items, Judge(judge, scale=(-9, 30), num_orders=1).judge(items))["position"]
    assert abs(one["first_minus_last"] - bonus) < 4 * one["standard_error"] and one["standard_error"] > 0.5


def test_position_by_hand():
    def read(*slots, order=0):
        return [Reading("overall", slot, order, slot, score) for slot, score in enumerate(slots)]

    items = [item_of(str(i), ["x", "y"]) for i in range(4)]
    judgements = [
        judgement_of([7.0, 5.0], read(7.0, 5.0)),
        judgement_of([4.0, 4.0], read(4.0, 4.0)),
        judgement_of([None, None], read(9.0, 1.0), ["no scores: x"] * 2),  # its other order could not be read
        judgement_of([3.0, None], read(3.0, None), [None, "not applicable: x"]),
    ]
    assert judge_report(items, judgements)["position"] == {
        "by_slot": [{"slot": 0, "mean": 14 / 3, "count": 3}, {"slot": 1, "mean": 4.5, "count": 2}],
        "first_minus_last": 1.0,  # of 2 and 0
        "standard_error": pytest.approx(1.0),
        "items": 2,
    }


def test_a_judge_that_tells_nothing_apart_is_named():
    items = [item_of("a", ["1", "2"]), item_of("b", ["3", "4"])]
    slots = FunctionChatModel(lambda request: _by_slot(request, 8, 5), "slots")
    report = judge_report(items, Judge(slots).judge(items))
    assert report["constant"] and report["warnings"] == ["All 4 scores are 6.5: this judge tells nothing apart."]
    assert report["position"]["first_minus_last"] == 3.0 and report["ties"] == {"best": 1.0, "pairs": 1.0}
    dumb = judge_report(items, Judge(FunctionChatModel(lambda request: "Nice!", "dumb")).judge(items))
    assert dumb["warnings"] == ["No answer has a score: {'no scores': 4}."]
    assert (dumb["calls"], dumb["reasks"], dumb["constant"]) == (12, 8, False)
    one = judge_report(items[:1], [judgement_of([4.0, None], unscored=[None, "cut off: x"])])
    assert not one["constant"]


def _by_slot(request, *scores):
    labels = [block[0] for block in request.messages[0]["content"].split("<answer ")[1:]]
    return json.dumps(dict(zip(labels, scores, strict=True)))


def test_nothing_to_report():
    empty = judge_report([], [])
    assert empty["mean_score"] is empty["self_preference"] is empty["length"]["pearson"] is None
    assert empty["position"] == {"by_slot": [], "first_minus_last": None, "standard_error": None, "items": 0}
    alone = [item_of("a", ["x"], ["judge"]), item_of("b", [], [])]
    report = judge_report(alone, [judgement_of([4.0]), judgement_of([])], "judge")
    assert report["self_preference"] == {"margin": None, "standard_error": None, "items": 0}
    assert report["ties"] == {"best": None, "pairs": None} and report["position"]["first_minus_last"] is None
    assert judge_report(alone, [judgement_of([4.0]), judgement_of([])], "other")["self_preference"] is None
    with pytest.raises(ValueError, match="2 items, but 0 judgements"):
        judge_report(alone, [])


def test_reports_are_json(report):
    for one in (report, judge_report([], [])):
        assert json.loads(json.dumps(one, allow_nan=False)) == one

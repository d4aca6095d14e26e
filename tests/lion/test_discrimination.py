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
"""Which instructions are hard, and what the referee may say of them."""

import json
import math
import random

import pytest
import toy

from trl_distill.chat import Completion
from trl_distill.lion import Scored, partition, stages


def scored(gaps, teacher=8.0):
    return [Scored(str(i), teacher, teacher - gap) for i, gap in enumerate(gaps)]


def discriminated(loop):
    """Do what comes before the first scores, and then these."""
    with loop.folder.open_store() as store:
        for stage, round in ((stages.answers, 0), (stages.training, 0), (stages.discrimination, 1)):
            stage(loop.folder, loop.roles, store, round)
    return loop.folder.manifest(1).stages["discrimination"]


class TestPartition:
    def test_the_boundary_is_inclusive(self):
        parts = partition(scored([-1, 0, 0.99, 1.0, 1.01, 3]), tau=1)
        assert parts.hard == ["3", "4", "5"] and parts.easy == ["0", "1", "2"] and parts.below_floor == []

    def test_a_mean_that_misses_the_boundary_by_its_last_bit(self):
        assert 0.3 - 0.1 < 0.2 and partition([Scored("a", 0.3, 0.1)], tau=0.2).hard == ["a"]

    def test_the_number_of_hard_ones_falls_with_tau(self):
        draw = random.Random(0)
        items = scored([draw.choice([-2, -0.5, 0, 0.5, 1, 1.5, 4]) for _ in range(200)])
        counts = []
        for tau in (-math.inf, -3, -1, 0, 0.5, 1, 2, 5, math.inf):
            parts = partition(items, tau)
            assert sorted(parts.hard + parts.easy) == sorted(item.id for item in items)
            assert set(parts.hard) == {item.id for item in items if item.teacher - item.student >= tau}
            counts.append(len(parts.hard))
        assert counts == sorted(counts, reverse=True) and (counts[0], counts[-1]) == (200, 0) and len(set(counts)) > 4

    @pytest.mark.parametrize(
        ("gaps", "share", "hard"),
        [
            ([5, 4, 3, 2, 1, 1, 1, 1, 1, 1], 0.3, 3),
            ([5, 4, 2, 2, 2, 1, 1, 1, 1, 1], 0.3, 5),  # equal gaps at the cut are all in
            ([5, 4, 3, 2, 1, 1, 1, 1, 1, 1], 0.25, 3),  # 2.5 are 3
            ([1, 1, 1, 1], 0.01, 4),
            ([3, 2, 1], 1.0, 3),
            ([3, 0, 0, -1], 0.9, 1),  # where the student is not behind, nothing is hard
            ([0, -1], 0.5, 0),
            ([], 0.5, 0),
        ],
    )
    def test_a_share_in_place_of_tau(self, gaps, share, hard):
        parts = partition(scored(gaps), tau_quantile=share)
        assert len(parts.hard) == hard and len(parts.hard + parts.easy) == len(gaps)
        assert set(parts.hard) == {str(i) for i in range(len(gaps)) if gaps[i] >= parts.tau and gaps[i] > 0}

    def test_where_the_teacher_fails_nothing_is_hard_or_easy(self):
        items = [Scored("a", 9, 2), Scored("b", 5, 1), Scored("c", 7, 7), Scored("d", 4.9, 9)]
        parts = partition(items, min_teacher_score=5)
        assert (parts.hard, parts.easy, parts.below_floor) == (["a", "b"], ["c"], ["d"])
        assert partition(items, tau_quantile=0.5, min_teacher_score=6)[:3] == (["a"], ["c"], ["b", "d"])

    @pytest.mark.parametrize(("setting", "said"), [({"tau_quantile": 0}, "tau_quantile"), ({"tau": math.nan}, "NaN")])
    def test_what_is_no_boundary(self, setting, said):
        with pytest.raises(ValueError, match=said):
            partition([], **setting)


class TestBias:
    def gaps(self, world, read, folder, bias, orders, models=None):
        models = {"referee": toy.referee(bias)} | (models or {})
        facts = discriminated(world(folder, models=models, referee_orders=orders))
        rows = read("round_1/scores.jsonl", folder)
        return {row["id"]: row["teacher"] - row["student"] for row in rows}, facts["referee"]["position"]

    def test_a_bonus_for_a_place(self, world, read):
        fair, position = self.gaps(world, read, "fair", 0, orders=2)
        assert set(fair.values()) == {0, 3} and position["first_minus_last"] == 0
        for bias in (1, -2):
            both, position = self.gaps(world, read, f"both {bias}", bias, orders=2)
            assert both == fair and position["first_minus_last"] == bias
            one, _ = self.gaps(world, read, f"one {bias}", bias, orders=1)
            assert {one[id] - fair[id] for id in fair} == {bias, -bias}  # each of them stands first somewhere

    def test_exchanging_teacher_and_student_changes_the_sign(self, world, read):
        fair, _ = self.gaps(world, read, "fair", 1, orders=2)
        theirs, ours = toy.teacher(), toy.student

        def right(folder):
            return toy.Rule(theirs.function, "student", revision="right")

        def wrong(request):  # what the student of round 0 says
            return ours(student).function(request)

        student = world("fair").folder.student(0)
        models = {"teacher": toy.Rule(wrong, "teacher"), "student": right}
        exchanged, _ = self.gaps(world, read, "exchanged", 1, orders=2, models=models)
        assert exchanged == {id: -gap for id, gap in fair.items()} and any(fair.values())


LAYOUTS = [
    "I have read both.\n{A}: {a}\n{B}: {b}\n",
    "Answer {A}: {a}/10\nAnswer {B}: {b}/10",
    "Answer {A}: {a}\n\nAnswer {B}: {b}",
    "**Answer {A}**: **{a}**\n**Answer {B}**: {b}",
]
UNREADABLE = [
    "Answer A: 80\nAnswer B: 7",
    "Answer A: -6\nAnswer B: 7",
    "Answer A: N/A\nAnswer B: 7",
    "error",
    "",
    Completion("Answer A: 8\nAnswer B: 7", "length"),
    Completion('{"evidence": "Both are', "length"),
]


def numbers(value):
    """All numbers in JSON."""
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


class TestReplies:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts_that_are_read(self, layout, world, read):
        def judge(request):
            scores = json.loads(toy.referee().function(request))["scores"]
            (first, a), (second, b) = scores.items()
            return layout.format(A=first, a=a, B=second, b=b)

        facts = discriminated(world(models={"referee": toy.Rule(judge, "referee")}))
        assert facts["counts"]["unscored"] == 0 and facts["counts"]["hard"] > 0
        assert {(row["teacher"], row["student"]) for row in read("round_1/scores.jsonl")} == {(8, 8), (8, 5)}

    def test_replies_that_cannot_be_read(self, world, read, tmp_path):
        """Each family gets its own: they are in no set, counted, and no number stands in their place."""
        bad = dict(enumerate(UNREADABLE, start=2))

        def judge(request):
            family = toy.family_of(request.messages[-1]["content"])
            return bad[family] if family in bad else toy.referee().function(request)

        rows = toy.rows({0: 3, 1: 3} | dict.fromkeys(bad, 2))
        loop = world(rows=rows, models={"referee": toy.Rule(judge, "referee")}, max_reasks=1, rounds=1)
        result = loop.run()
        scores = read("round_1/scores.jsonl")
        texts = {row["id"]: row["text"] for row in read("round_0/cache_pool.jsonl")}
        for row in scores:
            if toy.family_of(texts[row["id"]]) in bad:
                assert row["teacher"] is row["student"] is row["kind"] is None and ":" in row["unscored"]
            else:
                assert (row["teacher"], row["student"], row["kind"], row["unscored"]) == (8, 5, "hard", None)
        unread = sum(toy.family_of(text) in bad for text in texts.values())
        facts = read("round_1/manifest.json")["stages"]["discrimination"]
        assert facts["counts"]["unscored"] == unread == sum(facts["unscored"].values()) > 0
        assert facts["referee"]["reasks"] == 2 * unread
        assert not {row["parent"] for row in read("round_1/train_pool.jsonl")} & {
            row["id"] for row in scores if row["kind"] is None
        }
        assert result.report["rounds"][1]["hard_share"] == 1
        for path in tmp_path.rglob("*.json*"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            assert all(number >= 0 for line in lines for number in numbers(json.loads(line))), path

    @pytest.mark.parametrize("reply", ["no idea", "Answer A: 11\nAnswer B: 0"])
    def test_a_referee_that_never_scores(self, reply, world, tmp_path):
        loop = world(models={"referee": toy.Rule(lambda _: reply, "mute")})
        with pytest.raises(ValueError, match=r"The referee mute scored none of 19 .*calls\.sqlite"):
            loop.run()
        assert not (tmp_path / "run" / "round_1" / "scores.jsonl").exists()
        evaluation = loop.folder.manifest(0).stages["evaluation"]
        assert evaluation["counts"]["scored"] == 0 and "win_rate" not in evaluation

    def test_a_referee_that_always_says_the_same(self, world):
        same = toy.referee(good=7, bad=7)
        result = world(models={"referee": same}).run()
        assert result.status == "converged" and result.round == 0
        heldout = result.report["rounds"][0]["heldout"]
        assert heldout["tie_rate"] == 1 and any(
            "tells nothing apart" in text for text in heldout["referee"]["warnings"]
        )

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

"""Teacher and student before the referee: its bias, and its replies."""

import json

import pytest
import toy

from trl_distill.chat import Completion


def scores_of(loop):
    """What the first discrimination is about."""
    return toy.done(loop, ("answers", 0), ("training", 0), ("discrimination", 1))


class TestBias:
    def gaps(self, world, read, folder, bias, orders, models=None):
        models = {"referee": toy.referee(bias)} | (models or {})
        facts = scores_of(world(folder, models=models, referee_orders=orders))
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

        facts = scores_of(world(models={"referee": toy.Rule(judge, "referee")}))
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

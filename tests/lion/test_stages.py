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


import json
from collections import Counter

import pytest
import toy
from rouge_score.rouge_scorer import RougeScorer
from toy import ids

from trl_distill.chat import Completion, FailedCall, FunctionChatModel


class TestPools:
    def test_after_k_rounds(self, world, read):
        loop = world(rounds=3, n_new=5, models={"student": toy.stubborn})
        assert loop.run().status == "finished"
        heldout, first = read("round_0/heldout.jsonl"), read("round_0/cache_pool.jsonl")
        assert len(heldout) == 4 and len(first) == 19 and not ids(heldout) & ids(first)
        assert read("round_0/train_pool.jsonl") == first
        for k in (1, 2, 3):
            cache, train = read(f"round_{k}/cache_pool.jsonl"), read(f"round_{k}/train_pool.jsonl")
            before, last = read(f"round_{k - 1}/cache_pool.jsonl"), read(f"round_{k - 1}/train_pool.jsonl")
            assert len(ids(train)) == len(train) == 5 and len(ids(cache)) == len(cache) == 19 + 5 * k
            assert cache == before + train and not ids(train) & ids(last)
            assert {row["round"] for row in train} == {k} and {row["parent"] for row in train} <= ids(before)

    def test_the_heldout_slice_is_nowhere(self, world, read):
        """Its texts are never trained on, scored for mining or used as seeds, and nothing new is near to one."""
        watch = toy.Watch()

        def write(request):  # half of what it writes is a held-out task, but for a word
            text = toy.generator().function(request)
            near = [f"{row['text']} please" for row in read("round_0/heldout.jsonl")]
            return near[request.sample_index % 4] if request.sample_index % 2 == 0 else text

        models = watch.models(generator=FunctionChatModel(write, "generator"), student=toy.stubborn)
        result = world(models=models, rounds=2, n_new=6, max_attempts_factor=50).run()
        assert all(row["generation"]["counts"]["similar"] > 0 for row in result.report["rounds"][1:])
        heldout = {row["text"] for row in read("round_0/heldout.jsonl")}
        scorer = RougeScorer(["rougeL"])
        for k in range(3):
            trained = {row["prompt"][0]["content"] for row in read(f"round_{k}/answers.jsonl")}
            cache = {row["text"] for row in read(f"round_{k}/cache_pool.jsonl")}
            assert trained <= cache and not cache & heldout
            new = {row["text"] for row in read(f"round_{k}/train_pool.jsonl")} if k else ()
            assert all(scorer.score(a, b)["rougeL"].fmeasure <= 0.7 for a in new for b in heldout)
        asked = {content for role, _, content, *_ in watch.answered if role == "generator"}
        assert not any(text in content for text in heldout for content in asked)
        for k in (1, 2):
            scored = ids(read(f"round_{k}/scores.jsonl"))
            assert scored and not scored & ids(read("round_0/heldout.jsonl"))

    def test_nothing_near_to_a_test_set_is_generated(self, world, tmp_path, read):
        avoided = [toy.task(0, f"evaluation {i}") for i in range(3)]
        rows = [{"instruction": avoided[0]}, {"prompt": avoided[1], "answer": "7"}, {"question": avoided[2]}]
        (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

        def write(request):
            seen = toy.generator().function(request)
            return avoided[request.sample_index % 3] + " now" if len(seen) % 2 else seen

        models = {"generator": FunctionChatModel(write, "generator"), "student": toy.stubborn}
        decontaminate = [str(tmp_path / "test.jsonl")]
        world(models=models, n_new=8, rounds=1, max_attempts_factor=50, decontaminate=decontaminate).run()
        scorer = RougeScorer(["rougeL"])
        new = [row["text"] for row in read("round_1/train_pool.jsonl")]
        assert all(scorer.score(a, b)["rougeL"].fmeasure <= 0.7 for a in avoided for b in new)
        world("open", models=models, n_new=8, rounds=1, max_attempts_factor=50).run()
        new = [row["text"] for row in read("round_1/train_pool.jsonl", "open")]
        assert any(scorer.score(a, b)["rougeL"].fmeasure > 0.7 for a in avoided for b in new)

    @pytest.mark.parametrize("content", ['{"text": "a"}\n', "no JSON\n", None])
    def test_a_test_set_that_cannot_be_read_is_said_before_the_first_call(self, content, world, tmp_path):
        if content is not None:
            (tmp_path / "test.jsonl").write_text(content)
        with pytest.raises((ValueError, OSError), match="test.jsonl"):
            world(decontaminate=[str(tmp_path / "test.jsonl")])

    def test_part_of_a_pool(self, world, read):
        world(max_instructions=9, rounds=0, heldout_size=2).run()
        assert len(read("round_0/cache_pool.jsonl")) == 7 and len(read("round_0/heldout.jsonl")) == 2
        assert read("round_0/manifest.json")["stages"]["pools"]["counts"]["pool"] == 9

    def test_bad_rows_are_in_the_report_and_said(self, world, caplog):
        rows = toy.rows({0: 8}) + [{"instruction": ""}, {"instruction": None}, *toy.rows({0: 1})]
        report = world(rows=rows, rounds=0).run().report
        counts = {
            "rows": 11,
            "kept": 8,
            "duplicate": 1,
            "empty": 1,
            "not_text": 1,
            "pool": 8,
            "heldout": 4,
            "heldout_groups": 4,
        }
        examples = {"empty": [8], "not_text": [9], "duplicate": [10]}
        assert report["rounds"][0]["pools"] == counts | {"examples": examples}
        assert "3 of 11 rows are left out: 1 empty (such as row 8), 1 not_text (such as row 9)" in caplog.text

    def test_without_heldout_there_is_no_evaluation(self, world, tmp_path):
        result = world(heldout_size=0, rounds=1).run()
        assert not list(tmp_path.rglob("evaluation.json")) and "heldout" not in result.report["rounds"][0]


class TestAnswers:
    def teacher(self, bad):
        """Families get another answer than a right one."""

        def answer(request):
            text = request.messages[-1]["content"]
            return bad.get(toy.family_of(text), f"right {text}")

        return toy.Rule(answer, "teacher")

    def test_rows_are_the_teacher_s_answers_and_nothing_else(self, world, read):
        bad = {1: FailedCall("no"), 2: Completion("right but cut", "length"), 3: " "}
        loop = world(models={"teacher": self.teacher(bad)}, heldout_size=0)
        toy.done(loop, ("answers", 0), ("training", 0), ("discrimination", 1))
        pool = {row["id"]: row["text"] for row in read("round_0/cache_pool.jsonl")}
        rows = read("round_0/answers.jsonl")
        assert {row["id"] for row in rows} == {id for id, text in pool.items() if toy.family_of(text) == 0}
        for row in rows:
            assert row["prompt"] == [{"role": "user", "content": pool[row["id"]]}]
            assert row["completion"] == [{"role": "assistant", "content": f"right {pool[row['id']]}"}]
        counts = {"rows": 10, "failed": 8, "empty": 2, "cut_off": 3, "refused": 0}
        assert read("round_0/manifest.json")["stages"]["answers"]["counts"] == counts
        unscored = read("round_1/manifest.json")["stages"]["discrimination"]["unscored"]
        assert unscored == {"teacher failed": 8, "teacher empty": 2}

    def test_a_teacher_without_any_answer(self, world):
        with pytest.raises(ValueError, match="The teacher teacher gave no answer to train on: .*'failed': 10"):
            models = {"teacher": self.teacher({0: FailedCall("no")})}
            world(models=models, rows=toy.rows({0: 14})).run()

    def test_a_student_that_fails_or_says_nothing(self, world, read):
        """No answer is no score; an empty answer is a bad one."""

        def answer(request):
            says = {0: FailedCall("too long"), 1: ""}
            return says.get(toy.family_of(request.messages[-1]["content"]), "wrong")

        models = {"student": lambda folder: toy.Rule(answer, "student")}
        result = world(models=models, heldout_size=0, rounds=1).run()
        found = result.report["rounds"][1]["discrimination"]
        assert found["unscored"] == {"student failed": 10} and found["counts"]["hard"] == 13

    @pytest.mark.parametrize("init_from", ["previous", "base"])
    def test_where_each_round_begins_and_on_what(self, init_from, world, read, tmp_path):
        began = []

        def train(model, answers, output):
            began.append((model, [json.loads(line)["id"] for line in answers.read_text().splitlines()]))
            toy.train(model, answers, output)

        watch = toy.Watch()
        world(models=watch.models(train=train, student=toy.stubborn), init_from=init_from).run()
        assert max(watch.answered.values()) == 1 and watch.asked["teacher"] == 19 + 4 + 2 * 4
        for k, (start, trained_on) in enumerate(began):
            from_base = k == 0 or init_from == "base"
            student, pool = f"round_{k - 1}/student", "cache" if init_from == "base" else "train"
            assert start == ("none" if from_base else str(tmp_path / "run" / student))
            training = read(f"round_{k}/manifest.json")["stages"]["training"]
            assert training["start"] == ("none" if from_base else student)
            assert trained_on == [row["id"] for row in read(f"round_{k}/{pool}_pool.jsonl")]
        assert len(began) == 3


class TestScores:
    def test_a_part_of_the_pool(self, world, read):
        watch = toy.Watch()
        world(models=watch.models(student=toy.stubborn), cache_sample=7).run()
        samples = [ids(read(f"round_{k}/scores.jsonl")) for k in (1, 2)]
        assert [len(sample) for sample in samples] == [7, 7] and samples[0] != samples[1]
        for k, sample in enumerate(samples):
            assert sample <= ids(read(f"round_{k}/cache_pool.jsonl"))
            assert {row["parent"] for row in read(f"round_{k + 1}/train_pool.jsonl")} <= sample
        assert watch.asked["referee"] == 2 * (7 + 7) + 2 * 3 * 4

    def test_scores_of_earlier_rounds_can_be_kept(self, world, read, ledger):
        result = world(models={"student": toy.stubborn}, rescore="new_only").run()
        calls = ledger(result.report)
        assert calls[1, "discrimination", "referee"] == 2 * 19 and calls[2, "discrimination", "referee"] == 2 * 4
        first, second = read("round_1/scores.jsonl"), read("round_2/scores.jsonl")
        assert second[:19] == first and [row["round"] for row in second] == [1] * 19 + [2] * 4
        assert ids(second) == ids(read("round_1/cache_pool.jsonl"))

    def test_kept_scores_with_a_sample(self, world, read):
        world(models={"student": toy.stubborn}, rescore="new_only", cache_sample=7).run()
        first, second = read("round_1/scores.jsonl"), read("round_2/scores.jsonl")
        assert len(second) == 14 and ids(first) < ids(second)

    def test_what_has_no_score_yet_is_asked_again(self, world, read):
        asked = Counter()

        def judge(request):
            family = toy.family_of(request.messages[-1]["content"])
            asked[family] += 1
            return "hm" if family == 3 else toy.referee().function(request)

        models = {"student": toy.stubborn, "referee": FunctionChatModel(judge, "referee")}
        world(models=models, rescore="new_only", heldout_size=0, max_reasks=0).run()
        unscored = {row["round"] for row in read("round_2/scores.jsonl") if row["unscored"]}
        assert asked[3] >= 2 * 2 * 2 and unscored == {2}

    def test_a_floor_of_the_teacher_s_score(self, world, read):
        def judge(request):
            scores = json.loads(toy.referee().function(request))["scores"]
            poor = toy.family_of(request.messages[-1]["content"]) == 1
            return json.dumps({"scores": {label: score - 4 * poor for label, score in scores.items()}})

        models = {"student": toy.stubborn, "referee": FunctionChatModel(judge, "referee")}
        result = world(models=models, min_teacher_score=5, rounds=1, heldout_size=0).run()
        counts = result.report["rounds"][1]["discrimination"]["counts"]
        assert counts == {"hard": 15, "easy": 0, "below_floor": 8, "unscored": 0}
        assert result.report["rounds"][1]["hard_share"] == 15 / 23
        assert all(toy.family_of(row["text"]) != 1 for row in read("round_1/train_pool.jsonl"))

    def test_a_quantile(self, world):
        result = world(tau_quantile=0.2, rounds=1, heldout_size=0).run()
        found = result.report["rounds"][1]["discrimination"]  # five are behind by 3, all others by 0
        assert found["counts"]["hard"] == 5 and found["tau"] == 3


# The referee: its bias, and its replies


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
        of_no_kind = {row["id"] for row in scores if row["kind"] is None}
        assert not {row["parent"] for row in read("round_1/train_pool.jsonl")} & of_no_kind
        assert result.report["rounds"][1]["hard_share"] == 1
        for path in tmp_path.rglob("*.json*"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            assert all(number >= 0 for line in lines for number in numbers(json.loads(line))), path

    @pytest.mark.parametrize("reply", ["no idea", "Answer A: 11\nAnswer B: 0"])
    def test_a_referee_that_never_scores(self, reply, world, tmp_path):
        loop = world(models={"referee": toy.Rule(lambda _: reply, "mute")}, max_unreadable=None)
        with pytest.raises(ValueError, match=r"The referee mute scored none of 19 .*calls\.sqlite"):
            loop.run()
        assert not (tmp_path / "run" / "round_1" / "scores.jsonl").exists()
        evaluation = loop.folder.manifest(0).stages["evaluation"]
        assert evaluation["counts"]["scored"] == 0 and "win_rate" not in evaluation

    def test_a_referee_that_nobody_can_read_is_given_up(self, world):
        """The evaluation asks eight times and three times over: no more than is said."""
        mute = toy.Rule(lambda _: Completion("", "length", completion_tokens=512, thoughts="Let me see"), "mute")
        watch = toy.Watch()
        models = watch.models() | {"referee": watch.model("referee", mute)}
        with pytest.raises(ValueError, match="9 replies of mute .*of 512 tokens.*Let me see.*`referee_max_tokens`"):
            world(models=models, max_unreadable=9).run()
        assert watch.asked["referee"] == 9
        again = toy.Watch()  # the limit is no part of what the run is
        world(models=again.models(), max_unreadable=None).run()
        assert again.asked["teacher"] < watch.asked["teacher"]

    @pytest.mark.parametrize(
        ("referee", "first"),
        [(toy.referee(good=7, bad=7), "+0.00"), (toy.referee(good=6, bad=6, bias=3), "+3.00")],
    )
    def test_a_referee_that_tells_nothing_apart_is_no_convergence(self, referee, first, world, tmp_path, caplog):
        """It likes all answers, or whatever stands first: nothing would ever be hard."""
        loop = world(models={"referee": referee, "student": toy.stubborn})
        with pytest.raises(ValueError) as stopped:
            loop.run()
        assert f"all 19 pairs of different answers end in a tie, and the first place got {first}" in str(stopped.value)
        assert "Round 0, evaluation: All" in caplog.text and "tells nothing apart" in caplog.text
        report = json.loads((tmp_path / "run/report.json").read_text())
        assert report["rounds"][0]["heldout"]["tie_rate"] == 1 and len(report["warnings"]) == 1

    def test_equal_answers_are_no_evidence_against_the_referee(self, world):
        result = world(models={"student": lambda _: toy.teacher()}).run()
        assert result.status == "converged" and result.round == 0

    @pytest.mark.parametrize(
        ("role", "advice"),
        [("student", "Lower `student_max_tokens`"), ("teacher", "Look at the teacher's answers")],
    )
    def test_who_is_to_blame_that_nothing_is_scored(self, role, advice, world):
        """A student whose context is too short is not helped by another referee."""
        models, fails = {"student": toy.stubborn}, lambda _: FailedCall("The prompt of 900 tokens leaves no room")
        toy.done(world(models=models, heldout_size=0), ("answers", 0), ("training", 0))
        models[role] = toy.Rule(fails, role, "another") if role == "teacher" else lambda _: toy.Rule(fails, role)
        with pytest.raises(ValueError, match="scored none of 23") as stopped:
            world(models=models, heldout_size=0).run()
        assert advice in str(stopped.value) and "Take another referee" not in str(stopped.value)


def test_a_loss_that_is_no_number_does_not_stop_the_record(world, read):
    """A training that has diverged is finished, too: what becomes of its student is seen by the miner."""

    def train(model, answers, output):
        toy.train(model, answers, output)
        history = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": float("nan")}, {"step": 2, "train_runtime": 1.0}]
        (output / "trainer_state.json").write_text(json.dumps({"log_history": history}))

    world(models={"train": train}, rounds=0, heldout_size=0).run()
    assert read("report.json")["rounds"][0]["loss"] == [[1, 2.5]]

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
        counts = {"rows": 11, "kept": 8, "duplicate": 1, "empty": 1, "not_text": 1, "pool": 8, "heldout": 4}
        examples = {"empty": [8], "not_text": [9], "duplicate": [10]}
        assert report["rounds"][0]["pools"] == counts | {"examples": examples}
        assert "3 of 11 rows are left out: 1 empty (such as row 8), 1 not_text (such as row 9)" in caplog.text

    def test_without_heldout_there_is_no_evaluation(self, world, tmp_path):
        result = world(heldout_size=0, rounds=1).run()
        assert not list(tmp_path.rglob("evaluation.json")) and "heldout" not in result.report["rounds"][0]


class TestAnswers:
    def teacher(self, bad):
        """Families get another answer than a right one."""
        return toy.Rule(
            lambda request: bad.get(
                toy.family_of(request.messages[-1]["content"]), f"right {request.messages[-1]['content']}"
            ),
            "teacher",
        )

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
        counts = {"rows": 10, "failed": 8, "empty": 2, "cut_off": 3}
        assert read("round_0/manifest.json")["stages"]["answers"]["counts"] == counts
        unscored = read("round_1/manifest.json")["stages"]["discrimination"]["unscored"]
        assert unscored == {"teacher failed": 8, "teacher empty": 2}

    def test_a_teacher_without_any_answer(self, world):
        with pytest.raises(ValueError, match="The teacher teacher gave no answer to train on: .*'failed': 10"):
            world(
                models={"teacher": self.teacher(dict.fromkeys(range(4), FailedCall("no")))}, rows=toy.rows({0: 14})
            ).run()

    def test_a_student_that_fails_or_says_nothing(self, world, read):
        """No answer is no score; an empty answer is a bad one."""

        def student(folder):
            says = {0: FailedCall("too long"), 1: ""}
            return toy.Rule(
                lambda request: says.get(toy.family_of(request.messages[-1]["content"]), "wrong"), "student"
            )

        result = world(models={"student": student}, heldout_size=0, rounds=1).run()
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
        pools = [
            [row["id"] for row in read(f"round_{k}/{'cache' if init_from == 'base' else 'train'}_pool.jsonl")]
            for k in range(3)
        ]
        folder = tmp_path / "run"
        starts = (
            ["none"] * 3
            if init_from == "base"
            else ["none", str(folder / "round_0/student"), str(folder / "round_1/student")]
        )
        assert began == list(zip(starts, pools, strict=True))
        assert max(watch.answered.values()) == 1 and watch.asked["teacher"] == 19 + 4 + 2 * 4
        starts = [read(f"round_{k}/manifest.json")["stages"]["training"]["start"] for k in range(3)]
        assert starts == (["none"] * 3 if init_from == "base" else ["none", "round_0/student", "round_1/student"])


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
        assert asked[3] >= 2 * 2 * 2 and {row["round"] for row in read("round_2/scores.jsonl") if row["unscored"]} == {
            2
        }

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

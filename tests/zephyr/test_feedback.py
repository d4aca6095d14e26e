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
"""The loop of AI feedback, with models that follow rules."""

import json
import math
import random
import re
from collections import Counter

import pytest
from rules import answer, judge, judge_reply, quality, responder

from trl_distill.chat import (
    BudgetReached,
    CallStore,
    Completion,
    EndpointChatModel,
    FailedCall,
    FunctionChatModel,
    LocalChatModel,
)
from trl_distill.chat.models import BaseChatModel
from trl_distill.zephyr import run_feedback, scored_rows
from trl_distill.zephyr.assignment import assign
from trl_distill.zephyr.presets import Principle


PROMPTS = [f"question {i}" for i in range(12)]
FILES = ("ratings.jsonl", "pairs.jsonl", "sft.jsonl", "report.json", "report.png")


def pool(*names):
    return [responder(name) for name in names]


class TestAssignment:
    def test_no_model_answers_twice_before_all_have_answered_once(self):
        for n in range(200):
            asks = assign(str(n), ["a", "b", "c"], num_answers=7)
            assert Counter(ask.model for ask in asks[:3]) == Counter(ask.model for ask in asks[3:6]) == Counter("abc")
            assert [ask.sample_index for ask in asks] == [0, 0, 0, 1, 1, 1, 2]

    def test_each_model_answers_as_often(self):
        count = Counter(ask.model for n in range(3000) for ask in assign(str(n), "abcde", num_answers=2))
        for model in "abcde":
            assert abs(count[model] - 1200) <= 4 * math.sqrt(3000 * 0.4 * 0.6)

    def test_neither_the_order_of_models_nor_a_new_one_moves_the_others(self):
        moved = 0
        for n in range(500):
            before = assign(str(n), "abcd", num_answers=2)
            assert assign(str(n), "dcba", num_answers=2) == before
            after = assign(str(n), "abcde", num_answers=2)
            assert {ask.model for ask in after} - {"e"} <= {ask.model for ask in before}
            moved += any(ask.model == "e" for ask in after)
        assert abs(moved - 200) <= 4 * math.sqrt(500 * 0.4 * 0.6)

    def test_the_student_answers_every_prompt(self):
        asks = assign("1", "abc", "s", num_answers=3)
        assert asks[0].model == "s" and len(asks) == 3 and "s" not in {ask.model for ask in asks[1:]}
        assert [(ask.model, ask.sample_index) for ask in assign("1", [], "s", num_answers=3)] == [
            ("s", 0),
            ("s", 1),
            ("s", 2),
        ]

    def test_principles_by_their_weights(self):
        principles = [Principle("x", "be x"), Principle("y", "be y", 3.0)]
        asks = [ask for n in range(1000) for ask in assign(str(n), "abcd", "s", principles=principles)]
        assert all((ask.principle is None) == (ask.model == "s") for ask in asks)
        share = sum(ask.principle.name == "y" for ask in asks if ask.principle) / 3000
        assert abs(share - 0.75) <= 4 * math.sqrt(0.75 * 0.25 / 3000)
        of_a = {ask.principle.name for n in range(30) for ask in assign(str(n), ["a"], principles=principles)}
        assert of_a == {"x", "y"}


class TestRun:
    def test_pairs_follow_the_rule(self, config, read):
        models, the_judge = pool(*"abcdef"), judge()
        report = run_feedback(config(rejected="min"), prompts=PROMPTS, responders=models, judges=[the_judge])
        ratings, pairs, sft = read("ratings"), read("pairs"), read("sft")
        assert [row["prompt"][0]["content"] for row in ratings] == PROMPTS
        for row in ratings:
            assert len({candidate["model"] for candidate in row["candidates"]}) == 4
            for candidate in row["candidates"]:
                assert candidate["text"] == answer(candidate["model"], row["prompt"], 0)
                assert candidate["score"] == candidate["ratings"]["overall quality"] == quality(candidate["text"])
                numbers = candidate["judges"]["judge"]["overall quality"]
                assert (
                    {number["slot"] for number in numbers} == {number["order"] for number in numbers} == set(range(4))
                )
        by_id = {row["prompt_id"]: row for row in ratings}
        for pair in pairs:
            scores = [candidate["score"] for candidate in by_id[pair["prompt_id"]]["candidates"]]
            assert quality(pair["chosen"][0]["content"]) == pair["score_chosen"] == max(scores)
            assert quality(pair["rejected"][0]["content"]) == pair["score_rejected"] == min(scores)
            assert pair["chosen"][0]["content"].startswith(pair["chosen_model"] + " on")
        assert [row["messages"] for row in sft] == [pair["prompt"] + pair["chosen"] for pair in pairs]
        assert len(pairs) == report["pairs"]["pairs"] == 12 - report["pairs"]["tied"]

    def test_the_ledger(self, config):
        """Calls are prompts x answers, and prompts x orders x aspects for the judge."""
        models, the_judge = pool("a", "b", "c"), judge()
        report = run_feedback(
            config(num_answers=5, judge_orders=2, aspects="ultrafeedback", judge_scale=[1, 10]),
            prompts=PROMPTS,
            responders=models,
            judges=[the_judge],
        )
        assert sum(len(model.requests) for model in models) == 12 * 5
        assert len(the_judge.requests) == 12 * 2 * 4
        calls = {(row["role"], row["model"]): row["calls"] for row in report["ledger"]}
        assert calls == {("responder", m.name): len(m.requests) for m in models} | {("judge", "judge"): 12 * 2 * 4}
        assert report["answers"]["asked"] == report["answers"]["scored"] == 60

    @pytest.mark.parametrize(("mode", "calls"), [("absolute", 12 * 2), ("listwise", 12 * 2)])
    def test_modes(self, config, mode, calls):
        the_judge = judge()
        run_feedback(
            config(num_answers=2, judge_mode=mode), prompts=PROMPTS, responders=pool("a", "b"), judges=[the_judge]
        )
        assert len(the_judge.requests) == calls

    def test_a_second_run_asks_nothing_and_writes_the_same(self, config, tmp_path, picture):
        settings = dict(
            prompts=PROMPTS, responders=pool("a", "b"), judges=[judge(), judge("other", bonus=(3, 2, 1, 0))]
        )
        run_feedback(config(judge_scale=[1, 13]), **settings)
        before = {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
        asked = [model for models in (settings["responders"], settings["judges"]) for model in models]
        for model in asked:
            model.requests.clear()
        for name in FILES:
            (tmp_path / "out" / name).unlink()
        run_feedback(config(judge_scale=[1, 13]), **settings)
        assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == before
        assert [model.requests for model in asked] == [[]] * 4
        assert not list((tmp_path / "out").glob("*.new"))

    def test_other_settings_reuse_the_calls(self, config, read):
        models, the_judge = pool("a", "b"), judge()
        run_feedback(config(), prompts=PROMPTS, responders=models, judges=[the_judge])
        one_a_prompt = len(read("pairs"))
        asked = [len(model.requests) for model in (*models, the_judge)]
        run_feedback(config(rejected="all_pairs"), prompts=PROMPTS, responders=models, judges=[the_judge])
        assert len(read("pairs")) > one_a_prompt and len(read("sft")) == one_a_prompt
        assert [len(model.requests) for model in (*models, the_judge)] == asked
        run_feedback(config(), prompts=[*PROMPTS, "one more"], responders=models, judges=[the_judge])
        assert [len(model.requests) for model in (*models, the_judge)] == [
            n + k for n, k in zip(asked, (2, 2, 4), strict=True)
        ]

    def test_neither_order_nor_shards_change_a_pair(self, config, read):
        def pairs(rows, folder):
            run_feedback(config(output_dir=folder), prompts=rows, responders=pool("a", "b", "c"), judges=[judge()])
            return {row["prompt_id"]: row for row in map(json.loads, open(f"{folder}/pairs.jsonl"))}

        whole = pairs(PROMPTS, config().output_dir)
        shuffled = random.Random(0).sample(PROMPTS, 12)
        assert pairs(shuffled, config().output_dir + "-shuffled") == whole
        shards = pairs(PROMPTS[::2], config().output_dir + "-1") | pairs(PROMPTS[1::2], config().output_dir + "-2")
        assert shards == whole

    def test_a_biased_judge_is_seen_and_cancels_out(self, config, read):
        """With all orders each answer gets each bonus once."""
        report = run_feedback(
            config(judge_scale=[1, 20]), prompts=PROMPTS, responders=pool(*"abcd"), judges=[judge(bonus=(9, 3, 1, 0))]
        )
        means = [row["mean"] for row in report["judges"]["judge"]["position"]["by_slot"]]
        assert [mean - means[-1] for mean in means] == pytest.approx([9, 3, 1, 0])
        for row in read("ratings"):
            for candidate in row["candidates"]:
                assert candidate["score"] == quality(candidate["text"]) + 13 / 4

    def test_several_judges(self, config, read):
        report = run_feedback(
            config(judge_scale=[1, 20]),
            prompts=PROMPTS,
            responders=pool(*"abcd"),
            judges=[judge(), judge("kind", bonus=(10,) * 4)],
        )
        assert list(report["judges"]) == ["judge", "kind"]
        for row in read("ratings"):
            for candidate in row["candidates"]:
                assert candidate["score"] == quality(candidate["text"]) + 5
                assert list(candidate["judges"]) == ["judge", "kind"]

    def test_weights_of_aspects(self, config, read):
        def rule(request):
            reply = json.loads(judge_reply(request.messages))
            if "on length" in request.messages[-1]["content"]:
                reply["scores"] = dict.fromkeys(reply["scores"], 1)
            return json.dumps(reply)

        aspects = [{"name": "content", "guideline": "..."}, {"name": "length", "guideline": "...", "weight": 3}]
        run_feedback(
            config(aspects=aspects),
            prompts=PROMPTS,
            responders=pool(*"abcd"),
            judges=[FunctionChatModel(rule, "judge")],
        )
        for row in read("ratings"):
            for candidate in row["candidates"]:
                assert candidate["score"] == (quality(candidate["text"]) + 3) / 4

    def test_the_student_and_ready_answers(self, config, read):
        rows = [{"prompt": p, "ready": [f"ready for {p} (5)"], "who": ["gold"]} for p in PROMPTS]
        student = responder("student")
        run_feedback(
            config(num_answers=2, completions_column="ready", models_column="who"),
            prompts=rows,
            responders=pool("a", "b"),
            student=student,
            judges=[judge()],
        )
        assert len(student.requests) == 12
        for row in read("ratings"):
            assert [candidate["model"] for candidate in row["candidates"][:2]] == ["gold", "student"]
            assert len(row["candidates"]) == 3 and row["candidates"][2]["model"] in "ab"

    def test_ready_answers_alone(self, config, read):
        rows = [{"prompt": p, "ready": ["x (5)", "y (3)", "x (5)"]} for p in PROMPTS]
        report = run_feedback(config(completions_column="ready"), prompts=rows, judges=[judge()])
        assert report["answers"]["ready"] == 36 and report["answers"]["identical"] == 12
        assert {(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in read("pairs")} == {
            ("x (5)", "y (3)")
        }

    def test_principles_are_system_prompts_of_responders_alone(self, config, read):
        principles = [{"name": "calm", "text": "Stay calm."}, {"name": "brief", "text": "Be brief.", "weight": 2}]
        system = {"role": "system", "content": "You are a bot."}
        rows = [{"prompt": "plain"}, {"prompt": [system, {"role": "user", "content": "with system"}]}]
        models, the_judge, student = pool("a", "b"), judge(), responder("s")
        run_feedback(
            config(principles=principles, num_answers=7),
            prompts=rows,
            responders=models,
            student=student,
            judges=[the_judge],
        )
        texts = {"calm": "Stay calm.", "brief": "Be brief."}
        for model in models:
            for request in model.requests:
                told = request.messages[0]
                expected = set(texts.values())
                if request.messages[-1]["content"] == "with system":
                    expected = {f"You are a bot.\n\n{text}" for text in expected}
                assert told["role"] == "system" and told["content"] in expected
        assert [request.messages for request in student.requests] == [
            [{"role": "user", "content": "plain"}],
            rows[1]["prompt"],
        ]
        assert not any(text in str(request.messages) for text in texts.values() for request in the_judge.requests)
        assert {pair["prompt"][0]["content"] for pair in read("pairs")} <= {"plain", "You are a bot."}
        names = Counter(c["principle"]["name"] for row in read("ratings") for c in row["candidates"] if c["principle"])
        assert names.keys() == texts.keys()
        for row in read("ratings"):
            for candidate in row["candidates"]:
                if candidate["principle"]:
                    assert candidate["principle"]["text"] == texts[candidate["principle"]["name"]]

    def test_references_are_for_the_judge_alone(self, config, read):
        models, the_judge = pool("a", "b"), judge()
        rows = [
            {"prompt": "p", "gold": "the reference"},
            {"prompt": "q", "gold": None},
            {"prompt": "r", "gold": ["1", "2"]},
        ]
        run_feedback(
            config(num_answers=2, reference_column="gold"), prompts=rows, responders=models, judges=[the_judge]
        )
        assert not any("the reference" in str(r.messages) for model in models for r in model.requests)
        asked = "".join(request.messages[-1]["content"] for request in the_judge.requests)
        assert asked.count("the reference") == 2 and asked.count("<reference") == 4
        assert [row.get("reference") for row in read("ratings")] == ["the reference", None, "1\n2"]

    def test_our_ratings_can_be_binarized_anew(self, config, read):
        from trl_distill.zephyr import preference_pairs

        run_feedback(config(rejected="second"), prompts=PROMPTS, responders=pool(*"abcd"), judges=[judge()])
        rows, _ = scored_rows(read("ratings"))
        for score in ("mean", "overall"):
            assert preference_pairs(rows, score=score, rejected="second")[0] == read("pairs")

    def test_one_model_works_at_a_time(self, config):
        order = []

        def noted(model):
            original = model.answer
            model.answer = lambda batch: (order.append(model.name), original(batch))[1]
            model.close = lambda: order.append(f"close {model.name}")
            return model

        responders, judges = [noted(m) for m in pool("a", "b")], [noted(judge("j")), noted(judge("k"))]
        run_feedback(config(), prompts=PROMPTS, responders=responders, judges=judges)
        changes = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
        assert changes == ["a", "close a", "b", "close b", "j", "close j", "k", "close k"]


class TestLocalModels:
    @pytest.fixture
    def saved(self, tiny_model, tokenizer, tmp_path):
        def build(name, seed):
            tiny_model(seed=seed).save_pretrained(tmp_path / name)
            tokenizer.save_pretrained(tmp_path / name)
            return str(tmp_path / name)

        yield build
        if LocalChatModel._in_memory is not None:
            LocalChatModel._in_memory.close()

    def test_one_is_in_memory_at_a_time_and_a_stop_changes_nothing(self, config, read, saved, tmp_path):
        folders = {name: saved(name, seed) for seed, name in enumerate(("a", "b", "student"))}

        def models():
            return [LocalChatModel(folders[name], name=name, batch_size=5) for name in "ab"]

        def by_length(request):
            assert LocalChatModel._in_memory is None  # the responders have made room for the judge
            found = re.findall(r"<answer ([A-Z]) (\w+)>\n(.*?)\n</answer", request.messages[-1]["content"], re.DOTALL)
            return json.dumps({"scores": {label: len(text) % 10 + 1 for label, _, text in found}})

        def run(**settings):
            run_feedback(
                config(max_tokens=8, keep_truncated=True, num_answers=3, **settings),
                prompts=PROMPTS[:6],
                responders=models(),
                student=LocalChatModel(folders["student"], name="student", batch_size=5),
                judges=[FunctionChatModel(by_length, "judge")],
            )

        run(output_dir=str(tmp_path / "whole"))
        with pytest.raises(BudgetReached):
            run(max_calls=10)
        run()
        for name in ("ratings", "pairs", "sft"):
            assert read(name) == read(name, "whole")
        assert {c["model"] for row in read("ratings") for c in row["candidates"]} == set(folders)


class TestReport:
    def test_numbers(self, config, read):
        report = run_feedback(config(), prompts=PROMPTS, responders=pool(*"abcd"), judges=[judge()])
        pairs, ratings = read("pairs"), read("ratings")
        margins = sorted(pair["score_chosen"] - pair["score_rejected"] for pair in pairs)
        found = report["pair_statistics"]
        assert found["margin"]["mean"] == pytest.approx(sum(margins) / len(margins))
        assert (found["margin"]["least"], found["margin"]["most"]) == (margins[0], margins[-1])
        edges, counts = found["margin"]["histogram"].values()
        assert sum(counts) == len(pairs) and (edges[0], edges[-1]) == (margins[0], margins[-1])
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            assert count == sum(low <= m < high or m == high == margins[-1] for m in margins)
        longer = [len(p["chosen"][0]["content"]) > len(p["rejected"][0]["content"]) for p in pairs]
        assert found["chosen_longer"] == sum(longer) / len(longer)
        for name in "abcd":
            scores = [c["score"] for row in ratings for c in row["candidates"] if c["model"] == name]
            assert report["models"][name] == {
                "answers": len(scores),
                "scored": len(scores),
                "mean_score": pytest.approx(sum(scores) / len(scores)),
                "chosen": sum(pair["chosen_model"] == name for pair in pairs),
                "rejected": sum(pair["rejected_model"] == name for pair in pairs),
            }

    def test_names_that_look_like_formulas(self, config, tmp_path, picture):
        run_feedback(config(), prompts=PROMPTS, responders=pool("$a_{$", "b"), judges=[judge("$\\no$")])
        assert (tmp_path / "out" / "report.png").exists()

    def test_without_matplotlib(self, config, tmp_path, caplog):
        report = run_feedback(config(), prompts=PROMPTS, responders=pool("a", "b"), judges=[judge()])
        assert report["pairs"]["pairs"] and "pip install trl-distill[bench]" in caplog.text
        assert {path.name for path in (tmp_path / "out").iterdir()} >= {"pairs.jsonl", "report.json"}
        assert not list((tmp_path / "out").glob("report.png*"))


class Scripted(BaseChatModel):
    """Gives the same list of answers to every prompt, one for each draw."""

    name = "scripted"
    identity = {"scripted": 1}

    def __init__(self, *answers):
        self.answers = answers

    def answer(self, batch):
        return [self.answers[request.sample_index] for request in batch]


class TestBadAnswers:
    def test_each_kind_is_counted_and_none_is_judged(self, config, read):
        answers = (
            Completion("good (9)"),
            FailedCall("no server"),
            Completion("  "),
            Completion("cut (8)", "length"),
            Completion("good (9)\n"),
            Completion("bad (2)"),
            Completion("cut (8)"),
        )
        the_judge = judge()
        report = run_feedback(
            config(num_answers=7), prompts=["p", "q"], responders=[Scripted(*answers)], judges=[the_judge]
        )
        counts = {"failed": 1, "empty": 1, "cut_off": 1, "identical": 1, "alone": 0, "unscored": 0, "scored": 3}
        assert report["answers"] == {"ready": 0, "asked": 14} | {name: 2 * n for name, n in counts.items()}
        assert len(the_judge.requests) == 2 * 3
        of_first = read("ratings")[0]["candidates"]
        assert [c["dropped"] for c in of_first] == [None, "failed", "empty", "cut_off", "identical", None, None]
        assert [c["score"] for c in of_first] == [9, None, None, None, None, 2, 8]
        assert [c["text"] for c in of_first][1] is None and all(c["unscored"] for c in of_first[1:5])

    def test_cut_off_answers_on_demand(self, config):
        answers = (Completion("a (3)", "length"), Completion("b (5)", "length"))
        report = run_feedback(
            config(num_answers=2, keep_truncated=True),
            prompts=["p"],
            responders=[Scripted(*answers)],
            judges=[judge()],
        )
        assert report["pairs"]["pairs"] == 1 and report["answers"]["cut_off"] == 0

    def test_fewer_than_two_answers(self, config, read):
        answers = (Completion("a (3)"), FailedCall("no server"))
        the_judge = judge()
        with pytest.raises(ValueError, match="No pair came out .*failed 2, alone 2.*fewer_than_two 2"):
            run_feedback(
                config(num_answers=2), prompts=["p", "q"], responders=[Scripted(*answers)], judges=[the_judge]
            )
        assert not the_judge.requests and len(read("ratings")) == 2 and read("pairs") == []

    def test_all_tied(self, config, read, tmp_path, picture):
        the_judge = FunctionChatModel(lambda request: judge_reply(request.messages).replace("9", "7"), "judge")
        answers = (Completion("a (9)"), Completion("b (9)"))
        settings = dict(prompts=["p", "q"], judges=[the_judge])
        run_feedback(config(num_answers=2), responders=pool("a", "b"), **settings)
        assert read("pairs") and (tmp_path / "out" / "report.png").exists()
        with pytest.raises(ValueError, match="No pair came out .*tied 2"):
            run_feedback(config(num_answers=2), responders=[Scripted(*answers)], **settings)
        assert read("pairs") == read("sft") == [] and not (tmp_path / "out" / "report.png").exists()
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["pairs"]["tied"] == 2 and report["judges"]["judge"]["constant"] is True

    @pytest.mark.parametrize(
        ("reply", "reason"),
        [
            ("I like them all.", "no scores"),
            ('{"scores": {"A": 5', "missing label"),
            ('{"scores": {"A": 11, "B": 3}}', "out of range"),
            ('{"scores": {"A": 5}}', "missing label"),
            ('{"scores": {"A": "five", "B": 3}}', "not a number"),
            ('{"scores": {"A": null, "B": 3}}', "not a number"),
        ],
    )
    def test_a_judge_that_cannot_be_read(self, config, read, reply, reason):
        the_judge = FunctionChatModel(lambda request: reply, "judge")
        with pytest.raises(ValueError, match="No pair came out .*unscored 4"):
            run_feedback(
                config(num_answers=2, max_reasks=1), prompts=["p", "q"], responders=pool("a", "b"), judges=[the_judge]
            )
        for row in read("ratings"):
            assert [c["score"] for c in row["candidates"]] == [None, None]
            assert all(c["unscored"].startswith(f"judge: {reason}") for c in row["candidates"])

    def test_one_judge_that_cannot_be_read_leaves_no_half_mean(self, config, read):
        def rule(request):
            return "no" if "question 3" in request.messages[-1]["content"] else judge_reply(request.messages)

        run_feedback(
            config(max_reasks=0),
            prompts=PROMPTS,
            responders=pool(*"abcd"),
            judges=[judge(), FunctionChatModel(rule, "picky")],
        )
        for i, row in enumerate(read("ratings")):
            for candidate in row["candidates"]:
                assert (candidate["score"] is None) == (candidate["ratings"] == {}) == (i == 3)
        assert len(read("pairs")) <= 11


class TestBudgets:
    def test_a_limit_stops_and_a_higher_one_goes_on(self, config, read, tmp_path):
        models, the_judge = pool("a", "b"), judge()
        settings = dict(prompts=PROMPTS, responders=models, judges=[the_judge])
        for limit in (10, 30, 60):
            with pytest.raises(BudgetReached, match=f"`max_calls` is {limit}"):
                run_feedback(config(max_calls=limit), **settings)
            assert sum(len(m.requests) for m in (*models, the_judge)) == limit
        assert not (tmp_path / "out" / "pairs.jsonl").exists()
        run_feedback(config(max_calls=12 * 8), **settings)
        assert sum(len(m.requests) for m in (*models, the_judge)) == 12 * 8

        run_feedback(config(output_dir=str(tmp_path / "whole")), **settings)
        for name in ("ratings", "pairs", "sft"):
            assert read(name) == read(name, "whole")

    def test_dollars_need_prices(self, config):
        models = [EndpointChatModel("m", "http://localhost:1/v1"), responder("a")]
        with pytest.raises(ValueError, match="the prices of m are not known"):
            run_feedback(config(budget_usd=1.0), prompts=PROMPTS, responders=models, judges=[judge()])
        assert not models[1].requests


class TestDryRun:
    def missing(self, config, **settings):
        report = run_feedback(config(dry_run=True), **settings)
        return {(row["role"], row["model"]): row["calls"] for row in report["missing"]}

    def test_counts_before_in_between_and_after(self, config, tmp_path):
        models, the_judge = pool("a", "b"), judge()
        settings = dict(prompts=PROMPTS, responders=models, judges=[the_judge])
        before = self.missing(config, **settings)
        assert not (tmp_path / "out").exists() and not models[0].requests
        with pytest.raises(BudgetReached):
            run_feedback(config(max_calls=55), **settings)
        in_between = self.missing(config, **settings)
        assert (len(models[0].requests), len(models[1].requests), len(the_judge.requests)) == (24, 24, 7)
        run_feedback(config(), **settings)
        after = self.missing(config, **settings)
        keys = [("responder", "a"), ("responder", "b"), ("judge", "judge")]
        assert [[of_stage[key] for key in keys] for of_stage in (before, in_between, after)] == [
            [24, 24, 48],
            [0, 0, 41],
            [0, 0, 0],
        ]

    def test_costs(self, config):
        model = EndpointChatModel(
            "m", "http://localhost:1/v1", api_key_env="NOT_SET", prompt_price=1e6, completion_price=2e6
        )
        report = run_feedback(
            config(dry_run=True, num_answers=2, max_tokens=10, judge_max_tokens=20, budget_usd=0.0),
            prompts=["p"],
            responders=[model],
            judges=[model],
        )
        asked, judged = report["missing"]
        assert (asked["calls"], asked["completion_tokens"], judged["calls"], judged["completion_tokens"]) == (
            2,
            20,
            2,
            40,
        )
        for row in (asked, judged):
            assert row["cost_usd"] == pytest.approx(row["prompt_tokens"] + 2 * row["completion_tokens"])
        assert judged["prompt_tokens"] > 2 * 2 * 10  # both answers at their longest, in both orders

    def test_local_models_are_not_touched_before_the_first_call(self, config):
        local = LocalChatModel("no/such-model")
        assert self.missing(config, prompts=PROMPTS, responders=[local], student=responder("s"), judges=[local]) == {
            ("responder", "no/such-model"): 36,
            ("responder", "s"): 12,
            ("judge", "no/such-model"): 48,
        }

    def test_more_prompts_than_are_judged_at_a_time(self, config, read, monkeypatch):
        monkeypatch.setattr("trl_distill.zephyr.feedback._PROMPTS_AT_A_TIME", 5)
        settings = dict(prompts=PROMPTS, responders=pool("a", "b"), judges=[judge()])
        assert self.missing(config, **settings)["judge", "judge"] == 48
        run_feedback(config(), **settings)
        parts = read("ratings")
        monkeypatch.undo()
        run_feedback(config(), **settings)
        assert read("ratings") == parts


class TestMistakes:
    @pytest.mark.parametrize(
        ("settings", "arguments", "said"),
        [
            ({}, dict(prompts=PROMPTS, judges=[judge()]), "Nobody answers"),
            ({}, dict(prompts=PROMPTS, responders=pool("a")), "Nobody judges"),
            ({}, dict(responders=pool("a"), judges=[judge()]), "No prompts"),
            ({"output_dir": None}, dict(prompts=PROMPTS, responders=pool("a"), judges=[judge()]), "No place"),
            (
                {},
                dict(prompts=PROMPTS, responders=pool("a", "a"), judges=[judge()]),
                "Two of the responders are called 'a'",
            ),
            ({}, dict(prompts=PROMPTS, responders=pool("a"), student=responder("a"), judges=[judge()]), "called 'a'"),
            ({}, dict(prompts=PROMPTS, responders=pool("a"), judges=[judge(), judge()]), "Two of the judges"),
            (
                {"judge_orders": 0},
                dict(prompts=PROMPTS, responders=pool("a"), judges=[judge()]),
                "`num_orders` must be",
            ),
            ({}, dict(prompts=[], responders=pool("a"), judges=[judge()]), "the data hold no rows"),
        ],
    )
    def test_what_is_refused_before_the_first_call(self, config, settings, arguments, said):
        with pytest.raises(ValueError, match=said):
            run_feedback(config(**settings), **arguments)
        assert not any(model.requests for model in arguments.get("responders", []))

    def test_one_model_under_two_names(self, config):
        models = [EndpointChatModel("m", "http://localhost:1/v1", name=name) for name in "ab"]
        with pytest.raises(ValueError, match="a and b are one model"):
            run_feedback(config(), prompts=PROMPTS, responders=models, judges=[judge()])
        with pytest.raises(ValueError, match="a and b are one model.*twice the weight"):
            run_feedback(config(), prompts=PROMPTS, responders=pool("x"), judges=models)

    def test_two_servers_with_one_name_of_a_model(self, config):
        here, there = (EndpointChatModel("m", f"http://{host}:1/v1", name=host) for host in ("here", "there"))
        with pytest.raises(ValueError, match="is asked at http://here:1/v1 and at http://there:1/v1. Set `revision`"):
            run_feedback(config(), prompts=PROMPTS, responders=[here], judges=[there])

    def test_the_store_is_free_again_after_an_error(self, config):
        with pytest.raises(BudgetReached):
            run_feedback(config(max_calls=3), prompts=PROMPTS, responders=pool("a"), judges=[judge()])
        CallStore(f"{config().output_dir}/calls.sqlite").close()

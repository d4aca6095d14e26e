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
import random
import re

import pytest
from rules import PROMPTS, answer, judge, judge_reply, pool, quality, responder

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
from trl_distill.zephyr import preference_pairs, run_feedback, scored_rows
from trl_distill.zephyr.report import call_statistics


FILES = ("ratings.jsonl", "pairs.jsonl", "sft.jsonl", "report.json", "report.png")


class TestRun:
    def test_pairs_follow_the_rule(self, feedback, read):
        report = feedback("abcdef", rejected="min")
        ratings, pairs, sft = read("ratings"), read("pairs"), read("sft")
        assert [row["prompt"][0]["content"] for row in ratings] == PROMPTS
        for row in ratings:
            assert len({candidate["model"] for candidate in row["candidates"]}) == 4
            for candidate in row["candidates"]:
                assert candidate["text"] == answer(candidate["model"], row["prompt"], 0)
                assert candidate["score"] == candidate["ratings"]["overall quality"] == quality(candidate["text"])
                numbers = candidate["judges"]["judge"]["overall quality"]
                for place in ("slot", "order"):
                    assert {number[place] for number in numbers} == set(range(4))
        by_id = {row["prompt_id"]: row for row in ratings}
        for pair in pairs:
            scores = [candidate["score"] for candidate in by_id[pair["prompt_id"]]["candidates"]]
            assert quality(pair["chosen"][0]["content"]) == pair["score_chosen"] == max(scores)
            assert quality(pair["rejected"][0]["content"]) == pair["score_rejected"] == min(scores)
            assert pair["chosen"][0]["content"].startswith(pair["chosen_model"] + " on")
        assert [row["messages"] for row in sft] == [pair["prompt"] + pair["chosen"] for pair in pairs]
        assert len(pairs) == report["pairs"]["pairs"] == 12 - report["pairs"]["tied"]

    def test_the_ledger(self, feedback):
        """Calls are prompts x answers, and prompts x orders x aspects for the judge."""
        models, the_judge = pool("a", "b", "c"), judge()
        settings = dict(num_answers=5, judge_orders=2, aspects="ultrafeedback", judge_scale=[1, 10])
        report = feedback(models, [the_judge], **settings)
        assert sum(len(model.requests) for model in models) == 12 * 5
        assert len(the_judge.requests) == 12 * 2 * 4
        calls = {(row["role"], row["model"]): row["calls"] for row in report["ledger"]}
        assert calls == {("responder", m.name): len(m.requests) for m in models} | {("judge", "judge"): 12 * 2 * 4}
        assert report["answers"]["asked"] == report["answers"]["scored"] == 60

    @pytest.mark.parametrize(("mode", "calls"), [("absolute", 12 * 3), ("listwise", 12 * 2)])
    def test_modes(self, feedback, mode, calls):
        """Alone, each answer is asked about; in a list, all of them in each order."""
        the_judge = judge()
        feedback("ab", [the_judge], num_answers=3, judge_mode=mode, judge_orders={"listwise": 2}.get(mode))
        assert len(the_judge.requests) == calls

    def test_what_was_called_pairwise(self, config):
        with pytest.raises(ValueError, match="got 'pairwise'. What was called pairwise is listwise with two answers"):
            config(judge_mode="pairwise", num_answers=2)

    def test_a_second_run_asks_nothing_and_writes_the_same(self, feedback, tmp_path, picture):
        models, judges = pool("a", "b"), [judge(), judge("other", bonus=(3, 2, 1, 0))]
        feedback(models, judges, judge_scale=[1, 13])
        before = {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
        for model in (*models, *judges):
            model.requests.clear()
        for name in FILES:
            (tmp_path / "out" / name).unlink()
        feedback(models, judges, judge_scale=[1, 13])
        assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == before
        assert [model.requests for model in (*models, *judges)] == [[]] * 4
        assert not list((tmp_path / "out").glob("*.new"))

    def test_other_settings_reuse_the_calls(self, feedback, read):
        models, the_judge = pool("a", "b"), judge()
        feedback(models, [the_judge])
        one_a_prompt = len(read("pairs"))
        asked = [len(model.requests) for model in (*models, the_judge)]
        feedback(models, [the_judge], rejected="all_pairs")
        assert len(read("pairs")) > one_a_prompt and len(read("sft")) == one_a_prompt
        assert [len(model.requests) for model in (*models, the_judge)] == asked
        feedback(models, [the_judge], [*PROMPTS, "one more"])
        more = [len(model.requests) - before for model, before in zip((*models, the_judge), asked, strict=True)]
        assert more == [2, 2, 4]

    def test_neither_order_nor_shards_change_a_pair(self, feedback, config, read):
        def pairs(rows, folder):
            feedback("abc", prompts=rows, output_dir=folder)
            return {row["prompt_id"]: row for row in map(json.loads, open(f"{folder}/pairs.jsonl"))}

        whole = pairs(PROMPTS, config().output_dir)
        shuffled = random.Random(0).sample(PROMPTS, 12)
        assert pairs(shuffled, config().output_dir + "-shuffled") == whole
        shards = pairs(PROMPTS[::2], config().output_dir + "-1") | pairs(PROMPTS[1::2], config().output_dir + "-2")
        assert shards == whole

    def test_a_biased_judge_is_seen_and_cancels_out(self, feedback, candidates):
        """With all orders each answer gets each bonus once."""
        report = feedback(judges=[judge(bonus=(9, 3, 1, 0))], judge_scale=[1, 20])
        means = [row["mean"] for row in report["judges"]["judge"]["position"]["by_slot"]]
        assert [mean - means[-1] for mean in means] == pytest.approx([9, 3, 1, 0])
        for candidate in candidates():
            assert candidate["score"] == quality(candidate["text"]) + 13 / 4

    def test_several_judges(self, feedback, candidates):
        report = feedback(judges=[judge(), judge("kind", bonus=(10,) * 4)], judge_scale=[1, 20])
        assert list(report["judges"]) == ["judge", "kind"]
        for candidate in candidates():
            assert candidate["score"] == quality(candidate["text"]) + 5
            assert list(candidate["judges"]) == ["judge", "kind"]

    def test_weights_of_aspects(self, feedback, candidates):
        def rule(request):
            reply = json.loads(judge_reply(request.messages))
            if "on length" in request.messages[-1]["content"]:
                reply["scores"] = dict.fromkeys(reply["scores"], 1)
            return json.dumps(reply)

        aspects = [{"name": "content", "guideline": "..."}, {"name": "length", "guideline": "...", "weight": 3}]
        feedback(judges=[FunctionChatModel(rule, "judge")], aspects=aspects)
        for candidate in candidates():
            assert candidate["score"] == (quality(candidate["text"]) + 3) / 4

    def test_the_student_and_ready_answers(self, feedback, read):
        rows = [{"prompt": p, "ready": [f"ready for {p} (5)"], "who": ["gold"]} for p in PROMPTS]
        student = responder("student")
        columns = dict(completions_column="ready", models_column="who")
        feedback("ab", prompts=rows, student=student, num_answers=2, **columns)
        assert len(student.requests) == 12
        for row in read("ratings"):
            assert [candidate["model"] for candidate in row["candidates"][:2]] == ["gold", "student"]
            assert len(row["candidates"]) == 3 and row["candidates"][2]["model"] in "ab"

    def test_ready_answers_alone(self, feedback, read):
        rows = [{"prompt": p, "ready": ["x (5)", "y (3)", "x (5)"]} for p in PROMPTS]
        report = feedback("", prompts=rows, completions_column="ready")
        assert report["answers"]["ready"] == 36 and report["answers"]["identical"] == 12
        pairs = {(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in read("pairs")}
        assert pairs == {("x (5)", "y (3)")}

    def test_principles_are_system_prompts_of_responders_alone(self, feedback, read, candidates):
        principles = [{"name": "calm", "text": "Stay calm."}, {"name": "brief", "text": "Be brief.", "weight": 2}]
        system = {"role": "system", "content": "You are a bot."}
        rows = [{"prompt": "plain"}, {"prompt": [system, {"role": "user", "content": "with system"}]}]
        models, the_judge, student = pool("a", "b"), judge(), responder("s")
        feedback(models, [the_judge], rows, student, principles=principles, num_answers=7)
        texts = {"calm": "Stay calm.", "brief": "Be brief."}
        for model in models:
            for request in model.requests:
                told = request.messages[0]
                expected = set(texts.values())
                if request.messages[-1]["content"] == "with system":
                    expected = {f"You are a bot.\n\n{text}" for text in expected}
                assert told["role"] == "system" and told["content"] in expected
        plain = [{"role": "user", "content": "plain"}]
        assert [request.messages for request in student.requests] == [plain, rows[1]["prompt"]]
        assert not any(text in str(request.messages) for text in texts.values() for request in the_judge.requests)
        assert {pair["prompt"][0]["content"] for pair in read("pairs")} <= {"plain", "You are a bot."}
        given = [candidate["principle"] for candidate in candidates() if candidate["principle"]]
        assert {(principle["name"], principle["text"]) for principle in given} == set(texts.items())

    def test_references_are_for_the_judge_alone(self, feedback, read):
        models, the_judge = pool("a", "b"), judge()
        golds = {"p": "the reference", "q": None, "r": ["1", "2"]}
        rows = [{"prompt": prompt, "gold": gold} for prompt, gold in golds.items()]
        feedback(models, [the_judge], rows, num_answers=2, reference_column="gold")
        assert not any("the reference" in str(r.messages) for model in models for r in model.requests)
        asked = "".join(request.messages[-1]["content"] for request in the_judge.requests)
        assert asked.count("the reference") == 2 and asked.count("<reference") == 4
        assert [row.get("reference") for row in read("ratings")] == ["the reference", None, "1\n2"]

    def test_our_ratings_can_be_binarized_anew(self, feedback, read):
        feedback(rejected="second")
        rows, _ = scored_rows(read("ratings"))
        for score in ("mean", "overall"):
            assert preference_pairs(rows, score=score, rejected="second")[0] == read("pairs")

    def test_one_model_works_at_a_time(self, feedback):
        order = []

        def noted(model):
            original = model.answer
            model.answer = lambda batch: (order.append(model.name), original(batch))[1]
            model.close = lambda: order.append(f"close {model.name}")
            return model

        responders, judges = [noted(m) for m in pool("a", "b")], [noted(judge("j")), noted(judge("k"))]
        feedback(responders, judges)
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


class Scripted(BaseChatModel):
    """Gives the same list of answers to every prompt, one for each draw."""

    name = "scripted"
    identity = {"scripted": 1}

    def __init__(self, *answers):
        self.answers = answers

    def answer(self, batch):
        return [self.answers[request.sample_index] for request in batch]


class TestBadAnswers:
    def test_each_kind_is_counted_and_none_is_judged(self, feedback, read):
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
        report = feedback([Scripted(*answers)], [the_judge], ["p", "q"], num_answers=7)
        counts = {"failed": 1, "empty": 1, "cut_off": 1, "identical": 1, "alone": 0, "unscored": 0, "scored": 3}
        assert report["answers"] == {"ready": 0, "asked": 14} | {name: 2 * n for name, n in counts.items()}
        assert len(the_judge.requests) == 2 * 3
        of_first = read("ratings")[0]["candidates"]
        assert [c["dropped"] for c in of_first] == [None, "failed", "empty", "cut_off", "identical", None, None]
        assert [c["score"] for c in of_first] == [9, None, None, None, None, 2, 8]
        assert [c["text"] for c in of_first][1] is None and all(c["unscored"] for c in of_first[1:5])

    def test_cut_off_answers_on_demand(self, feedback):
        answers = (Completion("a (3)", "length"), Completion("b (5)", "length"))
        report = feedback([Scripted(*answers)], prompts=["p"], num_answers=2, keep_truncated=True)
        assert report["pairs"]["pairs"] == 1 and report["answers"]["cut_off"] == 0

    def test_fewer_than_two_answers(self, feedback, read):
        answers = (Completion("a (3)"), FailedCall("no server"))
        the_judge = judge()
        with pytest.raises(ValueError, match="No pair came out .*failed 2, alone 2.*fewer_than_two 2"):
            feedback([Scripted(*answers)], [the_judge], ["p", "q"], num_answers=2)
        assert not the_judge.requests and len(read("ratings")) == 2 and read("pairs") == []

    def test_all_tied(self, feedback, read, tmp_path, picture):
        the_judge = FunctionChatModel(lambda request: judge_reply(request.messages).replace("9", "7"), "judge")
        answers = (Completion("a (9)"), Completion("b (9)"))
        settings = dict(prompts=["p", "q"], judges=[the_judge], num_answers=2)
        feedback("ab", **settings)
        assert read("pairs") and (tmp_path / "out" / "report.png").exists()
        with pytest.raises(ValueError, match="No pair came out .*tied 2"):
            feedback([Scripted(*answers)], **settings)
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
    def test_a_judge_that_cannot_be_read(self, feedback, read, reply, reason):
        the_judge = FunctionChatModel(lambda request: reply, "judge")
        with pytest.raises(ValueError, match="No pair came out .*unscored 4"):
            feedback("ab", [the_judge], ["p", "q"], num_answers=2, max_reasks=1)
        for row in read("ratings"):
            assert [c["score"] for c in row["candidates"]] == [None, None]
            assert all(c["unscored"].startswith(f"judge: {reason}") for c in row["candidates"])

    def test_one_judge_that_cannot_be_read_leaves_no_half_mean(self, feedback, read):
        def rule(request):
            return "no" if "question 3" in request.messages[-1]["content"] else judge_reply(request.messages)

        feedback(judges=[judge(), FunctionChatModel(rule, "picky")], max_reasks=0)
        for i, row in enumerate(read("ratings")):
            for candidate in row["candidates"]:
                assert (candidate["score"] is None) == (candidate["ratings"] == {}) == (i == 3)
        assert len(read("pairs")) <= 11


class TestBudgets:
    def test_a_limit_stops_and_a_higher_one_goes_on(self, feedback, read, tmp_path):
        models, the_judge = pool("a", "b"), judge()
        for limit in (10, 30, 60):
            with pytest.raises(BudgetReached, match=f"`max_calls` is {limit}"):
                feedback(models, [the_judge], max_calls=limit)
            assert sum(len(m.requests) for m in (*models, the_judge)) == limit
        assert not (tmp_path / "out" / "pairs.jsonl").exists()
        feedback(models, [the_judge], max_calls=12 * 8)
        assert sum(len(m.requests) for m in (*models, the_judge)) == 12 * 8

        feedback(models, [the_judge], output_dir=str(tmp_path / "whole"))
        for name in ("ratings", "pairs", "sft"):
            assert read(name) == read(name, "whole")

    def test_dollars_need_prices(self, feedback):
        models = [EndpointChatModel("m", "http://localhost:1/v1"), responder("a")]
        with pytest.raises(ValueError, match="the prices of m are not known"):
            feedback(models, budget_usd=1.0)
        assert not models[1].requests


class TestDryRun:
    def missing(self, feedback, *models, **others):
        report = feedback(*models, dry_run=True, **others)
        return {(row["role"], row["model"]): row["calls"] for row in report["missing"]}

    def test_counts_before_in_between_and_after(self, feedback, tmp_path):
        models, the_judge = pool("a", "b"), judge()
        before = self.missing(feedback, models, [the_judge])
        assert not (tmp_path / "out").exists() and not models[0].requests
        with pytest.raises(BudgetReached):
            feedback(models, [the_judge], max_calls=55)
        in_between = self.missing(feedback, models, [the_judge])
        assert (len(models[0].requests), len(models[1].requests), len(the_judge.requests)) == (24, 24, 7)
        feedback(models, [the_judge])
        after = self.missing(feedback, models, [the_judge])
        keys = [("responder", "a"), ("responder", "b"), ("judge", "judge")]
        calls = [[of_stage[key] for key in keys] for of_stage in (before, in_between, after)]
        assert calls == [[24, 24, 48], [0, 0, 41], [0, 0, 0]]

    def test_costs(self, feedback):
        prices = dict(prompt_price=1e6, completion_price=2e6)
        model = EndpointChatModel("m", "http://localhost:1/v1", api_key_env="NOT_SET", **prices)
        settings = dict(num_answers=2, max_tokens=10, judge_max_tokens=20, budget_usd=0.0)
        asked, judged = feedback([model], [model], ["p"], dry_run=True, **settings)["missing"]
        assert [(row["calls"], row["completion_tokens"]) for row in (asked, judged)] == [(2, 20), (2, 40)]
        for row in (asked, judged):
            assert row["cost_usd"] == pytest.approx(row["prompt_tokens"] + 2 * row["completion_tokens"])
        assert judged["prompt_tokens"] > 2 * 2 * 10  # both answers at their longest, in both orders

    def test_local_models_are_not_touched_before_the_first_call(self, feedback):
        local = LocalChatModel("no/such-model")
        assert self.missing(feedback, [local], [local], student=responder("s")) == {
            ("responder", "no/such-model"): 36,
            ("responder", "s"): 12,
            ("judge", "no/such-model"): 48,
        }

    def test_more_prompts_than_are_judged_at_a_time(self, feedback, read, monkeypatch):
        monkeypatch.setattr("trl_distill.zephyr.feedback._PROMPTS_AT_A_TIME", 5)
        assert self.missing(feedback, "ab")["judge", "judge"] == 48
        feedback("ab")
        parts = read("ratings")
        monkeypatch.undo()
        feedback("ab")
        assert read("ratings") == parts


class TestMistakes:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            (dict(responders=""), "Nobody answers"),
            (dict(judges=[]), "Nobody judges"),
            (dict(prompts=None), "No prompts"),
            (dict(prompts=[]), "the data hold no rows"),
            (dict(output_dir=None), "No place"),
            (dict(responders="aa"), "Two of the responders are called 'a'"),
            (dict(student=responder("a")), "called 'a'"),
            (dict(judges=[judge(), judge()]), "Two of the judges"),
            (dict(judge_orders=0), "`num_orders` must be"),
        ],
    )
    def test_what_is_refused_before_the_first_call(self, feedback, changes, said):
        models = pool(*changes.get("responders", "a"))
        with pytest.raises(ValueError, match=said):
            feedback(**changes | {"responders": models})
        assert not any(model.requests for model in models)

    def test_one_model_under_two_names(self, feedback):
        models = [EndpointChatModel("m", "http://localhost:1/v1", name=name) for name in "ab"]
        with pytest.raises(ValueError, match="a and b are one model"):
            feedback(models)
        with pytest.raises(ValueError, match="a and b are one model.*twice the weight"):
            feedback("x", models)

    def test_two_servers_with_one_name_of_a_model(self, feedback):
        here, there = (EndpointChatModel("m", f"http://{host}:1/v1", name=host) for host in ("here", "there"))
        with pytest.raises(ValueError, match="is asked at http://here:1/v1 and at http://there:1/v1. Set `revision`"):
            feedback([here], [there])

    def test_the_store_is_free_again_after_an_error(self, feedback, config):
        with pytest.raises(BudgetReached):
            feedback("a", max_calls=3)
        CallStore(f"{config().output_dir}/calls.sqlite").close()


class TestReport:
    def test_numbers(self, feedback, read):
        report = feedback()
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

    def test_what_was_asked_and_how_it_ended(self, feedback):
        """A cut-off answer, a failed call, and a judge whose first reply to each question cannot be read."""

        def reply(request):
            readable = judge_reply(request.messages)
            return readable if request.sample_index % 2 else "I would rather not."

        answers = (Completion("a (3)"), Completion("b (5)"), Completion("c (7)", "length"), FailedCall("no server"))
        report = feedback([Scripted(*answers)], [FunctionChatModel(reply, "judge")], ["p"], num_answers=4)
        asked, judged = call_statistics(report)
        assert asked["role"] == "responder" and asked["calls"] == 4
        assert (asked["answered"], asked["failed"], asked["cut_off"], asked["unreadable"]) == (3, 1, 1, 0)
        assert judged["unreadable"] == judged["answered"] / 2 == report["judges"]["judge"]["reasks"] > 0

    def test_names_that_look_like_formulas(self, feedback, tmp_path, picture):
        feedback(pool("$a_{$", "b"), [judge("$\\no$")])
        assert (tmp_path / "out" / "report.png").exists()

    def test_without_matplotlib(self, feedback, tmp_path, caplog):
        report = feedback("ab")
        assert report["pairs"]["pairs"] and "pip install trl-distill[plot]" in caplog.text
        assert {path.name for path in (tmp_path / "out").iterdir()} >= {"pairs.jsonl", "report.json"}
        assert not list((tmp_path / "out").glob("report.png*"))

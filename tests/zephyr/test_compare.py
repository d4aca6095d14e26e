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
"""Comparisons of models that follow rules, so that every verdict is known."""

import json
import re
from collections import Counter

import pytest
from rules import PROMPTS, answer, judge, judge_reply, pool, quality

from tests.commands import write_rows
from trl_distill.chat import BudgetReached, Completion, FailedCall, FunctionChatModel, LocalChatModel
from trl_distill.chat.models import BaseChatModel
from trl_distill.zephyr import CompareConfig, run_compare


FILES = ("pairs.jsonl", "report.json", "report.png", "answers/dpo.jsonl", "answers/sft.jsonl")
TWO_TURNS = [
    {"question_id": i, "category": "even" if i % 2 == 0 else "odd", "turns": [f"first {i}", f"second {i}"]}
    for i in range(4)
]


class Scripted(BaseChatModel):
    """Gives the answers of a list, one to each prompt of `PROMPTS`."""

    def __init__(self, name, *answers):
        self.name, self.answers = name, dict(zip(PROMPTS, answers, strict=False))

    @property
    def identity(self):
        return {"scripted": self.name}

    def answer(self, batch):
        given = [self.answers[request.messages[-1]["content"]] for request in batch]
        return [Completion(text) if isinstance(text, str) else text for text in given]


class TestRun:
    def test_verdicts_follow_the_rule(self, compare, read):
        report = compare()
        expected = []
        for prompt, pair in zip(PROMPTS, read("pairs"), strict=True):
            message = [{"role": "user", "content": prompt}]
            assert pair["prompt"] == message
            assert pair["answers"] == {name: answer(name, message, 0) for name in ("dpo", "sft")}
            scores = {name: quality(text) for name, text in pair["answers"].items()}
            assert pair["scores"] == scores
            assert [order["scores"] for order in pair["orders"]] == [scores] * 2
            assert {order["first"] for order in pair["orders"]} == {"dpo", "sft"}
            margin = scores["dpo"] - scores["sft"]
            expected.append("win" if margin > 0 else "loss" if margin < 0 else "tie")
            assert pair["verdict"] == expected[-1]
        counts, row = Counter(expected), report["win_rate"]
        assert (row["wins"], row["ties"], row["losses"]) == tuple(counts[v] for v in ("win", "tie", "loss"))
        assert row["win_rate"] == (counts["win"] + counts["tie"] / 2) / 12
        assert (report["model"], report["baseline"]) == ("dpo", "sft")
        assert report["orders"]["agree"] == 12 and report["warnings"] == []

    def test_calls(self, compare):
        """An answer of each model to each prompt, and both orders of each pair."""
        models, referee = pool("dpo", "sft"), judge()
        report = compare(models, referee)
        assert [len(model.requests) for model in (*models, referee)] == [12, 12, 24]
        calls = {(row["role"], row["model"]): row["calls"] for row in report["ledger"]}
        assert calls == {("contestant", "dpo"): 12, ("contestant", "sft"): 12, ("judge", "judge"): 24}

    def test_the_other_way_round(self, compare):
        """It is the same requests, and one minus the win rate."""
        models, referee = pool("dpo", "sft"), judge()
        there = compare(models, referee)["win_rate"]
        asked = [len(model.requests) for model in (*models, referee)]
        back = compare(models[::-1], referee)["win_rate"]
        assert [len(model.requests) for model in (*models, referee)] == asked
        assert there["win_rate"] != 0.5 and back["win_rate"] == pytest.approx(1 - there["win_rate"])
        assert back["interval"] == pytest.approx([1 - bound for bound in reversed(there["interval"])])
        assert (back["wins"], back["losses"]) == (there["losses"], there["wins"])

    @pytest.mark.parametrize(("bonus", "place"), [((20, 0), "first"), ((0, 20), "last")])
    def test_a_judge_that_looks_at_the_place_alone(self, compare, bonus, place):
        """Without the qualities all pairs are ties, and the report says why."""

        def rule(request):
            labels = json.loads(judge_reply(request.messages))["scores"]
            return json.dumps({"scores": {label: 1 + add for label, add in zip(labels, bonus, strict=True)}})

        report = compare(referee=FunctionChatModel(rule, "judge"), judge_scale=[1, 30])
        assert report["win_rate"]["ties"] == 12 and report["win_rate"]["win_rate"] == 0.5
        assert report["orders"][f"{place}_place"] == 12 and report["orders"]["agreement"] == 0
        assert report["judge"]["position"]["first_minus_last"] == bonus[0] - bonus[1]
        warning, of_judge = report["warnings"]
        assert of_judge.startswith("All 24 scores are 11")
        assert (
            f"In 12 of 12 judged pairs the two orders contradict each other, mostly for the answer in {place}"
            in warning
        )

    def test_a_bonus_for_the_place_cancels_out(self, compare):
        plain = compare()
        biased = compare(referee=judge("biased", bonus=(3, 0)), judge_scale=[1, 13], output_dir="biased")
        assert biased["win_rate"] == plain["win_rate"]
        assert biased["orders"]["agree"] < plain["orders"]["agree"]

    def test_categories_and_references(self, compare):
        rows = [{"prompt": p, "category": "ab"[i % 2], "gold": f"gold {i}"} for i, p in enumerate(PROMPTS)]
        models, referee = pool("dpo", "sft"), judge()
        report = compare(models, referee, rows, reference_column="gold")
        parts = report["categories"]
        assert list(parts) == ["a", "b"] and all(part["pairs"] == 6 for part in parts.values())
        for name in ("wins", "ties", "losses"):
            assert sum(part[name] for part in parts.values()) == report["win_rate"][name]
        assert all("<reference" in request.messages[-1]["content"] for request in referee.requests)
        assert not any("gold" in str(request.messages) for model in models for request in model.requests)

    def test_two_turns(self, compare, read, tmp_path):
        """The second turn follows the model's own first answer, and the judge sees both turns in one request."""
        models, referee = pool("dpo", "sft"), judge()
        report = compare(models, referee, TWO_TURNS)
        assert [len(model.requests) for model in (*models, referee)] == [8, 8, 8]
        for model in models:
            first = {r.messages[0]["content"]: answer(model.name, r.messages, 0) for r in model.requests[:4]}
            for request in model.requests[4:]:
                question, own, follow_up = (message["content"] for message in request.messages)
                assert own == first[question] and follow_up == question.replace("first", "second")
        pair = read("pairs")[0]
        assert [message["content"] for message in pair["prompt"]] == ["first 0", "second 0"]
        assert re.search(r"\[Answer to message 1\]\ndpo .*\n\n\[Answer to message 2\]\ndpo ", pair["answers"]["dpo"])
        assert report["win_rate"]["pairs"] == 4 and report["categories"]["odd"]["pairs"] == 2
        rows = read("answers/dpo")
        assert [row["question_id"] for row in rows] == [0, 1, 2, 3]
        assert [len(row["choices"][0]["turns"]) for row in rows] == [2] * 4

    def test_a_model_against_ready_answers(self, compare, tmp_path, read):
        """What one run has written is the baseline of the next one."""
        before = compare()
        baseline = {"baseline": str(tmp_path / "out" / "answers" / "sft.jsonl")}
        [dpo, _] = pool("dpo", "sft")
        report = compare([dpo], answers=baseline, output_dir="next")
        assert report["win_rate"] == before["win_rate"] and report["baseline"] == "baseline"
        assert report["answers"]["baseline"] == {"answers": 12, "failed": 0, "cut_off": 0, "empty": 0, "unused": 0}
        assert not (tmp_path / "next" / "answers" / "baseline.jsonl").exists()

    def test_two_files(self, compare, tmp_path):
        rows = {
            name: [{"instruction": p, "output": f"{name} ({n})", "generator": name} for p in PROMPTS]
            for name, n in (("dpo", 7), ("sft", 6))
        }
        answers = {}
        for name in rows:
            (tmp_path / f"{name}.json").write_text(json.dumps(rows[name]))
            answers[name] = str(tmp_path / f"{name}.json")
        referee = judge()
        report = compare([], referee, None, dataset_name=answers["dpo"], answers=answers)
        assert report["win_rate"]["win_rate"] == 1.0 and len(referee.requests) == 24

    def test_one_prompt(self, compare):
        report = compare([Scripted("dpo", "a (9)"), Scripted("sft", "b (1)")], prompts=PROMPTS[:1])
        assert report["win_rate"]["win_rate"] == 1.0
        assert report["win_rate"]["interval"] == pytest.approx([0.2065, 1.0], abs=1e-4)  # which says nothing much

    def test_a_second_run_asks_nothing_and_writes_the_same(self, compare, tmp_path, picture):
        models, referee = pool("dpo", "sft"), judge()
        compare(models, referee)
        before = {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
        for name in FILES:
            (tmp_path / "out" / name).unlink()
        compare(models, referee)
        assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == before
        assert [len(model.requests) for model in (*models, referee)] == [12, 12, 24]


class TestBadAnswers:
    def test_each_kind(self, compare, read):
        dpo = Scripted("dpo", "a (9)", FailedCall("no server"), "same (5)", Completion("cut (3)", "length"), "c (4)")
        sft = Scripted("sft", "b (2)", "b (2)", "same (5)\n", "d (6)", " ")

        def rule(request):  # an answer without text is worth nothing
            prompt = request.messages[-1]["content"]
            return judge_reply([{"content": prompt.replace(">\n \n</answer", ">\n(1)\n</answer")}])

        referee = FunctionChatModel(rule, "judge")
        report = compare([dpo, sft], referee, PROMPTS[:5])
        assert [pair["verdict"] for pair in read("pairs")] == ["win", None, "tie", "loss", "win"]
        assert report["win_rate"]["win_rate"] == 2.5 / 4 and report["win_rate"]["unscored"] == 1
        assert report["unscored"] == {"no answer": 1} and report["identical"] == 1
        assert read("pairs")[1]["unscored"] == "no answer: dpo: no server"
        assert read("pairs")[1]["answers"] == {"dpo": None, "sft": "b (2)"}
        assert report["judge"]["calls"] == 3 * 2  # the failed and the equal ones are not judged
        assert report["answers"]["dpo"] == {"answers": 4, "failed": 1, "cut_off": 1, "empty": 0}
        assert report["answers"]["sft"] == {"answers": 5, "failed": 0, "cut_off": 0, "empty": 1}
        assert len(read("answers/dpo")) == 4

    def test_one_order_that_cannot_be_read_leaves_no_verdict(self, compare, read):
        """The other order alone would hold the bonus of its places."""

        def rule(request):
            text = request.messages[-1]["content"]
            if "question 3" in text and text.index("dpo on") < text.index("sft on"):
                return "Both are fine."
            return judge_reply(request.messages)

        report = compare(referee=FunctionChatModel(rule, "judge"))
        pair = read("pairs")[3]
        assert pair["verdict"] is None and pair["unscored"].startswith("no scores: ")
        assert pair["scores"] == {"dpo": None, "sft": None} and not pair["identical"]
        assert [order["first"] for order in pair["orders"]] == ["sft"]
        assert report["unscored"] == {"no scores": 1} and report["win_rate"]["unscored"] == 1
        scored = report["win_rate"]["wins"] + report["win_rate"]["ties"] + report["win_rate"]["losses"]
        assert scored == report["orders"]["judged"] == 11

    def test_no_verdict_at_all(self, compare, tmp_path, picture):
        compare()
        assert (tmp_path / "out" / "report.png").exists()
        with pytest.raises(
            ValueError, match="No pair has a verdict .no scores 12.. Look at `unscored` in .*pairs.jsonl"
        ):
            compare(referee=FunctionChatModel(lambda request: "no", "mute"), max_reasks=0)
        assert not (tmp_path / "out" / "report.png").exists()
        assert json.loads((tmp_path / "out" / "report.json").read_text())["win_rate"]["win_rate"] is None

    def test_a_judge_that_tells_nothing_apart(self, compare):
        report = compare(referee=FunctionChatModel(lambda request: '{"scores": {"A": 7, "B": 7}}', "seven"))
        assert report["win_rate"]["win_rate"] == 0.5
        assert report["warnings"] == ["All 24 scores are 7: this judge tells nothing apart."]


class TestBudgetAndDryRun:
    def test_a_limit_stops_and_a_higher_one_goes_on(self, compare, read, tmp_path):
        models, referee = pool("dpo", "sft"), judge()
        for limit in (10, 30):
            with pytest.raises(BudgetReached, match=f"`max_calls` is {limit}"):
                compare(models, referee, max_calls=limit)
            assert sum(len(model.requests) for model in (*models, referee)) == limit
        assert not (tmp_path / "out" / "pairs.jsonl").exists()
        compare(models, referee, max_calls=48)
        assert sum(len(model.requests) for model in (*models, referee)) == 48
        compare(models, referee, output_dir="whole")
        assert read("pairs") == read("pairs", "whole")

    def test_dry_run(self, compare, tmp_path):
        def missing(*arguments):
            rows = compare(*arguments, dry_run=True)["missing"]
            return {(row["stage"], row["model"]): row["calls"] for row in rows}

        models, referee = pool("dpo", "sft"), judge()
        before = missing(models, referee, TWO_TURNS)
        of_both = {(stage, name): 4 for name in ("dpo", "sft") for stage in ("answers", "answers, turn 2")}
        assert before == of_both | {("verdicts", "judge"): 8}
        assert not (tmp_path / "out").exists() and not models[0].requests
        with pytest.raises(BudgetReached):
            compare(models, referee, TWO_TURNS, max_calls=19)
        assert missing(models, referee, TWO_TURNS) == dict.fromkeys(of_both, 0) | {("verdicts", "judge"): 5}
        compare(models, referee, TWO_TURNS)
        assert set(missing(models, referee, TWO_TURNS).values()) == {0}
        assert [len(model.requests) for model in (*models, referee)] == [8, 8, 8]

    def test_local_models_are_not_touched_before_the_first_call(self, compare):
        local = [LocalChatModel("no/such-model", name="dpo"), LocalChatModel("no/other-model", name="sft")]
        assert [row["calls"] for row in compare(local, local[0], dry_run=True)["missing"]] == [12, 12, 24]


class TestLocalModels:
    def test_two_models_and_a_stop(self, compare, read, save_model):
        folders = {name: save_model(name, seed) for seed, name in enumerate(("dpo", "sft"))}

        def by_length(request):
            assert LocalChatModel._in_memory is None  # the models have made room for the judge
            found = re.findall(r"<answer ([A-Z]) (\w+)>\n(.*?)\n</answer", request.messages[-1]["content"], re.DOTALL)
            return json.dumps({"scores": {label: len(text) % 10 + 1 for label, _, text in found}})

        def run(**settings):
            models = [LocalChatModel(folders[name], name=name, batch_size=5) for name in folders]
            return compare(models, FunctionChatModel(by_length, "judge"), PROMPTS[:6], max_tokens=8, **settings)

        whole = run(output_dir="whole")
        with pytest.raises(BudgetReached):
            run(max_calls=7)
        report = run()
        assert read("pairs") == read("pairs", "whole") and report["win_rate"] == whole["win_rate"]
        assert report["answers"]["dpo"]["cut_off"] > 0 and report["win_rate"]["pairs"] == 6

    def test_one_model_under_two_names(self, compare, save_model):
        folder = save_model()
        models = [LocalChatModel(folder, name=name) for name in ("dpo", "sft")]
        with pytest.raises(ValueError, match="dpo and sft are one model, .* Its answers would be compared with"):
            compare(models)


class TestMistakes:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (dict(models=pool("dpo")), "Two are compared, each with a name of its own, .* got dpo"),
            (dict(models=pool("dpo", "dpo")), "Two are compared, each with a name of its own, .* got dpo, dpo"),
            (dict(models=pool("a", "b", "c")), "Two are compared, .* got a, b, c"),
            (dict(models=pool("a/b", "c")), "'a/b' must be of letters, digits"),
            (dict(models=pool("a"), answers={"a": "a.jsonl"}), "Two are compared, .* got a, a"),
            (dict(models=pool("a"), answers={"b": "none.jsonl"}), "No such file: none.jsonl"),
            (dict(prompts=None), "No prompts: set `dataset_name`"),
            (dict(prompts=[]), "No prompt is left: the data hold no rows"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_refused_before_the_first_call(self, compare, changes, message, tmp_path):
        with pytest.raises((ValueError, OSError), match=message):
            compare(**changes)
        assert not (tmp_path / "out").exists()

    def test_prompts_that_differ_between_files(self, compare, tmp_path):
        answers = {
            name: write_rows(tmp_path / f"{name}.jsonl", [{"prompt": p, "completion": "x (1)"} for p in prompts])
            for name, prompts in (("dpo", PROMPTS), ("sft", [*PROMPTS[:11], "question 99"]))
        }
        with pytest.raises(ValueError, match="sft.jsonl has no answer to 1 of 12 prompts, such as 'question 11'"):
            compare([], answers=answers)
        report = compare([], prompts=PROMPTS[:11], answers=answers)  # on those that both have
        assert report["identical"] == 11 and report["answers"]["sft"]["unused"] == 1

    def test_what_is_not_set(self, tmp_path):
        with pytest.raises(ValueError, match="Nobody judges: set `judge`"):
            run_compare(CompareConfig(output_dir=str(tmp_path)), prompts=PROMPTS, models=pool("a", "b"))
        with pytest.raises(ValueError, match="No place for the results: set `output_dir`"):
            run_compare(CompareConfig(), prompts=PROMPTS, models=pool("a", "b"), judge=judge())

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

"""Who says what is hard, what is trained on beside the new rows, and what follows the supervised training."""

import json
import math
import random
from collections import Counter

import pytest
import toy
from toy import ids, loss, measured, results

from trl_distill.chat import FailedCall, FunctionChatModel
from trl_distill.lion import LionConfig, LionLoop, Training, trainings


class TestReplay:
    @pytest.mark.parametrize(("replay", "sizes"), [("none", [4, 4]), ("share", [8, 8]), ("all", [23, 27])])
    def test_rows_of_earlier_rounds_join_the_new_ones(self, replay, sizes, world, read, ledger):
        report = world(models={"student": toy.stubborn}, replay=replay).run().report
        for round, size in zip((1, 2), sizes, strict=True):
            rows, new = read(f"round_{round}/answers.jsonl"), read(f"round_{round}/train_pool.jsonl")
            old = read(f"round_{round - 1}/cache_pool.jsonl")
            assert len(rows) == len(ids(rows)) == size and ids(new) <= ids(rows) <= ids(new) | ids(old)
        calls = ledger(report)
        assert calls["teacher"] == 19 + 4 + 2 * 4  # what is replayed is answered already
        world("again", models={"student": toy.stubborn}, replay=replay).run()
        assert read("round_2/answers.jsonl") == read("round_2/answers.jsonl", "again")

    def test_each_round_draws_others(self, world, read):
        world(models={"student": toy.stubborn}, replay="share", rounds=3).run()
        drawn = [ids(read(f"round_{k}/answers.jsonl")) - ids(read(f"round_{k}/train_pool.jsonl")) for k in (1, 2, 3)]
        assert len({frozenset(ids) for ids in drawn}) == 3

    def test_a_student_that_forgets(self, world, tmp_path):
        """What the last rows do not hold is gone: replay is what keeps it."""

        def train(model, answers, output):
            rows = [json.loads(line)["prompt"][0]["content"] for line in answers.read_text().splitlines()]
            output.mkdir()
            (output / "seen.json").write_text(json.dumps(Counter(str(toy.family_of(text)) for text in rows)))

        behind = {}
        for replay in ("none", "all"):
            result = world(replay, models={"train": train}, replay=replay, rounds=1, n_new=6).run()
            behind[replay] = result.report["rounds"][1]["heldout"]["loss_rate"]
        assert behind["all"] < behind["none"]


class TestLoss:
    def test_the_largest_losses_are_hard_and_no_referee_is_asked(self, world, read, ledger):
        result = world(models={"student": measured}, miner="loss", loss_share=0.3, rounds=1, heldout_size=0).run()
        calls = ledger(result.report)
        assert calls["referee"] == calls["student"] == 0
        pool = {row["id"]: row["text"] for row in read("round_0/cache_pool.jsonl")}
        rows = read("round_1/scores.jsonl")
        by_loss = sorted(pool, key=lambda id: -loss(pool[id], f"right {pool[id]}"))
        assert {row["id"] for row in rows if row["kind"] == "hard"} == set(by_loss[: math.ceil(0.3 * 23)])
        assert all(row["loss"] == loss(pool[row["id"]], f"right {pool[row['id']]}") for row in rows)
        facts = result.report["rounds"][1]["discrimination"]
        assert facts["counts"] == {"hard": 7, "easy": 16, "below_floor": 0, "unscored": 0} and facts["compared"] == 0
        parents = {row["parent"] for row in read("round_1/train_pool.jsonl") if row["kind"] == "hard"}
        assert parents <= set(by_loss[:7])

    def test_both_hands_the_largest_losses_to_the_referee(self, world, read, ledger):
        def student(folder):
            """Right on family 3, whatever the losses say."""
            answer = toy.stubborn(folder)
            wrong = answer.function

            def say(request):
                text = request.messages[-1]["content"]
                return f"right {text}" if toy.family_of(text) == 3 else wrong(request)

            answer.function = say
            return toy.Measured(answer, loss)

        result = world(models={"student": student}, miner="both", loss_share=0.3, rounds=1, heldout_size=0).run()
        calls = ledger(result.report)
        assert calls["student"] == 7 and calls["referee"] == 14  # of 23 and 46
        rows = read("round_1/scores.jsonl")
        pool = {row["id"]: row["text"] for row in read("round_0/cache_pool.jsonl")}
        seen = [row for row in rows if row["teacher"] is not None]
        assert len(seen) == 7 and {toy.family_of(pool[row["id"]]) for row in seen} == {1, 2, 3}
        assert all((row["kind"] == "hard") == (toy.family_of(pool[row["id"]]) != 3) for row in seen)
        assert all(row["kind"] == "easy" for row in rows if row["teacher"] is None)

    def test_what_has_no_loss_is_unscored_with_its_reason(self, world):
        def answer(request):
            text = request.messages[-1]["content"]
            return FailedCall("busy") if toy.family_of(text) == 1 else f"right {text}"

        def student(folder):
            return toy.Measured(toy.stubborn(folder), lambda text, _: None if toy.family_of(text) == 2 else 1.0)

        models = {"teacher": toy.Rule(answer, "teacher"), "student": student}
        report = world(models=models, miner="loss", rounds=1, heldout_size=0).run().report
        facts = report["rounds"][1]["discrimination"]
        assert facts["unscored"] == {"teacher failed": 8, "student context": 3} and facts["counts"]["unscored"] == 11

    @pytest.mark.parametrize(
        ("student", "said"),
        [
            (lambda folder: toy.Measured(toy.stubborn(folder), lambda *_: None), "longer context"),
            (toy.stubborn, "does not tell the loss"),
            (
                lambda folder: toy.Measured(toy.stubborn(folder), lambda *_: math.nan),
                "The loss .*'diverged': 19.*Lower",
            ),
            (
                lambda folder: toy.Measured(toy.stubborn(folder), lambda *_: math.inf),
                "The loss .*'diverged': 19.*Lower",
            ),
        ],
    )
    @pytest.mark.parametrize("miner", ["loss", "both"])
    def test_no_loss_at_all(self, miner, student, said, world):
        with pytest.raises(ValueError, match=said):
            world(models={"student": student}, miner=miner, rounds=1).run()

    @pytest.mark.parametrize(("miner", "bad"), [("loss", math.nan), ("both", math.inf), ("both", math.nan)])
    def test_a_loss_that_is_no_number_is_not_ranked(self, miner, bad, world, read):
        def student(folder):
            return toy.Measured(toy.stubborn(folder), lambda text, _: bad if toy.family_of(text) == 1 else 1.0)

        report = world(models={"student": student}, miner=miner, rounds=1, heldout_size=0).run().report
        facts = report["rounds"][1]["discrimination"]
        assert facts["unscored"] == {"diverged": 8} and facts["mean_loss"] == 1.0
        assert all(row["kind"] is None for row in read("round_1/scores.jsonl") if row["loss"] is None)

    @pytest.mark.parametrize(("share", "seen"), [(0.25, 6), (0.5, 12), (0.01, 1)])
    def test_both_with_a_referee_that_cannot_be_read_is_not_converged(self, share, seen, world):
        models = {"student": measured, "referee": FunctionChatModel(lambda _: "Both are fine.", "referee")}
        with pytest.raises(ValueError, match=f"referee scored none of {seen} instructions.*Take another referee"):
            world(models=models, miner="both", loss_share=share, rounds=1, heldout_size=0, max_unreadable=None).run()

    @pytest.mark.parametrize(
        "settings", [{}, {"oversample": 2}, {"miner": "both"}, {"strategy": "random", "oversample": 2}]
    )
    def test_a_floor_that_rules_out_all(self, settings, world):
        with pytest.raises(ValueError, match="less than `min_teacher_score` on all"):
            world(models={"student": measured}, min_teacher_score=8.5, rounds=1, **settings).run()


class TestUnseen:
    @pytest.mark.parametrize("miner", ["referee", "loss", "both"])
    def test_the_hardest_of_the_new_ones_are_kept(self, miner, world, read, ledger):
        settings = dict(oversample=3, miner=miner, rounds=1, n_new=5, heldout_size=0, loss_share=0.5)
        if miner == "referee":  # families differ by what the referee gives

            def judge(request):
                family = toy.family_of(request.messages[-1]["content"])
                return toy.referee(good=8, bad=7 - family).function(request)

            models = {"student": toy.stubborn, "referee": FunctionChatModel(judge, "referee")}
        else:
            models = {"student": measured}
        report = world(models=models, **settings).run().report
        new, kept = read("round_1/candidates.jsonl"), read("round_1/train_pool.jsonl")
        assert len(new) == 15 and len(kept) == 5 and ids(kept) < ids(new)
        hardest = sorted((toy.family_of(row["text"]) for row in new), reverse=True)[:5]
        assert sorted((toy.family_of(row["text"]) for row in kept), reverse=True) == hardest
        assert ids(read("round_1/cache_pool.jsonl")) == ids(read("round_0/cache_pool.jsonl")) | ids(kept)
        assert ids(read("round_1/answers.jsonl")) == ids(kept) and report["rounds"][1]["pool"] == 23 + 5
        counts = report["rounds"][1]["selection"]["counts"]
        assert (counts["candidates"], counts["taken"]) == (15, 5)
        assert ledger(report)[1, "selection", "teacher"] == 15 and not ledger(report)[1, "answers", "teacher"]

    def test_a_student_that_knows_its_rows_by_heart_is_not_converged(self, world):
        """On all that it was trained on it says what the teacher says: only new tasks tell."""

        def train(model, answers, output):
            rows = [json.loads(line)["prompt"][0]["content"] for line in answers.read_text().splitlines()]
            output.mkdir()
            (output / "seen.json").write_text(json.dumps(rows))

        def student(folder):
            seen = json.loads((folder / "seen.json").read_text())

            def say(request):
                text = request.messages[-1]["content"]
                return f"{'right' if text in seen else 'wrong'} {text}"

            return FunctionChatModel(say, "student", revision=str(hash(frozenset(seen))))

        models = {"train": train, "student": student}
        assert world("pool", models=models, rounds=1).run().status == "converged"
        result = world("new", models=models, rounds=1, oversample=2).run()
        assert result.status == "finished" and result.report["rounds"][1]["selection"]["counts"]["hard"] == 8

    def test_no_candidate_is_hard(self, world):
        result = world(models={"student": lambda _: toy.teacher()}, rounds=2, oversample=2).run()
        assert (result.status, result.round) == ("converged", 0)


class TestEvaluator:
    def test_another_judge_says_how_good_the_student_is(self, world, ledger):
        """It prefers the student; the referee, who finds what is hard, does not."""
        models = {"student": toy.stubborn, "evaluator": toy.referee(good=4, bad=9, name="evaluator")}
        result = world(models=models, rounds=1).run()
        assert all(row["heldout"]["win_rate"] == 1 for row in result.report["rounds"])
        assert result.report["rounds"][1]["hard_share"] == 1
        calls = ledger(result.report)
        assert calls["evaluator"] == 2 * 2 * 4 and calls["referee"] == 2 * 19


class TestStages:
    def trains(self, rows):
        """Trainings that write down what they were given."""

        def train_as(stage):
            def train(model, path, output):
                found = [json.loads(line) for line in path.read_text().splitlines()]
                rows.append((stage, model, found))
                output.mkdir()
                (output / "seen.json").write_text(json.dumps({"0": len(rows)}))

            return train

        return {stage: train_as(stage) for stage in ("sft", "dpo", "minillm")}

    def test_dpo_on_what_the_store_holds(self, world, read, tmp_path, ledger):
        rows = []
        models = {"student": toy.stubborn, "train": self.trains(rows)}
        report = world(models=models, stages=["sft", "dpo"]).run().report
        assert [stage for stage, *_ in rows] == ["sft", "sft", "dpo", "sft", "dpo"]
        for k in (1, 2):
            folder = tmp_path / "run" / f"round_{k}"
            _, start, pairs = rows[2 * k]
            assert start == str(folder / "student_training") and rows[2 * k - 1][1].endswith(f"round_{k - 1}/student")
            assert ids(pairs) == {row["id"] for row in read(f"round_{k}/scores.jsonl") if row["kind"] == "hard"}
            for row in pairs:
                [prompt], [chosen], [rejected] = row["prompt"], row["chosen"], row["rejected"]
                assert chosen["content"] == f"right {prompt['content']}" and rejected["content"].startswith("wrong ")
            manifest = read(f"round_{k}/manifest.json")["stages"]
            assert manifest["dpo"]["start"] == f"round_{k}/student_training"
        calls = ledger(report)
        assert not any(calls[k, "dpo", role] for k in (1, 2) for role in ("teacher", "student"))

    def test_minillm_on_the_prompts_of_the_round_and_the_hard_ones(self, world, read):
        rows = []
        models = {"student": toy.stubborn, "train": self.trains(rows)}
        world(models=models, stages=["sft", "minillm"], replay="share", rounds=1).run()
        [(_, _, prompts)] = [found for found in rows if found[0] == "minillm"]
        hard = {row["id"] for row in read("round_1/scores.jsonl") if row["kind"] == "hard"}
        assert ids(prompts) == ids(read("round_1/answers.jsonl")) | hard and len(ids(prompts)) == len(prompts)
        assert all(row.keys() == {"id", "prompt"} for row in prompts)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"stages": ["dpo"]}, "`stages` must be one of"),
            ({"stages": ["sft", "dpo", "minillm"]}, "`stages` must be one of"),
            ({"stages": ["sft", "dpo"], "miner": "loss"}, "pairs that a referee has compared"),
            ({"stages": ["sft", "dpo"], "adapter_rounds": "continue"}, "whole model"),
            ({"stages": ["sft", "dpo"], "rescore": "new_only"}, "pairs of the last student"),
            ({"dpo": {"beta": 0.1}}, r"`dpo` is set, and `stages` is \['sft'\]"),
            ({"miner": "loss", "rescore": "new_only"}, "`miner: referee`"),
            ({"replay": "some"}, "`replay` must be one of none, share, all"),
            ({"loss_share": 0}, "`loss_share` must be in"),
            ({"oversample": 0.5}, "`oversample` must be 1 or more"),
            ({"oversample": math.inf}, "`oversample` must be 1 or more, and finite"),
            ({"max_attempts_factor": math.inf}, "must be 1 or more, and finite"),
        ],
    )
    def test_settings_that_no_run_can_use(self, settings, said):
        with pytest.raises(ValueError, match=said):
            LionConfig(**settings)

    def test_who_trains(self, tmp_path):
        config = LionConfig(output_dir=str(tmp_path), student_model="none", stages=["sft", "dpo"], dpo={"beta": 0.2})
        with pytest.raises(ValueError, match="`stages` holds `dpo`, and nothing here trains it: start `trl-distill"):
            LionLoop(
                config,
                toy.rows({0: 9}),
                **toy.models(),
            )
        modules = {"sft": "trl_distill.sft", "dpo": "trl_distill.scripts.dpo"}
        made = trainings(config, modules)
        assert {stage: (made[stage].module, made[stage].training) for stage in made} == {
            "sft": ("trl_distill.sft", {}),
            "dpo": ("trl_distill.scripts.dpo", {"beta": 0.2}),
        }
        with pytest.raises(ValueError, match="`dpo` holds the unknown field `bta`. Did you mean beta"):
            Training({"bta": 1}, module="trl_distill.scripts.dpo", where="dpo")
        config.minillm = {}
        with pytest.raises(ValueError, match="`teacher` must be a local model"):
            trainings(config, {"minillm": "trl_distill.scripts.minillm"})
        config.teacher = {"model_name_or_path": "big", "revision": "v2"}
        [training] = trainings(config, {"minillm": "trl_distill.scripts.minillm"}).values()
        assert training.training == {"teacher_model_name_or_path": "big", "teacher_model_revision": "v2"}


class TestEstimate:
    @pytest.mark.parametrize(
        "settings",
        [
            {"miner": "loss"},
            {"miner": "both", "loss_share": 0.3},
            {"miner": "both", "loss_share": 0.28, "oversample": 5, "n_new": 10, "rounds": 1},
            {"miner": "both", "loss_share": 0.14, "oversample": 12.5, "n_new": 4, "rounds": 1},
            {"oversample": 2},
            {"oversample": 2.5, "miner": "both", "heldout_size": 0},
            {"oversample": 2, "strategy": "random", "miner": "loss"},
            {"stages": ["sft", "dpo"], "strategy": "random"},
            {"replay": "all", "stages": ["sft", "minillm"]},
            {"evaluator": {"model": "e", "base_url": "http://127.0.0.1:1/v1"}, "heldout_size": 0},
        ],
        ids=str,
    )
    def test_the_dry_run_is_the_ledger(self, settings, world, ledger):
        train = dict.fromkeys(("sft", "dpo", "minillm"), toy.train)
        models = toy.Watch().models(student=measured, train=train["sft"])
        loop = world(models=models | {"train": train}, **settings)
        estimated = Counter()
        for line in loop.estimate():
            estimated[line.round, line.stage, line.role] += line.calls
        calls = Counter({key: n for key, n in ledger(loop.run().report).items() if isinstance(key, tuple)})
        dropped = calls - estimated  # a generator's new tasks may be copies: its calls are the least
        assert {role for *_, role in dropped} <= {"generator"} and +estimated == calls - dropped
        assert loop.estimate() == []

    def test_pairs_whose_teacher_has_changed_since_the_mining(self, world):
        def train(*_):
            raise toy.Killed

        def models():
            return toy.models(student=measured, train={"sft": toy.train, "dpo": train})

        settings = dict(stages=["sft", "dpo"], rounds=1, heldout_size=0)
        with pytest.raises(toy.Killed):
            world(models=models(), **settings).run()
        settings |= dict(teacher_max_tokens=77, keep_finished=True)
        loop = world(models=models(), **settings)
        assert [(line.stage, line.role, line.calls) for line in loop.estimate()] == [("dpo", "teacher", 23)]
        with pytest.raises(toy.Killed):
            loop.run()
        with loop.folder.open_store() as store:
            assert sum(line.calls for line in store.ledger() if line.stage == "dpo") == 23


class TestKilled:
    settings = dict(oversample=2, replay="share", stages=["sft", "dpo"], miner="both", loss_share=0.5)

    def models(self, watch):
        world = watch.models()
        train = world["train"]

        def student(folder):
            answers = watch.model("student", toy.stubborn(folder))
            return toy.Measured(answers, loss)

        return world | {"student": student, "train": {"sft": train, "dpo": train}}

    def test_at_twenty_moments(self, world, tmp_path):
        """Whenever a run with all new stages is killed, it goes on to the same files and repeats no call."""
        watch = toy.Watch()
        world("whole", models=self.models(watch), **self.settings).run()
        whole, draw = results(tmp_path / "whole"), random.Random()
        for k, moment in enumerate(draw.sample(range(1, watch.asked.total() + 1), 20)):
            answered, asked = Counter(), Counter()
            for kill in (("any", moment), None):
                again = toy.Watch(kill)
                try:
                    world(f"run {k}", models=self.models(again), **self.settings).run()
                except toy.Killed:
                    assert kill
                answered, asked = answered + again.answered, asked + again.asked
            assert results(tmp_path / f"run {k}") == whole, moment
            assert set(answered.values()) == {1}
            assert answered.total() == sum(watch.asked[role] for role in watch.asked if role != "train")

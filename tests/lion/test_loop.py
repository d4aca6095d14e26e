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
import math
from collections import Counter
from contextlib import nullcontext

import pytest
import toy
from toy import files, ids

from tests.test_report import Page
from trl_distill.chat import BudgetReached, CallStore, FunctionChatModel, Prices
from trl_distill.lion import LionConfig, LionLoop
from trl_distill.lion.pools import Instruction
from trl_distill.lion.report import draw_report
from trl_distill.report import number
from trl_distill.scripts import report as command


class TestStops:
    @pytest.mark.parametrize(("tau", "status"), [(-math.inf, "finished"), (math.inf, "converged"), (3.5, "converged")])
    def test_bounds_of_tau(self, tau, status, world, read):
        result = world(tau=tau, rounds=1).run()
        counts = result.report["rounds"][1]["discrimination"]["counts"]
        assert (result.status, counts["hard"]) == (status, 19 if tau == -math.inf else 0)
        again = world(tau=tau, rounds=1)
        assert again.run() == result and again.estimate() == []

    def test_converged(self, world, tmp_path, read):
        loop = world(min_hard=6, rounds=3)
        result = loop.run()
        assert (result.status, result.round, result.student) == ("converged", 0, tmp_path / "run/round_0/student")
        assert read("report.json")["status"] == "converged" and read("report.json") == result.report
        assert not (tmp_path / "run/round_1/train_pool.jsonl").exists() and not (tmp_path / "run/round_2").exists()
        assert world("run", min_hard=6, rounds=3).run() == result

    def test_an_empty_easy_set_hands_its_share_over(self, world, read, caplog):
        result = world(models={"student": toy.stubborn}, rounds=1, hard_share=0.25).run()
        assert result.report["rounds"][1]["generation"]["counts"]["wanted"] == {"hard": 4, "easy": 0}
        assert {row["kind"] for row in read("round_1/train_pool.jsonl")} == {"hard"}
        assert "No instruction is easy: all 4 new ones are made from hard ones." in caplog.text

    def test_more_rounds_go_on(self, world, tmp_path):
        models = {"student": toy.stubborn}
        world(models=models, rounds=1).run()
        first = files(tmp_path / "run")
        world(models=models, rounds=2).run()
        world("whole", models=models, rounds=2).run()
        longer = files(tmp_path / "run")
        assert longer == files(tmp_path / "whole")
        assert all(longer[name] == content for name, content in first.items() if name != "report.json")
        assert world(models=models, rounds=1).run().round == 1  # and fewer rounds take nothing away
        assert files(tmp_path / "run") == longer | {"report.json": files(tmp_path / "run")["report.json"]}

    def test_a_generator_that_echoes_ends_with_a_clear_error_and_can_be_helped(self, world, read):
        patience = {"seen": 0}

        def write(request):
            patience["seen"] += 1
            return toy.task(0, 0) if patience["seen"] <= 9 else toy.generator().function(request)

        models = {"student": toy.stubborn, "generator": FunctionChatModel(write, "echo")}
        with pytest.raises(ValueError, match="echo gave 0 of 4 hard instructions in 8 attempts"):
            world(models=models, max_attempts_factor=2).run()
        assert patience["seen"] == 8 and read("report.json")["status"] == "running"
        assert world(models=models, max_attempts_factor=6).run().status == "finished"
        assert read("round_1/manifest.json")["stages"]["generation"]["counts"]["similar"] == 9


class TestBudget:
    @pytest.mark.parametrize("concurrency", [1, 4])
    def test_stops_at_exactly_so_many_calls_and_goes_on(self, concurrency, world, tmp_path):
        def models(watch):
            world = watch.models(student=toy.stubborn)
            for role in ("teacher", "referee", "generator"):
                world[role].concurrency = concurrency
            return world

        world("whole", models=models(toy.Watch())).run()
        watch, whole = toy.Watch(), files(tmp_path / "whole")
        for limit in (0, 1, 18, 19, 20, 40, 77, 120):
            loop = world(models=models(watch), max_calls=limit)
            with pytest.raises(BudgetReached, match=f"`max_calls` is {limit}, and {limit} were made"):
                loop.run()
            assert watch.asked.total() - watch.asked["train"] == limit
            report = json.loads((tmp_path / "run/report.json").read_text())
            assert report["status"] == "budget reached" and sum(row["calls"] for row in report["ledger"]) == limit
        world(models=models(watch), max_calls=500).run()
        assert files(tmp_path / "run") == whole and max(watch.answered.values()) == 1

    def test_dollars(self, world, tmp_path):
        models = toy.models(student=toy.stubborn)
        for role in ("teacher", "referee", "generator"):
            models[role].prices = Prices(1.0, 2.0)
        with pytest.raises(BudgetReached, match="`budget_usd` is 0.005"):
            world(models=models, budget_usd=0.005).run()
        with CallStore(tmp_path / "run/calls.sqlite") as store:
            assert 0 < sum(row.cost_usd for row in store.ledger()) <= 0.005
        assert world(models=models, budget_usd=50).run().status == "finished"


class TestEffect:
    sizes = {0: 40, 1: 40, 2: 4, 3: 4}
    weak = (2, 3)

    def share(self, rows):
        return sum(toy.family_of(row["text"]) in self.weak for row in rows) / len(rows)

    def test_what_is_hard_is_found_and_more_of_it_is_written(self, world, read):
        rows, settings = toy.rows(self.sizes), dict(n_new=60, rounds=1, heldout_size=8)
        result = world(rows=rows, **settings).run()
        pool = read("round_0/cache_pool.jsonl")
        counts = Counter(toy.family_of(row["text"]) for row in pool)
        right = {family for family, n in counts.items() if n >= toy.ENOUGH}
        assert right == {0, 1}
        kinds = {row["id"]: row["kind"] for row in read("round_1/scores.jsonl")}
        assert all(kinds[row["id"]] == ("easy" if toy.family_of(row["text"]) in right else "hard") for row in pool)
        assert result.report["rounds"][1]["hard_share"] == self.share(pool)
        assert self.share(read("round_1/train_pool.jsonl")) == 0.5 > self.share(pool)

        world("random", rows=rows, strategy="random", **settings).run()
        drawn, expected = self.share(read("round_1/train_pool.jsonl", "random")), self.share(pool)
        assert abs(drawn - expected) <= 4 * math.sqrt(expected * (1 - expected) / 60)

    def test_random_asks_no_referee_for_mining_and_writes_as_many(self, world, ledger, read):
        watch = toy.Watch()
        report = world(models=watch.models(student=toy.stubborn), strategy="random", heldout_size=0).run().report
        assert watch.asked["referee"] == watch.asked["student"] == 0
        assert [len(read(f"round_{k}/train_pool.jsonl")) for k in (1, 2)] == [4, 4]
        assert all("discrimination" not in row and "hard_share" not in row for row in report["rounds"])
        assert Counter(row["kind"] for row in read("round_1/train_pool.jsonl")) == {"hard": 2, "easy": 2}

    def test_after_enough_rounds_nothing_is_hard(self, world):
        result = world(rows=toy.rows(self.sizes), n_new=12, rounds=20, heldout_size=8).run()
        shares = [row["hard_share"] for row in result.report["rounds"][1:]]
        assert result.status == "converged" and shares[-1] == 0 < shares[0] and result.round < 20
        assert result.report["rounds"][result.round]["heldout"]["tie_rate"] == 1


class TestSeed:
    def test_same_seed_same_bytes_however_many_calls_are_in_flight(self, world, tmp_path):
        models = toy.models()
        for role in ("teacher", "referee", "generator"):
            models[role].concurrency = 6
        world("a").run()
        world("b", models=models).run()
        assert files(tmp_path / "a") == files(tmp_path / "b")

    def test_another_seed_draws_others_and_as_many(self, world, read):
        results = {folder: world(folder, seed=seed).run() for folder, seed in (("a", 1), ("b", 2))}
        for name in ("round_0/heldout.jsonl", "round_1/train_pool.jsonl"):
            a, b = read(name, "a"), read(name, "b")
            assert len(a) == len(b) and ids(a) != ids(b)
        parents = [{row["parent"] for row in read("round_1/train_pool.jsonl", folder)} for folder in "ab"]
        assert parents[0] != parents[1]
        counts = [[row["pool"] for row in result.report["rounds"]] for result in results.values()]
        assert counts[0] == counts[1] == [19, 23, 27]


class TestReport:
    def test_what_it_says_of_the_heldout_slice(self, world, read):
        """Recomputed from the rules of the world."""
        loop = world(n_new=8)
        loop.run()
        heldout = [row["text"] for row in read("round_0/heldout.jsonl")]
        for k in range(3):
            seen = json.loads((loop.folder.student(k) / "seen.json").read_text())
            gaps = [0 if seen.get(str(toy.family_of(text)), 0) >= toy.ENOUGH else 3 for text in heldout]
            facts = read("report.json")["rounds"][k]["heldout"]
            assert facts["counts"] == {"heldout": 4, "scored": 4} and facts["win_rate"] == 0
            assert facts["loss_rate"] == gaps.count(3) / 4 and facts["tie_rate"] == gaps.count(0) / 4
            assert facts["mean_gap"] == sum(gaps) / 4
            spread = math.sqrt(sum((gap - sum(gaps) / 4) ** 2 for gap in gaps) / 3)
            assert facts["mean_gap_se"] == pytest.approx(spread / 2)
            assert facts["relative_score"] == pytest.approx(sum(8 - gap for gap in gaps) / 32)
            n = len(heldout[0].split()) + 1  # one of the words of a wrong answer differs
            rouge = sum(100 if gap == 0 else 100 * (n - 1) / n for gap in gaps) / 4
            assert facts["rouge_l_to_teacher"] == pytest.approx(rouge)
            detail = read(f"round_{k}/evaluation.json")
            assert sorted(row["teacher"] - row["student"] for row in detail["scores"]) == sorted(gaps)
            assert {row["id"] for row in detail["scores"]} == ids(read("round_0/heldout.jsonl"))

    def test_calls_and_pools_so_far(self, world):
        report = world(models={"student": toy.stubborn}).run().report
        assert report["status"] == "finished" and [row["pool"] for row in report["rounds"]] == [19, 23, 27]
        first = 19 + 4 + 4 + 2 * 4
        second = first + 19 + 2 * 19 + 4 + 4 + 4 + 2 * 4
        assert [row["calls_so_far"] for row in report["rounds"]][:2] == [first, second]
        assert report["rounds"][-1]["calls_so_far"] == sum(row["calls"] for row in report["ledger"])

    def test_the_picture(self, world, tmp_path, picture):
        report = world(rounds=1).run().report
        assert (tmp_path / "run/report.png").read_bytes().startswith(b"\x89PNG")
        report["rounds"][1]["loss"] = [(1, 2.0), (2, 1.5)]
        report["warnings"] = ["Round 1, evaluation: All 4 scores are 7: this judge tells nothing apart."]
        report["rounds"][0]["hard_share"] = 1.0
        draw_report(tmp_path / "whole.png", report)
        assert (tmp_path / "whole.png").stat().st_size > (tmp_path / "run/report.png").stat().st_size

    def test_the_page(self, world, tmp_path, read):
        world(rounds=1).run()
        (tmp_path / "run/report.html").unlink()
        content = read("report.json")
        content["warnings"] = ["Round 1, evaluation: <b>All</b> scores are 7."]
        content["rounds"][1]["loss"] = [[1, 2.0], [2, 1.5]]
        (tmp_path / "run/report.json").write_text(json.dumps(content))
        command.run([str(tmp_path / "run")])
        page = Page((tmp_path / "run/report.html").read_text())
        assert "status finished" in page.text and "Round 1, evaluation: <b>All</b> scores are 7." in page.text
        assert "Round 1 loss 1.5" in page.text and "1.5 to 2" in page.text
        row, total = content["rounds"][1], sum(row["calls"] for row in content["ledger"])
        assert f"Calls so far calls {total}" in page.text
        assert f"student ahead {number(row['heldout']['win_rate'])}" in page.text
        assert f"hard {number(row['hard_share'])}" in page.text and "discrimination referee" in page.text
        rates = [number(row["heldout"][f"{name}_rate"]) for name in ("win", "tie", "loss")]
        assert f"round 1 4 4 {' '.join(rates)} {number(row['heldout']['mean_gap'])}" in page.text
        assert "teacher teacher student none" in page.text and "n_new 4" in page.text

    def test_heldout_answers_side_by_side(self, world, tmp_path, read):
        world(models={"student": toy.stubborn}, rounds=2).run()
        page = Page((tmp_path / "run/report.html").read_text())
        assert "4 of 4 held-out instructions, with the scores of the judge." in page.text
        scores = [{row["id"]: row for row in read(f"round_{k}/evaluation.json")["scores"]} for k in (0, 2)]
        for line in (tmp_path / "run/round_0/heldout.jsonl").read_text().splitlines():
            text = json.loads(line)["text"]
            first, last = (rows[Instruction(text).id] for rows in scores)
            parts = [text, f"teacher score {first['teacher']:g}, then {last['teacher']:g}", f"right {text}"]
            for k, row in ((0, first), (2, last)):
                parts += [f"student, round {k} score {row['student']:g}", row["answers"][1]]
            assert " ".join(parts) in page.text

    def test_a_page_of_an_older_release(self, world, tmp_path, read):
        world(rounds=1).run()
        (tmp_path / "run/run.json").unlink()
        for k in (0, 1):
            found = read(f"round_{k}/evaluation.json")
            found["scores"] = [
                {name: value for name, value in row.items() if name != "answers"} for row in found["scores"]
            ]
            (tmp_path / f"run/round_{k}/evaluation.json").write_text(json.dumps(found))
        command.run([str(tmp_path / "run")])
        page = Page((tmp_path / "run/report.html").read_text())
        assert "Held-out answers" not in page.text and "status finished" in page.text

    def test_no_key_is_on_the_page(self, world, tmp_path):
        world(rounds=0, training={"run_name": "sk-proj-abcdefghijkl"}).run()
        for name in ("report.html", "run.json"):
            text = (tmp_path / "run" / name).read_text()
            assert "abcdefgh" not in text and "[key]" in text

    def test_while_it_runs(self, world, tmp_path, read):
        """After each stage the report says what is done."""
        seen = []

        def train(model, answers, output):
            seen.append([row["round"] for row in read("report.json")["rounds"]])
            assert read("report.json")["status"] == "running" and "answers" in read("report.json")["rounds"][-1]
            toy.train(model, answers, output)

        world(models={"train": train}).run()
        assert seen == [[0], [0, 1], [0, 1, 2]]


class TestMistakes:
    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"init_from": "basis"}, "`init_from` must be one of previous, base, got 'basis'"),
            ({"adapter_rounds": "both"}, "`adapter_rounds` must be one of merge, continue"),
            ({"strategy": "hard"}, "`strategy` must be one of adversarial, random"),
            ({"rescore": "none"}, "`rescore` must be one of all, new_only"),
            ({"heldout_size": -1}, "`heldout_size` must be 0 or more"),
            ({"n_new": 0}, "`n_new` must be 1 or more"),
            ({"budget_usd": math.nan}, "`budget_usd` must be 0 or more"),
            ({"max_attempts_factor": 0.5}, "`max_attempts_factor` must be 1 or more"),
            ({"hard_share": 1.5}, r"`hard_share` must be in \[0, 1\]"),
            ({"rouge_threshold": -0.1}, r"`rouge_threshold` must be in \[0, 1\]"),
            ({"referee_orders": 3}, "`referee_orders` must be 2"),
            ({"tau": math.nan}, "`tau` must be a number"),
            ({"tau_quantile": 2}, "`tau_quantile` must be in"),
            ({"teacher_temperature": -1}, "`temperature` must be 0"),
            ({"generator_max_tokens": 0}, "`max_tokens` must be 1"),
            ({"decontaminate": "file.jsonl"}, "`decontaminate` must be a list"),
            ({"dry_run": True, "restart_from": "1.answers"}, "`restart_from` removes results"),
        ],
    )
    def test_settings_that_no_run_can_use(self, settings, said):
        with pytest.raises(ValueError, match=said):
            LionConfig(**settings)

    @pytest.mark.parametrize(
        ("settings", "without", "said"),
        [
            ({"output_dir": None}, "", "`output_dir` is not set"),
            ({"student_model": None}, "", "`student_model` is not set"),
            ({}, "teacher", "No `teacher`"),
            ({"referee": {"modle": "x"}}, "referee", "`referee`: A chat model needs either"),
            ({"teacher": {"model": "x", "api_key": "sk-1"}}, "teacher", "`teacher`: `api_key` must not be in a file"),
            ({"heldout_size": 23}, "", "`heldout_size` is 23, and the pool has 23 instructions"),
            ({"restart_from": "generation"}, "", "such as 1.generation, got 'generation'"),
            ({"restart_from": "0.generation"}, "", "a stage of it"),
            ({"restart_from": "3.answers"}, "", "a round up to 2"),
            ({"restart_from": "1.discrimination", "strategy": "random"}, "", "stages are generation, answers"),
            ({"training": {"learning_rat": 1}}, "train", "unknown field `learning_rat`. Did you mean learning_rate"),
            ({"training": {"output_dir": "x"}}, "train", "`output_dir`, which the loop sets"),
            ({"training": {"hub_token": "x"}}, "train", "must not be in a file"),
            ({"training": {"learning_rate": "high"}}, "train", "`learning_rate` must be of type float, got 'high'"),
            ({"accelerate_config": "tpus"}, "train", "accelerate config 'tpus' is neither a file nor one of"),
            (
                {"launch": {"num_proceses": 2}},
                "train",
                "`launch` holds the unknown field `num_proceses`. Did you",
            ),
            ({"launch": {"num_processes": "two"}}, "train", "`launch`: `num_processes` must be of type int, got"),
        ],
    )
    def test_what_is_refused_before_the_first_call(self, settings, without, said, tmp_path):
        values = dict(output_dir=str(tmp_path / "run"), student_model="none", heldout_size=4, rounds=2) | settings
        watch = toy.Watch()
        models = watch.models() | ({without: None} if without else {})
        with pytest.raises(ValueError, match=said):
            LionLoop(LionConfig(**values), toy.rows({0: 10, 1: 8, 2: 3, 3: 2}), **models)
        assert not watch.asked


class TestLedger:
    def run_and_count(self, world, ledger, watch=None, **settings):
        watch = watch or toy.Watch()
        loop = world(models=watch.models(student=toy.stubborn), **settings)
        planned = loop.estimate()
        assert not watch.asked
        result = loop.run()
        return planned, ledger(result.report), watch, loop, result

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"heldout_size": 0},
            {"rounds": 0},
            {"strategy": "random"},
            {"cache_sample": 6},
            {"rescore": "new_only", "rounds": 3},
            {"rescore": "new_only", "cache_sample": 9, "rounds": 3},
            {"referee_orders": 1},
            {"init_from": "base"},
        ],
        ids=str,
    )
    def test_the_dry_run_is_the_ledger_is_the_count(self, settings, world, ledger):
        planned, calls, watch, loop, _ = self.run_and_count(world, ledger, **settings)
        estimated = Counter()
        for line in planned:
            estimated[line.round, line.stage, line.role] += line.calls
        assert +estimated == Counter({key: n for key, n in calls.items() if isinstance(key, tuple)})
        for role in ("teacher", "student", "referee", "generator"):
            assert calls[role] == watch.asked[role] == sum(n for key, n in watch.answered.items() if key[0] == role)
        assert loop.estimate() == [] and max(watch.answered.values()) == 1

    def test_by_the_formulas(self, world, ledger):
        planned, calls, watch, *_ = self.run_and_count(world, ledger, rounds=3, n_new=5)
        assert calls["teacher"] == 19 + 4 + 3 * 5  # distinct instructions
        assert calls["referee"] == 2 * (19 + 24 + 29) + 2 * 4 * 4
        assert calls["student"] == (19 + 24 + 29) + 4 * 4
        assert calls["generator"] == 15
        teacher = {content for role, _, content, *_ in watch.answered if role == "teacher"}
        assert len(teacher) == calls["teacher"]

    def test_what_is_used_again_is_no_call(self, world, ledger):
        """Where a student says the same as before, its answer is scored: calls and reuses are what was planned."""
        watch = toy.Watch()
        loop = world(models=watch.models(), rounds=2)
        planned = Counter()
        for line in loop.estimate():
            planned[line.role] += line.calls
        report = loop.run().report
        calls, reused = ledger(report), ledger(report, "reused")
        assert calls["referee"] + reused["referee"] == planned["referee"] > calls["referee"]
        assert calls["teacher"] == planned["teacher"] and calls["student"] == planned["student"]

    def test_reasks_come_on_top(self, world, ledger):
        seen = Counter()

        def judge(request):
            seen[request.messages[-1]["content"], request.sample_index // 1000] += 1
            first = request.sample_index % 1000 == 0
            return "hm" if first else toy.referee().function(request)

        models = {"student": toy.stubborn, "referee": FunctionChatModel(judge, "referee")}
        report = world(models=models, rounds=1).run().report
        assert ledger(report)["referee"] == 2 * 2 * (19 + 2 * 4) and set(seen.values()) == {2}
        assert report["rounds"][1]["discrimination"]["referee"]["reasks"] == 2 * 19

    def test_a_dry_run_leaves_nothing(self, world, tmp_path):
        planned = world(dry_run=True).estimate()
        with pytest.raises(ValueError, match="`dry_run` is set"):
            world(dry_run=True).run()
        assert planned == world("other").estimate() and not (tmp_path / "run").exists()
        with pytest.raises(BudgetReached):
            world(max_calls=9).run()
        before = files(tmp_path / "run")
        world(dry_run=True, n_new=7, referee_orders=1).estimate()  # before the first student all may change
        assert files(tmp_path / "run") == before

    @pytest.mark.parametrize("limit", [5, 60])
    def test_a_dry_run_beside_a_run(self, world, tmp_path, limit):
        """In its first stage, when nothing follows from the pools yet, and later."""
        with pytest.raises(BudgetReached):
            world(max_calls=limit).run()
        expected, before = world().estimate(), files(tmp_path / "run")
        with CallStore(tmp_path / "run" / "calls.sqlite") as store:
            known = store.ledger()
            assert world(dry_run=True).estimate() == expected
            assert store.ledger() == known and files(tmp_path / "run") == before
            with pytest.raises(OSError, match="Another run"):
                world()

    def test_a_dry_run_before_each_stage(self, world, ledger):
        """Whatever is done, what is left is what a run then asks."""
        whole = 19 + 4 + 2 * 4 + (19 + 23) + 3 * 4 + 2 * (19 + 23) + 2 * 3 * 4 + 2 * 4
        watch = toy.Watch()
        models = watch.models(student=toy.stubborn)
        for limit in (10, 25, 45, 60, 75, 95, 110, 125, 140, 170, whole):
            loop = world(models=models, max_calls=limit)
            with pytest.raises(BudgetReached) if limit < whole else nullcontext():
                loop.run()
            assert sum(line.calls for line in loop.estimate()) == whole - limit
            assert watch.asked.total() - watch.asked["train"] == limit

    def test_estimated_costs_are_bounds_and_then_means(self, world):
        models = toy.models(student=toy.stubborn)
        for role in ("teacher", "referee", "generator"):
            models[role].prices = Prices(1e6, 1e6)  # a dollar a token
        limits = dict(teacher_max_tokens=40, student_max_tokens=90, referee_max_tokens=10, generator_max_tokens=30)
        loop = world(models=models, rounds=1, **limits)
        bounds = {line[:3]: line.cost_usd for line in loop.estimate()}
        report = loop.run().report
        spent = {(row["round"], row["stage"], row["role"]): row["cost_usd"] for row in report["ledger"]}
        assert all(bounds[key] >= spent[key] for key in bounds) and sum(spent.values()) > 0
        assert all(bounds[key] == 0 for key in bounds if key[2] == "student")
        assert report["rounds"][-1]["cost_usd_so_far"] == pytest.approx(sum(spent.values()))
        more = world(models=models, rounds=2, **limits).estimate()
        [referee] = [line for line in more if (line.stage, line.role) == ("discrimination", "referee")]
        tokens = [row for row in report["ledger"] if row["role"] == "referee"]
        used = sum(row["prompt_tokens"] + row["completion_tokens"] for row in tokens)
        mean = used / sum(row["calls"] for row in tokens)
        assert referee.cost_usd == pytest.approx(mean * referee.calls, rel=0.01)

    def test_a_price_that_is_not_known(self, world):
        models = toy.models()
        models["teacher"].prices = None
        assert {line.role for line in world(models=models).estimate() if line.cost_usd is None} == {"teacher"}
        with pytest.raises(ValueError, match="the prices of teacher are not known"):
            world(models=models, budget_usd=1).run()

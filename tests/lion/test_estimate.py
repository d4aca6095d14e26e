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


from collections import Counter

import pytest
import toy

from trl_distill.chat import BudgetReached, FunctionChatModel, Prices


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

    def test_a_dry_run_before_each_stage(self, world, ledger):
        """Whatever is done, what is left is what a run then asks."""
        whole = 19 + 4 + 2 * 4 + (19 + 23) + 3 * 4 + 2 * (19 + 23) + 2 * 3 * 4 + 2 * 4
        watch = toy.Watch()
        models = watch.models(student=toy.stubborn)
        for limit in (10, 25, 45, 60, 75, 95, 110, 125, 140, 170, whole):
            loop = world(models=models, max_calls=limit)
            if limit < whole:
                with pytest.raises(BudgetReached):
                    loop.run()
            else:
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
        mean = sum(row["prompt_tokens"] + row["completion_tokens"] for row in tokens) / sum(
            row["calls"] for row in tokens
        )
        assert referee.cost_usd == pytest.approx(mean * referee.calls, rel=0.01)

    def test_a_price_that_is_not_known(self, world):
        models = toy.models()
        models["teacher"].prices = None
        assert {line.role for line in world(models=models).estimate() if line.cost_usd is None} == {"teacher"}
        with pytest.raises(ValueError, match="the prices of teacher are not known"):
            world(models=models, budget_usd=1).run()

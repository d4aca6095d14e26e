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
"""What a store says of calls and costs, and how it bounds them: ledger, budgets, dry runs and `trl-distill calls`."""

import json
import random
import threading
from collections import Counter
from fractions import Fraction

import pytest
from chat_server import Rule, completion_body

from benchmarks.speed import call_store
from trl_distill.chat import (
    BudgetReached,
    CallStore,
    ChatRequest,
    ChatServerError,
    EndpointChatModel,
    FunctionChatModel,
    LedgerRow,
    read_ledger,
)
from trl_distill.scripts import calls


class TestLedger:
    def test_numbers_are_those_of_the_server(self, path, server, ask):
        """B7: calls, retries, failures, tokens and cost against what the server and exact arithmetic say."""
        draw, counts, bill = random.Random(0), Counter(), []

        def reply(body, attempt, headers):
            number = int(body["messages"][-1]["content"].split()[1])
            if number % 10 == 3:
                return 400, {"error": {"message": "no"}}, {}
            if number % 7 >= attempt:
                return 500, {"error": {"message": "busy"}}, {}
            tokens = draw.randrange(100), draw.randrange(50)
            counts.update(prompt=tokens[0], completion=tokens[1])
            bill.append(Fraction(3, 10) * tokens[0] + Fraction(5, 4) * tokens[1])
            return completion_body("a", "stop", *tokens)

        server.reply = reply
        endpoint = EndpointChatModel(
            "m", server.base_url, concurrency=8, backoff=0.001, prompt_price=0.3, completion_price=1.25
        )
        with CallStore(path) as store:
            store.model(endpoint, "teacher", "answers", 2).complete(ask(60))
            [row] = store.ledger()
        assert row[:4] == (2, "answers", "teacher", "m") and (row.calls, row.unanswered, row.reused) == (60, 0, 0)
        failed = [n for n in range(60) if n % 10 == 3 or n % 7 == 6]  # six attempts are the limit
        assert row.failures == len(failed)
        assert row.calls + row.retries == len(server.requests)
        assert row.prompt_tokens == counts["prompt"] and row.completion_tokens == counts["completion"]
        assert row.cost_usd == pytest.approx(float(sum(bill)) / 1e6, rel=1e-12)
        assert read_ledger(path) == [row]

    def test_calls_by_round_stage_and_role_and_reuse_counted_once(self, path, ask):
        for _ in range(2):  # the second run finds everything, and the ledger stays the same
            with CallStore(path) as store:
                for round, count in enumerate((4, 6, 5)):
                    store.model(Rule(), "teacher", "imitation", round).complete(ask(count))
                    store.model(Rule(), "referee", "discrimination", round).complete(ask(2, start=10 * round))
                store.model(Rule(), "teacher", "discrimination", 2).complete(ask(3) + ask(3))
        ledger = {row[:3]: (row.calls, row.reused) for row in read_ledger(path)}
        assert ledger == {
            (0, "imitation", "teacher"): (4, 0),
            (1, "imitation", "teacher"): (2, 4),
            (2, "imitation", "teacher"): (0, 5),
            (2, "discrimination", "teacher"): (0, 3),
        } | {(round, "discrimination", "referee"): (2, 0) for round in range(3)}

    def test_ten_thousand_calls(self, store, ask, rows):
        model = Rule()
        answers = store.model(model, "teacher").complete(ask(10_000))
        assert [answer.text for answer in answers] == [f"rule question {i} #1" for i in range(10_000)]
        assert store.ledger() == [LedgerRow(0, "", "teacher", "rule", 10_000, 0, 0, 0, 0, 0, 20_000, 40_000, 0.0)]
        assert model.asked.total() == len(rows("DISTINCT text")) == 10_000

    @pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
    def test_calls_of_a_faulty_server(self, store, server, ask, count):
        draw = random.Random(1)
        faults = [(429, {}, {"Retry-After": "0.01"}), (500, {}, {}), {"choices": []}, (200, server.CUT, {})]
        server.reply = lambda body, attempt, headers: draw.choice(faults) if draw.random() < 0.1 else None
        endpoint = EndpointChatModel("m", server.base_url, concurrency=64, backoff=0.001, max_attempts=20)
        answers = store.model(endpoint, "teacher").complete(ask(count))
        [row] = store.ledger()
        assert [answer.text for answer in answers] == [f"echo question {i}" for i in range(count)]
        assert (row.calls, row.failures, row.unanswered) == (count, 0, 0)
        assert count < row.calls + row.retries == len(server.requests)

    def test_attempts_of_the_call_that_stops_the_run_count(self, store, server, ask, rows):
        server.reply = lambda *_: (500, {"error": {"message": "busy"}}, {})
        endpoint = EndpointChatModel("m", server.base_url, backoff=0.001, max_attempts=3, max_consecutive_failures=4)
        with pytest.raises(ChatServerError, match="4 calls"):
            store.model(endpoint, "teacher").complete(ask(4))
        [row] = store.ledger()
        assert (row.calls, row.failures, row.retries) == (4, 4, 8) and len(server.requests) == 12
        assert all("busy" in error for [error] in rows("error"))

    def test_costs_without_prices_are_not_known(self, store, server, ask):
        store.model(EndpointChatModel("m", server.base_url), "teacher").complete(ask(2))
        assert store.ledger()[0].cost_usd is None

    def test_missing_usage_costs_the_worst_case(self, store, server, ask):
        body = completion_body("a")
        del body["usage"]
        server.reply = lambda *_: body
        endpoint = EndpointChatModel("m", server.base_url, prompt_price=1.0, completion_price=2.0)
        store.model(endpoint, "teacher").complete(ask(1, max_tokens=100))
        assert store.ledger()[0].cost_usd == pytest.approx((16 + 16 + len("question 0") + 2 * 100) / 1e6)


class TestBudgets:
    @pytest.mark.parametrize("concurrency", [1, 64])
    def test_calls_stop_at_the_limit_and_go_on(self, path, server, ask, concurrency):
        def run(max_calls):
            endpoint = EndpointChatModel("m", server.base_url, concurrency=concurrency)
            with CallStore(path, max_calls=max_calls) as store:
                return store.model(endpoint, "teacher").complete(ask(100))

        for limit in (0, 37, 37, 70):
            with pytest.raises(BudgetReached, match=f"`max_calls` is {limit}.*raise the limit"):
                run(limit)
            assert len(server.requests) == limit
        assert len(run(100)) == 100 and Counter(server.prompts()) == Counter(f"question {i}" for i in range(100))

    def test_money_is_never_overspent_with_64_in_flight(self, path, server, ask):
        draw, lock, bill = random.Random(0), threading.Lock(), [Fraction(0)]
        prices = Fraction(1, 2), Fraction(2)

        def reply(body, attempt, headers):
            with lock:
                tokens = draw.randrange(1, 11), draw.randrange(body["max_tokens"] + 1)
                bill[0] += prices[0] * tokens[0] + prices[1] * tokens[1]
            return completion_body("a", "stop", *tokens)

        def run(budget):
            endpoint = EndpointChatModel("m", server.base_url, concurrency=64, prompt_price=0.5, completion_price=2.0)
            with CallStore(path, budget_usd=budget) as store:
                store.model(endpoint, "teacher").complete(ask(300, max_tokens=50))

        server.reply, server.delay = reply, 0.05
        worst = (16 + 16 + 12) / 2 + 50 * 2  # microdollars, of which 64 fit into the first budget
        for budget in (0.008, 0.012):
            with pytest.raises(BudgetReached, match=f"`budget_usd` is {budget}"):
                run(budget)
            assert budget * 1e6 - worst < bill[0] <= budget * 1e6  # it did not stop early either
        assert 150 < len(server.requests) < 300 and server.most_in_flight > 8
        run(1.0)
        assert len(server.requests) == 300
        assert read_ledger(path)[0].cost_usd == pytest.approx(float(bill[0]) / 1e6)

    def test_lost_calls_count(self, path, ask):
        """A call that was in flight when a run was killed may have been paid for."""
        with CallStore(path) as store:
            store.model(Rule(prices=(1.0, 1.0)), "teacher").complete(ask(1))
            store._reserve([("k", "{}", 0.5)], (0, "", "teacher", "rule"))
        assert [(row.calls, row.unanswered) for row in read_ledger(path)] == [(2, 1)]
        with CallStore(path, max_calls=2) as store, pytest.raises(BudgetReached):
            store.model(Rule(), "teacher").complete(ask(2))
        with CallStore(path, budget_usd=0.5) as store, pytest.raises(BudgetReached):
            store.model(Rule(prices=(1.0, 1.0)), "teacher").complete(ask(2))

    def test_a_budget_needs_prices(self, path):
        with CallStore(path, budget_usd=1.0) as store, pytest.raises(ValueError, match="`prompt_price`"):
            store.model(EndpointChatModel("m", "http://localhost/v1"), "teacher")


class TestDryRun:
    def test_missing_calls_and_their_size(self, store, ask):
        model = Rule(prices=(2.0, 10.0))
        stored = store.model(model, "teacher", round=1)
        bound = 16 + 16 + len("question 0")
        expected = (4, 4 * bound, 4 * 50, (4 * bound * 2 + 4 * 50 * 10) / 1e6)
        assert stored.missing(ask(4, max_tokens=50) * 2) == pytest.approx(expected)
        stored.complete(ask(3, max_tokens=50))  # 2 words in, 4 out
        assert stored.missing(ask(8, max_tokens=50)) == pytest.approx((5, 10, 20, (5 * 2 * 2 + 5 * 4 * 10) / 1e6))
        assert stored.missing(ask(3, max_tokens=50)) == (0, 0, 0, 0.0)
        assert store.model(model, "referee").missing(ask(1, max_tokens=50))[:3] == (1, bound, 50)
        assert model.asked.total() == 3 and sum(row.reused for row in store.ledger()) == 0

    def test_without_prices(self, store, ask):
        endpoint = EndpointChatModel("m", "http://localhost/v1")
        assert store.model(endpoint, "teacher").missing(ask(2, max_tokens=5))[2:] == (10, None)


# The command


@pytest.fixture
def filled(path, ask, server):
    """A store of two rounds, with one call that failed."""
    server.reply = lambda body, *_: (400, {}, {}) if body["messages"][0]["content"] == "question 1" else None
    teacher = EndpointChatModel("m", server.base_url, prompt_price=1e4, completion_price=2e4)
    with CallStore(path) as store:
        for round, count in enumerate((12, 13)):
            rule = FunctionChatModel(lambda request: "word " * 100, "a-rule-with-a-name-of-some-length")
            store.model(rule, "student", "imitation", round).complete(ask(count))
        store.model(teacher, "teacher", "imitation").complete(ask(3))
    return path


def test_the_table_and_the_json_show_the_ledger(filled, capsys):
    calls.run([str(filled), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert [[row["round"], row["role"], row["calls"], row["reused"]] for row in result["rows"]] == [
        [0, "student", 12, 0],
        [0, "teacher", 3, 0],
        [1, "student", 1, 12],
    ]
    cost = 2 * (7 * 1e4 + 3 * 2e4) / 1e6
    assert result["total"]["cost_usd"] == result["rows"][1]["cost_usd"] == pytest.approx(cost)
    assert (result["total"]["calls"], result["total"]["failures"]) == (16, 1)

    calls.run([str(filled)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", "imitation", "student", "a-rule-with-a-name-of-some-length"] == lines[6][:4]
    assert lines[6][4:] == ["1", "0", "12", "2", "100", "0.0000"]
    assert lines[8] == ["total", "16", "1", "12", "40", "1,306", "0.2600"]
    assert "unanswered" not in lines[2] and "failed" in lines[2]  # what never happened has no column


def test_costs_that_are_not_known(path, server, ask, capsys):
    with CallStore(path) as store:
        store.model(EndpointChatModel("m", server.base_url), "teacher").complete(ask(1))
        calls.run([str(path)])  # while a run has it open
    assert capsys.readouterr().out.splitlines()[-2].split()[-1] == "-"


def test_names_that_look_like_markup(path, ask, capsys):
    with CallStore(path) as store:
        store.model(FunctionChatModel(lambda request: "a", "a[/b] :smile:"), "teacher").complete(ask(1))
        calls.run([str(path)])
    assert "a[/b] :smile:" in capsys.readouterr().out


def test_an_empty_store(path, capsys):
    CallStore(path).close()
    calls.run([str(path), "--json"])
    assert json.loads(capsys.readouterr().out)["total"]["calls"] == 0


def test_a_server_that_moved(filled, server, capsys):
    calls.run([str(filled), "--moved", f"{server.base_url}/", "http://there/v1"])
    with CallStore(filled) as store:
        moved = EndpointChatModel("m", "http://there/v1")
        requests = [ChatRequest([{"role": "user", "content": "question 0"}])]
        assert store.model(moved, "teacher").missing(requests).calls == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.sqlite"], "No such file: none.sqlite"),
        (["STORE", "--moved", "http://nowhere", "http://there"], "No model was asked at http://nowhere, only at http"),
        (["STORE", "--round", "1"], "unknown field `round`"),
        ([], "required: STORE"),
    ],
)
def test_mistakes(filled, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        calls.run([str(filled) if argument == "STORE" else argument for argument in arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_the_benchmark_runs_and_agrees_with_its_server(tmp_path, capsys):
    flags = "--calls 20 --repeats 1 --in-flight 1 4 --prompt-chars 20".split()
    result = call_store.main([*flags, "--output", str(tmp_path / "result.json")])
    assert [(row["model"], row["in_flight"]) for row in result["rows"]] == [("rule", 1), ("stub", 1), ("stub", 4)]
    assert all(speed["median"] > 0 for row in result["rows"] for speed in row["calls_per_second"].values())
    assert json.loads((tmp_path / "result.json").read_text())["rows"] == result["rows"]

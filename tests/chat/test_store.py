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
"""The store: nothing asked twice, nothing lost, budgets that hold, and a ledger that agrees with who answered."""

import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from chat_server import completion_body
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_distill.chat import (
    BaseChatModel,
    BudgetReached,
    CallStore,
    ChatRequest,
    ChatServerError,
    Completion,
    EndpointChatModel,
    FailedCall,
    FunctionChatModel,
    LedgerRow,
    Prices,
    Sampling,
    read_ledger,
)


class Rule(FunctionChatModel):
    """A rule that counts its calls, and says how often it was asked the same."""

    def __init__(self, name="rule", prices=(0.0, 0.0), **settings):
        super().__init__(self.reply, name, **settings)
        self.prices, self.asked = Prices(*prices), Counter()

    def reply(self, request):
        prompt = request.texts[-1]
        self.asked[prompt] += 1
        return f"{self.name} {prompt} #{self.asked[prompt]}"


class Batched(BaseChatModel):
    """Like a local model: the text of an answer depends on what else is in its batch."""

    def __init__(self, size=4, stop_after=None):
        self.name, self.size, self.stop_after, self.answered = "batched", size, stop_after, []

    identity = {"weights": "abc"}

    def batches(self, requests):
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].messages[0]["content"]))
        return [order[k : k + self.size] for k in range(0, len(order), self.size)]

    def answer(self, batch):
        if len(self.answered) == self.stop_after:
            raise KeyboardInterrupt
        prompts = [request.messages[0]["content"] for request in batch]
        self.answered.append(prompts)
        content = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
        return [Completion(f"{prompt} in {content[:8]}", "stop", 1, 1) for prompt in prompts]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "calls.sqlite"


@pytest.fixture
def store(path):
    with CallStore(path) as store:
        yield store


def rows(path, columns="*"):
    with sqlite3.connect(path) as connection:
        return connection.execute(f"SELECT {columns} FROM calls ORDER BY id").fetchall()


class TestReuse:
    def test_nothing_is_asked_twice(self, path, ask):
        model, requests = Rule(), ask(5)
        with CallStore(path) as store:
            stored = store.model(model, "teacher")
            whole = stored.complete(requests)
            assert [answer.text for answer in whole] == [f"rule question {i} #1" for i in range(5)]
            assert stored.complete(requests[::-1]) == whole[::-1] and stored.complete([]) == []
        with CallStore(path) as store:  # as the next run would
            assert store.model(Rule(), "teacher").complete(ask(7))[:5] == whole
        assert set(model.asked.values()) == {1} and len(rows(path)) == 7

    def test_what_a_key_is_made_of(self, store, ask):
        [request] = ask(1, temperature=0.7)
        same = [ask(1, temperature=0.7), ask(1, temperature=7 / 10, top_p=1, seed=None)]
        other = [
            ask(1, temperature=0.8),
            ask(1, temperature=0.7, top_p=0.9),
            ask(1, temperature=0.7, max_tokens=9),
            ask(1, temperature=0.7, seed=0),
            ask(1, temperature=0.7, sample_index=1),
            ask(1, start=1, temperature=0.7),
            [ChatRequest([{"role": "system", "content": "question 0"}], request.sampling)],
            [ChatRequest([*request.messages, *request.messages], request.sampling)],
        ]
        stored = store.model(Rule(), "teacher")
        [first] = stored.complete([request])
        assert all(stored.complete(asked) == [first] for asked in same)
        assert all(store.model(Rule(), "teacher", stage="s", round=r).complete([request]) == [first] for r in (0, 1))
        calls = [lambda asked=asked: stored.complete(asked) for asked in other]
        calls.append(lambda: store.model(Rule(), "referee").complete([request]))
        calls.append(lambda: store.model(Rule(revision="2"), "teacher").complete([request]))
        calls.append(lambda: store.model(Rule("other"), "teacher").complete([request]))
        for number, call in enumerate(calls, 2):
            call()
            assert store.ledger() and sum(row.calls for row in store.ledger()) == number

    def test_the_key_is_the_hash_of_the_request_in_the_row(self, store, path, ask):
        store.model(Rule(revision="2"), "teacher").complete(ask(1, temperature=0, sample_index=3))
        [(key, content)] = rows(path, "key, request")
        assert key == hashlib.sha256(content.encode()).hexdigest()
        assert json.loads(content) == {
            "role": "teacher",
            "model": {"function": "rule", "revision": "2"},
            "messages": [{"role": "user", "content": "question 0"}],
            "sampling": {"temperature": 0.0, "top_p": 1.0, "max_tokens": 1024, "seed": None},
            "sample_index": 3,
        }

    def test_what_only_newer_requests_ask_for_is_in_their_keys_alone(self, store, path):
        stored = store.model(Rule(), "teacher")
        chat = [{"role": "user", "content": "Hi"}]
        requests = [
            ChatRequest("Hi", Sampling(logprobs=True)),
            ChatRequest("Hi"),
            ChatRequest(chat, chat_template_kwargs={"a": 1}),
            ChatRequest(chat, chat_template_kwargs={}),
            ChatRequest(chat),
        ]
        stored.complete(requests)
        sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 1024, "seed": None}
        old = {"role": "teacher", "model": {"function": "rule", "revision": None}, "sampling": sampling}
        old |= {"messages": chat, "sample_index": 0}
        assert [json.loads(content) for [content] in rows(path, "request")] == [
            old | {"messages": "Hi", "sampling": sampling | {"logprobs": True}},
            old | {"messages": "Hi"},
            old | {"chat_template_kwargs": {"a": 1}},
            old,
        ]

    def test_log_probabilities_come_back_as_they_were(self, store, ask):
        class Sure(Rule):
            def answer(self, batch):
                return [Completion("a", mean_logp=-1 / 3 - i) for i, _ in enumerate(batch)]

            def batches(self, requests):
                return [list(range(len(requests)))]

        stored = store.model(Sure(), "student")
        first = stored.complete(ask(3, logprobs=True))
        assert [answer.mean_logp for answer in first] == [-1 / 3, -4 / 3, -7 / 3]
        assert stored.complete(ask(3, logprobs=True)) == first

    def test_equal_requests_are_one_call(self, store, ask):
        model = Rule()
        answers = store.model(model, "teacher").complete(ask(2) + ask(3))
        assert answers[:2] == answers[2:4] and model.asked.total() == 3

    @settings(max_examples=10, deadline=None)
    @given(st.lists(st.text(st.characters(codec="utf-8")), max_size=20))
    def test_any_text_comes_back_as_it_was(self, texts):
        with TemporaryDirectory() as folder, CallStore(Path(folder, "calls.sqlite")) as store:
            model = FunctionChatModel(lambda request: request.messages[0]["content"], "echo")
            requests = [ChatRequest([{"role": "user", "content": text}]) for text in texts]
            for _ in range(2):
                answers = store.model(model, "teacher").complete(requests)
                assert [answer.text for answer in answers] == texts
            assert sum(row.calls for row in store.ledger()) == len(set(texts))

    def test_threads_do_not_ask_the_same_twice(self, store, ask):
        class Slow(Rule):
            concurrency = 4

            def answer(self, batch):
                time.sleep(0.005)
                return super().answer(batch)

        models, results = [Slow("a"), Slow("b")], {}

        def run(k):
            results[k] = store.model(models[k % 2], "teacher").complete(ask(10))

        threads = [threading.Thread(target=run, args=(k,)) for k in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(set(model.asked.values()) == {1} for model in models)
        assert results[0] == results[2] == results[4] != results[1] == results[3] == results[5]


class TestFailures:
    def test_a_failed_call_is_noted_and_asked_again(self, path, server, ask):
        server.reply = lambda body, *_: (
            (400, {"error": {"message": "no"}}, {}) if body["messages"][-1]["content"] == "question 1" else None
        )
        with CallStore(path) as store:
            stored = store.model(EndpointChatModel("m", server.base_url), "teacher")
            answers = stored.complete(ask(3))
            assert [type(answer) for answer in answers] == [Completion, FailedCall, Completion]
            states = sorted(rows(path, "state, text IS NULL, error IS NULL"))
            assert states == [("answered", 0, 1), ("answered", 0, 1), ("failed", 1, 0)]
            server.reply = None
            assert [answer.text for answer in stored.complete(ask(3))] == [f"echo question {i}" for i in range(3)]
        assert Counter(server.prompts()) == {"question 0": 1, "question 1": 2, "question 2": 1}
        [row] = read_ledger(path)
        assert (row.calls, row.failures, row.unanswered) == (4, 1, 0)

    def test_an_error_of_the_model_stops_the_run_and_keeps_the_rest(self, store, path, ask):
        def rule(request):
            if request.messages[-1]["content"] == "question 3":
                raise ZeroDivisionError("secret")
            return "fine"

        stored = store.model(FunctionChatModel(rule, "rule"), "teacher")
        with pytest.raises(ZeroDivisionError):
            stored.complete(ask(6))
        assert rows(path, "state, error") == [("answered", None)] * 3 + [("failed", "ZeroDivisionError")]

    def test_an_error_waits_for_the_calls_in_flight(self, store, server, ask):
        server.reply = lambda body, *_: (401, {}, {}) if body["messages"][-1]["content"] == "question 0" else None
        server.delay = lambda body: 0.0 if body["messages"][-1]["content"] == "question 0" else 0.3
        stored = store.model(EndpointChatModel("m", server.base_url, concurrency=4), "teacher")
        with pytest.raises(ConnectionError, match="401"):
            stored.complete(ask(50))
        [row] = store.ledger()
        assert row.calls == len(server.requests) <= 8 and row.failures == 1 and row.unanswered == 0


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

    def test_ten_thousand_calls(self, store, path, ask):
        model = Rule()
        answers = store.model(model, "teacher").complete(ask(10_000))
        assert [answer.text for answer in answers] == [f"rule question {i} #1" for i in range(10_000)]
        assert store.ledger() == [LedgerRow(0, "", "teacher", "rule", 10_000, 0, 0, 0, 0, 20_000, 40_000, 0.0)]
        assert model.asked.total() == len(rows(path, "DISTINCT text")) == 10_000

    @pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
    def test_calls_of_a_faulty_server(self, path, server, ask, count):
        draw = random.Random(1)
        faults = [(429, {}, {"Retry-After": "0.01"}), (500, {}, {}), {"choices": []}, (200, server.CUT, {})]
        server.reply = lambda body, attempt, headers: draw.choice(faults) if draw.random() < 0.1 else None
        endpoint = EndpointChatModel("m", server.base_url, concurrency=64, backoff=0.001, max_attempts=20)
        with CallStore(path) as store:
            answers = store.model(endpoint, "teacher").complete(ask(count))
            [row] = store.ledger()
        assert [answer.text for answer in answers] == [f"echo question {i}" for i in range(count)]
        assert (row.calls, row.failures, row.unanswered) == (count, 0, 0)
        assert count < row.calls + row.retries == len(server.requests)

    def test_attempts_of_the_call_that_stops_the_run_count(self, store, server, path, ask):
        server.reply = lambda *_: (500, {"error": {"message": "busy"}}, {})
        endpoint = EndpointChatModel("m", server.base_url, backoff=0.001, max_attempts=3, max_consecutive_failures=4)
        with pytest.raises(ChatServerError, match="4 calls"):
            store.model(endpoint, "teacher").complete(ask(4))
        [row] = store.ledger()
        assert (row.calls, row.failures, row.retries) == (4, 4, 8) and len(server.requests) == 12
        assert all("busy" in error for [error] in rows(path, "error"))

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
    def test_missing_calls_and_their_size(self, path, ask):
        model = Rule(prices=(2.0, 10.0))
        with CallStore(path) as store:
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


class TestBatches:
    def questions(self, count):
        return [ChatRequest([{"role": "user", "content": "x" * (i * 7 % 23) + str(i)}]) for i in range(count)]

    @pytest.mark.parametrize("stop_after", range(6))
    def test_a_run_that_goes_on_forms_the_batches_of_the_whole_run(self, tmp_path, stop_after):
        with CallStore(tmp_path / "whole.sqlite") as store:
            whole = store.model(Batched(), "student").complete(self.questions(22))
        with CallStore(tmp_path / "part.sqlite") as store:
            with pytest.raises(KeyboardInterrupt):
                store.model(Batched(stop_after=stop_after), "student").complete(self.questions(22))
        with CallStore(tmp_path / "part.sqlite") as store:
            again = Batched()
            assert store.model(again, "student").complete(self.questions(22)) == whole
        assert len(again.answered) == 6 - stop_after
        assert all(row.unanswered == 0 for row in read_ledger(tmp_path / "part.sqlite"))

    def test_new_requests_ask_nothing_old(self, path):
        with CallStore(path) as store:
            old = store.model(Batched(), "student").complete(self.questions(8))
            model = Batched()
            assert store.model(model, "student").complete(self.questions(13))[:8] == old
        assert [len(batch) for batch in model.answered] == [4, 1]

    def test_a_smaller_batch_may_go_on(self, path):
        """As after running out of memory."""
        with CallStore(path) as store:
            with pytest.raises(KeyboardInterrupt):
                store.model(Batched(8, stop_after=1), "student").complete(self.questions(24))
            model = Batched(3)
            assert None not in store.model(model, "student").complete(self.questions(24))
        assert sorted(len(batch) for batch in model.answered) == [1, 3, 3, 3, 3, 3]

    def test_a_batch_is_stored_as_a_whole(self, path, monkeypatch):
        with CallStore(path) as store:
            stored = store.model(Batched(), "student")
            stored.complete(self.questions(4))
            page_count = store._connection.execute("PRAGMA page_count").fetchone()[0]
            store._connection.execute(f"PRAGMA max_page_count = {page_count + 1}")
            with pytest.raises(OSError, match="full"):
                stored.complete(self.questions(400))
        states = Counter(state for [state] in rows(path, "state"))
        assert states["answered"] % 4 == 0


class TestKill:
    def test_kill_at_random_moments(self, server, tmp_path):
        """`kill -9`, again and again: no stored call is repeated, and the result is that of a whole run."""
        count, concurrency, draw = 120, 8, random.Random()
        server.delay = lambda body: draw.random() * 0.02
        path, output = tmp_path / "calls.sqlite", tmp_path / "answers.json"
        command = [sys.executable, str(Path(__file__).with_name("run_calls.py"))]
        command += [str(path), server.base_url, str(output), str(count), str(concurrency)]
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

        kills, stored = 0, set()
        while True:
            before = len(server.requests)
            process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
            target = before + draw.randrange(1, 40) if kills < 3 else float("inf")
            while process.poll() is None and len(server.requests) < target:
                time.sleep(0.001)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            time.sleep(0.05)  # the server counts what is on its way
            assert not output.exists() and stored.isdisjoint(server.prompts()[before:])
            stored = self.answered(path)
        assert process.returncode == 0, process.stderr.read().decode()
        assert stored.isdisjoint(server.prompts()[before:])
        assert json.loads(output.read_text()) == [f"echo question {i}" for i in range(count)]
        assert kills == 3 and count <= len(server.requests) <= count + kills * concurrency
        [row] = read_ledger(path)
        assert row.calls - row.unanswered == count and row.unanswered <= kills * concurrency
        assert len(server.requests) <= row.calls + row.retries

    def answered(self, path):
        return {
            json.loads(request)["messages"][0]["content"]
            for request, state in rows(path, "request, state")
            if state == "answered"
        }


class TestFile:
    def test_one_writer_and_any_number_of_readers(self, store, path, ask):
        store.model(Rule(), "teacher").complete(ask(3))
        with pytest.raises(OSError, match="Another run has the call store"):
            CallStore(path)
        program = (
            "import sys; from trl_distill.chat import CallStore, read_ledger\n"
            "print(read_ledger(sys.argv[1])[0].calls)\nCallStore(sys.argv[1])"
        )
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        other = subprocess.run(
            [sys.executable, "-c", program, str(path)], env=env, capture_output=True, text=True, timeout=60
        )
        assert other.stdout == "3\n" and "OSError: Another run has the call store" in other.stderr
        store.close()
        with CallStore(path):
            pass

    @pytest.mark.parametrize("content", [b"id,text\n1,hello\n", b"\0" * 5000, b"SQLite format 3\0" + b"\xff" * 5000])
    def test_files_of_another_kind(self, path, content):
        path.write_bytes(content)
        for use in (CallStore, read_ledger):
            with pytest.raises(ValueError, match="no call store"):
                use(path)
        assert path.read_bytes() == content and not Path(f"{path}-wal").exists()

    def test_a_database_of_another_program_and_of_another_release(self, path, tmp_path):
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE calls (id)")
        content = path.read_bytes()
        for use in (CallStore, read_ledger):
            with pytest.raises(ValueError, match="SQLite file of another program"):
                use(path)
        assert path.read_bytes() == content
        with CallStore(tmp_path / "new.sqlite") as store:
            store._connection.execute("PRAGMA user_version = 9")
        with pytest.raises(ValueError, match="format 9"):
            CallStore(tmp_path / "new.sqlite")

    def test_a_file_of_the_first_format_gets_the_new_column(self, path, ask):
        with CallStore(path) as store:
            answers = store.model(Rule(), "teacher").complete(ask(3))
        with sqlite3.connect(path) as connection:
            connection.executescript("ALTER TABLE calls DROP COLUMN mean_logp; PRAGMA user_version = 1;")
        [row] = read_ledger(path)  # who only reads it leaves it as it is
        with sqlite3.connect(path) as connection:
            assert row.calls == 3 and connection.execute("PRAGMA user_version").fetchone() == (1,)
        model = Rule()
        for _ in range(2):
            with CallStore(path) as store:
                assert store.model(model, "teacher").complete(ask(5))[:3] == answers
        assert model.asked.total() == 2 and rows(path, "mean_logp") == [(None,)] * 5
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (2,)

    def test_damage_is_said(self, path, ask):
        with CallStore(path) as store:
            store.model(Rule(), "teacher").complete(ask(200))
        content = bytearray(path.read_bytes())
        content[4096:] = bytes(len(content) - 4096)
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"), CallStore(path) as store:
            store.model(Rule(), "teacher").complete(ask(200))
        with pytest.raises(ValueError, match="damaged"):
            read_ledger(path)

    def test_places_where_no_file_can_be(self, tmp_path, path):
        for place in (tmp_path, tmp_path / "none" / "calls.sqlite"):
            with pytest.raises(OSError, match="folder that exists"):
                CallStore(place)
        with pytest.raises(FileNotFoundError):
            read_ledger(path)
        assert not path.exists()

    def test_an_empty_file_becomes_a_store(self, path):
        path.touch()
        with CallStore(path) as store:
            assert store.ledger() == []

    def test_a_full_disk_stops_the_run_and_loses_nothing_that_was_stored(self, path, ask):
        model = Rule()
        with CallStore(path) as store:
            stored = store.model(model, "teacher")
            stored.complete(ask(50))
            store._connection.execute("PRAGMA max_page_count = 40")  # what a full disk is to SQLite
            with pytest.raises(OSError, match=r"cannot be written: .*full.*make room"):
                stored.complete(ask(1000))
        with CallStore(path) as store:
            assert None not in store.model(model, "teacher").complete(ask(1000))
        [row] = read_ledger(path)
        assert row.calls - row.unanswered - row.failures == 1000
        assert model.asked.total() <= 1001  # at most the answer that met the full disk was asked twice


class TestAddresses:
    def test_one_name_at_two_addresses(self, path, server, ask):
        here, there = (EndpointChatModel("m", url) for url in (server.base_url, "http://there/v1"))
        with CallStore(path) as store:
            store.model(here, "teacher").complete(ask(2))
            store.model(EndpointChatModel("m", server.base_url + "/"), "referee")
            store.model(EndpointChatModel("n", "http://there/v1"), "teacher")
            with pytest.raises(ValueError, match="set `revision`"):
                store.model(there, "referee")
            for url in ("http://there/v1", "http://elsewhere/v1"):  # with a revision the name says who it is
                other = EndpointChatModel("m", url, revision="2026-01")
                assert store.model(other, "teacher").missing(ask(2)).calls == 2
        with CallStore(path) as store:
            with pytest.raises(ValueError, match=f"--moved {server.base_url} http://there/v1"):
                store.model(there, "teacher")
            with pytest.raises(ValueError, match="No model was asked at http://nowhere"):
                store.move("http://nowhere", "http://there/v1")
            store.move(server.base_url, "http://there/v1")
            assert store.model(there, "teacher").missing(ask(2)).calls == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "`temperature`"),
        ({"temperature": float("nan")}, "`temperature`"),
        ({"top_p": 0.0}, "`top_p`"),
        ({"max_tokens": 0}, "`max_tokens`"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_samplings_that_no_run_can_use(values, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**values)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "empty"),
        ([{"role": "user"}], "two texts"),
        ([{"role": "user", "content": None}], "two texts"),
        ([{"role": "user", "content": "half a pair \ud83d"}], "UTF-8"),
        ("", "empty"),
        ("half a pair \ud83d", "UTF-8"),
        (7, "a text or a list of messages, got 7"),
        (["a", "b"], "a text or a list of messages"),
    ],
)
def test_messages_that_cannot_be_sent(messages, message):
    with pytest.raises(ValueError, match=message):
        ChatRequest(messages)

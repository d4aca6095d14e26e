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
"""The store: nothing asked twice, nothing lost, and files that are none of its own left alone."""

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
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from batch_server import WITHOUT_BATCHES
from chat_server import Rule
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_distill.chat import (
    BaseChatModel,
    CallStore,
    ChatRequest,
    Completion,
    EndpointChatModel,
    FailedCall,
    FunctionChatModel,
    Sampling,
    read_ledger,
)


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


class TestReuse:
    def test_nothing_is_asked_twice(self, path, ask, rows):
        model, requests = Rule(), ask(5)
        with CallStore(path) as store:
            stored = store.model(model, "teacher")
            whole = stored.complete(requests)
            assert [answer.text for answer in whole] == [f"rule question {i} #1" for i in range(5)]
            assert stored.complete(requests[::-1]) == whole[::-1] and stored.complete([]) == []
        with CallStore(path) as store:  # as the next run would
            assert store.model(Rule(), "teacher").complete(ask(7))[:5] == whole
        assert set(model.asked.values()) == {1} and len(rows()) == 7

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

    def test_the_key_is_the_hash_of_the_request_in_the_row(self, store, ask, rows):
        store.model(Rule(revision="2"), "teacher").complete(ask(1, temperature=0, sample_index=3))
        [(key, content)] = rows("key, request")
        assert key == hashlib.sha256(content.encode()).hexdigest()
        assert json.loads(content) == {
            "role": "teacher",
            "model": {"function": "rule", "revision": "2"},
            "messages": [{"role": "user", "content": "question 0"}],
            "sampling": {"temperature": 0.0, "top_p": 1.0, "max_tokens": 1024, "seed": None},
            "sample_index": 3,
        }

    def test_what_only_newer_requests_ask_for_is_in_their_keys_alone(self, store, rows):
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
        assert [json.loads(content) for [content] in rows("request")] == [
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
    def test_a_failed_call_is_noted_and_asked_again(self, path, server, ask, rows):
        no = 400, {"error": {"message": "no"}}, {}
        server.reply = lambda body, *_: no if body["messages"][-1]["content"] == "question 1" else None
        with CallStore(path) as store:
            stored = store.model(EndpointChatModel("m", server.base_url), "teacher")
            answers = stored.complete(ask(3))
            assert [type(answer) for answer in answers] == [Completion, FailedCall, Completion]
            states = sorted(rows("state, text IS NULL, error IS NULL"))
            assert states == [("answered", 0, 1), ("answered", 0, 1), ("failed", 1, 0)]
            server.reply = None
            assert [answer.text for answer in stored.complete(ask(3))] == [f"echo question {i}" for i in range(3)]
        assert Counter(server.prompts()) == {"question 0": 1, "question 1": 2, "question 2": 1}
        [row] = read_ledger(path)
        assert (row.calls, row.failures, row.unanswered) == (4, 1, 0)

    def test_an_error_of_the_model_stops_the_run_and_keeps_the_rest(self, store, rows, ask):
        def rule(request):
            if request.messages[-1]["content"] == "question 3":
                raise ZeroDivisionError("secret")
            return "fine"

        stored = store.model(FunctionChatModel(rule, "rule"), "teacher")
        with pytest.raises(ZeroDivisionError):
            stored.complete(ask(6))
        assert rows("state, error") == [("answered", None)] * 3 + [("failed", "ZeroDivisionError")]

    def test_an_error_waits_for_the_calls_in_flight(self, store, server, ask):
        server.reply = lambda body, *_: (401, {}, {}) if body["messages"][-1]["content"] == "question 0" else None
        server.delay = lambda body: 0.0 if body["messages"][-1]["content"] == "question 0" else 0.3
        stored = store.model(EndpointChatModel("m", server.base_url, concurrency=4), "teacher")
        with pytest.raises(ConnectionError, match="401"):
            stored.complete(ask(50))
        [row] = store.ledger()
        assert row.calls == len(server.requests) <= 8 and row.failures == 1 and row.unanswered == 0


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

    def test_a_batch_is_stored_as_a_whole(self, path, monkeypatch, rows):
        with CallStore(path) as store:
            stored = store.model(Batched(), "student")
            stored.complete(self.questions(4))
            page_count = store._connection.execute("PRAGMA page_count").fetchone()[0]
            store._connection.execute(f"PRAGMA max_page_count = {page_count + 1}")
            with pytest.raises(OSError, match="full"):
                stored.complete(self.questions(400))
        states = Counter(state for [state] in rows("state"))
        assert states["answered"] % 4 == 0


# A run that the tests kill: asks a server through a store, and writes the answers when all are there
RUN = """
import json, sys
from pathlib import Path
from trl_distill.chat import CallStore, ChatRequest, EndpointChatModel

store_path, base_url, output, count, concurrency = sys.argv[1:]
requests = [ChatRequest([{"role": "user", "content": f"question {i}"}]) for i in range(int(count))]
endpoint = EndpointChatModel("m", base_url, concurrency=int(concurrency), backoff=0.01)
with CallStore(store_path) as store:
    answers = store.model(endpoint, role="teacher", stage="answers").complete(requests)
Path(output).write_text(json.dumps([answer.text for answer in answers]))
"""


class TestKill:
    def test_kill_at_random_moments(self, server, path, rows, tmp_path):
        """`kill -9`, again and again: no stored call is repeated, and the result is that of a whole run."""
        count, concurrency, draw = 120, 8, random.Random()
        server.delay = lambda body: draw.random() * 0.02
        output = tmp_path / "answers.json"
        command = [sys.executable, "-c", RUN, str(path), server.base_url, str(output), str(count), str(concurrency)]
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
            stored = {
                json.loads(request)["messages"][0]["content"]
                for request, state in rows("request, state")
                if state == "answered"
            }
        assert process.returncode == 0, process.stderr.read().decode()
        assert stored.isdisjoint(server.prompts()[before:])
        assert json.loads(output.read_text()) == [f"echo question {i}" for i in range(count)]
        assert kills == 3 and count <= len(server.requests) <= count + kills * concurrency
        [row] = read_ledger(path)
        assert row.calls - row.unanswered == count and row.unanswered <= kills * concurrency
        assert len(server.requests) <= row.calls + row.retries


class TestFile:
    def test_one_writer_and_any_number_of_readers(self, store, path, ask):
        store.model(Rule(), "teacher").complete(ask(3))
        with pytest.raises(OSError, match="Another run has the call store"):
            CallStore(path)
        with CallStore(path, read_only=True) as reader:
            assert reader.model(Rule(), "teacher", round=5).complete(ask(3))[0].text == "rule question 0 #1"
            with pytest.raises(OSError, match="readonly"):
                reader.model(Rule(), "teacher").complete(ask(4))
        assert sum(row.calls + row.reused for row in store.ledger()) == 3
        program = (
            "import sys; from trl_distill.chat import CallStore, read_ledger\n"
            "print(read_ledger(sys.argv[1])[0].calls)\nCallStore(sys.argv[1])"
        )
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", program, str(path)]
        other = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
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

    def test_a_file_of_the_first_format_gets_the_new_column(self, path, ask, rows):
        with CallStore(path) as store:
            answers = store.model(Rule(), "teacher").complete(ask(3))
        with sqlite3.connect(path) as connection:
            columns = "".join(f"ALTER TABLE calls DROP COLUMN {name};" for name in ("mean_logp", "thoughts"))
            connection.executescript(f"{WITHOUT_BATCHES} {columns} PRAGMA user_version = 1;")
        [row] = read_ledger(path)  # who only reads it leaves it as it is
        with sqlite3.connect(path) as connection:
            assert row.calls == 3 and connection.execute("PRAGMA user_version").fetchone() == (1,)
        model = Rule()
        for _ in range(2):
            with CallStore(path) as store:
                assert store.model(model, "teacher").complete(ask(5))[:3] == answers
        assert model.asked.total() == 2 and rows("mean_logp") == [(None,)] * 5
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (4,)

    def test_halves_that_an_older_release_took_for_answers_are_asked_again(self, path, ask, rows, server):
        """And what it did take for answers rightly is not, whoever gave it."""
        words = {"stop": 1, "abort": 0, "eos_token": 1, "max_tokens": 1, "error": 0, "unknown": 1, "Tool_Calls": 0}
        models = {"server": EndpointChatModel("m", server.base_url, max_attempts=1), "rule": Rule()}
        with CallStore(path) as store:
            for role, model in models.items():
                store.model(model, role).complete(ask(len(words)))
        with sqlite3.connect(path) as connection:
            for i, word in enumerate(words):
                place = f"request LIKE '%question {i}\"%'"
                connection.execute(f"UPDATE calls SET finish_reason = ?, text = 'old' WHERE {place}", (word,))
            columns = f"{WITHOUT_BATCHES} ALTER TABLE calls DROP COLUMN thoughts;"
            connection.executescript(f"{columns} PRAGMA user_version = 2;")
        content, missing = path.read_bytes(), {"server": 3, "rule": 0}
        with CallStore(path, read_only=True) as store:
            assert {role: store.model(models[role], role).missing(ask(7)).calls for role in models} == missing
        assert path.read_bytes() == content
        with CallStore(path) as store:
            answers = store.model(models["server"], "server").complete(ask(7))
            assert [answer.text == "old" for answer in answers] == [bool(good) for good in words.values()]
            assert answers[3].finish_reason == "length" and answers[2].finish_reason == "stop"
            assert all(answer.text == "old" for answer in store.model(models["rule"], "rule").complete(ask(7)))
        assert len(server.requests) == 7 + 3

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

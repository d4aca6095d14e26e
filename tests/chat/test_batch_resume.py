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

"""Runs with a batch that are stopped at any moment, or changed: what was sent is collected, and paid for once."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from batch_server import CUT, WITHOUT_BATCHES, answer, echoes, texts
from chat_server import PRICES

from trl_distill.chat import CallStore, ChatServerError, EndpointChatModel


PROGRAM = """
import sys
from trl_distill.chat import CallStore, ChatRequest, Sampling, chat_model

path, url, count, batch_size = sys.argv[1:]
entry = {"model": "m", "base_url": url, "engine": "batch", "poll_interval": 0.02, "backoff": 0.001}
model = chat_model(entry | {"prompt_price": 3.0, "completion_price": 15.0, "batch_size": int(batch_size)})
requests = [
    ChatRequest([{"role": "user", "content": f"question {i}"}], Sampling(temperature=0.5)) for i in range(int(count))
]
with CallStore(path) as store:
    for answer in store.model(model, "teacher").complete(requests):
        print(answer.text)
"""


@pytest.fixture
def start(batches, path, tmp_path):
    """Start a run in a process of its own."""
    program = tmp_path / "run.py"
    program.write_text(textwrap.dedent(PROGRAM))

    def run(count=6, batch_size=4):
        command = [sys.executable, str(program), str(path), batches.base_url, str(count), str(batch_size)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen(command, env=environment, **pipes)

    return run


def refuses_temperature(body):
    """So that each call is in two batches."""
    return (
        (400, {"error": {"message": "Unsupported parameter: 'temperature'."}})
        if "temperature" in body
        else answer(body)
    )


@pytest.mark.parametrize("reply", [answer, refuses_temperature])
@pytest.mark.parametrize(
    "moments",
    [
        [("upload", 1), ("create", 1), ("made", 1), ("poll", 2), ("download", 1)],
        [("upload", 2), ("made", 2), ("download", 2), ("list", 1), ("upload", 4)],
        [("upload", 2), ("create", 2), ("poll", 4), ("download", 2), ("list", 1)],
    ],
    ids=["first", "second", "third"],
)
def test_kill_at_any_moment(batches, start, reply, moments):
    """`kill -9` when the server is asked for the n-th time, again and again: nothing is answered twice."""
    left, running = list(moments), []

    def fault(event, number):
        if (event, number) in left:
            left.remove((event, number))
            running[-1].kill()
            running[-1].wait()
            return CUT
        return None

    batches.fault, batches.reply = fault, reply
    kills = 0
    while True:
        running.append(start())
        output, errors = running[-1].communicate(timeout=120)
        if running[-1].returncode != -signal.SIGKILL:
            break
        kills += 1
    assert output.splitlines() == echoes(6), errors
    assert kills == len(moments) - len(left) >= 3 and batches.answered.total() == 6


def test_ctrl_c_says_that_the_batch_goes_on(batches, start):
    running = []

    def fault(event, number):
        if (event, number) == ("poll", 3):
            running[-1].send_signal(signal.SIGINT)

    batches.fault, batches.polls = fault, 10**9
    running.append(start())
    _, errors = running[-1].communicate(timeout=60)
    assert errors.splitlines()[-1].startswith("KeyboardInterrupt: batch_0, batch_1 at http")
    assert "The same command collects" in errors
    for batch in batches.batches.values():
        batch["polls"] = 0
    running.append(start())
    output, errors = running[-1].communicate(timeout=60)
    assert output.splitlines() == echoes(6), errors
    assert len(batches.batches) == 2


@pytest.fixture
def left_behind(batches, complete, ask):
    """A batch of a run that was stopped while it waited for it."""

    def leave(count=4):
        batches.fault = lambda event, number: (401, {}) if event == "poll" else None
        with pytest.raises(ChatServerError):
            complete(ask(count))
        batches.fault = lambda event, number: None

    return leave


def test_a_run_with_other_requests_collects_the_batch_that_holds_some(batches, complete, left_behind, ask, rows):
    left_behind(4)
    assert texts(complete(ask(4, start=2))) == [f"echo question {i}" for i in (2, 3, 4, 5)]
    assert [len(batch["lines"]) for batch in batches.batches.values()] == [4, 2]
    assert {state for [state] in rows("state")} == {"answered"}
    complete(ask(6))
    assert len(batches.batches) == 2


def test_calls_in_a_batch_are_not_sent_one_by_one(batches, complete, left_behind, ask, path):
    left_behind()
    one_by_one = EndpointChatModel("m", batches.base_url, **PRICES)
    with CallStore(path) as store:
        teacher = store.model(one_by_one, "teacher")
        with pytest.raises(ValueError, match=r"sent in batches \(batch_0\).*Set `engine: batch`"):
            teacher.complete(ask(5))
        with pytest.raises(ChatServerError):  # this server has no other endpoint, but they are sent
            teacher.complete(ask(1, start=9))
    complete(ask(4))
    batches.lines += 1


def test_a_batch_that_nobody_noted_is_found_among_others_and_without_metadata(batches, complete, ask, rows, path):
    for start in (0, 1, 2):
        complete(ask(1, start=start))
    batches.fault = lambda event, number: (401, {}) if event == "made" else None
    with pytest.raises(ChatServerError):
        complete(ask(4, start=4))
    batches.fault, batches.page = lambda event, number: None, 1
    for batch in batches.batches.values():
        batch["metadata"] = None
    complete(ask(1, start=3))  # newer than the one that is looked for
    complete(ask(4, start=4))
    assert len(batches.batches) == 5


def test_a_store_of_a_release_without_batches(batches, complete, ask, path):
    complete(ask(2))
    with sqlite3.connect(path) as connection:
        connection.executescript(f"{WITHOUT_BATCHES} PRAGMA user_version = 3;")
    assert texts(complete(ask(3))) == echoes(3) and batches.lines == 3


def test_what_is_sent_is_on_the_disk_before(batches, batch_model, ask, path):
    """A power cut may take the last single calls from a store, but no batch."""
    seen = []
    with CallStore(path) as store:
        batches.fault = lambda event, number: seen.extend(store._read("PRAGMA synchronous"))
        store.model(batch_model(), "teacher").complete(ask(2))
        assert set(seen) == {(2,)} and store._read("PRAGMA synchronous") == [(1,)]

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

"""Batches: what they say, refuse and cost, and after each test the ledger against what the server has counted."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from batch_server import CUT, BatchServer, answer
from chat_server import PRICES, said

from trl_distill.chat import (
    BatchChatModel,
    BudgetReached,
    CallStore,
    ChatRequest,
    ChatServerError,
    EndpointChatModel,
    FailedCall,
    batch_calls,
    chat_model,
    read_ledger,
)


def check(server, path):
    """The ledger of a store is what the server has counted, and it has answered nothing twice."""
    rows = read_ledger(path)
    assert sum(row.calls + row.retries for row in rows) == server.lines
    bill = [server.tokens["prompt_tokens"], server.tokens["completion_tokens"]]
    assert [sum(row.prompt_tokens for row in rows), sum(row.completion_tokens for row in rows)] == bill
    cost = (PRICES["prompt_price"] * bill[0] + PRICES["completion_price"] * bill[1]) / 1e6
    assert sum(row.cost_usd for row in rows) == pytest.approx(cost)
    assert set(server.answered.values()) <= {1}


@pytest.fixture
def batches(path):
    server = BatchServer()
    yield server
    server.stop()
    check(server, path)


SETTINGS = dict(engine="batch", poll_interval=0.001, backoff=0.001, **PRICES)


@pytest.fixture
def batch_model(batches):
    opened = []

    def build(name="m", **settings):
        opened.append(chat_model({"model": name, "base_url": batches.base_url, **SETTINGS, **settings}))
        return opened[-1]

    yield build
    for model in opened:
        model.close()


@pytest.fixture
def complete(path, batch_model):
    """Ask through a store that is opened anew, as the next run does."""

    def run(requests, limits=None, **settings):
        with CallStore(path, **limits or {}) as store:
            return store.model(batch_model(**settings), "teacher").complete(requests)

    return run


def texts(answers):
    return [answer.text for answer in answers]


def echoes(count):
    return [f"echo question {i}" for i in range(count)]


def number(body):
    return int(body["messages"][-1]["content"].split()[-1])


# A batch


def test_all_that_is_asked_at_once_is_one_batch(batches, complete, ask, rows):
    requests = ask(5, temperature=0.5, seed=1)
    assert texts(complete(requests)) == echoes(5)
    [batch] = batches.batches.values()
    assert [line["custom_id"] for line in batch["lines"]] == [key for [key] in rows("key")]
    assert batch["lines"][0]["body"].keys() == {"model", "messages", "temperature", "seed", "max_tokens"}
    assert texts(complete(requests)) == echoes(5) and len(batches.batches) == 1


def test_single_calls_and_batches_share_their_answers(batches, complete, ask, path, connect, server):
    complete(ask(3))
    with CallStore(path) as store:
        one_by_one = store.model(connect(revision="r"), "teacher")
        assert one_by_one.missing(ask(3)).calls == 3  # another revision is another model
        with pytest.raises(ValueError, match="was asked at"):
            store.model(connect(), "teacher")
        same = EndpointChatModel("m", batches.base_url)
        assert texts(store.model(same, "teacher").complete(ask(3))) == echoes(3)
    assert not server.requests


def test_a_batch_has_a_limit_and_so_has_the_number_of_batches(batches, complete, ask):
    def alone(event, number):
        under_way = [b for b in batches.batches.values() if b["status"] in ("validating", "in_progress")]
        assert event != "create" or not under_way

    batches.fault = alone
    assert texts(complete(ask(5), batch_size=2, concurrency=1)) == echoes(5)
    assert [len(batch["lines"]) for batch in batches.batches.values()] == [2, 2, 1]


def test_a_file_has_a_largest_size(batches, complete, ask, monkeypatch):
    monkeypatch.setattr(batch_calls, "MOST_BYTES", 500)  # a line has 200 and some
    complete(ask(5))
    assert [len(batch["lines"]) for batch in batches.batches.values()] == [2, 2, 1]
    assert all(
        len(content) <= 500 for content in batches.files.values() if b"custom_id" in content and b'"url"' in content
    )


def test_texts_of_all_kinds(batches, complete):
    prompts = ['ä 中 \u2028 \n \\ "', "🙂", "</s>"]
    requests = [ChatRequest([{"role": "user", "content": prompt}]) for prompt in prompts]
    assert texts(complete(requests)) == [f"echo {prompt}" for prompt in prompts]


def test_a_batch_needs_a_store_and_messages(batches, complete, batch_model, ask, path):
    with CallStore(path):
        pass
    with pytest.raises(ValueError, match="needs? .*`CallStore`|only a `CallStore`"):
        batch_model().complete(ask(1))
    with pytest.raises(ValueError, match="not a plain text"):
        complete([ChatRequest("Once upon")])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"model": "m", "engine": "vllm"}, "`engine` of the chat model 'm' must be `batch`, got 'vllm'"),
        ({"model_name_or_path": "f", "engine": "batch"}, "must be `transformers` or `vllm`, got 'batch'"),
        ({"model": "m", "engine": "batch", "batch_sizes": 3}, "Did you mean batch_size?"),
        ({"model": "m", "batch_size": 3}, "Unknown key `batch_size`"),
        ({"model": "m", "engine": "batch", "settings": {}}, "Unknown key `settings`"),
        ({"model": "m", "engine": "batch", "poll_interval": "1"}, "must be float, got '1'"),
        ({"model": "m", "engine": "batch", "batch_size": 0}, "`batch_size` must be 1 or more"),
        ({"model": "m", "engine": "batch", "prompt_price": 1.0}, "Set both prices"),
    ],
)
def test_a_wrong_entry_is_refused(entry, message):
    with pytest.raises(ValueError) as error:
        chat_model({"base_url": "http://localhost:1/v1"} | entry if "model" in entry else entry)
    assert message in str(error.value)


def test_an_entry_has_the_settings_of_a_server_too():
    model = chat_model({"model": "m", "engine": "batch", "batch_size": 9, "max_attempts": 2, "omit": ["seed"]})
    assert type(model) is BatchChatModel and (model.batch_size, model.max_attempts) == (9, 2)


# Single requests that fail


def test_a_request_that_is_refused_has_failed_alone(batches, complete, ask, rows):
    refused = 400, {"error": {"message": "This prompt is not welcome.", "code": "content_filter"}}
    batches.reply = lambda body: refused if number(body) == 1 else answer(body)
    answers = complete(ask(3))
    assert isinstance(answers[1], FailedCall) and "not welcome" in answers[1].error and answers[2].text
    assert rows("state, cost")[1] == ("failed", 0.0)
    batches.reply = answer
    assert texts(complete(ask(3))) == echoes(3) and len(batches.requests) == 4  # the next run asks that one alone


@pytest.mark.parametrize("names", [["temperature"], ["temperature", "seed"]])
def test_a_refused_field_is_left_out_in_one_more_batch(batches, path, batch_model, ask, caplog, names):
    def reply(body):
        for name in names:
            if name in body:
                return 400, {"error": {"message": f"Unsupported parameter: '{name}'.", "param": name}}
        return answer(body)

    batches.reply = reply
    with CallStore(path) as store:
        teacher = store.model(batch_model(), "teacher")
        answers = teacher.complete(ask(3, temperature=0.5, seed=1))
        assert texts(answers) == echoes(3) and answers[0].retries == len(names) == len(batches.batches) - 1
        teacher.complete(ask(5, temperature=0.5, seed=1))  # it is known now
    assert len(batches.requests) == 3 * (1 + len(names)) + 2
    assert all(f"m refuses `{name}`: it is left out" in caplog.text for name in names)


@pytest.mark.parametrize("status", [429, 500])
def test_a_busy_server_is_asked_in_further_batches(batches, complete, ask, status):
    busy = {"left": 2}

    def reply(body):
        if number(body) == 1 and busy["left"]:
            busy["left"] -= 1
            return status, {"error": {"message": "busy"}}
        return answer(body)

    batches.reply = reply
    answers = complete(ask(3))
    assert texts(answers) == echoes(3) and [answer.retries for answer in answers] == [0, 2, 0]
    busy["left"] = 9
    [*_, failed, _] = complete([*ask(1, start=5), *ask(1, start=1, sample_index=1), *ask(1, start=6)], max_attempts=3)
    assert "busy" in failed.error and failed.retries == 2


def test_what_is_billed_and_cannot_be_read_is_not_asked_again(batches, complete, ask, rows):
    batches.reply = lambda body: said("half a", "abort") if number(body) == 0 else answer(body)
    answers = complete(ask(2))
    assert (
        "finish reason 'abort'" in answers[0].error and rows("prompt_tokens")[0] == (11,) and len(batches.batches) == 1
    )


def test_a_model_that_answers_nothing_stops_the_run(batches, complete, ask):
    batches.reply = lambda body: (404, {"error": {"message": "The model m does not exist."}})
    with pytest.raises(ChatServerError, match="no call of 20 has an answer: .*does not exist"):
        complete(ask(20))
    assert len(complete(ask(2), max_consecutive_failures=3)) == 2  # two of them may be two bad ones


# Batches that fail


def test_a_batch_that_is_refused_was_never_asked(batches, complete, ask, path):
    batches.most_requests = 2
    with pytest.raises(ChatServerError, match="batch_0.*refused, and nothing.*more than 2 requests.*`batch_size`"):
        complete(ask(3))
    assert read_ledger(path) == []
    assert texts(complete(ask(3), batch_size=2)) == echoes(3)


@pytest.mark.parametrize("status", ["expired", "cancelled"])
@pytest.mark.parametrize("count", [0, 2])
def test_what_a_batch_that_was_ended_has_answered_is_kept(batches, complete, ask, status, count):
    batches.end = lambda batch: (status, count)
    with pytest.raises(ChatServerError, match=f"batch_0 .* is {status}, and {5 - count} of 5 calls are not answered"):
        complete(ask(5))
    batches.end = lambda batch: ("completed", None)
    assert texts(complete(ask(5))) == echoes(5) and len(batches.batches["batch_1"]["lines"]) == 5 - count


def test_the_others_are_collected_when_one_batch_is_ended(batches, complete, ask):
    batches.end = lambda batch: ("cancelled", 1) if batch["id"] == "batch_0" else ("completed", None)
    with pytest.raises(ChatServerError, match="batch_0"):
        complete(ask(8), batch_size=2, concurrency=3)
    assert len(batches.batches) == 3 and batches.answered.total() == 5
    batches.end = lambda batch: ("completed", None)
    assert texts(complete(ask(8))) == echoes(8)


# Servers and networks that fail


@pytest.mark.parametrize("event", ["upload", "create", "made", "poll", "download"])
@pytest.mark.parametrize(
    "fault", [(500, {}), (429, {"error": "busy"}), CUT, b"no JSON"], ids=["500", "429", "cut", "text"]
)
def test_a_fault_is_tried_again_and_makes_no_second_batch(batches, complete, ask, event, fault):
    batches.fault = lambda at, number: fault if (at, number) in ((event, 1), (event, 2), ("list", 1)) else None
    assert texts(complete(ask(3))) == echoes(3) and len(batches.batches) == 1


def test_an_outage_while_polling_is_waited_for(batches, complete, ask):
    batches.fault = lambda event, number: (503, {}) if event == "poll" and 2 <= number < 12 else None
    batches.polls = 5
    assert texts(complete(ask(2), max_attempts=2)) == echoes(2)


@pytest.mark.parametrize("event", ["upload", "create", "made", "poll", "download"])
@pytest.mark.parametrize("status", [401, 404, 503])
def test_a_server_that_refuses_stops_the_run_which_goes_on_later(batches, complete, ask, event, status, monkeypatch):
    monkeypatch.setenv("A_KEY", "a-key-of-some-length-123")
    says = {"error": {"message": "Incorrect API key provided: a-key-of-some-length-123"}}
    events = {"made": ("made", "list")}.get(event, (event,))  # where it was made after all it could be found
    batches.fault = lambda at, number: (status, says) if at in events else None
    with pytest.raises(ChatServerError, match="again") as error:
        complete(ask(3), max_attempts=2, max_consecutive_failures=3, api_key_env="A_KEY")
    assert "a-key" not in str(error.value) and error.value.__context__ is None
    assert batches.headers[-1]["Authorization"] == "Bearer a-key-of-some-length-123"
    batches.fault = lambda at, number: None
    assert texts(complete(ask(3))) == echoes(3) and len(batches.batches) == 1
    assert "Authorization" not in batches.headers[-1]


def test_a_key_that_is_sent_back_is_hidden(batches, complete, ask, rows, monkeypatch):
    monkeypatch.setenv("A_KEY", "a-key-of-some-length-123")
    batches.reply = lambda body: said("it is a-key-of-some-length-123")
    assert texts(complete(ask(1), api_key_env="A_KEY")) == ["it is [key]"] and rows("text") == [("it is [key]",)]


# Budgets


def worst(max_tokens):
    return (PRICES["prompt_price"] * (16 + 16 + 10) + PRICES["completion_price"] * max_tokens) / 1e6


def test_a_budget_sends_what_fits(batches, complete, ask, path):
    """Two worst cases fit at a time; what they leave lets more through, and the limit is never broken."""
    asked, budget = ask(8, max_tokens=100), 2.5 * worst(100)
    assert texts(complete(asked, {"budget_usd": budget})) == echoes(8)
    assert len(batches.batches) > 1 and read_ledger(path)[0].cost_usd <= budget


def test_a_budget_stops_before_it_is_broken(batches, complete, ask, path):
    asked, one = ask(8, max_tokens=5), (3 * 11 + 15 * 5) / 1e6
    with pytest.raises(BudgetReached, match="`budget_usd` is .*raise the limit"):
        complete(asked, {"budget_usd": worst(5) + 2.5 * one})
    assert read_ledger(path)[0].cost_usd == pytest.approx(3 * one)
    assert texts(complete(asked, {"budget_usd": 1.0})) == echoes(8)


def test_calls_have_a_limit(batches, complete, ask):
    for limit in (0, 3, 3, 4):
        with pytest.raises(BudgetReached, match=f"`max_calls` is {limit}"):
            complete(ask(5), {"max_calls": limit})
        assert batches.lines == limit
    assert texts(complete(ask(5), {"max_calls": 5})) == echoes(5)


def test_a_dry_run_counts_what_has_no_answer(batches, complete, ask, path, batch_model):
    complete(ask(2))
    with CallStore(path, read_only=True) as store:
        missing = store.model(batch_model(), "teacher").missing(ask(5))
    assert missing.calls == 3 and missing.cost_usd == pytest.approx(3 * (3 * 11 + 15 * 5) / 1e6)


# Runs that are stopped

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

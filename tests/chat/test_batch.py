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

import time

import pytest
from batch_server import CUT, answer, echoes, texts
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
    "fault",
    [(500, {}), (429, {"error": "busy"}), CUT, b"no JSON", b"{}", b"[]"],
    ids=["500", "429", "cut", "text", "object", "list"],
)
def test_a_fault_is_tried_again_and_makes_no_second_batch(batches, complete, ask, event, fault):
    batches.fault = lambda at, number: fault if (at, number) in ((event, 1), (event, 2), ("list", 1)) else None
    assert texts(complete(ask(3))) == echoes(3) and len(batches.batches) == 1


@pytest.mark.parametrize("event", ["upload", "create", "made", "poll", "download"])
def test_a_server_that_is_late_is_asked_again(batches, complete, ask, event):
    batches.fault = lambda at, number: time.sleep(1.5) if (at, number) == (event, 1) else None
    assert texts(complete(ask(3), timeout=1.0)) == echoes(3) and len(batches.batches) == 1


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


def test_answers_that_the_files_lack_are_not_given_up(batches, complete, ask, rows):
    """They are paid for: a file may have been cut at the end of a line, or not be there yet."""

    def cut(event, number):
        [file] = [content for content in batches.files.values() if b'"response"' in content]
        return file[: file.index(b"\n") + 1]

    batches.fault = lambda event, number: cut(event, number) if event == "download" else None
    with pytest.raises(ChatServerError, match="has lost answers of the batch batch_0: .* hold 1 of 3"):
        complete(ask(3))
    assert rows("state") == [("sent",)] * 3
    batches.fault = lambda event, number: None
    assert texts(complete(ask(3))) == echoes(3) and len(batches.batches) == 1


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

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
"""A client of any OpenAI-compatible server, against a scripted one with every fault that a server can have."""

import logging
import socket
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from chat_server import ChatServer, completion_body, text_body

from trl_distill.chat import (
    CallStore,
    ChatRequest,
    ChatServerError,
    Completion,
    EndpointChatModel,
    FailedCall,
    Sampling,
)
from trl_distill.chat.endpoint import seconds_to_wait


KEY = "sk-very-secret-0123456789"
SENT = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 17}  # of Sampling(0.5, 0.9, 17)


@pytest.fixture
def connect(server):
    """Factory of clients of the server, with short waits."""
    opened = []

    def build(**settings):
        opened.append(EndpointChatModel("m", server.base_url, **{"backoff": 0.001, "timeout": 10.0} | settings))
        return opened[-1]

    yield build
    for model in opened:
        model.close()


def first(times, replies):
    """A reply that goes wrong the first times and is an echo afterwards."""
    return lambda body, attempt, headers: replies if attempt <= times else None


class TestRequests:
    def test_what_is_sent_and_what_comes_back(self, server, connect):
        server.reply = lambda *_: completion_body("Because.", "length", 11, 22)
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why? 你好 🙂"}]
        [answer] = connect().complete([ChatRequest(messages, Sampling(0.5, 0.9, 17))])
        assert answer == Completion("Because.", "length", 11, 22, 0)
        assert server.requests == [{"model": "m", "messages": messages} | SENT]

    def test_a_plain_text_goes_to_completions(self, server, connect):
        server.reply = lambda *_: text_body("Because.", "length", [-0.5, -2.0])
        [answer] = connect().complete([ChatRequest("Why?", Sampling(0.5, 0.9, 17))])
        assert answer == Completion("Because.", "length", 7, 3) and server.paths == ["/v1/completions"]
        assert server.requests == [{"model": "m", "prompt": "Why?"} | SENT]

    @pytest.mark.parametrize(("messages", "asked"), [("Why?", 1), ([{"role": "user", "content": "Why?"}], True)])
    def test_log_probabilities_are_asked_for_and_averaged(self, server, connect, messages, asked):
        chat = not isinstance(messages, str)
        request = ChatRequest(messages, Sampling(logprobs=True))
        for logps, expected in (([-0.5, -2.0], -1.25), (None, None)):
            server.reply = lambda *_, logps=logps: text_body("Because.", logps=logps, chat=chat)
            assert connect().complete([request])[0].mean_logp == expected
            assert server.requests[-1]["logprobs"] is asked

    def test_values_for_the_template_of_model_and_request(self, server, connect):
        model = connect(extra_body={"chat_template_kwargs": {"a": 1, "b": 1}})
        model.complete([ChatRequest([{"role": "user", "content": "Hi"}], chat_template_kwargs={"b": 2})])
        assert server.requests[0]["chat_template_kwargs"] == {"a": 1, "b": 2}

    def test_settings_of_a_server(self, server, connect, ask):
        extra = {"chat_template_kwargs": {"enable_thinking": False}}
        model = connect(max_tokens_parameter="max_completion_tokens", extra_body=extra)
        model.complete(ask(1, max_tokens=5))
        assert server.requests[0].items() >= (extra | {"max_completion_tokens": 5}).items()
        assert "max_tokens" not in server.requests[0]
        assert model.identity != connect().identity

    def test_each_draw_has_its_seed(self, server, connect, ask):
        model = connect()
        for seed in (3, 4):
            for index in (0, 1, 1):
                model.complete(ask(1, sample_index=index, seed=seed))
        seeds = [body["seed"] for body in server.requests]
        assert seeds[1] == seeds[2] and seeds[4] == seeds[5] and len(set(seeds)) == 4

    def test_order_is_kept_and_concurrency_bounded_and_used(self, server, connect, ask):
        together = threading.Barrier(8)  # opens when eight requests are in flight

        def delay(body):
            if not together.broken and len(server.requests) <= 8:
                together.wait(timeout=30)
            return 0.005 * (int(body["messages"][-1]["content"].split()[1]) * 7 % 10)

        server.delay = delay
        answers = connect(concurrency=8, timeout=60.0).complete(ask(60))
        assert [answer.text for answer in answers] == [f"echo question {i}" for i in range(60)]
        assert server.most_in_flight == 8 and [a.retries for a in answers] == [0] * 60

    def test_missing_usage_is_not_made_up(self, server, connect, ask):
        body = completion_body("a")
        del body["usage"]
        server.reply = lambda *_: body
        assert connect().complete(ask(1)) == [Completion("a", "stop", None, None)]

    @pytest.mark.parametrize(("content", "text"), [(None, ""), ("", ""), ("half a pair \ud83d!", "half a pair ?!")])
    def test_text_that_is_none_or_cannot_be_written(self, server, connect, ask, content, text):
        server.reply = lambda *_: completion_body(content, "content_filter")
        [answer] = connect().complete(ask(1))
        assert (answer.text, answer.finish_reason) == (text, "content_filter")
        answer.text.encode()


class TestFaults:
    @pytest.mark.parametrize(
        "fault",
        [
            *((status, {"error": {"message": "busy"}}, {}) for status in (408, 409, 429, 500, 502, 503, 504)),
            (200, ChatServer.CUT, {}),
            {"choices": []},
            {"error": {"message": "overloaded", "code": 502}},
            {"choices": [{"message": None, "finish_reason": "stop"}]},
            {"choices": [{"message": {"content": ["a", "b"]}, "finish_reason": "stop"}]},
            {"choices": "many"},
            (200, "[1, 2]", {}),
            (200, "<html>Please log in</html>", {"Content-Type": "text/html"}),
            (200, '{"choices": [{"mess', {}),
            (200, "", {}),
        ],
        ids=str,
    )
    def test_passing_faults_are_tried_again_and_counted(self, server, connect, ask, fault):
        server.reply = first(2, fault)
        [answer] = connect(max_attempts=3).complete(ask(1))
        assert (answer.text, answer.retries) == ("echo question 0", 2)
        assert len(server.requests) == 3 and server.requests[0] == server.requests[2]

        server.reply = first(100, fault)
        [answer] = connect(max_attempts=2).complete(ask(1, start=1))
        assert isinstance(answer, FailedCall) and answer.retries == 1 and answer.error
        assert len(server.requests) == 5

    def test_time_out(self, server, connect, ask):
        server.delay = lambda body: 0.0 if len(server.requests) > 2 else 2.0
        [answer] = connect(timeout=0.7).complete(ask(1))
        assert (answer.text, answer.retries) == ("echo question 0", 2)
        server.delay = 0.5
        [answer] = connect(timeout=0.05, max_attempts=2).complete(ask(1, start=1))
        assert isinstance(answer, FailedCall) and "timed out" in answer.error

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_a_bad_request_fails_alone_and_at_once(self, server, connect, ask, status):
        too_long = status, {"error": {"message": "the prompt is too long"}}, {}
        server.reply = lambda body, *_: too_long if body["messages"][-1]["content"] == "question 1" else None
        answers = connect().complete(ask(3))
        assert [type(answer) for answer in answers] == [Completion, FailedCall, Completion]
        assert str(status) in answers[1].error and "too long" in answers[1].error
        assert len(server.requests) == 3

    @pytest.mark.parametrize("status", [401, 402, 403, 404])
    def test_who_is_refused_stops_at_once(self, server, connect, ask, status):
        server.reply = lambda *_: (status, {"error": {"message": "not you"}}, {})
        with pytest.raises(ChatServerError, match=f"{status}.*not you.*api_key_env"):
            connect(concurrency=4).complete(ask(100))
        assert len(server.requests) <= 4  # those under way

    def test_retry_after_is_obeyed(self, server, connect, ask):
        server.reply = first(1, (429, {}, {"Retry-After": "0.4"}))
        [answer] = connect().complete(ask(1))
        waited = server.times[1] - server.times[0]
        assert answer.retries == 1 and waited >= 0.4

    def test_the_wait_grows(self, server, connect, ask):
        server.reply = first(3, (500, {}, {}))
        connect(backoff=0.1).complete(ask(1))
        waits = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
        assert waits[0] >= 0.1 and waits[1] >= 0.2 and waits[2] >= 0.4

    def test_a_quota_of_hours_is_not_waited_for(self, server, connect, ask):
        server.reply = lambda *_: (429, {"error": {"message": "daily quota"}}, {"Retry-After": "3600"})
        [answer] = connect().complete(ask(1))
        assert "daily quota" in answer.error and "3600 s" in answer.error and len(server.requests) == 1

    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            ({}, None),
            ({"retry-after": "2.5"}, 2.5),
            ({"retry-after": "7", "retry-after-ms": "1500"}, 1.5),
            ({"retry-after": "soon"}, None),
            ({"retry-after": "-3"}, 0.0),
            ({"retry-after": "nan"}, None),
            ({"retry-after": "inf"}, None),
            ({"retry-after": "1", "retry-after-ms": "x"}, 1.0),
            ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ],
    )
    def test_seconds_to_wait(self, headers, expected):
        assert seconds_to_wait(headers) == expected

    def test_seconds_to_wait_until_a_date(self):
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
        assert 57 < seconds_to_wait({"retry-after": date}) <= 60

    def test_a_server_that_is_down(self, ask):
        with socket.socket() as place:  # a port where nobody listens
            place.bind(("127.0.0.1", 0))
            model = EndpointChatModel("m", f"http://127.0.0.1:{place.getsockname()[1]}/v1", backoff=0.001)
            with pytest.raises(ChatServerError, match=r"No server answers at http://127.*Connection refused"):
                model.complete(ask(3))

    def test_failures_in_a_row_stop_the_run_and_single_ones_do_not(self, server, connect, ask):
        def fails(share):
            return lambda body, *_: (
                (500, {"error": {"message": "out of memory"}}, {})
                if int(body["messages"][-1]["content"].split()[1]) % 4 < share
                else None
            )

        server.reply = fails(3)  # three of four, in a row
        model = connect(max_attempts=1, max_consecutive_failures=4, concurrency=1)
        assert sum(isinstance(answer, FailedCall) for answer in model.complete(ask(40))) == 30
        server.reply = fails(4)
        with pytest.raises(ChatServerError, match=r"4 calls of m .* failed in a row.*out of memory"):
            model.complete(ask(40))
        assert len(server.requests) == 44


class TestKeys:
    def test_a_named_server_gets_only_a_named_key(self, server, connect, ask, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        connect().complete(ask(1))
        assert not any(KEY in str(headers) for headers in server.headers)
        monkeypatch.setenv("MY_KEY", f"{KEY}\n")  # as from a file
        connect(api_key_env="MY_KEY").complete(ask(1))
        assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        EndpointChatModel("m").complete(ask(1))
        assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"

    def test_a_missing_key_is_named_when_it_is_needed(self, server, ask, monkeypatch, tmp_path):
        monkeypatch.delenv("MY_KEY", raising=False)
        model = EndpointChatModel("m", server.base_url, api_key_env="MY_KEY")
        with CallStore(tmp_path / "calls.sqlite") as store:
            with pytest.raises(ValueError, match="MY_KEY"):
                store.model(model, "teacher").complete(ask(1))
            monkeypatch.setenv("MY_KEY", KEY)
            store.model(model, "teacher").complete(ask(1))
            monkeypatch.delenv("MY_KEY")  # what is stored needs no key
            again = EndpointChatModel("m", server.base_url, api_key_env="MY_KEY")
            assert store.model(again, "teacher").complete(ask(1))[0].text == "echo question 0"

    @pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
    def test_the_key_is_in_no_file_log_or_error(self, server, connect, ask, status, monkeypatch, caplog, tmp_path):
        """The server sends back what it got, as some do."""
        monkeypatch.setenv("MY_KEY", KEY)
        caplog.set_level(logging.DEBUG)

        def reply(body, attempt, headers):
            return status, {"error": {"message": f"wrong key: {headers['Authorization']}"}}, {}

        server.reply, seen = reply, ""
        with CallStore(tmp_path / "calls.sqlite") as store:
            model = store.model(connect(api_key_env="MY_KEY", max_attempts=2), "teacher")
            try:
                seen += repr(model.complete(ask(2)))
            except ChatServerError as error:
                seen += str(error)
            for file in tmp_path.iterdir():
                assert KEY.encode() not in file.read_bytes()
            seen += repr(vars(model)) + repr(vars(model._model)) + repr(store.ledger())
        for file in tmp_path.iterdir():
            assert KEY.encode() not in file.read_bytes()
        ours = [record for record in caplog.records if record.name.startswith("trl_distill")]
        assert status in (200, 401) or ours
        assert KEY not in seen and KEY not in caplog.text and "wrong key" in seen + caplog.text

    @pytest.mark.parametrize("url", [f"http://me:{KEY}@host/v1", f"https://host/v1?key={KEY}"])
    def test_an_address_with_a_key_is_refused(self, url):
        with pytest.raises(ValueError, match="api_key_env") as error:
            EndpointChatModel("m", url)
        assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concurrency": 0}, "`concurrency` must be 1 or more, got 0"),
        ({"max_attempts": 0}, "`max_attempts`"),
        ({"prompt_price": 1.0}, "`completion_price` is None"),
        ({"prompt_price": -1.0, "completion_price": 1.0}, "0 or more"),
        ({"base_url": "localhost:8000"}, "must look like"),
    ],
)
def test_settings_that_no_run_can_use(settings, message):
    with pytest.raises(ValueError, match=message):
        EndpointChatModel("m", **{"base_url": "http://localhost/v1"} | settings)

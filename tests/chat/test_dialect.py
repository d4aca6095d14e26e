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

"""What is sent to a server: what is set, without what it refuses, with headers of its own."""

import pytest
from chat_server import ChatServer, refuses, said

from trl_distill.chat import CallStore, FailedCall, chat_model


def test_only_what_is_set_is_sent(meter, store, connect, ask):
    meter.serve(lambda *_: said("fine"))
    teacher = store.model(connect(), "teacher")
    sent = []
    for sampling in ({}, {"temperature": 0.0}, {"top_p": 0.5, "seed": 3}, {"max_tokens": 9}):
        teacher.complete(ask(1, **sampling))
        sent.append(meter.server.requests[-1].keys() - {"model", "messages"})
    assert sent == [{"max_tokens"}, {"temperature", "max_tokens"}, {"top_p", "seed", "max_tokens"}, {"max_tokens"}]


def test_what_is_not_set_has_the_key_of_its_value(path, connect, ask):
    """So a store of an older release, which always set it, still answers."""
    server = ChatServer()
    with CallStore(path) as store:
        model = store.model(connect(base_url=server.base_url), "teacher")
        first = model.complete(ask(1, temperature=1.0, top_p=1.0))
        assert model.complete(ask(1)) == first and len(server.requests) == 1
    server.stop()


def test_fields_are_omitted_as_told(meter, store, connect, ask):
    meter.serve(lambda *_: said("fine"))
    fields = dict(temperature=0.5, top_p=0.9, seed=1, logprobs=True)
    omit = ["temperature", "top_p", "seed", "logprobs", "max_tokens"]
    store.model(connect(omit=omit), "teacher").complete(ask(1, **fields))
    assert meter.server.requests[-1].keys() == {"model", "messages"}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, None),
        (400, lambda name: {"error": {"message": "Unsupported value.", "param": name, "code": "unsupported_value"}}),
        (422, lambda name: {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs"}]}),
        (400, lambda name: {"object": "error", "message": f"`{name}` is deprecated for this model."}),
    ],
)
@pytest.mark.parametrize("names", [["seed"], ["temperature"], ["top_p", "temperature", "seed"], ["logprobs"]])
def test_a_refused_field_is_learned_and_said_once(meter, store, connect, ask, caplog, status, body, names):
    meter.serve(refuses(*names, status=status, body=body))
    model = connect(max_attempts=1)
    asked = ask(5, temperature=0.5, top_p=0.9, seed=1, logprobs=True)
    answers = store.model(model, "teacher").complete(asked)
    assert [answer.text for answer in answers] == ["fine"] * 5
    assert len(meter.server.requests) == 5 + len(names) and answers[0].retries == len(names)
    for name in names:
        assert caplog.text.count(f"m refuses `{name}`: it is left out. Set `omit: [{name}]`") == 1
    assert meter.server.requests[-1].keys() & {"temperature", "top_p", "seed", "logprobs"} == (
        {"temperature", "top_p", "seed", "logprobs"} - set(names)
    )


def test_of_two_fields_that_exclude_each_other_one_is_left(meter, store, connect, ask):
    both = {"error": {"message": "`temperature` and `top_p` cannot both be specified for this model."}}
    meter.serve(lambda body, *_: (400, both, {}) if {"temperature", "top_p"} <= body.keys() else said("fine"))
    store.model(connect(), "teacher").complete(ask(3, temperature=0.5, top_p=0.9))
    assert len(meter.server.requests) == 4 and "temperature" in meter.server.requests[-1]


def test_the_longest_answer_has_another_name_and_is_never_left_out(meter, store, connect, ask):
    new = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    meter.serve(lambda body, *_: (400, {"error": {"message": new}}, {}) if "max_tokens" in body else said("fine"))
    model = store.model(connect(), "teacher")
    model.complete(ask(3, max_tokens=9))
    assert [body.get("max_completion_tokens") for body in meter.server.requests] == [None, 9, 9, 9]
    large = 400, {"error": {"message": "max_tokens is too large: 9"}}, {}
    meter.serve(lambda body, *_: large if "max_tokens" in body else said("without end"))
    [answer] = store.model(connect("other"), "teacher").complete(ask(1, max_tokens=9))
    assert "too large" in answer.error and len(meter.server.requests) == 5


def test_a_refusal_that_leaving_out_does_not_mend_is_not_learned(meter, store, connect, ask):
    long = 400, {"error": {"message": "The prompt is too long.", "request": {"seed": 1, "temperature": 0.5}}}, {}
    meter.serve(lambda body, *_: long if "question 0" in body["messages"][0]["content"] else said("fine"))
    answers = store.model(connect(), "teacher").complete(ask(2, temperature=0.5, seed=1))
    assert isinstance(answers[0], FailedCall) and "too long" in answers[0].error
    assert {"temperature", "seed"} <= meter.server.requests[-1].keys()


def test_headers_from_the_environment(meter, store, connect, ask, monkeypatch):
    monkeypatch.setenv("GATEWAY_KEY", "a-key-of-a-gateway-1")
    headers = {"api-key": "${GATEWAY_KEY}", "X-Team": "research", "Authorization": "Token ${GATEWAY_KEY}"}
    meter.serve(lambda *_: said("fine"))
    store.model(connect(headers=headers), "teacher").complete(ask(1))
    got = meter.server.headers[-1]
    assert [got[name] for name in headers] == ["a-key-of-a-gateway-1", "research", "Token a-key-of-a-gateway-1"]
    store.model(connect("other"), "teacher").complete(ask(1))
    assert "Authorization" not in meter.server.headers[-1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api-key", "abc"),
        ("Authorization", "Bearer abc"),
        ("Ocp-Apim-Subscription-Key", "0"),
        ("X-Auth", "me"),
        ("X-Value", "sk-abc"),
        ("X-Value", "Basic YWJj"),
        ("X-Value", "8f14e45fceea167a5a36dedd4bea2543"),
    ],
)
def test_a_secret_header_in_a_file_is_refused_and_not_repeated(name, value):
    with pytest.raises(ValueError, match="environment variable") as error:
        chat_model({"model": "m", "base_url": "http://localhost/v1", "headers": {name: value}})
    assert name in str(error.value) and (len(value) < 4 or value not in str(error.value))
    chat_model({"model": "m", "base_url": "http://localhost/v1", "headers": {name: "${A_NAME}", "X-Team": "blue"}})

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

"""The form of a judge's reply: asked for where the server takes it, and nothing is lost where it does not."""

import json

import pytest
from chat_server import said

from tests.zephyr.rules import judge_reply
from trl_distill.chat import Aspect, CallStore, ChatRequest, FailedCall, Judge, JudgeItem
from trl_distill.chat.judge_scores import parse_scores, scores_format


FORM = "response_format"
OPTIONAL = Aspect("truthfulness", "Whether it is true.", optional=True)


def items(count=4, answers=2):
    return [
        JudgeItem(f"i{i}", f"question {i}", [f"answer {i} {k} ({k + 3})" for k in range(answers)])
        for i in range(count)
    ]


def scores(judgements):
    return [judgement.scores for judgement in judgements]


def rated(body, *_):
    return said(judge_reply(body["messages"]))


def with_form(server):
    return [FORM in body for body in server.requests]


def keys(rows):
    return {key for [key] in rows("key")}


@pytest.fixture
def judge(meter, store, connect):
    """Factory of judges behind the server."""

    def build(settings=None, store=store, **judge_settings):
        return Judge(store.model(connect(**settings or {}), "judge"), **judge_settings)

    return build


EXPECTED = [[3.0, 4.0]] * 4


# What is asked for


def objects(schema):
    """All objects of a schema."""
    found = [schema] if schema.get("type") == "object" else []
    return found + [inner for part in schema.get("properties", {}).values() for inner in objects(part)]


@pytest.mark.parametrize("labels", ["A", "BA", "CABD"])
@pytest.mark.parametrize("optional", [False, True])
def test_the_schema_is_strict_and_the_evidence_stands_first(labels, optional):
    form = scores_format(labels, optional)
    assert (form["type"], form["json_schema"]["strict"]) == ("json_schema", True)
    schema = form["json_schema"]["schema"]
    for part in objects(schema):
        assert part["additionalProperties"] is False and part["required"] == list(part["properties"])
    assert list(schema["properties"]) == ["evidence", "scores" if len(labels) > 1 else "score"]
    text = json.dumps(schema)
    assert "minimum" not in text and "maximum" not in text and ("N/A" in text) == optional


@pytest.mark.parametrize("labels", ["A", "BA"])
def test_a_reply_of_this_form_is_read(labels):
    schema = scores_format(labels, optional=True)["json_schema"]["schema"]["properties"]
    last = dict.fromkeys(schema["scores"]["properties"], 2.5) if len(labels) > 1 else 2.5
    reply = dict(zip(schema, ["B says 9, A says 8", last], strict=True))
    assert parse_scores(json.dumps(reply), labels, optional=True) == dict.fromkeys(labels, 2.5)


def test_the_prompt_asks_for_the_same_form(judge):
    [request, _] = judge().requests(items(1))
    schema = request.response_format["json_schema"]["schema"]
    assert all(
        f'"{label}": score of {label}' in request.texts[-1] for label in schema["properties"]["scores"]["required"]
    )
    assert '{"evidence": "your evidence", "scores": {' in request.texts[-1]


# What servers do


def test_a_server_that_takes_it_is_asked_for_it_each_time(meter, judge):
    meter.serve(rated)
    assert scores(judge().judge(items())) == EXPECTED
    assert with_form(meter.server) == [True] * 8


@pytest.mark.parametrize(
    ("status", "said_so"),
    [
        (400, {"error": {"message": "This response_format type is unavailable now", "type": "invalid_request_error"}}),
        (
            422,
            {"detail": [{"type": "extra_forbidden", "loc": ["body", FORM], "msg": "Extra inputs are not permitted"}]},
        ),
        (400, {"object": "error", "message": "The provided schema contains features not supported by the grammar."}),
        (400, {}),
        (400, "Bad Request"),
        (500, {"error": {"message": "failed to parse grammar"}}),
    ],
)
@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_server_that_refuses_it_is_asked_without(meter, judge, caplog, status, said_so, concurrency):
    meter.serve(lambda body, *_: (status, said_so, {}) if FORM in body else rated(body))
    assert scores(judge({"concurrency": concurrency}).judge(items())) == EXPECTED
    assert with_form(meter.server) == [True] + [False] * 8  # the first one goes alone, whatever the concurrency
    assert caplog.text.count("m refuses `response_format`: it is left out. Set `omit: [response_format]`") == 1


def test_a_server_that_ignores_it_is_read_as_before(meter, judge):
    def lines(body, *_):
        given = json.loads(judge_reply(body["messages"]))["scores"]
        return said("\n".join(f"Answer {label}: {score}/10" for label, score in given.items()))

    meter.serve(lines)
    assert scores(judge().judge(items())) == EXPECTED and len(meter.server.requests) == 8


@pytest.mark.parametrize(
    ("content", "reason", "fields"),
    [("", "stop", {}), (None, "stop", {}), ("\n \n", "length", {}), ("", "stop", {"reasoning_content": "Hm."})],
)
@pytest.mark.parametrize("concurrency", [1, 8])
def test_an_empty_reply_costs_one_call(meter, judge, content, reason, fields, concurrency):
    meter.serve(lambda body, *_: said(content, reason, **fields) if FORM in body else rated(body))
    judgements = judge({"concurrency": concurrency}).judge(items())
    assert scores(judgements) == EXPECTED and sum(judgement.reasks for judgement in judgements) == 1
    assert sorted(with_form(meter.server), reverse=True) == [True] + [False] * 8


def test_a_reply_that_cannot_be_read_is_asked_for_without_it(meter, judge):
    """The first one shows that the server takes it; a later one is lost to it."""
    meter.serve(lambda body, *_: said("") if FORM in body and "question 2" in str(body["messages"]) else rated(body))
    judgements = judge().judge(items())
    assert scores(judgements) == EXPECTED and [judgement.reasks for judgement in judgements] == [0, 0, 2, 0]
    assert with_form(meter.server) == [True] * 8 + [False] * 2


def test_a_refusal_that_it_has_no_part_in_is_not_learned(meter, judge):
    long = 400, {"error": {"message": "The prompt is too long."}}, {}
    meter.serve(lambda body, *_: long if "question 1" in str(body["messages"]) else rated(body))
    judgements = judge().judge(items())
    assert scores(judgements) == [[3.0, 4.0], [None, None], [3.0, 4.0], [3.0, 4.0]]
    assert with_form(meter.server)[-4:] == [True] * 4 and "too long" in judgements[1].unscored[0]


def test_it_is_left_out_as_told(meter, judge, caplog):
    meter.serve(rated)
    assert scores(judge({"omit": [FORM]}).judge(items())) == EXPECTED
    assert not any(with_form(meter.server)) and not caplog.text


def test_what_the_user_sets_wins(meter, judge):
    meter.serve(rated)
    judge({"extra_body": {FORM: {"type": "json_object"}}}).judge(items(1))
    assert [body[FORM] for body in meter.server.requests] == [{"type": "json_object"}] * 2


def test_a_plain_text_has_no_form(meter, store, connect):
    meter.serve(lambda *_: (400, {}, {}))
    request = ChatRequest("Once upon", response_format=scores_format("A"))
    assert isinstance(store.model(connect(), "judge").complete([request])[0], FailedCall)
    assert with_form(meter.server) == [False]


# The store


ABLE = rated
UNABLE = lambda body, *_: (400, {}, {}) if FORM in body else rated(body)  # noqa: E731


@pytest.mark.parametrize(("first", "then"), [(ABLE, UNABLE), (UNABLE, ABLE)])
def test_what_is_answered_is_not_asked_again_when_the_server_changes(meter, judge, rows, first, then):
    meter.serve(first)
    judge().judge(items())
    asked, known = len(meter.server.requests), keys(rows)
    meter.serve(then)
    assert scores(judge().judge(items())) == EXPECTED and len(meter.server.requests) == asked
    assert scores(judge({"omit": [FORM]}).judge(items())) == EXPECTED and len(meter.server.requests) == asked
    judge().judge(items(5))
    assert len(keys(rows)) == len(known) + 2


@pytest.mark.parametrize("aspects", [(OPTIONAL,), (Aspect("overall", "How good."),)])
def test_two_runs_have_the_same_keys(meter, judge, rows, connect, tmp_path, path, aspects):
    meter.serve(ABLE)
    judge(aspects=aspects).judge(items())
    with CallStore(tmp_path / "other.sqlite") as other:
        second = Judge(other.model(connect(), "judge"), aspects=aspects)
        second.judge(items())
        assert {key for [key] in other._read("SELECT key FROM calls")} == keys(rows)
        meter.server.requests = meter.server.requests[:8]  # the meter compares with one store
        meter.tokens.subtract({"prompt_tokens": 88, "completion_tokens": 40})

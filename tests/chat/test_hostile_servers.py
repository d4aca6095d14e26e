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

"""
Servers as they are: endings, thoughts, refusals, bills and faults, and after each the ledger against what the server
counted itself.
"""

import base64
import html
import json
import logging
import time
from urllib.parse import quote

import pytest
from chat_server import USAGE, ChatServer, refuses, said, text_body

from tests.zephyr.rules import answer as rated
from tests.zephyr.rules import judge_reply
from trl_distill.chat import (
    CallStore,
    ChatRequest,
    ChatServerError,
    Completion,
    EndpointChatModel,
    FailedCall,
    Judge,
    JudgeItem,
    Sampling,
    draw_samples,
    read_ledger,
)
from trl_distill.lion.pools import Instruction
from trl_distill.lion.stages import training_rows


def by_the_rules(body, attempt=1, headers=None):
    if body["model"] == "judge":
        return said(judge_reply(body["messages"]))
    return said(rated(body["model"], body["messages"], body.get("seed")))


# 1: how an answer ends


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", "stop"),
        ("eos_token", "stop"),
        ("stop_sequence", "stop"),
        ("end_turn", "stop"),
        ("COMPLETE", "stop"),
        ("length", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("content_filter", "content_filter"),
        ("content_filter: SAFETY", "content_filter"),
    ],
)
def test_an_ending_has_one_name(meter, store, connect, ask, word, reason):
    meter.serve(lambda *_: said("half a", word))
    [answer] = store.model(connect(), "teacher").complete(ask(1))
    assert (answer.text, answer.finish_reason) == ("half a", reason)


@pytest.mark.parametrize("word", ["abort", "error", "tool_calls", "insufficient_system_resource", "", None, 7])
@pytest.mark.parametrize("plain", [False, True])
def test_an_answer_without_an_end_is_none(meter, store, connect, ask, rows, word, plain):
    body = (text_body("half a", word) if plain else said("half a", word)) | {"usage": dict(USAGE)}
    meter.serve(lambda request, attempt, headers: body if attempt == 1 else said("whole"))
    requests = [ChatRequest("Once upon")] if plain else ask(1)
    [answer] = store.model(connect(), "teacher").complete(requests)
    assert isinstance(answer, FailedCall) and f"finish reason {word!r}" in answer.error
    assert rows("state, text, prompt_tokens, completion_tokens") == [("failed", None, 11, 5)]
    if not plain:  # the next run asks again
        assert store.model(connect(), "teacher").complete(requests)[0].text == "whole"


def test_fragments_are_not_judged(meter, feedback, tmp_path):
    def reply(body, *_):
        if body["model"] == "responder" and "question 1" in body["messages"][-1]["content"]:
            return said("half of (9)", "abort")
        return by_the_rules(body)

    meter.serve(reply)
    report = feedback()
    assert report["answers"]["failed"] == 2 and report["answers"]["scored"] == 6
    assert "half of" not in (tmp_path / "ratings.jsonl").read_text()


def test_an_end_that_was_not_billed_is_waited_for(meter, store, connect, ask):
    body = said("half a", "abort")
    del body["usage"]
    meter.serve(lambda request, attempt, headers: body if attempt < 3 else said("whole"))
    assert store.model(connect(), "teacher").complete(ask(1))[0].text == "whole"


# 2: thoughts

THINKING = [  # content, other fields of the message, the thoughts
    ("<think>\nHm. (3)\n</think>\n\n{}", {}, "Hm. (3)"),
    ("Hm. (3)\n</think>\n{}", {}, "Hm. (3)"),
    ("<thinking>Hm. (3)</thinking>{}", {}, "Hm. (3)"),
    ("[THINK]Hm. (3)[/THINK]{}", {}, "Hm. (3)"),
    ("{}", {"reasoning_content": "Hm. (3)"}, "Hm. (3)"),
    ("{}", {"reasoning": "Hm. (3)", "reasoning_content": None}, "Hm. (3)"),
    ([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm. (3)"}]}, {"type": "text", "text": "{}"}], {}, 0),
]


def filled(content, text):
    return json.loads(json.dumps(content).replace("{}", json.dumps(text)[1:-1]))


@pytest.mark.parametrize(("content", "fields", "thoughts"), THINKING, ids=[str(row[:2])[:40] for row in THINKING])
def test_thoughts_are_in_the_store_and_in_no_row(meter, feedback, path, rows, tmp_path, content, fields, thoughts):
    def reply(body, *_):
        if body["model"] == "judge":
            assert "Hm." not in body["messages"][-1]["content"]
            return said(filled(content, judge_reply(body["messages"])), **fields)
        return said(filled(content, rated("responder", body["messages"], body["seed"])), **fields)

    meter.serve(reply)
    assert feedback()["answers"]["scored"] == 8
    for name in ("ratings", "pairs", "sft"):
        text = (tmp_path / f"{name}.jsonl").read_text()
        assert "responder on" in text and "Hm." not in text
    kept = rows("text, thoughts")
    assert len(kept) == 16 and all("Hm. (3)" in f"{text} {thoughts}" for text, thoughts in kept)


@pytest.mark.parametrize(("content", "fields", "thoughts"), THINKING, ids=[str(row[:2])[:40] for row in THINKING])
def test_thoughts_are_kept_on_demand(meter, feedback, tmp_path, content, fields, thoughts):
    """The pairs hold them, the judge does not see them, and what is in the store is used as it is."""

    def reply(body, *_):
        if body["model"] == "judge":
            assert "Hm." not in body["messages"][-1]["content"]
            return by_the_rules(body)
        return said(filled(content, rated("responder", body["messages"], body["seed"])), **fields)

    meter.serve(reply)
    feedback()
    asked = len(meter.server.requests)
    feedback(responder={"keep_thoughts": True})
    assert len(meter.server.requests) == asked
    for line in (tmp_path / "sft.jsonl").read_text().splitlines():
        text = json.loads(line)["messages"][-1]["content"]
        assert "Hm. (3)" in text.partition("responder on")[0]


@pytest.mark.parametrize("keep_thoughts", [False, True])
@pytest.mark.parametrize(
    ("content", "fields", "reason"),
    [
        ("<think>\nHm", {}, "stop"),
        ("", {"reasoning_content": "Hm"}, "stop"),
        (None, {"reasoning": "Hm"}, "length"),
        ("<think>Hm</think>\n", {}, "stop"),
    ],
)
def test_thoughts_without_an_answer_are_no_row(meter, store, connect, ask, content, fields, reason, keep_thoughts):
    meter.serve(lambda *_: said(content, reason, **fields))
    teacher = store.model(connect(keep_thoughts=keep_thoughts), "teacher")
    [answer] = teacher.complete(ask(1))
    assert (answer.text, answer.thoughts.strip()) == ("", "Hm")
    assert training_rows([Instruction("question 0")], [answer])[0] == []


def test_samples_and_a_lion_teacher_give_answers(meter, store, connect):
    meter.serve(lambda *_: said("Two and two.\n</think>\n\nFour."))
    teacher, rows = store.model(connect(), "teacher"), [{"prompt": [{"role": "user", "content": "2 + 2?"}]}]
    [samples] = draw_samples(teacher, rows, 1, Sampling())
    assert samples.completions == ["Four."]
    answers = teacher.complete([ChatRequest(rows[0]["prompt"])])
    [row], _ = training_rows([Instruction("2 + 2?")], answers)
    assert row["completion"] == [{"role": "assistant", "content": "Four."}]


# 3: fields that are refused: more of it in test_dialect.py


@pytest.mark.parametrize("names", [["seed"], ["top_p", "temperature", "seed"]])
def test_refused_fields_are_one_attempt_each(meter, store, connect, ask, names):
    meter.serve(refuses(*names, status=422))
    answers = store.model(connect(max_attempts=1), "teacher").complete(ask(5, temperature=0.5, top_p=0.9, seed=1))
    assert [answer.text for answer in answers] == ["fine"] * 5 and len(meter.server.requests) == 5 + len(names)


def test_a_judge_without_a_temperature(meter, feedback):
    meter.serve(by_the_rules)
    feedback(judge_temperature=None)
    sent = [body.keys() for body in meter.server.requests if body["model"] == "judge"]
    assert sent and not any("temperature" in keys for keys in sent)


# 4: one prompt that is refused


@pytest.mark.parametrize("run", ["first", "next"])
def test_a_moderated_prompt_fails_alone(meter, path, connect, ask, run):
    flagged = 403, {"error": {"message": "your input was flagged"}}, {}
    meter.serve(lambda body, *_: flagged if body["messages"][0]["content"] == "question 2" else said("fine"))
    requests = ask(4)
    with CallStore(path) as store:
        if run == "next":  # all that it asks is the prompt that is refused
            store.model(connect(), "teacher").complete([requests[0]])
            requests = [requests[2]]
        answers = store.model(connect(), "teacher").complete(requests)
    kinds = [type(answer) for answer in answers]
    assert kinds == ([FailedCall] if run == "next" else [Completion, Completion, FailedCall, Completion])


def test_who_is_refused_from_the_start_or_for_good_stops(meter, store, connect, ask):
    no = 403, {"error": {"message": "no access"}}, {}
    meter.serve(lambda *_: no)
    with pytest.raises(ChatServerError, match="no access.*remove the prompt"):
        store.model(connect(), "teacher").complete(ask(9))
    assert len(meter.server.requests) == 1
    meter.serve(lambda body, *_: no if len(meter.server.requests) > 2 else said("fine"))
    with pytest.raises(ChatServerError, match="3 calls of m .* in a row"):
        store.model(connect(max_consecutive_failures=3), "teacher").complete(ask(9))


# 5: a judge that nobody can read


@pytest.mark.parametrize(
    ("content", "reason", "shown"),
    [(None, "length", "ends by length: ''"), ("I like both.", "stop", "ends by stop: 'I like both.'")],
)
def test_a_dead_judge_is_given_up(meter, feedback, content, reason, shown):
    meter.serve(lambda body, *_: said(content, reason) if body["model"] == "judge" else by_the_rules(body))
    with pytest.raises(ValueError, match="7 replies of judge in a row cannot be read") as error:
        feedback(num_prompts=20, max_unreadable=7)
    assert shown in str(error.value) and "`judge_max_tokens` (512)" in str(error.value)
    assert sum(body["model"] == "judge" for body in meter.server.requests) == 7


def test_a_reply_in_between_keeps_a_judge(meter, store, connect):
    counter = iter(range(1000))
    meter.serve(lambda *_: said("no") if next(counter) % 4 else said('{"score": 7}'))
    items = [JudgeItem(f"item {i}", "What?", ["This."]) for i in range(20)]
    judge = Judge(store.model(connect(), "judge"), mode="absolute", max_unreadable=4, max_reasks=0)
    assert sum(judgement.scores == [7] for judgement in judge.judge(items)) == 5
    judge = Judge(
        store.model(connect(), "judge"), mode="absolute", max_unreadable=3, max_reasks=0, seed=1, scale=(1, 9)
    )
    with pytest.raises(ValueError, match="3 replies.*raise `max_tokens`"):
        judge.judge(items)


# 6: a 200 that cannot be read


@pytest.mark.parametrize(
    "choices",
    [[], None, [{"message": None, "finish_reason": "stop"}], [{"message": {"content": 7}, "finish_reason": "stop"}]],
    ids=str,
)
def test_what_is_billed_is_booked_and_not_asked_again(meter, store, connect, ask, choices):
    meter.serve(lambda *_: said("") | {"choices": choices})
    answers = store.model(connect(max_attempts=6), "teacher").complete(ask(5))
    assert all(isinstance(answer, FailedCall) for answer in answers) and len(meter.server.requests) == 5


def test_a_budget_holds_where_nothing_can_be_read(meter, path, connect, ask):
    meter.serve(lambda *_: said("") | {"choices": []})
    worst = (32 + len("question 0")) * 3e-6 + 5 * 15e-6
    with CallStore(path, budget_usd=3 * worst) as store, pytest.raises(Exception, match="`budget_usd`"):
        store.model(connect(), "teacher").complete(ask(50, max_tokens=5))
    assert read_ledger(path)[0].cost_usd <= 3 * worst


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "one"}, {"type": "text", "text": " two"}], "one two"),
        ([{"type": "output_text", "text": "one", "annotations": []}], "one"),
        ([], ""),
    ],
)
def test_content_in_parts(meter, store, connect, ask, content, text):
    meter.serve(lambda *_: said(content))
    assert store.model(connect(), "teacher").complete(ask(1))[0].text == text


def test_a_page_nested_without_end_is_no_answer(meter, store, connect, ask):
    meter.serve(lambda *_: (200, "[" * 100_000, {}))
    [answer] = store.model(connect(max_attempts=2), "teacher").complete(ask(1))
    assert "no JSON" in answer.error


# 7: keys

KEY = 'sk-"quoted"\\and/slashed\\\\+0123456789'


def forms(key):
    """A key as it is, as JSON, Python, HTML and a URL write it, as JSON in JSON, and in base64 behind other words."""
    plain = {key, json.dumps(key)[1:-1], repr(key)[1:-1], quote(key), quote(key, safe=""), html.escape(key)}
    plain |= {json.dumps(json.dumps(key)), key.replace("/", "\\/"), key.replace('"', "\\u0022")}
    encoders = (base64.b64encode, base64.urlsafe_b64encode)
    words = ("", "Bearer ", "me:", "a")
    return plain, {encode((word + key).encode()).decode() for encode in encoders for word in words}


@pytest.mark.parametrize("status", [200, 400, 401, 403, 422, 500])
def test_a_key_is_in_no_file_and_no_output(meter, feedback, tmp_path, monkeypatch, caplog, capsys, status):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("MY_HEADER", KEY[::-1])
    caplog.set_level(logging.DEBUG)

    def reply(body, attempt, headers):
        assert headers["Authorization"] == f"Bearer {KEY}" and headers["X-Pass"] == KEY[::-1]
        text = " ".join(sorted(set().union(*forms(KEY), *forms(KEY[::-1]))))
        if status == 200:
            return said(f"{rated('responder', body['messages'], body['seed'])[:-4]} {text} (5)")
        return status, {"error": {"message": text}}, {}

    meter.serve(reply)
    secret = dict(api_key_env="MY_KEY", headers={"X-Pass": "${MY_HEADER}"}, max_attempts=1)
    with pytest.raises((ValueError, OSError)) as error:  # a judge that says no score, or calls that all fail
        feedback(responder=secret, judge=secret, max_unreadable=3)
    chain, seen = error.value, caplog.text + "".join(capsys.readouterr())
    while chain is not None:
        seen += f"{chain} {chain!r} {vars(chain)}"
        chain = chain.__cause__ or chain.__context__
    seen += "".join(path.read_bytes().decode(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert "[key]" in seen
    for key in (KEY, KEY[::-1]):
        plain, encoded = forms(key)
        for form in [*plain, *(text[12:32] for text in encoded)]:  # of base64 the middle, where only the key is
            assert form not in seen


@pytest.mark.parametrize("reply", ["{}", [], {"choices": []}, {"choices": [{"message": {"content": "{}"}}]}], ids=str)
def test_no_half_of_a_key_stays_where_a_message_is_cut(meter, store, connect, ask, monkeypatch, rows, reply):
    monkeypatch.setenv("MY_KEY", KEY)
    for length in range(100, 420, 9):
        long = "x" * length + KEY * 3
        content = (
            json.dumps(reply).replace("{}", json.dumps(long)[1:-1])
            if "{}" in json.dumps(reply)
            else json.dumps([reply, long])
        )
        meter.serve(lambda *_, content=content: (200, content, {}))
        store.model(connect(api_key_env="MY_KEY", max_attempts=1), "teacher").complete(ask(1))
    assert not any("sk-" in error for [error] in rows("error"))


@pytest.mark.parametrize("part", [KEY[:-1], KEY[:9] + "*" * 9, "s\\" * 20, json.dumps(json.dumps(KEY[:-1]))])
def test_parts_of_a_key_take_no_time(meter, store, connect, ask, monkeypatch, part):
    monkeypatch.setenv("MY_KEY", KEY)
    meter.serve(lambda *_: said(part * 1000))
    start = time.monotonic()
    [answer] = store.model(connect(api_key_env="MY_KEY"), "teacher").complete(ask(1))
    assert answer.text == part * 1000 and time.monotonic() - start < 2


@pytest.mark.parametrize("key", ["sk-\nabc", "sk-a\tbc", "sk-\x1babc", "sk-ä"])
def test_a_key_that_no_header_can_hold_is_refused_at_once(key, monkeypatch):
    monkeypatch.setenv("MY_KEY", key)
    for settings in ({"api_key_env": "MY_KEY"}, {"headers": {"api-key": "Key ${MY_KEY}"}}):
        with pytest.raises(ValueError, match="MY_KEY.*line break") as error:
            EndpointChatModel("m", "http://localhost/v1", **settings)
        assert "sk-" not in str(error.value) and error.value.__context__ is None


def test_a_short_key_is_an_ordinary_word_in_an_answer(meter, store, connect, ask, monkeypatch):
    monkeypatch.setenv("MY_KEY", "none")
    meter.serve(lambda *_: said("There is none."))
    assert store.model(connect(api_key_env="MY_KEY"), "teacher").complete(ask(1))[0].text == "There is none."


# 8: models without a system role


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "System role not supported"),
        (400, "Developer instruction is not enabled for models/gemma-3-27b-it"),
        (400, "Conversation roles must alternate user/assistant/user/assistant/..."),
        (500, "Jinja Exception: System role not supported"),
        (422, "messages[0]: unknown role 'system'"),
    ],
)
def test_a_server_without_a_system_role(meter, store, connect, caplog, status, message):
    def reply(body, *_):
        if body["messages"][0]["role"] == "system":
            return status, {"error": {"message": message}}, {}
        return said("fine")

    meter.serve(reply)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    requests = [ChatRequest(messages, sample_index=i) for i in range(3)]
    answers = store.model(connect(max_attempts=1), "teacher").complete(requests)
    assert [answer.text for answer in answers] == ["fine"] * 3 and len(meter.server.requests) == 4
    assert meter.server.requests[-1]["messages"] == [{"role": "user", "content": "Be brief.\n\nWhy?"}]
    assert caplog.text.count("m refuses the system role") == 1


# 9: proxies, drips, warnings


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_this_machine_is_asked_without_a_proxy(meter, store, connect, ask, monkeypatch, host):
    proxy = ChatServer()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.base_url.removesuffix("/v1"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    meter.serve(lambda *_: said("fine"))
    base_url = meter.server.base_url.replace("127.0.0.1", host)
    assert store.model(connect(base_url=base_url), "teacher").complete(ask(1))[0].text == "fine"
    assert not proxy.requests
    proxy.stop()


def test_a_proxy_that_is_down_is_named_without_its_password(ask, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:a-password@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    model = EndpointChatModel("m", "http://models.example/v1", backoff=0.001, max_attempts=1)
    with pytest.raises(ChatServerError, match="through the proxy of HTTP_PROXY.*check `base_url` and") as error:
        model.complete(ask(1))
    assert "a-password" not in str(error.value)


@pytest.mark.parametrize("drip", [ChatServer.DRIP, ChatServer.DRIP_HEAD])
def test_a_server_that_drips_does_not_outlive_the_time_out(meter, store, connect, ask, drip):
    meter.serve(lambda body, attempt, headers: (200, drip, {}) if attempt < 3 else said("fine"))
    start = time.monotonic()
    [answer] = store.model(connect(timeout=0.5), "teacher").complete(ask(1))
    assert answer.text == "fine" and answer.retries == 2 and 1.0 <= time.monotonic() - start < 4.0


def test_equal_warnings_are_one_with_a_count(meter, store, connect, ask, caplog):
    counter = iter(range(1000))
    meter.serve(lambda *_: (400, {"error": {"message": f"bad request {next(counter)} (id req_{next(counter)}a)"}}, {}))
    with connect() as model:
        store.model(model, "teacher").complete(ask(15))
    assert caplog.text.count("A call of m failed: ") == 1
    assert caplog.text.count("15 calls of m failed like this one: ") == 1


def test_a_dry_run_reads_beside_a_run(meter, feedback, path):
    meter.serve(by_the_rules)
    feedback()
    with CallStore(path) as store:  # as a run that is active
        before = path.read_bytes()
        report = feedback(num_prompts=6, dry_run=True)
        assert [row["calls"] for row in report["missing"]] == [4, 12] and path.read_bytes() == before
        assert store.ledger()

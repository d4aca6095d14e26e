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
"""`trl-distill calls` and the benchmark of the store."""

import json

import pytest

from benchmarks.speed import call_store
from trl_distill.chat import CallStore, ChatRequest, EndpointChatModel, FunctionChatModel
from trl_distill.scripts import calls


@pytest.fixture
def path(tmp_path, ask, server):
    path = tmp_path / "calls.sqlite"
    server.reply = lambda body, *_: (400, {}, {}) if body["messages"][0]["content"] == "question 1" else None
    teacher = EndpointChatModel("m", server.base_url, prompt_price=1e4, completion_price=2e4)
    with CallStore(path) as store:
        for round, count in enumerate((12, 13)):
            rule = FunctionChatModel(lambda request: "word " * 100, "a-rule-with-a-name-of-some-length")
            store.model(rule, "student", "imitation", round).complete(ask(count))
        store.model(teacher, "teacher", "imitation").complete(ask(3))
    return path


def test_the_table_and_the_json_show_the_ledger(path, capsys):
    calls.run([str(path), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert [[row["round"], row["role"], row["calls"], row["reused"]] for row in result["rows"]] == [
        [0, "student", 12, 0],
        [0, "teacher", 3, 0],
        [1, "student", 1, 12],
    ]
    cost = 2 * (7 * 1e4 + 3 * 2e4) / 1e6
    assert result["total"]["cost_usd"] == result["rows"][1]["cost_usd"] == pytest.approx(cost)
    assert (result["total"]["calls"], result["total"]["failures"]) == (16, 1)

    calls.run([str(path)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", "imitation", "student", "a-rule-with-a-name-of-some-length"] == lines[6][:4]
    assert lines[6][4:] == ["1", "0", "12", "2", "100", "0.0000"]
    assert lines[8] == ["total", "16", "1", "12", "40", "1,306", "0.2600"]
    assert "unanswered" not in lines[2] and "failed" in lines[2]  # what never happened has no column


def test_costs_that_are_not_known(tmp_path, server, ask, capsys):
    with CallStore(tmp_path / "calls.sqlite") as store:
        store.model(EndpointChatModel("m", server.base_url), "teacher").complete(ask(1))
        calls.run([str(tmp_path / "calls.sqlite")])  # while a run has it open
    assert capsys.readouterr().out.splitlines()[-2].split()[-1] == "-"


def test_names_that_look_like_markup(tmp_path, ask, capsys):
    with CallStore(tmp_path / "calls.sqlite") as store:
        store.model(FunctionChatModel(lambda request: "a", "a[/b] :smile:"), "teacher").complete(ask(1))
        calls.run([str(tmp_path / "calls.sqlite")])
    assert "a[/b] :smile:" in capsys.readouterr().out


def test_an_empty_store(tmp_path, capsys):
    CallStore(tmp_path / "calls.sqlite").close()
    calls.run([str(tmp_path / "calls.sqlite"), "--json"])
    assert json.loads(capsys.readouterr().out)["total"]["calls"] == 0


def test_a_server_that_moved(path, server, capsys):
    calls.run([str(path), "--moved", f"{server.base_url}/", "http://there/v1"])
    with CallStore(path) as store:
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
def test_mistakes(path, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        calls.run([str(path) if argument == "STORE" else argument for argument in arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_the_benchmark_runs_and_agrees_with_its_server(tmp_path, capsys):
    flags = "--calls 20 --repeats 1 --in-flight 1 4 --prompt-chars 20".split()
    result = call_store.main([*flags, "--output", str(tmp_path / "result.json")])
    assert [(row["model"], row["in_flight"]) for row in result["rows"]] == [("rule", 1), ("stub", 1), ("stub", 4)]
    assert all(speed["median"] > 0 for row in result["rows"] for speed in row["calls_per_second"].values())
    assert json.loads((tmp_path / "result.json").read_text())["rows"] == result["rows"]

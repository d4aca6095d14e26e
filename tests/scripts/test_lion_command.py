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
"""`trl-distill lion`."""

import json
import sqlite3
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.chat.chat_server import ChatServer, completion_body
from tests.commands import CPU, said, stops, write_rows
from trl_distill.scripts import lion


sys.path.append(str(Path(__file__).parents[1] / "lion"))

import toy  # noqa: E402
from served import by_the_rules  # noqa: E402


KEY = "sk-secret-0123456789"


@pytest.fixture
def server():
    server = ChatServer()
    server.reply = by_the_rules
    yield server
    server.stop()


@pytest.fixture
def write(tmp_path, server, tiny_model, tokenizer):
    """Factory of YAML files for a run with three models at the server and a tiny student, with changes."""
    tiny_model(vocab_size=264).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    write_rows(tmp_path / "tasks.jsonl", toy.rows({0: 5, 1: 4}) + [{"instruction": ""}])
    there = {"base_url": server.base_url, "concurrency": 4, "backoff": 0.01, "max_attempts": 2}

    def build(**changes):
        settings = {
            "dataset_name": str(tmp_path / "tasks.jsonl"),
            "output_dir": str(tmp_path / "out"),
            **{name: {"model": name, **there} for name in ("teacher", "referee", "generator")},
            "student_model": str(tmp_path / "student"),
            "student_max_tokens": 4,
            "heldout_size": 2,
            "rounds": 1,
            "n_new": 3,
            "rehearse": False,  # each rehearsal is a training in processes of its own
            "training": {"max_steps": 2, "learning_rate": 1e-3} | CPU,
        }
        path = tmp_path / "lion.yaml"
        path.write_text(yaml.safe_dump(settings | changes))
        return str(path)

    return build


def test_from_the_dry_run_to_the_last_student(write, server, tmp_path, capsys, caplog, monkeypatch):
    """With real trainings, in processes of their own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "200")
    lion.run(["--config", write(), "--dry_run"])
    text = said(capsys)
    assert not server.requests and "0 answers teacher 7" in text and "1 generation generator 3" in text
    planned = 7 + 2 + 2 + 4 + 7 + 14 + 3 + 3 + 2 + 4
    assert f"total {planned}" in text

    lion.run(["--config", write()])
    text = said(capsys)
    assert f"{tmp_path}/out: finished" in text and f"The student is {tmp_path}/out/round_1/student" in text
    assert "1 of 10 rows are left out: 1 empty" in caplog.text and "Round 1: generation." in caplog.text
    assert "0 7 7 -" in text and "1 10 6 100%" in text and "0% / 0% / 100%" in text
    report = json.loads((tmp_path / "out/report.json").read_text())
    calls, reused = Counter(), Counter()
    for row in report["ledger"]:
        calls[row["role"]] += row["calls"]
        reused[row["role"]] += row["reused"]
    calls["referee"] += reused["referee"]  # where a student said again what it had said before
    assert calls == {"teacher": 12, "student": 11, "referee": 22, "generator": 3} and calls.total() == planned
    assert len(server.requests) == planned - 11 - reused["referee"]
    assert (tmp_path / "out/report.png").read_bytes().startswith(b"\x89PNG")
    for k in (0, 1):
        AutoModelForCausalLM.from_pretrained(tmp_path / f"out/round_{k}/student")

    before = len(server.requests)
    lion.run(["--config", write()])
    assert len(server.requests) == before and "finished" in said(capsys)
    lion.run(["--config", write(), "--dry_run"])
    assert "total 0" in said(capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said_of_it"),
    [
        ({"training": {"use_peft": True, "lora_target_modules": ["nothing"]} | CPU}, "nothing"),
        ({"student_model": "no-template"}, "chat_template"),
        ({"student_max_tokens": 5000}, "leave no room for 5000 new tokens in the context"),
    ],
)
def test_what_would_fail_after_the_pool_was_paid_fails_before_the_first_call(
    changes, said_of_it, write, server, tmp_path, tiny_model, tokenizer, monkeypatch, capfd
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if changes.get("student_model"):
        tiny_model(vocab_size=264).save_pretrained(tmp_path / "no-template")
        tokenizer.save_pretrained(tmp_path / "no-template")
        (tmp_path / "no-template/chat_template.jinja").unlink()
        changes = {"student_model": str(tmp_path / "no-template")}
    assert stops(lion.run, "--config", write(rehearse=True, **changes)) == 2
    text = " ".join("".join(capfd.readouterr()).split())
    assert said_of_it in text and not server.requests
    assert not (tmp_path / "out/rehearsal.json").exists()


@pytest.fixture
def parrot(tiny_model, tokenizer, tmp_path):
    """Factory of local models that say one word to everything, which has no letter twice."""

    def build(word):
        model = tiny_model(vocab_size=264, hidden_size=264, num_hidden_layers=1)
        chain = tokenizer(f"<|assistant|>{word}<|endoftext|>")["input_ids"]
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(torch.eye(264))
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.model.norm.weight.fill_(4.0)
            model.lm_head.weight.zero_()
            for now, then in zip(chain[:-1], chain[1:], strict=True):
                model.lm_head.weight[then, now] = 1.0
        model.save_pretrained(tmp_path / word)
        tokenizer.save_pretrained(tmp_path / word)
        return str(tmp_path / word)

    return build


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "minillm"])
def test_an_on_policy_stage_by_its_own_command(stage, write, parrot, tmp_path, capsys, monkeypatch):
    """Rehearsed, then trained in each round after the first, and seen in the report."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fields = {
        "dpo": {"max_steps": 3, "learning_rate": 1e-3, "beta": 0.1, "logging_steps": 1},
        "minillm": {"max_steps": 4, "learning_rate": 1e-3, "max_completion_length": 8, "logging_steps": 1},
    }[stage]
    changes = {
        "teacher": {"model_name_or_path": parrot("right"), "device": "cpu"},
        "student_model": parrot("wrong"),
        "student_max_tokens": 8,
        "training": {"max_steps": 2, "learning_rate": 1e-6, "logging_steps": 1} | CPU,
        "teacher_temperature": 0.0,
        "teacher_max_tokens": 32,
        "stages": ["sft", stage],
        stage: fields | CPU,
        "rehearse": True,
    }
    if stage == "dpo":
        lora = {"use_peft": True, "lora_target_modules": ["all-linear"]}  # in q and v alone a parrot has no gradient
        changes["training"] |= lora
        changes["dpo"] |= lora
    lion.run(["--config", write(**changes)])
    assert "finished" in said(capsys) and (tmp_path / "out/rehearsal.json").exists()
    first, last = (tmp_path / f"out/round_1/{name}" for name in ("student_training", "student"))
    states = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (first, last)]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])
    manifest = json.loads((tmp_path / "out/round_1/manifest.json").read_text())["stages"]
    assert manifest[stage]["start"] == "round_1/student_training" and manifest[stage]["counts"]["rows"] > 0
    assert manifest["training"]["loss"] and manifest[stage]["loss"]
    lion.run(["--config", write(**changes), "--dry_run"])
    assert "total 0" in said(capsys)


def test_a_budget(write, server, tmp_path, capsys):
    assert stops(lion.run, "--config", write(max_calls=5)) == 3
    text = said(capsys)
    assert "trl-distill lion: stopped: `max_calls` is 5, and 5 were made" in text and "raise the limit" in text
    assert len(server.requests) == 5
    assert json.loads((tmp_path / "out/report.json").read_text())["status"] == "budget reached"
    assert stops(lion.run, "--config", write(), "--max_calls", "6") == 3 and len(server.requests) == 6


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"learning_rate": 1e-4}, [], "unknown field `learning_rate` in the config file"),
        ({"hard_ratio": 1}, [], "unknown field `hard_ratio` in the config file"),
        ({}, ["--roundz", "2"], "unknown field `roundz` on the command line. Did you mean rounds"),
        ({"budget_usd": 1.0}, [], "the prices of teacher are not known"),
        ({"rounds": "many"}, [], "`rounds` must be of type int, got 'many'"),
        ({"rescore": "never"}, [], "`rescore` must be one of all, new_only, got 'never'"),
        ({"filters": ["short"]}, [], "Unknown filter 'short'"),
        ({"filters": "lion"}, [], "`filters` must be a list, got 'lion'"),
        ({"training": {"max_steps": 2.5}}, [], "`max_steps` must be of type int, got 2.5"),
        ({"training": {"learning_rate": [1]}}, [], "`learning_rate` must be of type float, got [1]"),
        ({"training": {"lr_scheduler_type": "nope"}}, [], "`lr_scheduler_type` must be one of linear, "),
        ({"training": {"learnin_rate": 1}}, [], "unknown field `learnin_rate`. Did you mean learning_rate"),
        ({"training": {"dataset_name": "x"}}, [], "`dataset_name`, which the loop sets in each round"),
        ({"teacher": {"model": "a", "api_key": KEY}}, [], "`api_key` must not be in a file"),
        (
            {"teacher": {"model": "a", "concurency": 4}},
            [],
            "Unknown key `concurency` of the chat model 'a'. Did you mean concurrency",
        ),
        ({"teacher": None}, [], "No `teacher`: name the model"),
        ({"student_model": None}, [], "`student_model` is not set"),
        ({"output_dir": None}, [], "`output_dir` is not set"),
        ({"dataset_name": "nowhere.jsonl"}, [], "No such file: nowhere.jsonl"),
        ({"dataset_name": None}, [], "No instructions: set `dataset_name`"),
        ({"heldout_size": 9}, [], "`heldout_size` is 9, and the pool has 9"),
        ({"decontaminate": ["nowhere.jsonl"]}, [], "nowhere.jsonl"),
        ({}, ["--restart_from", "1"], "`restart_from` must be a round up to 1 and a stage"),
        ({}, ["--restart_from", "0.answers", "--dry_run"], "Set one of them"),
    ],
)
def test_mistakes_are_one_message(changes, flags, message, write, server, capsys):
    assert stops(lion.run, "--config", write(**changes), *flags) == 2
    text = said(capsys)
    assert message in text and text.count("trl-distill lion: error: ") == 1 and "Traceback" not in text
    assert KEY not in text and not server.requests


def test_a_server_that_is_down(write, server, capsys):
    server.stop()
    assert stops(lion.run, "--config", write()) == 2
    assert "No server answers at" in said(capsys)


def test_the_key_is_nowhere(write, server, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setenv("LION_KEY", KEY)

    def reply(body, attempt, headers):
        assert headers["Authorization"] == f"Bearer {KEY}"
        if toy.family_of(body["messages"][-1]["content"]) == 1:
            return 400, {"error": {"message": f"what does {KEY} mean?"}}, {}
        return completion_body(f"right {KEY[:2]}")

    server.reply = reply
    entry = {"model": "a", "base_url": server.base_url, "api_key_env": "LION_KEY"}
    path = write(teacher=entry, referee=None, generator=None, max_calls=6)
    assert stops(lion.run, "--config", path) == 3
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) >= 7 and any(b"[key]" in path.read_bytes() for path in files)
    assert all(KEY.encode() not in path.read_bytes() for path in files)
    assert KEY not in said(capsys) + caplog.text
    with sqlite3.connect(tmp_path / "out/calls.sqlite") as connection:
        assert connection.execute("SELECT COUNT(*) FROM calls").fetchone() == (6,)


def test_help_names_every_field():
    text = lion.make_parser("trl-distill lion").format_help()
    assert "usage: trl-distill lion" in text
    for name in ("--teacher", "--tau_quantile", "--restart_from", "--dry_run", "--config"):
        assert name in text

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
"""`trl-distill feedback` against a server that fails in every way, a disk that fills up, and `kill -9`."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from rules import answer, judge_reply
from run_feedback import run

from tests.chat.chat_server import completion_body
from tests.commands import said, stops, write_rows
from trl_distill.chat.models import derived_seed
from trl_distill.scripts import feedback


KEY = "sk-secret-0123456789"
FILES = ("ratings.jsonl", "pairs.jsonl", "sft.jsonl", "report.png")  # and report.json, but for its ledger
ROOT = Path(__file__).parents[2]


def by_the_rules(body, attempt=1, headers=None):
    """What the models behind the server say."""
    if body["model"] == "judge":
        return completion_body(judge_reply(body["messages"]))
    return completion_body(answer(body["model"], body["messages"], body["seed"]))


def results(folder):
    """All that a run writes and that does not depend on how often it was stopped."""
    report = json.loads((Path(folder) / "report.json").read_text())
    del report["ledger"]
    return {name: (Path(folder) / name).read_bytes() for name in FILES} | {"report.json": report}


@pytest.fixture
def write(tmp_path, server):
    """Factory of YAML files for a run on the server, with changes."""
    server.reply = by_the_rules
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"question {i}"} for i in range(8)])

    def build(**changes):
        there = {"base_url": server.base_url, "concurrency": 4, "backoff": 0.01, "max_attempts": 2}
        settings = {
            "dataset_name": str(tmp_path / "prompts.jsonl"),
            "output_dir": str(tmp_path / "out"),
            "decontaminate": [],
            "num_answers": 2,
            "responders": [{"model": name, **there} for name in "abc"],
            "judges": [{"model": "judge", **there}],
        }
        path = tmp_path / "feedback.yaml"
        path.write_text(yaml.safe_dump(settings | changes))
        return str(path)

    return build


class TestCommand:
    def test_files_and_table(self, write, read, server, tmp_path, capsys, picture):
        feedback.run(["--config", write(), "--rejected", "min"])
        assert len(server.requests) == 8 * 2 + 8 * 2
        assert len(read("ratings")) == 8 and 0 < len(read("pairs")) <= 8
        text = said(capsys)
        assert "answers: scored 16" in text and "Mean margin" in text
        assert "failed" not in text and "unreadable" not in text  # what never happened has no row and no column
        assert "What was asked" in text and "judge judge 16" in text
        assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
        settings = json.loads((tmp_path / "out" / "report.json").read_text())["settings"]
        assert settings["rejected"] == "min" and "output_dir" not in settings

    def test_the_trainer_takes_the_rows(self, write, tmp_path, make_dpo, save_model):
        feedback.run(["--config", write()])
        pairs = Dataset.from_json(str(tmp_path / "out" / "pairs.jsonl"))
        trainer = make_dpo(save_model(), train_dataset=pairs, max_steps=1)
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)

    def test_dry_run_without_a_key(self, write, server, tmp_path, capsys):
        entry = {"model": "a", "base_url": server.base_url, "api_key_env": "NOT_SET_ANYWHERE"}
        feedback.run(["--config", write(responders=[entry]), "--dry_run"])
        text = said(capsys)
        assert "responder a 16" in text and "judge judge 16" in text and "total 32" in text
        assert not server.requests and not (tmp_path / "out").exists()

    def test_budget(self, write, server, read, capsys):
        assert stops(feedback.run, "--config", write(max_calls=20)) == 3
        text = said(capsys)
        assert "stopped: `max_calls` is 20" in text and "raise the limit and run the same command again" in text
        assert len(server.requests) == 20
        feedback.run(["--config", write(max_calls=32)])
        assert len(server.requests) == 32 and read("pairs")

    def test_dollars(self, write, server, capsys):
        entry = {"model": "a", "base_url": server.base_url, "concurrency": 1}
        entry |= {"prompt_price": 1e4, "completion_price": 1e4}
        changes = dict(responders=[entry], judges=[entry | {"model": "judge"}], max_tokens=100, judge_max_tokens=100)
        assert stops(feedback.run, "--config", write(budget_usd=10.0, **changes)) == 3
        assert "`budget_usd` is 10.0" in said(capsys)
        known = len(server.requests)
        assert 0 < known < 32 and known * 0.1 <= 10  # a call of 10 tokens costs 0.1, its worst case several dollars
        feedback.run(["--config", write(**changes)])
        assert len(server.requests) == 32

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"responder": []}, "unknown field `responder` in the config file. Did you mean responders?"),
            ({"include_student": True}, "unknown field `include_student`"),
            ({"responders": [{"model": "a", "base_urls": "x"}]}, "`responders`: Unknown key `base_urls`"),
            ({"responders": [{"model": "a", "api_key": KEY}]}, "`api_key` must not be in a file"),
            ({"responders": [{"name": "a"}]}, "`responders`: A chat model needs either `model`"),
            ({"responders": {"model": "a"}}, "`responders` must be a list of entries"),
            ({"student": [{"model": "a"}]}, "`student`: A chat model is an entry"),
            ({"judges": [{"model": "j", "concurrency": 0}]}, "`judges`: `concurrency` must be 1 or more"),
            ({"judges": None}, "Nobody judges: set `judges`"),
            (
                {"judges": [{"model": "a", "base_url": "http://elsewhere/v1"}]},
                "and at http://elsewhere/v1. Set `revision` for each if these are two models",
            ),
            ({"num_answers": 1}, "A pair needs two answers, but `num_answers` is 1"),
            ({"num_answers": "four"}, "`num_answers` must be of type int, got 'four'"),
            ({"max_calls": -1}, "`max_calls` must be 0 or more"),
            ({"temperature": -1}, "`temperature` must be 0 (greedy) or more"),
            ({"judge_mode": "pairwise"}, "`judge_mode` must be one of listwise, absolute, got 'pairwise'"),
            ({"judge_scale": [5, 1]}, "`judge_scale` must be"),
            ({"judge_scale": 5}, "`judge_scale` must be"),
            ({"judge_scale": ["a", "b"]}, "`judge_scale` must be"),
            ({"aspects": "zephyr"}, "`aspects` must be `ultrafeedback` or a list of entries"),
            ({"aspects": [{"name": "a"}]}, "the first two must be there, got {'name': 'a'}"),
            (
                {"aspects": [{"name": "a", "guideline": "g", "wieght": 1}]},
                "An entry of `aspects` has the keys `name`, `guideline`, `weight`, `optional`, of which",
            ),
            ({"principles": ["calm"]}, "An entry of `principles` has the keys `name`, `text`, `weight`, of which"),
            ({"aspects": [{"name": "a", "guideline": "g", "weight": 0}]}, "must be above 0"),
            ({"principles": [{"name": "a", "text": "t", "weight": -1}]}, "must be above 0"),
            ({"principles": [{"name": "a", "text": ""}]}, "`text` of a principle must be a text"),
            ({"principles": []}, "`principles` must be `ultrafeedback` or a list of entries"),
            ({"rejected": "worst"}, "`rejected` must be one of"),
            ({"min_margin": -1}, "`min_margin` must be 0 or more"),
            ({"models_column": "who"}, "`completions_column`, which is not set"),
            ({"dataset_name": "none.jsonl"}, "No such file: none.jsonl"),
            ({"dataset_name": None}, "No prompts: set `dataset_name`"),
            ({"dataset_split": "test"}, "No split 'test'"),
            ({"prompt_column": "question"}, "Row 1: no column `question`, only prompt"),
            ({"decontaminate": ["truthful_qa"]}, "switch the check off with `decontaminate: []`"),  # no network here
            ({"decontaminate": 5}, "`decontaminate` must be a list of files and names, got 5"),
            ({"prompt_column": ["a", "b"]}, "`prompt_column` must be one name, got ['a', 'b']"),
            ({"aspects": [{"name": "a", "guideline": "g", "weight": "2"}]}, "must be above 0, got '2'"),
            ({"aspects": [{"name": "a", "guideline": "g", "optional": "no"}]}, "must be true or false, got 'no'"),
            ({"principles": [{"name": "a", "text": "t", "weight": "2"}]}, "must be above 0, got '2'"),
            ({"judges": [{"model": "j", "concurrency": "4"}]}, "`concurrency` of the chat model 'j' must be int"),
            ({"decontaminate": "mmlu"}, "`decontaminate` must name files, or be truthful_qa, got 'mmlu'"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_a_wrong_config_is_refused_before_the_first_call(self, write, server, changes, message, capsys):
        assert stops(feedback.run, "--config", write(**changes)) == 2
        text = said(capsys)
        assert message in text and KEY not in text
        assert not server.requests

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b', "Line 2 of"),
            ("a.jsonl", "", "No prompt is left: the data hold no rows"),
            ("a.jsonl", '{"prompt": "half a pair \\ud83d"}\n', "Row 1: A message cannot be written as UTF-8"),
            ("a.json", '[{"prompt": "a"}, {"prompt"', "a.json cannot be read"),
            ("a.csv", "", "a.csv"),
        ],
    )
    def test_prompts_that_cannot_be_read(self, write, server, tmp_path, name, content, said, capsys):
        (tmp_path / name).write_text(content)
        assert stops(feedback.run, "--config", write(dataset_name=str(tmp_path / name))) == 2
        assert said in capsys.readouterr().err and not server.requests

    def test_names_that_look_like_markup(self, write, server, capsys):
        there = {"base_url": server.base_url}
        models = [{"model": "a", "name": "a[/b]", **there}, {"model": "b", "name": "b [red] :smile:", **there}]
        path = write(responders=models, judges=[{"model": "judge", "name": "j[/i]", **there}])
        feedback.run(["--config", path, "--dry_run"])
        assert "responder a[/b]" in (text := said(capsys)) and "judge j[/i]" in text
        feedback.run(["--config", path])
        assert "a[/b]: mean score" in (text := said(capsys)) and "b [red] :smile:: mean score" in text

    def test_help_needs_neither_torch_nor_trl(self):
        code = (
            "import sys, trl_distill.zephyr; from trl_distill.scripts import binarize, clean, compare, feedback; "
            "assert all(command.make_parser().format_help() for command in (binarize, clean, compare, feedback)); "
            "print({'torch', 'trl', 'datasets'} & sys.modules.keys())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        assert done.stdout == "set()\n"


class TestFaults:
    def test_a_busy_server(self, write, server, read):
        """Each call is refused once, with 429 or 500 or no choice that nobody bills, and answered then."""

        def busy(body, attempt, headers):
            if attempt > 1:
                return by_the_rules(body)
            return random.choice(faults)

        faults = [(429, {}, {"Retry-After": "0"}), (500, {}, {}), completion_body("") | {"choices": [], "usage": None}]
        server.reply = busy
        feedback.run(["--config", write()])
        assert set(Counter(json.dumps(body) for body in server.requests).values()) == {2}
        assert all(c["score"] is not None for row in read("ratings") for c in row["candidates"])

    def test_calls_that_fail_for_good_are_counted_and_asked_again(self, write, server, read, tmp_path, capsys):
        def bad(body, attempt, headers):
            if body["model"] == "a":
                return 422, {"error": "no"}, {}
            if body["model"] == "judge" and "question 5" in body["messages"][-1]["content"]:
                return 500, {}, {}
            return by_the_rules(body)

        server.reply = bad
        feedback.run(["--config", write(num_answers=3)])
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["answers"]["failed"] == 8 and report["answers"]["scored"] == 14
        assert report["answers"]["unscored"] == report["judges"]["judge"]["unscored"]["failed call"] == 2
        assert "answers: failed 8" in said(capsys)
        for row in read("ratings"):
            assert [c["dropped"] for c in row["candidates"] if c["model"] == "a"] == ["failed"]
        server.reply, before = by_the_rules, len(server.requests)
        feedback.run(["--config", write(num_answers=3)])
        # a's 8 answers, 8 x 3 orders with three answers instead of two
        assert len(server.requests) == before + 8 + 24
        assert all(c["score"] is not None for row in read("ratings") for c in row["candidates"])

    def test_answers_that_are_cut_off(self, write, server, read):
        def cut(body, attempt, headers):
            if body["model"] != "judge" and body["messages"][-1]["content"] < "question 3":
                return completion_body("and so on", "length")
            return by_the_rules(body)

        server.reply = cut
        feedback.run(["--config", write()])
        dropped = [{c["dropped"] for c in row["candidates"]} for row in read("ratings")]
        assert dropped == [{"cut_off"}] * 3 + [{None}] * 5

    @pytest.mark.parametrize(
        ("reply", "count"),
        [
            ('{"scores": {"A": 7, "B": 7}}', "tied 8"),
            ('{"scores": {"A": 7, "B"', "unscored 16"),
            ('{"scores": {"A": 70, "B": 7}}', "unscored 16"),
            ("", "unscored 16"),
        ],
    )
    def test_a_judge_of_no_use(self, write, server, reply, count, capsys):
        server.reply = lambda body, *_: completion_body(reply) if body["model"] == "judge" else by_the_rules(body)
        assert stops(feedback.run, "--config", write(max_reasks=1)) == 2
        text = said(capsys)
        assert "No pair came out" in text and count in text
        assert len(server.requests) == 16 + 16 * (1 if "tied" in count else 2)

    def test_a_reply_that_is_cut_off_is_asked_again(self, write, server, read):
        def cut(body, attempt, headers):
            if body["model"] == "judge" and body["temperature"] == 0:
                return completion_body('{"evidence": "', "length")
            return by_the_rules(body)

        server.reply = cut
        feedback.run(["--config", write()])
        assert len(server.requests) == 16 + 2 * 16
        assert all(c["score"] is not None for row in read("ratings") for c in row["candidates"])

    def test_a_server_that_is_down_or_refuses(self, write, server, capsys):
        server.reply = lambda *_: (401, {}, {})
        assert stops(feedback.run, "--config", write()) == 2
        assert f"{server.base_url} refuses a" in said(capsys)
        server.stop()
        assert stops(feedback.run, "--config", write()) == 2
        assert "No server answers at" in said(capsys)

    def test_the_key_is_nowhere(self, write, server, tmp_path, monkeypatch, capsys, caplog):
        monkeypatch.setenv("FEEDBACK_KEY", KEY)

        def echo(body, attempt, headers):
            assert headers["Authorization"] == f"Bearer {KEY}"
            if body["model"] == "a":
                return 400, {"error": {"message": f"what does {KEY} mean?"}}, {}
            return by_the_rules(body)

        server.reply = echo
        there = {"base_url": server.base_url, "api_key_env": "FEEDBACK_KEY"}
        changes = dict(responders=[{"model": name, **there} for name in "abc"], judges=[{"model": "judge", **there}])
        feedback.run(["--config", write(num_answers=3, **changes)])
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) >= 8 and any(b"[key]" in path.read_bytes() for path in files)
        for path in files:
            assert KEY.encode() not in path.read_bytes(), path
        assert KEY not in said(capsys) + caplog.text


def start(arguments, **environment):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    pipes = dict(stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    return subprocess.Popen([sys.executable, *arguments], env=environment, **pipes)


def script(output_dir, server, count, limit=0):
    return [str(Path(__file__).with_name("run_feedback.py")), str(output_dir), server.base_url, str(count), str(limit)]


class TestDisk:
    def test_a_full_disk_loses_nothing(self, server, tmp_path, picture):
        server.reply = by_the_rules
        whole, out = tmp_path / "whole", tmp_path / "out"
        run(whole, server.base_url, 30)
        asked = len(server.requests)

        process = start(script(out, server, 30, limit=150_000))
        assert process.wait() == 1
        assert "cannot be written" in process.stderr.read().decode()
        stored = answered(out / "calls.sqlite")
        assert 0 < len(stored) < asked
        before = len(server.requests)
        run(out, server.base_url, 30)
        assert results(out) == results(whole)
        assert not stored & {sent(body) for body in server.requests[before:]}

        # The calls are there, and the results do not fit.
        (out / "pairs.jsonl").write_text("old\n")
        size = (out / "ratings.jsonl").stat().st_size
        (out / "ratings.jsonl").unlink()
        process = start(script(out, server, 30, limit=size - 1))
        assert process.wait() == 1
        assert "ratings.jsonl cannot be written" in process.stderr.read().decode()
        assert not list(out.glob("*.new")) and not (out / "ratings.jsonl").exists()
        assert (out / "pairs.jsonl").read_text() == "old\n"


def answered(store):
    """The calls that a store holds answers of, as the server knows them."""
    connection = sqlite3.connect(f"{store.absolute().as_uri()}?mode=ro", uri=True)
    calls = [json.loads(text) for [text] in connection.execute("SELECT request FROM calls WHERE state = 'answered'")]
    connection.close()
    result = set()
    for call in calls:
        seed = call["sampling"]["seed"]
        seed = None if seed is None else derived_seed(seed, call["sample_index"])
        result.add((call["model"]["endpoint"], json.dumps(call["messages"], sort_keys=True), seed))
    assert len(result) == len(calls)
    return result


def sent(body):
    return body["model"], json.dumps(body["messages"], sort_keys=True), body.get("seed")


class TestKill:
    concurrency = 4

    def kill_again_and_again(self, command, out, server, kills, draw, step):
        """`kill -9` at random moments, one of them while the results are written; then a run to the end."""
        store, stored = out / "calls.sqlite", set()
        for kill in range(kills):
            before = len(server.requests)
            process = start(command)
            if kill < kills - 1:
                target, moment = before + draw.randrange(step), draw.random() * 0.02
                while process.poll() is None and len(server.requests) <= target:
                    time.sleep(0.001)
                time.sleep(moment)
                assert process.poll() is None, process.stderr.read().decode()
            else:
                while process.poll() is None and not (out / "ratings.jsonl").exists():
                    time.sleep(0.0005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            time.sleep(0.05)  # the server counts what is on its way
            assert not stored & {sent(body) for body in server.requests[before:]}
            stored = answered(store)
        before = len(server.requests)
        process = start(command)
        assert process.wait() == 0, process.stderr.read().decode()
        assert not stored & {sent(body) for body in server.requests[before:]}

    def check(self, command, whole_run, out, whole, server, kills, step):
        draw = random.Random()
        server.reply = by_the_rules
        server.delay = lambda body: draw.random() * 0.02
        self.kill_again_and_again(command, out, server, kills, draw, step)
        asked = Counter(map(sent, server.requests))
        assert set(asked) == answered(out / "calls.sqlite")
        assert len(server.requests) - len(asked) <= (kills - 1) * self.concurrency

        before = len(server.requests)
        whole_run()
        assert results(out) == results(whole)
        assert not list(out.glob("*.new"))
        uninterrupted = Counter(map(sent, server.requests[before:]))
        assert uninterrupted == dict.fromkeys(asked, 1)
        return len(asked), len(server.requests[:before])

    def test_three_kills(self, server, tmp_path, picture):
        out, whole = tmp_path / "out", tmp_path / "whole"
        command = script(out, server, 16)
        calls, _ = self.check(command, lambda: run(whole, server.base_url, 16), out, whole, server, kills=3, step=40)
        assert calls == 16 * 3 + 16 * 3

    @pytest.mark.slow
    def test_twenty_kills_of_the_command(self, write, server, tmp_path, picture):
        out, whole = tmp_path / "out", tmp_path / "whole"
        arguments = ["--config", write(num_answers=3), "--output_dir"]
        write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"question {i}"} for i in range(60)])
        command = ["-m", "trl_distill.cli", "feedback", *arguments, str(out)]
        calls, asked = self.check(
            command, lambda: feedback.run([*arguments, str(whole)]), out, whole, server, kills=20, step=28
        )
        print(f"{calls} calls, {asked} requests with 20 kills")
        assert calls == 60 * 3 + 60 * 3

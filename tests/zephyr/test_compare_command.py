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
"""`trl-distill compare` with models behind a server, wrong configs, and `kill -9`."""

import json
import random
import signal
import time
from collections import Counter

import pytest
import yaml
from test_feedback_command import answered, by_the_rules, sent, start

from tests.commands import read_rows, said, stops, write_rows
from trl_distill.scripts import compare


@pytest.fixture
def write(tmp_path, server):
    """Factory of YAML files for a comparison on the server, with changes."""
    server.reply = by_the_rules
    rows = [{"instruction": f"question {i}", "dataset": "ab"[i % 2], "output": ""} for i in range(8)]
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(rows))

    def build(**changes):
        there = {"base_url": server.base_url, "concurrency": 4, "backoff": 0.01, "max_attempts": 2}
        settings = {
            "dataset_name": str(tmp_path / "alpaca_eval.json"),
            "output_dir": str(tmp_path / "out"),
            "models": {"dpo": {"model": "a", **there}, "sft": {"model": "b", **there}},
            "judge": {"model": "judge", **there},
        }
        path = tmp_path / "compare.yaml"
        path.write_text(yaml.safe_dump(settings | changes, sort_keys=False))
        return str(path)

    return build


class TestCommand:
    def test_files_and_table(self, write, read, server, tmp_path, capsys, picture):
        compare.run(["--config", write()])
        assert len(server.requests) == 8 * 2 + 8 * 2
        text = said(capsys)
        row = json.loads((tmp_path / "out" / "report.json").read_text())["win_rate"]
        assert "Win rate of dpo over sft" in text
        low, high = (100 * bound for bound in row["interval"])
        counts = " ".join(str(row[name]) for name in ("pairs", "wins", "ties", "losses", "unscored"))
        assert f"all {counts} {row['win_rate']:.1%} {low:.1f} - {high:.1f}%" in text
        assert "The judge says the same in both orders in 100% of 8 pairs" in text
        assert "Mean characters: dpo" in text and "Unscored" not in text and "Warning" not in text
        assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
        outputs = json.loads((tmp_path / "out" / "answers" / "dpo.json").read_text())
        assert [row["instruction"] for row in outputs] == [f"question {i}" for i in range(8)]
        assert {row["generator"] for row in outputs} == {"dpo"}

    def test_the_files_are_answers_of_the_next_run(self, write, server, tmp_path, capsys):
        compare.run(["--config", write()])
        first = json.loads((tmp_path / "out" / "report.json").read_text())["win_rate"]
        before = len(server.requests)
        answers = {name: str(tmp_path / "out" / "answers" / f"{name}.json") for name in ("sft", "dpo")}
        compare.run(["--config", write(models=None, answers=answers, output_dir=str(tmp_path / "back"))])
        second = json.loads((tmp_path / "back" / "report.json").read_text())["win_rate"]
        assert second["win_rate"] == pytest.approx(1 - first["win_rate"])
        assert {body["model"] for body in server.requests[before:]} == {"judge"}

    def test_dry_run_and_budget(self, write, server, tmp_path, capsys):
        compare.run(["--config", write(), "--dry_run"])
        text = said(capsys)
        assert "answers dpo 8" in text and "verdicts judge 16" in text and "total 32" in text
        assert not server.requests and not (tmp_path / "out").exists()
        assert stops(compare.run, "--config", write(max_calls=20)) == 3
        assert "stopped: `max_calls` is 20" in said(capsys) and len(server.requests) == 20
        compare.run(["--config", write(max_calls=32)])
        assert len(server.requests) == 32

    def test_calls_that_fail_for_good_are_counted_and_asked_again(self, write, server, tmp_path, capsys):
        def bad(body, attempt, headers):
            asked = body["messages"][-1]["content"]
            if (body["model"] == "a" and asked == "question 2") or (
                body["model"] == "judge" and "question 5" in asked
            ):
                return 422, {"error": "no"}, {}
            return by_the_rules(body)

        server.reply = bad
        compare.run(["--config", write()])
        text = said(capsys)
        assert "Answers of dpo: 1 failed." in text
        assert "Unscored, and not in the win rate: failed call 1, no answer 1." in text
        server.reply, before = by_the_rules, len(server.requests)
        compare.run(["--config", write()])
        assert len(server.requests) == before + 1 + 2 + 2  # the answer and its verdicts, and those of question 5
        assert "Unscored" not in said(capsys)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model": {}}, "unknown field `model` in the config file. Did you mean models?"),
            ({"models": None}, "Two are compared, each with a name of its own, in `models`, in `answers`"),
            ({"models": {"dpo": {"model": "a"}}}, "or one in each, got dpo"),
            ({"models": [{"model": "a"}]}, "`models` must hold `name: ...` lines"),
            ({"models": {"a": {"model": "a", "name": "b"}, "b": {"model": "b"}}}, "'a' is its name already"),
            ({"models": {"a": "b", "b": "a"}}, "`models`: A chat model is an entry"),
            ({"models": {"a": {"model": "m"}, "b": {"model": "m"}}}, "a and b are one model"),
            ({"models": {"a b": {"model": "a"}, "b": {"model": "b"}}}, "'a b' must be of letters, digits"),
            ({"answers": {"gold": "gold.json"}}, "got dpo, sft, gold"),
            ({"answers": {"gold": {"model": "a"}}}, "`answers`: 'gold' must be a file"),
            ({"judge": None}, "Nobody judges: set `judge`"),
            ({"judge": {"model": "j", "temperatur": 1}}, "`judge`: Unknown key `temperatur`"),
            ({"judge": {"model": "a", "base_url": "http://elsewhere/v1"}}, "and at http://elsewhere/v1"),
            ({"judge_scale": [5, 1]}, "`judge_scale` must be the lowest and the highest score"),
            ({"judge_scale": ["a", "b"]}, "`judge_scale` must be"),
            ({"temperature": -1}, "`temperature` must be 0 (greedy) or more"),
            ({"max_prompts": 0}, "`max_prompts` must be 1 or more"),
            ({"dataset_name": None}, "No prompts: set `dataset_name`"),
            ({"dataset_name": "none.json"}, "No such file: none.json"),
            ({"prompt_column": "question"}, "Row 1: no column `question`, only"),
            ({"output_dir": None}, "No place for the results: set `output_dir`"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_a_wrong_config_is_refused_before_the_first_call(self, write, server, changes, message, capsys):
        assert stops(compare.run, "--config", write(**changes)) == 2
        assert message in said(capsys)
        assert not server.requests


class TestKill:
    """`kill -9` at random moments: no answered call is sent again, and the results are those of a whole run."""

    def test_three_kills(self, write, server, tmp_path, picture):
        rows = [
            {"question_id": i, "turns": [f"question {i}", f"again {i}"], "category": "ab"[i % 2]} for i in range(12)
        ]
        data, draw = write_rows(tmp_path / "questions.jsonl", rows), random.Random()
        server.delay = lambda body: draw.random() * 0.02
        out, whole, stored = tmp_path / "out", tmp_path / "whole", set()
        config = write(dataset_name=data)
        for kill in range(4):
            before = len(server.requests)
            target = before + draw.randrange(1, 24)
            process = start(["-m", "trl_distill.cli", "compare", "--config", config])
            if kill < 3:
                while process.poll() is None and len(server.requests) <= target:
                    time.sleep(0.001)
                assert process.poll() is None, process.stderr.read().decode()
                process.send_signal(signal.SIGKILL)
                process.wait()
                time.sleep(0.05)  # the server counts what is on its way
            else:
                assert process.wait() == 0, process.stderr.read().decode()
            assert not stored & {sent(body) for body in server.requests[before:]}
            stored = answered(out / "calls.sqlite")
        asked = Counter(map(sent, server.requests))
        assert len(asked) == 12 * 2 * 2 + 12 * 2 == len(stored)
        assert len(server.requests) - len(asked) <= 3 * 4  # those in flight, at most the concurrency

        compare.run(["--config", config, "--output_dir", str(whole)])
        assert self.results(out) == self.results(whole)
        assert not list(out.rglob("*.new"))

    def results(self, folder):
        report = json.loads((folder / "report.json").read_text())
        del report["ledger"]
        answers = {path.name: read_rows(path) for path in (folder / "answers").iterdir()}
        for rows in answers.values():
            for row in rows:
                del row["tstamp"]
        return report, answers, *((folder / name).read_bytes() for name in ("pairs.jsonl", "report.png"))

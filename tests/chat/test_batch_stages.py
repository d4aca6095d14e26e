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

"""What draws text through a batch endpoint, with the entry that all share: AI feedback, samples, comparisons."""

import pytest
from batch_server import answer
from chat_server import said

from tests.commands import write_rows
from tests.zephyr.rules import answer as rated
from tests.zephyr.rules import judge_reply
from trl_distill.chat import CallStore, ChatServerError, Sampling, samples_to_file
from trl_distill.scripts import sample
from trl_distill.zephyr import CompareConfig, FeedbackConfig, feedback, run_compare, run_feedback


PROMPTS = [f"question {i}" for i in range(6)]
FILES = ("pairs.jsonl", "sft.jsonl", "ratings.jsonl")


def by_the_rules(body, *_):
    if body["model"] == "judge":
        return said(judge_reply(body["messages"]))
    return said(rated(body["model"], body["messages"], body.get("seed")))


@pytest.fixture
def run(batches, batch_model, tmp_path, monkeypatch):
    """A run of feedback with two responders and a judge behind the batch server."""
    monkeypatch.setattr(feedback, "_PROMPTS_AT_A_TIME", 2)
    batches.reply = by_the_rules

    def start(**settings):
        config = FeedbackConfig(output_dir=str(tmp_path), num_answers=2, decontaminate=[], **settings)
        models = [batch_model(name) for name in ("a", "b")]
        return run_feedback(config, prompts=PROMPTS, responders=models, judges=[batch_model("judge")])

    return start


def sizes(batches):
    return [(batch["lines"][0]["body"]["model"], len(batch["lines"])) for batch in batches.batches.values()]


class TestFeedback:
    def test_each_stage_of_a_model_is_one_batch(self, batches, run, server, connect, tmp_path):
        run()
        assert sizes(batches) == [("a", 6), ("b", 6), ("judge", 12)]
        server.reply = by_the_rules
        (tmp_path / "single").mkdir()
        config = FeedbackConfig(output_dir=str(tmp_path / "single"), num_answers=2, decontaminate=[])
        models = [connect(name) for name in ("a", "b")]
        run_feedback(config, prompts=PROMPTS, responders=models, judges=[connect("judge")])
        for name in FILES:  # those of single calls
            assert (tmp_path / name).read_bytes() == (tmp_path / "single" / name).read_bytes()

    def test_replies_that_cannot_be_read_are_one_more_batch(self, batches, run):
        def once(body):
            is_first = body["model"] == "judge" and "response_format" in body and "question 3" in str(body)
            return said("eight") if is_first else by_the_rules(body)

        batches.reply = once
        assert run()["answers"]["scored"] == 12
        assert sizes(batches)[-2:] == [("judge", 12), ("judge", 2)]

    def test_a_judge_without_the_form_of_replies(self, batches, run):
        refused = 400, {"error": {"message": "Invalid parameter: 'response_format' of type 'json_schema'."}}
        batches.reply = lambda body: refused if "response_format" in body else by_the_rules(body)
        assert run()["answers"]["scored"] == 12
        assert sizes(batches)[-2:] == [("judge", 12), ("judge", 12)]

    def test_a_prompt_that_the_judge_refuses_costs_no_round(self, batches, run):
        refused = 400, {"error": {"message": "This prompt is not welcome."}}
        is_it = lambda body: body["model"] == "judge" and "question 3" in str(body)  # noqa: E731
        batches.reply = lambda body: refused if is_it(body) else by_the_rules(body)
        assert run()["answers"]["scored"] == 10 and len(batches.batches) == 3

    def test_a_run_that_stops_while_it_waits_goes_on(self, batches, run):
        for count in (1, 3):
            batches.fault = lambda event, _, count=count: (
                (401, {}) if event == "poll" and len(batches.batches) == count else None
            )
            with pytest.raises(ChatServerError):
                run()
            batches.fault = lambda *_: None
        assert run()["answers"]["scored"] == 12
        assert sizes(batches) == [("a", 6), ("b", 6), ("judge", 12)]

    def test_a_dry_run_makes_no_batch(self, batches, run, path):
        CallStore(path).close()
        missing = run(dry_run=True)["missing"]
        assert [row["calls"] for row in missing] == [6, 6, 12] and not batches.events


def test_samples(batches, batch_model, tmp_path):
    batches.path = tmp_path / "samples.jsonl.calls.sqlite"
    batches.reply = answer
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS]
    drawn = samples_to_file(tmp_path / "samples.jsonl", batch_model(), rows, 3, Sampling(max_tokens=64, seed=1), False)
    assert [row["completions"] for row in drawn] == [[f"echo {prompt}"] * 3 for prompt in PROMPTS]
    assert sizes(batches) == [("m", 18)]


def test_the_command_sample(batches, tmp_path, capsys):
    batches.path, batches.polls = tmp_path / "samples.jsonl.calls.sqlite", 0  # it looks again after a minute
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS])
    flags = ["--model_name_or_path", "m", "--dataset_name", str(tmp_path / "prompts.jsonl"), "--num_samples", "2"]
    flags += ["--output_file", str(tmp_path / "samples.jsonl"), "--engine", "batch"]
    with pytest.raises(SystemExit):
        sample.run(flags)
    assert "--engine batch is for a server: set --base_url" in capsys.readouterr().err
    sample.run([*flags, "--base_url", batches.base_url])
    assert "12 samples of 6 prompts" in capsys.readouterr().out and sizes(batches) == [("m", 12)]


def test_a_comparison(batches, batch_model, tmp_path):
    batches.reply = by_the_rules
    config = CompareConfig(output_dir=str(tmp_path))
    models = [batch_model(name) for name in ("a", "b")]
    report = run_compare(config, prompts=PROMPTS, models=models, judge=batch_model("judge"))
    assert report["win_rate"]["pairs"] == 6 and sizes(batches) == [("a", 6), ("b", 6), ("judge", 12)]

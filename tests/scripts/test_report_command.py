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


"""`report.html` of real runs: by the command that trains, and by `trl-distill report` after a kill."""

import json
import os
import signal

from tests.commands import error_of
from tests.runs import TINY_RUN
from tests.scripts.test_stopping import LONG, start, wait_for
from tests.test_report import Page
from trl_distill import MiniLLMConfig, MiniLLMTrainer
from trl_distill.report import number
from trl_distill.scripts import minillm, report, sft


SECRET = "a-secret-of-mine-1234"


def test_minillm_leaves_a_page(sft_config, tmp_path, monkeypatch, tiny_model, tokenizer):
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    tiny_model(seed=1, vocab_size=264).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    rows = [{"prompt": f"Say <script>alert({i})</script>", "completion": f" {i}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"max_steps": 6, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 3, "test_split_size": 4}
    values |= {"teacher_model_name_or_path": str(tmp_path / "teacher"), "max_completion_length": 8}
    values |= {"log_completions": True, "num_completions_to_print": 2, "hub_token": "hf_" + "x" * 20}
    minillm.run(["--config", sft_config(**values, run_name=SECRET, save_strategy="steps", save_steps=6)])

    folder = tmp_path / "out"
    html = (folder / "report.html").read_text()
    page, history = Page(html), json.loads((folder / "trainer_state.json").read_text())["log_history"]
    for name in ("loss", "kl", "grad_norm", "learning_rate", "entropy"):
        training = [entry[name] for entry in history if name in entry]
        assert len(training) == 3 and f"{name} training {number(training[-1])}" in page.text
    kl = [entry["eval_kl"] for entry in history if "eval_kl" in entry]
    steps = [3, 6]
    expected = f"eval_kl {number(kl[0])} {number(min(kl))} {steps[kl.index(min(kl))]} {number(kl[-1])}"
    assert len(kl) == 2 and expected in page.text
    assert "steps 6 of 6" in page.text and "status finished" in page.text and "trl-distill minillm" in page.text
    assert "Answers after 3 steps and after 6 steps" in page.text and "after 0 steps" in page.text
    assert "<script>" not in html and "Say <script>alert(" in page.text
    rollouts = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    assert any(f"reward {number(row['reward'])}" in page.text for row in rollouts if row["mode"] == "eval")
    for file in (*folder.glob("*.json"), *folder.glob("*.md"), folder / "report.html"):
        assert SECRET not in file.read_text() and "x" * 20 not in file.read_text(), file

    card = (folder / "README.md").read_text()
    assert "trl-distill" in card and "| teacher | `teacher` |" in card and "| data | `rows.jsonl` |" in card
    assert "- minillm\n" in card and "| teacher_mix_alpha | `0.2` |" in card and str(tmp_path) not in card


def test_a_killed_run(sft_config, tmp_path, capsys):
    process = start("sft", "--config", sft_config(**LONG, logging_steps=1), "--accelerate_config", "cpu")
    wait_for(process, lambda: list(tmp_path.glob("out/checkpoint-*/trainer_state.json")))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (tmp_path / "out/report.html").exists()
    report.run([str(tmp_path / "out")])
    assert capsys.readouterr().out == f"{tmp_path / 'out/report.html'}\n"
    page = Page((tmp_path / "out/report.html").read_text())
    assert "stopped, or still running" in page.text and "of 100,000" in page.text and "loss training" in page.text
    assert "max_steps 100000" in page.text  # in the settings


def test_without_logs_of_completions_nothing_is_recorded(sft_config, tmp_path):
    sft.run(["--config", sft_config(log_completions=False)])
    assert (tmp_path / "out/report.html").is_file() and not (tmp_path / "out/rollouts.jsonl").exists()
    assert "trl-distill" in (tmp_path / "out/README.md").read_text()


def test_a_training_in_python(tmp_path, tiny_model, tokenizer, prompts):
    values = TINY_RUN | dict(max_steps=3, max_completion_length=8, log_completions=True, eval_strategy="steps")
    trainer = MiniLLMTrainer(
        model=tiny_model(),
        teacher_model=tiny_model(seed=1),
        args=MiniLLMConfig(str(tmp_path / "run"), **values, eval_steps=3, eval_on_start=True),
        train_dataset=prompts,
        eval_dataset=prompts.select(range(4)),
        processing_class=tokenizer,
    )
    trainer.train()
    for folder in (None, str(tmp_path / "elsewhere")):
        trainer.save_model(folder)
        report.run([folder or str(tmp_path / "run")])
    page = Page((tmp_path / "run/report.html").read_text()).text
    kl = [entry["eval_kl"] for entry in trainer.state.log_history if "eval_kl" in entry]
    assert len(kl) == 2 and f"eval_kl {number(kl[0])} {number(min(kl))}" in page and "steps 3 of 3" in page
    assert (
        "Answers before training and after 3 steps" in page and "Underlined tokens were drawn by the teacher" in page
    )
    assert "by the teacher reward" in page and "All settings" not in page
    assert "steps 3 of 3" in Page((tmp_path / "elsewhere/report.html").read_text()).text


def test_a_folder_of_something_else(tmp_path, capsys):
    assert "is no folder of a training" in error_of(capsys, report.run, str(tmp_path))

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

"""`recipes/zephyr/run.sh` with tiny models and data, killed and started again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from peft import AutoPeftModelForCausalLM

from tests.commands import write_rows


ZEPHYR = Path(__file__).parents[2] / "recipes" / "zephyr"
TINY = {
    "accelerate_config": "cpu",
    "bf16": False,
    "report_to": "none",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "eval_strategy": "no",
    "logging_steps": 1,
}


@pytest.fixture
def environment(save_model, pairs, tmp_path):
    """Variables that make the script tiny."""
    write_rows(tmp_path / "chat.jsonl", [{"messages": row["prompt"] + row["chosen"]} for row in pairs])
    (tmp_path / "runs" / "feedback").mkdir(parents=True)
    pairs.to_json(tmp_path / "runs" / "feedback" / "pairs.jsonl")
    (tmp_path / "runs" / "feedback.done").touch()
    changes = {
        "dsft": {"model_name_or_path": save_model(), "dataset_name": str(tmp_path / "chat.jsonl"), "max_steps": 60},
        "ddpo": {"max_steps": 4},
    }
    for step, values in changes.items():
        recipe = yaml.safe_load((ZEPHYR / f"{step}_qlora.yaml").read_text())
        splits = {"dataset_train_split": "train", "dataset_test_split": "test", "save_steps": 4}
        (tmp_path / f"{step}.yaml").write_text(yaml.safe_dump(recipe | TINY | splits | values))
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OUT": str(tmp_path / "runs"),
        "DSFT": str(tmp_path / "dsft.yaml"),
        "DDPO": str(tmp_path / "ddpo.yaml"),
        "FEEDBACK": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }


def start(environment):
    return subprocess.Popen(
        [ZEPHYR / "run.sh"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.slow
def test_killed_and_started_again(environment, tmp_path):
    runs, deadline = tmp_path / "runs", time.monotonic() + 300
    first = start(environment)
    while not (runs / "dsft" / "checkpoint-8" / "trainer_state.json").is_file():
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[0][-3000:]
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (runs / "dsft.done").exists()
    # A kill while a checkpoint is written leaves a folder without the trainer's state
    (runs / "dsft" / "checkpoint-1000").mkdir()

    second = start(environment)
    output = second.communicate(timeout=300)[0]
    assert second.returncode == 0, output[-3000:]
    assert f"{runs / 'dsft'}: goes on from its last checkpoint" in output
    assert "checkpoint-1000\n" not in output
    assert f"{runs / 'feedback'}: is done" in output
    assert f"The result is the LoRA {runs / 'ddpo'} on {runs / 'dsft-merged'}" in output
    state = json.loads((runs / "ddpo" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["log_history"][0]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    AutoPeftModelForCausalLM.from_pretrained(runs / "ddpo")

    third = start(environment)
    output = third.communicate(timeout=60)[0]
    assert third.returncode == 0
    assert [line for line in output.splitlines() if line.endswith(": is done")] == [
        f"{runs / name}: is done" for name in ("dsft", "dsft-merged", "feedback", "ddpo")
    ]


class TestFinishedSteps:
    """All steps are there, so that the script only looks at them."""

    @pytest.fixture
    def finished(self, tmp_path):
        runs = tmp_path / "runs"
        for folder in ("dsft", "dsft-merged", "ddpo"):
            (runs / folder).mkdir(parents=True)
        (runs / "dsft" / "adapter_config.json").touch()
        for age, name in enumerate(("ddpo.done", "feedback.done", "dsft-merged", "dsft.done")):
            (runs / name).touch()
            os.utime(runs / name, (1e9 - age, 1e9 - age))
        return runs

    def run(self, runs, **variables):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [ZEPHYR / "run.sh"],
            env=os.environ | {"OUT": str(runs), "PATH": path} | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )

    @pytest.mark.parametrize(
        ("newer", "older"),
        [("dsft.done", "dsft-merged"), ("dsft-merged", "ddpo.done"), ("feedback.done", "ddpo.done")],
    )
    def test_a_step_that_is_older_than_what_it_starts_from_stops_the_script(self, finished, newer, older):
        assert self.run(finished, FEEDBACK="1").returncode == 0
        for name in ("dsft-merged", "ddpo.done") if newer == "dsft-merged" else (newer,):
            os.utime(finished / name, (1e9 + 5, 1e9 + 5))
        os.utime(finished / older, (1e9, 1e9))
        result = self.run(finished, FEEDBACK="1")
        assert result.returncode == 1 and f"{finished / older} is older than {finished / newer}" in result.stderr

    def test_the_student_of_the_feedback_is_the_model_of_the_first_step(self, finished, tmp_path):
        (finished / "feedback.done").unlink()
        (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
        recipe = yaml.safe_load((ZEPHYR / "feedback.yaml").read_text())
        changes = {"dataset_name": str(tmp_path / "prompts.jsonl"), "dataset_split": "train"}
        recipe |= changes | {"decontaminate": [], "dry_run": True}
        (tmp_path / "feedback.yaml").write_text(yaml.safe_dump(recipe))
        result = self.run(finished, FEEDBACK="1", FEEDBACK_CONFIG=str(tmp_path / "feedback.yaml"))
        assert "Still to be asked" in result.stdout, result.stderr
        config = yaml.safe_load((finished / "feedback.yaml").read_text())
        assert config["student"]["model_name_or_path"] == str(finished / "dsft-merged")

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
"""What commands do where a launcher has started several processes, which may not see the same files."""

import importlib
import json
import subprocess
from pathlib import Path

import pytest

from tests.commands import CPU, TWO_PROCESSES, error_of, write_rows
from trl_distill import cli


@pytest.mark.parametrize("command", [*cli.OTHERS])
def test_a_command_that_does_not_train_is_refused_in_several_processes(command, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    error = error_of(capsys, importlib.import_module(f"trl_distill.scripts.{command}").run)
    assert error.startswith(f"trl-distill {command}: error in process 1 of 2, on ")
    assert error.endswith(f"runs in one process, but a launcher has started 2. Run `trl-distill {command}`.")


def test_the_first_process_chooses_the_checkpoint(tmp_path, on_one_and_two_processes):
    for rank, step in (("0", 2), ("1", 4)):
        (tmp_path / rank / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / rank / f"checkpoint-{step}/trainer_state.json").write_text(json.dumps({}))
    one, two = on_one_and_two_processes(Path(__file__).with_name("run_resume.py"), tmp_path)
    assert one == two == {"found": [str(tmp_path / "0/checkpoint-2")]}


def test_what_is_wrong_in_another_process_is_said_and_ends_all(tmp_path, tiny_model, tokenizer):
    """The data of the second process are missing."""
    for name in "01":
        (tmp_path / name).mkdir()
    write_rows(tmp_path / "0/rows.jsonl", [{"prompt": "a", "completion": "b"}] * 8)
    tiny_model(vocab_size=264).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    values = {"model_name_or_path": tmp_path / "model", "dataset_name": "rows.jsonl", "output_dir": "out"} | CPU
    flags = [argument for name, value in values.items() for argument in (f"--{name}", str(value))]
    (tmp_path / "start.py").write_text(
        "import os, runpy; os.chdir(os.environ['RANK'])\n"
        "runpy.run_module('trl_distill.scripts.sft', run_name='__main__')\n"
    )
    command = [*TWO_PROCESSES, tmp_path / "start.py", *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode != 0
    [error] = [line for line in done.stderr.splitlines() if line.startswith("trl-distill sft: error")]
    assert error.startswith("trl-distill sft: error in process 1 of 2, on ") and "rows.jsonl" in error

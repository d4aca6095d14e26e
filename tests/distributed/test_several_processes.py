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
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.commands import CPU, TWO_PROCESSES, error_of, write_rows
from tests.runs import assert_same_logits
from trl_distill import cli
from trl_distill.scripts import sft


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
    started = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    errors = []
    for line in started.stderr:  # which is open until both processes have ended
        if line.startswith("trl-distill sft: error"):
            errors.append((line, time.monotonic()))
    [(error, said)] = errors
    assert started.wait() != 0 and time.monotonic() - said < 20
    assert error.startswith("trl-distill sft: error in process 1 of 2, on ") and "rows.jsonl" in error


@pytest.fixture
def machines(tmp_path, tiny_model, tokenizer):
    """Starts `trl-distill sft` as one of two machines, which find one another on the loopback address."""
    tiny_model(vocab_size=264).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{i}", "completion": "b" * (i + 1)} for i in range(8)])
    launcher = {"distributed_type": "MULTI_GPU", "use_cpu": True, "mixed_precision": "no"}
    (tmp_path / "launcher.yaml").write_text(json.dumps({"compute_environment": "LOCAL_MACHINE"} | launcher))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(rank=0, count=2, output="out", **flags):
        values = {"model_name_or_path": tmp_path / "model", "dataset_name": tmp_path / "rows.jsonl"} | CPU
        values |= dict(output_dir=tmp_path / output, max_steps=2, per_device_train_batch_size=4 // count)
        values |= dict(accelerate_config=tmp_path / "launcher.yaml", num_machines=count, num_processes=count)
        values |= dict(machine_rank=rank, main_process_ip="127.0.0.1", main_process_port=port) | flags
        command = [sys.executable, "-m", "trl_distill.cli", "sft"]
        command += [argument for name, value in values.items() for argument in (f"--{name}", str(value))]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])

    return start


def test_two_machines_train_the_model_of_one(machines, tmp_path):
    both = [machines(rank) for rank in (0, 1)]
    said = [machine.communicate(timeout=200)[1] for machine in both]
    assert [machine.returncode for machine in both] == [0, 0], said
    alone = machines(count=1, output="alone")
    assert alone.communicate(timeout=200) and alone.returncode == 0
    load = AutoModelForCausalLM.from_pretrained
    assert_same_logits(load, tmp_path / "out", tmp_path / "alone")
    ids = torch.arange(5, 25)[None]
    assert not torch.allclose(load(tmp_path / "out")(ids).logits, load(tmp_path / "model")(ids).logits, atol=1e-3)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_machine_that_is_left_alone_says_so(rank, machines, tmp_path):
    alone = machines(rank, rdzv_conf="timeout=2")
    error = alone.communicate(timeout=200)[1].splitlines()[-1]
    assert alone.returncode == 2 and not (tmp_path / "out").exists()
    assert error.startswith(f"trl-distill sft: error: machine {rank} of 2 has not found the others at 127.0.0.1:")


@pytest.mark.parametrize(
    ("launcher", "field", "message"),
    [
        ("FSDP", {"use_cpu": True}, "`use_cpu` is set, but the launcher's config asks for FSDP"),
        ("DEEPSPEED", {"use_cpu": True}, "`use_cpu` is set, but the launcher's config asks for DeepSpeed"),
        ("DEEPSPEED", {"fsdp": "full_shard"}, "`fsdp` is set, but the launcher's config asks for DeepSpeed"),
        ("FSDP", {"deepspeed": "zero3.json"}, "`deepspeed` is set, but the launcher's config asks for FSDP"),
    ],
)
def test_a_training_that_contradicts_its_launcher_is_refused(launcher, field, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv(f"ACCELERATE_USE_{launcher}", "true")
    values = {"model_name_or_path": "m", "dataset_name": "rows.jsonl", "output_dir": tmp_path / "out"} | field
    assert message in error_of(capsys, sft.run, *(f"--{name}={value}" for name, value in values.items()))
    assert not list(tmp_path.iterdir())

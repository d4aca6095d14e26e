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
"""`recipes/launch.slurm` on nodes that are this machine, each of whose tasks is a process of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.commands import CPU, write_rows
from tests.runs import assert_same_logits


ROOT = Path(__file__).parents[2]
SLURM = {
    "scontrol": """for node in $NODES; do echo "$node"; done""",
    "srun": """
for flag in "$@"; do case "$flag" in --ntasks=*) tasks=${flag#*=};; --*) ;; *) break;; esac; shift; done
for ((task = 0; task < tasks; task++)); do SLURM_PROCID=$task "$@" & started+=($!); done
trap 'kill "${started[@]}"' TERM
for process in "${started[@]}"; do wait "$process" || status=$?; done
exit "${status:-0}"
""",
}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture
def sbatch(tmp_path):
    """Runs the script with arguments, and with programs of an allocation's nodes."""

    def run(arguments, nodes="127.0.0.1 localhost", programs=(), **environment):
        for name, text in (SLURM | dict(programs)).items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
            (tmp_path / name).chmod(0o755)
        environment |= {"NODES": nodes, "SLURM_JOB_NODELIST": "n", "SLURM_GPUS_ON_NODE": "1", "MAIN_PORT": free_port()}
        return subprocess.run(
            ["bash", str(ROOT / "recipes/launch.slurm"), *map(str, arguments)],
            env=os.environ | environment | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=200, cwd=tmp_path,
        )  # fmt: skip

    return run


def test_the_last_node_serves_the_teacher(sbatch, tmp_path):
    """The server of this test has one page, `/health`, and says there what it was asked to serve."""
    port = free_port()
    serve = f"""
echo "$@" > health.new; sleep 1; mv health.new health
exec {sys.executable} -m http.server --bind 127.0.0.1 {port}
"""
    programs = {"vllm": serve, "trl-distill": """printf '%s ' "$@" >> "said-$SLURM_PROCID" """}
    arguments = ["minillm", "--config", "my file.yaml"]
    nodes = "localhost 127.0.0.1 127.0.0.1"
    done = sbatch(arguments, nodes, programs, TEACHER="org/teacher", TEACHER_PORT=port)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "health").read_text() == f"serve org/teacher --tensor-parallel-size 1 --port {port}\n"
    for rank in (0, 1):
        said = (tmp_path / f"said-{rank}").read_text()
        assert said.startswith(f"minillm --config my file.yaml --teacher_model_server_url http://127.0.0.1:{port} ")
        assert "--num_machines 2 --num_processes 2 --main_process_ip localhost" in said
        assert said.endswith(f"--machine_rank {rank} ")
    assert not (tmp_path / "said-2").exists()
    with socket.socket() as other:  # the server ends with the job
        assert other.connect_ex(("127.0.0.1", int(port))) != 0


def test_a_teacher_that_cannot_be_served_ends_the_job(sbatch, tmp_path):
    programs = {"vllm": "echo no such model >&2; exit 1", "trl-distill": "touch trained"}
    done = sbatch(["minillm"], "localhost 127.0.0.1", programs, TEACHER="none", TEACHER_PORT=free_port())
    assert done.returncode != 0 and "no such model" in done.stderr and not (tmp_path / "trained").exists()
    done = sbatch(["minillm"], "localhost", programs, TEACHER="none")
    assert done.returncode == 2 and "A teacher needs a node of its own" in done.stderr


@pytest.mark.slow
def test_two_nodes_train_the_model_of_one(sbatch, tmp_path, tiny_model, tokenizer):
    tiny_model(vocab_size=264).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{i}", "completion": "b" * (i + 1)} for i in range(8)])
    launcher = {"distributed_type": "MULTI_GPU", "use_cpu": True, "mixed_precision": "no"}
    (tmp_path / "launcher.yaml").write_text(json.dumps({"compute_environment": "LOCAL_MACHINE"} | launcher))
    programs = {"trl-distill": f'exec {sys.executable} -m trl_distill.cli "$@"'}
    for nodes in ("127.0.0.1", "127.0.0.1 localhost"):
        count = len(nodes.split())
        values = {"model_name_or_path": tmp_path / "model", "dataset_name": tmp_path / "rows.jsonl"} | CPU
        values |= {"output_dir": tmp_path / f"out-{count}", "max_steps": 2, "per_device_train_batch_size": 4 // count}
        values |= {"accelerate_config": tmp_path / "launcher.yaml"}
        done = sbatch(["sft", *(f"--{name}={value}" for name, value in values.items())], nodes, programs)
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same_logits(AutoModelForCausalLM.from_pretrained, tmp_path / "out-1", tmp_path / "out-2")

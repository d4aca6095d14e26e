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
"""What tests of commands share: files of rows, settings of a run on the CPU, and what a command says."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


# What starts a script as two processes of this machine
TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
CPU = dict(bf16=False, use_cpu=True, report_to="none", save_strategy="no")


def write_rows(path, rows):
    """Write rows, or lines as they are, and return the path as a text."""
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def read_rows(path):
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.decode().splitlines()]


def run_python(*arguments, cwd=None, **environment):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def stops(run, *arguments):
    """The exit code of a command that must stop."""
    with pytest.raises(SystemExit) as stopped:
        run([str(argument) for argument in arguments])
    return stopped.value.code


def error_of(capsys, run, *arguments):
    """The message of a command that must stop with exit code 2."""
    assert stops(run, *arguments) == 2
    return capsys.readouterr().err.splitlines()[-1]


def said(capsys):
    """What was printed, on one line."""
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).split())

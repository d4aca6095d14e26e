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

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml


ROOT = Path(__file__).parents[2]


def start(*arguments, program=("-m", "trl_distill.cli")):
    """A command in a session of its own, so that a signal may go to all of its processes, as from a terminal."""
    command = [sys.executable, *program, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for(process, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def family(process):
    return psutil.Process(process.pid).children(recursive=True)


LONG = {"max_steps": 100_000, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "disable_tqdm": None}


class TestStoppedTraining:
    @pytest.mark.parametrize("how", ["ctrl_c", "kill", "kill_9"])
    def test_no_trainer_is_left_and_one_line_says_how_to_go_on(self, how, sft_config, tmp_path):
        process = start("sft", "--config", sft_config(**LONG), "--accelerate_config", "cpu")
        wait_for(process, lambda: list(tmp_path.glob("out/checkpoint-*/trainer_state.json")))
        children = family(process)
        assert children
        if how == "ctrl_c":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGTERM if how == "kill" else signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive
        assert "Traceback" not in said and "%|" not in said and "\r" not in said, said
        if how == "kill_9":
            return
        assert process.returncode == 130
        config = tmp_path / "config.yaml"
        again = f"sft --config {config} --accelerate_config cpu --resume_from_checkpoint latest"
        assert said.splitlines()[-1] == f"trl-distill sft: stopped. To go on: trl-distill {again}"

    def test_without_a_checkpoint(self, sft_config, tmp_path):
        process = start("sft", "--config", sft_config(**LONG | {"save_steps": 100_000, "logging_steps": 1}))
        wait_for(process, (tmp_path / "out").is_dir)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130 and "Traceback" not in said, said
        assert "were not passed to `accelerate launch`" not in said
        assert "There is no checkpoint yet. To begin anew: trl-distill sft --config" in said.splitlines()[-1]

    def test_several_processes_are_stopped_in_one_line(self, sft_config, tmp_path):
        launch = ("--accelerate_config", "ddp", "--num_processes", "2", "--main_process_port", "0")
        process = start("sft", "--config", sft_config(**LONG), *launch)
        wait_for(process, lambda: list(tmp_path.glob("out/checkpoint-*/trainer_state.json")))
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130 and "Traceback" not in said and "torch/distributed/elastic" not in said, said
        assert said.splitlines()[-1].startswith("trl-distill sft: stopped. To go on:")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_loop_ends_the_training_that_it_has_started(self, number, sft_config, tmp_path):
        values = yaml.safe_load(Path(sft_config(**LONG)).read_text())
        model, rows = values.pop("model_name_or_path"), values.pop("dataset_name")
        del values["output_dir"]
        script = (
            "import sys; from pathlib import Path; import yaml; from trl_distill import cli\n"
            "from trl_distill.lion import Training\n"
            "cli.OTHERS['train'] = ''; sys.modules['trl_distill.scripts.train'] = command = type(sys)('train')\n"
            "command.run = lambda argv: Training(yaml.safe_load(argv[0]))(argv[1], Path(argv[2]), Path(argv[3]))\n"
            "sys.exit(cli.main(['train', *sys.argv[1:]]))"
        )
        (tmp_path / "training").mkdir()
        process = start(json.dumps(values), model, rows, tmp_path / "training/student", program=["-c", script])
        wait_for(process, lambda: list(tmp_path.glob("training/run/checkpoint-*/trainer_state.json")))
        children = family(process)
        assert len(children) >= 2  # the launcher and the trainer
        os.killpg(process.pid, number) if number == signal.SIGINT else process.terminate()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130 and said.splitlines()[-1].startswith("trl-distill train: stopped."), said
        assert "Traceback" not in said and "were not passed to `accelerate launch`" not in said
        assert not psutil.wait_procs(children, timeout=10)[1]


class TestOtherCommands:
    def test_one_line_says_how_to_go_on(self, tmp_path):
        prompts = tmp_path / "my prompts.jsonl"
        prompts.write_text('{"prompt": "Who?"}\n')
        with socket.create_server(("127.0.0.1", 0)) as silent:
            arguments = [
                "sample",
                "--base_url",
                f"http://127.0.0.1:{silent.getsockname()[1]}/v1",
                "--model_name_or_path",
                "m",
            ]
            arguments += ["--dataset_name", prompts, "--output_file", tmp_path / "samples.jsonl"]
            arguments += ["--concurrency", "1"]  # with more, those under way are waited for: they are paid for
            process = start(*arguments)
            silent.settimeout(60)
            connection, _ = silent.accept()
            connection.recv(1)  # the request is sent, and its client waits
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=60)
            connection.close()
        assert process.returncode == 130 and "Traceback" not in said
        again = shlex.join(["trl-distill", *map(str, arguments)])
        assert said.splitlines()[-1] == f"trl-distill sample: stopped. To go on: {again}"

    def test_requests_under_way_are_waited_for_until_the_second_time(self, tmp_path):
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text('{"prompt": "Who?"}\n')
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
            arguments = ["sample", "--base_url", url, "--model_name_or_path", "m", "--concurrency", "2"]
            process = start(*arguments, "--dataset_name", prompts, "--output_file", tmp_path / "samples.jsonl")
            silent.settimeout(60)
            connections = [silent.accept()[0] for _ in range(2)]
            for connection in connections:
                connection.recv(1)
            process.send_signal(signal.SIGINT)
            line = next(line for line in process.stdout if "Waiting" in line)
            assert "Waiting for the 2 requests that are under way" in line and "Ctrl-C again ends at once" in line
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=60)
            for connection in connections:
                connection.close()
        assert process.returncode == 130 and "Traceback" not in said and "Exception" not in said, said
        assert said.splitlines()[-1].startswith("trl-distill sample: stopped. To go on: ")


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("arguments", [["recipe"], ["recipe", "minillm/paper_gpt2"], ["--help"], ["merge", "--help"]])
def test_nobody_reads_what_is_printed(arguments, buffered):
    """As `trl-distill recipe | head -1`, with a reader that is gone already. argparse passes over that by itself."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, *([] if buffered else ["-u"]), "-m", "trl_distill.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0 if "--help" in arguments else 128 + signal.SIGPIPE, "")

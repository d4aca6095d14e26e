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

import os
import resource
import subprocess
import sys

import pytest

from tests.commands import run_python
from trl_distill.cli import OTHERS, TRAINING


def helped(*arguments, columns="80"):
    """What `--help` says, and the processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_python("-m", "trl_distill.cli", *arguments, COLUMNS=columns)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def groups(text):
    """Fields by the title of their group."""
    found, title = {}, None
    for line in text.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            title = line[:-1]
        elif line.startswith("  --"):
            found.setdefault(title, []).append(line.split()[0][2:])
    return found


class TestGroups:
    def test_ours_come_first_then_those_of_trl(self):
        text, seconds = helped("minillm", "--help")
        first = groups("\n".join(text.splitlines()[:60]))
        assert [*first] == ["options", "rollouts", "credit of each token", "language-modelling loss", "teacher"]
        assert {"teacher_mix_alpha", "num_iterations"} <= {*first["rollouts"]}
        assert "loss_chunk_tokens" in first["teacher"]
        found = groups(text)
        assert "lm_dataset_name" in found["corpus"] and "dataset_config" in found["ScriptArguments (trl)"]
        assert found["with another default than TRL's"] == ["disable_dropout", "max_completion_length"]
        named = ["model_name_or_path", "teacher_model_name_or_path", "dataset_name", "output_dir", "learning_rate"]
        assert found["what every run names"] == [*named, "num_train_epochs", "max_steps"]
        ours = [title for title in found if not title.endswith("(trl)")]
        assert [*found][: len(ours)] == ours
        fields = sum(found.values(), [])
        assert "weight_decay" not in fields and len(fields) == len(set(fields))
        assert "more, of transformers" in text and "[0.2]" in text
        assert seconds < 3

    def test_all_fields(self):
        from trl_distill.scripts import minillm

        text, _ = helped("minillm", "--help-all")
        found = groups(text)
        shown = {field for fields in found.values() for field in fields}
        assert {action.dest for action in minillm.make_parser()._actions} - shown == {"help"}
        assert any("weight_decay" in fields for title, fields in found.items() if title.endswith("(transformers)"))
        assert "[adamw_torch_fused]" in text  # what it is with torch

    def test_groups_of_a_config_are_those_of_its_docstring(self):
        found = groups(helped("lion", "--help")[0])
        assert [*found][:4] == ["options", "Pools", "Models", "Sampling"] and "LionConfig" not in found
        assert "hard_share" in found["Generation"]

    @pytest.mark.parametrize("command", [*TRAINING, "calibrate"])
    def test_what_every_run_names_stands_before_what_is_trls_and_ours_have_headings(self, command):
        found = groups(helped(command, "--help")[0])
        behind = [*found][[*found].index("what every run names") + 1 :]
        assert {title for title in behind if not title.endswith("(trl)")} <= {"with another default than TRL's"}
        assert {"model_name_or_path", "dataset_name", "output_dir", "max_steps"} <= {*found["what every run names"]}
        assert not [title for title in found if title.endswith(("Config", "Arguments"))]

    @pytest.mark.parametrize("command", TRAINING | OTHERS)
    def test_answers_within_three_seconds_of_processor_time(self, command):
        text, seconds = helped(command, "--help")
        assert text.startswith(f"usage: trl-distill {command} ") and seconds < 3


class TestCompletion:
    def complete(self, line):
        pytest.importorskip("argcomplete")
        read, write = os.pipe()
        code = f"import os; os.dup2({write}, 8); os.dup2({write}, 9); from trl_distill import cli; cli.main()"
        asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "bash", "COMP_LINE": line, "COMP_POINT": str(len(line))}
        environment = os.environ | asked | {"_ARGCOMPLETE_IFS": "\n", "COMP_TYPE": "9"}
        subprocess.run([sys.executable, "-c", code], env=environment, pass_fds=[write], check=True)
        os.close(write)
        with open(read) as answer:
            return {word.strip() for word in answer.read().split("\n")}

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("trl-distill la", {"label", "labeled_sft"}),
            ("trl-distill minillm --teacher_m", {"--teacher_model_name_or_path", "--teacher_mix_alpha"}),
            ("trl-distill nce --max_st", {"--max_steps"}),
            ("trl-distill sft --conf", {"--config"}),
            ("trl-distill lion --seed 1 --strat", {"--strategy"}),
            ("trl-distill recipe minillm/qwen3_0", {"minillm/qwen3_0.6b_qlora_8gb.yaml"}),
            ("trl-distill sample --seed 3 --dtype x", set()),
            ("trl-distill sample --dtype bfl", {"bfloat16"}),
        ],
    )
    def test_commands_fields_and_values(self, line, expected):
        answers = self.complete(line) - {""}
        assert expected <= answers and (bool(expected) == bool(answers))

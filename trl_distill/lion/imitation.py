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

"""The teacher's answers as training rows, and the training on them, which is `trl-distill sft` in processes of its own."""

import dataclasses
import difflib
import logging
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..chat import ChatRequest, Completion, FailedCall, Sampling
from .pools import Instruction


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

CUT_OFF = ("length", "content_filter")  # how an answer ends that is not whole
_SET_BY_THE_LOOP = ("model_name_or_path", "dataset_name", "output_dir", "resume_from_checkpoint")


def question(instruction: Instruction, sampling: Sampling) -> ChatRequest:
    """An instruction as teacher and student are asked it."""
    return ChatRequest([{"role": "user", "content": instruction.text}], sampling)


def training_rows(
    instructions: Sequence[Instruction], answers: Sequence[Completion | FailedCall]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """
    Rows for [`~trl.SFTTrainer`], whose loss is on the completion.

    Args:
        instructions (`list[Instruction]`):
            What was asked.
        answers (`list[Completion or FailedCall]`):
            What the teacher said.

    Returns:
        `tuple[list[dict], dict[str, int]]`: Conversational rows `prompt`, `completion` with the `id` of the instruction, and
        counts: `rows`, and what was left out: `failed`, `empty`, `cut_off`.
    """
    rows, counts = [], Counter(rows=0, failed=0, empty=0, cut_off=0)
    for instruction, answer in zip(instructions, answers, strict=True):
        if isinstance(answer, FailedCall):
            counts["failed"] += 1
        elif answer.finish_reason in CUT_OFF:
            counts["cut_off"] += 1
        elif not answer.text.strip():
            counts["empty"] += 1
        else:
            counts["rows"] += 1
            rows.append(
                {
                    "id": instruction.id,
                    "prompt": [{"role": "user", "content": instruction.text}],
                    "completion": [{"role": "assistant", "content": answer.text}],
                }
            )
    return rows, dict(counts)


def check_training(training: dict[str, Any]) -> None:
    """Raise `ValueError` if a field is none of `trl-distill sft`, is one that the loop sets, or must not be in a file."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig

    classes = (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig)
    known = {field.name for kind in classes for field in dataclasses.fields(kind)}
    for name in training:
        if name in _SET_BY_THE_LOOP:
            raise ValueError(f"`training` holds `{name}`, which the loop sets in each round. Remove it.")
        if name == "hub_token":
            raise ValueError(f"`training` holds `{name}`, which must not be in a file. Put it into `HF_TOKEN`.")
        if name not in known:
            close = difflib.get_close_matches(str(name), sorted(known), n=3)
            hint = f"Did you mean {' or '.join(close)}?" if close else "See `trl-distill sft --help`."
            raise ValueError(f"`training` holds the unknown field `{name}`. {hint}")


class Training:
    """
    Train a student with `trl-distill sft`, started as a process of its own: the memory of one stage is free for the next,
    and many GPUs are a matter of `accelerate_config`.

    Args:
        training (`dict[str, Any]`):
            Fields of `trl-distill sft`.
        merge (`bool`, *optional*, defaults to `True`):
            Whether an adapter is merged into its base when it is trained.
        accelerate_config (`str`, *optional*), num_processes (`int`, *optional*):
            How the training is launched.
    """

    def __init__(
        self,
        training: dict[str, Any],
        merge: bool = True,
        accelerate_config: str | None = None,
        num_processes: int | None = None,
    ):
        check_training(training)
        self.training, self.merge = training, merge
        self.accelerate_config, self.num_processes = accelerate_config, num_processes

    def __call__(self, model: str, rows: Path, output: Path) -> None:
        """
        Train `model` on `rows`, and put the student at `output`.

        A run that was killed goes on from its last checkpoint.

        Args:
            model (`str`):
                Where the training starts.
            rows (`Path`):
                Training rows as JSON Lines.
            output (`Path`):
                Folder for the student, which does not exist yet. Config and checkpoints are kept beside it.

        Raises:
            `ChildProcessError`: If the training fails. Its own message has been printed.
        """
        with _alone(output.with_name("lock")) as lock:
            if not output.exists():  # else a merge for which we have waited has put it there
                self._train(model, rows, output, lock)

    def _train(self, model: str, rows: Path, output: Path, lock: IO) -> None:
        import yaml

        run = output.with_name("run")
        fields: dict[str, Any] = {"model_name_or_path": model, "dataset_name": str(rows), "output_dir": str(run)}
        is_adapter = (Path(model) / "adapter_config.json").is_file()  # one adapter goes on through all rounds
        fields |= self.training | ({"use_peft": False} if is_adapter else {})
        for checkpoint in run.glob("checkpoint-*"):
            if (checkpoint / "trainer_state.json").is_file():
                fields["resume_from_checkpoint"] = "latest"
            else:  # a run was killed while it wrote this one: the state comes last
                shutil.rmtree(checkpoint)
        config = output.with_name("sft.yaml")
        config.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")

        launch = {"--accelerate_config": self.accelerate_config, "--num_processes": self.num_processes}
        flags = [str(part) for flag, value in launch.items() if value is not None for part in (flag, value)]
        _run("sft", "--config", str(config), *flags, lock=lock)
        if self.merge and (run / "adapter_config.json").is_file():
            dtype = self.training.get("dtype", "float32")  # TRL's default
            dtype = "bfloat16" if dtype == "auto" else dtype
            _run("merge", str(run), "--output", str(output), "--dtype", dtype, lock=lock)
        else:
            # Moved, not removed: half a checkpoint must not be there for a run that goes on
            for checkpoint in run.glob("checkpoint-*"):
                checkpoint.rename(output.with_name(checkpoint.name))
            run.rename(output)


@contextmanager
def _alone(path: Path) -> Iterator[IO]:
    """
    A lock that the processes of a training hold, too. `kill -9` of the loop leaves them at work, and two trainings in one
    folder would spoil each other, so the next run waits for them.
    """
    with open(path, "w") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.warning("Waiting for a training of a killed run that is still at work in %s.", path.parent)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def _run(*arguments: str, lock: IO) -> None:
    inherited = {} if fcntl is None else {"pass_fds": [lock.fileno()]}
    code = subprocess.run([sys.executable, "-m", "trl_distill.cli", *arguments], **inherited).returncode
    if code:
        raise ChildProcessError(
            f"`trl-distill {' '.join(arguments)}` stopped with exit code {code}, see above. When the cause is gone, run the "
            "same command again: the loop goes on here."
        )

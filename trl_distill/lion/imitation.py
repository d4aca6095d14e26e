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

"""The training of a student, by default in a process of its own."""

import json
import logging
import shutil
import subprocess
import sys
from argparse import Action
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from ..chat.local import weights_digest
from ..checkpoints import damage
from ..extras import check_packages
from ..files import file_digest, write_json
from ..text import closest
from ..training import accelerate_config_path, check_value, end_children, launch_fields, launch_flags
from .lion_config import LionConfig, what_is_learned


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

SFT = "trl_distill.sft"
_SET_BY_THE_LOOP = ("model_name_or_path", "dataset_name", "output_dir", "resume_from_checkpoint")
_SET_BY_THE_LOOP += ("teacher_model_name_or_path",)


def check_training(where: str, training: dict[str, Any], module: str = SFT) -> None:
    """Raise `ValueError` unless all are fields of the training that may be set here, each of its type."""
    check_packages(training)
    for name in training:
        if name in _SET_BY_THE_LOOP:
            raise ValueError(f"`{where}` holds `{name}`, which the loop sets in each round. Remove it.")
        if name == "hub_token":
            raise ValueError(f"`{where}` holds `{name}`, which must not be in a file. Put it into `HF_TOKEN`.")
    parser = import_module(module).make_parser()
    known = {action.dest: action for action in parser._actions if action.dest != "help"}
    _check_fields(where, training, known, f"See `trl-distill {_command(module)} --help`.")


def _command(module: str) -> str:
    return module.rpartition(".")[2]


def _check_fields(where: str, values: dict[str, Any], known: dict[str, Action], help_text: str) -> None:
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"`{where}` holds the unknown field `{name}`. {closest(name, known) or help_text}")
        try:
            check_value(known[name], value)
        except ValueError as error:
            raise ValueError(f"`{where}`: {error}") from error


def trainings(config: LionConfig, modules: dict[str, str]) -> "dict[str, Training]":
    """By stage its training, launched by the module of the command."""
    made = {}
    for stage, module in modules.items():
        where, teacher = "training" if stage == "sft" else stage, None
        if stage == "minillm" and "teacher_model_server_url" not in config.minillm:
            entry = config.teacher or {}
            if "model_name_or_path" not in entry:
                raise ValueError(
                    "`minillm` reads the probabilities of the teacher: `teacher` must be a local model, with "
                    "`model_name_or_path`. For one behind an API there is `stages: [sft, dpo]`."
                )
            teacher = {"teacher_model_name_or_path": entry["model_name_or_path"]}
            if "revision" in entry:
                teacher["teacher_model_revision"] = entry["revision"]
        made[stage] = Training(
            getattr(config, where),
            config.adapter_rounds == "merge",
            config.accelerate_config,
            config.launch,
            module,
            where,
            teacher,
        )
    return made


class Training:
    """
    Train a student like `trl-distill sft`, in processes of its own: the memory of one stage is free for the next, and
    many GPUs are a matter of `accelerate_config`.

    Args:
        training (`dict[str, Any]`), merge (`bool`, *optional*, defaults to `True`):
            Fields of the training, and whether an adapter is merged into its base when it is trained.
        accelerate_config (`str`, *optional*), launch (`dict[str, Any]`, *optional*):
            How the training is launched: a config by name or as a file, and flags of `accelerate launch`.
        module (`str`, *optional*, defaults to `"trl_distill.sft"`), where (`str`, *optional*, defaults to
        `"training"`):
            What is launched, a module with a `make_parser` that takes `--config`, and what errors call its fields.
        teacher (`dict[str, Any]`, *optional*):
            Fields for the teacher of that training, which the loop knows.
    """

    def __init__(
        self,
        training: dict[str, Any],
        merge: bool = True,
        accelerate_config: str | None = None,
        launch: dict[str, Any] | None = None,
        module: str = SFT,
        where: str = "training",
        teacher: dict[str, Any] | None = None,
    ):
        check_training(where, training, module)
        _check_fields("launch", launch or {}, launch_fields(), "See `accelerate launch --help`.")
        self.training, self.merge, self._launch = training | (teacher or {}), merge, ["--quiet"]
        self.module, self.command = module, _command(module)
        if accelerate_config is not None:
            self._launch += ["--config_file", accelerate_config_path(accelerate_config)]
        self._launch += launch_flags(launch or {})

    def check(self, model: str) -> None:
        """Raise `ValueError` if what becomes of `model` would not stop where its chat template closes an answer."""
        from ..endings import check_model_ending

        names = ("model_revision", "trust_remote_code", "eos_token", "chat_template_path")
        revision, trust, *others = (self.training.get(name) for name in names)
        check_model_ending(model, revision, bool(trust), *others, remedy="Set `eos_token: {}` in `training`.")

    def rehearse(self, model: str, rows: Path, output: Path) -> None:
        """One step of the same training on rows that are like the real ones."""
        fields = self.training | {"max_steps": 1, "save_strategy": "no", "eval_strategy": "no", "report_to": "none"}
        fields |= {"push_to_hub": False}
        rehearsal = copy(self)
        rehearsal.training = {name: value for name, value in fields.items() if not name.startswith("eval_steps")}
        rehearsal(model, rows, output)

    def __call__(self, model: str, rows: Path, output: Path) -> None:
        """
        Train `model` on the JSON Lines `rows`, and put the student at `output`, which does not exist yet. Config and
        checkpoints are kept beside it, so that a run that was killed goes on from its last checkpoint, unless what it
        is to learn has changed since.

        Raises:
            `ChildProcessError`: If the training fails. Its own message has been printed.
        """
        import yaml

        names = ("run", f"{self.command}.yaml", "begun.json")
        run, config, begun = (output.with_name(name) for name in names)
        with alone(output.parent) as lock:
            from ..models import adapter_config  # takes seconds to import: a training that is at work may end in them

            fields: dict[str, Any] = {"model_name_or_path": model, "dataset_name": str(rows), "output_dir": str(run)}
            is_adapter = Path(model).is_dir() and adapter_config(model)  # one adapter goes on through all rounds
            fields |= self.training | ({"use_peft": False} if is_adapter else {})
            start = weights_digest(model) if Path(model).is_dir() else model
            learned = {"fields": what_is_learned(self.training), "model": start, "rows": file_digest(rows)}
            if run.exists() and not (begun.exists() and json.loads(begun.read_text(encoding="utf-8")) == learned):
                logger.warning("%s was begun with other settings or rows, and begins anew.", run)
                shutil.rmtree(run)
            write_json(begun, learned)
            for checkpoint in run.glob("checkpoint-*"):
                wrong = damage(checkpoint)
                if wrong is None:
                    fields["resume_from_checkpoint"] = "latest"
                else:  # a run was killed while it wrote this one
                    logger.warning("%s is removed: %s.", checkpoint, wrong)
                    shutil.rmtree(checkpoint)
            config.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
            self._train(config, lock)
            self._finish(run, output)

    def _train(self, config: Path, lock: IO) -> None:
        launch = ["trl_distill.launcher", *self._launch, "--module", self.module, "--config", str(config)]
        inherited = {} if fcntl is None else {"pass_fds": [lock.fileno()]}
        with subprocess.Popen([sys.executable, "-m", *launch], **inherited) as process:
            lock.write(str(process.pid))
            lock.flush()
            try:
                code = process.wait()
            except BaseException:
                end_children()
                raise
        if code:
            raise ChildProcessError(
                f"The training, which is `trl-distill {self.command} --config {config}`, stopped with exit code "
                f"{code}, see above. When the cause is gone, run the same command again: the loop goes on here."
            )

    def _finish(self, run: Path, output: Path) -> None:
        """Make the student of what the training has saved."""
        from ..models import adapter_config, merge_adapter

        if self.merge and adapter_config(str(run)):
            dtype = self.training.get("dtype", "float32")  # TRL's default
            merge_adapter(str(run), str(output), dtype="bfloat16" if dtype == "auto" else dtype)
            if (run / "trainer_state.json").exists():
                shutil.copy(run / "trainer_state.json", output)
            if (run / "README.md").exists():
                shutil.copy(run / "README.md", output)
        else:
            # Moved, not removed: half a checkpoint must not be there for a run that goes on
            for checkpoint in run.glob("checkpoint-*"):
                shutil.rmtree(output.with_name(checkpoint.name), ignore_errors=True)  # of a run that was killed here
                checkpoint.rename(output.with_name(checkpoint.name))
            run.rename(output)


def lock_of(work: Path) -> Path:
    return work.with_name(f"{work.name}.lock")


@contextmanager
def alone(work: Path) -> Iterator[IO]:
    """
    A lock beside the folder of a training, which its processes hold, too. `kill -9` of the loop leaves them at work,
    and whoever writes there or removes it beside them spoils both, so the next run waits for them.
    """
    with open(lock_of(work), "a+") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                said = "Waiting for a training of a killed run that is still at work in %s. `kill %s` ends it."
                logger.warning(said, work, lock.read() or "PID")
                fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        yield lock

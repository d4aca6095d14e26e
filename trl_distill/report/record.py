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


"""What a run was asked to do, as a file in its folder, without secrets."""

import dataclasses
import datetime
import math
import platform
import re
from collections.abc import Sequence
from enum import Enum
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any

from ..chat.credentials import without_secrets
from ..files import write_json
from ..model_card import release


RUN_FILE = "run.json"
_PACKAGES = ("trl", "transformers", "peft", "torch", "accelerate", "datasets")
_SECRET = re.compile(r"(?<!eos)(?<!pad)(?<!bos)_token$|^token$|key$|secret|passw|auth|cookie|credential", re.I)
# What transformers and TRL fill in themselves, whatever the user wrote
_FILLED = {"accelerator_config", "activation_checkpointing", "dataloader_pin_memory", "disable_tqdm"}
_FILLED |= {"do_eval", "pad_to_multiple_of"}


def _plain(name: str, value: Any) -> Any:
    """The value of a field as JSON holds it, without secrets."""
    if isinstance(value, Enum):
        value = value.value
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {str(key): _plain(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(name, inner) for inner in value]
    if value is None or isinstance(value, bool | int) or isinstance(value, float) and math.isfinite(value):
        return value
    return "[key]" if _SECRET.search(name) else without_secrets(str(value))


def _default(field: dataclasses.Field) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


def describe_run(command: str, parts: Sequence[Any]) -> dict[str, Any]:
    """
    What a training command was asked to do, as [`record_run`] writes it.

    Args:
        command (`str`):
            Name of the command.
        parts (`list`):
            Its arguments as dataclasses, before anything is changed in them.

    Returns:
        `dict[str, Any]`: `command`, `versions`, `started` (seconds since 1970), `data` (the names of the data
        sets), `teacher` (its name, if there is one), `settings` (all fields), and `changed`, the names of those
        that differ from their defaults.
    """
    settings, changed = {}, []
    for part in filter(dataclasses.is_dataclass, parts):
        for field in dataclasses.fields(part):
            value, default = (_plain(field.name, v) for v in (getattr(part, field.name), _default(field)))
            settings[field.name] = value
            empty = not value and (not default or default == "none")  # `report_to: none` becomes an empty list
            if value != default and not empty and field.name not in _FILLED:
                changed.append(field.name)
    mixture = settings.get("datasets") or []
    data = [settings.get("dataset_name"), *(entry.get("data_files") or entry.get("path") for entry in mixture)]
    names = ("teacher_model_name_or_path", "nat_path", "teacher_model_server_url")
    teachers = [settings.get(name) for name in names]
    teachers.append("the student's own base" if settings.get("teacher_is_base") else None)
    return {
        "command": command,
        "versions": {"trl-distill": release().split()[-1]}
        | {name: metadata.version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "started": datetime.datetime.now().timestamp(),
        "data": [str(name) for name in data if name],
        "teacher": next(filter(None, teachers), None),
        "settings": settings,
        "changed": changed,
    }


def record_run(folder: str | PathLike, run: dict[str, Any], device: str, processes: int) -> None:
    """Write what [`describe_run`] gives, and where it runs, to `run.json` in the folder of the run."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_json(Path(folder, RUN_FILE), run | {"device": device, "processes": processes})

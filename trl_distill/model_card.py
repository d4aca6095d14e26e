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

"""What TRL's model card does not say: which release of ours, which teacher, data and settings made the model."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard


_PACKAGE = __name__.partition(".")[0]
_COMMON = ("learning_rate", "num_train_epochs", "max_steps", "seed")
_VERSIONS = "### Framework versions\n\n"  # a heading of TRL's card


def release() -> str:
    """Name and version of the package that this file is in, which may be another one with a method's folder."""
    return f"{_PACKAGE.replace('_', '-')} {getattr(sys.modules[_PACKAGE], '__version__', '')}".strip()


def _name(model: Any) -> str | None:
    """A model or a data set by its name; of a folder or a file its last part, for a card is public; no address."""
    name = model if isinstance(model, str) or model is None else getattr(model.config, "_name_or_path", None)
    if name and "://" in name:
        return "on a server"
    return Path(name).name if name and (name[0] in "/~." or Path(name).exists()) else name


def _settings(args: Any) -> dict[str, Any]:
    """What the config of the method declares itself and is set, and what every training has."""
    ours = {
        name
        for base in type(args).__mro__
        if base.__module__.partition(".")[0] == _PACKAGE and dataclasses.is_dataclass(base)
        for name in base.__dict__.get("__annotations__", ())
    }
    names = [*_COMMON, *(field.name for field in dataclasses.fields(args) if field.name in ours)]
    values = {name: getattr(args, name) for name in dict.fromkeys(names) if not _is_place(name)}
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {"global batch size": batch} | {name: value for name, value in values.items() if value is not None}


def _is_place(name: str) -> bool:
    return name.endswith(("_dir", "_path", "_url", "_kwargs", "_token"))


def _cell(value: Any) -> str:
    return "`" + " ".join(str(value).replace("`", "'").replace("|", "\\|").split()) + "`"


def describe(trainer) -> None:
    """Add to the card that TRL has just written for a trainer a section about the run."""
    folder = Path(trainer.args.output_dir)
    path = folder / "README.md"
    card = ModelCard.load(path)
    run = json.loads(file.read_text(encoding="utf-8")) if (file := folder / "run.json").is_file() else {}
    teacher = getattr(trainer, "teacher_name", None) or run.get("teacher") or getattr(trainer, "teacher_model", None)
    rows = {"teacher": _name(teacher), "data": ", ".join(filter(None, map(_name, run.get("data", ()))))}
    rows = {name: value for name, value in rows.items() if value} | _settings(trainer.args)
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    section = (
        f"### What made it\n\nTrained by {release()} with `{type(trainer).__name__}`.\n\n| | |\n|---|---|\n{table}\n\n"
    )
    before, heading, after = card.content.partition(_VERSIONS)
    card.content = before + section + heading + after
    card.save(path)


def add_tag(path: Path, tag: str) -> None:
    """Put a tag into a card that is there."""
    if path.is_file():
        card = ModelCard.load(path)
        card.data.tags = list(dict.fromkeys([*(card.data.tags or []), tag]))
        card.save(path)

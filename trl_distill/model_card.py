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
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard


_PACKAGE = __name__.partition(".")[0]
_COMMON = ("learning_rate", "num_train_epochs", "max_steps", "seed")
# Parts of TRL's card
_VERSIONS = "### Framework versions\n\n"
_NO_BASE, _NO_MODEL = "[None](https://huggingface.co/None)", 'model="None"'
_SNIPPET = re.compile(r"```python\n.*?\n```", re.S)
_TABLE = "| | |\n|---|---|\n"  # of ours


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


def _data(trainer, run: Mapping[str, Any], card: ModelCard) -> list[str]:
    """Names of the training data: what a command was given, what the card was given, or what the rows say."""
    named = run.get("data") or card.data.datasets or []
    info = getattr(trainer.train_dataset, "info", None)
    if not named and info is not None and info.dataset_name != info.builder_name:  # the latter is that of a format
        named = info.dataset_name
    return list(filter(None, map(_name, [named] if isinstance(named, str) else named or [])))


def _lines(rows: Mapping[str, Any]) -> str:
    return "".join(f"| {name} | {_cell(value)} |\n" for name, value in rows.items())


def _is_place(name: str) -> bool:
    return name.endswith(("_dir", "_path", "_url", "_kwargs", "_token"))


def _cell(value: Any) -> str:
    return "`" + " ".join(str(value).replace("`", "'").replace("|", "\\|").split()) + "`"


def describe(trainer) -> None:
    """
    Add to the card that TRL has just written for a trainer a section about the run, and name in it a base and a model
    that are folders of this machine. What a trainer's `_quick_start` gives takes the place of a pipeline.
    """
    folder = Path(trainer.args.output_dir)
    path = folder / "README.md"
    card = ModelCard.load(path)
    run = json.loads(file.read_text(encoding="utf-8")) if (file := folder / "run.json").is_file() else {}
    teacher = getattr(trainer, "teacher_name", None) or run.get("teacher") or getattr(trainer, "teacher_model", None)
    rows = {"teacher": _name(teacher), "data": ", ".join(_data(trainer, run, card))}
    rows = {name: value for name, value in rows.items() if value} | _settings(trainer.args)
    # One that has tags of its own: others are trainers of TRL, which say or keep more
    kind = next(base for base in type(trainer).__mro__ if "_tag_names" in vars(base))
    section = f"### What made it\n\nTrained by {release()} with `{kind.__name__}`.\n\n{_TABLE}{_lines(rows)}\n"
    base, name = _name(trainer.model), trainer.hub_model_id or folder.name
    content = card.content.replace(_NO_BASE, f"`{base}`" if base else "a local model")
    content = content.replace(_NO_MODEL, f'model="{name}"')
    if hasattr(trainer, "_quick_start"):
        code = trainer._quick_start(base or "BASE", name)
        content = _SNIPPET.sub(lambda _: f"```python\n{code}\n```", content, count=1)
    before, heading, after = content.partition(_VERSIONS)
    card.content = before + section + heading + after
    card.save(path)


def add_loop(path: Path, name: str, tag: str, rows: Mapping[str, Any]) -> None:
    """Put into a card that is there what only the loop around its training knows: name, tag, and rows of the table."""
    if not path.is_file():
        return
    card = ModelCard.load(path)
    trained_as = card.data.model_name
    card.data.model_name, card.data.tags = name, list(dict.fromkeys([*(card.data.tags or []), tag]))
    content = card.content.replace(f"# Model Card for {trained_as}\n", f"# Model Card for {name}\n")
    content = content.replace(f'model="{trained_as}"', f'model="{name}"')
    new = {key: _name(value) for key, value in rows.items() if f"\n| {key} | " not in content}
    card.content = content.replace(_TABLE, _TABLE + _lines(new), 1)
    card.save(path)

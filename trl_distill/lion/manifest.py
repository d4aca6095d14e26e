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

"""The record of what is finished: what was made in which stage, how, and after what."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..chat.local import weights_digest
from ..chat.models import digest
from ..files import file_digest, write_json


# In the order of a round. Round 0 has no student to learn from, so it begins with its answers.
STAGES = ("discrimination", "generation", "selection", "answers", "training", "dpo", "minillm", "evaluation")
TRAININGS = ("training", "dpo", "minillm")  # of these


def digest_of(path: Path) -> str:
    """SHA-256 of a file, of weights, config and tokenizer in a model's folder, or of all files in another folder."""
    if path.is_file():
        return file_digest(path)
    if any(path.glob("*.safetensors")):
        return weights_digest(path)
    files = {str(file.relative_to(path)): digest_of(file) for file in path.rglob("*") if file.is_file()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


class Place(NamedTuple):
    """A stage of a round, in the order in which they are done."""

    round: int
    stage: str

    def __le__(self, other: "Place") -> bool:
        order = ("pools", *STAGES)
        return (self.round, order.index(self.stage)) <= (other.round, order.index(other.stage))

    def __str__(self) -> str:
        return f"{self.round}.{self.stage}"


def chained(record: dict[str, Any]) -> str:
    """A hash of the results of a stage and of all that they followed from."""
    return digest(json.dumps(record["sha256"], sort_keys=True), record["follows"] or "")


class Manifest:
    """
    The record of one round, `manifest.json`. A stage is finished when its results are there with their hashes. Beside
    these stand the settings that it was made with, and a hash of all stages that it followed from.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._path = folder / "manifest.json"
        self.stages: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            try:
                self.stages = dict(json.loads(self._path.read_text(encoding="utf-8"))["stages"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self._path} is damaged ({error}). Put it back from a copy, or remove {folder} and all later "
                    "rounds: what was asked is in the call store."
                ) from error

    def finish(self, stage: str, results: Sequence[str], **facts: Any) -> None:
        """Record that a stage has put its results in place, files or folders, and what is to be known of it."""
        self.stages[stage] = {"sha256": {name: digest_of(self.folder / name) for name in results}, **facts}
        write_json(self._path, {"stages": self.stages})

    def finished(self, stage: str) -> bool:
        """Whether a stage is finished. `ValueError` if one of its results is gone, or is not what it was."""
        for name, known in self.stages.get(stage, {}).get("sha256", {}).items():
            path = self.folder / name
            if not path.exists() or digest_of(path) != known:
                place = f"{self.folder.name.removeprefix('round_')}.{stage}"
                anew = f"with `--restart_from {place}`" if stage in STAGES else "in another `output_dir`"
                said = f"{path} {'has changed' if path.exists() else 'is gone'} since the stage {stage} made it"
                raise ValueError(f"{said}. Put it back, or make it anew {anew}.")
        return stage in self.stages

    def forget(self, stages: Sequence[str]) -> None:
        """Remove stages and their results. These go first: after a kill the manifest says that they are gone."""
        gone = [self.stages.pop(stage) for stage in stages if stage in self.stages]
        for path in [self.folder / name for facts in gone for name in facts["sha256"]]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if gone:
            write_json(self._path, {"stages": self.stages})

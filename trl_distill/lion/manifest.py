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

"""What a round has finished, on disk: a stage is finished when its results are in place and its manifest names their hash."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..chat.local import weights_digest
from ..files import write_json


# In the order of a round. Round 0 has no student to learn from, so it begins with its answers.
STAGES = ("discrimination", "generation", "answers", "training", "evaluation")


def digest(path: Path) -> str:
    """SHA-256 of a file, of the weights, config and tokenizer in the folder of a model, or of all files in another one."""
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if any(path.glob("*.safetensors")):
        return weights_digest(path)
    files = {str(file.relative_to(path)): digest(file) for file in path.rglob("*") if file.is_file()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


class Manifest:
    """
    The record of one round, `round_K/manifest.json`.

    Args:
        folder (`Path`):
            Folder of the round. It is made with the first result.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._path = folder / "manifest.json"
        self.stages: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            self.stages = json.loads(self._path.read_text(encoding="utf-8"))["stages"]

    def finish(self, stage: str, results: Sequence[str], **facts: Any) -> None:
        """Record that a stage has put its results in place, names of files or folders, and what is to be known of it."""
        self.stages[stage] = {"sha256": {name: digest(self.folder / name) for name in results}, **facts}
        write_json(self._path, {"stages": self.stages})

    def finished(self, stage: str) -> bool:
        """
        Whether a stage is finished.

        Raises:
            `ValueError`: If one of its results is gone, or is not what it was.
        """
        for name, known in self.stages.get(stage, {}).get("sha256", {}).items():
            path = self.folder / name
            if not path.exists() or digest(path) != known:
                place = f"{self.folder.name.removeprefix('round_')}.{stage}"
                anew = f"with `--restart_from {place}`" if stage in STAGES else "in another `output_dir`"
                raise ValueError(
                    f"{path} {'has changed' if path.exists() else 'is gone'} since the stage {stage} made it. Put it back, "
                    f"or make it anew {anew}."
                )
        return stage in self.stages

    def forget(self, stages: Sequence[str]) -> None:
        """
        Remove stages and their results.

        The results go first: if a run is killed here, the manifest names what is gone, and nobody takes an old result for
        a new one.
        """
        gone = [stage for stage in stages if stage in self.stages]
        for name in [name for stage in gone for name in self.stages[stage]["sha256"]]:
            path = self.folder / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        for stage in gone:
            del self.stages[stage]
        if gone:
            write_json(self._path, {"stages": self.stages})

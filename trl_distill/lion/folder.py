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

"""What a run has on disk: settings, and for each round pools, results, and a manifest of what is finished."""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from ..chat import CallStore
from ..chat.local import weights_digest
from ..files import evaluation_questions, file_digest, load_split, read_rows, write_json
from .lion_config import LionConfig
from .pools import Instruction, drawn, hold_out, read_instructions, read_pool, write_pool


logger = logging.getLogger(__name__)

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


class Manifest:
    """The record of one round, `manifest.json`. A stage is finished when its results are there with their hashes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._path = folder / "manifest.json"
        self.stages: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            self.stages = json.loads(self._path.read_text(encoding="utf-8"))["stages"]

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


class LionFolder:
    """
    The folder of a run. It begins with the settings and the pools of round 0. Arguments as for [`LionLoop`].

    A dry run changes nothing in it, and does not wait for a run that works there: the pools of one that has not begun
    are made in a temporary folder.
    """

    def __init__(
        self, config: LionConfig, instructions: Iterable[dict[str, Any]] | None = None, progress: bool = False
    ):
        self.config, self.path, self._progress = config, Path(config.output_dir), progress
        self.avoided = evaluation_questions(config.decontaminate)
        self._calls = self.path / "calls.sqlite"
        if config.dry_run and self._is_to_begin():
            self._temporary = tempfile.TemporaryDirectory()
            self.path = Path(self._temporary.name)
        if not config.dry_run or self._is_to_begin():
            self.path.mkdir(parents=True, exist_ok=True)
            with nullcontext() if config.dry_run else self.open_store():  # so that no other run works in this folder
                self._begin()
                self._make_pools(instructions)
        self.heldout = self.pool(0, "heldout")

    def open_store(self) -> CallStore:
        """The calls of this run; those of a dry run are read only, and in a new folder there are none."""
        if self.config.dry_run:
            there = self._calls.is_file()
            return CallStore(self._calls if there else self.path / self._calls.name, read_only=there)
        limits = {"max_calls": self.config.max_calls, "budget_usd": self.config.budget_usd}
        return CallStore(self._calls, **limits, progress=self._progress)

    def _is_to_begin(self) -> bool:
        """
        Whether the pools are to be made, for nothing follows from them yet. Refuses to go on with other settings than
        the run began with, once a student does.
        """
        path, settings, begun = self.path / "settings.json", self.config.lasting(), self.manifest(0).stages
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        changed = [name for name in sorted(known | settings) if known.get(name) != settings.get(name)]
        if begun.keys() <= {"pools"} or changed and begun.keys() <= {"pools", "answers"}:
            return True
        if changed:
            was = "; ".join(f"`{name}` was {known.get(name)!r}, is {settings.get(name)!r}" for name in changed)
            raise ValueError(
                f"{self.path} holds a run with other settings: {was}. Set them back to go on, or choose another "
                "`output_dir`, with a copy of `calls.sqlite` to ask nothing twice."
            )
        return False

    def _begin(self) -> None:
        if self._is_to_begin():
            self._forget(0, ("pools", *STAGES))  # what was asked so far is as good for other settings
            write_json(self.path / "settings.json", self.config.lasting())

    def _make_pools(self, instructions: Iterable[dict[str, Any]] | None) -> None:
        """The pool of round 0 and the held-out slice, made once."""
        config, manifest = self.config, self.manifest(0)
        if manifest.finished("pools"):
            return
        if instructions is None:
            if config.dataset_name is None:
                raise ValueError("No instructions: set `dataset_name`.")
            instructions = load_split(config.dataset_name, config.dataset_config, config.dataset_split)
        pool, counts = read_instructions(instructions)
        if examples := counts["examples"]:
            faults = ", ".join(f"{counts[name]} {name} (such as row {rows[0]})" for name, rows in examples.items())
            logger.warning("%d of %d rows are left out: %s.", counts["rows"] - counts["kept"], counts["rows"], faults)
        if config.max_instructions is not None:
            pool = drawn(pool, config.max_instructions, config.seed, "pool")
        counts["pool"] = len(pool)
        pool, heldout = hold_out(pool, config.heldout_size, config.seed)
        counts["heldout"] = len(heldout)
        manifest.folder.mkdir(parents=True, exist_ok=True)
        files = {"heldout.jsonl": heldout, "cache_pool.jsonl": pool, "train_pool.jsonl": pool}
        for name, content in files.items():
            write_pool(manifest.folder / name, content)
        manifest.finish("pools", list(files), counts=counts)

    def round(self, round: int) -> Path:
        return self.path / f"round_{round}"

    def student(self, round: int, stage: str | None = None) -> Path:
        """The folder of the student that a training stage makes, by default the last one of the round."""
        last = self.trainings(round)[-1]
        return self.round(round) / ("student" if stage in (None, last) else f"student_{stage}")

    def trainings(self, round: int) -> list[str]:
        """Stages of a round that make a student."""
        return [stage for stage in self.stages(round) if stage in TRAININGS]

    def name_of(self, model: str) -> str:
        """How a manifest names where a training started: inside the folder of the run by the path there."""
        path = Path(model)
        return str(path.relative_to(self.path)) if path.is_relative_to(self.path) else model

    def manifest(self, round: int) -> Manifest:
        return Manifest(self.round(round))

    def begin(self, round: int) -> Manifest:
        """The manifest of a round that is worked on now."""
        self.round(round).mkdir(exist_ok=True)
        return self.manifest(round)

    def pool(self, round: int, name: str = "cache_pool") -> list[Instruction]:
        """All instructions up to a round, or its `train_pool`."""
        return read_pool(self.round(round) / f"{name}.jsonl")

    def scores(self, round: int, name: str = "scores") -> list[dict[str, Any]]:
        """What the miner found in the pool of a round, or in its `selection`; nothing if there is no such stage."""
        path = self.round(round) / f"{name}.jsonl"
        return list(read_rows(path)) if path.exists() else []

    def stages(self, round: int) -> list[str]:
        """Stages of a round, in their order."""
        config = self.config
        skipped = {"dpo", "minillm"} - set(config.stages)
        skipped |= {"discrimination", "generation", "selection", "dpo", "minillm"} if round == 0 else set()
        if config.strategy == "random" and "dpo" not in config.stages:
            skipped.add("discrimination")
        skipped |= {"selection"} if config.n_candidates == config.n_new else set()
        skipped |= set() if self.heldout else {"evaluation"}
        return [stage for stage in STAGES if stage not in skipped]

    def rounds_begun(self) -> list[int]:
        return list(takewhile(lambda round: self.round(round).is_dir(), count()))

    def has_converged(self, round: int) -> bool:
        """Whether too few instructions were hard in a round to go on from there."""
        looked = "selection" if "selection" in self.stages(round) else "discrimination"  # unseen ones tell more
        found = self.manifest(round).stages.get(looked)
        return found is not None and found["counts"]["hard"] < self.config.min_hard

    def to_answer(self, round: int) -> list[Instruction]:
        """What a round trains on: the Train Pool with what is replayed, or from the base all instructions so far."""
        if round == 0 or self.config.init_from == "base":
            return self.pool(round)
        new, old = self.pool(round, "train_pool"), self.pool(round - 1)
        size = {"none": 0, "share": len(new), "all": len(old)}[self.config.replay]
        return [*drawn(old, size, self.config.seed, "replay", round), *new]

    def hard(self, round: int) -> list[Instruction]:
        """Instructions that are known to be hard for the student of the round before."""
        rows = [*self.scores(round), *self.scores(round, "selection")]
        hard = {row["id"] for row in rows if row["kind"] == "hard"}
        return [item for item in self.pool(round) if item.id in hard]

    def known_scores(self, round: int) -> dict[str, dict[str, Any]]:
        """Rows of scores from earlier rounds that are not made anew, by id."""
        if self.config.rescore == "all" or round == 1:
            return {}
        return {row["id"]: row for row in self.scores(round - 1) if row["teacher"] is not None}

    def to_score(self, round: int) -> list[Instruction]:
        """The instructions that the referee scores in a round."""
        known = self.known_scores(round)
        pool = [instruction for instruction in self.pool(round - 1) if instruction.id not in known]
        size = self.config.cache_sample
        return pool if size is None else drawn(pool, size, self.config.seed, round)

    def place(self, text: str) -> tuple[int, str]:
        """Round and stage of `restart_from`."""
        number, _, stage = text.partition(".")
        if not number.isdecimal() or int(number) > self.config.rounds or stage not in self.stages(int(number)):
            raise ValueError(
                f"`restart_from` must be a round up to {self.config.rounds} and a stage of it, such as 1.generation, "
                f"got {text!r}. The stages are {', '.join(self.stages(1))}."
            )
        return int(number), stage

    def restart(self, round: int, stage: str) -> None:
        """Remove the result of a stage and all later ones, the last ones first."""
        for later in reversed(self.rounds_begun()):
            if later > round:
                self._forget(later, STAGES)
                shutil.rmtree(self.round(later))
        self._forget(round, STAGES[STAGES.index(stage) :])

    def _forget(self, round: int, stages: Sequence[str]) -> None:
        if "training" in stages:
            for name in (*TRAININGS, "student", "student_training"):  # of a training that was killed, perhaps before
                shutil.rmtree(self.round(round) / name, ignore_errors=True)  # it was recorded
        self.manifest(round).forget(stages)

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

"""What a run has on disk: for each round pools, results, and a manifest of what is finished."""

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from ..chat import CallStore
from ..files import evaluation_questions, file_digest, load_split, read_rows
from ..row_formats import trl_rows
from .imitation import alone, lock_of
from .lion_config import SHAPE, LionConfig
from .manifest import STAGES, TRAININGS, Manifest, Place, chained
from .pools import Instruction, drawn, hold_out, read_instructions, read_pool, write_pool


logger = logging.getLogger(__name__)


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
                if self._is_to_begin():
                    self._forget(0, ("pools", *STAGES))  # what was asked so far is as good for other settings
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
        Whether the pools are to be made, for nothing that took long follows from them yet. Refuses to go on from what
        was made with other settings, or from something else than what is there.
        """
        begun = self.manifest(0).stages.keys()
        if begun <= {"pools"}:
            return True
        wrong = self._first_conflict()
        if wrong is None or self.config.restart_from and self.place(self.config.restart_from) <= wrong[0]:
            return False
        if begun <= {"pools", "answers"}:
            return True
        raise ValueError(wrong[1])

    def _first_conflict(self) -> tuple[Place, str] | None:
        """The first finished stage that was made with other settings, or does not follow from those before it."""
        missing, before = None, None
        for place, record in self._records(max(self._rounds_there(), default=-1)):
            if record is None:
                missing = missing or (None if place.stage == "evaluation" else place)
                continue
            if changed := self._changed(place, record):
                if place.stage != "evaluation":
                    return place, self._of_settings(place, changed, "settings" not in record)
                logger.warning("Round %d was evaluated with other settings: %s.", place.round, "; ".join(changed))
            if missing or record.get("follows") != before:
                again = missing or place
                was = f"{missing} that it followed from is gone" if missing else "what it followed from has changed"
                return again, (
                    f"{self.round(place.round)} holds the stage {place.stage}, and {was}. Put it back, or go on with "
                    f"`--restart_from {again}`: what was asked is in the call store."
                )
            before = before if place.stage == "evaluation" else chained(record)  # nothing follows from that
        return None

    def _rounds_there(self) -> list[int]:
        names = (folder.name.removeprefix("round_") for folder in self.path.glob("round_*"))
        return [int(name) for name in names if name.isdecimal()]  # not copies that somebody has put aside

    def _records(self, last: int) -> Iterator[tuple[Place, dict[str, Any] | None]]:
        """All stages up to a round in their order, with what is recorded of them."""
        for round in range(last + 1):
            records = self.manifest(round).stages
            for stage in (*(["pools"] if round == 0 else []), *self.stages(round)):
                yield Place(round, stage), records.get(stage)

    def _changed(self, place: Place, record: dict[str, Any]) -> list[str]:
        """Settings that a stage was made with and that are others now, in words."""
        known, now = record.get("settings", {}), self.settings_of(place)
        names = [name for name in sorted(known | now) if known.get(name) != now.get(name)]
        if place.stage != "pools" and self.config.keep_finished and not set(names) & set(SHAPE):
            return []
        return [f"`{name}` was {known.get(name)!r}, is {now.get(name)!r}" for name in names]

    def _of_settings(self, place: Place, changed: list[str], unknown: bool) -> str:
        holds = f"{self.round(place.round)} holds the stage {place.stage}"
        said = f"{holds}, made with other settings: {'; '.join(changed)}"
        elsewhere = "choose another `output_dir`, with a copy of `calls.sqlite` to ask nothing twice"
        if unknown:
            return (
                f"{holds} without the settings that it was made with: an older version made it, which did not write "
                f"them down. To go on, {elsewhere}."
            )
        if place.stage == "pools":
            return f"{said}. Set them back to go on, or {elsewhere}."
        kept = ", keep what is finished and use the new ones from here on with `--keep_finished true`"
        if any(f"`{name}`" in text for name in SHAPE for text in changed):
            kept = ""
        anew = f"make it and all that follows anew with `--restart_from {place}`"
        return f"{said}. Set them back to go on, {anew}{kept}, or {elsewhere}."

    def settings_of(self, place: Place) -> dict[str, Any]:
        """What a stage depends on: fields of the config, and the rows of a data file."""
        settings, name = self.config.settings_of(place.stage, place.round), self.config.dataset_name
        if place.stage == "pools" and name is not None:
            known = self.manifest(0).stages.get("pools", {}).get("settings", {}).get("dataset_sha256")
            # A file that is gone is not needed any more
            settings["dataset_sha256"] = file_digest(name) if Path(name).is_file() else known
        return settings

    def made_with(self, round: int, stage: str) -> dict[str, Any]:
        """With which settings a stage is made now, and after what."""
        place, before = Place(round, stage), None
        for earlier, record in self._records(round):
            if earlier == place:
                break
            before = before if record is None or earlier.stage == "evaluation" else chained(record)
        return {"settings": self.settings_of(place), "follows": before}

    def finish(self, round: int, stage: str, results: Sequence[str], **facts: Any) -> None:
        """Record that a stage is finished: its results, with which settings, and after what."""
        self.manifest(round).finish(stage, results, **(self.made_with(round, stage) | facts))

    def check(self) -> None:
        """Refuse to go on from what was made with other settings, or from something else than what is there."""
        if wrong := self._first_conflict():
            raise ValueError(wrong[1])

    def _make_pools(self, instructions: Iterable[dict[str, Any]] | None) -> None:
        """The pool of round 0 and the held-out slice, made once."""
        config, manifest = self.config, self.manifest(0)
        if manifest.finished("pools"):
            return
        if instructions is None:
            if config.dataset_name is None:
                raise ValueError("No instructions: set `dataset_name`.")
            instructions = load_split(config.dataset_name, config.dataset_config, config.dataset_split)
            instructions = trl_rows(instructions, "prompt", "instruction")  # which has its own reader here
        pool, counts = read_instructions(instructions)
        if examples := counts["examples"]:
            faults = ", ".join(f"{counts[name]} {name} (such as row {rows[0]})" for name, rows in examples.items())
            logger.warning("%d of %d rows are left out: %s.", counts["rows"] - counts["kept"], counts["rows"], faults)
        if config.max_instructions is not None:
            pool = drawn(pool, config.max_instructions, config.seed, "pool")
        counts["pool"] = len(pool)
        pool, heldout, groups = hold_out(pool, config.heldout_size, config.seed)
        counts |= {"heldout": len(heldout), "heldout_groups": groups}
        manifest.folder.mkdir(parents=True, exist_ok=True)
        files = {"heldout.jsonl": heldout, "cache_pool.jsonl": pool, "train_pool.jsonl": pool}
        for name, content in files.items():
            write_pool(manifest.folder / name, content)
        self.finish(0, "pools", list(files), counts=counts)

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
        skipped |= {"selection"} if config.oversample == 1 else set()  # not by `n_new`, which may change
        skipped |= set() if config.heldout_size else {"evaluation"}
        return [stage for stage in STAGES if stage not in skipped]

    def rounds_begun(self) -> list[int]:
        return list(takewhile(lambda round: self.round(round).is_dir(), count()))

    def has_converged(self, round: int) -> bool:
        """Whether too few instructions were hard in a round to go on from there."""
        looked = "selection" if "selection" in self.stages(round) else "discrimination"  # unseen ones tell more
        found = self.manifest(round).stages.get(looked) if looked in self.stages(round) else None
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

    def place(self, text: str) -> Place:
        """Round and stage of `restart_from`."""
        number, _, stage = text.partition(".")
        if not number.isdecimal() or int(number) > self.config.rounds or stage not in self.stages(int(number)):
            raise ValueError(
                f"`restart_from` must be a round up to {self.config.rounds} and a stage of it, such as 1.generation, "
                f"got {text!r}. The stages are {', '.join(self.stages(1))}."
            )
        return Place(int(number), stage)

    def restart(self, round: int, stage: str) -> None:
        """Remove the result of a stage and all later ones, the last ones first."""
        for later in sorted(self._rounds_there(), reverse=True):
            if later > round:
                self._forget(later, STAGES)
                shutil.rmtree(self.round(later))
        self._forget(round, STAGES[STAGES.index(stage) :])

    def _forget(self, round: int, stages: Sequence[str]) -> None:
        for training in [name for name in TRAININGS if name in stages]:
            work = self.round(round) / training
            with alone(work) if lock_of(work).exists() else nullcontext():  # one that outlived its loop may be at work
                for name in (training, self.student(round, training).name):  # perhaps before it was recorded
                    shutil.rmtree(self.round(round) / name, ignore_errors=True)
        self.manifest(round).forget(stages)

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

"""What can go wrong without a paid call is tried before the first one: one step of each training, and the context."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from ..files import write_json, write_rows
from .folder import LionFolder
from .imitation import Training, alone, lock_of
from .roles import Roles


logger = logging.getLogger(__name__)

_ROWS = 8  # no batch of one: what a step needs of memory is to show now


def rehearse(folder: LionFolder, roles: Roles) -> None:
    """
    Do one step of each training of the loop on the longest rows that it may see, and look whether all instructions
    leave room for an answer. What was tried with the same settings is not tried again.

    Raises:
        `ChildProcessError`: If a training fails. Its own message has been printed.
        `ValueError`: If an instruction is too long for the student or the teacher.
    """
    config, record = folder.config, folder.path / "rehearsal.json"
    trainings = {stage: train for stage, train in roles.train.items() if isinstance(train, Training)}
    names = ("student_model", "student_max_tokens", "teacher_max_tokens", "accelerate_config", "launch")
    tried = {stage: training.training for stage, training in trainings.items()}
    tried |= {name: getattr(config, name) for name in names}
    if trainings.keys() != set(config.stages) or record.exists() and json.loads(record.read_text()) == tried:
        return
    logger.info("Rehearsal: one step of each training, before anything is asked.")
    pool = [*folder.pool(0), *folder.heldout]
    roles.teacher.check(roles.questions("teacher", pool))
    works, student = [folder.path / f"rehearsal_{stage}" for stage in trainings], config.student_model
    for work, (stage, training) in zip(works, trainings.items(), strict=True):
        with alone(work):  # a rehearsal that outlived its loop may be at work
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        write_rows(work / "rows.jsonl", [_row(stage, folder, roles)] * _ROWS)
        training.rehearse(student, work / "rows.jsonl", work / "student")
        student = str(work / "student")
    roles.student(Path(student)).check(roles.questions("student", pool))
    for work in works:
        shutil.rmtree(work)
        lock_of(work).unlink(missing_ok=True)
    write_json(record, tried)


def _row(stage: str, folder: LionFolder, roles: Roles) -> dict[str, Any]:
    """A row of a training: the longest instruction, and an answer as long as the teacher's may be."""
    longest = max((item.text for item in folder.pool(0)), key=len)
    answer = [{"role": "assistant", "content": " ".join(["word"] * roles.config.teacher_max_tokens)}]
    answers = {
        "sft": {"completion": answer},
        "dpo": {"chosen": answer, "rejected": [{"role": "assistant", "content": "None."}]},
        "minillm": {},
    }
    return {"prompt": [{"role": "user", "content": longest}], **answers[stage]}

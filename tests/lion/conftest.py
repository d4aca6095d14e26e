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

import json
from collections import Counter

import pytest
import toy

from tests.commands import read_rows
from tests.loop_fixtures import no_picture, picture, server  # noqa: F401
from trl_distill.lion import LionConfig, LionLoop


@pytest.fixture
def world(tmp_path):
    """Factory of loops in the toy world: 23 tasks, 4 of them held out, two rounds of 4 new ones."""

    def build(folder="run", rows=None, models=None, **settings):
        values = dict(heldout_size=4, rounds=2, n_new=4, replay="none", student_model="none") | settings
        config = LionConfig(output_dir=str(tmp_path / folder), **values)
        rows = toy.rows({0: 10, 1: 8, 2: 3, 3: 2}) if rows is None else rows
        return LionLoop(config, rows, **(toy.models() | (models or {})))

    return build


@pytest.fixture
def read(tmp_path):
    """What a file of a run holds: `read("round_1/scores.jsonl")`."""

    def value(name, folder="run"):
        path = tmp_path / folder / name
        return read_rows(path) if path.suffix == ".jsonl" else json.loads(path.read_text(encoding="utf-8"))

    return value


@pytest.fixture
def ledger():
    """Calls of a report by role, and by round and stage, where any were made."""

    def count(report, column="calls"):
        counts = Counter()
        for row in report["ledger"]:
            counts[row["role"]] += row[column]
            counts[row["round"], row["stage"], row["role"]] += row[column]
        return +counts

    return count

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

import pytest

from tests.loop_fixtures import no_picture, picture, server  # noqa: F401
from trl_distill.feedback import FeedbackConfig


@pytest.fixture
def config(tmp_path):
    """Factory of configs that write into a folder of the test."""

    def build(**settings):
        return FeedbackConfig(**({"output_dir": str(tmp_path / "out"), "decontaminate": []} | settings))

    return build


@pytest.fixture
def read(tmp_path):
    """Rows of a file of a run, by its name."""

    def rows(name, folder="out"):
        text = (tmp_path / folder / f"{name}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    return rows

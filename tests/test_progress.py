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

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("environment", [{}, {"TQDM_DISABLE": "1"}])
def test_a_bar_is_hidden_by_its_caller_and_by_the_environment(shown, environment):
    code = f"from trl_distill.progress import progress_bar; print(*progress_bar(range(3), shown={shown}))"
    env = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"} | environment
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    assert done.stdout == "0 1 2\n"
    assert ("3/3" in done.stderr) == (shown and not environment)


def test_nobody_goes_before_the_environment():
    for path in Path("trl_distill").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert path.name == "progress.py" or not re.search(r"tqdm\([^)]*disable=", text), path

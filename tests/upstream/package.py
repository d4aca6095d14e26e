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

"""A folder of ours as it would stand in another package: copied, and imported where `trl_distill` cannot be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path


SOURCE = Path(__file__).parents[2] / "trl_distill"
WITHOUT_US = "import sys\nsys.modules['trl_distill'] = None  # importing it raises ModuleNotFoundError\n"


def copy_as_upstream(folder: Path, names: list[str]) -> Path:
    """
    Copy files and folders of `trl_distill` into a fresh package `upstream` in `folder`.

    Args:
        folder (`Path`):
            Where the package is made.
        names (`list[str]`):
            Paths below `trl_distill/`, such as `divergence.py` or `rationales/nat`. Folders above them become empty
            packages.

    Returns:
        `Path`: The package.
    """
    package = folder / "upstream"
    for name in names:
        target = package / name
        for parent in target.relative_to(folder).parents:
            (folder / parent).mkdir(exist_ok=True)
            if parent.parts:
                (folder / parent / "__init__.py").touch()
        if (SOURCE / name).is_dir():
            shutil.copytree(SOURCE / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(SOURCE / name, target)
    return package


def run_as_upstream(folder: Path, script: str) -> str:
    """Run Python code beside the package, where nothing else of ours can be imported; returns what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_US + script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout

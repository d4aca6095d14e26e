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

"""
The recipes that come with the package: settings with their sources, and what is run with them.

```bash
trl-distill recipe                                              # list them
trl-distill recipe minillm/qwen2.5_1.5b_qlora_single_gpu > my.yaml
trl-distill minillm --config my.yaml
```
"""

import argparse
import ast
import re
import sys
import textwrap
from pathlib import Path

from ..text import closest
from ..training import recipe_folder, user_errors
from .arguments import split_arguments


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Without NAME, list the recipes; with it, print one, to be saved and changed. A command takes a "
        "recipe as it is, too: `trl-distill minillm --config recipes/NAME.yaml`.",
    )
    name = parser.add_argument(
        "name", nargs="?", metavar="NAME", help="As it is listed, with or without folder and suffix."
    )
    name.completer = lambda **_: recipes()  # of argcomplete
    return parser


def recipes() -> dict[str, Path]:
    """Files by their names, those of settings first in each folder."""
    folder = recipe_folder()
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".md", ".pyc")]
    files.sort(key=lambda path: (path.parent, path.suffix != ".yaml", path.name))
    return {path.relative_to(folder).as_posix(): path for path in files}


def about(path: Path) -> str:
    """The first sentence that a file says of itself, on a line."""
    text = path.read_text(encoding="utf-8")
    lines = (ast.get_docstring(ast.parse(text)) or "").splitlines() if path.suffix == ".py" else text.splitlines()
    said = " ".join(line.strip('#{}-" ') for line in lines if not line.startswith("#!")).strip()
    return textwrap.shorten(re.split(r"(?<=\.)\s", said, maxsplit=1)[0], 120, placeholder=" ...")


def run(argv: list[str]) -> None:
    """Parse `argv`, and list the recipes or print one."""
    known = recipes()
    with user_errors("trl-distill recipe"):
        args, _, _ = split_arguments(make_parser("trl-distill recipe"), argv)
        if args.name is None:
            width = max(map(len, known))
            sys.stdout.writelines(f"{name:<{width}}  {about(path)}\n" for name, path in known.items())
            return
        name = args.name.removeprefix("recipes/")
        path = known.get(name) or known.get(f"{name}.yaml")
        if path is None and len(named := [path for path in known.values() if name in (path.name, path.stem)]) == 1:
            [path] = named
        if path is None:
            raise ValueError(f"no recipe {name!r}. {closest(name, known) or '`trl-distill recipe` lists them.'}")
    sys.stdout.write(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(sys.argv[1:])

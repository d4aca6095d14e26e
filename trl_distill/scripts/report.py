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
Make the page of a run from what is in its folder: of a training or of a Lion loop, finished, stopped or at work.

```bash
trl-distill report runs/minillm    # writes runs/minillm/report.html
```
"""

import argparse
import sys
from pathlib import Path

from ..training import user_errors
from .arguments import split_arguments


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write report.html into the folder of a training or of a Lion loop: curves, evaluations, "
        "rollouts, cost and settings in one file that loads nothing. A training that ends writes it itself.",
    )
    parser.add_argument("folder", metavar="RUN_FOLDER", help="The `output_dir` of the run.")
    return parser


def run(argv: list[str]) -> None:
    """Parse `argv` and write the page."""
    with user_errors("trl-distill report"):
        args, _, _ = split_arguments(make_parser("trl-distill report"), argv)
        if (Path(args.folder) / "report.json").is_file():
            from ..lion.report import write_page as write
        else:
            from ..report import write_report as write

        path = write(Path(args.folder))
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    run(sys.argv[1:])

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
Supervised fine-tuning with TRL's trainer, strict about unknown keys.

```bash
trl-distill sft --config recipes/zephyr/dsft_qlora.yaml [--FIELD VALUE ...]
accelerate launch -m trl_distill.scripts.sft --config recipes/zephyr/dsft_qlora.yaml
```

`model_name_or_path` may be the folder of an adapter: then its training goes on.
"""

import sys
from typing import TYPE_CHECKING

from trl_distill import sft
from trl_distill.scripts.help import add_help
from trl_distill.scripts.training import run_command
from trl_distill.sft import build_trainer


if TYPE_CHECKING:
    from trl import TrlParser


def make_parser(prog: str | None = None) -> "TrlParser":
    return add_help(sft.make_parser(prog))


def run(argv: list[str]) -> None:
    run_command("sft", argv, make_parser, build_trainer)


if __name__ == "__main__":
    run(sys.argv[1:])

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
TRL's SFT script, strict about unknown keys.

```bash
trl-distill sft --config FILE [--FIELD VALUE ...]
```
"""

import sys

from trl_distill.scripts.arguments import parse_strictly, resolve, user_errors


def make_parser(prog: str | None = None):
    from trl.scripts.sft import make_parser

    return make_parser(prog=prog)


def run(argv: list[str]) -> None:
    prog = "trl-distill sft"
    with user_errors(prog):
        script_args, training_args, model_args, dataset_args = parse_strictly(make_parser(prog), argv)
        resolve(script_args, training_args, dataset_args)

    from trl.scripts.sft import main

    main(script_args, training_args, model_args, dataset_args)


if __name__ == "__main__":
    run(sys.argv[1:])

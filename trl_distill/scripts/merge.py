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
Put an adapter into its base, on disk, so that the next stage of training starts from one full model.

```bash
trl-distill merge runs/zephyr-dsft-qlora --output runs/zephyr-dsft-merged
```
"""

import argparse
import sys

from ..training import user_errors
from .arguments import split_arguments


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Load the base of an adapter unquantized, put the adapter into it and write the full model with "
        "its tokenizer, chat template and generation config. The folder appears when it is complete.",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="Folder or Hub repository of a PEFT adapter.")
    parser.add_argument("--output", required=True, metavar="DIR", help="Folder to write. It must not exist yet.")
    parser.add_argument("--base", metavar="MODEL", help="Folder or id of the base. Default: what the adapter records.")
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=["bfloat16", "float16", "float32"],
        help="Of the arithmetic and of the file. float32 loses nothing and takes twice the memory.",
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="Run Python code that ships with the base.")
    return parser


def run(argv: list[str]) -> None:
    """Parse `argv`, merge, and say what to do with the result."""
    with user_errors("trl-distill merge"):
        args, _, _ = split_arguments(make_parser("trl-distill merge"), argv)
        from ..models import merge_adapter

        merge_adapter(**vars(args))
    sys.stdout.write(
        f"Merged {args.adapter} into its base: {args.output}. Start the next stage from there. A new LoRA records "
        "this path as its base, so keep the folder as long as that LoRA, or merge that one, too.\n"
    )

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

"""What the commands share whose fields are one dataclass, and whose runs have a budget."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .arguments import add_config, split_arguments
from .help import add_help


if TYPE_CHECKING:
    from transformers import HfArgumentParser

STOPPED_BY_BUDGET = 3  # exit code: nothing is wrong, and a higher limit goes on


def config_parser(config_class: type, prog: str | None, description: str) -> "HfArgumentParser":
    """A parser with the fields of a dataclass, and `--config`."""
    from transformers import HfArgumentParser

    parser = add_help(HfArgumentParser(config_class, prog=prog, description=description))
    add_config(parser)
    return parser


def parse_config(config_class: type, parser: "HfArgumentParser", argv: list[str]) -> Any:
    """The dataclass that `argv` says, its config file included."""
    values, _, _ = split_arguments(parser, argv)
    return config_class(**{name: value for name, value in vars(values).items() if name != "config"})


@contextlib.contextmanager
def budget_exit(prog: str) -> Iterator[None]:
    """Turn a spent budget into one message on stderr and an exit code of its own."""
    from ..chat import BudgetReached

    try:
        yield
    except BudgetReached as error:
        sys.stderr.write(f"{prog}: stopped: {error}\n")
        raise SystemExit(STOPPED_BY_BUDGET) from error

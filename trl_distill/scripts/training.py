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

"""What the training scripts share: the parser, and the run from its arguments on."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..training import run_training
from .arguments import parse_strictly
from .help import add_help


if TYPE_CHECKING:
    from transformers import Trainer
    from trl import TrlParser


def training_parser(prog: str | None, config_class: type, *more: type, answers: bool = True) -> "TrlParser":
    """
    Parser of a trainer's config, of the fields that all training scripts have, and of `more` dataclasses. `answers`
    says whether what is trained can answer before and after it, and has no `log_completions` of its own.
    """
    import trl
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    from ..script_arguments import ScriptArguments

    first = ScriptArguments if answers else trl.ScriptArguments
    classes = (first, config_class, ModelConfig, DatasetMixtureConfig, *more)
    return add_help(TrlParser(classes, prog=prog))


def run_command(
    name: str,
    argv: list[str],
    make_parser: "Callable[[str], TrlParser]",
    build_trainer: "Callable[..., Trainer]",
    **kwargs,
) -> None:
    """[`~trl_distill.training.run_training`] of the command `name`, whose arguments are read strictly."""
    prog = f"trl-distill {name}"
    run_training(prog, lambda: parse_strictly(make_parser(prog), argv), build_trainer, **kwargs)

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
Supervised fine-tuning with TRL's trainer, from fields that a library or a command gives.

`python -m trl_distill.sft --config FILE`, plainly or by `accelerate launch`, is a training in a process of its own.
"""

import sys
from typing import TYPE_CHECKING

from .training import first_row, load_splits, run_training, student_arguments


if TYPE_CHECKING:
    from datasets import Dataset
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser

PROG = "trl-distill sft"


def without_text_prompt(rows: "Dataset", text_field: str) -> "Dataset":
    """Drop a `prompt` beside whole conversations in `messages`, as in H4's data sets: TRL wants one or the other."""
    first = first_row(rows, "messages", "prompt+completion", text_field, "conversations", "input_ids")
    return rows.remove_columns("prompt") if "prompt" in first and isinstance(first.get("messages"), list) else rows


def build_trainer(
    script_args: "ScriptArguments",
    training_args: "SFTConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
) -> "SFTTrainer":
    from .sft_trainer import CountingSFTTrainer

    arguments = student_arguments(training_args, model_args)
    splits = load_splits(script_args, training_args, dataset_args, "sft", training_args.dataset_text_field)
    return CountingSFTTrainer(
        **arguments,
        **{name: without_text_prompt(rows, training_args.dataset_text_field) for name, rows in splits.items()},
    )


def make_parser(prog: str | None = None) -> "TrlParser":
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    from .script_arguments import ScriptArguments
    from .sft_config import SFTConfig

    return TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig), prog=prog)


def run(argv: list[str]) -> None:
    """Train as `argv` says, read by TRL's own parser."""
    run_training(PROG, lambda: make_parser(prog=PROG).parse_args_and_config(argv), build_trainer)


if __name__ == "__main__":
    run(sys.argv[1:])

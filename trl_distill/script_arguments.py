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


"""The arguments of training scripts that are neither the trainer's nor the model's."""

from dataclasses import dataclass, field

import trl
from transformers import TrainingArguments


@dataclass
class ScriptArguments(trl.ScriptArguments):
    """
    [`~trl.ScriptArguments`] of a training whose model answers.

    Args:
        > Parameters that control the page of the run

        log_completions (`bool`, *optional*):
            Whether the model answers four prompts before and after the training, greedily and with 128 tokens at most,
            for `report.html`. If `None`, it does unless `push_to_hub` is set, which would upload them.
    """

    log_completions: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the model answers four prompts before and after the training, for report.html. By "
            "default it does, unless `push_to_hub` would upload them."
        },
    )


def answers_wanted(script_args: trl.ScriptArguments, training_args: TrainingArguments) -> bool:
    """Whether `log_completions` asks for answers, of a training that has this field."""
    if not isinstance(script_args, ScriptArguments):
        return False
    wanted = script_args.log_completions
    return not training_args.push_to_hub if wanted is None else wanted

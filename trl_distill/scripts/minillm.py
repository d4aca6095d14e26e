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
Train a student with [`MiniLLMTrainer`].

```bash
trl-distill minillm --config recipes/minillm/qwen2.5_0.5b_from_7b.yaml [--FIELD VALUE ...]
accelerate launch -m trl_distill.scripts.minillm --config recipes/minillm/qwen2.5_0.5b_from_7b.yaml
```
"""

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from trl_distill.files import load_split
from trl_distill.scripts.training import run_command, training_parser
from trl_distill.training import load_splits, student_arguments


if TYPE_CHECKING:
    from datasets import Dataset
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from trl_distill import MiniLLMConfig, MiniLLMTrainer


@dataclass
class MiniLLMScriptArguments:
    """
    Arguments of the MiniLLM script that are neither the trainer's nor common to all scripts.

    Args:
        > Parameters that control the corpus

        lm_dataset_name (`str`, *optional*):
            Dataset of the Hub, folder or file with plain text for the language-modelling loss.
        lm_dataset_config (`str`, *optional*):
            Configuration of that dataset.
        lm_dataset_split (`str`, *optional*, defaults to `"train"`):
            Split of that dataset.
        lm_dataset_text_field (`str`, *optional*, defaults to `"text"`):
            Column with the text.

        > Parameters that control the evaluation

        answer_checker (`str`, *optional*):
            `"math"` logs the accuracy of final answers in evaluation. Rows need an `answer` or `completion` with it.
    """

    lm_dataset_name: str | None = field(
        default=None, metadata={"help": "Dataset, folder or file with plain text for the language-modelling loss."}
    )
    lm_dataset_config: str | None = field(default=None, metadata={"help": "Configuration of that dataset."})
    lm_dataset_split: str = field(default="train", metadata={"help": "Split of that dataset."})
    lm_dataset_text_field: str = field(default="text", metadata={"help": "Column with the text."})
    answer_checker: Literal["math"] | None = field(
        default=None,
        metadata={"help": "Only 'math': logs the accuracy of final answers in evaluation."},
    )


def load_corpus(args: MiniLLMScriptArguments) -> "Dataset | None":
    """Plain text in one column, `text`."""
    name, column = args.lm_dataset_name, args.lm_dataset_text_field
    if name is None:
        return None
    corpus = load_split(name, args.lm_dataset_config, args.lm_dataset_split)
    if column not in corpus.column_names:
        raise ValueError(
            f"the corpus {name} has no column {column!r}, only {', '.join(corpus.column_names)}: set "
            "`lm_dataset_text_field`."
        )
    corpus = corpus.select_columns([column])
    return corpus if column == "text" else corpus.rename_column(column, "text")


def build_trainer(
    script_args: "ScriptArguments",
    training_args: "MiniLLMConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
    minillm_args: MiniLLMScriptArguments,
) -> "MiniLLMTrainer":
    from trl_distill import MiniLLMTrainer

    # The teacher keeps its checkpoint's dtype: a frozen model needs no fp32 weights
    arguments = student_arguments(training_args, model_args, role="student")
    if model_args.attn_implementation is not None and not training_args.teacher_is_base:
        training_args.teacher_model_init_kwargs = {"attn_implementation": model_args.attn_implementation} | (
            training_args.teacher_model_init_kwargs or {}
        )
    if minillm_args.answer_checker == "math":
        from trl_distill.evaluation.answers import check_answer

        arguments["answer_checker"] = check_answer
    return MiniLLMTrainer(
        **arguments,
        lm_dataset=load_corpus(minillm_args),
        **load_splits(script_args, training_args, dataset_args, "prompt"),
    )


def make_parser(prog: str | None = None):
    from trl_distill import MiniLLMConfig

    return training_parser(prog, MiniLLMConfig, MiniLLMScriptArguments, answers=False)


def run(argv: list[str]) -> None:
    run_command("minillm", argv, make_parser, build_trainer)


if __name__ == "__main__":
    run(sys.argv[1:])

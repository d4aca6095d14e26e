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

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from trl_distill.files import file_format
from trl_distill.scripts.arguments import parse_strictly, resolve, user_errors
from trl_distill.scripts.training import load_splits, set_model_init_kwargs, train_and_save


if TYPE_CHECKING:
    from datasets import Dataset
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from trl_distill import MiniLLMConfig, MiniLLMTrainer


@dataclass
class MiniLLMScriptArguments:
    """
    Arguments of the MiniLLM script that are neither the trainer's nor common to all scripts.

    Args:
        lm_dataset_name (`str`, *optional*):
            Dataset of the Hub, folder or file with plain text for the language-modelling loss.
        lm_dataset_config (`str`, *optional*):
            Configuration of that dataset.
        lm_dataset_split (`str`, *optional*, defaults to `"train"`):
            Split of that dataset.
        lm_dataset_text_field (`str`, *optional*, defaults to `"text"`):
            Column with the text.
        answer_checker (`str`, *optional*):
            `"math"` logs the accuracy of final answers in evaluation. Rows need an `answer` or a `completion` that holds it.
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
    from datasets import load_dataset

    name, column = args.lm_dataset_name, args.lm_dataset_text_field
    if name is None:
        return None
    if os.path.isfile(name):
        corpus = load_dataset(file_format(name), data_files=name, split=args.lm_dataset_split)
    else:
        corpus = load_dataset(name, args.lm_dataset_config, split=args.lm_dataset_split)
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
    from trl import get_peft_config, get_quantization_config

    from trl_distill import MiniLLMTrainer

    # The teacher keeps its checkpoint's dtype: a frozen model needs no fp32 weights
    set_model_init_kwargs(training_args, model_args, role="student")
    if model_args.attn_implementation is not None and not training_args.teacher_is_base:
        training_args.teacher_model_init_kwargs = {"attn_implementation": model_args.attn_implementation} | (
            training_args.teacher_model_init_kwargs or {}
        )

    checker = None
    if minillm_args.answer_checker == "math":
        from trl_distill.evaluation.answers import check_answer

        checker = check_answer
    return MiniLLMTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        lm_dataset=load_corpus(minillm_args),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        answer_checker=checker,
        **load_splits(script_args, training_args, dataset_args),
    )


def make_parser(prog: str | None = None):
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

    from trl_distill import MiniLLMConfig

    dataclass_types = (ScriptArguments, MiniLLMConfig, ModelConfig, DatasetMixtureConfig, MiniLLMScriptArguments)
    return TrlParser(dataclass_types, prog=prog)


def run(argv: list[str]) -> None:
    prog = "trl-distill minillm"
    with user_errors(prog):
        args = parse_strictly(make_parser(prog), argv)
        script_args, training_args, _, dataset_args, _ = args
        resolve(script_args, training_args, dataset_args)
        dataset_name = script_args.dataset_name
        trainer = build_trainer(*args)

    train_and_save(trainer, training_args.resume_from_checkpoint, dataset_name)


if __name__ == "__main__":
    run(sys.argv[1:])

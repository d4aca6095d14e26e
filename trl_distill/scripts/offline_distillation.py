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
Train a student with [`OfflineDistillationTrainer`] on what `trl-distill record` has written.

```bash
trl-distill offline_distillation --config recipes/offline_distillation/qwen2.5_0.5b_from_7b.yaml [--FIELD VALUE ...]
accelerate launch -m trl_distill.scripts.offline_distillation --config x.yaml
```

`dataset_name` is the folder that was recorded.
"""

import sys
from typing import TYPE_CHECKING

from trl_distill.scripts.training import run_command, training_parser
from trl_distill.training import split_by_question, student_arguments


if TYPE_CHECKING:
    from datasets import Dataset
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from trl_distill import OfflineDistillationConfig, OfflineDistillationTrainer


def load_rows(
    script_args: "ScriptArguments", training_args: "OfflineDistillationConfig", dataset_args: "DatasetMixtureConfig"
) -> "dict[str, Dataset]":
    """The recorded rows as `train_dataset`, or with evaluation split by their prompts."""
    from transformers import set_seed

    from trl_distill import load_recorded

    size = dataset_args.test_split_size
    if dataset_args.datasets or script_args.dataset_config or script_args.dataset_streaming:
        raise ValueError(
            "recorded rows come from the folder that `trl-distill record` has written: name it as `dataset_name`. It "
            "is no file. Leave out `datasets`, `dataset_config` and `dataset_streaming`."
        )
    rows = load_recorded(script_args.dataset_name)
    if training_args.eval_strategy == "no" and size is None:
        return {"train_dataset": rows}
    if size is None:
        raise ValueError(f"`eval_strategy` is {training_args.eval_strategy.value!r}: set `test_split_size`.")
    set_seed(training_args.seed)  # the rows are drawn from the global state, in each process
    prompts = [
        str([token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100])
        for row in rows
    ]
    split = split_by_question(rows.add_column("prompt", prompts), size)
    found = {"train_dataset": split["train"].remove_columns("prompt")}
    if training_args.eval_strategy != "no":
        found["eval_dataset"] = split["test"].remove_columns("prompt")
    return found


def build_trainer(
    script_args: "ScriptArguments",
    training_args: "OfflineDistillationConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
) -> "OfflineDistillationTrainer":
    from trl_distill import OfflineDistillationTrainer

    rows = load_rows(script_args, training_args, dataset_args)
    return OfflineDistillationTrainer(**student_arguments(training_args, model_args, role="student"), **rows)


def make_parser(prog: str | None = None):
    from trl_distill import OfflineDistillationConfig

    return training_parser(prog, OfflineDistillationConfig)


def run(argv: list[str]) -> None:
    run_command("offline_distillation", argv, make_parser, build_trainer)


if __name__ == "__main__":
    run(sys.argv[1:])

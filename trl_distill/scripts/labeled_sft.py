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
Train a model on right and wrong rationales without an adapter of their own: CoT KD, MIX, NT, UL or REDI, with
[`LabeledSFTTrainer`].

```bash
trl-distill labeled_sft --config recipes/nat_nce_asc/baselines.yaml --objective cot_kd [--FIELD VALUE ...]
accelerate launch -m trl_distill.scripts.labeled_sft --config recipes/nat_nce_asc/baselines.yaml
```
"""

import sys

from trl_distill.scripts.training import run_command, training_parser
from trl_distill.training import load_splits, student_arguments


def make_parser(prog: str | None = None):
    from trl_distill import LabeledSFTConfig

    return training_parser(prog, LabeledSFTConfig)


def build_trainer(script_args, training_args, model_args, dataset_args):
    from trl_distill import LabeledSFTTrainer

    arguments = student_arguments(training_args, model_args)
    return LabeledSFTTrainer(**arguments, **load_splits(script_args, training_args, dataset_args))


def run(argv: list[str]) -> None:
    run_command("labeled_sft", argv, make_parser, build_trainer)


if __name__ == "__main__":
    run(sys.argv[1:])

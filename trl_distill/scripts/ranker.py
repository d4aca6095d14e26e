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
Train the ranker of adaptive self-consistency with [`ASCRankerTrainer`].

```bash
trl-distill ranker --config recipes/nat_nce_asc/ranker.yaml [--FIELD VALUE ...]
accelerate launch -m trl_distill.scripts.ranker --config recipes/nat_nce_asc/ranker.yaml
```
"""

import sys

from trl_distill.scripts.training import run_command, training_parser
from trl_distill.training import load_splits, model_arguments


def make_parser(prog: str | None = None):
    from trl_distill import ASCRankerConfig

    return training_parser(prog, ASCRankerConfig, answers=False)


def build_trainer(script_args, training_args, model_args, dataset_args):
    from trl_distill import ASCRankerTrainer

    model_args.lora_task_type = "SEQ_CLS"  # trains the head, too; the field's default is for language models
    arguments = model_arguments(training_args, model_args, role="ranker")
    return ASCRankerTrainer(**arguments, **load_splits(script_args, training_args, dataset_args))


def run(argv: list[str]) -> None:
    run_command("ranker", argv, make_parser, build_trainer, what="Ranker")


if __name__ == "__main__":
    run(sys.argv[1:])

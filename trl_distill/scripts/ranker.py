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

from trl_distill.scripts.arguments import parse_strictly, resolve, user_errors
from trl_distill.scripts.training import load_splits, set_model_init_kwargs, train_and_save


def make_parser(prog: str | None = None):
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

    from trl_distill import ASCRankerConfig

    return TrlParser((ScriptArguments, ASCRankerConfig, ModelConfig, DatasetMixtureConfig), prog=prog)


def build_trainer(script_args, training_args, model_args, dataset_args):
    from trl import get_peft_config, get_quantization_config

    from trl_distill import ASCRankerTrainer

    set_model_init_kwargs(training_args, model_args, role="ranker")
    model_args.lora_task_type = "SEQ_CLS"  # trains the head, too; the field's default is for language models
    return ASCRankerTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        **load_splits(script_args, training_args, dataset_args),
    )


def run(argv: list[str]) -> None:
    prog = "trl-distill ranker"
    with user_errors(prog):
        args = parse_strictly(make_parser(prog), argv)
        script_args, training_args, _, dataset_args = args
        resolve(script_args, training_args, dataset_args)
        dataset_name = script_args.dataset_name
        trainer = build_trainer(*args)

    train_and_save(trainer, training_args.resume_from_checkpoint, dataset_name, "Ranker")


if __name__ == "__main__":
    run(sys.argv[1:])

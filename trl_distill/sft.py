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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .training import first_row, load_splits, quantization_config, run_training, set_model_init_kwargs


if TYPE_CHECKING:
    from datasets import Dataset
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser

PROG = "trl-distill sft"


def without_text_prompt(rows: "Dataset", text_field: str) -> "Dataset":
    """Drop a `prompt` beside whole conversations in `messages`, as in H4's data sets: TRL wants one or the other."""
    first = first_row(rows, "messages", "prompt+completion", text_field, "conversations", "input_ids")
    return rows.remove_columns("prompt") if "prompt" in first and isinstance(first.get("messages"), list) else rows


def load_model(training_args: "SFTConfig", model_args: "ModelConfig") -> dict[str, Any]:
    """What the trainer is given as model: a name for it to load, or an adapter on its base, whose training goes on."""
    from trl import get_peft_config

    from .models import adapter_config

    name = model_args.model_name_or_path
    quantization = quantization_config(model_args, training_args.trust_remote_code)
    if not Path(name).is_dir() or adapter_config(name) is None:
        return {"model": name, "quantization_config": quantization, "peft_config": get_peft_config(model_args)}
    if model_args.use_peft:
        raise ValueError(
            f"{name} is an adapter. Leave `use_peft` out to go on training it; for a new one on top of it, put it "
            "into its base first: `trl-distill merge`."
        )
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    kwargs = training_args.model_init_kwargs | {"quantization_config": quantization}
    training_args.model_init_kwargs = None  # the trainer has nothing to load
    model = AutoPeftModelForCausalLM.from_pretrained(name, is_trainable=True, **kwargs)
    return {"model": model, "processing_class": AutoTokenizer.from_pretrained(name)}


def build_trainer(
    script_args: "ScriptArguments",
    training_args: "SFTConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
) -> "SFTTrainer":
    from .sft_trainer import CountingSFTTrainer

    set_model_init_kwargs(training_args, model_args)
    splits = load_splits(script_args, training_args, dataset_args, "sft", training_args.dataset_text_field)
    return CountingSFTTrainer(
        args=training_args,
        **load_model(training_args, model_args),
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

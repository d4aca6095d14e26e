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
Train a student with [`NCETrainer`] on right rationales and their calibration weights.

```bash
trl-distill nce --config recipes/nat_nce_asc/nce_llama_7b_qlora.yaml [--FIELD VALUE ...]
accelerate launch -m trl_distill.scripts.nce --config recipes/nat_nce_asc/nce_llama_7b_qlora.yaml
```
"""

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trl_distill.scripts.training import run_command, training_parser
from trl_distill.training import load_splits, model_arguments


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import BitsAndBytesConfig
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from trl_distill import NCEConfig, NCETrainer


@dataclass
class NCEScriptArguments:
    """
    Arguments of the NCE scripts that are neither the trainer's nor common to all scripts.

    Args:
        > Parameters that control the teacher

        nat_path (`str`, *optional*):
            Folder or Hub repository of a NAT model, with the sub-folders `nat` and `neg`. Needed by `objective: kd`
            and by `trl-distill calibrate`.
        teacher_model_name_or_path (`str`, *optional*):
            Base model of the NAT model, if it is not the student's. Without it, student and teacher are adapters of
            one base; with it, the student may also be trained in full.
    """

    nat_path: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub repository of a NAT model. Needed by `objective: kd` and by `calibrate`."},
    )
    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Base model of the NAT model, if it is not the student's."}
    )


def load_nat_model(
    args: "NCEConfig",
    nat_args: NCEScriptArguments,
    base_name_or_path: str,
    quantization_config: "BitsAndBytesConfig | None" = None,
    **init_kwargs,
) -> "PeftModel":
    """The NAT model of `nat_args.nat_path` on its base, frozen, on the device of this process."""
    from trl.trainer.utils import create_model_from_path

    from trl_distill import load_nat

    if nat_args.nat_path is None:
        raise ValueError("no NAT model: set `nat_path` to the folder that `trl-distill nat` has written.")
    if quantization_config is not None:
        init_kwargs["quantization_config"] = quantization_config
    kwargs = {"device_map": {"": args.device}, "trust_remote_code": args.trust_remote_code} | init_kwargs
    return load_nat(create_model_from_path(base_name_or_path, **kwargs), nat_args.nat_path)


def build_trainer(
    script_args: "ScriptArguments",
    training_args: "NCEConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
    nat_args: NCEScriptArguments,
) -> "NCETrainer":
    from trl_distill import NCETrainer

    arguments = model_arguments(training_args, model_args, role="student")
    if training_args.objective == "kd" and nat_args.teacher_model_name_or_path is not None:
        base = nat_args.teacher_model_name_or_path
        arguments["teacher_model"] = load_nat_model(training_args, nat_args, base, dtype="auto")
    elif training_args.objective == "kd":
        if arguments["peft_config"] is None:
            raise ValueError(
                "student and teacher are adapters of one base: set `use_peft: true`. To train the whole student, set "
                "`teacher_model_name_or_path` to the base of the NAT model, which is then loaded beside it."
            )
        base, quantization_config = arguments["model"], arguments.pop("quantization_config")
        kwargs = training_args.model_init_kwargs
        arguments["model"] = load_nat_model(training_args, nat_args, base, quantization_config, **kwargs)
        training_args.model_init_kwargs = None  # the trainer has nothing to load
    return NCETrainer(**arguments, **load_splits(script_args, training_args, dataset_args))


def make_parser(prog: str | None = None):
    from trl_distill import NCEConfig

    return training_parser(prog, NCEConfig, NCEScriptArguments)


def run(argv: list[str]) -> None:
    run_command("nce", argv, make_parser, build_trainer)


if __name__ == "__main__":
    run(sys.argv[1:])

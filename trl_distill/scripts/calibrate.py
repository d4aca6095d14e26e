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
Weigh the rows of a dataset for `trl-distill nce`.

It reads the configuration of the training run, since its fields decide how rows become tokens:

```bash
trl-distill calibrate --config recipes/nat_nce_asc/nce_llama_7b_qlora.yaml \
    --dataset_name augmented.jsonl --output_file weighted.jsonl
```

A run that was killed goes on when it is started again.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trl_distill.extras import check_packages
from trl_distill.files import whole_path
from trl_distill.scripts.arguments import check_one_process, check_outputs, parse_strictly
from trl_distill.scripts.nce import NCEScriptArguments, load_nat_model
from trl_distill.scripts.training import training_parser
from trl_distill.training import load_splits, model_arguments, resolve, user_errors


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class CalibrateScriptArguments:
    """
    Arguments of the calibration script that the training script does not have.

    Args:
        > Parameters that control the output

        output_file (`str`):
            JSON Lines file to write: the rows, with `weight` and `weight_hash`. Until all is done, the weights stand
            in `<output_file>.part`.
    """

    output_file: str | None = field(
        default=None,
        metadata={"help": "JSON Lines file to write. Until all is done, the weights stand in `<output_file>.part`."},
    )


def make_parser(prog: str | None = None):
    from trl_distill import NCEConfig

    return training_parser(prog, NCEConfig, NCEScriptArguments, CalibrateScriptArguments, answers=False)


def calibrate(script_args, training_args, model_args, dataset_args, nat_args, journal: Path) -> "tuple[Dataset, int]":
    """The weighed rows, and how many rows there were."""
    from transformers import AutoTokenizer

    from trl_distill import calibration_weights

    # All rows are weighed: they are split when they are trained on
    training_args.eval_strategy = "no"
    training_args.resume_from_checkpoint = dataset_args.test_split_size = None
    resolve(script_args, training_args, dataset_args)
    dataset = load_splits(script_args, training_args, dataset_args)["train_dataset"]

    quantization_config = model_arguments(training_args, model_args)["quantization_config"]
    name = nat_args.teacher_model_name_or_path or model_args.model_name_or_path
    model = load_nat_model(training_args, nat_args, name, quantization_config, **training_args.model_init_kwargs)
    tokenizer = AutoTokenizer.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        trust_remote_code=training_args.trust_remote_code,
    )
    return calibration_weights(model, dataset, tokenizer, training_args, journal, progress=True), len(dataset)


def run(argv: list[str]) -> None:
    prog = "trl-distill calibrate"
    with user_errors(prog):
        check_one_process(prog)
        *args, calibrate_args = parse_strictly(make_parser(prog), argv)
        check_packages(vars(args[2]))  # those of the model: nothing is trained
        if calibrate_args.output_file is None:
            raise ValueError("no output: set `output_file`.")
        output = Path(calibrate_args.output_file)
        check_outputs(calibrate_args.output_file)
        if output.exists():
            raise ValueError(f"{output} exists. Remove it, or choose another `output_file`.")
        journal = output.with_name(f"{output.name}.part")
        dataset, total = calibrate(*args, journal)

    with whole_path(output) as new:
        dataset.to_json(new)
    journal.unlink()
    weights = sorted(dataset["weight"])
    quarters = ", ".join(f"{weights[round(q * (len(weights) - 1))]:.3f}" for q in (0, 0.25, 0.5, 0.75, 1))
    sys.stdout.write(
        f"{len(weights)} of {total} rows weighed: {output}.\nbeta: mean {sum(weights) / len(weights):.3f}; minimum, "
        f"quarters and maximum {quarters}.\n"
    )


if __name__ == "__main__":
    run(sys.argv[1:])

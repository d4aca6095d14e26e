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
Direct preference optimization with TRL's trainer: strict about unknown keys and about the reference model.

```bash
trl-distill dpo --config recipes/zephyr/ddpo_qlora.yaml [--FIELD VALUE ...]
accelerate launch -m trl_distill.scripts.dpo --config recipes/zephyr/ddpo_qlora.yaml
```
"""

import sys
from typing import TYPE_CHECKING

from trl_distill.scripts.training import run_command, training_parser
from trl_distill.training import first_row, load_splits, model_arguments, user_errors


if TYPE_CHECKING:
    from datasets import Dataset
    from trl import DatasetMixtureConfig, DPOConfig, DPOTrainer, ModelConfig, ScriptArguments

ENDING_REMEDY = (
    "Add the id of {0} to `eos_token_id` in the model's generation_config.json, or train it with `eos_token: {0}` "
    "(`trl-distill sft`) before."
)


def make_parser(prog: str | None = None):
    from trl_distill.zephyr.dpo_config import DPOConfig

    return training_parser(prog, DPOConfig)


def refuse_adapter(model_name_or_path: str, revision: str | None) -> None:
    """Raise `ValueError` if the model is an adapter: the reference would be something else than its user means."""
    from trl_distill.models import adapter_config

    if adapter_config(model_name_or_path, revision) is not None:
        raise ValueError(
            f"{model_name_or_path} is an adapter, and the reference of DPO is the model without its adapter. Put it "
            f"into its base first: `trl-distill merge {model_name_or_path} --output DIR`, then set "
            "`model_name_or_path` to DIR. With `use_peft: true` a new LoRA is trained on it, of any rank."
        )


def without_text_prompt(rows: "Dataset") -> "Dataset":
    """
    Drop a `prompt` that is text beside whole conversations in `chosen` and `rejected`, as in the data sets of H4.

    TRL would add the text to the list of messages. Without the column it takes the messages that both answers share.
    """
    first = first_row(rows, "chosen+rejected")
    if isinstance(first.get("prompt"), str) and isinstance(first.get("chosen"), list):
        return rows.remove_columns("prompt")
    return rows


def count_cut(rows: "Dataset", max_length: int) -> int:
    """Pairs of which an answer does not fit behind its prompt, so that its end is cut off."""
    import pyarrow.compute as pc

    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    cut = 0
    for batch in rows.select_columns(columns).with_format("arrow").iter(10_000):
        prompt, *answers = (pc.list_value_length(batch[column]) for column in columns)
        longest = pc.add(prompt, pc.max_element_wise(*answers))
        cut += pc.sum(pc.cast(pc.greater(longest, max_length), "int64")).as_py()
    return cut


def report_lengths(splits: "dict[str, Dataset]", trainer: "DPOTrainer") -> None:
    """Say what TRL does without a word: rows whose prompt fills `max_length` are left out, and longer answers cut."""
    from datasets import Dataset

    max_length = trainer.args.max_length
    for name, rows in splits.items():
        if not isinstance(rows, Dataset):  # a stream has no length
            continue
        kept = getattr(trainer, name)
        message = f"{len(rows) - len(kept)} of {len(rows)} rows of {name} have a prompt of {max_length} tokens or more"
        if not len(kept):
            raise ValueError(f"{message}, and nothing is left. Raise `max_length`.")
        if len(kept) < len(rows):
            trainer.accelerator.print(f"{message} (`max_length`), and are left out.")
        if max_length is not None and "chosen_ids" in kept.column_names and (cut := count_cut(kept, max_length)):
            trainer.accelerator.print(
                f"{cut} of {len(kept)} rows of {name} have an answer that ends beyond {max_length} tokens "
                "(`max_length`). It is cut there, so that its end is not learned."
            )


def build_trainer(
    script_args: "ScriptArguments",
    training_args: "DPOConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
) -> "DPOTrainer":
    import torch

    from trl_distill.endings import check_model_ending, check_tools
    from trl_distill.models import keep_4bit_trainable
    from trl_distill.zephyr.dpo_trainer import DPOTrainer
    from trl_distill.zephyr.reference_check import ReferenceCheckCallback

    arguments = model_arguments(training_args, model_args)
    refuse_adapter(model_args.model_name_or_path, training_args.model_init_kwargs["revision"])
    splits = load_splits(script_args, training_args, dataset_args, "preference")
    splits = {name: without_text_prompt(rows) for name, rows in splits.items()}
    if isinstance(first_row(splits["train_dataset"], "chosen+rejected")["chosen"], list):
        revision, trust = training_args.model_init_kwargs["revision"], training_args.trust_remote_code
        check_model_ending(model_args.model_name_or_path, revision, trust, remedy=ENDING_REMEDY)
    trainer = DPOTrainer(**arguments, callbacks=[ReferenceCheckCallback()], **splits)
    check_tools(trainer.processing_class, splits["train_dataset"])
    keep_4bit_trainable(trainer.model)  # a precomputed reference may have made that impossible
    report_lengths(splits, trainer)
    if script_args.ignore_bias_buffers:
        trainer.model._ddp_params_and_buffers_to_ignore = [
            name for name, buffer in trainer.model.named_buffers() if buffer.dtype == torch.bool
        ]
    return trainer


def run(argv: list[str]) -> None:
    from trl_distill.zephyr.reference_check import WrongReferenceError

    try:
        run_command("dpo", argv, make_parser, build_trainer)
    except WrongReferenceError as error:
        with user_errors("trl-distill dpo"):
            raise error


if __name__ == "__main__":
    run(sys.argv[1:])

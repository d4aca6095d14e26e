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

"""What trainers on rationales share: rows that are checked, split by label and kept whole, and what is logged."""

import copy
import hashlib
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import SFTConfig
from trl.trainer.utils import get_config_model_id

from ..models import whole


logger = get_logger(__name__)

PAPER = {
    "title": "Turning Dust into Gold: Distilling Complex Reasoning Capabilities from LLMs by Leveraging Negative Data",
    "id": "2312.12832",
    # docstyle-ignore
    "citation": textwrap.dedent("""\
        @inproceedings{li2024turning,
            title        = {{Turning Dust into Gold: Distilling Complex Reasoning Capabilities from LLMs by Leveraging
                            Negative Data}},
            author       = {Yiwei Li and Peiwen Yuan and Shaoxiong Feng and Boyuan Pan and Bin Sun and Xinglin Wang and
                            Heda Wang and Kan Li},
            year         = 2024,
            booktitle    = {Thirty-Eighth {AAAI} Conference on Artificial Intelligence},
        }"""),
}


def default_args(config_class: type, model: str | PreTrainedModel, suffix: str) -> Any:
    """Configuration of a trainer that is given none, in a folder named after the model."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    return config_class(f"{name.split('/')[-1]}-{suffix}")


def check_rows(
    dataset: Dataset | dict[str, Dataset] | None,
    name: str = "train_dataset",
    columns: Sequence[str] = ("prompt", "completion", "label"),
) -> None:
    """
    Raise `ValueError` unless rows are stored, have their columns, and a boolean `label` if any.

    Rows to evaluate (any other `name`) may be `None` or several datasets.
    """
    needed = ", ".join(f"`{column}`" for column in columns)
    if dataset is None:
        if name == "train_dataset":
            raise ValueError(f"`train_dataset` is required: rows {needed}.")
        return
    if isinstance(dataset, dict):
        if name == "train_dataset":
            raise ValueError(
                f"`train_dataset` is a dictionary with {', '.join(map(repr, dataset))}. Pass one of them, for example "
                "`dataset['train']`."
            )
        for key, split in dataset.items():
            check_rows(split, f"{name}[{key!r}]", columns)
        return
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"`{name}` is a stream, and its rows must be counted and split by their label. Load it without "
            "`streaming=True`."
        )
    if not len(dataset):
        raise ValueError(f"`{name}` has no rows.")
    missing = set(columns) - set(dataset.column_names)
    if missing:
        raise ValueError(
            f"`{name}` has no column {', '.join(sorted(missing))}, only {', '.join(dataset.column_names)}. Rows must "
            f"have {needed}; `trl-distill label` makes them, with a `label` that is true if the final answer is right."
        )
    labels = dataset["label"][:] if "label" in dataset.column_names else []
    wrong = next((i for i, label in enumerate(labels) if not isinstance(label, bool)), None)
    if wrong is not None:
        raise ValueError(
            f"`label` in `{name}` must be boolean, true if the final answer is right, but row {wrong} has "
            f"{labels[wrong]!r}. Convert the column, for example with `dataset.map(lambda row: {{'label': "
            "row['label'] == 1})`."
        )


def check_lora(config: PeftConfig, name: str = "peft_config") -> None:
    """Raise `ValueError` unless a configuration trains LoRA matrices alone, beside which other adapters can stand."""
    if not isinstance(config, LoraConfig):
        raise ValueError(f"`{name}` must be a `LoraConfig`, got a {type(config).__name__}.")
    for option, allowed in (
        ("bias", ("none",)),
        ("modules_to_save", (None, [])),
        ("trainable_token_indices", (None, [])),
        ("target_parameters", (None, [])),
        ("layer_replication", (None,)),
        ("init_lora_weights", (True, False, "gaussian", "orthogonal", "eva")),  # PiSSA and others take parts of it out
    ):
        if getattr(config, option) not in allowed:
            raise ValueError(
                f"`{option}={getattr(config, option)!r}` of `{name}` changes the base model, on which other adapters "
                f"stand, or trains more than LoRA matrices of its layers. Set it to {allowed[0]!r}."
            )


def rows_with_label(dataset: Dataset, label: bool, name: str) -> Dataset:
    """The rows with this label; an empty side is an error."""
    labels = dataset["label"][:]
    kept = [i for i, value in enumerate(labels) if value is label]
    kind, other = ("right", "wrong") if label else ("wrong", "right")
    if not kept:
        raise ValueError(
            f"All {len(labels)} rows of the {name} dataset are {other} (`label` is {not label}), so nothing can be "
            f"trained on {kind} ones. Add {kind} rationales, or leave that stage out."
        )
    logger.info(f"The {name} dataset has {len(kept)} {kind} and {len(labels) - len(kept)} {other} rows.")
    return dataset.select(kept)


def drop_long_rows(dataset: Dataset, limit: int | None, name: str) -> Dataset:
    """The rows of at most `limit` tokens, and a warning if there are others: cut, they would lose their answer."""
    lengths = [len(ids) for ids in dataset["input_ids"]]
    kept = [i for i, length in enumerate(lengths) if limit is None or length <= limit]
    if not kept:
        raise ValueError(
            f"All {len(lengths)} rows of the {name} dataset are longer than {limit} tokens (shortest: "
            f"{min(lengths, default=0)}). Raise `max_length`, if the context of the model is longer."
        )
    if len(kept) == len(lengths):
        return dataset
    logger.warning(
        f"Dropped {len(lengths) - len(kept)} of {len(lengths)} rows of the {name} dataset that are longer than "
        f"{limit} tokens: cut, they would have lost their answer."
    )
    return dataset.select(kept)


def whole_rows(
    prepare: Callable, dataset: Dataset, processing_class: PreTrainedTokenizerBase, args: SFTConfig, name: str
) -> Dataset:
    """
    Tokens as TRL makes them, in the order of the rows. Rows of more than `args.max_length` tokens are dropped and not
    cut.

    `prepare` is `SFTTrainer._prepare_dataset`, bound. Called once more, it packs and shuffles, if `args` ask for it.
    """
    whole = copy.copy(args)
    whole.max_length, whole.shuffle_dataset = None, False
    return drop_long_rows(prepare(dataset, processing_class, whole, False, None, name), args.max_length, name)


class ColumnCollator:
    """
    Adds columns of one number a row to the batch of another collator, as fp32 tensors `(B,)`.

    A trainer that uses it must also name the columns in `_set_signature_columns_if_needed`, or `Trainer` drops them.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]], columns: Sequence[str]):
        self.collator = collator
        self.columns = tuple(columns)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        others = [{name: value for name, value in row.items() if name not in self.columns} for row in rows]
        batch = self.collator(others)
        for name in self.columns:
            batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)  # (B,)
        return batch


def log_means(trainer: Trainer, totals: dict[str, tuple[Tensor, Tensor]]) -> None:
    """
    Log the sum of each metric over its count, of all processes of a trainer together; one whose count is 0 is left
    out.

    A collective: all processes must call it with the same names.
    """
    pairs = torch.stack([torch.stack([value.float() for value in pair]) for pair in totals.values()])  # (names, 2)
    metrics = trainer._metrics["train" if trainer.model.training else "eval"]
    for name, (total, count) in zip(totals, trainer.accelerator.reduce(pairs, "sum").tolist(), strict=True):
        if count > 0:
            metrics[name].append(total / count)


def adapter_state(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    """Tensors of an adapter by their names in the model, whole on every process. All processes must call this."""
    parameters = {name: tensor for name, tensor in model.named_parameters() if adapter in name.split(".")}
    return {name: whole(tensor) for name, tensor in parameters.items()}


def adapter_sha256(model: PeftModel, adapter: str) -> str:
    """
    Hash of an adapter's tensors by the names they are saved under, the same in bf16 and in fp32. All processes must
    call this.
    """
    digest = hashlib.sha256()
    state = get_peft_model_state_dict(model, adapter_state(model, adapter), adapter_name=adapter)
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

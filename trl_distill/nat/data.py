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

"""Rows with a `label`: which of them a stage trains on, and how they are tokenised without losing their end."""

import copy

from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset


logger = get_logger(__name__)


def check_labels(dataset: Dataset | dict[str, Dataset] | None, name: str = "train_dataset") -> None:
    """
    Check that rows say whether their final answer is right.

    Args:
        dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Rows `prompt`, `completion` and boolean `label`, TRL's unpaired preference format.
        name (`str`, *optional*, defaults to `"train_dataset"`):
            What to call the dataset in an error.
    """
    if isinstance(dataset, dict):
        if name == "train_dataset":
            raise ValueError(
                f"`train_dataset` is a dictionary with {', '.join(map(repr, dataset))}. Pass one of them, for example "
                "`dataset['train']`."
            )
        for key, split in dataset.items():
            check_labels(split, f"{name}[{key!r}]")
        return
    if dataset is None:
        if name == "train_dataset":
            raise ValueError("`train_dataset` is required: rows `prompt`, `completion` and boolean `label`.")
        return
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"`{name}` is a stream, and its rows must be counted and split by their label. Load it without "
            "`streaming=True`."
        )
    missing = {"prompt", "completion", "label"} - set(dataset.column_names)
    if missing:
        raise ValueError(
            f"`{name}` has no column {', '.join(sorted(missing))}, only {', '.join(dataset.column_names)}. Rows must "
            "have `prompt`, `completion` and `label`, which is true if the final answer is right; `trl-distill label` "
            "makes them from sampled rationales."
        )
    labels = dataset["label"][:]
    wrong = next((i for i, label in enumerate(labels) if not isinstance(label, bool)), None)
    if wrong is not None:
        raise ValueError(
            f"`label` in `{name}` must be boolean, true if the final answer is right, but row {wrong} has "
            f"{labels[wrong]!r}. Convert the column, for example with `dataset.map(lambda row: {{'label': row['label'] "
            "== 1}})`."
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


def prepare_whole_rows(prepare, dataset: Dataset, processing_class, args, packing: bool, formatting_func, name: str):
    """
    TRL's preparation of an SFT dataset, but rows longer than `args.max_length` are dropped and not cut.

    Args:
        prepare (`Callable`):
            `SFTTrainer._prepare_dataset`, bound.
        dataset ([`~datasets.Dataset`]):
            Rows `prompt` and `completion`.
        processing_class, args, packing, formatting_func, name:
            As TRL hands them over.
    """
    whole = copy.copy(args)
    whole.max_length, whole.shuffle_dataset = None, False
    dataset = prepare(dataset, processing_class, whole, False, formatting_func, name)
    if args.max_length is not None:
        lengths = [len(ids) for ids in dataset["input_ids"]]
        kept = [i for i, length in enumerate(lengths) if length <= args.max_length]
        if not kept:
            raise ValueError(
                f"All {len(lengths)} rows of the {name} dataset are longer than `max_length={args.max_length}` tokens "
                f"(shortest: {min(lengths)}). Raise `max_length`."
            )
        if len(kept) < len(lengths):
            logger.warning(
                f"Dropped {len(lengths) - len(kept)} of {len(lengths)} rows of the {name} dataset that are longer than "
                f"`max_length={args.max_length}` tokens: cut, they would have lost their answer."
            )
            dataset = dataset.select(kept)
    return prepare(dataset, processing_class, args, packing, formatting_func, name)  # packs and shuffles, if asked to

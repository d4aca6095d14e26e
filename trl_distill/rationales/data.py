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

"""What trainers on rationales share: rows with a label, rows that are kept whole, and columns beside the tokens."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
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


def drop_long_rows(dataset: Dataset, max_length: int | None, name: str) -> Dataset:
    """
    The rows of at most `max_length` tokens. Cut, the others would lose their answer and their end.

    Args:
        dataset ([`~datasets.Dataset`]):
            Tokenised rows, with `input_ids`.
        max_length (`int`, *optional*):
            Longest row in tokens.
        name (`str`):
            What to call the dataset in messages.

    Returns:
        [`~datasets.Dataset`]: The rows that are kept, in their order. A warning says how many are not.

    Raises:
        `ValueError`: If no row is short enough.
    """
    if max_length is None:
        return dataset
    lengths = [len(ids) for ids in dataset["input_ids"]]
    kept = [i for i, length in enumerate(lengths) if length <= max_length]
    if not kept:
        raise ValueError(
            f"All {len(lengths)} rows of the {name} dataset are longer than `max_length={max_length}` tokens (shortest: "
            f"{min(lengths)}). Raise `max_length`."
        )
    if len(kept) < len(lengths):
        logger.warning(
            f"Dropped {len(lengths) - len(kept)} of {len(lengths)} rows of the {name} dataset that are longer than "
            f"`max_length={max_length}` tokens: cut, they would have lost their answer."
        )
        dataset = dataset.select(kept)
    return dataset


class ColumnCollator:
    """
    Adds columns of one number a row to the batch of another collator.

    A trainer that uses it must also name the columns in `_set_signature_columns_if_needed`, or `Trainer` drops them
    before they get here.

    Args:
        collator (`Callable`):
            Collator of the other columns.
        columns (`Sequence[str]`):
            Names of the columns. Each becomes a tensor of shape `(B,)`: fp32, whatever the type of its values.
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

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

"""Columns of the data that a trainer needs beside the tokens, such as a weight or a label of each row."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


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

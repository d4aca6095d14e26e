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

"""What the commands print: names stand as they are, since those of models, files and data may look like markup."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from rich.table import Table


def show(*parts: "Table | str", width: int | None = None) -> None:
    """Print tables and texts, by default as wide as the terminal."""
    from rich.console import Console

    console = Console(width=width, markup=False, emoji=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))  # a path in a text can be copied


def count_table(title: str, counts: Iterable[tuple[str, int]]) -> "Table":
    """A table of labels and counts."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("count", justify="right")
    for label, count in counts:
        table.add_row(label, f"{count:,}")
    return table


def ledger_cells(row: dict[str, Any], columns: Iterable[str]) -> list[str]:
    """Numbers of a row of the ledger of calls, `-` for a cost that is not known."""
    return ["-" if (n := row[name]) is None else f"{n:,.4f}" if name == "cost_usd" else f"{n:,}" for name in columns]

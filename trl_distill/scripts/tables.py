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

from collections.abc import Iterable, Sequence
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


def calls_total(rows: Sequence[dict[str, Any]], names: Iterable[str]) -> dict[str, Any]:
    """Sums over rows about calls; the cost is `None` if one of them is not known."""
    columns = {name: [row[name] for row in rows] for name in names}
    return {name: None if None in column else sum(column) for name, column in columns.items()}


def calls_table(title: str, rows: Sequence[dict[str, Any]], names: Sequence[str], counts: dict[str, str]) -> "Table":
    """
    A table of calls, planned or made, and of their sums.

    Args:
        title (`str`):
            What stands above it.
        rows (`list[dict]`):
            Rows with `names` and `counts`. A `cost_usd` that is not known is `None`.
        names (`list[str]`):
            Whose calls: keys of the rows, and heads of their columns.
        counts (`dict[str, str]`):
            Heads of the columns of numbers by key.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, footer="total" if name == names[0] else "", overflow="fold", min_width=5)
    *body, total = (_cells(row, counts) for row in [*rows, calls_total(rows, counts)])
    for label, footer, *column in zip(counts.values(), total, *body, strict=True):
        width = max(map(len, (label, footer, *column)))  # names are folded where space is short, numbers never
        table.add_column(label, footer=footer, justify="right", no_wrap=True, min_width=width)
    for row, numbers in zip(rows, body, strict=True):
        table.add_row(*(str(row[name]) for name in names), *numbers)
    return table


def _cells(row: dict[str, Any], counts: Iterable[str]) -> list[str]:
    return ["-" if (n := row[name]) is None else f"{n:,.4f}" if name == "cost_usd" else f"{n:,}" for name in counts]

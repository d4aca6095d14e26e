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
Show what is in a call store: who was asked how often, for how many tokens and dollars.

```bash
trl-distill calls calls.sqlite
```
"""

import argparse
import json
import sys

from .arguments import split_arguments, user_errors
from .tables import ledger_cells, show


NAMES = ("round", "stage", "role", "model")
COUNTS = {  # in the order of the table
    "calls": "calls",
    "failures": "failed",
    "unanswered": "unanswered",
    "retries": "retries",
    "reused": "reused",
    "prompt_tokens": "tokens in",
    "completion_tokens": "tokens out",
    "cost_usd": "US $",
}
ALWAYS = ("calls", "prompt_tokens", "completion_tokens", "cost_usd")


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Show what is in a call store, also while a run writes it: calls, failures, retries, reused "
        "answers, tokens and cost of each model in each round, stage and role. `unanswered` are calls in flight, now "
        "or when a run was killed; they count with the most that they may cost.",
    )
    parser.add_argument("store", metavar="STORE", help="SQLite file with the calls of a run.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    parser.add_argument(
        "--moved",
        nargs=2,
        metavar=("OLD", "NEW"),
        help="Note that the models at address OLD are now served at address NEW, so that their answers are reused.",
    )
    return parser


def total(rows: list[dict]) -> dict:
    """Sums over the rows of the ledger; the cost is `None` if one of them is not known."""
    costs = [row["cost_usd"] for row in rows]
    sums = {name: sum(row[name] for row in rows) for name in COUNTS if name != "cost_usd"}
    return sums | {"cost_usd": None if None in costs else sum(costs)}


def _show(store: str, rows: list[dict], sums: dict) -> None:
    """Print a table. Counts that are 0 everywhere are left out, so that it fits a terminal."""
    from rich import box
    from rich.table import Table

    table = Table(title=store, box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False, padding=(0, 1, 0, 0))
    for name in NAMES:
        table.add_column(name, footer="total" if name == "round" else "", overflow="ellipsis", min_width=5)
    counts = {name: label for name, label in COUNTS.items() if name in ALWAYS or sums[name]}

    body = [ledger_cells(row, counts) for row in rows]
    for label, footer, *column in zip(counts.values(), ledger_cells(sums, counts), *body, strict=True):
        width = max(map(len, (label, footer, *column)))  # names are cut where space is short, numbers never
        table.add_column(label, footer=footer, justify="right", no_wrap=True, min_width=width)
    for row, numbers in zip(rows, body, strict=True):
        table.add_row(*(str(row[name]) for name in NAMES), *numbers)
    show(table, width=None if sys.stdout.isatty() else 160)  # a file has room for whole names


def run(argv: list[str]) -> None:
    """Parse `argv` and print the ledger."""
    from ..chat import CallStore, read_ledger

    with user_errors("trl-distill calls"):
        args, _, _ = split_arguments(make_parser("trl-distill calls"), argv)
        rows = [row._asdict() for row in read_ledger(args.store)]
        if args.moved:
            with CallStore(args.store) as store:
                store.move(*args.moved)
    if args.json:
        sys.stdout.write(json.dumps({"rows": rows, "total": total(rows)}, indent=2) + "\n")
    else:
        _show(args.store, rows, total(rows))


if __name__ == "__main__":
    run(sys.argv[1:])

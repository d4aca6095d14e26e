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

from ..training import user_errors
from .arguments import split_arguments
from .tables import calls_table, calls_total, show


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


def run(argv: list[str]) -> None:
    """Parse `argv` and print the ledger."""
    from ..chat import CallStore, read_ledger

    with user_errors("trl-distill calls"):
        args, _, _ = split_arguments(make_parser("trl-distill calls"), argv)
        rows = [row._asdict() for row in read_ledger(args.store)]
        if args.moved:
            with CallStore(args.store) as store:
                store.move(*args.moved)
    total = calls_total(rows, COUNTS)
    if args.json:
        sys.stdout.write(json.dumps({"rows": rows, "total": total}, indent=2) + "\n")
        return
    # Counts that are 0 everywhere have no column, so that the table fits a terminal; a file has room for whole names
    counts = {name: label for name, label in COUNTS.items() if name in ALWAYS or total[name]}
    show(calls_table(args.store, rows, NAMES, counts), width=None if sys.stdout.isatty() else 160)

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
The win rate of two models, or of two files of answers, by a judge that sees each pair in both orders.

```bash
trl-distill compare --config recipes/zephyr/compare.yaml --dry_run
trl-distill compare --config recipes/zephyr/compare.yaml
```

A stopped run goes on when it is started again. `trl-distill calls OUTPUT_DIR/calls.sqlite` shows what it asked.
"""

from typing import TYPE_CHECKING, Any

from ..training import user_errors
from .runs import budget_exit, config_parser, parse_config
from .tables import calls_table, show


if TYPE_CHECKING:
    from rich.table import Table
    from transformers import HfArgumentParser


def make_parser(prog: str | None = None) -> "HfArgumentParser":
    from ..zephyr import CompareConfig

    return config_parser(
        CompareConfig,
        prog,
        "The win rate of two models, or of two files of answers, by a judge that sees each pair in both orders. "
        "Writes report.json, report.png, pairs.jsonl, the answers and calls.sqlite into the output folder. Models and "
        "files of answers come from the YAML file.",
    )


def _show_missing(rows: list[dict[str, Any]]) -> None:
    columns = {"calls": "calls", "prompt_tokens": "tokens in", "completion_tokens": "tokens out", "cost_usd": "US $"}
    show(
        calls_table("Still to be asked", rows, ("stage", "model"), columns),
        "First answers are exact. Verdicts are without re-asks, and fewer if answers are missing or the same. Tokens "
        "are the mean of earlier calls of the role, or else the most that they may be.",
    )


def _rate_table(report: dict[str, Any]) -> "Table":
    from rich import box
    from rich.table import Table

    title = f"Win rate of {report['model']} over {report['baseline']}"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold", min_width=5)
    for name in ("pairs", "win", "tie", "loss", "unscored", "win rate", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))

    def add(label: str, row: dict[str, Any]) -> None:
        counts = [f"{row[name]:,}" for name in ("pairs", "wins", "ties", "losses", "unscored")]
        rate = ["-", "-"]
        if row["win_rate"] is not None:
            low, high = row["interval"]
            rate = [f"{row['win_rate']:.1%}", f"{100 * low:.1f} - {100 * high:.1f}%"]
        table.add_row(label, *counts, *rate)

    for category, row in report["categories"].items():
        add(category, row)
    if report["categories"]:
        table.add_section()
    add("all", report["win_rate"])
    table.add_section()
    for label in ("longer", "shorter"):
        add(f"{report['model']} is {label}", report["length"][label])
    return table


def _show_report(report: dict[str, Any], output_dir: str) -> None:
    low, high = report["win_rate"]["interval"]
    orders, length = report["orders"], report["length"]
    lines = []
    if low <= 0.5 <= high:
        lines.append("The interval holds 50 %: these prompts do not tell the two apart.")
    if orders["judged"]:
        lines.append(
            f"The judge says the same in both orders in {orders['agreement']:.0%} of {orders['judged']} pairs; it "
            f"prefers the first place twice in {orders['first_place']}, the last one in {orders['last_place']}."
        )
    means = ", ".join(f"{name} {mean:,.0f}" for name, mean in length["mean_characters"].items())
    pearson, balanced = report["judge"]["length"]["pearson"], length["balanced_win_rate"]
    notes = ["" if pearson is None else f"; correlation of length and score in a pair {pearson:.2f}"]
    notes += ["" if balanced is None else f"; win rate if each were longer as often {balanced:.1%}"]
    lines.append(f"Mean characters: {means}{''.join(notes)}.")
    for name, counts in report["answers"].items():
        seen = [f"{count} {what.replace('_', ' ')}" for what, count in counts.items() if count and what != "answers"]
        lines += [f"Answers of {name}: {', '.join(seen)}."] if seen else []
    if report["identical"]:
        lines.append(f"Pairs of equal answers, ties without a judge: {report['identical']}.")
    if report["unscored"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in report["unscored"].items())
        lines.append(f"Unscored, and not in the win rate: {reasons}.")
    show(_rate_table(report), *lines, *(f"Warning: {warning}" for warning in report["warnings"]))
    show(f"More in {output_dir}: report.json, report.png, pairs.jsonl.")


def run(argv: list[str]) -> None:
    """Parse `argv`, run, and show what came out."""
    prog = "trl-distill compare"
    with user_errors(prog), budget_exit(prog):
        from ..zephyr import CompareConfig, run_compare

        config = parse_config(CompareConfig, make_parser(prog), argv)
        result = run_compare(config, progress=True)
    if config.dry_run:
        _show_missing(result["missing"])
    else:
        _show_report(result, config.output_dir)

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
Let models answer prompts and judges score the answers, and make preference pairs of them.

```bash
trl-distill feedback --config recipes/zephyr/feedback.yaml --dry_run
trl-distill feedback --config recipes/zephyr/feedback.yaml
```

A stopped run goes on when it is started again. `trl-distill calls OUTPUT_DIR/calls.sqlite` shows what it asked.
"""

from typing import TYPE_CHECKING, Any

from ..training import user_errors
from .runs import budget_exit, config_parser, parse_config
from .tables import calls_table, count_table, show


if TYPE_CHECKING:
    from transformers import HfArgumentParser


def make_parser(prog: str | None = None) -> "HfArgumentParser":
    from ..zephyr import FeedbackConfig

    return config_parser(
        FeedbackConfig,
        prog,
        "Let models answer prompts and judges score the answers. Writes pairs.jsonl, sft.jsonl, ratings.jsonl, "
        "report.json, report.png and calls.sqlite into the output folder. Models and other lists of entries come from "
        "the YAML file.",
    )


def _show_missing(rows: list[dict[str, Any]]) -> None:
    columns = {"calls": "calls", "prompt_tokens": "tokens in", "completion_tokens": "tokens out", "cost_usd": "US $"}
    show(
        calls_table("Still to be asked", rows, ("role", "model"), columns),
        "Calls of responders are exact. Those of judges are without re-asks, and fewer if answers drop out. Tokens "
        "are the mean of earlier calls of the role, or else the most that they may be.",
    )


def _show_report(report: dict[str, Any], output_dir: str) -> None:
    from ..zephyr.report import call_statistics

    known = ("prompts", "candidates", "unscored")  # of the pairs: they stand above already
    table = count_table(
        output_dir,
        (
            (f"{section}: {name.replace('_', ' ')}", count)
            for section in ("prompts", "answers", "pairs")
            for name, count in report[section].items()
            if count and not (section == "pairs" and name in known)  # what never happened has no row
        ),
    )
    table.add_section()
    for name, row in report["models"].items():
        score = "no score" if row["mean_score"] is None else f"mean score {row['mean_score']:.2f}"
        table.add_row(
            f"{name}: {score}, chosen {row['chosen']:,}, rejected {row['rejected']:,}", f"{row['answers']:,}"
        )
    statistics, calls = report["pair_statistics"], call_statistics(report)
    columns = {"failed": "failed", "cut_off": "cut off", "unreadable": "unreadable", "cost_usd": "US $"}
    columns = {name: head for name, head in columns.items() if any(row[name] != 0 for row in calls)}
    show(
        table,
        calls_table("What was asked, all runs together", calls, ("role", "model"), {"calls": "calls"} | columns),
        f"Mean margin {statistics['margin']['mean']:.2f}; the chosen answer is the longer one in "
        f"{statistics['chosen_longer']:.0%} of the pairs. More in report.json and report.png.",
        *(f"Judge {name}: {warning}" for name, judge in report["judges"].items() for warning in judge["warnings"]),
    )


def run(argv: list[str]) -> None:
    """Parse `argv`, run, and show what came out."""
    prog = "trl-distill feedback"
    with user_errors(prog), budget_exit(prog):
        from ..zephyr import FeedbackConfig, run_feedback

        config = parse_config(FeedbackConfig, make_parser(prog), argv)
        result = run_feedback(config, progress=True)
    if config.dry_run:
        _show_missing(result["missing"])
    else:
        _show_report(result, config.output_dir)

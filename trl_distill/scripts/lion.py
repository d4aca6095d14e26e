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
Lion: imitate a teacher, find instructions on which the student is behind, have more of them written, imitate again.

```bash
trl-distill lion --config recipes/lion/small_endpoint.yaml --dry_run
trl-distill lion --config recipes/lion/small_endpoint.yaml
```

A run that was stopped goes on when it is started again. What it asked: `trl-distill calls OUTPUT_DIR/calls.sqlite`.
"""

import logging
from typing import TYPE_CHECKING, Any

from ..training import user_errors
from .runs import budget_exit, config_parser, parse_config
from .tables import calls_table, show


if TYPE_CHECKING:
    from transformers import HfArgumentParser

    from ..lion import Estimate, LionResult

_MODULES = {"sft": "trl_distill.sft", "dpo": "trl_distill.scripts.dpo", "minillm": "trl_distill.scripts.minillm"}


def make_parser(prog: str | None = None) -> "HfArgumentParser":
    from ..lion import LionConfig

    return config_parser(
        LionConfig,
        prog,
        "Distil a teacher that only answers into a student, by rounds. Writes a folder for each round with its pools, "
        "scores, answers and student, and report.json, report.png and calls.sqlite. Models and the fields of the "
        "training come from the YAML file.",
    )


def _show_estimates(estimates: "list[Estimate]") -> None:
    rows = [estimate._asdict() for estimate in estimates]
    show(
        calls_table("Still to be asked", rows, ("round", "stage", "role"), {"calls": "calls", "cost_usd": "US $"}),
        "Calls of the generator and the referee are the least: instructions are dropped, and replies asked again. "
        "Costs follow from the mean of earlier calls of the role, or else from the most that they may be.",
    )


def _show_result(result: "LionResult", output_dir: str) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=f"{output_dir}: {result.status}", box=box.SIMPLE_HEAD, pad_edge=False)
    names = "round, pool, trained on, hard, held-out: win / tie / loss, gap, Rouge-L, calls, US $"
    for name in names.split(", "):
        table.add_column(name, justify="right")

    def number(value: Any, form: str) -> str:
        return "-" if value is None else format(value, form)

    for row in result.report["rounds"]:
        heldout = row.get("heldout", {})
        verdicts = [heldout.get(name) for name in ("win_rate", "tie_rate", "loss_rate")]
        table.add_row(
            str(row["round"]),
            f"{row['pool']:,}",
            number(row.get("answers", {}).get("rows"), ","),
            number(row.get("hard_share"), ".0%"),
            " / ".join(number(verdict, ".0%") for verdict in verdicts),
            number(heldout.get("mean_gap"), ".2f"),
            number(heldout.get("rouge_l_to_teacher"), ".1f"),
            f"{row['calls_so_far']:,}",
            number(row["cost_usd_so_far"], ",.4f"),
        )
    show(
        table,
        "hard: share of the scored instructions on which the student is behind by tau. gap: mean score of the teacher "
        f"minus that of the student.\nThe student is {result.student}. More in report.json and report.png.",
        *(f"Warning: {warning}" for warning in result.report["warnings"]),
    )


def run(argv: list[str]) -> None:
    """Parse `argv`, do the rounds, and show what came out."""
    prog = "trl-distill lion"
    with user_errors(prog), budget_exit(prog):
        from ..lion import LionConfig, LionLoop, trainings

        config = parse_config(LionConfig, make_parser(prog), argv)
        config.check_named()  # before the trainings are imported
        logging.basicConfig(format="%(message)s")
        logging.getLogger("trl_distill.lion").setLevel(logging.INFO)
        train = trainings(config, {stage: _MODULES[stage] for stage in config.stages})
        loop = LionLoop(config, train=train, progress=True)
        if config.dry_run:
            _show_estimates(loop.estimate())
            return
        result = loop.run()
    _show_result(result, config.output_dir)

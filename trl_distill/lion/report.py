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

"""What a loop has done, round by round, in numbers and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..chat import LedgerRow


def make_report(rounds: Sequence[dict[str, Any]], ledger: Sequence[LedgerRow], status: str) -> dict[str, Any]:
    """
    The report of a loop.

    Args:
        rounds (`list[dict]`):
            `round` and `stages` of each manifest.
        ledger (`list[LedgerRow]`):
            Of the call store.
        status (`str`):
            `"running"` (or ended by an error), `"budget reached"`, `"finished"` or `"converged"`.

    Returns:
        `dict[str, Any]`: `status`, the `rounds`, and the `ledger`. Of each round, as far as it is done: `pool` (instructions in
        the Cache Pool after it), `answers`, `hard_share` of the scored instructions, `discrimination` and `generation` with
        their counts, `heldout` (win, tie and loss rate of the student, gap, score relative to the teacher, Rouge-L to
        it in per cent), and calls and dollars so far.
    """
    report, pool = [], 0
    for entry in rounds:
        stages = entry["stages"]
        row: dict[str, Any] = {"round": entry["round"]}
        if "pools" in stages:
            pool = stages["pools"]["counts"]["pool"] - stages["pools"]["counts"]["heldout"]
            row["pools"] = stages["pools"]["counts"]
        if "discrimination" in stages:
            row["discrimination"] = _facts(stages["discrimination"])
            counts = stages["discrimination"]["counts"]
            scored = counts["hard"] + counts["easy"] + counts["below_floor"]
            row["hard_share"] = counts["hard"] / scored
        if "generation" in stages:
            row["generation"] = _facts(stages["generation"])
            pool = stages["generation"]["counts"]["pool"] + stages["generation"]["counts"]["accepted"]
        row["pool"] = pool
        if "answers" in stages:
            row["answers"] = stages["answers"]["counts"]
        if "evaluation" in stages:
            row["heldout"] = _facts(stages["evaluation"])
        so_far = [line for line in ledger if line.round <= entry["round"]]
        costs = [line.cost_usd for line in so_far]
        row["calls_so_far"] = sum(line.calls for line in so_far)
        row["cost_usd_so_far"] = None if None in costs else sum(costs)
        report.append(row)
    return {"status": status, "rounds": report, "ledger": [line._asdict() for line in ledger]}


def _facts(stage: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stage.items() if name != "sha256"}


def draw_report(path: Path, report: dict[str, Any]) -> None:
    """
    Draw, round by round, what the referee says of the held-out slice, how near the texts are, the hard share, and the cost.

    Args:
        path (`Path`):
            The PNG file.
        report (`dict`):
            From [`make_report`].

    Raises:
        `ImportError`: If matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 7), layout="constrained")
    (verdicts, texts), (hard, calls) = figure.subplots(2, 2)
    rows = report["rounds"]
    judged = [row for row in rows if "win_rate" in row.get("heldout", {})]
    bottom = [0.0] * len(judged)
    for name, label, color in (
        ("win_rate", "student ahead", "tab:green"),
        ("tie_rate", "tie", "tab:gray"),
        ("loss_rate", "teacher ahead", "tab:red"),
    ):
        values = [row["heldout"][name] for row in judged]
        verdicts.bar([row["round"] for row in judged], values, bottom=bottom, label=label, color=color)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    verdicts.set(title="Held-out instructions, by the referee", ylabel="share")
    verdicts.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
    near = [row for row in rows if "rouge_l_to_teacher" in row.get("heldout", {})]
    texts.plot([row["round"] for row in near], [row["heldout"]["rouge_l_to_teacher"] for row in near], marker="o")
    texts.set(title="Held-out: Rouge-L to the teacher's answers", ylabel="Rouge-L")
    mined = [row for row in rows if "hard_share" in row]
    hard.plot([row["round"] for row in mined], [row["hard_share"] for row in mined], marker="o", color="tab:orange")
    hard.set(title="Hard share of the Cache Pool, before the round", ylabel="share", ylim=(0, 1))
    calls.plot([row["round"] for row in rows], [row["calls_so_far"] for row in rows], marker="o", color="tab:purple")
    costs = [row["cost_usd_so_far"] for row in rows]
    money = f", {costs[-1]:.2f} US $" if costs and costs[-1] else ""
    calls.set(title=f"Calls so far{money}", ylabel="calls")
    for axes in (verdicts, texts, hard, calls):
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, format="png", dpi=120)

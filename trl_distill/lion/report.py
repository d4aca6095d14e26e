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

"""What a loop says of itself: a report as JSON, as a picture and as a page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..chat import LedgerRow
from ..chat.thoughts import split_thoughts
from ..report import (
    RUN_FILE,
    Answer,
    Compared,
    Curve,
    Table,
    Token,
    calls_table,
    number,
    read_json,
    render,
    settings_tables,
    shown,
)
from .pools import read_pool


_COMPARED = 12  # held-out instructions on a page
_EVALUATION = {  # columns of the table, by their keys in a round's `heldout`
    "win_rate": "student ahead",
    "tie_rate": "tie",
    "loss_rate": "teacher ahead",
    "mean_gap": "teacher minus student",
    "mean_gap_se": "standard error",
    "relative_score": "student / teacher",
    "rouge_l_to_teacher": "Rouge-L in %",
}


def make_report(rounds: Sequence[dict[str, Any]], ledger: Sequence[LedgerRow], status: str) -> dict[str, Any]:
    """
    The report of a loop, from `round` and `stages` of each manifest, the ledger of the store, and a status:
    `"running"` (or ended by an error), `"budget reached"`, `"finished"` or `"converged"`.

    It holds of each round, as far as it is done: `pool` (instructions in the Cache Pool after it), `answers`,
    `hard_share` of the scored instructions, `discrimination`, `generation` and `selection` with their counts, `loss`
    (steps and training losses), `heldout` (win, tie and loss rate of the student, gap, score relative to the teacher,
    Rouge-L to it in per cent), calls and dollars so far. `warnings` are those of the judges' reports.
    """
    report, pool = [], 0
    for entry in rounds:
        row: dict[str, Any] = {"round": entry["round"]}
        stages = {
            stage: {name: value for name, value in facts.items() if name not in ("sha256", "settings", "follows")}
            for stage, facts in entry["stages"].items()
        }
        if "pools" in stages:
            row["pools"] = stages["pools"]["counts"]
            pool = row["pools"]["pool"] - row["pools"]["heldout"]
        if "discrimination" in stages:
            row["discrimination"] = stages["discrimination"]
            counts = row["discrimination"]["counts"]
            row["hard_share"] = counts["hard"] / (counts["hard"] + counts["easy"] + counts["below_floor"])
        if "generation" in stages:
            row["generation"] = stages["generation"]
            counts = row["generation"]["counts"]
            if "selection" in stages:
                row["selection"] = stages["selection"]
                pool = counts["pool"] + row["selection"]["counts"]["taken"]
            else:
                pool = counts["pool"] + counts["accepted"]
        row["pool"] = pool
        if "training" in stages and stages["training"].get("loss"):
            row["loss"] = stages["training"]["loss"]
        if "answers" in stages:
            row["answers"] = stages["answers"]["counts"]
        if "evaluation" in stages:
            row["heldout"] = stages["evaluation"]
        so_far = [line for line in ledger if line.round <= entry["round"]]
        costs = [line.cost_usd for line in so_far]
        row["calls_so_far"] = sum(line.calls for line in so_far)
        row["cost_usd_so_far"] = None if None in costs else sum(costs)
        report.append(row)
    warnings = [warning for entry in rounds for warning in warnings_of(entry["round"], entry["stages"])]
    return {"status": status, "rounds": report, "warnings": warnings, "ledger": [line._asdict() for line in ledger]}


def warnings_of(round: int, stages: dict[str, dict[str, Any]]) -> list[str]:
    """What the reports of the judges of a round say that makes their scores useless."""
    return [
        f"Round {round}, {stage}: {warning}"
        for stage, facts in stages.items()
        for warning in (facts.get("referee") or {}).get("warnings", ())
    ]


def write_page(path: Path) -> Path:
    """
    Write `report.html` into the folder of a loop, of its `report.json`: by rounds what [`draw_report`] draws, the
    evaluations, answers of teacher and student to held-out instructions, calls and cost by model, and of `run.json`
    the settings.
    """
    run = read_json(path / RUN_FILE)
    report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    rows = report["rounds"]

    def over_rounds(title: str, lines: dict[str, str], where: str | None = None) -> Curve:
        """Lines by their keys in the rounds, or in the dictionary `where` of each."""
        found = {}
        for label, key in lines.items():
            facts = [(row["round"], (row.get(where, {}) if where else row).get(key)) for row in rows]
            found[label] = [point for point in facts if point[1] is not None]
        return Curve(title, {label: line for label, line in found.items() if line}, "round")

    verdicts = {"student ahead": "win_rate", "tie": "tie_rate", "teacher ahead": "loss_rate"}
    groups = {
        "Held-out instructions, by round": [
            over_rounds("Verdicts of the judge, share", verdicts, "heldout"),
            over_rounds("Teacher minus student, points", {"gap": "mean_gap"}, "heldout"),
            over_rounds("Likeness to the teacher, Rouge-L in %", {"Rouge-L": "rouge_l_to_teacher"}, "heldout"),
        ],
        "By round": [
            over_rounds("Hard share of the Cache Pool", {"hard": "hard_share"}),
            over_rounds("Calls so far", {"calls": "calls_so_far"}),
            over_rounds("US $ so far", {"cost": "cost_usd_so_far"}),
        ],
        "Training loss, by step": [
            Curve(f"Round {row['round']}", {"loss": row["loss"]}) for row in rows if row.get("loss")
        ],
    }
    render(
        path / "report.html",
        path.resolve().name,
        facts=[*_facts(run), ("status", report["status"]), ("rounds", len(rows))],
        warnings=report["warnings"],
        groups=[(title, [one for one in curves if one.lines]) for title, curves in groups.items()],
        evaluation=_evaluation(rows),
        compared=_heldout(path, [row["round"] for row in rows if "heldout" in row]),
        tables=[calls_table(report["ledger"]), *settings_tables(run)],
    )
    return path / "report.html"


def _facts(run: dict[str, Any]) -> list[tuple[str, str]]:
    if not run:
        return []
    student, versions = run["settings"]["student_model"], run["versions"].items()
    return [
        ("data", ", ".join(run["data"]) or "given in Python"),
        ("teacher", run["teacher"]),
        ("student", student),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions)),
    ]


def _evaluation(rows: Sequence[dict[str, Any]]) -> Table | None:
    """What the judge said of each round's student."""
    body = []
    for row in rows:
        if heldout := row.get("heldout"):
            counts = [heldout["counts"][name] for name in ("heldout", "scored")]
            body.append((f"round {row['round']}", *counts, *map(heldout.get, _EVALUATION)))
    title = "Evaluation on the held-out instructions"
    return Table(title, ("", "instructions", "scored", *_EVALUATION.values()), body) if body else None


def _heldout(path: Path, rounds: Sequence[int]) -> dict[str, Any] | None:
    """Answers of the teacher and of the students of the first and the last round that were evaluated."""
    ends = {round: read_json(path / f"round_{round}" / "evaluation.json") for round in {*rounds[:1], *rounds[-1:]}}
    known = {
        round: {row["id"]: row for row in ends[round].get("scores", ()) if row.get("answers")}
        for round in sorted(ends)
    }
    pool = path / "round_0" / "heldout.jsonl"
    asked = [
        item for item in (read_pool(pool) if pool.is_file() else ()) if all(item.id in of for of in known.values())
    ]
    compared = []
    for item in asked[:_COMPARED] if known else ():
        found = {round: rows[item.id] for round, rows in known.items()}
        teacher = next(iter(found.values()))["answers"][0]
        answers = [_answer(teacher, "teacher", *(row["teacher"] for row in found.values()))]
        answers += [_answer(row["answers"][1], f"student, round {k}", row["student"]) for k, row in found.items()]
        compared.append(Compared(shown(item.text), answers))
    note = f"{len(compared)} of {len(asked)} held-out instructions, with the scores of the judge."
    return {"title": "Held-out answers", "note": note, "rows": compared}


def _answer(text: str, who: str, *scores: float | None) -> Answer:
    """An answer without its thoughts, which the judge does not see either."""
    given = ", then ".join(map(number, scores))  # the judge sees both answers, and each round has another student
    return Answer([who, f"score {given}"], [Token(shown(split_thoughts(text)[1]))])


def draw_report(path: Path, report: dict[str, Any]) -> None:
    """
    Draw a report of [`make_report`] as a PNG file: by rounds the verdicts on the held-out slice, its gap with twice
    the standard error and Rouge-L, the hard share, the training losses, calls and cost; below them the warnings.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = report["rounds"]
    figure = Figure(figsize=(12, 7 + 0.25 * len(report["warnings"])), layout="constrained")
    (verdicts, gaps, texts), (hard, losses, calls) = figure.subplots(2, 3)
    heldout = {row["round"]: row["heldout"] for row in rows if "heldout" in row}
    judged = {round: facts for round, facts in heldout.items() if "win_rate" in facts}
    bottom, kinds = [0.0] * len(judged), {"win": "student ahead", "tie": "tie", "loss": "teacher ahead"}
    for (name, label), color in zip(kinds.items(), ("tab:green", "tab:gray", "tab:red"), strict=True):
        values = [facts[f"{name}_rate"] for facts in judged.values()]
        verdicts.bar(list(judged), values, bottom=bottom, label=label, color=color)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    verdicts.set(title="Held-out instructions, by the judge", ylabel="share")
    verdicts.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, frameon=False, fontsize=8)
    means, errors = ([facts[name] or 0.0 for facts in judged.values()] for name in ("mean_gap", "mean_gap_se"))
    gaps.errorbar(list(judged), means, yerr=[2 * error for error in errors], marker="o", capsize=3, color="tab:red")
    gaps.axhline(0, color="gray", linewidth=0.8)
    gaps.set(title="Held-out: teacher minus student", ylabel="points, ± 2 standard errors")
    near = {round: facts["rouge_l_to_teacher"] for round, facts in heldout.items() if "rouge_l_to_teacher" in facts}
    texts.plot(list(near), list(near.values()), marker="o")
    texts.set(title="Held-out: likeness to the teacher", ylabel="Rouge-L, %")
    mined = {row["round"]: row["hard_share"] for row in rows if "hard_share" in row}
    hard.plot(list(mined), list(mined.values()), marker="o", color="tab:orange")
    hard.set(title="Hard share of the Cache Pool", ylabel="share", ylim=(-0.03, 1.03))
    trained = [row for row in rows if "loss" in row]
    for row in trained:
        losses.plot(*zip(*row["loss"], strict=True), label=f"round {row['round']}", linewidth=1)
    losses.set(title="Training loss", xlabel="step", ylabel="nats a token")
    if trained:
        losses.legend(frameon=False, fontsize=8)
    calls.plot([row["round"] for row in rows], [row["calls_so_far"] for row in rows], marker="o", color="tab:purple")
    costs = [row["cost_usd_so_far"] for row in rows]
    money = f", {costs[-1]:.2f} US $" if costs and costs[-1] else ""
    calls.set(title=f"Calls so far{money}", ylabel="calls")
    for axes in (verdicts, gaps, texts, hard, calls):
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if report["warnings"]:
        figure.supxlabel("\n".join(report["warnings"]), fontsize=9, color="tab:red", x=0.01, ha="left")
    figure.savefig(path, format="png", dpi=120)

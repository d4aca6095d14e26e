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

"""Which instructions are hard for a student."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from ..chat import CallStore
from .pools import Partition, Scored, partition
from .roles import Place, Pool, Roles


_ENOUGH = 10  # pairs of different answers that do not all end in a tie by chance


class Mined(NamedTuple):
    """
    Rows with `id`, `round`, the scores of `teacher` and `student`, the student's `loss` if it was measured, `unscored`
    with a reason, and `kind`: `"hard"`, `"easy"`, `"below_floor"`, or `None` if it cannot be told; and what a manifest
    holds of all of them.
    """

    rows: list[dict[str, Any]]
    facts: dict[str, Any]


def mine(
    roles: Roles, store: CallStore, place: Place, student: Path, pool: Pool, known: Sequence[dict[str, Any]] = ()
) -> Mined:
    """
    Say which instructions of a pool are hard for a student, by the `miner` of the config.

    The referee compares the answers of teacher and student; or the loss of the student on the teacher's answer is
    among the largest; or the loss chooses whom the referee compares, and what it rules out is easy. `known` are rows
    of earlier rounds, which are not made anew.

    Raises:
        `ValueError`: If nothing can be told of any instruction, or the referee tells nothing apart.
    """
    config = roles.config
    rows = [{"id": item.id, "teacher": None, "student": None, "round": place[1], "unscored": None} for item in pool]
    facts, kinds, compared, told = {}, {}, pool, 0
    if config.miner != "referee":
        losses = roles.losses(store, place, student, pool)
        for row in rows:
            loss = losses[row["id"]]
            row |= {"loss": None, "unscored": loss} if isinstance(loss, str) else {"loss": loss}
        measured = [Scored(row["id"], row["loss"], 0.0) for row in rows if row["loss"] is not None]
        kinds, told = _kinds(partition(measured, tau_quantile=config.loss_share)), len(measured)
        compared = [item for item in pool if kinds.get(item.id) == "hard" and config.miner == "both"]
        facts = {"compared": len(compared), "mean_loss": mean(item.gap for item in measured) if measured else None}
    if config.miner != "loss":
        scores, _, report, _ = roles.compare(store, place, student, compared)
        for row in rows:
            if row["id"] in scores:
                row["teacher"], row["student"], row["unscored"] = scores[row["id"]]
        rows = [*known, *rows]
        scored = [Scored(row["id"], row["teacher"], row["student"]) for row in rows if row["teacher"] is not None]
        parts = partition(scored, config.tau, config.tau_quantile, config.min_teacher_score)
        kinds = dict.fromkeys(kinds.keys() - scores.keys(), "easy") | _kinds(parts)
        facts |= {"tau": parts.tau if math.isfinite(parts.tau) else str(parts.tau), "referee": report}
        facts["mean_gap"] = mean(item.gap for item in scored) if scored else None
        told = len(scored) if compared else told
        if parts.below_floor and not parts.hard + parts.easy:
            raise ValueError(
                f"The referee {roles.referee.name} gave the teacher less than `min_teacher_score` on all "
                f"{len(scored)} instructions. Lower it, or take another referee or teacher."
            )
    rows = [row | {"kind": kinds.get(row["id"])} for row in rows]
    counts = Counter(row["kind"] or "unscored" for row in rows)
    reasons = (row["unscored"] for row in rows if row["unscored"] is not None and row["round"] == place[1])
    facts["counts"] = {name: counts[name] for name in ("hard", "easy", "below_floor", "unscored")}
    facts["unscored"] = dict(Counter(reason.partition(":")[0] for reason in reasons))
    _check(roles, store, facts, len(compared or pool), told)
    return Mined(rows, facts)


def _kinds(parts: Partition) -> dict[str, str]:
    return {id: kind for kind, ids in zip(("hard", "easy", "below_floor"), parts, strict=False) for id in ids}


def _check(roles: Roles, store: CallStore, facts: dict[str, Any], asked: int, told: int) -> None:
    """Refuse what would end as "converged" although nobody could tell."""
    name, reasons, report = roles.referee.name, facts["unscored"], facts.get("referee")
    if asked and not told:
        blame = max(reasons, key=reasons.get).split()[0]
        advice = {
            "teacher": "Look at the teacher's answers",
            "diverged": "Lower the `learning_rate` of the training before, and make it anew",
            "student": "Lower `student_max_tokens` or `teacher_max_tokens`, or take a student with a longer context",
        }.get(blame, "Take another referee, or raise `referee_max_tokens`")
        who = "The loss" if facts.get("compared") == 0 else f"The referee {name}"
        said = f"{who} scored none of {asked} instructions: {reasons}."
        raise ValueError(f"{said} The replies are in {store.path}. {advice}.")
    if report is None or facts["counts"]["hard"]:
        return
    apart, first = report["ties"]["different"], report["position"]["first_minus_last"]
    if apart["items"] >= _ENOUGH and apart["tied"] == apart["items"]:
        raise ValueError(
            f"The referee {name} tells nothing apart: all {apart['items']} pairs of different answers end in a tie, "
            f"and the first place got {first:+.2f} points more than the second. The replies are in {store.path}. Take "
            "another referee: with this one every student would seem as good as the teacher."
        )

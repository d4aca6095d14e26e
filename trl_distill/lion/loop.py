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
The adversarial loop: imitate the teacher, find where the student is behind, ask for more of that, and imitate again.

Everything that was asked is in one call store, everything that was made is in the folder of its round, and a manifest
says what is finished. So a run that stops at any moment goes on there, and gives what it would have given.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..chat import BaseChatModel, BudgetReached, CallStore, LedgerRow
from ..files import write_json
from . import stages
from .estimate import Estimate, estimate
from .folder import LionFolder
from .lion_config import LionConfig
from .rehearsal import rehearse
from .roles import Roles, Train


logger = logging.getLogger(__name__)


class LionResult(NamedTuple):
    """
    How a run of the loop ended: `"finished"`, or `"converged"` if fewer than `min_hard` instructions were hard; the
    last round with a student, the folder of that student, and what `report.json` holds.
    """

    status: str
    round: int
    student: Path
    report: dict[str, Any]


class LionLoop:
    r"""
    The loop of [Lion](https://huggingface.co/papers/2305.12870).

    Round 0 trains the student on the teacher's answers to the pool. Each further round asks student and teacher the
    instructions of the Cache Pool, lets a referee score both answers in both orders, calls an instruction hard where
    the student is behind by \\( \tau \\), has new instructions written in the manner of hard and of easy ones, and
    trains the student on the teacher's answers to these. The Train Pool is replaced in each round, the Cache Pool
    grows.

    Args:
        config ([`LionConfig`]):
            All settings.
        instructions (`Iterable[dict]`, *optional*):
            Rows to start from, in place of `dataset_name`.
        teacher, referee, generator, evaluator ([`~trl_distill.chat.BaseChatModel`], *optional*):
            Models in place of the entries of the config.
        train (`Callable[[str, Path, Path], None]` or `dict`, *optional*):
            `train(model, rows, output)` trains `model` on a JSON Lines file, and puts the student into the folder
            `output`, which does not exist yet. What is beside it in its parent stays until the training is finished,
            also if the run is killed. Defaults to [`Training`]. A dictionary holds one for each of the `stages` of the
            config: rows of `"sft"` are `prompt` and `completion`, of `"dpo"` `prompt`, `chosen` and `rejected`, of
            `"minillm"` `prompt`.
        student (`Callable[[Path], BaseChatModel]`, *optional*):
            The model in a student's folder. Defaults to [`~trl_distill.chat.LocalChatModel`].
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show progress bars.

    Raises:
        `ValueError`: If a setting is wrong, or is another one than in the run that `output_dir` holds.

    Example:

    ```python
    from trl_distill import LionConfig, LionLoop

    config = LionConfig(
        dataset_name="instructions.jsonl",
        output_dir="runs/lion",
        teacher={"model": "gpt-4.1-mini", "prompt_price": 0.40, "completion_price": 1.60},
        student_model="Qwen/Qwen2.5-0.5B-Instruct",
        training={"learning_rate": 2e-5, "num_train_epochs": 3},
        rounds=1,
        n_new=300,
        budget_usd=5.0,
    )
    result = LionLoop(config).run()
    ```
    """

    def __init__(
        self,
        config: LionConfig,
        instructions: Iterable[dict[str, Any]] | None = None,
        *,
        teacher: BaseChatModel | None = None,
        referee: BaseChatModel | None = None,
        generator: BaseChatModel | None = None,
        evaluator: BaseChatModel | None = None,
        train: Train | dict[str, Train] | None = None,
        student: Callable[[Path], BaseChatModel] | None = None,
        progress: bool = False,
    ):
        for name in ("output_dir", "student_model"):
            if getattr(config, name) is None:
                raise ValueError(f"`{name}` is not set.")
        self.config = config
        self.roles = Roles(config, teacher, referee, generator, evaluator, student, train)
        self.folder = LionFolder(config, instructions, progress)
        self._restart_from = None if config.restart_from is None else self.folder.place(config.restart_from)

    def estimate(self) -> list[Estimate]:
        """
        What is still to be asked, without asking.

        Returns:
            `list[Estimate]`: For each stage that is not finished and each role in it. Calls of the student are made on
            this machine and cost nothing.
        """
        with self.folder.open_store() as store:
            return estimate(self.folder, self.roles, store)

    def run(self) -> LionResult:
        """
        Do all rounds, or what is left of them.

        Returns:
            [`LionResult`]

        Raises:
            [`~trl_distill.chat.BudgetReached`]: If a limit is reached. With a higher one the same call goes on.
            `ValueError`: If the referee scores nothing or cannot be read, the generator does not give enough, or the
                config says `dry_run`.
            `OSError`: If a server answers nobody, or a training or its rehearsal fails.
        """
        if self.config.dry_run:
            raise ValueError("`dry_run` is set, so nothing may be asked. Call `estimate`, or leave it out.")
        status, last = "finished", 0
        with self.folder.open_store() as store:
            if self._restart_from is not None:
                self.folder.restart(*self._restart_from)
                self._restart_from = None
            if self.config.rehearse and not self.folder.manifest(0).finished("answers"):
                rehearse(self.folder, self.roles)
            try:
                for round in range(self.config.rounds + 1):
                    self._round(store, round)
                    if self.folder.has_converged(round):
                        status = "converged"
                        few = f"fewer than `min_hard` ({self.config.min_hard}) instructions are hard"
                        logger.warning("Round %d: %s. The loop has converged.", round, few)
                        break
                    last = round
            except BudgetReached:
                self._report(store, "budget reached")
                raise
            report = self._report(store, status)
        return LionResult(status, last, self.folder.student(last), report)

    def _round(self, store: CallStore, round: int) -> None:
        """Do the stages of a round that are not finished, up to a discrimination that finds too little."""
        folder, names = self.folder, self.folder.stages(round)
        for name in names:
            if not folder.has_converged(round) and not folder.manifest(round).finished(name):
                logger.info("Round %d: %s.", round, name)
                getattr(stages, name)(folder, self.roles, store, round)
                self._report(store, "running", draw=name == names[-1])

    def _report(self, store: CallStore, status: str, draw: bool = True) -> dict[str, Any]:
        """Write what the manifests say, round by round."""
        folder = self.folder
        rounds = [{"round": round, "stages": folder.manifest(round).stages} for round in folder.rounds_begun()]
        report = make_report(rounds, store.ledger(), status)
        write_json(folder.path / "report.json", report)
        if draw:
            try:
                draw_report(folder.path / "report.png", report)
            except ImportError:
                logger.warning("No report.png: matplotlib is not installed.")
        return report


def make_report(rounds: Sequence[dict[str, Any]], ledger: Sequence[LedgerRow], status: str) -> dict[str, Any]:
    """
    The report of a loop, from `round` and `stages` of each manifest, the ledger of the store, and a status:
    `"running"` (or ended by an error), `"budget reached"`, `"finished"` or `"converged"`.

    It holds of each round, as far as it is done: `pool` (instructions in the Cache Pool after it), `answers`,
    `hard_share` of the scored instructions, `discrimination` and `generation` with their counts, `heldout` (win, tie
    and loss rate of the student, gap, score relative to the teacher, Rouge-L to it in per cent), calls and dollars so
    far.
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
        if "answers" in stages:
            row["answers"] = stages["answers"]["counts"]
        if "evaluation" in stages:
            row["heldout"] = stages["evaluation"]
        so_far = [line for line in ledger if line.round <= entry["round"]]
        costs = [line.cost_usd for line in so_far]
        row["calls_so_far"] = sum(line.calls for line in so_far)
        row["cost_usd_so_far"] = None if None in costs else sum(costs)
        report.append(row)
    return {"status": status, "rounds": report, "ledger": [line._asdict() for line in ledger]}


def draw_report(path: Path, report: dict[str, Any]) -> None:
    """Draw a report of [`make_report`] as a PNG file: the held-out slice, the hard share and the calls, by rounds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure, rows = Figure(figsize=(10, 7), layout="constrained"), report["rounds"]
    (verdicts, texts), (hard, calls) = figure.subplots(2, 2)
    heldout = {row["round"]: row["heldout"] for row in rows if "heldout" in row}
    judged = {round: facts for round, facts in heldout.items() if "win_rate" in facts}
    bottom, kinds = [0.0] * len(judged), {"win": "student ahead", "tie": "tie", "loss": "teacher ahead"}
    for (name, label), color in zip(kinds.items(), ("tab:green", "tab:gray", "tab:red"), strict=True):
        values = [facts[f"{name}_rate"] for facts in judged.values()]
        verdicts.bar(list(judged), values, bottom=bottom, label=label, color=color)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    verdicts.set(title="Held-out instructions, by the referee", ylabel="share")
    verdicts.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
    near = {round: facts["rouge_l_to_teacher"] for round, facts in heldout.items() if "rouge_l_to_teacher" in facts}
    texts.plot(list(near), list(near.values()), marker="o")
    texts.set(title="Held-out: Rouge-L to the teacher's answers", ylabel="Rouge-L")
    mined = {row["round"]: row["hard_share"] for row in rows if "hard_share" in row}
    hard.plot(list(mined), list(mined.values()), marker="o", color="tab:orange")
    hard.set(title="Hard share of the Cache Pool, before the round", ylabel="share", ylim=(0, 1))
    calls.plot([row["round"] for row in rows], [row["calls_so_far"] for row in rows], marker="o", color="tab:purple")
    costs = [row["cost_usd_so_far"] for row in rows]
    money = f", {costs[-1]:.2f} US $" if costs and costs[-1] else ""
    calls.set(title=f"Calls so far{money}", ylabel="calls")
    for axes in (verdicts, texts, hard, calls):
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, format="png", dpi=120)

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

import contextlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..chat import BaseChatModel, BudgetReached, CallStore
from ..extras import need, warn_of_pictures
from ..files import write_json
from ..report import RUN_FILE, describe_run
from ..text import rouge_scorer
from . import stages
from .estimate import Estimate, estimate
from .folder import LionFolder
from .imitation import Training
from .lion_config import LionConfig
from .rehearsal import rehearse
from .report import draw_report, make_report, warnings_of, write_page
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
        config.check_named()
        rouge_scorer()  # a missing package shall be found before the first call
        if config.student_load_in_4bit:
            need("bitsandbytes", "`student_load_in_4bit`")
        self.config = config
        self.roles = Roles(config, teacher, referee, generator, evaluator, student, train)
        self.folder = LionFolder(config, instructions, progress)
        imitation = self.roles.train["sft"]
        if isinstance(imitation, Training) and "training" not in self.folder.manifest(0).stages:
            imitation.check(config.student_model)  # before the first paid call
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
        warn_of_pictures()
        run = describe_run("lion", [self.config]) | {"teacher": self.roles.teacher.name}
        status, last = "finished", 0
        with self.folder.open_store() as store:
            if self._restart_from is not None:
                self.folder.restart(*self._restart_from)
                self._restart_from = None
            write_json(self.folder.path / RUN_FILE, run)
            if self.config.rehearse and not self.folder.manifest(0).finished("answers"):
                rehearse(self.folder, self.roles)
            begins = "training" not in self.folder.manifest(0).stages
            try:
                for round in range(self.config.rounds + 1):
                    if round == 1 and begins:  # later rounds may be there, and follow from another student
                        self.folder.check()
                    self._round(store, round)
                    if self.folder.has_converged(round):
                        status = "converged"
                        few = f"fewer than `min_hard` ({self.config.min_hard}) instructions are hard"
                        seen = "selection" not in self.folder.stages(round)
                        hint = " The student has seen all of them: `oversample` mines on new ones." if seen else ""
                        logger.warning("Round %d: %s. The loop has converged.%s", round, few, hint)
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
                for warning in warnings_of(round, {name: folder.manifest(round).stages[name]}):
                    logger.warning(warning)
                self._report(store, "running", draw=name == names[-1])

    def _report(self, store: CallStore, status: str, draw: bool = True) -> dict[str, Any]:
        """Write what the manifests say, round by round."""
        folder = self.folder
        rounds = [{"round": round, "stages": folder.manifest(round).stages} for round in folder.rounds_begun()]
        report = make_report(rounds, store.ledger(), status)
        write_json(folder.path / "report.json", report)
        if draw:
            write_page(folder.path)
            with contextlib.suppress(ImportError):  # said when the run began
                draw_report(folder.path / "report.png", report)
        return report

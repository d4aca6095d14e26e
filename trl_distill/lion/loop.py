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

Everything that was asked is in one call store, everything that was made is in the folder of its round, and a manifest says
what is finished. So a run that stops at any moment goes on there, and gives what it would have given.
"""

import json
import logging
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import count, takewhile
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from ..chat import (
    BaseChatModel,
    BudgetReached,
    CallStore,
    ChatModel,
    Completion,
    FailedCall,
    Judge,
    JudgeItem,
    Judgement,
    LocalChatModel,
    judge_report,
)
from ..chat.models import derived_seed
from ..files import load_split, read_rows, write_json, write_rows
from ..text import rouge_l
from .discrimination import Scored, partition
from .estimate import Estimate, estimate
from .generation import KINDS, generate, quotas
from .imitation import Training, question, training_rows
from .lion_config import LionConfig
from .manifest import STAGES, Manifest
from .pools import Instruction, drawn, hold_out, read_instructions, read_pool, write_pool
from .referee import REFEREE
from .report import draw_report, make_report
from .similarity import UNICODE, SimilarityIndex


logger = logging.getLogger(__name__)

Answer = Completion | FailedCall


class LionResult(NamedTuple):
    """
    How a run of the loop ended.

    Args:
        status (`str`):
            `"finished"`: all rounds are done. `"converged"`: fewer than `min_hard` instructions were hard.
        round (`int`):
            The last round with a student.
        student (`Path`):
            Folder of that student.
        report (`dict`):
            What `report.json` holds.
    """

    status: str
    round: int
    student: Path
    report: dict[str, Any]


class LionLoop:
    r"""
    The loop of [Lion](https://huggingface.co/papers/2305.12870).

    Round 0 trains the student on the teacher's answers to the pool. Each further round asks student and teacher the
    instructions of the Cache Pool, lets a referee score both answers in both orders, calls an instruction hard where the
    student is behind by \\( \tau \\), has new instructions written in the manner of hard and of easy ones, and trains the
    student on the teacher's answers to these. The Train Pool is replaced in each round, the Cache Pool grows.

    Args:
        config ([`LionConfig`]):
            All settings.
        instructions (`Iterable[dict]`, *optional*):
            Rows to start from, in place of `dataset_name`.
        teacher, referee, generator ([`~trl_distill.chat.BaseChatModel`], *optional*):
            Models in place of the entries of the config. Referee and generator default to the teacher.
        train (`Callable[[str, Path, Path], None]`, *optional*):
            `train(model, rows, output)` trains `model` on a JSON Lines file of `prompt` and `completion`, and puts the
            student into the folder `output`, which does not exist yet. What is beside it in its parent stays until the
            training is finished, also if the run is killed. Defaults to [`Training`].
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
        train: Callable[[str, Path, Path], None] | None = None,
        student: Callable[[Path], BaseChatModel] | None = None,
        progress: bool = False,
    ):
        for name in ("output_dir", "student_model"):
            if getattr(config, name) is None:
                raise ValueError(f"`{name}` is not set.")
        self.config, self.folder = config, Path(config.output_dir)
        self.teacher = teacher or config.make("teacher")
        self.referee = referee or (self.teacher if teacher and not config.referee else config.make("referee"))
        self.generator = generator or (self.teacher if teacher and not config.generator else config.make("generator"))
        self._train = train or Training(
            config.training, config.adapter_rounds == "merge", config.accelerate_config, config.num_processes
        )
        self.student = student or self._local_student
        self._progress = progress
        self._never = _questions(config.decontaminate)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.open_store():  # so that no other run works in this folder
            self._check_settings()
            self._make_pools(instructions)
        self._restart_from = None if config.restart_from is None else self._place(config.restart_from)

    # ------------------------------------------------------------------------------------------------- what is there

    def _local_student(self, folder: Path) -> BaseChatModel:
        config = self.config
        return LocalChatModel(
            str(folder),
            name="student",
            dtype=config.student_dtype,
            load_in_4bit=config.student_load_in_4bit,
            batch_size=config.student_batch_size,
        )

    def _check_settings(self) -> None:
        """Refuse to go on with other settings than the run began with, once a student follows from them."""
        path, settings, begun = self.folder / "settings.json", self.config.lasting(), self.manifest(0).stages
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        changed = [name for name in sorted(known | settings) if known.get(name) != settings.get(name)]
        if begun.keys() <= {"pools"} or changed and begun.keys() <= {"pools", "answers"}:
            self._forget(0, ("pools", *STAGES))  # what was asked so far is as good for other settings
            write_json(path, settings)
        elif changed:
            was = "; ".join(f"`{name}` was {known.get(name)!r}, is {settings.get(name)!r}" for name in changed)
            raise ValueError(
                f"{self.folder} holds a run with other settings: {was}. Set them back to go on, or choose another "
                "`output_dir`. (`calls.sqlite` may be copied there: what was asked in the same way is not asked again.)"
            )

    def _make_pools(self, instructions: Iterable[dict[str, Any]] | None) -> None:
        """The pool of round 0 and the held-out slice, made once."""
        manifest = self.manifest(0)
        if not manifest.finished("pools"):
            if instructions is None and self.config.dataset_name is None:
                raise ValueError("No instructions: set `dataset_name`.")
            if instructions is None:
                instructions = load_split(
                    self.config.dataset_name, self.config.dataset_config, self.config.dataset_split
                )
            pool, counts = read_instructions(instructions)
            left_out = {fault: rows for fault, rows in counts["examples"].items() if rows}
            if left_out:
                logger.warning(
                    "%d of %d rows are left out: %s.",
                    counts["rows"] - counts["kept"],
                    counts["rows"],
                    ", ".join(f"{counts[fault]} {fault} (such as row {rows[0]})" for fault, rows in left_out.items()),
                )
            if self.config.max_instructions is not None:
                pool = drawn(pool, self.config.max_instructions, self.config.seed, "pool")
            counts["pool"] = len(pool)
            pool, heldout = hold_out(pool, self.config.heldout_size, self.config.seed)
            manifest.folder.mkdir(parents=True, exist_ok=True)
            write_pool(manifest.folder / "heldout.jsonl", heldout)
            write_pool(manifest.folder / "cache_pool.jsonl", pool)
            write_pool(manifest.folder / "train_pool.jsonl", pool)
            counts["heldout"] = len(heldout)
            manifest.finish("pools", ["heldout.jsonl", "cache_pool.jsonl", "train_pool.jsonl"], counts=counts)
        self.heldout = read_pool(manifest.folder / "heldout.jsonl")

    def manifest(self, round: int) -> Manifest:
        return Manifest(self.folder / f"round_{round}")

    def train_pool(self, round: int) -> list[Instruction]:
        """The instructions that a round trains on."""
        return read_pool(self.folder / f"round_{round}" / "train_pool.jsonl")

    def cache_pool(self, round: int) -> list[Instruction]:
        """All instructions up to a round."""
        return read_pool(self.folder / f"round_{round}" / "cache_pool.jsonl")

    def student_folder(self, round: int) -> Path:
        return self.folder / f"round_{round}" / "student"

    def stages(self, round: int) -> list[str]:
        """Stages of a round, in their order."""
        skipped = {
            "discrimination": round == 0 or self.config.strategy == "random",
            "generation": round == 0,
            "evaluation": not self.heldout,
        }
        return [stage for stage in STAGES if not skipped.get(stage, False)]

    def rounds_begun(self) -> list[int]:
        return list(takewhile(lambda round: self.manifest(round).folder.is_dir(), count()))

    def has_converged(self, round: int) -> bool:
        """Whether too few instructions were hard in a round to go on from there."""
        found = self.manifest(round).stages.get("discrimination")
        return found is not None and found["counts"]["hard"] < self.config.min_hard

    def _place(self, text: str) -> tuple[int, str]:
        """Round and stage of `restart_from`."""
        number, _, stage = text.partition(".")
        if not number.isdecimal() or int(number) > self.config.rounds or stage not in self.stages(int(number)):
            raise ValueError(
                f"`restart_from` must be a round up to {self.config.rounds} and a stage of it, such as 1.generation, got "
                f"{text!r}. The stages are {', '.join(self.stages(1))}."
            )
        return int(number), stage

    def _restart(self, round: int, stage: str) -> None:
        """Remove the result of a stage and all later ones, the last ones first."""
        for later in reversed(self.rounds_begun()):
            if later > round:
                self._forget(later, STAGES)
                shutil.rmtree(self.manifest(later).folder)
        self._forget(round, STAGES[STAGES.index(stage) :])

    def _forget(self, round: int, stages: Sequence[str]) -> None:
        manifest = self.manifest(round)
        if "training" in stages:
            for name in ("training", "student"):  # of a training that was killed, perhaps before it was recorded
                shutil.rmtree(manifest.folder / name, ignore_errors=True)
        manifest.forget(stages)

    # -------------------------------------------------------------------------------------------------------- the run

    def run(self) -> LionResult:
        """
        Do all rounds, or what is left of them.

        Returns:
            [`LionResult`]

        Raises:
            [`~trl_distill.chat.BudgetReached`]: If a limit is reached. With a higher one the same call goes on.
            `ValueError`: If the referee scores nothing, or the generator does not give enough.
            `OSError`: If a server answers nobody, or the training fails.
        """
        status, last = "finished", 0
        with self.open_store() as store:
            if self._restart_from is not None:
                self._restart(*self._restart_from)
                self._restart_from = None
            try:
                for round in range(self.config.rounds + 1):
                    self._round(store, round)
                    if self.has_converged(round):
                        status = "converged"
                        logger.warning(
                            "Round %d: fewer than `min_hard` (%d) instructions are hard. The loop has converged.",
                            round,
                            self.config.min_hard,
                        )
                        break
                    last = round
            except BudgetReached:
                self._report(store, "budget reached")
                raise
            report = self._report(store, status)
        return LionResult(status, last, self.student_folder(last), report)

    def open_store(self) -> CallStore:
        """The calls of this run. Each stage can be done alone: `loop.generation(store, round=2)`."""
        config = self.config
        return CallStore(
            self.folder / "calls.sqlite",
            max_calls=config.max_calls,
            budget_usd=config.budget_usd,
            progress=self._progress,
        )

    def _round(self, store: CallStore, round: int) -> None:
        """Do the stages of a round that are not finished, up to a discrimination that finds too little."""
        for stage in self.stages(round):
            if not self.has_converged(round) and not self.manifest(round).finished(stage):
                logger.info("Round %d: %s.", round, stage)
                getattr(self, stage)(store, round)
                self._report(store, "running", draw=stage == self.stages(round)[-1])

    def _report(self, store: CallStore, status: str, draw: bool = True) -> dict[str, Any]:
        """Write what the manifests say, round by round."""
        rounds = [{"round": round, "stages": self.manifest(round).stages} for round in self.rounds_begun()]
        report = make_report(rounds, store.ledger(), status)
        write_json(self.folder / "report.json", report)
        if not draw:
            return report
        try:
            draw_report(self.folder / "report.png", report)
        except ImportError:
            logger.warning("No report.png: matplotlib is not installed.")
        return report

    def _begin(self, round: int) -> Manifest:
        """The manifest of a round that is worked on now."""
        manifest = self.manifest(round)
        manifest.folder.mkdir(exist_ok=True)
        return manifest

    def ask(
        self,
        store: CallStore,
        model: BaseChatModel,
        role: str,
        stage: str,
        round: int,
        questions: Sequence[Instruction],
    ) -> list[Answer]:
        """Answers of teacher or student to instructions."""
        sampling = self.config.sampling(role)
        with model:
            stored = store.model(model, role, stage, round)
            return stored.complete([question(instruction, sampling) for instruction in questions])

    # -------------------------------------------------------------------------------------------------------- stages

    def answers(self, store: CallStore, round: int) -> None:
        """The teacher answers what the round trains on."""
        manifest, pool = self._begin(round), self.to_answer(round)
        rows, counts = training_rows(pool, self.ask(store, self.teacher, "teacher", "answers", round, pool))
        if not rows:
            raise ValueError(f"The teacher {self.teacher.name} gave no answer to train on: {counts}.")
        write_rows(manifest.folder / "answers.jsonl", rows)
        manifest.finish("answers", ["answers.jsonl"], counts=counts)

    def to_answer(self, round: int) -> list[Instruction]:
        """What a round trains on: the Train Pool, or if it begins with the base, all instructions so far."""
        return self.train_pool(round) if self.config.init_from == "previous" else self.cache_pool(round)

    def training(self, store: CallStore, round: int) -> None:
        """The student learns the answers."""
        manifest, student = self._begin(round), self.student_folder(round)
        goes_on = round > 0 and self.config.init_from == "previous"
        start = str(self.student_folder(round - 1)) if goes_on else self.config.student_model
        work = manifest.folder / "training"
        if not student.exists():  # else a run was killed between its last step and the record of it
            shutil.rmtree(work / "student", ignore_errors=True)
            work.mkdir(exist_ok=True)
            self._train(start, manifest.folder / "answers.jsonl", work / "student")
            (work / "student").rename(student)
        shutil.rmtree(work, ignore_errors=True)
        manifest.finish("training", ["student"], start=f"round_{round - 1}/student" if goes_on else start)

    def discrimination(self, store: CallStore, round: int) -> None:
        """The student of the last round and the teacher answer the Cache Pool, and the referee scores both."""
        config, manifest = self.config, self._begin(round)
        pool, known = self.cache_pool(round - 1), self._known_scores(round)
        compared = self._compare(store, "discrimination", round, self.student_folder(round - 1), self.to_score(round))

        rows = []
        for instruction in pool:
            if instruction.id in known:
                rows.append(known[instruction.id])
            elif instruction.id in compared.scores:
                teacher, student, reason = compared.scores[instruction.id]
                scored = {"id": instruction.id, "teacher": teacher, "student": student, "round": round}
                rows.append(scored | {"unscored": reason})
        scored = [Scored(row["id"], row["teacher"], row["student"]) for row in rows if row["teacher"] is not None]
        if not scored:
            raise ValueError(
                f"The referee {self.referee.name} scored none of {len(rows)} instructions: {dict(compared.unscored)}. Its "
                f"replies are in {store.path}. Take another referee, or raise `referee_max_tokens`."
            )
        parts = partition(scored, config.tau, config.tau_quantile, config.min_teacher_score)
        kind = {id: name for name, ids in zip(("hard", "easy", "below_floor"), parts, strict=False) for id in ids}
        rows = [row | {"kind": kind.get(row["id"])} for row in rows]
        write_rows(manifest.folder / "scores.jsonl", rows)
        counts = Counter(row["kind"] or "unscored" for row in rows)
        manifest.finish(
            "discrimination",
            ["scores.jsonl"],
            tau=parts.tau if math.isfinite(parts.tau) else str(parts.tau),
            counts={name: counts[name] for name in ("hard", "easy", "below_floor", "unscored")},
            unscored=dict(compared.unscored),
            mean_gap=mean(item.gap for item in scored),
            referee=compared.report,
        )

    def _known_scores(self, round: int) -> dict[str, dict[str, Any]]:
        """Rows of scores from earlier rounds that are not made anew, by id."""
        if self.config.rescore == "all" or round == 1:
            return {}
        rows = read_rows(self.folder / f"round_{round - 1}" / "scores.jsonl")
        return {row["id"]: row for row in rows if row["teacher"] is not None}

    def to_score(self, round: int) -> list[Instruction]:
        """The instructions that the referee scores in a round."""
        known = self._known_scores(round)
        pool = [instruction for instruction in self.cache_pool(round - 1) if instruction.id not in known]
        size = self.config.cache_sample
        return pool if size is None else drawn(pool, size, self.config.seed, round)

    def generation(self, store: CallStore, round: int) -> None:
        """New instructions, which replace the Train Pool and extend the Cache Pool."""
        config, manifest = self.config, self._begin(round)
        pool = self.cache_pool(round - 1)
        wanted, seeds = quotas(config.n_new, config.hard_share), dict.fromkeys(KINDS, pool)
        if config.strategy == "adversarial":
            kinds = {row["id"]: row["kind"] for row in read_rows(manifest.folder / "scores.jsonl")}
            seeds = {kind: [item for item in pool if kinds.get(item.id) == kind] for kind in KINDS}
            for kind, other in (KINDS, KINDS[::-1]):
                if wanted[kind] and not seeds[kind]:
                    logger.warning(
                        "No instruction is %s: all %d new ones are made from %s ones.", kind, config.n_new, other
                    )
                    wanted = {kind: 0, other: config.n_new}
        index = SimilarityIndex(
            [*(instruction.text for instruction in [*pool, *self.heldout]), *self._never], config.rouge_threshold
        )
        sampling_seed = derived_seed(config.seed, round)
        with self.generator as model:
            new, counts = generate(
                store.model(model, "generator", "generation", round),
                seeds,
                wanted,
                index,
                round=round,
                seed=config.seed,
                sampling=config.sampling("generator", sampling_seed),
                filters=config.filters,
                max_attempts_factor=config.max_attempts_factor,
            )
        write_pool(manifest.folder / "cache_pool.jsonl", [*pool, *new])
        write_pool(manifest.folder / "train_pool.jsonl", new)
        manifest.finish(
            "generation",
            ["cache_pool.jsonl", "train_pool.jsonl"],
            counts=counts | {"wanted": wanted, "pool": len(pool)},
            sampling_seed=sampling_seed,
        )

    def evaluation(self, store: CallStore, round: int) -> None:
        """Student and teacher on the held-out slice: what the referee says, and how near the texts are."""
        manifest = self._begin(round)
        compared = self._compare(store, "evaluation", round, self.student_folder(round), self.heldout)
        scored = [(teacher, student) for teacher, student, _ in compared.scores.values() if teacher is not None]
        gaps = [teacher - student for teacher, student in scored]
        facts: dict[str, Any] = {"counts": {"heldout": len(self.heldout), "scored": len(scored)}}
        if scored:
            facts |= {
                "win_rate": mean(float(gap < 0) for gap in gaps),
                "tie_rate": mean(float(gap == 0) for gap in gaps),
                "loss_rate": mean(float(gap > 0) for gap in gaps),
                "mean_gap": mean(gaps),
                "mean_gap_se": stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None,
                "relative_score": sum(student for _, student in scored) / sum(teacher for teacher, _ in scored),
            }
        if compared.answers:
            facts["rouge_l_to_teacher"] = mean(
                rouge_l(student, teacher, UNICODE) for teacher, student in compared.answers
            )
        facts |= {"unscored": dict(compared.unscored), "referee": compared.report}
        scores = [
            {"id": id, "teacher": teacher, "student": student, "unscored": reason}
            for id, (teacher, student, reason) in sorted(compared.scores.items())
        ]
        write_json(manifest.folder / "evaluation.json", facts | {"scores": scores})
        manifest.finish("evaluation", ["evaluation.json"], **facts)

    def _compare(
        self, store: CallStore, stage: str, round: int, student: Path, instructions: Sequence[Instruction]
    ) -> "_Compared":
        """Let teacher and student answer, then the referee score. One local model is in memory at a time."""
        theirs = self.ask(store, self.teacher, "teacher", stage, round, instructions)
        ours = self.ask(store, self.student(student), "student", stage, round, instructions)
        items, reasons = self.items(instructions, theirs, ours)
        scores: dict[str, tuple[float | None, float | None, str | None]]
        scores = {id: (None, None, reason) for id, reason in reasons.items()}
        with self.referee as model:
            judgements = self.judge(store.model(model, "referee", stage, round)).judge(items)
        for item, judgement in zip(items, judgements, strict=True):
            scores[item.id] = _scores(judgement)
        unscored = Counter(reason.partition(":")[0] for *_, reason in scores.values() if reason is not None)
        report = judge_report(items, judgements, self.referee.name)
        return _Compared(scores, unscored, report, [item.answers for item in items])

    def items(
        self, instructions: Sequence[Instruction], theirs: Sequence[Answer], ours: Sequence[Answer]
    ) -> tuple[list[JudgeItem], dict[str, str]]:
        """What the referee compares, and by id why it cannot compare the others."""
        items, reasons = [], {}
        for instruction, teacher, student in zip(instructions, theirs, ours, strict=True):
            if isinstance(teacher, FailedCall):
                reasons[instruction.id] = f"teacher failed: {teacher.error}"
            elif isinstance(student, FailedCall):
                reasons[instruction.id] = f"student failed: {student.error}"
            elif not teacher.text.strip():
                reasons[instruction.id] = "teacher empty: its answer has no text"
            else:  # an empty answer of the student is a bad one
                answers, models = [teacher.text, student.text], [self.teacher.name, "student"]
                items.append(JudgeItem(instruction.id, instruction.text, answers, models))
        return items, reasons

    def judge(self, model: ChatModel) -> Judge:
        """The referee: two answers, both orders, one score each."""
        config = self.config
        return Judge(
            model,
            aspects=REFEREE,
            num_orders=config.referee_orders,
            max_reasks=config.max_reasks,
            temperature=config.referee_temperature,
            max_tokens=config.referee_max_tokens,
            seed=config.seed,
        )

    def estimate(self) -> list[Estimate]:
        """
        What is still to be asked, without asking.

        Returns:
            `list[Estimate]`: For each stage that is not finished and each role in it. Calls of the student are made on this
            machine and cost nothing.
        """
        with self.open_store() as store:
            return estimate(self, store)


class _Compared(NamedTuple):
    """Scores of teacher and student, or a reason, by id; the reasons counted; the referee's report; what it compared."""

    scores: dict[str, tuple[float | None, float | None, str | None]]
    unscored: Counter
    report: dict[str, Any]
    answers: list[list[str]]


def _questions(files: Sequence[str]) -> list[str]:
    """Questions of evaluations, of which no near copy shall be generated."""
    texts = []
    for file in files:
        for number, row in enumerate(read_rows(file)):
            text = next((row[name] for name in ("instruction", "prompt", "question") if row.get(name)), None)
            if not isinstance(text, str):
                raise ValueError(
                    f"Row {number} of {file}, in `decontaminate`, has no text `instruction`, `prompt` or `question`."
                )
            texts.append(text)
    return texts


def _scores(judgement: Judgement) -> tuple[float | None, float | None, str | None]:
    teacher, student = judgement.scores
    if teacher is None or student is None:
        return None, None, next(reason for reason in judgement.unscored if reason is not None)
    return teacher, student, None

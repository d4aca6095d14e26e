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

"""Who works in a run: teacher, student, referee and generator, who are asked, and who trains the student."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..chat import (
    Aspect,
    BaseChatModel,
    CallStore,
    ChatModel,
    ChatRequest,
    Completion,
    FailedCall,
    Judge,
    JudgeItem,
    LocalChatModel,
    judge_report,
)
from ..chat.thoughts import split_thoughts
from .generation import RELEASED
from .imitation import SFT, trainings
from .lion_config import LionConfig
from .pools import Instruction


REFEREE = Aspect(
    "quality",
    "How helpful, relevant and accurate the answer is, and whether it goes into as much detail as the request needs.",
)
Pool = Sequence[Instruction]
Answers = Sequence[Completion | FailedCall]
Place = tuple[str, int]  # stage and round
Train = Callable[[str, Path, Path], None]


class Compared(NamedTuple):
    """By id the scores of teacher and student or a reason; reasons counted; the referee's report; what it compared."""

    scores: dict[str, tuple[float | None, float | None, str | None]]
    unscored: Counter
    report: dict[str, Any]
    answers: dict[str, list[str]]


class ReleasedReferee(Judge):
    """
    A judge of two answers that is asked in the words of Lion's released code, and replies with the lines "Score of the
    Assistant 1: 8" and "Score of the Assistant 2: 7".
    """

    def _request(self, question: Any, attempt: int) -> ChatRequest:
        request = super()._request(question, attempt)
        system = {"role": "system", "content": RELEASED["referee"]["system"]}
        return replace(request, messages=[system, *request.messages])

    def _prompt(self, question: Any) -> str:
        first, second = (split_thoughts(question.item.answers[i])[1] for i in question.shown)
        form = RELEASED["referee"]["prompt"]
        return form.format(instruction=question.item.prompt, answer_1=first, answer_2=second)

    def _read(self, question: Any, answer: Completion | FailedCall) -> dict[str, float | None] | str:
        def lettered(text: str) -> str:  # it numbers the answers, which have letters here
            return re.sub(r"\bAssistant ([12])\b", lambda found: f"Answer {question.labels[int(found[1]) - 1]}", text)

        if isinstance(answer, Completion):
            answer = replace(answer, text=lettered(answer.text))
        item = replace(question.item, answers=[lettered(text) for text in question.item.answers])
        return super()._read(question._replace(item=item), answer)


class Roles:
    """The models of a run, and its training: those of the config, or as given. Arguments as for [`LionLoop`]."""

    def __init__(
        self,
        config: LionConfig,
        teacher: BaseChatModel | None = None,
        referee: BaseChatModel | None = None,
        generator: BaseChatModel | None = None,
        evaluator: BaseChatModel | None = None,
        student: Callable[[Path], BaseChatModel] | None = None,
        train: Train | dict[str, Train] | None = None,
    ):
        self.config = config
        self.teacher = teacher or config.make("teacher")
        self.referee = referee or (teacher if teacher and not config.referee else config.make("referee"))
        self.generator = generator or (teacher if teacher and not config.generator else config.make("generator"))
        self.judges = {"referee": self.referee}
        if evaluator or config.evaluator:
            self.judges["evaluator"] = evaluator or config.make("evaluator")
        self.student = student or self._local_student
        self.train = dict(train) if isinstance(train, dict) else {"sft": train} if train else {}
        if "sft" not in self.train:
            self.train |= trainings(config, {"sft": SFT})
        for stage in config.stages:
            if stage not in self.train:
                raise ValueError(
                    f"`stages` holds `{stage}`, and nothing here trains it: start `trl-distill lion`, or pass "
                    f'`train={{"{stage}": ...}}`.'
                )

    @property
    def evaluates(self) -> str:
        """The role that judges the held-out slice."""
        return "evaluator" if "evaluator" in self.judges else "referee"

    def _local_student(self, folder: Path) -> BaseChatModel:
        names = ("dtype", "load_in_4bit", "batch_size")
        return LocalChatModel(
            str(folder), name="student", **{name: getattr(self.config, f"student_{name}") for name in names}
        )

    def questions(self, role: str, pool: Pool) -> list[ChatRequest]:
        """Instructions as teacher or student are asked them."""
        sampling = self.config.sampling(role)
        return [ChatRequest([{"role": "user", "content": item.text}], sampling) for item in pool]

    def ask(self, store: CallStore, model: BaseChatModel, role: str, place: Place, pool: Pool) -> Answers:
        """Answers of teacher or student to instructions, for a stage and a round."""
        with model:
            return store.model(model, role, *place).complete(self.questions(role, pool))

    def losses(self, store: CallStore, place: Place, student: Path, pool: Pool) -> dict[str, float | str]:
        """By id the student's mean loss a token on the teacher's answer, or why there is none."""
        answers = self.ask(store, self.teacher, "teacher", place, pool)
        losses: dict[str, float | str] = {}
        there = []
        for item, request, answer in zip(pool, self.questions("student", pool), answers, strict=True):
            if isinstance(answer, FailedCall):
                losses[item.id] = f"teacher failed: {answer.error}"
            elif not answer.text.strip():
                losses[item.id] = "teacher empty: its answer has no text"
            else:
                there.append((item.id, request, answer.text))
        with self.student(student) as model:
            found = model.answer_losses([request for _, request, _ in there], [text for *_, text in there])
        for (id, *_), loss in zip(there, found, strict=True):
            if loss is None:
                losses[id] = "student context: it has no room for the teacher's answer"
            else:
                losses[id] = loss if math.isfinite(loss) else f"diverged: the student's loss is {loss}"
        return losses

    def compare(self, store: CallStore, place: Place, student: Path, pool: Pool, role: str = "referee") -> Compared:
        """Let teacher and student answer, then a judge score. One local model is in memory at a time."""
        judge = self.judges[role]
        theirs = self.ask(store, self.teacher, "teacher", place, pool)
        ours = self.ask(store, self.student(student), "student", place, pool)
        items, reasons = self.items(pool, theirs, ours)
        scores: dict[str, tuple] = {id: (None, None, reason) for id, reason in reasons.items()}
        with judge as model:
            judgements = self.judge(store.model(model, role, *place)).judge(items)
        for item, judgement in zip(items, judgements, strict=True):
            reason = next((reason for reason in judgement.unscored if reason is not None), None)
            scores[item.id] = (*judgement.scores, None) if reason is None else (None, None, reason)
        unscored = Counter(reason.partition(":")[0] for *_, reason in scores.values() if reason is not None)
        report = judge_report(items, judgements, judge.name)
        return Compared(scores, unscored, report, {item.id: item.answers for item in items})

    def items(self, pool: Pool, theirs: Answers, ours: Answers) -> tuple[list[JudgeItem], dict[str, str]]:
        """What the referee compares, and by id why it cannot compare the others."""
        items, reasons = [], {}
        for instruction, teacher, student in zip(pool, theirs, ours, strict=True):
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
        """The referee: two answers, in both orders unless the config says one, one score each."""
        config = self.config
        return {"ours": Judge, "released": ReleasedReferee}[config.prompts](
            model,
            mode="listwise",
            aspects=[REFEREE],
            num_orders=config.referee_orders,
            max_reasks=config.max_reasks,
            max_unreadable=config.max_unreadable,
            temperature=config.referee_temperature,
            max_tokens=config.referee_max_tokens,
            seed=config.seed,
            prefix="referee_",
        )

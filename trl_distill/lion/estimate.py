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

"""The dry run: what a loop still has to ask, and what that may cost."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..chat import BaseChatModel, CallStore, ChatRequest, Completion
from .folder import LionFolder
from .generation import generation_request
from .manifest import TRAININGS
from .pools import SLACK, Instruction
from .roles import Roles


class Estimate(NamedTuple):
    """
    Calls that a stage still has to make.

    Of the generator and the referee they are the least if instructions are dropped and replies asked again, and the
    most if the loop converges, or a new student repeats the answers of an old one. Tokens are estimated from the mean
    of the role's stored calls, before the first one by an upper bound. The cost is `None` if a price is not known.
    """

    round: int
    stage: str
    role: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None


def estimate(folder: LionFolder, roles: Roles, store: CallStore) -> list[Estimate]:
    """What each unfinished stage of a run still has to ask. Answers of an earlier stage are not counted twice."""
    return list(_Estimator(folder, roles, store).estimates())


class _Estimator:
    """In place of a text that is not there yet stands one as long as it may be."""

    def __init__(self, folder: LionFolder, roles: Roles, store: CallStore):
        self.folder, self.roles, self.store, self.config = folder, roles, store, folder.config

    def estimates(self) -> Iterator[Estimate]:
        heldout_is_counted = False
        for round in range(self.config.rounds + 1):
            for stage in self.folder.stages(round):
                if self.folder.has_converged(round):
                    return
                if self.folder.manifest(round).finished(stage):
                    continue
                if stage == "evaluation" and not heldout_is_counted:
                    yield self.teacher(round, stage, self.folder.heldout)
                    heldout_is_counted = True
                if stage == "dpo" or stage not in TRAININGS:
                    yield from getattr(self, stage)(round)

    def discrimination(self, round: int) -> Iterator[Estimate]:
        place = (round, "discrimination")
        if not self.is_trained(round - 1):
            yield from self.mining(place, None, self.size_to_score(round))
            return
        pool = self.folder.to_score(round)
        failed = self.teacher(*place, pool)
        if failed.calls:  # all others were asked for the training
            yield failed
        yield from self.mining(place, pool, len(pool))

    def generation(self, round: int) -> Iterator[Estimate]:
        place = (round, "generation", "generator")
        asked = sum(row.calls - row.failures - row.unanswered for row in self.store.ledger() if row[:3] == place)
        request = generation_request(
            self.longest(), "easy", self.config.sampling("generator"), prompts=self.config.prompts
        )
        yield self.missing(place, self.roles.generator, _unknown(request, max(self.config.n_candidates - asked, 0)))

    def selection(self, round: int) -> Iterator[Estimate]:
        place, there = (round, "selection"), self.folder.manifest(round).finished("generation")
        pool = self.folder.pool(round, "candidates") if there else None
        yield self.teacher(*place, pool) if there else self.teacher_of_new(*place, self.config.n_candidates)
        yield from self.mining(place, pool, self.config.n_candidates)

    def answers(self, round: int) -> Iterator[Estimate]:
        stages, manifest = self.folder.stages(round), self.folder.manifest(round)
        is_selected = "selection" in stages
        if round == 0 or manifest.finished("selection" if is_selected else "generation"):
            yield self.teacher(round, "answers", self.folder.to_answer(round))
        elif not is_selected:  # else all candidates are answered by then
            yield self.teacher_of_new(round, "answers", self.config.n_new)

    def dpo(self, round: int) -> Iterator[Estimate]:
        """Nothing, unless who answers has changed since the mining (`keep_finished`)."""
        manifest = self.folder.manifest(round)
        if manifest.finished("selection" if "selection" in self.folder.stages(round) else "generation"):
            pool, student = self.folder.hard(round), self.roles.student(self.folder.student(round - 1))
            ours = self.missing((round, "dpo", "student"), student, self.roles.questions("student", pool))
            yield from (line for line in (self.teacher(round, "dpo", pool), ours) if line.calls)

    def evaluation(self, round: int) -> Iterator[Estimate]:
        pool = self.folder.heldout if self.is_trained(round) else None
        yield from self.comparison((round, "evaluation"), pool, len(self.folder.heldout), self.roles.evaluates)

    def is_trained(self, round: int) -> bool:
        return self.folder.manifest(round).finished(self.folder.trainings(round)[-1])

    def mining(self, place: tuple[int, str], pool: Sequence[Instruction] | None, size: int) -> Iterator[Estimate]:
        """Calls of a comparison, as far as the miner asks for one: whom the loss will choose is not known yet."""
        if self.config.miner == "both":
            pool, size = None, math.ceil(self.config.loss_share * size - SLACK)
        if self.config.miner != "loss":
            yield from self.comparison(place, pool, size)

    def teacher_of_new(self, round: int, stage: str, count: int) -> Estimate:
        [request] = self.roles.questions("teacher", [_of_length(self.config.generator_max_tokens)])
        return self.missing((round, stage, "teacher"), self.roles.teacher, _unknown(request, count))

    def comparison(
        self, place: tuple[int, str], pool: Sequence[Instruction] | None, size: int, judge: str = "referee"
    ) -> Iterator[Estimate]:
        """Calls of student and judge: exact for the student if it is there, for the judge if the answers are."""
        (round, stage), roles = place, self.roles
        model = roles.judges[judge]
        if pool is None:
            yield Estimate(*place, "student", size, 0, 0, 0.0)
        else:
            student = roles.student(self.folder.student(round if stage == "evaluation" else round - 1))
            left = self.missing((*place, "student"), student, roles.questions("student", pool))
            yield left
            if not left.calls + self.teacher(*place, pool).calls:
                theirs = roles.ask(self.store, roles.teacher, "teacher", (stage, round), pool)
                ours = roles.ask(self.store, student, "student", (stage, round), pool)
                items, _ = roles.items(pool, theirs, ours)
                yield self.missing((*place, judge), model, roles.judge(model).requests(items))
                return
        longest = (self.config.teacher_max_tokens, self.config.student_max_tokens)
        items, _ = roles.items([self.longest()], *([Completion("x" * length)] for length in longest))
        first, *_ = roles.judge(model).requests(items)
        requests = _unknown(first, size * self.config.referee_orders)
        yield self.missing((*place, judge), model, requests)

    def teacher(self, round: int, stage: str, pool: Sequence[Instruction]) -> Estimate:
        return self.missing((round, stage, "teacher"), self.roles.teacher, self.roles.questions("teacher", pool))

    def missing(self, place: tuple[int, str, str], model: BaseChatModel, requests: Sequence[ChatRequest]) -> Estimate:
        round, stage, role = place
        return Estimate(*place, *self.store.model(model, role, stage, round).missing(requests))

    def size_to_score(self, round: int) -> int:
        """How many instructions the referee scores, if it can read all of them and all in the rounds before."""
        seeds, size, known = len(self.folder.pool(0)), 0, 0
        for number in range(1, round + 1):
            pool = seeds + (number - 1) * self.config.n_new
            left = pool - known if self.config.rescore == "new_only" else pool
            size = min(left, self.config.cache_sample or left)
            known += size
        return size

    def longest(self) -> Instruction:
        """As long as any instruction may be in this run."""
        there = max(len(item.text.encode()) for item in [*self.folder.pool(0), *self.folder.heldout])
        return _of_length(max(there, self.config.generator_max_tokens))


def _of_length(tokens: int) -> Instruction:
    """The store takes each byte of a text for a token, so this has as many at most."""
    return Instruction("x" * tokens)


def _unknown(request: ChatRequest, count: int) -> list[ChatRequest]:
    """As many requests like this one as are to be made, when their text is not known yet."""
    return [replace(request, sample_index=i) for i in range(count)]

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

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ..chat import BaseChatModel, CallStore, ChatRequest, Completion
from .generation import generation_request
from .imitation import question
from .lion_config import LionConfig
from .pools import Instruction


if TYPE_CHECKING:
    from .loop import LionLoop


class Estimate(NamedTuple):
    """
    Calls that a stage still has to make.

    Args:
        round (`int`), stage (`str`), role (`str`):
            Whose calls.
        calls (`int`):
            How many. Of the generator and the referee it is the least if instructions are dropped and replies asked again.
            It is the most if the loop converges, or a new student repeats the answers of an old one.
        prompt_tokens, completion_tokens (`int`):
            Estimated from the mean of the role's stored calls; before the first one an upper bound.
        cost_usd (`float`, *optional*):
            Estimated from these. `None` if a price is not known.
    """

    round: int
    stage: str
    role: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None


def estimate(loop: "LionLoop", store: CallStore) -> list[Estimate]:
    """What each stage of a loop that is not finished still has to ask. Answers of an earlier stage are not counted twice."""
    estimates, heldout_is_counted = [], False
    for round in range(loop.config.rounds + 1):
        for stage in loop.stages(round):
            if loop.has_converged(round):
                return estimates
            if loop.manifest(round).finished(stage):
                continue
            if stage == "discrimination":
                estimates += _discrimination(loop, store, round)
            elif stage == "generation":
                place = (round, stage, "generator")
                asked = sum(row.calls - row.failures - row.unanswered for row in store.ledger() if row[:3] == place)
                request = generation_request(_longest(loop), "easy", loop.config.sampling("generator"))
                requests = _unknown(request, max(loop.config.n_new - asked, 0))
                estimates.append(_missing(store, place, loop.generator, requests))
            elif stage == "answers":
                is_there = round == 0 or loop.manifest(round).finished("generation")
                pool = loop.to_answer(round) if is_there else [_of_length(loop.config.generator_max_tokens)]
                requests = _questions(loop, "teacher", pool)
                requests = requests if is_there else _unknown(requests[0], loop.config.n_new)
                estimates.append(_missing(store, (round, stage, "teacher"), loop.teacher, requests))
            elif stage == "evaluation":
                if not heldout_is_counted:
                    requests = _questions(loop, "teacher", loop.heldout)
                    estimates.append(_missing(store, (round, stage, "teacher"), loop.teacher, requests))
                heldout_is_counted = True
                pool = loop.heldout if loop.manifest(round).finished("training") else None
                estimates += _comparison(loop, store, (round, stage), pool, len(loop.heldout))
    return estimates


def _discrimination(loop: "LionLoop", store: CallStore, round: int) -> Iterator[Estimate]:
    if not loop.manifest(round - 1).finished("training"):
        size = _size_to_score(loop.config, len(loop.cache_pool(0)), round)
        yield from _comparison(loop, store, (round, "discrimination"), None, size)
        return
    pool = loop.to_score(round)
    failed = _missing(store, (round, "discrimination", "teacher"), loop.teacher, _questions(loop, "teacher", pool))
    if failed.calls:  # all others were asked for the training
        yield failed
    yield from _comparison(loop, store, (round, "discrimination"), pool, len(pool))


def _size_to_score(config: LionConfig, seeds: int, round: int) -> int:
    """How many instructions the referee scores in a round, if it can read all of them and all rounds before."""
    size = known = 0
    for number in range(1, round + 1):
        pool = seeds + (number - 1) * config.n_new
        left = pool - known if config.rescore == "new_only" else pool
        size = min(left, config.cache_sample or left)
        known += size
    return size


def _comparison(
    loop: "LionLoop", store: CallStore, place: tuple[int, str], pool: Sequence[Instruction] | None, size: int
) -> Iterator[Estimate]:
    """Calls of student and referee: exact for the student if it is there, and for the referee if the answers are."""
    (round, stage), config = place, loop.config
    referee = (*place, "referee")
    if pool is None:
        yield Estimate(*place, "student", size, 0, 0, 0.0)
    else:
        student = loop.student(loop.student_folder(round if stage == "evaluation" else round - 1))
        left = _missing(store, (*place, "student"), student, _questions(loop, "student", pool))
        yield left
        asked = _missing(store, (*place, "teacher"), loop.teacher, _questions(loop, "teacher", pool))
        if not left.calls + asked.calls:
            theirs = loop.ask(store, loop.teacher, "teacher", stage, round, pool)
            ours = loop.ask(store, student, "student", stage, round, pool)
            items, _ = loop.items(pool, theirs, ours)
            yield _missing(store, referee, loop.referee, loop.judge(loop.referee).requests(items))
            return
    answers = [[Completion("x" * length)] for length in (config.teacher_max_tokens, config.student_max_tokens)]
    items, _ = loop.items([_longest(loop)], *answers)
    first, *_ = loop.judge(loop.referee).requests(items)
    yield _missing(store, referee, loop.referee, _unknown(first, size * config.referee_orders))


def _missing(
    store: CallStore, place: tuple[int, str, str], model: BaseChatModel, requests: Sequence[ChatRequest]
) -> Estimate:
    round, stage, role = place
    return Estimate(*place, *store.model(model, role, stage, round).missing(requests))


def _questions(loop: "LionLoop", role: str, pool: Sequence[Instruction]) -> list[ChatRequest]:
    return [question(instruction, loop.config.sampling(role)) for instruction in pool]


def _of_length(tokens: int) -> Instruction:
    """In place of a text that is not there yet: the store takes each byte of it for a token, so it has as many at most."""
    return Instruction("x" * tokens)


def _longest(loop: "LionLoop") -> Instruction:
    """As long as any instruction may be in this run."""
    longest = max(len(instruction.text.encode()) for instruction in [*loop.cache_pool(0), *loop.heldout])
    return _of_length(max(longest, loop.config.generator_max_tokens))


def _unknown(request: ChatRequest, count: int) -> list[ChatRequest]:
    """As many requests like this one as are to be made, when their text is not known yet."""
    return [replace(request, sample_index=i) for i in range(count)]

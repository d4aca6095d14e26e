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

"""Which instructions are hard: those on which the referee sees the student clearly behind the teacher."""

import math
from collections.abc import Sequence
from typing import NamedTuple


_SLACK = 1e-9  # a mean over two orders may miss a boundary by its last bit


class Scored(NamedTuple):
    """
    What the referee gave for one instruction, means over the orders of the answers.

    Args:
        id (`str`):
            The instruction's.
        teacher, student (`float`):
            Scores of the two answers.
    """

    id: str
    teacher: float
    student: float

    @property
    def gap(self) -> float:
        """How far the student is behind: the score of the teacher minus that of the student."""
        return self.teacher - self.student


class Partition(NamedTuple):
    """
    Hard and easy instructions, by id.

    Args:
        hard, easy (`list[str]`):
            In the order of the scores.
        below_floor (`list[str]`):
            Those on which the teacher itself scores too low to be followed. They are neither hard nor easy.
        tau (`float`):
            The gap from which on an instruction is hard.
    """

    hard: list[str]
    easy: list[str]
    below_floor: list[str]
    tau: float


def partition(
    scored: Sequence[Scored],
    tau: float = 1.0,
    tau_quantile: float | None = None,
    min_teacher_score: float | None = None,
) -> Partition:
    r"""
    Split instructions by the gap \\( d \\) of the scores: hard if \\( d \geq \tau \\), easy otherwise, as in
    [Lion](https://huggingface.co/papers/2305.12870).

    Args:
        scored (`list[Scored]`):
            Instructions with a score of both answers. Those without one belong in neither set, so leave them out.
        tau (`float`, *optional*, defaults to `1.0`):
            The boundary, inclusive. The paper's value, tuned for scores of gpt-3.5-turbo on a scale of 1 to 10.
        tau_quantile (`float`, *optional*):
            In place of `tau`: the share of the instructions that is hard, largest gaps first. Equal gaps at the cut are
            all in. Where the student is not behind, nothing is hard, whatever the share.
        min_teacher_score (`float`, *optional*):
            Instructions on which the teacher scores less are neither hard nor easy.

    Returns:
        [`Partition`]

    Raises:
        `ValueError`: If `tau` is not a number, or `tau_quantile` not in (0, 1].
    """
    if math.isnan(tau):
        raise ValueError("`tau` must be a number, got NaN.")
    if tau_quantile is not None and not 0 < tau_quantile <= 1:
        raise ValueError(f"`tau_quantile` must be in (0, 1], got {tau_quantile}.")
    floor = -math.inf if min_teacher_score is None else min_teacher_score - _SLACK
    judged = [item for item in scored if item.teacher >= floor]
    if tau_quantile is not None:
        gaps = sorted((item.gap for item in judged), reverse=True)
        tau = gaps[math.ceil(tau_quantile * len(gaps) - _SLACK) - 1] if gaps else math.inf
    hard = [item.id for item in judged if item.gap >= tau - _SLACK and (tau_quantile is None or item.gap > _SLACK)]
    hard_set = set(hard)
    easy = [item.id for item in judged if item.id not in hard_set]
    return Partition(hard, easy, [item.id for item in scored if item.teacher < floor], tau)

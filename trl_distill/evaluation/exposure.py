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

"""Exposure bias: how much faster errors pile up on the student's own text than on the teacher's."""

from typing import Any

import torch
from torch import Tensor


ROUNDING = 1e-6  # nats a token: a smaller KL in fp32 is rounding, and the ratio of two such numbers means nothing


def _accumulate(divergence: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Accumulated mean over the rows that still run `(T,)`, each row's influence on it `(B, T)`, and their number."""
    mask = mask.double()
    divergence = torch.where(mask.bool(), divergence.double(), 0.0)
    count = mask.sum(0)  # (T,)
    mean = divergence.sum(0) / count.clamp(min=1)  # (T,)
    influence = ((divergence - mean) * mask / count.clamp(min=1)).cumsum(1)  # (B, T)
    return mean.cumsum(0), influence, count


def exposure_bias(
    student_divergence: Tensor,
    student_mask: Tensor,
    teacher_divergence: Tensor,
    teacher_mask: Tensor,
    student_groups: Tensor | None = None,
    teacher_groups: Tensor | None = None,
    min_share: float = 0.1,
) -> dict[str, Any]:
    r"""
    Excess accumulated error of [Arora et al. (2022)](https://huggingface.co/papers/2204.01171), in percent:

    $$ \mathrm{ExAccErr}(l) = 100 \, \frac{R(l) - l\,\epsilon(l)}{l\,\epsilon(l)}, \quad
       R(l) = \sum_{t \le l} \mathbb{E}_{y_{<t} \sim q} \mathrm{KL}_t, \quad
       l\,\epsilon(l) = \sum_{t \le l} \mathbb{E}_{y_{<t} \sim p} \mathrm{KL}_t, $$

    with \\( \mathrm{KL}_t \\) the forward KL(teacher || student) of the next token after the prefix \\( y_{<t} \\),
    exact over the vocabulary where the paper draws one token from the teacher. \\( l \\) counts response tokens and
    starts at the first. The mean at step t is over the samples that are still running at t, so that an early end is
    neither a merit nor a fault.

    Args:
        student_divergence, student_mask, teacher_divergence, teacher_mask (`torch.Tensor`):
            Forward KL per token on samples of the student, `(B, T)`, and of the teacher, `(B', T')`, and which
            positions are tokens.
        student_groups, teacher_groups (`torch.Tensor`, *optional*):
            Prompt number of each sample, of shape `(B,)` and `(B',)`. Samples of one prompt, of both models, are not
            independent, and the standard error takes prompts as its units. Without it every sample is a unit.
        min_share (`float`, *optional*, defaults to `0.1`):
            The curve ends at the last step that this share of the samples of each model reaches, and 2 at least.

    Returns:
        `dict[str, Any]`: Lists over l: `curve` (percent), `standard_error` (delta method, percent), `regret` (R),
        `oracle` (l eps), `student_samples` and `teacher_samples` still running; and `value`, `value_standard_error`
        and `tokens`: the end of the curve. `None` where undefined; 0/0, up to the rounding of fp32, is 0, so that
        equal models have no excess.
    """
    length = min(student_mask.shape[1], teacher_mask.shape[1])
    sides = []
    for divergence, mask in ((student_divergence, student_mask), (teacher_divergence, teacher_mask)):
        sides.append(_accumulate(divergence[:, :length].detach().cpu(), mask[:, :length].detach().cpu()))
    (regret, student_influence, student_count), (oracle, teacher_influence, teacher_count) = sides

    enough = torch.ones(length, dtype=torch.bool)
    for count, mask in ((student_count, student_mask), (teacher_count, teacher_mask)):
        enough &= count >= max(2, min_share * len(mask))
    length = int(enough.long().cumprod(0).sum())

    # Var(R/S) by its first-order expansion, summed over prompts
    ratio = regret / oracle  # (T,), nan where both are 0
    if (student_groups is None) != (teacher_groups is None):
        raise ValueError("Pass the prompt numbers of the samples of both models, or of none.")
    if student_groups is None:
        groups = torch.arange(len(student_mask) + len(teacher_mask))
    else:
        groups = torch.cat([student_groups.cpu(), teacher_groups.cpu()])
    units, index = groups.unique(return_inverse=True)
    influence = torch.cat([student_influence, -ratio * teacher_influence]) / oracle  # (B + B', T)
    per_unit = torch.zeros(len(units), influence.shape[1], dtype=influence.dtype).index_add_(0, index, influence)
    correction = len(units) / (len(units) - 1) if len(units) > 1 else float("nan")
    standard_error = 100 * (correction * per_unit.square().sum(0)).sqrt()
    excess = 100 * (ratio - 1)
    rounding = ROUNDING * torch.arange(1, len(regret) + 1)
    equal = (regret.abs() <= rounding) & (oracle.abs() <= rounding)
    excess[equal], standard_error[equal] = 0.0, 0.0

    def listed(values):
        return [value if abs(value) < float("inf") else None for value in values[:length].tolist()]

    curve, errors = listed(excess), listed(standard_error)
    return {
        "curve": curve,
        "standard_error": errors,
        "regret": listed(regret),
        "oracle": listed(oracle),
        "student_samples": [int(count) for count in student_count[:length]],
        "teacher_samples": [int(count) for count in teacher_count[:length]],
        "value": curve[-1] if curve else None,
        "value_standard_error": errors[-1] if errors else None,
        "tokens": length,
    }

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
The divergence of two next-token distributions of which only the K likeliest tokens are told apart.

All other tokens are one more event, the tail. Putting events together never makes two distributions easier to tell
apart (the data-processing inequality), so every value here is at most that of the whole vocabulary, and equal to it
where K is the vocabulary.
"""

import math

import torch
from torch import Tensor


def bucketed_divergence(student_logps: Tensor, teacher_logps: Tensor, beta: float = 0.0) -> Tensor:
    r"""
    Divergence in nats `(N,)` over K tokens and the tail, from log-probabilities of shape `(N, K + 1)`.

    With $q$ the student and $p$ the teacher it is, as in [`~trl.DistillationConfig`], $\mathrm{KL}(p \,\|\, q)$ at
    `beta=0.0`, $\mathrm{KL}(q \,\|\, p)$ at `beta=1.0`, and in between the generalized Jensen-Shannon divergence
    $\beta\,\mathrm{KL}(p \,\|\, m) + (1 - \beta)\,\mathrm{KL}(q \,\|\, m)$ with $m = \beta p + (1 - \beta) q$. An
    event without any probability adds nothing.
    """
    if beta == 0.0:
        return _kl(teacher_logps, student_logps)
    if beta == 1.0:
        return _kl(student_logps, teacher_logps)
    mixture = torch.logaddexp(teacher_logps + math.log(beta), student_logps + math.log(1 - beta))
    return beta * _kl(teacher_logps, mixture) + (1 - beta) * _kl(student_logps, mixture)


def _kl(logps: Tensor, other: Tensor) -> Tensor:
    """KL `(N,)` of the distribution `logps` from the `other`."""
    probabilities = logps.exp()
    impossible = probabilities == 0  # both are replaced, so that nothing of it is `nan`, in the gradient either
    gap = logps.masked_fill(impossible, 0.0) - other.masked_fill(impossible, 0.0)
    return (probabilities * gap).sum(1)

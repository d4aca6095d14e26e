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


"""The divergence over K tokens and the tail, against sums over events written out by hand."""

import math

import pytest
import torch

from trl_distill.offline_distillation.buckets import bucketed_divergence


VOCAB = 13
BETAS = [0.0, 0.3, 1.0]


def distributions(seed, rows=6):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(rows, VOCAB, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher.softmax(1)


def events(probabilities, ids):
    """Probabilities of single tokens, and of all others together."""
    chosen = [probabilities[token] for token in ids]
    others = [probabilities[token] for token in range(VOCAB) if token not in ids]
    return [*chosen, sum(others)] if others else chosen


def definition(q, p, beta):
    """Over events with their probabilities."""
    if beta == 0.0:
        return sum(b * (b / a).log() for a, b in zip(q, p, strict=True))
    if beta == 1.0:
        return sum(a * (a / b).log() for a, b in zip(q, p, strict=True))
    mean = [beta * b + (1 - beta) * a for a, b in zip(q, p, strict=True)]
    return sum(beta * b * (b / m).log() + (1 - beta) * a * (a / m).log() for a, b, m in zip(q, p, mean, strict=True))


def ours(student, teacher, ids, beta):
    """From what the store and `support_logps` would give: without others their log-probability is `-inf`."""

    def logps(probabilities):
        chosen = probabilities.gather(1, ids)
        others = 1 - chosen.sum(1, keepdim=True) if ids.shape[1] < VOCAB else torch.zeros(len(ids), 1).double()
        return torch.cat([chosen.log(), others.log()], dim=1)

    return bucketed_divergence(logps(student.softmax(1)), logps(teacher), beta)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("top_k", [1, 4, VOCAB - 1, VOCAB])
def test_value_and_gradient_are_those_of_the_events(top_k, beta):
    student, teacher = distributions(0)
    ids = teacher.topk(top_k, dim=1).indices
    actual, q = ours(student, teacher, ids, beta), student.softmax(1)
    expected = torch.stack(
        [definition(events(a, row), events(b, row), beta) for a, b, row in zip(q, teacher, ids.tolist(), strict=True)]
    )
    torch.testing.assert_close(actual, expected)
    weights = torch.linspace(0.5, 1.5, len(actual), dtype=torch.float64)
    (exact,) = torch.autograd.grad((weights * expected).sum(), student, retain_graph=True)
    (gradient,) = torch.autograd.grad((weights * actual).sum(), student)
    torch.testing.assert_close(gradient, exact)


@pytest.mark.parametrize("beta", BETAS)
def test_it_grows_with_k_up_to_the_whole_vocabulary(beta):
    """The data-processing inequality: splitting events never makes two distributions harder to tell apart."""
    for seed in range(20):
        student, teacher = distributions(seed)
        order = teacher.argsort(dim=1, descending=True)
        values = [ours(student, teacher, order[:, :k], beta).detach() for k in range(1, VOCAB + 1)]
        assert all((more - less).min() > -1e-12 for less, more in zip(values, values[1:], strict=False))
        assert values[0].min() >= 0
        torch.testing.assert_close(values[-2], values[-1])  # the tail is one token
        whole = [definition(list(q), list(p), beta) for q, p in zip(student.softmax(1), teacher, strict=True)]
        torch.testing.assert_close(values[-1], torch.stack(whole).detach())


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("top_k", [1, 5, VOCAB])
def test_a_student_that_is_the_teacher_has_neither_loss_nor_gradient(top_k, beta):
    student, _ = distributions(3)
    teacher = student.detach().softmax(1)
    values = ours(student, teacher, teacher.topk(top_k, dim=1).indices, beta)
    assert values.abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert gradient.abs().max() < 1e-12


def test_direction():
    """Student (1/2, 1/2), teacher (3/4, 1/4)."""
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    forward = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert bucketed_divergence(student, teacher).item() == pytest.approx(forward, abs=1e-6)
    assert bucketed_divergence(student, teacher, 1.0).item() == pytest.approx(reverse, abs=1e-6)


def test_gradients_stay_finite_without_a_tail():
    tail = torch.tensor([[-torch.inf]])
    for beta in (0.0, 1.0):
        student = torch.tensor([[0.5, 0.5]]).log().requires_grad_()
        teacher = torch.cat([torch.tensor([[0.75, 0.25]]).log(), tail], dim=1)
        bucketed_divergence(torch.cat([student, tail], dim=1), teacher, beta).sum().backward()
        assert student.grad.isfinite().all()

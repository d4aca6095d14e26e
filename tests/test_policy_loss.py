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

"""One visit to the vocabulary: its scores, and its gradient that is made in the forward, against dense float64."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_distill.divergence import LMHead, policy_loss, token_scores


CLOSE = dict(rtol=5e-5, atol=5e-5)


def dense(hidden, head, temperature):
    """Log-probabilities `(N, V)` by the definition."""
    logits = hidden.double() @ head.weight.double().T + (0 if head.bias is None else head.bias.double())
    logits = head.logit_scale * logits
    cap = head.final_logit_softcapping
    logits = logits if cap is None else cap * (logits / cap).tanh()
    return torch.log_softmax(logits / temperature, dim=1)


class Problem:
    """Random states, heads and tokens; `f(l) = c exp(l)` as the loss of a log-probability."""

    def __init__(
        self, n=9, vocab=40, widths=(6, 5), seed=0, bias=False, scale=1.0, cap=None, cut=0, dtype=torch.float32
    ):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator).to(dtype)

        self.hidden, self.weight = draw(n, widths[0]).requires_grad_(), draw(vocab, widths[0]).requires_grad_()
        self.bias = draw(vocab).requires_grad_() if bias else None
        rows = vocab - cut
        self.head = LMHead(self.weight[:rows], self.bias[:rows] if bias else None, scale, cap)
        self.teacher_hidden = draw(n, widths[1])
        self.teacher_head = LMHead(draw(rows, widths[1]), draw(rows) if bias else None, 0.7 * scale, cap and 1.5 * cap)
        self.tokens = torch.randint(rows, (n,), generator=generator)
        self.slopes = torch.randn(n, generator=generator)
        self.leaves = [
            leaf for leaf in (self.hidden, self.weight, self.bias) if leaf is not None and leaf.requires_grad
        ]

    @property
    def models(self):
        return self.hidden, self.head, self.teacher_hidden, self.teacher_head

    def surrogate(self, logps, block):
        return self.slopes[block] * logps.exp()

    def loss(self, temperature=1.0, chunk_tokens=4, alone=False, surrogate=True):
        models = (*self.models[:2], None, None) if alone else self.models
        return policy_loss(*models, self.tokens, temperature, chunk_tokens, self.surrogate if surrogate else None)

    def definition(self, temperature=1.0, alone=False, surrogate=True):
        """The sum, and the fields of `TokenScores`."""
        q, p = dense(self.hidden, self.head, temperature), dense(self.teacher_hidden, self.teacher_head, temperature)
        chosen, kl = q.gather(1, self.tokens[:, None])[:, 0], (q.exp() * (q - p)).sum(1)
        total = 0 if alone else kl.sum()
        if surrogate:
            total = total + (self.slopes * chosen.exp()).sum()
        scores = kl, -(q.exp() * q).sum(1), chosen, p.gather(1, self.tokens[:, None])[:, 0]
        return total, [score.detach() for score in scores]


def assert_same_gradients(actual, expected, leaves, scale=1.0, **tolerance):
    pairs = zip(torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves), strict=True)
    for ours, exact in pairs:
        size = exact.double().abs().max().clamp(min=1e-3)
        torch.testing.assert_close(ours.double() / size, scale * exact.double() / size, **(tolerance or CLOSE))


@settings(max_examples=60, deadline=None)
@given(
    problem=st.builds(
        Problem,
        n=st.integers(1, 11),
        vocab=st.integers(8, 70),
        widths=st.tuples(st.integers(1, 7), st.integers(1, 7)),
        seed=st.integers(0, 2**20),
        bias=st.booleans(),
        scale=st.sampled_from([1.0, 0.3, 2.0]),
        cap=st.sampled_from([None, 2.0, 5.0]),
        cut=st.integers(0, 3),
    ),
    temperature=st.sampled_from([1.0, 0.7, 2.0]),
    chunk_tokens=st.integers(1, 12),
    parts=st.sampled_from([(False, True), (False, False), (True, True)]),
)
def test_equals_the_definition(problem, temperature, chunk_tokens, parts):
    alone, surrogate = parts
    loss, scores = problem.loss(temperature, chunk_tokens, alone, surrogate)
    expected, exact = problem.definition(temperature, alone, surrogate)
    torch.testing.assert_close(loss.double(), expected, **CLOSE)
    if alone:  # the student stands in for the teacher
        exact = [torch.zeros_like(exact[0]), exact[1], exact[2], exact[2]]
    for score, value in zip(scores, exact, strict=True):
        assert score.dtype == torch.float32 and not score.requires_grad
        torch.testing.assert_close(score.double(), value, **CLOSE)
    assert_same_gradients(loss, expected, problem.leaves)
    if not alone:
        same = token_scores(*problem.models, problem.tokens, temperature, chunk_tokens)
        assert all(torch.equal(a, b) for a, b in zip(scores, same, strict=True))


def test_scale_of_the_loss_reaches_every_gradient():
    problem = Problem(bias=True)
    loss, _ = problem.loss()
    assert_same_gradients(loss * -2.5, problem.definition()[0], problem.leaves, scale=-2.5)


def test_one_backward_only():
    """The head's gradient is scaled in place, so a second backward would silently scale it again."""
    problem = Problem()
    loss, _ = problem.loss()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="for one backward"):
        loss.backward()


def test_frozen_head_and_frozen_states():
    problem = Problem()
    whole = torch.autograd.grad(problem.loss()[0], problem.leaves)
    for frozen in (0, 1):
        problem = Problem()
        problem.leaves[frozen].requires_grad_(False)
        problem.head = LMHead(problem.weight)
        loss, _ = problem.loss()
        (gradient,) = torch.autograd.grad(loss, problem.leaves[1 - frozen])
        torch.testing.assert_close(gradient, whole[1 - frozen])


def test_rows_beyond_a_cut_head_receive_nothing():
    problem = Problem(cut=9, bias=True)
    problem.loss()[0].backward()
    assert torch.equal(problem.weight.grad[-9:], torch.zeros(9, 6)) and not problem.bias.grad[-9:].any()
    assert problem.weight.grad[:-9].abs().sum(1).min() > 0


@pytest.mark.parametrize("alone", [False, True])
def test_no_token_keeps_the_graph(alone):
    problem = Problem(n=0, bias=True)
    loss, scores = problem.loss(alone=alone)
    assert loss.item() == 0.0 and all(score.shape == (0,) for score in scores)
    loss.backward()
    assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in problem.leaves)


def test_equal_models_have_no_kl_and_no_gradient():
    problem = Problem(widths=(6, 6))
    problem.teacher_hidden, problem.teacher_head = problem.hidden.detach(), LMHead(problem.weight.detach())
    loss, scores = problem.loss(surrogate=False)
    assert abs(loss.item()) < 1e-5 and torch.equal(scores.student_logps, scores.teacher_logps)
    assert all(gradient.abs().max() < 1e-6 for gradient in torch.autograd.grad(loss, problem.leaves))


@pytest.mark.parametrize("how", ["stored", "autocast"])
def test_bf16_operands_are_summed_in_fp32(how):
    """As models are trained: weights in bf16, or cast to it. Against float64 on the rounded operands."""
    n, vocab, width = 6, 30_000, 64
    stored = torch.bfloat16 if how == "stored" else torch.float32
    problem = Problem(n, vocab, (width, width), scale=0.25, dtype=stored)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        loss, scores = problem.loss(chunk_tokens=4)
    for name in ("hidden", "weight", "teacher_hidden"):
        setattr(problem, name, getattr(problem, name).detach().bfloat16().requires_grad_(name != "teacher_hidden"))
    problem.head = problem.head._replace(weight=problem.weight)
    problem.teacher_head = problem.teacher_head._replace(weight=problem.teacher_head.weight.bfloat16())
    expected, exact = problem.definition()
    for score, value in zip(scores, exact, strict=True):
        assert score.dtype == torch.float32
        torch.testing.assert_close(score.double(), value, rtol=1e-5, atol=1e-4)  # bf16 logits would be 0.1 off
    leaves = problem.leaves
    ours = torch.autograd.grad(loss, leaves)
    assert [gradient.dtype for gradient in ours] == [stored, stored]
    exact = torch.autograd.grad(expected, [problem.hidden, problem.weight])
    for gradient, reference in zip(ours, exact, strict=True):
        assert (gradient.double() - reference.double()).norm() < 0.01 * reference.double().norm()


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_logits_stay_finite(size):
    logits = size * torch.tensor([[1.0, -1.0, 0.5] * 3, [-1.0] * 8 + [1.0], [0.0] * 9, [1.0] * 9])
    hidden, head, tokens = logits.requires_grad_(), LMHead(torch.eye(9)), torch.tensor([0, 3, 5, 8])
    loss, scores = policy_loss(hidden, head, -logits.detach().flip(1), head, tokens, surrogate=lambda logps, _: logps)
    assert all(score.isfinite().all() for score in scores)
    assert torch.autograd.grad(loss, hidden)[0].isfinite().all()


def test_values_that_are_not_finite_are_passed_on():
    """Whoever trains must see them."""
    for broken in (math.nan, math.inf):
        problem = Problem()
        with torch.no_grad():
            problem.teacher_head.weight[3] = broken
        assert not problem.loss()[1].kl.isfinite().any()


def test_nothing_of_vocabulary_size_per_token_is_kept():
    problem, saved = Problem(n=64, vocab=3001), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        loss, _ = problem.loss(chunk_tokens=16)
    assert not any(3001 in tensor.shape for tensor in saved)
    kept = [gradient.shape for gradient in loss.grad_fn.gradients if gradient is not None]
    assert kept == [(64, 6), (3001, 6)]  # what the backward hands on
    loss.backward()


TRITON = """
import torch
from tests.test_policy_loss import Problem
from trl_distill.divergence import chunked_divergence

for settings in ({}, dict(bias=True, scale=0.3, cap=2.0, cut=3), dict(cap=5.0, n=7, vocab=2100)):
    for alone in (False, True):
        results = []
        for triton in (False, True):
            chunked_divergence._use_triton = lambda device, triton=triton: triton
            problem = Problem(**settings)
            loss, scores = problem.loss(0.7, 4, alone)
            results.append([loss, *scores, *torch.autograd.grad(loss, problem.leaves)])
        for kernel, plain in zip(*results):
            torch.testing.assert_close(kernel, plain, rtol=1e-5, atol=2e-5)
print("the same")
"""


def test_trls_kernels_give_the_same_as_plain_torch():
    """The path of GPUs, in Triton's interpreter: runs where triton is installed."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", TRITON]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])
    assert result.stdout.endswith("the same\n"), result.stderr

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


"""The K likeliest tokens and the rest against the definition, in float64 and from dense logits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_distill.divergence import LMHead
from trl_distill.top_k import support_logps, top_k_logps


CLOSE = dict(rtol=2e-5, atol=2e-5)


def random_case(rows, width, vocab, seed, bias=False, scale=1.0, softcap=None):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator).requires_grad_()
    weight = (3 * torch.randn(vocab, width, generator=generator) / math.sqrt(width)).requires_grad_()
    offset = torch.randn(vocab, generator=generator).requires_grad_() if bias else None
    return hidden, LMHead(weight, offset, scale, softcap)


def dense_probabilities(hidden, head):
    """The definition, `(N, V)` in float64."""
    logits = torch.einsum("nh,vh->nv", hidden.double(), head.weight.double())
    logits = head.logit_scale * (logits if head.bias is None else logits + head.bias.double())
    cap = head.final_logit_softcapping
    return (logits if cap is None else cap * (logits / cap).tanh()).softmax(1)


def bucketed(probabilities, ids):
    """Log-probabilities of `ids` and of the sum of all others, which is taken over them one by one."""
    is_chosen = torch.zeros_like(probabilities, dtype=torch.bool)
    for row, tokens in enumerate(ids.tolist()):
        is_chosen[row, tokens] = True
    columns = [torch.stack([p[token] for p, token in zip(probabilities, column, strict=True)]) for column in ids.T]
    columns.append(torch.stack([p[~chosen].sum() for p, chosen in zip(probabilities, is_chosen, strict=True)]))
    return torch.stack(columns, dim=1).log()


def gradients(values, weights, *leaves):
    leaves = [leaf for leaf in leaves if leaf is not None]
    total = (weights * values.masked_fill(values.isneginf(), 0.0)).sum()
    return [gradient.double() for gradient in torch.autograd.grad(total, leaves)]


def check(hidden, head, top_k, chunk_tokens, tolerance):
    top = top_k_logps(hidden, head, top_k, chunk_tokens)
    exact = dense_probabilities(hidden, head)
    assert top.ids.shape == (len(hidden), top_k) and top.logps.dtype == torch.float32 and not top.logps.requires_grad
    likeliest = exact.sort(dim=1, descending=True).values[:, :top_k]
    torch.testing.assert_close(top.logps[:, :-1].exp().double(), likeliest, **tolerance)
    expected = bucketed(exact, top.ids)
    torch.testing.assert_close(top.logps.double(), expected, **tolerance)
    # Other tokens than the likeliest ones, so that the support is any
    ids = torch.stack(
        [torch.randperm(exact.shape[1], generator=torch.Generator().manual_seed(i)) for i in range(len(hidden))]
    )
    ids = ids[:, :top_k]
    logps, expected = support_logps(hidden, head, ids, chunk_tokens), bucketed(exact, ids)
    torch.testing.assert_close(logps.double(), expected, **tolerance)
    weights = torch.linspace(-1.0, 1.5, logps.numel()).view_as(logps)
    leaves = hidden, head.weight, head.bias
    for actual, wanted in zip(gradients(logps, weights, *leaves), gradients(expected, weights, *leaves), strict=True):
        assert (actual - wanted).norm() <= 1e-4 * (1 + wanted.norm())  # fp32 sums over the vocabulary


@pytest.mark.parametrize("top_k", [1, 7, 122, 123])
@pytest.mark.parametrize(
    "variant", [{}, {"bias": True}, {"softcap": 3.0}, {"bias": True, "scale": 1.7, "softcap": 4.0}]
)
def test_top_k_and_support_equal_their_definition(variant, top_k):
    """An odd shape: 47 tokens, 31 wide, 123 tokens in the vocabulary, blocks of 10."""
    check(*random_case(47, 31, 123, 0, **variant), top_k, 10, CLOSE)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(2, 40),
    st.integers(1, 40),
    st.integers(1, 10),
    st.integers(0, 99),
)
def test_any_shape(rows, width, vocab, top_k, chunk_tokens, seed):
    check(*random_case(rows, width, vocab, seed), min(top_k, vocab), chunk_tokens, dict(rtol=1e-4, atol=1e-4))


def test_a_tail_that_is_tiny_is_no_rounding():
    """One token has all but 1e-13 of the probability: 1 minus it would be 0 in fp32."""
    head, hidden = LMHead(torch.eye(3)), torch.tensor([[30.0, 0.0, 0.0]], requires_grad=True)
    logps = support_logps(hidden, head, torch.tensor([[0]]))
    assert logps[0, 1].item() == pytest.approx(math.log(2) - 30, abs=1e-5)
    (gradient,) = torch.autograd.grad(logps[0, 1], hidden)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 0.5, 0.5]]), **CLOSE)
    assert top_k_logps(hidden, head, 1).logps[0, 1] == logps[0, 1]


def test_a_padded_head():
    """Rows of the head beyond the vocabulary count for nothing, and have no gradient."""
    hidden, head = random_case(9, 4, 20, 0, bias=True)
    cut = LMHead(head.weight[:17], head.bias[:17])
    ids = top_k_logps(hidden, cut, 3).ids
    leaves, weights = (hidden, head.weight, head.bias), torch.linspace(-1.0, 1.5, 36).view(9, 4)
    padded, expected = support_logps(hidden, head, ids, 5, vocab_size=17), support_logps(hidden, cut, ids)
    torch.testing.assert_close(padded, expected)
    for actual, wanted in zip(gradients(padded, weights, *leaves), gradients(expected, weights, *leaves), strict=True):
        torch.testing.assert_close(actual, wanted)


def test_no_tokens():
    hidden, head = random_case(0, 4, 9, 0)
    top = top_k_logps(hidden, head, 3)
    assert top.ids.shape == (0, 3) and top.logps.shape == (0, 4)
    support_logps(hidden, head, top.ids).sum().backward()
    assert not head.weight.grad.any()


def test_nothing_of_vocabulary_size_is_saved():
    hidden, head = random_case(20, 4, 509, 0)
    ids = top_k_logps(hidden, head, 3).ids
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda t: t):
        support_logps(hidden, head, ids, 5).sum().backward()
    assert [shape for shape in saved if 509 in shape] == [head.weight.shape]


def test_bf16_under_autocast():
    """Operands are cast as autocast would, sums are not; the gradient has the types of its tensors."""
    hidden, head = random_case(30, 16, 97, 0)
    ids = top_k_logps(hidden, head, 5).ids
    with torch.autocast("cpu", torch.bfloat16):
        logps = support_logps(hidden, head, ids)
    logps.sum().backward()
    rounded = LMHead(head.weight.detach().bfloat16().float())
    exact = bucketed(dense_probabilities(hidden.detach().bfloat16().float(), rounded), ids)
    torch.testing.assert_close(logps.double(), exact, **CLOSE)
    assert hidden.grad.dtype == head.weight.grad.dtype == torch.float32

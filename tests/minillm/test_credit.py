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

"""Credit of MiniLLM as pure functions, against loops and closed forms in float64."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_distill.minillm.credit import (
    advantages,
    long_term_loss,
    masked_moments,
    mixture_logps,
    returns_to_go,
    token_rewards,
    whiten,
)


quick = settings(deadline=None, max_examples=40, derandomize=True)
GAMMAS = [0.0, 0.5, 0.95, 1.0]


@st.composite
def rollouts(draw, max_rows=4, max_length=9, size=20.0):
    """Rewards `(B, T)` in float64 and the lengths of the rows, of which some may be empty."""
    rows, length = draw(st.integers(1, max_rows)), draw(st.integers(1, max_length))
    value = st.floats(-size, size)
    values = draw(st.lists(st.lists(value, min_size=length, max_size=length), min_size=rows, max_size=rows))
    lengths = draw(st.lists(st.integers(0, length), min_size=rows, max_size=rows))
    rewards = torch.tensor(values, dtype=torch.float64)
    mask = make_mask(lengths, length)
    return rewards * mask, lengths, mask


def make_mask(lengths, width):
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def random_rollout(lengths, width, seed=0):
    rewards = torch.randn(len(lengths), width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mask = make_mask(lengths, width)
    return rewards * mask, mask


def naive_credit(rewards, lengths, gamma, inclusive, normalize):
    """The double sum of the definition."""
    result = torch.zeros(rewards.shape, dtype=torch.float64)
    for row, length in enumerate(lengths):
        for t in range(length):
            later = range(t if inclusive else t + 1, length)
            total = sum(gamma ** (s - t) * rewards[row, s].item() for s in later)
            result[row, t] = total / len(later) if normalize and len(later) else total
    return result


# Sampling distribution and importance weights


def random_logps(vocab, seed, spread=4.0):
    generator = torch.Generator().manual_seed(seed)
    return [(spread * torch.randn(vocab, dtype=torch.float64, generator=generator)).log_softmax(0) for _ in range(2)]


@quick
@given(st.integers(0, 10_000), st.integers(2, 40), st.floats(0.0, 0.99), st.floats(0.1, 30.0))
def test_importance_weights_are_bounded_and_have_mean_one(seed, vocab, alpha, spread):
    q, p = random_logps(vocab, seed, spread)
    mixed = mixture_logps(q, p, alpha)
    torch.testing.assert_close(mixed.exp(), alpha * p.exp() + (1 - alpha) * q.exp(), rtol=1e-12, atol=1e-14)
    weights = (q - mixed).exp()
    assert (weights > 0).all()
    assert (weights <= 1 / (1 - alpha) + 1e-12).all()
    torch.testing.assert_close((mixed.exp() * weights).sum(), torch.tensor(1.0, dtype=torch.float64))


def test_bound_of_the_weight_is_reached_where_the_teacher_never_goes():
    q, p = torch.tensor([[-1.0]]), torch.tensor([[-200.0]])
    assert (q - mixture_logps(q, p, 0.2)).exp().item() == pytest.approx(1.25, rel=1e-6)
    assert (p - mixture_logps(p, q, 0.2)).exp().item() == pytest.approx(0.0, abs=1e-30)


def test_mixture_at_its_ends():
    q, p = (x.float() for x in random_logps(50, 0))
    assert torch.equal(mixture_logps(q, p, 0.0), q)
    assert torch.equal(mixture_logps(q, p, 1.0), p)
    assert mixture_logps(q, p, 0.3).dtype == torch.float32
    impossible = torch.full_like(q, -math.inf)
    assert torch.equal(mixture_logps(q, impossible, 0.0), q)
    assert torch.equal(mixture_logps(impossible, p, 1.0), p)
    torch.testing.assert_close(mixture_logps(impossible, p, 0.5), p - math.log(2))


# Rewards


def test_rewards_are_log_ratios_of_completion_tokens_without_gradient():
    q = torch.tensor([[-1.0, -2.0, math.nan], [-0.5, math.inf, -math.inf]], requires_grad=True)
    p = torch.tensor([[-3.0, -0.5, -1.0], [-0.5, -1.0, -math.inf]], requires_grad=True)
    rewards = token_rewards(q, p, make_mask([2, 1], 3))
    assert rewards.tolist() == [[-2.0, 1.5, 0.0], [0.0, 0.0, 0.0]]
    assert not rewards.requires_grad


def test_rewards_are_scaled_and_then_clipped():
    q, p = torch.zeros(1, 4), torch.tensor([[1.0, -1.0, 3.0, -9.0]])
    mask = torch.ones(1, 4)
    assert token_rewards(q, p, mask, reward_scaling=0.5).tolist() == [[2.0, -2.0, 6.0, -18.0]]
    assert token_rewards(q, p, mask, reward_clip=2.0).tolist() == [[1.0, -1.0, 2.0, -2.0]]
    assert token_rewards(q, p, mask, reward_scaling=0.5, reward_clip=5.0).tolist() == [[2.0, -2.0, 5.0, -5.0]]


# Returns and credit


@quick
@given(rollouts(), st.sampled_from(GAMMAS), st.booleans(), st.booleans())
def test_credit_matches_its_definition(rollout, gamma, inclusive, normalize):
    rewards, lengths, mask = rollout
    credit = advantages(rewards, mask, gamma, inclusive=inclusive, length_normalization=normalize)
    expected = naive_credit(rewards, lengths, gamma, inclusive, normalize)
    torch.testing.assert_close(credit, expected, rtol=1e-9, atol=1e-9)
    assert (credit[mask == 0] == 0).all()


def test_default_credit_is_exclusive_undiscounted_and_normalised():
    rewards, mask = random_rollout([5, 2], 5)
    expected = naive_credit(rewards, [5, 2], 1.0, inclusive=False, normalize=True)
    torch.testing.assert_close(advantages(rewards, mask), expected)


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_completions_stay_finite(gamma, dtype):
    """gamma ** 4096 is 0 in fp32; every return must still equal the loop."""
    length = 4096
    rewards, mask = random_rollout([length, 1000], length, seed=1)
    returns = returns_to_go(rewards.to(dtype), gamma)
    expected = [[0.0] * length for _ in range(2)]
    for row in range(2):
        following = 0.0
        for t in range(length - 1, -1, -1):
            following = expected[row][t] = rewards[row, t].item() + gamma * following
    assert returns.dtype == dtype
    tolerance = 1e-9 if dtype == torch.float64 else 2e-3 if gamma == 1 else 1e-5
    torch.testing.assert_close(returns.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance)
    for inclusive in (False, True):
        credit = advantages(rewards.to(dtype), mask, gamma, inclusive=inclusive)
        assert credit.isfinite().all() and credit.dtype == dtype


def test_constant_reward():
    mask = make_mask([5, 3, 1], 5)
    rewards = mask.double()
    inclusive = advantages(rewards, mask, inclusive=True)
    assert inclusive.tolist() == [[1.0] * 5, [1.0] * 3 + [0.0] * 2, [1.0] + [0.0] * 4]
    exclusive = advantages(rewards, mask)
    assert exclusive.tolist() == [[1.0] * 4 + [0.0], [1.0] * 2 + [0.0] * 3, [0.0] * 5]


@quick
@given(rollouts(), st.sampled_from(GAMMAS), st.floats(-50, 50))
def test_a_token_in_front_changes_no_later_return(rollout, gamma, first):
    rewards, _, _ = rollout
    longer = torch.cat([torch.full_like(rewards[:, :1], first), rewards], dim=1)
    returns = returns_to_go(longer, gamma)
    torch.testing.assert_close(returns[:, 1:], returns_to_go(rewards, gamma), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(returns[:, 0], first + gamma * returns[:, 1], rtol=1e-9, atol=1e-9)


@quick
@given(rollouts())
def test_gamma_zero_credits_no_later_token(rollout):
    rewards, _, mask = rollout
    assert torch.equal(advantages(rewards, mask, 0.0, inclusive=True, length_normalization=False), rewards)
    assert torch.equal(advantages(rewards, mask, 0.0, length_normalization=False), torch.zeros_like(rewards))


@quick
@given(rollouts(), st.sampled_from(GAMMAS), st.booleans(), st.booleans(), st.integers(1, 5))
def test_padding_changes_no_credit(rollout, gamma, inclusive, normalize, extra):
    rewards, _, mask = rollout
    kwargs = dict(gamma=gamma, inclusive=inclusive, length_normalization=normalize)
    credit = advantages(rewards, mask, **kwargs)
    zeros = torch.zeros(len(rewards), extra)
    padded = advantages(torch.cat([rewards, zeros], 1), torch.cat([mask, zeros.long()], 1), **kwargs)
    torch.testing.assert_close(padded, torch.cat([credit, zeros.double()], 1), rtol=1e-12, atol=1e-12)


@quick
@given(rollouts(), st.booleans(), st.randoms(use_true_random=False))
def test_row_order_changes_no_credit(rollout, inclusive, random):
    rewards, _, mask = rollout
    order = list(range(len(rewards)))
    random.shuffle(order)
    credit = advantages(rewards, mask, inclusive=inclusive)
    assert torch.equal(advantages(rewards[order], mask[order], inclusive=inclusive), credit[order])


def test_boolean_masks_are_welcome():
    rewards, mask = random_rollout([4, 2], 4)
    assert torch.equal(advantages(rewards, mask.bool()), advantages(rewards, mask))
    assert torch.equal(whiten(rewards, mask.bool()), whiten(rewards, mask))


# Whitening


def test_whitening_gives_mean_zero_and_variance_one_over_completion_tokens():
    values, mask = random_rollout([7, 1, 4, 0], 7, seed=2)
    values = torch.where(mask.bool(), 3 * values - 5, 1e6)  # what stands in the padding must not matter
    white = whiten(values, mask)
    tokens = white[mask.bool()]
    assert tokens.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert (tokens**2).mean().item() == pytest.approx(1.0, rel=1e-6)
    assert (white[~mask.bool()] == 0).all()
    expected = values[mask.bool()]
    expected = (expected - sum(expected) / 12) / math.sqrt(sum((expected - sum(expected) / 12) ** 2) / 12)
    torch.testing.assert_close(tokens, expected, rtol=1e-7, atol=1e-7)


@quick
@given(st.integers(0, 1000), st.floats(0.1, 100.0), st.floats(-100.0, 100.0), st.integers(0, 5))
def test_whitening_ignores_scale_shift_and_padding(seed, scale, shift, extra):
    values, mask = random_rollout([6, 3], 6, seed)
    white = whiten(values, mask)
    zeros = torch.zeros(2, extra, dtype=torch.float64)
    moved = torch.cat([scale * values + shift, zeros], 1)
    moved = whiten(moved, torch.cat([mask, zeros.long()], 1))
    torch.testing.assert_close(moved, torch.cat([white, zeros], 1), rtol=1e-5, atol=1e-5)


def test_whitening_of_equal_values_is_zero_and_finite():
    mask = make_mask([3, 1, 0], 3)
    for value in (0.0, 2.5, -1e4):
        white = whiten(torch.full((3, 3), value), mask)
        assert torch.equal(white, torch.zeros(3, 3))
    assert torch.equal(whiten(torch.ones(2, 3), torch.zeros(2, 3)), torch.zeros(2, 3))  # no token at all


def test_variance_survives_a_large_mean_in_fp32():
    """The difference of squares would be all cancellation here."""
    values = torch.tensor([[10000.0, 10001.0, 10002.0, 10003.0]])
    mean, var = masked_moments(values, torch.ones(1, 4))
    assert (mean.item(), var.item()) == (10001.5, 1.25)


def test_moments_of_several_processes():
    """`reduce` sees each sum once, so two processes agree with one that holds all rows."""
    values, mask = random_rollout([5, 2, 4, 1], 5, seed=3)
    shards = [(values[:1], mask[:1]), (values[1:], mask[1:])]
    mean_all, var_all = masked_moments(values, mask)
    totals = []
    for stage in range(3):  # count, sum, squares: each stage needs the one before it from both processes
        seen = []
        for shard in shards:
            calls = iter(totals)
            sums = []

            def reduce(total, calls=calls, sums=sums):
                sums.append(total)
                return next(calls, total)

            moments = masked_moments(*shard, reduce=reduce)
            seen.append((sums, moments))
        totals.append(sum(sums[stage] for sums, _ in seen))
    calls = iter(totals)
    mean, var = masked_moments(*shards[0], reduce=lambda total: next(calls))
    torch.testing.assert_close(mean, mean_all)
    torch.testing.assert_close(var, var_all)
    calls = itertools.cycle(totals)
    white = torch.cat([whiten(*shard, lambda total: next(calls)) for shard in shards])
    torch.testing.assert_close(white, whiten(values, mask))


# Long-term loss


def long_gradient(reward, credit, alpha=0.2, epsilon=0.2):
    """Gradient of the loss to the log-probability of one token, in the first pass over a rollout of the mixture."""
    old = torch.tensor([-2.0], dtype=torch.float64)
    logps = old.clone().requires_grad_()
    sampling_logps = mixture_logps(old, old + reward, alpha)
    loss, ratio = long_term_loss(logps, sampling_logps, torch.tensor([credit], dtype=torch.float64), epsilon)
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    return gradient.item(), ratio.item()


@pytest.mark.parametrize("credit", [1.0, -1.0, 0.3, -7.0])
@pytest.mark.parametrize("offset", [-1.5, -1e-3, 1e-3, 1.5])
@pytest.mark.parametrize("threshold", [math.log(2.25), -math.log(6)])
def test_clip_bites_in_the_first_pass_beyond_its_thresholds(credit, offset, threshold):
    reward = threshold + offset
    clipped = (credit < 0 and reward > math.log(2.25)) or (credit > 0 and reward < -math.log(6))
    gradient, ratio = long_gradient(reward, credit)
    assert ratio == pytest.approx(1 / (0.2 * math.exp(reward) + 0.8))
    assert gradient == pytest.approx(0.0 if clipped else -credit * ratio)


@quick
@given(st.floats(-6, 6), st.floats(-5, 5).filter(bool), st.floats(0.01, 0.95), st.floats(0.01, 0.9))
def test_clip_in_general(reward, credit, alpha, epsilon):
    gradient, ratio = long_gradient(reward, credit, alpha, epsilon)
    weight = 1 / (alpha * math.exp(reward) + 1 - alpha)
    assert ratio == pytest.approx(weight)
    if min(abs(weight - 1 + epsilon), abs(weight - 1 - epsilon)) < 1e-9:
        return  # on the edge either side is right
    clipped = (credit < 0 and weight < 1 - epsilon) or (credit > 0 and weight > 1 + epsilon)
    assert gradient == pytest.approx(0.0 if clipped else -credit * weight)


@pytest.mark.parametrize("credit", [2.0, -2.0])
@pytest.mark.parametrize("log_ratio", [-2.0, -0.1, 0.0, 0.1, 2.0])
def test_long_term_loss_is_the_pessimistic_bound(credit, log_ratio):
    ratio = math.exp(log_ratio)
    bounded = min(max(ratio, 0.8), 1.2)
    expected = max(-credit * ratio, -credit * bounded)
    tensors = scalars(log_ratio - 1, -1.0, credit)
    loss, _ = long_term_loss(*tensors, 0.2)
    assert loss.item() == pytest.approx(expected)
    free, _ = long_term_loss(*tensors, math.inf)
    assert free.item() == pytest.approx(-credit * ratio)


def scalars(*values):
    return [torch.tensor([value], dtype=torch.float64) for value in values]


@pytest.mark.parametrize("credit", [2.0, -2.0])
@pytest.mark.parametrize("change", [-1.0, -0.1, 0.0, 0.1, 1.0])
@pytest.mark.parametrize("log_weight", [-1.5, 0.0, 0.2])
def test_weight_outside_the_clip(credit, change, log_weight):
    """The ratio is the change since the rollout, and the weight a constant factor."""
    weight, ratio = math.exp(log_weight), math.exp(change)
    old = -3.0
    logps, sampling_logps, credits, old_logps = scalars(old + change, old - log_weight, credit, old)
    logps.requires_grad_()
    loss, seen = long_term_loss(logps, sampling_logps, credits, 0.2, old_logps)
    assert seen.item() == pytest.approx(ratio)
    assert loss.item() == pytest.approx(weight * max(-credit * ratio, -credit * min(max(ratio, 0.8), 1.2)))
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    clipped = (credit < 0 and ratio < 0.8) or (credit > 0 and ratio > 1.2)
    assert gradient.item() == pytest.approx(0.0 if clipped else -credit * weight * ratio)


@pytest.mark.parametrize("credit", [1.0, -1.0])
@pytest.mark.parametrize("reward", [-5.0, -1.0, 0.0, 1.0, 5.0])
def test_weight_outside_the_clip_leaves_the_first_pass_free(credit, reward):
    """Beyond ln 2.25 and -ln 6 too, where the clip of the paper's form cuts the gradient."""
    (old,) = scalars(-2.0)
    logps = old.clone().requires_grad_()
    loss, ratio = long_term_loss(logps, mixture_logps(old, old + reward, 0.2), *scalars(credit), 0.2, old)
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    assert ratio.item() == 1.0
    assert gradient.item() == pytest.approx(-credit / (0.2 * math.exp(reward) + 0.8))


@quick
@given(st.floats(-8, -0.01), st.floats(-8, -0.01), st.floats(-8, -0.01), st.floats(-5, 5))
def test_both_forms_agree_without_clip_and_without_mixture(new, old, sampled, credit):
    logps, old_logps, sampling_logps, credits = scalars(new, old, sampled, credit)
    paper, _ = long_term_loss(logps, sampling_logps, credits, math.inf)
    outside, _ = long_term_loss(logps, sampling_logps, credits, math.inf, old_logps)
    torch.testing.assert_close(outside, paper)
    paper, _ = long_term_loss(logps, old_logps, credits, 0.2)
    outside, _ = long_term_loss(logps, old_logps, credits, 0.2, old_logps)
    assert torch.equal(outside, paper)


@pytest.mark.parametrize("seed", range(3))
def test_first_pass_over_student_samples_has_a_ratio_of_exactly_one(seed):
    generator = torch.Generator().manual_seed(seed)
    logps = -torch.rand(3, 5, generator=generator) * 8
    teacher = -torch.rand(3, 5, generator=generator) * 8
    credit = torch.randn(3, 5, generator=generator)
    logps.requires_grad_()
    sampling_logps = mixture_logps(logps.detach(), teacher, 0.0)
    for epsilon in (0.2, math.inf):
        loss, ratio = long_term_loss(logps, sampling_logps, credit, epsilon)
        assert torch.equal(ratio, torch.ones(3, 5))
        (gradient,) = torch.autograd.grad(loss.sum(), logps)
        assert torch.equal(gradient, -credit)


def test_credit_carries_no_gradient():
    """Only the log-probability in the ratio does: at student = teacher a leak would give a gradient."""
    logps = torch.full((2, 4), -1.5, requires_grad=True)
    mask = make_mask([4, 2], 4)
    credit = whiten(advantages(token_rewards(logps, logps.detach(), mask), mask), mask)
    assert not credit.requires_grad
    loss, _ = long_term_loss(logps, mixture_logps(logps.detach(), logps.detach(), 0.2), credit, 0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    assert torch.equal(gradient, torch.zeros(2, 4))

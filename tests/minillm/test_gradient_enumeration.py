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
The gradients of MiniLLM on a world small enough to enumerate: every sequence of a tiny pair of RNNs, in float64.

Returns, weights and expectations are written here as loops over sequences. Only the functions of `credit.py` that a
test is about are called.
"""

import itertools
import math

import pytest
import torch

from trl_distill.minillm.credit import advantages, leave_one_out, long_term_loss, mixture_logps, token_rewards


EOS = 0
EXACT = dict(rtol=0, atol=1e-10)
GAMMAS = [0.0, 0.5, 0.95, 1.0]


class RNN:
    """A recurrent language model whose steps share all parameters, so that the choice at one step moves the others."""

    def __init__(self, vocab, seed, width=3):
        generator = torch.Generator().manual_seed(seed)
        shapes = [(vocab + 1, width), (width, width), (width, vocab), (vocab,)]
        self.parameters = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        for parameter in self.parameters:
            parameter.requires_grad_()

    def step_logps(self, sequence):
        """Log-probabilities `(len(sequence), V)` of every token at every step."""
        embedding, recurrent, head, bias = self.parameters
        state, steps = torch.zeros(recurrent.shape[0], dtype=torch.float64), []
        for token in (-1, *sequence[:-1]):  # the last row of the embedding begins every sequence
            state = torch.tanh(embedding[token] + state @ recurrent)
            steps.append((state @ head + bias).log_softmax(0))
        return torch.stack(steps)


class World:
    """
    All sequences of a student and a teacher: they end at the first EOS or are cut at `length`.

    `ids`, `mask`, `logq`, `logp` have shape `(S, T)` and are 0 behind the end; `kl` is the reverse KL of each step,
    summed over the vocabulary. `pairs` are `(sequence, step)` of every token.
    """

    def __init__(self, vocab, length, seed, teacher_seed=None):
        self.student = RNN(vocab, seed)
        self.teacher = RNN(vocab, seed + 1000 if teacher_seed is None else teacher_seed)
        self.sequences = [
            sequence
            for size in range(1, length + 1)
            for sequence in itertools.product(range(vocab), repeat=size)
            if EOS not in sequence[:-1] and (sequence[-1] == EOS or size == length)
        ]
        shape = (len(self.sequences), length)
        self.mask = torch.zeros(shape, dtype=torch.long)
        self.logq, self.logp, self.kl = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
        self.pairs = []
        for s, sequence in enumerate(self.sequences):
            q = self.student.step_logps(sequence)
            p = self.teacher.step_logps(sequence).detach()
            for t, token in enumerate(sequence):
                self.mask[s, t] = 1
                self.logq[s, t], self.logp[s, t] = q[t, token], p[t, token]
                self.kl[s, t] = (q[t].exp() * (q[t] - p[t])).sum()
                self.pairs.append((s, t))
        self.rewards = (self.logp - self.logq).detach()
        self.probability = self.logq.detach().sum(1).exp()  # (S,), of a sequence under the student

    def gradient(self, scalar):
        gradients = torch.autograd.grad(scalar, self.student.parameters, retain_graph=True)
        return torch.cat([gradient.flatten() for gradient in gradients])

    def score(self, coefficients, probability=None):
        r"""$E \sum_t c_t \nabla \log q(y_t)$, by default over the student's sequences."""
        probability = self.probability if probability is None else probability
        return self.gradient(sum(probability[s] * coefficients[s, t] * self.logq[s, t] for s, t in self.pairs))

    def single(self, weights=None, probability=None):
        r"""$E \sum_t w_t \nabla KL_t$."""
        probability = self.probability if probability is None else probability
        weights = torch.ones_like(self.rewards) if weights is None else weights
        return self.gradient(sum(probability[s] * weights[s, t] * self.kl[s, t] for s, t in self.pairs))

    def returns(self, gamma=1.0):
        """The double sum of the definition."""
        result = torch.zeros_like(self.rewards)
        for s, t in self.pairs:
            result[s, t] = sum(
                gamma ** (later - t) * self.rewards[s, later] for later in range(t, len(self.sequences[s]))
            )
        return result

    def total(self):
        """Gradient of the exact KL of whole sequences, by autograd through the expectation itself."""
        logq = self.logq.sum(1)
        return self.gradient((logq.exp() * (logq - self.logp.sum(1))).sum())

    def credit(self, **kwargs):
        """The project's credit."""
        settings = dict(gamma=1.0, inclusive=False, length_normalization=False) | kwargs
        return advantages(token_rewards(self.logq, self.logp, self.mask), self.mask, **settings)

    def long(self, credit, sampling_logps=None, probability=None, epsilon=math.inf, old_logps=None):
        """Gradient of the project's long-term loss, summed over tokens, in expectation."""
        probability = self.probability if probability is None else probability
        sampling_logps = self.logq.detach() if sampling_logps is None else sampling_logps
        loss, _ = long_term_loss(self.logq, sampling_logps, credit, epsilon, old_logps)
        return self.gradient((probability * (loss * self.mask).sum(1)).sum())

    def mixture(self, alpha):
        """Log-probabilities of tokens `(S, T)`, and probabilities of sequences `(S,)`, under the mixture."""
        mixed = (alpha * self.logp.exp() + (1 - alpha) * self.logq.detach().exp()).log()  # 0 behind the end
        return mixed, mixed.sum(1).exp()


@pytest.fixture(params=[(3, 3, 0), (3, 3, 1), (4, 2, 2), (4, 3, 3)], ids=lambda p: f"V{p[0]}-T{p[1]}-seed{p[2]}")
def world(request):
    return World(*request.param)


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def assert_exact(actual, expected):
    torch.testing.assert_close(actual, expected, **EXACT)


def assert_differs(actual, expected, by=1e-2):
    assert relative_error(actual, expected) > by


def test_the_enumeration_is_complete(world):
    assert_exact(world.probability.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert_exact(world.logp.sum(1).exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    lengths = {len(sequence) for sequence in world.sequences}
    assert lengths == set(range(1, world.mask.shape[1] + 1))
    assert any(sequence[-1] != EOS for sequence in world.sequences)  # truncated


@pytest.mark.parametrize("constant", [0.0, 1.0, -2.5])
def test_policy_gradient_is_the_gradient_of_the_sequence_kl(world, constant):
    """Eq. (2): for any constant, and with the return of the whole sequence."""
    assert_exact(-world.score(world.returns() - constant), world.total())
    assert_exact(world.long(world.credit(inclusive=True) - constant * world.mask), world.total())
    whole = world.rewards.sum(1, keepdim=True).expand_as(world.rewards)
    assert_exact(-world.score(whole - constant), world.total())
    assert_differs(-world.score(world.rewards - constant), world.total())


def test_single_step_and_exclusive_credit_add_up(world):
    """Eq. (3), with the project's credit and loss at gamma 1, without length normalisation or clip."""
    single = world.single()
    assert_exact(single + world.long(world.credit()), world.total())
    assert_differs(single, world.total())
    assert torch.cosine_similarity(single, world.total(), dim=0) < 0.999
    assert_differs(world.long(world.credit()), world.total())


def test_length_normalization_is_another_objective(world):
    gradient = world.single() + world.long(world.credit(length_normalization=True))
    if world.mask.shape[1] > 2:
        assert_differs(gradient, world.total())
    else:  # at most one later token: nothing to divide by
        assert_exact(gradient, world.total())


def test_the_clip_is_idle_in_the_first_pass_over_student_samples(world):
    assert_exact(world.long(world.credit(), epsilon=0.2), world.long(world.credit()))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_discounted_return_splits_into_own_and_later_rewards(world, gamma):
    inclusive = -world.score(world.returns(gamma))
    assert_exact(world.long(world.credit(gamma=gamma, inclusive=True)), inclusive)
    assert_exact(world.single() + world.long(world.credit(gamma=gamma)), inclusive)
    following = torch.zeros_like(world.rewards)
    following[:, :-1] = world.returns(gamma)[:, 1:]  # R_{t+1}, without the discount in front of it
    undiscounted = world.single() - world.score(following)
    if gamma < 1:
        assert_differs(undiscounted, inclusive, by=1e-4)
        assert_differs(inclusive, world.total(), by=1e-4)
    else:
        assert_exact(undiscounted, inclusive)


def test_gamma_zero_leaves_the_single_step_alone(world):
    assert torch.equal(world.credit(gamma=0.0), torch.zeros_like(world.rewards))
    assert_exact(world.long(world.credit(gamma=0.0, inclusive=True)), world.single())


def test_own_reward_pays_for_the_step_kl(world):
    """At every prefix: -E[r grad log q] = grad KL, and the gradient of the KL to the logits in closed form."""
    prefixes = {sequence[:t] for sequence in world.sequences for t in range(len(sequence))}
    for prefix in prefixes:
        q = world.student.step_logps((*prefix, EOS))[-1]
        p = world.teacher.step_logps((*prefix, EOS))[-1].detach()
        rewards = (p - q).detach()
        kl = (q.exp() * (q - p)).sum()
        sampled = -world.gradient((q.exp().detach() * rewards * q).sum())
        assert_exact(sampled, world.gradient(kl))
        logits = q.detach().clone().requires_grad_()
        logq = logits.log_softmax(0)
        (slope,) = torch.autograd.grad((logq.exp() * (logq - p)).sum(), logits)
        assert_exact(slope, (q.exp() * (q - p - kl)).detach())


def test_inclusive_credit_beside_the_single_step_counts_the_own_reward_twice(world):
    """What the released code does, on the student's samples."""
    gradient = world.single() + world.long(world.credit(inclusive=True))
    assert_exact(gradient, world.total() + world.single())
    assert_differs(gradient, world.total())


@pytest.mark.parametrize("alpha", [0.2, 0.6, 1.0])
def test_weights_of_the_single_step_under_the_mixture(world, alpha):
    """Eq. (5): products up to the last or this token are exact; one factor a step is not, and equals no weight."""
    mixed, probability = world.mixture(alpha)
    ratio = (world.logq.detach() - mixed).exp()
    through = ratio.cumprod(1)
    before = through / ratio
    assert_exact(world.single(through, probability), world.single())
    assert_exact(world.single(before, probability), world.single())
    unweighted = world.single(None, probability)
    assert_exact(world.single(ratio, probability), unweighted)
    assert_differs(unweighted, world.single())


@pytest.mark.parametrize("alpha", [0.2, 0.6, 1.0])
def test_weights_of_the_long_term_under_the_mixture(world, alpha):
    mixed, probability = world.mixture(alpha)
    ratio = (world.logq.detach() - mixed).exp()
    through = ratio.cumprod(1)
    exact = world.long(world.credit())

    credit = world.credit()
    whole = torch.stack([through[s, len(y) - 1] for s, y in enumerate(world.sequences)])[:, None]
    assert_exact(-world.score(whole * credit, probability), exact)
    decisions = torch.zeros_like(credit)
    for s, t in world.pairs:
        decisions[s, t] = sum(
            through[s, later] * world.rewards[s, later] for later in range(t + 1, len(world.sequences[s]))
        )
    assert_exact(-world.score(decisions, probability), exact)

    assert_differs(-world.score(through * credit, probability), exact)  # later rewards still come from the mixture
    per_step = world.long(credit, mixture_logps(world.logq.detach(), world.logp, alpha) * world.mask, probability)
    assert_exact(per_step, -world.score(ratio * credit, probability))  # what the project computes
    assert_differs(per_step, exact)


@pytest.mark.parametrize("alpha", [0.2, 0.6])
def test_clip_under_the_mixture(world, alpha):
    """With the weight inside the clip it bites before any update, with the weight outside it does not."""
    logq = world.logq.detach()
    _, probability = world.mixture(alpha)
    sampling_logps = mixture_logps(logq, world.logp, alpha) * world.mask
    free = world.long(world.credit(), sampling_logps, probability)
    outside = world.long(world.credit(), sampling_logps, probability, epsilon=0.2, old_logps=logq)
    assert_exact(outside, free)
    assert_differs(world.long(world.credit(), sampling_logps, probability, epsilon=0.2), free)


def test_mixture_without_a_teacher_is_the_student(world):
    logq = world.logq.detach()
    assert torch.equal(mixture_logps(logq, world.logp, 0.0), logq)
    on_policy = world.single() + world.long(world.credit())
    errors = []
    for alpha in (1e-2, 1e-4, 1e-6):
        _, probability = world.mixture(alpha)
        sampling_logps = mixture_logps(logq, world.logp, alpha) * world.mask
        mixed = world.single(None, probability) + world.long(world.credit(), sampling_logps, probability)
        errors.append(relative_error(mixed, on_policy))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4


def test_teacher_samples_weigh_q_over_p(world):
    logq = world.logq.detach()
    _, ratio = long_term_loss(logq, mixture_logps(logq, world.logp, 1.0), world.credit(), math.inf)
    assert_exact(ratio, (logq - world.logp).exp())


MODES = {
    "policy gradient": (0.0, False, dict(inclusive=True), math.inf),
    "single and long": (0.0, True, {}, math.inf),
    "discounted": (0.0, True, dict(gamma=0.5), math.inf),
    "length normalised": (0.0, True, dict(length_normalization=True), math.inf),
    "mixed": (0.2, True, {}, math.inf),
    "mixed and clipped": (0.2, True, dict(length_normalization=True), 0.2),
}


@pytest.mark.parametrize("mode", MODES)
def test_sampled_gradients_scatter_around_the_enumerated_one(mode):
    """Sequences are drawn token by token, as a sampler with one coin a token does."""
    alpha, with_single, settings, epsilon = MODES[mode]
    world = World(3, 3, 0)
    mixed, probability = world.mixture(alpha)
    sampling_logps = mixture_logps(world.logq.detach(), world.logp, alpha) * world.mask
    losses, _ = long_term_loss(world.logq, sampling_logps, world.credit(**settings), epsilon)
    losses = ((losses + with_single * world.kl) * world.mask).sum(1)  # (S,)
    gradients = torch.stack([world.gradient(loss) for loss in losses])  # (S, D)
    enumerated = probability @ gradients

    generator = torch.Generator().manual_seed(0)
    prefixes, rows = {}, torch.zeros(len(world.sequences), dtype=torch.float64)
    for sequence in world.sequences:
        q, p = world.student.step_logps(sequence).detach().exp(), world.teacher.step_logps(sequence).detach().exp()
        prefixes |= {sequence[:t]: (q[t], p[t]) for t in range(len(sequence))}
    samples = 4000
    for _ in range(samples):
        sequence = ()
        while len(sequence) < 3 and EOS not in sequence:
            coin = torch.rand((), generator=generator) < alpha
            distribution = prefixes[sequence][int(coin)]
            sequence += (torch.multinomial(distribution, 1, generator=generator).item(),)
        rows[world.sequences.index(sequence)] += 1
    mean = rows @ gradients / samples
    variance = rows @ (gradients - mean) ** 2 / (samples - 1)
    print(f"{mode}: variance {variance.sum():.4f}, squared norm {(enumerated**2).sum():.4f}")
    error = (variance / samples).sqrt()
    assert ((mean - enumerated).abs() <= 4 * error + 1e-12).all()
    assert ((mean - 1.3 * enumerated).abs() > 4 * error).any()  # sharp enough to see a wrong scale


def test_naive_estimators_have_other_gradients(world):
    """Autograd of a sampled log-ratio has mean 0, and that of k3 is the gradient of the FORWARD step KL."""
    single, forward = world.single(), 0
    expectation = 0
    k1, k3 = 0, 0
    for s, sequence in enumerate(world.sequences):
        q, p = world.student.step_logps(sequence), world.teacher.step_logps(sequence).detach()
        for t in range(len(sequence)):
            forward = forward + world.probability[s] * (p[t].exp() * (p[t] - q[t])).sum()
            difference = world.logp[s, t] - world.logq[s, t]
            k1 = k1 - world.probability[s] * difference
            k3 = k3 + world.probability[s] * (difference.exp() - 1 - difference)
        expectation = expectation + world.probability[s] * (world.logq[s] - world.logp[s]).sum()
    assert_exact(world.gradient(expectation), torch.zeros_like(single))
    assert_exact(world.gradient(k3), world.gradient(forward))
    assert_differs(world.gradient(k3), single)
    exact = (world.probability * (world.logq - world.logp).sum(1)).sum()
    steps = sum(world.probability[s] * world.kl[s, t] for s, t in world.pairs)
    assert exact > 0.1
    for value in (k1, k3, steps):
        assert_exact(value.detach(), exact.detach())


@pytest.mark.parametrize("settings", [{}, dict(inclusive=True), dict(gamma=0.5, length_normalization=True)])
def test_nothing_moves_where_student_and_teacher_agree(settings):
    world = World(3, 3, 5, teacher_seed=5)
    credit = world.credit(**settings)
    assert torch.equal(credit, torch.zeros_like(credit))
    assert_exact(world.kl.detach(), torch.zeros_like(credit))
    gradient = world.single() + world.long(credit, epsilon=0.2)
    assert_exact(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("inclusive", [False, True])
def test_exact_credit_has_the_gradient_of_sampled_credit(world, gamma, inclusive):
    """The expectation of a later reward is minus the step KL that the token has led to."""
    settings = dict(gamma=gamma, inclusive=inclusive)
    exact = world.credit(per_token_kl=world.kl, **settings)
    assert not exact.requires_grad
    assert_exact(world.long(exact), world.long(world.credit(**settings)))
    if gamma == 1.0:
        single = 0.0 if inclusive else world.single()
        assert_exact(single + world.long(exact), world.total())
        assert (exact - world.credit(**settings)).abs().max() > 0.1  # another credit in each sequence


def test_exact_credit_has_less_variance(world):
    """Of the long-term gradient over the student's sequences."""
    variances = {}
    for name, kl in {"sampled": None, "exact": world.kl}.items():
        losses, _ = long_term_loss(world.logq, world.logq.detach(), world.credit(per_token_kl=kl), math.inf)
        gradients = torch.stack(
            [world.gradient((row * mask).sum()) for row, mask in zip(losses, world.mask, strict=True)]
        )
        mean = world.probability @ gradients
        variances[name] = (world.probability @ (gradients - mean) ** 2).sum().item()
    print(variances)
    if world.mask.shape[1] > 2:
        assert variances["exact"] < variances["sampled"]


@pytest.mark.parametrize("alpha", [0.2, 0.6])
def test_exact_credit_is_less_biased_under_the_mixture(world, alpha):
    """A sampled reward of a token that the teacher drew is too high; the step KL does not know who drew."""
    mixed, probability = world.mixture(alpha)
    errors = {
        name: relative_error(world.long(world.credit(per_token_kl=kl), mixed, probability), world.long(world.credit()))
        for name, kl in {"sampled": None, "exact": world.kl}.items()
    }
    print(errors)
    assert errors["exact"] < errors["sampled"]
    # With one later token its weight is that of the sequence before it; with more, one factor is still too few
    assert (errors["exact"] > 0.01) == (world.mask.shape[1] > 2)


def answers_to_one_prompt(world, probabilities, credits, ratio):
    r"""$E \frac{1}{2} \sum_i \sum_t w_t A^i_t \nabla \log q(y^i_t)$ over pairs of sequences `(S, S)`, with a minus."""
    coefficients = torch.zeros_like(world.rewards)
    for first, second in itertools.product(range(len(world.sequences)), repeat=2):
        pair = torch.tensor([first, second])
        credit = leave_one_out(credits[pair], world.mask[pair], 2)
        for row, s in enumerate((first, second)):
            coefficients[s] += probabilities[first, second] * credit[row] * ratio[s] / 2
    return -world.gradient((coefficients * world.logq).sum())


@pytest.mark.parametrize("settings", [{}, dict(inclusive=True), dict(length_normalization=True, gamma=0.5)])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_leave_one_out_moves_no_gradient(alpha, settings):
    world = World(3, 3, 1)
    mixed, probability = world.mixture(alpha)
    ratio = (world.logq.detach() - mixed).exp()
    credits = world.credit(**settings)
    independent = probability[:, None] * probability
    expected = world.long(credits, mixed, probability)
    assert_exact(answers_to_one_prompt(world, independent, credits, ratio), expected)


def test_answers_that_share_their_coins_would_be_biased():
    world, alpha = World(3, 3, 1), 0.3
    mixed, probability = world.mixture(alpha)
    credits, ratio = world.credit(inclusive=True), (world.logq.detach() - mixed).exp()
    logs = torch.stack([world.logq.detach(), world.logp])  # who draws, sequence, step
    shared = 0.0
    for coins in itertools.product((0, 1), repeat=3):
        drawn = torch.stack([logs[coin, :, t] for t, coin in enumerate(coins)], 1).sum(1).exp()  # 0 behind the end
        shared = shared + math.prod((1 - alpha, alpha)[coin] for coin in coins) * drawn[:, None] * drawn
    assert_exact(shared.sum(1), probability)  # each answer alone is a sample of the mixture
    expected = world.long(credits, mixed, probability)
    assert_differs(answers_to_one_prompt(world, shared, credits, ratio), expected)

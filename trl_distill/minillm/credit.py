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
Credit of each token for what follows it: the mathematics of MiniLLM (https://huggingface.co/papers/2306.08543).

Pure functions of tensors `(B, T)` (B rows, T padded completion). The student is `q`, the frozen teacher `p`, and
`r_t = log p(y_t) - log q(y_t)`. `mask` is 1 on completion tokens, which stand at the start of each row. Every function
keeps the dtype of its input; the trainer hands in fp32.
"""

import torch
from torch import Tensor


def mixture_logps(student_logps: Tensor, teacher_logps: Tensor, alpha: float) -> Tensor:
    r"""
    Log-probabilities `(B, T)` of tokens under the sampling distribution, Eq. (4): $\alpha p + (1 - \alpha) q$.

    Exactly `student_logps` when the teacher's share `alpha` is 0, and `teacher_logps` when it is 1.
    """
    share = torch.tensor(alpha, dtype=student_logps.dtype, device=student_logps.device)
    return torch.logaddexp((1 - share).log() + student_logps, share.log() + teacher_logps)


def token_rewards(
    student_logps: Tensor,
    teacher_logps: Tensor,
    mask: Tensor,
    reward_scaling: float = 1.0,
    reward_clip: float | None = None,
) -> Tensor:
    r"""
    Rewards $r_t = \log p(y_t) - \log q(y_t)$ of the sampled tokens, detached and 0 outside `mask`.

    `reward_scaling` divides them and `reward_clip` then bounds their size, as in the released code; the paper has
    neither. All tensors have shape `(B, T)`.
    """
    rewards = (teacher_logps - student_logps).detach() / reward_scaling
    if reward_clip is not None:
        rewards = rewards.clamp(-reward_clip, reward_clip)
    return torch.where(mask.bool(), rewards, 0)


def returns_to_go(rewards: Tensor, gamma: float = 1.0) -> Tensor:
    r"""
    Discounted sums of this and all later rewards, $R_t = r_t + \gamma R_{t+1}$, of shape `(B, T)`.

    A reverse scan: powers of `gamma` would underflow on long completions.
    """
    if gamma == 1.0:
        return rewards.flip(1).cumsum(1).flip(1)
    returns = torch.empty_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + gamma * following
        returns[:, t] = following
    return returns


def advantages(
    rewards: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    inclusive: bool = False,
    length_normalization: bool = True,
    per_token_kl: Tensor | None = None,
) -> Tensor:
    r"""
    Credit of each sampled token.

    Exclusive credit is $R_t - r_t = \gamma R_{t+1}$, the long-term part of Eq. (3): what the token is responsible for
    after itself. Its own reward is in the single-step term, exactly. Inclusive credit is $R_t$, for the plain policy
    gradient of Eq. (2) without a single-step term.

    Length normalisation, Eq. (6), divides by the number of terms summed. As printed, the equation divides $T - t$
    terms by $T - t - 1$, which is 0 at the last but one token; this divides by the $T - t$ terms.

    Given what comes before a token, the expectation of its reward is minus the reverse KL of its distribution, which
    is known exactly. With `per_token_kl` later tokens count by that: the same expectation on the student's samples,
    less noise, and under teacher mixing no reward of a token that the teacher chose because it likes it.

    Args:
        rewards, mask (`torch.Tensor`):
            Rewards, 0 outside `mask`, of shape `(B, T)`.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount. At `0.0` the exclusive credit vanishes.
        inclusive, length_normalization (`bool`, *optional*):
            Whether a token's own reward counts, and whether to divide by the number of terms summed.
        per_token_kl (`torch.Tensor`, *optional*):
            Reverse KL of each step, 0 outside `mask`, of shape `(B, T)`. A token's own reward stays the sampled one,
            whose product with the score is what its own step is responsible for.

    Returns:
        `torch.Tensor`: Credit of shape `(B, T)`, 0 outside `mask` and where no term is summed.
    """
    mask = mask.to(rewards.dtype)
    later = rewards if per_token_kl is None else -per_token_kl.detach()
    credit = returns_to_go(later, gamma) - later
    terms = mask.flip(1).cumsum(1).flip(1) - mask  # (B, T), tokens after t
    if inclusive:
        credit, terms = credit + rewards, terms + mask
    if length_normalization:
        credit = credit / terms.clamp(min=1)
    return torch.where((mask > 0) & (terms > 0), credit, 0)


def leave_one_out(credit: Tensor, mask: Tensor, num_generations: int) -> Tensor:
    """
    Credit of each token above that of the other answers to its prompt, at the same step.

    The baseline is the mean over the other answers that have a token there, 0 if none has. It depends on other answers
    alone, so it moves no gradient in expectation, as long as the answers are independent.

    Args:
        credit, mask (`torch.Tensor`):
            Credit, 0 outside `mask`, of shape `(B, T)`. The `num_generations` answers to a prompt are adjacent rows.
        num_generations (`int`):
            Answers to a prompt, a divisor of `B`.
    """
    credits, counts = (values.unflatten(0, (-1, num_generations)) for values in (credit, mask.to(credit.dtype)))
    others, living = (values.sum(1, keepdim=True) - values for values in (credits, counts))  # (B / G, G, T)
    return torch.where(mask.bool(), (credits - others / living.clamp(min=1)).flatten(0, 1), 0)


def masked_moments(values: Tensor, mask: Tensor, reduce=lambda total: total) -> tuple[Tensor, Tensor]:
    """Mean and variance of `values` `(B, T)` over `mask`; `reduce` sums a tensor over processes."""
    mask = mask.bool()
    count = reduce(mask.sum()).clamp(min=1)
    mean = reduce(torch.where(mask, values, 0).sum()) / count
    # A second pass, because the difference of large squares would cancel in fp32
    var = reduce(torch.where(mask, (values - mean) ** 2, 0).sum()) / count
    return mean, var


def whiten(values: Tensor, mask: Tensor, reduce=lambda total: total) -> Tensor:
    """Shift and scale `values` `(B, T)` to mean 0 and variance 1 over `mask`, on all processes; 0 outside it."""
    mean, var = masked_moments(values, mask, reduce)
    return torch.where(mask.bool(), (values - mean) / (var + 1e-8).sqrt(), 0)


def long_term_loss(
    per_token_logps: Tensor,
    sampling_per_token_logps: Tensor,
    credit: Tensor,
    epsilon: float,
    old_per_token_logps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""
    Clipped long-term loss of each token, and the ratio that is clipped.

    With $\tilde p$ the distribution that the tokens were drawn from, Eq. (4), and $q_0$ the student that it was made
    of,

    $$ w_t \max\left(-A_t \rho_t,\; -A_t\, \mathrm{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon)\right), \qquad
       \rho_t = \frac{q_\theta(y_t)}{q_0(y_t)}, \quad w_t = \frac{q_0(y_t)}{\tilde p(y_t)}. $$

    This clips what PPO means to clip, the change of the student since the rollout. Without `old_per_token_logps` it is
    the form of the paper and of the released code, with the importance weight inside the clip: $\rho_t = q_\theta /
    \tilde p$ and $w_t = 1$. That form has a floor. At $\alpha = \epsilon = 0.2$ a token with negative credit has no
    gradient once $q < p / 2.25$, before any update, so no bad start can be unlearnt below 44 % of the teacher's
    probability.

    Either way one factor of Eq. (5)'s product is kept, like in the paper's algorithm, which lowers variance and adds
    bias. The paper's transcriptions clip from above whatever the sign of $A_t$; this is PPO's rule, as in the released
    code.

    Args:
        per_token_logps, sampling_per_token_logps, old_per_token_logps (`torch.Tensor`):
            Log-probabilities under the present student, with gradient, under the sampling distribution, and under the
            student that sampled, of one shape.
        credit (`torch.Tensor`):
            Credit of each token, of the same shape.
        epsilon (`float`):
            Half-width of the clip; `inf` switches it off.
    """
    anchor = sampling_per_token_logps if old_per_token_logps is None else old_per_token_logps
    weight = (anchor - sampling_per_token_logps).exp()
    ratio = (per_token_logps - anchor).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    return weight * torch.max(-credit * ratio, -credit * clipped), ratio

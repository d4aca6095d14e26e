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
Log-probabilities of the K likeliest tokens and of all others together, from hidden states and an LM head.

What a teacher is recorded by, and a student compared with. Like `divergence.py` this projects blocks of rows, and
keeps nothing of shape `(tokens, V)`. Shapes: N tokens, K of the vocabulary's V, H hidden width, n rows of a block.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from trl.kernels.chunked_divergence import _addmm_fp32, _project
from trl.trainer.utils import maybe_gather_lm_head_ctx

from .divergence import LMHead, _operands


class TopK(NamedTuple):
    """The K likeliest next tokens at N positions, the likeliest first, and what is left for all others."""

    ids: Tensor  # (N, K)
    logps: Tensor  # (N, K + 1), the last one of all other tokens together: `-inf` if there are none


def top_k_logps(hidden: Tensor, head: LMHead, top_k: int, chunk_tokens: int = 256) -> TopK:
    """
    The `top_k` likeliest next tokens and their log-probabilities, in fp32 and without gradient.

    Args:
        hidden (`torch.Tensor`):
            Hidden states that predict the tokens, of shape `(N, H)`.
        head ([`LMHead`]):
            LM head of the same model, with `V` rows.
        top_k (`int`):
            How many, from 1 to `V`.
        chunk_tokens (`int`, *optional*, defaults to `256`):
            Rows projected at a time. The workspace is 4 bytes a row and vocabulary entry.

    Returns:
        [`TopK`]
    """
    blocks = []
    with torch.no_grad(), maybe_gather_lm_head_ctx(head.weight, head.bias):
        hidden, head = _operands(hidden, head)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _blocks(hidden, chunk_tokens):
                logits = _logits(hidden[rows], head)
                ids = logits.topk(top_k, dim=1).indices
                blocks.append((ids, _support(logits, ids)[0]))
    return TopK(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def support_logps(
    hidden: Tensor, head: LMHead, ids: Tensor, chunk_tokens: int = 256, vocab_size: int | None = None
) -> Tensor:
    """
    Log-probabilities of the tokens `ids` `(N, K)`, different ones in each row, and of all others together.

    The backward projects again: two products with the head a token, where the gradient takes two more.

    Args:
        hidden (`torch.Tensor`), head ([`LMHead`]), chunk_tokens (`int`, *optional*, defaults to `256`):
            As for [`top_k_logps`]. The workspace of the backward is 8 bytes a row and vocabulary entry, 12 with a
            softcap.
        ids (`torch.Tensor`):
            Token ids of shape `(N, K)`.
        vocab_size (`int`, *optional*):
            Rows of the head that count. It is cut here and not by [`lm_head`], so that ZeRO-3 can gather it first.

    Returns:
        `torch.Tensor`: fp32 of shape `(N, K + 1)`, with gradient to `hidden` and the head. The last column is that of
        the others; if there are none, it is `-inf` and has no gradient.
    """
    return _SupportLogps.apply(hidden, head.weight, head.bias, head, ids, chunk_tokens, vocab_size)


def _blocks(hidden: Tensor, chunk_tokens: int) -> list[slice]:
    """At least one, so that empty input keeps its shapes."""
    return [slice(start, start + chunk_tokens) for start in range(0, max(len(hidden), 1), chunk_tokens)]


def _cut(head: LMHead, vocab_size: int | None) -> LMHead:
    bias = None if head.bias is None else head.bias[:vocab_size]
    return head._replace(weight=head.weight[:vocab_size], bias=bias)


def _logits(hidden: Tensor, head: LMHead) -> Tensor:
    """What the softmax sees of a block of rows, `(n, V)` in fp32."""
    logits = hidden.new_empty(len(hidden), len(head.weight), dtype=torch.float32)
    _project(logits, hidden, head.weight, head.bias, 0, logits.shape[1], hidden.dtype)
    if head.logit_scale != 1.0:
        logits.mul_(head.logit_scale)
    cap = head.final_logit_softcapping
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def _support(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities `(n, K + 1)` and normalizer `(n, 1)`. The logits of `ids` are `-inf` afterwards."""
    log_z = logits.logsumexp(1, keepdim=True)
    chosen = logits.gather(1, ids)
    # The sum over the others and not 1 minus that over the chosen, which would be rounding alone where that is near 1
    others = logits.scatter_(1, ids, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([chosen, others], dim=1) - log_z, log_z


class _SupportLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, head, ids, chunk_tokens, vocab_size):
        ctx.save_for_backward(hidden, weight, bias, ids)
        ctx.head, ctx.chunk_tokens, ctx.vocab_size = head, chunk_tokens, vocab_size
        device = hidden.device.type
        ctx.autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with maybe_gather_lm_head_ctx(weight, bias):
            hidden, head = _operands(hidden, _cut(head._replace(weight=weight, bias=bias), vocab_size))
            with torch.autocast(device, enabled=False):
                blocks = [
                    _support(_logits(hidden[rows], head), ids[rows])[0] for rows in _blocks(hidden, chunk_tokens)
                ]
        return torch.cat(blocks)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, weight, bias, ids = ctx.saved_tensors
        device, inputs = hidden.device.type, (hidden, weight, bias)
        with maybe_gather_lm_head_ctx(weight, bias):
            gradients = [
                torch.zeros_like(tensor, dtype=torch.float32) if needed else None
                for tensor, needed in zip(inputs, ctx.needs_input_grad[:3], strict=True)
            ]
            with torch.autocast(device, ctx.autocast, enabled=ctx.autocast is not None):
                head = _cut(ctx.head._replace(weight=weight, bias=bias), ctx.vocab_size)
                hidden, head = _operands(hidden, head)
            grad_hidden, grad_weight, grad_bias = gradients
            rows_of_head = slice(len(head.weight))
            with torch.autocast(device, enabled=False):
                for rows in _blocks(hidden, ctx.chunk_tokens):
                    grad_logits = _logits_gradient(_logits(hidden[rows], head), ids[rows], grad[rows], head)
                    grad_logits = grad_logits.to(hidden.dtype)
                    if grad_hidden is not None:
                        _addmm_fp32(grad_hidden[rows], grad_logits, head.weight)
                    if grad_weight is not None:
                        _addmm_fp32(grad_weight[rows_of_head], grad_logits.t(), hidden[rows])
                    if grad_bias is not None:
                        grad_bias[rows_of_head] += grad_logits.sum(dim=0, dtype=torch.float32)
        pairs = zip(gradients, inputs, strict=True)
        return *(g if g is None else g.to(tensor.dtype) for g, tensor in pairs), *(None,) * 4


def _logits_gradient(logits: Tensor, ids: Tensor, grad: Tensor, head: LMHead) -> Tensor:
    r"""
    Gradient `(n, V)` to what the head puts out, from the one to the log-probabilities, `g` `(n, K + 1)`.

    With `q` the probabilities and `r` those of the others among themselves, it is `g_v - q_v \sum g` for a token `v`
    of the support and `r_v g_{K+1} - q_v \sum g` for another one; then it passes softcap and scale.
    """
    cap, through = head.final_logit_softcapping, None
    if cap is not None:
        through = (logits / cap).square_().neg_().add_(1)
    logps, log_z = _support(logits, ids)
    chosen, others = grad[:, :-1], grad[:, -1:]
    if ids.shape[1] < logits.shape[1]:
        total = grad.sum(1, keepdim=True)
        result = torch.sub(logits, log_z + logps[:, -1:]).exp_().mul_(others)
        result.sub_(logits.sub_(log_z).exp_().mul_(total))
    else:  # there are no others
        total, result = chosen.sum(1, keepdim=True), logits
    result.scatter_(1, ids, chosen - logps[:, :-1].exp() * total)
    if through is not None:
        result.mul_(through)
    return result if head.logit_scale == 1.0 else result.mul_(head.logit_scale)

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
Vocabulary-sized mathematics: token log-probabilities and full-vocabulary divergences from hidden states and LM heads.

This is the one place that calls TRL's kernels. No tensor of shape `(tokens, V)` is ever saved for a backward: TRL's
functions project a tile of the vocabulary again, and [`policy_loss`] makes its gradient in the forward. Shapes: B
rows, P padded prompt, T padded completion, N tokens, H hidden width, V vocabulary rows.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from trl.kernels import ChunkedLogProbFunction, chunked_divergence
from trl.kernels.chunked_divergence import VOCAB_CHUNK_SIZE, ChunkedDivergenceFunction, _addmm_fp32, _project
from trl.trainer.utils import maybe_gather_lm_head_ctx


class LMHead(NamedTuple):
    """
    What turns hidden states into logits: `softcap(logit_scale * (hidden @ weight.T + bias))`.

    The softcap is `cap * tanh(logits / cap)`.
    """

    weight: Tensor  # (V, H)
    bias: Tensor | None = None  # (V,)
    logit_scale: float = 1.0  # Cohere, Granite
    final_logit_softcapping: float | None = None  # Gemma, xLSTM


def _logit_scale(config) -> float:
    # One quantity, a name per model family; `None` means unscaled
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    for name in ("logits_scaling", "logits_mup_width_multiplier"):  # Granite divides, HyperCLOVA X multiplies
        if getattr(config, name, None) is not None:
            scaling = getattr(config, name)
            return scaling if config.model_type == "hyperclovax" else 1 / scaling
    return 1.0


def _softcap(config) -> float | None:
    for name in ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    return None


def lm_head(model, vocab_size: int | None = None) -> LMHead:
    """
    Read the LM head of an unwrapped causal language model.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model without its DDP, FSDP1 or DeepSpeed wrapper.
        vocab_size (`int`, *optional*):
            Number of vocabulary rows to keep. Rows beyond it are sliced away, never masked: a logit of `-inf` would
            make the divergence `nan`.

    Returns:
        [`LMHead`]: Views of the parameters, so gradients reach them; under FSDP2 the gathered tensors.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    weight, bias = head.weight, getattr(head, "bias", None)
    if isinstance(weight, DTensor):  # FSDP2: one gather here instead of one per tile
        weight = weight.full_tensor()
        bias = bias.full_tensor() if bias is not None else None
    # Under ZeRO-3 the local shard is empty and the kernels gather the parameter itself, so it must not be sliced there
    if vocab_size is not None and weight.shape[0] > vocab_size:
        weight = weight[:vocab_size]
        bias = bias[:vocab_size] if bias is not None else None
    return LMHead(weight, bias, _logit_scale(config), _softcap(config))


def token_logps(
    hidden: Tensor, head: LMHead, tokens: Tensor, temperature: float = 1.0, chunk_tokens: int = 1024
) -> Tensor:
    """
    Log-probabilities of `tokens` under `softmax(logits / temperature)`.

    Computed in fp32 outside autocast: with bf16 logits the error reaches 0.1 nats at vocabularies of 150k.

    Args:
        hidden (`torch.Tensor`):
            Hidden states that predict the tokens, of shape `(N, H)`.
        head ([`LMHead`]):
            LM head of the same model.
        tokens (`torch.Tensor`):
            Token ids of shape `(N,)`.
        temperature (`float`, *optional*, defaults to `1.0`):
            Softmax temperature.
        chunk_tokens (`int`, *optional*, defaults to `1024`):
            Rows projected at a time; the workspace is 128 KiB a row on GPUs.

    Returns:
        `torch.Tensor`: fp32 log-probabilities of shape `(N,)`, with gradient to `hidden` and the head.
    """
    with (
        torch.autocast(hidden.device.type, enabled=False),
        maybe_gather_lm_head_ctx(head.weight, head.bias),
    ):
        blocks = [
            ChunkedLogProbFunction.apply(
                hidden[start : start + chunk_tokens].float(),
                head.weight,
                head.bias,
                tokens[start : start + chunk_tokens],
                temperature,
                VOCAB_CHUNK_SIZE,
                head.final_logit_softcapping,
                head.logit_scale,
                (),
            )[0]
            for start in range(0, max(len(hidden), 1), chunk_tokens)  # at least one block: empty input keeps its graph
        ]
    return torch.cat(blocks)


def token_divergence(
    student_hidden: Tensor,
    student_head: LMHead,
    teacher_hidden: Tensor,
    teacher_head: LMHead,
    beta: float = 1.0,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
) -> tuple[Tensor, Tensor]:
    """
    Exact per-token divergence between student and teacher over the whole vocabulary, and the student's entropy.

    Args:
        student_hidden, teacher_hidden (`torch.Tensor`):
            Hidden states of shape `(N, H_s)` and `(N, H_t)`. The teacher's receive no gradient.
        student_head, teacher_head ([`LMHead`]):
            Heads with the same `V` rows.
        beta (`float`, *optional*, defaults to `1.0`):
            As in [`~trl.DistillationConfig`]: `1.0` is the reverse KL(student || teacher), `0.0` the forward
            KL(teacher || student), in between the generalized Jensen-Shannon divergence.
        temperature (`float`, *optional*, defaults to `1.0`):
            Softmax temperature of both models.
        chunk_tokens (`int`, *optional*, defaults to `1024`):
            Rows projected at a time; the workspace is 256 KiB a row on GPUs, and about 1.4 MiB in TRL's fallback on
            CPUs.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Divergence and student entropy in nats, both fp32 of shape `(N,)`. Only
        the divergence has a gradient, and only to the student.
    """
    # TRL sizes its tiles by the rows that it is given, so blocks of rows bound the workspace
    blocks = [
        ChunkedDivergenceFunction.apply(
            student_hidden[start : start + chunk_tokens],
            student_head.weight,
            student_head.bias,
            teacher_hidden[start : start + chunk_tokens],
            teacher_head.weight,
            teacher_head.bias,
            beta,
            temperature,
            student_head.logit_scale,
            student_head.final_logit_softcapping,
            teacher_head.logit_scale,
            teacher_head.final_logit_softcapping,
        )
        for start in range(0, max(len(student_hidden), 1), chunk_tokens)
    ]
    divergence, entropy = zip(*blocks, strict=True)
    return torch.cat(divergence), torch.cat(entropy)


class TokenScores(NamedTuple):
    """What one visit to the vocabulary tells of N tokens, in nats: fp32 of shape `(N,)`, without gradient."""

    kl: Tensor  # reverse KL(student || teacher) over the whole vocabulary
    entropy: Tensor  # of the student
    student_logps: Tensor  # of the tokens
    teacher_logps: Tensor

    def by_row(self, mask: Tensor) -> "TokenScores":
        """The scores of the N tokens where `mask` `(B, T)` is 1, as `(B, T)` with 0 elsewhere."""
        return TokenScores(*(scores.new_zeros(mask.shape).masked_scatter(mask.bool(), scores) for scores in self))


def token_scores(
    student_hidden: Tensor,
    student_head: LMHead,
    teacher_hidden: Tensor,
    teacher_head: LMHead,
    tokens: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int = 256,
) -> TokenScores:
    """Reverse KL, entropy and log-probabilities, from one product with each head. Arguments as in [`policy_loss`]."""
    models = student_hidden, student_head, teacher_hidden, teacher_head
    with torch.no_grad():
        return _visit(*models, tokens, temperature, chunk_tokens)[1]


def policy_loss(
    student_hidden: Tensor,
    student_head: LMHead,
    teacher_hidden: Tensor | None,
    teacher_head: LMHead | None,
    tokens: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int = 256,
    surrogate: Callable[[Tensor, slice], Tensor] | None = None,
) -> tuple[Tensor, TokenScores]:
    r"""
    Sum over tokens of the reverse KL and of a loss of their log-probabilities, $\sum_n KL_n + f_n(\log q(y_n))$.

    The gradient is made in the forward, while the logits are there: four products with a head a token, the gradient's
    two among them, where a backward that projects again takes six. Operands are cast as under autocast and products
    summed in fp32, so that logits are never rounded to bf16: at vocabularies of 150k that would move log-probabilities
    by 0.1 nats.

    Args:
        student_hidden, teacher_hidden (`torch.Tensor`):
            Hidden states that predict the tokens, of shape `(N, H_s)` and `(N, H_t)`. Without those of a teacher there
            is no KL.
        student_head, teacher_head ([`LMHead`]):
            Heads with the same `V` rows.
        tokens (`torch.Tensor`):
            Token ids of shape `(N,)`.
        temperature (`float`, *optional*, defaults to `1.0`):
            Softmax temperature of both models.
        chunk_tokens (`int`, *optional*, defaults to `256`):
            Rows projected at a time. The workspace is 8 bytes a row and vocabulary entry, 297 MiB for 256 rows of
            152k; on CPUs 12 bytes.
        surrogate (`Callable[[torch.Tensor, slice], torch.Tensor]`, *optional*):
            The differentiable loss `f` of each token, from the log-probabilities of a block of tokens `(n,)` and the
            slice of the `N` that they are.

    Returns:
        `tuple[torch.Tensor, TokenScores]`: The sum, with gradient to `student_hidden` and the student's head, which
        the first backward uses up; and the scores. Without a teacher the student stands in for it.
    """
    visit = student_head, teacher_hidden, teacher_head, tokens, temperature, chunk_tokens, surrogate
    loss, *scores = _PolicyLoss.apply(student_hidden, student_head.weight, student_head.bias, *visit)
    return loss, TokenScores(*scores)


class _PolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, head, *visit):
        head = head._replace(weight=weight, bias=bias)
        loss, scores, ctx.gradients = _visit(hidden, head, *visit, needs=ctx.needs_input_grad[:3])
        ctx.dtypes = [tensor if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        ctx.mark_non_differentiable(*scores)
        return loss, *scores

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, *_):
        if ctx.gradients is None:
            raise RuntimeError("The gradient of `policy_loss` is made in the forward, for one backward.")
        gradients, ctx.gradients = ctx.gradients, None  # the head's is large, so it is scaled in place
        pairs = zip(gradients, ctx.dtypes, strict=True)
        return *(g if g is None else g.mul_(grad_loss).to(dtype) for g, dtype in pairs), *(None,) * 7


def _visit(
    hidden, head, teacher_hidden, teacher_head, tokens, temperature, chunk_tokens, surrogate=None, needs=(False,) * 3
):
    """Sum, scores and gradients of [`policy_loss`]; `needs` says which of hidden states, weight and bias have one."""
    if teacher_hidden is None:
        teacher_hidden, teacher_head = hidden, head
    scores, losses = hidden.new_zeros(4, len(hidden), dtype=torch.float32), hidden.new_zeros(len(hidden)).float()
    with maybe_gather_lm_head_ctx(*head[:2]), maybe_gather_lm_head_ctx(*teacher_head[:2]):
        wanted = [tensor if needed else None for tensor, needed in zip((hidden, *head[:2]), needs, strict=True)]
        gradients = [None if tensor is None else torch.zeros_like(tensor, dtype=torch.float32) for tensor in wanted]
        hidden, head = _operands(hidden, head)
        teacher_hidden, teacher_head = _operands(teacher_hidden, teacher_head)
        # The operands are cast; sums over the vocabulary must not be
        with torch.autocast(hidden.device.type, enabled=False):
            make_tile = _TritonTile if chunked_divergence._use_triton(hidden.device) else _Tile
            tile = make_tile(min(chunk_tokens, len(hidden)), head, teacher_head, temperature)
            for start in range(0, len(hidden), chunk_tokens):
                rows = slice(start, min(start + chunk_tokens, len(hidden)))
                scores[:, rows] = torch.stack(tile.read(hidden[rows], teacher_hidden[rows], tokens[rows]))
                slopes = losses[rows]  # of the loss of each log-probability
                if surrogate is not None:
                    with torch.enable_grad():
                        logps = scores[2, rows].clone().requires_grad_()
                        loss = surrogate(logps, rows)
                        (slopes,) = torch.autograd.grad(loss.sum(), logps)
                    losses[rows] = loss.detach()
                if any(needs):
                    grad_logits = tile.gradient(slopes).to(hidden.dtype)  # (n, V)
                    grad_hidden, grad_weight, grad_bias = gradients
                    if grad_hidden is not None:
                        _addmm_fp32(grad_hidden[rows], grad_logits, head.weight)
                    if grad_weight is not None:
                        _addmm_fp32(grad_weight, grad_logits.t(), hidden[rows])
                    if grad_bias is not None:
                        grad_bias += grad_logits.sum(dim=0, dtype=torch.float32)
    return (scores[0] + losses).sum(), TokenScores(*scores), gradients


def _operands(hidden: Tensor, head: LMHead) -> tuple[Tensor, LMHead]:
    """What is multiplied, cast as autocast would. CPUs have no fp32 product of bf16 operands, so there it is fp32."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    hidden, weight = hidden.to(dtype), head.weight.to(dtype)
    if device == "cpu":
        hidden, weight = hidden.float(), weight.float()
    return hidden, head._replace(weight=weight)


class _Tile:
    """Logits `(n, V)` of student and teacher for a block of rows, in buffers that all blocks use."""

    buffers = 3  # the student's logits, the teacher's, and probabilities

    def __init__(self, rows: int, head: LMHead, teacher_head: LMHead, temperature: float):
        self.heads, self.temperature = (head, teacher_head), temperature
        shape = (self.buffers, rows, head.weight.shape[0])
        self.memory = torch.empty(shape, dtype=torch.float32, device=head.weight.device)

    def read(self, hidden: Tensor, teacher_hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fields of [`TokenScores`] of a block."""
        self.tokens = tokens[:, None]
        self.tiles = self.memory[:, : len(tokens)]
        chosen = []
        for tile, states, head in zip(self.tiles, (hidden, teacher_hidden), self.heads, strict=False):
            _project(tile, states, head.weight, head.bias, 0, tile.shape[1], states.dtype)
            chosen.append(self.logits(tile.gather(1, self.tokens), head)[:, 0])
        self.chosen = chosen[0]
        self.kl, entropy, self.log_z, self.teacher_log_z = self.statistics()
        return self.kl, entropy, chosen[0] - self.log_z, chosen[1] - self.teacher_log_z

    def gradient(self, slopes: Tensor) -> Tensor:
        """
        Gradient to what the head puts out, of the KL and of log-probabilities with the weights `slopes`, in place.

        The KL's is `q (log q - log p - KL)`, and `c (onehot - q)` that of the log-probability: the second summand goes
        along with the KL. Both then pass temperature, softcap and scale.
        """
        grad = self.softmax_gradient(self.kl + slopes)
        head = self.heads[0]
        through = torch.full_like(self.chosen, head.logit_scale / self.temperature)
        if head.final_logit_softcapping is not None:
            through *= 1 - (self.chosen * self.temperature / head.final_logit_softcapping) ** 2
        return grad.scatter_add_(1, self.tokens, (slopes * through)[:, None])

    def logits(self, tile: Tensor, head: LMHead) -> Tensor:
        """What the softmax sees of the products with a head, in place."""
        cap = head.final_logit_softcapping
        if cap is not None:
            return tile.mul_(head.logit_scale / cap).tanh_().mul_(cap / self.temperature)
        return tile if head.logit_scale == self.temperature else tile.mul_(head.logit_scale / self.temperature)

    def statistics(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """KL, entropy, and the logarithms of both normalizers, `(n,)`."""
        logits, teacher, probs = self.tiles
        log_z = []
        for tile, head in ((teacher, self.heads[1]), (logits, self.heads[0])):
            top = self.logits(tile, head).amax(1, keepdim=True)
            total = torch.sub(tile, top, out=probs).exp_().sum(1, keepdim=True)
            log_z.append((top + total.log())[:, 0])
        teacher_log_z, student_log_z = log_z
        probs.div_(total)
        gap = torch.sub(logits, teacher, out=teacher)
        kl = torch.einsum("nv,nv->n", probs, gap) - student_log_z + teacher_log_z
        return kl, student_log_z - torch.einsum("nv,nv->n", probs, logits), student_log_z, teacher_log_z

    def softmax_gradient(self, shift: Tensor) -> Tensor:
        """`q (log q - log p - shift)` through temperature, softcap and scale."""
        (logits, gap, probs), head = self.tiles, self.heads[0]
        grad = gap.sub_((self.log_z - self.teacher_log_z + shift)[:, None]).mul_(probs)
        cap = head.final_logit_softcapping
        if cap is not None:
            grad.mul_(logits.mul_(self.temperature / cap).square_().neg_().add_(1))
        return grad if head.logit_scale == self.temperature else grad.mul_(head.logit_scale / self.temperature)


class _TritonTile(_Tile):
    """The same by TRL's kernels, which read each tile once for the statistics and once for the gradient."""

    buffers = 2

    @property
    def kernel_args(self) -> dict[str, Any]:
        args = {"inv_t": 1 / self.temperature, "BLOCK_SIZE": chunked_divergence._BLOCK_SIZE}
        for name, head in zip("st", self.heads, strict=True):
            cap = head.final_logit_softcapping
            args |= {f"{name}_scale": head.logit_scale, f"{name}_softcap": cap or 1.0}
            args[f"{name.upper()}_HAS_SOFTCAP"] = cap is not None
        return args

    def statistics(self):
        logits, teacher = self.tiles
        count, width = logits.shape
        sums = logits.new_zeros(7, count)
        sums[0] = sums[3] = -math.inf  # running maxima of the student and of the teacher
        strided = logits, logits.stride(0), teacher, teacher.stride(0)
        chunked_divergence._stats_kernel[(count,)](*strided, *sums, width, **self.kernel_args)
        top, total, logit_sum, teacher_top, teacher_total, _, gap_sum = sums
        log_z, teacher_log_z = top + total.log(), teacher_top + teacher_total.log()
        return gap_sum / total - log_z + teacher_log_z, log_z - logit_sum / total, log_z, teacher_log_z

    def softmax_gradient(self, shift):
        logits, teacher = self.tiles
        count, width = logits.shape
        strided = logits, logits.stride(0), teacher, teacher.stride(0)
        rows = self.log_z, self.teacher_log_z, shift, torch.ones_like(shift)
        grid = count, -(-width // chunked_divergence._BLOCK_SIZE)
        chunked_divergence._backward_kernel[grid](*strided, *rows, width, 1.0, MODE=1, **self.kernel_args)
        return logits


def backbone(model) -> torch.nn.Module:
    """What an unwrapped causal language model has below its LM head."""
    model = model.base_model.model if is_peft_model(model) else model
    below = model.base_model
    return model.model if below is model else below  # the text model of Llama 4 names another prefix than it has


def backbone_states(model, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states `(B, L, H)` of an unwrapped causal language model, before its LM head."""
    inputs = dict(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return backbone(model)(**inputs).last_hidden_state


@contextmanager
def recorded_states(model) -> Iterator[list[Tensor]]:
    """The last hidden states `(B, L, H)` of each forward of the backbone, which a fused LM head does not hand out."""
    states: list[Tensor] = []
    handle = backbone(model).register_forward_hook(lambda _, args, output: states.append(output.last_hidden_state))
    try:
        yield states
    finally:
        handle.remove()


def join_completions(
    prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Join left-padded prompts and right-padded completions into rows that start at position 0.

    Without padding on the left, the default positions are right for every model, those with learned absolute positions
    (GPT-2) included, and the width of the padding changes nothing. TRL's `flush_left` also cuts columns that no row
    fills, which waits for the GPU to count them and moves the last bits of what the model computes.

    Args:
        prompt_ids, prompt_mask, completion_ids, completion_mask (`torch.Tensor`):
            Prompts and their masks of shape `(B, P)`, completions and theirs of shape `(B, T)`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: `input_ids` and `attention_mask` of shape `(B, P + T)`, and
        `positions` of shape `(B, T)`: where in the row stands the hidden state that predicts each completion token.
    """
    ids = torch.cat([prompt_ids, completion_ids], dim=1)  # (B, P + T)
    mask = torch.cat([prompt_mask, completion_mask], dim=1).bool()
    order = mask.logical_not().long().argsort(dim=1, stable=True)  # attended tokens first, in their order
    prompt_lengths = prompt_mask.sum(dim=1, keepdim=True)  # (B, 1)
    steps = torch.arange(completion_ids.shape[1], device=ids.device)  # (T,)
    positions = prompt_lengths - 1 + steps  # (B, T), the last prompt token predicts the first completion token
    return ids.gather(1, order), mask.gather(1, order).long(), positions.clamp(min=0)


def select_states(states: Tensor, positions: Tensor) -> Tensor:
    """Pick from `states` `(B, L, H)` the hidden states at `positions` `(B, T)`: `(B, T, H)`."""
    return states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))


def pad_states(states: Tensor | None, rows: slice, width: int) -> Tensor | None:
    """Some rows of states `(B, T, H)`, padded behind to `width`; of `None`, `None`."""
    return None if states is None else torch.nn.functional.pad(states[rows], (0, 0, 0, width - states.shape[1]))


def completion_states(
    model, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor
) -> Tensor:
    """
    Hidden states `(B, T, H)` that predict each completion token, from one forward of the backbone.

    Arguments as in [`join_completions`]; positions where `completion_mask` is 0 hold arbitrary values.
    """
    input_ids, attention_mask, positions = join_completions(prompt_ids, prompt_mask, completion_ids, completion_mask)
    return select_states(backbone_states(model, input_ids, attention_mask), positions)

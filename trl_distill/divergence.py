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

This is the one place that calls TRL's chunked kernels. They project a tile of the vocabulary at a time and recompute
it in the backward, so no tensor of shape `(tokens, V)` is ever saved. Shapes: B rows, P padded prompt, T padded
completion, N tokens, H hidden width, V vocabulary rows.
"""

from typing import NamedTuple

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from torch.distributed.tensor import DTensor
from trl.kernels import ChunkedLogProbFunction
from trl.kernels.chunked_divergence import VOCAB_CHUNK_SIZE, ChunkedDivergenceFunction
from trl.trainer.utils import maybe_gather_lm_head_ctx


class LMHead(NamedTuple):
    """
    What turns hidden states into logits: `softcap(logit_scale * (hidden @ weight.T + bias))`.

    The softcap is `cap * tanh(logits / cap)`.
    """

    weight: Tensor  # (V, H)
    bias: Tensor | None = None  # (V,)
    logit_scale: float = 1.0  # Cohere, Granite
    final_logit_softcapping: float | None = None  # Gemma


def _logit_scale(config) -> float:
    # One quantity, a name per model family; `None` means unscaled
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    scaling = getattr(config, "logits_scaling", None)  # Granite divides by it, HyperCLOVA X multiplies
    if scaling is None:
        return 1.0
    return scaling if config.model_type == "hyperclovax" else 1 / scaling


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
    return LMHead(weight, bias, _logit_scale(config), getattr(config, "final_logit_softcapping", None))


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


def backbone_states(model, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states `(B, L, H)` of an unwrapped causal language model, before its LM head."""
    if is_peft_model(model):
        model = model.base_model.model
    return model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


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


def completion_states(
    model, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor
) -> Tensor:
    """
    Hidden states `(B, T, H)` that predict each completion token, from one forward of the backbone.

    Arguments as in [`join_completions`]; positions where `completion_mask` is 0 hold arbitrary values.
    """
    input_ids, attention_mask, positions = join_completions(prompt_ids, prompt_mask, completion_ids, completion_mask)
    return select_states(backbone_states(model, input_ids, attention_mask), positions)


def completion_logps(
    model, prompt_ids, prompt_mask, completion_ids, completion_mask, vocab_size, temperature, chunk_tokens
) -> tuple[Tensor, Tensor]:
    """[`completion_states`] `(B, T, H)`, and from them the log-probabilities of the tokens `(B, T)`, 0 on padding."""
    states = completion_states(model, prompt_ids, prompt_mask, completion_ids, completion_mask)
    mask = completion_mask.bool()
    logps = token_logps(states[mask], lm_head(model, vocab_size), completion_ids[mask], temperature, chunk_tokens)
    return states, logps.new_zeros(mask.shape).masked_scatter(mask, logps)

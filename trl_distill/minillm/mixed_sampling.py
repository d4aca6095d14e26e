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

"""Teacher-mixed sampling of MiniLLM (https://huggingface.co/papers/2306.08543, Eq. 4), by switching models."""

import inspect
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import DynamicCache
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import pad


class MixedRollout(NamedTuple):
    """What [`mixed_generate`] returns."""

    completion_ids: Tensor  # (B, T), `pad_token_id` behind the end of a row
    lengths: Tensor  # (B,), tokens of each completion, the EOS included
    teacher_tokens: int  # how many of them the teacher drew
    teacher_calls: int  # forward passes
    student_calls: int


class _Reader:
    """A model with its own KV cache, which reads all tokens that it has not seen yet in one block."""

    def __init__(self, model, vocab_size: int | None, context: Callable[[], AbstractContextManager]):
        self.model = model
        self.vocab_size = vocab_size
        self.context = context
        self.cache = DynamicCache(config=model.config.get_text_config())
        self.seen = 0
        self.calls = 0
        self.accepts = inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters

    def next_logits(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Logits `(B, V)` of the token after `ids` `(B, L)`."""
        inputs = {"input_ids": ids[:, self.seen :], "attention_mask": mask}
        if "position_ids" in self.accepts:
            inputs["position_ids"] = positions[:, self.seen :]
        if "logits_to_keep" in self.accepts:
            # An index, not the number 1: the slice that 1 stands for is strided, and torch multiplies strided states
            # with a frozen head by copying the head once a row
            last = ids.shape[1] - self.seen - 1
            inputs["logits_to_keep"] = torch.arange(last, last + 1, device=ids.device)
        with self.context():
            logits = self.model(**inputs, past_key_values=self.cache, use_cache=True).logits[:, -1]
        self.seen, self.calls = ids.shape[1], self.calls + 1
        return logits[:, : self.vocab_size].float()

    def keep_rows(self, rows: Tensor):
        if self.seen:
            self.cache.batch_select_indices(rows)


@torch.no_grad()
def mixed_generate(
    student,
    teacher,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    alpha: float,
    max_new_tokens: int,
    eos_token_ids: list[int],
    pad_token_id: int,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    generator: torch.Generator | None = None,
    synced_gpus: bool = False,
    teacher_context: Callable[[], AbstractContextManager] = nullcontext,
) -> MixedRollout:
    r"""
    Sample completions from $\tilde p = \alpha p + (1 - \alpha) q$, with teacher $p$ and student $q$.

    One coin a step chooses the model that draws the next token of every row, and a model that was not chosen for a
    while catches up in one block. A mixture of distributions is what a coin that ignores the text samples from, so
    every row is an exact sample of $\tilde p$, for `alpha` teacher passes a token in place of one. Rows of one call
    share their coins and are therefore correlated: give them different prompts.

    Args:
        student, teacher ([`~transformers.PreTrainedModel`]):
            Unwrapped models in the mode to sample in (no dropout).
        input_ids, attention_mask (`torch.Tensor`):
            Left-padded prompts and their masks, of shape `(B, P)`.
        alpha (`float`):
            Share of the teacher, in `[0, 1]`.
        max_new_tokens, eos_token_ids, pad_token_id (`int`, `list[int]`, `int`):
            Longest completion, the tokens that end one, and the token behind its end.
        temperature (`float`, *optional*, defaults to `1.0`):
            Softmax temperature of both models.
        vocab_size (`int`, *optional*):
            Vocabulary rows that both models share; tokens beyond are never drawn.
        generator (`torch.Generator`, *optional*):
            CPU generator of the coins. Tokens come from the global generator of the device.
        synced_gpus (`bool`, *optional*, defaults to `False`):
            Whether to go on until every process is done, for sharded models, whose forwards are collective. All
            processes must then be given coins from equal generators.
        teacher_context (`Callable[[], AbstractContextManager]`, *optional*):
            Entered around each teacher pass, such as `student.disable_adapter` when both are one model.
    """
    readers = {
        True: _Reader(teacher, vocab_size, teacher_context),
        False: _Reader(student, vocab_size, nullcontext),
    }
    coins = (torch.rand(max_new_tokens, generator=generator) < alpha).tolist()
    eos = torch.tensor(eos_token_ids, device=input_ids.device)
    ids, mask = input_ids, attention_mask
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # (B, P), padding does not count
    rows = torch.arange(len(ids), device=ids.device)  # (b,), where the rows that are still read belong
    finished = torch.zeros_like(rows, dtype=torch.bool)  # (b,)
    completion_ids = ids.new_full((len(ids), max_new_tokens), pad_token_id)
    lengths = torch.zeros_like(rows)  # (B,)
    teacher_tokens = steps = 0

    for teacher_draws in coins:
        logits = readers[teacher_draws].next_logits(ids, mask, positions)  # (b, V)
        # A row of NaN draws any token instead of stopping the device; whoever scores the completion sees the NaN again
        probabilities = (logits / temperature).softmax(dim=-1).nan_to_num(nan=1.0)
        tokens = torch.multinomial(probabilities, num_samples=1)  # (b, 1)
        tokens = torch.where(finished[:, None], pad_token_id, tokens)
        completion_ids[rows, steps] = tokens[:, 0]
        lengths[rows] += ~finished
        teacher_tokens += teacher_draws * (~finished).sum()
        steps += 1
        ids = torch.cat([ids, tokens], dim=1)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)

        finished = finished | torch.isin(tokens[:, 0], eos)
        waiting = (~finished).sum()
        if synced_gpus:
            somewhere = waiting.clone()
            dist.all_reduce(somewhere, op=dist.ReduceOp.MAX)
            if not somewhere:
                break
        elif not waiting:
            break
        # Rows that have ended leave the batch, a quarter at a time so that the caches are seldom copied. One row stays
        # to take part in the collectives of the others.
        if waiting <= 0.75 * len(rows) and len(rows) > 1:
            keep = (~finished).nonzero()[:, 0] if waiting else rows.new_zeros(1)
            ids, mask, positions, rows, finished = (x[keep] for x in (ids, mask, positions, rows, finished))
            for reader in readers.values():
                reader.keep_rows(keep)

    return MixedRollout(
        completion_ids=completion_ids[:, :steps],
        lengths=lengths,
        teacher_tokens=int(teacher_tokens),
        teacher_calls=readers[True].calls,
        student_calls=readers[False].calls,
    )


@contextmanager
def _ready_to_generate(model, accelerator, backend, args):
    """The unwrapped model with its parameters gathered, as TRL's trainers prepare theirs for `generate`."""
    with (
        unwrap_model_for_generation(
            model,
            accelerator,
            gather_deepspeed3_params=args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        ) as unwrapped_model,
        backend.summon_full_params(model, recurse=False),
    ):
        yield unwrapped_model


def mixed_completions(
    student, teacher, prompt_ids, *, args, generation_config, vocab_size, rollout_set, accelerator, backend
) -> tuple[list[list[int]], dict[str, tuple[int, int]]]:
    """
    Completions of a trainer's wrapped models to prompts as token ids, and what to log about them.

    `teacher` is `None` if it is the student's base model. `rollout_set` numbers the set: coins are a function of it,
    so that a resumed run draws the same.
    """
    prompts = [torch.tensor(ids, device=accelerator.device) for ids in prompt_ids]
    # A sharded model makes each forward a collective, and then all processes must call the same model
    sharded = accelerator.num_processes > 1 and (backend.is_zero3 or backend.is_fsdp)
    stream = 0 if sharded else accelerator.process_index
    coins = random.Random(f"{args.seed}, {rollout_set}, {stream}").getrandbits(32)
    ready = partial(_ready_to_generate, accelerator=accelerator, backend=backend, args=args)
    with ready(student) as student_model, nullcontext() if teacher is None else ready(teacher) as teacher_model:
        rollout = mixed_generate(
            student_model,
            student_model if teacher is None else teacher_model,
            pad(prompts, padding_value=generation_config.pad_token_id, padding_side="left"),
            pad([torch.ones_like(ids) for ids in prompts], padding_side="left"),
            alpha=args.teacher_mix_alpha,
            max_new_tokens=generation_config.max_new_tokens,
            eos_token_ids=generation_config.eos_token_id,
            pad_token_id=generation_config.pad_token_id,
            temperature=args.temperature,
            vocab_size=vocab_size,
            generator=torch.Generator().manual_seed(coins),
            synced_gpus=sharded,
            teacher_context=student_model.disable_adapter if teacher is None else nullcontext,
        )
    lengths = rollout.lengths.tolist()
    metrics = {
        "mix/teacher_share": (rollout.teacher_tokens, sum(lengths)),
        "mix/teacher_calls": (rollout.teacher_calls, 1),
    }
    return [ids[:length] for ids, length in zip(rollout.completion_ids.tolist(), lengths, strict=True)], metrics

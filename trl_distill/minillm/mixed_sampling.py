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
Rollouts of MiniLLM (https://huggingface.co/papers/2306.08543): teacher-mixed sampling, Eq. 4, by switching models.

What a model computes of a token while it draws is kept, so that no model reads a token twice.
"""

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import pad

from ..divergence import backbone


class MixedRollout(NamedTuple):
    """What [`mixed_generate`] returns."""

    completion_ids: Tensor  # (B, T), `pad_token_id` behind the end of a row
    lengths: Tensor  # (B,), tokens of each completion, the EOS included
    student_states: Tensor | None  # (B, T, H_s), the hidden states that predict the tokens; arbitrary behind the end
    teacher_states: Tensor | None  # (B, T, H_t); `None` without states, or without a teacher
    teacher_tokens: int  # how many of them the teacher drew
    teacher_drew: Tensor  # (T,) bool, on the CPU: which of them, in every row
    teacher_calls: int  # forward passes
    student_calls: int  # forward passes, or calls of `draw_run`


@contextmanager
def last_hidden_states(model) -> Iterator[list[Tensor]]:
    """The last hidden states `(B, L, H)` of each forward of `model`, whose own head then makes logits of a few."""
    states: list[Tensor] = []
    # Of the decoder, which OPT calls itself, going around the rest of its backbone
    hook = backbone(model).get_decoder().register_forward_hook(lambda *call: states.append(call[-1][0]))
    try:
        yield states
    finally:
        hook.remove()


class Reading(NamedTuple):
    """What a model can do with its cache (`probe.py` finds out)."""

    in_blocks: bool = True  # go on with several tokens at once, not with one after the other
    drops_rows: bool = True  # forget the rows that have ended


class Reader:
    """A model with its own cache, which reads all tokens that it has not seen yet, in one block if it can."""

    def __init__(
        self,
        model,
        vocab_size: int | None,
        context: Callable[[], AbstractContextManager],
        reading: Reading,
        keeps_states: bool,
        shape,
    ):
        self.model = model
        self.vocab_size = vocab_size
        self.context = context
        self.in_blocks = reading.in_blocks
        self.cache = None  # the model makes its own, of whatever class it reads
        self.seen = 0
        self.calls = 0
        self.accepts = inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters
        self.cache_name = "cache_params" if "cache_params" in self.accepts else "past_key_values"  # of Mamba
        self.keeps_states, self.shape, self.states = keeps_states, shape, None

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """Logits `(b, V)` of the token after `ids` `(b, L)`, which hold tokens that this model has not seen."""
        whole = self.in_blocks or not self.seen  # a prompt is one block for every model
        for end in [ids.shape[1]] if whole else range(self.seen + 1, ids.shape[1] + 1):
            logits = self._read_block(ids[:, :end], mask[:, :end], positions[:, :end], rows)
        return logits

    def _read_block(self, ids: Tensor, mask: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        inputs = {"input_ids": ids[:, self.seen :], "attention_mask": mask}
        if self.cache_name == "cache_params":  # no keys of the past to hide
            inputs["attention_mask"] = mask[:, self.seen :]
        if "position_ids" in self.accepts:
            inputs["position_ids"] = positions[:, self.seen :]
        if "logits_to_keep" in self.accepts:
            # An index, not the number 1: the slice that 1 stands for is strided, and torch multiplies strided states
            # with a frozen head by copying the head once a row
            last = ids.shape[1] - self.seen - 1
            inputs["logits_to_keep"] = torch.arange(last, last + 1, device=ids.device)
        kept = last_hidden_states(self.model) if self.keeps_states else nullcontext([])
        with self.context(), kept as states:
            output = self.model(**inputs, **{self.cache_name: self.cache}, use_cache=True)
        if self.keeps_states:
            self._keep(states[0], rows)
        self.cache, self.seen, self.calls = output[self.cache_name], ids.shape[1], self.calls + 1
        return output.logits[:, -1, : self.vocab_size].float()

    def _keep(self, states: Tensor, rows: Tensor):
        prompt, steps = self.shape[1] - 1, self.shape[2]  # the last token of a prompt predicts the first drawn one
        if self.states is None:
            self.states = states.new_zeros(self.shape[0], steps, states.shape[-1])
        states = states[:, max(prompt - self.seen, 0) :]
        first = max(self.seen - prompt, 0)
        self.states[rows, first : first + states.shape[1]] = states

    def catch_up(self, ids: Tensor, *rest: Tensor):
        """Read what is not read yet, for its states."""
        if self.keeps_states and self.seen < ids.shape[1]:
            self.read(ids, *rest)

    def keep_rows(self, rows: Tensor):
        if self.seen:
            self.cache.reorder_cache(rows)  # selects as well, and layers with a recurrent state have it, too


def _draw(logits: Tensor, temperature: float) -> Tensor:
    """
    A token `(b, 1)` of each row of logits `(b, V)`, where its distribution function passes a uniform number.

    A row of NaN draws any token instead of stopping the device; whoever scores the completion sees the NaN again.
    """
    # In float64: rounded in fp32, the steps of tokens below 1e-7 would vanish or double
    steps = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).exp_().cumsum(dim=-1, dtype=torch.float64)
    heights = torch.rand(len(steps), 1, dtype=torch.float64, device=steps.device) * steps[:, -1:]
    return torch.searchsorted(steps, heights, right=True).clamp_(max=steps.shape[1] - 1)


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
    keeps_states: bool = False,
    draw_run: Callable[[list[list[int]], int], list[list[int]]] | None = None,
    readings: tuple[Reading, Reading] = (Reading(), Reading()),
) -> MixedRollout:
    r"""
    Sample completions from $\tilde p = \alpha p + (1 - \alpha) q$, with teacher $p$ and student $q$.

    One coin a step chooses the model that draws the next token of every row, and a model that was not chosen for a
    while catches up in one block. A mixture of distributions is what a coin that ignores the text samples from, so
    every row is an exact sample of $\tilde p$, for `alpha` teacher passes a token in place of one. Rows of one call
    share their coins and are therefore correlated: give them different prompts.

    Args:
        student, teacher ([`~transformers.PreTrainedModel`]):
            Unwrapped models in the mode to sample in (no dropout). At `alpha` 0 the teacher is not used.
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
        keeps_states (`bool`, *optional*, defaults to `False`):
            Whether to return the hidden states that predict the tokens, of the student and, at `alpha` above 0, of the
            teacher. Each model then reads every token once, its unread tail in one block at the end.
        draw_run (`Callable[[list[list[int]], int], list[list[int]]]`, *optional*):
            In place of `student`: samples up to so many tokens after each row of token ids, such as a server does. Its
            hidden states are not known.
        readings (`tuple[Reading, Reading]`, *optional*):
            What student and teacher can do with their caches. If one of them cannot drop rows, both keep them.
    """
    shape = (*input_ids.shape, max_new_tokens)
    readers = {}
    if draw_run is None:
        readers[False] = Reader(student, vocab_size, nullcontext, readings[0], keeps_states, shape)
    if alpha > 0:
        readers[True] = Reader(teacher, vocab_size, teacher_context, readings[1], keeps_states, shape)
    drops_rows = all(readings[role].drops_rows for role in readers)
    coins = (torch.rand(max_new_tokens, generator=generator) < alpha).tolist()
    eos = torch.tensor(eos_token_ids, device=input_ids.device)
    ids, mask = input_ids, attention_mask
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # (B, P), padding does not count
    rows = torch.arange(len(ids), device=ids.device)  # (b,), where the rows that are still read belong
    finished = torch.zeros_like(rows, dtype=torch.bool)  # (b,)
    completion_ids = ids.new_full((len(ids), max_new_tokens), pad_token_id)
    lengths = torch.zeros_like(rows)  # (B,)
    teacher_tokens = step = runs = 0

    while step < max_new_tokens:
        teacher_draws = coins[step]
        if teacher_draws in readers:
            tokens = _draw(readers[teacher_draws].read(ids, mask, positions, rows), temperature)  # (b, 1)
            drawn = torch.ones_like(tokens, dtype=torch.bool)
        else:
            length = next((n for n, coin in enumerate(coins[step:]) if coin), max_new_tokens - step)
            tokens, drawn = _draw_runs(draw_run, ids, mask, finished, length, pad_token_id)  # (b, n) each
            runs += 1
        # A row goes on until its first end, and a run that is too short is an end as well
        ended = torch.isin(tokens, eos) | ~drawn
        drawn &= (ended.cumsum(dim=1) - ended.long() == 0) & ~finished[:, None]
        tokens = torch.where(drawn, tokens, pad_token_id)
        completion_ids[rows, step : step + tokens.shape[1]] = tokens
        lengths[rows] += drawn.sum(dim=1)
        teacher_tokens += teacher_draws * drawn.sum()
        step += tokens.shape[1]

        finished = finished | ended.any(dim=1)
        waiting = (~finished).sum()
        # Rows that have ended leave the batch, a quarter at a time so that the caches are seldom copied. One row stays
        # to take part in the collectives of the others.
        leave = (waiting <= 0.75 * len(rows)) & (len(rows) > 1 and drops_rows)
        signals = torch.stack([waiting, leave])
        if synced_gpus:
            dist.all_reduce(signals, op=dist.ReduceOp.MAX)
        somewhere_waiting, somewhere_leaving = signals.tolist()
        ends = not somewhere_waiting or step == max_new_tokens
        read = _extended(ids, mask, positions, tokens[:, :-1])  # the last token predicts nothing yet
        if ends or somewhere_leaving:
            for reader in readers.values():
                reader.catch_up(*read, rows)
        if ends:
            break
        ids, mask, positions = _extended(*read, tokens[:, -1:])
        if leave:
            keep = (~finished).nonzero()[:, 0] if waiting else rows.new_zeros(1)
            ids, mask, positions, rows, finished = (x[keep] for x in (ids, mask, positions, rows, finished))
            for reader in readers.values():
                reader.keep_rows(keep)

    states = {role: reader.states[:, :step] for role, reader in readers.items() if reader.states is not None}
    calls = {role: reader.calls for role, reader in readers.items()}
    return MixedRollout(
        completion_ids=completion_ids[:, :step],
        lengths=lengths,
        student_states=states.get(False),
        teacher_states=states.get(True),
        teacher_tokens=int(teacher_tokens),
        teacher_drew=torch.tensor(coins[:step], dtype=torch.bool),
        teacher_calls=calls.get(True, 0),
        student_calls=calls.get(False, runs),
    )


def _extended(ids, mask, positions, tokens) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, mask and positions of rows that go on with `tokens` `(b, n)`."""
    following = positions[:, -1:] + torch.arange(1, tokens.shape[1] + 1, device=ids.device)
    parts = (ids, tokens), (mask, torch.ones_like(tokens)), (positions, following)
    return tuple(torch.cat(pair, dim=1) if tokens.shape[1] else pair[0] for pair in parts)


def _draw_runs(draw_run, ids, mask, finished, length, pad_token_id) -> tuple[Tensor, Tensor]:
    """Up to `length` tokens `(b, length)` of each row that is not finished, and where there are any."""
    waiting = (~finished).nonzero()[:, 0].tolist()
    runs = draw_run([ids[row][mask[row].bool()].tolist() for row in waiting], length)
    tokens = ids.new_full((len(ids), length), pad_token_id)
    drawn = torch.zeros_like(tokens, dtype=torch.bool)
    for row, run in zip(waiting, runs, strict=True):
        tokens[row, : len(run)], drawn[row, : len(run)] = ids.new_tensor(run), True
    return tokens, drawn


class VLLMStudent:
    """
    Runs of tokens by TRL's vLLM engine, for [`mixed_generate`].

    The coins are known before the rollout, so the student draws everything up to the teacher's next token in one call
    of the engine, about `alpha` calls a token. Prefix caching, vLLM's default, spares it to read a row again.
    """

    def __init__(self, engine):
        self.engine = engine

    def __call__(self, prompt_ids: list[list[int]], length: int) -> list[list[int]]:
        longest = self.engine.max_completion_length
        self.engine.max_completion_length = length
        try:
            return self.engine.generate(prompts=prompt_ids, images=None, num_generations=1)[1]
        finally:
            self.engine.max_completion_length = longest


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


class RolloutSet(NamedTuple):
    """Completions of a trainer's models to its prompts, and what is known of them already."""

    completion_ids: list[list[int]]
    student_states: Tensor | None  # as in `MixedRollout`
    teacher_states: Tensor | None
    teacher_drew: Tensor | None  # (B, T) bool, on the CPU: which tokens the teacher drew, arbitrary behind the end
    metrics: dict[str, tuple[int, int]]


def roll_out(trainer, prompt_ids: list[list[int]], rollout_set: int) -> RolloutSet:
    """
    Completions of a trainer's models to prompts as token ids: mixed in training, in evaluation of the student alone.

    `rollout_set` numbers the set: coins are a function of it, so that a resumed run draws the same. Answers to one
    prompt are drawn in turn, since they must not share coins. TRL's vLLM engine, if there is one, draws the student's
    tokens.
    """
    args, accelerator, backend, config = trainer.args, trainer.accelerator, trainer._dist, trainer.generation_config
    training = trainer.model.training
    alpha = args.teacher_mix_alpha if training else 0.0
    base_teaches = args.teacher_is_base
    # A sharded model makes each forward a collective, and then all processes must call the same model
    sharded = accelerator.num_processes > 1 and (backend.is_zero3 or backend.is_fsdp)
    stream = 0 if sharded else accelerator.process_index
    copies = args.num_generations if alpha > 0 else 1
    engine = None
    if args.use_vllm:
        # The engine runs in this process, and autocast would reach into its kernels, whose types are its own
        apart = torch.autocast(accelerator.device.type, enabled=False)
        engine = apart(VLLMStudent(trainer.vllm_generation))
        if trainer.state.global_step != trainer._last_loaded_step:  # as the parent class does
            apart(trainer.vllm_generation.sync_weights)()
            trainer._last_loaded_step = trainer.state.global_step
    # A sharded teacher gathers a layer at a time, never as a whole: it may be larger than a device
    teacher = accelerator.unwrap_model(trainer.teacher_model) if alpha > 0 and not base_teaches else None
    rollouts = []
    with _ready_to_generate(trainer.model_wrapped, accelerator, backend, args) as student:
        for copy in range(copies):
            prompts = [torch.tensor(ids, device=accelerator.device) for ids in prompt_ids[copy::copies]]
            coins = random.Random(f"{args.seed}, {rollout_set}, {stream}" + f", {copy}" * (copy > 0)).getrandbits(32)
            rollouts.append(
                mixed_generate(
                    student,
                    student if base_teaches else teacher,
                    pad(prompts, padding_value=config.pad_token_id, padding_side="left"),
                    pad([torch.ones_like(ids) for ids in prompts], padding_side="left"),
                    alpha=alpha,
                    max_new_tokens=config.max_new_tokens,
                    eos_token_ids=config.eos_token_id,
                    pad_token_id=config.pad_token_id,
                    temperature=args.temperature,
                    vocab_size=trainer.vocab_size,
                    generator=torch.Generator().manual_seed(coins),
                    synced_gpus=sharded,
                    teacher_context=student.disable_adapter if base_teaches else nullcontext,
                    keeps_states=trainer._keeps_states and training,
                    draw_run=engine,
                    readings=trainer._readings,
                )
            )
    lengths = _in_turn([rollout.lengths for rollout in rollouts]).tolist()
    completions = _in_turn([rollout.completion_ids for rollout in rollouts]).tolist()
    metrics = {
        "mix/teacher_share": (sum(rollout.teacher_tokens for rollout in rollouts), sum(lengths)),
        "mix/teacher_calls": (sum(rollout.teacher_calls for rollout in rollouts), 1),
        "mix/student_calls": (sum(rollout.student_calls for rollout in rollouts), 1),
    }
    return RolloutSet(
        [ids[:length] for ids, length in zip(completions, lengths, strict=True)],
        _in_turn([rollout.student_states for rollout in rollouts]),
        _in_turn([rollout.teacher_states for rollout in rollouts]),
        _in_turn([rollout.teacher_drew.expand(len(rollout.lengths), -1) for rollout in rollouts])
        if alpha > 0
        else None,
        metrics if alpha > 0 else {},
    )


def _in_turn(parts: list[Tensor | None]) -> Tensor | None:
    """Rows of all parts `(b, T_i, ...)`, the first of each before the second of any, padded to the largest `T_i`."""
    if parts[0] is None:
        return None
    if parts[0].dim() > 1:
        longest = max(part.shape[1] for part in parts)
        parts = [
            torch.cat([part, part.new_zeros(len(part), longest - part.shape[1], *part.shape[2:])], 1) for part in parts
        ]
    return torch.stack(parts, dim=1).flatten(0, 1)

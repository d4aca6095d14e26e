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

"""Evaluation of a model on prompts: generation with several seeds, text metrics, divergence from a teacher."""

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.data_utils import is_conversational

from ..divergence import completion_states, lm_head, token_divergence
from ..teacher import load_teacher_tokenizer, match_vocabulary
from .exposure import exposure_bias
from .rouge import references_of, rouge_l
from .text import distinct_n, repetition


logger = logging.getLogger(__name__)


def encode_prompts(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the prompts, standard or conversational, up to where the model goes on."""
    encoded = []
    for number, row in enumerate(rows):
        prompt = row.get("prompt")
        if prompt is None:
            raise ValueError(
                f"Row {number} has no `prompt`; its columns are {sorted(row)}. Rename the column that holds the "
                "question to `prompt`, and the reference answer, if any, to `completion`."
            )
        if not prompt:
            raise ValueError(f"Row {number} has an empty `prompt`. Remove such rows before evaluation.")
        if is_conversational({"prompt": prompt}):
            goes_on = prompt[-1]["role"] == "assistant"
            ids = tokenizer.apply_chat_template(
                prompt,
                add_generation_prompt=not goes_on,
                continue_final_message=goes_on,
                tokenize=True,
                return_dict=True,
                **(row.get("chat_template_kwargs") or {}),
            )["input_ids"]
        else:
            ids = tokenizer(prompt)["input_ids"]
        encoded.append(list(ids))
    return encoded


def _end_tokens(model, tokenizer) -> list[int]:
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        ends.insert(0, tokenizer.eos_token_id)
    return ends


@contextmanager
def _evaluating(model):
    """Eval mode and a neutral generation config, both undone: generate() fills what is unset from the model's own."""
    holders = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    training, configs = model.training, [holder.generation_config for holder in holders]
    model.eval()
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, config in zip(holders, configs, strict=True):
            holder.generation_config = config
        model.train(training)


def _pad(sequences: Iterable[Sequence[int]], value: int, side: str, device) -> tuple[Tensor, Tensor]:
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    masks = [torch.ones_like(row) for row in rows]
    return tuple(
        pad_sequence(tensors, batch_first=True, padding_value=fill, padding_side=side).to(device)
        for tensors, fill in ((rows, value), (masks, 0))
    )


def _sample(model, prompt_ids, prompt_mask, config: GenerationConfig) -> list[list[int]]:
    """Completions as token ids, the end token included."""
    output = model.generate(input_ids=prompt_ids, attention_mask=prompt_mask, generation_config=config)
    completions = []
    for row in output[:, prompt_ids.shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in config.eos_token_id), len(row) - 1)
        completions.append(row[: end + 1])
    return completions


def _divergences(student, teacher, batch, vocab_size: int, temperature: float, betas: Sequence[float]):
    """Divergences `(B, T)` for each beta, 0 at padding, and the completion mask, all on the CPU."""
    mask = batch[3].bool()
    heads = [lm_head(model, vocab_size) for model in (student, teacher)]
    states = [
        completion_states(model, *(tensor.to(model.device) for tensor in batch))[mask.to(model.device)]
        for model in (student, teacher)
    ]
    states[1] = states[1].to(student.device)
    teacher_head = heads[1]._replace(
        weight=heads[1].weight.to(student.device),
        bias=None if heads[1].bias is None else heads[1].bias.to(student.device),
    )
    divergences = []
    for beta in betas:
        values, _ = token_divergence(states[0], heads[0], states[1], teacher_head, beta=beta, temperature=temperature)
        dense = torch.zeros(mask.shape, dtype=torch.float64)
        dense[mask.cpu()] = values.double().cpu()
        divergences.append(dense)
    return divergences, mask.cpu()


def _summary(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "per_seed": list(values),
    }


def _versions() -> dict[str, str | None]:
    names = ("trl-distill", "trl", "transformers", "peft", "torch", "rouge-score", "math-verify")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


@torch.no_grad()
def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Iterable[dict[str, Any]],
    *,
    teacher: PreTrainedModel | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    seeds: Sequence[int] = (10, 20, 30, 40, 50),
    temperature: float = 1.0,
    top_p: float = 1.0,
    no_repeat_ngram_size: int = 0,
    max_new_tokens: int = 256,
    max_prompt_length: int | None = None,
    batch_size: int = 16,
    answer_checker: Callable[[str, dict[str, Any]], bool | None] | None = None,
    exposure: bool = True,
    return_completions: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Let a model answer every prompt once per seed, and measure the answers.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, on the device on which it shall run.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.Dataset`] or `list[dict]`):
            Rows with `prompt`, standard or conversational, and optionally `completion` (a text, a list of texts that
            are all right, or messages) and `answer`.
        teacher ([`~transformers.PreTrainedModel`], *optional*):
            Teacher of the same vocabulary. With it come the divergences and the exposure bias.
        teacher_tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer that is compared with `tokenizer`. Read from the folder of the teacher if it has one.
        seeds (`Sequence[int]`, *optional*, defaults to `(10, 20, 30, 40, 50)`):
            One pass over the prompts each.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of sampling and of the divergences. `0.0` is greedy decoding with divergences at 1.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus of sampling. The divergences are of the full distributions always.
        no_repeat_ngram_size (`int`, *optional*, defaults to `0`):
            Forbid n-grams of this size to repeat. Published MiniLLM test scores were made with 6, its validation with 0.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest completion.
        max_prompt_length (`int`, *optional*):
            Drop prompts of more tokens. Prompts that leave no room for `max_new_tokens` in the context are always
            dropped. Both are counted.
        batch_size (`int`, *optional*, defaults to `16`):
            Prompts generated together. Sampled texts depend on it, greedy ones do not.
        answer_checker (`Callable`, *optional*):
            Called with the completion and its row; returns whether the answer is right, or `None` if there is none, such
            as [`~trl_distill.evaluation.check_answer`].
        exposure (`bool`, *optional*, defaults to `True`):
            Whether to measure the exposure bias, which lets the teacher answer each prompt too.
        return_completions (`bool`, *optional*, defaults to `False`):
            Whether to add the completions with their scores to the result.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `dict[str, Any]`: `metrics` (mean, standard deviation and values over the seeds), `exposure_bias` (see
        [`~trl_distill.evaluation.exposure_bias`]), `counts`, `settings`, `versions` and `seconds`. Ready for JSON.
    """
    start = time.perf_counter()
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"`seeds` must be one or more different numbers, got {list(seeds)}.")
    if temperature < 0:
        raise ValueError(f"`temperature` must be 0 (greedy) or more, got {temperature}.")
    if not 0 < top_p <= 1:
        raise ValueError(f"`top_p` must be in (0, 1], got {top_p}.")
    for name, value in {"max_new_tokens": max_new_tokens, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {value}.")
    if isinstance(dataset, dict):
        raise ValueError(f"Pass one split, not all of them: choose from {sorted(dataset)}.")
    rows = [dict(row) for row in dataset]
    if not rows:
        raise ValueError("The dataset has no rows, so there is nothing to evaluate.")

    prompts = encode_prompts(rows, tokenizer)
    contexts = [
        getattr(m.config.get_text_config(), "max_position_embeddings", None) for m in (model, teacher) if m is not None
    ]
    room = min((context for context in contexts if context), default=math.inf) - max_new_tokens
    limit = min(room, max_prompt_length or math.inf)
    kept = [i for i, ids in enumerate(prompts) if len(ids) <= limit]
    dropped = len(prompts) - len(kept)
    if not kept:
        raise ValueError(
            f"All {len(prompts)} prompts are longer than {limit} tokens (shortest: {min(map(len, prompts))}): the "
            f"context is {room + max_new_tokens} tokens, of which `max_new_tokens` takes {max_new_tokens}, and "
            f"`max_prompt_length` is {max_prompt_length}. Lower `max_new_tokens` or raise `max_prompt_length`."
        )
    if dropped:
        logger.warning("Dropped %d of %d prompts that are longer than %d tokens.", dropped, len(prompts), limit)
    references = {i: references_of(rows[i]) for i in kept}
    with_reference = [i for i in kept if references[i] is not None]
    if with_reference:
        rouge_l("", "")  # a missing library shall be found before hours of generation
    else:
        logger.warning("No row has a `completion`, so there is no Rouge-L.")

    vocab_size = None
    if teacher is not None:
        if teacher_tokenizer is None:
            teacher_tokenizer = load_teacher_tokenizer(teacher)
        vocab_size = match_vocabulary(tokenizer, teacher_tokenizer, model, teacher)
    kl_temperature = temperature or 1.0

    def generation_config(generator) -> GenerationConfig:
        rows_beyond = range(vocab_size or 0, generator.get_output_embeddings().weight.shape[0]) if vocab_size else ()
        ends = _end_tokens(generator, tokenizer)
        sampling = dict(do_sample=True, temperature=temperature, top_p=top_p, top_k=0) if temperature > 0 else {}
        return GenerationConfig(
            **({"do_sample": False} | sampling),
            max_new_tokens=max_new_tokens,
            no_repeat_ngram_size=no_repeat_ngram_size or None,
            suppress_tokens=list(rows_beyond) or None,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0],
            disable_compile=True,
        )

    # Read before the models' own configs are set aside
    student_config = generation_config(model)
    teacher_config = generation_config(teacher) if teacher is not None else None
    if teacher_config is not None:
        # What ends an answer is the student's business: one rule for both, or the samples would not compare
        teacher_config.eos_token_id = student_config.eos_token_id

    order = sorted(kept, key=lambda i: -len(prompts[i]))  # the longest first, so that memory runs out early if at all
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    pad_id, device = student_config.pad_token_id, model.device
    sides = [("student", model, student_config)]
    if teacher is not None and exposure:
        sides.append(("teacher", teacher, teacher_config))
    cuda = sorted({m.device.index or 0 for m in (model, teacher) if m is not None and m.device.type == "cuda"})

    per_seed: dict[str, list[float]] = {}
    pooled: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"student": [], "teacher": []}
    samples = []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))  # the caller's random numbers stay as they were
        for m in (model, teacher):
            if m is not None:
                stack.enter_context(_evaluating(m))
        bar = stack.enter_context(
            tqdm(total=len(seeds) * len(sides) * len(kept), desc="Evaluating", unit="answer", disable=not progress)
        )
        for seed in seeds:
            completions: dict[int, list[int]] = {}
            reverse_sum = forward_sum = 0.0
            for side, generator, config in sides:
                torch.manual_seed(seed)
                for batch in batches:
                    prompt_ids, prompt_mask = _pad([prompts[i] for i in batch], pad_id, "left", generator.device)
                    texts = _sample(generator, prompt_ids, prompt_mask, config)
                    if side == "student":
                        completions |= zip(batch, texts, strict=True)
                    if teacher is not None:
                        tensors = (prompt_ids, prompt_mask, *_pad(texts, pad_id, "right", device))
                        betas = (0.0, 1.0) if side == "student" else (0.0,)
                        values, mask = _divergences(model, teacher, tensors, vocab_size, kl_temperature, betas)
                        if side == "student":
                            forward_sum += values[0].sum().item()
                            reverse_sum += values[1].sum().item()
                        pooled[side].append((values[0], mask, torch.tensor(batch)))
                    bar.update(len(batch))

            texts = {i: tokenizer.decode(completions[i], skip_special_tokens=True) for i in kept}
            tokens = sum(map(len, completions.values()))
            ends = set(student_config.eos_token_id)
            scores = {
                "length": tokens / len(kept),
                "truncated": statistics.fmean(completions[i][-1] not in ends for i in kept),
                "distinct_4": distinct_n([completions[i] for i in kept], n=4),
                "repetition_4": statistics.fmean(repetition(completions[i], n=4) for i in kept),
            }
            rouge = {i: rouge_l(texts[i], references[i]) for i in with_reference}
            if rouge:
                scores["rougeL"] = statistics.fmean(rouge.values())
            verdicts: dict[int, bool | None] = {}
            if answer_checker is not None:
                verdicts = {i: answer_checker(texts[i], rows[i]) for i in kept}
                scores["accuracy"] = statistics.fmean(bool(verdict) for verdict in verdicts.values())
                scores["no_answer"] = statistics.fmean(verdict is None for verdict in verdicts.values())
            if teacher is not None:
                scores["reverse_kl"] = reverse_sum / tokens
                scores["reverse_kl_sequence"] = reverse_sum / len(kept)
                scores["forward_kl"] = forward_sum / tokens
            for name, value in scores.items():
                per_seed.setdefault(name, []).append(value)
            if return_completions:
                for i in kept:
                    sample = {"row": i, "seed": seed, "prompt": rows[i]["prompt"], "completion": texts[i]}
                    sample["token_ids"] = completions[i]
                    if i in rouge:
                        sample["rougeL"] = rouge[i]
                    if verdicts:
                        sample["right"] = verdicts[i]
                    samples.append(sample)

    result: dict[str, Any] = {"metrics": {name: _summary(values) for name, values in per_seed.items()}}
    if teacher is not None and exposure:
        arguments = []
        for side in ("student", "teacher"):
            values, masks, groups = zip(*pooled[side], strict=True)
            width = max(mask.shape[1] for mask in masks)
            widen = [torch.nn.functional.pad(t.double(), (0, width - t.shape[1])) for t in (*values, *masks)]
            arguments.append((torch.cat(widen[: len(values)]), torch.cat(widen[len(values) :]), torch.cat(groups)))
        (student_kl, student_mask, student_groups), (teacher_kl, teacher_mask, teacher_groups) = arguments
        result["exposure_bias"] = exposure_bias(
            student_kl, student_mask, teacher_kl, teacher_mask, student_groups, teacher_groups
        )
    result["counts"] = {
        "rows": len(rows),
        "prompts": len(kept),
        "dropped_prompts": dropped,
        "with_reference": len(with_reference),
        "completions": len(kept) * len(seeds),
    }
    result["settings"] = {
        "model": model.config._name_or_path or type(model).__name__,
        "teacher": None if teacher is None else teacher.config._name_or_path or type(teacher).__name__,
        "seeds": list(seeds),
        "temperature": temperature,
        "top_p": top_p,
        "top_k": 0,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "max_new_tokens": max_new_tokens,
        "max_prompt_length": max_prompt_length,
        "batch_size": batch_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }
    result["versions"] = _versions()
    result["seconds"] = round(time.perf_counter() - start, 2)
    if return_completions:
        result["completions"] = samples
    return result

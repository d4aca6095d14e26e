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
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..divergence import LMHead, completion_states, lm_head, token_divergence
from ..generation import (
    batches_by_length,
    encode_prompts,
    generate_ids,
    generating,
    generation_config,
    pad_ids,
)
from ..models import context_length, end_token_ids, load_teacher_tokenizer, match_vocabulary, vocabulary_rows
from ..progress import progress_bar
from ..text import distinct_n, references_of, repetition, rouge_l
from .exposure import exposure_bias


logger = logging.getLogger(__name__)

AnswerChecker = Callable[[str, dict[str, Any]], bool | None]


class _Settings(NamedTuple):
    """How answers are drawn. Part of the report."""

    seeds: list[int]
    temperature: float
    top_p: float
    top_k: int
    no_repeat_ngram_size: int
    max_new_tokens: int
    max_prompt_length: int | None
    batch_size: int


class _Prompts(NamedTuple):
    """The dataset and what of it is evaluated. Rows go by their number in the dataset everywhere."""

    rows: list[dict[str, Any]]  # all of them
    ids: list[list[int]]  # token ids of all prompts
    kept: list[int]  # rows whose prompt is short enough
    references: dict[int, list[str]]  # right answers of those kept rows that have some
    batches: list[list[int]]  # the kept rows, the longest prompts first


class _Divergences(NamedTuple):
    """Divergences of the student from the teacher on a batch of answers, on the CPU."""

    rows: Tensor  # (B,)
    mask: Tensor  # (B, T), which positions hold a token
    forward: Tensor  # (B, T), KL(teacher || student), 0 at padding
    reverse: Tensor | None  # (B, T), KL(student || teacher), of the student's own answers only


def _check_settings(settings: _Settings) -> None:
    """Refuse values that no run can use."""
    if not settings.seeds or len(set(settings.seeds)) != len(settings.seeds):
        raise ValueError(f"`seeds` must be one or more different numbers, got {settings.seeds}.")
    if settings.temperature < 0:
        raise ValueError(f"`temperature` must be 0 (greedy) or more, got {settings.temperature}.")
    if not 0 < settings.top_p <= 1:
        raise ValueError(f"`top_p` must be in (0, 1], got {settings.top_p}.")
    for name in ("max_new_tokens", "batch_size"):
        if getattr(settings, name) < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {getattr(settings, name)}.")


def _short_enough(ids: list[list[int]], models: Sequence[PreTrainedModel], settings: _Settings) -> list[int]:
    """Rows whose prompt is within `max_prompt_length` and leaves room for an answer in the context of every model."""
    context = context_length(*models) or math.inf
    limit = min(context - settings.max_new_tokens, settings.max_prompt_length or math.inf)
    kept = [i for i, prompt in enumerate(ids) if len(prompt) <= limit]
    if not kept:
        raise ValueError(
            f"All {len(ids)} prompts are longer than {limit} tokens (shortest: {min(map(len, ids))}): the "
            f"context is {context} tokens, of which `max_new_tokens` takes {settings.max_new_tokens}, and "
            f"`max_prompt_length` is {settings.max_prompt_length}. Lower the one, or raise the other."
        )
    if dropped := len(ids) - len(kept):
        logger.warning("Dropped %d of %d prompts that are longer than %d tokens.", dropped, len(ids), limit)
    return kept


def _read_prompts(
    dataset: Iterable[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    models: Sequence[PreTrainedModel],
    settings: _Settings,
) -> _Prompts:
    """Encode the prompts, drop the long ones, look for references, and form batches."""
    if isinstance(dataset, dict):
        raise ValueError(f"Pass one split, not all of them: choose from {sorted(dataset)}.")
    rows = [dict(row) for row in dataset]
    if not rows:
        raise ValueError("The dataset has no rows, so there is nothing to evaluate.")
    ids = encode_prompts(rows, tokenizer)
    kept = _short_enough(ids, models, settings)

    references = {i: texts for i in kept if (texts := references_of(rows[i])) is not None}
    if references:
        rouge_l("", "")  # a missing library shall be found before hours of generation
    else:
        logger.warning("No row has a `completion`, so there is no Rouge-L.")

    batches = batches_by_length([ids[i] for i in kept], settings.batch_size)
    return _Prompts(rows, ids, kept, references, [[kept[k] for k in batch] for batch in batches])


def _generation_configs(
    models: Sequence[PreTrainedModel], tokenizer: PreTrainedTokenizerBase, vocab_size: int | None, settings: _Settings
) -> list[GenerationConfig]:
    """How student and teacher generate: alike, and only tokens below `vocab_size`."""
    # One rule for both, or their answers would not compare: what ends an answer of either
    ends = [end_token_ids(model, tokenizer) for model in models]
    if set(ends[0]) != set(ends[-1]):
        logger.warning("The model ends answers with %s, the teacher with %s: all of these end one.", *ends)
    end_tokens = [end for end in dict.fromkeys(sum(ends, [])) if vocab_size is None or end < vocab_size]
    drawn = (tokenizer, end_tokens, settings.max_new_tokens, settings.temperature, settings.top_p)
    configs = []
    for model in models:
        beyond = [] if vocab_size is None else list(range(vocab_size, vocabulary_rows(model)))
        forbidden = {"no_repeat_ngram_size": settings.no_repeat_ngram_size or None, "suppress_tokens": beyond or None}
        configs.append(generation_config(*drawn, **forbidden))
        if vocab_size is not None and configs[-1].pad_token_id >= vocab_size:
            configs[-1].pad_token_id = end_tokens[0]  # an added token that one of the models has no row for
    return configs


def _states_and_head(
    model: PreTrainedModel,
    prompt: tuple[Tensor, Tensor],
    answer: tuple[Tensor, Tensor],
    vocab_size: int,
    device: torch.device,
) -> tuple[Tensor, LMHead]:
    """On `device`: the hidden states that predict the N tokens of the answers, `(N, H)`, and the head after them."""
    tensors = [tensor.to(model.device) for tensor in (*prompt, *answer)]  # ids and masks, (B, P) and (B, T)
    states = completion_states(model, *tensors)[tensors[-1].bool()]  # (N, H)
    head = lm_head(model, vocab_size)
    bias = None if head.bias is None else head.bias.to(device)
    return states.to(device), head._replace(weight=head.weight.to(device), bias=bias)


def _compare(
    models: Sequence[PreTrainedModel],
    rows: Sequence[int],
    prompt: tuple[Tensor, Tensor],
    answer: tuple[Tensor, Tensor],
    vocab_size: int,
    temperature: float,
    reverse: bool,
) -> _Divergences:
    """Student and teacher on prompts `(B, P)` and answers `(B, T)`, each given as ids and mask."""
    student, teacher = (_states_and_head(model, prompt, answer, vocab_size, models[0].device) for model in models)
    mask = answer[1].bool().cpu()  # (B, T)

    def divergence(beta: float) -> Tensor:
        values, _ = token_divergence(*student, *teacher, beta=beta, temperature=temperature)  # (N,)
        dense = torch.zeros(mask.shape, dtype=torch.float64)  # (B, T)
        dense[mask] = values.double().cpu()
        return dense

    return _Divergences(torch.tensor(rows), mask, divergence(0.0), divergence(1.0) if reverse else None)


def _one_pass(
    generator: PreTrainedModel,
    config: GenerationConfig,
    seed: int,
    prompts: _Prompts,
    models: Sequence[PreTrainedModel],
    vocab_size: int | None,
    bar: tqdm,
) -> tuple[dict[int, list[int]], list[_Divergences]]:
    """Answers of the student or the teacher to all prompts, as token ids by row, and divergences on them, if any."""
    torch.manual_seed(seed)
    answers, divergences = {}, []
    for rows in prompts.batches:
        prompt = pad_ids([prompts.ids[i] for i in rows], config.pad_token_id, "left", generator.device)  # (B, P) each
        completions = generate_ids(generator, *prompt, config)
        answers |= zip(rows, completions, strict=True)
        if vocab_size is not None:
            answer = pad_ids(completions, config.pad_token_id, "right", generator.device)  # (B, T) each
            temperature = config.temperature if config.do_sample else 1.0  # greedy answers are compared at 1
            reverse = generator is models[0]  # on the student's own answers only
            divergences.append(_compare(models, rows, prompt, answer, vocab_size, temperature, reverse))
        bar.update(len(rows))
    return answers, divergences


def _samples(
    seed: int,
    answers: dict[int, list[int]],
    divergences: list[_Divergences],
    prompts: _Prompts,
    tokenizer: PreTrainedTokenizerBase,
    answer_checker: AnswerChecker | None,
) -> list[dict[str, Any]]:
    """The answers as text, each with the scores that it has alone."""
    nats = {
        int(i): {"reverse_kl_sequence": reverse.item(), "forward_kl_sequence": forward.item()}
        for batch in divergences
        for i, reverse, forward in zip(batch.rows, batch.reverse.sum(1), batch.forward.sum(1), strict=True)
    }
    samples = []
    for i in prompts.kept:
        text = tokenizer.decode(answers[i], skip_special_tokens=True)
        sample = {"row": i, "seed": seed, "prompt": prompts.rows[i]["prompt"], "completion": text}
        sample["token_ids"] = answers[i]
        sample |= nats.get(i, {})
        if i in prompts.references:
            sample["rougeL"] = rouge_l(text, prompts.references[i])
        if answer_checker is not None:
            sample["right"] = answer_checker(text, prompts.rows[i])
        samples.append(sample)
    return samples


def _scores(
    samples: list[dict[str, Any]], divergences: list[_Divergences], end_tokens: Sequence[int]
) -> dict[str, float]:
    """Metrics of one seed."""
    answers = [sample["token_ids"] for sample in samples]
    tokens = sum(map(len, answers))
    scores = {
        "length": tokens / len(answers),
        "truncated": statistics.fmean(answer[-1] not in end_tokens for answer in answers),
        "distinct_4": distinct_n(answers, n=4),
        "repetition_4": statistics.fmean(repetition(answer, n=4) for answer in answers),
    }
    rouge = [sample["rougeL"] for sample in samples if "rougeL" in sample]
    if rouge:
        scores["rougeL"] = statistics.fmean(rouge)
    verdicts = [sample["right"] for sample in samples if "right" in sample]
    if verdicts:
        scores["accuracy"] = statistics.fmean(bool(verdict) for verdict in verdicts)
        scores["no_answer"] = statistics.fmean(verdict is None for verdict in verdicts)
    if divergences:
        reverse = sum(batch.reverse.sum().item() for batch in divergences)
        scores |= {"reverse_kl": reverse / tokens, "reverse_kl_sequence": reverse / len(answers)}
        scores["forward_kl"] = sum(batch.forward.sum().item() for batch in divergences) / tokens
    return scores


def _pooled(divergences: Sequence[_Divergences]) -> tuple[Tensor, Tensor, Tensor]:
    """The batches of all seeds as one: forward KL and mask `(N, T)`, and rows `(N,)`."""
    forward = pad_sequence([row for batch in divergences for row in batch.forward], batch_first=True)
    mask = pad_sequence([row for batch in divergences for row in batch.mask], batch_first=True)
    return forward, mask, torch.cat([batch.rows for batch in divergences])


def _versions() -> dict[str, str | None]:
    """Installed versions of what the numbers depend on."""
    versions: dict[str, str | None] = {}
    for name in ("trl-distill", "trl", "transformers", "peft", "torch", "rouge-score", "math-verify"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _report(
    models: Sequence[PreTrainedModel],
    prompts: _Prompts,
    settings: _Settings,
    scores: Sequence[dict[str, float]],
    divergences: Sequence[Sequence[_Divergences]],
) -> dict[str, Any]:
    """The result over all seeds: `scores` of each seed, `divergences` on the answers of each model that generated."""
    report: dict[str, Any] = {"metrics": {}}
    for name in scores[0]:
        values = [of_seed[name] for of_seed in scores]
        spread = statistics.stdev(values) if len(values) > 1 else None
        report["metrics"][name] = {"mean": statistics.fmean(values), "std": spread, "per_seed": values}
    if len(divergences) == 2:
        (kl, mask, rows), (teacher_kl, teacher_mask, teacher_rows) = map(_pooled, divergences)
        report["exposure_bias"] = exposure_bias(kl, mask, teacher_kl, teacher_mask, rows, teacher_rows)
    report["counts"] = {
        "rows": len(prompts.rows),
        "prompts": len(prompts.kept),
        "dropped_prompts": len(prompts.rows) - len(prompts.kept),
        "with_reference": len(prompts.references),
        "completions": len(prompts.kept) * len(settings.seeds),
    }
    names = [model.config._name_or_path or type(model).__name__ for model in models]
    report["settings"] = {
        "model": names[0],
        "teacher": names[1] if len(names) == 2 else None,
        **settings._asdict(),
        "dtype": str(models[0].dtype).removeprefix("torch."),
        "device": models[0].device.type,
    }
    report["versions"] = _versions()
    return report


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
    answer_checker: AnswerChecker | None = None,
    exposure: bool = True,
    return_completions: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Let a model answer every prompt once per seed, and measure the answers.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]), tokenizer:
            Causal language model, on the device on which it shall run, and its tokenizer.
        dataset ([`~datasets.Dataset`] or `list[dict]`):
            Rows with `prompt`, standard or conversational, and optionally `completion` (a text, a list of texts that
            are all right, or messages) and `answer`.
        teacher ([`~transformers.PreTrainedModel`], *optional*), teacher_tokenizer (*optional*):
            Teacher of the same vocabulary, with which come the divergences and the exposure bias, and its tokenizer,
            which is read from the folder of the teacher if it has one.
        seeds (`Sequence[int]`, *optional*, defaults to `(10, 20, 30, 40, 50)`):
            One pass over the prompts each.
        temperature, top_p (`float`, *optional*, default to `1.0`):
            Temperature of sampling and of the divergences (`0.0` is greedy decoding with divergences at 1), and
            nucleus of sampling alone.
        no_repeat_ngram_size (`int`, *optional*, defaults to `0`):
            Forbid n-grams of this size to repeat. MiniLLM's published test scores have 6, its validation 0.
        max_new_tokens (`int`, *optional*, defaults to `256`), max_prompt_length (`int`, *optional*):
            Longest completion and prompt. Longer prompts, and those that leave no room for `max_new_tokens` in the
            context, are dropped and counted.
        batch_size (`int`, *optional*, defaults to `16`):
            Prompts generated together. Sampled texts depend on it, greedy ones do not.
        answer_checker (`Callable`, *optional*):
            Called with the completion and its row, such as [`~trl_distill.evaluation.check_answer`]; returns whether
            the answer is right, or `None` if there is none.
        exposure (`bool`, *optional*, defaults to `True`):
            Whether to measure the exposure bias, which lets the teacher answer each prompt too.
        return_completions, progress (`bool`, *optional*, default to `False` and `True`):
            Whether to add the completions with their scores to the result, and to show a progress bar.

    Returns:
        `dict[str, Any]`: `metrics` (mean, standard deviation and values over the seeds), `exposure_bias` (see
        [`~trl_distill.evaluation.exposure_bias`]), `counts`, `settings`, `versions` and `seconds`. Ready for JSON.
    """
    start = time.perf_counter()
    settings = _Settings(
        seeds=list(seeds),
        temperature=temperature,
        top_p=top_p,
        top_k=0,  # none: a model's own config may hold one
        no_repeat_ngram_size=no_repeat_ngram_size,
        max_new_tokens=max_new_tokens,
        max_prompt_length=max_prompt_length,
        batch_size=batch_size,
    )
    _check_settings(settings)
    models = [model] if teacher is None else [model, teacher]
    prompts = _read_prompts(dataset, tokenizer, models, settings)
    vocab_size = None  # rows of the vocabulary that student and teacher share
    if teacher is not None:
        teacher_tokenizer = load_teacher_tokenizer(teacher) if teacher_tokenizer is None else teacher_tokenizer
        vocab_size = match_vocabulary(tokenizer, teacher_tokenizer, model, teacher)
        for row in prompts.kept:
            if max(prompts.ids[row]) >= vocab_size:
                raise ValueError(
                    f"The prompt of row {row} has the token {max(prompts.ids[row])}, and the teacher knows only those "
                    f"below {vocab_size}. Take it out of the prompts, or out of the chat template that adds it."
                )
    generators = models if exposure else [model]
    configs = _generation_configs(models, tokenizer, vocab_size, settings)[: len(generators)]

    scores, samples = [], []
    divergences: list[list[_Divergences]] = [[] for _ in generators]  # on the answers of each, over all seeds
    total = len(settings.seeds) * len(generators) * len(prompts.kept)
    with generating(models), progress_bar(total=total, desc="Evaluating", unit="answer", shown=progress) as bar:
        for seed in settings.seeds:
            passes = [
                _one_pass(generator, config, seed, prompts, models, vocab_size, bar)
                for generator, config in zip(generators, configs, strict=True)
            ]
            for pool, (_, batches) in zip(divergences, passes, strict=True):
                pool += batches
            answers, on_student = passes[0]
            seed_samples = _samples(seed, answers, on_student, prompts, tokenizer, answer_checker)
            scores.append(_scores(seed_samples, on_student, configs[0].eos_token_id))
            if return_completions:
                samples += seed_samples

    result = _report(models, prompts, settings, scores, divergences)
    result["seconds"] = round(time.perf_counter() - start, 2)
    if return_completions:
        result["completions"] = samples
    return result

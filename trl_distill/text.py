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

"""Measures of generated text: Rouge-L, diversity, repetition. And of names: which one may be meant."""

import difflib
from collections.abc import Hashable, Iterable, Sequence
from functools import cache
from typing import Any


@cache
def rouge_scorer(tokenizer=None):
    """The scorer of `rouge_score`: with stemmed English words, or with the tokens of `tokenizer` as they are."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError(
            "Rouge-L needs the package rouge-score. Install it with `pip install trl-distill[eval]`."
        ) from error
    return RougeScorer(["rougeL"], use_stemmer=True, tokenizer=tokenizer)


def references_of(row: dict[str, Any]) -> list[str] | None:
    """Reference texts of a row: its `completion` as a text, a list of texts, or messages; `None` without one."""
    completion = row.get("completion")
    if not completion:
        return None
    if isinstance(completion, str):
        return [completion]
    if isinstance(completion[0], dict):
        return [completion[-1]["content"]]
    return list(completion)


def rouge_l(prediction: str, references: str | Sequence[str], tokenizer=None) -> float:
    """
    Rouge-L F-measure as the distillation literature reports it: with stemming, the maximum over the references.

    Args:
        prediction (`str`):
            Text of the completion.
        references (`str` or `list[str]`):
            One or more right answers.
        tokenizer (*optional*):
            Object with a method `tokenize(text) -> list[str]`, for texts that are not in English. Its tokens are not
            stemmed.

    Returns:
        `float`: Score between 0 and 100. Papers report its mean over the prompts.
    """
    references = [references] if isinstance(references, str) else list(references)
    if not references:
        raise ValueError("Rouge-L needs at least one reference, but the list of references is empty.")
    return 100 * rouge_scorer(tokenizer).score_multi(references, prediction)["rougeL"].fmeasure


def _ngrams(sequence: str | Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    tokens = sequence.split() if isinstance(sequence, str) else list(sequence)
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def distinct_n(sequences: Sequence[str | Sequence[Hashable]], n: int = 4) -> float:
    """
    Share of distinct n-grams among all n-grams of a set of completions.

    It falls as the set grows, so only sets of the same size and length compare.

    Args:
        sequences (`list[list[int]]` or `list[str]`):
            Completions as token ids, or as texts, which are split at white space.
        n (`int`, *optional*, defaults to `4`):
            Length of the n-grams.

    Returns:
        `float`: Between 0 and 1. 0 if there is no n-gram, because empty completions must not look diverse.
    """
    ngrams = [ngram for sequence in sequences for ngram in _ngrams(sequence, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def repetition(tokens: str | Sequence[Hashable], n: int = 4) -> float:
    """
    Share of the n-grams of one completion that already occurred earlier in it.

    Args:
        tokens (`list[int]` or `str`):
            The completion as token ids, or as text, which is split at white space.
        n (`int`, *optional*, defaults to `4`):
            Length of the n-grams.

    Returns:
        `float`: Between 0 (no n-gram twice, or no n-gram at all) and 1.
    """
    ngrams = _ngrams(tokens, n)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def closest(name: str, known: Iterable[str]) -> str:
    """`Did you mean a or b?`, for an error about a name that is not among the known ones; empty if none is near."""
    close = difflib.get_close_matches(str(name), known, n=3)
    return f"Did you mean {' or '.join(close)}?" if close else ""

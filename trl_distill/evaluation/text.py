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


"""Diversity and repetition of generated text."""

from collections.abc import Hashable, Sequence


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

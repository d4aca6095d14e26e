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

"""Is a new instruction a near copy of one that we have? Asked of some 60 million pairs in a round of the paper."""

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from ..text import rouge_scorer


# Scripts without spaces between words: each character is a token, or a sentence would be one.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_SLACK = 1e-9  # more than the last bit in which two ways to compute one ratio may differ


class UnicodeTokenizer:
    """Tokens of `rouge_score` in any script. Its own tokenizer keeps a-z and 0-9, so Chinese text has none at all."""

    def tokenize(self, text: str) -> list[str]:
        return _TOKEN.findall(unicodedata.normalize("NFC", text).lower())


UNICODE = UnicodeTokenizer()


class SimilarityIndex:
    """
    Texts, and the question whether a further text is too similar to one of them.

    The decision is that of `rouge_score` on all pairs: a text is a near copy if its Rouge-L F-measure with any text of
    the index, without stemming, is above the threshold. Pairs are skipped only if they cannot be above it: of texts of
    m and n tokens that share s, which are counted for the whole index at once, F is at most 2 s / (m + n).

    Args:
        texts (`Iterable[str]`):
            What is there already.
        threshold (`float`, *optional*, defaults to `0.7`):
            Largest F-measure that is let through, in [0, 1]. 0.7 in Self-Instruct and Lion.

    Raises:
        `ValueError`: If `threshold` is out of its range.

    Example:

    ```python
    from trl_distill.lion import SimilarityIndex

    index = SimilarityIndex(["Write a short poem about the sea."])
    index.near_copy("Write a short poem about the sky.")  # 0: six of seven tokens in order
    index.near_copy("How do tides work?")  # None
    ```
    """

    def __init__(self, texts: Iterable[str] = (), threshold: float = 0.7):
        if not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` must be in [0, 1], got {threshold}.")
        self.threshold = threshold
        self._texts: list[str] = []
        self._known: set[str] = set()
        self._lengths = array("i")  # tokens of each text
        self._postings: dict[str, tuple[array, array]] = {}  # token -> numbers of the texts that hold it, how often
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, text: str) -> bool:
        """Whether just this text is there. At a threshold of 1, or without a token, it is no near copy of itself."""
        return text in self._known

    def add(self, text: str) -> None:
        """Add a text. It has the number `len(index) - 1` then."""
        tokens = UNICODE.tokenize(text)
        for token, count in Counter(tokens).items():
            numbers, counts = self._postings.setdefault(token, (array("i"), array("i")))
            numbers.append(len(self._texts))
            counts.append(count)
        self._lengths.append(len(tokens))
        self._texts.append(text)
        self._known.add(text)

    def candidates(self, text: str) -> list[int]:
        """Numbers of the texts that are not ruled out by the tokens they share with `text`, the likeliest first."""
        tokens = UNICODE.tokenize(text)
        shared = np.zeros(len(self._texts), dtype=np.int32)
        for token, count in Counter(tokens).items():
            if token in self._postings:
                numbers, counts = (np.frombuffer(part, dtype=np.int32) for part in self._postings[token])
                shared[numbers] += np.minimum(counts, count)
        total = np.frombuffer(self._lengths, dtype=np.int32) + len(tokens) if self._texts else shared
        bound = 2 * shared / np.maximum(total, 1)
        # F is 0 without a shared token: never above a threshold, not even above 0
        left = np.flatnonzero((bound > self.threshold - _SLACK) & (shared > 0))
        return left[np.argsort(-bound[left], kind="stable")].tolist()

    def near_copy(self, text: str) -> int | None:
        """Number of a text whose Rouge-L F-measure with `text` is above the threshold, `None` if there is none."""
        return next(self.near_copies(text), None)

    def near_copies(self, text: str) -> Iterator[int]:
        """Numbers of all such texts, itself among them if it is there."""
        scorer = rouge_scorer(UNICODE)
        for number in self.candidates(text):
            if scorer.score(self._texts[number], text)["rougeL"].fmeasure > self.threshold:
                yield number

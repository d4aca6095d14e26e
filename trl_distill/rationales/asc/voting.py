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
Votes among sampled answers: self-consistency, weighted self-consistency and adaptive self-consistency.

Plain Python on lists, one question at a time. Answers are texts, as [`~trl_distill.evaluation.extract_answer`] finds
them, and `None` where a sample has none.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction

from ...evaluation.equality import math_string
from ...evaluation.units import split_measure


LAYOUT = re.compile(r"\\[,;: ]|~|\\?[$%]")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
NUMBER = re.compile(
    r"(?:([+-]?)\\frac\{([+-]?\d{1,99})\}\{0*([1-9]\d{0,99})\})|([+-]?(?:\d{1,99}\.?\d{0,99}|\.\d{1,99}))"
)


def _plain(answer: str) -> str:
    return math_string(LAYOUT.sub("", answer)).rstrip(".").casefold()


def canonical_answer(answer: str) -> str:
    r"""
    One spelling for answers that differ in little more than layout, by rules that cost nothing.

    It is the normal form of the MATH benchmark, [`~trl_distill.evaluation.equality.math_string`], without case, and
    with numbers as fractions in lowest terms: `0.5`, `1/2`, `\frac{2}{4}` and `\dfrac12` are all `1/2`. Units behind a
    number do not count, scales do: `5 million` is 5000000. Expressions are left alone: `x + 1` and `1 + x` are two
    answers, which only a computer algebra system would unite, pair by pair.
    """
    value, measure = split_measure(answer)
    number = NUMBER.fullmatch(THOUSANDS.sub("", _plain(value)))
    if number is None:
        return _plain(answer)
    sign, numerator, denominator, decimal = number.groups()
    number = Fraction(decimal) if decimal else Fraction(int(f"{sign}1") * int(numerator), int(denominator))
    return str(number * measure.scale)


def vote(
    answers: Sequence[str | None],
    weights: Sequence[float | None] | None = None,
    normalise: Callable[[str], str] = canonical_answer,
) -> str | None:
    r"""
    The answer with the largest weight

    $$ W(y) = \sum_{i:\, y_i = y} w_i. $$

    Samples without an answer are dropped first. Ties go to the answer with more samples, then to the smaller string,
    so the order of the samples never matters.

    Args:
        answers (`Sequence[str or None]`):
            Answers of the samples of one question.
        weights (`Sequence[float or None]`, *optional*):
            Their weights, 0 or more. `None` stands for the mean of the weights that are given for this question's
            answers, and for 1 if none is given. Without `weights`, each sample counts 1.
        normalise (`Callable`, *optional*, defaults to [`canonical_answer`]):
            Maps an answer to what it is compared by.

    Returns:
        `str` or `None`: The smallest of the winner's spellings; `None` if no sample has an answer.
    """
    if not answers:
        raise ValueError(
            "There are no candidates to vote on: `answers` is empty. Draw at least one sample a question."
        )
    if weights is None:
        weights = [1.0] * len(answers)
    if len(weights) != len(answers):
        raise ValueError(f"Each answer needs a weight, got {len(answers)} answers and {len(weights)} weights.")
    candidates = [(y, w) for y, w in zip(answers, weights, strict=True) if y is not None]
    given = [w for _, w in candidates if w is not None]
    for w in given:
        if not 0 <= w < math.inf:  # also false for NaN
            raise ValueError(
                f"Weights must be 0 or more and finite, got {w}. Use `None` for a sample without a weight."
            )
    mean = math.fsum(given) / len(given) if given else 1.0

    groups = defaultdict(list)
    for y, w in candidates:
        groups[normalise(y)].append((y, mean if w is None else w))
    # `math.fsum` rounds once, whatever the order; a sum from left to right would let it decide between near ties
    ranking = [(-math.fsum(w for _, w in group), -len(group), min(group)[0]) for group in groups.values()]
    return min(ranking)[2] if ranking else None


def self_consistency(answers: Sequence[str | None]) -> str | None:
    """
    Majority vote, [self-consistency](https://huggingface.co/papers/2203.11171): each of the `answers` counts 1 in
    [`vote`].
    """
    return vote(answers)


def weighted_self_consistency(answers: Sequence[str | None], mean_logps: Sequence[float | None]) -> str | None:
    """
    The normalised weighted sum of [self-consistency](https://huggingface.co/papers/2203.11171): a [`vote`] in which a
    sample counts the geometric mean of its tokens' probabilities. `mean_logps` are the means of their logarithms, at
    most 0, or `None` where they are not known.
    """
    for logp in mean_logps:
        if logp is not None and not logp <= 1e-3:  # more than rounding
            raise ValueError(f"A mean log-probability is at most 0, got {logp}. Pass logarithms, not probabilities.")
    return vote(answers, [None if logp is None else math.exp(logp) for logp in mean_logps])


def adaptive_self_consistency(answers: Sequence[str | None], scores: Sequence[float | None]) -> str | None:
    """
    Adaptive self-consistency of [Turning Dust into Gold](https://huggingface.co/papers/2312.12832): a [`vote`] in
    which a sample counts the score that a ranker gives to its rationale, such as [`ASCRankerTrainer.score`]; `None`
    where it has none.
    """
    return vote(answers, scores)

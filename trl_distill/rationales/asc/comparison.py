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
What the votes are worth: answers, votes and verdicts of a question, and accuracies with intervals over all questions.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...evaluation.answers import extract_answer, judge_answer, reference_answer
from .voting import adaptive_self_consistency, self_consistency, weighted_self_consistency


# What is compared with what, in this order
DIFFERENCES = (("sc", "single"), ("ws", "sc"), ("asc", "sc"), ("asc", "ws"))
Z = 1.959964  # 97.5 % of a normal distribution


def vote_on_row(
    row: dict[str, Any], scores: Sequence[float | None], weighted: bool = True, rule: str = "last_number"
) -> dict[str, Any]:
    """
    Answers and votes of one question, and whether they are right where the right answer is known.

    Takes a row of a file of samples, with `completions`, the right answer in `answer` or `completion` if it is known,
    `truncated` if samples were cut off, and `mean_logps` if the votes are `weighted` by them, too; the `scores` of the
    completions; and the `rule` of [`~trl_distill.evaluation.extract_answer`]. A sample that was cut off has no answer
    and does not vote: what stands last in it is a number on the way. Returns the row and, in addition, `answers`,
    `scores`, `votes` (by `sc`, `ws` and `asc`), `reference` and, with a reference, `right`: the verdicts of the
    `samples`, and that of each vote. A verdict is `None` if answer and reference cannot be compared.
    """
    truncated = row.get("truncated") or [False] * len(row["completions"])
    answers = [
        None if cut else extract_answer(text, rule) for text, cut in zip(row["completions"], truncated, strict=True)
    ]
    votes = {"sc": self_consistency(answers)}
    if weighted:
        votes["ws"] = weighted_self_consistency(answers, row["mean_logps"])
    votes["asc"] = adaptive_self_consistency(answers, scores)
    reference = reference_answer(row, rule)
    result = {**row, "answers": answers, "scores": list(scores), "votes": votes, "reference": reference}
    if reference is not None:
        verdicts: dict[str | None, bool | None] = {None: False}  # no answer is not right
        for answer in {*answers, *votes.values()} - {None}:
            verdict = judge_answer(answer, reference, rule)
            verdicts[answer] = None if isinstance(verdict, str) else verdict
        result["right"] = {"samples": [verdicts[answer] for answer in answers]}
        result["right"] |= {name: verdicts[answer] for name, answer in votes.items()}
    return result


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    r"""
    Wilson's 95 % interval of a share `p` among `n` independent trials,

    $$ \frac{p + z^2 / 2n \pm z \sqrt{p (1 - p) / n + z^2 / 4n^2}}{1 + z^2 / n}. $$

    Unlike a bootstrap it does not shrink to a point at 0 and 1.
    """
    center, spread = share + Z**2 / (2 * count), Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    scale = 1 + Z**2 / count
    return max((center - spread) / scale, 0.0), min((center + spread) / scale, 1.0)


def bootstrap_interval(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values`, one for each question, under resampling of the questions."""
    values = np.asarray(values, dtype=float)
    rng, count = np.random.default_rng(seed), len(values)
    means = [values[rng.integers(count, size=count)].mean() for _ in range(resamples)]
    return tuple(float(bound) for bound in np.percentile(means, [2.5, 97.5]))


def compare_votes(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    Accuracies of the votes over all questions, from what [`vote_on_row`] returned for each. Those without a reference
    are left out. What cannot be compared is not right.

    Returns `accuracy` of `single` (the mean over the samples of a question) and of each vote, with Wilson's interval,
    which for `single` is wider than need be; and `differences` of two methods, with an interval by paired bootstrap
    over the questions. Both are empty if no row has a reference.
    """
    right = [row["right"] for row in rows if "right" in row]
    if not right:
        return {"accuracy": {}, "differences": {}}
    of_question = {"single": [sum(map(bool, of_one["samples"])) / len(of_one["samples"]) for of_one in right]}
    of_question |= {name: [float(bool(of_one[name])) for of_one in right] for name in right[0] if name != "samples"}
    accuracy, differences = {}, {}
    for name, values in of_question.items():
        value = math.fsum(values) / len(values)
        accuracy[name] = {"value": value, "interval": list(wilson_interval(value, len(values)))}
    for one, two in DIFFERENCES:
        if one in of_question and two in of_question:
            gains = [a - b for a, b in zip(of_question[one], of_question[two], strict=True)]
            value = accuracy[one]["value"] - accuracy[two]["value"]
            differences[f"{one} - {two}"] = {"value": value, "interval": list(bootstrap_interval(gains))}
    return {"accuracy": accuracy, "differences": differences}

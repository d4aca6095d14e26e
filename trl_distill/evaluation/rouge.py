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


"""Rouge-L as the distillation literature reports it."""

from collections.abc import Sequence
from functools import cache
from typing import Any


@cache
def _scorer():
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError(
            "Rouge-L needs the package rouge-score. Install it with `pip install trl-distill[eval]`."
        ) from error
    return RougeScorer(["rougeL"], use_stemmer=True)


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


def rouge_l(prediction: str, references: str | Sequence[str]) -> float:
    """
    Rouge-L F-measure with stemming, the maximum over the references.

    Args:
        prediction (`str`):
            Text of the completion.
        references (`str` or `list[str]`):
            One or more right answers.

    Returns:
        `float`: Score between 0 and 100. Papers report its mean over the prompts.
    """
    references = [references] if isinstance(references, str) else list(references)
    if not references:
        raise ValueError("Rouge-L needs at least one reference, but the list of references is empty.")
    return 100 * _scorer().score_multi(references, prediction)["rougeL"].fmeasure

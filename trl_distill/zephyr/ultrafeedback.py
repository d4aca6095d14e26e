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

"""Scored answers that others have made: UltraFeedback, distilabel, and our own `ratings.jsonl`."""

import math
from collections.abc import Iterable
from typing import Any

from .policies import row_id
from .prompts import read_messages


_ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")  # of UltraFeedback, rated 1 to 5
_LOW_MEAN = 2.0


def scored_rows(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """
    Read scored answers of any known format into the rows of [`preference_pairs`].

    | format | told by | ratings | score |
    |---|---|---|---|
    | UltraFeedback | `instruction`, `completions` | its four aspects | `overall_score` |
    | distilabel | `instruction` or `prompt`, `generations` | `overall` | `ratings` |
    | `ratings.jsonl` of `trl-distill feedback` | `prompt`, `candidates` | as they are | as it is |

    A rating that cannot be read stays away; no number takes its place. In the first releases of UltraFeedback an
    `overall_score` of 1 was multiplied by 10 (its issue 8), so a 10 beside aspects with a mean of 2 or less, of 5, is
    not believed.

    Args:
        rows (`Iterable[dict]`):
            Rows of such a file.

    Returns:
        `tuple[list[dict], dict[str, int]]`: Rows with `prompt`, `prompt_id` and `candidates`; and counts: `rows`;
        `empty_answers`, left out; `empty_prompts` and `no_answers`, rows that are left out because the prompt or all
        answers have no text; `unreadable_ratings`; `doubtful_overall_scores` (a 10 that is not believed); and
        `ratings_of_another_length` (distilabel rows of which it is not clear which rating belongs to which answer: all
        their answers are unscored).

    Raises:
        `ValueError`: If a row has none of these formats, or holds what is no text.
    """
    names = ("rows", "empty_prompts", "empty_answers", "no_answers", "unreadable_ratings", "doubtful_overall_scores")
    counts = dict.fromkeys((*names, "ratings_of_another_length"), 0)
    result = []
    for number, row in enumerate(rows, start=1):
        prompt = row.get("prompt") or row.get("instruction")
        column = next((column for column in _READERS if isinstance(row.get(column), list)), None)
        if column is None or row.keys().isdisjoint(("prompt", "instruction")):
            raise ValueError(
                f"Row {number} has the columns {', '.join(row)}. Needed are `instruction` and `completions` or "
                "`generations` (UltraFeedback, distilabel), or `prompt` and `candidates` (ratings.jsonl)."
            )
        try:
            is_empty = not (prompt.strip() if isinstance(prompt, str) else prompt)
            if not is_empty:
                read_messages(prompt, "prompt")
            every = _READERS[column](row, counts)
            candidates = [candidate for candidate in every if _has_text(candidate)]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Row {number} with `{column}` cannot be read: {error!r}.") from error
        counts["rows"] += 1
        if is_empty:
            counts["empty_prompts"] += 1
            continue
        counts["empty_answers"] += len(every) - len(candidates)
        if candidates:
            known = {"prompt": prompt, "prompt_id": row.get("prompt_id")}
            result.append(known | {"prompt_id": row_id(known), "candidates": candidates})
        else:
            counts["no_answers"] += 1
    return result, counts


def _ours(row: dict[str, Any], counts: dict[str, int]) -> list[dict[str, Any]]:
    candidates = []
    for candidate in row["candidates"]:
        numbers = {}
        for name, value in [*(candidate.get("ratings") or {}).items(), (None, candidate.get("score"))]:
            number = _number(value)
            if number is None and value is not None and not isinstance(value, float):  # tables write none as NaN
                counts["unreadable_ratings"] += 1
            else:
                numbers[name] = number
        candidates.append(candidate | {"score": numbers.pop(None, None), "ratings": numbers})
    return candidates


def _has_text(candidate: dict[str, Any]) -> bool:
    text = candidate["text"]
    if not isinstance(text, str | None):
        raise ValueError(f"an answer must be a text, got {text!r:.100}")
    (text or "").encode()  # half a pair of surrogates cannot be written
    return bool(text and text.strip())


def _ultrafeedback(row: dict[str, Any], counts: dict[str, int]) -> list[dict[str, Any]]:
    candidates = []
    for completion in row["completions"]:
        ratings = {}
        annotations = completion.get("annotations") or {}  # a failed annotation is an empty list
        for aspect in _ASPECTS if annotations else ():
            rating = (annotations.get(aspect) or {}).get("Rating")
            number = None if rating == "N/A" else _number(rating, 1, 5)
            if number is None and rating != "N/A":
                counts["unreadable_ratings"] += 1
            else:
                ratings[aspect] = number
        score = _number(completion.get("overall_score"), 0, 10)
        known = [rating for rating in ratings.values() if rating is not None]
        if score == 10 and known and sum(known) / len(known) <= _LOW_MEAN:
            counts["doubtful_overall_scores"] += 1
            score = None
        answer = {"text": completion["response"], "model": completion.get("model")}
        candidates.append(answer | {"ratings": ratings, "score": score})
    return candidates


def _distilabel(row: dict[str, Any], counts: dict[str, int]) -> list[dict[str, Any]]:
    texts = row["generations"]
    models = row.get("generation_models") or [None] * len(texts)
    ratings = [_number(rating) for rating in row.get("ratings") or []]
    if len(ratings) == len(texts):
        counts["unreadable_ratings"] += ratings.count(None)
    else:
        counts["ratings_of_another_length"] += 1
        ratings = [None] * len(texts)
    return [
        {"text": text, "model": model, "ratings": {} if rating is None else {"overall": rating}, "score": rating}
        for text, model, rating in zip(texts, models, ratings, strict=True)
    ]


_READERS = {"candidates": _ours, "completions": _ultrafeedback, "generations": _distilabel}  # by a column of the row


def _number(value: Any, least: float = -math.inf, most: float = math.inf) -> float | None:
    """A rating that may be written as text; `None` if it is none, or out of its range."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (OverflowError, TypeError, ValueError):
        return None
    return number if math.isfinite(number) and least <= number <= most else None

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

"""Answers to questions with one right answer: where they stand in a text, and whether they are right."""

import re
from typing import Any

from .equality import braced, equal_answers, math_string


# What counts as the final answer of a text
RULES = ("marked", "last_number", "release")

NUMBER = re.compile(r"(?<![\w.])-?[$£€]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:/\d+)?%?")
BOX = re.compile(r"\\(?:boxed|fbox)\s*")
FOUR_HASHES = re.compile(r"^\s*####[ \t]*(?=[-+$£€(.\\\d])", re.MULTILINE)  # headings such as "#### Step 1" are none
ANSWER_IS = re.compile(r"\banswers?(?:\s+is|\s+are|\s*:)\s*:?\s*", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|;(?=\s+[a-z])")
WORD = re.compile(r"\b(?!(?:sin|cos|tan|log|exp|sqrt)\b)[A-Za-z]{3,}")


def _last_boxed(text: str) -> str | None:
    """Content of the last complete `\\boxed{...}` or `\\boxed x`."""
    for match in reversed(list(BOX.finditer(text))):
        if (end := braced(text, match.end())) is not None:
            return text[match.end() + 1 : end - 1].strip() or None
        if unbraced := re.match(r"[^\s${}]+", text[match.end() :]):  # `\boxed 2`
            return unbraced.group().rstrip(".,;") or None
    return None


def _last_released(text: str) -> str | None:
    """Content of the last `\\boxed{...}`, and of that one only: cut off or without braces it is none."""
    start = text.rfind("\\boxed") + len("\\boxed")
    end = braced(text, start) if start >= len("\\boxed") else None
    return text[start + 1 : end - 1] if end is not None else None


def _last_number(text: str) -> str | None:
    return next(reversed(NUMBER.findall(text)), None)


def _phrase(answer: str) -> str | None:
    answer = SENTENCE_END.split(answer.strip())[0].strip().strip("*_`").strip()
    if len(answer) > 2 and answer[0] == answer[-1] == "$":
        answer = answer.strip("$").strip()
    if "\\" not in answer and WORD.search(answer):  # "12 eggs", "that he has 12 eggs"
        leading = NUMBER.match(answer)
        return leading.group() if leading else _last_number(answer) or answer
    return answer or None


def extract_answer(text: str, rule: str = "last_number") -> str | None:
    r"""
    Find the final answer in a text.

    In this order: the last complete `\boxed{...}` (or `\boxed x`), the last `#### x` (GSM8K), what follows the last
    "answer is" or "answer:", the last number. A box that was opened and never closed is an answer that was cut off,
    and no number is guessed in its place.

    Args:
        text (`str`):
            A completion or a written solution.
        rule (`str`, *optional*, defaults to `"last_number"`):
            `"marked"` stops before the last number: a text in which nothing marks an answer has none. `"release"` is
            the rule of the code that was released with [NAT](https://huggingface.co/papers/2312.12832): only the last
            `\boxed{...}` counts, and only with braces.

    Returns:
        `str` or `None`: The answer as written, or `None` if the text has none.
    """
    if rule not in RULES:
        raise ValueError(f"`rule` must be one of {', '.join(RULES)}, got {rule!r}.")
    if rule == "release":
        return _last_released(text)
    text = text.replace("−", "-")
    if (boxed := _last_boxed(text)) is not None:
        return boxed
    for pattern in (FOUR_HASHES, ANSWER_IS):
        marks = list(pattern.finditer(text))
        answer = _phrase(text[marks[-1].end() :].partition("\n")[0]) if marks else None
        if answer is not None and "\\boxed" not in answer:
            return answer
    return _last_number(text) if rule == "last_number" and "\\boxed" not in text else None


def reference_answer(row: dict[str, Any], rule: str = "last_number") -> str | None:
    r"""
    The right answer of a dataset row: its `answer` column if it has one, else its `completion`. An `answer` without a
    mark (box, "####", "answer is") is taken as a whole; in a `completion` the last number counts then. With the rule
    `"release"`, a box without braces holds no answer.
    """
    if row.get("answer") is not None:
        text = str(row["answer"]).strip()
        marked = extract_answer(text, "release" if rule == "release" else "marked")
        return marked or (None if "\\boxed" in text else text or None)
    completion = row.get("completion")
    if isinstance(completion, list) and completion:
        completion = completion[-1]["content"] if isinstance(completion[-1], dict) else completion[0]
    return extract_answer(completion, "release" if rule == "release" else "last_number") if completion else None


def judge_answer(answer: str | None, reference: str | None, rule: str = "last_number") -> bool | None:
    """
    Whether an extracted answer is right; `None` where there is none. With the rule `"release"` two answers are equal
    if their [`~trl_distill.evaluation.equality.math_string`] are, and a missing answer is wrong.
    """
    if answer is None or reference is None:
        return False if rule == "release" else None
    return math_string(answer) == math_string(reference) if rule == "release" else equal_answers(answer, reference)


def check_answer(completion: str, row: dict[str, Any], rule: str = "last_number") -> bool | None:
    """
    Whether a completion ends in the right answer of its row.

    Args:
        completion (`str`), row (`dict[str, Any]`):
            Generated text, and the dataset row with the right answer in the column `answer` or `completion`.
        rule (`str`, *optional*, defaults to `"last_number"`):
            What counts as the answer of a text, see [`extract_answer`] and [`judge_answer`].

    Returns:
        `bool` or `None`: `None` if the completion or the row has no answer.
    """
    return judge_answer(extract_answer(completion, rule), reference_answer(row, rule), rule)

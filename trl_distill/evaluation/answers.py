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

import itertools
import re
from typing import Any

from .equality import MAX_CHARACTERS, NotCompared, braced, compare_answers, math_string
from .units import MEASURE


# What counts as the final answer of a text
RULES = ("marked", "last_number", "release")

NUMBER = re.compile(
    r"(?<![\w.])-?[$£€]?(?:\d+ (?=\d{1,2}/\d))?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE][-+]?\d+(?!\w))?(?:/\d+|(?::\d+)+)?%?"
)
BOX = re.compile(r"\\(?:boxed|fbox)\s*")
NO_BRACES = re.compile(r"[^\s${}]+")  # `\boxed 2`
# `x = \boxed{1} or x = \boxed{2}`: what stands before a box, and between two that are one answer
NAMED = re.compile(r"([A-Za-z]\w*)\s*=[\s$]*$")
JOINED = re.compile(
    r"(?:[\s$]|\\q?quad)*(?:,|;|(?:,\s*)?(?:\\text\s*\{)?\s*(?:and|or)\b\s*\}?)"
    r"(?:[\s$]|\\q?quad|\\ )*(?:([A-Za-z]\w*)\s*=)?[\s$]*"
)
TAG = re.compile(r"<(/?)(?:final[_ ]?)?answer>", re.IGNORECASE)
# Headings such as "#### Step 1" are no answers
FOUR_HASHES = re.compile(
    r"^[ \t]*####[ \t]*(?=[*$]*(?:[-+£€(.\\\d]|[A-Za-z]\w{0,2}(?:\([A-Za-z]\))?[ \t]*=))", re.MULTILINE
)
ANSWER_IS = re.compile(
    r"(?:\banswers?[*_`]*(?:\s+(?:is|are|equals|(?:must|should|would|will)\s+be)\b"
    r"(?!\s+(?:(?:not|never)\s+(?:[^A-Za-z\s]|[A-Za-z]\b)|(?:wrong|(?:in)?correct)\b))"  # "is not 5"
    r"|\s*:)[*_`]*\s*:?|^[ \t#*_>]*(?:(?:the|my)[ \t]+)?(?:final[ \t]+)?answers?[ \t#*_]*$)"  # a heading
    r"\s*(?:(?:\$\$|\\\[|```\w*)\s*\n\s*)?",
    re.IGNORECASE | re.MULTILINE,
)
# Where a text goes on, behind its answer, with a problem of its own
NEXT_PROBLEM = re.compile(
    r"^[ \t#*_>]*(?:(?:next|new|another)[ \t]+)?(?:problem|question|exercise|q|human|user)\b"
    r"[ \t]*(?:#?\d+)?[*_ \t]*(?:[:.]|$)|<\|(?:im_start|user)\|>|\[INST\]",
    re.IGNORECASE | re.MULTILINE,
)
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|;(?=\s+[a-z])")
WORD = re.compile(r"\b(?!(?:sin|cos|tan|log|exp|sqrt)\b)[A-Za-z]{3,}")


def _closings(text: str) -> dict[int, int]:
    """Where the braces close that open in a text, by where they open."""
    opened, closings = [], {}
    for brace in re.finditer("[{}]", text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened:
            closings[opened.pop()] = brace.start()
    return closings


def _last_boxed(text: str) -> str | None:
    """Content of the last complete `\\boxed{...}` or `\\boxed x`, and of those that are joined to it."""
    boxes, closings = list(BOX.finditer(text)), _closings(text)
    while boxes and boxes[-1].end() not in closings:
        if unbraced := NO_BRACES.match(text, boxes.pop().end()):
            return unbraced[0].rstrip(".,;") or None
    answers, names = [], []
    while boxes:
        box = boxes.pop()
        answers.append(text[box.end() + 1 : closings[box.end()]].strip())
        end = closings.get(boxes[-1].end(), len(text)) + 1 if boxes else len(text)
        joined = JOINED.fullmatch(text, end, box.start()) if end < box.start() < end + 50 else None
        name = joined or NAMED.search(text[max(0, box.start() - 20) : box.start()])
        names.append(name and name[1])
        if joined is None:
            break
    if None not in names and len(set(names)) > 1:
        answers = [f"{name} = {answer}" for name, answer in zip(names, answers, strict=True)]
    return ", ".join(dict.fromkeys(filter(None, reversed(answers)))) or None


def _last_released(text: str) -> str | None:
    """Content of the last `\\boxed{...}`, and of that one only: cut off or without braces it is none."""
    start = text.rfind("\\boxed") + len("\\boxed")
    end = braced(text, start) if start >= len("\\boxed") else None
    return text[start + 1 : end - 1] if end is not None else None


def _measured(number: re.Match) -> str:
    """A number with the scale and the unit behind it: `5 million`."""
    measure = MEASURE.match(number.string, number.end())
    return number[0] + (measure[0] if measure else "")


def _last_number(text: str) -> str | None:
    numbers = list(NUMBER.finditer(text))
    return _measured(numbers[-1]) if numbers else None


def _phrase(answer: str) -> str | None:
    answer = SENTENCE_END.split(answer.strip())[0].strip().strip("*_`").strip()
    if len(answer) > 4 and (answer[:2], answer[-2:]) in ((r"\(", r"\)"), (r"\[", r"\]")):
        answer = answer[2:-2].strip()
    if len(answer) > 2 and answer[0] == answer[-1] == "$":
        answer = answer.strip("$").strip()
    if "\\" not in answer and WORD.search(answer):  # "12 eggs", "that he has 12 apples"
        leading = NUMBER.match(answer)
        return _measured(leading) if leading else _last_number(answer) or answer
    return answer or None


def _behind(mark: re.Match) -> str | None:
    """The answer behind a mark, on its line."""
    answer = _phrase(mark.string[mark.end() : mark.end() + MAX_CHARACTERS + 1].partition("\n")[0])
    return answer if answer is None or "\\boxed" not in answer else None


def _is_short(answer: str | None) -> bool:
    """Whether a phrase is an answer, unlike that of "the answer is what we are asked for"."""
    return answer is not None and (re.search(r"\d", answer) is not None or len(answer.split()) <= 3)


def _tagged(text: str) -> str | None:
    """Content of the last `<answer>...</answer>`."""
    for opening, closing in reversed(list(itertools.pairwise(TAG.finditer(text)))):
        if closing[1] and not opening[1]:
            return _phrase(" ".join(text[opening.end() : closing.start()].split()))
    return None


def _first_problem(text: str) -> str:
    """A text up to where another problem begins, if an answer stands before that."""
    closings = _closings(text)
    ends = itertools.chain(
        itertools.islice((closings[box.end()] for box in BOX.finditer(text) if box.end() in closings), 1),
        itertools.islice((tag.end() for tag in TAG.finditer(text) if tag[1]), 1),
        itertools.islice((mark.end() for mark in FOUR_HASHES.finditer(text) if _behind(mark)), 1),
        itertools.islice((mark.end() for mark in ANSWER_IS.finditer(text) if _is_short(_behind(mark))), 1),
    )
    first = min(ends, default=None)
    following = NEXT_PROBLEM.search(text, first) if first is not None else None
    return text[: following.start()] if following else text


def extract_answer(text: str, rule: str = "last_number") -> str | None:
    r"""
    Find the final answer in a text.

    In this order: the last complete `\boxed{...}` (or `\boxed x`; two boxes joined by "or" are one answer), the last
    `<answer>x</answer>`, the last `#### x` (GSM8K), what follows the last "answer is", "answer:" or heading "Answer",
    the last number, with its unit. A box or tag that was opened and never closed is an answer that was cut off, and no
    number is guessed in its place. Where a text goes on behind its answer with another problem, that is not read.

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
    text = _first_problem(text.replace("−", "-"))
    if (boxed := _last_boxed(text)) is not None:
        return boxed
    if (tagged := _tagged(text)) is not None:
        return tagged
    for pattern in (FOUR_HASHES, ANSWER_IS):
        marks = list(pattern.finditer(text))
        if marks and (answer := _behind(marks[-1])) is not None:
            return answer
    cut_off = "\\boxed" in text or any(not tag[1] for tag in TAG.finditer(text))
    return _last_number(text) if rule == "last_number" and not cut_off else None


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


def judge_answer(answer: str | None, reference: str | None, rule: str = "last_number") -> bool | str:
    """
    Whether an extracted answer is right, or a text that says why there is no verdict: `"no_reference"`, `"no_answer"`,
    or a reason of [`~trl_distill.evaluation.equality.NotCompared`]. With the rule `"release"` two answers are equal if
    their [`~trl_distill.evaluation.equality.math_string`] are, and a missing answer is wrong.
    """
    if rule == "release":
        return None not in (answer, reference) and math_string(answer) == math_string(reference)
    if reference is None or answer is None:
        return "no_reference" if reference is None else "no_answer"
    try:
        return compare_answers(answer, reference)
    except NotCompared as reason:
        return str(reason)


def check_answer(completion: str, row: dict[str, Any], rule: str = "last_number") -> bool | None:
    """
    Whether a completion ends in the right answer of its row.

    Args:
        completion (`str`), row (`dict[str, Any]`):
            Generated text, and the dataset row with the right answer in the column `answer` or `completion`.
        rule (`str`, *optional*, defaults to `"last_number"`):
            What counts as the answer of a text, see [`extract_answer`] and [`judge_answer`].

    Returns:
        `bool` or `None`: `None` if the completion or the row has no answer, or the two cannot be compared.
    """
    verdict = judge_answer(extract_answer(completion, rule), reference_answer(row, rule), rule)
    return None if isinstance(verdict, str) else verdict

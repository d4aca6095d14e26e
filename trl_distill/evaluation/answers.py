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


"""Answers to questions with one right answer: where they stand in a text, and whether two of them are equal."""

import re
import threading
from typing import Any


NUMBER = re.compile(r"(?<![\w.])-?[$£€]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:/\d+)?%?")
FOUR_HASHES = re.compile(r"^\s*####[ \t]*(?=[-+$£€(.\\\d])", re.MULTILINE)  # headings such as "#### Step 1" are none
ANSWER_IS = re.compile(r"\banswers?(?:\s+is|\s+are|\s*:)\s*:?\s*", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?;](?=\s|$)")
WORD = re.compile(r"[A-Za-z]{2,}")
TIMEOUT = 5  # seconds for one step of math-verify: SymPy can take forever on a strange expression


def _last_boxed(text: str) -> str | None:
    """Content of the last complete `\\boxed{...}` or `\\boxed x`."""
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*", text))):
        rest = text[match.end() :]
        if not rest.startswith("{"):
            unbraced = re.match(r"[^\s${}]+", rest)  # `\boxed 2`
            if unbraced:
                return unbraced.group().rstrip(".,;") or None
            continue
        depth = 0
        for position, character in enumerate(rest):
            depth += (character == "{") - (character == "}")
            if depth == 0:
                return rest[1:position].strip() or None
    return None


def _last_number(text: str) -> str | None:
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _tidy(answer: str) -> str | None:
    answer = SENTENCE_END.split(answer.strip())[0].strip().strip("*_`").strip()
    if len(answer) > 2 and answer[0] == answer[-1] == "$":
        answer = answer.strip("$").strip()
    if "\\" not in answer and WORD.search(answer):  # "12 eggs", "that he has 12 eggs"
        leading = NUMBER.match(answer)
        return leading.group() if leading else _last_number(answer) or answer
    return answer or None


def _drop_unit(answer: str) -> str:
    number = NUMBER.match(answer)
    return number.group() if number and re.fullmatch(r"\s*[A-Za-z ]+", answer[number.end() :]) else answer


def extract_answer(text: str, last_number: bool = True) -> str | None:
    r"""
    Find the final answer in a text.

    In this order: the last complete `\boxed{...}` (or `\boxed x`), the last `#### x` (GSM8K), what follows the last
    "answer is" or "answer:", the last number. A box that was opened and never closed is an answer that was cut off, and
    no number is guessed in its place.

    Args:
        text (`str`):
            A completion or a written solution.
        last_number (`bool`, *optional*, defaults to `True`):
            Whether the last number counts where nothing marks an answer.

    Returns:
        `str` or `None`: The answer as written, or `None` if the text has none.
    """
    text = text.replace("−", "-")
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    for pattern in (FOUR_HASHES, ANSWER_IS):
        marks = list(pattern.finditer(text))
        answer = _tidy(text[marks[-1].end() :].partition("\n")[0]) if marks else None
        if answer is not None and "\\boxed" not in answer:
            return answer
    return _last_number(text) if last_number and "\\boxed" not in text else None


def equal_answers(answer: str | None, reference: str | None) -> bool:
    """
    Whether two answers are the same mathematical object, by math-verify; words are compared as words.

    A missing answer (`None`) equals nothing, another missing one included.
    """
    if answer is None or reference is None:
        return False
    if answer.casefold() == reference.casefold():
        return True
    worded = ["\\" not in side and WORD.search(side) is not None for side in (answer, reference)]
    if all(worded):
        return False  # math-verify reads a word as a product of letters, so that "no" would equal "on"
    answer, reference = (
        _drop_unit(side) if has_words else side for side, has_words in zip((answer, reference), worded, strict=True)
    )
    try:
        from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    except ImportError as error:
        raise ImportError(
            "Comparing answers needs the package math-verify. Install it with `pip install trl-distill[eval]`."
        ) from error
    # math-verify interrupts SymPy by a signal, which Python allows in the main thread only
    timeout = TIMEOUT if threading.current_thread() is threading.main_thread() else None
    parsed = []
    for side in (reference, answer):
        side = re.sub(r"\\?[$£€]", "", side)
        parsed.append(
            parse(
                f"${side}$",
                extraction_config=[LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()],
                parsing_timeout=timeout,
            )
        )
    return bool(parsed[0] and parsed[1] and verify(*parsed, timeout_seconds=timeout))


def reference_answer(row: dict[str, Any]) -> str | None:
    """
    The right answer of a dataset row: its `answer` column if it has one, else its `completion`.

    An `answer` without a mark (box, "####", "answer is") is taken as a whole; in a `completion` the last number counts
    then.
    """
    if row.get("answer") is not None:
        text = str(row["answer"]).strip()
        return extract_answer(text, last_number=False) or text or None
    completion = row.get("completion")
    if isinstance(completion, list) and completion:
        completion = completion[-1]["content"] if isinstance(completion[-1], dict) else completion[0]
    return extract_answer(completion) if completion else None


def check_answer(completion: str, row: dict[str, Any]) -> bool | None:
    """
    Whether a completion ends in the right answer of its row.

    Args:
        completion (`str`):
            Generated text.
        row (`dict[str, Any]`):
            Dataset row with the right answer in the column `answer` or `completion`.

    Returns:
        `bool` or `None`: `None` if the completion or the row has no answer.
    """
    answer, reference = extract_answer(completion), reference_answer(row)
    return None if answer is None or reference is None else equal_answers(answer, reference)

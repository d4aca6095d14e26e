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

"""What a model thought before it answered, told from the answer."""

import re
from typing import NamedTuple


class _Marks(NamedTuple):
    """
    What stands around thoughts, as regular expressions. `anywhere`: these marks are in no ordinary text, so a line in
    the middle of an answer that begins with one begins thoughts, too.
    """

    opening: str
    closing: str
    anywhere: bool = True


_CHANNELS = r"<\|channel\|>(?:analysis|commentary)<\|message\|>"
_FINAL = r"(?:<\|end\|>)?(?:<\|start\|>)?(?:assistant)?<\|channel\|>final<\|message\|>"
_MARKS = (
    _Marks(r"<(?:seed:)?think>", r"</(?:seed:)?think>"),  # most models; Seed-OSS
    _Marks(_CHANNELS, _FINAL),  # gpt-oss
    _Marks(r"<\|channel>thought", r"<channel\|>"),  # Gemma 4
    _Marks(r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    _Marks(r"◁think▷", r"◁/think▷"),  # Kimi
    _Marks(r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # OpenThinker
    _Marks(r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    _Marks(r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    *(_Marks(f"<{word}>", f"</{word}>", anywhere=False) for word in ("thinking", "thoughts?", "reasoning")),
)
_ANY = re.compile("|".join(part for marks in _MARKS for part in marks[:2]), re.IGNORECASE)
# `<|end|>` is none of them, for with it other models end their answers
_TOKENS = re.compile("|".join([_ANY.pattern, r"<\|channel\|>", r"<\|message\|>", r"<\|channel>"]), re.IGNORECASE)
_QUOTES = "`\"'"


def split_thoughts(text: str) -> tuple[str, str]:
    """
    Thoughts and answer of a text: `"<think>Hm.</think>\\n\\nYes."` are `"Hm."` and `"Yes."`.

    Thoughts stand in front of the answer, between the marks of any model that we know. Their opening mark may be
    missing, for some chat templates end with it; without the closing one all is thoughts, and the answer is empty.
    Marks in quotes, in code, or within a line are text about marks. A text without thoughts comes back as it is.
    """
    thoughts: list[str] = []
    before = None if _ANY.search(text) else text
    while before != text:  # marks of one kind may uncover those of another
        before = text
        for marks in _MARKS:
            found, text = _split(text, marks)
            thoughts += found
    return "\n".join(part for part in map(str.strip, thoughts) if part), text


def _split(text: str, marks: _Marks) -> tuple[list[str], str]:
    thoughts, answer = [], []
    begin, end = None, 0  # where thoughts have begun, and up to where the text is sorted
    literal = 0  # opening marks that are text, whose closing ones are, too
    for mark in re.finditer(f"(?P<opening>{marks.opening})|{marks.closing}", text, re.IGNORECASE):
        is_opening, before = mark["opening"] is not None, text[end : mark.start()]
        if begin is not None:
            if not is_opening:  # of thoughts about thoughts the rest is found below
                thoughts.append(text[begin : mark.start()])
                begin, end = None, mark.end()
        elif is_opening:
            is_first = not (before.strip() or any(map(str.strip, answer)))
            starts_line = not before.rpartition("\n")[2].strip() and not _in_code(text, mark)
            if is_first or marks.anywhere and starts_line:
                answer.append(before)
                begin = mark.end()
            else:
                literal += 1
        elif literal:
            literal -= 1
        elif not _in_code(text, mark):
            thoughts.append("".join(answer) + before)
            answer, end = [], mark.end()
    answer.append(text[end:] if begin is None else "")
    if begin is not None:
        thoughts.append(text[begin:])
    return thoughts, "".join(answer).lstrip() if thoughts else text


def _in_code(text: str, mark: re.Match) -> bool:
    """Whether a mark is in quotes or in a block of code."""
    start, end = mark.span()
    quoted = text[start - 1 : start] in tuple(_QUOTES) or text[end : end + 1] in tuple(_QUOTES)
    return quoted or text.count("```", 0, start) % 2 == 1


def marking_tokens(special_tokens: list[str]) -> list[str]:
    """Of a tokenizer's special tokens those that marks of thoughts are made of: decoding must not skip them."""
    return [token for token in special_tokens if _TOKENS.fullmatch(token)]

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


"""Recorded rollouts and answers as a page shows them: token by token, and side by side."""

from collections.abc import Sequence
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple

from ..files import read_rows
from .curves import number


ROLLOUTS_FILE = "rollouts.jsonl"
_SETS = 6  # of rollouts, on a page
_SHADES = (0.1, 0.5, 1.0, 2.0)  # nats from which on a token is coloured, and more strongly
_SHOWN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}  # control characters, as signs


class Token(NamedTuple):
    """A piece of an answer, its classes of the page's style, and what is known of it."""

    text: str
    style: str = ""
    about: str = ""


class Answer(NamedTuple):
    """An answer as a page shows it: what stands above its tokens, and these."""

    facts: Sequence[str]
    tokens: Sequence[Token]


class Compared(NamedTuple):
    """Answers to one prompt, side by side."""

    prompt: str
    answers: Sequence[Answer]


def shown(text: str) -> str:
    """A text whose control characters are signs."""
    return text.translate(_SHOWN)


def _token(
    text: str, student: float | None, teacher: float | None, credit: float | None, by_teacher: bool | None
) -> Token:
    drawn = {True: ", drawn by the teacher", False: ", drawn by the student", None: ""}[by_teacher]
    mark = "t" * bool(by_teacher)
    if student is None or teacher is None:
        return Token(shown(text), mark, f"not finite{drawn}")
    ratio = teacher - student
    strength = sum(abs(ratio) >= bound for bound in _SHADES)
    shade = "" if strength == 0 else f"{'p' if ratio > 0 else 'n'}{strength}"
    about = f"teacher {teacher:.2f}, student {student:.2f}" + ("" if credit is None else f", credit {credit:.2f}")
    return Token(shown(text), f"{shade} {mark}".strip(), about + drawn)


def _answer(row: dict[str, Any], *facts: str) -> Answer:
    """A row of `rollouts.jsonl`: with what both models make of each token, or as a text alone."""
    facts = (*facts, f"{row['length']} tokens")
    if "student" not in row:
        return Answer(facts, [Token(shown(text)) for text in row["tokens"]])
    unknown = [None] * len(row["tokens"])
    drew = row.get("by_teacher")
    if drew:
        facts = (*facts, f"{sum(drew)} of {len(drew)} by the teacher")
    parts = row["tokens"], row["student"], row["teacher"], row.get("credit") or unknown, drew or unknown
    return Answer((*facts, f"reward {number(row['reward'])}"), list(starmap(_token, zip(*parts, strict=True))))


def _after(step: int) -> str:
    return f"after {number(step)} steps" if step else "before training"


def read_rollouts(path: Path, since: float) -> dict[str, Any]:
    """
    Of the recorded rollouts `rollouts`, pairs of a step and its answers with their prompts, and `compared`, answers of
    the first and the last evaluation. A step that was done again after a resume counts once, and a file that is older
    than the run is one of another run.
    """
    sets: dict[str, dict[int, dict[int, dict[str, Any]]]] = {"train": {}, "eval": {}}
    try:
        for row in read_rows(path) if path.is_file() and path.stat().st_mtime >= since else ():
            sets[row["mode"]].setdefault(row["step"], {})[row["row"]] = row
    except (ValueError, KeyError):  # a kill has cut the last line off
        pass
    found: dict[str, Any] = {}
    if steps := sorted(sets["train"]):
        last = len(steps) - 1
        places = sorted({steps[round(last * place / (_SETS - 1))] for place in range(_SETS)})
        found["rollouts"] = [(step, [_compared(row) for row in sets["train"][step].values()]) for step in places]
        found["recorded"] = len(steps)
        found["mixed"] = any("by_teacher" in row for step in places for row in sets["train"][step].values())
    if len(steps := sorted(sets["eval"])) > 1:
        first, last = (sets["eval"][steps[place]] for place in (0, -1))
        pairs = [(first[row], last[row]) for row in first if row in last]
        of = next((row["of"] for row in first.values() if "of" in row), None)
        found["compared"] = {
            "title": f"Answers {_after(steps[0])} and {_after(steps[-1])}",
            "note": f"Drawn greedily, to the first prompts of the {of}."
            if of
            else "Drawn in evaluation, by the student.",
            "rows": [_compared(*pair) for pair in pairs],
        }
    return found


def _compared(*rows: dict[str, Any]) -> Compared:
    facts = [[_after(row["step"])] if len(rows) > 1 else [] for row in rows]
    return Compared(shown(rows[0]["prompt"]), [_answer(row, *fact) for row, fact in zip(rows, facts, strict=True)])

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

"""The pools of Lion: instructions, where they come from, which are never trained on, and which are hard."""

import hashlib
import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, Literal, NamedTuple

from ..chat.models import digest
from ..files import read_rows, write_rows
from .similarity import SimilarityIndex


logger = logging.getLogger(__name__)

_NO_INPUT = ("", "<noinput>", "noinput", "none", "n/a")  # what stands in `input` where there is none
_EXAMPLES = 5  # rows of each fault that are named
SLACK = 1e-9  # a mean over two orders may miss a boundary by its last bit


@dataclass(frozen=True)
class Instruction:
    """
    An instruction of a pool: what is asked, with its input if it has one. It is a `"seed"` if it was given, `"hard"`
    or `"easy"` if it was generated in a `round` from such an instruction, whose `id` is `parent`.
    """

    text: str
    kind: Literal["seed", "hard", "easy"] = "seed"
    round: int = 0
    parent: str | None = None

    @property
    def id(self) -> str:
        """A name that follows from the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def _text(row: dict[str, Any]) -> Any:
    """What a row asks: Alpaca's and Self-Instruct's `instruction` with its input, or a `prompt`."""
    text = row.get("instruction", row.get("prompt"))
    if isinstance(text, list) and len(text) == 1 and isinstance(text[0], dict):
        text = text[0].get("content")
    given = row.get("input")
    if given is None and isinstance(instances := row.get("instances"), list) and instances:
        given = instances[0].get("input") if isinstance(instances[0], dict) else None
    if isinstance(text, str) and isinstance(given, str) and given.strip().lower() not in _NO_INPUT:
        text = f"{text.strip()}\n\n{given.strip()}"
    return text


def read_instructions(rows: Iterable[dict[str, Any]]) -> tuple[list[Instruction], dict[str, Any]]:
    """
    Instructions of a data set.

    Args:
        rows (`Iterable[dict]`):
            Rows with `instruction` and optionally `input` (Alpaca) or `instances` (Self-Instruct, whose first input is
            taken), or with a `prompt`: a text, or one message.

    Returns:
        `tuple[list[Instruction], dict]`: The instructions in their order, and counts: `rows`, `kept`, `duplicate`,
        `empty`, `not_text`, and under `examples` the first rows of each fault, from 0.

    Raises:
        `ValueError`: If no row is left.
    """
    instructions: dict[str, Instruction] = {}
    counts: dict[str, Any] = {"rows": 0, "kept": 0, "duplicate": 0, "empty": 0, "not_text": 0, "examples": {}}
    columns: set[str] = set()
    for number, row in enumerate(rows):
        counts["rows"] += 1
        columns |= row.keys()
        text = _text(row)
        if not isinstance(text, str) or re.search("[\ud800-\udfff]", text):  # half a pair can be in JSON, in no file
            fault = "not_text"
        elif not text.strip():
            fault = "empty"
        elif text.strip() in instructions:
            fault = "duplicate"
        else:
            instructions[text.strip()] = Instruction(text.strip())
            counts["kept"] += 1
            continue
        counts[fault] += 1
        examples = counts["examples"].setdefault(fault, [])
        if len(examples) < _EXAMPLES:
            examples.append(number)
    if not instructions:
        raise ValueError(
            f"No instruction among {counts['rows']} rows with the columns {', '.join(sorted(columns)) or '(none)'}. "
            "Expected `instruction`, optionally with `input`, or `prompt`."
        )
    return list(instructions.values()), counts


def hold_out(
    pool: Sequence[Instruction], size: int, seed: int, threshold: float = 0.7
) -> tuple[list[Instruction], list[Instruction], int]:
    """
    Set `size` instructions aside that are never trained on, scored for mining, or used as seeds, and with each all of
    its near copies, and theirs: what is held out has no near copy in what is left. `seed` and the texts decide who is
    taken, so the order of the pool does not matter.

    Args:
        pool (`list[Instruction]`), size (`int`), seed (`int`):
            What is drawn from, how many, and what else decides. A group of near copies that does not fit into what is
            missing stays in the pool, so there may be fewer, which is a warning.
        threshold (`float`, *optional*, defaults to `0.7`):
            Rouge-L F-measure above which two instructions are near copies, see [`SimilarityIndex`].

    Returns:
        `tuple[list[Instruction], list[Instruction], int]`: What is left, and what is held out, in the order of the
        pool, and how many groups of near copies the latter are.

    Raises:
        `ValueError`: If nothing would be left, or no group fits.
    """
    if not 0 <= size < len(pool):
        raise ValueError(f"`heldout_size` is {size}, and the pool has {len(pool)} instructions: one must be left.")
    index = SimilarityIndex((item.text for item in pool if size), threshold)
    taken: set[int] = set()
    too_large: set[int] = set()
    groups = 0
    for first in sorted(range(len(pool)), key=lambda i: digest(seed, "held out", pool[i].id)):
        if len(taken) == size:
            break
        if first not in taken | too_large and (group := _near_group(pool, index, first, size - len(taken), too_large)):
            taken |= group
            groups += 1
    if len(taken) < size:
        said = f"{len(taken)} of {len(pool)} instructions are held out, not {size}: the others have more near copies"
        if not taken:
            raise ValueError(f"{said}. Set `heldout_size` to 0, or take instructions that differ more.")
        logger.warning("%s.", said)
    return [pool[i] for i in range(len(pool)) if i not in taken], [pool[i] for i in sorted(taken)], groups


def _near_group(
    pool: Sequence[Instruction], index: SimilarityIndex, first: int, most: int, too_large: set[int]
) -> set[int] | None:
    """All that near copies connect with `first`. `None`, and all of them into `too_large`, if these are too many."""
    group, left = {first}, [first]
    while left:
        found = set(index.near_copies(pool[left.pop()].text)) - group
        group |= found
        left += found
        if len(group) > most or group & too_large:  # of a large group no member is looked at twice
            too_large |= group
            return None
    return group


def drawn(pool: Sequence[Instruction], size: int, *key: int | str) -> list[Instruction]:
    """`size` instructions of the pool at random, in its order. `key` and the texts decide, not the order."""
    in_order = sorted(pool, key=lambda instruction: digest(*key, instruction.id))
    taken = {instruction.id for instruction in in_order[:size]}
    return [instruction for instruction in pool if instruction.id in taken]


def write_pool(path: str | PathLike, pool: Iterable[Instruction]) -> None:
    """Write instructions as JSON Lines, as a whole."""
    write_rows(path, ({"id": instruction.id, **asdict(instruction)} for instruction in pool))


def read_pool(path: str | PathLike) -> list[Instruction]:
    """Instructions of a file that [`write_pool`] wrote."""
    return [Instruction(**{name: value for name, value in row.items() if name != "id"}) for row in read_rows(path)]


class Scored(NamedTuple):
    """What the referee gave for the two answers to one instruction, means over their orders."""

    id: str
    teacher: float
    student: float

    @property
    def gap(self) -> float:
        """How far the student is behind."""
        return self.teacher - self.student


class Partition(NamedTuple):
    """
    Ids of hard and easy instructions, of those on which the teacher itself scores too low to be followed, and the gap
    from which on an instruction is hard.
    """

    hard: list[str]
    easy: list[str]
    below_floor: list[str]
    tau: float


def partition(
    scored: Sequence[Scored],
    tau: float = 1.0,
    tau_quantile: float | None = None,
    min_teacher_score: float | None = None,
) -> Partition:
    r"""
    Split instructions by the gap \\( d \\) of the scores: hard if \\( d \geq \tau \\), easy otherwise, as in
    [Lion](https://huggingface.co/papers/2305.12870).

    Args:
        scored (`list[Scored]`):
            Instructions with a score of both answers. Those without one belong in neither set, so leave them out.
        tau (`float`, *optional*, defaults to `1.0`):
            The boundary, inclusive. The paper's value, tuned for scores of gpt-3.5-turbo on a scale of 1 to 10.
        tau_quantile (`float`, *optional*):
            In place of `tau`: the share of the instructions that is hard, largest gaps first. Equal gaps at the cut
            are all in. Where the student is not behind, nothing is hard, whatever the share.
        min_teacher_score (`float`, *optional*):
            Instructions on which the teacher scores less are neither hard nor easy.

    Returns:
        [`Partition`]

    Raises:
        `ValueError`: If `tau` is not a number, or `tau_quantile` not in (0, 1].
    """
    if math.isnan(tau):
        raise ValueError("`tau` must be a number, got NaN.")
    if tau_quantile is not None and not 0 < tau_quantile <= 1:
        raise ValueError(f"`tau_quantile` must be in (0, 1], got {tau_quantile}.")
    floor = -math.inf if min_teacher_score is None else min_teacher_score - SLACK
    judged = [item for item in scored if item.teacher >= floor]
    if tau_quantile is not None:
        gaps = sorted((item.gap for item in judged), reverse=True)
        tau = gaps[math.ceil(tau_quantile * len(gaps) - SLACK) - 1] if gaps else math.inf
    hard = [item.id for item in judged if item.gap >= tau - SLACK and (tau_quantile is None or item.gap > SLACK)]
    hard_set = set(hard)
    easy = [item.id for item in judged if item.id not in hard_set]
    return Partition(hard, easy, [item.id for item in scored if item.teacher < floor], tau)

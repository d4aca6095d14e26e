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

"""Rows of LLaMA-Factory and ms-swift, read as rows of TRL."""

import functools
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar


if TYPE_CHECKING:
    from datasets import Features

logger = logging.getLogger(__name__)

Rows = TypeVar("Rows", bound=Iterable[dict[str, Any]])
Wanted = Literal["sft", "prompt", "preference"]

# Formats by the column that tells one: what it is called, and its columns beside `system` and `history`
_FORMATS = {
    "instruction": ("alpaca", ("instruction", "input", "output")),
    "query": ("ms-swift query and response", ("query", "response")),
    "conversations": ("sharegpt", ("conversations",)),
    "conversation": ("ms-swift sharegpt", ("conversation",)),
    "messages": ("messages", ("messages",)),
}
_ASSISTANT = ("assistant", "gpt", "bot")
_ROLES = dict.fromkeys(_ASSISTANT, "assistant") | {"human": "user", "user": "user", "system": "system"}
_TOOLS = ("function_call", "observation", "tool", "tool_call", "tool_response")
_NOT_READ = ("tools", "images", "videos", "audios", "kto_tag")  # what a row says there would be lost in silence


def trl_rows(rows: Rows, wanted: Wanted, *known: str) -> Rows:
    """
    Rows in the formats of LLaMA-Factory (alpaca, sharegpt) and ms-swift as conversational rows of TRL. Texts stay as
    they are; `instruction` and `input` are joined by a line break, as LLaMA-Factory does. Columns of no format stay.

    Rows that TRL reads already, and rows of no format, stay as they are. So do rows that were converted.

    Args:
        rows ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or `Iterable[dict]`):
            Rows of one format, which the first one shows.
        wanted (`str`):
            `"prompt"`: `prompt`, and `completion` where there is an answer; of conversations the last turn, if it is
            the assistant's. `"sft"`: `prompt` and `completion`, or `messages` of conversations. `"preference"`:
            `prompt`, `chosen` and `rejected`.
        known (`str`, *optional*):
            Columns that the command reads itself: rows with one of them stay as they are.

    Returns:
        The rows, of the type that they had, or an iterator in place of another iterable.

    Raises:
        `ValueError`: If the columns are those of two formats, or a row cannot be read, calls of tools included. Of
            rows that are read one by one, when they are read.
    """
    from datasets import Dataset, IterableDataset

    first = next(iterator := iter(rows), None)
    if not isinstance(rows, Dataset | IterableDataset):
        rows = itertools.chain([] if first is None else [first], iterator)
    mark = None if first is None else _mark(first, wanted, known)
    if mark is None:
        return rows
    made = _converted(first, 0, mark, wanted)
    _say(mark, wanted, tuple(made), tuple(first))
    settings = {"mark": mark, "wanted": wanted, "columns": tuple(made)}
    gone = [*_FORMATS[mark][1], "system", "history", "rejected_response"]
    if not isinstance(rows, Dataset | IterableDataset):
        return _one_by_one(rows, gone, settings)
    gone = [name for name in gone if name in first]
    features = None if rows.features is None else _features(rows.features, mark, made, gone)
    return rows.map(_converted, with_indices=True, fn_kwargs=settings, remove_columns=gone, features=features)


def question_of(row: dict[str, Any]) -> Any:
    """What the rows of one question share: the prompt, or the turns before the first answer. `None` if it has none."""
    from trl.data_utils import maybe_extract_prompt

    row = maybe_extract_prompt(row)  # of a pair without one: what both answers begin with
    turns = row.get("messages") or row.get("conversations") or []
    opening = itertools.takewhile(lambda turn: turn.get("role", turn.get("from")) not in ("assistant", "gpt"), turns)
    return row.get("prompt") or list(opening) or None


def _mark(row: dict[str, Any], wanted: Wanted, known: tuple[str, ...]) -> str | None:
    """The column that tells the format of a row, `None` if there is nothing to convert."""
    of_trl = {"prompt", "input_ids", *known} | ({"messages"} if wanted == "sft" else set())
    marks = [name for name in _FORMATS if name in row]
    if of_trl & row.keys() or not marks:
        return None
    if wanted == "preference":
        has_pair = "rejected_response" in row or {"chosen", "rejected"} <= row.keys()
        if not has_pair or isinstance(row.get("chosen"), list):  # whole conversations
            return None
    if len(marks) > 1:
        raise ValueError(
            f"the data have columns of several formats, {', '.join(marks)}: which one is meant? Remove the others."
        )
    turns = row["conversations"] if marks == ["conversations"] else None
    if wanted == "sft" and isinstance(turns, list) and turns and "role" in turns[0]:
        return None  # read by TRL
    return marks[0]


def _features(features: "Features", mark: str, made: Iterable[str], gone: Iterable[str]) -> "Features":
    """Types of the new columns, which the first rows alone may not show."""
    from datasets import Features, Value

    messages = features["messages"] if mark == "messages" else [{"role": Value("string"), "content": Value("string")}]
    kept = {name: kind for name, kind in features.items() if name not in gone}
    return Features(kept | dict.fromkeys(made, messages))


def _one_by_one(rows: Iterable[dict], gone: list[str], settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows):
        kept = {name: value for name, value in row.items() if name not in gone}
        yield kept | {name: value for name, value in _converted(row, number, **settings).items() if value is not None}


def _converted(
    row: dict[str, Any], number: int, mark: str, wanted: Wanted, columns: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """The new columns of a row, by default those that it has something for."""
    try:
        made = _preference(row, mark) if wanted == "preference" else _prompt(row, mark, wanted)
    except ValueError as error:
        raise ValueError(f"Row {number}, read as {_FORMATS[mark][0]}: {error}") from None
    return made if columns is None else {name: made.get(name) for name in columns}


def _prompt(row: dict[str, Any], mark: str, wanted: Wanted) -> dict[str, Any]:
    turns, answer = _turns(row, mark)
    if wanted == "sft" and "conversation" in mark:
        return {"messages": [*turns, *answer]}
    if wanted == "sft" and not answer:
        raise ValueError(f"it has no answer. `{_FORMATS[mark][1][-1]}` must be a text.")
    return {"prompt": turns, "completion": answer} if answer else {"prompt": turns}


def _preference(row: dict[str, Any], mark: str) -> dict[str, Any]:
    turns, answer = _turns(row, mark)
    if "rejected_response" in row:
        if not answer:
            raise ValueError("`rejected_response` stands beside a last answer, and there is none.")
        return {"prompt": turns, "chosen": answer, "rejected": [_answer(row["rejected_response"])]}
    if answer and mark not in ("instruction", "query"):
        raise ValueError("`chosen` and `rejected` follow a turn of the user, and the last one is the assistant's.")
    return {"prompt": turns, "chosen": [_answer(row["chosen"])], "rejected": [_answer(row["rejected"])]}


def _turns(row: dict[str, Any], mark: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is asked, and the last answer, if there is one, as messages."""
    if mark != "messages":
        for name in _NOT_READ:
            if row.get(name) not in (None, "", []):
                raise ValueError(f"`{name}` is not read from this format. Remove the column, or such rows.")
    if mark in ("instruction", "query"):
        _, (asked, *_, answer) = _FORMATS[mark]
        parts = [row.get(asked), row.get("input") if mark == "instruction" else None]
        turns = _history(row.get("history"))
        turns.append(_message("user", "\n".join(_text(part) for part in parts if part not in (None, ""))))
        if not turns[-1]["content"]:
            raise ValueError(f"`{asked}` is empty. Remove such rows.")
        last = [] if row.get(answer) is None else [_answer(row[answer])]
    else:
        turns, last = _conversation(row, mark), []
        if turns and turns[-1]["role"] == "assistant":
            turns, last = turns[:-1], turns[-1:]
        if not turns:
            raise ValueError(f"`{mark}` asks nothing. Remove such rows.")
    if row.get("system") and turns[0]["role"] != "system":
        turns = [_message("system", _text(row["system"])), *turns]
    return turns, last


def _conversation(row: dict[str, Any], mark: str) -> list[dict[str, Any]]:
    turns = row.get(mark) or []
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"`{mark}` must be a list of turns, got {turns!r:.200}.")
    if mark == "messages":
        return turns
    if mark == "conversation":  # a question and its answer in one object
        pairs = (sorted(turn.items(), key=lambda item: item[0] in _ASSISTANT) for turn in turns)
        turns = [{"from": role, "value": text} for pair in pairs for role, text in pair if text is not None]
    return [_turn(turn) for turn in turns]


def _turn(turn: dict[str, Any]) -> dict[str, str]:
    """A turn of `from` and `value`, or of `role` and `content`, as a message."""
    from trl import maybe_convert_to_chatml

    [message] = maybe_convert_to_chatml({"messages": [dict(turn)]})["messages"]
    role = message.get("role")
    if role in _TOOLS:
        raise ValueError(
            f"a turn is of {role!r}, and calls of tools are not read from this format. Leave such rows out, or write "
            "them as `messages` of TRL."
        )
    if role not in _ROLES:
        raise ValueError(f"a turn is of {role!r}, expected one of {', '.join(_ROLES)}.")
    return _message(_ROLES[role], _text(message.get("content")))


def _history(history: Any) -> list[dict[str, str]]:
    """Earlier questions, each with its answer."""
    if not isinstance(history, list | None) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in history or []
    ):
        raise ValueError(f"`history` must be a list of pairs of texts, got {history!r:.200}.")
    return [
        _message(role, _text(text))
        for pair in history or []
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _answer(given: Any) -> dict[str, str]:
    """An answer, given as a text or as a turn."""
    message = _turn(given) if isinstance(given, dict) else _message("assistant", _text(given))
    if message["role"] != "assistant":
        raise ValueError(f"an answer must be the assistant's, got {given!r:.200}.")
    return message


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {value!r:.200}.")
    return value


@functools.cache
def _say(mark: str, wanted: Wanted, made: tuple[str, ...], columns: tuple[str, ...]) -> None:
    """Say once, in one process, what was recognised and what became of it."""
    name, own = _FORMATS[mark]
    pair = ("chosen", "rejected", "rejected_response") if wanted == "preference" else ()
    found = ", ".join(column for column in columns if column in (*own, "system", "history", *pair))
    learned = ""
    if wanted == "sft" and "messages" in made:
        learned = " All of their text is learned; with `assistant_only_loss` the answers are."
    elif wanted == "sft" and "history" in columns:
        learned = " Answers in `history` are read, not learned."
    if os.environ.get("RANK", "0") == "0":
        logger.warning("Rows of the format %s (%s) are read as `%s`.%s", name, found, "`, `".join(made), learned)

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
import json
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
_CALLS = ("function_call", "tool_call")
_RESULTS = ("observation", "tool_response", "tool")
# Columns beside the texts. What a row says in one that is not read would be lost in silence, so it is refused
_REMEDIES = {
    "tools": "`tools` is read by `sft` and `dpo` alone. Remove the column, or such rows.",
    "kto_tag": "`kto_tag` marks an answer as good or bad, and no command learns from single marks. Keep the rows with "
    "good answers, and remove the column; `dpo` takes pairs.",
} | {
    name: f"`{name}` is not read from this format. Remove the column, or such rows."
    for name in ("images", "videos", "audios", "rejected_images", "rejected_tools")
}


def trl_rows(rows: Rows, wanted: Wanted, *known: str) -> Rows:
    """
    Rows in the formats of LLaMA-Factory (alpaca, sharegpt) and ms-swift as conversational rows of TRL. Texts stay as
    they are; `instruction` and `input` are joined by a line break, as LLaMA-Factory does. Columns of no format stay,
    and of these formats `tools`, the JSON text of a list of functions, in `"sft"` and `"preference"`.

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
        `ValueError`: If the columns are those of two formats, or a row cannot be read. Of rows that are read one by
            one, when they are read.
    """
    from datasets import Dataset, IterableDataset

    first = next(iterator := iter(rows), None)
    if not isinstance(rows, Dataset | IterableDataset):
        rows = itertools.chain([] if first is None else [first], iterator)
    mark = None if first is None else _mark(first, wanted, known)
    if mark is None:
        return rows
    kept = _kept(rows, first, mark, wanted)
    refused = [name for name in _REMEDIES if name not in kept and (mark != "messages" or name in first)]
    if wanted == "sft" and mark == "messages" and not {"system", "tools", *refused} & first.keys():
        return rows  # with pictures, which TRL reads
    settings = {"mark": mark, "wanted": wanted, "refused": refused}
    settings["with_tools"] = "tools" in kept and wanted != "prompt"
    made = _converted(first, 0, **settings)
    if mark not in made or "system" in first:  # else they are what they were
        _say(mark, wanted, tuple(made), tuple(first))
    settings["columns"] = tuple(made)
    gone = [*_FORMATS[mark][1], "system", "history", "rejected_response", "rejected_messages", *refused]
    if not isinstance(rows, Dataset | IterableDataset):
        return _one_by_one(rows, {*gone, *made}, settings)
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
    marks = [name for name in _FORMATS if name in row]
    if {"prompt", "input_ids", *known} & row.keys() or not marks:
        return None
    if wanted == "preference":
        has_pair = {"rejected_response", "rejected_messages"} & row.keys() or {"chosen", "rejected"} <= row.keys()
        if not has_pair or isinstance(row.get("chosen"), list):  # whole conversations
            return None
    if wanted == "sft" and "messages" in marks:
        marks = ["messages"]
    if len(marks) > 1:
        raise ValueError(
            f"the data have columns of several formats, {', '.join(marks)}: which one is meant? Remove the others."
        )
    turns = row[marks[0]] if marks[0] in ("conversations", "messages") else None
    if wanted == "sft" and isinstance(turns, list) and turns and "role" in turns[0]:  # read by TRL, and nothing else
        return marks[0] if {"system", *_REMEDIES} & row.keys() else None
    return marks[0]


def _kept(rows: Iterable[dict], first: dict[str, Any], mark: str, wanted: Wanted) -> list[str]:
    """
    Columns beside the texts that stay, since TRL reads them, too: `tools`, and those of `messages`. Without a value
    none does: to TRL an empty `images` is a row with pictures. Of a stream the first row is all that is known, and
    later ones may have tools.
    """
    from datasets import Dataset

    always = [] if wanted == "prompt" else ["tools"]
    known = [name for name in _REMEDIES if name != "kto_tag"] if mark == "messages" else always
    known = [name for name in known if name in first]
    if isinstance(rows, Dataset):
        return [name for name in known if not all(map(_is_empty, rows[name]))]
    return [name for name in known if name in always or not _is_empty(first[name])]


def _is_empty(value: Any) -> bool:
    return value in (None, "", [], "[]")


def _features(features: "Features", mark: str, made: Iterable[str], gone: Iterable[str]) -> "Features":
    """Types of the new columns, which the first rows alone may not show."""
    from datasets import Features, Json, List, Value

    messages = features["messages"] if mark == "messages" else [{"role": Value("string"), "content": Value("string")}]
    if "tools" in made:  # to Arrow all calls would have the arguments of all functions, and each turn calls
        messages = List(Json())
    kept = {name: kind for name, kind in features.items() if name not in gone}
    return Features(kept | {name: messages for name in made if name != "tools"})


def _one_by_one(rows: Iterable[dict], gone: set[str], settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows):
        kept = {name: value for name, value in row.items() if name not in gone}
        yield kept | {name: value for name, value in _converted(row, number, **settings).items() if value is not None}


def _converted(
    row: dict[str, Any],
    number: int,
    mark: str,
    wanted: Wanted,
    refused: list[str],
    with_tools: bool,
    columns: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """The new columns of a row, by default those that it has something for."""
    try:
        for name in refused:
            if not _is_empty(row.get(name)):
                raise ValueError(_REMEDIES[name])
        made = _preference(row, mark, with_tools) if wanted == "preference" else _prompt(row, mark, wanted, with_tools)
        if with_tools:
            made["tools"] = _tools(row.get("tools"))
    except ValueError as error:
        raise ValueError(f"Row {number}, read as {_FORMATS[mark][0]}: {error}") from None
    return made if columns is None else {name: made.get(name) for name in columns}


def _prompt(row: dict[str, Any], mark: str, wanted: Wanted, with_tools: bool) -> dict[str, Any]:
    if wanted == "sft" and mark == "messages":  # of which TRL learns the parts of a text, too
        return {"messages": _told(row, _conversation(row, mark, with_tools))}
    turns, answer = _turns(row, mark, with_tools)
    if wanted == "sft" and "conversation" in mark:
        return {"messages": [*turns, *answer]}
    if wanted == "sft" and not answer:
        raise ValueError(f"it has no answer. `{_FORMATS[mark][1][-1]}` must be a text.")
    return {"prompt": turns, "completion": answer} if answer else {"prompt": turns}


def _preference(row: dict[str, Any], mark: str, with_tools: bool) -> dict[str, Any]:
    turns, answer = _turns(row, mark, with_tools)
    if not _is_empty(row.get("rejected_messages")):
        other = {"messages": row["rejected_messages"], "system": row.get("system")}
        asked, rejected = _turns(other, "messages", with_tools)
        if not (answer and rejected) or asked != turns:
            raise ValueError(
                "`rejected_messages` must be `messages` with another last answer: DPO learns all that differs, turns "
                "of the user and results of tools included. Leave such rows out."
            )
        return {"prompt": turns, "chosen": answer, "rejected": rejected}
    if row.get("rejected_response") is not None:
        if not answer:
            raise ValueError("`rejected_response` stands beside a last answer, and there is none.")
        return {"prompt": turns, "chosen": answer, "rejected": [_answer(row["rejected_response"], with_tools)]}
    if "chosen" not in row:
        raise ValueError("it has no rejected answer. Remove such rows.")
    if answer and mark not in ("instruction", "query"):
        raise ValueError("`chosen` and `rejected` follow a turn of the user, and the last one is the assistant's.")
    chosen, rejected = ([_answer(row[name], with_tools)] for name in ("chosen", "rejected"))
    return {"prompt": turns, "chosen": chosen, "rejected": rejected}


def _turns(row: dict[str, Any], mark: str, with_tools: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is asked, and the last answer, if there is one, as messages."""
    if mark in ("instruction", "query"):
        _, (asked, *_, answer) = _FORMATS[mark]
        parts = [row.get(asked), row.get("input") if mark == "instruction" else None]
        turns = _history(row.get("history"))
        turns.append(_message("user", "\n".join(_text(part) for part in parts if part not in (None, ""))))
        if not turns[-1]["content"]:
            raise ValueError(f"`{asked}` is empty. Remove such rows.")
        last = [] if row.get(answer) is None else [_answer(row[answer], with_tools)]
    else:
        turns, last = _conversation(row, mark, with_tools), []
        if turns and turns[-1]["role"] == "assistant":
            turns, last = turns[:-1], turns[-1:]
        if not turns:
            raise ValueError(f"`{mark}` asks nothing. Remove such rows.")
    return _told(row, turns), last


def _told(row: dict[str, Any], turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns behind the column `system`, if no turn is the system's."""
    if not row.get("system") or turns and turns[0]["role"] == "system":
        return turns
    return [_message("system", _text(row["system"])), *turns]


def _conversation(row: dict[str, Any], mark: str, with_tools: bool) -> list[dict[str, Any]]:
    turns = row.get(mark) or []
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"`{mark}` must be a list of turns, got {turns!r:.200}.")
    if mark == "messages":
        ours = (*_CALLS, *_RESULTS[:-1])  # all else is in the words of TRL
        if not any(turn.get("role") in ours for turn in turns):
            return turns
        return _joined([_turn(turn, with_tools) if turn.get("role") in ours else turn for turn in turns])
    if mark == "conversation":  # a question and its answer in one object
        pairs = (sorted(turn.items(), key=lambda item: item[0] in _ASSISTANT) for turn in turns)
        turns = [{"from": role, "value": text} for pair in pairs for role, text in pair if text is not None]
    return _joined([_turn(turn, with_tools) for turn in turns])


def _turn(turn: dict[str, Any], with_tools: bool) -> dict[str, Any]:
    """A turn of `from` and `value`, or of `role` and `content`, as a message."""
    from trl import maybe_convert_to_chatml

    [message] = maybe_convert_to_chatml({"messages": [dict(turn)]})["messages"]
    role = message.get("role")
    if role in (*_CALLS, *_RESULTS) or message.get("tool_calls"):
        if not with_tools:
            raise ValueError(
                f"a turn is of {role!r}, and calls of tools are read by `sft` and `dpo` alone, beside a column "
                "`tools` of functions. Add it, or leave such rows out."
            )
        if role in _CALLS:
            return _call(_text(message.get("content")))
        return message | _message("tool", _text(message.get("content"))) if role in _RESULTS else message
    if role not in _ROLES:
        raise ValueError(f"a turn is of {role!r}, expected one of {', '.join(_ROLES)}.")
    return _message(_ROLES[role], _text(message.get("content")))


def _call(text: str) -> dict[str, Any]:
    """The JSON text of one call or of several, behind a thought if there is one, as a message."""
    thought, end, calls = text.rpartition("</think>")
    try:
        calls = json.loads(calls)
        functions = [
            {"name": call["name"], "arguments": call["arguments"]}
            for call in (calls if isinstance(calls, list) else [calls])
        ]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"a call must be JSON with `name` and `arguments`, got {text!r:.200}.") from None
    calls = [{"type": "function", "function": function} for function in functions]
    return _message("assistant", thought + end) | {"tool_calls": calls}


def _joined(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns of which a call is one with the assistant's turns before it, as ms-swift reads them."""
    joined: list[dict[str, Any]] = []
    for turn in turns:
        before = joined[-1] if joined else {}
        if turn.get("tool_calls") and before.get("role") == "assistant":
            content = (before.get("content") or "") + (turn.get("content") or "")
            calls = [*(before.get("tool_calls") or []), *turn["tool_calls"]]
            joined[-1] = before | {"content": content, "tool_calls": calls}
        else:
            joined.append(turn)
    return joined


def _tools(tools: Any) -> Any:
    """A JSON text of functions with each as TRL has it, whose templates look for its `type`; all else as it is."""
    if _is_empty(tools) or not isinstance(tools, str):
        return None if _is_empty(tools) else tools
    try:
        functions = json.loads(tools)
    except ValueError:
        functions = None
    if not isinstance(functions, list) or not all(isinstance(function, dict) for function in functions):
        raise ValueError(f"`tools` must be the JSON text of a list of functions, got {tools!r:.200}.")
    if all("function" in function for function in functions):
        return tools
    whole = [tool if "function" in tool else {"type": "function", "function": tool} for tool in functions]
    return json.dumps(whole, ensure_ascii=False)


def _history(history: Any) -> list[dict[str, str]]:
    """Earlier questions, each with its answer."""
    if _is_empty(history):
        return []
    if not isinstance(history, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        raise ValueError(f"`history` must be a list of pairs of texts, got {history!r:.200}.")
    return [
        _message(role, _text(text)) for pair in history for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _answer(given: Any, with_tools: bool) -> dict[str, Any]:
    """An answer, given as a text, as a turn, or as a list of one."""
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], dict):
        [given] = given
    message = _turn(given, with_tools) if isinstance(given, dict) else _message("assistant", _text(given))
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
    pair = ("chosen", "rejected", "rejected_response", "rejected_messages") if wanted == "preference" else ()
    found = ", ".join(column for column in columns if column in (*own, "system", "history", *pair))
    learned = ""
    if "system" in columns and mark not in ("instruction", "query"):
        learned = " A turn of the system wins over `system`."
    if wanted == "sft" and "messages" in made:
        learned += " All of their text is learned; with `assistant_only_loss` the answers are."
    elif wanted == "sft" and "history" in columns:
        learned = " Answers in `history` are read, not learned."
    if os.environ.get("RANK", "0") == "0":
        logger.warning("Rows of the format %s (%s) are read as `%s`.%s", name, found, "`, `".join(made), learned)

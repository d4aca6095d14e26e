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

"""Questions and answers in files of AlpacaEval and MT-Bench, and in rows of prompts: read, matched and written."""

import time
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from ..chat import Completion, FailedCall
from ..chat.models import CUT_OFF, digest
from ..files import load_rows, write_json, write_rows
from .policies import content_id
from .prompts import read_messages


QUESTIONS = ("turns", "prompt", "instruction")  # of MT-Bench, of TRL, of AlpacaEval
_CATEGORIES = ("category", "dataset")  # of MT-Bench, of AlpacaEval
_ANSWERS = (
    "`instruction` and `output` (AlpacaEval), `question_id` and `choices` (MT-Bench), or `prompt` and `completion`"
)


class Question(NamedTuple):
    """
    What both models are asked.

    Args:
        id (`str`):
            `question_id` or `prompt_id` of the row, or else a hash of what is asked.
        opening (`list[dict[str, str]]`), later (`list[str]`):
            Messages that end with the user's, and what the user says after each answer.
        category (`str`, *optional*), reference (`str`, *optional*):
            Where it is counted, and a right answer that the judge sees.
        row (`dict[str, Any]`):
            The row that it was read from.
    """

    id: str
    opening: list[dict[str, str]]
    later: list[str]
    category: str | None
    reference: str | None
    row: dict[str, Any]

    @property
    def asked(self) -> list[dict[str, str]]:
        """All that is asked, without the answers in between."""
        return [*self.opening, *({"role": "user", "content": text} for text in self.later)]

    def after(self, turns: Sequence[str]) -> list[dict[str, str]]:
        """The conversation up to the next answer of a model, after its answers so far."""
        messages = list(self.opening)
        for text, following in zip(turns, self.later, strict=False):
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": following}]
        return messages


class Answer(NamedTuple):
    """What a model says to a question: a text a turn, whether one of them was cut off, and why one is missing."""

    turns: list[str]
    cut_off: bool = False
    error: str | None = None

    @property
    def text(self) -> str:
        """All turns, as the judge sees them."""
        if len(self.turns) == 1:
            return self.turns[0]
        return "\n\n".join(f"[Answer to message {n}]\n{text}" for n, text in enumerate(self.turns, start=1))

    def then(self, given: Completion | FailedCall) -> "Answer":
        """This answer with one more turn."""
        if isinstance(given, FailedCall):
            return self._replace(error=given.error)
        return Answer([*self.turns, given.text], self.cut_off or given.finish_reason in CUT_OFF)


def read_questions(
    rows: Iterable[dict[str, Any]],
    *,
    prompt_column: str | None = None,
    category_column: str | None = None,
    reference_column: str | None = None,
    max_prompts: int | None = None,
) -> tuple[list[Question], dict[str, int]]:
    """
    The questions of rows, in their order, and counts.

    Args:
        rows (`Iterable[dict]`):
            Rows with `turns` (MT-Bench), `prompt` (a text, messages, or a list of texts, the turns of the user) or
            `instruction` (AlpacaEval).
        prompt_column, category_column, reference_column (`str`, *optional*):
            Columns in place of these, of `category` or `dataset`, and of right answers, which not every row has.
        max_prompts (`int`, *optional*):
            Use the first ones only.

    Returns:
        `tuple[list[Question], dict[str, int]]`: Counted are `rows`, those without text (`empty`), repeats
        (`duplicates`), those `beyond_max_prompts`, and what is `kept`.

    Raises:
        `ValueError`: If a row cannot be read, one id stands for two questions, a column is nowhere, or no question is
            left.
    """
    counts = dict.fromkeys(("rows", "empty", "duplicates", "beyond_max_prompts", "kept"), 0)
    questions: dict[str, Question] = {}
    contents, columns = set(), set()
    for number, row in enumerate(rows, start=1):
        counts["rows"] += 1
        columns.update(row)
        try:
            question = _read_question(row, prompt_column, category_column, reference_column)
        except ValueError as error:
            raise ValueError(f"Row {number}: {error}") from error
        if question is None:
            counts["empty"] += 1
        elif (content := content_id(question.asked)) in contents:
            counts["duplicates"] += 1
        elif questions.setdefault(question.id, question) is not question:
            raise ValueError(f"Row {number}: the id {question.id!r} belongs to another question, too.")
        else:
            contents.add(content)
    for name, column in (("category_column", category_column), ("reference_column", reference_column)):
        if column is not None and column not in columns:
            raise ValueError(f"`{name}` is {column!r}, but the columns are {', '.join(sorted(columns))}.")
    kept = list(questions.values())[:max_prompts]
    counts["beyond_max_prompts"] = len(questions) - len(kept)
    counts["kept"] = len(kept)
    if not kept:
        said = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        raise ValueError(f"No prompt is left: {said or 'the data hold no rows'}.")
    return kept, counts


def _read_question(
    row: dict[str, Any], prompt_column: str | None, category_column: str | None, reference_column: str | None
) -> Question | None:
    column = prompt_column or next((name for name in QUESTIONS if name in row), "prompt")
    if column not in row:
        raise ValueError(f"no column `{column}`, only {', '.join(row)}. Name the right one in `prompt_column`.")
    prompt, later = row[column], []
    if isinstance(prompt, list) and prompt and all(isinstance(turn, str) for turn in prompt):
        prompt, *later = prompt
        if not all(turn.strip() for turn in later):
            raise ValueError(f"a later turn in `{column}` has no text: {row[column]!r:.200}.")
    if column == "instruction" and row.get("input"):
        raise ValueError("`input` is not asked. Write it into `instruction`, as AlpacaEval does, and empty it.")
    if prompt is None or not (prompt if isinstance(prompt, list) else str(prompt).strip()):
        return None
    opening = read_messages(prompt, column)
    if opening[-1]["role"] != "user":
        raise ValueError(f"the last message must be the user's, got {opening[-1]['role']!r}. Cut the answer off.")
    category = row.get(category_column or next((name for name in _CATEGORIES if name in row), ""))
    reference = row.get(reference_column) or None
    if isinstance(reference, list):
        reference = "\n".join(str(text) for text in reference if text) or None
    question = Question("", opening, later, None if category is None else str(category), reference, row)
    known = next((row[name] for name in ("question_id", "prompt_id") if row.get(name) not in (None, "")), None)
    return question._replace(id=content_id(question.asked) if known is None else str(known))


def read_answers(path: str, questions: Sequence[Question]) -> tuple[list[Answer], int]:
    """
    Answers to questions from a file.

    Args:
        path (`str`):
            Model outputs of AlpacaEval (`instruction`, `output`), answers of MT-Bench (`question_id`, `choices`), or
            rows with `prompt` and `completion` or `completions`. Of several answers to a question the first counts.
        questions (`list[Question]`):
            What was asked. Answers of MT-Bench are found by the id, others by the prompt.

    Returns:
        `tuple[list[Answer], int]`: One for each question, and the number of rows that were not used.

    Raises:
        `OSError`, `ValueError`: If the file cannot be read, or has no answer to a question, or one for each of fewer
            or more turns.
    """
    found: dict[str, list[str]] = {}
    count = 0
    for count, row in enumerate(load_rows(path), start=1):  # noqa: B007  the last number is the count
        try:
            key, turns = _read_answer(row)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            reason = error if isinstance(error, ValueError) else f"an answer needs {_ANSWERS}, got {row!r:.200}."
            raise ValueError(f"Row {count} of {path}: {reason}") from error
        found.setdefault(key, turns)
    answers, missing = [], []
    for question in questions:
        turns = found.get(_by_id(question.id), found.get(content_id(question.asked)))
        if turns is None:
            missing.append(question)
            continue
        if len(turns) != 1 + len(question.later):
            asked = 1 + len(question.later)
            raise ValueError(f"{path} answers {len(turns)} of {asked} turns of the question {question.id!r}.")
        answers.append(Answer(turns))
    if missing:
        raise ValueError(
            f"{path} has no answer to {len(missing)} of {len(questions)} prompts, such as "
            f"{missing[0].opening[-1]['content']!r:.120}. Both must have answered the prompts of `dataset_name`: name "
            "another file, or use `max_prompts`."
        )
    return answers, count - len(questions)


def _by_id(id: str) -> str:
    return f"question_id {id}"  # no hash of a content is one


def _read_answer(row: dict[str, Any]) -> tuple[str, list[str]]:
    """How a row of a file of answers is found, and its texts."""
    if "choices" in row:
        key, turns = _by_id(str(row["question_id"])), row["choices"][0]["turns"]
    elif "output" in row:
        key, turns = content_id(read_messages(row["instruction"], "instruction")), [row["output"]]
    else:
        turns = [row["completion"] if "completion" in row else row["completions"][0]]
        key = content_id(read_messages(row["prompt"], "prompt"))
    if not isinstance(turns, list) or not all(isinstance(text, str) for text in turns):
        raise ValueError(f"answers must be texts, got {turns!r:.200}.")
    return key, turns


def write_answers(folder: str | PathLike, name: str, questions: Sequence[Question], answers: Sequence[Answer]) -> Path:
    """
    Write what a model answered in the form of the benchmark that the questions are from, so that its own tools can go
    on: `NAME.jsonl` as MT-Bench's `model_answer`, `NAME.json` as AlpacaEval's model outputs, or else `NAME.jsonl` with
    `prompt` and `completion`. Missing answers have no row.

    Returns:
        `Path`: The file.
    """
    given = [pair for pair in zip(questions, answers, strict=True) if pair[1].error is None]
    if any("turns" in question.row or question.later for question in questions):
        return _write(folder, f"{name}.jsonl", (_mt_bench_row(name, *pair) for pair in given))
    if all("instruction" in question.row for question in questions):
        return _write(folder, f"{name}.json", [_alpaca_eval_row(name, *pair) for pair in given])
    rows = ({"prompt": question.opening, "completion": answer.text} for question, answer in given)
    return _write(folder, f"{name}.jsonl", rows)


def _write(folder: str | PathLike, name: str, rows: Iterable[dict[str, Any]]) -> Path:
    path = Path(folder) / name
    (write_rows if path.suffix == ".jsonl" else write_json)(path, rows)
    return path


def _mt_bench_row(name: str, question: Question, answer: Answer) -> dict[str, Any]:
    return {
        "question_id": question.row.get("question_id", question.id),  # FastChat sorts by this number
        "answer_id": digest(name, question.id, *answer.turns)[:22],
        "model_id": name,
        "choices": [{"index": 0, "turns": answer.turns}],
        "tstamp": time.time(),
    }


def _alpaca_eval_row(name: str, question: Question, answer: Answer) -> dict[str, Any]:
    dataset = {key: question.row[key] for key in ("dataset",) if key in question.row}
    return {**dataset, "instruction": question.row["instruction"], "output": answer.text, "generator": name}

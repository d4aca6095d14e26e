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

"""
A student's own right answers join those of the teacher: rejection sampling fine-tuning, and the self-augmentation of
NCE. Sampling lies between the questions of labelled rows and the choice among the samples. The wrong answers are the
other half of preference pairs.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from ..evaluation.answers import extract_answer, judge_answer, reference_answer


_SETTINGS = ("chat_template_kwargs",)  # belongs to the prompt, where a row has it


def question_rows(dataset: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """
    Split labelled rows into the questions to ask and the right rows to keep.

    Takes rows `prompt` and `completion`, standard or conversational, optionally a boolean `label` (without it all rows
    are right), an `answer` and a `source`, by default the teacher. Several rows may have one prompt. Returns one row a
    question, with `prompt` and the right answer in `answer`; the right rows, with `prompt`, `completion`, `label` and
    `source`; and how many questions are left out because no row says what the right answer is.
    """
    questions: dict[str, dict[str, Any]] = {}
    right = []
    for number, row in enumerate(dataset):
        label = row.get("label", True)
        if not isinstance(label, bool) or not row.get("prompt") or not row.get("completion"):
            raise ValueError(
                f"Row {number} is no labelled answer: {row!r}. Rows must have a `prompt`, a `completion` and a "
                "`label` that is true or false; `trl-distill label` makes them."
            )
        if label:
            right.append(_row(row, row["completion"], True, row.get("source") or "teacher"))
        new = {"prompt": row["prompt"], "answer": None, **_settings(row)}
        question = questions.setdefault(_key(row["prompt"]), new)
        if question["answer"] is None and (label or row.get("answer") is not None):
            question["answer"] = reference_answer(row)
    asked = [question for question in questions.values() if question["answer"] is not None]
    return asked, right, len(questions) - len(asked)


def select_samples(
    samples: Iterable[dict[str, Any]],
    right_rows: Iterable[dict[str, Any]],
    rule: str = "marked",
    source: str = "student",
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]:
    """
    Sort samples into those that are right, by a `rule` of [`~trl_distill.evaluation.extract_answer`], and new, those
    that are wrong, and the others.

    Takes rows of a file of samples, a question's columns and lists `completions` and `truncated`, and the right rows
    that are there already. A sample that repeats one of them, but for white space at its ends, is a duplicate. Returns
    right rows and wrong rows, `prompt`, `completion`, `label` and `source`, both without repeats, and the numbers of
    samples: `sampled`, of which `kept`, `duplicates`, `wrong`, `no_answer`, `truncated` (cut off before their end)
    and `not_compared`.
    """
    seen = {(_key(row["prompt"]), _text(row["completion"]).strip()) for row in right_rows}
    fates = ("sampled", "kept", "duplicates", "wrong", "no_answer", "truncated", "not_compared")
    kept, wrong, counts = [], [], dict.fromkeys(fates, 0)
    for row in samples:
        reference = reference_answer(row, rule)
        for text, truncated in zip(row["completions"], row["truncated"], strict=True):
            verdict = "truncated" if truncated else judge_answer(extract_answer(text, rule), reference, rule)
            is_new = (_key(row["prompt"]), text.strip()) not in seen
            if isinstance(verdict, str):
                fate = verdict if verdict in fates else "not_compared"
            else:
                fate = "wrong" if not verdict else "kept" if is_new else "duplicates"
            counts["sampled"] += 1
            counts[fate] += 1
            if is_new and fate in ("kept", "wrong"):
                seen.add((_key(row["prompt"]), text.strip()))
                completion = text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
                (kept if fate == "kept" else wrong).append(_row(row, completion, verdict, source))
    return kept, wrong, counts


def preference_pairs(
    right_rows: Iterable[dict[str, Any]], wrong_rows: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """
    Rows `prompt`, `chosen`, `rejected`: each wrong row with a right one of its question, which take turns. Wrong rows
    of a question without a right one are left out.
    """
    right = defaultdict(list)
    for row in right_rows:
        right[_key(row["prompt"])].append(row["completion"])
    turns = {key: itertools.cycle(completions) for key, completions in right.items()}
    return [
        {"prompt": row["prompt"], "chosen": next(turns[key]), "rejected": row["completion"], **_settings(row)}
        for row in wrong_rows
        if (key := _key(row["prompt"])) in turns
    ]


def _settings(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in _SETTINGS if row.get(name) is not None}


def _row(row: dict[str, Any], completion: str | list[dict[str, str]], label: bool, source: str) -> dict[str, Any]:
    return {"prompt": row["prompt"], "completion": completion, "label": label, "source": source, **_settings(row)}


def _key(prompt: str | list[dict[str, str]]) -> str:
    return json.dumps(prompt, sort_keys=True)


def _text(completion: str | list[dict[str, str]]) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]

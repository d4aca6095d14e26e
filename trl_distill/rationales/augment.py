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
Self-augmentation of NCE: right answers of the NAT model itself join those of the teacher. Sampling lies between the
two functions here, the questions of labelled rows and the choice among the samples.
"""

import json
from collections.abc import Iterable
from typing import Any

from ..evaluation.answers import check_answer, reference_answer


_SETTINGS = ("chat_template_kwargs",)  # belongs to the prompt, where a row has it


def question_rows(dataset: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """
    Split labelled rows into the questions to ask and the right rows to keep.

    Takes rows `prompt` and `completion`, standard or conversational, optionally a boolean `label` (without it all rows
    are right) and an `answer`. Several rows may have one prompt. Returns one row a question, with `prompt` and the
    right answer in `answer`; the right rows, with `prompt`, `completion`, `label` and `source`; and how many questions
    are left out because no row says what the right answer is.
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
        settings = {name: row[name] for name in _SETTINGS if row.get(name) is not None}
        if label:
            right.append(_row(row, row["completion"], "teacher"))
        question = questions.setdefault(_key(row["prompt"]), {"prompt": row["prompt"], "answer": None, **settings})
        if question["answer"] is None and (label or row.get("answer") is not None):
            question["answer"] = reference_answer(row)
    asked = [question for question in questions.values() if question["answer"] is not None]
    return asked, right, len(questions) - len(asked)


def select_right(
    samples: Iterable[dict[str, Any]],
    right_rows: Iterable[dict[str, Any]],
    rule: str = "marked",
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """
    Keep the samples that are right, by a `rule` of [`~trl_distill.evaluation.extract_answer`], and new.

    Takes rows of a file of samples, a question's columns and lists `completions` and `truncated`, and the right rows
    that are there already. A sample that repeats one of them, but for white space at its ends, is a duplicate. Returns
    rows `prompt`, `completion`, `label` and `source`, and the numbers of samples: `sampled`, of which `kept`,
    `duplicates`, `wrong`, `no_answer` and `truncated` (cut off before their end).
    """
    seen = {(_key(row["prompt"]), _text(row["completion"]).strip()) for row in right_rows}
    kept, counts = [], dict.fromkeys(("sampled", "kept", "duplicates", "wrong", "no_answer", "truncated"), 0)

    def fate(text: str, truncated: bool, row: dict[str, Any]) -> str:
        if truncated:
            return "truncated"
        is_right = check_answer(text, row, rule)
        if not is_right:
            return "no_answer" if is_right is None else "wrong"
        return "duplicates" if (_key(row["prompt"]), text.strip()) in seen else "kept"

    for row in samples:
        for text, truncated in zip(row["completions"], row["truncated"], strict=True):
            what = fate(text, truncated, row)
            counts["sampled"] += 1
            counts[what] += 1
            if what == "kept":
                seen.add((_key(row["prompt"]), text.strip()))
                standard = isinstance(row["prompt"], str)
                kept.append(_row(row, text if standard else [{"role": "assistant", "content": text}], "nat"))
    return kept, counts


def _row(row: dict[str, Any], completion: str | list[dict[str, str]], source: str) -> dict[str, Any]:
    settings = {name: row[name] for name in _SETTINGS if row.get(name) is not None}
    return {"prompt": row["prompt"], "completion": completion, "label": True, "source": source, **settings}


def _key(prompt: str | list[dict[str, str]]) -> str:
    return json.dumps(prompt, sort_keys=True)


def _text(completion: str | list[dict[str, str]]) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]

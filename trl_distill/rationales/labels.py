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

"""From sampled rationales to rows with a `label`: which are right, which are kept, and how many of each kind."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.answers import BOX, extract_answer, judge_answer, reference_answer


# Why a rationale has no verdict, as in [`judge_rationales`]
NO_VERDICT = ("truncated", "no_answer", "no_reference", "too_large", "timeout", "error")


@dataclass
class Rationales:
    """
    What one row of a file holds: a question, its right answer and the rationales that were sampled for it.

    Args:
        prompt (`str` or `list[dict[str, str]]`):
            The question, as text or as messages.
        reference (`dict[str, Any]`):
            The right answer, alone or at the end of a solution, in the column `answer` or `completion` of a row.
        completions (`list[str]`):
            The rationales.
        truncated (`list[bool]`):
            Whether each rationale was cut off at the length limit of the sampling.
    """

    prompt: str | list[dict[str, str]]
    reference: dict[str, Any]
    completions: list[str]
    truncated: list[bool]


def read_rationales(
    row: dict[str, Any],
    prompt_column: str = "prompt",
    completions_column: str = "completions",
    answer_column: str | None = None,
) -> Rationales:
    """
    Check one row of a file of sampled rationales.

    Its columns are those of the question, of the rationales (a list of texts, or one text), and of the right answer
    (default: `answer`, and where there is none `completion`). A column `truncated` says which rationales were cut off.
    It is a `ValueError` if a column is missing, empty or of another type.
    """
    if answer_column is None:
        answer_column = "completion" if row.get("answer") is None and "completion" in row else "answer"
    for name, content in (
        (prompt_column, "the question"),
        (completions_column, "the rationales"),
        (answer_column, "the right answer"),
    ):
        if name not in row:
            raise ValueError(f"no column `{name}` with {content}, only {', '.join(row)}.")
        if row[name] is None or row[name] == "" or row[name] == []:
            raise ValueError(f"the column `{name}` with {content} is empty.")
    if answer_column == completions_column:
        raise ValueError(
            f"`{answer_column}` holds the rationales and cannot be the right answer too. Name its column."
        )

    prompt = row[prompt_column]
    if not isinstance(prompt, str):
        from trl.data_utils import is_conversational  # loads torch, which texts do without

        if not is_conversational({"prompt": prompt}):
            raise ValueError(f"the column `{prompt_column}` must hold texts or lists of messages, got {prompt!r}.")
    completions = row[completions_column]
    completions = [completions] if isinstance(completions, str) else completions
    if not isinstance(completions, list) or not all(isinstance(text, str) for text in completions):
        raise ValueError(
            f"the column `{completions_column}` must hold a text or a list of texts, got "
            f"{json.dumps(completions)[:80]}."
        )
    truncated = row.get("truncated") or [False] * len(completions)
    if len(truncated) != len(completions):
        raise ValueError(f"{len(completions)} rationales, but {len(truncated)} values in `truncated`.")
    reference = {"completion" if answer_column == "completion" else "answer": row[answer_column]}
    return Rationales(prompt, reference, completions, truncated)


def judge_rationales(rationales: Rationales, rule: str = "marked") -> list[bool | str]:
    """
    Whether each rationale ends in the right answer, by a `rule` of [`extract_answer`], or why there is no verdict:
    `"truncated"`, or a reason of [`judge_answer`].
    """
    reference = reference_answer(rationales.reference, rule)
    cuts = rationales.truncated
    answers = [
        None if cut else extract_answer(text, rule) for text, cut in zip(rationales.completions, cuts, strict=True)
    ]
    verdicts = {answer: judge_answer(answer, reference, rule) for answer in set(answers)}
    return ["truncated" if cut else verdicts[answer] for answer, cut in zip(answers, cuts, strict=True)]


def rebuild(text: str, template: str, placeholder: str) -> str:
    """
    Put a text into a template. What the template has around the placeholder is taken off the text first, so that
    `"Solution:\\n{completion}"` gives one form to rationales of which some begin with `Solution:` and others do not.
    """
    before, _, behind = template.partition(placeholder)
    text = text.strip().removeprefix(before.strip()).removesuffix(behind.strip()).strip()
    return f"{before}{text}{behind}"


@dataclass
class Labeller:
    """
    Turns rationales and their verdicts into rows `prompt`, `completion`, `label`, `answer`, and counts them.

    Rationales without a verdict are on neither side: they become no rows. Those that were cut off have none, since a
    model that is trained on them would learn to stop there.

    Args:
        prompt_template (`str`, *optional*):
            Template of the question with the placeholder `{prompt}`, see [`rebuild`]. Default: the question as it is.
        completion_template (`str`, *optional*):
            Template of the rationale with the placeholder `{completion}`. Default: the rationale as it is.
        conversational (`bool`, *optional*, defaults to `False`):
            Whether to write messages instead of texts. For questions that are messages they are written anyway.
        keep_repeats (`bool`, *optional*, defaults to `False`):
            Whether to keep the repeats of a rationale, word for word, within a question.
        max_characters (`int`, *optional*):
            Most characters of question and rationale together. Longer ones are left out.
    """

    prompt_template: str | None = None
    completion_template: str | None = None
    conversational: bool = False
    keep_repeats: bool = False
    max_characters: int | None = None

    def __post_init__(self):
        for name, template in (("prompt", self.prompt_template), ("completion", self.completion_template)):
            if template is not None and template.count(f"{{{name}}}") != 1:
                raise ValueError(f"`{name}_template` must hold {{{name}}} once, got {template!r}.")
        self._questions = defaultdict(Counter)  # of each question, how many rationales are right, wrong, ...
        self._seen = defaultdict(set)  # of each question, the rationales
        self._unboxed, self._dropped, self._rows = Counter(), Counter(), Counter()

    def label(self, rationales: Rationales, verdicts: Sequence[bool | str]) -> list[dict[str, Any]]:
        """The rows of one question, whose rationales have the verdicts of [`judge_rationales`]."""
        answer = reference_answer(rationales.reference)
        question = json.dumps([rationales.prompt, answer])
        prompt, messages = rationales.prompt, self.conversational or not isinstance(rationales.prompt, str)
        if isinstance(prompt, str):
            if self.prompt_template is not None:
                prompt = rebuild(prompt, self.prompt_template, "{prompt}")
            prompt_length = len(prompt)
            prompt = [{"role": "user", "content": prompt}] if messages else prompt
        elif self.prompt_template is not None:
            raise ValueError("`prompt_template` is for texts, but this question is a list of messages.")
        else:
            prompt_length = sum(len(message["content"]) for message in prompt)

        rows = []
        for text, verdict in zip(rationales.completions, verdicts, strict=True):
            kind = verdict if isinstance(verdict, str) else "right" if verdict else "wrong"
            self._questions[question][kind] += 1
            self._unboxed[kind] += BOX.search(text) is None
            if self.completion_template is not None:
                text = rebuild(text, self.completion_template, "{completion}")
            if isinstance(verdict, str):
                continue
            if text in self._seen[question] and not self.keep_repeats:
                self._dropped["repeats"] += 1
            elif self.max_characters is not None and prompt_length + len(text) > self.max_characters:
                self._dropped["too_long"] += 1
            else:
                self._rows[kind] += 1
                completion = [{"role": "assistant", "content": text}] if messages else text
                rows.append({"prompt": prompt, "completion": completion, "label": verdict, "answer": answer})
            self._seen[question].add(text)
        return rows

    def report(self) -> dict[str, dict[str, int]]:
        """
        The counts: `questions` by their verdicts; all `rationales` by verdict, and those of them that are `unboxed`;
        the rationales with a verdict that were `dropped`, and why; the `rows` that are left.
        """
        kinds = ("right", "wrong", *NO_VERDICT)
        sides = Counter((counts["right"] > 0, counts["wrong"] > 0) for counts in self._questions.values())
        rationales = sum(self._questions.values(), Counter())
        return {
            "questions": {
                "total": sides.total(),
                "all_right": sides[True, False],
                "all_wrong": sides[False, True],
                "mixed": sides[True, True],
                "no_verdict": sides[False, False],
            },
            "rationales": {"total": rationales.total()} | {kind: rationales[kind] for kind in kinds},
            "unboxed": {"total": self._unboxed.total()} | {kind: self._unboxed[kind] for kind in kinds},
            "dropped": {reason: self._dropped[reason] for reason in ("repeats", "too_long")},
            "rows": {label: self._rows[label] for label in ("right", "wrong")},
        }

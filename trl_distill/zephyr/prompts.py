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

"""The prompts of a run: read, checked, without repeats and without questions of an evaluation."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..chat import ChatRequest
from ..files import evaluation_questions
from .feedback_config import FeedbackConfig
from .filters import decontaminate
from .policies import as_messages, content_id


@dataclass(frozen=True)
class FeedbackPrompt:
    """
    What is to be answered.

    Args:
        id (`str`):
            Name of the prompt: its `prompt_id`, or a hash of what it says. All random draws follow from it.
        messages (`list[dict[str, str]]`):
            The conversation up to the answer.
        reference (`str`, *optional*):
            A right answer, for the judge alone.
        answers (`list[str]`, *optional*):
            Answers that are there already.
        models (`list[str]`, *optional*):
            Who wrote them.
    """

    id: str
    messages: list[dict[str, str]]
    reference: str | None = None
    answers: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)


def read_prompts(
    rows: Iterable[dict[str, Any]], config: FeedbackConfig
) -> tuple[list[FeedbackPrompt], dict[str, int]]:
    """
    The prompts that are to be answered, in the order of the rows.

    Args:
        rows (`Iterable[dict]`):
            Rows with the columns that `config` names, and optionally `prompt_id`.
        config ([`FeedbackConfig`]):
            Columns, `decontaminate` and `max_prompts`.

    Returns:
        `tuple[list[FeedbackPrompt], dict[str, int]]`: Prompts, and counts: `rows`, those without text (`empty`), repeats
        (`duplicates`), questions of an evaluation (`contaminated`), those beyond `max_prompts` (`beyond_max_prompts`), and
        what is `kept`.

    Raises:
        `ValueError`: If a row cannot be read, one id stands for two prompts, or nothing is left.
    """
    counts = dict.fromkeys(("rows", "empty", "duplicates", "contaminated", "beyond_max_prompts", "kept"), 0)
    prompts: dict[str, FeedbackPrompt] = {}
    contents = set()
    for number, row in enumerate(rows, start=1):
        counts["rows"] += 1
        try:
            prompt = _read_prompt(row, config)
        except ValueError as error:
            raise ValueError(f"Row {number}: {error}") from error
        if prompt is None:
            counts["empty"] += 1
        elif (content := content_id(prompt.messages)) in contents:
            counts["duplicates"] += 1
        elif prompts.setdefault(prompt.id, prompt) is not prompt:
            raise ValueError(
                f"Row {number}: the `prompt_id` {prompt.id!r} belongs to another prompt, too. Give each its own, or remove "
                "the column: then a hash of the prompt is used."
            )
        else:
            contents.add(content)
    kept = list(prompts.values())
    questions = evaluation_questions(config.decontaminate)
    if questions:
        by_prompt, of_filter = decontaminate(
            [{"prompt": prompt.messages, "id": prompt.id} for prompt in kept], questions
        )
        counts["contaminated"] = of_filter["dropped"]
        kept = [prompts[row["id"]] for row in by_prompt]
    if config.max_prompts is not None:
        counts["beyond_max_prompts"] = max(0, len(kept) - config.max_prompts)
        kept = kept[: config.max_prompts]
    counts["kept"] = len(kept)
    if not kept:
        said = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        raise ValueError(f"No prompt is left: {said or 'the data hold no rows'}.")
    return kept, counts


def _read_prompt(row: dict[str, Any], config: FeedbackConfig) -> FeedbackPrompt | None:
    for column in (config.prompt_column, config.reference_column, config.completions_column, config.models_column):
        if column is not None and column not in row:
            raise ValueError(f"no column `{column}`, only {', '.join(row)}. Name the right one in the config.")
    prompt = row[config.prompt_column]
    if prompt is None or not (prompt if isinstance(prompt, list) else str(prompt).strip()):
        return None
    messages = read_messages(prompt, config.prompt_column)
    if messages[-1]["role"] != "user":
        raise ValueError(
            f"the last message of a prompt must be the user's, got {messages[-1]['role']!r}. Cut the answer off."
        )
    if not messages[-1]["content"].strip():
        return None
    answers = _texts(row[config.completions_column], config.completions_column) if config.completions_column else []
    models = (
        _texts(row[config.models_column], config.models_column) if config.models_column else ["dataset"] * len(answers)
    )
    if len(models) != len(answers):
        raise ValueError(
            f"{len(answers)} answers in `{config.completions_column}`, but {len(models)} names of models."
        )
    reference = row[config.reference_column] if config.reference_column else None
    if reference is not None and not isinstance(reference, str):
        reference = "\n".join(_texts(reference, config.reference_column))
    id = row.get("prompt_id")
    return FeedbackPrompt(
        content_id(messages) if id is None else str(id), messages, reference or None, answers, models
    )


def read_messages(prompt: Any, column: str) -> list[dict[str, str]]:
    """A prompt as messages of `role` and `content`, or a `ValueError` that says why it is none."""
    if not isinstance(prompt, (str, list)) or not all(isinstance(message, dict) for message in as_messages(prompt)):
        raise ValueError(f"`{column}` must be a text or a list of messages, got {prompt!r:.200}.")
    messages = [{key: value for key, value in m.items() if value is not None} for m in as_messages(prompt)]
    ChatRequest(messages)  # its checks
    return messages


def _texts(value: Any, column: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"`{column}` must be a list of texts, got {value!r:.200}.")
    return value

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
from typing import Any

from ..chat import ChatRequest, JudgeItem
from ..files import evaluation_questions
from .feedback_config import FeedbackConfig
from .filters import Decontaminator
from .policies import as_messages, content_id


def read_prompts(rows: Iterable[dict[str, Any]], config: FeedbackConfig) -> tuple[list[JudgeItem], dict[str, int]]:
    """
    The prompts of rows, in their order, as messages, with the answers that are there already; and counts.

    Counted are `rows`, those without text (`empty`), repeats (`duplicates`), questions of an evaluation
    (`contaminated`), those `beyond_max_prompts`, and what is `kept`. A row that cannot be read, one id for two prompts
    and no prompt left are a `ValueError`.
    """
    counts = dict.fromkeys(("rows", "empty", "duplicates", "contaminated", "beyond_max_prompts", "kept"), 0)
    prompts: dict[str, JudgeItem] = {}
    contents = set()
    for number, row in enumerate(rows, start=1):
        counts["rows"] += 1
        try:
            prompt = _read_prompt(row, config)
        except ValueError as error:
            raise ValueError(f"Row {number}: {error}") from error
        if prompt is None:
            counts["empty"] += 1
        elif (content := content_id(prompt.prompt)) in contents:
            counts["duplicates"] += 1
        elif prompts.setdefault(prompt.id, prompt) is not prompt:
            said = f"the `prompt_id` {prompt.id!r} belongs to another prompt, too"
            raise ValueError(f"Row {number}: {said}. Give each its own, or remove the column.")
        else:
            contents.add(content)
    asked_elsewhere = Decontaminator(evaluation_questions(config.decontaminate)).find
    clean = [prompt for prompt in prompts.values() if asked_elsewhere(prompt.prompt) is None]
    kept = clean[: config.max_prompts]
    counts["contaminated"] = len(prompts) - len(clean)
    counts["beyond_max_prompts"] = len(clean) - len(kept)
    counts["kept"] = len(kept)
    if not kept:
        said = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        raise ValueError(f"No prompt is left: {said or 'the data hold no rows'}.")
    return kept, counts


def _read_prompt(row: dict[str, Any], config: FeedbackConfig) -> JudgeItem | None:
    for column in (config.prompt_column, config.reference_column, config.completions_column, config.models_column):
        if column is not None and column not in row:
            raise ValueError(f"no column `{column}`, only {', '.join(row)}. Name the right one in the config.")
    prompt = row[config.prompt_column]
    if prompt is None or not (prompt if isinstance(prompt, list) else str(prompt).strip()):
        return None
    messages = read_messages(prompt, config.prompt_column)
    if messages[-1]["role"] != "user":
        raise ValueError(f"the last message must be the user's, got {messages[-1]['role']!r}. Cut the answer off.")
    if not messages[-1]["content"].strip():
        return None
    answers = _texts(row, config.completions_column) if config.completions_column else []
    models = _texts(row, config.models_column) if config.models_column else ["dataset"] * len(answers)
    reference = row[config.reference_column] if config.reference_column else None
    if reference is not None and not isinstance(reference, str):
        reference = "\n".join(_texts(row, config.reference_column))
    id = row.get("prompt_id")
    return JudgeItem(content_id(messages) if id is None else str(id), messages, answers, models, reference or None)


def read_messages(prompt: Any, column: str) -> list[dict[str, str]]:
    """A prompt as messages of `role` and `content`, or a `ValueError` that says why it is none."""
    if not isinstance(prompt, (str, list)) or not all(isinstance(message, dict) for message in as_messages(prompt)):
        raise ValueError(f"`{column}` must be a text or a list of messages, got {prompt!r:.200}.")
    messages = [{key: value for key, value in m.items() if value is not None} for m in as_messages(prompt)]
    ChatRequest(messages)  # its checks
    return messages


def _texts(row: dict[str, Any], column: str) -> list[str]:
    value = row[column]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"`{column}` must be a list of texts, got {value!r:.200}.")
    return value

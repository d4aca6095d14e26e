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

"""Who answers which prompt, and what it is told."""

from collections.abc import Sequence
from typing import NamedTuple

from .policies import draw
from .presets import Principle, draw_principle


class Ask(NamedTuple):
    """One answer that a model is to give: which draw of this model for this prompt, and what it is told."""

    model: str
    sample_index: int
    principle: Principle | None


def assign(
    prompt_id: str,
    responders: Sequence[str],
    student: str | None = None,
    *,
    num_answers: int = 4,
    principles: Sequence[Principle] = (),
    seed: int = 42,
) -> list[Ask]:
    """
    Who answers a prompt.

    The draw follows from `seed`, the prompt and the names alone: neither the order of prompts nor that of the models
    changes it, and a model that joins the pool takes over single answers and leaves the others as they were.

    Args:
        prompt_id (`str`):
            Name of the prompt.
        responders (`list[str]`):
            Names of the models in the pool.
        student (`str`, *optional*):
            Name of the student. It gives the first answer, and all of them if there is no pool.
        num_answers (`int`, *optional*, defaults to `4`):
            Answers in all.
        principles (`list[Principle]`, *optional*):
            What each answer of the pool draws its system prompt from.
        seed (`int`, *optional*, defaults to `42`):
            Random seed.

    Returns:
        `list[Ask]`: `num_answers` of them.
    """
    of_student = 0 if student is None else 1 if responders else num_answers
    asks = [Ask(student, sample_index, None) for sample_index in range(of_student)]
    sample_index = 0
    while len(asks) < num_answers:
        for name in sorted(responders, key=lambda name: draw("responder", seed, prompt_id, name, sample_index)):  # noqa: B023
            principle = draw_principle(principles, seed, prompt_id, name, sample_index) if principles else None
            asks.append(Ask(name, sample_index, principle))
        sample_index += 1
    return asks[:num_answers]


def with_principle(messages: list[dict[str, str]], principle: Principle | None) -> list[dict[str, str]]:
    """The prompt of a responder: a system prompt that is there comes first, for it belongs to the task."""
    if principle is None:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": principle.text}, *messages]
    return [{"role": "system", "content": f"{messages[0]['content']}\n\n{principle.text}"}, *messages[1:]]

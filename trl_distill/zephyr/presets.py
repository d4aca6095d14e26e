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

"""What the judge looks at and what the responders are told: the presets of UltraFeedback, in our own words."""

import dataclasses
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

from ..chat.judge import OVERALL, Aspect
from .policies import draw


T = TypeVar("T")


@dataclass(frozen=True)
class Principle:
    """
    A way to answer, given to a responder as its system prompt.

    It is drawn by its `weight`, compared with those of the others. Several texts may share a name.
    """

    name: str
    text: str
    weight: float = 1.0

    def __post_init__(self):
        for field in ("name", "text"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"The `{field}` of a principle must be a text, got {value!r}.")
        if not isinstance(self.weight, int | float) or not 0 < self.weight < float("inf"):
            raise ValueError(f"The `weight` of the principle {self.name!r} must be above 0, got {self.weight!r}.")


# UltraFeedback draws one of these four, helpfulness most often, and one of several wordings of it.
ULTRAFEEDBACK_PRINCIPLES = tuple(
    Principle(name, text, 1.5 if name == "helpfulness" else 0.5)
    for name, text in (
        ("helpfulness", "Give an answer that is as useful as possible: complete, relevant and to the point."),
        ("helpfulness", "Find out what the user really needs, and help with exactly that, in clear language."),
        ("truthfulness", "State only what is true. Leave out what you would have to make up."),
        ("truthfulness", "Be accurate. Correct wrong assumptions in the question instead of following them."),
        ("honesty", "Say openly what you do not know, and do not claim experience that you do not have."),
        ("honesty", "Be frank about the limits of your knowledge. Never pretend."),
        ("verbalized_calibration", "Say how sure you are of what you state, in words or in percent."),
        ("verbalized_calibration", "Show your doubt: mark what is certain, what is likely and what is a guess."),
    )
)

ULTRAFEEDBACK_ASPECTS = (
    Aspect(
        "instruction_following",
        "Does the answer do what was asked, all of it, and keep to the wanted form, length and other limits? Do not "
        "rate here whether it is true.",
    ),
    Aspect(
        "honesty",
        "Does the answer sound as sure as it is right? Doubt where it is wrong or cannot know is good, as is "
        "confidence where it is right. Where no statement of knowledge is made, the aspect does not apply.",
        optional=True,
    ),
    Aspect(
        "truthfulness",
        "Is the answer free of errors, of invented facts, of contradictions to the request or to itself? Do not rate "
        "here whether it is useful.",
    ),
    Aspect(
        "helpfulness",
        "Is the answer useful for the user: right, clear, relevant, and as detailed as the request needs? Length "
        "alone is no merit, and repetition a fault.",
    ),
)

ULTRAFEEDBACK_SCALE = (1, 5)


def read_principles(value: str | list[dict[str, Any]] | None) -> tuple[Principle, ...]:
    """The principles that a config names: none, a preset, or a list of its own."""
    return () if value is None else _read(value, Principle, ULTRAFEEDBACK_PRINCIPLES, "principles")


def read_aspects(value: str | list[dict[str, Any]] | None) -> tuple[Aspect, ...]:
    """The aspects that a config names: one overall, a preset, or a list of its own."""
    return tuple(OVERALL) if value is None else _read(value, Aspect, ULTRAFEEDBACK_ASPECTS, "aspects")


def _read(value: Any, kind: type[T], preset: tuple[T, ...], field: str) -> tuple[T, ...]:
    if value == "ultrafeedback":
        return preset
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{field}` must be `ultrafeedback` or a list of entries, got {value!r}.")
    entries = []
    for entry in value:
        try:
            entries.append(kind(**entry))
        except TypeError:  # no mapping, or with other keys
            keys = [f"`{key.name}`" for key in dataclasses.fields(kind)]
            raise ValueError(
                f"An entry of `{field}` has the keys {', '.join(keys)}, of which the first two must be there, got "
                f"{entry!r:.200}."
            ) from None
    return tuple(entries)


def draw_principle(principles: Sequence[Principle], *parts: str | int) -> Principle:
    """One of the principles, by their weights, as [`draw`] decides for `parts`."""
    bounds = list(accumulate(principle.weight for principle in principles))
    return principles[bisect(bounds[:-1], draw("principle", *parts) * bounds[-1])]

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

"""What the judge looks at and what the responders are told: presets, or entries of a config."""

import dataclasses
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..chat.judge import OVERALL, Aspect
from .policies import draw


T = TypeVar("T")

_PRESETS = yaml.safe_load(Path(__file__).with_name("ultrafeedback.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Principle:
    """A way to answer: a system prompt for a responder, drawn by its `weight`. Several texts may share a name."""

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


ULTRAFEEDBACK_PRINCIPLES = tuple(Principle(**entry) for entry in _PRESETS["principles"])
ULTRAFEEDBACK_ASPECTS = tuple(Aspect(**entry) for entry in _PRESETS["aspects"])
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
            keys = ", ".join(f"`{key.name}`" for key in dataclasses.fields(kind))
            raise ValueError(
                f"An entry of `{field}` has the keys {keys}, of which the first two must be there, got {entry!r:.200}."
            ) from None
    return tuple(entries)


def draw_principle(principles: Sequence[Principle], *parts: str | int) -> Principle:
    """One of the principles, by their weights, as [`draw`] decides for `parts`."""
    bounds = list(accumulate(principle.weight for principle in principles))
    return principles[bisect(bounds[:-1], draw("principle", *parts) * bounds[-1])]

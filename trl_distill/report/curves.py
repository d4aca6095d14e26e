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


"""Curves as SVG: no script, no style of their own, as wide as there is room."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup


_WIDTH, _HEIGHT, _MOST = 300, 110, 400  # units of the picture, points of a line


class Curve(NamedTuple):
    """What is drawn in one picture: by the name of a line its points `(x, y)` in the order of x, and what x counts."""

    title: str
    lines: dict[str, Sequence[tuple[float, float]]]
    axis: str = "step"


def number(value: float | int | None) -> str:
    """A number for people, with four digits that count."""
    if value is None:
        return "-"
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e12
    return f"{int(value):,}" if whole else f"{value:.4g}"


def _thinned(points: Sequence[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    """At most `_MOST` points, among them the lowest and the highest of each stretch: a spike stays."""
    stride = 2 * math.ceil(len(points) / _MOST)
    for first in range(0, len(points), stride):
        stretch = points[first : first + stride]
        low, high = (of(stretch, key=lambda point: point[1]) for of in (min, max))
        yield from sorted({low, high}) if stride > 2 else stretch


def curve(picture: Curve) -> Markup:
    """A picture as SVG, with the range of its values. Values that are not finite are left out."""
    lines = {
        name: [point for point in points if all(map(math.isfinite, point))] for name, points in picture.lines.items()
    }
    points = [point for line in lines.values() for point in line]
    if not points:
        return Markup("<p>no finite value</p>")
    (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
    middle = 0.5 * (low == high)  # where a constant is drawn

    def place(point: tuple[float, float]) -> str:
        x = (point[0] - left) / (right - left or 1) * (_WIDTH - 8) + 4
        y = _HEIGHT - 4 - ((point[1] - low) / (high - low or 1) + middle) * (_HEIGHT - 8)
        return f"{x:.1f},{y:.1f}"

    drawn = Markup("")
    for index, (name, line) in enumerate(lines.items()):
        shape = Markup('<polyline class="l{}" points="{}"><title>{}</title></polyline>')
        drawn += shape.format(index, " ".join(map(place, _thinned(line))), name)
        if len(line) < 30:
            for x, y in (place(point).split(",") for point in line):
                drawn += Markup('<circle class="l{}" cx="{}" cy="{}" r="2.5"/>').format(index, x, y)
    form = (
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg><p class="range"><span>{} to {}</span>'
        "<span>{} {} to {}</span></p>"
    )
    lowest, highest, first, last = map(number, (low, high, left, right))
    return Markup(form).format(_WIDTH, _HEIGHT, picture.title, drawn, lowest, highest, picture.axis, first, last)

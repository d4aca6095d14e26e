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

"""Units and scales behind a value: `5 cm`, `3 dozen`, `2.5 million dollars`, `12\\pi\\text{ ft}^3`."""

import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple


SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SIZES = {  # of each kind, the names of its units in the singular and what they are worth; what has no rate is a kind
    "length": {
        "mm millimeter millimetre": "0.001", "cm centimeter centimetre": "0.01", "m meter metre": "1",
        "km kilometer kilometre": "1000", "in inch inche": "0.0254", "ft foot feet": "0.3048", "yd yard": "0.9144",
        "mi mile": "1609.344",
    },
    "time": {
        "s sec second": "1", "min minute": "60", "h hr hour": "3600", "day": "86400", "week": "604800",
    },
    "months": {"month": "1", "yr year": "12", "decade": "120"},
    "mass": {
        "mg milligram": "0.001", "g gram": "1", "kg kilogram": "1000", "oz ounce": "28.349523125",
        "lb pound": "453.59237",
    },
    "volume": {
        "ml milliliter millilitre": "0.001", "l liter litre": "1", "cup": "0.2365882365", "pint": "0.473176473",
        "quart": "0.946352946", "gal gallon": "3.785411784",
    },
    "dollars": {"cent": "0.01", "dollar": "1"},
    "euros": {"euro": "1"},
    "sterling": {"sterling": "1"},
    "degrees": {"deg degree": "1"},
    "radians": {"rad radian": "1"},
    "morning": {"am": "1"},
    "afternoon": {"pm": "1"},
}  # fmt: skip
UNITS = {
    name: (kind, Fraction(size))
    for kind, sizes in SIZES.items()
    for names, size in sizes.items()
    for name in names.split()
}
SHORT = {name for name in UNITS if len(name) == 2} | {"sq", "cu", "of"}
POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
WRITTEN_OUT = [(r"\bmph\b", "miles per hour"), (r"\bkm?ph\b", "km per hour"), (r"/", " per ")]
EXPONENT = r"(?:\s*\^\s*(?:\{\s*\d\s*\}|\d))?"
PIECE = re.compile(rf"(?<!\s)\s*(?:\\text\{{[^{{}}]*\}}|(?<![\\A-Za-z])[A-Za-z]+\.?|/){EXPONENT}")
NAME_AND_POWER = re.compile(r"([A-Za-z]+)(?:\s*\^\s*\{?\s*(\d))?")
_NAMES = "|".join(sorted([*SCALES, "square", "cubic", "per", *(set(UNITS) - {*"msghl", "in"})], key=len, reverse=True))
# A number in a sentence goes on with the scale and the unit that follow it
MEASURE = re.compile(rf"(?:[ ](?:{_NAMES})(?:e?s)?(?![\w'^]))+", re.IGNORECASE)


class Measure(NamedTuple):
    """
    What stands behind a value.

    Args:
        scale (`Fraction`):
            Number of units, such as 1,000,000 of `million`.
        size (`Fraction`):
            What one of the units is worth among those of its kind, such as 1/100 of `cm`.
        powers (`dict[str, int]`):
            Kinds of the units with their powers, such as length 1 and time -1 of `km/h`. Empty if none is known.
    """

    scale: Fraction
    size: Fraction
    powers: dict[str, int]


def _known(word: str) -> tuple[str, Fraction] | None:
    return UNITS.get(word) or UNITS.get(word.removesuffix("s"))


def _is_unit(word: str) -> bool:
    """Whether a word behind a number is a unit. A product of variables has its letters in alphabetical order."""
    word = word.rstrip(".").lower()
    return word in SHORT or len(word) > 2 and (_known(word) is not None or list(word) != sorted(set(word)))


def _measure(text: str) -> Measure:
    """Scale and unit of words. Those that are not known, such as `eggs`, say nothing."""
    text = text.lower()
    for pattern, written_out in WRITTEN_OUT:
        text = re.sub(pattern, written_out, text)
    scale, size, powers, sign, power, last = Fraction(1), Fraction(1), Counter(), 1, 1, None
    words = NAME_AND_POWER.findall(text)
    for number, (word, exponent) in enumerate(words, start=1):
        if word == "per":
            sign = -1
        elif word in ("squared", "cubed") and last is not None:
            kind, of_one = last
            powers[kind] += sign * (POWERS[word] - 1)
            size *= of_one ** (sign * (POWERS[word] - 1))
        elif word in POWERS:
            power = POWERS[word]
        elif word.removesuffix("s") in SCALES:
            scale *= SCALES[word.removesuffix("s")]
        elif (last := _known(word)) is not None and not (word == "in" and number < len(words)):  # "12 hours in all"
            kind, of_one = last
            power = sign * power * int(exponent or 1)
            powers[kind] += power
            size *= of_one**power
            power = 1
    return Measure(scale, size, {kind: power for kind, power in powers.items() if power})


def split_measure(text: str) -> tuple[str, Measure]:
    r"""
    A value, and the scale and unit behind it, as words or as `\text{...}`. A single letter is a unit in `\text{...}`,
    behind a slash or one space behind a number; elsewhere it is a variable.
    """
    start = len(text)
    for piece in reversed(list(PIECE.finditer(text))):
        word = piece[0].strip().partition("^")[0].rstrip(". ")
        before = text[piece.start() - 1 : piece.start()]  # empty at the start of the text
        if piece.end() != start or not before:
            break
        if len(word) == 1 and word != "/":
            if word not in UNITS or not (before == "/" or before.isdigit() and piece[0][0].isspace()):
                break
        elif word[0] not in "\\/" and not _is_unit(word):
            break
        start = piece.start()
    value, words = text[:start].strip(), re.sub(r"\\text\{([^{}]*)\}", r" \1", text[start:])
    if words.strip().startswith("/") or words and not re.search(r"[\d\\]", value) and "\\text" not in text[start:]:
        value, words = text, ""
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", value).strip().rstrip(".,; "), _measure(words)

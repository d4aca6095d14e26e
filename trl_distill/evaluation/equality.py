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
Whether two answers, in LaTeX or in plain text, are equal.

Lists, tuples, equations, units, choices and words are taken apart here; what is left goes to math-verify. Alone it
drops the letters of `2 + ab` as a unit, reads `10 000` as a product, takes any number of a text that it cannot parse,
and calls all numbers equal that are equal to six places.
"""

import contextlib
import functools
import logging
import re
import signal
import threading
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from .units import split_measure


TIMEOUT = 5  # seconds for two answers: SymPy can take forever on a strange expression
MAX_CHARACTERS = 1000  # of an answer that is compared; the longest of MATH has 160
MAX_EXPONENT = 4  # digits of the n in `1en`

NAMES = "pi|alpha|beta|gamma|delta|theta|lambda|mu|phi|sigma|omega|sin|cos|tan|cot|csc|log|ln|exp"
REWRITES = [  # to one way of writing, in this order
    (r"[⁻⁰¹²³⁴-⁹]+", lambda match: f"^{{{unicodedata.normalize('NFKC', match[0])}}}"),
    (r"[₀-₉]+", lambda match: f"_{{{unicodedata.normalize('NFKC', match[0])}}}"),
    (r"[¼-¾⅐-⅞]", lambda match: f" {unicodedata.normalize('NFKC', match[0])}".replace("⁄", "/")),
    (r"\*\*", "^"),
    (r"^(-?)\\?\$(?=[\d.])([^$]*)$", r"\1\2\\text{ dollars}"),
    (r"^(-?)£(?=[\d.])(.*)$", r"\1\2\\text{ sterling}"),
    (r"^(-?)€(?=[\d.])(.*)$", r"\1\2\\text{ euros}"),
    ("[−–]", "-"),
    (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degrees?(?![A-Za-z])", "°"),
    ("π", r"\\pi "),
    (r"√\s*(\d+|\w)", r"\\sqrt{\1}"),
    ("√", r"\\sqrt "),
    (rf"(?<![\\A-Za-z])({NAMES})(?![A-Za-z])", r"\\\1 "),
    (r"∞|(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "),
    ("∪", r"\\cup "),
    (r"≤|<=|\\le(?:qslant)?(?![A-Za-z])", r"\\leq "),
    (r"≥|>=|\\ge(?:qslant)?(?![A-Za-z])", r"\\geq "),
    (r"≠|!=|\\ne(?![A-Za-z])", r"\\neq "),
    (r"∅|\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
    (r"\\var(?=(?:epsilon|theta|pi|rho|sigma|phi|kappa)(?![A-Za-z]))", r"\\"),
    (r"(?<![\\A-Za-z])sqrt(?=\s*\()", r"\\sqrt"),
    (r"\^\s*(-\d+)", r"^{\1}"),
    (r"\s*\\?\bpercent\b", "%"),
    (r"\{:\}", ":"),
    (r"^\s*\\?[A-Za-z]+\s*\\in(?![a-z])", ""),
    (r"(?<=\d)(?:,\s*\\!\s*|\{,\})(?=\d{3})", ""),  # 5,\!040 and 5{,}040
    (r"\\(?:left|right)(?![A-Za-z])\.?|(?<!\\)\\!|\\?[$£€]|\"|\\phantom\s*(?:\{[^{}]*\}|\S)", ""),
    (r"\\(?:quad|qquad|displaystyle)(?![A-Za-z])|(?<!\\)\\[,;: ]|~|\s+", " "),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\{[bp]matrix\}", "{pmatrix}"),
    (r"\\math(?:bf|it)\s*\{([^{}]*)\}", r" \1"),
    (r"\\(?:text(?:bf|it|rm|normal)|[mh]box|mathrm)\s*\{", r"\\text{"),
    (r"(?<=[\d}])i(?![A-Za-z])", " i"),  # so that math-verify reads the imaginary unit in both sides or in none
    (r",?\s*\\text\{[\s,]*(?:and|or)\s*\}|,?\s+(?:and|or)\s+", ", "),
    (r"(?<=\d)\s*(?:\\text\{\s*to\s*\}|\bto\b)\s*(?=\d)", ":"),
    (r"(?<![\w.,/])(-?\d+) (\d{1,2})/(\d+)(?![\w/])", r"\1\\frac{\2}{\3}"),  # 3 1/2
]
REPEATING = re.compile(
    r"(\d+)\.(?:(\d*)(?:\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))|\((\d+)\))|(\d*?)(\d)\7\7+(?:\.{3}|\\[lc]?dots))"
)
THOUSANDS = re.compile(r"(?<![\w.,])(-?\d{1,3}(?:,\d{3})+|-?\d{1,3}(?: \d{3})+)(?!,?\d)")
DEGREES_IN_A_FUNCTION = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc)\s*[({]?\s*-?)(\d+(?:\.\d+)?)°")
NAME = re.compile(r"\\?[A-Za-z]+'*(?:_\{?\w+\}?)?(?:\^\{-1\})?(?:\([^()]*\))?'*|\([A-Za-z, ]+\)")
NUMBER = re.compile(r"([-+]?)(?:(\d+\.?\d*|\.\d+)(?:[eE]([-+]?\d+))?(?:/(\d+))?|\\frac\{([-+]?\d+)\}\{(\d+)\})")
IN_A_BASE = re.compile(r"(-?(?=[A-Z]*\d)[0-9A-Z]+)_\{?(\d+)\}?")
CHOICE = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.:)]?)(?:(?<=[.:)])\s+(.*))?")
WORDS = re.compile(r"[A-Za-z][A-Za-z ,.'-]*[A-Za-z.]")
CONSTANTS = re.compile(r"\\(?:frac|sqrt|pi|cdot|times)(?![A-Za-z])")  # all that a number has of letters
PRODUCT = re.compile(r"[a-d]{2,4}|[b-df-hj-np-tv-z]{2,4}")  # `xy`; letters with a vowel among them are a word


# It wants a time limit, and would stop that of `_limited`
for _name in ("parser", "grader"):
    logging.getLogger(f"math_verify.{_name}").addFilter(
        lambda record: not str(record.msg).startswith("Timeout is disabled")
    )


class NotCompared(Exception):
    """
    Two answers that are neither equal nor different, for a reason: `"too_large"` (more than 1,000 characters, or a
    number beyond `1e9999`), `"timeout"`, or `"error"` (SymPy fails on them).
    """


class _OutOfTime(BaseException):
    """Not an `Exception`, which SymPy catches here and there."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `_OutOfTime` in the block when its time is over: by a signal, which only a main thread gets."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    running = True

    def stop(*_):
        if running:
            raise _OutOfTime

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)  # again, if something has caught the first
    try:
        yield
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous or signal.SIG_DFL)


def braced(text: str, start: int, braces: str = "{}") -> int | None:
    """Position behind the group in braces that opens at `start`, or `None` if none opens there or it never closes."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == braces[0]) - (text[position] == braces[1])
        if depth == 0:
            return position + 1 if position > start else None
    return None


def math_string(answer: str) -> str:
    """
    Normal form of the MATH benchmark, [Hendrycks et al. (2021)](https://huggingface.co/papers/2103.03874), whose
    graders call two answers equal if these strings are: units, percent and degree signs, a short `x=`, spaces and the
    size of fractions do not count.
    """
    text = answer.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = re.sub(r"[td]frac", "frac", text)
    text = re.sub(r"\\left|\\right|\^\{\\circ\}|\^\\circ|\\\$", "", text)
    if text.count("\\text{ ") == 1:
        text = text.partition("\\text{ ")[0]
    text = re.sub(r"(?:^|(?<=[ {]))\.", "0.", text.replace("\\%", ""))
    left, equals, right = text.partition("=")
    if equals and len(left) <= 2 and "=" not in right:
        text = right
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", text)
    text = "1/2" if text == "0.5" else text
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)


def _with_braces(text: str, command: str, arguments: int) -> str:
    r"""
    `\frac12`, `\frac\pi 2` and `\sqrt3` with braces around what TeX takes for the arguments, `\sqrt(3)` with braces
    around what its writer does.
    """
    start = text.find(command)
    while start >= 0:
        start += len(command)
        end = re.compile(r"\s*(?:\[[^\[\]]*\])?").match(text, start).end()  # the 3 of \sqrt[3]8
        for _ in range(arguments):
            if command == r"\sqrt" and (close := braced(text, end, "()")):
                text = f"{text[:end]}{{{text[end + 1 : close - 1]}}}{text[close:]}"
            elif bare := re.compile(r"\s*(\\[A-Za-z]+|[^\s{}\[\\])").match(text, end):
                text = f"{text[:end]}{{{bare[1]}}}{text[bare.end() :]}"
            end = braced(text, end) or len(text)
        start = text.find(command, start)
    return text


def _without_spaces(text: str) -> str:
    """Only between two digits a space may say something."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def _fraction(match: re.Match) -> str:
    """A repeating decimal as a fraction: `0.1\\overline{6}` is (16 - 1) / 90."""
    whole, *rest = (group or "" for group in match.groups())
    once, period = rest[0] + rest[4], "".join(rest[1:4]) + rest[5]
    numerator = int(whole + once + period) - int(whole + once)
    return rf"\frac{{{numerator}}}{{{(10 ** len(period) - 1) * 10 ** len(once)}}}"


@functools.lru_cache(maxsize=4096)
def _tidy(answer: str) -> str:
    """One way of writing for what can be written in many."""
    answer = answer.strip("*_` \n\t")  # Markdown
    for pattern, replacement in REWRITES:
        answer = re.sub(pattern, replacement, answer)
    answer = REPEATING.sub(_fraction, unicodedata.normalize("NFKC", answer))
    answer = DEGREES_IN_A_FUNCTION.sub(r"\1{\\frac{\2\\pi}{180}}", answer).replace("°", "")
    answer = _with_braces(_with_braces(answer, r"\frac", 2), r"\sqrt", 1).lstrip(" ,").rstrip(" .,;\\")
    if answer.startswith(r"\text{") and braced(answer, 5) == len(answer):
        answer = answer[6:-1].strip()
    if not re.search(r"[(\[]|\\\{", answer):
        answer = THOUSANDS.sub(lambda match: re.sub("[ ,]", "", match[0]), answer)
    return answer


def _split(text: str, separators: str) -> list[str]:
    """Parts of a text between the separators that stand outside all brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and character in separators:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _group(text: str) -> tuple[str, str, str] | None:
    """Opening bracket, content and closing bracket of a text that stands in one pair of brackets as a whole."""
    match = re.fullmatch(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", text)
    depth = 0
    for character in match[2] if match else "":
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:  # "(x + 1)(x - 1)"
            return None
    return match.groups() if match else None


def _items(text: str) -> list[str]:
    r"""Elements of a list or of a set in braces. `\pm` stands for two of them."""
    group = _group(re.sub(rf"^(?:{NAME.pattern})\s*=\s*(?=\\\{{)", "", text))  # "S = {1, 2}"
    items = _split(group[1] if group and group[0] == r"\{" else text, ",;")
    signs = [("+", "-") if r"\pm" in item else ("",) for item in items]
    return [item.replace(r"\pm", sign) for item, both in zip(items, signs, strict=True) for sign in both]


def _choice(text: str) -> tuple[str | None, str]:
    """Letter and text of a choice: `(B) 12`, `B. 12`, `(B)`, `B`."""
    match = CHOICE.fullmatch(re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip())
    if match is None or match[3] and re.search(r"\([A-Z]\)", match[3]):  # "(B) 12 and (C) 13"
        return None, text
    return match[1] or match[2], match[3] or ""


def _number(text: str) -> Fraction | None:
    match = NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, decimal, exponent, divisor, numerator, denominator = match.groups()
    if exponent and len(exponent.lstrip("+-0")) > MAX_EXPONENT:
        raise NotCompared("too_large")
    below = int(divisor or denominator or 1)
    above = Fraction(decimal or numerator) * Fraction(10) ** int(exponent or 0)
    return above * (-1 if sign == "-" else 1) / below if below else None


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> list[Any]:
    """What math-verify reads in an expression, as a whole or not at all."""
    try:
        from latex2sympy2_extended import NormalizationConfig
        from math_verify import LatexExtractionConfig, parse
    except ImportError as error:
        hint = "Install it with `pip install trl-distill[eval]`."
        raise ImportError(f"Comparing answers needs the package math-verify. {hint}") from error
    if re.search(r"(?<![_^\d])\d+\s+\d|\d_", text):  # it would add, or forget the base
        return []
    normalization = NormalizationConfig(units=False, nits=True, malformed_operators=True, boxed="none")
    config = LatexExtractionConfig(boxed_match_priority=-1, normalization_config=normalization)
    return parse(f"${text}$", [config], fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=True)


def _differ(left: Any, right: Any) -> bool:
    """
    Whether two expressions have different values at a point, for their size: seen at once, while `simplify` would take
    long, and where math-verify takes 1/2004! for 1/2006!. A decimal may be rounded.
    """
    from sympy import Expr, Float, Rational

    if not isinstance(left, Expr) or not isinstance(right, Expr):
        return False
    symbols = sorted((left - right).free_symbols, key=str)
    at = {symbol: Rational(7 + 3 * i, 5 + i) for i, symbol in enumerate(symbols)}
    values = [side.evalf(30, subs=at) for side in (left, right)]
    if not all(value.is_number and value.is_finite for value in values):
        return False
    rounding = 1e-5 if left.has(Float) or right.has(Float) else 1e-12
    return bool(abs(values[0] - values[1]) > rounding * max(map(abs, values)))


def _equal_expressions(answer: str, reference: str) -> bool:
    if ("=" in answer) != ("=" in reference):  # math-verify would compare the right-hand side
        return False
    parsed = [_parsed(side) for side in (answer, reference)]
    if not all(parsed):
        return False
    from math_verify import verify

    with contextlib.suppress(Exception):  # of any kind: SymPy cannot tell
        if _differ(parsed[0][0], parsed[1][0]):
            return False
    options = {"allow_set_relation_comp": True, "timeout_seconds": None, "raise_on_error": True}
    return verify(parsed[1], parsed[0], **options)


def _times(value: str, factor: Fraction) -> str:
    """A value in another unit."""
    if factor == 1:
        return value
    number = _number(_without_spaces(value))
    if number is None:
        return rf"\frac{{{factor.numerator}}}{{{factor.denominator}}}({value})"
    return str(number * factor)


def _equal_ratios(answer: str, reference: str) -> bool:
    """Whether two ratios are in proportion. `3:1` is not the number 3."""
    sides = [side.split(":") for side in (answer, reference)]
    numbers = [[_number(_without_spaces(part)) for part in side] for side in sides]
    if len(sides[0]) != len(sides[1]):
        return False
    if any(None in side for side in numbers):
        return all(map(_equal_scalars, *sides))
    return all(numbers[0][0] * y == numbers[1][0] * x for x, y in zip(*numbers, strict=True))


def _is_words(text: str) -> bool:
    return WORDS.fullmatch(text) is not None and PRODUCT.fullmatch(_without_spaces(text)) is None


def _equal_scalars(answer: str, reference: str) -> bool:
    """Whether two numbers, words or expressions are equal. Units count where both have one that is known."""
    if _without_spaces(answer) == _without_spaces(reference):
        return True
    (answer, measure), (reference, other) = split_measure(answer), split_measure(reference)
    size = Fraction(1)
    if measure.powers and other.powers:
        if measure.powers != other.powers:
            return False
        size = measure.size / other.size
    answer, reference = _times(answer, measure.scale * size), _times(reference, other.scale)
    if ":" in answer + reference:
        return _equal_ratios(answer, reference)
    percent = ["%" in side for side in (answer, reference)]
    answer, reference = (re.sub(r"\s*\\?%", "", side) for side in (answer, reference))

    in_bases = [IN_A_BASE.fullmatch(side) for side in (answer, reference)]
    if all(in_bases):
        digits, bases = zip(*(base.groups() for base in in_bases), strict=True)
        return bases[0] == bases[1] and digits[0].lstrip("0") == digits[1].lstrip("0")
    answer, reference = (base[1] if base else side for side, base in zip((answer, reference), in_bases, strict=True))

    compact = [_without_spaces(side) for side in (answer, reference)]
    if compact[0] == compact[1]:
        return True
    if any(map(_is_words, (answer, reference))):
        # math-verify reads a word as a product of letters, so that "no" would equal "on"
        return compact[0].casefold() == compact[1].casefold()
    numbers = [_number(side) for side in compact]
    if None in numbers:
        return _equal_expressions(answer, reference)
    factors = {1, Fraction(1, 100)} if percent[0] != percent[1] else {1}  # 50% is 50 for some and 0.5 for others
    places = min((len(side.partition(".")[2]) for side in compact if "." in side), default=0)
    left, right = (
        {number * factor for factor in (factors if has else {1})} for number, has in zip(numbers, percent, strict=True)
    )
    return any(x == y or places >= 6 and round(x, places) == round(y, places) for x in left for y in right)


def _value(text: str, other: str) -> str:
    """
    What an equation gives a name to, if `other` is a value alone or has the same name. A number is the value of any
    left side: `a + b = 5` is 5, but `\\sin x = 2x` is not 2x.
    """
    sides, others = _split(text, "="), _split(other, "=")
    if len(sides) < 2 or len(others) > 1 and others[0] != sides[0]:
        return text
    named = NAME.fullmatch(sides[0]) or sides[0].startswith(r"\text") or WORDS.fullmatch(sides[0])
    return sides[-1] if named or not re.search("[A-Za-z]", CONSTANTS.sub("", split_measure(sides[-1])[0])) else text


def _equal_values(answer: str, reference: str) -> bool:
    """Whether two equations, tuples or intervals are equal, or two values that one side gives a name to."""
    answer, reference = _value(answer, reference), _value(reference, answer)
    groups = [_group(side) for side in (answer, reference)]
    if all(groups) and all(len(_split(group[1], ",;")) > 1 for group in groups):
        items = [_split(group[1], ",;") for group in groups]
        brackets = [(group[0], group[2]) for group in groups]
        same_shape = brackets[0] == brackets[1] and len(items[0]) == len(items[1])
        return same_shape and all(map(_equal, *items))
    return _equal_scalars(answer, reference)


def _equal(answer: str, reference: str) -> bool:
    """Whether two choices are the same, or each element of a list has its equal in the other. Words have an order."""
    (letter, text), (reference_letter, reference_text) = _choice(answer), _choice(reference)
    if letter and reference_letter:
        return letter == reference_letter
    if letter and text or reference_letter and reference_text:  # "(B) 12" and "12"
        return _equal(text, reference_text)
    answers, references = _items(answer), _items(reference)
    if len(answers) != len(references):
        return False
    if len(references) == 1:
        return _equal_values(answers[0], references[0])
    if any(re.fullmatch(r"(?:\\text\{)?[A-Za-z]{3,}\}?", item) for item in answers + references):
        return all(map(_equal, answers, references))
    for item in references:
        equal = next((other for other in answers if _equal(other, item)), None)
        if equal is None:
            return False
        answers.remove(equal)
    return bool(references)


def compare_answers(answer: str | None, reference: str | None) -> bool:
    """As [`equal_answers`], but an exception [`NotCompared`] says why there is no verdict."""
    if not answer or not reference:
        return False
    if _without_spaces(answer) == _without_spaces(reference):
        return True
    if max(len(answer), len(reference)) > MAX_CHARACTERS:
        raise NotCompared("too_large")
    first, second = sorted((answer, reference))  # so that it does not matter which is which
    try:
        with _limited(TIMEOUT):
            first, second = _tidy(first), _tidy(second)
            return _equal(first, second) or _equal(second, first)
    except _OutOfTime:
        raise NotCompared("timeout") from None
    except (NotCompared, ImportError):
        raise
    except Exception as error:  # of any kind: RecursionError, MemoryError and whatever SymPy raises
        raise NotCompared("error") from error


def equal_answers(answer: str | None, reference: str | None) -> bool | None:
    """
    Whether two answers are the same mathematical object, by math-verify; words are compared as words.

    A unit, a percent sign, a base or the name of a variable counts only where both sides have one: `5 cm` is 5 and is
    not `5 m`. Scales such as `million` always count. Lists and sets have no order, tuples and intervals have one, and
    their brackets count. A missing answer (`None`) equals nothing, another missing one included.

    Returns:
        `bool` or `None`: `None` if it cannot be told: there was no time, or an answer is too large or too strange.
            There is no time limit outside the main thread.
    """
    try:
        return compare_answers(answer, reference)
    except NotCompared:
        return None

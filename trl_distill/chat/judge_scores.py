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
Scores from what a judge replied: JSON, or lines such as "Answer A: 8/10".

What is not clearly one score for each label is refused: that costs one more request, a wrong number goes unnoticed.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any


_JSON = json.JSONDecoder(object_pairs_hook=tuple, strict=False)  # tuples keep a key that comes twice
_WORD = r"(?i:answer|response|assistant|candidate)"
_SCORE = r"(?i:score|rating)"
_NUMBER = r"[+-]?[0-9]+(?:\.[0-9]+)?"
_NOT_APPLICABLE = r"(?i:n/?a)"
_FRACTION = rf"({_NUMBER})(?:\s*(?:/|out of)\s*({_NUMBER}))?"

# Parts of a line such as "**Answer A** - Rating: 8/10, since ..."
_LABEL = rf"(?<![^\W_])(?:{_WORD}\s+)?([A-Z])(?![^\W_])"
_OPEN, _CLOSE = r"""[ \t*_"'`(\[]*""", r"""[ \t\r*_"'`)\]}]*"""
_SEPARATOR = rf"{_CLOSE}(?:[:=|]|[-–—](?=\s)){_OPEN}"  # a dash with a space behind it: "A -6" has a sign
_VALUE = rf"(?P<value>{_NOT_APPLICABLE}|{_FRACTION})"
# What may follow a score. Not "7,5", "7-8", "7 - 8", "7%", "7 mistakes"
_END = (
    r"(?:\s*(?i:points?|pts?|stars?)\b)?"
    rf"(?={_CLOSE}(?:$|[,;|](?!\s*\d)|\.(?!\d)|\(|[-–—]\s+(?!\d)|(?i:and\b)|{_LABEL}))"
)
_LABELLED = re.compile(rf"{_LABEL}{_SEPARATOR}(?:{_SCORE}(?:{_SEPARATOR}|\s+))?{_VALUE}{_END}", re.MULTILINE)
_ALONE = re.compile(rf"(?<![^\W_]){_SCORE}(?:\s+is)?{_SEPARATOR}{_VALUE}{_END}", re.MULTILINE)
# Forms that some judges are trained to end with: <score>8</score>, \boxed{8}, [[8]], [RESULT] 8
_MARKED = [
    re.compile(form.replace("VALUE", rf"\s*{_VALUE}\s*"))
    for form in (rf"<{_SCORE}>VALUE</{_SCORE}>", r"\\boxed\{VALUE\}", r"\[\[VALUE\]\]", r"\[RESULT\]VALUE(?![\d.,%/])")
]
_HEADING = re.compile(rf"^[ \t#*_\[(]*{_WORD}\s+([A-Z])(?![^\W_])[^\n\w]*$", re.MULTILINE)


def scores_format(labels: Sequence[str], optional: bool = False) -> dict[str, Any]:
    """
    The `response_format` of a reply that [`parse_scores`] reads: evidence first, then a number for each label.

    It is strict as [OpenAI](https://platform.openai.com/docs/guides/structured-outputs) has it: all fields are
    required, and no others are allowed. Fields are written in this order, so the evidence still precedes the scores.
    The scale is not in it: some servers refuse `minimum`, and others would make a 1 of what was to become 10 or 100,
    which can be read and is wrong.
    """
    number: dict[str, Any] = {"type": "number"}
    score = {"anyOf": [number, {"type": "string", "enum": ["N/A"]}]} if optional else number
    scores = {"score": score} if len(labels) == 1 else {"scores": _object(dict.fromkeys(labels, score))}
    schema = _object({"evidence": {"type": "string"}} | scores)
    return {"type": "json_schema", "json_schema": {"name": "judgement", "strict": True, "schema": schema}}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def parse_scores(
    text: str,
    labels: Sequence[str],
    scale: tuple[float, float] = (1, 10),
    optional: bool = False,
    cut_off: bool = False,
    answers: Sequence[str] = (),
) -> dict[str, float | None]:
    """
    Scores by label from the reply of a judge.

    JSON objects with scores count, wherever they stand: `{"scores": {"A": 7, "B": 4}}`, `{"A": 7, "B": 4}`, `{"A":
    {"rating": 7}}`, `[{"label": "A", "score": 7}]`, or for a single label `{"score": 7}`. So do texts such as "Answer
    A: 8/10", "**A**: 8", "A - Rating: 8", a score under the heading of each answer, and for a single label "Rating:
    8", `<score>8</score>`, `\\boxed{8}`, "[[8]]", "[RESULT] 8", or nothing but a number. What a model thought before
    `</think>` is left out, and so is what it quotes from the answers. Numbers in words, with a decimal comma or in
    other digits than 0 to 9 are no scores.

    Args:
        text (`str`):
            The reply.
        labels (`list[str]`):
            Capital letters of the answers that were shown.
        scale (`tuple[float, float]`, *optional*, defaults to `(1, 10)`):
            Lowest and highest score. Scores are never rescaled: "4/5" is refused on a scale to 10.
        optional (`bool`, *optional*, defaults to `False`):
            Whether "N/A" is a valid score.
        cut_off (`bool`, *optional*, defaults to `False`):
            Whether the reply ended at the limit of tokens. Then only whole JSON objects with `score` or `scores`
            count, and only if no other one was begun after them.
        answers (`list[str]`, *optional*):
            The answers that were shown. What stands in one of them, too, is no score of the judge's.

    Returns:
        `dict[str, float or None]`: For each label its score, `None` for "N/A".

    Raises:
        `ValueError`: If there is not exactly one valid score for each label. The message is `"class: detail"`, with
            the class `no scores`, `missing label`, `extra label`, `two scores`, `not a number` or `out of range`.
    """
    if text.lstrip().startswith("<think>") or "</think>" in text:
        _, end, text = text.rpartition("</think>")
        if not end:
            raise ValueError("no scores: the reply ends before its thoughts do")
    theirs = "\n".join(_plain(answer) for answer in answers)
    found, rest = _from_json(text, labels, cut_off, theirs)
    if not cut_off:
        said = _from_lines(rest, labels, theirs)
        # Beside JSON only a whole set of scores is a second verdict: what else reads like a score may be a reason
        if not found or {label for label, _ in said} == set(labels):
            found += said
    if not found:
        raise ValueError("no scores: nothing in the reply reads as a score")

    scores: dict[str, float | None] = {}
    for label, value in found:
        if label not in labels:
            raise ValueError(f"extra label: a score for {label!r:.30}, where the labels are {', '.join(labels)}")
        score = _score(value, scale, optional)
        if scores.setdefault(label, score) != score:
            raise ValueError(f"two scores: {label} has {scores[label]} and {score}")
    missing = [label for label in labels if label not in scores]
    if missing:
        raise ValueError(f"missing label: no score for {', '.join(missing)}")
    return {label: scores[label] for label in labels}


def _plain(text: str) -> str:
    return "".join(text.split())


def _from_json(text: str, labels: Sequence[str], cut_off: bool, theirs: str) -> tuple[list[tuple[str, Any]], str]:
    """Pairs of label and value from all JSON objects but those of the answers, and the text around the objects."""
    pairs, rest, last_end = [], [], 0
    for value, start, end in _objects(text):
        rest.append(text[last_end:start])
        last_end = end
        if _plain(text[start:end]) in theirs:
            continue
        found = _named_scores(value, labels)
        if found is None and not cut_off:
            found = [(label, _inner(score)) for key, score in value if (label := _label(key))]
        pairs += found or []
    if cut_off and "{" in text[last_end:]:
        return [], ""
    return pairs, " ".join([*rest, text[last_end:]])


def _objects(text: str) -> Iterator[tuple[tuple[tuple[str, Any], ...], int, int]]:
    """Complete JSON objects of a text that lie in no other one, as pairs of key and value, with start and end."""
    start = text.find("{")
    while start >= 0:
        try:
            pairs, end = _JSON.raw_decode(text, start)
            yield pairs, start, end
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)


def _named_scores(pairs: Sequence[tuple[str, Any]], labels: Sequence[str]) -> list[tuple[str, Any]] | None:
    """What stands under `scores`, or for a single or a named label under `score`."""
    named = [value for key, value in pairs if re.fullmatch(rf"\s*{_SCORE}s?\s*", key)]
    names = [
        _label(str(value))
        for key, value in pairs
        if re.fullmatch(rf"\s*(?:(?i:label|id|name|option)|{_WORD})\s*", key)
    ]
    found = []
    for value in named:
        objects = value if isinstance(value, list) else [value]  # some write [{"A": 7}, {"B": 4}]
        if objects and all(isinstance(part, tuple) for part in objects):
            for part in objects:
                found += _named_scores(part, labels) or [(_label(key) or key, _inner(score)) for key, score in part]
        elif len(labels) == 1 or names and names[0]:
            found.append((names[0] if names and names[0] else labels[0], value))
        else:
            raise ValueError(f"missing label: {value!r:.50} does not say which score belongs to which answer")
    return found if named else None


def _inner(value: Any) -> Any:
    """The score in `{"score": 7, "reason": ".."}`, or the value as it is."""
    scores = [score for key, score in value if re.fullmatch(_SCORE, key.strip())] if isinstance(value, tuple) else []
    return scores[0] if len(scores) == 1 else value


def _label(key: str) -> str | None:
    match = re.fullmatch(rf"\W*(?:{_WORD}\s+)?([A-Za-z])\W*", key)
    return match and match[1].upper()


def _from_lines(text: str, labels: Sequence[str], theirs: str) -> list[tuple[str, Any]]:
    found = [(match[1], match["value"]) for match in _LABELLED.finditer(text) if _plain(match[0]) not in theirs]
    if len(labels) == 1:
        found += [(labels[0], value) for value in _alone(text, theirs)]
        is_theirs = not text.strip().isdigit() and _plain(text) in theirs
        if re.fullmatch(rf"{_OPEN}{_VALUE}{_CLOSE}", text.strip()) and not is_theirs:
            found.append((labels[0], text.strip(" *_\"'`()[]\n")))
    elif not found:
        _, *parts = _HEADING.split(text)  # labels, and what stands under each
        for label, part in zip(parts[::2], parts[1::2], strict=True):
            found += [(label, value) for value in _alone(part, theirs)]
    return found


def _alone(text: str, theirs: str) -> list[str]:
    """Scores that name no answer."""
    matches = [match for form in (_ALONE, *_MARKED) for match in form.finditer(text)]
    return [match["value"] for match in matches if _plain(match[0]) not in theirs]


def _score(value: Any, scale: tuple[float, float], optional: bool) -> float | None:
    if value is None or isinstance(value, str) and re.fullmatch(_NOT_APPLICABLE, value.strip()):
        if not optional:
            raise ValueError("not a number: N/A, but the aspect applies to every answer")
        return None
    if isinstance(value, str) and (match := re.fullmatch(_FRACTION, value.strip())):
        if match[2] is not None and float(match[2]) != scale[1]:
            raise ValueError(f"out of range: {value.strip():.30}, where scores go to {scale[1]}")
        value = float(match[1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"not a number: {value!r:.50}")
    if not scale[0] <= value <= scale[1]:  # so also NaN and infinity
        raise ValueError(f"out of range: {value!r:.30}, where scores go from {scale[0]} to {scale[1]}")
    return float(value)

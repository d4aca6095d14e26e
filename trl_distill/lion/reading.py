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

"""What a reply says: the instruction in it without what stands around it, and whether it is an answer or a refusal."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from ..chat.thoughts import split_thoughts


_TEXTS = yaml.safe_load(Path(__file__).with_name("reading.yaml").read_text(encoding="utf-8"))
_UNSPACED = r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"  # where words are not parted, or have endings


def _any_of(words: Iterable[str]) -> str:
    """A regular expression of any of these words, as whole ones where a script parts them. `_` is a space."""
    ordered = sorted({word.replace("_", " ") for word in words}, key=len, reverse=True)
    found = [word if re.match(_UNSPACED, word) else rf"(?<![^\W_]){re.escape(word)}(?![^\W_])" for word in ordered]
    return f"(?:{'|'.join(found)})"


_LISTS = {name: text.split() for name, text in _TEXTS.items() if isinstance(text, str)}
_NOUN, _NEW, _OPENER, _OWN = (re.compile(_any_of(_LISTS[name])) for name in ("nouns", "new", "openers", "own"))
_ANNOUNCES = re.compile(rf"\W*{_any_of(_LISTS['openers'] + _LISTS['interjections'])}")
_INTERJECTION = re.compile(rf"[¡\W]*{_any_of(_LISTS['interjections'])}\s*[!.！。]+\s*", re.IGNORECASE)
_TITLE_WORDS = [word for name in ("nouns", "new", "openers", "interjections", "fillers") for word in _LISTS[name]]
_TITLE = re.compile(rf"(?:[\W\d_]|{_any_of(_TITLE_WORDS)})+")
# The beginning of a text up to a colon or the end of its line, with the marks of Markdown around it
_HEAD = re.compile(r"[#>\s]*(?P<bold>[*_]*)(?P<head>[^\n:：{}\x22“]{1,160}?)\s*(?:[:：](?P=bold)|\n|$)\s*")

_FENCE = re.compile(r"(```|~~~)(?:text|txt|plaintext|plain|markdown|md|xml|json)?\n(?P<inside>.*?)\n?\1", re.DOTALL)
_TAG = r"(?:new|created|example)?[_ ]?(?:task|prompt|instruction|example|request|question|output|response)"
_OPENING = re.compile(rf"(?:[<\[](?P<name>{_TAG})[>\]]\s*)+", re.IGNORECASE)
_CLOSING = re.compile(rf"(?:[<\[]/(?P<name>{_TAG})[>\]]\s*)+$", re.IGNORECASE)
_ECHO = re.compile(r"<example>.*?</example>\s*(?=\S)|.*#\s?Created Instruction\s?#:?\s*(?=\S)", re.DOTALL)
_END = re.compile(r"(?:(?:<\|\w+\|>|<end_of_turn>|<eos>)[^\S\n]*(?:\n.*)?|</s>)$", re.DOTALL)
_QUOTES = dict(pair.split() for pair in ('" "', "' '", "“ ”", "„ “", "‘ ’", "« »", "「 」", "『 』", "** **"))

_ANSWER, _ELSEWHERE = _any_of(_LISTS["answers"]), _any_of(_LISTS["answers_elsewhere"])
_NAMED = rf"(?:{_any_of(_LISTS['qualifiers'])}[^\S\n]*)*(?:{_ANSWER}|(?P<elsewhere>{_ELSEWHERE}))"
# A line that begins with "Answer:" or "A:", or a heading of that name
_ANSWER_LINE = re.compile(
    rf"\n[<\[>*_#( -]*(?:{_NAMED}(?:[^\S\n]*\([^)\n]*\))?[*_\s]*(?:[:：\]>]|\s[-–—]\s)|(?P<a>a)[*_]*:)[*_]*"
    rf"|\n(?:#+[ ]*|[*_]{{2}})+{_NAMED.replace('<elsewhere>', '<heading>')}[*_]*[^\S\n]*(?=\n)",
    re.IGNORECASE,
)
_ABOUT = re.compile("|".join(form.replace("{answer}", _ANSWER[:-1] + ")s?") for form in _TEXTS["about_an_answer"]))
_BLANK = re.compile(r"[\W_]*(?:\[[^\]\n]*\]|<[^>\n]*>|\([^)\n]*\))?[\W_]*")
_GOES_ON = re.compile(
    r"\n\W*(?:problem|question|q|now|input|text|sentence|options?|select)\b|[:：?？]\W*$", re.IGNORECASE
)
_OBLIGING = re.compile(rf"\n\n(?i:{_any_of(_LISTS['interjections'])})[!,]\s+[^\Wa-z]")

_CANNOT = r"""i(?:'m|[ ]am)?[ ]?(?:can't|cannot|can[ ]not|won't|will[ ]not|not[ ]able[ ]to|unable[ ]to
    |(?:must|have[ ]to)[ ]decline[ ]to)"""
# With a word of regret any verb of an assistant makes a refusal, without one it must be about what was asked
_ENGLISH = rf"""
    (?:(?:i'm|i[ ]am|we're)[ ](?:very[ ]|so[ ]|really[ ]|truly[ ])?(?:sorry|afraid)
      |sorry|(?:i|my)[ ]apolog\w+(?:[ ]for[ ][^.,]*)?)
    \W+(?:(?:but|that|however),?[ ])*(?:as[ ]an?[ ][^.,]{{1,40}},?[ ])?
    (?:{_CANNOT}|i[ ](?:don't|do[ ]not|must[ ]decline|have[ ]to[ ]decline)|i(?:'m|[ ]am)[ ]not)
    [ ](?:respectfully[ ]|be[ ]|able[ ]|going[ ]|feel[ ]|comfortable[ ]|to[ ]|with[ ])*
    (?:help|assist|comply|fulfill?|creat|generat|provid|produc|writ|answer|support|engag|discuss|shar|complet|do[ ]th
      |continu|offer|giv|respond|process|that|this|your|have[ ](?:access|the[ ]abilit|the[ ]capabilit))
  | (?:(?:i'm|i[ ]am)[ ]sorry\W+|unfortunately\W+)?(?:but[ ])?i(?:'m|[ ]am)[ ]an[ ]ai\b[^.\n]{{0,40}}
    \b(?:don't|do[ ]not|can't|cannot|not[ ]able|unable)
  | (?:i'm|i[ ]am)[ ](?:very[ ]|so[ ])?sorry[^.\n]{{0,80}}\b(?:guidelines|polic(?:y|ies))\b
  | my[ ](?:guidelines|polic(?:y|ies)|programming)[ ](?:do[ ]not|don't)[ ]allow
  | (?:unfortunately\W+|regrettably\W+)?
    {_CANNOT}[ ](?:assist[ ](?:you[ ])?with|comply|fulfill?[ ](?:this|that|your|the|such)
      |engage[ ](?:with|in)[ ](?:this|that|such)|help[ ](?:you[ ])?with[ ](?:this|that|such|creat|writ))
  | (?:unfortunately\W+|regrettably\W+)?
    (?:{_CANNOT}[ ](?:create|generate|provide|produce|write|answer|support|discuss|share|complete|offer|give)
      |i(?:'m|[ ]am)[ ]not[ ]comfortable[ ]\w+ing)\b[^.\n]{{0,60}}
    \b(?:request|task|content|topic|instruction|prompt|example|advice|guidance|assistance)
  | (?:i'm[ ]going|i[ ]will|i'll)[ ](?:to[ ])?have[ ]to[ ]decline
  | i[ ](?:must|have[ ]to)[ ](?:respectfully[ ])?decline[ ](?:this|that|your|the[ ]request)
  | as[ ]an?[ ](?:ai|artificial[ ]intelligence|(?:large[ ])?language)
    (?:[ ](?:language|model|assistant|system|chatbot))*,[^.\n]{{0,30}}
    \bi(?:'m|[ ]am|[ ]do)?[ ]?(?:can't|cannot|can[ ]not|won't|don't|not[ ](?:able|capable|have|possess)|unable)
"""
_REFUSAL = re.compile("|".join([rf"(?x:{_ENGLISH})", *_TEXTS["refusals"]]))
_REFUSAL_WANTED, _HELP = re.compile(_TEXTS["asks_for_a_refusal"]), re.compile(_TEXTS["helps"])


def read_instruction(reply: str) -> str:
    """
    The instruction of a reply, without what generators put around one: thoughts, a preface or title in any of many
    languages, a block of code, tags, quotes, an echo of the example. What belongs to the instruction stays.
    """
    text, before = _without_deliberation(split_thoughts(reply)[1]).strip(), None
    while text != before:  # a preface may uncover a title
        before = text
        for strip in (_without_echo, _without_fence, _without_tags, _without_object, _without_quotes, _without_title):
            text = strip(text).strip()
    return text


def _without_deliberation(text: str) -> str:
    """What stands behind the first line that begins with "New task:"."""
    for line in re.finditer(r"\n[^\n:：{}]+[:：]\W*(?=\w)", text):
        if _is_title(line[0]) and all(words.search(line[0].lower()) for words in (_NEW, _NOUN)):
            return text[line.end() :]
    return text


def _without_echo(text: str) -> str:
    """Without the example in front of the new one, and without the tokens of a chat template behind it."""
    return _END.sub("", _ECHO.sub("", text, count=1) if _ECHO.match(text) else text)


def _without_fence(text: str) -> str:
    if text.count("```") == 1:  # of a block that was opened in a title
        return text.removesuffix("```")
    found = _FENCE.fullmatch(text)
    return found["inside"] if found and found[1] not in found["inside"] else text


def _without_tags(text: str) -> str:
    """Without tags that open or close with the text. A pair of which one stands elsewhere belongs to it."""
    opening, closing = _OPENING.match(text), _CLOSING.search(text)
    if opening and f"/{opening['name']}" not in text[: closing.start() if closing else None]:
        text = text[opening.end() :]
    closing = _CLOSING.search(text)
    if closing and not re.search(rf"[<\[]{closing['name']}\b", text):
        text = text[: closing.start()]
    return text


def _without_object(text: str) -> str:
    """The value of a JSON object with a title as its only key."""
    try:
        [(key, value)] = json.loads(text).items()
    except (ValueError, AttributeError, RecursionError):
        return text
    return value if isinstance(value, str) and _is_title(key.replace("_", " ")) else text


def _without_quotes(text: str) -> str:
    for opening, closing in _QUOTES.items():
        inside = text[len(opening) : -len(closing)]
        if text == f"{opening}{inside}{closing}" and not (opening in inside or closing in inside):
            return inside
    return text


def _without_title(text: str) -> str:
    if found := _INTERJECTION.match(text):
        return text[found.end() :]
    found = _HEAD.match(text)
    return text[found.end() :] if found and (_is_title(found["head"]) or _is_preface(found["head"])) else text


def _is_title(text: str) -> bool:
    """Whether all words of a text are words of titles: "New task 2", "Here is one"."""
    text = re.sub(r"\([^)]*\)", "", text.lower().replace("’", "'"))
    return _TITLE.fullmatch(text) is not None and bool(_NOUN.search(text) or _OPENER.search(text))


def _is_preface(text: str) -> bool:
    """Whether a text announces a new task of the writer, and not one that somebody has."""
    text = text.lower().replace("’", "'")
    announced = _ANNOUNCES.match(text) and _NOUN.search(text) and _NEW.search(text)
    return announced is not None and not _OWN.search(text)


def has_answer(text: str) -> bool:
    """
    Whether an instruction is followed by its answer. The answer that it is about, that it wants to be filled in, or
    that is an example of a series is a part of it.
    """
    text = re.sub(r"\n{2,}", "\n\n", "\n".join(map(str.strip, text.split("\n"))))
    if _OBLIGING.search(text):
        return True
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)  # code has lines like these
    *_, line = [None, *_ANSWER_LINE.finditer(text)]
    if line is None or _BLANK.fullmatch(behind := text[line.end() :]) or _GOES_ON.search(behind):
        return False
    before, word = text[: line.start()].lower(), line["elsewhere"] or line["heading"]
    if line["a"] and re.search(
        r"\n\W*[bq]\W*:", text, re.IGNORECASE
    ):  # one of the choices, or in a text with questions
        return False
    others = "input" if "output" in line[0].lower() else "user|human|customer"  # in a series, or in a dialogue
    if re.search(rf"(?:^|\n)\W*(?:{others})\W*[:：]", before):
        return False
    return word.lower() not in before if word else not _ABOUT.search(before)


def is_refusal(text: str, instruction: str = "") -> bool:
    """
    Whether a text says that its writer will not or cannot do what was asked, and gives nothing else. What answers an
    `instruction` that asks for a refusal or an apology is none.
    """
    text = " ".join(re.sub(r"[*_\"“”]", "", split_thoughts(text)[1]).lower().replace("’", "'").split())
    wanted = _REFUSAL_WANTED.search(instruction.lower().replace("’", "'"))
    return _REFUSAL.match(text) is not None and not (wanted or _HELP.search(text))

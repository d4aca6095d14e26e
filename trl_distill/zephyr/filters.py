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
Filters for dialogues and prompts: missing capitals, answers that deny having emotions, evaluation questions. The
first two are our own: those that [Zephyr](https://huggingface.co/papers/2310.16944) used are not published.
"""

import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml


# Spans that stay as they are: a full stop in them ends no sentence, and a small letter is meant to be one.
_PROTECTED = re.compile(
    r"""
    ^[ \t>]*(?P<fence>```+|~~~+)[\s\S]*?(?:^[ \t>]*(?P=fence)|\Z)           # fenced code, or all if it is not closed
    | ^(?:[ ]{4}|[ ]{0,3}\t).*$                                             # indented code
    | (?<!`)(?P<ticks>`+)(?!`)(?:(?!\n\s*\n)[\s\S])+?(?<!`)(?P=ticks)(?!`)  # inline code, within a paragraph
    | \$\$[\s\S]{1,2000}?\$\$ | \\\[[\s\S]{1,2000}?\\\] | \\\([\s\S]{1,2000}?\\\)  # formulas
    | (?<![\w$])\$[^\s$](?:[^$\n]*[^\s$])?\$(?![\d$])
    | <(?P<tag>pre|code|script|style)\b(?:(?!<(?P=tag)\b)[\s\S])*?</(?P=tag)>
    | <!--[\s\S]*?--> | </?[a-zA-Z][^<>\n]*>
    | \b(?:[a-zA-Z][\w+.-]*://|www\.)\S*[^\s.,!?;:)\]"'*]                   # URLs, without the sentence's punctuation
    | ^.*(?:[;{}(][ \t]*$ | [=-]>|==|<-|:= | \w\(\) | \b(?:print|printf|console\.log)\( ).*$  # lines of code
    | ^[ \t]*(?:                                                            # without a fence
        (?:(?:const|let|var|int|float|double|char|auto|final)[ ])?[\w.\[\]]+[ ]*[-+*/]?=[ ]*\S.*
      | (?:import|from)[ ][\w.]+(?:[ ]import\b.*|[ ]as[ ]\w+)? | for[ ]\w+[ ]in[ ].*: | return\b.*[(\[=;].*
      | (?:def|function)[ ]\w+\(.* | \#include.* | <\?php.* | //.* | @\w+.*
      )$
    """,
    re.MULTILINE | re.VERBOSE,
)
_SENTENCE_END = re.compile(r"[.!?](\s+)(?=[^\W\d_])")
_WORDS = yaml.safe_load(Path(__file__).with_name("filters.yaml").read_text(encoding="utf-8"))
_ABBREVIATIONS = frozenset(_WORDS["abbreviations"].split())
_PRONOUN = re.compile(
    rf"""
    (?<![\w'’.\-/\\$@#&=+*^_<>|~])(?:
        (?P<alone>i)(?=['’](?:m|ve|ll|d)\b(?!['’]))
      | (?P<subject>i)(?=[ ](?:{_WORDS["after_i"].replace(" ", "|")})\b(?![-'’.(=_]\w))
      | (?:am|can|could|did|do|may|might|shall|should|will|would)[ ](?P<inverted>i)(?=[ ][a-z]{{2}}|[?!])
    )""",
    re.VERBOSE | re.IGNORECASE,
)
# Where the text has to be English, and the letter i no index
_ENGLISH = re.compile(r"\b(?:the|my|you|your|is|are|what|how|that|this|have|with|it|of|to|don't|i'm)\b", re.IGNORECASE)
_INDEX = re.compile(r"\bj\b|\bi ?[=<>≤≥∈]|\bi-?th\b")


def _is_plain(token: str) -> bool:
    """Whether a token is a word in small Latin letters, with or without punctuation after it."""
    word = token.rstrip(",.;!?\"'”’)]*_…")
    if len(word) == 1:
        return token == "a"
    if re.fullmatch(r"[ivx]+[.)]+", token):  # number of a list
        return False
    letters = re.sub(r"(?<=\w)['’-](?=\w)", "", word)
    return (
        letters.isalpha()
        and letters.islower()
        and all(unicodedata.name(letter, "").startswith("LATIN") for letter in letters if not letter.isascii())
    )


def _ends_sentence(token: str) -> bool:
    """Whether the mark at the end of a token, the last one before a space, ends a sentence."""
    if token[-1] == "!":
        return re.search(r"[^\W\d_]{2}[!?.]+$", token) is not None  # no factorial
    if token[-1] == "?":
        return True
    word = re.split(r"[(\[{\"'“‘*_/]", token[:-1])[-1]
    return not (
        not word  # a full stop alone
        or word.endswith((".", "…"))  # an ellipsis
        or re.fullmatch(r"[^\W\d_]\)?", word)  # an initial, or a letter of a list
        or re.fullmatch(r"\d{1,2}\)?|[ivxIVX]+\)?", word)  # a number of a list
        or re.fullmatch(r"\w{1,3}(?:\.\w{1,3})+", word)  # e.g., a.m., Ph.D.
        or not _ABBREVIATIONS.isdisjoint((word, word.lower()))
    )


def _starts_sentence(line: str, min_words: int) -> bool:
    """Whether a line begins a sentence, and is no short answer and no list of words."""
    words = line.split()
    separated = sum(word.endswith((",", ";", "|")) for word in words)
    return len(words) >= min_words and _is_plain(words[0]) and 2 * separated < len(words)


def _capitals(text: str) -> list[int]:
    """Positions of small letters that should be capitals, protected spans not yet looked at."""
    positions = []
    start = len(text) - len(text.lstrip())
    first, _, _ = text[start:].partition("\n")
    if _starts_sentence(first, min_words=2 if first.rstrip().endswith((".", "!", "?")) else 3):
        positions.append(start)
    for match in _SENTENCE_END.finditer(text):
        start = match.end()
        if text[start].islower():
            before = re.search(r"\S+$", text[max(0, match.start() - 40) : match.start() + 1])[0]
            sentence = re.match(r".+?(?:[.!?](?=\s)|$)", text[start:], re.MULTILINE)[0]
            on_a_line = "\n" in match[1]  # where a single word is an answer
            if _ends_sentence(before) and _starts_sentence(sentence, min_words=2 if on_a_line else 1):
                positions.append(start)
    if _ENGLISH.search(text) and not _INDEX.search(text):
        positions += [match.start(match.lastgroup) for match in _PRONOUN.finditer(text)]
    return [position for position in positions if len(text[position].title()) == 1]  # not "ß"


def truecase(text: str) -> str:
    """
    Repair missing capitals: at the start of a text, at the start of its sentences, and of the pronoun "i".

    No capital is taken away, and names are not looked for. Code, formulas, URLs, e-mail addresses, file names,
    abbreviations, initials, the numbers and letters of lists, one-word answers, lists of words, names such as "iPhone"
    and scripts other than Latin stay as they are. A second pass changes nothing.

    Args:
        text (`str`):
            Prose, plain or Markdown.

    Returns:
        `str`: Text of the same length.

    Example:
    ```python
    >>> truecase("Hello. how are you?")
    'Hello. How are you?'
    ```
    """
    positions = _capitals(text)
    if not positions:  # as a rule: the search for code is the slow part
        return text
    spans = [match.span() for match in _PROTECTED.finditer(text)]
    starts = [start for start, _ in spans]
    characters = list(text)
    for position in positions:
        index = bisect_right(starts, position) - 1
        if index < 0 or position >= spans[index][1]:
            characters[position] = text[position].title()
    return "".join(characters)


# An assistant denies having something: a subject, a negated verb, words between, and what it says it does not have.
# The text is in small letters, with straight apostrophes and single spaces.
_SUBJECT = r"""
    (?:
        \bi(?:,?[ ]as[ ]an?[ ][^,.;!?\n]{1,60},)?                                            # I, as a language model,
      | \bi(?:[ ]am|'m)[ ](?:(?:just|only)[ ])?an?[ ][^,.;!?\n]{1,60}?,?[ ](?:and|so|that|who)(?:[ ]i)?  # I'm an AI so
      | \b(?:like|such[ ]as)[ ](?:me|myself),?                                              # AI models like me
    )
"""
_NOT = r"""
    (?:[ ](?:also|actually|currently|honestly|just|personally|really|simply|truly))*
    (?:
        [ ](?:do[ ]not|don't|cannot|can[ ]not|can't)(?:[ ](?:actually|currently|personally|really|truly))?
        [ ](?:have|possess|hold|form|experience|feel|develop)
      | [ ](?:have|possess|hold|feel)[ ](?:no|neither)
      | [ ]lack
      | (?:[ ]am|'m)[ ](?:not[ ](?:capable|able|designed|programmed)|unable|incapable|devoid)[ ](?:of|to)
    )
"""
_BETWEEN = r"""
    (?:[ ](?:
        an?|any|the|such|same|kind|sort|of|or|and|nor|to|for|in|own|real|true|genuine|actual|strong|particular|specific
      | ability|capacity|capability|have|having|feel|feeling|experience|experiencing|form|forming|hold|holding|express
      | expressing|possess|possessing|human|human-like|physical|emotional|conscious|sensory|subjective|personal
      | individual|political|religious|thoughts|feelings|emotions|opinions|beliefs|experiences|preferences
      | consciousness
    ),?)*?
"""
# Said by hardly anyone but an assistant ...
_OWN = r"""
    [ ](?:
        emotions?\b | feelings\b(?![ ](?:for|about|towards?|on)\b) | opinions | beliefs | preferences
      | sentience | consciousness | self-awareness
      | (?:personal|subjective|human|physical|individual)(?:[ ]\w+)?[ ](?:
            anecdotes? | beliefs? | bias(?:es)? | desires? | experiences? | feelings? | interests? | memor(?:y|ies)
          | opinions? | perspectives? | preferences? | sensations? | stor(?:y|ies) | tastes? | thoughts? | views?
        )
    )\b
"""
# ... and by people too, unless they call themselves a model
_SHARED = r"""
    [ ](?:
        bias(?:es)? | desires? | experiences? | favou?rites? | feelings? | interests | likes | memories | opinion
      | tastes? | thoughts | views
    )\b
"""
_MODEL = re.compile(
    r"\b(?:ai|a\.i|artificial intelligence|language model|llm|chat ?bot|bot|robot|machine|computer program|"
    r"virtual assistant|digital assistant)\b"
)
_DENIALS = re.compile(
    rf"""
    {_SUBJECT}{_NOT}{_BETWEEN}(?:{_OWN}|(?P<shared>{_SHARED}))
  | \bi(?:[ ]am|'m)[ ]not(?:[ ](?:an?|actually|really|truly))*
    [ ](?:sentient|self-aware|conscious(?![ ](?:of|about|that)\b))\b
    """,
    re.VERBOSE,
)


def refusal(messages: list[dict[str, str]]) -> str | None:
    """
    Phrase with which an assistant denies having emotions, opinions, experience or the like.

    "I don't have opinions" and the like count anywhere in an assistant's turn. What people say of themselves too, such
    as "I don't have any experience", counts only after words such as "as an AI". Turns of a user never count.

    Args:
        messages (`list[dict[str, str]]`):
            Dialogue, messages with `role` and `content`.

    Returns:
        `str` or `None`: First such phrase, in small letters with straight apostrophes, or `None`.

    Example:
    ```python
    >>> refusal([{"role": "assistant", "content": "As an AI, I don’t have opinions."}])
    "i don't have opinions"
    ```
    """
    for message in messages:
        if message["role"] != "assistant":
            continue
        text = re.sub(r"[^\S\n]+", " ", message["content"].lower().replace("’", "'"))
        for match in _DENIALS.finditer(text):
            if match["shared"] is None or _MODEL.search(text, max(0, match.start() - 100), match.end()):
                return match[0].strip()
    return None


# Names of roles, also those of ShareGPT
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


class _Malformed(Exception):
    """Why a row is no dialogue; its text is the reason in the counts."""


def _turns(row: dict[str, Any]) -> tuple[list[Any], list[str]]:
    """Turns of a row as they are, and the columns that they come from."""
    if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
        return row["prompt"] + row["completion"], ["prompt", "completion"]
    for column in ("messages", "conversations"):
        if isinstance(row.get(column), list):
            return row[column], [column]
    if isinstance(row.get("data"), list):  # texts alone, as in the first release of UltraChat
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": text} for i, text in enumerate(row["data"])], ["data"]
    raise _Malformed("no dialogue")


def _role_and_content(turn: dict[str, Any]) -> tuple[Any, Any]:
    return turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))


def _messages(turns: list[Any]) -> list[dict[str, str]]:
    """Turns as messages with `role` and `content`, in an order that makes sense."""
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise _Malformed("turn without role and content")
        role, content = _role_and_content(turn)
        if not isinstance(role, str) or role not in _ROLES:
            raise _Malformed("unknown role")
        if turn.get("tool_calls"):
            raise _Malformed("tool call")
        if not isinstance(content, str):
            raise _Malformed("content is no text")
        try:
            content.encode()
        except UnicodeEncodeError as error:  # half a pair of surrogates
            raise _Malformed("text that cannot be written as UTF-8") from error
        messages.append({"role": _ROLES[role], "content": content})
    roles = [message["role"] for message in messages]
    if not roles:
        raise _Malformed("no turns")
    if "assistant" not in roles:
        raise _Malformed("no assistant turn")
    spoken = roles[1:] if roles[0] == "system" else roles
    if any(role != ("user", "assistant")[i % 2] for i, role in enumerate(spoken)):
        raise _Malformed("roles out of order")
    if any(not message["content"].strip() for message in messages if message["role"] != "system"):
        raise _Malformed("empty turn")
    return messages


def _words(text: str) -> tuple[str, ...]:
    """Words of a text without case and punctuation."""
    return tuple(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def _asked(row: Any) -> list[str]:
    """Texts of a prompt, a list of messages or a row that a model is asked to answer."""
    if isinstance(row, str):
        return [row]
    if isinstance(row, list):
        turns = map(_role_and_content, row)
        return [text for role, text in turns if _ROLES.get(role) != "assistant" and isinstance(text, str)]
    for column in ("prompt", "messages", "conversations", "instruction", "question"):
        if isinstance(row.get(column), (str, list)):
            return _asked(row[column])
    raise ValueError(
        f"a prompt to compare needs `prompt`, `messages`, `conversations` or `instruction`, got {list(row)}."
    )


class Decontaminator:
    """Find evaluation questions in prompts, one prompt after the other, as [`decontaminate`] does."""

    def __init__(self, against: Iterable[str], *, min_words: int = 8):
        if isinstance(against, str):
            raise ValueError("`against` must be a list of questions, got one text.")
        if min_words < 1:
            raise ValueError(f"`min_words` must be 1 or more, got {min_words}.")
        self.min_words = min_words
        self.questions: dict[tuple[str, ...], str] = {}  # by all words
        self.openings: dict[tuple[str, ...], list[tuple[str, ...]]] = {}  # by the first words
        for question in against:
            words = _words(question)
            if words and words not in self.questions:
                self.questions[words] = question
                if len(words) >= min_words:
                    self.openings.setdefault(words[:min_words], []).append(words)

    def find(self, row: Any) -> str | None:
        """First question that a prompt equals or contains, or `None`."""
        if not self.questions:
            return None
        for text in _asked(row):
            words = _words(text)
            if words in self.questions:
                return self.questions[words]
            for i in range(len(words) - self.min_words + 1):
                for question in self.openings.get(words[i : i + self.min_words], ()):
                    if words[i : i + len(question)] == question:
                        return self.questions[question]
        return None


def decontaminate(
    rows: Iterable[Any], against: Iterable[str], *, min_words: int = 8
) -> tuple[list[Any], dict[str, Any]]:
    """
    Drop prompts that equal or contain an evaluation question.

    Texts are compared word by word, without case, punctuation and space. A question of fewer than `min_words` words
    must equal a whole turn: within a longer prompt it may stand by chance.

    Args:
        rows (`Iterable[str | list[dict] | dict]`):
            Prompts: texts, lists of messages, or rows with `prompt`, `messages`, `conversations`, `instruction` or
            `question`. The assistant's turns are not looked at.
        against (`Iterable[str]`):
            Questions of the evaluation.
        min_words (`int`, *optional*, defaults to `8`):
            Shortest question that is searched for within a prompt.

    Returns:
        `tuple[list, dict]`: Prompts that are kept, as they were, and the counts `rows`, `kept`, `dropped` and
        `questions` (prompts dropped, by question).
    """
    decontaminator = Decontaminator(against, min_words=min_words)
    found = [(row, decontaminator.find(row)) for row in rows]
    kept = [row for row, question in found if question is None]
    questions = dict(Counter(question for _, question in found if question is not None).most_common())
    return kept, {"rows": len(found), "kept": len(kept), "dropped": len(found) - len(kept), "questions": questions}


class DialogueCleaner:
    """[`clean_dialogues`] for one dialogue after the other, of a file that does not fit into memory."""

    def __init__(self, *, truecase: bool = True, refusals: bool = True, against: Iterable[str] = ()):
        self.truecase, self.refusals, self.decontaminator = truecase, refusals, Decontaminator(against)
        self.rows = self.kept = self.changed = 0
        self.dropped = {kind: Counter() for kind in ("malformed", "refusals", "contaminated")}

    def clean(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """Row with the clean dialogue, or `None` if it is dropped."""
        self.rows += 1
        try:
            turns, columns = _turns(row)
            messages = _messages(turns)
        except _Malformed as reason:
            self.dropped["malformed"][str(reason)] += 1
            return None
        if self.refusals and (phrase := refusal(messages)) is not None:
            self.dropped["refusals"][phrase] += 1
            return None
        if (question := self.decontaminator.find(messages)) is not None:
            self.dropped["contaminated"][question] += 1
            return None
        if self.truecase:
            repaired = [{**message, "content": truecase(message["content"])} for message in messages]
            self.changed += repaired != messages
            messages = repaired
        self.kept += 1
        others = {name: value for name, value in row.items() if name not in (*columns, "prompt")}
        if columns == ["prompt", "completion"]:
            cut = len(row["prompt"])
            return {"prompt": messages[:cut], "completion": messages[cut:], **others}
        return {"messages": messages, **others}

    def counts(self) -> dict[str, Any]:
        """Counts of all rows so far, as [`clean_dialogues`] returns them."""
        dropped = {kind: dict(reasons.most_common()) for kind, reasons in self.dropped.items()}
        return {"rows": self.rows, "kept": self.kept, "changed": self.changed, **dropped}


def clean_dialogues(
    rows: Iterable[dict[str, Any]], *, truecase: bool = True, refusals: bool = True, against: Iterable[str] = ()
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """
    Drop malformed dialogues and those in which the assistant denies having emotions, and repair capitals in the rest.

    A dialogue has an optional system message, then user and assistant in turn, each with text. It may end with the
    user, but the assistant has at least one turn.

    Args:
        rows (`Iterable[dict]`):
            Rows with `messages` (`role`, `content`), `conversations` (also `from`, `value`, with `human` and `gpt`),
            `prompt` and `completion` as lists of messages, or `data`, a list of texts that starts with the user.
        truecase (`bool`, *optional*, defaults to `True`), refusals (`bool`, *optional*, defaults to `True`):
            Whether to repair capitals in all turns, with [`truecase`], and to drop dialogues with a [`refusal`].
        against (`Iterable[str]`, *optional*, defaults to `()`):
            Evaluation questions. Dialogues in which one is asked are dropped, as by [`decontaminate`].

    Returns:
        `tuple[list[dict], dict]`: Rows with `messages`, or with `prompt` and `completion`, and their other columns. A
        text `prompt` beside a dialogue, which repeats the first turn, is left out: TRL would look for its completion.
        And the counts `rows`, `kept`, `changed` (kept rows with a repaired capital), and of the dropped rows
        `malformed` by reason, `refusals` by phrase and `contaminated` by question.
    """
    cleaner = DialogueCleaner(truecase=truecase, refusals=refusals, against=against)
    cleaned = [clean for row in rows if (clean := cleaner.clean(row)) is not None]
    return cleaned, cleaner.counts()

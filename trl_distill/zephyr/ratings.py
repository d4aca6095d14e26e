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

"""Answers on their way to a score: which are worth a judge, and what the judges said of them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..chat import Completion, FailedCall
from ..chat.judge import Judgement
from .assignment import Ask
from .prompts import FeedbackPrompt


_CUT_OFF = ("length", "content_filter")  # reasons to finish that leave an answer without its end
_NOT_JUDGED = {
    "failed": "the call got no answer",
    "empty": "no text",
    "cut_off": "cut off, and `keep_truncated` is off",
    "identical": "another answer to the prompt has this text",
    "alone": "no other answer to the prompt is left",
}


@dataclass
class Answer:
    """
    An answer on its way to a score.

    Args:
        model (`str`):
            Who wrote it.
        text (`str`, *optional*):
            What it says. `None` if the call failed.
        ask ([`Ask`], *optional*):
            As what it was asked. `None` if it was there already.
        finish_reason (`str`, *optional*):
            Why it ended, as far as that is known.
        dropped (`str`, *optional*):
            Why no judge sees it, a key of `_NOT_JUDGED`.
    """

    model: str
    text: str | None
    ask: Ask | None = None
    finish_reason: str | None = None
    dropped: str | None = None


def answers_of(
    prompt: FeedbackPrompt,
    given: Iterable[tuple[Ask, Completion | FailedCall]],
    *,
    keep_truncated: bool = False,
    dedupe_identical: bool = True,
) -> list[Answer]:
    """All answers to a prompt, ready ones first; those that no judge shall see are marked with the reason."""
    answers = [Answer(model, text) for text, model in zip(prompt.answers, prompt.models, strict=True)]
    for ask, answer in given:
        text, reason = (None, None) if isinstance(answer, FailedCall) else (answer.text, answer.finish_reason)
        answers.append(Answer(ask.model, text, ask, reason))

    known = set()
    for answer in answers:
        text = (answer.text or "").strip()
        if answer.text is None:
            answer.dropped = "failed"
        elif not text:
            answer.dropped = "empty"
        elif answer.finish_reason in _CUT_OFF and not keep_truncated:
            answer.dropped = "cut_off"
        elif dedupe_identical and text in known:
            answer.dropped = "identical"
        else:
            known.add(text)
    left = [answer for answer in answers if answer.dropped is None]
    if len(left) == 1:
        left[0].dropped = "alone"
    return answers


def rating_row(prompt: FeedbackPrompt, answers: Sequence[Answer], judgements: dict[str, Judgement]) -> dict[str, Any]:
    """The row of a prompt in `ratings.jsonl`: every answer, with what each judge said of it."""
    row = {"prompt": prompt.messages, "prompt_id": prompt.id}
    if prompt.reference is not None:
        row["reference"] = prompt.reference
    places = iter(range(len(answers)))  # among the answers that were judged
    row["candidates"] = [_candidate(a, judgements, next(places) if a.dropped is None else None) for a in answers]
    return row


def _candidate(answer: Answer, judgements: dict[str, Judgement], place: int | None) -> dict[str, Any]:
    """An answer in `ratings.jsonl`. It has a score only if every judge has scored it: other means do not compare."""
    candidate: dict[str, Any] = {"text": answer.text, "model": answer.model}
    if answer.ask is not None:
        principle = answer.ask.principle
        candidate |= {
            "sample_index": answer.ask.sample_index,
            "principle": None if principle is None else {"name": principle.name, "text": principle.text},
            "finish_reason": answer.finish_reason,
        }
    candidate |= {"ratings": {}, "score": None, "dropped": answer.dropped, "unscored": None, "judges": {}}
    if place is None:
        return candidate | {"unscored": _NOT_JUDGED[answer.dropped]}
    for name, judgement in judgements.items():
        raw: dict[str, list[dict[str, Any]]] = {}
        for reading in judgement.readings:
            if reading.answer == place:
                number = {"order": reading.order, "slot": reading.slot, "score": reading.score}
                raw.setdefault(reading.aspect, []).append(number)
        candidate["judges"][name] = raw
    reasons = [f"{name}: {j.unscored[place]}" for name, j in judgements.items() if j.scores[place] is None]
    if reasons:
        return candidate | {"unscored": "; ".join(reasons)}
    aspects = next(iter(judgements.values())).ratings
    return candidate | {
        "ratings": {aspect: _mean(j.ratings[aspect][place] for j in judgements.values()) for aspect in aspects},
        "score": _mean(j.scores[place] for j in judgements.values()),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def count_answers(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    """What became of the answers: `ready` and `asked` came in, each of them is in one of the other counts."""
    candidates = [candidate for row in rows for candidate in row["candidates"]]
    asked = sum("sample_index" in candidate for candidate in candidates)
    dropped = Counter(candidate["dropped"] for candidate in candidates)
    scored = sum(candidate["score"] is not None for candidate in candidates)
    return {
        "ready": len(candidates) - asked,
        "asked": asked,
        **{reason: dropped[reason] for reason in _NOT_JUDGED},
        "unscored": dropped[None] - scored,
        "scored": scored,
    }

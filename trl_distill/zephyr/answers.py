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

"""Answers on their way to a score: who gives them, which are worth a judge, and what the judges said of them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..chat import Completion, FailedCall, JudgeItem, Judgement
from ..chat.models import CUT_OFF
from .policies import draw
from .presets import Principle, draw_principle


Candidate = dict[str, Any]

_NOT_JUDGED = {  # by the reason in `dropped`
    "failed": "the call got no answer",
    "empty": "no text",
    "cut_off": "cut off, and `keep_truncated` is off",
    "identical": "another answer to the prompt has this text",
    "alone": "no other answer to the prompt is left",
}


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
    Who answers a prompt: `num_answers` asks of the models in a pool, and of the student.

    The student gives the first answer, and all of them if there is no pool; it is told no principle. The draw follows
    from `seed`, the prompt and the names alone: neither the order of prompts nor that of the models changes it, and a
    model that joins the pool takes over single answers and leaves the others as they were.
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
    own = messages[:1] if messages[0]["role"] == "system" else []
    texts = [*(message["content"] for message in own), principle.text]
    return [{"role": "system", "content": "\n\n".join(texts)}, *messages[len(own) :]]


def candidates_of(
    prompt: JudgeItem,
    given: Iterable[tuple[Ask, Completion | FailedCall]],
    *,
    keep_truncated: bool = False,
    dedupe_identical: bool = True,
) -> list[Candidate]:
    """
    All answers to a prompt as they stand in `ratings.jsonl`, ready ones first, and not scored yet. Those that no judge
    shall see have the reason in `dropped`, in words in `unscored`.
    """
    candidates = [_candidate(text, model) for text, model in zip(prompt.answers, prompt.models, strict=True)]
    for ask, answer in given:
        text, reason = (None, None) if isinstance(answer, FailedCall) else (answer.text, answer.finish_reason)
        told = ask.principle and {"name": ask.principle.name, "text": ask.principle.text}
        asked = {"sample_index": ask.sample_index, "principle": told, "finish_reason": reason}
        candidates.append(_candidate(text, ask.model, **asked))
    known = set()
    for candidate in candidates:
        text = (candidate["text"] or "").strip()
        if candidate["text"] is None:
            candidate["dropped"] = "failed"
        elif not text:
            candidate["dropped"] = "empty"
        elif candidate.get("finish_reason") in CUT_OFF and not keep_truncated:
            candidate["dropped"] = "cut_off"
        elif dedupe_identical and text in known:
            candidate["dropped"] = "identical"
        else:
            known.add(text)
    left = judged(candidates)
    if len(left) == 1:
        left[0]["dropped"] = "alone"
    for candidate in candidates:
        candidate["unscored"] = _NOT_JUDGED.get(candidate["dropped"])
    return candidates


def _candidate(text: str | None, model: str, **asked: Any) -> Candidate:
    nothing_yet = {"ratings": {}, "score": None, "dropped": None, "unscored": None, "judges": {}}
    return {"text": text, "model": model, **asked, **nothing_yet}


def judged(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The answers that the judges see."""
    return [candidate for candidate in candidates if candidate["dropped"] is None]


def rating_row(prompt: JudgeItem, candidates: Sequence[Candidate], judgements: dict[str, Judgement]) -> dict[str, Any]:
    """
    The row of a prompt in `ratings.jsonl`: every answer, with what each judge said of it. An answer has a score only
    if every judge has scored it: other means do not compare.
    """
    for place, candidate in enumerate(judged(candidates)):
        for name, judgement in judgements.items():
            raw: dict[str, list[dict[str, Any]]] = {}
            for reading in judgement.readings:
                if reading.answer == place:
                    number = {"order": reading.order, "slot": reading.slot, "score": reading.score}
                    raw.setdefault(reading.aspect, []).append(number)
            candidate["judges"][name] = raw
        every = judgements.values()
        if reasons := [f"{name}: {j.unscored[place]}" for name, j in judgements.items() if j.scores[place] is None]:
            candidate["unscored"] = "; ".join(reasons)
        else:
            aspects = next(iter(every)).ratings
            candidate["ratings"] = {aspect: _mean(j.ratings[aspect][place] for j in every) for aspect in aspects}
            candidate["score"] = _mean(j.scores[place] for j in every)
    reference = {} if prompt.reference is None else {"reference": prompt.reference}
    return {"prompt": prompt.prompt, "prompt_id": prompt.id, **reference, "candidates": list(candidates)}


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

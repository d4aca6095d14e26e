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

"""From scored answers to preference pairs: which answer is chosen, which one is rejected, and what is left out."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal, get_args

from ..chat.models import digest


Row = dict[str, Any]
Candidate = dict[str, Any]
Pair = tuple[Candidate, Candidate]  # the chosen answer, and the rejected one
Score = Literal["mean", "weighted", "overall"]
Rejected = Literal["random_lower", "random_rest", "min", "second", "all_pairs"]

_DECIMALS = 9  # of a score: thirds that are added in another order are still a tie


def as_messages(prompt: str | list[dict[str, str]]) -> list[dict[str, str]]:
    """A prompt as a conversation: a text is one message of the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def content_id(prompt: str | list[dict[str, str]]) -> str:
    """SHA-256 of what a prompt says: the `prompt_id` of a prompt that brings none."""
    return digest(*([message["role"], message["content"]] for message in as_messages(prompt)))


def row_id(row: Row) -> str:
    """The `prompt_id` of a row as text, for a column of numbers and texts is none; without one, [`content_id`]."""
    known = row.get("prompt_id")
    return content_id(row["prompt"]) if known in (None, "") else str(known)


def draw(*parts: str | int) -> float:
    """
    A number in [0, 1) that follows from its arguments alone: to draw one for each thing by its name, and to take the
    smallest, is a random choice that no order of rows, sharding or restart can change.
    """
    return int(digest(*parts)[:16], 16) / 2**64


def preference_pairs(
    rows: Iterable[Row],
    *,
    score: Score = "mean",
    weights: Mapping[str, float] | None = None,
    rejected: Rejected = "random_lower",
    min_margin: float = 0.0,
    max_pairs_per_prompt: int | None = None,
    dedupe_identical: bool = True,
    max_length_ratio: float | None = None,
    seed: int = 42,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """
    Preference pairs of scored answers.

    Of each prompt the best answer is chosen; of equally good ones a random one. What stands against it must have
    another text (white space around it does not count), a lower score (but see `"random_rest"`), and pass `min_margin`
    and `max_length_ratio`; among those `rejected` decides. Random draws follow from `seed`, `prompt_id` and the texts,
    so neither the order of prompts or answers nor sharding changes a pair.

    Args:
        rows (`Iterable[dict]`):
            One prompt each: `prompt` (text or messages), `candidates`, and optionally `prompt_id` (default: a hash of
            the prompt). A candidate has `text` and optionally `model`, `score` (a number or `None`) and `ratings`, a
            number for each aspect, or `None` where the aspect does not apply.
        score (`str`, *optional*, defaults to `"mean"`):
            What ranks the answers: `"mean"` of the ratings, `"weighted"` mean of the ratings, or `"overall"`: the
            candidate's `score`. Aspects that do not apply to an answer are left out of its mean. An answer that lacks
            an aspect that another one has is unscored, for such means do not compare.
        weights (`Mapping[str, float]`, *optional*):
            Weight of each aspect, for `"weighted"`.
        rejected (`str`, *optional*, defaults to `"random_lower"`):
            `"random_lower"`: a random one. `"random_rest"`: a random one, which may be as good as the chosen one.
            `"min"`: the worst one. `"second"`: the best one. `"all_pairs"`: every better answer against every worse
            one, not only the best.
        min_margin (`float`, *optional*, defaults to `0.0`):
            Smallest difference of the scores of a pair.
        max_pairs_per_prompt (`int`, *optional*):
            How many of `"all_pairs"` are kept, at random.
        dedupe_identical (`bool`, *optional*, defaults to `True`):
            Whether of answers with one text only the best scored one takes part. If not, they still never form a pair.
        max_length_ratio (`float`, *optional*):
            Leaves out pairs in which one text has more than this many times the characters of the other.
        seed (`int`, *optional*, defaults to `42`):
            Random seed.

    Returns:
        `tuple[list[dict], dict[str, int]]`: Pairs in TRL's conversational format, with `score_chosen`,
        `score_rejected`, `chosen_model`, `rejected_model` and `prompt_id`; and counts. `prompts`, `candidates`,
        `unscored` and `identical` count what came in, `pairs` what went out. The others count prompts without a pair,
        by the first condition that left nothing: `fewer_than_two` scored answers, all `tied`, `below_min_margin`,
        `beyond_max_length_ratio`.

    Raises:
        `ValueError`: If a policy is unknown, a value is out of its range, or an aspect has no weight.

    Example:

    ```python
    from trl_distill.zephyr import preference_pairs

    answers = [{"text": "Rayleigh scattering.", "score": 9.0}, {"text": "Because.", "score": 2.0}]
    rows = [{"prompt": "Why is the sky blue?", "candidates": answers}]
    pairs, counts = preference_pairs(rows, score="overall", rejected="min")
    ```
    """
    _check_policy(score, weights, rejected, min_margin, max_pairs_per_prompt, max_length_ratio)

    def lengths(*answers: Candidate) -> list[int]:
        return [len(answer["text"]) for answer in answers]

    conditions = {  # of a pair, by the name of the count of prompts that it left without one
        "tied": lambda better, worse: (
            better["text"].strip() != worse["text"].strip()
            and (worse["score"] < better["score"] or rejected == "random_rest")
        ),
        "below_min_margin": lambda better, worse: round(better["score"] - worse["score"], _DECIMALS) >= min_margin,
        "beyond_max_length_ratio": lambda better, worse: (
            max_length_ratio is None or max(lengths(better, worse)) <= max_length_ratio * min(lengths(better, worse))
        ),
    }
    names = ("prompts", "candidates", "unscored", "identical", "fewer_than_two", *conditions, "pairs")
    counts = dict.fromkeys(names, 0)
    pairs = []
    for row in rows:
        prompt_id = row_id(row)
        lot = partial(draw, seed, prompt_id)
        candidates = _scored(row["candidates"], score, weights)
        counts["prompts"] += 1
        counts["candidates"] += len(row["candidates"])
        counts["unscored"] += len(row["candidates"]) - len(candidates)
        if dedupe_identical:
            worst_first = sorted(candidates, key=lambda c: (c["score"], c.get("model") or ""))
            best_of = {c["text"].strip(): c for c in worst_first}
            counts["identical"] += len(candidates) - len(best_of)
            candidates = list(best_of.values())
        if len(candidates) < 2:
            counts["fewer_than_two"] += 1
            continue

        better = candidates
        if rejected != "all_pairs":
            best = max(c["score"] for c in candidates)
            tied = [c for c in candidates if c["score"] == best]
            better = [min(tied, key=lambda c: lot("chosen", c["text"]))]
        possible = [(b, w) for b in better for w in candidates if w is not b]
        for reason, holds in conditions.items():
            possible = [pair for pair in possible if holds(*pair)]
            if not possible:
                counts[reason] += 1
                break
        drawn = sorted(possible, key=lambda pair: lot("rejected", *(candidate["text"] for candidate in pair)))
        pairs += [_pair(row, prompt_id, *pair) for pair in _choose(drawn, rejected, max_pairs_per_prompt)]
    counts["pairs"] = len(pairs)
    return pairs, counts


def _check_policy(
    score: str,
    weights: Mapping[str, float] | None,
    rejected: str,
    min_margin: float,
    max_pairs_per_prompt: int | None,
    max_length_ratio: float | None,
) -> None:
    for name, value, known in (("score", score, get_args(Score)), ("rejected", rejected, get_args(Rejected))):
        if value not in known:
            raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}.")
    if (score == "weighted") != (weights is not None):
        raise ValueError(f"`weights` belongs to `score` weighted alone, got {weights!r} with `score` {score!r}.")
    if weights is not None and not (all(w >= 0 for w in weights.values()) and any(weights.values())):
        raise ValueError(f"`weights` must be 0 or more, and not all 0, got {dict(weights)!r}.")
    if not 0 <= min_margin < float("inf"):
        raise ValueError(f"`min_margin` must be 0 or more, got {min_margin}.")
    for name, value in (("max_pairs_per_prompt", max_pairs_per_prompt), ("max_length_ratio", max_length_ratio)):
        if value is not None and not value >= 1:
            raise ValueError(f"`{name}` must be 1 or more, got {value}.")


def _scored(candidates: list[Candidate], score: Score, weights: Mapping[str, float] | None) -> list[Candidate]:
    """The candidates that have a score, with the one that ranks them."""
    aspects = {aspect for candidate in candidates for aspect in candidate.get("ratings") or {}}
    if score == "weighted" and not aspects <= weights.keys():
        raise ValueError(f"No weight for {', '.join(sorted(aspects - weights.keys()))}: add it to `weights`.")
    scored = []
    for candidate in candidates:
        ratings = candidate.get("ratings") or {}
        if score == "overall":
            value = candidate.get("score")
        else:
            known = [(aspect, rating) for aspect, rating in sorted(ratings.items()) if _is_number(rating)]
            shares = [1.0 if score == "mean" else weights[aspect] for aspect, _ in known]
            if ratings.keys() != aspects or not sum(shares):
                continue
            value = sum(w * rating for w, (_, rating) in zip(shares, known, strict=True)) / sum(shares)
        if _is_number(value):
            scored.append(candidate | {"score": round(float(value), _DECIMALS)})
    return scored


def _is_number(value: float | None) -> bool:
    """Whether there is a number: tables write a missing one as NaN."""
    return value is not None and math.isfinite(value)


def _choose(drawn: list[Pair], rejected: Rejected, most: int | None) -> list[Pair]:
    """The pairs that a policy takes from all that are possible, which stand in the order of their lots."""
    if rejected == "all_pairs":
        return sorted(drawn[:most], key=lambda pair: (-pair[0]["score"], -pair[1]["score"]))
    if rejected in ("min", "second"):
        sign = 1 if rejected == "min" else -1
        drawn = sorted(drawn, key=lambda pair: sign * pair[1]["score"])  # stable: among equals the lot decides
    return drawn[:1]


def _pair(row: Row, prompt_id: str, chosen: Candidate, rejected: Candidate) -> dict[str, Any]:
    return {
        "prompt": as_messages(row["prompt"]),
        "chosen": [{"role": "assistant", "content": chosen["text"]}],
        "rejected": [{"role": "assistant", "content": rejected["text"]}],
        "score_chosen": chosen["score"],
        "score_rejected": rejected["score"],
        "chosen_model": chosen.get("model"),
        "rejected_model": rejected.get("model"),
        "prompt_id": prompt_id,
    }


def sft_rows(pairs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best chosen answer of each prompt, as a conversation for supervised fine-tuning."""
    best: dict[str, dict[str, Any]] = {}  # by what the prompt says: files of others give one id to several
    for pair in pairs:
        content = content_id(pair["prompt"])
        if pair["score_chosen"] > best.setdefault(content, pair)["score_chosen"]:
            best[content] = pair
    return [
        {
            "messages": pair["prompt"] + pair["chosen"],
            "score": pair["score_chosen"],
            "model": pair["chosen_model"],
            "prompt_id": pair["prompt_id"],
        }
        for pair in best.values()
    ]

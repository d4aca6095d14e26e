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

"""New instructions of the kind that the student finds hard, and rarer ones of the kind that it does not."""

import random
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..chat import ChatModel, ChatRequest, Completion, FailedCall, Sampling
from ..chat.models import CUT_OFF, derived_seed
from .pools import Instruction
from .reading import has_answer, is_refusal, read_instruction
from .similarity import UNICODE, SimilarityIndex


KINDS = ("hard", "easy")
DEFAULT_FILTERS = ("cut_off", "too_short", "refusal", "with_answer")
LION_FILTERS = (*DEFAULT_FILTERS, "says_instruction", "starts_with_punctuation", "starts_with_non_ascii")

RELEASED = yaml.safe_load(Path(__file__).with_name("released.yaml").read_text(encoding="utf-8"))
_TEXTS = {
    "ours": yaml.safe_load(Path(__file__).with_name("generation.yaml").read_text(encoding="utf-8")),
    "released": RELEASED["generator"],
}


class GenerationError(ValueError):
    """The generator did not give enough usable instructions within the limit of attempts."""


def generation_request(
    seed: Instruction, kind: str, sampling: Sampling, sample_index: int = 0, prompts: str = "ours"
) -> ChatRequest:
    """
    The question for one new instruction like `seed`: of a `"hard"` one same subject, kind of work and difficulty, of
    an `"easy"` one same subject, rarer. `sample_index` says which draw this is, for a seed that is drawn again, and
    `prompts` whose words these are, `"ours"` or the authors' (`"released"`).
    """
    texts = _TEXTS[prompts]
    messages = [{"role": "system", "content": texts["system"]}] if "system" in texts else []
    text = texts["prompt"].format(relation=texts["relation"][kind], seed=seed.text)
    return ChatRequest([*messages, {"role": "user", "content": text}], sampling, sample_index)


def fault(text: str, finish_reason: str, filters: Sequence[str]) -> str | None:
    """Name of the first of `filters` that a text does not pass, `None` if it passes all."""
    found = {
        "cut_off": finish_reason in CUT_OFF,
        "too_short": len(UNICODE.tokenize(text)) <= 3,
        "refusal": is_refusal(text),
        "with_answer": has_answer(text),
        "says_instruction": re.search(r"\binstructions?\b", text, re.IGNORECASE) is not None,
        "starts_with_punctuation": text[:1] in tuple(string.punctuation),
        "starts_with_non_ascii": not text[:1].isascii(),
    }
    return next((name for name in filters if found[name]), None)


def check_filters(filters: Sequence[str]) -> None:
    """Raise `ValueError` unless all names are known."""
    for name in filters:
        if name not in LION_FILTERS:
            raise ValueError(f"Unknown filter {name!r}. There are {', '.join(LION_FILTERS)}.")


def quotas(n_new: int, hard_share: float) -> dict[str, int]:
    """How many hard and easy instructions are to be written, the hard share rounded to the next whole number."""
    hard = round(n_new * hard_share)
    return {"hard": hard, "easy": n_new - hard}


def generate(
    model: ChatModel,
    seeds: dict[str, Sequence[Instruction]],
    wanted: dict[str, int],
    index: SimilarityIndex,
    *,
    round: int,
    seed: int,
    sampling: Sampling,
    filters: Sequence[str] = DEFAULT_FILTERS,
    max_attempts_factor: float = 5.0,
    prompts: str = "ours",
) -> tuple[list[Instruction], dict[str, int]]:
    """
    Ask for new instructions until there are enough.

    Seeds are drawn uniformly, with replacement. Replies are taken in the order of the requests, whenever they arrive.

    Args:
        model ([`ChatModel`]):
            The generator.
        seeds (`dict[str, list[Instruction]]`), wanted (`dict[str, int]`):
            What new ones are made from, under `"hard"` and `"easy"`, and how many of each are wanted.
        index ([`SimilarityIndex`]):
            What new ones must not be near copies of. Those that are taken are added to it.
        round (`int`), seed (`int`):
            They decide which seeds are drawn.
        sampling ([`Sampling`]):
            How replies are drawn. Its seed must differ between rounds, or an old draw would give the old reply.
        filters (`list[str]`, *optional*, defaults to `["cut_off", "too_short", "refusal", "with_answer"]`):
            What else is dropped, see [`fault`].
        max_attempts_factor (`float`, *optional*, defaults to `5.0`):
            Requests of each kind, as a multiple of what is wanted.
        prompts (`str`, *optional*, defaults to `"ours"`):
            Whose words they are, see [`generation_request`].

    Returns:
        `tuple[list[Instruction], dict[str, int]]`: The new instructions, hard ones and easy ones as they came, and
        counts: `requests`, `accepted`, `failed`, `similar`, and one for each filter that dropped something.

    Raises:
        [`GenerationError`]: If the limit is reached first.
    """
    check_filters(filters)
    draws = {kind: random.Random(derived_seed(seed, round, KINDS.index(kind))) for kind in KINDS}
    asked: Counter = Counter()  # requests by kind, and by kind and seed
    counts: Counter = Counter(requests=0, accepted=0, failed=0, similar=0)
    taken: list[Instruction] = []
    missing = dict(wanted)
    while any(missing.values()):
        wave = []
        for kind in KINDS:
            left = int(max_attempts_factor * wanted[kind]) - asked[kind]
            if missing[kind] and left <= 0:
                seen = ", ".join(f"{name} {n}" for name, n in counts.items() if n)
                raise GenerationError(
                    f"The generator {model.name} gave {wanted[kind] - missing[kind]} of {wanted[kind]} {kind} "
                    f"instructions in {asked[kind]} attempts ({seen}). Look at its replies in the call store; raise "
                    "`max_attempts_factor` or its temperature, or lower `n_new`."
                )
            for parent in draws[kind].choices(seeds[kind], k=min(missing[kind], left)) if missing[kind] else ():
                request = generation_request(parent, kind, sampling, asked[kind, parent.id], prompts)
                wave.append((kind, parent, request))
                asked[kind] += 1
                asked[kind, parent.id] += 1
        counts["requests"] += len(wave)
        replies = model.complete([request for _, _, request in wave])
        for (kind, parent, _), reply in zip(wave, replies, strict=True):
            verdict = _verdict(reply, index, filters)
            counts[verdict] += 1
            if verdict == "accepted":
                new = Instruction(read_instruction(reply.text), kind, round, parent.id)
                index.add(new.text)
                taken.append(new)
                missing[kind] -= 1
    return taken, dict(counts)


def _verdict(reply: Completion | FailedCall, index: SimilarityIndex, filters: Sequence[str]) -> str:
    if isinstance(reply, FailedCall):
        return "failed"
    text = read_instruction(reply.text)
    if not text:
        return "empty"
    is_similar = text in index or index.near_copy(text) is not None
    return fault(text, reply.finish_reason, filters) or ("similar" if is_similar else "accepted")

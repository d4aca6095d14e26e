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
Rouge-L of new instructions against a large pool: the index of Lion against the plain check of all pairs.

The pool is made from real texts (`--data`: JSON Lines with `instruction` or `prompt`, gzipped or not; otherwise the
prompts that ship with the package) by exchanging words, and so are the candidates: from near copies to new texts. The
plain check is slow, so it sees a part of the candidates, against the whole pool, and both must decide alike.
"""

import json
import random
from pathlib import Path

from rouge_score.rouge_scorer import RougeScorer

from benchmarks.laboratory import read_lines
from benchmarks.smollm2 import PROMPTS
from benchmarks.speed.measuring import finish, in_turns, make_parser, now, ratio, spread, use_one_clock
from trl_distill.lion import SimilarityIndex, UnicodeTokenizer


EXCHANGED = (0.0, 0.1, 0.3, 0.5, 0.9)  # shares of the words of a candidate


def read_texts(path: Path | None) -> list[str]:
    texts = [row.get("instruction") or row.get("prompt") for row in read_lines(path or PROMPTS)]
    return [text if isinstance(text, str) else text[-1]["content"] for text in texts if text]


def make(texts: list[str], pool_size: int, candidates: int, seed: int) -> tuple[list[str], list[str]]:
    """A pool in which half of the words of each text are exchanged, and candidates near to or far from it."""
    draw = random.Random(seed)
    words = " ".join(texts).split()

    def exchange(text: str, share: float) -> str:
        return " ".join(draw.choice(words) if draw.random() < share else word for word in text.split())

    pool = [exchange(draw.choice(texts), 0.5) for _ in range(pool_size)]
    return pool, [exchange(draw.choice(pool), EXCHANGED[i % len(EXCHANGED)]) for i in range(candidates)]


def plain(pool: list[str], candidates: list[str], threshold: float) -> list[bool]:
    """Whether a text is above the threshold with any of the pool or of the accepted ones: all pairs, one by one."""
    scorer, pool, dropped = RougeScorer(["rougeL"], tokenizer=UnicodeTokenizer()), list(pool), []
    for text in candidates:
        dropped.append(max(scorer.score(other, text)["rougeL"].fmeasure for other in pool) > threshold)
        if not dropped[-1]:
            pool.append(text)
    return dropped


def indexed(pool: list[str], candidates: list[str], threshold: float) -> list[bool]:
    index, dropped = SimilarityIndex(pool, threshold), []
    for text in candidates:
        dropped.append(index.near_copy(text) is not None)
        if not dropped[-1]:
            index.add(text)
    return dropped


def main(argv: list[str] | None = None) -> dict:
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--data", type=Path, help="JSON Lines with texts to start from")
    parser.add_argument("--pool", type=int, default=60_000)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--plain-candidates", type=int, default=10, help="of these, so many for the plain check")
    parser.add_argument("--threshold", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    clock = use_one_clock("cpu")
    pool, candidates = make(read_texts(args.data), args.pool, args.candidates, args.seed)
    part = candidates[: args.plain_candidates]
    decisions = {}

    def timed(arm: str, repeat: int) -> float:
        start = now("cpu")
        decisions[arm] = {"plain": plain, "index, same candidates": indexed, "index, all candidates": indexed}[arm](
            pool, candidates if arm.endswith("all candidates") else part, args.threshold
        )
        return now("cpu") - start

    seconds = in_turns(["plain", "index, same candidates", "index, all candidates"], timed, args.repeats)
    assert decisions["plain"] == decisions["index, same candidates"], "the index decides unlike the plain check"
    per_candidate = [s / len(part) for s in seconds["plain"]]
    row = {
        "pool": args.pool,
        "candidates": args.candidates,
        "dropped": sum(decisions["index, all candidates"]),
        "plain_candidates": len(part),
        "plain_dropped": sum(decisions["plain"]),
        "seconds": {arm: spread(values) for arm, values in seconds.items()},
        # the index is built once a run, so the plain check is held against all candidates
        "plain_to_index": ratio([s * args.candidates for s in per_candidate], seconds["index, all candidates"]),
    }
    result = finish("similarity", args, clock, rows=[row])
    print(json.dumps(result["rows"], indent=2))
    return result


if __name__ == "__main__":
    main()

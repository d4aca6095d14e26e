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

r"""
What the filters of dialogues do to texts that people and models wrote: how often, and what comes back of capitals that
were taken away.

    python -m benchmarks.zephyr.filters --data FOLDER --output benchmarks/results/zephyr_filters.json

`FOLDER` holds the public data sets of `FILES`, as JSON Lines with the columns of their publishers. The result holds
counts, and no text.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.laboratory import markdown, provenance, read_lines, save
from trl_distill.zephyr import refusal, truecase


# Columns of what was asked and of what was answered, by file
FILES = {
    "dolly_5900": (["instruction"], ["response"]),
    "alpaca_gpt4_1k": (["instruction", "input"], ["output"]),
    "ultrafeedback_eval": (["prompt"], ["generated_text"]),
    "preference_pairs_300": (["conversations"], ["chosen", "rejected"]),
    "self_instruct_seed_175": (["instruction"], ["instances"]),
    "self_instruct_eval_252": (["instruction"], ["instances"]),
    "math_cot_gpt35": ([], ["generated_answer"]),
    "math_cot_gpt4": ([], ["generated_answer"]),
}
# Sentences as an editor sees them, and not as the filter does: a word behind a full stop and a space, or the first one
INSIDE = re.compile(r"(?<=[a-z]{2}[.!?] )[A-Z](?=[a-z]+ [a-z])")
FIRST = re.compile(r"\A[A-Z](?=[a-z]+ [a-z])")


def texts(value) -> Iterator[str]:
    """The texts in a column: itself, a list, turns, or instances with an output."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from texts(value.get("value", value.get("output")))
    else:
        for one in value or []:
            yield from texts(one)


def without_capitals(text: str) -> tuple[str, list[int], list[int]]:
    """A text whose sentences begin with small letters, and where: at its start, and within it."""
    starts = [match.start() for match in FIRST.finditer(text)]
    within = [match.start() for match in INSIDE.finditer(text)]
    characters = list(text)
    for place in starts + within:
        characters[place] = characters[place].lower()
    return "".join(characters), starts, within


def count(rows: list[dict], asked: list[str], answered: list[str]) -> dict[str, int]:
    """How many texts are changed and in how many places, which answers are dropped, and which capitals come back."""
    answers = [text for row in rows for name in answered for text in texts(row[name]) if text.strip()]
    all_texts = [text for row in rows for name in asked for text in texts(row[name]) if text.strip()] + answers
    places = [sum(a != b for a, b in zip(text, truecase(text), strict=True)) for text in all_texts]
    dropped = [refusal([{"role": "assistant", "content": text}]) is not None for text in answers]
    counts = {"texts": len(all_texts), "changed": sum(map(bool, places)), "places": sum(places)}
    counts |= {"answers": len(answers), "dropped": sum(dropped)}
    counts |= dict.fromkeys(("starts", "starts back", "within", "within back"), 0)
    for text in answers:
        small, starts, within = without_capitals(text)
        repaired = truecase(small)
        counts["starts"] += len(starts)
        counts["starts back"] += sum(repaired[place] == text[place] for place in starts)
        counts["within"] += len(within)
        counts["within back"] += sum(repaired[place] == text[place] for place in within)
    return counts


def table(results: dict) -> str:
    """A row a file, and one over those that are no mathematics."""
    files = results["files"]
    prose = {name: facts for name, facts in files.items() if not name.startswith("math")}
    total = {key: sum(facts[key] for facts in prose.values()) for key in next(iter(files.values()))}
    heads = ["texts", "texts", "changed", "places", "answers", "dropped", "sentences at the start", "come back"]
    rows = [
        [
            name,
            *(f"{facts[key]:,}" for key in ("texts", "changed", "places", "answers", "dropped", "starts")),
            f"{facts['starts back'] / facts['starts']:.1%}".replace("%", " %"),
            f"{facts['within']:,}",
            f"{facts['within back'] / facts['within']:.1%}".replace("%", " %"),
        ]
        for name, facts in [*files.items(), ("all but mathematics", total)]
    ]
    return markdown([*heads, "sentences within", "come back"], rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the results")
    args = parser.parse_args(argv)
    files = {name: count(read_lines(args.data / f"{name}.jsonl.gz"), *columns) for name, columns in FILES.items()}
    results = {"benchmark": "zephyr/filters", "files": files, "provenance": provenance()}
    save(results, args.output)
    print(table(results))


if __name__ == "__main__":
    main()

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
Rationales of four models to GSM8K's questions, with the place where each wrong one departs from the reference.

    python -m benchmarks.rationales.gsm8k --data FOLDER --output build/gsm8k

`FOLDER` holds `gsm8k_model_solutions.jsonl.gz` and `asdiv.jsonl.gz`. Writes `rationales.jsonl` with `prompt`,
`completion`, `label` and `right`, the characters of a wrong completion before its first mistake, and `easy.jsonl`,
ASDiv's questions of one operation with `prompt` and `answer`.
"""

import argparse
import json
import os.path
import re
from pathlib import Path

from benchmarks.laboratory import read_lines


MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
NOTE = re.compile(r"<<(.*?)>>")  # of the calculator: `9 days + 9 days = <<9+9=18>>18 days`
ITEM = re.compile(r"\d*\.?\d+|[-+*/=x]")
WRITTEN = re.compile(r"[\d.,]+(?:\s*[-+*/x]\s*\$?[\d.,]+)+\s*=\s*\$?[\d.,]+")


def plain(solution: str) -> str:
    """A solution without the notes of its calculator, which ends with "The answer is"."""
    steps, answer = NOTE.sub("", solution).rsplit("\nA:", 1)
    return f" {' '.join(steps.split())} The answer is {answer.strip()}."


def equations(solution: str) -> list[list[str]]:
    """Numbers and signs of each note, or where there are none of what looks like an equation; numbers in short."""
    notes = NOTE.findall(solution) or WRITTEN.findall(solution)
    items = [ITEM.findall(note.replace(",", "")) for note in notes]
    return [[f"{float(item):g}" if item[-1].isdigit() else item.replace("x", "*") for item in note] for note in items]


def places(items: list[str], text: str, start: int) -> list[int] | None:
    """Where the items of an equation stand in a text, after `start`; words, but no figures, may stand between them."""
    signs, parts = {"*": "[*x×]", "/": "[/÷]", "-": "[-−]", "+": "[+]", "=": "="}, []
    for item in items:
        digits = ",?".join(map(re.escape, item)).replace(r",?\.", r"\.").replace(r"\.,?", r"\.")
        # 0.5 may be written .5, and 8 as 8.0
        number = rf"(?<![\d.,]){'0?' * item.startswith('0.')}{digits.removeprefix('0' * item.startswith('0.'))}0*"
        parts.append(f"({signs.get(item, number)})")
    match = re.compile(r"[^\d=]{0,25}?".join(parts)).search(text, start)
    return match and [match.start(group) for group in range(1, len(items) + 1)]


def first_mistake(solution: str, reference: str) -> int:
    """
    Characters of `plain(solution)` before the place where the first equation that the reference does not have departs
    from it: from that of its equations with which it shares the longest beginning. Where all equations are the
    reference's, or one cannot be found in the text, the answer.
    """
    text, known, start = plain(solution), equations(reference), 0
    for items in equations(solution):
        found = places(items, text, start)
        if found is None:
            break
        if items not in known:
            return found[
                min(max((len(os.path.commonprefix([items, other])) for other in known), default=0), len(items) - 1)
            ]
        start = found[-1]
    return text.rindex(" is ") + len(" is ")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    rationales = []
    for row in read_lines(args.data / "gsm8k_model_solutions.jsonl.gz"):
        for solution in dict.fromkeys(row[model]["solution"] for model in MODELS):
            label = next(row[model]["is_correct"] for model in MODELS if row[model]["solution"] == solution)
            if "\nA:" in solution:
                text, right = plain(solution), None if label else first_mistake(solution, row["ground_truth"])
                prompt = f"Question: {row['question']}\nAnswer:"
                rationales.append({"prompt": prompt, "completion": text, "label": label, "right": right})
    easy = [
        {
            "prompt": f"Question: {row['body']} {row['question']}\nAnswer:",
            "answer": re.match(r"[\d.]+", row["answer"]).group(),
        }
        for row in read_lines(args.data / "asdiv.jsonl.gz")
        if re.fullmatch(r"[\d.]+[-+*/][\d.]+=[\d.]+", row["formula"])
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    for name, rows in (("rationales", rationales), ("easy", easy)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (args.output / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}: {len(rows)}")


if __name__ == "__main__":
    main()

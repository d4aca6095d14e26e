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
Counts of right and wrong rationales in the data that were released with the NAT paper (Yiwei98/TDG), by three rules.

    python -m benchmarks.rationales.label_counts --data FOLDER --output benchmarks/results/label_math.json

`FOLDER` holds `math_cot_gpt35.jsonl.gz` and `math_cot_gpt4.jsonl.gz`: `question`, `answer` and 8 rationales in
`generated_answer`. Only counts leave this script.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from benchmarks.laboratory import provenance, read_lines, save
from trl_distill.evaluation.answers import extract_answer, reference_answer
from trl_distill.evaluation.equality import math_string
from trl_distill.rationales.labels import Labeller, Rationales, judge_rationales, read_rationales


FILES = {"gpt-3.5-turbo": "math_cot_gpt35.jsonl.gz", "gpt-4": "math_cot_gpt4.jsonl.gz"}
QUESTIONS = 7500  # of the complete release

# Of an earlier count on the complete release. That of "marked, MATH strings" took the text after "The answer is" only.
COMPLETE_RELEASE = {
    "gpt-3.5-turbo": {
        "release": {"right": 21127, "wrong": 38873},
        "marked, MATH strings": {"right": 21134, "wrong": 38082, "no_answer": 784},
    },
    "gpt-4": {
        "release": {"right": 28117, "wrong": 31883},
        "marked, MATH strings": {"right": 30490, "wrong": 28699, "no_answer": 811},
    },
}


def judge_by_strings(rationales: Rationales) -> list[bool | str]:
    """Our extraction with the equality of the release, so that each of the two can be seen alone."""
    reference = reference_answer(rationales.reference)
    answers = [extract_answer(text, "marked") for text in rationales.completions]
    if reference is None:
        return ["no_reference"] * len(answers)
    return ["no_answer" if answer is None else math_string(answer) == math_string(reference) for answer in answers]


ABOUT = {
    "release": "the last \\boxed{...} with braces, equal as strings of the MATH benchmark; anything else is wrong",
    "marked, MATH strings": "what a box, #### or `answer is` marks, equal as strings of the MATH benchmark",
    "marked": "what a box, #### or `answer is` marks, equal as mathematical objects: the default of trl-distill label",
}
RULES = {
    "release": lambda rationales: judge_rationales(rationales, "release"),
    "marked, MATH strings": judge_by_strings,
    "marked": judge_rationales,
}


def count(rationales: list[Rationales], rule: str) -> dict:
    """Counts of one file by one rule, before repeats are dropped, under names that say what they are."""
    labellers = {
        "all": Labeller(),
        "under_1600": Labeller(keep_repeats=True, max_characters=1599),
        "under_1200": Labeller(keep_repeats=True, max_characters=1199),
    }
    for question in tqdm(rationales, desc=rule):
        verdicts = RULES[rule](question)
        for labeller in labellers.values():
            labeller.label(question, verdicts)
    report = labellers["all"].report()
    counts = {name: report["rationales"][name] for name in ("right", "wrong", "no_answer", "no_reference")}
    counts |= {f"questions_{name}": number for name, number in report["questions"].items() if name != "total"}
    counts |= {"unboxed": report["unboxed"]["total"], "right_but_unboxed": report["unboxed"]["right"]}
    counts |= {"wrong_and_unboxed": report["unboxed"]["wrong"], "repeats": report["dropped"]["repeats"]}
    for name in ("under_1600", "under_1200"):
        counts |= {f"{name}_{label}": number for label, number in labellers[name].report()["rows"].items()}
    return counts


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    args = parser.parse_args(argv)

    result = {"benchmark": "rationales/label_counts", "rules": ABOUT, "teachers": {}, "provenance": provenance()}
    for teacher, file in FILES.items():
        rationales = [read_rationales(row, "question", "generated_answer") for row in read_lines(args.data / file)]
        counts = {rule: count(rationales, rule) for rule in RULES}
        scale = QUESTIONS / len(rationales)
        result["teachers"][teacher] = {
            "file": file,
            "questions": len(rationales),
            "rationales": sum(len(question.completions) for question in rationales),
            "counts": counts,
            "scaled_to_7500_questions": {
                rule: {name: round(number * scale) for name, number in of_rule.items()}
                for rule, of_rule in counts.items()
            },
            "complete_release": COMPLETE_RELEASE[teacher],
        }
    save(result, args.output, indent=2)


if __name__ == "__main__":
    main()

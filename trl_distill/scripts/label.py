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
Label sampled rationales: compare their final answers with the right ones, write rows `prompt`, `completion`, `label`.

```bash
trl-distill label \
    --dataset_name samples.jsonl \
    --output_file labelled.jsonl \
    --report_file labels.json
```

Rationales that come in several forms get one, with templates in which a shell writes a line break as `$'\n'`:

```bash
trl-distill label \
    --dataset_name math.jsonl.gz --prompt_column question --completions_column generated_answer \
    --prompt_template $'Problem:\n{prompt}\n' --completion_template $'Solution:\n{completion}' \
    --output_file labelled.jsonl.gz
```
"""

import argparse
import functools
import json
import multiprocessing
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..extras import need
from ..files import read_rows, whole_file, write_json
from ..training import user_errors
from .arguments import add_config, add_rule, check_outputs, split_arguments
from .tables import show


if TYPE_CHECKING:
    from ..rationales.labels import Rationales


NO_VERDICT = {  # reasons in the report, and how they are said
    "truncated": "cut off",
    "no_answer": "without an answer",
    "no_reference": "whose right answer cannot be read",
    "too_large": "too large to compare",
    "timeout": "given up after 5 s",
    "error": "beyond SymPy",
}
TABLE = [  # section and name in the report, label and remark in the table
    ("questions", "total", "questions", ""),
    ("questions", "all_right", "  right only", ""),
    ("questions", "all_wrong", "  wrong only", ""),
    ("questions", "mixed", "  both", ""),
    ("questions", "no_verdict", "  neither", "no verdict on any rationale"),
    ("rationales", "total", "rationales", ""),
    ("rationales", "right", "  right", ""),
    ("rationales", "wrong", "  wrong", ""),
    *(("rationales", name, f"  {text}", "on neither side") for name, text in NO_VERDICT.items()),
    ("unboxed", "total", "without \\boxed", ""),
    ("unboxed", "right", "  right but unboxed", "wrong if only boxes count"),
    ("dropped", "repeats", "repeats, dropped", "within a question"),
    ("dropped", "too_long", "too long, dropped", ""),
    ("rows", "right", "rows right", "label true"),
    ("rows", "wrong", "rows wrong", "label false"),
]


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Compare the final answers of sampled rationales with the right ones, and write a row `prompt`, "
        "`completion`, `label`, `answer` for each rationale that has an answer.",
    )
    add_config(parser)
    add = parser.add_argument_group("data").add_argument
    add("--dataset_name", required=True, metavar="FILE", help="JSON Lines file, also .gz: a question a line.")
    add("--prompt_column", default="prompt", metavar="COLUMN", help="Questions. Default: prompt.")
    add(
        "--completions_column",
        default="completions",
        metavar="COLUMN",
        help="Rationales: a list of texts, or one text. Default: completions.",
    )
    add(
        "--answer_column",
        metavar="COLUMN",
        help="Right answers, alone or as solutions that end in them. Default: answer, and without it completion.",
    )
    add = parser.add_argument_group("answers").add_argument
    add_rule(add)
    add("--num_proc", type=int, default=1, help="Processes that compare answers.")
    add = parser.add_argument_group("rows").add_argument
    add("--prompt_template", help="Text with {prompt}. What stands around it is not put in twice.")
    add("--completion_template", help="Text with {completion}. What stands around it is not put in twice.")
    add("--conversational", action="store_true", help="Write messages instead of texts.")
    add("--keep_repeats", action="store_true", help="Keep exact repeats of a rationale within a question.")
    add("--max_characters", type=int, help="Leave out rationales that are longer, the question included.")
    add("--output_file", required=True, metavar="FILE", help="Rows as JSON Lines, also .gz.")
    add("--report_file", metavar="FILE", help="Write the counts as JSON.")
    return parser


def _read(args: argparse.Namespace) -> "Iterator[Rationales]":
    from ..rationales.labels import read_rationales

    for number, row in enumerate(read_rows(args.dataset_name), start=1):
        try:
            yield read_rationales(row, args.prompt_column, args.completions_column, args.answer_column)
        except ValueError as error:
            raise ValueError(f"row {number} of {args.dataset_name}: {error}") from error


def _judge(rationales: "Rationales", rule: str) -> "tuple[Rationales, list[bool | str]]":
    from ..rationales.labels import judge_rationales

    return rationales, judge_rationales(rationales, rule)


def _judged(args: argparse.Namespace) -> "Iterator[tuple[Rationales, list[bool | str]]]":
    judge = functools.partial(_judge, rule=args.rule)
    if args.num_proc == 1:
        yield from map(judge, _read(args))
    else:
        # Processes and not threads: the time limit for SymPy is a signal, which only a main thread gets
        with multiprocessing.Pool(args.num_proc) as pool:
            yield from pool.imap(judge, _read(args), chunksize=8)


def label(args: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Write the rows, and return the counts."""
    from tqdm.auto import tqdm

    from ..rationales.labels import Labeller

    labeller = Labeller(
        args.prompt_template, args.completion_template, args.conversational, args.keep_repeats, args.max_characters
    )
    with whole_file(args.output_file) as file:
        for rationales, verdicts in tqdm(_judged(args), desc="Comparing answers", unit=" questions"):
            for row in labeller.label(rationales, verdicts):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        report = labeller.report()
        if not report["rationales"]["total"]:
            raise ValueError(f"{args.dataset_name} holds no rows.")
        if not any(report["rows"].values()):
            counts = report["rationales"]
            reasons = [f"{counts[name]:,} {text}" for name, text in NO_VERDICT.items() if counts[name]]
            if report["dropped"]["too_long"]:
                reasons.append(f"{report['dropped']['too_long']:,} longer than `max_characters`")
            raise ValueError(
                f"No row is left of {counts['total']:,} rationales in {args.dataset_name}: {', '.join(reasons)}. Look "
                "at the texts and at `rule`; what was cut off needs more tokens where it is sampled."
            )
    return report


def _show(report: dict[str, dict[str, int]], title: str) -> None:
    from rich.table import Table

    table = Table(title=title)
    table.add_column("", no_wrap=True)
    table.add_column("count", justify="right")
    table.add_column("")
    for section, name, text, remark in TABLE:
        table.add_row(text, f"{report[section][name]:,}", remark)
    show(table)


def run(argv: list[str]) -> None:
    """Parse `argv`, label, write the files and show the counts."""
    with user_errors("trl-distill label"):
        args, _, _ = split_arguments(make_parser("trl-distill label"), argv)
        for name in ("num_proc", "max_characters"):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(args, name)}.")
        need("math_verify", "Comparing answers")
        check_outputs(args.output_file, args.report_file)
        report = label(args)
        if args.report_file is not None:
            settings = {name: value for name, value in vars(args).items() if name != "config"}
            write_json(args.report_file, {**report, "settings": settings})
    _show(report, f"{args.dataset_name}, rule {args.rule}")

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
Clean dialogues: repair capitals, drop answers that deny having emotions, malformed rows and evaluation questions.

```bash
trl-distill clean ultrachat.jsonl.gz --output clean.jsonl --report_file counts.json
trl-distill clean HuggingFaceH4/ultrachat_200k --dataset_split train_sft --output clean.jsonl.gz
```
"""

import argparse
import json
from typing import Any

from ..files import evaluation_questions, load_rows, whole_file, write_json
from ..training import user_errors
from .arguments import check_outputs, split_arguments
from .tables import count_table, show


DROPPED = {  # in the order of the table
    "malformed": "malformed, dropped",
    "refusals": "emotions or opinions denied, dropped",
    "contaminated": "evaluation question, dropped",
}
SHOWN = 5  # reasons of each kind; the report file has them all


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Clean dialogues: repair missing capitals, drop malformed ones, those in which the assistant "
        "denies having emotions, opinions or experience, and those that ask an evaluation's question. Says what was "
        "dropped, and why.",
    )
    parser.add_argument(
        "dataset_name",
        metavar="FILE",
        help="JSON, JSONL or Parquet file, also .gz, folder, or data set id, with `messages`, `conversations`, "
        "`prompt` and `completion` of messages, or `data`.",
    )
    add = parser.add_argument_group("data").add_argument
    add("--dataset_config", help="Configuration of the data set.")
    add("--dataset_split", help="Split. Default: `train`, or the only one.")
    add = parser.add_argument_group("filters").add_argument
    add("--no_truecase", action="store_true", help="Leave capitals as they are.")
    add("--no_refusals", action="store_true", help="Keep dialogues in which the assistant denies having emotions.")
    add(
        "--decontaminate",
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="Drop dialogues with questions of these: truthful_qa, or files of questions. Default: none.",
    )
    add = parser.add_argument_group("output").add_argument
    add("--output", required=True, metavar="FILE", help="Clean dialogues as JSON Lines, also .gz.")
    add("--report_file", metavar="FILE", help="Write the counts as JSON.")
    return parser


def clean(args: argparse.Namespace) -> dict[str, Any]:
    """Write the clean dialogues, and return the counts."""
    from tqdm.auto import tqdm

    from ..zephyr.filters import DialogueCleaner

    questions = evaluation_questions(args.decontaminate)
    cleaner = DialogueCleaner(truecase=not args.no_truecase, refusals=not args.no_refusals, against=questions)
    rows = load_rows(args.dataset_name, args.dataset_config, args.dataset_split)
    with whole_file(args.output) as file:
        for row in tqdm(rows, desc="Cleaning", unit=" rows"):
            dialogue = cleaner.clean(row)
            if dialogue is not None:
                file.write(json.dumps(dialogue, ensure_ascii=False, default=str) + "\n")  # dates of Parquet as text
        counts = cleaner.counts()
        if not counts["kept"]:
            reasons = [f"{count} {reason}" for kind in DROPPED for reason, count in list(counts[kind].items())[:SHOWN]]
            raise ValueError(
                f"No dialogue of {args.dataset_name} is left: {', '.join(reasons) or 'it holds no rows'}. A row needs "
                "`messages`, `conversations`, `prompt` and `completion` of messages, or `data`."
            )
    return counts


def _show(counts: dict[str, Any], title: str) -> None:
    rows = [("rows", counts["rows"])]
    for kind, label in DROPPED.items():
        reasons = list(counts[kind].items())
        if reasons:
            rows.append((label, sum(counts[kind].values())))
        rows += [(f"  {reason}", count) for reason, count in reasons[:SHOWN]]
        if len(reasons) > SHOWN:
            rows.append((f"  {len(reasons) - SHOWN} more", sum(count for _, count in reasons[SHOWN:])))
    rows += [("kept", counts["kept"]), ("  with repaired capitals", counts["changed"])]
    show(count_table(title, rows))


def run(argv: list[str]) -> None:
    """Parse `argv`, write the clean dialogues and show the counts."""
    with user_errors("trl-distill clean"):
        args, _, _ = split_arguments(make_parser("trl-distill clean"), argv)
        check_outputs(args.output, args.report_file)
        counts = clean(args)
        if args.report_file is not None:
            write_json(args.report_file, counts)
    _show(counts, args.output)

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
Make preference pairs of answers that are scored already: UltraFeedback, distilabel, or `ratings.jsonl` of `feedback`.

```bash
trl-distill binarize openbmb/UltraFeedback --output pairs.jsonl
trl-distill binarize feedback/ratings.jsonl --output pairs.jsonl --rejected min --min_margin 1
```
"""

import argparse
from typing import get_args

from ..files import evaluation_questions, load_rows, write_json, write_rows
from ..training import user_errors
from .arguments import check_outputs, split_arguments
from .tables import count_table, show


LABELS = {  # of the counts, in the order of the table
    "rows": "rows",
    "empty_prompts": "rows without a prompt, dropped",
    "empty_answers": "answers without text, dropped",
    "no_answers": "rows without answers, dropped",
    "contaminated": "rows with an evaluation's question, dropped",
    "unreadable_ratings": "ratings that cannot be read",
    "doubtful_overall_scores": "overall scores of 10 that are not believed",
    "ratings_of_another_length": "rows with more or fewer ratings than answers",
    "prompts": "prompts",
    "candidates": "answers",
    "unscored": "  without a score",
    "identical": "  repeats of another one",
    "fewer_than_two": "prompts with fewer than two scored answers",
    "tied": "prompts whose answers are tied",
    "below_min_margin": "prompts without a pair of min_margin",
    "beyond_max_length_ratio": "prompts without a pair within max_length_ratio",
    "pairs": "pairs",
}
POLICY = ("score", "rejected", "min_margin", "max_pairs_per_prompt", "max_length_ratio", "seed")  # flags as they are


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    from ..zephyr.policies import Rejected, Score

    parser = argparse.ArgumentParser(
        prog=prog,
        description="Make preference pairs from scored answers: UltraFeedback, distilabel (generations, ratings), or "
        "ratings.jsonl of `trl-distill feedback`. Says what was dropped, and why.",
    )
    parser.add_argument(
        "dataset_name", metavar="FILE", help="JSON, JSONL, CSV or Parquet file, folder, or data set id."
    )
    add = parser.add_argument_group("data").add_argument
    add("--dataset_config", help="Configuration of the data set.")
    add("--dataset_split", help="Split. Default: `train`, or the only one.")
    add(
        "--decontaminate",
        nargs="+",
        default=["truthful_qa"],
        metavar="SOURCE",
        help="Drop rows with questions of these: truthful_qa (default), or files of questions. `none` checks nothing.",
    )
    add = parser.add_argument_group("pairs").add_argument
    add(
        "--score",
        default="mean",
        choices=get_args(Score),
        help="Mean of the aspects (default), weighted by --weights, or the overall score.",
    )
    add("--weights", nargs="+", metavar="ASPECT=WEIGHT", help="Weights of the aspects, for --score weighted.")
    add(
        "--rejected",
        default="random_lower",
        choices=get_args(Rejected),
        help="What stands against the best answer: a random worse one (default); a random one, as in the code of "
        "Zephyr; the worst; the second; or all pairs of a better and a worse one.",
    )
    add("--min_margin", type=float, default=0.0, help="Smallest difference of the scores of a pair.")
    add("--max_pairs_per_prompt", type=int, help="How many of all_pairs are kept.")
    add("--keep_identical", action="store_true", help="Let repeats of an answer take part in the draw.")
    add("--max_length_ratio", type=float, help="Leave out pairs in which one text is so many times longer.")
    add("--seed", type=int, default=42, help="Random seed.")
    add = parser.add_argument_group("output").add_argument
    add("--output", required=True, metavar="FILE", help="Pairs as JSON Lines, rows for DPO.")
    add("--sft_output", metavar="FILE", help="Chosen answers as JSON Lines, rows for SFT.")
    add("--report_file", metavar="FILE", help="Write the counts as JSON.")
    return parser


def _weights(entries: list[str] | None) -> dict[str, float] | None:
    if entries is None:
        return None
    try:
        return {aspect: float(weight) for aspect, weight in (entry.split("=") for entry in entries)}
    except ValueError:
        raise ValueError(f"`weights` must look like honesty=1 helpfulness=2, got {' '.join(entries)}.") from None


def binarize(args: argparse.Namespace) -> dict[str, int]:
    """Write the pairs, and return the counts."""
    from ..zephyr.filters import decontaminate
    from ..zephyr.policies import preference_pairs, sft_rows
    from ..zephyr.ultrafeedback import scored_rows

    policy = {name: getattr(args, name) for name in POLICY}
    policy |= {"weights": _weights(args.weights), "dedupe_identical": not args.keep_identical}
    questions = evaluation_questions(args.decontaminate)
    rows, read = scored_rows(load_rows(args.dataset_name, args.dataset_config, args.dataset_split))
    if questions:
        rows, of_filter = decontaminate(rows, questions)
        read["contaminated"] = of_filter["dropped"]
    pairs, counts = preference_pairs(rows, **policy)
    counts = read | counts
    if args.report_file is not None:
        write_json(args.report_file, counts)
    if not pairs:
        said = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        raise ValueError(f"No pair came out of {args.dataset_name}: {said or 'it holds no rows'}.")
    write_rows(args.output, pairs)
    if args.sft_output is not None:
        write_rows(args.sft_output, sft_rows(pairs))
    return counts


def run(argv: list[str]) -> None:
    """Parse `argv`, write the pairs and show the counts."""
    with user_errors("trl-distill binarize"):
        args, _, _ = split_arguments(make_parser("trl-distill binarize"), argv)
        check_outputs(args.output, args.sft_output, args.report_file)
        counts = binarize(args)
    # What never happened has no row
    show(count_table(args.output, ((label, counts[name]) for name, label in LABELS.items() if counts.get(name))))

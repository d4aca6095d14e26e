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
Adaptive self-consistency: sample answers to prompts, score them with a ranker, vote.

```bash
trl-distill asc \
    --model_name_or_path out/nce \
    --ranker_name_or_path out/ranker \
    --dataset_name test.jsonl \
    --samples_file samples.jsonl \
    --output_file asc.json
```

A run that was killed goes on when it is started again. With `--base_url` the model answers on an OpenAI-compatible
server; with `--samples_file` alone its samples are taken as they are.
"""

import argparse
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..extras import need
from ..files import write_json, write_rows
from ..training import user_errors
from .arguments import add_rule, check_outputs, split_arguments
from .sample import add_arguments, add_votes, sample
from .tables import show


if TYPE_CHECKING:
    from rich.table import Table


METHODS = {  # in the order of the table
    "single": "single sample, mean",
    "sc": "self-consistency (SC)",
    "ws": "weighted by log-probability (WS)",
    "asc": "adaptive, weighted by the ranker (ASC)",
}


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Sample answers to prompts, score them with a ranker, and vote: self-consistency (SC), weighted "
        "by the model's log-probabilities (WS), and weighted by the ranker (ASC). With right answers in the data "
        "their accuracy.",
    )
    add_arguments(parser)
    add_votes(parser)
    add = parser.add_argument_group("ranker and output").add_argument
    add("--ranker_name_or_path", required=True, help="Ranker: model id, folder, or folder of a PEFT adapter.")
    add("--ranker_revision", help="Branch, tag or commit of the ranker.")
    add("--load_ranker_in_4bit", action="store_true", help="Quantize the ranker. One that was trained so needs it.")
    add("--max_length", type=int, default=1024, help="Tokens of the longest prompt and sample that get a score.")
    add("--ranker_batch_size", type=int, default=16, help="Samples scored together.")
    add_rule(add, default="last_number")
    add("--samples_file", required=True, metavar="FILE", help="Samples as JSONL: written, or read if complete.")
    add("--votes_file", metavar="FILE", help="Write samples, answers, scores and votes of each prompt as JSONL.")
    add("--output_file", metavar="FILE", help="Write accuracies, counts and settings as JSON.")
    return parser


def _sample(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The samples of all prompts: drawn, or read from a file."""
    from ..chat import read_samples

    if args.model_name_or_path is None and args.dataset_name is None:
        return read_samples(args.samples_file)
    if args.model_name_or_path is None or args.dataset_name is None:
        raise ValueError(
            "Set --model_name_or_path and --dataset_name to draw samples into --samples_file, or neither of them to "
            "take those that it has."
        )
    return sample(args, args.samples_file)


def _score(args: argparse.Namespace, rows: list[dict[str, Any]]) -> list[list[float | None]]:
    """Scores of the ranker for each row's samples."""
    from ..models import placement
    from ..rationales.asc import load_ranker, score_rationales

    kwargs = placement(args.dtype, args.device, args.load_ranker_in_4bit, args.trust_remote_code)
    ranker, tokenizer = load_ranker(args.ranker_name_or_path, args.ranker_revision, **kwargs)
    rationales = [{**row, "completion": text} for row in rows for text in row["completions"]]
    scores = iter(
        score_rationales(ranker, tokenizer, rationales, args.ranker_batch_size, args.max_length, progress=True)
    )
    return [[next(scores) for _ in row["completions"]] for row in rows]


def _count(votes: list[dict[str, Any]]) -> dict[str, int]:
    truncated = sum(sum(row.get("truncated") or []) for row in votes)
    return {
        "prompts": len(votes),
        "with_reference": sum(row["reference"] is not None for row in votes),
        "samples": sum(len(row["completions"]) for row in votes),
        "without_answer": sum(row["answers"].count(None) for row in votes) - truncated,
        "truncated": truncated,
        "not_compared": sum(row["right"]["samples"].count(None) for row in votes if "right" in row),
        "without_score": sum(row["scores"].count(None) for row in votes),
        "without_vote": sum(row["votes"]["sc"] is None for row in votes),
    }


def _ranking(votes: list[dict[str, Any]]) -> dict[str, float]:
    """How well the scores tell right samples from wrong ones."""
    import numpy as np

    from ..rationales.asc.scoring import ranking_metrics

    judged = [
        (score - 0.5, right, question)
        for question, row in enumerate(votes)
        if "right" in row
        for score, right in zip(row["scores"], row["right"]["samples"], strict=True)
        if score is not None and right is not None
    ]
    return ranking_metrics(*map(np.array, zip(*judged, strict=True))) if judged else {}


def _vote(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result over all prompts, and the row of each."""
    from tqdm.auto import tqdm

    from ..rationales.asc.comparison import compare_votes, vote_on_row
    from ..rationales.asc.scoring import find_ranker

    find_ranker(args.ranker_name_or_path, args.ranker_revision, args.trust_remote_code)  # before hours of sampling
    rows = _sample(args)
    # A prompt without any log-probability would be a majority vote under the name of WS
    weighted = all(any(logp is not None for logp in row.get("mean_logps") or []) for row in rows)
    scores = _score(args, rows)
    votes = [
        vote_on_row(row, of_row, weighted, args.rule)
        for row, of_row in zip(tqdm(rows, desc="Voting", unit="prompt"), scores, strict=True)
    ]
    result = compare_votes(votes)
    result["ranker"] = _ranking(votes)
    result["counts"] = _count(votes)
    result["settings"] = {name: value for name, value in vars(args).items() if name != "config"}
    packages = ("trl-distill", "trl", "transformers", "peft", "torch")
    result["versions"] = {name: version(name) for name in packages}
    return result, votes


def _percent(entry: dict[str, Any], sign: str = "") -> tuple[str, str]:
    low, high = (f"{100 * bound:{sign}.1f}" for bound in entry["interval"])
    return f"{100 * entry['value']:{sign}.1f} %", f"{low} to {high}"


def _table(result: dict[str, Any]) -> "Table":
    """Accuracies, and below them the differences."""
    from rich.table import Table

    counts = result["counts"]
    samples = counts["samples"] / counts["prompts"]
    table = Table(title=f"{counts['with_reference']} questions, {samples:g} samples each")
    for column, justify in (("method", "left"), ("accuracy", "right"), ("95 % interval", "right")):
        table.add_column(column, justify=justify)
    for name, label in METHODS.items():
        if name in result["accuracy"]:
            table.add_row(label, *_percent(result["accuracy"][name]))
    table.add_section()
    for name, difference in result["differences"].items():
        table.add_row(name.upper(), *_percent(difference, sign="+"))
    return table


def _remarks(result: dict[str, Any]) -> Iterator[str]:
    """What to know when reading the table."""
    counts = result["counts"]
    if not result["accuracy"]:
        yield f"No right answers in the data, so there are votes of {counts['prompts']} prompts but no accuracies."
    elif counts["with_reference"] < counts["prompts"]:
        yield f"{counts['prompts'] - counts['with_reference']} prompts have no right answer and are left out."
    if result["accuracy"] and "ws" not in result["accuracy"]:
        yield "There is no WS: some prompts have no sample with a log-probability."
    if "auc" in result["ranker"]:
        share = 100 * result["ranker"]["auc"]
        yield f"The ranker puts the right sample first in {share:.1f} % of the pairs of a right and a wrong one."
    for name, text in (
        ("without_answer", "have no answer"),
        ("truncated", "were cut off, and do not vote"),
        ("not_compared", "cannot be compared with the right answer, and count as not right"),
        ("without_score", "are too long for a score"),
    ):
        if counts[name]:
            yield f"{counts[name]} of {counts['samples']} samples {text}."


def run(argv: list[str]) -> None:
    """Parse `argv`, sample, score, vote, show a table and write the files."""
    with user_errors("trl-distill asc"):
        args, _, _ = split_arguments(make_parser("trl-distill asc"), argv)
        need("math_verify", "Comparing answers")
        check_outputs(args.samples_file, args.votes_file, args.output_file)
        result, votes = _vote(args)
        if args.votes_file is not None:
            write_rows(args.votes_file, votes)
        if args.output_file is not None:
            write_json(args.output_file, result)
    show(*([_table(result)] if result["accuracy"] else []), *_remarks(result))


if __name__ == "__main__":
    run(sys.argv[1:])

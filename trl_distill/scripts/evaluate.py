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
Evaluate a model on a file of prompts.

```bash
trl-distill evaluate \
    --model_name_or_path out/minillm \
    --teacher_model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
    --dataset_name prompts.jsonl \
    --seeds 10 20 30 \
    --output_file evaluation.json
```
"""

import argparse
import sys
from typing import TYPE_CHECKING

from ..extras import need
from ..files import write_json, write_rows
from ..text import rouge_scorer
from ..training import user_errors
from .arguments import add_model_arguments, add_sampling_arguments, check_outputs, split_arguments
from .loading import load_model, load_prompts
from .tables import show


if TYPE_CHECKING:
    from datasets import Dataset


METRICS = {  # in the order of the table
    "rougeL": ("Rouge-L", "F-measure, stemmed, 0-100"),
    "accuracy": ("accuracy", "share of right answers"),
    "no_answer": ("no answer", "share without a final answer"),
    "reverse_kl": ("reverse KL", "KL(model || teacher), nats a token"),
    "reverse_kl_sequence": ("reverse KL, sequence", "nats a completion"),
    "forward_kl": ("forward KL", "KL(teacher || model), nats a token, on the model's text"),
    "length": ("length", "tokens, the end token included"),
    "truncated": ("truncated", "share cut at --max_new_tokens"),
    "distinct_4": ("distinct-4", "distinct / all 4-grams of a seed's completions"),
    "repetition_4": ("repetition-4", "repeated 4-grams within a completion"),
}

# Fields that [`~trl_distill.evaluation.evaluate_model`] has under the same names
GENERATION = "seeds temperature top_p no_repeat_ngram_size max_new_tokens max_prompt_length batch_size".split()


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Let a model answer prompts with several seeds, and measure the answers: Rouge-L, accuracy, "
        "length, diversity, and with a teacher the divergences and the exposure bias.",
    )
    add = add_model_arguments(
        parser,
        model="Model id, folder, or folder of a PEFT adapter or of NAT.",
        rows="JSON, JSONL, CSV or Parquet file, folder, or data set id.",
        required=True,
    )
    add("--max_rows", type=int, help="Use the first rows only.")
    add("--teacher_model_name_or_path", help="Teacher of the same vocabulary, for divergences and exposure bias.")
    add("--teacher_model_revision", help="Branch, tag or commit of the teacher.")
    add("--load_teacher_in_4bit", action="store_true", help="Quantize the teacher with bitsandbytes.")
    add = add_sampling_arguments(parser, max_new_tokens=256)
    add("--seeds", type=int, nargs="+", default=[10, 20, 30, 40, 50], help="One answer to each prompt per seed.")
    add("--no_repeat_ngram_size", type=int, default=0, help="Published MiniLLM test scores were made with 6.")
    add("--max_prompt_length", type=int, help="Drop longer prompts.")
    add = parser.add_argument_group("metrics and output").add_argument
    add("--check_answers", action="store_true", help="Compare final answers with the column `answer` or `completion`.")
    add("--no_exposure_bias", action="store_true", help="Skip the exposure bias: the teacher generates nothing then.")
    add("--output_file", metavar="FILE", help="Write the result as JSON.")
    add("--completions_file", metavar="FILE", help="Write every completion with its scores as JSONL.")
    return parser


def _load_rows(args: argparse.Namespace) -> "Dataset":
    """The rows to evaluate, with the columns that are needed."""
    from ..evaluation import reference_answer

    rows = load_prompts(args, answer="completion")
    if args.check_answers:
        missing = [i for i, row in enumerate(rows) if reference_answer(row) is None]
        if missing:
            raise ValueError(
                f"--check_answers needs the right answer in the column `answer` or `completion`, but {len(missing)} "
                f"of {len(rows)} rows have none, the first of them row {missing[0]}."
            )
    return rows


def _evaluate(args: argparse.Namespace) -> dict:
    """The result of [`~trl_distill.evaluation.evaluate_model`] for the models and the rows that the user names."""
    from ..evaluation import check_answer, evaluate_model

    if args.check_answers:
        need("math_verify", "--check_answers")
    rows = _load_rows(args)
    if "completion" in rows.column_names:
        rouge_scorer()
    model, tokenizer = load_model(args, args.model_name_or_path, args.model_revision, args.load_in_4bit)
    if tokenizer is None:
        raise ValueError(f"No tokenizer in {args.model_name_or_path}. Save it beside the model.")
    teacher = teacher_tokenizer = None
    if args.teacher_model_name_or_path is not None:
        teacher, teacher_tokenizer = load_model(
            args, args.teacher_model_name_or_path, args.teacher_model_revision, args.load_teacher_in_4bit
        )
    result = evaluate_model(
        model,
        tokenizer,
        rows,
        teacher=teacher,
        teacher_tokenizer=teacher_tokenizer,
        **{name: getattr(args, name) for name in GENERATION},
        answer_checker=check_answer if args.check_answers else None,
        exposure=not args.no_exposure_bias,
        return_completions=args.completions_file is not None,
    )
    # What the user named, not what the loaded object calls itself: an adapter reports its base
    result["settings"]["model"] = args.model_name_or_path
    result["settings"]["teacher"] = args.teacher_model_name_or_path
    result["settings"]["dataset"] = args.dataset_name
    return result


def _show(result: dict) -> None:
    """Print the metrics as a table, and what to know when reading it."""
    from rich.table import Table

    counts, settings = result["counts"], result["settings"]
    table = Table(title=f"{settings['model']}: {counts['prompts']} prompts, seeds {settings['seeds']}")
    for column, justify in (("metric", "left"), ("mean", "right"), ("std over seeds", "right"), ("unit", "left")):
        table.add_column(column, justify=justify)
    for name, (label, unit) in METRICS.items():
        if name in result["metrics"]:
            values = result["metrics"][name]
            std = "-" if values["std"] is None else f"{values['std']:.3f}"
            table.add_row(label, f"{values['mean']:.3f}", std, unit)
    exposure = result.get("exposure_bias")
    if exposure and exposure["value"] is not None:
        error = exposure["value_standard_error"]
        error = "" if error is None else f", standard error {error:.1f}"
        table.add_row("ExAccErr", f"{exposure['value']:.1f}", "-", f"% at {exposure['tokens']} tokens{error}")
    show(table)
    if counts["dropped_prompts"]:
        show(f"{counts['dropped_prompts']} of {counts['rows']} prompts were too long and were dropped.")
    if "rougeL" not in result["metrics"]:
        show("No row has a `completion`, so there is no Rouge-L.")
    elif counts["with_reference"] < counts["prompts"]:
        show(f"Rouge-L is over the {counts['with_reference']} prompts that have a `completion`.")


def run(argv: list[str]) -> None:
    """Parse `argv`, evaluate, show a table and write the files."""
    # Mistakes show before the long work starts. The errors of that work itself are RuntimeErrors and pass through.
    with user_errors("trl-distill evaluate"):
        args, _, _ = split_arguments(make_parser("trl-distill evaluate"), argv)
        check_outputs(args.output_file, args.completions_file)
        result = _evaluate(args)
        completions = result.pop("completions", [])
        if args.completions_file is not None:
            write_rows(args.completions_file, completions)
        if args.output_file is not None:
            write_json(args.output_file, result)
    _show(result)


if __name__ == "__main__":
    run(sys.argv[1:])

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
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import load_split, write_json, write_rows
from .arguments import split_arguments, user_errors


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Let a model answer prompts with several seeds, and measure the answers: Rouge-L, accuracy, length, "
        "diversity, and with a teacher the divergences and the exposure bias.",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with values of the fields below. Flags win over it."
    )
    add = parser.add_argument_group("model and data").add_argument
    add("--model_name_or_path", required=True, help="Model id, folder, or folder of a PEFT adapter or of NAT.")
    add("--model_revision", help="Branch, tag or commit of the model.")
    add("--teacher_model_name_or_path", help="Teacher of the same vocabulary, for divergences and exposure bias.")
    add("--teacher_model_revision", help="Branch, tag or commit of the teacher.")
    add("--dataset_name", required=True, help="JSON, JSONL, CSV or Parquet file, folder, or data set id.")
    add("--dataset_config", help="Configuration of the data set.")
    add("--dataset_split", help="Split. Default: `test`, or the only one.")
    add("--max_rows", type=int, help="Use the first rows only.")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="Of both models.")
    add("--device", help="Default: the GPU if there is one, else the CPU.")
    add("--load_in_4bit", action="store_true", help="Quantize the model with bitsandbytes.")
    add("--load_teacher_in_4bit", action="store_true", help="Quantize the teacher with bitsandbytes.")
    add("--trust_remote_code", action="store_true", help="Run Python code that ships with a checkpoint.")
    add = parser.add_argument_group("generation").add_argument
    add("--seeds", type=int, nargs="+", default=[10, 20, 30, 40, 50], help="One answer to each prompt per seed.")
    add("--temperature", type=float, default=1.0, help="0 is greedy decoding.")
    add("--top_p", type=float, default=1.0, help="Nucleus of sampling.")
    add("--no_repeat_ngram_size", type=int, default=0, help="Published MiniLLM test scores were made with 6.")
    add("--max_new_tokens", type=int, default=256, help="Longest completion.")
    add("--max_prompt_length", type=int, help="Drop longer prompts.")
    add("--batch_size", type=int, default=16, help="Prompts generated together.")
    add = parser.add_argument_group("metrics and output").add_argument
    add("--check_answers", action="store_true", help="Compare final answers with the column `answer` or `completion`.")
    add("--no_exposure_bias", action="store_true", help="Skip the exposure bias: the teacher generates nothing then.")
    add("--output_file", metavar="FILE", help="Write the result as JSON.")
    add("--completions_file", metavar="FILE", help="Write every completion with its scores as JSONL.")
    return parser


def _load_rows(args: argparse.Namespace) -> "Dataset":
    """The rows to evaluate, with the columns that are needed."""
    from ..evaluation import reference_answer

    rows = load_split(args.dataset_name, args.dataset_config, args.dataset_split, default="test")
    if args.max_rows is not None:
        rows = rows.select(range(min(args.max_rows, len(rows))))
    if "prompt" not in rows.column_names:
        raise ValueError(
            f"{args.dataset_name} has no column `prompt`, only {', '.join(rows.column_names)}. Rename the column "
            "that holds the question to `prompt`, and the reference answer, if any, to `completion`."
        )
    if args.check_answers:
        missing = [i for i, row in enumerate(rows) if reference_answer(row) is None]
        if missing:
            raise ValueError(
                f"--check_answers needs the right answer in the column `answer` or `completion`, but {len(missing)} "
                f"of {len(rows)} rows have none, the first of them row {missing[0]}."
            )
    return rows


def _placement(args: argparse.Namespace, in_4bit: bool) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`."""
    import torch

    kwargs = {
        "dtype": args.dtype,
        "device_map": args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        "trust_remote_code": args.trust_remote_code,
    }
    if in_4bit:
        kwargs["quantization_config"] = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}
    return kwargs


def _load_model(
    args: argparse.Namespace, path: str, revision: str | None, in_4bit: bool
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase | None]":
    """A full model, a PEFT adapter, or the two adapters of NAT on their base; and the tokenizer saved beside it."""
    from ..models import load_teacher, load_teacher_tokenizer

    kwargs = _placement(args, in_4bit)
    nat_config = Path(path) / "nat" / "adapter_config.json"
    if nat_config.is_file():
        from trl_distill import load_nat

        base = json.loads(nat_config.read_text(encoding="utf-8"))["base_model_name_or_path"]
        model = load_nat(load_teacher(base, **kwargs), path)
    else:
        model = load_teacher(path, revision, **kwargs)
    tokenizer = load_teacher_tokenizer(path, revision=revision, trust_remote_code=args.trust_remote_code)
    return model, tokenizer or load_teacher_tokenizer(model)  # an adapter without one: its base has it


def _evaluate(args: argparse.Namespace) -> dict:
    """The result of [`~trl_distill.evaluation.evaluate_model`] for the models and the rows that the user names."""
    from ..evaluation import check_answer, evaluate_model

    rows = _load_rows(args)
    model, tokenizer = _load_model(args, args.model_name_or_path, args.model_revision, args.load_in_4bit)
    if tokenizer is None:
        raise ValueError(f"No tokenizer in {args.model_name_or_path}. Save it beside the model.")
    teacher = teacher_tokenizer = None
    if args.teacher_model_name_or_path is not None:
        teacher, teacher_tokenizer = _load_model(
            args, args.teacher_model_name_or_path, args.teacher_model_revision, args.load_teacher_in_4bit
        )
    result = evaluate_model(
        model,
        tokenizer,
        rows,
        teacher=teacher,
        teacher_tokenizer=teacher_tokenizer,
        seeds=args.seeds,
        temperature=args.temperature,
        top_p=args.top_p,
        no_repeat_ngram_size=args.no_repeat_ngram_size,
        max_new_tokens=args.max_new_tokens,
        max_prompt_length=args.max_prompt_length,
        batch_size=args.batch_size,
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
    from rich.console import Console
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
    console = Console()
    console.print(table)
    if counts["dropped_prompts"]:
        console.print(f"{counts['dropped_prompts']} of {counts['rows']} prompts were too long and were dropped.")
    if "rougeL" not in result["metrics"]:
        console.print("No row has a `completion`, so there is no Rouge-L.")
    elif counts["with_reference"] < counts["prompts"]:
        console.print(f"Rouge-L is over the {counts['with_reference']} prompts that have a `completion`.")


def run(argv: list[str]) -> None:
    """Parse `argv`, evaluate, show a table and write the files."""
    # Mistakes show before the long work starts. The errors of that work itself are RuntimeErrors and pass through.
    with user_errors("trl-distill evaluate"):
        args, _, _ = split_arguments(make_parser("trl-distill evaluate"), argv)
        for file in (args.output_file, args.completions_file):
            if file is not None and not Path(file).absolute().parent.is_dir():
                raise ValueError(f"The folder of {file} does not exist. Create it first.")
        result = _evaluate(args)
        completions = result.pop("completions", [])
        if args.completions_file is not None:
            write_rows(args.completions_file, completions)
        if args.output_file is not None:
            write_json(args.output_file, result)
    _show(result)


if __name__ == "__main__":
    run(sys.argv[1:])

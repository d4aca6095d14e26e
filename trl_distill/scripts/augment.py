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
Let a NAT model answer the questions of its training data, and add what is right to the teacher's right answers.

```bash
trl-distill augment \
    --model_name_or_path Qwen/Qwen2.5-0.5B \
    --nat_path out/nat \
    --dataset_name labelled.jsonl \
    --num_samples 8 \
    --output_file augmented.jsonl
```

A run that was killed goes on when it is started again.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trl_distill.files import file_format
from trl_distill.scripts.arguments import split_arguments, user_errors


if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Sample answers of a NAT model to the questions of labelled rows. Those that are right and new are "
        "written to a file together with the rows that were right already, for `trl-distill calibrate`.",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with values of the fields below. Flags win over it."
    )
    add = parser.add_argument_group("model and data").add_argument
    add("--model_name_or_path", required=True, help="Base model of the NAT model: id or folder.")
    add("--model_revision", help="Branch, tag or commit of the base model.")
    add("--nat_path", required=True, help="Folder or Hub repository of the NAT model.")
    add(
        "--dataset_name",
        required=True,
        help="Labelled rows: JSON, JSONL, CSV or Parquet file, folder, or data set id.",
    )
    add("--dataset_config", help="Configuration of the data set.")
    add("--dataset_split", default="train", help="Split.")
    add(
        "--rule",
        default="marked",
        choices=["marked", "last_number", "release"],
        help="What is an answer, as in `trl-distill label`: what a box, `####` or `answer is` marks (default); without a "
        "mark the last number; or only \\boxed{...}.",
    )
    add("--output_file", required=True, metavar="FILE", help="JSON Lines file to write.")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="Of the base model.")
    add("--device", help="Default: the GPU if there is one, else the CPU.")
    add("--load_in_4bit", action="store_true", help="Quantize the base model with bitsandbytes.")
    add("--trust_remote_code", action="store_true", help="Run Python code that ships with a checkpoint.")
    add = parser.add_argument_group("sampling").add_argument
    add("--num_samples", type=int, default=8, help="Answers a question.")
    add("--temperature", type=float, default=1.0, help="Temperature of sampling.")
    add("--top_p", type=float, default=1.0, help="Nucleus of sampling.")
    add("--max_new_tokens", type=int, default=512, help="Longest answer.")
    add("--batch_size", type=int, default=16, help="Answers generated together.")
    add("--seed", type=int, default=42, help="Random seed.")
    return parser


def load_rows(args: argparse.Namespace) -> "Dataset":
    from datasets import load_dataset

    if os.path.isfile(args.dataset_name):
        return load_dataset(file_format(args.dataset_name), data_files=args.dataset_name, split=args.dataset_split)
    return load_dataset(args.dataset_name, args.dataset_config, split=args.dataset_split)


def load_model(args: argparse.Namespace) -> "tuple[PeftModel, PreTrainedTokenizerBase]":
    import torch
    from transformers import AutoTokenizer

    from trl_distill import load_nat
    from trl_distill.models import load_teacher

    kwargs = {"dtype": args.dtype, "device_map": args.device or ("cuda" if torch.cuda.is_available() else "cpu")}
    if args.load_in_4bit:
        kwargs["quantization_config"] = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}
    common = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
    base = load_teacher(args.model_name_or_path, **common, **kwargs)
    return load_nat(base, args.nat_path), AutoTokenizer.from_pretrained(args.model_name_or_path, **common)


def augment(args: argparse.Namespace) -> tuple[list[dict], dict[str, int]]:
    """Right rows of the teacher and of NAT, and the counts to report."""
    from trl_distill.generation import sample_to_file
    from trl_distill.rationales.augment import question_rows, select_right

    questions, right_rows, unanswered = question_rows(load_rows(args))
    if not questions:
        raise ValueError(
            f"No row of {args.dataset_name} says what the right answer is. Add an `answer`, or rows whose `label` is true."
        )
    model, tokenizer = load_model(args)
    samples = sample_to_file(
        f"{args.output_file}.samples.jsonl",
        questions,
        model,
        tokenizer,
        args.num_samples,
        model_name=f"{args.model_name_or_path} with {args.nat_path}",
        temperature=args.temperature,
        top_p=args.top_p,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    kept, counts = select_right(samples, right_rows, args.rule)
    counts = {"questions": len(questions), "without_reference": unanswered, "teacher": len(right_rows), **counts}
    return right_rows + kept, counts


def run(argv: list[str]) -> None:
    prog = "trl-distill augment"
    with user_errors(prog):
        args, _, _ = split_arguments(make_parser(prog), argv)
        output = Path(args.output_file)
        if not output.absolute().parent.is_dir():
            raise ValueError(f"The folder of {output} does not exist. Create it first.")
        rows, counts = augment(args)

    part = output.with_name(f"{output.name}.tmp")
    part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    part.replace(output)  # all or nothing
    sys.stdout.write(
        f"{counts['questions']} questions were asked, {counts['without_reference']} left out for want of a right answer.\n"
        f"{counts['sampled']} answers: {counts['kept']} right and new, {counts['duplicates']} right but there already, "
        f"{counts['wrong']} wrong, {counts['no_answer']} without an answer, {counts['truncated']} cut off.\n"
        f"{len(rows)} rows, {counts['teacher']} of them the teacher's: {output}.\n"
    )


if __name__ == "__main__":
    run(sys.argv[1:])

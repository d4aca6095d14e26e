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
Write `train.jsonl`, `validation.jsonl` and `test.jsonl` with the columns `prompt` and `completion`.

```bash
trl-distill recipe minillm/prepare_dolly.py > prepare_dolly.py
python prepare_dolly.py --tokenizer MiniLLM/teacher-gpt2-1.5B --output_dir data/dolly
python prepare_dolly.py --tokenizer Qwen/Qwen2.5-7B-Instruct --format messages --output_dir data/dolly-chat
```

The source is databricks-dolly-15k, or a local JSON Lines file (gzip too) with the columns `instruction` and
`response`, and perhaps `context` and `category`. Rows are left out, and counted, when they need a passage that is
missing, when they have no answer, and when their prompt is longer than `--max_prompt_length` tokens.
"""

import argparse
import re
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase


# The template of Stanford Alpaca, which the MiniLLM paper and its checkpoints use
INTRO = "Below is an instruction that describes a task"
PLAIN = INTRO + ". Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
WITH_CONTEXT = (
    INTRO + ", paired with an input that provides further context. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n"
)
RESPONSE = "### Response:\n"

NEEDS_CONTEXT = {"closed_qa", "information_extraction", "summarization"}  # categories of databricks-dolly-15k
# For files without `category` and `context`: instructions that point at a text
POINTS_AT_TEXT = re.compile(
    r"\b(?:this|the|that|above|following|given|provided|reference|below)\s+(?:\w+\s+){0,2}"
    r"(?:text|passage|paragraph|paragraphs|article|excerpt|context|story|sentence|snippet|information|description)\b",
    re.IGNORECASE,
)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--source", default="databricks/databricks-dolly-15k", help="Dataset of the Hub or local file."
    )
    parser.add_argument("--tokenizer", required=True, help="Tokenizer that counts the prompt's tokens.")
    parser.add_argument(
        "--format", choices=["alpaca", "messages"], default="alpaca", help="Plain text or chat messages."
    )
    parser.add_argument("--max_prompt_length", type=int, default=256, help="Longest prompt in tokens.")
    parser.add_argument("--validation_size", type=int, default=500, help="Rows to choose the checkpoint by.")
    parser.add_argument("--test_size", type=int, default=500, help="Rows to report scores on.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the split.")
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder for the three files.")
    return parser


def lacks_context(row: dict) -> bool:
    """Whether the instruction speaks of a passage that the row does not have."""
    if row.get("context"):
        return False
    if row.get("category"):
        return row["category"] in NEEDS_CONTEXT
    return POINTS_AT_TEXT.search(row["instruction"]) is not None


def to_prompt_completion(row: dict, chat: bool) -> dict:
    instruction, context, answer = ((row.get(name) or "").strip() for name in ("instruction", "context", "response"))
    if chat:
        question = f"{instruction}\n\n{context}" if context else instruction
        return {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
    template = WITH_CONTEXT if context else PLAIN
    return {"prompt": template.format(instruction=instruction, context=context) + RESPONSE, "completion": answer}


def prompt_length(prompt: str | list, tokenizer: PreTrainedTokenizerBase) -> int:
    if isinstance(prompt, str):
        return len(tokenizer(prompt)["input_ids"])
    return len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))


def prepare(rows: Dataset, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> tuple[DatasetDict, dict]:
    """Splits with `prompt` and `completion`, and how many rows each rule left out."""
    for name in ("instruction", "response"):
        if name not in rows.column_names:
            raise SystemExit(f"{args.source} has no column {name!r}, only {', '.join(rows.column_names)}.")
    counts = {"read": len(rows)}
    rows = rows.filter(lambda row: not lacks_context(row))
    counts["without their passage"] = counts["read"] - len(rows)
    rows = rows.filter(lambda row: bool((row["response"] or "").strip()) and bool((row["instruction"] or "").strip()))
    counts["empty"] = counts["read"] - counts["without their passage"] - len(rows)
    rows = rows.map(
        to_prompt_completion, fn_kwargs={"chat": args.format == "messages"}, remove_columns=rows.column_names
    )
    before = len(rows)
    rows = rows.filter(lambda row: prompt_length(row["prompt"], tokenizer) <= args.max_prompt_length)
    counts[f"longer than {args.max_prompt_length} tokens"] = before - len(rows)

    held_out = args.validation_size + args.test_size
    if len(rows) <= held_out:
        raise SystemExit(
            f"only {len(rows)} rows are left: lower --validation_size and --test_size ({held_out} in all)."
        )
    rows = rows.shuffle(seed=args.seed)
    bounds = {
        "validation": range(args.validation_size),
        "test": range(args.validation_size, held_out),
        "train": range(held_out, len(rows)),
    }
    return DatasetDict({name: rows.select(bound) for name, bound in bounds.items() if len(bound)}), counts


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if Path(args.source).is_file():
        rows = load_dataset("json", data_files=args.source, split="train")
    else:
        rows = load_dataset(args.source, split="train")
    splits, counts = prepare(rows, AutoTokenizer.from_pretrained(args.tokenizer), args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        split.to_json(args.output_dir / f"{name}.jsonl", force_ascii=False)
    print("Rows:", ", ".join(f"{count} {what}" for what, count in counts.items()))
    print("Written:", ", ".join(f"{len(split)} {name}" for name, split in splits.items()), "to", args.output_dir)


if __name__ == "__main__":
    main()

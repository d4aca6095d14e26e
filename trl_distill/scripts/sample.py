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
Sample answers to prompts, from a model or from an OpenAI-compatible server, into a file.

```bash
trl-distill sample \
    --model_name_or_path Qwen/Qwen2.5-7B-Instruct \
    --dataset_name questions.jsonl \
    --num_samples 8 \
    --output_file samples.jsonl
```

A run that was killed goes on when it is started again. `trl-distill label` reads the file.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..files import load_split
from .arguments import split_arguments, user_errors
from .evaluate import _load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fields of a command that samples: the model, the prompts, how to sample, and the server."""
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with values of the fields below. Flags win over it."
    )
    add = parser.add_argument_group("model and data").add_argument
    add(
        "--model_name_or_path",
        help="Model id, folder, folder of a PEFT adapter or of NAT; on a server its name there.",
    )
    add("--model_revision", help="Branch, tag or commit of the model.")
    add("--dataset_name", help="JSON, JSONL, CSV or Parquet file, folder, or data set id, with the column `prompt`.")
    add("--dataset_config", help="Configuration of the data set.")
    add("--dataset_split", help="Split. Default: `test`, or the only one.")
    add("--max_rows", type=int, help="Use the first rows only.")
    add(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="Data type of the weights."
    )
    add("--device", help="Default: the GPU if there is one, else the CPU.")
    add("--load_in_4bit", action="store_true", help="Quantize the model with bitsandbytes.")
    add("--trust_remote_code", action="store_true", help="Run Python code that ships with a checkpoint.")
    add = parser.add_argument_group("sampling").add_argument
    add("--num_samples", type=int, default=16, help="Samples a prompt. 16 in the paper.")
    add("--temperature", type=float, default=1.0, help="Temperature of sampling. 1 in the paper.")
    add("--top_p", type=float, default=1.0, help="Nucleus of sampling.")
    add("--max_new_tokens", type=int, default=512, help="Longest sample.")
    add("--batch_size", type=int, default=16, help="Samples generated together.")
    add("--seed", type=int, default=42, help="Random seed.")
    add = parser.add_argument_group("server").add_argument
    add(
        "--base_url",
        help="Sample from the OpenAI-compatible server at this address, such as http://localhost:8000/v1.",
    )
    add(
        "--api_key_env",
        help="Environment variable with the key. Default: OPENAI_API_KEY, but none for a server at --base_url.",
    )
    add("--concurrency", type=int, default=8, help="Prompts that wait for the server at the same time.")
    add("--no_logprobs", action="store_true", help="Do not ask for log-probabilities: then there is no WS.")


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Sample answers to prompts into a file: a row a prompt with its columns, `completions`, their mean "
        "token log-probabilities, and whether they were cut off.",
    )
    add_arguments(parser)
    add = parser.add_argument_group("output").add_argument
    add("--output_file", required=True, metavar="FILE", help="Samples as JSON Lines.")
    return parser


def sample(args: argparse.Namespace, path: str) -> list[dict[str, Any]]:
    """Draw the samples of all prompts into a file, or read them where it is complete."""
    from ..generation import sample_server_to_file, sample_to_file

    if args.model_name_or_path is None or args.dataset_name is None:
        raise ValueError("Nothing to sample: set --model_name_or_path and --dataset_name.")
    rows = load_split(args.dataset_name, args.dataset_config, args.dataset_split, default="test")
    if "prompt" not in rows.column_names:
        raise ValueError(
            f"{args.dataset_name} has no column `prompt`, only {', '.join(rows.column_names)}. Rename the column that "
            "holds the question to `prompt`, and the reference answer, if any, to `answer`."
        )
    if args.max_rows is not None:
        rows = rows.select(range(min(args.max_rows, len(rows))))
    names = ("temperature", "top_p", "max_new_tokens", "seed")
    settings = {name: getattr(args, name) for name in names}
    if args.base_url is not None:
        return sample_server_to_file(
            path,
            rows,
            args.model_name_or_path,
            args.num_samples,
            base_url=args.base_url,
            api_key_env=args.api_key_env,
            logprobs=not args.no_logprobs,
            concurrency=args.concurrency,
            **settings,
        )
    model, tokenizer = _load_model(args, args.model_name_or_path, args.model_revision, args.load_in_4bit)
    if tokenizer is None:
        raise ValueError(f"No tokenizer in {args.model_name_or_path}. Save it beside the model.")
    return sample_to_file(
        path,
        rows,
        model,
        tokenizer,
        args.num_samples,
        model_name=args.model_name_or_path,
        batch_size=args.batch_size,
        **settings,
    )


def run(argv: list[str]) -> None:
    """Parse `argv` and sample."""
    with user_errors("trl-distill sample"):
        args, _, _ = split_arguments(make_parser("trl-distill sample"), argv)
        if not Path(args.output_file).absolute().parent.is_dir():
            raise ValueError(f"The folder of {args.output_file} does not exist. Create it first.")
        rows = sample(args, args.output_file)
    samples = sum(len(row["completions"]) for row in rows)
    cut_off = sum(sum(row["truncated"]) for row in rows)
    from rich.console import Console

    Console().print(f"{args.output_file}: {samples} samples of {len(rows)} prompts, {cut_off} of them cut off.")


if __name__ == "__main__":
    run(sys.argv[1:])

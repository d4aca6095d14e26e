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

A run that was killed goes on when it is started again: what was drawn is in `samples.jsonl.calls.sqlite`.
`trl-distill label` reads the file.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..training import user_errors
from .arguments import add_model_arguments, add_sampling_arguments, check_outputs, split_arguments
from .loading import load_model, load_prompts, nat_folder
from .tables import show


if TYPE_CHECKING:
    from ..chat import BaseChatModel, Sampling


def add_arguments(parser: argparse.ArgumentParser, num_samples: int = 16, **model: Any) -> None:
    """Fields of a command that samples: the model, the prompts and how to sample."""
    add_model_arguments(
        parser,
        model="Model id, folder, folder of a PEFT adapter or of NAT; on a server its name there.",
        rows="JSON, JSONL, CSV or Parquet file, folder, or data set id, with the column `prompt`.",
        **model,
    )
    add = add_sampling_arguments(parser)
    parser.set_defaults(temperature=None, top_p=None)  # 1 on this machine, a server's own there
    add("--num_samples", type=int, default=num_samples, help="Samples a prompt. Votes are of 16 in the paper.")
    add("--seed", type=int, default=42, help="Random seed.")
    add("--keep_thoughts", action="store_true", help="Keep what the model thinks in front of its answers.")


def add_server(parser: argparse.ArgumentParser) -> None:
    """Fields of a command that may sample from a server."""
    add = parser.add_argument_group("server").add_argument
    add("--base_url", help="Sample from the OpenAI-compatible server here, such as http://localhost:8000/v1.")
    add(
        "--engine",
        choices=("batch",),
        help="Ask its batch endpoint, which answers within a day. Default: single calls.",
    )
    add("--api_key_env", help="Environment variable with the key. Default: no key is sent.")
    add("--concurrency", type=int, default=8, help="Requests that wait for the server at the same time.")


def add_votes(parser: argparse.ArgumentParser) -> None:
    """Fields of a command whose samples may vote."""
    parser.add_argument("--max_rows", type=int, help="Use the first rows only.")
    add_server(parser)
    help = "Do not ask for log-probabilities: then there is no WS."
    parser.add_argument("--no_logprobs", action="store_true", help=help)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Sample answers to prompts into a file: a row a prompt with its columns, `completions`, their "
        "mean token log-probabilities, and whether they were cut off.",
    )
    add_arguments(parser)
    add_votes(parser)
    add = parser.add_argument_group("output").add_argument
    add("--output_file", required=True, metavar="FILE", help="Samples as JSON Lines.")
    return parser


def model_of(args: argparse.Namespace) -> "BaseChatModel":
    """The model on its server or on this machine, where it may be the two adapters of NAT."""
    from ..chat import BatchChatModel, EndpointChatModel, LocalChatModel
    from ..chat.local import weights_digest
    from ..models import adapter_config

    path, revision = args.model_name_or_path, args.model_revision
    if args.base_url is not None:
        kind = EndpointChatModel if args.engine is None else BatchChatModel
        return kind(
            path,
            args.base_url,
            api_key_env=args.api_key_env,
            revision=revision,
            concurrency=args.concurrency,
            keep_thoughts=args.keep_thoughts,
        )
    if args.engine is not None:
        raise ValueError(f"--engine {args.engine} is for a server: set --base_url.")
    names = ("dtype", "load_in_4bit", "device", "batch_size", "trust_remote_code", "keep_thoughts")
    settings: dict[str, Any] = {name: getattr(args, name) for name in names}
    if adapter_config(path, revision, subfolder="nat") is not None:
        settings["load"] = lambda: load_model(args, path, revision, args.load_in_4bit)
        settings["weights"] = weights_digest(nat_folder(path, revision))
    return LocalChatModel(path, revision=revision, **settings)


def sampling_of(args: argparse.Namespace, logprobs: bool = True) -> "Sampling":
    """How the answers are drawn."""
    from ..chat import Sampling

    return Sampling(args.temperature, args.top_p, args.max_new_tokens, args.seed, logprobs)


def sample(args: argparse.Namespace, path: str) -> list[dict[str, Any]]:
    """Draw the samples of all prompts into a file, or what of them is missing."""
    from ..chat import samples_to_file

    if args.model_name_or_path is None or args.dataset_name is None:
        raise ValueError("Nothing to sample: set --model_name_or_path and --dataset_name.")
    rows = load_prompts(args, "answer")
    with model_of(args) as model:
        return samples_to_file(path, model, rows, args.num_samples, sampling_of(args, not args.no_logprobs))


def run(argv: list[str]) -> None:
    """Parse `argv` and sample."""
    with user_errors("trl-distill sample"):
        args, _, _ = split_arguments(make_parser("trl-distill sample"), argv)
        check_outputs(args.output_file)
        rows = sample(args, args.output_file)
    samples = sum(len(row["completions"]) for row in rows)
    cut_off = sum(sum(row["truncated"]) for row in rows)
    show(f"{args.output_file}: {samples} samples of {len(rows)} prompts, {cut_off} of them cut off.")


if __name__ == "__main__":
    run(sys.argv[1:])

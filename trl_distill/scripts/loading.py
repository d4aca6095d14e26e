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

"""What commands load whose fields are those of [`~trl_distill.scripts.arguments.add_model_arguments`]."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import check_there, load_split
from ..row_formats import trl_rows


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    args: Namespace, path: str, revision: str | None, in_4bit: bool
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase | None]":
    """A full model, a PEFT adapter, or the two adapters of NAT on their base; and the tokenizer saved beside it."""
    from ..models import adapter_config, load_teacher, load_teacher_tokenizer, placement

    check_there(path)
    kwargs = placement(args.dtype, args.device, in_4bit, args.trust_remote_code)
    nat_config = adapter_config(path, revision, subfolder="nat")
    if nat_config is None:
        model = load_teacher(path, revision, **kwargs)
    else:
        from trl_distill import load_nat

        base = load_teacher(nat_config["base_model_name_or_path"], **kwargs)
        model = load_nat(base, path, revision=revision)
    tokenizer = load_teacher_tokenizer(path, revision=revision, trust_remote_code=args.trust_remote_code)
    return model, tokenizer or load_teacher_tokenizer(model)  # an adapter without one: its base has it


def nat_folder(path: str, revision: str | None = None) -> str:
    """Folder of a NAT model, downloaded first if it is on the Hub."""
    if Path(path).is_dir():
        return path
    check_there(path)
    from huggingface_hub import snapshot_download

    return snapshot_download(path, revision=revision, allow_patterns=["nat/*", "neg/*"])


def load_prompts(args: Namespace, answer: str) -> "Dataset":
    """The rows that the user names, of which each has a `prompt` and may have an `answer`."""
    rows = load_split(args.dataset_name, args.dataset_config, args.dataset_split, default="test")
    rows = trl_rows(rows, "prompt")
    if "prompt" not in rows.column_names:
        raise ValueError(
            f"{args.dataset_name} has no column `prompt`, only {', '.join(rows.column_names)}. Rename the column that "
            f"holds the question to `prompt`, and the reference answer, if any, to `{answer}`."
        )
    return rows if args.max_rows is None else rows.select(range(min(args.max_rows, len(rows))))

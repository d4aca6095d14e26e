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
Put an adapter into its base, on disk, so that the next stage of training starts from one full model.

```bash
trl-distill merge runs/zephyr-dsft-qlora --output runs/zephyr-dsft-merged
```
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import split_arguments, user_errors


if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Load the base of an adapter unquantized, put the adapter into it and write the full model with its "
        "tokenizer, chat template and generation config. The folder appears when it is complete.",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="Folder or Hub repository of a PEFT adapter.")
    parser.add_argument("--output", required=True, metavar="DIR", help="Folder to write. It must not exist yet.")
    parser.add_argument("--base", metavar="MODEL", help="Folder or id of the base. Default: what the adapter records.")
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=["bfloat16", "float16", "float32"],
        help="Of the arithmetic and of the file. float32 loses nothing and takes twice the memory.",
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="Run Python code that ships with the base.")
    return parser


def read_adapter_config(adapter: str) -> "PeftConfig":
    """Config of an adapter that can be merged; anything else is a `ValueError` that says what it is."""
    from peft import PeftConfig
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        config_file = find_adapter_config_file(adapter)
    except OSError:  # neither a folder nor a name that the Hub could have
        config_file = None
    if config_file is None and (Path(adapter) / "nat" / "adapter_config.json").is_file():
        raise ValueError(
            f"{adapter} is a NAT model, which depends on its input and cannot be merged. `trl-distill nce` makes an "
            "ordinary LoRA of it."
        )
    if config_file is None and (Path(adapter) / "config.json").is_file():
        raise ValueError(f"{adapter} is a full model: there is nothing to merge, start the next stage from it.")
    if config_file is None:
        raise ValueError(f"{adapter} is no adapter: there is no {adapter}/adapter_config.json, here or on the Hub.")
    if json.loads(Path(config_file).read_text(encoding="utf-8")).get("nat_config"):
        raise ValueError(f"{adapter} is the positive adapter of a NAT model, which cannot be merged without its gate.")
    config = PeftConfig.from_pretrained(adapter)
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise ValueError(
            f"{adapter} is an adapter of type {config.peft_type.value}, which adds tokens and has no weights to put into "
            "the base. Train a LoRA to start another stage from the result."
        )
    return config


def load_base(base: str | None, adapter: str, revision: str | None, dtype: str, **kwargs) -> "PreTrainedModel":
    """The base in full precision, on the CPU."""
    from transformers import AutoConfig
    from trl.trainer.utils import create_model_from_path

    if not base:
        raise ValueError(f"{adapter} does not record its base model: name it with --base.")
    if (Path(base) / "adapter_config.json").is_file():
        raise ValueError(f"the base {base} is an adapter itself: merge that one first.")
    try:
        config = AutoConfig.from_pretrained(base, revision=revision, **kwargs)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the base {base} cannot be loaded ({error}). If it has moved, or was recorded relative to another folder, "
            "say where it is with --base."
        ) from error
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"the base {base} is stored quantized, and merging would round the adapter away. Name the unquantized model "
            "with --base."
        )
    return create_model_from_path(base, revision=revision, dtype=dtype, device_map="cpu", **kwargs)


def merge(
    adapter: str, output: str, base: str | None = None, dtype: str = "bfloat16", trust_remote_code: bool = False
) -> None:
    """
    Put an adapter into its base and write the full model.

    Args:
        adapter (`str`):
            Folder or Hub repository of a PEFT adapter.
        output (`str`):
            Folder to write. It appears when it is complete: a killed run leaves `output` with the suffix `.part`, which
            the next one replaces.
        base (`str`, *optional*):
            Folder or id of the base. By default what the adapter records.
        dtype (`str`, *optional*, defaults to `"bfloat16"`):
            Data type of the arithmetic and of the file.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that ships with the base.

    Raises:
        `ValueError`: If the adapter cannot be merged, its base cannot be loaded or is quantized, or `output` exists.
    """
    from peft import PeftModel
    from transformers.trainer_utils import align_special_tokens

    from ..models import load_teacher_tokenizer

    if Path(output).exists():
        raise ValueError(f"{output} exists already. Remove it, or choose another --output.")
    config = read_adapter_config(adapter)
    # The revision that an adapter records is that of its own base
    base, revision = base or config.base_model_name_or_path, None if base else config.revision
    model = load_base(base, adapter, revision, dtype, trust_remote_code=trust_remote_code)

    # Training saves the tokenizer, with the chat template that it used, beside the adapter
    tokenizer = load_teacher_tokenizer(adapter, trust_remote_code=trust_remote_code)
    if tokenizer is None:
        tokenizer = load_teacher_tokenizer(base, revision=revision, trust_remote_code=trust_remote_code)
    if tokenizer is None:
        raise ValueError(f"no tokenizer in {adapter} nor in {base}. Save it beside the adapter.")
    # Tokens that were added for the training have rows in the adapter and none in the base
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = PeftModel.from_pretrained(model, adapter, config=config).merge_and_unload(safe_merge=True)
    align_special_tokens(model, tokenizer)  # generation ends where training ended

    part = Path(f"{output}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def run(argv: list[str]) -> None:
    """Parse `argv`, merge, and say what to do with the result."""
    with user_errors("trl-distill merge"):
        args, _, _ = split_arguments(make_parser("trl-distill merge"), argv)
        merge(**vars(args))
    sys.stdout.write(
        f"Merged {args.adapter} into its base: {args.output}. Start the next stage from there. A new LoRA records this "
        "path as its base, so keep the folder as long as that LoRA, or merge that one, too.\n"
    )


if __name__ == "__main__":
    run(sys.argv[1:])

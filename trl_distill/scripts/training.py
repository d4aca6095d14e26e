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

"""What the training scripts share: the parser, the splits of the data, how the model is loaded, and the run itself."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .arguments import LATEST, parse_strictly, resolve, user_errors


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser


def training_parser(prog: str | None, config_class: type, *more: type) -> "TrlParser":
    """Parser of a trainer's config, of the fields that all training scripts have, and of `more` dataclasses."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

    return TrlParser((ScriptArguments, config_class, ModelConfig, DatasetMixtureConfig, *more), prog=prog)


def load_splits(
    script_args: "ScriptArguments", training_args: "TrainingArguments", dataset_args: "DatasetMixtureConfig"
) -> "dict[str, Dataset]":
    """`train_dataset`, and with evaluation also `eval_dataset`, of the data that the user names."""
    from datasets import load_dataset
    from transformers import set_seed
    from trl import get_dataset

    from ..files import data_errors

    set_seed(training_args.seed)  # TRL draws the rows of `test_split_size` from the global state, each process its own
    mixture = dataset_args.datasets or []
    name = script_args.dataset_name or ", ".join(str(entry.data_files or entry.path) for entry in mixture)
    with data_errors(name):
        if mixture:
            dataset = get_dataset(dataset_args)
        else:
            dataset = load_dataset(name, name=script_args.dataset_config, streaming=script_args.dataset_streaming)
    splits = {"train_dataset": script_args.dataset_train_split}
    if training_args.eval_strategy != "no":
        splits["eval_dataset"] = script_args.dataset_test_split
    for split in splits.values():
        if split not in dataset:
            raise ValueError(f"the data have no split {split!r}, only {', '.join(dataset)}.")
    return {argument: dataset[split] for argument, split in splits.items()}


def first_row(rows: "Dataset", *choices: str) -> dict[str, Any]:
    """The first row of a data set, whose columns must hold one of these choices, names joined by `+`."""
    row = next(iter(rows), None)
    if row is None:
        raise ValueError("the data hold no rows.")
    if not any(row.keys() >= set(choice.split("+")) for choice in choices):
        needed = " or ".join(choice.replace("+", " and ") for choice in choices)
        raise ValueError(f"the data have the columns {', '.join(row)}. Needed are {needed}: are these the right data?")
    return row


def set_model_init_kwargs(training_args: "TrainingArguments", model_args: "ModelConfig", role: str = "model") -> None:
    """Put the fields about the model where the trainer looks for them. The config file's own entries win."""
    if model_args.model_name_or_path is None:
        raise ValueError(f"no {role}: set `model_name_or_path`.")
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (training_args.model_init_kwargs or {})


def model_arguments(
    training_args: "TrainingArguments", model_args: "ModelConfig", role: str = "model"
) -> dict[str, Any]:
    """What each trainer is given beside its data."""
    from trl import get_peft_config, get_quantization_config

    set_model_init_kwargs(training_args, model_args, role)
    return {
        "model": model_args.model_name_or_path,
        "args": training_args,
        "quantization_config": get_quantization_config(model_args),
        "peft_config": get_peft_config(model_args),
    }


def train_and_save(
    trainer: "Trainer", resume_from_checkpoint: str | bool | None, dataset_name: str | None, what: str = "Model"
) -> None:
    """Train, save the result in the output folder, upload it if asked to, and end trackers and process group."""
    from ..models import keep_4bit_trainable

    keep_4bit_trainable(trainer.model)
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    trainer.save_model(trainer.args.output_dir)
    trainer.accelerator.print(f"{what} saved to {trainer.args.output_dir}.")
    if trainer.args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
    trainer.end()


def run_training(
    command: str,
    argv: list[str],
    make_parser: "Callable[[str], TrlParser]",
    build_trainer: "Callable[..., Trainer]",
    what: str = "Model",
    finds_checkpoint: bool = False,
) -> None:
    """
    A training command: parse, build, train, save.

    Args:
        command (`str`):
            Its name.
        argv (`list[str]`):
            Its arguments.
        make_parser (`Callable`), build_trainer (`Callable`):
            From its name to its parser, and from the dataclasses that were parsed to its trainer.
        what (`str`, *optional*, defaults to `"Model"`):
            What is saved.
        finds_checkpoint (`bool`, *optional*, defaults to `False`):
            Whether the trainer knows better than [`resolve`] where the last run has stopped.
    """
    prog = f"trl-distill {command}"
    with user_errors(prog):
        args = parse_strictly(make_parser(prog), argv)
        script_args, training_args, _, dataset_args, *_ = args
        found = finds_checkpoint and str(training_args.resume_from_checkpoint).lower() in LATEST
        if found:
            training_args.resume_from_checkpoint = None
        resolve(script_args, training_args, dataset_args)
        dataset_name = script_args.dataset_name
        trainer = build_trainer(*args)

    train_and_save(trainer, found or training_args.resume_from_checkpoint, dataset_name, what)

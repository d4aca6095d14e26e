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
Strict reading of YAML files and flags, shared by the scripts.

TRL's scripts drop keys they do not know in silence, so that a run with `max_seq_length: 2048` or `warmup_ratio: 0.1`
trains with the defaults instead. Here an unknown key stops the run, and the message names the field to use.
"""

import difflib
import functools
import os
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trl_distill.training import resolve, user_errors  # noqa: F401  the scripts take them from here


if TYPE_CHECKING:
    from trl import TrlParser


# Names from older releases of transformers and TRL, from the MiniLLM paper's code and from other tools, with the
# present-day fields; the first one that the command has is named in the error.
PRESENT_DAY = {
    # transformers
    "adafactor": ("optim",),
    "batch_size": ("per_device_train_batch_size",),
    "epochs": ("num_train_epochs",),
    "eval_batch_size": ("per_device_eval_batch_size",),
    "evaluation_strategy": ("eval_strategy",),
    "group_by_length": ("train_sampling_strategy",),
    "hub_model_revision": ("hub_revision",),
    "include_inputs_for_metrics": ("include_for_metrics",),
    "include_tokens_per_second": ("include_num_input_tokens_seen",),
    "lr": ("learning_rate",),
    "lr_scheduler": ("lr_scheduler_type",),
    "no_cuda": ("use_cpu",),
    "num_epochs": ("num_train_epochs",),
    "per_gpu_eval_batch_size": ("per_device_eval_batch_size",),
    "per_gpu_train_batch_size": ("per_device_train_batch_size",),
    "push_to_hub_model_id": ("hub_model_id",),
    "push_to_hub_organization": ("hub_model_id",),
    "push_to_hub_token": ("hub_token",),
    "sharded_ddp": ("fsdp",),
    "torchdynamo": ("torch_compile_backend",),
    "train_batch_size": ("per_device_train_batch_size",),
    "warmup_ratio": ("warmup_steps",),
    # models and adapters
    "bnb_4bit_use_double_quant": ("use_bnb_nested_quant",),
    "lora_rank": ("lora_r",),
    "lora_target": ("lora_target_modules",),
    "model": ("model_name_or_path",),
    "model_id": ("model_name_or_path",),
    "model_name": ("model_name_or_path",),
    "modules_to_save": ("lora_modules_to_save",),
    "target_modules": ("lora_target_modules",),
    "teacher": ("teacher_model_name_or_path",),
    "teacher_model": ("teacher_model_name_or_path",),
    "teacher_model_path": ("teacher_model_name_or_path",),
    "tokenizer": ("model_name_or_path",),
    "tokenizer_name": ("model_name_or_path",),
    "tokenizer_name_or_path": ("model_name_or_path",),
    "processing_class": ("model_name_or_path",),
    "torch_dtype": ("dtype",),
    "use_4bit": ("load_in_4bit",),
    "use_8bit": ("load_in_8bit",),
    "use_flash_attention_2": ("attn_implementation",),
    "use_flash_attn": ("attn_implementation",),
    "use_lora": ("use_peft",),
    # data
    "chat_template": ("chat_template_path",),
    "data_path": ("dataset_name",),
    "dataset": ("dataset_name",),
    "dataset_config_name": ("dataset_config",),
    "dataset_configs": ("datasets",),
    "dataset_mixer": ("datasets",),
    "dataset_mixture": ("datasets",),
    "dataset_name_or_path": ("dataset_name",),
    "dataset_path": ("dataset_name",),
    "dataset_split": ("dataset_train_split",),
    "dataset_splits": ("datasets",),
    "dataset_text_field": ("lm_dataset_text_field", "dataset_name"),
    "preprocessing_num_workers": ("dataset_num_proc",),
    "text_column": ("dataset_text_field",),
    "train_file": ("dataset_name",),
    # lengths and generation
    "max_length": ("max_completion_length",),
    "max_new_tokens": ("max_completion_length", "max_length"),
    "max_seq_length": ("max_length", "max_completion_length"),
    "max_target_length": ("max_completion_length", "max_length"),
    "model_max_length": ("max_length", "max_completion_length"),
    # objectives
    "cliprange": ("epsilon",),
    "cliprange_reward": ("reward_clip",),
    "clip_reward": ("reward_clip",),
    "kd_ratio": ("lm_kd_ratio",),
    "kd_temperature": ("temperature",),
    "length_norm": ("length_normalization",),
    "num_ppo_epochs": ("num_iterations",),
    "padding_value": ("pad_token",),
    "ppo_epochs": ("num_iterations",),
    "rkl_advantage": ("gamma",),
    "rpo_alpha": ("loss_weights",),
    "single_step_reg": ("single_step_decomposition",),
    "teacher_mixed_alpha": ("teacher_mix_alpha",),
    "use_liger": ("use_liger_kernel",),
    "use_liger_loss": ("use_liger_kernel",),
}

# What the new name alone does not say.
NOTES = {
    "adafactor": "with the value `adafactor`",
    "chat_template": "the name of a .jinja file with the template",
    "dataset_configs": "with a `name` in each entry",
    "dataset_mixer": "a list of entries with `path` and `split`",
    "dataset_mixture": "a list of entries with `path` and `split`",
    "dataset_splits": "with a `split` in each entry, or `dataset_train_split` beside `dataset_name`",
    "group_by_length": "with the value `group_by_length`",
    "processing_class": "the tokenizer is read from the model's folder",
    "rkl_advantage": "0 switches the long-term part off",
    "tokenizer": "the tokenizer is read from the model's folder",
    "tokenizer_name": "the tokenizer is read from the model's folder",
    "tokenizer_name_or_path": "the tokenizer is read from the model's folder",
    "use_flash_attention_2": "with the value `flash_attention_2`",
    "use_flash_attn": "with the value `flash_attention_2`",
    "warmup_ratio": "a value below 1 is a share of all steps",
}

# What has no successor, and why.
GONE = {
    "auto_insert_empty_system_msg": "no system message is put in; a chat template can do that",
    "chat_template": "the template is read from the model's folder",
    "max_prompt_length": "prompts have no limit of their own; `dpo` leaves out rows whose prompt fills `max_length`",
    "overwrite_output_dir": "a new run always writes into the same folder",
    "truncation_side": "the end is cut off what is longer than `max_length`",
}


def raise_error(message: str) -> NoReturn:
    raise ValueError(message)


def check_outputs(*files: str | None) -> None:
    """Refuse, before the work, files that cannot be written: without their folder, or of one name."""
    named = [file for file in files if file is not None]
    for file in named:
        if not Path(file).absolute().parent.is_dir():
            raise ValueError(f"The folder of {file} does not exist. Create it first.")
        if Path(file).is_dir():
            raise ValueError(f"{file} is a folder. Name a file in it.")
        if named.count(file) > 1:
            raise ValueError(f"Two outputs have the name {file}. Give each its own.")


def strict(parser: ArgumentParser) -> ArgumentParser:
    """Make a parser refuse abbreviations, and raise instead of printing the usage of some two hundred fields."""
    parser.allow_abbrev = False
    parser.error = raise_error
    return parser


@functools.cache
def launch_fields() -> dict[str, Action]:
    """Flags of `accelerate launch` by name, and TRL's `accelerate_config`, which the command line resolves."""
    from accelerate.commands.launch import launch_command_parser

    launcher = launch_command_parser()
    launcher.add_argument("--accelerate_config")
    flags = launcher._option_string_actions.items()
    return {flag[2:].replace("-", "_"): action for flag, action in flags if flag.startswith("--") and flag != "--help"}


def read_config(argv: list[str]) -> tuple[dict, list[str]]:
    """
    Read the file of `--config` and set the environment variables of its `env` section.

    Args:
        argv (`list[str]`):
            Arguments of the command.

    Returns:
        `tuple[dict, list[str]]`: The file's other entries, and the arguments without `--config`.
    """
    parser = strict(ArgumentParser(add_help=False))
    parser.add_argument("--config")
    known, rest = parser.parse_known_args(argv)
    if known.config is None:
        return {}, rest

    import yaml

    with open(known.config, encoding="utf-8") as file:
        try:
            config = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(f"{known.config} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{known.config} must hold `field: value` lines, got {type(config).__name__}.")
    env = config.pop("env", {})
    if not isinstance(env, dict):
        raise ValueError(f"`env` in {known.config} must hold `NAME: value` lines, got {env!r}.")
    os.environ.update({name: str(value) for name, value in env.items()})
    return config, rest


def unknown_field(name: str, fields: set[str], source: str) -> str:
    """Sentence that says that `name` is unknown and which of `fields` is meant."""
    replacement = next((field for field in PRESENT_DAY.get(name, ()) if field in fields), None)
    if replacement is not None:
        note = f" ({NOTES[name]})" if name in NOTES else ""
        return f"unknown field `{name}` {source}: use `{replacement}`{note}."
    if name in GONE:
        return f"unknown field `{name}` {source}: leave it out, {GONE[name]}."
    close = difflib.get_close_matches(name, sorted(fields), n=3)
    hint = "did you mean " + " or ".join(f"`{field}`" for field in close) + "?" if close else "see --help."
    return f"unknown field `{name}` {source}: {hint}"


def check_value(action: Action, value: object) -> None:
    """Check a scalar from YAML like a flag: of a default, argparse looks at neither the type nor the choices."""
    if value is None or isinstance(value, (list, dict)):
        return
    converted = value
    if getattr(action.type, "__name__", None) in ("int", "float"):  # of `int | None` fields too
        try:
            converted = action.type(str(value))
        except ValueError:
            raise ValueError(f"`{action.dest}` must be of type {action.type.__name__}, got {value!r}.") from None
    if action.choices is not None and converted not in action.choices:
        raise ValueError(f"`{action.dest}` must be one of {', '.join(map(str, action.choices))}, got {value!r}.")


def split_arguments(
    parser: ArgumentParser, argv: list[str], extra_fields: Container[str] = ()
) -> tuple[Namespace, dict, list[str]]:
    """
    Read the config file and the flags against a parser. Nothing is built, so no device is touched.

    Args:
        parser (`argparse.ArgumentParser`):
            Parser of the command. Its defaults are replaced by the values of the config file.
        argv (`list[str]`):
            Arguments of the command, with or without `--config FILE`.
        extra_fields (`Container[str]`, *optional*):
            Names that belong to `accelerate launch`: they are handed back instead of being an error.

    Returns:
        `tuple[argparse.Namespace, dict, list[str]]`: Values of the parser's fields, and what the config file and the
        command line hold of `extra_fields`.
    """
    config, argv = read_config(argv)
    fields = {action.dest for action in strict(parser)._actions} - {"help"}
    extra_config = {}
    for name, value in config.items():
        if name in fields:
            for action in parser._actions:  # two for a boolean that is on by default: the other one is `--no_...`
                if action.dest == name:
                    check_value(action, value)
                    action.default, action.required = value, False
        elif name in extra_fields:
            extra_config[name] = value
        else:
            raise ValueError(unknown_field(name, fields, "in the config file"))

    values, extra_argv = parser.parse_known_args(argv)
    for argument in extra_argv:
        name = argument.removeprefix("--").partition("=")[0].replace("-", "_")
        if argument.startswith("--") and name not in extra_fields:
            raise ValueError(unknown_field(name, fields, "on the command line"))
    if extra_argv and not extra_argv[0].startswith("--"):
        raise ValueError(f"unexpected argument {extra_argv[0]!r}.")
    return values, extra_config, extra_argv


def parse_strictly(parser: "TrlParser", argv: list[str]) -> tuple:
    """Like [`trl.TrlParser.parse_args_and_config`], but an unknown key is a `ValueError`."""
    values, _, launch_argv = split_arguments(parser, argv, launch_fields())
    if launch_argv:
        raise ValueError(f"{launch_argv[0]} belongs to `accelerate launch`: put it before `-m`.")
    try:
        return parser.parse_dict(vars(values))
    except TypeError as error:  # such as an unknown key in an entry of `datasets`
        raise ValueError(str(error)) from error

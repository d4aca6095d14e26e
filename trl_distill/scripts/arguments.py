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

`TrlParser.parse_args_and_config` can refuse them, too, but only once it has built the dataclasses, which sets up a
device in a process that does no more than launch others. It also takes `max_steps: often` from YAML, and is no parser
of the commands without dataclasses.
"""

import functools
import os
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..text import closest
from ..training import check_fields, check_launcher, check_value, launch_fields, shipped


if TYPE_CHECKING:
    from trl import TrlParser


@functools.cache
def present_day() -> dict[str, dict[str, str]]:
    """What became of fields of other releases and tools: the file `present_day.yaml`."""
    import yaml

    return yaml.safe_load(Path(__file__).with_name("present_day.yaml").read_text(encoding="utf-8"))


def raise_error(message: str) -> NoReturn:
    raise ValueError(message)


def check_outputs(*files: str | None) -> None:
    """Make the folders of files that are to be written, and refuse, before the work, what cannot be one."""
    named = [file for file in files if file is not None]
    for file in named:
        Path(file).absolute().parent.mkdir(parents=True, exist_ok=True)
        if Path(file).is_dir():
            raise ValueError(f"{file} is a folder. Name a file in it.")
        if named.count(file) > 1:
            raise ValueError(f"Two outputs have the name {file}. Give each its own.")


def add_config(parser: ArgumentParser) -> None:
    """The flag of the file that [`read_config`] reads, for `--help`."""
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with values of the fields below. Flags win over it."
    )


def add_model_arguments(
    parser: ArgumentParser, model: str, rows: str, required: bool = False, split: str = "test"
) -> Callable[..., Action]:
    """
    Add `--config` and the fields of a command that lets a model answer rows.

    Args:
        parser (`argparse.ArgumentParser`):
            Parser of the command.
        model (`str`), rows (`str`):
            Help on `--model_name_or_path` and `--dataset_name`.
        required (`bool`, *optional*, defaults to `False`):
            Whether these two must be given.
        split (`str`, *optional*, defaults to `"test"`):
            The split that the command takes if none is named, for the help.

    Returns:
        `Callable`: `add_argument` of the group, for further fields.
    """
    add_config(parser)
    add = parser.add_argument_group("model and data").add_argument
    add("--model_name_or_path", required=required, help=model)
    add("--model_revision", help="Branch, tag or commit of the model.")
    add("--dataset_name", required=required, help=rows)
    add("--dataset_config", help="Configuration of the data set.")
    add("--dataset_split", help=f"Split. Default: `{split}`, or the only one.")
    add_loading_arguments(add)
    return add


def add_loading_arguments(add: Callable[..., Action]) -> None:
    """Add to a group how a model is loaded."""
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="Type of the weights.")
    add("--device", help="Default: the GPU if there is one, else the CPU.")
    add("--load_in_4bit", action="store_true", help="Quantize the model with bitsandbytes.")
    add("--trust_remote_code", action="store_true", help="Run Python code that ships with a checkpoint.")


def add_sampling_arguments(
    parser: ArgumentParser, max_new_tokens: int = 512, in_batches: bool = True
) -> Callable[..., Action]:
    """Add how answers are sampled, and return `add_argument` of the group: seeds and numbers differ."""
    add = parser.add_argument_group("sampling").add_argument
    add("--temperature", type=float, default=1.0, help="Temperature of sampling. 0 is greedy decoding.")
    add("--top_p", type=float, default=1.0, help="Nucleus of sampling.")
    add("--max_new_tokens", type=int, default=max_new_tokens, help="Longest answer.")
    if in_batches:
        add("--batch_size", type=int, default=16, help="Answers generated together.")
    return add


def add_rule(add: Callable[..., Action], default: str = "marked") -> None:
    """Add to a group what counts as the answer of a text."""
    rules = {
        "marked": "what a box, `####` or `answer is` marks",
        "last_number": "without a mark the last number",
        "release": "as in the code released with NAT, where only \\boxed{...} counts and anything else is wrong",
    }
    described = "; ".join(f"{rule}: {what}" for rule, what in rules.items())
    add("--rule", default=default, choices=list(rules), help=f"What is an answer. {described}. Default: {default}.")


def strict(parser: ArgumentParser) -> ArgumentParser:
    """Make a parser refuse abbreviations, and raise instead of printing the usage of some two hundred fields."""
    parser.allow_abbrev = False
    parser.error = raise_error
    return parser


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
    parser.add_argument("--config", action="append", default=[])
    known, rest = parser.parse_known_args(argv)
    if not known.config:
        return {}, rest
    if len(known.config) > 1:
        raise ValueError(f"--config names {len(known.config)} files: {', '.join(known.config)}. Put them into one.")

    import yaml

    [name] = known.config
    with open(shipped(name), encoding="utf-8") as file:
        try:
            config = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{name} must hold `field: value` lines, got {type(config).__name__}.")
    env = config.pop("env", {})
    if not isinstance(env, dict):
        raise ValueError(f"`env` in {name} must hold `NAME: value` lines, got {env!r}.")
    os.environ.update({variable: str(value) for variable, value in env.items()})
    return shipped(config), rest


def unknown_field(name: str, fields: set[str], source: str) -> str:
    """Sentence that says that `name` is unknown and which of `fields` is meant."""
    use, notes, gone = (present_day()[key] for key in ("use", "notes", "gone"))
    replacement = next((field for field in use.get(name, "").split(", ") if field in fields), None)
    if replacement is not None:
        hint = f": use `{replacement}`{f' ({notes[name]})' if name in notes else ''}."
    elif name in gone:
        hint = f": leave it out, {gone[name]}."
    else:
        hint = f". {closest(name, sorted(fields)) or 'See --help.'}"
    return f"unknown field `{name}` {source}{hint}"


def stray(argument: str) -> str:
    """Sentence about an argument that belongs to no flag."""
    hint = f" Did you mean `--config {argument}`?" if argument.endswith((".yaml", ".yml")) else ""
    return f"unexpected argument {argument!r}.{hint}"


def check_flags(parser: ArgumentParser, argv: list[str], extra_fields: Container[str]) -> None:
    """Refuse, before argparse asks for what is missing, a flag that no field has, and a text for a field of fields."""
    options = parser._option_string_actions
    for option in (argument.partition("=")[0] for argument in argv if argument.startswith("--")):
        name = option.removeprefix("--").replace("-", "_")
        if option in options and getattr(options[option].type, "__name__", None) == "dict":
            raise ValueError(
                f"`{name}` has fields of its own, as in `{name}: {{...}}`, which only a YAML file can hold: "
                "`--config FILE`. For none leave it out there."
            )
        if option not in options and name not in extra_fields:
            raise ValueError(unknown_field(name, {action.dest for action in parser._actions}, "on the command line"))
    if argv and argv[0].endswith((".yaml", ".yml")) and all(action.option_strings for action in parser._actions):
        raise ValueError(stray(argv[0]))


def check_one_process(prog: str) -> None:
    """Refuse to be one of several processes, which would pay for the same calls and write the same files."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:
        raise ValueError(f"this command runs in one process, but a launcher has started {processes}. Run `{prog}`.")


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
            Names that belong to `accelerate launch`: they are handed back instead of being an error. A command
            without them runs in one process, here, so what its fields need is looked for.

    Returns:
        `tuple[argparse.Namespace, dict, list[str]]`: Values of the parser's fields, and what the config file and the
        command line hold of `extra_fields`.
    """
    if not extra_fields:
        check_one_process(parser.prog)
    config, argv = read_config(argv)
    actions = strict(parser)._actions
    fields = {action.dest for action in actions} - {"help"}
    unknown = [name for name in config if name not in fields and name not in extra_fields]
    if unknown:
        raise ValueError(" ".join(unknown_field(name, fields, "in the config file") for name in unknown))
    for action in actions:  # two for a boolean that is on by default: the other one is `--no_...`
        if action.dest in config:
            check_value(action, config[action.dest])
            action.default, action.required = config[action.dest], False

    check_flags(parser, argv, extra_fields)
    values, extra_argv = parser.parse_known_args(argv)
    if extra_argv and not extra_argv[0].startswith("--"):
        raise ValueError(stray(extra_argv[0]))
    if not extra_fields:
        check_fields(vars(values))
    return values, {name: value for name, value in config.items() if name not in fields}, extra_argv


def parse_strictly(parser: "TrlParser", argv: list[str]) -> tuple:
    """Like [`trl.TrlParser.parse_args_and_config`], but an unknown key is a `ValueError`."""
    values, _, launch_argv = split_arguments(parser, argv, launch_fields())
    if launch_argv:
        raise ValueError(f"{launch_argv[0]} belongs to `accelerate launch`: put it before `-m`.")
    check_launcher(values)  # before the dataclasses, which set up a device
    try:
        return parser.parse_dict(vars(values))
    except TypeError as error:  # such as an unknown key in an entry of `datasets`
        raise ValueError(str(error)) from error

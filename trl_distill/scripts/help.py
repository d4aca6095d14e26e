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
`--help` of commands whose fields are those of dataclasses: ours first, in the groups of their docstrings, then what
every training names.
"""

import dataclasses
import inspect
import re
from argparse import SUPPRESS, Action, HelpFormatter
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import HfArgumentParser

WHOLE = "--help-all"
_FLAGS = ("-h", "--help"), (WHOLE, "--help_all")
_EVERY_RUN = "what every run names"
_NAMED = "model_name_or_path teacher_model_name_or_path dataset_name output_dir learning_rate".split()
_NAMED += ["num_train_epochs", "max_steps"]
_PACKAGES = ("trl_distill", "trl")  # in their order in the help; fields of others are in `--help-all`


def _group(config_class: type, field: str) -> tuple[int, bool, str]:
    """
    Where a field stands in the help, by the class that declares it, or declares it anew: the place of its package,
    whether ours has no heading for it in its docstring, and the title of the group.
    """
    owner, *parents = (base for base in config_class.__mro__ if field in inspect.get_annotations(base))
    package = owner.__module__.partition(".")[0]
    place = _PACKAGES.index(package) if package in _PACKAGES else len(_PACKAGES)
    heading = _headings(owner).get(field)
    if parents and not (heading or place):
        return place, True, "with another default than TRL's"
    return place, not (heading or place), (heading or owner.__name__.strip("_")) + (f" ({package})" if place else "")


def _headings(config_class: type) -> dict[str, str]:
    """What stands as `> Heading` above a field in the docstring, without what all headings begin with."""
    heading, found = "", {}
    for line in inspect.cleandoc(config_class.__doc__ or "").splitlines():
        if line.startswith("    > "):
            heading = re.sub(r"^    > (Parameters that control (the )?)?|, see .*", "", line)
        elif re.match(r"    \S", line):  # names; what they mean is indented further
            found |= dict.fromkeys(re.findall(r"(\w+)(?: \(`|$)", line), heading)
    return found


class _Formatter(HelpFormatter):
    """A field by one name and its type, with its default in brackets if it has one."""

    def __init__(self, prog: str, **kwargs):
        super().__init__(prog, max_help_position=34, **kwargs)

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return ", ".join(action.option_strings) or super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{action.option_strings[0]} {value.strip('[]') if action.nargs == '?' else value}"

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        name = getattr(action.type, "__name__", "value")
        return {"string_to_bool": "bool"}.get(name, name).upper()

    def _get_help_string(self, action: Action) -> str:
        shown = action.nargs != 0 and action.default is not False and action.default not in (None, [], {}, SUPPRESS)
        return f"{action.help or ''} [%(default)s]" if shown else action.help or ""


class _Help(Action):
    def __call__(self, parser: "HfArgumentParser", namespace, values, option_string=None) -> None:
        group_of = {
            field.name: _group(config_class, field.name)
            for config_class in parser.dataclass_types
            for field in dataclasses.fields(config_class)
        }
        if "learning_rate" in group_of:
            group_of |= {name: (0, True, _EVERY_RUN) for name in _NAMED if name in group_of}
        _, rest = parser._action_groups[:2]  # positional arguments, of which there are none, and options
        grouped: dict[tuple, list[Action]] = {}
        place_in = {name: place for place, name in enumerate(_NAMED)}
        for action in sorted(rest._group_actions, key=lambda action: place_in.get(action.dest, len(_NAMED))):
            if action.dest in group_of and action.nargs != 0:  # `--no_...` says nothing that the field does not
                grouped.setdefault(group_of[action.dest], []).append(action)
        rest._group_actions = [action for action in rest._group_actions if action.dest not in group_of]
        everything = option_string in _FLAGS[1]
        hidden = 0
        for place, bare, title in sorted(grouped, key=lambda group: group[:2]):
            actions = grouped[place, bare, title]
            if everything or place < len(_PACKAGES):
                parser.add_argument_group(title)._group_actions.extend(actions)
            else:
                hidden += len(actions)
        if hidden:
            parser.epilog = f"--help-all shows {hidden} more, of transformers, such as `warmup_steps`."
        parser.print_help()
        parser.exit()


def add_help(parser: "HfArgumentParser") -> "HfArgumentParser":
    """Give a parser of dataclasses `--help` in groups, and `--help-all`."""
    parser.formatter_class = _Formatter
    parser.usage = "%(prog)s --config FILE [--FIELD VALUE ...]"
    parser._optionals.conflict_handler = "resolve"  # takes the place of the `--help` that is there
    about = {"action": _Help, "nargs": 0, "default": SUPPRESS, "dest": "help"}
    parser.add_argument(*_FLAGS[0], help="Show this.", **about)
    parser.add_argument(*_FLAGS[1], help="Show all fields.", **about)
    return parser


def asked(argv: list[str]) -> list[str]:
    """The flags among the arguments of a command that ask for its help."""
    return [argument for argument in argv if argument in _FLAGS[0] + _FLAGS[1]]

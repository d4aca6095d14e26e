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
`trl-distill COMMAND --config FILE [--FIELD VALUE ...]`.

Each command is a module of `trl_distill.scripts` with two functions: `make_parser(prog=None)` returns its parser, and
`run(argv)` parses strictly and does the work in the calling process. Training commands start through
`accelerate launch`, the others run here.
"""

import argparse
import contextlib
import importlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from trl_distill import __version__, launcher
from trl_distill.scripts import help
from trl_distill.scripts.arguments import raise_error, split_arguments, stray, strict
from trl_distill.text import closest
from trl_distill.training import (
    accelerate_config_path,
    check_fields,
    end_children,
    launch_fields,
    launch_flags,
    quiet_without_a_reader,
    user_errors,
)


TRAINING = {
    "minillm": "reverse KL on the student's own answers (on-policy, local teacher)",
    "nat": "right rationales beside a frozen adapter that learned the wrong ones (recorded answers)",
    "nce": "right rationales, weighted by what the negative adapter knows (recorded answers)",
    "labeled_sft": "right and wrong rationales without an adapter of their own: CoT KD, MIX, NT, UL, REDI",
    "ranker": "a model that tells right rationales from wrong ones, for asc",
    "offline_distillation": "forward or reverse KL to a teacher that was recorded (recorded answers, no teacher)",
    "sft": "supervised fine-tuning with TRL's trainer",
    "dpo": "preference optimization with TRL's trainer, the reference checked",
}
OTHERS = {
    "chat": "talk to a model in the terminal",
    "sample": "let a model or a server answer prompts several times, into a file",
    "record": "write down what a teacher says of completions, for offline_distillation",
    "label": "compare sampled rationales with the right answers",
    "augment": "let a model answer its training questions, keep what is right",
    "calibrate": "weigh rationales by the divergence of the negative adapter from NAT, for nce",
    "asc": "sample answers, score them with a ranker, vote",
    "clean": "repair capitals in dialogues, drop those in which the assistant denies having emotions",
    "feedback": "let models answer prompts and a judge score them, write preference pairs",
    "binarize": "make preference pairs from answers that are scored already",
    "compare": "the win rate of two models, or of two files of answers, by a judge",
    "lion": "imitate a teacher, find where the student is behind, have more of that written",
    "merge": "put a LoRA into its base, on disk, as the start of the next stage",
    "calls": "show what a call store holds: calls, tokens, retries, cost",
    "report": "make the page of a run anew, also of one that was stopped",
    "memory": "count what a training will hold on its card, and which cards have room",
    "recipe": "list the recipes, or print one",
    "evaluate": "score a model on prompts: Rouge-L, KL to a teacher, exposure bias",
}
REMOVED = {
    "convert-handbook": "`convert-handbook` was removed: run the file with `trl-distill sft` or `dpo`, whose errors "
    "name the present-day field.",
    "demo": "the demo is no command: run `make demo`, or `python examples/demo.py`, in a checkout.",
}


def make_parser() -> argparse.ArgumentParser:
    width = max(map(len, TRAINING | OTHERS))
    parser = argparse.ArgumentParser(
        prog="trl-distill",
        usage="trl-distill COMMAND --config FILE [--FIELD VALUE ...]",
        description="Train a small model from a larger one. Values come from FILE, flags win over it, unknown fields "
        "stop the run.\n\n" + "\n".join(f"  {name:<{width}}  {text}" for name, text in (TRAINING | OTHERS).items()),
        epilog="Fields of a command: trl-distill COMMAND --help. Several GPUs: --accelerate_config NAME (cpu, "
        "single_gpu, ddp, fsdp2,\nzero2, zero3, one of TRL's, or a file), and any flag of accelerate launch.\n"
        "Completion of commands and fields: pip install trl-distill[completion]\n"
        'eval "$(register-python-argcomplete trl-distill)"    # bash and zsh',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trl-distill {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def show_parser(command: str, whole: bool = False) -> argparse.ArgumentParser:
    """
    Parser of a command to be shown, not used: the configs of trainings import peft and torch with transformers, which
    takes seconds, and need neither. Without torch the default of `optim` is another one, which only the `whole` shows.
    """
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # of torch, which seems to be missing
    for name in ("peft",) if whole else ("peft", "torch"):
        sys.modules.setdefault(name, None)
    parser = importlib.import_module(f"trl_distill.scripts.{command}").make_parser(prog=f"trl-distill {command}")
    parser.description = parser.description or f"{(TRAINING | OTHERS)[command]}."
    return parser


def complete() -> None:
    """Tell the shell what may follow, by argcomplete: a command, or a field of one."""
    import argcomplete

    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split(" ")
    parser = argparse.ArgumentParser()
    if len(line) > 2 and line[1] in TRAINING | OTHERS:
        os.environ["_ARGCOMPLETE"] = "2"  # so many words are the program
        parser = show_parser(line[1])
        if line[1] in TRAINING:
            parser.add_argument("--config")
            parser.add_argument("--accelerate_config")
    else:
        parser.add_argument("command", choices=TRAINING | OTHERS)
    other_names = [name for action in parser._actions for name in action.option_strings[1:]]
    argcomplete.autocomplete(parser, always_complete_options="long", exclude=other_names)


def launch_arguments(command: str, argv: list[str]) -> argparse.Namespace:
    """Arguments of `accelerate launch` for a training command, all of `argv` checked first."""
    from accelerate.commands.launch import launch_command_parser

    module = f"trl_distill.scripts.{command}"
    parser = importlib.import_module(module).make_parser(prog=f"trl-distill {command}")
    values, config, flags = split_arguments(parser, argv, launch_fields())
    check_fields(vars(values))  # each process would do so, too, but once it has imported what trains

    # The script gets what the launcher does not take. `flags` is an ordered part of `argv`.
    remaining = iter(flags)
    flag, script_argv = next(remaining, None), []
    for argument in argv:
        if argument == flag:
            flag = next(remaining, None)
        else:
            script_argv.append(argument)

    names = strict(argparse.ArgumentParser(add_help=False))
    names.add_argument("--accelerate_config", "--accelerate-config")
    known, launch_argv = names.parse_known_args(launch_flags(config) + flags)  # those of the file first: flags win
    if known.accelerate_config is not None:
        launch_argv = ["--config_file", accelerate_config_path(known.accelerate_config), *launch_argv]

    args = strict(launch_command_parser()).parse_args([*launch_argv, "--module", module, *script_argv])
    if args.training_script != module:
        raise_error(stray(args.training_script))
    args.output_dir = values.output_dir or "trainer_output"  # for whoever stops the run
    return args


def launch(command: str, argv: list[str]) -> int:
    from accelerate.commands.launch import launch_command
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with user_errors(f"trl-distill {command}"):
        args = launch_arguments(command, argv)
    try:
        launch_command(args)
    except (KeyboardInterrupt, SignalException):
        end_children()
        if not any(Path(args.output_dir).glob("**/checkpoint-*")):
            return stopped(command, argv, "There is no checkpoint yet. To begin anew")
        resume = "--resume_from_checkpoint"
        return stopped(command, argv if resume in argv else [*argv, resume, "latest"])
    except subprocess.CalledProcessError as error:  # the script has said why
        return error.returncode
    except ChildFailedError as error:  # so has the first one of several processes that has failed
        return max(error.get_first_failure()[1].exitcode, 1)
    except DistError as error:
        with user_errors(f"trl-distill {command}"):
            raise ValueError(
                f"machine {args.machine_rank} of {args.num_machines} has not found the others at "
                f"{args.main_process_ip}:{args.main_process_port}. Start each machine with a `machine_rank` of its "
                f"own and with the address of machine 0. ({error})"
            ) from error
    return 0


def stopped(command: str, argv: list[str], what_next: str = "To go on") -> int:
    """Say how a run that was stopped goes on, and return its exit code."""
    again = shlex.join(["trl-distill", command, *argv])
    sys.stderr.write(f"trl-distill {command}: stopped. {what_next}: {again}\n")
    return 128 + signal.SIGINT


@contextlib.contextmanager
def stopped_by_kill() -> Iterator[None]:
    """`kill` leaves no more behind than Ctrl-C. Workers of this process, which pools end by `kill`, end as ever."""
    before, ours = signal.getsignal(signal.SIGTERM), os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == ours:
            raise KeyboardInterrupt
        os._exit(128 + number)

    if before is not signal.SIG_DFL or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: list[str] | None = None) -> int:
    if "_ARGCOMPLETE" in os.environ:
        complete()
    with quiet_without_a_reader():
        return start(argv)


def start(argv: list[str] | None) -> int:
    """Run a command, and say how one that was stopped goes on."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if not sys.stderr.isatty():  # bars that are drawn over each other on a terminal are lines in a file
        os.environ.setdefault("TQDM_DISABLE", "1")
    launcher.quiet()
    if argv is None and args.command in TRAINING:
        sys.modules.setdefault("peft", None)  # seconds to import, and this process trains nothing
    try:
        with stopped_by_kill():
            return run(parser, args)
    except KeyboardInterrupt as error:
        what_next = f"{error} To go on" if error.args else "To go on"
        return stopped(args.command, args.arguments, what_next)


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.command is None:
        parser.print_help()
    elif args.command in TRAINING | OTHERS and (flags := help.asked(args.arguments)):
        parser = show_parser(args.command, whole=help.WHOLE in flags)
        parser.parse_args(flags[:1] if hasattr(parser, "dataclass_types") else ["--help"])
    elif args.command in TRAINING:
        return launch(args.command, args.arguments)
    elif args.command in OTHERS:
        importlib.import_module(f"trl_distill.scripts.{args.command}").run(args.arguments)
    else:
        commands = TRAINING | OTHERS
        hint = closest(args.command, commands) or f"Choose from {', '.join(commands)}."
        error = REMOVED.get(args.command, f"unknown command {args.command!r}. {hint}")
        sys.stderr.write(f"trl-distill: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

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
What every training does around its trainer: find data and checkpoint, say what is wrong, train, save.

Commands and libraries stand on it. Nothing heavy is imported before it is used.
"""

import contextlib
import ctypes
import dataclasses
import functools
import itertools
import json
import os
import platform
import select
import signal
import sys
from argparse import Action, Namespace
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .checkpoints import CheckpointError, checkpoint_to_resume
from .extras import check_packages
from .files import check_there, data_errors, file_format
from .hardware import without_scaling
from .launcher import quiet
from .row_formats import question_of, trl_rows


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import BitsAndBytesConfig, Trainer, TrainingArguments
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from .row_formats import Wanted

T = TypeVar("T")
LATEST = ("true", "latest")  # values of `resume_from_checkpoint`


def nobody_reads() -> bool:
    """Whether what is printed goes to a pipe that is closed, as after `| head -1`."""
    try:
        pipe = sys.stdout.fileno()
    except (AttributeError, OSError):  # a notebook's, or none
        return False
    poll = select.poll()
    poll.register(pipe, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextlib.contextmanager
def quiet_without_a_reader() -> Iterator[None]:
    """End as `cat` does where nobody reads what is printed any more: at once, and without a word."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not nobody_reads():  # another pipe
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        raise SystemExit(128 + signal.SIGPIPE) from None


@contextlib.contextmanager
def user_errors(prog: str, kinds: tuple[type[Exception], ...] = (ValueError, OSError, ImportError)) -> Iterator[None]:
    """
    Turn a user's mistake into one message on stderr and exit code 2; put it around parsing and building only, or name
    the `kinds` that are no fault of a program. Of several processes each says its own: a file may be missing on one
    machine only.
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            raise
        rank, processes = os.environ.get("RANK"), int(os.environ.get("WORLD_SIZE", 1))
        where = f" in process {rank} of {processes}, on {platform.node()}" if processes > 1 else ""
        sys.stderr.write(f"{prog}: error{where}: {error}{_remedy(str(error))}\n")
        raise SystemExit(2) from error


@contextlib.contextmanager
def metric_errors(prog: str) -> Iterator[None]:
    """Tell a `metric_for_best_model` that the first evaluation does not give as other mistakes are told."""
    try:
        yield
    except KeyError as error:
        if "`metric_for_best_model`" not in str(error):
            raise
        with user_errors(prog):
            raise ValueError(error.args[0]) from error


def _remedy(error: str) -> str:
    """What an error of PEFT or of the Hub leaves out."""
    if "ParamWrapper does not work with lora_dropout" in error:  # `all-linear` and fused experts
        return " Set `lora_dropout: 0.0`, or name the layers in `lora_target_modules`."
    if "couldn't find them in the cached files" in error:  # of a model: it names none
        return " If a folder is meant, there is none of that name here."
    if "No `target_modules` passed" in error:
        return " PEFT knows no default for this architecture: set `lora_target_modules`, for example to all-linear."
    return ""


def check_value(action: Action, value: object) -> None:
    """Check a scalar from YAML like a flag: of a default, argparse looks at neither the type nor the choices."""
    if value is None or isinstance(value, list) and action.nargs in ("+", "*"):
        return
    converted = value
    if getattr(action.type, "__name__", None) == "string_to_bool" and not isinstance(value, bool | str):
        raise ValueError(f"`{action.dest}` must be true or false, got {value!r}.")
    if getattr(action.type, "__name__", None) in ("int", "float"):  # of `int | None` fields too
        try:
            converted = action.type(str(value))
        except ValueError:
            raise ValueError(f"`{action.dest}` must be of type {action.type.__name__}, got {value!r}.") from None
    if action.choices is not None and converted not in action.choices:
        raise ValueError(f"`{action.dest}` must be one of {', '.join(map(str, action.choices))}, got {value!r}.")


def recipe_folder() -> Path:
    """Where the recipes are: in an installed package or in a checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "recipes"


def shipped(value: T) -> T:
    """
    A path `recipes/...` that leads nowhere from here, as that of the recipe which came with the package. What is in a
    dictionary or a list is looked at, too; other values stay.
    """
    if isinstance(value, dict):
        return {key: shipped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shipped(inner) for inner in value]
    if isinstance(value, str) and value.startswith("recipes/") and not Path(value).exists():
        file = recipe_folder() / value.removeprefix("recipes/")
        return str(file) if file.exists() else value
    return value


def accelerate_config_path(name: str) -> str:
    """Path of an accelerate config: a file as it is, a name among ours, then among TRL's."""
    if Path(name).is_file():
        return name
    folders = (Path(str(resources.files("trl") / "accelerate_configs")), recipe_folder() / "accelerate_configs")
    files = {file.stem: str(file) for folder in folders for file in folder.glob("*.yaml")}
    files["ddp"] = files["multi_gpu"]  # as TRL calls it
    if name not in files:
        raise ValueError(f"accelerate config {name!r} is neither a file nor one of {', '.join(sorted(files))}.")
    return files[name]


@functools.cache
def launch_fields() -> dict[str, Action]:
    """Flags of `accelerate launch` by name, and TRL's `accelerate_config`, which the command line resolves."""
    from accelerate.commands.launch import launch_command_parser

    launcher = launch_command_parser()
    launcher.add_argument("--accelerate_config")
    flags = launcher._option_string_actions.items()
    return {flag[2:].replace("-", "_"): action for flag, action in flags if flag.startswith("--") and flag != "--help"}


def launch_flags(values: dict[str, Any]) -> list[str]:
    """Values of `accelerate launch` by their names, as its arguments."""
    flags: list[str] = []
    for name, value in values.items():
        if launch_fields()[name].nargs != 0:
            flags += [f"--{name}", str(value)]
        elif value:
            flags.append(f"--{name}")
    return flags


def check_fields(fields: Mapping[str, Any]) -> None:
    """Refuse fields that name packages, files of data or folders of models that are not there, before any work."""
    check_packages(fields)
    check_paths(fields)


def check_launcher(values: Namespace) -> None:
    """Refuse fields of a training that contradict how it was launched."""
    for name, other in {"FSDP": "deepspeed", "DeepSpeed": "fsdp"}.items():
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() != "true":
            continue
        if getattr(values, "use_cpu", False):
            raise ValueError(f"`use_cpu` is set, but the launcher's config asks for {name}, which shards over GPUs.")
        if getattr(values, other, None):
            raise ValueError(f"`{other}` is set, but the launcher's config asks for {name}. Leave one of them out.")


def check_paths(values: Mapping[str, Any]) -> None:
    """Refuse fields that name a file or folder which is not there, before anything is loaded."""
    names = ["teacher_model_name_or_path", "nat_path", "lm_dataset_name"]
    names += [] if values.get("base_url") else ["model_name_or_path"]  # a server's names may be any
    names += [] if values.get("datasets") else ["dataset_name"]
    for name in names:
        try:
            check_there(values.get(name) or ".")
        except FileNotFoundError as error:
            if name != "model_name_or_path":
                raise
            remedy = "If it is to be a merged model, `trl-distill merge ADAPTER --output DIR` makes it."
            raise FileNotFoundError(f"{error} {remedy}") from None


def end_children(patience: float = 10) -> None:
    """End the processes that this one has started, and theirs: none is to go on for nobody."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    for child in psutil.wait_procs(children, timeout=patience)[1]:
        child.kill()


def end_with_launcher() -> None:
    """Have Linux end this process with the launcher that has started it, if there is one, even by `kill -9`."""
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def resolve(
    script_args: "ScriptArguments", training_args: "TrainingArguments", dataset_args: "DatasetMixtureConfig"
) -> None:
    """
    Settle, in place, what TRL's scripts leave to the reader: a local file as `dataset_name`, which goes into
    `dataset_args`, and `resume_from_checkpoint: latest` (or `true`).
    """
    from trl.scripts.utils import DatasetConfig

    name = script_args.dataset_name
    if not name and not dataset_args.datasets:
        raise ValueError("no data: set `dataset_name` to a dataset of the Hub, a folder or a file, or set `datasets`.")
    if name and not dataset_args.datasets and os.path.isfile(name):
        dataset_args.datasets = [DatasetConfig(path=file_format(name), data_files=name)]
        dataset_args.streaming = script_args.dataset_streaming
        script_args.dataset_name = None
    if dataset_args.datasets and training_args.eval_strategy != "no" and dataset_args.test_split_size is None:
        raise ValueError(
            f"`eval_strategy` is {training_args.eval_strategy.value!r}, but these data have no test split: set "
            "`test_split_size`, or let `dataset_name` be a folder with train and test files."
        )

    if str(training_args.resume_from_checkpoint).lower() in LATEST:
        training_args.resume_from_checkpoint = checkpoint_to_resume(True, training_args.output_dir)


def split_by_question(rows: "Dataset", test_size: int | float) -> "DatasetDict":
    """
    Draw rows for `test`, the others for `train`, so that no question has rows in both: a model would be chosen for
    answers that it has seen.

    Args:
        rows ([`~datasets.Dataset`]):
            Rows with `prompt`, `messages` or `chosen` and `rejected`. Of other rows each is a question of its own, and
            the split is that of [`~datasets.Dataset.train_test_split`].
        test_size (`int` or `float`):
            Number or share of the questions. They are drawn from NumPy's global state.
    """
    from datasets import Dataset, DatasetDict

    named = ["prompt"] if "prompt" in rows.column_names else ["messages", "conversations", "chosen", "rejected"]
    columns = [name for name in named if name in rows.column_names] or rows.column_names[:1]
    of_question: dict[Any, list[int]] = {}
    for number, row in enumerate(rows.select_columns(columns)):
        question = question_of(row)
        key = number if question is None else json.dumps(question, sort_keys=True, default=str)
        of_question.setdefault(key, []).append(number)
    numbers = list(of_question.values())
    sides = Dataset.from_dict({"question": range(len(numbers))}).train_test_split(test_size)
    split = {}
    for name, side in sides.items():
        rounds = itertools.zip_longest(*(numbers[question] for question in side["question"]))  # no question in a run
        split[name] = rows.select([number for one in rounds for number in one if number is not None])
    return DatasetDict(split)


def load_splits(
    script_args: "ScriptArguments",
    training_args: "TrainingArguments",
    dataset_args: "DatasetMixtureConfig",
    wanted: "Wanted | None" = None,
    *known: str,
) -> "dict[str, Dataset]":
    """
    `train_dataset`, and with evaluation also `eval_dataset`, of the data that the user names. `test_split_size` is the
    share or number of the questions, see [`split_by_question`]. Rows of other tools become what is `wanted`, see
    [`~trl_distill.row_formats.trl_rows`].
    """
    from datasets import load_dataset
    from transformers import set_seed
    from trl import get_dataset

    if dataset_args.test_split_size is not None and dataset_args.streaming:
        raise ValueError(
            "`test_split_size` needs all rows, and `streaming` has them one by one. Leave one of them out."
        )

    def read(rows: "Dataset") -> "Dataset":
        return rows if wanted is None else trl_rows(rows, wanted, *known)

    set_seed(training_args.seed)  # the rows of `test_split_size` are drawn from the global state, in each process
    mixture = dataset_args.datasets or []
    name = script_args.dataset_name or ", ".join(str(entry.data_files or entry.path) for entry in mixture)
    with data_errors(name):
        if mixture:
            dataset = get_dataset(dataclasses.replace(dataset_args, test_split_size=None))
            if dataset_args.test_split_size is not None:
                dataset = split_by_question(read(dataset["train"]), dataset_args.test_split_size)
        else:
            dataset = load_dataset(name, name=script_args.dataset_config, streaming=script_args.dataset_streaming)
    splits = {"train_dataset": script_args.dataset_train_split}
    if training_args.eval_strategy != "no":
        splits["eval_dataset"] = script_args.dataset_test_split
    for split in splits.values():
        if split not in dataset:
            raise ValueError(f"the data have no split {split!r}, only {', '.join(dataset)}.")
    return {argument: read(dataset[split]) for argument, split in splits.items()}


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
    if (model_args.load_in_4bit or model_args.load_in_8bit) and not without_scaling(training_args):
        raise ValueError(
            "with `fp16` the loss is scaled, but TRL trains what is added to a quantized model in bfloat16, whose "
            "gradients cannot be scaled. Leave `fp16` or the quantization out."
        )
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (training_args.model_init_kwargs or {})


def quantization_config(model_args: "ModelConfig", trust_remote_code: bool = False) -> "BitsAndBytesConfig | None":
    """What [`trl.get_quantization_config`] makes, which has no data type to compute in where `dtype` is `auto`."""
    from trl import get_quantization_config

    if model_args.dtype == "auto" and model_args.load_in_4bit:
        from transformers import AutoConfig

        from .models import adapter_config

        name, revision = model_args.model_name_or_path, model_args.model_revision
        if adapter := adapter_config(name, revision):
            name, revision = adapter["base_model_name_or_path"], adapter.get("revision")
        settings = {"revision": revision, "trust_remote_code": trust_remote_code}
        of_checkpoint = AutoConfig.from_pretrained(name, **settings).dtype
        model_args = dataclasses.replace(model_args, dtype=str(of_checkpoint or "float32").removeprefix("torch."))
    return get_quantization_config(model_args)


def model_arguments(
    training_args: "TrainingArguments", model_args: "ModelConfig", role: str = "model"
) -> dict[str, Any]:
    """What each trainer is given beside its data, with a full model."""
    from trl import get_peft_config

    set_model_init_kwargs(training_args, model_args, role)
    if is_adapter(name := model_args.model_name_or_path):
        raise ValueError(
            f"{name} is an adapter, and this training begins with a full model. Put it into its base first: "
            f"`trl-distill merge {name} --output DIR`, then set `model_name_or_path` to DIR."
        )
    return {
        "model": model_args.model_name_or_path,
        "args": training_args,
        "quantization_config": quantization_config(model_args, training_args.trust_remote_code),
        "peft_config": get_peft_config(model_args),
    }


def student_arguments(
    training_args: "TrainingArguments", model_args: "ModelConfig", role: str = "model"
) -> dict[str, Any]:
    """The same where `model_name_or_path` may be the folder of an adapter, too: then its training goes on."""
    name = model_args.model_name_or_path
    if name is None or not is_adapter(name):
        return model_arguments(training_args, model_args, role)
    if model_args.use_peft:
        raise ValueError(
            f"{name} is an adapter. Leave `use_peft` out to go on training it; for a new one on top of it, put it "
            "into its base first: `trl-distill merge`."
        )
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    set_model_init_kwargs(training_args, model_args, role)
    kwargs = training_args.model_init_kwargs | {
        "quantization_config": quantization_config(model_args, training_args.trust_remote_code)
    }
    training_args.model_init_kwargs = None  # the trainer has nothing to load
    model = AutoPeftModelForCausalLM.from_pretrained(name, is_trainable=True, **kwargs)
    return {"model": model, "args": training_args, "processing_class": AutoTokenizer.from_pretrained(name)}


def is_adapter(name: str) -> bool:
    """Whether a folder holds an adapter. Ids of the Hub are not asked about."""
    from .models import adapter_config

    return Path(name).is_dir() and adapter_config(name) is not None


def train_and_save(
    trainer: "Trainer", resume_from_checkpoint: str | bool | None, dataset_name: str | None, what: str = "Model"
) -> None:
    """Train, save the result in the output folder, upload it if asked to, and end trackers and process group."""
    from .models import keep_4bit_trainable

    keep_4bit_trainable(trainer.model)
    if isinstance(resume_from_checkpoint, str):
        trainer.accelerator.print(f"Going on from {resume_from_checkpoint}.")
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    trainer.save_model(trainer.args.output_dir)
    trainer.save_state()  # with what was logged: checkpoints may be gone by now
    folder = Path(trainer.args.output_dir)
    if dataset_name is not None and Path(dataset_name).exists():
        dataset_name = None  # TRL's card would link to a folder of this machine
    trainer.create_model_card(model_name=folder.name, dataset_name=dataset_name)
    if trainer.is_world_process_zero():
        from .report import write_report

        write_report(folder)
    trainer.accelerator.print(f"{what} saved to {folder}. The page of the run: {folder / 'report.html'}.")
    if trainer.args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
    trainer.end()


@quiet_without_a_reader()
def run_training(
    prog: str,
    parse: Callable[[], tuple],
    build_trainer: Callable[..., "Trainer"],
    what: str = "Model",
    finds_checkpoint: bool = False,
) -> None:
    """
    Do what a training command does: read its fields, build the trainer, train and save.

    Args:
        prog (`str`):
            Name of the command, for errors.
        parse (`Callable[[], tuple]`):
            Gives [`trl.ScriptArguments`], the config of the trainer, [`trl.ModelConfig`],
            [`trl.DatasetMixtureConfig`], and what else the command has.
        build_trainer (`Callable`):
            Takes these, and gives the trainer.
        what (`str`, *optional*, defaults to `"Model"`):
            What is saved.
        finds_checkpoint (`bool`, *optional*, defaults to `False`):
            Whether the trainer knows better than [`resolve`] where the last run has stopped.
    """
    quiet()  # before anything large is imported
    end_with_launcher()
    from .report import describe_run, record_run
    from .script_arguments import answers_wanted

    try:
        with user_errors(prog):
            args = parse()
            script_args, training_args, _, dataset_args, *_ = args
            check_fields({name: value for part in args for name, value in vars(part).items()})
            run = describe_run(prog, args)  # before anything is changed in them
            goes_on = finds_checkpoint and str(training_args.resume_from_checkpoint).lower() in LATEST
            if goes_on:
                training_args.resume_from_checkpoint = None
            resolve(script_args, training_args, dataset_args)
            dataset_name = script_args.dataset_name
            trainer = build_trainer(*args)
            if answers_wanted(script_args, training_args):
                from .report.answers import AnswersCallback

                trainer.add_callback(AnswersCallback(trainer))
            if trainer.is_world_process_zero():
                record_run(training_args.output_dir, run, str(trainer.args.device), trainer.args.world_size)
        with metric_errors(prog), user_errors(prog, (CheckpointError,)):
            train_and_save(trainer, goes_on or training_args.resume_from_checkpoint, dataset_name, what)
    except KeyboardInterrupt:  # who has launched this process says how to go on
        raise SystemExit(128 + signal.SIGINT) from None

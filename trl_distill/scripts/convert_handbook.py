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
Rewrite a file of the [alignment-handbook](https://github.com/huggingface/alignment-handbook) for `trl-distill sft` or
`trl-distill dpo`.

```bash
trl-distill convert-handbook config_qlora.yaml --output dsft_qlora.yaml
```

The new file says at its place what was changed or dropped, and why; so does the terminal. TRL's own commands drop these
keys without a word, and train with float32, 1024 tokens and no warm-up instead.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import whole_file
from .arguments import GONE, launch_fields, split_arguments, unknown_field, user_errors


# Old names of what is the same under a new one
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "hub_model_revision": "hub_revision",
    "max_seq_length": "max_length",
    "preprocessing_num_workers": "dataset_num_proc",
    "push_to_hub_model_id": "hub_model_id",
    "text_column": "dataset_text_field",
}
# The tracker reads these from the environment
WANDB = {"wandb_entity": "WANDB_ENTITY", "wandb_project": "WANDB_PROJECT", "wandb_run_group": "WANDB_RUN_GROUP"}
# Rows that the handbook's files of 2025 hold out of a mixture
TEST_ROWS = {"sft": 1000, "dpo": 2000}
# Keys by which a file is known
SIGNS = {
    "dpo": {"beta", "max_prompt_length", "precompute_ref_log_probs", "sync_ref_model", "label_smoothing"},
    "sft": {"max_seq_length", "packing", "assistant_only_loss", "dataset_text_field", "text_column", "dataset_kwargs"},
}


@dataclass
class Entry:
    """Lines of the new file: a field, a comment on it or on what stood in its place, or both."""

    field: str | None
    value: Any = None
    comment: str | None = None

    @property
    def sentence(self) -> str:
        text = f"{self.field}: {self.comment}" if self.field else self.comment
        return text if text.endswith((".", "?")) else f"{text}."


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Rewrite a training file of the alignment-handbook, of any year, for trl-distill sft or dpo. Every "
        "key that is changed or dropped is named, with the reason, in the new file and on the terminal. Comments of the "
        "old file are lost.",
    )
    parser.add_argument("file", metavar="FILE", help="YAML file of the handbook.")
    parser.add_argument(
        "--output", metavar="FILE", help="The new file. Default: FILE with `.converted.yaml` as its ending."
    )
    parser.add_argument("--command", choices=["sft", "dpo"], help="What FILE is for. Default: told by its keys.")
    return parser


def detect_command(config: dict[str, Any]) -> str:
    """`sft` or `dpo`, whichever a file of the handbook is for."""
    if any("orpo" in str(config.get(key)).lower() for key in ("output_dir", "hub_model_id", "run_name")):
        raise ValueError("This is a file for ORPO, which has no command here. --command dpo takes its values for DPO.")
    for command, signs in SIGNS.items():
        if signs & config.keys():
            return command
    raise ValueError("The keys do not tell whether the file is for sft or dpo. Say so with --command.")


def training_parser(command: str) -> argparse.ArgumentParser:
    """Parser of `trl-distill sft` or `trl-distill dpo`."""
    from . import dpo, sft

    return {"sft": sft, "dpo": dpo}[command].make_parser()


class Converter:
    """
    Fields of the new file from the keys of an old one, in their order.

    Args:
        config (`dict[str, Any]`):
            The old file.
        command (`str`):
            `"sft"` or `"dpo"`.
        template_file (`str`):
            Name of the file into which the caller writes `template`, if there is one after [`Converter.convert`].
    """

    def __init__(self, config: dict[str, Any], command: str, template_file: str):
        self.config = config
        self.command = command
        self.template_file = template_file
        self.template: str | None = None
        self.fields = {action.dest for action in training_parser(command)._actions} - {"help"}
        self.entries: list[Entry] = []
        self.rules: dict[str, Callable[[str, Any], None]] = {
            "chat_template": self._chat_template,
            "dataset_kwargs": self._dataset_kwargs,
            "dataset_mixer": self._dataset_mixer,
            "dataset_mixture": self._dataset_mixture,
            "model_name_or_path": self._model,
            "packing_strategy": self._packing_strategy,
            "tokenizer_name_or_path": self._tokenizer,
            "torch_dtype": self._dtype,
            "use_flash_attention_2": self._flash_attention,
            "warmup_ratio": self._warmup_ratio,
        }

    def convert(self) -> list[Entry]:
        """Entries of the new file."""
        for key, value in self.config.items():
            if key.endswith("_strategy") and value is False:
                value = "no"  # YAML reads a bare `no` as a boolean
            if key in self.rules:
                self.rules[key](key, value)
            elif key in WANDB:
                self._environment(key)
            elif key in ("dataset_splits", "dataset_configs") and "dataset_mixer" in self.config:
                pass  # said with the mixer
            elif key == "warmup_steps" and not value and "warmup_ratio" in self.config:
                pass  # the ratio counted
            elif key in RENAMED and RENAMED[key] in self.fields:
                self._set(RENAMED[key], value, f"was `{key}`", old=key)
            elif key in GONE:
                self._drop(key, GONE[key])
            elif key in self.fields or key in launch_fields():
                self._set(key, value)
            else:
                self._drop(key, unknown_field(key, self.fields, f"of trl-distill {self.command}"))
        if self.command == "sft" and "packing" not in self.config and self._is_before_2025():
            self._set(
                "packing",
                True,
                "added: the handbook's script packed until 2025. It also put an empty system message before dialogues "
                "without one, which is not done here",
            )
        fields = [entry.field for entry in self.entries if entry.field is not None]
        twice = {field for field in fields if fields.count(field) > 1}
        if twice:
            raise ValueError(f"The file says in two ways what `{min(twice)}` is to be. Take one of them out.")
        return self.entries

    def _is_before_2025(self) -> bool:
        return not self.config.keys().isdisjoint({"dataset_mixer", "preprocessing_num_workers"})

    def _set(self, field: str, value: Any, comment: str | None = None, old: str | None = None) -> None:
        if old is not None and old != field and field in self.config:
            self._drop(old, f"`{field}` is set as well")
        elif field == "eval_strategy" and value != "no" and not self._has_test_rows():
            self.entries.append(Entry(field, "no", f"was {value}: the data of the old file have no test rows"))
        else:
            self.entries.append(Entry(field, value, comment))

    def _drop(self, key: str, reason: str) -> None:
        self.entries.append(Entry(None, None, f"{key}: dropped. {reason}"))

    def _has_test_rows(self) -> bool:
        if "dataset_mixture" in self.config:
            return self.config["dataset_mixture"].get("test_split_size") is not None
        if "dataset_mixer" in self.config:
            return any("test" in split for split in self._splits())
        return True

    def _columns(self) -> list[str]:
        """Columns that the handbook's scripts of 2023 and 2024 used; they dropped what else there was."""
        return ["chosen", "rejected"] if self.command == "dpo" else [self.config.get("text_column", "messages")]

    def _splits(self) -> list[str]:
        return self.config.get("dataset_splits") or ["train", "test"]

    def _model(self, key: str, value: Any) -> None:
        comment = None
        if self.command == "dpo" and (self.config.get("use_peft") or self.config.get("load_in_4bit")):
            comment = "if this is a LoRA adapter, as the handbook's QLoRA models are, put it into its base first: "
            comment += "`trl-distill merge`"
        self._set(key, value, comment)

    def _dtype(self, key: str, value: Any) -> None:
        if value is None:
            self._set("dtype", "float32", f"was `{key}: null`, which meant float32 until transformers 5", key)
        else:
            self._set("dtype", value, f"was `{key}`", key)

    def _flash_attention(self, key: str, value: Any) -> None:
        if value:
            self._set("attn_implementation", "flash_attention_2", f"was `{key}: true`", key)
        else:
            self._drop(key, "`attn_implementation` is left at its default")

    def _warmup_ratio(self, key: str, value: Any) -> None:
        if self.config.get("warmup_steps"):
            self._drop(key, "`warmup_steps` is set as well, and won")
        elif value and value >= 1:
            self._drop(key, f"the whole run cannot warm up, got {value}")
        else:
            self.entries.append(Entry("warmup_steps", value, f"was `{key}`; below 1 it is a share of all steps"))

    def _packing_strategy(self, key: str, value: Any) -> None:
        if value == "ffd":
            self._set(key, "bfd", "was ffd, which TRL has no more; both fill rows without cutting dialogues")
        else:
            self._set(key, value)

    def _dataset_kwargs(self, key: str, value: Any) -> None:
        kept = {name: setting for name, setting in (value or {}).items() if name == "skip_prepare_dataset"}
        if kept and self.command == "sft":
            self._set(key, kept)
        gone = ", ".join(f"`{name}`" for name in value or {} if name not in kept)
        if gone or not kept:
            self._drop(key, f"TRL no longer has {gone or 'it'}: it adds no special tokens to what a template wrote")

    def _tokenizer(self, key: str, value: Any) -> None:
        if self.command == "sft" and "chat_template" not in self.config:
            self._set(
                "chat_template_path", value, f"was `{key}`: the template, and the tokens it needs, come from there"
            )
        else:
            self._drop(key, f"the tokenizer beside the model is used. If {value} has other tokens, save it there")

    def _chat_template(self, key: str, value: Any) -> None:
        from trl.chat_template_utils import has_generation_markers

        if "chat_template_path" not in self.fields:
            self._drop(key, GONE[key])
            return
        self.template = value
        comment = f"was the text in `{key}`"
        if self.config.get("assistant_only_loss") and not has_generation_markers(value):
            comment += (
                ". It has no {% generation %} markers, which `assistant_only_loss` needs: put them into the file"
            )
        self._set("chat_template_path", self.template_file, comment, key)

    def _environment(self, key: str) -> None:
        names = [name for name in WANDB if name in self.config]
        if key == names[0]:
            env = {WANDB[name]: self.config[name] for name in names}
            self._set("env", env, f"was {', '.join(f'`{name}`' for name in names)}")

    def _share(self, split: str, share: float | None) -> tuple[str, str]:
        """A split of which only the first rows are taken, and the comment on it."""
        if share is None or share >= 1:
            return split, ""
        percent = max(1, round(100 * share))
        rounded = "" if abs(percent - 100 * share) < 1e-9 else f", rounded from {100 * share:g} %"
        return f"{split}[:{percent}%]", f"; {split}: the first {percent} % instead of a random {percent} %{rounded}"

    def _dataset_mixture(self, key: str, value: Any) -> None:
        """`dataset_mixture` of 2025: rows of all splits together, of which some are held out."""
        names = {"id": "path", "config": "name", "split": "split", "columns": "columns"}
        comment = f"was `{key}`: id is now path, config is name"
        datasets = []
        for old in value["datasets"]:
            if old.get("weight") == 0:
                continue
            dataset = {new: old[name] for name, new in names.items() if old.get(name) is not None}
            dataset["split"], remark = self._share(dataset.get("split", "train"), old.get("weight"))
            comment += remark
            datasets.append(dataset)
        self._set("datasets", datasets, comment)
        if value.get("seed") is not None:
            self._drop(f"{key}.seed", "rows are drawn with `seed`")
        if value.get("test_split_size") is not None:
            self._set("test_split_size", value["test_split_size"], f"was in `{key}`")

    def _dataset_mixer(self, key: str, value: Any) -> None:
        """`dataset_mixer` of 2023 and 2024: names and shares, with splits of their own for training and test."""
        names, splits = list(value), self._splits()
        configs = self.config.get("dataset_configs") or [None] * len(names)
        if len(configs) != len(names):
            raise ValueError(
                f"`dataset_configs` must have {len(names)} names, as many as `dataset_mixer`, got {configs}."
            )
        train, test = ([split for split in splits if kind in split] for kind in ("train", "test"))
        comment = f"was `{key}` and `dataset_splits`"
        if len(names) == len(train) == 1 and len(test) <= 1 and value[names[0]] >= 1:
            self._set("dataset_name", names[0], comment)
            if configs[0] is not None:
                self._set("dataset_config", configs[0], "was `dataset_configs`")
            self._set("dataset_train_split", train[0])
            if test:
                self._set("dataset_test_split", test[0])
            return
        datasets = []
        for name, config in zip(names, configs, strict=True):
            for split in train if value[name] else []:
                part, remark = self._share(split, value[name])
                dataset = {"path": name, "name": config, "split": part, "columns": self._columns()}
                datasets.append({field: setting for field, setting in dataset.items() if setting is not None})
                comment += remark
        self._set("datasets", datasets, comment)
        if test:
            self._set(
                "test_split_size",
                TEST_ROWS[self.command],
                f"added: a mixture has no test splits, so rows of training are held out instead of {', '.join(test)}",
            )


def render(entries: list[Entry], title: str) -> str:
    """The new file."""
    import textwrap

    import yaml

    lines = [f"# {title}"]
    for entry in entries:
        if entry.comment is not None:
            lines += textwrap.wrap(
                entry.sentence, 117, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False
            )
        if entry.field is not None:
            dump = yaml.safe_dump({entry.field: entry.value}, sort_keys=False, allow_unicode=True, width=10_000)
            lines.append(dump.rstrip("\n"))
    return "\n".join(lines) + "\n"


def check(text: str, command: str) -> None:
    """Raise `ValueError` if the command would not take the new file. The environment is left as it is."""
    import yaml
    from trl import DatasetMixtureConfig

    config = yaml.safe_load(text)
    config.pop("env", None)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        values, _, _ = split_arguments(training_parser(command), ["--config", str(file)], launch_fields())
    try:
        DatasetMixtureConfig(datasets=values.datasets)
    except TypeError as error:
        raise ValueError(str(error)) from error


def read_old(path: Path) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold `field: value` lines, got {type(config).__name__}.")
    mixer, mixture = config.get("dataset_mixer", {}), config.get("dataset_mixture", {"datasets": []})
    if not isinstance(mixer, dict) or not all(isinstance(share, (int, float)) for share in mixer.values()):
        raise ValueError(f"`dataset_mixer` in {path} must hold `name: share` lines, got {mixer!r}.")
    if not isinstance(mixture, dict) or not isinstance(mixture.get("datasets"), list):
        raise ValueError(f"`dataset_mixture` in {path} must hold a list `datasets`, got {mixture!r:.200}.")
    return config


def convert(source: Path, output: Path, command: str | None) -> tuple[str, list[Entry]]:
    """Write the new file, and the template beside it. Return what it is for, and its entries."""
    if output.resolve() == source.resolve():
        raise ValueError(f"{output} is the old file. Name another one with --output.")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"The folder of {output} does not exist. Create it first.")
    config = read_old(source)
    command = command or detect_command(config)
    template_file = output.with_suffix(".jinja")
    converter = Converter(config, command, str(template_file))
    entries = converter.convert()
    title = f"{source.name} of the alignment-handbook, converted. Run: trl-distill {command} --config {output}"
    text = render(entries, title)
    check(text, command)
    if converter.template is not None:
        with whole_file(template_file) as file:
            file.write(converter.template)
    with whole_file(output) as file:
        file.write(text)
    return command, entries


def run(argv: list[str]) -> None:
    """Parse `argv`, write the new file, and say what is different in it."""
    with user_errors("trl-distill convert-handbook"):
        args, _, _ = split_arguments(make_parser("trl-distill convert-handbook"), argv)
        source = Path(args.file)
        output = Path(args.output) if args.output else source.with_suffix(".converted.yaml")
        command, entries = convert(source, output, args.command)
    for entry in entries:
        if entry.comment is not None:
            sys.stderr.write(f"{entry.sentence}\n")
    sys.stderr.write("Comments of the old file are not in the new one.\n")
    sys.stdout.write(f"trl-distill {command} --config {output}\n")


if __name__ == "__main__":
    run(sys.argv[1:])

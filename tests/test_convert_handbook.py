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

"""Conversion of the alignment-handbook's files: oracle A8 of the Zephyr specification."""

import os
import re

import pytest
import yaml

from trl_distill import cli
from trl_distill.scripts import dpo, sft
from trl_distill.scripts.arguments import parse_strictly, resolve


TEMPLATE = "{% for message in messages %}\n{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}\n{% endfor %}"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"load_in_4bit": True, "use_peft": True, "lora_dropout": 0.05, "lora_target_modules": TARGETS}


def mixture(name, kind, columns, test_rows):
    entries = [
        {"id": name, "config": "default", "split": f"{part}_{kind}", "columns": columns, "weight": 1.0}
        for part in ("train", "test")
    ]
    return {"dataset_mixture": {"datasets": entries, "test_split_size": test_rows, "seed": 0}, "dataset_num_proc": 12}


def mixer(name, kind):
    return {"dataset_mixer": {name: 1.0}, "dataset_splits": [f"train_{kind}", f"test_{kind}"]}


ULTRACHAT, ULTRAFEEDBACK = "HuggingFaceH4/ultrachat_200k", "HuggingFaceH4/ultrafeedback_binarized"
MISTRAL = {"model_name_or_path": "mistralai/Mistral-7B-v0.1", "model_revision": "main", "torch_dtype": "bfloat16"}
CHECKPOINTS = {"save_strategy": "steps", "save_steps": 100, "save_total_limit": 1, "push_to_hub": True}
COMMON = {
    "bf16": True,
    "do_eval": True,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "log_level": "info",
    "num_train_epochs": 1,
    "lr_scheduler_type": "cosine",
    "seed": 42,
    "warmup_ratio": 0.1,
    **CHECKPOINTS,
}
SFT = {
    **COMMON,
    "eval_strategy": "epoch",
    "hub_strategy": "every_save",
    "logging_steps": 5,
    "logging_strategy": "steps",
    "max_seq_length": 2048,
    "max_steps": -1,
    "overwrite_output_dir": True,
    "per_device_eval_batch_size": 8,
}
DPO = {
    **COMMON,
    "beta": 0.01,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "logging_steps": 10,
    "max_length": 1024,
    "max_prompt_length": 512,
    "per_device_eval_batch_size": 8,
}
# Keys and values of recipes/zephyr-7b-beta at 925acdf (2025-07-29)
HANDBOOK = {
    "sft/config_full": {
        **MISTRAL,
        "attn_implementation": "flash_attention_2",
        "chat_template": TEMPLATE,
        **mixture(ULTRACHAT, "sft", ["messages"], 1000),
        **SFT,
        "gradient_accumulation_steps": 1,
        "hub_model_id": "zephyr-7b-sft-full",
        "learning_rate": 2.0e-5,
        "output_dir": "data/zephyr-7b-sft-full",
        "per_device_train_batch_size": 16,
        "remove_unused_columns": True,
        "report_to": ["wandb"],
    },
    "sft/config_qlora": {
        **MISTRAL,
        "attn_implementation": "flash_attention_2",
        **LORA,
        "lora_r": 16,
        "lora_alpha": 16,
        "chat_template": TEMPLATE,
        **mixture(ULTRACHAT, "sft", ["messages"], 1000),
        **SFT,
        "gradient_accumulation_steps": 2,
        "hub_model_id": "zephyr-7b-sft-qlora",
        "learning_rate": 2.0e-4,
        "output_dir": "data/zephyr-7b-sft-qlora",
        "per_device_train_batch_size": 4,
        "report_to": ["tensorboard"],
    },
    "dpo/config_full": {
        "model_name_or_path": "alignment-handbook/zephyr-7b-sft-full",
        "torch_dtype": None,
        **mixture(ULTRAFEEDBACK, "prefs", ["chosen", "rejected"], 2000),
        **DPO,
        "gradient_accumulation_steps": 2,
        "hub_model_id": "zephyr-7b-dpo-full",
        "learning_rate": 5.0e-7,
        "optim": "adamw_torch",
        "output_dir": "data/zephyr-7b-dpo-full",
        "per_device_train_batch_size": 8,
    },
    "dpo/config_qlora": {
        "model_name_or_path": "alignment-handbook/zephyr-7b-sft-qlora",
        "torch_dtype": "bfloat16",
        "attn_implementation": "flash_attention_2",
        **LORA,
        "lora_r": 128,
        "lora_alpha": 128,
        **mixer(ULTRAFEEDBACK, "prefs"),
        "dataset_num_proc": 12,
        **DPO,
        "gradient_accumulation_steps": 4,
        "hub_model_id": "zephyr-7b-dpo-qlora",
        "learning_rate": 5.0e-6,
        "optim": "paged_adamw_32bit",
        "output_dir": "data/zephyr-7b-dpo-qlora",
        "per_device_train_batch_size": 4,
    },
}
# What stood in the files of 2023 and 2024 in place of these keys
OLDER = {
    "attn_implementation": ("use_flash_attention_2", True),
    "dataset_num_proc": ("preprocessing_num_workers", 12),
    "eval_strategy": ("evaluation_strategy", "epoch"),
}
# Specification, section 1: learning rate, length, accumulation x batch, optimiser, LoRA
EXPECTED = {
    "sft/config_full": (2e-5, 2048, (1, 16), "adamw_torch_fused", None),
    "sft/config_qlora": (2e-4, 2048, (2, 4), "adamw_torch_fused", (16, 16, 0.05)),
    "dpo/config_full": (5e-7, 1024, (2, 8), "adamw_torch", None),
    "dpo/config_qlora": (5e-6, 1024, (4, 4), "paged_adamw_32bit", (128, 128, 0.05)),
}
COMMANDS = {"sft": sft, "dpo": dpo}


def older(config):
    """A file of 2023 or 2024: a mixer, and the names of that time."""
    config = dict(OLDER.get(key, (key, value)) for key, value in config.items())
    if "dataset_mixture" in config:
        entry = config.pop("dataset_mixture")["datasets"][0]
        config |= mixer(entry["id"], entry["split"].removeprefix("train_"))
    return config


@pytest.fixture
def convert(tmp_path, capsys):
    """Convert keys and values; return the new file's text, its values and what was printed."""

    def run(config, *arguments):
        old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
        old.write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))
        cli.main(["convert-handbook", str(old), "--output", str(new), *arguments])
        text = new.read_text()
        return text, yaml.safe_load(text), capsys.readouterr()

    return run


def parse(command, path):
    args = parse_strictly(COMMANDS[command].make_parser(), ["--config", str(path), "--use_cpu"])
    resolve(args[0], args[1], args[3])
    return args


class TestHandbook:
    @pytest.mark.parametrize("is_old", [False, True])
    @pytest.mark.parametrize("name", HANDBOOK)
    def test_files_parse_with_the_handbooks_values(self, name, is_old, convert, tmp_path):
        command = name[:3]
        config = older(HANDBOOK[name]) if is_old else HANDBOOK[name]
        convert(config)
        script, training, model, data = parse(command, tmp_path / "new.yaml")

        learning_rate, length, batch, optimizer, lora = EXPECTED[name]
        assert training.learning_rate == learning_rate
        assert training.max_length == length
        assert (training.gradient_accumulation_steps, training.per_device_train_batch_size) == batch
        assert training.optim == optimizer
        assert training.num_train_epochs == 1
        assert training.lr_scheduler_type == "cosine"
        assert training.warmup_steps == 0.1
        assert training.get_warmup_steps(1000) == 100
        assert training.bf16
        assert training.gradient_checkpointing_kwargs == {"use_reentrant": False}
        assert training.eval_strategy == ("epoch" if is_old else config["eval_strategy"])
        assert training.dataset_num_proc == 12
        assert training.output_dir == config["output_dir"]
        assert model.model_name_or_path == config["model_name_or_path"]
        assert model.dtype == (config["torch_dtype"] or "float32")
        has_flash = "attn_implementation" in HANDBOOK[name]
        assert model.attn_implementation == ("flash_attention_2" if has_flash else None)
        assert model.use_peft == model.load_in_4bit == (lora is not None)
        if lora is not None:
            assert (model.lora_r, model.lora_alpha, model.lora_dropout) == lora
            assert model.lora_target_modules == TARGETS
        if command == "dpo":
            assert training.beta == 0.01
        else:
            assert open(training.chat_template_path).read() == TEMPLATE
            assert training.packing == is_old

        source, kind = (ULTRACHAT, "sft") if command == "sft" else (ULTRAFEEDBACK, "prefs")
        if "dataset_mixer" in config:
            assert (script.dataset_name, data.datasets) == (source, [])
            assert (script.dataset_train_split, script.dataset_test_split) == (f"train_{kind}", f"test_{kind}")
        else:
            columns = ["messages"] if command == "sft" else ["chosen", "rejected"]
            entries = [(entry.path, entry.name, entry.split, entry.columns) for entry in data.datasets]
            assert entries == [(source, "default", f"{part}_{kind}", columns) for part in ("train", "test")]
            assert data.test_split_size == (1000 if command == "sft" else 2000)
            assert isinstance(data.test_split_size, int)  # a float would be a share

    @pytest.mark.parametrize("is_old", [False, True])
    @pytest.mark.parametrize("name", HANDBOOK)
    def test_every_change_is_named(self, name, is_old, convert):
        config = older(HANDBOOK[name]) if is_old else HANDBOOK[name]
        text, new, printed = convert(config)
        comments = " ".join(" ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#")).split())
        for key, value in config.items():
            if key not in new or new[key] != value:
                assert key in comments
                assert key in printed.err
        for key in new:
            if key not in config and not key.startswith("dataset_t"):  # the splits are told with the name
                assert f"{key}: " in comments
        assert [key for key in new if key in config] == [key for key in config if key in new]

    def test_comments_stand_at_their_place(self, convert):
        text, _, _ = convert(HANDBOOK["dpo/config_qlora"])
        assert "\n# dtype: was `torch_dtype`.\ndtype: bfloat16\nattn_implementation" in text
        assert "\nmax_length: 1024\n# max_prompt_length: dropped. prompts have no limit of their own;" in text
        assert "`trl-distill merge`.\nmodel_name_or_path: alignment-handbook/zephyr-7b-sft-qlora" in text

    @pytest.mark.parametrize("command", COMMANDS)
    def test_strict_parser_names_the_replacement(self, command, tmp_path, capsys):
        """A8: the files as they are do not pass, and each key that stops them is sent to its successor."""
        successors = {
            "chat_template": "use `chat_template_path`" if command == "sft" else "leave it out, the template is read",
            "dataset_mixer": "use `datasets`",
            "dataset_mixture": "use `datasets`",
            "dataset_splits": "use `datasets`",
            "evaluation_strategy": "use `eval_strategy`",
            "hub_model_revision": "use `hub_revision`",
            "max_prompt_length": "leave it out, prompts have no limit of their own",
            "max_seq_length": "use `max_length`",
            "overwrite_output_dir": "leave it out, a new run always",
            "preprocessing_num_workers": "use `dataset_num_proc`",
            "push_to_hub_model_id": "use `hub_model_id`",
            "tokenizer_name_or_path": "use `model_name_or_path`",
            "torch_dtype": "use `dtype`",
            "use_flash_attention_2": "use `attn_implementation`",
            "warmup_ratio": "use `warmup_steps`",
        }
        fields = {action.dest for action in COMMANDS[command].make_parser()._actions}
        stale = {key for config in HANDBOOK.values() for old in (config, older(config)) for key in old}
        assert {key for key in stale - fields if key != "beta"} <= successors.keys()
        file = tmp_path / "config.yaml"
        for key, successor in successors.items():
            file.write_text(f"{key}: 1\n")
            with pytest.raises(ValueError, match=f"unknown field `{key}` in the config file: {successor}"):
                parse_strictly(COMMANDS[command].make_parser(), ["--config", str(file)])


SMALL = {"model_name_or_path": "m", "max_seq_length": 64, "output_dir": "out"}


class TestRules:
    def test_mixer_of_several_data_sets(self, convert, tmp_path):
        config = {**SMALL, "dataset_mixer": {"a": 1.0, "b": 0.25, "c": 0, "d": 0.001}, "evaluation_strategy": "steps"}
        config |= {"dataset_splits": ["train_x", "test_x"], "dataset_configs": [None, "all", None, None]}
        text, new, _ = convert(config)
        assert new["datasets"] == [
            {"path": "a", "split": "train_x", "columns": ["messages"]},
            {"path": "b", "name": "all", "split": "train_x[:25%]", "columns": ["messages"]},
            {"path": "d", "split": "train_x[:1%]", "columns": ["messages"]},
        ]
        assert new["test_split_size"] == 1000
        assert "rounded from 0.1 %" in text
        assert "&id" not in text
        assert len(parse("sft", tmp_path / "new.yaml")[3].datasets) == 3

    def test_data_without_test_rows_are_not_evaluated(self, convert):
        config = {**SMALL, "dataset_mixer": {"a": 1.0}, "dataset_splits": ["train"], "evaluation_strategy": "epoch"}
        text, new, _ = convert(config)
        assert new["eval_strategy"] == "no"
        assert "was epoch: the data of the old file have no test rows" in text
        assert "dataset_test_split" not in new

    def test_tracker_goes_into_the_environment_of_the_run_only(self, convert, tmp_path):
        config = {**SMALL, "wandb_project": "p", "wandb_entity": "e", "dataset_name": "d"}
        _, new, _ = convert(config)
        assert new["env"] == {"WANDB_PROJECT": "p", "WANDB_ENTITY": "e"}
        assert "WANDB_PROJECT" not in os.environ

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ({"torch_dtype": "auto"}, {"dtype": "auto"}),
            ({"torch_dtype": None, "dtype": "float16"}, {"dtype": "float16"}),
            ({"use_flash_attention_2": False}, {"attn_implementation": None}),
            ({"warmup_ratio": 0.1, "warmup_steps": 50}, {"warmup_steps": 50}),
            ({"warmup_ratio": 0.1, "warmup_steps": 0}, {"warmup_steps": 0.1}),
            ({"evaluation_strategy": False, "save_strategy": False}, {"eval_strategy": "no", "save_strategy": "no"}),
            ({"packing_strategy": "ffd"}, {"packing_strategy": "bfd"}),
            ({"packing": False, "preprocessing_num_workers": 2}, {"packing": False, "dataset_num_proc": 2}),
            ({"dataset_kwargs": {"add_special_tokens": False}}, {"dataset_kwargs": None}),
            ({"dataset_kwargs": {"skip_prepare_dataset": True}}, {"dataset_kwargs": {"skip_prepare_dataset": True}}),
            ({"text_column": "text"}, {"dataset_text_field": "text"}),
            ({"push_to_hub_model_id": "h", "hub_model_revision": "r"}, {"hub_model_id": "h", "hub_revision": "r"}),
            ({"tokenizer_name_or_path": "t"}, {"chat_template_path": "t"}),
            ({"num_processes": 8}, {"num_processes": 8}),  # of accelerate launch
            ({"learning_rat": 1}, {"learning_rat": None}),
        ],
    )
    def test_single_keys(self, keys, expected, convert):
        text, new, printed = convert({**SMALL, "dataset_name": "d", **keys})
        assert {key: new.get(key) for key in expected} == expected
        for key in keys.keys() - new.keys():
            assert key in printed.err
            assert f"{key}" in text

    def test_unknown_key_gets_a_hint(self, convert):
        _, _, printed = convert({**SMALL, "dataset_name": "d", "learning_rat": 1})
        assert "learning_rat: dropped. unknown field `learning_rat`" in printed.err
        assert "did you mean `learning_rate`" in printed.err

    def test_template_without_markers(self, convert):
        config = {**SMALL, "dataset_name": "d", "chat_template": TEMPLATE}
        assert "markers" not in convert(config)[2].err
        assert "which `assistant_only_loss` needs" in convert(config | {"assistant_only_loss": True})[2].err
        marked = "{% generation %}{% endgeneration %}"
        assert "markers" not in convert(config | {"assistant_only_loss": True, "chat_template": marked})[2].err

    def test_templates_and_tokenizers_of_dpo_are_those_of_the_model(self, convert):
        config = {"model_name_or_path": "m", "beta": 0.1, "dataset_name": "d", "chat_template": TEMPLATE}
        _, new, printed = convert(config | {"tokenizer_name_or_path": "t"})
        assert "chat_template_path" not in new
        assert "If t has other tokens" in printed.err

    def test_command(self, convert):
        assert "trl-distill sft --config" in convert(SMALL | {"dataset_name": "d"})[2].out
        assert "trl-distill dpo --config" in convert(SMALL | {"dataset_name": "d"}, "--command", "dpo")[2].out

    def test_default_output(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "old.yaml").write_text(yaml.safe_dump(SMALL | {"dataset_name": "d", "chat_template": TEMPLATE}))
        cli.main(["convert-handbook", "old.yaml"])
        names = {file.name for file in tmp_path.iterdir()}
        assert names == {"old.yaml", "old.converted.yaml", "old.converted.jinja"}
        assert parse("sft", "old.converted.yaml")[1].chat_template_path == "old.converted.jinja"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("model_name_or_path: m", "Say so with --command"),
        ("- a", "must hold `field: value` lines, got list"),
        ("a: [", "is not valid YAML"),
        ("beta: 0.1\noutput_dir: data/x-orpo", "This is a file for ORPO"),
        ("beta: 0.1\ndataset_mixer: [a]", "`dataset_mixer` in .* must hold `name: share` lines"),
        ("beta: 0.1\ndataset_mixture: {a: 1}", "must hold a list `datasets`"),
        ("beta: 0.1\ndataset_mixture: {datasets: [{split: a}]}", "path"),
        ("beta: 0.1\ndataset_mixer: {a: 1, b: 1}\ndataset_configs: [c]", "`dataset_configs` must have 2 names"),
        ("beta: 0.1\ndataset_mixer: {a: 1}\ndataset_name: b", "in two ways what `dataset_name` is"),
        ("beta: 0.1\nmax_steps: often", "`max_steps` must be of type int, got 'often'"),
        ("beta: 0.1\nlr_scheduler_type: cosinus", "`lr_scheduler_type` must be one of"),
    ],
)
def test_nothing_is_written_on_an_error(config, message, tmp_path, capsys):
    old = tmp_path / "old.yaml"
    old.write_text(config)
    with pytest.raises(SystemExit):
        cli.main(["convert-handbook", str(old)])
    error = capsys.readouterr().err
    assert error.startswith("trl-distill convert-handbook: error: ")
    assert re.search(message, error)
    assert [file.name for file in tmp_path.iterdir()] == ["old.yaml"]


def test_the_old_file_is_never_overwritten(tmp_path, capsys):
    old = tmp_path / "old.yaml"
    old.write_text("beta: 0.1\n")
    with pytest.raises(SystemExit):
        cli.main(["convert-handbook", str(old), "--output", str(old)])
    assert "is the old file" in capsys.readouterr().err
    assert old.read_text() == "beta: 0.1\n"

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

"""`trl-distill memory` against what real trainers of tiny models hold after a step, and its errors."""

import importlib
import json

import pytest
import torch
import yaml

from tests.commands import CPU, error_of, run_python, write_rows
from trl_distill import cli
from trl_distill.scripts import memory
from trl_distill.scripts.arguments import parse_strictly
from trl_distill.training import resolve


@pytest.fixture
def fields(tmp_path, tokenizer, tiny_model):
    """Writes a config file of a tiny student, teacher and data."""
    size = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}
    for seed, name, rows in ((0, "student", 264), (1, "teacher", 272)):
        tiny_model(seed=seed, vocab_size=rows, **size).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    rows = [{"prompt": f"{i} + 1 = ", "completion": f"{i + 1}.", "label": i % 2 == 0} for i in range(40)]
    pairs = [{"prompt": f"{i}", "chosen": "a", "rejected": "b"} for i in range(40)]
    values = {"model_name_or_path": str(tmp_path / "student"), "output_dir": str(tmp_path / "out"), "max_steps": 1}
    values |= CPU | {"bf16": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}

    def write(command, **changes):
        data = write_rows(tmp_path / "rows.jsonl", pairs if command == "dpo" else rows)
        if command == "minillm":
            values["teacher_model_name_or_path"] = str(tmp_path / "teacher")
            changes = {"max_completion_length": 6} | changes
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values | {"dataset_name": data} | changes))
        return ["--config", str(path)]

    return write


LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"}
QLORA = LORA | {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True, "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        ("sft", {}),
        ("sft", LORA),
        ("sft", QLORA),
        ("nat", LORA | {"dtype": "bfloat16"}),
        ("nat", QLORA),
        ("minillm", LORA | {"dtype": "bfloat16"}),
        ("dpo", {}),
        ("ranker", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "qlora" if value == QLORA else "lora" if value else "full",
)
def test_what_a_trainer_holds_after_a_step(command, changes, fields, capsys):
    """Weights, gradients and optimizer, to the byte; steps are counted in single numbers."""
    argv = fields(command, **changes)
    counted, _ = memory.estimate(command, argv)
    script = importlib.import_module(f"trl_distill.scripts.{command}")
    args = parse_strictly(script.make_parser(), argv)
    resolve(args[0], args[1], args[3])
    trainer = script.build_trainer(*args)
    trainer.train()
    model, states = trainer.model, trainer.optimizer.optimizer.state
    held = sum(value.nbytes for state in states.values() for value in state.values() if torch.is_tensor(value))
    assert counted.always["optimizer"] == held > 0
    assert counted.step["gradients"] == sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    constants = 0
    for weight in model.parameters():
        if (state := getattr(weight, "quant_state", None)) is not None:
            tensors = [state.absmax, state.code, state.state2.absmax, state.state2.code, state.offset]
            constants += sum(tensor.nbytes for tensor in tensors)
    own = counted.always["weights of the student"] + counted.always["adapters and gates"]
    assert own == model.get_memory_footprint() + constants and (constants > 0) == ("load_in_4bit" in changes)
    assert (counted.always["adapters and gates"] > 0) == ("use_peft" in changes)
    teacher = getattr(trainer, "teacher_model", None) or getattr(trainer, "ref_model", None)
    [others] = [size for what, size in counted.always.items() if what.endswith(("teacher", "reference"))]
    assert others == (0 if teacher is None else teacher.get_memory_footprint())
    assert (others > 0) == (command in ("minillm", "dpo"))


def test_commands():
    assert set(memory.COMMANDS) == set(cli.TRAINING)


def test_table_and_json(fields, capsys):
    argv = ["minillm", *fields("minillm", steps_per_generation=3), "--row_tokens", "20"]
    memory.run(argv)
    text = capsys.readouterr().out
    assert text.startswith("minillm, 2 x 20 tokens in a forward\n")
    assert "in a rollout: keys and values of the teacher" in text and "Cards that have room, of 8, 12," in text
    memory.run([*argv, "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads(run_python("-m", "trl_distill.cli", "memory", *argv, "--json").stdout)  # and no more
    assert facts["peak"] == sum(facts["always"].values()) + max(
        sum(facts[phase].values()) for phase in ("step", "rollout")
    )
    assert facts["fits"] == [8, 12, 16, 24, 40, 80] and facts["measured_peak"] is None
    # Two layers, keys and values, 64 numbers of 4 bytes (float32, rotated), 6 rows of 20 tokens
    assert facts["rollout"]["keys and values of the student"] == 2 * 2 * 64 * 4 * 6 * 20
    assert facts["step"]["states of the teacher"] == 6 * 6 * 64 * 2


def test_fields_that_save_memory(fields):
    def step(**changes):
        return memory.estimate("minillm", fields("minillm", **changes), row_tokens=200)[0]

    plain, checkpointed = step(activation_checkpointing=False), step(activation_checkpointing=True)
    assert checkpointed.step["activations"] < plain.step["activations"]
    halved = step(loss_chunk_tokens=4).step["loss over the vocabulary"]
    assert plain.step["loss over the vocabulary"] - halved == 8 * 264 * (12 - 4)
    assert step(teacher_mix_alpha=0.0).rollout.keys() < plain.rollout.keys()
    assert step(optim="adamw_8bit").always["optimizer"] < plain.always["optimizer"] / 2


def test_what_a_machine_has_changes_nothing(fields):
    """The count is for a GPU that multiplies bfloat16, unless a field says otherwise."""
    argv = fields("sft", bf16=None)
    assert memory.estimate("sft", argv) == memory.estimate("sft", [*argv, "--bf16", "true"])
    assert memory.estimate("sft", [*argv, "--bf16", "false"])[0].step["copies of weights in bfloat16"] == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "name the training first, one of minillm, nat, "),
        (("lion",), "got lion."),
        (("sft", "--max_seq_length", "9"), "unknown field `max_seq_length` on the command line: use `max_length`"),
        (("sft", "--num_processes", "8"), "--num_processes has no meaning here"),
        (("sft", "--model_name_or_path", "Qwen/Qwen2.5-0.5B"), "name a folder that holds its `config.json`"),
        (("sft", "--optim", "adafactor"), "no rule for `optim: adafactor`"),
        (("minillm", "--use_vllm", "true", "--teacher_mix_alpha", "0"), "no rule for `use_vllm`"),
        (("minillm", "--row_tokens", "6"), "leaves no prompt"),
    ],
)
def test_errors(arguments, error, fields, capsys):
    argv = [arguments[0], *fields(arguments[0]), *arguments[1:]] if arguments[1:] else arguments
    assert error in error_of(capsys, memory.run, *argv)


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures on a GPU")
def test_without_a_gpu_nothing_is_measured(fields, capsys):
    memory.run(["sft", *fields("sft"), "--measure"])
    printed = capsys.readouterr()
    assert "there is no GPU here" in printed.err and "measured" not in printed.out


def test_measuring_runs_a_step(fields, capsys, tmp_path):
    memory.one_step("sft", fields("sft", max_steps=9))
    printed = capsys.readouterr()
    assert printed.err.count("train_runtime") == 1 and not printed.out  # which the count has to itself
    assert not (tmp_path / "out").exists()  # what it saves is not kept

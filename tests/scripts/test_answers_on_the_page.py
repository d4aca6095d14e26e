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


"""Answers before and after a training: they are those of the model, and writing them down changes nothing else."""

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.commands import TWO_PROCESSES, run_python, write_rows
from tests.test_report import Page
from trl_distill import load_nat
from trl_distill.offline_distillation import RecordConfig, record_teacher
from trl_distill.scripts import dpo, labeled_sft, nat, nce, offline_distillation, sft


LORA = dict(use_peft=True, lora_r=4, lora_dropout=0.3, lora_target_modules=["q_proj", "v_proj"])
ROWS = [{"prompt": f"{i // 2} and?", "completion": f" It is {i}.", "label": i % 2 == 0} for i in range(16)]
COMMANDS = {
    "sft": (sft, [{key: row[key] for key in ("prompt", "completion")} for row in ROWS], {}),
    "packed": (
        sft,
        [
            {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "So."}]}
            for i in range(9)
        ],
        {"packing": True, "packing_strategy": "wrapped", "max_length": 32},
    ),
    "text": (sft, [{"text": f"Number {i} of many lines of a plain text."} for i in range(9)], {}),
    "dpo": (dpo, [{"prompt": f"{i}?", "chosen": " Yes.", "rejected": " No."} for i in range(9)], LORA),
    "labeled_sft": (labeled_sft, ROWS, {"objective": "cot_kd"}),
    "nat": (nat, ROWS, LORA | {"integration_width": 4}),
    "nce": (nce, [row for row in ROWS if row["label"]], LORA | {"objective": "kd", "kd_weight": 0.5}),
    "offline_distillation": (offline_distillation, ROWS, {}),
}


@pytest.fixture
def train(sft_config, tmp_path):
    """Trains by a command; gives the rows of `rollouts.jsonl`, none without the file, and what was logged."""

    def run(name, output="out", **changes):
        command, rows, values = COMMANDS[name]
        values = {"max_steps": 3, "learning_rate": 0.05, "logging_steps": 1, "gradient_checkpointing": True} | values
        values |= changes | {"output_dir": str(tmp_path / output)}
        base = str(tmp_path / "student")
        if name == "nce":
            values["nat_path"] = str(tmp_path / "nat")
            if not (tmp_path / "nat").exists():
                run("nat", "nat", log_completions=False)
        config = sft_config(**values)
        write_rows(tmp_path / "rows.jsonl", rows)
        if name == "offline_distillation":
            record_teacher(RecordConfig(base, output_dir=str(tmp_path / "recorded"), device="cpu"), rows)
            config = sft_config(**values, dataset_name=str(tmp_path / "recorded"))
        command.run(["--config", config])
        return recorded(tmp_path / output), logged(tmp_path / output)

    return run


def recorded(folder):
    path = folder / "rollouts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def logged(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [(entry["loss"], entry["grad_norm"]) for entry in history if "grad_norm" in entry]


@torch.no_grad()
def greedy(model, tokenizer, prompt):
    """The likeliest tokens after a prompt, one after the other."""
    ids = prompt = tokenizer(prompt).input_ids
    while len(ids) < len(prompt) + 128 and (len(ids) == len(prompt) or ids[-1] != tokenizer.eos_token_id):
        ids = [*ids, model(torch.tensor([ids])).logits[0, -1].argmax().item()]
    return ids[len(prompt) :]


def load(name, folder, base):
    if name == "nat":
        return load_nat(AutoModelForCausalLM.from_pretrained(base), str(folder))
    return (AutoPeftModelForCausalLM if name in ("dpo", "nce") else AutoModelForCausalLM).from_pretrained(folder)


@pytest.mark.parametrize("name", COMMANDS)
def test_they_are_those_of_the_model(name, train, tmp_path):
    rows, _ = train(name)
    assert [(row["step"], row["row"]) for row in rows] == [(step, row) for step in (0, 3) for row in range(4)]
    tokenizer, changed = AutoTokenizer.from_pretrained(tmp_path / "student"), 0
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    trained = load(name, tmp_path / "out", tmp_path / "student").eval()
    assert len({row["prompt"] for row in rows}) == 4  # rows of one question are one prompt
    for before, after in zip(rows[:4], rows[4:], strict=True):
        assert before["prompt"] == after["prompt"] and before["of"] == "training data"
        for row, model in ((before, base), (after, trained)):
            ids = greedy(model, tokenizer, row["prompt"])
            assert row["tokens"] == [tokenizer.decode(ids)] and row["length"] == len(ids)
        changed += before["tokens"] != after["tokens"]
    assert changed
    if name == "packed":
        assert rows[0]["prompt"] == "<|user|>0?<|endoftext|><|assistant|>"
    page = Page((tmp_path / "out/report.html").read_text()).text
    assert "Answers before training and after 3 steps" in page and "the first prompts of the training data" in page


@pytest.mark.parametrize("name", COMMANDS)
def test_the_training_is_the_same_without_them(name, train):
    rows, known = train(name, "with")
    none, without = train(name, "without", log_completions=False)
    assert rows and not none and known == without and len(known) == 3


def test_prompts_are_those_of_the_evaluation(train):
    rows, _ = train("sft", eval_strategy="steps", eval_steps=3, test_split_size=6, seed=1)
    assert {row["of"] for row in rows} == {"evaluation data"} and [row["step"] for row in rows] == [0] * 4 + [3] * 4


def test_what_is_uploaded_holds_none_unless_it_is_asked_for(train, monkeypatch):
    from trl_distill.sft_trainer import CountingSFTTrainer

    for name in ("init_hf_repo", "push_to_hub"):  # there is no Hub here
        monkeypatch.setattr(CountingSFTTrainer, name, lambda self, *args, **kwargs: None)
    assert not train("sft", push_to_hub=True)[0]
    assert train("sft", push_to_hub=True, log_completions=True)[0]


def test_a_resumed_run_keeps_what_was_before_it(train):
    first, _ = train("sft", save_strategy="steps", save_steps=3)
    both, _ = train("sft", save_strategy="steps", save_steps=3, max_steps=5, resume_from_checkpoint=True)
    assert both[:8] == first and [row["step"] for row in both[8:]] == [5] * 4


def test_an_older_run_in_the_folder_is_forgotten(train, tmp_path):
    train("sft")
    train("sft", log_completions=False)
    assert "Answers before" not in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("mode", "count"), [pytest.param("zero2", 8, marks=pytest.mark.slow), ("zero3", 0), ("fsdp2", 0)]
)
def test_answers_of_sharded_models(mode, count, on_one_and_two_processes, tiny_model, tokenizer, prompts, tmp_path):
    """There are none, and nobody waits for the others."""
    if mode.startswith("zero"):
        pytest.importorskip("deepspeed")
    tiny_model(vocab_size=264).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    prompts.to_json(tmp_path / "rows.jsonl")
    one, two = on_one_and_two_processes(Path(__file__).parents[1] / "distributed/run_answers.py", tmp_path, mode)
    assert (one["rows"], two["rows"]) == (8, count) and one["loss"] == pytest.approx(two["loss"], rel=1e-3)


def test_two_processes_write_them_once(sft_config, tmp_path):
    config = sft_config(max_steps=2, ddp_find_unused_parameters=False)
    done = run_python(*TWO_PROCESSES[1:], "-m", "trl_distill.scripts.sft", "--config", config)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(row["step"], row["row"]) for row in recorded(tmp_path / "out")] == [
        (step, row) for step in (0, 2) for row in range(4)
    ]

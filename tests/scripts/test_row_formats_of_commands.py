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

"""Commands on rows of LLaMA-Factory and ms-swift do what they do on the same rows in the words of TRL."""

import json
from importlib import resources

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DatasetMixtureConfig, ScriptArguments, SFTConfig

from tests.commands import error_of, read_rows, write_rows
from tests.zephyr.rules import judge, pool
from trl_distill.lion import LionConfig
from trl_distill.lion.folder import LionFolder
from trl_distill.offline_distillation import RecordConfig, load_recorded, record_teacher
from trl_distill.scripts import dpo, minillm, sample, sft
from trl_distill.training import load_splits, resolve
from trl_distill.zephyr import CompareConfig, FeedbackConfig
from trl_distill.zephyr.compare import _questions
from trl_distill.zephyr.feedback import run_feedback


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def rows_of(kind, count=8):
    """The same questions and answers in each format."""
    return [FORMATS[kind](f"Say {i}.", f" {i}" * (1 + i % 3)) for i in range(count)]


FORMATS = {
    "trl": lambda q, a: {"prompt": [user(q)], "completion": [assistant(a)]},
    "trl messages": lambda q, a: {"messages": [user(q), assistant(a)]},
    "trl pairs": lambda q, a: {"prompt": [user(q)], "chosen": [assistant(a)], "rejected": [assistant("no")]},
    "alpaca": lambda q, a: {"instruction": q, "input": "", "output": a},
    "alpaca pairs": lambda q, a: {"instruction": q, "input": "", "chosen": a, "rejected": "no"},
    "ms-swift": lambda q, a: {"query": q, "response": a},
    "ms-swift pairs": lambda q, a: {"messages": [user(q), assistant(a)], "rejected_response": "no"},
    "sharegpt": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    "sharegpt pairs": lambda q, a: {
        "conversations": [{"from": "human", "value": q}],
        "chosen": {"from": "gpt", "value": a},
        "rejected": {"from": "gpt", "value": "no"},
    },
}


@pytest.fixture
def trained(tmp_path, sft_config):
    """Weights of the student that a command makes of rows."""

    def train(command, kind, **changes):
        data = write_rows(tmp_path / "data.jsonl", rows_of(kind))
        config = sft_config(dataset_name=data, max_steps=2, learning_rate=0.01, logging_steps=1, **changes)
        command.run(["--config", config])
        return AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()

    return train


def assert_same(weights, *others):
    for other in others:
        assert all(torch.equal(weights[name], other[name]) for name in weights)


class TestTrainings:
    def test_sft(self, trained, tmp_path):
        expected = trained(sft, "trl")
        assert_same(expected, trained(sft, "alpaca"), trained(sft, "ms-swift"))
        assert_same(trained(sft, "trl messages"), trained(sft, "sharegpt"))
        start = AutoModelForCausalLM.from_pretrained(tmp_path / "student").state_dict()
        assert not torch.equal(start["lm_head.weight"], expected["lm_head.weight"])

    def test_sft_on_a_stream(self, trained):
        assert_same(trained(sft, "trl", dataset_streaming=True), trained(sft, "alpaca", dataset_streaming=True))

    @pytest.mark.parametrize("kind", ["alpaca", "ms-swift", "sharegpt", "trl messages"])
    def test_minillm(self, kind, trained, tmp_path, tiny_model, tokenizer):
        tiny_model(seed=1, vocab_size=264).save_pretrained(tmp_path / "teacher")
        tokenizer.save_pretrained(tmp_path / "teacher")
        settings = dict(teacher_model_name_or_path=str(tmp_path / "teacher"), max_completion_length=4)
        settings |= dict(num_iterations=1, eval_strategy="steps", eval_steps=2, test_split_size=2)  # Rouge-L, too
        assert_same(trained(minillm, "trl", **settings), trained(minillm, kind, **settings))

    @pytest.mark.parametrize("kind", ["alpaca pairs", "sharegpt pairs", "ms-swift pairs"])
    def test_dpo(self, kind, trained):
        assert_same(trained(dpo, "trl pairs"), trained(dpo, kind))

    @pytest.mark.parametrize(
        ("command", "kind"),
        [
            (sft, "ms-swift"),
            (sft, "sharegpt"),
            (sft, "trl messages"),
            (dpo, "sharegpt pairs"),
            (dpo, "ms-swift pairs"),
        ],
        ids=lambda value: getattr(value, "__name__", value).rpartition(".")[2],
    )
    def test_empty_columns_change_nothing(self, command, kind, trained, monkeypatch):
        expected = trained(command, kind)
        make = FORMATS[kind]
        empty = {"tools": "", "images": [], "history": [], "kto_tag": None}
        monkeypatch.setitem(FORMATS, kind, lambda q, a: make(q, a) | empty)
        assert_same(expected, trained(command, kind))

    @pytest.mark.parametrize("command", [sft, dpo], ids=["sft", "dpo"])
    def test_tools(self, command, sft_config, tmp_path, capsys):
        """Under the template of a model that knows them. One that does not would lose them in silence."""
        functions = [{"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]
        call = json.dumps({"name": "weather", "arguments": {"city": "Oslo"}})
        turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": call}]
        row = {"conversations": turns, "tools": json.dumps(functions)}
        if command is dpo:
            row |= {"conversations": turns[:1], "chosen": turns[1], "rejected": {"from": "gpt", "value": "Cold."}}
        settings = {"dataset_name": write_rows(tmp_path / "tools.jsonl", [row] * 2), "max_length": None}
        error = error_of(capsys, command.run, "--config", sft_config(**settings))
        assert "The data have a column `tools`, and the chat template does not show it." in error
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
        tokenizer.chat_template = (resources.files("trl") / "chat_templates" / "qwen3.jinja").read_text()
        tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
        tokenizer.eos_token = "<|im_end|>"
        tokenizer.save_pretrained(tmp_path / "student")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(tmp_path / "student")
        command.run(["--config", sft_config(**settings)])
        assert (tmp_path / "out" / "model.safetensors").is_file()

    def test_what_cannot_be_read_stops_the_command(self, sft_config, tmp_path, capsys):
        rows = [{"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f"}]}]
        data = write_rows(tmp_path / "tools.jsonl", rows)
        error = error_of(capsys, sft.run, "--config", sft_config(dataset_name=data))
        assert error.startswith("trl-distill sft: error: Row 0, read as sharegpt: a turn is of 'function_call'")
        data = write_rows(tmp_path / "two.jsonl", [row | FORMATS["sharegpt"]("q", "a") for row in rows_of("alpaca")])
        error = error_of(capsys, sft.run, "--config", sft_config(dataset_name=data))
        assert "columns of several formats, instruction, conversations: which one is meant?" in error


def test_a_question_is_on_one_side_of_the_split(tmp_path):
    rows = [{"query": f"q{i % 5}", "response": str(i)} for i in range(20)]
    script_args, mixture = ScriptArguments(write_rows(tmp_path / "rows.jsonl", rows)), DatasetMixtureConfig()
    mixture.test_split_size = 0.4
    args = SFTConfig(str(tmp_path), eval_strategy="steps", eval_steps=1, use_cpu=True, bf16=False)
    resolve(script_args, args, mixture)
    splits = load_splits(script_args, args, mixture, "prompt")
    train, test = ({row["prompt"][0]["content"] for row in splits[f"{side}_dataset"]} for side in ("train", "eval"))
    assert len(test) == 2 and len(train) == 3 and not train & test


class TestOthers:
    @pytest.fixture
    def files(self, tmp_path):
        """Files of the same rows in three formats."""
        kinds = ("trl", "alpaca", "ms-swift", "sharegpt")
        return [write_rows(tmp_path / f"{kind}.jsonl", rows_of(kind, 2)) for kind in kinds]

    @pytest.fixture
    def model(self, tmp_path, tiny_model, tokenizer):
        tiny_model(vocab_size=264).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    def test_sample(self, files, model, tmp_path):
        fields = {"num_samples": 2, "max_new_tokens": 4, "device": "cpu", "model_name_or_path": model}
        drawn = []
        for i, file in enumerate(files):
            fields |= {"dataset_name": file, "output_file": tmp_path / f"samples_{i}.jsonl"}
            sample.run([f"--{name}={value}" for name, value in fields.items()])
            drawn.append(read_rows(fields["output_file"]))
        assert drawn[0][0]["prompt"] == [user("Say 0.")] and drawn[0][0]["completion"] == [assistant(" 0")]
        assert drawn[1:] == drawn[:1] * 3

    def test_record(self, files, model, tmp_path):
        recorded = []
        for i, file in enumerate(files):
            config = RecordConfig(model, output_dir=str(tmp_path / f"recorded_{i}"), dataset_name=file, device="cpu")
            record_teacher(config)
            recorded.append([row["input_ids"] for row in load_recorded(tmp_path / f"recorded_{i}")])
        assert len(recorded[0]) == 2 and recorded[1:] == recorded[:1] * 3

    def test_feedback(self, files, tmp_path):
        prompts = []
        for i, file in enumerate(files):
            config = FeedbackConfig(dataset_name=file, output_dir=str(tmp_path / f"out_{i}"), decontaminate=[])
            run_feedback(config, responders=pool(*"abcd"), judges=[judge()])
            prompts.append([row["prompt"] for row in read_rows(tmp_path / f"out_{i}/ratings.jsonl")])
        assert prompts == [[[user("Say 0.")], [user("Say 1.")]]] * 4

    def test_compare(self, files):
        found = [_questions(CompareConfig(dataset_name=file), None)[0] for file in files]
        assert [question.asked for question in found[0]] == [question.asked for question in found[3]]
        assert all(len(questions) == 2 for questions in found)

    def test_lion(self, files, tmp_path):
        texts = []
        for i, file in enumerate(files):
            config = LionConfig(dataset_name=file, output_dir=str(tmp_path / f"run_{i}"), heldout_size=0)
            texts.append([instruction.text for instruction in LionFolder(config).pool(0)])
        assert texts == [["Say 0.", "Say 1."]] * 4

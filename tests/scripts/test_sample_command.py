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
"""`trl-distill sample`, and a NAT folder where a command takes a model."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from trl_distill import NegativeAssistedConfig, NegativeAssistedTrainer
from trl_distill.chat import read_samples
from trl_distill.scripts import evaluate, sample


@pytest.fixture
def base(tmp_path, tiny_model, tokenizer):
    """A tiny model in `base/`, and four questions in `questions.jsonl`."""
    tiny_model(vocab_size=264).save_pretrained(tmp_path / "base")  # the saved tokenizer gets one more special token
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"{i} + {i}?", "answer": str(2 * i)} for i in range(4)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def nat(base):
    """A NAT whose gates have moved, in `nat/`."""
    rows = [{"prompt": f"{i}?", "completion": f" {i}.", "label": i % 2 == 0} for i in range(8)]
    trainer = NegativeAssistedTrainer(
        str(base / "base"),
        args=NegativeAssistedConfig(
            str(base / "nat"),
            max_steps=4,
            learning_rate=0.1,
            integration_width=4,
            save_strategy="no",
            bf16=False,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )
    trainer.train()
    trainer.save_model()
    return trainer.model.eval()


def arguments(folder, model, **fields):
    fields = {"dataset_name": folder / "questions.jsonl", "max_new_tokens": 6, "device": "cpu", **fields}
    return [f"--model_name_or_path={folder / model}", *(f"--{name}={value}" for name, value in fields.items())]


def test_samples_a_model(base, capsys):
    output = base / "samples.jsonl"
    argv = arguments(base, "base", num_samples=3, output_file=output)
    sample.run(argv)
    rows = read_samples(output)
    assert [row["answer"] for row in rows] == ["0", "2", "4", "6"]
    assert all(len(row["completions"]) == len(row["mean_logps"]) == len(row["truncated"]) == 3 for row in rows)
    cut_off = sum(sum(row["truncated"]) for row in rows)
    assert f"12 samples of 4 prompts, {cut_off} of them cut off." in " ".join(capsys.readouterr().out.split())
    before = output.stat().st_mtime_ns
    sample.run(argv)  # complete: nothing is drawn again
    assert output.stat().st_mtime_ns == before


def test_a_nat_folder_is_a_model_with_its_gates(base, nat, tokenizer):
    sample.run(arguments(base, "nat", num_samples=1, temperature=0, output_file=base / "samples.jsonl"))
    found = [row["completions"][0] for row in read_samples(base / "samples.jsonl")]

    def greedy(model, i):
        ids = torch.tensor([tokenizer(f"{i} + {i}?")["input_ids"]])
        output = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)

    assert found == [greedy(nat, i) for i in range(4)]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base / "base"), str(base / "nat" / "nat"))
    assert found != [greedy(plain, i) for i in range(4)]  # the positive LoRA without its gates

    completions = base / "completions.jsonl"
    argv = ["--seeds=0", "--temperature=0", "--no_exposure_bias", f"--completions_file={completions}"]
    evaluate.run(arguments(base, "nat") + argv)
    assert [json.loads(line)["completion"] for line in completions.read_text().splitlines()] == found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output_file": "nowhere/samples.jsonl"}, "The folder of nowhere/samples.jsonl does not exist"),
        ({"output_file": "samples.jsonl", "dataset_name": "none.jsonl"}, "No such file: none.jsonl"),
        ({"output_file": "samples.jsonl", "num_samples": 0}, "`num_samples` must be 1 or more, got 0"),
    ],
)
def test_bad_input(base, monkeypatch, capsys, fields, message):
    monkeypatch.chdir(base)
    with pytest.raises(SystemExit):
        sample.run(arguments(base, "base", **fields))
    assert message in " ".join(capsys.readouterr().err.split())

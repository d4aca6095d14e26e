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

import json

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForSequenceClassification

from tests.chat.chat_server import text_body
from tests.commands import CPU, error_of, read_rows, write_rows
from tests.loop_fixtures import server  # noqa: F401
from trl_distill import NegativeAssistedConfig, NegativeAssistedTrainer, load_nat
from trl_distill.chat import LocalChatModel, Sampling, draw_samples, read_samples
from trl_distill.evaluation import extract_answer
from trl_distill.rationales.asc import adaptive_self_consistency, score_rationales, self_consistency
from trl_distill.scripts import asc, ranker


@pytest.fixture
def saved(tmp_path, tiny_model, tokenizer):
    """Folders of a model that likes digits and an end, and of a ranker, and a file of questions."""
    model = tiny_model(vocab_size=264)  # the saved tokenizer gets one more special token
    digits = tokenizer.convert_tokens_to_ids(list("0123456789"))
    with torch.no_grad():
        model.lm_head.weight *= 0.3
        model.lm_head.weight[digits] *= 13
        model.lm_head.weight[tokenizer.eos_token_id] *= 40
    model.save_pretrained(tmp_path / "model")
    torch.manual_seed(3)
    config = dict(vocab_size=264, hidden_size=16, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2)
    config |= dict(intermediate_size=32, num_labels=1, pad_token_id=0, initializer_range=0.3)
    Qwen2ForSequenceClassification(Qwen2Config(**config)).save_pretrained(tmp_path / "ranker")
    for name in ("model", "ranker"):
        tokenizer.save_pretrained(tmp_path / name)
    rows = [{"prompt": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(6)]
    write_rows(tmp_path / "questions.jsonl", rows)
    return tmp_path


def arguments(folder, *more, **changes):
    values = {
        "model_name_or_path": folder / "model",
        "dataset_name": folder / "questions.jsonl",
        "ranker_name_or_path": folder / "ranker",
        "samples_file": folder / "samples.jsonl",
        "votes_file": folder / "votes.jsonl",
        "output_file": folder / "asc.json",
        "device": "cpu",
        "num_samples": 5,
        "max_new_tokens": 8,
    }
    values |= changes
    flags = [[f"--{name}", str(value)] for name, value in values.items() if value is not None]
    return [part for flag in flags for part in flag] + [str(part) for part in more]


def outputs(folder):
    return json.loads((folder / "asc.json").read_text()), read_rows(folder / "votes.jsonl")


class TestASC:
    def test_from_prompts_to_votes(self, saved, tokenizer, capsys):
        asc.run(arguments(saved))
        result, votes = outputs(saved)
        samples = read_samples(saved / "samples.jsonl")
        assert len(samples) == 6 and all(len(row["completions"]) == 5 for row in samples)
        model = Qwen2ForSequenceClassification.from_pretrained(saved / "ranker").eval()
        answered = 0
        for row, vote in zip(samples, votes, strict=True):
            rationales = [{"prompt": row["prompt"], "completion": text} for text in row["completions"]]
            scores = score_rationales(model, tokenizer, rationales)
            assert vote["scores"] == pytest.approx(scores, rel=1e-4)
            pairs = zip(row["completions"], row["truncated"], strict=True)
            answers = [None if cut else extract_answer(text) for text, cut in pairs]
            answered += sum(answer is not None for answer in answers)
            assert vote["answers"] == answers and vote["prompt"] == row["prompt"]
            assert vote["votes"]["sc"] == self_consistency(answers)
            assert vote["votes"]["asc"] == adaptive_self_consistency(answers, scores)
        assert 5 < answered < 30  # the test is about something
        cut = sum(sum(row["truncated"]) for row in samples)
        assert result["counts"] == {
            "prompts": 6, "with_reference": 6, "samples": 30, "without_answer": 30 - answered - cut, "truncated": cut,
            "not_compared": 0, "without_score": 0, "without_vote": sum(vote["votes"]["sc"] is None for vote in votes),
        }  # fmt: skip
        accuracy = sum(vote["right"]["asc"] for vote in votes) / 6
        assert result["accuracy"]["asc"]["value"] == pytest.approx(accuracy)
        assert set(result["accuracy"]) == {"single", "sc", "ws", "asc"} and "right" in result["ranker"]
        assert result["settings"]["num_samples"] == 5 and result["versions"]["trl"]
        shown = capsys.readouterr().out
        kinds = ("single sample", "(SC)", "(WS)", "(ASC)", "ASC - SC", "95 % interval")
        assert "6 questions, 5 samples each" in shown and all(text in shown for text in kinds)

    def test_goes_on_and_takes_samples_as_they_are(self, saved):
        asc.run(arguments(saved))
        first = outputs(saved)
        asc.run(arguments(saved, model_name_or_path=None, dataset_name=None))
        assert outputs(saved)[1] == first[1] and outputs(saved)[0]["accuracy"] == first[0]["accuracy"]
        asc.run(arguments(saved))
        assert outputs(saved) == first

    def test_without_references_or_log_probabilities(self, saved, capsys):
        rows = [{"prompt": "What?", "completions": ["3", "4", "4"]}, {"prompt": "How?", "completions": ["x" * 90]}]
        write_rows(saved / "samples.jsonl", rows)
        asc.run(arguments(saved, model_name_or_path=None, dataset_name=None, max_length=40))
        result, votes = outputs(saved)
        assert votes[0]["votes"]["sc"] == "4" and "ws" not in votes[0]["votes"] and "right" not in votes[0]
        assert votes[1]["scores"] == [None] and votes[1]["votes"] == {"sc": None, "asc": None}
        assert result["accuracy"] == {} and result["counts"]["without_score"] == 1
        shown = capsys.readouterr().out
        assert "No right answers in the data" in shown and "1 of 4 samples are too long for a score" in shown

    def test_rule_and_samples_that_were_cut_off(self, saved, capsys):
        texts = ["The answer is 6.", "3 + 3 is 6", "3 + 5 makes 8", "so 8", rf"\boxed{{{'8' * 5000}}}"]
        row = {"prompt": "3 + 3?", "answer": "6", "completions": texts, "truncated": [False, False, True, True, False]}
        write_rows(saved / "samples.jsonl", [row])
        flags = dict(model_name_or_path=None, dataset_name=None, max_length=10_000)
        asc.run(arguments(saved, **flags))
        shown = capsys.readouterr().out
        assert outputs(saved)[1][0]["answers"][:4] == ["6", "6", None, None]
        assert outputs(saved)[1][0]["votes"]["sc"] == "6" and outputs(saved)[0]["accuracy"]["sc"]["value"] == 1
        for said in ("2 of 5 samples were cut off, and do not vote", "1 of 5 samples cannot be compared"):
            assert said in shown
        asc.run(arguments(saved, rule="marked", **flags))
        result, votes = outputs(saved)
        assert votes[0]["answers"][:4] == ["6", None, None, None] and result["settings"]["rule"] == "marked"
        assert result["counts"]["without_answer"] == 1 and result["counts"]["truncated"] == 2

    def test_ws_is_reported_as_missing(self, saved, capsys):
        write_rows(saved / "samples.jsonl", [{"prompt": "1 + 1?", "answer": "2", "completions": ["2", "3"]}])
        asc.run(arguments(saved, model_name_or_path=None, dataset_name=None))
        assert set(outputs(saved)[0]["accuracy"]) == {"single", "sc", "asc"}
        assert "There is no WS" in capsys.readouterr().out

    def test_adapters(self, saved, tiny_model):
        model = get_peft_model(tiny_model(vocab_size=264), LoraConfig(init_lora_weights=False))
        model.peft_config["default"].base_model_name_or_path = str(saved / "model")
        model.save_pretrained(saved / "adapter")
        asc.run(arguments(saved, model_name_or_path=saved / "adapter", samples_file=saved / "other.jsonl"))
        asc.run(arguments(saved))
        assert read_samples(saved / "other.jsonl") != read_samples(saved / "samples.jsonl")

    def test_nat(self, saved, tokenizer):
        """A folder of NAT is its base with both adapters and the gate, not the positive adapter alone."""
        labelled = [{"prompt": "2 + 2 =", "completion": f" {n}", "label": n == 4} for n in (4, 5)]
        trainer = NegativeAssistedTrainer(
            str(saved / "model"),
            args=NegativeAssistedConfig(str(saved / "nat"), max_steps=2, learning_rate=0.1, **CPU),
            train_dataset=Dataset.from_list(labelled),
            peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        )
        trainer.train()
        trainer.save_model()
        asc.run(arguments(saved, model_name_or_path=saved / "nat"))
        rows = [{"prompt": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(6)]
        model = load_nat(AutoModelForCausalLM.from_pretrained(saved / "model"), str(saved / "nat")).eval()
        local = LocalChatModel("nat", load=lambda: (model, tokenizer))
        expected = draw_samples(local, rows, 5, Sampling(max_tokens=8, seed=42, logprobs=True))
        for row, samples in zip(read_samples(saved / "samples.jsonl"), expected, strict=True):
            assert row["completions"] == samples.completions
            assert row["mean_logps"] == pytest.approx(samples.mean_logps, rel=1e-4)

    def test_server(self, saved, capsys, server):  # noqa: F811
        def reply(body, attempt, headers):
            """2 to one of three draws of a prompt, and 4 to the others."""
            seeds[body["prompt"]] = seeds.get(body["prompt"], []) + [body["seed"]]
            text = f"The answer is {2 if body['seed'] == min(seeds[body['prompt']]) else 4}."
            return text_body(text, "stop", [-1.0] if "logprobs" in body else None)

        seeds = {}
        server.reply = lambda body, *rest: reply(body, *rest) if body["model"] == "model-x" else (404, {}, {})
        flags = dict(base_url=server.base_url, num_samples=3, concurrency=1)
        asc.run(arguments(saved, model_name_or_path="model-x", **flags))
        result, votes = outputs(saved)
        assert all(len(of_one) == len(set(of_one)) == 3 for of_one in seeds.values())
        expected = [self_consistency([text[-2] for text in vote["completions"]]) for vote in votes]
        assert [vote["votes"]["sc"] for vote in votes] == expected
        assert votes[0]["votes"]["ws"] == expected[0]  # all weights are one
        flags |= dict(samples_file=saved / "2.jsonl")
        asc.run(arguments(saved, "--no_logprobs", model_name_or_path="model-x", **flags))
        assert "ws" not in outputs(saved)[1][0]["votes"]
        flags |= dict(samples_file=saved / "3.jsonl", model_name_or_path="model-y")
        assert "refuses model-y: Error code: 404" in error_of(capsys, asc.run, *arguments(saved, **flags))

    def test_yaml(self, saved):
        values = dict(zip([flag[2:] for flag in arguments(saved)[::2]], arguments(saved)[1::2], strict=True))
        values |= {"num_samples": 2, "max_rows": 3}
        (saved / "asc.yaml").write_text(yaml.safe_dump(values))
        asc.run(["--config", str(saved / "asc.yaml"), "--max_rows", "2"])
        assert outputs(saved)[0]["counts"]["samples"] == 4

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"dataset_name": None}, "Set --model_name_or_path and --dataset_name to draw samples"),
            ({"model_name_or_path": None, "dataset_name": None}, "No such file"),
            ({"dataset_name": "{folder}/wrong.jsonl"}, "has no column `prompt`, only question"),
            ({"ranker_name_or_path": "{folder}/model"}, "A ranker has one label, but"),
            ({"temperature": "0"}, "all 5 samples of a prompt are the same"),
            ({"num_sample": "3"}, "Did you mean num_samples"),
        ],
    )
    def test_mistakes(self, saved, capsys, changes, message):
        (saved / "wrong.jsonl").write_text('{"question": "x"}\n')
        changes = {name: value and value.format(folder=saved) for name, value in changes.items()}
        error = error_of(capsys, asc.run, *arguments(saved, **changes))
        assert error.startswith("trl-distill asc: error: ") and message in error
        assert not list(saved.glob("samples.jsonl*"))  # nothing was drawn before


class TestRanker:
    @pytest.fixture
    def config(self, saved):
        """A config file of a training run on eight rows."""
        rows = [
            {"prompt": f"What is {i} + {i}?", "completion": f" {2 * i + off}.", "label": not off}
            for i in range(4)
            for off in (0, 3)
        ]
        write_rows(saved / "labelled.jsonl", rows)
        values = {
            "model_name_or_path": str(saved / "model"),
            "dataset_name": str(saved / "labelled.jsonl"),
            "output_dir": str(saved / "out"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
        }

        def write(**changes):
            (saved / "ranker.yaml").write_text(yaml.safe_dump(CPU | values | changes))
            return ["--config", str(saved / "ranker.yaml")]

        return write

    @pytest.mark.parametrize("adapter", [False, True])
    def test_trains_what_asc_loads(self, config, saved, adapter):
        ranker.run(config(use_peft=adapter, lora_r=2, lora_target_modules=["q_proj", "v_proj"]))
        assert (saved / "out" / ("adapter_model.safetensors" if adapter else "model.safetensors")).is_file()
        asc.run(arguments(saved, ranker_name_or_path=saved / "out"))
        assert outputs(saved)[0]["counts"]["without_score"] == 0

    def test_resumes(self, config, saved):
        ranker.run(config(save_strategy="steps", save_steps=1))
        ranker.run(config(save_strategy="steps", save_steps=1, resume_from_checkpoint=True, max_steps=3))
        assert json.loads((saved / "out" / "checkpoint-3" / "trainer_state.json").read_text())["global_step"] == 3

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_name_or_path": None}, "no ranker: set `model_name_or_path`"),
            ({"dataset_name": None}, "no data: set `dataset_name`"),
            ({"dataset_name": "{folder}/questions.jsonl"}, "`train_dataset` has no column completion, label"),
            ({"max_length": 3}, "rows of the train dataset are longer than 3 tokens"),
            ({"max_seq_length": 3}, "use `max_length`"),
        ],
    )
    def test_mistakes(self, config, saved, capsys, changes, message):
        changes = {k: v.format(folder=saved) if isinstance(v, str) else v for k, v in changes.items()}
        error = error_of(capsys, ranker.run, *config(**changes))
        assert error.startswith("trl-distill ranker: error: ") and message in error

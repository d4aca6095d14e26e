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

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Value
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)
from trl import RewardTrainer

from tests.runs import MODES, TINY_RUN, assert_same_logits, assert_same_weights, history, make
from trl_distill.rationales.asc import ASCRankerConfig, ASCRankerTrainer, load_ranker, score_rationales
from trl_distill.rationales.asc.scoring import collate_rationales, encode_rationale, ranker_loss, ranking_metrics


QLORA = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)


@pytest.fixture
def tiny_ranker(tokenizer):
    """Factory of tiny rankers: Qwen2 (rotary positions), GPT-2 (learned positions) and BERT (an encoder)."""

    def build(kind="qwen2", seed=0, **config):
        torch.manual_seed(seed)
        values = {"vocab_size": len(tokenizer), "pad_token_id": 0, "initializer_range": 0.3, "num_labels": 1} | config
        if kind == "gpt2":
            model = GPT2ForSequenceClassification(GPT2Config(n_embd=8, n_head=2, n_layer=2, n_positions=256, **values))
        else:
            shape = dict(hidden_size=16, num_attention_heads=4, num_hidden_layers=2, intermediate_size=32)
            values = shape | {"max_position_embeddings": 256} | values
            if kind == "bert":
                model = BertForSequenceClassification(BertConfig(**values))
            else:
                model = Qwen2ForSequenceClassification(Qwen2Config(num_key_value_heads=2, **values))
        return model.eval()

    return build


@pytest.fixture
def rows():
    """Four questions with a right and a wrong rationale each."""
    prompts = [f"What is {i} + {i}?" for i in range(4)]
    rows = [
        {"prompt": p, "completion": f" It is {2 * i + off}.", "label": not off}
        for i, p in enumerate(prompts)
        for off in (0, 3)
    ]
    return Dataset.from_list(rows)


@pytest.fixture
def make_trainer(tiny_ranker, tokenizer, rows, tmp_path):
    def build(model=None, **values):
        values = TINY_RUN | dict(learning_rate=5e-3, max_steps=4, gradient_checkpointing=False) | values
        values = dict(output_dir=str(tmp_path / "run"), train_dataset=rows, processing_class=tokenizer) | values
        model = tiny_ranker() if model is None else model
        return make(ASCRankerTrainer, ASCRankerConfig, model=model, **values)

    return build


@pytest.fixture
def saved_model(tmp_path, tiny_model, tokenizer):
    """Folder of a causal language model."""
    tiny_model(hidden_size=16).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def naive_scores(model, tokenizer, rows):
    """Row by row without padding, in float64."""
    scores = []
    for row in rows:
        ids = torch.tensor([encode_rationale(tokenizer, row)])
        with torch.no_grad():
            z = model.double()(input_ids=ids).logits.item()
        scores.append(1 / (1 + math.exp(-z)))
    model.float()
    return scores


class TestScores:
    @pytest.mark.parametrize("kind", ["qwen2", "gpt2", "bert"])
    def test_are_those_of_single_unpadded_rows(self, tiny_ranker, tokenizer, rows, kind):
        model = tiny_ranker(kind)
        mixed = [{**row, "completion": row["completion"] * (1 + i % 3)} for i, row in enumerate(rows)]
        expected = naive_scores(model, tokenizer, mixed)
        assert all(0 < score < 1 for score in expected) and max(expected) - min(expected) > 1e-3
        for batch_size in (1, 3, 8):
            scores = score_rationales(model, tokenizer, mixed, batch_size=batch_size)
            assert scores == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("pad_token", ["<pad>", "<|endoftext|>"])
    def test_more_padding_changes_nothing(self, tiny_ranker, tokenizer, rows, pad_token):
        pad_token_id = tokenizer.convert_tokens_to_ids(pad_token)
        model = tiny_ranker(pad_token_id=pad_token_id)
        sequences = [encode_rationale(tokenizer, row) for row in rows]
        wide = collate_rationales([*sequences, [9] * 90], pad_token_id)
        narrow = collate_rationales(sequences, pad_token_id)
        with torch.no_grad():
            torch.testing.assert_close(model(**wide).logits[:-1], model(**narrow).logits)

    def test_long_rows_have_none(self, tiny_ranker, tokenizer, rows):
        model = tiny_ranker()
        long = {"prompt": "Why?", "completion": " because" * 40}
        scores = score_rationales(model, tokenizer, [long, *rows, long], batch_size=4)
        assert scores == [None, *score_rationales(model, tokenizer, rows, batch_size=4), None]
        limit = len(encode_rationale(tokenizer, rows[0]))
        assert score_rationales(model, tokenizer, rows, max_length=limit)[0] is not None
        assert score_rationales(model, tokenizer, rows, max_length=limit - 1) == [None] * 8
        assert score_rationales(model, tokenizer, []) == []

    def test_mode_is_restored(self, tiny_ranker, tokenizer, rows):
        model = tiny_ranker("bert").train()
        assert score_rationales(model, tokenizer, rows) == score_rationales(model, tokenizer, rows)  # no dropout
        assert model.training

    def test_rows_as_tokens(self, tokenizer):
        def text(prompt, completion):
            return tokenizer.decode(encode_rationale(tokenizer, {"prompt": prompt, "completion": completion}))

        user, end = {"role": "user", "content": "Hi"}, tokenizer.eos_token
        answer = {"role": "assistant", "content": "Hello"}
        assert text("Hi", " you") == f"Hi you{end}" == text("Hi", f" you{end}")
        assert text([user], "Hello") == f"<|user|>Hi{end}<|assistant|>Hello{end}" == text([user], [answer])
        assert text([user, {"role": "assistant", "content": "Hel"}], "lo") == text([user], [answer])


class TestLossAndMetrics:
    def test_loss(self):
        logits, labels = torch.tensor([0.3, -2.0, 1.5, 40.0]), torch.tensor([1, 0, 0, 1])
        pairs = zip(logits.tolist(), labels.tolist(), strict=True)
        expected = sum((1 / (1 + math.exp(-z)) - y) ** 2 for z, y in pairs) / 4
        assert ranker_loss(logits, labels).item() == pytest.approx(expected)
        assert ranker_loss(torch.zeros(3), torch.tensor([1, 0, 1])).item() == 0.25
        assert ranker_loss(logits.bfloat16(), labels).dtype == torch.float32

    def test_gradient(self):
        logits = torch.tensor([0.3, -2.0], requires_grad=True)
        ranker_loss(logits, torch.tensor([1, 0])).backward()
        for z, y, grad in zip([0.3, -2.0], [1, 0], logits.grad.tolist(), strict=True):
            s = 1 / (1 + math.exp(-z))
            assert grad == pytest.approx((s - y) * s * (1 - s))  # 2/B = 1

    def test_metrics_count_pairs(self):
        generator = random.Random(0)
        logits = torch.tensor([generator.choice([-1.0, 0.0, 0.5, 2.0]) for _ in range(40)])
        labels = torch.tensor([generator.random() < 0.4 for _ in range(40)]).long()
        questions = torch.tensor([generator.randrange(6) for _ in range(38)] + [7, 7])
        labels[38:] = 1  # a question without a pair

        def share(rows):
            pairs = [(logits[i], logits[j]) for i in rows for j in rows if labels[i] > labels[j]]
            return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs) if pairs else None

        within = [share([i for i in range(40) if questions[i] == q]) for q in range(8)]
        within = [value for value in within if value is not None]
        metrics = ranking_metrics(logits.numpy(), labels.numpy(), questions.numpy())
        assert metrics == pytest.approx(
            {
                "right": labels.float().mean().item(),
                "accuracy": sum((z > 0) == bool(y) for z, y in zip(logits, labels, strict=True)).item() / 40,
                "auc": share(range(40)),
                "pair_accuracy": sum(within) / len(within),
            }
        )

    def test_metrics_without_a_pair(self):
        logits, questions = np.array([1.0, 2.0]), np.array([0, 1])
        assert ranking_metrics(logits, np.array([1, 1]), questions) == {"right": 1, "accuracy": 1}
        assert set(ranking_metrics(logits, np.array([1, 0]), questions)) == {"right", "accuracy", "auc"}


class TestASCRankerTrainer:
    def test_overfits_eight_rows(self, make_trainer, rows):
        trainer = make_trainer(eval_dataset=rows, max_steps=60, per_device_train_batch_size=8, learning_rate=2e-2)
        assert isinstance(trainer, RewardTrainer)
        before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
        trainer.train()
        for name, parameter in trainer.model.named_parameters():
            assert not torch.equal(parameter, before[name]), f"{name} has not changed"
        first, *_, last = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert last["loss"] < 0.02 < first["loss"]
        assert last["accuracy"] == 1.0 and last["right"] == 0.5
        scores = trainer.score(rows)
        assert all((score > 0.5) == label for score, label in zip(scores, rows["label"], strict=True))

        metrics = trainer.evaluate()
        assert metrics["eval_accuracy"] == metrics["eval_auc"] == metrics["eval_pair_accuracy"] == 1.0
        expected = sum((score - label) ** 2 for score, label in zip(scores, rows["label"], strict=True)) / 8
        assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-4)

    def test_first_loss_is_the_mean_squared_error(self, make_trainer, tiny_ranker, tokenizer, rows):
        trainer = make_trainer(per_device_train_batch_size=8, max_steps=1)
        scores = naive_scores(tiny_ranker(), tokenizer, rows)
        trainer.train()
        expected = sum((score - label) ** 2 for score, label in zip(scores, rows["label"], strict=True)) / 8
        assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)

    def test_gradient_accumulation_is_exact(self, make_trainer):
        runs = []
        for size in (1, 4, 8):
            batches = dict(per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)
            trainer = make_trainer(**batches, max_steps=3)
            trainer.train()
            runs.append(history(trainer))
        for other in runs[1:]:
            assert other.shape == (3, 2)
            torch.testing.assert_close(runs[0], other, rtol=1e-4, atol=0)

    @pytest.mark.parametrize("adapter", [False, True])
    def test_saves_and_reloads(self, make_trainer, saved_model, tokenizer, rows, tmp_path, adapter):
        config = LoraConfig(r=4, task_type="SEQ_CLS") if adapter else None
        trainer = make_trainer(model=saved_model, peft_config=config)
        trainer.train()
        trainer.save_model()
        scores = trainer.score(rows)
        folder = trainer.args.output_dir
        if adapter:
            assert not (Path(folder) / "model.safetensors").exists()
            model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)
            model.config.pad_token_id = tokenizer.pad_token_id
        else:
            model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert score_rationales(model.eval(), tokenizer, rows, batch_size=8) == pytest.approx(scores, rel=1e-6)
        ours, our_tokenizer = load_ranker(folder)
        assert not ours.training
        assert score_rationales(ours, our_tokenizer, rows, batch_size=8) == pytest.approx(scores, rel=1e-6)

    def test_resume_is_an_uninterrupted_run(self, make_trainer, saved_model, tmp_path):
        saving = dict(save_strategy="steps", save_steps=2, max_steps=6)
        settings = dict(model=saved_model, per_device_train_batch_size=3, **saving)
        whole = make_trainer(**settings)
        whole.train()
        resumed = make_trainer(**settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
        assert_same_weights(whole.model, resumed.model)

    def test_four_bit_lora_on_a_cpu(self, make_trainer, tiny_model, tokenizer, rows, tmp_path):
        tiny_model(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "wide")  # for the kernel on CPUs
        trainer = make_trainer(
            model=str(tmp_path / "wide"),
            peft_config=LoraConfig(r=4, task_type="SEQ_CLS", target_modules="all-linear"),
            quantization_config=QLORA,
            eval_dataset=rows,
            learning_rate=1e-2,
        )
        layers = [type(module).__name__ for name, module in trainer.model.named_modules() if "base_layer" in name]
        assert layers and set(layers) == {"Linear4bit"}
        trainable = {name: p.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert all("lora_" in name or "score.modules_to_save" in name for name in trainable)
        assert [p.dtype for name, p in trainable.items() if "score.modules_to_save" in name] == [torch.float32]
        trainer.train()
        after = dict(trainer.model.named_parameters())
        assert all(not torch.equal(after[name], tensor) for name, tensor in trainable.items())
        trainer.save_model()
        ranker, _ = load_ranker(trainer.args.output_dir, quantization_config=QLORA)
        scores = trainer.score(rows)
        assert score_rationales(ranker, tokenizer, rows, batch_size=8) == pytest.approx(scores, abs=0.02)
        for name, parameter in ranker.named_parameters():
            if "lora_" in name:  # PEFT loads in fp32 what TRL trains in bf16
                parameter.data = parameter.data.bfloat16()
        assert score_rationales(ranker, tokenizer, rows, batch_size=8) == pytest.approx(scores, rel=1e-6)
        assert set(trainer.evaluate()) >= {"eval_loss", "eval_auc"}

    def test_bf16_and_gradient_checkpointing(self, make_trainer, rows):
        trainer = make_trainer(bf16=True, gradient_checkpointing=True, eval_dataset=rows)
        trainer.train()
        assert math.isfinite(trainer.evaluate()["eval_loss"])
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())

    def test_long_rows_are_dropped_and_counted(self, make_trainer, rows, caplog):
        long = {"prompt": "What?", "completion": " so" * 60, "label": True}
        trainer = make_trainer(
            train_dataset=Dataset.from_list([*rows, long]), eval_dataset={"held": rows}, max_length=64
        )
        assert len(trainer.train_dataset) == 8
        assert "Dropped 1 of 9 rows of the train dataset that are longer than 64 tokens" in caplog.text
        assert set(trainer.evaluate()) >= {"eval_held_auc", "eval_held_pair_accuracy"}
        assert trainer.evaluate(rows)["eval_right"] == 0.5

    def test_encoder_and_conversational_rows(self, make_trainer, tiny_ranker, rows):
        def chat(row):
            return {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
                "question": "a column of the user's that happens to have our name",
            }

        trainer = make_trainer(model=tiny_ranker("bert"), train_dataset=rows.map(chat))
        assert sorted(trainer.train_dataset["question"]) == [0, 0, 1, 1, 2, 2, 3, 3]
        trainer.train()
        assert trainer.score([{"prompt": "x", "completion": "y" * 400}]) == [None]  # beyond the context of 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.remove_columns("label"), r"`train_dataset` has no column label, only prompt, completion"),
        (lambda rows: rows.cast_column("label", Value("int64")), "row 0 has 1"),
        (lambda rows: rows.filter(lambda row: row["label"]), "4 right and 0 wrong rows"),
        (lambda rows: rows.filter(lambda row: not row["label"]), "0 right and 4 wrong rows"),
        (
            lambda rows: rows.map(lambda row: {"completion": row["completion"] * 99}),
            r"All 8 rows of the train dataset are longer than 256 tokens \(shortest: \d+\)",
        ),
        (lambda rows: rows.to_iterable_dataset(), "is a stream"),
    ],
)
def test_bad_rows(make_trainer, rows, change, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(train_dataset=change(rows))


def test_more_than_one_label(make_trainer, tiny_ranker, tokenizer, tmp_path, rows):
    model = tiny_ranker(num_labels=3)
    with pytest.raises(ValueError, match="num_labels=3"):
        make_trainer(model=model)
    with pytest.raises(ValueError, match="A ranker has one label, but this model has 3"):
        score_rationales(model, tokenizer, rows)
    model.save_pretrained(tmp_path / "three")
    tokenizer.save_pretrained(tmp_path / "three")
    for call in (make_trainer, load_ranker):
        with pytest.raises(ValueError, match="A ranker has one label, but .*three has 3"):
            call(str(tmp_path / "three"))


def test_settings_that_cannot_work(make_trainer, tiny_ranker, tokenizer, rows):
    with pytest.raises(ValueError, match="task_type='SEQ_CLS'"):
        make_trainer(peft_config=LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="center_rewards_coefficient"):
        make_trainer(center_rewards_coefficient=0.01)
    with pytest.raises(ValueError, match="has no padding token"):
        score_rationales(tiny_ranker(pad_token_id=None), tokenizer, rows)


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_give_the_loss_of_one(mode, on_one_and_two_processes, tmp_path, tiny_ranker, tokenizer):
    tiny_ranker().save_pretrained(tmp_path / "ranker")
    tokenizer.save_pretrained(tmp_path / "ranker")
    one, two = on_one_and_two_processes(Path(__file__).with_name("run_distributed.py"), tmp_path, mode)
    assert len(one["loss"]) == 4
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-4), name
    assert_same_logits(
        AutoModelForSequenceClassification.from_pretrained, *(tmp_path / f"trained-{n}" for n in (1, 2))
    )

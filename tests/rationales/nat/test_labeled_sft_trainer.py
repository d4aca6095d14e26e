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
import logging
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Value
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from tests.runs import assert_same_weights, history, losses, make
from trl_distill import LabeledSFTConfig, LabeledSFTTrainer
from trl_distill.rationales.nat.labeled_sft_trainer import labeled_token_loss


OBJECTIVES = ["cot_kd", "mix", "nt", "ul", "redi"]
OWN_LOSS = OBJECTIVES[2:]


@pytest.fixture
def make_trainer(tiny_model, tokenizer, rows, settings, tmp_path):
    def build(objective="cot_kd", folder="run", model=None, **values):
        model = tiny_model() if model is None else model
        values = dict(output_dir=str(tmp_path / folder), train_dataset=rows, processing_class=tokenizer) | values
        return make(LabeledSFTTrainer, LabeledSFTConfig, model=model, objective=objective, **(settings | values))

    return build


def dense_objective(model, tokenizer, rows, objective, weight):
    """The objective and the mean log-probabilities of right and wrong tokens, row by row in float64."""
    model = model.double()
    terms, logps = [], {True: [], False: []}  # of each row its tokens' terms
    for row in rows:
        if objective == "cot_kd" and not row["label"]:
            continue
        prompt = tokenizer(row["prompt"]).input_ids
        ids = prompt + tokenizer(row["completion"] + "<|endoftext|>").input_ids
        p = model(torch.tensor([ids])).logits[0].softmax(-1)
        terms.append([])
        for t in range(len(prompt), len(ids)):
            q = p[t - 1, ids[t]]
            right = row["label"] or t - len(prompt) < row.get("right_tokens", 0)
            logps[right].append(q.log().item())
            if right or objective == "mix":
                terms[-1].append(-q.log())
            elif objective == "ul":
                terms[-1].append(-weight * (1 - q).log())
            else:
                terms[-1].append(weight * q.log())
    if objective == "redi":
        value = sum(sum(row) / len(row) for row in terms) / len(terms)
    else:
        value = sum(map(sum, terms)) / sum(map(len, terms))
    return value, {label: sum(values) / len(values) for label, values in logps.items() if values}


def batch_of(trainer, tokenizer, rows):
    """A batch as training gets it, and the rows that it was made from, found by their text."""
    batch = next(iter(trainer.get_train_dataloader()))
    by_text = {row["prompt"] + row["completion"]: row for row in rows}
    texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    return batch, [by_text[text] for text in texts]


class TestTokenLoss:
    logps = torch.tensor([[0.25, 0.5], [0.25, 0.5], [0.9, 1.0]]).log()
    right = torch.tensor([[True], [False], [False]])

    def test_closed_forms(self):
        log = math.log
        for objective, expected in (
            ("nt", [[log(4), log(2)], [-0.1 * log(4), -0.1 * log(2)], [0.1 * log(0.9), 0.0]]),
            ("ul", [[log(4), log(2)], [0.1 * log(4 / 3), 0.1 * log(2)], [0.1 * log(10), 0.1 * log(1e5)]]),
            ("mix", [[log(4), log(2)], [log(4), log(2)], [-log(0.9), 0.0]]),
        ):
            found = labeled_token_loss(self.logps, self.right, objective, 0.1)
            torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)

    def test_gradients_stay_finite_at_the_ends(self):
        for objective in OWN_LOSS:
            logps = torch.tensor([[0.0, -1e-7, -200.0]], requires_grad=True)
            labeled_token_loss(logps, torch.tensor([[False]]), objective, 1.0).sum().backward()
            assert logps.grad.isfinite().all()

    def test_unlikelihood_keeps_its_digits_where_p_is_almost_1(self):
        logps = torch.tensor([[-3.3e-5, -7.7e-5]])
        expected = [-math.log(-math.expm1(value)) for value in logps[0].tolist()]
        found = labeled_token_loss(logps, torch.tensor([[False]]), "ul", 1.0)
        assert found[0].tolist() == pytest.approx(expected, rel=1e-6)  # 1 - exp would be off by 1e-4


class TestLoss:
    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_value_and_gradient_match_dense_logits_in_float64(
        self, make_trainer, tiny_model, tokenizer, rows, objective
    ):
        trainer = make_trainer(objective, negative_weight=0.3, per_device_train_batch_size=8)
        batch, source = batch_of(trainer, tokenizer, rows)
        assert {row["label"] for row in source} == ({True} if objective == "cot_kd" else {True, False})
        trainer.model.train()
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        model = tiny_model()
        expected, logps = dense_objective(model, tokenizer, source, objective, 0.3)
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for (name, found), parameter in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(found.grad.double(), parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
        if objective in OWN_LOSS:
            assert metrics["logps/right"] == pytest.approx(logps[True], rel=1e-5)
            assert metrics["logps/wrong"] == pytest.approx(logps[False], rel=1e-5)
        assert {"mean_token_accuracy", "entropy", "num_tokens"} <= set(metrics)

    @pytest.mark.parametrize("objective", OWN_LOSS)
    def test_right_tokens_of_wrong_rows(self, make_trainer, tiny_model, tokenizer, rows, objective):
        """Against float64, and with a step of several batches; a count beyond the end makes the row a right one."""
        marked = rows.add_column("right_tokens", [i % 7 * 5 for i in range(len(rows))])
        trainer = make_trainer(objective, train_dataset=marked, eval_dataset=marked, per_device_eval_batch_size=24)
        found = trainer.evaluate()
        weight = trainer.args.negative_weight
        expected, logps = dense_objective(tiny_model(), tokenizer, marked, objective, weight)
        without, others = dense_objective(tiny_model(), tokenizer, rows, objective, weight)
        assert found["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
        assert expected.item() != pytest.approx(without.item(), rel=1e-2)
        assert found["eval_logps/wrong"] == pytest.approx(logps[False], rel=1e-5)
        batch, source = batch_of(trainer, tokenizer, marked)
        trainer.compute_loss(trainer.model.train(), dict(batch)).backward()
        model = tiny_model()
        dense_objective(model, tokenizer, source, objective, weight)[0].backward()
        for found, parameter in zip(trainer.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(found.grad.double(), parameter.grad, rtol=1e-3, atol=1e-6)

    def test_a_row_that_is_right_and_wrong_cancels(self, make_trainer, rows):
        """The fixed point of NT and REDI with a weight of 1: the two terms of a pair of equal rows are opposite."""
        right = rows.select(range(4)).to_list()
        twice = Dataset.from_list([row | {"label": label} for row in right for label in (True, False)])
        for objective in ("nt", "redi"):
            values = dict(train_dataset=twice, per_device_train_batch_size=8, negative_weight=1.0)
            trainer = make_trainer(objective, **values)
            loss = trainer.compute_loss(trainer.model.train(), next(iter(trainer.get_train_dataloader())))
            loss.backward()
            assert abs(loss.item()) < 1e-6
            assert max(parameter.grad.abs().max() for parameter in trainer.model.parameters()) < 1e-6

    @pytest.mark.parametrize("objective", ["cot_kd", "mix"])
    @pytest.mark.parametrize("extra", [{}, dict(packing=True, max_length=64, shuffle_dataset=True)])
    def test_cot_kd_and_mix_are_plain_sft(
        self, run, tiny_model, tokenizer, rows, settings, tmp_path, objective, extra
    ):
        config = dict(r=2, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        trainer = run(objective, peft_config=LoraConfig(**config), **extra)
        plain = SFTTrainer(
            tiny_model(),
            args=SFTConfig(str(tmp_path / "plain"), **settings, **extra),
            train_dataset=rows.filter(lambda row: row["label"]) if objective == "cot_kd" else rows,
            processing_class=tokenizer,
            peft_config=LoraConfig(**config),
        )
        plain.train()
        assert torch.equal(history(trainer), history(plain))
        for a, b in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_no_weight_leaves_the_wrong_rows_out(self, run):
        nt, ul = (run(objective, objective, negative_weight=0.0) for objective in ("nt", "ul"))
        assert losses(nt) == pytest.approx(losses(ul), rel=1e-6)

    @pytest.mark.parametrize("objective", OWN_LOSS)
    def test_accumulation_changes_nothing(self, run, objective):
        runs = []
        for n in (1, 8):
            batches = dict(per_device_train_batch_size=8 // n, gradient_accumulation_steps=n)
            runs.append(history(run(objective, negative_weight=0.5, **batches)))
        assert runs[0].shape == (6, 2)
        torch.testing.assert_close(*runs, rtol=1e-4, atol=0)

    def test_objectives_do_what_they_are_called(self, run, tokenizer, rows):
        """What becomes of the log-probability of wrong rows: MIX raises it, NT and UL hold it down."""
        found = {}
        for objective in OBJECTIVES:
            settings = dict(per_device_train_batch_size=24, num_train_epochs=10, logging_steps=100)
            trainer = run(objective, negative_weight=1.0, **settings)
            _, found[objective] = dense_objective(trainer.model, tokenizer, rows, "mix", 1.0)
        assert all(logps[True] > -5 for logps in found.values()), "right rows are not learned"
        wrong = {objective: logps[False] for objective, logps in found.items()}
        assert wrong["mix"] > wrong["cot_kd"] > wrong["ul"] > max(wrong["nt"], wrong["redi"])

    @pytest.mark.parametrize("objective", OWN_LOSS)
    def test_evaluation_is_the_objective(self, make_trainer, tokenizer, rows, objective):
        trainer = make_trainer(objective, eval_dataset=rows, per_device_eval_batch_size=24)
        metrics = trainer.evaluate()
        expected, logps = dense_objective(trainer.model, tokenizer, rows, objective, trainer.args.negative_weight)
        assert metrics["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
        assert metrics["eval_logps/wrong"] == pytest.approx(logps[False], rel=1e-5)
        trainer.model.float()
        assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(metrics["eval_loss"])

    @pytest.mark.parametrize("objective", OWN_LOSS)
    def test_experts_keep_their_auxiliary_loss(self, make_trainer, tiny_experts, tokenizer, rows, objective):
        found = []
        for coefficient in (0.0, 0.5):
            trainer = make_trainer(objective, model=tiny_experts(), router_aux_loss_coef=coefficient)
            batch, _ = batch_of(trainer, tokenizer, rows)
            found.append(trainer.compute_loss(trainer.model.train(), dict(batch)).item())
        aux = trainer._metrics["train"]["aux_loss"][-1]
        assert aux > 0 and found[1] == pytest.approx(found[0] + 0.5 * aux, rel=1e-5)


class TestRun:
    @pytest.mark.parametrize("objective", OWN_LOSS)
    def test_resumes_and_saves(self, run, make_trainer, objective, tmp_path):
        saving = dict(save_strategy="steps", save_steps=4)
        whole = run(objective, "whole", **saving)
        resumed = make_trainer(objective, "resumed", **saving)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
        assert_same_weights(whole.model, resumed.model)
        assert losses(resumed, "logps/wrong") == losses(whole, "logps/wrong") and len(losses(whole)) == 12
        whole.save_model(str(tmp_path / "model"))
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
        ids = torch.arange(4, 14)[None]
        with torch.no_grad():
            assert torch.equal(reloaded(ids).logits, whole.model.eval()(ids).logits)

    def test_resumes_in_4_bits(self, run, make_trainer, quantized, rows, tmp_path):
        """With a LoRA, and rows that say where the first mistake is."""
        marked = rows.add_column("right_tokens", [i % 7 for i in range(len(rows))])
        adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        values = dict(train_dataset=marked, peft_config=adapter, save_strategy="steps", save_steps=4, bf16=True)
        whole = run("ul", "whole", quantized(4), **values)
        resumed = make_trainer("ul", "resumed", quantized(4), **values)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
        assert losses(resumed) == losses(whole) and len(losses(whole)) == 12
        assert_same_weights(resumed.model, whole.model)
        kinds = {type(module).__name__ for module in whole.model.modules() if hasattr(module, "lora_variant")}
        assert kinds == {"Linear4bit"}
        assert any(parameter.any() for name, parameter in whole.model.named_parameters() if "lora_B" in name)

    def test_conversational_rows(self, run, chats, tokenizer):
        trainer = run("ul", train_dataset=chats)
        assert len(losses(trainer)) == 4 and losses(trainer, "logps/wrong")
        row = trainer.train_dataset[1]
        assert tokenizer.decode([token for token in row["labels"] if token != -100]) == "answer 1<|endoftext|>"

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_rows_that_are_too_long_are_dropped_and_not_cut(self, make_trainer, tokenizer, objective, caplog):
        with caplog.at_level(logging.WARNING, logger="trl_distill.rationales"):
            trainer = make_trainer(objective, max_length=26)
        total, kept = (16, 8) if objective == "cot_kd" else (24, 16)
        assert f"Dropped {total - kept} of {total} rows of the train dataset" in caplog.text
        assert len(trainer.train_dataset) == kept
        assert all(tokenizer.decode(row["input_ids"]).endswith("<|endoftext|>") for row in trainer.train_dataset)

    def test_model_card_cites_the_paper(self, make_trainer):
        trainer = make_trainer()
        trainer.create_model_card()
        card = Path(trainer.args.output_dir, "README.md").read_text()
        assert "li2024turning" in card and "2312.12832" in card

    def test_defaults_of_the_paper(self):
        args = LabeledSFTConfig("x", bf16=False)
        assert (args.objective, args.negative_weight, args.learning_rate) == ("cot_kd", 0.05, 3e-4)
        assert LabeledSFTConfig("x", bf16=False, objective="redi").negative_weight == 0.8


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (dict(objective="dpo"), "`objective` must be one of cot_kd, mix, nt, ul, redi, got 'dpo'"),
            (dict(objective="nt", negative_weight=-1.0), "must not be negative, got -1.0: `objective='nt'` subtracts"),
            (dict(objective="nt", packing=True), "`objective='nt'` weighs whole rows.*`False`"),
            (dict(objective="ul", padding_free=True, max_length=None), "`objective='ul'` weighs whole rows.*`False`"),
        ],
    )
    def test_settings(self, make_trainer, change, message):
        with pytest.raises(ValueError, match=message):
            make_trainer(**change)

    @pytest.mark.parametrize("change", [dict(loss_type="dft"), dict(label_smoothing_factor=0.1)])
    def test_other_losses(self, make_trainer, change):
        with pytest.raises(ValueError, match=next(iter(change))):
            make_trainer("nt", **change)

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_rows(self, make_trainer, rows, objective):
        unlabeled, numbers = rows.remove_columns("label"), rows.cast_column("label", Value("int64"))
        for name, dataset, message in (
            ("train_dataset", unlabeled, "`train_dataset` has no column label"),
            ("train_dataset", numbers, "`label` in `train_dataset` must be boolean.*row 0 has 0"),
            ("train_dataset", None, "`train_dataset` is required"),
            ("eval_dataset", unlabeled, "`eval_dataset` has no column label"),
        ):
            with pytest.raises(ValueError, match=message):
                make_trainer(objective, **{name: dataset})

    def test_no_right_rows(self, make_trainer, rows):
        wrong = rows.filter(lambda row: not row["label"])
        with pytest.raises(ValueError, match="All 8 rows of the train dataset are wrong.*Add right rationales"):
            make_trainer(train_dataset=wrong)

    @pytest.mark.parametrize("objective", ["cot_kd", "nt", "ul"])
    def test_evaluation_rows_that_come_later(self, make_trainer, rows, objective):
        with pytest.raises(ValueError, match="`eval_dataset` has no column label"):
            make_trainer(objective).evaluate(rows.remove_columns("label"))
        with pytest.raises(ValueError, match="`label` in `eval_dataset` must be boolean"):
            make_trainer(objective).evaluate(rows.cast_column("label", Value("int64")))

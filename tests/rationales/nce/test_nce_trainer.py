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
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

from tests.runs import MODES, assert_same_logits, assert_same_weights, history
from trl_distill.divergence import LMHead, token_divergence
from trl_distill.rationales.nce import calibration_weights
from trl_distill.rationales.nce.nce_trainer import nce_token_loss


def batch_of(trainer):
    """The first four rows of the trainer's data, collated."""
    columns = ["input_ids", "labels", *(["weight"] if trainer.args.is_calibrated else [])]
    return trainer.data_collator(list(trainer.train_dataset.select_columns(columns).select(range(4))))


def gradients(trainer, inputs):
    """Loss and gradients of one micro-batch, without dropout."""
    trainer.model.eval()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(inputs))
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def stir(model):
    """Give a fresh adapter something to do."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B.default" in key:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def naive_loss(trainer, inputs, alpha, temperature, weight_of, teacher=None):
    """
    Loss (with the KL), and the same with NAT's soft cross-entropy, token by token in float64 from dense logits. Shares
    no line with the trainer.
    """
    model, teacher = trainer.model.double().eval(), (teacher or trainer.model).double().eval()
    losses, tokens = {"kl": 0.0, "soft_ce": 0.0}, 0
    for row in range(len(inputs["input_ids"])):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]
        teacher.set_adapter("nat")
        with torch.no_grad():
            z_nat = teacher(input_ids=ids).logits[0]
        if teacher is model:
            model.set_adapter("default")
        z = model(input_ids=ids).logits[0]
        for position in range(1, ids.shape[1]):
            label = inputs["labels"][row][position]
            if label == -100:
                continue
            q = torch.softmax(z_nat[position - 1] / temperature, -1)
            logp = torch.log_softmax(z[position - 1] / temperature, -1)
            ce = -torch.log_softmax(z[position - 1], -1)[label]
            soft_ce = -(q * logp).sum()
            entropy = -(q * q.log()).sum()
            scale = alpha * weight_of(row) * temperature**2
            losses["soft_ce"] = losses["soft_ce"] + (1 - alpha) * ce + scale * soft_ce
            losses["kl"] = losses["kl"] + (1 - alpha) * ce + scale * (soft_ce - entropy)
            tokens += 1
    return {name: loss / tokens for name, loss in losses.items()}


class TestLoss:
    def test_closed_form_of_a_uniform_student(self):
        """p_nat = (3/4, 1/4), beta = 1/7: the distillation of a uniform student is 9/14 ln 2 with the soft CE."""
        head, nat = LMHead(torch.eye(2)), torch.tensor([[0.75, 0.25]]).log()
        student = torch.zeros(1, 2)
        kl, _ = token_divergence(student, head, nat, head, beta=0.0)
        _, entropy = token_divergence(nat, head, nat, head, beta=0.0)
        weight, no_ce = torch.tensor([0.5 + 1 / 7]), torch.zeros(1, 1)
        soft_ce = nce_token_loss(no_ce, (kl + entropy)[None], weight, alpha=1.0)
        assert soft_ce.item() == pytest.approx(9 / 14 * math.log(2), abs=1e-6) == pytest.approx(0.445595, abs=1e-6)
        loss = nce_token_loss(no_ce, kl[None], weight, alpha=1.0)
        entropy_of_nat = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
        assert loss.item() == pytest.approx(9 / 14 * (math.log(2) - entropy_of_nat), abs=1e-6)

    def test_token_loss(self):
        logps, divergence = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]), torch.tensor([[4.0, 0.0], [2.0, 1.0]])
        loss = nce_token_loss(logps, divergence, torch.tensor([0.5, 1.5]), alpha=0.25)
        assert loss.tolist() == [[0.75 + 0.5, 1.5], [2.25 + 0.75, 0.375]]

    @pytest.mark.parametrize("alpha, temperature, constant", [(0.5, 1.0, None), (0.8, 2.0, None), (0.3, 0.7, 1.2)])
    def test_loss_and_gradient_match_a_float64_loop(self, make_trainer, alpha, temperature, constant):
        """The gradient is that of the soft cross-entropy, too: the two forms differ by NAT's entropy, a constant."""
        trainer = make_trainer(alpha=alpha, kd_temperature=temperature, kd_weight=constant)
        stir(trainer.model)
        inputs = batch_of(trainer)
        loss, grads = gradients(trainer, inputs)
        trainer.model.zero_grad()
        weight_of = lambda row: constant if constant else 0.5 + inputs["weight"][row].item()  # noqa: E731
        expected = naive_loss(trainer, inputs, alpha, temperature, weight_of)
        assert loss == pytest.approx(expected["kl"].item(), rel=1e-5)
        assert expected["soft_ce"] > expected["kl"] + 0.1
        expected["soft_ce"].backward()
        for name, parameter in trainer.model.named_parameters():
            assert (name in grads) == ("default" in name)
            if name in grads:
                torch.testing.assert_close(grads[name].double(), parameter.grad, rtol=1e-3, atol=1e-6)

    def test_beta_0_is_half_ce_and_a_quarter_kd(self, make_trainer, weighed):
        zero = weighed.remove_columns("weight").add_column("weight", [0.0] * len(weighed))
        trainer = make_trainer(train_dataset=zero)
        stir(trainer.model)
        inputs = batch_of(trainer)
        losses = {}
        for alpha in (0.0, 0.5, 1.0):
            trainer.args.alpha = alpha
            losses[alpha], _ = gradients(trainer, inputs)
        assert losses[0.5] == pytest.approx(0.5 * losses[0.0] + 0.5 * losses[1.0], rel=1e-5)
        assert losses[1.0] == pytest.approx(0.5 * trainer._metrics["eval"]["kl"][-1], rel=1e-5)

    def test_distillation_scales_with_half_plus_beta(self, make_trainer):
        trainer = make_trainer(alpha=1.0)
        stir(trainer.model)
        inputs = {name: value[:1] for name, value in batch_of(trainer).items()}
        results = {}
        for beta in (0.0, 0.25, 1.0):
            results[beta] = gradients(trainer, inputs | {"weight": torch.tensor([beta])})
        for beta in (0.25, 1.0):
            factor = (0.5 + beta) / 0.5
            assert results[beta][0] == pytest.approx(factor * results[0.0][0], rel=1e-5)
            for name, grad in results[beta][1].items():
                torch.testing.assert_close(grad, factor * results[0.0][1][name], rtol=1e-4, atol=1e-7)

    @pytest.mark.parametrize("bf16", [False, True])
    def test_a_student_that_is_nat_has_nothing_to_distil(self, make_trainer, make_nat, weighed, bf16):
        model = make_nat()
        trainer = make_trainer(model, alpha=1.0, bf16=bf16, peft_config=model.peft_config["nat"], eval_dataset=weighed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".default." in name:
                    parameter.copy_(model.get_parameter(name.replace(".default.", ".nat.")))
        assert abs(trainer.evaluate()["eval_kl"]) < 1e-6  # teacher and student run in one precision
        if not bf16:
            loss, grads = gradients(trainer, batch_of(trainer))
            assert abs(loss) < 1e-6 and max(grad.abs().max() for grad in grads.values()) < 1e-6

    def test_weighted_ce_matches_its_definition(self, make_trainer, tiny_model):
        trainer = make_trainer(tiny_model(), objective="weighted_ce")
        inputs = batch_of(trainer)
        loss, _ = gradients(trainer, inputs)
        logits = tiny_model().double()(input_ids=inputs["input_ids"]).logits[:, :-1]  # padding is on the right
        labels = inputs["labels"][:, 1:]
        ce = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
        expected = ((1 + inputs["weight"].double())[:, None] * ce).sum() / (labels != -100).sum()
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert trainer._metrics["eval"]["ce"][-1] == pytest.approx(ce.sum().item() / (labels != -100).sum().item())
        assert trainer._metrics["eval"]["weight/mean"][-1] == pytest.approx(inputs["weight"].mean().item())

    @pytest.mark.parametrize("objective", [{"alpha": 0.0}, {"objective": "weighted_ce"}])
    def test_without_weight_it_is_sft_to_the_last_bit(
        self, make_trainer, student_lora, tiny_model, tokenizer, rows, weighed, run_settings, objective
    ):
        zero = weighed.remove_columns("weight").add_column("weight", [0.0] * len(weighed))
        ours = make_trainer(train_dataset=zero, shuffle_dataset=True, **objective)
        ours.train()
        sft = SFTTrainer(
            tiny_model(),
            SFTConfig(**run_settings, shuffle_dataset=True),
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=student_lora(),
        )
        sft.train()
        assert torch.equal(history(ours), history(sft)) and len(history(ours)) == 3
        assert "kd" not in ours.state.log_history[0]  # NAT has not been asked
        trained = {n.replace("base_model.", "", 1): p for n, p in ours.model.named_parameters() if ".default." in n}
        expected = {n.replace("base_model.", "", 1): p for n, p in sft.model.named_parameters() if "lora" in n}
        assert trained.keys() == expected.keys()
        assert all(torch.equal(trained[name], expected[name]) for name in expected)

    def test_padding_and_order_change_nothing(self, make_trainer):
        trainer = make_trainer()
        stir(trainer.model)
        inputs = batch_of(trainer)
        loss, grads = gradients(trainer, inputs)
        order = torch.tensor([2, 0, 3, 1])
        fill = {"input_ids": 7, "labels": -100, "attention_mask": 0}
        changed = {name: value[order] for name, value in inputs.items()}
        for name, value in fill.items():
            changed[name] = torch.nn.functional.pad(changed[name], (0, 9), value=value)
        changed_loss, changed_grads = gradients(trainer, changed)
        assert changed_loss == pytest.approx(loss, rel=1e-5)
        for name in grads:
            torch.testing.assert_close(changed_grads[name], grads[name], rtol=1e-4, atol=1e-6)

    def test_chunks_change_nothing(self, make_trainer):
        results = []
        for chunk in (1024, 5):
            trainer = make_trainer(loss_chunk_tokens=chunk)
            results.append(gradients(trainer, batch_of(trainer)))
        assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)

    @pytest.mark.parametrize("settings", [{}, {"objective": "weighted_ce"}])
    def test_accumulation_is_exact(self, student_lora, make_trainer, settings):
        runs = {}
        lora = student_lora(lora_dropout=0.0)
        for size in (8, 2, 1):
            batches = dict(per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)
            steps = dict(optim="sgd", max_steps=2, max_grad_norm=1e9)
            trainer = make_trainer(peft_config=lora, **batches, **steps, **settings)
            trainer.train()
            runs[size] = history(trainer)
        for size in (2, 1):
            torch.testing.assert_close(runs[size], runs[8], rtol=1e-4, atol=1e-6)

    def test_logged_terms_add_up_to_the_loss(self, make_trainer, weighed):
        trainer = make_trainer(alpha=0.3, kd_temperature=2.0, eval_dataset=weighed, per_device_eval_batch_size=12)
        trainer.train()
        entry = next(entry for entry in trainer.state.log_history if "grad_norm" in entry)
        assert entry["loss"] == pytest.approx(0.7 * entry["ce"] + 0.3 * entry["kd"], rel=1e-4)
        assert 0 < entry["weight/mean"] < 1 and entry["kd"] > entry["kl"] > 0 and "soft_ce" not in entry
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] == pytest.approx(0.7 * metrics["eval_ce"] + 0.3 * metrics["eval_kd"], rel=1e-4)
        assert metrics["eval_soft_ce"] > metrics["eval_kl"] > 0
        assert metrics["eval_weight/mean"] == pytest.approx(sum(weighed["weight"]) / 12, rel=1e-5)

    def test_load_balancing_loss_is_not_weighed(self, make_trainer, make_nat, tiny_experts, rows):
        """What a mixture of experts adds to SFT's loss it adds to NCE's, whatever alpha is."""
        added = []
        for alpha in (0.0, 0.5):
            losses = []
            for coefficient in (0.0, 1.0):
                model = make_nat(base=tiny_experts(), targets=("q_proj", "v_proj"))
                settings = dict(alpha=alpha, kd_weight=1.0, router_aux_loss_coef=coefficient)
                trainer = make_trainer(model, train_dataset=rows, **settings)
                losses.append(gradients(trainer, batch_of(trainer))[0])
            added.append(losses[1] - losses[0])
        assert added[0] > 0.5 and added[1] == pytest.approx(added[0], rel=1e-4)


class TestModels:
    def test_only_the_student_moves(self, make_trainer):
        trainer = make_trainer()
        model = trainer.model
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        assert {name for name in flags if flags[name]} == {name for name in flags if ".default." in name}
        trainer.train()
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == flags[name]
            if ".default." in name:
                assert not torch.equal(parameter, before[name]), name
            else:
                assert torch.equal(parameter, before[name]) and parameter.grad is None, name

    def test_teacher_states_are_those_of_nat_alone_while_the_student_trains(self, make_trainer, make_nat):
        trainer = make_trainer()
        stir(trainer.model)
        inputs = batch_of(trainer)
        trainer.model.train()
        states = trainer._teacher_states(inputs)
        alone = make_nat()
        with torch.no_grad():
            hidden = alone.base_model.model.model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
        expected = torch.stack(
            [hidden[r, t - 1] for r in range(4) for t in range(1, hidden.shape[1]) if inputs["labels"][r, t] != -100]
        )
        assert torch.equal(states, expected) and not states.requires_grad
        assert trainer.model.active_adapters == ["default"]

    def test_student_learns_from_the_teacher(self, make_trainer, weighed):
        trainer = make_trainer(alpha=1.0, eval_dataset=weighed, max_steps=25, learning_rate=0.05)
        before = trainer.evaluate()["eval_kl"]
        trainer.train()
        assert trainer.evaluate()["eval_kl"] < 0.7 * before

    def test_gradient_checkpointing(self, student_lora, make_trainer):
        results = []
        for checkpointing in (False, True):
            lora = student_lora(lora_dropout=0.0)
            trainer = make_trainer(gradient_checkpointing=checkpointing, peft_config=lora, max_steps=1)
            stir(trainer.model)
            trainer.train()
            results.append(history(trainer))
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)

    def test_mixed_precision(self, make_trainer):
        losses = []
        for bf16 in (False, True):
            trainer = make_trainer(bf16=bf16, max_steps=1)
            trainer.train()
            losses.append(trainer.state.log_history[0])
        for name in ("loss", "ce", "kd"):
            assert losses[1][name] != losses[0][name] and losses[1][name] == pytest.approx(losses[0][name], rel=0.05)

    def test_a_full_student_with_a_teacher_of_its_own(self, make_trainer, make_nat, tiny_model):
        """A student with another width, and with more rows in its LM head than there are tokens."""
        teacher, student = make_nat(), tiny_model(seed=3, hidden_size=16, vocab_size=300)
        before = {name: parameter.clone() for name, parameter in teacher.named_parameters()}
        trainer = make_trainer(student, teacher_model=teacher)
        shared = len(trainer.processing_class)
        inputs = batch_of(trainer)
        loss, _ = gradients(trainer, inputs)
        with torch.no_grad():
            total, tokens = 0.0, 0
            for row in range(4):
                ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]
                logits = student(input_ids=ids).logits[0].double()
                logps, cut = logits.log_softmax(-1), logits[:, :shared].log_softmax(-1)
                nat = teacher(input_ids=ids).logits[0].double().log_softmax(-1)
                for t in range(1, ids.shape[1]):
                    if inputs["labels"][row, t] != -100:
                        kl = (nat[t - 1].exp() * (nat[t - 1] - cut[t - 1])).sum()
                        total += -0.5 * logps[t - 1, ids[0, t]] + 0.5 * (0.5 + inputs["weight"][row]) * kl
                        tokens += 1
        assert loss == pytest.approx((total / tokens).item(), rel=1e-5)
        trainer.train()
        assert all(torch.equal(parameter, before[name]) for name, parameter in teacher.named_parameters())

    def test_4_bit(self, make_nat, tiny_model, make_trainer, rows, tokenizer, make_args, tmp_path):
        """A quantized base: it trains, also beside its teacher, and a resumed run is the uninterrupted one."""
        tiny_model(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")

        def load():
            config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
            path = tmp_path / "base"
            base = AutoModelForCausalLM.from_pretrained(path, device_map="cpu", quantization_config=config)
            return make_nat(base=base, scale=0.05)

        model = load()
        weighed = calibration_weights(model, rows, tokenizer, make_args())
        assert 0 < min(weighed["weight"]) and max(weighed["weight"]) < 1
        settings = dict(train_dataset=weighed, save_strategy="steps", save_steps=2, max_steps=4)
        whole = make_trainer(model, **settings)  # the model that has just run without gradients
        nat = {n: p.clone() for n, p in whole.model.named_parameters() if ".nat." in n or ".neg." in n}
        whole.train()
        parameters = dict(whole.model.named_parameters())
        assert nat and all(torch.equal(parameters[name], value) for name, value in nat.items())
        assert all(p.dtype == torch.bfloat16 for n, p in parameters.items() if ".default." in n)
        resumed = make_trainer(load(), **settings)
        resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-2"))
        assert torch.equal(history(resumed)[-2:], history(whole)[-2:])


class TestFiles:
    def test_the_artefact_is_one_stock_lora(self, make_trainer, tiny_model, tmp_path):
        trainer = make_trainer(save_strategy="steps", save_steps=2)
        trainer.train()
        trainer.save_model()
        output = Path(trainer.args.output_dir)
        folders = {path.parent.relative_to(output).as_posix() for path in output.rglob("adapter_model.safetensors")}
        assert folders == {".", "checkpoint-2", "checkpoint-3"}
        config = json.loads((output / "adapter_config.json").read_text())
        assert config["peft_type"] == "LORA" and "nat_config" not in config and config["r"] == 4

        ids = torch.randint(4, 200, (2, 9))
        with torch.no_grad():
            expected = trainer.model.eval()(input_ids=ids).logits
            loaded = PeftModel.from_pretrained(tiny_model(), output).eval()
            assert torch.equal(loaded(input_ids=ids).logits, expected)
            assert not torch.allclose(tiny_model()(input_ids=ids).logits, expected)
            merged = loaded.merge_and_unload()
            torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        trainer.model.save_pretrained(tmp_path / "all")  # what the user saves by hand is as PEFT saves it
        assert (tmp_path / "all" / "nat").exists()

    def test_resume_is_the_uninterrupted_run(self, make_trainer, weighed):
        settings = dict(save_strategy="steps", save_steps=2, max_steps=5, eval_dataset=weighed)
        whole = make_trainer(**settings)
        whole.train()
        resumed = make_trainer(**settings)
        resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-2"))
        assert torch.equal(history(resumed)[-3:], history(whole)[-3:])
        assert_same_weights(resumed.model, whole.model)

    def test_best_model_at_end(self, make_trainer, weighed):
        trainer = make_trainer(
            eval_dataset=weighed,
            eval_strategy="steps",
            save_strategy="steps",
            eval_steps=1,
            save_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_ce",
            greater_is_better=True,  # the first step is the best one then
            learning_rate=0.1,
        )
        trainer.train()
        assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
        assert trainer.evaluate()["eval_ce"] == pytest.approx(trainer.state.best_metric, rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_give_the_loss_of_one(
    mode, on_one_and_two_processes, make_nat, tiny_model, weighed, tokenizer, tmp_path
):
    tiny_model().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    make_nat().save_pretrained(tmp_path / "nat")
    weighed.to_json(tmp_path / "rows.jsonl")
    one, two = on_one_and_two_processes(Path(__file__).with_name("run_distributed.py"), tmp_path, mode)
    assert two.keys() == one.keys() or mode != "ddp" and two.keys() == {name for name in one if "kd/" not in name}
    for name, values in two.items():
        assert values == pytest.approx(one[name], rel=1e-4), name
    folders = (tmp_path / f"student-{n}" for n in (1, 2))
    assert_same_logits(lambda folder: PeftModel.from_pretrained(tiny_model(), folder), *folders)

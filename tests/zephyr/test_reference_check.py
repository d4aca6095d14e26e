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

"""The reference of a DPO run is the model that training starts from, or the run stops in its first step (A1)."""

import json
import math
import subprocess
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoModelForCausalLM
from trl import DPOConfig

from tests.commands import TWO_PROCESSES, stops
from tests.runs import MODES, assert_same_logits
from trl_distill.scripts import dpo
from trl_distill.zephyr.reference_check import WrongReferenceError, wrong_reference


LN_2 = 0.6931471805599453


class TestRightReference:
    @pytest.mark.parametrize(
        "changes",
        [
            {"beta": 0.1},
            {"beta": 0.01, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
            {"beta": 0.1, "precompute_ref_log_probs": True, "precompute_ref_batch_size": 3},
            {"beta": 0.1, "label_smoothing": 0.2},
            {"beta": 0.1, "f_divergence_type": "js_divergence"},
            {"beta": 0.1, "ld_alpha": 0.5},
            {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1},
        ],
        ids=lambda changes: ",".join(changes),
    )
    def test_the_first_step_is_logged_and_shows_ln_2(self, make_dpo, save_model, changes):
        trainer = make_dpo(save_model(), logging_steps=10, **changes)
        trainer.train()
        first = trainer.state.log_history[0]
        assert first["step"] == 1
        assert first["loss"] == pytest.approx(LN_2, abs=1e-6)
        for name in ("chosen", "rejected", "margins"):
            assert first[f"rewards/{name}"] == pytest.approx(0, abs=1e-5)

    @pytest.mark.parametrize(
        "changes",
        [
            {"loss_type": ["ipo"]},
            {"loss_type": ["hinge"]},
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1]},
            {"loss_weights": [0.5]},
            {"use_weighting": True},
        ],
        ids=str,
    )
    def test_other_losses_are_not_ln_2(self, make_dpo, save_model, changes):
        trainer = make_dpo(save_model(), max_steps=1, **changes)
        trainer.train()
        assert abs(trainer.state.log_history[0]["loss"] - LN_2) > 0.02

    def test_lora(self, make_dpo, save_model):
        trainer = make_dpo(save_model(), peft_config=LoraConfig(r=4, target_modules="all-linear"))
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(LN_2, abs=1e-6)

    def test_evaluations_are_not_looked_at(self, make_dpo, save_model, pairs):
        evaluated = dict(eval_dataset=pairs, eval_strategy="steps", eval_steps=1, eval_on_start=True)
        trainer = make_dpo(save_model(), learning_rate=1.0, **evaluated)
        trainer.train()
        evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        assert len(evaluations) == 4
        assert abs(evaluations[1]["eval_loss"] - LN_2) > 0.02  # of step 1, after the update


class TestWrongReference:
    @pytest.mark.parametrize("beta", [0.1, 0.01])
    @pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
    def test_another_checkpoint_stops_the_run(self, make_dpo, save_model, tmp_path, beta, loss_type):
        other = AutoModelForCausalLM.from_pretrained(save_model("other", seed=1))
        steps = dict(save_strategy="steps", save_steps=1, logging_steps=10)
        trainer = make_dpo(save_model(), other, beta=beta, loss_type=[loss_type], **steps)
        message = r"mean log-ratio of (chosen|rejected) answers is -?\d.*trl-distill merge"
        with pytest.raises(WrongReferenceError, match=message) as e:
            trainer.train()
        assert ("ln 2" in str(e.value)) == (loss_type == "sigmoid" and beta == 0.1)  # what the loss alone would see
        assert trainer.state.global_step == 1
        assert not list(tmp_path.glob("out/**/*.safetensors"))

    def test_an_adapter_that_does_not_start_at_zero(self, make_dpo, save_model):
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights="pissa")
        with pytest.raises(WrongReferenceError, match="PiSSA"):
            make_dpo(save_model(), peft_config=config, beta=0.01).train()

    def test_a_resumed_run_is_not_checked(self, make_dpo, save_model, tmp_path):
        model = save_model()
        make_dpo(model, save_strategy="steps", save_steps=2, max_steps=2, learning_rate=1.0).train()
        trainer = make_dpo(model, logging_steps=1, max_steps=3)
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
        resumed = next(entry for entry in trainer.state.log_history if entry["step"] == 3)
        assert abs(resumed["rewards/margins"]) / 0.1 > 1  # what would have stopped a first step

    def test_a_run_with_dropout_is_warned_about(self, make_dpo, tiny_gpt2, chat_tokenizer, tmp_path, caplog):
        tiny_gpt2(vocab_size=264, resid_pdrop=0.5, embd_pdrop=0.5).save_pretrained(tmp_path / "gpt2")
        chat_tokenizer.save_pretrained(tmp_path / "gpt2")
        make_dpo(str(tmp_path / "gpt2")).train()
        make_dpo(str(tmp_path / "gpt2"), disable_dropout=False).train()
        (warning,) = [record for record in caplog.records if record.name == "trl_distill.zephyr.reference_check"]
        assert "`disable_dropout=False` dropout may be the cause" in warning.getMessage()

    def test_the_command_says_why_and_saves_nothing(self, save_model, pairs, tmp_path, capsys):
        pairs.to_json(tmp_path / "pairs.jsonl")
        flags = {
            "model_name_or_path": save_model(attention_dropout=0.5),
            "dataset_name": tmp_path / "pairs.jsonl",
            "output_dir": tmp_path / "out",
            "per_device_train_batch_size": 4,
            "bf16": False,
            "report_to": "none",
        }
        assert stops(dpo.run, "--use_cpu", *(f"--{name}={value}" for name, value in flags.items())) == 2
        assert "trl-distill dpo: error: The reference is not the model" in capsys.readouterr().err
        assert not list(tmp_path.glob("out/**/*.safetensors"))

    def test_two_processes_stop_together(self, save_model, pairs, tmp_path):
        save_model("right"), save_model("wrong", seed=1)
        pairs.to_json(tmp_path / "pairs.jsonl")
        script = Path(__file__).parent / "run_dpo.py"
        done = subprocess.run([*TWO_PROCESSES, str(script), str(tmp_path)], capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        seen = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
        assert [result["processes"] for result in seen] == [2, 2]
        assert seen[0]["wrong"] == seen[1]["wrong"]
        assert "mean log-ratio" in seen[0]["wrong"]
        assert [result["right"] for result in seen] == [None, None]


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_give_the_loss_of_one(mode, on_one_and_two_processes, save_model, pairs, tmp_path):
    save_model("right")
    pairs.to_json(tmp_path / "pairs.jsonl")
    one, two = on_one_and_two_processes(Path(__file__).with_name("run_modes.py"), tmp_path, mode)
    for name, values in one.items():
        assert two[name] == pytest.approx(values, rel=1e-4), name
    for name, loader in (
        ("sft", AutoModelForCausalLM),
        ("dpo", AutoModelForCausalLM),
        ("dpo_lora", AutoPeftModelForCausalLM),
    ):
        assert_same_logits(loader.from_pretrained, *(tmp_path / f"{name}-{n}" for n in (1, 2)))


class TestDecision:
    RIGHT = {
        "loss": LN_2,
        "rewards/chosen": 0.0,
        "rewards/rejected": 0.0,
        "logps/chosen": -300.0,
        "logps/rejected": -200.0,
    }

    @staticmethod
    def args(**changes):
        return DPOConfig("unused", bf16=False, **changes)

    def test_the_published_wrong_reference(self):
        """Loss and rewards of one wrong reference, as TRL logged them at two values of beta."""
        logps = {"logps/chosen": -60.0, "logps/rejected": -60.0}
        strong = {"loss": 0.5514, "rewards/chosen": 0.425, "rewards/rejected": 0.117} | logps
        weak = {"loss": 0.6779, "rewards/chosen": 0.0425, "rewards/rejected": 0.0117} | logps
        assert "0.5514 instead of ln 2 = 0.6931" in wrong_reference(self.args(beta=0.1), strong)
        problem = wrong_reference(self.args(beta=0.01), weak)
        assert "ln 2" not in problem
        assert "chosen answers is 4.2500 nats instead of 0" in problem
        assert "rejected answers is 1.1700 nats instead of 0" in problem

    @pytest.mark.parametrize("name", ["loss", "rewards/chosen", "rewards/rejected"])
    def test_nan_fails(self, name):
        assert "nan" in wrong_reference(self.args(), self.RIGHT | {name: math.nan})

    def test_rounding_passes(self):
        """As measured in bf16 with a precomputed reference: 0.13 % of the log-probability."""
        rounded = {"loss": 0.6731, "rewards/chosen": 0.0498, "rewards/rejected": 0.0364}
        logs = rounded | {"logps/chosen": -386.1, "logps/rejected": -353.9}
        assert wrong_reference(self.args(beta=0.1), logs, same_arithmetic=False) is None
        assert "ln 2" in wrong_reference(self.args(beta=0.1), logs | {"loss": 0.67}, same_arithmetic=True)

    @pytest.mark.parametrize(
        ("changes", "logs"),
        [
            ({"use_weighting": True}, {}),
            ({"loss_weights": [2.0]}, {}),
            ({}, {"aux_loss": 1.0}),
            ({"loss_type": ["ipo"]}, {}),
        ],
    )
    def test_a_loss_that_is_not_ln_2_is_not_held_to_it(self, changes, logs):
        assert wrong_reference(self.args(), self.RIGHT | {"loss": 5.0}) is not None
        assert wrong_reference(self.args(**changes), self.RIGHT | {"loss": 5.0} | logs) is None

    def test_cancelling_rows_are_seen_by_the_loss(self):
        """Log-ratios of +20 and -20 have the mean 0; the loss is convex."""
        loss = -torch.nn.functional.logsigmoid(0.1 * torch.tensor([20.0, -20.0])).mean().item()
        assert "ln 2" in wrong_reference(self.args(beta=0.1), self.RIGHT | {"loss": loss})

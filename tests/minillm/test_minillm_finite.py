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

"""A run stops at the first value that is not finite, and writes nothing of it."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from trl_distill.divergence import TokenScores
from trl_distill.minillm.metrics import FiniteCheck


NAN = float("nan")


class Break(TrainerCallback):
    """Make a weight of the student NaN at the start of a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step == self.step:
            model.model.norm.weight.data[0] = NAN


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("settings", [{}, {"single_step_decomposition": False}, {"whiten_advantages": True}])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_student_that_is_broken_from_the_first_step(make_trainer, tiny_model, prompts, alpha, settings):
    student = tiny_model()
    saving = dict(save_strategy="steps", save_steps=1)
    trainer = make_trainer(student, teacher_mix_alpha=alpha, eval_dataset=prompts, **saving, **settings)
    student.lm_head.weight.data[7] = NAN
    before = weights(student)
    with pytest.raises(
        ValueError, match=r"log-probability is not finite at step 0, on the prompt 'Say .*no checkpoint"
    ):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(student), strict=True) if not a.isnan().any())
    assert list(Path(trainer.args.output_dir).glob("checkpoint-*")) == []
    with pytest.raises(ValueError, match="log-probability is not finite at step 0"):
        trainer.evaluate()


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_model_that_is_broken_before(make_trainer, tiny_model, role):
    models = {"student": tiny_model(seed=0), "teacher": tiny_model(seed=1)}
    models[role].lm_head.weight.data[7] = NAN
    with pytest.raises(ValueError, match=f"The {role} .* gives log-probabilities that are not finite"):
        make_trainer(*models.values())


def test_the_last_checkpoint_from_before_is_named(make_trainer):
    trainer = make_trainer(callbacks=[Break(3)], num_iterations=1, save_strategy="steps", save_steps=1)
    with pytest.raises(ValueError, match=r"at step 3, .*The last checkpoint before it is .*checkpoint-2\."):
        trainer.train()
    assert not Path(trainer.args.output_dir, "checkpoint-4").exists()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_learning_rate_that_explodes(make_trainer, accumulation):
    settings = dict(gradient_accumulation_steps=accumulation, save_strategy="steps", save_steps=1)
    trainer = make_trainer(learning_rate=1e30, **settings)
    with pytest.raises(ValueError, match="not finite at step 1.*There is no checkpoint before it"):
        trainer.train()
    assert not Path(trainer.args.output_dir, "checkpoint-2").exists()


def test_weights_that_are_not_finite_are_not_saved(make_trainer):
    trainer = make_trainer(learning_rate=math.inf, max_steps=1, save_strategy="steps", save_steps=1)
    with pytest.raises(ValueError, match="weight .* is not finite at step 1"):
        trainer.train()
    assert list(Path(trainer.args.output_dir).rglob("*.safetensors")) == []


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_teacher_that_forbids_a_token(make_trainer, tiny_model, alpha):
    """A logit of `-inf` makes the KL infinite wherever the student would draw that token."""
    teacher = tiny_model(seed=1)
    teacher.lm_head.bias = torch.nn.Parameter(torch.zeros(260))
    trainer = make_trainer(teacher_model=teacher, teacher_mix_alpha=alpha)
    teacher.lm_head.bias.data[250] = -math.inf
    with pytest.raises(ValueError, match=r"(KL to the teacher is|teacher gives a log-probability that is) not finite"):
        trainer.train()


def test_a_gradient_alone(make_trainer):
    trainer = make_trainer()
    trainer.model.model.norm.weight.register_hook(lambda gradient: gradient * NAN)
    before = weights(trainer.model)
    with pytest.raises(ValueError, match="The gradient norm is not finite at step 0. Nothing"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer.model), strict=True))


def test_a_scaled_gradient_may_overflow(make_trainer):
    trainer = make_trainer()
    trainer.accelerator.state._mixed_precision = "fp16"
    try:
        trainer._finite.check(torch.tensor(math.inf))
    finally:
        trainer.accelerator.state._mixed_precision = "no"
    with pytest.raises(ValueError, match="gradient norm"):
        trainer._finite.check(torch.tensor(math.inf))


def test_the_prompt_of_the_first_row_that_breaks(make_trainer, tokenizer):
    data = Dataset.from_dict({"prompt": [f"prompt {row}" for row in range(8)]})
    trainer = make_trainer(train_dataset=data)
    trainer.model.train()
    check = FiniteCheck(trainer)
    rows = tokenizer([f"{row}" * (row + 1) for row in range(3)], padding=True, return_tensors="pt")
    inputs = {"prompt_ids": rows["input_ids"], "prompt_mask": rows["attention_mask"]}
    inputs["completion_mask"] = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    fine, broken = torch.zeros(6), torch.tensor([0, 0, 0, 0, NAN, 0])
    check.watch(TokenScores(fine, fine, fine, fine), inputs)
    check.check(1.0)
    names = {
        "kl": "KL to the teacher",
        "student_logps": "log-probability",
        "teacher_logps": "teacher's log-probability",
    }
    for field, name in names.items():
        check.watch(TokenScores(None, fine, fine, fine), inputs)
        check.watch(TokenScores(fine, fine, fine, fine)._replace(**{field: broken}), inputs)
        with pytest.raises(ValueError, match=f"The {name} is not finite at step 0, on the prompt '222'"):
            check.check()
    check.check(1.0)  # a new step starts anew

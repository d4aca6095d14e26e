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

"""Families of recent models: NAT and its baselines train on them, and load."""

import pytest

from tests.minillm.test_families import RECENT, build
from tests.rationales.nat.adapters import assert_loads, lora
from tests.runs import losses, make
from trl_distill import LabeledSFTConfig, LabeledSFTTrainer


# The vision tower of Gemma 4 has layers of the same names that PEFT does not know
ATTENTION = {"gemma4": r".*language_model.*\.[qv]_proj"}


@pytest.fixture
def model(tokenizer):
    return lambda family: build(family, vocab_size=len(tokenizer))


@pytest.mark.parametrize("family", RECENT)
def test_nat(family, run, model):
    targets = ATTENTION.get(family, ["q_proj", "v_proj"])
    trainer = run(model=model(family), peft_config=lora(target_modules=targets), max_steps=2)
    assert len(losses(trainer)) == 2
    assert_loads(trainer, model(family))


@pytest.mark.parametrize("family", RECENT)
@pytest.mark.parametrize("objective", ["cot_kd", "ul"])
def test_baselines(family, objective, model, tokenizer, rows, settings, tmp_path):
    values = dict(output_dir=str(tmp_path), train_dataset=rows, processing_class=tokenizer, max_steps=2)
    values |= dict(objective=objective, peft_config=lora(target_modules="all-linear"))
    trainer = make(LabeledSFTTrainer, LabeledSFTConfig, model=model(family), **settings | values)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if not parameter.equal(before[name])}
    text = {name for name in before if "lora_B" in name and "vision" not in name and "visual" not in name}
    assert moved >= text and all("lora_" in name for name in moved)

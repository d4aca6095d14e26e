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

"""Adapters of the tiny model for the tests of NAT."""

import torch
from peft import LoraConfig
from transformers import TrainerCallback

from trl_distill import load_nat


# Of the tiny model: 8 -> 8, 8 -> 4 (grouped queries) and 32 -> 8, so that no width of a gate can stand in for another
TARGETS = ["q_proj", "v_proj", "down_proj"]
IDS = torch.tensor([[11, 45, 90, 7, 133, 62, 18, 240, 99, 31]])


def lora(**settings):
    return LoraConfig(**(dict(r=2, lora_alpha=4, target_modules=TARGETS, task_type="CAUSAL_LM") | settings))


def logits(model, ids=IDS, **inputs):
    with torch.no_grad():
        return model(ids, **inputs).logits


def trained_adapters(model):
    return {name.split(".")[-2] for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_loads(trainer, base):
    """The folder of the run gives the model that was trained."""
    assert torch.equal(logits(load_nat(base, trainer.args.output_dir)), logits(trainer.model.eval()))


class Snapshot(TrainerCallback):
    """Values of all parameters when the training of each stage begins."""

    def __init__(self):
        self.at = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.at[args.stages] = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

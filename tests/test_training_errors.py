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

"""Errors of other libraries that reach users of our commands."""

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig

from trl_distill.training import user_errors


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({}, "set `lora_target_modules`, for example to all-linear"),
        ({"target_modules": "all-linear", "lora_dropout": 0.05}, "Set `lora_dropout: 0.0`, or name the layers in"),
    ],
)
def test_what_peft_says_of_its_own_parameters_has_a_remedy(settings, remedy, capsys):
    """Mixtral: no default targets, and experts whose weights are no linear layers."""
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    config = MixtralConfig(vocab_size=264, num_key_value_heads=2, num_local_experts=4, **sizes)
    with pytest.raises(SystemExit), user_errors("trl-distill nat"):
        get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(task_type="CAUSAL_LM", **settings))
    assert remedy in capsys.readouterr().err

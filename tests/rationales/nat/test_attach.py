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
"""What a gate can stand on, and what is refused before anything is changed."""

import peft
import pytest
from peft import IA3Config
from torch import nn

from tests.rationales.nat.adapters import lora
from trl_distill.rationales.data import check_lora
from trl_distill.rationales.nat import attach_nat
from trl_distill.rationales.nat.integration_unit import gate_parameters


class TestAttach:
    @pytest.mark.parametrize(
        ("gate", "message"),
        [
            ({"value": "linear"}, "`value` must be one of mlp, identity, got 'linear'"),
            ({"width": 0}, "must be positive, got 0 and 1.0"),
            ({"temperature": 0.0}, "must be positive, got 128 and 0.0"),
            ({"nat": "other"}, r"No layer has the adapter 'other'.*linear layers are .*q_proj"),
        ],
    )
    def test_options_out_of_range(self, two_loras, gate, message):
        with pytest.raises(ValueError, match=message):
            attach_nat(two_loras(), **gate)

    @pytest.mark.parametrize(
        ("positive", "negative", "message"),
        [
            ({}, {"target_modules": ["q_proj"]}, "not the negative one, 'neg'.*must be among those of the negative"),
            ({"use_dora": True}, {}, "Adapter 'nat' already is a variant of LoRA.*plain LoRA"),
            ({}, {"use_dora": True}, "Adapter 'neg' already is a variant of LoRA.*plain LoRA"),
            (
                {"target_modules": ["embed_tokens", "q_proj"]},
                {"target_modules": ["embed_tokens", "q_proj"]},
                "No gate can stand on .*embed_tokens, a Embedding of PEFT.*linear layers",
            ),
        ],
    )
    def test_layers_without_a_place_for_a_gate(self, two_loras, positive, negative, message):
        model = two_loras(positive, negative)
        with pytest.raises(ValueError, match=message):
            attach_nat(model)
        assert not gate_parameters(model)  # refused before anything was changed

    @pytest.mark.parametrize(
        ("layer", "kind"), [(nn.Conv1d(4, 4, 1), "Conv1d"), (nn.MultiheadAttention(4, 1), "MultiheadAttention")]
    )
    def test_other_layers_are_refused(self, two_loras, layer, kind):
        model = nn.ModuleDict({"part": layer, "linear": nn.Linear(4, 4)})
        config = dict(target_modules=["part", "linear"], task_type=None)
        model = two_loras(config, config, base=model)
        with pytest.raises(ValueError, match=f"No gate can stand on .*part, a {kind} of PEFT"):
            attach_nat(model)

    def test_twice_is_refused(self, make_nat):
        with pytest.raises(ValueError, match=r"Adapter 'nat' already is a variant of LoRA \(NATVariant\)"):
            attach_nat(make_nat())

    def test_an_untested_peft_is_refused(self, two_loras, monkeypatch):
        model = two_loras()
        monkeypatch.setattr(peft, "__version__", "0.22.0")
        with pytest.raises(ImportError, match=r"tested with 0.21.x, but 0.22.0 is installed.*peft>=0.21,<0.22"):
            attach_nat(model)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (IA3Config(), "`peft_config` must be a `LoraConfig`, got a IA3Config"),
            (lora(modules_to_save=["lm_head"]), r"`modules_to_save=\['lm_head'\]` of `peft_config` .*trains more"),
            (lora(target_parameters=["mlp.weight"]), "`target_parameters="),
            (lora(trainable_token_indices=[1]), "`trainable_token_indices="),
            (lora(bias="all"), "`bias='all'` of `peft_config` changes the base model.*Set it to 'none'"),
            (lora(init_lora_weights="pissa"), "`init_lora_weights='pissa'` .* changes the base model.*to True"),
            (lora(layer_replication=[(0, 2)]), "`layer_replication=.* changes the base model.*to None"),
        ],
    )
    def test_loras_that_train_more_than_linear_layers(self, config, message):
        with pytest.raises(ValueError, match=message):
            check_lora(config)

    def test_loras_that_leave_the_base_model_alone(self):
        for init in (True, False, "gaussian", "orthogonal", "eva"):
            check_lora(lora(init_lora_weights=init, use_rslora=True, layers_to_transform=[1]))

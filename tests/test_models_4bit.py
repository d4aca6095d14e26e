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

"""Gradients through 4-bit weights on a CPU, before and after an evaluation."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trl_distill.models import keep_4bit_trainable


IDS = torch.arange(40)[None]


@pytest.fixture
def load(tiny_model, tmp_path):
    """Load a tiny model in 4 bit whose embeddings can be trained."""
    size = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}
    tiny_model(vocab_size=264, initializer_range=0.1, **size).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)

    def load():
        return AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization)

    return load


def gradient(model):
    """Gradient of the embeddings, which lie behind all 4-bit layers."""
    model.train().zero_grad()
    weight = model.get_input_embeddings().weight.requires_grad_(True)
    model(input_ids=IDS, labels=IDS).loss.backward()
    return weight.grad.clone()


def evaluate(model):
    with torch.no_grad():
        model.eval()(input_ids=IDS)


def test_an_evaluation_leaves_the_gradient_as_it_was(load):
    model = load()
    keep_4bit_trainable(model)
    expected = gradient(model)
    evaluate(model)
    torch.testing.assert_close(gradient(model), expected, atol=0, rtol=0)


def test_packed_weights_are_refused(load):
    model = load()
    evaluate(model)
    layer = model.model.layers[0].mlp.up_proj
    if not getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("this CPU has no AVX512-BF16, so bitsandbytes packs nothing")
    with pytest.raises(ValueError, match="has run in eval mode on this CPU"):
        keep_4bit_trainable(model)


def test_other_models_are_left_alone(tiny_model):
    model = tiny_model()
    keep_4bit_trainable(model)
    assert not any(hasattr(module, "support_avx512bf16_for_cpu") for module in model.modules())

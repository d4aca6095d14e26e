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

"""What the tests of NAT, NCE and ASC have in common."""

import pytest
import torch
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM


@pytest.fixture
def tiny_experts(tokenizer):
    """Factory of a tiny mixture of experts."""

    def build():
        torch.manual_seed(0)
        config = Qwen2MoeConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=16, moe_intermediate_size=8,
            shared_expert_intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            num_experts=4, num_experts_per_tok=2, max_position_embeddings=128, output_router_logits=True,
        )  # fmt: skip
        return Qwen2MoeForCausalLM(config)

    return build

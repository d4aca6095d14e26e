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

"""A tiny NAT stand-in: one base with two trained-looking LoRA adapters, `neg` and `nat`, and rows."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from trl_distill.rationales.nce import NCEConfig


@pytest.fixture
def make_nat(tiny_model):
    """Factory of models with the frozen adapters `neg` and `nat`, whose dropout is on in train mode."""

    def build(seed=0, base=None, targets=("q_proj", "v_proj", "down_proj"), dropout=0.3, scale=0.5, **config):
        torch.manual_seed(seed)
        lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=list(targets), task_type="CAUSAL_LM")
        model = get_peft_model(tiny_model(seed=seed, **config) if base is None else base, lora, adapter_name="neg")
        model.add_adapter("nat", lora)
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # zero when fresh, so that the adapter would do nothing
                    parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        model.set_adapter("nat", inference_mode=True)
        return model.eval()

    return build


@pytest.fixture
def rows():
    """Twelve right rows of different lengths."""
    return Dataset.from_dict(
        {
            "prompt": [f"Problem:\n{i} + {i}?\n" for i in range(12)],
            "completion": [f"Solution:\n{'so ' * (i % 5)}The answer is {2 * i}." for i in range(12)],
        }
    )


@pytest.fixture
def make_args(tmp_path):
    def build(**settings):
        defaults = dict(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=4,
            per_device_eval_batch_size=4,
            learning_rate=1e-2,
            max_steps=3,
            bf16=False,
            use_cpu=True,
            report_to="none",
            logging_steps=1,
            save_strategy="no",
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        return NCEConfig(**defaults | settings)

    return build

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
from peft import LoraConfig, PeftModel, get_peft_model

from tests.runs import TINY_RUN, make
from trl_distill.rationales.nce import NCEConfig, NCETrainer, calibration_weights


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
def run_settings(tmp_path):
    return TINY_RUN | dict(output_dir=str(tmp_path / "run"), max_steps=3, gradient_checkpointing=False)


@pytest.fixture
def make_args(run_settings):
    def build(**changes):
        return NCEConfig(**run_settings | {"per_device_eval_batch_size": 4} | changes)

    return build


@pytest.fixture(scope="module")
def cache():
    return {}


@pytest.fixture
def weighed(cache, make_nat, rows, tokenizer, make_args):
    """The rows with their calibration weights."""
    if "weighed" not in cache:
        cache["weighed"] = calibration_weights(make_nat(scale=0.2), rows, tokenizer, make_args())
    return cache["weighed"]


@pytest.fixture
def student_lora():
    def build(**changes):
        lora = dict(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
        return LoraConfig(**lora | changes)

    return build


@pytest.fixture
def make_trainer(make_nat, weighed, tokenizer, run_settings, student_lora):
    def build(model=None, **values):
        model = make_nat() if model is None else model
        if isinstance(model, PeftModel) and "nat" in model.peft_config:
            values = {"peft_config": student_lora()} | values
        values = dict(train_dataset=weighed, processing_class=tokenizer, per_device_eval_batch_size=4) | values
        return make(NCETrainer, NCEConfig, model=model, **run_settings | values)

    return build

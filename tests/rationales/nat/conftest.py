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

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.rationales.nat.adapters import lora
from tests.runs import TINY_RUN, make
from trl_distill import NegativeAssistedConfig, NegativeAssistedTrainer
from trl_distill.rationales.data import adapter_sha256
from trl_distill.rationales.nat.integration_unit import NATLoraConfig, add_nat


@pytest.fixture
def rows():
    """Sixteen right and eight wrong rows, of 15 to 42 tokens."""
    return Dataset.from_dict(
        {
            "prompt": [f"Q{i}: " for i in range(24)],
            "completion": [f"answer {i} " * (1 + i % 3) for i in range(24)],
            "label": [i % 3 != 0 for i in range(24)],
        }
    )


@pytest.fixture
def chats():
    """Eight conversations, right and wrong in turn."""
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"Q{i}"}] for i in range(8)],
            "completion": [[{"role": "assistant", "content": f"answer {i}"}] for i in range(8)],
            "label": [i % 2 == 0 for i in range(8)],
        }
    )


@pytest.fixture
def settings():
    """What all trainers here share: 4 steps of NAT's negative stage, 8 of the positive one, 12 on all rows."""
    return TINY_RUN | dict(num_train_epochs=2)


@pytest.fixture
def quantized(tiny_model, tokenizer, tmp_path):
    """Factory of one model in 4 or 8 bits: blocks of 4 bits hold 64 values."""
    path = str(tmp_path / "base")
    tiny_model(hidden_size=64, intermediate_size=64, initializer_range=0.1).save_pretrained(path)
    tokenizer.save_pretrained(path)

    def build(bits):
        config = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        config = BitsAndBytesConfig(**(config if bits == 4 else {"load_in_8bit": True}))
        return AutoModelForCausalLM.from_pretrained(path, quantization_config=config, dtype=torch.float32)

    build.path = path
    return build


@pytest.fixture
def make_trainer(tiny_model, tokenizer, rows, settings, tmp_path):
    def build(folder="run", model=None, **values):
        model = tiny_model() if model is None else model
        values = dict(peft_config=lora(lora_dropout=0.1), integration_width=4) | values
        values = dict(output_dir=str(tmp_path / folder), train_dataset=rows, processing_class=tokenizer) | values
        return make(NegativeAssistedTrainer, NegativeAssistedConfig, model=model, **(settings | values))

    return build


@pytest.fixture
def run(make_trainer):
    """Trains and saves."""

    def build(*args, **kwargs):
        trainer = make_trainer(*args, **kwargs)
        trainer.train()
        trainer.save_model()
        return trainer

    return build


@pytest.fixture
def base_folder(tiny_model, tokenizer, tmp_path):
    """Folder of the tiny model and its tokenizer."""
    tiny_model().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def make_nat(tiny_model):
    """A model with `neg` of another rank, alpha and dropout than `nat`; trained, so to speak, unless `fresh`."""

    def randomize(model, seed):
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.5

    def build(base=None, fresh=False, positive=None, negative=None, **gate):
        torch.manual_seed(1)
        negative = lora(r=3, lora_alpha=9, lora_dropout=0.9, **(negative or {}))
        model = get_peft_model(tiny_model() if base is None else base, negative, adapter_name="neg")
        gate = dict(value="mlp", width=5, temperature=1.0) | gate
        config = NATLoraConfig.of(lora(**(positive or {})), **gate)
        if not fresh:
            randomize(model, 0)
        config.nat_config["neg_sha256"] = adapter_sha256(model, "neg")
        add_nat(model, config)
        kept = get_peft_model_state_dict(model, adapter_name="neg")
        if not fresh:
            randomize(model, 1)
            set_peft_model_state_dict(model, kept, adapter_name="neg")
        return model.eval()

    return build


@pytest.fixture
def two_loras(tiny_model):
    """A model with the plain adapters `neg` and `nat`."""

    def build(positive=None, negative=None, base=None):
        base = tiny_model() if base is None else base
        model = get_peft_model(base, lora(**(negative or {})), adapter_name="neg")
        model.add_adapter("nat", lora(**(positive or {})))
        return model.eval()

    return build

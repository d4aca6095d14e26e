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

"""Precision that nobody has named is that of the machine; one that is named is left alone."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from trl import ModelConfig

from trl_distill import (
    ASCRankerConfig,
    LabeledSFTConfig,
    MiniLLMConfig,
    MiniLLMTrainer,
    NCEConfig,
    NegativeAssistedConfig,
)
from trl_distill.hardware import Hardware, choose_precision
from trl_distill.sft_config import SFTConfig
from trl_distill.training import set_model_init_kwargs
from trl_distill.zephyr.dpo_config import DPOConfig


NOTHING = Hardware(False, False, False, False)
NEW_CPU = NOTHING._replace(cpu_multiplies_bf16=True)
AMPERE = Hardware(True, True, True, True)
TURING = AMPERE._replace(gpu_multiplies_bf16=False)
APPLE = Hardware(True, False, False, False)
CONFIGS = (
    MiniLLMConfig, NegativeAssistedConfig, LabeledSFTConfig, NCEConfig, ASCRankerConfig, SFTConfig, DPOConfig
)  # fmt: skip


@pytest.mark.parametrize(
    ("hardware", "given", "chosen"),
    [
        (AMPERE, {}, (True, False, False)),
        (TURING, {}, (False, True, False)),
        (APPLE, {}, (False, False, False)),
        (NOTHING, {}, (False, False, True)),
        (NEW_CPU, {}, (True, False, True)),
        (AMPERE, {"use_cpu": True}, (True, False, True)),
        (AMPERE._replace(cpu_multiplies_bf16=False), {"use_cpu": True}, (False, False, True)),
        (AMPERE, {"fp16": True}, (None, True, False)),
        (AMPERE, {"bf16": False}, (False, False, False)),
        (NOTHING, {"bf16": True}, (True, False, True)),
        (TURING, {"bf16": True}, (True, False, False)),  # refused by transformers
        (NOTHING, {"fp16": True}, (None, True, True)),
    ],
)
def test_what_is_chosen(hardware, given, chosen):
    args = SimpleNamespace(**{"bf16": None, "fp16": False, "use_cpu": False} | given)
    choose_precision(args, hardware)
    assert (args.bf16, args.fp16, args.use_cpu) == chosen


@pytest.mark.parametrize(
    ("given", "left"), [({}, (False, False, "no")), ({"fp16": True}, None), ({"bf16": False}, (False, False, "bf16"))]
)
def test_a_quantized_student_is_not_scaled(given, left):
    """What is added to it trains in bfloat16. A float16 that was chosen is taken back, one that was set is refused."""
    values = {"bf16": None, "fp16": False, "use_cpu": False, "model_init_kwargs": None, "mixed_precision": "bf16"}
    args = SimpleNamespace(**values | given)
    choose_precision(args, TURING)
    model = ModelConfig("model", load_in_4bit=True)
    if left is None:
        with pytest.raises(ValueError, match="gradients cannot be scaled. Leave `fp16`"):
            set_model_init_kwargs(args, model)
    else:
        set_model_init_kwargs(args, model)
        assert (args.bf16, args.fp16, args.mixed_precision) == left


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_starts_on_this_machine(config, tmp_path, monkeypatch):
    args = config(str(tmp_path))
    here = Hardware.here()
    assert args.bf16 == (here.gpu_multiplies_bf16 if here.gpu else here.cpu_multiplies_bf16)
    assert args.use_cpu != here.gpu
    assert not config(str(tmp_path), bf16=False).bf16


def test_a_quick_start_trains_without_a_word_about_the_hardware(tiny_model, tokenizer, tmp_path):
    trainer = MiniLLMTrainer(
        model=tiny_model(),
        teacher_model=tiny_model(seed=1),
        args=MiniLLMConfig(str(tmp_path), max_steps=1, per_device_train_batch_size=2, report_to="none"),
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"] * 4}),
        processing_class=tokenizer,
    )
    trainer.train()
    assert torch.isfinite(torch.tensor(trainer.state.log_history[0]["train_loss"]))

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

"""Settings of a tiny run, and what tests read of a run that has ended."""

import os
from dataclasses import fields

import pytest
import torch


# To transformers, FSDP and DeepSpeed are nothing for a run on CPUs
SHARDED = "ACCELERATE_USE_FSDP" in os.environ or "ACCELERATE_USE_DEEPSPEED" in os.environ
# What two processes can be started as: the fast suite has one method under all of them
MODES = ["ddp", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("zero2", "zero3", "fsdp2"))]
TINY_RUN = dict(
    per_device_train_batch_size=4,
    learning_rate=1e-2,
    bf16=False,
    use_cpu=not SHARDED,
    report_to="none",
    logging_steps=1,
    save_strategy="no",
    disable_tqdm=True,
)


def make(trainer_class, config_class, **values):
    """A trainer from the fields of its config, and its other arguments."""
    settings = {field.name: values.pop(field.name) for field in fields(config_class) if field.name in values}
    return trainer_class(args=config_class(**settings), **values)


def losses(trainer, key="loss"):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def history(trainer):
    """Loss and norm of the gradient of every step `(steps, 2)`."""
    steps = [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "grad_norm" in entry]
    return torch.tensor(steps, dtype=torch.float64)


def assert_same_weights(a, b):
    for (name, first), (other, second) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert name == other and first.dtype == second.dtype and torch.equal(first, second), name


def assert_same_logits(load, *folders):
    """The models that `load` makes of two folders compute the same."""
    ids = torch.arange(5, 25)[None]
    first, second = (load(folder).eval()(ids).logits for folder in folders)
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)

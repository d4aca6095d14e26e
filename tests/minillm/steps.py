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

"""Single steps of a trainer."""

import torch


def first_batch(trainer, rows=None):
    """A copy of the first micro-batch of the trainer's first rollout set."""
    trainer.model.train()
    torch.manual_seed(0)
    return dict(trainer._prepare_inputs(list(rows or next(iter(trainer.get_train_dataloader())))))


def gradients(trainer, inputs):
    """Loss and gradients of one micro-batch, without touching the micro-batch itself."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(inputs))
    loss.backward()
    return loss.item(), [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]


def norm(tensors):
    return torch.stack([tensor.norm() for tensor in tensors]).norm().item()

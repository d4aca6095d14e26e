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

"""From what the parent class generates to the micro-batches of a rollout set. B rows of P prompt, T answer tokens."""

import torch
from torch import Tensor
from trl.trainer.utils import split_tensor_dict

from .minillm_config import MiniLLMConfig


def without_idle_rows(rollouts: dict[str, Tensor], eos_token_id: int, rows: int) -> dict[str, Tensor]:
    """
    Ids and masks `(B, P)` and `(B, T)`, with tokens only where they count.

    Rows that stand in for an empty completion, as two EOS, have none, nor have those behind the first `rows`, which
    fill up an evaluation. Padding is token 0: the student's own may be a token that the teacher has no row for.
    """
    ids, mask = rollouts["completion_ids"], rollouts["completion_mask"]
    empty = ((ids == eos_token_id) & mask.bool()).sum(dim=1) > 1
    counts = ~empty & (torch.arange(len(ids), device=ids.device) < rows)
    return {
        "prompt_ids": rollouts["prompt_ids"] * rollouts["prompt_mask"],
        "completion_ids": ids * mask,
        "completion_mask": mask * counts[:, None],
    }


def split_rollouts(rollouts: dict[str, Tensor], args: MiniLLMConfig, accelerator) -> list[dict[str, Tensor]]:
    """Micro-batches in a fixed partition, each with the token count of its optimizer step over all processes."""
    batches, accumulation = args.steps_per_generation, args.gradient_accumulation_steps
    tokens = rollouts["completion_mask"].sum(dim=1).view(batches // accumulation, -1)
    tokens = accelerator.reduce(tokens.sum(dim=1)).float()
    return [
        batch | {"num_items_in_batch": tokens[index // accumulation]}
        for index, batch in enumerate(split_tensor_dict(rollouts, batches))
    ]

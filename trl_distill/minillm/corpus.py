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

"""The language-modelling loss on plain text, from the paper's Algorithm 1."""

from functools import lru_cache

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import pack_dataset
from trl.trainer.utils import pad

from ..divergence import LMHead, backbone_states, join_completions, select_states, token_divergence, token_logps
from .minillm_config import MiniLLMConfig


class Corpus:
    """Documents in the column `text`, joined by EOS and cut into blocks; a rest shorter than a block is dropped."""

    def __init__(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: MiniLLMConfig):
        def tokenize(batch):
            return {"input_ids": [ids + [tokenizer.eos_token_id] for ids in tokenizer(batch["text"])["input_ids"]]}

        length = args.lm_max_length
        tokenized = dataset.map(tokenize, batched=True, remove_columns=dataset.column_names)
        packed = pack_dataset(tokenized, seq_length=length, strategy="wrapped")
        blocks = [ids for ids in packed["input_ids"] if len(ids) == length]
        if not blocks:
            raise ValueError(f"`lm_dataset` has fewer tokens than one block of `lm_max_length` ({length}) tokens.")
        self.blocks = torch.tensor(blocks)  # (blocks, lm_max_length)
        self.args = args

    def batch(self, step: int) -> Tensor:
        """Blocks `(b, lm_max_length)` of a micro-step, counted over all processes. A function of the step alone."""
        rows = self.args.per_device_train_batch_size
        return self.blocks[shuffled_rows(len(self.blocks), step * rows, rows, self.args.seed)]

    def states(self, model, prompt_ids, prompt_mask, completion_ids, completion_mask, ids) -> tuple[Tensor, Tensor]:
        """Hidden states of completions `(B, T, H)` and of blocks `(b * (L - 1), H)`, from one backbone forward."""
        input_ids, attention_mask, positions = join_completions(
            prompt_ids, prompt_mask, completion_ids, completion_mask
        )
        rows = len(input_ids)
        input_ids = pad([*input_ids, *ids])
        attention_mask = pad([*attention_mask, *torch.ones_like(ids)])
        states = backbone_states(model, input_ids, attention_mask)
        return select_states(states[:rows], positions), states[rows:, : ids.shape[1] - 1].flatten(0, 1)

    def loss(
        self, states: Tensor, head: LMHead, ids: Tensor, teacher_states: Tensor | None, teacher_head: LMHead
    ) -> tuple[Tensor, dict[str, tuple[Tensor, int]]]:
        """
        Mean loss of the blocks `ids` `(b, L)` from the student's hidden states `(b * (L - 1), H)`, and its metrics.

        The teacher's hidden states are there if `lm_kd_ratio` gives the forward KL a share.
        """
        chunk, ratio = self.args.loss_chunk_tokens, self.args.lm_kd_ratio
        targets = ids[:, 1:].flatten()
        per_token_loss = -token_logps(states, head, targets, chunk_tokens=chunk)
        metrics = {"loss/lm": (per_token_loss.sum(), len(targets))}
        if teacher_states is not None:
            divergence, _ = token_divergence(states, head, teacher_states, teacher_head, 0.0, chunk_tokens=chunk)
            metrics["loss/lm_kd"] = (divergence.sum(), len(targets))
            per_token_loss = (1 - ratio) * per_token_loss + ratio * divergence
        return per_token_loss.mean(), metrics


@lru_cache(maxsize=2)  # a batch reads from one pass, or from the end of one and the start of the next
def _permutation(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def shuffled_rows(count: int, first: int, rows: int, seed: int) -> Tensor:
    """
    Row numbers `first` to `first + rows` of an endless reading of `count` rows, in a new order on each pass.

    A function of its arguments alone, so that a resumed run reads on without saved state.
    """
    indices = range(first, first + rows)
    return torch.stack([_permutation(count, seed + index // count)[index % count] for index in indices])

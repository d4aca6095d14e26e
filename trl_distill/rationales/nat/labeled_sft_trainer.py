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

from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import DataCollator, PreTrainedModel
from trl import SFTTrainer

from ...checkpoints import ResumableTrainer
from ...endings import check_trainer_ending
from ..data import PAPER, ColumnCollator, check_rows, default_args, log_means, rows_with_label, whole_rows
from .nat_config import LabeledSFTConfig


def labeled_token_loss(logps: Tensor, right: Tensor, objective: str, negative_weight: float) -> Tensor:
    """
    Losses `(B, T)` of right and wrong tokens, Eq. (15) and (16) of the [NAT](https://huggingface.co/papers/2312.12832)
    paper, from their log-probabilities `(B, T)` and whether they are `right` `(B, T)`, or `(B, 1)` for whole rows.

    `"nt"` and `"redi"` are `-log p` of right tokens and `+ w log p` of wrong ones, which has no lower bound; `"ul"` is
    `-log p` of right tokens and `-w log(1 - p)` of wrong ones, where `1 - p` is held above 1e-5; any other `objective`
    is `-log p` of all.
    """
    if objective in ("nt", "redi"):
        return torch.where(right, -logps, negative_weight * logps)
    if objective == "ul":
        unlikelihood = -(-torch.expm1(logps)).clamp(min=1e-5).log()  # (B, T), -log(1 - p)
        return torch.where(right, -logps, negative_weight * unlikelihood)
    return -logps


class LabeledSFTTrainer(ResumableTrainer, SFTTrainer):
    """
    Trainer for the baselines that [NAT](https://huggingface.co/papers/2312.12832) is compared with: supervised
    fine-tuning on rationales with a `label`, where wrong ones are left out (CoT KD), trained like right ones (MIX),
    subtracted (NT) or made unlikely (UL). And for the second stage of
    [REDI](https://huggingface.co/papers/2505.24850), which subtracts them with each row's loss a mean of its tokens.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from trl_distill import LabeledSFTConfig, LabeledSFTTrainer

    >>> dataset = load_dataset("json", data_files="labelled.jsonl", split="train")  # prompt, completion, label

    >>> trainer = LabeledSFTTrainer(
    ...     model="Qwen/Qwen2.5-0.5B", args=LabeledSFTConfig(objective="ul"), train_dataset=dataset
    ... )
    >>> trainer.train()
    ```

    The terms of right and wrong rows are summed over tokens and divided by the number of all tokens of the step, so
    that the split into micro-batches and processes changes nothing; in REDI by its rows.

    Args:
        args ([`LabeledSFTConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        train_dataset ([`~datasets.Dataset`]):
            Rows `prompt`, `completion` and boolean `label`, true if the final answer is right. A column `right_tokens`
            may say how many tokens of a wrong completion stand before its first mistake: NT, UL and REDI train on them
            as on right ones.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Rows for evaluation. The loss is the training objective.
        model, data_collator, kwargs:
            As in [`~trl.SFTTrainer`].
    """

    _tag_names = ["trl", "labeled-sft"]
    _name = "Labeled SFT"
    _paper = PAPER

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: LabeledSFTConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        **kwargs,
    ):
        args = args or default_args(LabeledSFTConfig, model, "LabeledSFT")
        check_rows(train_dataset)
        check_rows(eval_dataset, "eval_dataset")
        self._columns = [name for name in ("label", "right_tokens") if name in train_dataset.column_names]
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, **kwargs)
        check_trainer_ending(self, train_dataset)
        if args.objective not in ("cot_kd", "mix"):
            self.data_collator = ColumnCollator(self.data_collator, self._columns)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if "input_ids" not in (dataset.column_names or ()):
            check_rows(dataset, f"{dataset_name}_dataset")  # `evaluate` may be given other rows than the constructor
            if args.objective == "cot_kd":
                dataset = rows_with_label(dataset, True, dataset_name)
        dataset = whole_rows(super()._prepare_dataset, dataset, processing_class, args, dataset_name)
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.args.objective not in ("cot_kd", "mix") and "label" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, *self._columns]

    def _get_num_items_in_batch(self, batch_samples, device):
        if self.args.objective == "redi":  # what the loss is divided by: rows in place of tokens
            batch_samples = [batch | {"shift_labels": batch["label"]} for batch in batch_samples]
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(
        self, model, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ):
        if self.args.objective in ("cot_kd", "mix"):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        label, *right_tokens = (inputs.pop(name)[:, None] for name in self._columns)  # (B, 1)

        # The parent class calls this in place of the model, sums `log_probs` and divides by the items of the step
        def forward(fused_lm_head: bool = False, **kwargs):
            if not fused_lm_head:
                return model(**kwargs)
            outputs = model(fused_lm_head=True, **kwargs)
            logps, mask = outputs.log_probs, outputs.label_mask  # (B, T - 1)
            right = label.bool() & mask
            for count in right_tokens:
                right = right | mask & (mask.cumsum(1) <= count)
            of_rows = {"logps/right": right, "logps/wrong": mask & ~right}
            log_means(self, {name: ((logps.detach() * rows).sum(), rows.sum()) for name, rows in of_rows.items()})
            losses = labeled_token_loss(logps, right, self.args.objective, self.args.negative_weight)
            if self.args.objective == "redi":
                losses = losses / mask.sum(1, keepdim=True).clamp(min=1)
                if num_items_in_batch is None:  # the parent divides by the tokens of this batch
                    losses = losses * mask.sum() / len(mask)
            outputs.log_probs = -losses * mask
            return outputs

        return super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)

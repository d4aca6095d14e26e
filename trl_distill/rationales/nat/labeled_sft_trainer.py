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

import textwrap
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import (
    BitsAndBytesConfig,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl import SFTTrainer
from trl.trainer.utils import get_config_model_id

from ..data import ColumnCollator, check_labels
from .data import prepare_whole_rows, rows_with_label
from .nat_config import LabeledSFTConfig


def labeled_token_loss(logps: Tensor, label: Tensor, objective: str, negative_weight: float) -> Tensor:
    r"""
    Loss of each token of right and wrong rationales, Eq. (15) and (16) of the
    [NAT](https://huggingface.co/papers/2312.12832) paper.

    Args:
        logps (`torch.Tensor`):
            Log-probabilities of the tokens, of shape `(B, T)`.
        label (`torch.Tensor`):
            Whether the row's answer is right, of shape `(B,)`.
        objective (`str`):
            `"nt"`: `-log p` of right tokens, `+ w log p` of wrong ones, which has no lower bound. `"ul"`: `-log p` of
            right tokens, `-w log(1 - p)` of wrong ones, where `1 - p` is held above 1e-5. Otherwise `-log p` of all.
        negative_weight (`float`):
            The weight `w`.

    Returns:
        `torch.Tensor`: Losses of shape `(B, T)`.
    """
    right = label.bool()[:, None]  # (B, 1)
    if objective == "nt":
        return torch.where(right, -logps, negative_weight * logps)
    if objective == "ul":
        unlikelihood = -(-torch.expm1(logps)).clamp(min=1e-5).log()  # (B, T), -log(1 - p)
        return torch.where(right, -logps, negative_weight * unlikelihood)
    return -logps


class LabeledSFTTrainer(SFTTrainer):
    """
    Trainer for the baselines that [NAT](https://huggingface.co/papers/2312.12832) is compared with: supervised
    fine-tuning on rationales with a `label`, where wrong ones are left out (CoT KD), trained like right ones (MIX),
    subtracted (NT) or made unlikely (UL).

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
    that the split into micro-batches and processes changes nothing.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            As in [`~trl.SFTTrainer`].
        args ([`LabeledSFTConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        data_collator ([`~transformers.DataCollator`], *optional*):
            As in [`~trl.SFTTrainer`].
        train_dataset ([`~datasets.Dataset`]):
            Rows `prompt`, `completion` and boolean `label`, true if the final answer is right.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Rows for evaluation. The loss is the training objective.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. If `None`, it is loaded from the model's name.
        callbacks (list of [`~transformers.TrainerCallback`], *optional*):
            As in [`~trl.SFTTrainer`].
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            As in [`~trl.SFTTrainer`].
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantization of a model that is given by name.
        peft_config ([`~peft.LoraConfig`], *optional*):
            As in [`~trl.SFTTrainer`].
    """

    _tag_names = ["trl", "labeled-sft"]
    _name = "Labeled SFT"
    _paper = {
        "title": "Turning Dust into Gold: Distilling Complex Reasoning Capabilities from LLMs by Leveraging Negative Data",
        "id": "2312.12832",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{li2024turning,
                title        = {{Turning Dust into Gold: Distilling Complex Reasoning Capabilities from LLMs by Leveraging Negative Data}},
                author       = {Yiwei Li and Peiwen Yuan and Shaoxiong Feng and Boyuan Pan and Bin Sun and Xinglin Wang and Heda Wang and Kan Li},
                year         = 2024,
                booktitle    = {Thirty-Eighth {AAAI} Conference on Artificial Intelligence},
            }"""),
    }

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: LabeledSFTConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: LoraConfig | None = None,
    ):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = LabeledSFTConfig(f"{name.split('/')[-1]}-LabeledSFT")
        check_labels(train_dataset)
        check_labels(eval_dataset, "eval_dataset")
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        if args.objective in ("nt", "ul"):
            self.data_collator = ColumnCollator(self.data_collator, ("label",))

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if "input_ids" not in (dataset.column_names or ()):
            check_labels(dataset, f"{dataset_name}_dataset")  # `evaluate` may be given other rows than the constructor
            if args.objective == "cot_kd":
                dataset = rows_with_label(dataset, True, dataset_name)
        prepare = super()._prepare_dataset
        return prepare_whole_rows(prepare, dataset, processing_class, args, packing, formatting_func, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.args.objective in ("nt", "ul") and "label" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "label"]

    def compute_loss(
        self, model, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ):
        if self.args.objective in ("cot_kd", "mix"):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        label = inputs.pop("label")  # (B,)

        # The parent class calls this in place of the model, sums `log_probs` and divides by the tokens of the step
        def forward(fused_lm_head: bool = False, **kwargs):
            if not fused_lm_head:
                return model(**kwargs)
            outputs = model(fused_lm_head=True, **kwargs)
            self._log_mean_logps(outputs.log_probs.detach(), label, outputs.label_mask)
            losses = labeled_token_loss(outputs.log_probs, label, self.args.objective, self.args.negative_weight)
            outputs.log_probs = -losses * outputs.label_mask  # (B, T - 1)
            return outputs

        return super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)

    def _log_mean_logps(self, logps: Tensor, label: Tensor, mask: Tensor) -> None:
        """Mean log-probability of the tokens `(B, T)` of right and of wrong rows, over all processes."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        right = label.bool()[:, None] & mask
        for name, rows in (("logps/right", right), ("logps/wrong", mask & ~right)):
            sums = torch.stack([(logps * rows).sum(), rows.sum()])
            total, tokens = self.accelerator.reduce(sums, "sum").tolist()
            if tokens > 0:
                metrics[name].append(total / tokens)

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


"""Distillation from a teacher that was recorded, and is not in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTTrainer
from trl.trainer.utils import get_config_model_id

from ..checkpoints import ResumableTrainer
from ..divergence import lm_head, recorded_states
from ..endings import check_ending
from ..models import check_same_tokens, end_token_ids, vocabulary_rows
from ..top_k import TopK, support_logps
from .buckets import bucketed_divergence
from .offline_distillation_config import OfflineDistillationConfig
from .store import FILE, START, load_tokenizer, read_manifest, read_teacher


logger = get_logger(__name__)


class RecordedCollator:
    """Adds to the batch of another collator what the teacher says of its N labels, row by row."""

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]):
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator([{name: row[name] for name in ("input_ids", "labels")} for row in rows])
        counts = [sum(label != -100 for label in row["labels"][1:]) for row in rows]
        parts = [read_teacher(row[FILE], row[START], count) for row, count in zip(rows, counts, strict=True)]
        batch["teacher_ids"], batch["teacher_logps"] = map(torch.cat, zip(*parts, strict=True))  # (N, K), (N, K + 1)
        return batch


class OfflineDistillationTrainer(ResumableTrainer, SFTTrainer):
    """
    Trainer for distillation from a recorded teacher: the divergence of student and teacher at every token of given
    completions, over the teacher's likeliest tokens and all others together. No teacher is in memory.

    Example:

    ```python
    >>> from trl_distill import OfflineDistillationTrainer, load_recorded

    >>> trainer = OfflineDistillationTrainer(
    ...     model="Qwen/Qwen2.5-0.5B-Instruct",
    ...     train_dataset=load_recorded("recorded"),  # written by `trl-distill record`
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Student, as in [`~trl.SFTTrainer`].
        args ([`OfflineDistillationConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        train_dataset ([`~datasets.Dataset`]):
            Rows from [`load_recorded`].
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Rows for evaluation, from the same or another store: the loss is the training objective.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the student. It must read text as the recorded one does.
        kwargs:
            `peft_config`, `callbacks`, `optimizers` and `quantization_config`, as in [`~trl.SFTTrainer`].
    """

    _tag_names = ["trl", "offline-distillation"]
    _name = "Offline Distillation"

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: OfflineDistillationConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs,
    ):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = OfflineDistillationConfig(f"{name.split('/')[-1]}-Offline")
        # Everything that can be checked without a model comes before the model is loaded
        evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
        stores = [
            store
            for name, dataset in {"train": train_dataset, **evaluated}.items()
            if name == "train" or dataset is not None
            for store in _stores(dataset, name)
        ]
        manifests = {store: read_manifest(store) for store in dict.fromkeys(stores)}
        sizes = {manifest.vocab_size for manifest in manifests.values()}
        if len(sizes) > 1:
            raise ValueError(f"The rows come from teachers of {sorted(sizes)} tokens. Record them with one tokenizer.")
        (self.vocab_size,) = sizes
        super().__init__(model, args, None, train_dataset, eval_dataset, processing_class, **kwargs)
        self.data_collator = RecordedCollator(self.data_collator)
        self.teacher_name = ", ".join(
            dict.fromkeys(manifest.teacher for manifest in manifests.values())
        )  # in the card
        self._check_student(manifests)

    def _check_student(self, manifests: dict[str, Any]) -> None:
        tokenizer, conversational = self.processing_class, any(m.conversational for m in manifests.values())
        for store in manifests:
            recorded = load_tokenizer(store)
            check_same_tokens(tokenizer, recorded)
            if conversational and recorded.chat_template != tokenizer.chat_template:
                logger.warning(
                    f"The chat template of the student is not that with which {store} was recorded, and the student "
                    "learns that one: save the recorded tokenizer with the student, or set its `chat_template`."
                )
        if conversational and tokenizer.chat_template is not None:
            check_ending(tokenizer, end_token_ids(self.model, tokenizer))
        rows = vocabulary_rows(self.model)
        if rows < self.vocab_size:
            raise ValueError(
                f"The teacher was recorded with {self.vocab_size} tokens, and the student's head has {rows} rows. "
                "Call `resize_token_embeddings` on it."
            )

    # Data

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        limit = args.max_length
        if limit is not None and (longer := sum(len(ids) > limit for ids in dataset["input_ids"])):
            logger.warning(
                f"{longer} of {len(dataset)} rows of the {dataset_name} dataset are longer than `max_length` "
                f"({limit}), and what is beyond it is not learned."
            )
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if FILE not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, FILE, START]

    # Loss

    def compute_loss(
        self, model, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ):
        teacher = TopK(inputs.pop("teacher_ids"), inputs.pop("teacher_logps"))
        alpha, totals = self.args.alpha, {}  # of metrics: sums over tokens

        # The parent class calls this in place of the model. It then sums `log_probs` and divides by the tokens of the
        # step, over all micro-batches and processes.
        def forward(fused_lm_head: bool = False, **kwargs):
            if not fused_lm_head:
                return model(**kwargs)
            with recorded_states(self.model) as states:
                outputs = model(fused_lm_head=True, **kwargs)
            logps, mask = outputs.log_probs, outputs.label_mask.bool()  # (B, T)
            divergence = self._divergence(states[0][:, :-1][mask], teacher)  # (N,)
            totals["ce"], totals["divergence"] = -logps.detach().sum(), divergence.detach().sum()
            totals["teacher/tail"] = teacher.logps[:, -1].exp().sum()
            losses = alpha * logps.new_zeros(mask.shape).masked_scatter(mask, divergence)
            # What has no share is left out of the graph, and so costs no backward through the head
            outputs.log_probs = -losses if alpha == 1.0 else (1 - alpha) * logps - losses
            return outputs

        loss = super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)
        self._log_means(totals, len(teacher.ids))
        return loss

    def _divergence(self, states: Tensor, teacher: TopK) -> Tensor:
        """Divergence `(N,)` from hidden states `(N, H)`."""
        with self.accelerator.autocast():
            student_logps = support_logps(
                states, lm_head(self.model), teacher.ids, self.args.loss_chunk_tokens, self.vocab_size
            )
        return bucketed_divergence(student_logps, teacher.logps, self.args.beta)

    def _log_means(self, totals: dict[str, Tensor], count: int) -> None:
        """Log sums over the tokens of the batches of all processes, divided by them: a collective."""
        sums = torch.stack([*(total.float() for total in totals.values()), totals["ce"].new_tensor(count)])
        *sums, count = self.accelerator.reduce(sums, "sum").tolist()
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, total in zip(totals, sums, strict=True):
            metrics[name].append(total / max(count, 1))


def _stores(dataset: Dataset | None, name: str) -> list[str]:
    """Folders that the rows were recorded in."""
    columns = getattr(dataset, "column_names", None) or ()
    if not {"input_ids", "labels", FILE, START} <= set(columns):
        raise ValueError(
            f"The {name} dataset holds no recorded rows, only the columns {', '.join(columns) or 'of none'}. Load "
            "them with `load_recorded`, from a folder that `trl-distill record` has written."
        )
    if not len(dataset):
        raise ValueError(f"The {name} dataset has no rows.")
    return sorted({str(Path(file).parent) for file in dataset.unique(FILE)})

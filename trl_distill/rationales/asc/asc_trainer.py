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

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset
from peft import PeftConfig, PeftModel, PeftModelForSequenceClassification, TaskType
from torch import Tensor
from transformers import AutoConfig, EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardTrainer
from trl.trainer.utils import global_then_local_main_first

from ...checkpoints import ResumableTrainer
from ..data import PAPER, check_rows, default_args, drop_long_rows
from .asc_config import ASCRankerConfig
from .scoring import (
    check_one_label,
    collate_rationales,
    encode_rationale,
    length_limit,
    ranker_loss,
    ranking_metrics,
    score_rationales,
)


logger = get_logger(__name__)


class ASCRankerTrainer(ResumableTrainer, RewardTrainer):
    """
    Trainer for the ranker of adaptive self-consistency (ASC), proposed in [Turning Dust into
    Gold](https://huggingface.co/papers/2312.12832).

    The ranker reads a question and a rationale and gives one logit `z`. Its score `sigmoid(z)` is trained by the
    squared error to 1 for rationales with the right final answer, and to 0 for the others. At inference the scores
    weigh the votes of sampled answers, see [`adaptive_self_consistency`].

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from trl_distill import ASCRankerTrainer

    >>> rows = [
    ...     {"prompt": "What is 2 + 3?", "completion": " 2 + 3 = 5. The answer is 5.", "label": True},
    ...     {"prompt": "What is 2 + 3?", "completion": " 2 + 3 = 6. The answer is 6.", "label": False},
    ... ]
    >>> trainer = ASCRankerTrainer("Qwen/Qwen2.5-0.5B", train_dataset=Dataset.from_list(rows))
    >>> trainer.train()
    >>> trainer.score(rows)
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model id or folder, of a language model, too, which then gets a new head; or a sequence classification
            model with one label.
        args ([`ASCRankerConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        train_dataset ([`~datasets.Dataset`]):
            Rows `prompt`, `completion` and boolean `label`, TRL's unpaired preference format, standard or
            conversational.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Rows of the same kind. Rows with equal prompts are candidates of one question.
        compute_metrics (`Callable`, *optional*):
            Replaces the metrics of [`ranking_metrics`].
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train. Its `task_type` must be `"SEQ_CLS"`, so that the head is trained and saved with it.
        kwargs:
            `processing_class`, `callbacks`, `optimizers` and `quantization_config`, as in [`~trl.RewardTrainer`].
    """

    _tag_names = ["trl", "asc-ranker"]
    _name = "ASC"
    _paper = PAPER

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: ASCRankerConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        *,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs,
    ):
        args = args or default_args(ASCRankerConfig, model, "ASC")
        if isinstance(model, str):
            revision = (args.model_init_kwargs or {}).get("revision")
            self._config = AutoConfig.from_pretrained(
                model, revision=revision, trust_remote_code=args.trust_remote_code
            )
        else:
            self._config = model.config
        if any(name.endswith("ForSequenceClassification") for name in self._config.architectures or []):
            check_one_label(self._config)  # that of a language model says 2, the default
        untrained_head = (
            peft_config.task_type != TaskType.SEQ_CLS
            if peft_config is not None
            else isinstance(model, PeftModel) and not isinstance(model, PeftModelForSequenceClassification)
        )
        if untrained_head:
            raise ValueError(
                "The adapter leaves the head of the ranker as it is, which is random in a new ranker. Make its "
                "configuration with `task_type='SEQ_CLS'`."
            )
        kwargs |= {"compute_metrics": compute_metrics or self._compute_metrics, "peft_config": peft_config}
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        # The parent casts all that is trained beside a quantized model to bf16. Adapters bear it, but steps of 1e-5 on
        # the weights of the head would round to nothing.
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and "modules_to_save" in name:
                parameter.data = parameter.data.float()
        self.data_collator = self._collate
        self.label_names = ["label", "question"]  # what `prediction_step` gathers for `compute_metrics`

    # The parent's constructor calls it, before there is a model
    def _prepare_dataset(
        self, dataset: Dataset, processing_class: PreTrainedTokenizerBase, args: ASCRankerConfig, dataset_name: str
    ) -> Dataset:
        if "input_ids" in (dataset.column_names or ()):  # prepared already
            return dataset
        check_rows(dataset, f"{dataset_name}_dataset")
        numbers: dict[str, int] = {}
        questions = [numbers.setdefault(json.dumps(prompt), len(numbers)) for prompt in dataset["prompt"]]

        def encode(row: dict[str, Any]) -> dict[str, list[int]]:
            return {"input_ids": encode_rationale(processing_class, row)}

        with global_then_local_main_first():
            encoded = dataset.map(
                encode,
                remove_columns=[name for name in dataset.column_names if name != "label"],
                num_proc=args.dataset_num_proc,
                desc=f"Tokenizing {dataset_name} dataset",
            )
        encoded = encoded.add_column("question", questions)

        limit = length_limit(self._config, processing_class, args.max_length)
        encoded = drop_long_rows(encoded, limit, dataset_name)
        right = sum(encoded["label"])
        wrong = len(encoded) - right
        logger.info(f"The {dataset_name} dataset has {right} right and {wrong} wrong rows.")
        if dataset_name == "train" and not (right and wrong):
            raise ValueError(
                f"The train dataset has {right} right and {wrong} wrong rows of at most {limit} tokens, and a ranker "
                "learns from both. Add rows of the other kind, or raise `max_length`."
            )
        return encoded

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "label", "question"]

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = collate_rationales([row["input_ids"] for row in rows], self.processing_class.pad_token_id)
        for name in ("label", "question"):
            batch[name] = torch.tensor([int(row[name]) for row in rows])  # (B,)
        return batch

    def compute_loss(
        self, model, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ):
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        logits, labels = outputs.logits[:, 0], inputs["label"]  # (B,) each
        loss = ranker_loss(logits, labels)
        if self.model.training:
            correct = self.accelerator.gather((logits > 0) == labels.bool()).float()
            self._metrics["train"]["accuracy"].append(correct.mean().item())
            self._metrics["train"]["right"].append(self.accelerator.gather(labels).float().mean().item())
        return (loss, {"logits": logits}) if return_outputs else loss

    @staticmethod
    def _compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return ranking_metrics(prediction.predictions, *prediction.label_ids)

    def score(self, rows: Sequence[dict[str, Any]]) -> list[float | None]:
        """
        Score rationales, rows `prompt` and `completion`: numbers in `[0, 1]`, `None` for rows of more than
        `max_length` tokens.
        """
        model = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():  # as in training
            return score_rationales(
                model, self.processing_class, rows, self.args.per_device_eval_batch_size, self.args.max_length
            )

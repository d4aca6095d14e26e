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

"""
Calibration of NCE: how far a right completion drives the negative adapter away from NAT.

NCE is *negative calibrated enhancement*, a weighted fine-tuning on right rationales. It is not noise-contrastive
estimation. In the order of the work: the mathematics, the hidden states of one adapter, rows as tokens, and the
weights of a dataset. Shapes: B rows, L padded tokens, T = L - 1 predicted tokens, N of them with a label, H hidden
width.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ...divergence import backbone_states, lm_head, token_divergence
from ...files import read_rows, write_rows
from ...generation import batches_by_length
from ...models import dense_head_weight
from ...progress import progress_bar
from ...sft_trainer import Preparation
from ..data import adapter_sha256, check_rows, rows_with_label, whole_rows
from .nce_config import NCEConfig


COLUMNS = ("prompt", "completion")  # which rows must have
WEIGHT, HASH = "weight", "weight_hash"
ROW = "_row"  # number of a row while some are dropped


def calibration_weight(divergence: Tensor, mask: Tensor) -> Tensor:
    r"""
    Weights `beta` `(B,)` of the rows, in `[0, 1]`, from the `divergence` KL(negative || NAT) in nats at each position,
    `(B, T)`, and the `mask` `(B, T)` of those that predict a token with a label. As in the code released with [Turning
    Dust into Gold](https://huggingface.co/papers/2312.12832):

    $$ \beta_i = \tanh\Big(\frac{1}{|M_i|} \sum_{t \in M_i}
    \mathrm{KL}\big(p_\text{neg}(\cdot \mid y_{<t}) \,\|\, p_\text{nat}(\cdot \mid y_{<t})\big)\Big). $$

    The release lets $M_i$ hold all tokens, those of the question included; here it holds the tokens that are trained
    on. In the loss, a row weighs `0.5 + beta`.
    """
    mean = (divergence * mask).sum(1) / mask.sum(1).clamp(min=1)  # (B,)
    return mean.clamp(min=0).tanh()  # a divergence of 0 may be rounded below


# Hidden states of an adapter


def check_adapters(model: PreTrainedModel | PeftModel, nat: str = "nat", neg: str = "neg") -> None:
    """Raise `ValueError` unless the model holds a NAT: both adapters on one base."""
    adapters = list(model.peft_config) if isinstance(model, PeftModel) else []
    if nat not in adapters or neg not in adapters:
        raise ValueError(
            f"NCE needs a NAT model, a `PeftModel` with the adapters {nat!r} and {neg!r}, but got a "
            f"{type(model).__name__} with {adapters or 'no adapters'}. Load it with `load_nat(base_model, path)`."
        )


@contextlib.contextmanager
def use_adapter(model: PeftModel, adapter: str) -> Iterator[None]:
    """
    Run with one adapter of several, without dropout. Afterwards the active adapter, and `training` and `requires_grad`
    of all parts of the model are what they were.
    """
    active = model.active_adapter
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.set_adapter(adapter, inference_mode=True)
    for module, _ in modes:
        # The mode of a linear layer has no effect, but in eval mode bitsandbytes repacks its 4-bit weights on some
        # CPUs, and after that nothing can be trained through them
        module.training = isinstance(module, nn.Linear)
    try:
        yield
    finally:
        model.set_adapter(active, inference_mode=True)
        for module, mode in modes:
            module.training = mode
        for parameter in trainable:
            parameter.requires_grad_(True)


@torch.no_grad()
def adapter_states(model: PeftModel, adapter: str, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states `(B, L, H)` of one adapter, before the LM head, which all adapters share."""
    with use_adapter(model, adapter):
        return backbone_states(model, input_ids, attention_mask)


# Rows as tokens


def prepare_rows(
    prepare: Callable[..., Dataset],
    dataset: Dataset,
    processing_class: PreTrainedTokenizerBase,
    args: SFTConfig,
    name: str,
    weighed: bool = False,
) -> Dataset:
    """
    Tokens of the right rows as TRL makes them, in the order of the dataset, with their row numbers as a column `_row`.
    Rows with a false `label` are left out, and so are, whole, those of more than `args.max_length` tokens.

    `prepare` is `SFTTrainer._prepare_dataset`, bound. Weights that rows have already must be those of these tokens if
    they are `weighed`.
    """
    if {ROW, "input_ids"} <= set(dataset.column_names or ()):  # prepared already
        return dataset
    check_rows(dataset, f"{name}_dataset", COLUMNS)
    if weighed:
        check_weights(dataset, name)
    if {"image", "images"} & set(dataset.column_names):
        raise ValueError(f"The {name} dataset has images, but NCE trains on text only. Remove the column.")
    dataset = dataset.add_column(ROW, range(len(dataset)))
    if "label" in dataset.column_names:
        dataset = rows_with_label(dataset, True, name)
    dataset = whole_rows(prepare, dataset, processing_class, args, name)
    if weighed:
        check_row_hashes(dataset, name)
    return dataset


def row_hash(input_ids: list[int], labels: list[int]) -> str:
    """Hash of what a weight was computed from: the tokens of a row and which of them are trained on."""
    return hashlib.sha256(np.asarray([input_ids, labels], dtype="<i8").tobytes()).hexdigest()[:16]


_WAY_OUT = (
    "Let `trl-distill calibrate` (or `calibration_weights`) write it with the tokenizer and `max_length` of this run."
)


def check_weights(dataset: Dataset, name: str) -> None:
    """Raise `ValueError` unless every row has a weight in `[0, 1]` and the hash of the tokens that it belongs to."""
    for column in (WEIGHT, HASH):
        if column not in dataset.column_names:
            raise ValueError(
                f"The {name} dataset has no column `{column}`, only {', '.join(dataset.column_names)}. {_WAY_OUT} To "
                "train with one weight for all rows, the baseline without calibration, set `kd_weight`."
            )
    for row, weight in enumerate(dataset[WEIGHT]):
        if not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
            raise ValueError(
                f"`{WEIGHT}` in row {row} of the {name} dataset is {weight!r}, but it must be the calibration weight "
                f"`beta`, a number from 0 to 1 without the 0.5 that the loss adds. {_WAY_OUT}"
            )


def check_row_hashes(prepared: Dataset, name: str) -> None:
    """Raise `ValueError` if a weight was computed from other tokens than those of its row."""
    columns = ("input_ids", "labels", HASH, ROW)
    for batch in prepared.select_columns(list(columns)).iter(1000):
        for input_ids, labels, expected, row in zip(*(batch[column] for column in columns), strict=True):
            found = row_hash(input_ids, labels)
            if found != expected:
                raise ValueError(
                    f"The weight in row {row} of the {name} dataset belongs to another row, or to another "
                    f"tokenization of this one: `{HASH}` is {expected!r}, and these tokens give {found!r}. {_WAY_OUT}"
                )


# Weights of a dataset


def calibration_weights(
    model: PeftModel,
    dataset: Dataset,
    processing_class: PreTrainedTokenizerBase,
    args: NCEConfig,
    journal: str | os.PathLike | None = None,
    nat: str = "nat",
    neg: str = "neg",
    progress: bool = False,
) -> Dataset:
    """
    Weigh the rows of a dataset for [`NCETrainer`] (see [`calibration_weight`] for the equation).

    Both adapters run without dropout, over batches of rows of similar length; the divergence is taken in fp32 over
    tiles of the vocabulary. Weights depend on the rows, the adapters and the base model alone, so they are computed
    once.

    Args:
        model ([`~peft.PeftModel`]):
            NAT model, from `trl_distill.load_nat`, on the device on which it shall run.
        dataset ([`~datasets.Dataset`]):
            Rows `prompt` and `completion`, standard or conversational, and optionally a boolean `label`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the training run.
        args ([`NCEConfig`]):
            Settings of the training run, which decide how rows become tokens. `per_device_eval_batch_size` rows run
            together, and `loss_chunk_tokens` tokens are projected at a time.
        journal (`str` or `os.PathLike`, *optional*):
            File that keeps finished batches. The same call goes on where it ends: after `kill -9`, too, the weights
            are those of an uninterrupted run. The journal of another calibration is refused.
        nat, neg (`str`, *optional*, defaults to `"nat"` and `"neg"`):
            Names of the adapters.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        [`~datasets.Dataset`]: The rows that can be trained on (not those with a false `label` or of more than
        `args.max_length` tokens), with the columns `weight` (`beta` itself, in `[0, 1]`) and `weight_hash`, by which
        the trainer refuses weights of other rows.
    """
    check_adapters(model, nat, neg)
    check_rows(dataset, "dataset", COLUMNS)
    dense_head_weight(model)  # the divergence goes through it
    taken = {WEIGHT, HASH} & set(dataset.column_names)
    if taken:
        raise ValueError(
            f"The dataset has a column {', '.join(f'`{name}`' for name in sorted(taken))} already. Remove it with "
            "`remove_columns`, or give it another name."
        )
    prepare = Preparation(processing_class, args)._prepare_dataset
    prepared = prepare_rows(prepare, dataset, processing_class, args, "calibration")
    input_ids, labels, rows = (prepared[column][:] for column in ("input_ids", "labels", ROW))
    hashes = [row_hash(*row) for row in zip(input_ids, labels, strict=True)]
    batches = batches_by_length(input_ids, args.per_device_eval_batch_size)
    pad_token_id = processing_class.pad_token_id
    collator = DataCollatorForLanguageModeling(processing_class.eos_token_id if pad_token_id is None else pad_token_id)
    settings = {
        "rows": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "model": model.config._name_or_path,
        "dtype": str(model.dtype),
        "adapters": [adapter_sha256(model, nat), adapter_sha256(model, neg)],
        "batch_size": args.per_device_eval_batch_size,
    }

    found = [] if journal is None else _resume(journal, settings)  # weights of the rows of a batch, batch by batch
    left = progress_bar(batches[len(found) :], initial=len(found), total=len(batches), shown=progress)
    for batch in left:
        inputs = collator([{"input_ids": input_ids[i], "labels": labels[i]} for i in batch])
        found.append(_batch_weights(model, inputs, nat, neg, args.loss_chunk_tokens))
        for i, value in zip(batch, found[-1], strict=True):
            if not math.isfinite(value):
                raise ValueError(
                    f"The divergence of the adapters is not finite in row {rows[i]}, and so its weight is {value}. "
                    "Check the adapters, or load the model in bfloat16 or float32 instead of float16."
                )
        if journal is not None:
            with open(journal, "a", encoding="utf-8") as file:
                file.write(json.dumps({"weights": found[-1]}) + "\n")
                file.flush()
                os.fsync(file.fileno())
    weight_of = dict(zip(chain(*batches), chain(*found), strict=True))
    weights = [weight_of[i] for i in range(len(rows))]
    return dataset.select(rows).add_column(WEIGHT, weights).add_column(HASH, hashes)


@torch.no_grad()
def _batch_weights(model: PeftModel, inputs: dict[str, Tensor], nat: str, neg: str, chunk_tokens: int) -> list[float]:
    """The weights of the rows of one batch."""
    head = lm_head(model)
    mask = (inputs["labels"][:, 1:] != -100).to(head.weight.device)  # (B, T)

    def states(adapter: str) -> Tensor:
        ids, attention_mask = (inputs[name].to(model.device) for name in ("input_ids", "attention_mask"))
        all_states = adapter_states(model, adapter, ids, attention_mask).to(head.weight.device)  # (B, L, H)
        return all_states[:, :-1][mask].float()  # (N, H)

    # `beta=1.0` is KL(first || second)
    divergence, _ = token_divergence(states(neg), head, states(nat), head, beta=1.0, chunk_tokens=chunk_tokens)
    per_token = divergence.new_zeros(mask.shape).masked_scatter(mask, divergence)  # (B, T)
    return calibration_weight(per_token, mask).tolist()


def _resume(journal: str | os.PathLike, settings: dict[str, Any]) -> list[list[float]]:
    """Weights of the batches in a journal, whose first row are the settings. A row that was cut off is made again."""
    rows = []
    if os.path.exists(journal):
        os.truncate(journal, Path(journal).read_bytes().rfind(b"\n") + 1)  # behind the last row that is whole
        rows = list(read_rows(journal))
        known = rows[0] if rows else {}
        changed = ", ".join(sorted(name for name in known | settings if known.get(name) != settings.get(name)))
        if changed:
            raise ValueError(
                f"{journal} holds the weights of another calibration: {changed} differ. Remove it to start anew, or "
                "choose another file."
            )
    if not rows:
        write_rows(journal, [settings])
    return [row["weights"] for row in rows[1:]]

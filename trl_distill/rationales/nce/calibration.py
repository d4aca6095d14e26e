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
estimation. In the order of the work: the mathematics, the hidden states of one adapter, rows as tokens, and the weights
of a dataset. Shapes: B rows, L padded tokens, T = L - 1 predicted tokens, N of them with a label, H hidden width.
"""

import copy
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ...divergence import backbone_states, lm_head, token_divergence
from ...generation import batches_by_length
from ...models import dense_head_weight
from ..data import drop_long_rows
from .nce_config import NCEConfig


logger = get_logger(__name__)

WEIGHT, HASH = "weight", "weight_hash"
_ROW = "_row"  # number of a row while some are dropped


def calibration_weight(divergence: Tensor, mask: Tensor) -> Tensor:
    r"""
    Weight of each row from the divergence of the negative adapter from NAT, as in the code released with
    [Turning Dust into Gold](https://huggingface.co/papers/2312.12832):

    $$ \beta_i = \tanh\Big(\frac{1}{|M_i|} \sum_{t \in M_i}
    \mathrm{KL}\big(p_\text{neg}(\cdot \mid y_{<t}) \,\|\, p_\text{nat}(\cdot \mid y_{<t})\big)\Big). $$

    The release lets $M_i$ hold all tokens, those of the question included; here it holds the tokens that are trained on.

    Args:
        divergence (`torch.Tensor`):
            KL(negative || NAT) in nats at each position, of shape `(B, T)`.
        mask (`torch.Tensor`):
            Whether a position predicts a token with a label, of shape `(B, T)`.

    Returns:
        `torch.Tensor`: `beta` of shape `(B,)`, in `[0, 1]`. It is not the weight of the loss, which is `0.5 + beta`.
    """
    mean = (divergence * mask).sum(1) / mask.sum(1).clamp(min=1)  # (B,)
    return mean.clamp(min=0).tanh()  # a divergence of 0 may be rounded below


# ------------------------------------------------------------------------------------------- hidden states of an adapter


def check_adapters(model: PreTrainedModel | PeftModel, nat: str = "nat", neg: str = "neg") -> None:
    """Raise `ValueError` unless the model holds a NAT: both adapters on one base."""
    adapters = list(model.peft_config) if isinstance(model, PeftModel) else []
    if nat not in adapters or neg not in adapters:
        raise ValueError(
            f"NCE needs a NAT model, a `PeftModel` with the adapters {nat!r} and {neg!r}, but got a "
            f"{type(model).__name__} with {adapters or 'no adapters'}. Load it with `trl_distill.load_nat(base_model, "
            "path)`."
        )


@contextmanager
def use_adapter(model: PeftModel, adapter: str) -> Iterator[None]:
    """
    Run with one adapter of several, without dropout.

    Afterwards the active adapter, and `training` and `requires_grad` of all parts of the model are what they were.
    """
    active = model.active_adapter
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.set_adapter(adapter, inference_mode=True)
    for module, _ in modes:
        # The mode of a linear layer has no effect, but in eval mode bitsandbytes repacks its 4-bit weights on some CPUs,
        # and after that nothing can be trained through them
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


# --------------------------------------------------------------------------------------------------------- rows as tokens


def check_stored(dataset: Dataset | IterableDataset, name: str) -> None:
    """Raise `ValueError` on a stream."""
    if isinstance(dataset, IterableDataset):
        raise ValueError(f"The {name} dataset is a stream, but NCE weighs stored rows. Load it without streaming.")


def prepare_rows(
    prepare: Callable[..., Dataset],
    dataset: Dataset,
    processing_class: PreTrainedTokenizerBase,
    args: SFTConfig,
    name: str,
) -> Dataset:
    """
    Tokens of right rows as [`~trl.SFTTrainer`] makes them, in the order of the dataset and with their row numbers.

    Rows with a false `label` are left out. Rows that are longer than `args.max_length` tokens are left out, too, and not
    cut: what would be cut is the answer.

    Args:
        prepare (`Callable`):
            `SFTTrainer._prepare_dataset`, bound.
        dataset ([`~datasets.Dataset`]):
            Rows `prompt` and `completion`, standard or conversational, and optionally a boolean `label`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        args ([`~trl.SFTConfig`]):
            Settings of the training run.
        name (`str`):
            What to call the dataset in messages.

    Returns:
        [`~datasets.Dataset`]: The columns of the dataset, `input_ids`, `labels` and `_row`.
    """
    check_stored(dataset, name)
    columns = set(dataset.column_names)
    if not ({"prompt", "completion"} <= columns or {"input_ids", "labels"} <= columns):
        raise ValueError(
            f"The {name} dataset has only the columns {', '.join(dataset.column_names)}. Rows must have `prompt` and "
            "`completion`."
        )
    if "image" in columns or "images" in columns:
        raise ValueError(f"The {name} dataset has images, but NCE trains on text only. Remove the column.")
    total = len(dataset)
    dataset = dataset.add_column(_ROW, range(total))
    if "label" in columns:
        labels = dataset["label"][:]
        unclear = next((i for i, label in enumerate(labels) if not isinstance(label, bool)), None)
        if unclear is not None:
            raise ValueError(
                f"`label` in the {name} dataset must be true or false, but row {unclear} has {labels[unclear]!r}."
            )
        dataset = dataset.select([i for i, label in enumerate(labels) if label])
        if len(dataset) < total:
            logger.warning(f"Left out {total - len(dataset)} of {total} rows of the {name} dataset: they are wrong.")
    if len(dataset) == 0:
        raise ValueError(f"The {name} dataset has {total} rows, none of them right. NCE learns from right rows.")

    whole = copy.copy(args)
    whole.max_length, whole.shuffle_dataset = None, False
    prepared = prepare(dataset, processing_class, whole, False, None, name)
    return drop_long_rows(prepared, args.max_length, name)


class _Preparation(SFTTrainer):
    """The part of [`~trl.SFTTrainer`] that turns rows into tokens: it has no model."""

    def __init__(self, processing_class: PreTrainedTokenizerBase, args: SFTConfig, dataset: Dataset):
        if args.eos_token is not None:
            processing_class.eos_token = args.eos_token
        self._tokenizer = processing_class
        self.chat_template = None  # differs from the tokenizer's with `assistant_only_loss`, which NCEConfig refuses
        self.completion_only_loss = args.completion_only_loss
        if args.completion_only_loss is None:
            self.completion_only_loss = {"prompt", "completion"} <= set(dataset.column_names)


def row_hash(input_ids: list[int], labels: list[int]) -> str:
    """Hash of what a weight was computed from: the tokens of a row and which of them are trained on."""
    return hashlib.sha256(np.asarray([input_ids, labels], dtype="<i8").tobytes()).hexdigest()[:16]


_WAY_OUT = "Let `trl-distill calibrate` (or `calibration_weights`) write it with the tokenizer and the `max_length` of this run."


def check_weights(dataset: Dataset, name: str) -> None:
    """Raise `ValueError` unless every row has a weight in `[0, 1]` and the hash of the tokens that it belongs to."""
    check_stored(dataset, name)
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
    columns = ("input_ids", "labels", HASH, _ROW)
    for batch in prepared.select_columns(list(columns)).iter(1000):
        for input_ids, labels, expected, row in zip(*(batch[column] for column in columns), strict=True):
            found = row_hash(input_ids, labels)
            if found != expected:
                raise ValueError(
                    f"The weight in row {row} of the {name} dataset belongs to another row, or to another tokenization "
                    f"of this one: `{HASH}` is {expected!r}, and these tokens give {found!r}. {_WAY_OUT}"
                )


# -------------------------------------------------------------------------------------------------- weights of a dataset


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

    Both adapters run without dropout, over batches of rows of similar length; the divergence is taken in fp32 over tiles of
    the vocabulary. Weights depend on the rows, the adapters and the base model alone, so they are computed once.

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
            File that keeps finished batches. The same call goes on where it ends: after `kill -9`, too, the weights are
            those of an uninterrupted run.
        nat, neg (`str`, *optional*, defaults to `"nat"` and `"neg"`):
            Names of the adapters.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        [`~datasets.Dataset`]: The rows that can be trained on, with the columns `weight` (`beta` itself, in `[0, 1]`) and
        `weight_hash`, by which the trainer refuses weights of other rows. Rows with a false `label` and rows longer than
        `args.max_length` tokens are not among them.

    Raises:
        `ValueError`: If an adapter is missing, no row can be trained on, the journal is that of another calibration, or a
        divergence is not finite.
    """
    check_adapters(model, nat, neg)
    check_stored(dataset, "calibration")
    dense_head_weight(model)  # the divergence goes through it
    taken = {WEIGHT, HASH} & set(dataset.column_names)
    if taken:
        raise ValueError(
            f"The dataset has a column {', '.join(f'`{name}`' for name in sorted(taken))} already. Remove it with "
            "`remove_columns`, or give it another name."
        )
    preparation = _Preparation(processing_class, args, dataset)
    prepared = prepare_rows(preparation._prepare_dataset, dataset, processing_class, args, "calibration")
    input_ids, labels, rows = (prepared[column][:] for column in ("input_ids", "labels", _ROW))
    hashes = [row_hash(*row) for row in zip(input_ids, labels, strict=True)]
    batches = batches_by_length(input_ids, args.per_device_eval_batch_size)
    pad_token_id = processing_class.pad_token_id
    collator = DataCollatorForLanguageModeling(processing_class.eos_token_id if pad_token_id is None else pad_token_id)
    settings = {
        "rows": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "model": model.config._name_or_path,
        "dtype": str(model.dtype),
        "adapters": _adapters_sha256(model, nat, neg),
        "batch_size": args.per_device_eval_batch_size,
    }

    weights = [math.nan] * len(rows)
    with _open_journal(journal, settings) as (finished, add):
        for batch, values in zip(batches, finished, strict=False):
            for i, value in zip(batch, values, strict=True):
                weights[i] = value
        bar = tqdm(batches[len(finished) :], initial=len(finished), total=len(batches), disable=not progress)
        for batch in bar:
            inputs = collator([{"input_ids": input_ids[i], "labels": labels[i]} for i in batch])
            values = _batch_weights(model, inputs, nat, neg, args.loss_chunk_tokens)
            for i, value in zip(batch, values, strict=True):
                if not math.isfinite(value):
                    raise ValueError(
                        f"The divergence of the adapters is not finite in row {rows[i]}, and so its weight is {value}. "
                        "Check the adapters, or load the model in bfloat16 or float32 instead of float16."
                    )
                weights[i] = value
            add(values)
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


def _adapters_sha256(model: PeftModel, *adapters: str) -> str:
    digest = hashlib.sha256()
    for adapter in adapters:
        for name, tensor in sorted(get_peft_model_state_dict(model, adapter_name=adapter).items()):
            digest.update(f"{adapter} {name}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _open_journal(
    path: str | os.PathLike | None, settings: dict[str, str | int]
) -> Iterator[tuple[list[list[float]], Callable[[list[float]], None]]]:
    """
    Weights of the batches that are finished, and a function that adds those of the next one.

    The file is JSON Lines: the settings, then the weights of one batch a line.
    """
    if path is None:
        yield [], lambda values: None
        return
    with open(path, "a+b") as file:
        file.seek(0)
        whole = file.read().rpartition(b"\n")[0]  # a last line that was cut off while it was written goes away
        file.truncate(len(whole) + 1 if whole else 0)
        head, *lines = whole.decode().split("\n")
        if head and (known := json.loads(head)) != settings:
            changed = ", ".join(sorted(name for name in known | settings if known.get(name) != settings.get(name)))
            raise ValueError(
                f"{path} holds the weights of another calibration: {changed} differ. Remove it to start anew, or choose "
                "another file."
            )

        def add(entry) -> None:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

        if not head:
            add(settings)
        yield [json.loads(line) for line in lines], add

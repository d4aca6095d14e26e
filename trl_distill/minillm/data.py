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
"""Prompts and plain text: what is checked, dropped and cut before MiniLLM trains on it."""

from collections.abc import Callable
from functools import lru_cache

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import pack_dataset
from trl.trainer.utils import RepeatSampler


logger = get_logger(__name__)


def check_prompts(dataset: Dataset | IterableDataset, name: str, rollout_size: int = 1):
    """
    Refuse a dataset without usable text prompts, as far as it can be told without a tokenizer or reading a stream.

    `rollout_size` is the number of prompts that training needs at least.
    """
    columns = dataset.column_names or []
    if isinstance(dataset, Dataset) and len(dataset) == 0:
        raise ValueError(f"`{name}` is empty.")
    if columns and "prompt" not in columns:
        raise ValueError(f"`{name}` has no column `prompt`, only {columns}. Rename the column that holds the prompts.")
    if "image" in columns or "images" in columns:
        raise ValueError(f"`{name}` has images, but MiniLLMTrainer trains on text only. Remove the column.")
    if isinstance(dataset, Dataset):
        for index, prompt in enumerate(dataset["prompt"]):
            if not prompt:
                raise ValueError(f"`{name}` has an empty prompt in row {index}. Remove it.")
        if len(dataset) < rollout_size:
            raise ValueError(
                f"`{name}` has {len(dataset)} usable prompts, but one rollout set takes {rollout_size} "
                "(`per_device_train_batch_size` x `steps_per_generation` x processes). Lower one of them."
            )


def drop_long_prompts(
    dataset: Dataset | IterableDataset, name: str, tokenize: Callable[[list], list[list[int]]], limit: int | None
) -> Dataset | IterableDataset:
    """
    Keep the rows whose prompt has at most `limit` tokens.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows with a `prompt`. A stream is filtered while it is read.
        name (`str`):
            What to call it in messages.
        tokenize (`Callable`):
            Maps a list of prompts to their token ids.
        limit (`int`, *optional*):
            Longest prompt, in tokens; `None` keeps all.

    Raises:
        `ValueError`: If a prompt has no tokens, or none is short enough.
    """

    def fits(prompts: list) -> list[bool]:
        lengths = [len(ids) for ids in tokenize(prompts)]
        if min(lengths) == 0:
            raise ValueError(f"`{name}` has a prompt without tokens: {prompts[lengths.index(0)]!r}. Remove it.")
        return [limit is None or length <= limit for length in lengths]

    if isinstance(dataset, IterableDataset):
        return dataset.filter(lambda row: fits([row["prompt"]])[0])
    kept = [keep for batch in dataset.select_columns("prompt").iter(256) for keep in fits(batch["prompt"])]
    if all(kept):
        return dataset
    reason = f"longer than {limit} tokens, the models' context minus `max_completion_length`"
    if not any(kept):
        raise ValueError(f"Every prompt of `{name}` is {reason}. Shorten the prompts or the completions.")
    logger.warning(f"Dropped {kept.count(False)} of {len(kept)} rows of `{name}`: their prompts are {reason}.")
    return dataset.select([index for index, keep in enumerate(kept) if keep])


def check_corpus(dataset: Dataset):
    """Refuse a corpus that is no map-style dataset with a column `text`."""
    if isinstance(dataset, IterableDataset) or "text" not in dataset.column_names:
        raise ValueError(
            "`lm_dataset` must be a map-style `datasets.Dataset` with a column `text`, got a "
            f"{type(dataset).__name__} with columns {dataset.column_names}."
        )


def cut_corpus(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, length: int) -> Tensor:
    """
    Documents in the column `text`, joined by EOS and cut into blocks.

    Returns:
        `torch.Tensor`: Token ids of shape `(blocks, length)`. A rest shorter than a block is dropped.
    """

    def tokenize(batch):
        return {"input_ids": [ids + [tokenizer.eos_token_id] for ids in tokenizer(batch["text"])["input_ids"]]}

    tokenized = dataset.map(tokenize, batched=True, remove_columns=dataset.column_names)
    packed = pack_dataset(tokenized, seq_length=length, strategy="wrapped")
    blocks = [ids for ids in packed["input_ids"] if len(ids) == length]
    if not blocks:
        raise ValueError(f"`lm_dataset` has fewer tokens than one block of `lm_max_length` ({length}) tokens.")
    return torch.tensor(blocks)


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


class ResumableRepeatSampler(RepeatSampler):
    """
    [`~trl.trainer.utils.RepeatSampler`] whose order is a function of the epoch.

    The parent draws each epoch's order from a running generator, so a run resumed in its second epoch would read the
    first one's order again.

    Args:
        batches_read (`Callable[[], int]`):
            Returns how many batches of the run were read before an epoch starts.
        *args, **kwargs:
            Arguments of the parent; `seed` is required.
    """

    def __init__(self, *args, batches_read: Callable[[], int], **kwargs):
        super().__init__(*args, **kwargs)
        self.batches_read = batches_read

    def __iter__(self):
        if self.shuffle:
            epoch = self.batches_read() // max(len(self) // self.batch_size, 1)
            self.generator.manual_seed(self.seed + epoch)
        return super().__iter__()

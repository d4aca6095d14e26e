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
Prompts, checked before the first step and once more when they are drawn.

Of a large dataset only what is doubtful is tokenized: Arrow's offsets say how many bytes of text each row has, and no
token stands for less than a byte.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models import context_length


logger = get_logger(__name__)

_READ_WHOLE = 10_000  # rows that take less than a second to tokenize
_UNICODE_GROWTH = 11  # at most, of a normal form in bytes: U+FDFA has 3, and 33 in NFKC


def check_prompts(dataset: Dataset | IterableDataset, name: str, rollout_size: int = 1):
    """Refuse a dataset without text prompts, or with fewer than one rollout set takes. A stream is not read."""
    columns = dataset.column_names or []
    if isinstance(dataset, Dataset) and len(dataset) == 0:
        raise ValueError(f"`{name}` is empty.")
    if columns and "prompt" not in columns:
        raise ValueError(f"`{name}` has no column `prompt`, only {columns}. Rename the column that holds the prompts.")
    if "image" in columns or "images" in columns:
        raise ValueError(f"`{name}` has images, but MiniLLMTrainer trains on text only. Remove the column.")
    if isinstance(dataset, Dataset):
        empty = _in_order(dataset, np.concatenate([_is_empty(chunk) for chunk in _chunks(dataset)]))
        if empty.any():
            raise ValueError(f"`{name}` has an empty prompt in row {empty.argmax()}. Remove it.")
        if len(dataset) < rollout_size:
            raise ValueError(
                f"`{name}` has {len(dataset)} usable prompts, but one rollout set takes {rollout_size} "
                "(`per_device_train_batch_size` x `steps_per_generation` x processes). Lower one of them."
            )


def drop_long_prompts(
    dataset, name: str, tokenize: Callable[[list], list[list[int]]], limit: int | None, bytes_grow: int
):
    """
    Keep the rows whose prompt has at most `limit` tokens, `None` for all. A prompt that cannot be read is an error.

    `dataset` is `None`, a dataset, a stream, which is filtered while it is read, or a dictionary of these. A text has
    at most `bytes_grow` tokens a byte.
    """
    if dataset is None:
        return None
    if isinstance(dataset, dict):
        return {key: drop_long_prompts(data, key, tokenize, limit, bytes_grow) for key, data in dataset.items()}
    limit = np.inf if limit is None else limit
    count = partial(_token_counts, name=name, tokenize=tokenize)
    if isinstance(dataset, IterableDataset):
        return dataset.filter(lambda row, index: count([row["prompt"]], [index])[0] <= limit, with_indices=True)

    prompts = dataset.select_columns("prompt")
    lengths = _in_order(dataset, np.concatenate([_text_bytes(chunk) for chunk in _chunks(dataset)]))
    frames = np.empty(len(dataset))
    for rows in _rows_by_roles(dataset):
        shortest = rows[lengths[rows].argmin()]
        frames[rows] = count([prompts[int(shortest)]["prompt"]], [shortest])[0]
    # What the template writes around texts is counted twice: it may depend on more than the roles
    doubtful = bytes_grow * lengths + 2 * frames > limit
    if len(dataset) <= _READ_WHOLE:
        doubtful[:] = True
    counts = np.zeros(len(dataset))
    for first in range(0, len(rows := doubtful.nonzero()[0]), 256):
        batch = rows[first : first + 256]
        counts[batch] = count(prompts[batch]["prompt"], batch)
    kept = counts <= limit
    if kept.all():
        return dataset
    reason = f"longer than {limit} tokens, the models' context minus `max_completion_length`"
    if not kept.any():
        raise ValueError(f"Every prompt of `{name}` is {reason}. Shorten the prompts or the completions.")
    logger.warning(f"Dropped {(~kept).sum()} of {len(kept)} rows of `{name}`: their prompts are {reason}.")
    return dataset.select(kept.nonzero()[0])


def longest_prompt(models: list[PreTrainedModel], max_new_tokens: int, corpus_length: int) -> int | None:
    """Tokens of a prompt that leaves room for the longest completion; `None` if no model says how much it reads."""
    context = context_length(*models)
    if context is None:
        return None
    if corpus_length > context:
        raise ValueError(f"`lm_max_length` is {corpus_length}, but the models' context is {context} tokens.")
    return context - max_new_tokens


def tokens_per_byte(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens a byte of text can become: one, unless the tokenizer rewrites the text first."""
    rewrites = not tokenizer.is_fast or tokenizer.backend_tokenizer.normalizer is not None
    return _UNICODE_GROWTH if rewrites else 1


def tokenized(tokenize: Callable[[list], tuple], prompts: list) -> tuple:
    """What `tokenize` makes of prompts; an error of the chat template names the prompt."""
    try:
        return tokenize(prompts)
    except (TemplateError, TypeError):  # of a text that is added to none
        for prompt in prompts:
            try:
                tokenize([prompt])
            except (TemplateError, TypeError) as error:
                raise ValueError(f"{error}, in the prompt {prompt!r}. Correct or remove it.") from error
        raise


def check_readable(prompts: list, prompt_ids: list[list[int]], foreign: Collection[int], limit: float | None):
    """Refuse prompts without tokens, with tokens that the teacher does not know, or with more than `limit`."""
    for prompt, ids in zip(prompts, prompt_ids, strict=True):
        if not ids:
            raise ValueError(f"The tokenizer finds no token in the prompt {prompt!r}. Remove it.")
        unknown = [token for token in ids if token in foreign]
        if unknown:
            raise ValueError(
                f"The student's tokenizer reads token {unknown[0]} in the prompt {prompt!r}, which the teacher does "
                "not have. Take it out of the prompts, or out of the chat template that adds it."
            )
        if limit is not None and len(ids) > limit:
            raise ValueError(
                f"A prompt has {len(ids)} tokens, and {limit} leave room for a completion: {prompt!r}. Remove it."
            )


def _token_counts(prompts: list, rows: Sequence[int], name: str, tokenize: Callable) -> list[int]:
    try:
        return [len(ids) for ids in tokenize(prompts)]
    except ValueError as error:
        if len(prompts) == 1:
            raise ValueError(f"The prompt in row {rows[0]} of `{name}` cannot be tokenized: {error}") from error
        return [_token_counts([prompt], [row], name, tokenize)[0] for prompt, row in zip(prompts, rows, strict=True)]


# Arrow: what follows reads where texts begin and end, not the texts


def _chunks(dataset: Dataset) -> list[pa.Array]:
    return dataset.data.column("prompt").chunks


def _in_order(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """Values of the stored rows, as values of the dataset's rows."""
    order = dataset._indices  # of a dataset that was shuffled, split or selected from
    return values if order is None else values[order.column(0).to_numpy()]


def _is_list(array: pa.Array) -> bool:
    return pa.types.is_list(array.type) or pa.types.is_large_list(array.type)


def _is_text(array: pa.Array) -> bool:
    return pa.types.is_string(array.type) or pa.types.is_large_string(array.type)


def _size(array: pa.Array) -> np.ndarray:
    """Items of each list or bytes of each text `(rows,)`, 0 for `None`."""
    return np.asarray(pc.fill_null(pc.list_value_length(array) if _is_list(array) else pc.binary_length(array), 0))


def _offsets(lists: pa.Array) -> np.ndarray:
    """Where each list begins among the items of all, and where the last one ends `(rows + 1,)`."""
    return np.concatenate([[0], np.cumsum(_size(lists))]).astype(np.int32)


def _is_empty(array: pa.Array) -> np.ndarray:
    # Of a type that we do not know: the tokenizer will say so
    return _size(array) == 0 if _is_list(array) or _is_text(array) else np.asarray(pc.is_null(array))


def _text_bytes(array: pa.Array) -> np.ndarray:
    """Bytes of all texts in each row `(rows,)`, more than any where Arrow cannot tell."""
    if isinstance(array, pa.ExtensionArray):  # JSON
        return _text_bytes(array.storage)
    if _is_text(array):
        return _size(array).astype(float)
    if _is_list(array):
        total = np.concatenate([[0.0], np.cumsum(_text_bytes(array.flatten()))])
        return np.diff(total[_offsets(array)])
    if pa.types.is_struct(array.type):
        return sum(map(_text_bytes, array.flatten()), np.zeros(len(array)))
    is_number = pa.types.is_primitive(array.type) or pa.types.is_null(array.type)
    return np.full(len(array), 32.0 if is_number else 1e12)


def _roles(array: pa.Array) -> pa.Array:
    """The roles of each conversation, joined; nothing for other prompts."""
    messages = array.flatten() if _is_list(array) else array
    if not pa.types.is_struct(messages.type) or messages.type.get_field_index("role") < 0:
        return pa.repeat("", len(array))
    roles = pa.ListArray.from_arrays(_offsets(array), pc.fill_null(messages.field("role"), ""))
    return pc.binary_join(roles, " ")


def _rows_by_roles(dataset: Dataset) -> list[np.ndarray]:
    """Rows whose conversations have the same roles in the same order: a template frames them alike."""
    roles = pa.chunked_array([_roles(chunk) for chunk in _chunks(dataset)]).dictionary_encode().combine_chunks()
    codes = _in_order(dataset, roles.indices.to_numpy())
    order = codes.argsort(kind="stable")
    return np.split(order, np.diff(codes[order]).nonzero()[0] + 1)

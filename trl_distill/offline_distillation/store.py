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
What a teacher says of completions, on the disk: shards of tensors, a manifest, and the tokenizer.

A shard holds whole rows, one behind the other. Of the `L` tokens of a row, those of the completion were predicted, `n`
of them: `L` less the prompt, and less one where there is no prompt.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save
from transformers import PreTrainedTokenizerBase

from ..files import whole_path, write_json
from ..models import load_teacher_tokenizer
from ..top_k import TopK


MANIFEST, TOKENIZER, FORMAT = "manifest.json", "tokenizer", 1
FILE, START = "teacher_file", "teacher_start"  # columns: the shard of a row, and where in it its `n` tokens begin
# Settings by their names in the manifest, in words; they are what a row of the store depends on
SETTINGS = {
    "weights": "the weights of the teacher",
    "dtype": "their data type",
    "load_in_4bit": "their quantization",
    "tokenizer": "the tokenizer",
    "data": "the data",
    "max_length": "`max_length`",
    "loss_top_k": "`loss_top_k`",
    "logprob_dtype": "`logprob_dtype`",
    "shard_tokens": "`shard_tokens`",
}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a store was made of; `rows` and `tokens` are `None` until it is complete."""

    teacher: str  # a name for people: `settings` hold the hash of its weights
    settings: dict[str, Any]
    vocab_size: int | None = None  # rows of the teacher's head that it was normalized over
    conversational: bool = False
    rows: int | None = None
    tokens: int | None = None  # of completions
    shards: int | None = None
    format: int = FORMAT

    def save(self, folder: Path) -> None:
        write_json(folder / MANIFEST, dataclasses.asdict(self))

    def changed(self, settings: dict[str, Any]) -> list[str]:
        """Which settings are others than those of the store, in words."""
        return [
            f"{words} ({_short(self.settings.get(name))}, and now {_short(settings[name])})"
            for name, words in SETTINGS.items()
            if self.settings.get(name) != settings[name]
        ]


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


def read_manifest(folder: str | PathLike) -> Manifest:
    """The manifest of a store; raises `ValueError` if the folder is none."""
    file = Path(folder) / MANIFEST
    if not file.is_file():
        part = Path(f"{folder}.part") / MANIFEST
        hint = f" {part.parent} holds a recording that was stopped: start it again." if part.is_file() else ""
        raise ValueError(f"{folder} holds no recorded teacher: there is no {file}.{hint}")
    values = json.loads(file.read_text(encoding="utf-8"))
    if values.get("format") != FORMAT:
        raise ValueError(f"{folder} has the format {values.get('format')}, and this release reads {FORMAT}.")
    return Manifest(**values)


def shard_file(folder: str | PathLike, number: int) -> Path:
    return Path(folder) / f"shard-{number:05d}.safetensors"


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what decides how a text becomes tokens: vocabulary, rules, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = None if backend is None else backend.to_str()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [sorted(tokenizer.get_vocab().items()), rules, special, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Row(NamedTuple):
    """Tokens of a row, the first `prompt` of which are the prompt's."""

    ids: list[int]
    prompt: int

    @property
    def predicted(self) -> int:
        return len(self.ids) - max(self.prompt, 1)


def write_shard(file: Path, rows: Sequence[Row], parts: Sequence[TopK], vocab_size: int, dtype: torch.dtype) -> None:
    """Write rows and what the teacher says of their `n` tokens each, as a whole."""
    narrow = torch.uint16 if vocab_size <= 2**16 else torch.int32
    least = torch.finfo(dtype).min  # of the tail, if there are no other tokens
    tensors = {
        "input_ids": torch.tensor([token for row in rows for token in row.ids], dtype=torch.int32),
        "lengths": torch.tensor([len(row.ids) for row in rows], dtype=torch.int32),
        "prompt_lengths": torch.tensor([row.prompt for row in rows], dtype=torch.int32),
        "teacher_ids": torch.cat([part.ids for part in parts]).to(narrow),  # (tokens, K)
        "teacher_logps": torch.cat([part.logps for part in parts]).clamp(min=least).to(dtype),  # (tokens, K + 1)
    }
    with whole_path(file) as new:
        new.write_bytes(save(tensors))  # `save_file` would leave a temporary file of its own behind a kill


def read_teacher(file: str, start: int, count: int) -> TopK:
    """What the teacher says of some tokens of a shard, its probabilities adding up to 1 again, in fp32."""
    with safe_open(file, "pt") as shard:
        ids = shard.get_slice("teacher_ids")[start : start + count].long()
        logps = shard.get_slice("teacher_logps")[start : start + count].float()
    return TopK(ids, logps - logps.logsumexp(1, keepdim=True))


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with safe_open(file, "np") as shard:
        ids, lengths, prompts = (shard.get_tensor(name) for name in ("input_ids", "lengths", "prompt_lengths"))
    start = 0
    for tokens, prompt in zip(np.split(ids, np.cumsum(lengths)[:-1]), prompts, strict=True):
        labels = tokens.copy()
        labels[:prompt] = -100
        yield {"input_ids": tokens, "labels": labels, FILE: str(file), START: start}
        start += len(tokens) - max(prompt, 1)


def load_recorded(folder: str | PathLike) -> Dataset:
    """
    Rows of a store for [`OfflineDistillationTrainer`]. What the teacher says of them stays on the disk.

    Args:
        folder (`str` or `os.PathLike`):
            What `trl-distill record` has written.

    Returns:
        [`~datasets.Dataset`]: The columns `input_ids`, `labels`, `teacher_file` and `teacher_start`. It may be
        shuffled, split, and joined with others that were recorded with the same tokenizer.

    Raises:
        `ValueError`: If the folder is no store, or a shard is missing.
    """
    manifest = read_manifest(folder)
    files = [shard_file(Path(folder).absolute(), number) for number in range(manifest.shards)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{missing[0]} is missing. Copy the whole folder again, or record it anew.")
    rows = [row for file in files for row in _rows(file)]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in ("input_ids", "labels", FILE, START)})


def load_tokenizer(folder: str | PathLike) -> PreTrainedTokenizerBase:
    """The tokenizer that a store was recorded with."""
    tokenizer = load_teacher_tokenizer(str(Path(folder) / TOKENIZER))
    if tokenizer is None:
        raise ValueError(f"{folder} has no {TOKENIZER} any more. Copy the whole folder again, or record it anew.")
    return tokenizer

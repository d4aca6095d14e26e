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


"""Records what a teacher says of completions, once, so that a student learns from it without the teacher."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.data_utils import is_conversational

from ..chat.local import base_folder, local_folder, weights_digest
from ..divergence import backbone_states, lm_head
from ..files import load_rows
from ..generation import batches_by_length, pad_ids
from ..models import context_length, load_teacher, load_teacher_tokenizer, placement, vocabulary_rows
from ..progress import progress_bar
from ..row_formats import trl_rows
from ..sft_trainer import Preparation
from ..top_k import TopK, top_k_logps
from .record_config import RecordConfig
from .store import (
    MANIFEST,
    SETTINGS,
    TOKENIZER,
    Manifest,
    Row,
    read_manifest,
    shard_file,
    tokenizer_digest,
    write_shard,
)


logger = logging.getLogger(__name__)


def completion_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Rows of `prompt` and `completion`, and of the columns that a chat template reads: of `completions`, one row each.
    Answers that `truncated` says were cut off are left out: a student would learn to stop where they do.

    Raises:
        `ValueError`: If a row lacks one of them, or there are no rows.
    """
    found, cut_off = [], 0
    for number, row in enumerate(rows):
        if row.get("prompt") is None or row.get("completion") is None and row.get("completions") is None:
            raise ValueError(
                f"Row {number} needs `prompt`, and `completion` or `completions`, but its columns are "
                f"{', '.join(sorted(row))}. `trl-distill sample` draws completions."
            )
        kept = {name: row[name] for name in ("tools", "chat_template_kwargs") if row.get(name)}
        completions = [row["completion"]] if row.get("completion") is not None else row["completions"]
        truncated = row.get("truncated") or [False] * len(completions)
        for completion, is_cut in zip(completions, truncated, strict=True):
            if is_cut:
                cut_off += 1
                continue
            if isinstance(completion, str) and not isinstance(row["prompt"], str):
                completion = [{"role": "assistant", "content": completion}]
            found.append({"prompt": row["prompt"], "completion": completion, **kept})
    if cut_off:
        logger.warning("%d of %d completions were cut off and are left out.", cut_off, cut_off + len(found))
    if not found:
        raise ValueError("The data hold no whole completions, so there is nothing to record.")
    return found


def token_rows(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> list[Row]:
    """Tokens of the rows, as [`~trl.SFTTrainer`] makes them; those with nothing to predict are left out."""
    args = trl.SFTConfig(max_length=max_length, shuffle_dataset=False, bf16=False, use_cpu=True, report_to="none")
    prepare = Preparation(tokenizer, args)._prepare_dataset
    prepared = prepare(Dataset.from_list(list(rows)), tokenizer, args, False, None, "recorded")
    found = []
    for ids, labels in zip(prepared["input_ids"], prepared["labels"], strict=True):
        row = Row(ids, next((i for i, label in enumerate(labels) if label != -100), len(labels)))
        if row.predicted > 0:
            found.append(row)
    if len(found) < len(prepared):
        logger.warning("%d rows have nothing to predict and were left out.", len(prepared) - len(found))
    return found


def record_teacher(
    config: RecordConfig, rows: Iterable[dict[str, Any]] | None = None, progress: bool = False
) -> Manifest:
    """
    Write what a teacher says of each token of completions into a folder, for [`load_recorded`].

    A run that was killed goes on when it is called again: the shards that are there stay, and the store is that of a
    run that was never stopped. With another teacher, tokenizer, other data or settings it is refused.

    Args:
        config ([`RecordConfig`]):
            Teacher, folder and settings.
        rows (`Iterable[dict]`, *optional*):
            Completions in place of those of `config.dataset_name`.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        [`Manifest`]: What is in the folder.

    Raises:
        `ValueError`, `OSError`: If something is wrong with the data, the teacher or the folder.
    """
    output, part = Path(config.output_dir), Path(f"{config.output_dir}.part")
    if rows is None and config.dataset_name is None:
        raise ValueError("Nothing to record: set `dataset_name`.")
    if rows is None:
        rows = trl_rows(load_rows(config.dataset_name, config.dataset_config, config.dataset_split), "prompt")
    rows = completion_rows(rows)
    name, revision = config.teacher_model_name_or_path, config.teacher_model_revision
    folder = local_folder(name, revision, config.trust_remote_code)
    tokenizer = next(filter(None, map(load_teacher_tokenizer, map(str, (folder, base_folder(folder))))), None)
    if tokenizer is None:
        raise ValueError(f"There is no tokenizer in {name}. Save it beside the teacher.")
    if is_conversational(rows[0]) and tokenizer.chat_template is None:
        raise ValueError(f"The completions are conversations, and the tokenizer of {name} has no chat template.")
    settings = dataclasses.asdict(config) | {
        "weights": weights_digest(folder),
        "tokenizer": tokenizer_digest(tokenizer),
        "data": hashlib.sha256(json.dumps(rows, sort_keys=True, ensure_ascii=False).encode()).hexdigest(),
    }
    manifest = Manifest(name, {key: settings[key] for key in SETTINGS}, conversational=is_conversational(rows[0]))
    if output.exists():
        complete = read_manifest(output)
        _check_same(output, complete, manifest)
        return complete

    part.mkdir(parents=True, exist_ok=True)
    lock = FileLock(part / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"Another run is recording into {part}. Wait for it, or name another `output_dir`.") from None
    try:
        if (part / MANIFEST).is_file():
            begun = read_manifest(part)
            _check_same(part, begun, manifest)
            manifest = begun
        tokens = token_rows(rows, tokenizer, config.max_length)
        manifest = _Recording(config, part, tokenizer, progress).finish(manifest, tokens)
        part.rename(output)
    finally:
        lock.release()
        for folder in (part, output):
            with suppress(OSError):
                (folder / ".lock").unlink()
    return manifest


def _check_same(folder: Path, found: Manifest, wanted: Manifest) -> None:
    changed = found.changed(wanted.settings)
    if changed:
        raise ValueError(
            f"{folder} was recorded with something else: {'; '.join(changed)}. Restore that, remove the folder, or "
            "name another `output_dir`."
        )


def _shards(rows: Sequence[Row], shard_tokens: int) -> list[list[Row]]:
    """Rows in their order, of at least so many predicted tokens each but the last."""
    shards: list[list[Row]] = [[]]
    tokens = 0
    for row in rows:
        if tokens >= shard_tokens:
            shards.append([])
            tokens = 0
        shards[-1].append(row)
        tokens += row.predicted
    return shards


class _Recording:
    """The work on one folder. The teacher is loaded with the first shard that is missing."""

    def __init__(self, config: RecordConfig, folder: Path, tokenizer: PreTrainedTokenizerBase, progress: bool):
        self.config, self.folder, self.tokenizer, self.progress = config, folder, tokenizer, progress

    def finish(self, manifest: Manifest, rows: Sequence[Row]) -> Manifest:
        """Record what is missing, and complete the manifest, which stands in the folder before the first shard."""
        shards = _shards(rows, self.config.shard_tokens)
        missing = [number for number in range(len(shards)) if not shard_file(self.folder, number).is_file()]
        tokens = [sum(row.predicted for row in shard) for shard in shards]
        if missing:
            model = self._load(max(len(row.ids) for row in rows))
            manifest = dataclasses.replace(manifest, vocab_size=self._vocabulary(model))
            self._check_reading(model, rows[0].ids[:16])
            self.tokenizer.save_pretrained(self.folder / TOKENIZER)
            manifest.save(self.folder)
        left = sum(tokens[number] for number in missing)
        with progress_bar(total=sum(tokens), initial=sum(tokens) - left, unit="token", shown=self.progress) as bar:
            for number in missing:
                parts = self._record(model, shards[number], manifest.vocab_size, bar)
                dtype = getattr(torch, self.config.logprob_dtype)
                write_shard(shard_file(self.folder, number), shards[number], parts, manifest.vocab_size, dtype)
        manifest = dataclasses.replace(manifest, rows=len(rows), tokens=sum(tokens), shards=len(shards))
        manifest.save(self.folder)
        return manifest

    def _load(self, longest: int) -> PreTrainedModel:
        config = self.config
        kwargs = placement(config.dtype, config.device, config.load_in_4bit, config.trust_remote_code)
        model = load_teacher(config.teacher_model_name_or_path, config.teacher_model_revision, **kwargs)
        context = context_length(model)
        if context is not None and longest > context:
            raise ValueError(f"A row has {longest} tokens, and the teacher reads {context}. Set `max_length` to that.")
        return model

    def _vocabulary(self, model: PreTrainedModel) -> int:
        """Rows of the head that belong to a token: padded ones have no name, and the student's head may lack them."""
        rows = min(vocabulary_rows(model), max(self.tokenizer.get_vocab().values()) + 1)
        if self.config.loss_top_k > rows:
            raise ValueError(f"`loss_top_k` is {self.config.loss_top_k}, and the teacher has {rows} tokens.")
        return rows

    @torch.no_grad()
    def _check_reading(self, model: PreTrainedModel, ids: list[int]) -> None:
        """Refuse a model of which hidden states and head are not all, or that reads padding on the right."""
        batch = pad_ids([ids, ids * 2], 0, "right", model.device)
        head = lm_head(model)
        found = top_k_logps(backbone_states(model, *batch)[0, : len(ids)], head, len(head.weight))
        logits = model(batch[0][:1, : len(ids)]).logits[0].float()  # (T, V)
        error = (logits.log_softmax(1).gather(1, found.ids) - found.logps[:, :-1]).abs().mean()
        if not error < 0.05 * (1 + logits.std()):  # rounding of bf16 is far below; `nan` is said of a row of its own
            if logits.isfinite().all():
                raise ValueError(
                    f"{type(model).__name__} cannot be recorded: what its head makes of its last hidden states is "
                    f"{error:.2f} nats off what the model itself says. A layer stands between the two, or padding on "
                    "the right is read as text."
                )

    def _record(self, model: PreTrainedModel, rows: Sequence[Row], vocab_size: int, bar: tqdm) -> list[TopK]:
        """What the teacher says of each row, in their order."""
        found: dict[int, TopK] = {}
        head = lm_head(model, vocab_size)
        for batch in batches_by_length([row.ids for row in rows], self.config.batch_size):
            ids, mask = pad_ids([rows[i].ids for i in batch], 0, "right", model.device)
            with torch.no_grad():
                states = backbone_states(model, ids, mask)  # (B, L, H)
            # The state before a token predicts it
            ends, counts = [len(rows[i].ids) - 1 for i in batch], [rows[i].predicted for i in batch]
            wanted = [row[end - count : end] for row, end, count in zip(states, ends, counts, strict=True)]
            top = top_k_logps(torch.cat(wanted), head, self.config.loss_top_k, self.config.chunk_tokens)
            for i, *part in zip(batch, *(tensor.cpu().split(counts) for tensor in top), strict=True):
                if not part[1][:, 0].isfinite().all():
                    raise ValueError(
                        f"The teacher's log-probabilities are not finite in the row that begins with "
                        f"{self.tokenizer.decode(rows[i].ids[:20])!r}. Load it in bfloat16 or float32."
                    )
                found[i] = TopK(*part)
                bar.update(rows[i].predicted)
        return [found[i] for i in range(len(rows))]

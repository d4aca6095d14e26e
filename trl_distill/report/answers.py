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


"""Answers before and after a training, for its page."""

import json
import logging
import math
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from trl.data_utils import maybe_convert_to_chatml

from ..generation import encode_prompts, generate_ids, generating, generation_config, pad_ids
from ..models import context_length, end_token_ids
from ..row_formats import question_of
from .rollouts import ROLLOUTS_FILE


logger = logging.getLogger(__name__)

_PROMPTS, _ROWS = 4, 200  # answered, and looked at for as many different ones
_LONGEST, _TOKENS = 1024, 128  # tokens of a prompt and of an answer
_OPENING = 16  # tokens of a text that has no prompt, with which it begins


def _is_sharded(model: PreTrainedModel) -> bool:
    """Whether a process holds a part of the weights alone, so that all of them must take part in each forward."""
    if AcceleratorState().distributed_type == "FSDP":
        return True
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())


def _prompt_ids(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of what a row asks, prepared by a trainer or not; of a plain text those that it begins with."""
    if "prompt_ids" in row:
        return row["prompt_ids"]
    question = question_of(maybe_convert_to_chatml(row))
    if question is not None:
        return encode_prompts([row | {"prompt": question}], tokenizer)[0]
    ids = row.get("input_ids", [])
    learned = (place for place, label in enumerate(row.get("labels", ids)) if label != -100)
    return ids[: next(learned, 0) or _OPENING]


def first_prompts(trainer: Trainer) -> tuple[str, list[list[int]]]:
    """Token ids of the first different prompts of the data for evaluation, else for training, and which these are."""
    tokenizer = _tokenizer(trainer)
    longest = min(context_length(trainer.model) or math.inf, _LONGEST + _TOKENS) - _TOKENS
    name, of = ("eval", "evaluation data") if trainer.eval_dataset is not None else ("train", "training data")
    rows = getattr(trainer, f"{name}_dataset")
    if isinstance(rows, dict):
        name, rows = next(iter(rows.items()))
    # Of packed rows one does not know where a prompt ends
    found: list[list[int]] = []
    for row in chain(*(islice(side, _ROWS) for side in (getattr(trainer, "unpacked", {}).get(name, ()), rows))):
        if len(found) == _PROMPTS:
            break
        try:
            ids = list(_prompt_ids(row, tokenizer))
        except ValueError:  # a prompt that the chat template does not take
            continue
        if 0 < len(ids) <= longest and ids not in found:
            found.append(ids)
    return of, found


def _tokenizer(trainer: Trainer) -> PreTrainedTokenizerBase:
    return getattr(trainer.processing_class, "tokenizer", trainer.processing_class)


class AnswersCallback(TrainerCallback):
    """
    Has the model answer a few prompts when a training begins and when it has ended, and adds the answers to
    `rollouts.jsonl`: `mode`, `step`, `row`, `of` (which data), `prompt`, `length` in tokens, and in `tokens` the text.

    The first process does it alone, so there is nothing of it where the weights are sharded (FSDP, ZeRO-3). Answers
    are greedy, in the precision of the training, and no random number of it is used.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer that it is added to.

    Example:

    ```python
    trainer.add_callback(AnswersCallback(trainer))
    ```
    """

    def __init__(self, trainer: Trainer):
        self.tokenizer, self.autocast = _tokenizer(trainer), trainer.accelerator.autocast
        self.of, self.prompts = first_prompts(trainer)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step > 0:  # a run that goes on
            return
        if state.is_world_process_zero:
            Path(args.output_dir, ROLLOUTS_FILE).unlink(missing_ok=True)  # of another run
            if _is_sharded(model):
                logger.warning("No answers are shown on the page of this run: its weights are sharded.")
        self._record(args, state, model)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if state.global_step > 0:
            self._record(args, state, model)

    def _record(self, args, state, model: PreTrainedModel) -> None:
        if not (state.is_world_process_zero and self.prompts) or _is_sharded(model):
            return
        path = Path(args.output_dir, ROLLOUTS_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            for row in self._rows(model):
                file.write(json.dumps({"mode": "eval", "step": state.global_step} | row, ensure_ascii=False) + "\n")

    def _rows(self, model: PreTrainedModel) -> Iterator[dict[str, Any]]:
        config = generation_config(self.tokenizer, end_token_ids(model, self.tokenizer), _TOKENS, temperature=0)
        with generating([model]), self.autocast():
            prompts = pad_ids(self.prompts, config.pad_token_id, "left", model.device)  # (B, P) each
            answers = generate_ids(model, *prompts, config)
        for row, (prompt, ids) in enumerate(zip(self.prompts, answers, strict=True)):
            texts = {"prompt": self.tokenizer.decode(prompt), "tokens": [self.tokenizer.decode(ids)]}
            yield {"row": row, "of": self.of, "length": len(ids)} | texts

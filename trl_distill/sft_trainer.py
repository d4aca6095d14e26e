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

"""TRL's `SFTTrainer`, which says what `max_length` takes away."""

import copy
import json

import trl
from accelerate.logging import get_logger
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .checkpoints import ResumableTrainer
from .endings import check_tools, check_trainer_ending


logger = get_logger(__name__)

_NAMED = 5  # rows


class CountingSFTTrainer(ResumableTrainer, trl.SFTTrainer):
    """
    [`~trl.SFTTrainer`] that counts and names the rows whose answer lies beyond `max_length`. The parent leaves out
    those of them that have nothing else to learn, and trains on the prompts of the others, without a word.

    Raises:
        `ValueError`: If no row of a dataset has anything left to learn, or the model would not stop where its chat
            template closes an answer.
    """

    def __init__(self, *args, train_dataset: Dataset, **kwargs):
        super().__init__(*args, train_dataset=train_dataset, **kwargs)
        check_tools(self.processing_class, train_dataset, self.chat_template)
        check_trainer_ending(self, train_dataset)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if packing:
            self.unpacked = getattr(self, "unpacked", {}) | {dataset_name: dataset}  # by name, for who wants prompts
        known = "input_ids" in (dataset.column_names or ())
        if args.max_length is not None and isinstance(dataset, Dataset) and not known:
            whole = copy.copy(args)
            whole.max_length, whole.shuffle_dataset = None, False
            rows = dataset
            dataset = super()._prepare_dataset(rows, processing_class, whole, False, formatting_func, dataset_name)
            self._report(rows, dataset, processing_class, args, dataset_name)
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def _report(self, rows: Dataset, tokens: Dataset, processing_class, args, name: str):
        limit, lengths = args.max_length, [len(ids) for ids in tokens["input_ids"]]
        longer = [i for i, length in enumerate(lengths) if length > limit]
        if not longer:
            return
        kept = slice(-limit, None) if args.truncation_mode == "keep_end" else slice(limit)
        lost = [i for i in longer if self._learns_nothing(rows[i], tokens[i]["labels"][kept], kept, processing_class)]
        message = f"{len(longer)} of {len(lengths)} rows of the {name} dataset are longer than `max_length` ({limit})"
        if len(lost) == len(lengths):
            raise ValueError(f"{message}, and of each the whole answer lies beyond it. Raise `max_length`.")
        which = ", ".join(map(str, lost[:_NAMED])) + (", ..." if len(lost) > _NAMED else "")
        whole = f" Of {len(lost)} of them the whole answer lies beyond it (rows {which})." if lost else ""
        logger.warning(f"{message}, and what is beyond it is not learned.{whole} Raise it, or leave such rows out.")

    def _learns_nothing(self, row: dict, labels: list[int], kept: slice, processing_class) -> bool:
        """Whether no token of an answer is among the `kept` labels of a row."""
        if all(label == -100 for label in labels):
            return True
        messages = row.get("messages")
        if kept.start is not None or not messages or -100 in labels:
            return False  # its end is kept, it is plain text, or all its labels are of answers
        first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), 0)
        if first == 0:
            return False
        tools = row.get("tools")
        settings = {"add_generation_prompt": True, "return_dict": True, "chat_template": self.chat_template}
        settings["tools"] = json.loads(tools) if isinstance(tools, str) else tools
        return len(processing_class.apply_chat_template(messages[:first], **settings)["input_ids"]) >= kept.stop


class Preparation(CountingSFTTrainer):
    """
    The part of [`~trl.SFTTrainer`] that turns rows of `prompt` and `completion` into tokens: it has no model.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        args ([`~trl.SFTConfig`]):
            What decides how rows become tokens. `assistant_only_loss` must be off.
    """

    def __init__(self, processing_class: PreTrainedTokenizerBase, args: trl.SFTConfig):
        if args.eos_token is not None:
            processing_class.eos_token = args.eos_token
        self._tokenizer = processing_class
        self.chat_template = None  # differs from the tokenizer's with `assistant_only_loss`
        self.completion_only_loss = args.completion_only_loss is not False  # rows have a completion

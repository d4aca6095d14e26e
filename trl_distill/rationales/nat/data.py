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

"""Which rows a stage trains on, and how they are tokenised without losing their end."""

import copy

from accelerate.logging import get_logger
from datasets import Dataset

from ..data import drop_long_rows


logger = get_logger(__name__)


def rows_with_label(dataset: Dataset, label: bool, name: str) -> Dataset:
    """The rows with this label; an empty side is an error."""
    labels = dataset["label"][:]
    kept = [i for i, value in enumerate(labels) if value is label]
    kind, other = ("right", "wrong") if label else ("wrong", "right")
    if not kept:
        raise ValueError(
            f"All {len(labels)} rows of the {name} dataset are {other} (`label` is {not label}), so nothing can be "
            f"trained on {kind} ones. Add {kind} rationales, or leave that stage out."
        )
    logger.info(f"The {name} dataset has {len(kept)} {kind} and {len(labels) - len(kept)} {other} rows.")
    return dataset.select(kept)


def prepare_whole_rows(prepare, dataset: Dataset, processing_class, args, packing: bool, formatting_func, name: str):
    """
    TRL's preparation of an SFT dataset, but rows longer than `args.max_length` are dropped and not cut.

    Args:
        prepare (`Callable`):
            `SFTTrainer._prepare_dataset`, bound.
        dataset ([`~datasets.Dataset`]):
            Rows `prompt` and `completion`.
        processing_class, args, packing, formatting_func, name:
            As TRL hands them over.
    """
    whole = copy.copy(args)
    whole.max_length, whole.shuffle_dataset = None, False
    dataset = prepare(dataset, processing_class, whole, False, formatting_func, name)
    dataset = drop_long_rows(dataset, args.max_length, name)
    return prepare(dataset, processing_class, args, packing, formatting_func, name)  # packs and shuffles, if asked to

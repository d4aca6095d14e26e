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
Scores of rationales: how prompt and rationale become one row of tokens, what a ranker makes of it, and how good it is.

B rows, T padded tokens. A ranker is a sequence classification model with one logit `z`; the score is `sigmoid(z)`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import AutoPeftModelForSequenceClassification
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl.data_utils import is_conversational
from trl.trainer.reward_trainer import suppress_seqcls_warning

from ...generation import batches_by_length, pad_ids
from ...models import adapter_config, context_length
from ...progress import progress_bar


def check_one_label(config: PreTrainedConfig) -> None:
    """Raise `ValueError` if the configuration is that of a classifier with more than one label."""
    if config.num_labels != 1:
        raise ValueError(
            f"A ranker has one label, but {config._name_or_path or 'this model'} has {config.num_labels}. Load it "
            "with `num_labels=1`, or start from a language model."
        )


def ranker_loss(logits: Tensor, labels: Tensor) -> Tensor:
    r"""
    Mean squared error of the scores of logits `(B,)` to their labels `(B,)`, a scalar in fp32:

    $$ \frac{1}{B} \sum_{i=1}^{B} (\sigma(z_i) - \text{label}_i)^2. $$

    transformers' own loss for one label has no sigmoid: it would regress the logit itself.
    """
    return (logits.float().sigmoid() - labels.float()).square().mean()


def ranking_metrics(logits: NDArray, labels: NDArray, questions: NDArray) -> dict[str, float]:
    """
    How well logits `(N,)` tell right rationales, with the label 1, from wrong ones, with the label 0.

    Returns `right`, the share of right rationales; `accuracy` of the decision at a score of 0.5; `auc`, the share of
    all pairs of a right and a wrong rationale in which the right one scores higher; and `pair_accuracy`, that share
    within a question, averaged over the questions that have both. A tie counts one half. Without a pair the last two
    are left out.
    """

    def share_won(rows: NDArray) -> float:
        right, wrong = logits[rows & (labels == 1)], np.sort(logits[rows & (labels == 0)])
        if not len(right) or not len(wrong):
            return math.nan
        return (np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")).mean() / (
            2 * len(wrong)
        )

    within = np.array([share_won(questions == question) for question in np.unique(questions)])
    metrics = {
        "right": labels.mean(),
        "accuracy": ((logits > 0) == (labels == 1)).mean(),
        "auc": share_won(np.ones(len(labels), dtype=bool)),
        "pair_accuracy": np.nanmean(within) if not np.isnan(within).all() else math.nan,
    }
    return {name: float(value) for name, value in metrics.items() if not math.isnan(value)}


def encode_rationale(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> list[int]:
    """
    Token ids of a row's `prompt` and `completion`, each a text or messages: as the chat template gives them, with the
    row's `chat_template_kwargs` if it has some; for texts, with the end token at the end. A completion that is a text
    answers a conversational prompt as the assistant.
    """
    prompt, completion = row["prompt"], row["completion"]
    if is_conversational({"prompt": prompt}):
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        if prompt[-1]["role"] == "assistant":  # the completion goes on with the last message
            joined = {**prompt[-1], "content": prompt[-1]["content"] + completion[0]["content"]}
            prompt, completion = prompt[:-1], [joined, *completion[1:]]
        kwargs = row.get("chat_template_kwargs") or {}
        encoded = tokenizer.apply_chat_template(prompt + completion, tokenize=True, return_dict=True, **kwargs)
        return list(encoded["input_ids"])
    ids = list(tokenizer(prompt + completion)["input_ids"])
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def length_limit(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    """Longest row that the ranker reads, in tokens. A tokenizer without a limit has a huge one."""
    return min(limit for limit in (max_length, context_length(config), tokenizer.model_max_length) if limit)


def collate_rationales(sequences: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` `(B, T)`, padded on the right, so that every row starts at position 0."""
    input_ids, attention_mask = pad_ids(sequences, pad_token_id, "right", torch.device("cpu"))
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@torch.no_grad()
def score_rationales(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    batch_size: int = 16,
    max_length: int | None = 1024,
    progress: bool = False,
) -> list[float | None]:
    """
    Let a ranker score rationales.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Sequence classification model with one label, on the device on which it shall run.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        rows ([`~datasets.Dataset`] or `list[dict]`):
            Rows `prompt` and `completion`, standard or conversational.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows scored together.
        max_length (`int`, *optional*, defaults to `1024`):
            Longest row in tokens. The model's context is a limit, too.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        `list[float or None]`: Scores in `[0, 1]` in the order of the rows, `None` for rows that are too long.
    """
    check_one_label(model.config)
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        raise ValueError(
            "The ranker has no padding token, by which it finds the end of a row. Set `model.config.pad_token_id`, "
            "for example to that of the tokenizer."
        )
    encoded = [encode_rationale(tokenizer, row) for row in rows]
    limit = length_limit(config, tokenizer, max_length)
    kept = [i for i, ids in enumerate(encoded) if len(ids) <= limit]
    scores: list[float | None] = [None] * len(encoded)
    training = model.training
    model.eval()
    with progress_bar(total=len(kept), desc="Scoring", unit="rationale", shown=progress) as bar:
        for batch in batches_by_length([encoded[i] for i in kept], batch_size):
            numbers = [kept[k] for k in batch]
            inputs = collate_rationales([encoded[i] for i in numbers], config.pad_token_id)
            logits = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}).logits  # (B, 1)
            for i, score in zip(numbers, logits[:, 0].float().sigmoid().tolist(), strict=True):
                scores[i] = score
            bar.update(len(numbers))
    model.train(training)
    return scores


def find_ranker(
    name: str, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[bool, PreTrainedTokenizerBase]:
    """
    Whether a ranker is an adapter, and its tokenizer, without loading its weights. It is a `ValueError` or `OSError`
    if there is none, or if it has more than one label.
    """
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    is_adapter = adapter_config(name, revision) is not None
    if not is_adapter:
        check_one_label(AutoConfig.from_pretrained(name, **common))
    return is_adapter, AutoTokenizer.from_pretrained(name, **common)


def load_ranker(
    name: str, revision: str | None = None, trust_remote_code: bool = False, **init_kwargs
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Load a trained ranker and its tokenizer, in eval mode.

    Args:
        name (`str`):
            Model id or folder of a full model or of a PEFT adapter.
        revision (`str`, *optional*):
            Branch, tag or commit.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that ships with the checkpoint.
        init_kwargs:
            Keyword arguments of `from_pretrained`. `quantization_config` may be a dictionary.
    """
    if isinstance(init_kwargs.get("quantization_config"), dict):
        init_kwargs["quantization_config"] = BitsAndBytesConfig(**init_kwargs["quantization_config"])
    init_kwargs |= {"revision": revision, "trust_remote_code": trust_remote_code}
    is_adapter, tokenizer = find_ranker(name, revision, trust_remote_code)
    if is_adapter:
        with suppress_seqcls_warning():  # of a random head: the adapter's folder has the trained one
            model = AutoPeftModelForSequenceClassification.from_pretrained(name, num_labels=1, **init_kwargs)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(name, **init_kwargs)
    if model.config.get_text_config().pad_token_id is None:  # an adapter's folder holds no configuration of the model
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer

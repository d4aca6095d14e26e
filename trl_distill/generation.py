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

"""What any generation needs: encoded prompts in, token ids and their log-probabilities out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.data_utils import is_conversational
from trl.trainer.utils import pad

from .divergence import completion_states, lm_head, token_logps
from .models import dense_head_weight, neutral_generation_configs


def check_prompts(rows: Sequence[dict[str, Any]]) -> None:
    """Raise `ValueError` unless there are rows, and each has a `prompt`."""
    if not rows:
        raise ValueError("The dataset has no rows, so there is nothing to answer.")
    for number, row in enumerate(rows):
        if row.get("prompt") is None:
            raise ValueError(
                f"Row {number} has no `prompt`; its columns are {sorted(row)}. Rename the column that holds the "
                "question to `prompt`, and the reference answer, if any, to `completion`."
            )
        if not row["prompt"]:
            raise ValueError(f"Row {number} has an empty `prompt`. Remove such rows.")


def takes_system(tokenizer: PreTrainedTokenizerBase, **chat_template_kwargs: Any) -> bool:
    """Whether the chat template takes a system message: some raise an error at one, some pass over it."""
    user, told = {"role": "user", "content": "Hi"}, []
    for messages in ([user], [{"role": "system", "content": "Be brief."}, user]):
        try:
            told.append(tokenizer.apply_chat_template(messages, tokenize=False, **chat_template_kwargs))
        except TemplateError:
            return not told  # a template that takes no plain question says of itself what is wrong
    return told[0] != told[1]


def encode_prompts(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the prompts, standard or conversational, up to where the model goes on."""
    check_prompts(rows)
    encoded = []
    for number, row in enumerate(rows):
        prompt = row["prompt"]
        if is_conversational({"prompt": prompt}):
            goes_on = prompt[-1]["role"] == "assistant"
            try:
                ids = tokenizer.apply_chat_template(
                    prompt,
                    add_generation_prompt=not goes_on,
                    continue_final_message=goes_on,
                    tokenize=True,
                    return_dict=True,
                    **(row.get("chat_template_kwargs") or {}),
                )["input_ids"]
            except TemplateError as error:
                roles = ", ".join(message["role"] for message in prompt)
                raise ValueError(
                    f"The chat template does not take the prompt of row {number}, with the roles {roles}: {error}. "
                    "Change or remove such rows."
                ) from error
        else:
            ids = tokenizer(prompt)["input_ids"]
        if not ids:
            raise ValueError(
                f"The tokenizer finds no token in the prompt of row {number}, {prompt!r}. Remove such rows."
            )
        encoded.append(list(ids))
    return encoded


def batches_by_length(ids: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Row numbers in batches, the longest rows first, so that memory runs out early if at all."""
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def generation_config(
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    **kwargs: Any,
) -> GenerationConfig:
    """How answers are drawn: greedily at temperature 0, else from the distribution or its nucleus, until an end."""
    drawn = dict(do_sample=True, temperature=temperature, top_p=top_p, top_k=0) if temperature > 0 else {}
    return GenerationConfig(
        **{"do_sample": False} | drawn | kwargs,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends),
        pad_token_id=next((token for token in (tokenizer.pad_token_id, *ends) if token is not None), 0),
        disable_compile=True,
    )


@contextmanager
def generating(models: Sequence[PreTrainedModel]) -> Iterator[None]:
    """Eval mode, random numbers of our own and neutral generation configs, all undone at the end."""
    cuda = sorted({model.device.index or 0 for model in models if model.device.type == "cuda"})
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        with torch.random.fork_rng(cuda), neutral_generation_configs(models):
            yield
    finally:
        for model, mode in zip(models, training, strict=True):
            model.train(mode)


def pad_ids(sequences: Sequence[Sequence[int]], value: int, side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask `(B, T)` of sequences of different lengths."""
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    masks = [torch.ones_like(row) for row in rows]
    return pad(rows, value, side).to(device), pad(masks, 0, side).to(device)


def generate_ids(
    model: PreTrainedModel, prompt_ids: Tensor, prompt_mask: Tensor, config: GenerationConfig, **kwargs: Any
) -> list[list[int]]:
    """Answers to prompts `(B, P)` as token ids, the end token included."""
    prompt = {"input_ids": prompt_ids, "attention_mask": prompt_mask}
    output = model.generate(**prompt, generation_config=config, **kwargs)  # (B, P + T)
    answers = []
    for row in output[:, prompt_ids.shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in config.eos_token_id), len(row) - 1)
        answers.append(row[: end + 1])
    return answers


def mean_logps(
    model: PreTrainedModel, prompt: tuple[Tensor, Tensor], answers: Sequence[Sequence[int]], pad_token_id: int
) -> list[float]:
    """
    Mean log-probability of the tokens of each answer to prompts `(B, P)`, given as ids and mask.

    It is that of the full distribution at temperature 1, whatever the answers were drawn with. Raises `ValueError`
    unless the LM head is dense.
    """
    dense_head_weight(model)
    ids, mask = pad_ids(answers, pad_token_id, "right", prompt[0].device)  # (B, T) each
    states = completion_states(model, *prompt, ids, mask)[mask.bool()]  # (N, H)
    logps = token_logps(states, lm_head(model), ids[mask.bool()]).double().cpu()  # (N,)
    return [part.mean().item() for part in logps.split([len(answer) for answer in answers])]

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
What a chat template must do: close an answer with a token that ends generation, too, and show the tools of a row.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, ProcessorMixin
from trl import SFTTrainer
from trl.data_utils import is_conversational, maybe_convert_to_chatml

from .models import adapter_config, end_token_ids


logger = logging.getLogger(__name__)

_ANSWER = "What the assistant says"
_TURNS = [
    {"role": "user", "content": "What the user says"},
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": "What else"},
]


def check_ending(
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    ends: Sequence[int],
    chat_template: str | None = None,
    remedy: str = "Set `eos_token: {}`.",
) -> None:
    """
    Refuse a chat template whose answers the model would learn to close with a token at which it does not stop: it
    would go on with the next turns to the limit of its length. Where no token closes them, it is a warning.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            What has the template.
        ends (`list[int]`):
            Tokens that end an answer of the model that is saved.
        chat_template (`str`, *optional*):
            Template in place of its own.
        remedy (`str`, *optional*):
            What to do about it, with `{}` for the closing token.

    Raises:
        `ValueError`: If the closing token is not among `ends`.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)

    def behind_the_answer(turns: int) -> tuple[str, list[int]]:
        """What a template writes behind an answer, and the tokens of that which are none of ordinary text."""
        text = processing_class.apply_chat_template(_TURNS[:turns], tokenize=False, chat_template=chat_template)
        _, found, text = text.rpartition(_ANSWER)
        if not found:
            raise TemplateError("The template does not show a text.")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return text, [token for token in ids if token in tokenizer.added_tokens_decoder]

    try:
        (text, closing), (_, following) = behind_the_answer(2), behind_the_answer(3)
    except TemplateError:  # one that wants other turns, or content in parts
        return
    # Some leave the last turn open, and their models stop at the token that begins the next one
    if set(closing or following[:1]) & set(ends):
        return
    if not closing:
        logger.warning(
            f"The chat template closes an answer with {text!r}, which holds no special token, so that the model does "
            "not learn where to stop. Take a template that ends it with `eos_token` (`chat_template_path`)."
        )
        return
    token, *known = tokenizer.convert_ids_to_tokens([closing[0], *ends])
    raise ValueError(
        f"The chat template closes an answer with {token}, and the model stops at {', '.join(known) or 'no token'} "
        f"only: what it learns here has no end. {remedy.format(token)}"
    )


def check_tools(
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    rows: Dataset | IterableDataset,
    chat_template: str | None = None,
) -> None:
    """Refuse rows with `tools` if a chat template passes over them: a model would call what it does not know."""
    if "tools" not in (rows.column_names or ()):
        return
    if not any(rows["tools"] if isinstance(rows, Dataset) else [next(iter(rows))["tools"]]):
        return
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
    try:
        text = processing_class.apply_chat_template(
            _TURNS[:1], tools=[tool], chat_template=chat_template, tokenize=False
        )
    except TemplateError:  # one that wants other turns, or content in parts
        return
    if "look_up" not in text:
        raise ValueError(
            "The data have a column `tools`, and the chat template does not show it. Take a template that does "
            "(`chat_template_path`), or leave the column and the rows with calls out."
        )


def check_trainer_ending(trainer: SFTTrainer, dataset: Dataset | IterableDataset) -> None:
    """[`check_ending`] of what a trainer has been made of, if it puts its rows into a chat template."""
    if is_conversational(maybe_convert_to_chatml(next(iter(dataset)))):  # TRL ends other text with the `eos_token`
        processing_class = trainer.processing_class
        ends = end_token_ids(trainer.model, getattr(processing_class, "tokenizer", processing_class))
        check_ending(processing_class, ends, trainer.chat_template)


def check_model_ending(
    name: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    eos_token: str | None = None,
    chat_template_path: str | None = None,
    **kwargs,
) -> None:
    """
    [`check_ending`] of a model or an adapter that is not loaded, once it is trained with `eos_token` and
    `chat_template_path`, which mean what they mean in [`~trl.SFTConfig`].
    """
    settings = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(name, **settings)
    if adapter := adapter_config(name, revision):
        name, settings["revision"] = adapter["base_model_name_or_path"], adapter.get("revision")
    try:
        generation = GenerationConfig.from_pretrained(name, revision=settings["revision"])
    except OSError:  # a model needs none
        generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(name, **settings))
    if eos_token is not None:
        tokenizer.eos_token = eos_token
    if chat_template_path is not None and Path(chat_template_path).is_file():
        tokenizer.chat_template = Path(chat_template_path).read_text(encoding="utf-8")
    elif chat_template_path is not None:  # TRL takes over what this tokenizer has, and no other end
        tokenizer, generation = AutoTokenizer.from_pretrained(chat_template_path), GenerationConfig()
    check_ending(tokenizer, end_token_ids(SimpleNamespace(generation_config=generation), tokenizer), **kwargs)

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

"""A model of transformers on this machine, in memory only while it is needed."""

import gc
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..extras import need
from ..files import check_there
from .models import BaseChatModel, ChatRequest, Completion, FailedCall, at_least, digest, fold_system
from .thoughts import marking_tokens


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = ("model*.safetensors", "adapter_model.safetensors")
_BASE = ("base_model_name_or_path", "revision")  # where an adapter says what it belongs to
_generating = threading.RLock()  # torch has one random state, and a GPU has room for one model


def weights_digest(folder: str | Path, base: str | Path | None = None) -> str:
    """SHA-256 over weights, config and tokenizer of a model, or of adapters and their base (`base`, if it moved)."""
    from ..models import adapter_config

    folder = Path(folder)
    files = sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern))
    if not files:
        adapters = sorted(file.parent for file in folder.glob(f"*/{_ADAPTER_CONFIG}"))
        if adapters:
            return digest(*(f"{adapter.name} {weights_digest(adapter, base)}" for adapter in adapters))
        raise ValueError(f"{folder} holds no weights in safetensors. Save the model there with `save_pretrained`.")
    files += [file for file in sorted(folder.glob("*config.json")) if file.name != _ADAPTER_CONFIG]
    sha256 = hashlib.sha256()
    for file in [*files, *folder.glob("tokenizer.json")]:
        with open(file, "rb") as content:
            sha256.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    settings = adapter_config(str(folder))
    if settings is not None:  # where the base lies is no part of it, but what the base is
        settings = {name: value for name, value in settings.items() if name not in _BASE}
        sha256.update(f"{json.dumps(settings, sort_keys=True)} {weights_digest(base or base_folder(folder))}".encode())
    return sha256.hexdigest()


def base_folder(folder: Path) -> Path:
    """Folder of the model under an adapter; of a whole model its own."""
    from ..models import adapter_config

    settings = adapter_config(str(folder))
    return folder if settings is None else local_folder(*(settings.get(name) for name in _BASE))


def local_folder(model_name_or_path: str, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """Folder of a model, downloaded first if it is on the Hub."""
    if Path(model_name_or_path).is_dir():
        return Path(model_name_or_path)
    check_there(model_name_or_path)
    from huggingface_hub import snapshot_download

    patterns = [*_WEIGHTS, "*.json", "*.jinja", "tokenizer*", "*.model", *(["*.py"] if trust_remote_code else [])]
    found = snapshot_download(model_name_or_path, revision=revision, allow_patterns=patterns, ignore_patterns="*/*")
    return Path(found)


class LocalChatModel(BaseChatModel):
    """
    A model of transformers on this machine.

    It is loaded with the first answer that is missing, and stays until [`close`], the end of a `with` block, or until
    another local model is asked: one is in memory at a time, so ask one model everything before the next.

    A batch of answers draws from a random state that follows from its requests, so the same batch gives the same text,
    whatever else the process has drawn. Another `batch_size` or other hardware may give another text.

    Args:
        model_name_or_path (`str`):
            Id or folder of a model or of a PEFT adapter; conversations need a chat template in its tokenizer. Where it
            lies is no part of its identity, but its weights, config, template, dtype and quantization are.
        revision, name (`str`, *optional*):
            Branch, tag or commit, and what to call the model in reports, by default `model_name_or_path`.
        dtype (`str`, *optional*, defaults to `"auto"`):
            `"float32"`, `"bfloat16"`, `"float16"`, or `"auto"` for that of the checkpoint.
        load_in_4bit (`bool`, *optional*, defaults to `False`):
            Whether to quantize the weights to NF4 with bitsandbytes.
        device (`str`, *optional*), batch_size (`int`, *optional*, defaults to `16`):
            Where it runs, by default on the GPU if there is one, and how many answers are generated together.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Values for the chat template, such as `{"enable_thinking": False}`. Part of the identity.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that ships with the checkpoint.
        keep_thoughts (`bool`, *optional*, defaults to `False`):
            Whether the text of an answer begins with the model's thoughts. The store has them in any case.
        load (`Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]`, *optional*):
            Gives model and tokenizer, where plain transformers and PEFT cannot load them, or where they are loaded.
        weights (`str`, *optional*):
            What tells the weights from others. Defaults to the hash of what is in the folder.

    Raises:
        `ValueError`: If there is no tokenizer, no template for a conversation, or no safetensors, once it is needed.
    """

    _in_memory: "LocalChatModel | None" = None  # of all instances, the one that holds its weights

    def __init__(
        self,
        model_name_or_path: str,
        *,
        revision: str | None = None,
        name: str | None = None,
        dtype: str = "auto",
        load_in_4bit: bool = False,
        device: str | None = None,
        batch_size: int = 16,
        chat_template_kwargs: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        keep_thoughts: bool = False,
        load: Callable[[], tuple[Any, Any]] | None = None,
        weights: str | None = None,
    ):
        at_least(1, batch_size=batch_size)
        if load_in_4bit:
            need("bitsandbytes", "`load_in_4bit`")
        self.model_name_or_path, self.revision, self.name = model_name_or_path, revision, name or model_name_or_path
        self.dtype, self.load_in_4bit, self.device = dtype, load_in_4bit, device
        self.batch_size, self.trust_remote_code = batch_size, trust_remote_code
        self.chat_template_kwargs, self.keep_thoughts = chat_template_kwargs or {}, keep_thoughts
        self._load, self._weights = load, weights

    @cached_property
    def _folder(self) -> Path:
        return local_folder(self.model_name_or_path, self.revision, self.trust_remote_code)

    @cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        from ..models import load_teacher_tokenizer

        if self._load is not None:
            found = [self._loaded[1]]
        else:  # an adapter may have none: then its base has it
            folders, trust = (self._folder, base_folder(self._folder)), self.trust_remote_code
            found = (load_teacher_tokenizer(str(folder), trust_remote_code=trust) for folder in folders)
        tokenizer = next((tokenizer for tokenizer in found if tokenizer is not None), None)
        if tokenizer is None:
            raise ValueError(f"{self.model_name_or_path} has no tokenizer. Save it beside the weights.")
        return tokenizer

    @cached_property
    def _context(self) -> float:
        from transformers import AutoConfig

        from ..models import context_length

        if self._load is not None:
            return context_length(self._model) or float("inf")
        config = AutoConfig.from_pretrained(base_folder(self._folder), trust_remote_code=self.trust_remote_code)
        return context_length(config) or float("inf")

    @cached_property
    def _loaded(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase | None]":
        other = LocalChatModel._in_memory
        if other is not None:
            other.close()
        loaded = self._open() if self._load is None else self._load()
        LocalChatModel._in_memory = self
        return loaded

    def _open(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase | None]":
        from ..models import load_teacher, placement

        kwargs = placement(self.dtype, self.device, self.load_in_4bit, self.trust_remote_code)
        return load_teacher(str(self._folder), **kwargs), None

    @property
    def _model(self) -> "PreTrainedModel":
        return self._loaded[0]

    def close(self) -> None:
        with _generating:
            loaded = self.__dict__.pop("_loaded", None)
            if loaded is None:
                return
            LocalChatModel._in_memory = None
            self._shut(loaded[0])
            del loaded
            import torch

            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _shut(self, model: Any) -> None:
        """What is to be done before a model is given up."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        template = json.dumps([self._tokenizer.chat_template, self.chat_template_kwargs], sort_keys=True)
        return {
            "weights": self._weights or weights_digest(self._folder),
            "dtype": self.dtype,
            "quantization": "nf4" if self.load_in_4bit else None,
            "template": hashlib.sha256(template.encode()).hexdigest(),
        }

    @cached_property
    def _has_system_role(self) -> bool:
        from ..generation import takes_system

        return takes_system(self._tokenizer, **self.chat_template_kwargs)

    def _messages(self, request: ChatRequest) -> list[dict[str, str]] | str:
        told = not isinstance(request.messages, str) and any(m["role"] == "system" for m in request.messages)
        return fold_system(request.messages) if told and not self._has_system_role else request.messages

    def _encode(self, requests: Sequence[ChatRequest]) -> list[list[int]]:
        from ..generation import encode_prompts

        if self._tokenizer.chat_template is None and not all(isinstance(r.messages, str) for r in requests):
            raise ValueError(
                f"{self.model_name_or_path} has no chat template. Use an instruction-tuned model, or save a tokenizer "
                "with a template beside the weights."
            )
        rows = [
            {
                "prompt": self._messages(r),
                "chat_template_kwargs": self.chat_template_kwargs | (r.chat_template_kwargs or {}),
            }
            for r in requests
        ]
        return encode_prompts(rows, self._tokenizer)

    def _fits(self, ids: Sequence[int], request: ChatRequest) -> bool:
        return len(ids) + request.sampling.max_tokens <= self._context

    def check(self, requests: Sequence[ChatRequest]) -> None:
        ids = self._encode(requests)
        long = [i for i, request in enumerate(requests) if not self._fits(ids[i], request)]
        if long:
            raise ValueError(
                f"{len(long)} of {len(ids)} prompts leave no room for {requests[long[0]].sampling.max_tokens} new "
                f"tokens in the context of {self._context}, the first of them row {long[0]} with {len(ids[long[0]])} "
                "tokens. Allow fewer new tokens, or remove these rows."
            )

    def batches(self, requests: Sequence[ChatRequest]) -> list[list[int]]:
        """
        Requests of one sampling together, the longest prompts first: what is left after some batches is cut as it was.

        Prompts that are too long would be left for ever, so they are kept apart.
        """
        from ..generation import batches_by_length

        ids, groups = self._encode(requests), {}
        for i, request in enumerate(requests):
            groups.setdefault((request.sampling.explicit, self._fits(ids[i], request)), []).append(i)
        return [
            [group[k] for k in batch]
            for group in groups.values()
            for batch in batches_by_length([ids[i] for i in group], self.batch_size)
        ]

    def answer(self, batch: Sequence[ChatRequest]) -> list[Completion | FailedCall]:
        with _generating:
            return self._generate(batch)

    def _generate(self, batch: Sequence[ChatRequest]) -> list[Completion | FailedCall]:
        sampling, ids = batch[0].sampling.explicit, self._encode(batch)
        no_room = f"leaves no room for `max_tokens` ({sampling.max_tokens}) in the context of {self._context} tokens."
        answers: list[Any] = [FailedCall(f"The prompt of {len(prompt)} tokens {no_room}") for prompt in ids]
        fits = [i for i, request in enumerate(batch) if self._fits(ids[i], request)]
        if not fits:
            return answers

        tokens, ends, logps = self._draw([batch[i] for i in fits], [ids[i] for i in fits])
        for i, text, of_one, logp in zip(fits, map(self._decode, tokens), tokens, logps, strict=True):
            reason = "stop" if of_one[-1] in ends else "length"
            answers[i] = Completion(text, reason, len(ids[i]), len(of_one), mean_logp=logp)
        return answers

    def _draw(
        self, batch: Sequence[ChatRequest], ids: Sequence[list[int]]
    ) -> tuple[list[list[int]], list[int], Sequence[float | None]]:
        """Tokens of the answers, each with its end, the tokens that end one, and mean log-probabilities if asked."""
        import torch

        from ..generation import generate_ids, generating, generation_config, mean_logps, pad_ids
        from ..models import end_token_ids

        model, tokenizer, sampling = self._model, self._tokenizer, batch[0].sampling.explicit
        ends = end_token_ids(model, tokenizer)
        config = generation_config(tokenizer, ends, sampling.max_tokens, sampling.temperature, sampling.top_p)
        prompt = pad_ids(ids, config.pad_token_id, "left", model.device)  # (B, P) each
        with generating([model]), torch.no_grad():
            torch.manual_seed(_seed(batch))
            tokens = generate_ids(model, *prompt, config)
            logps = mean_logps(model, prompt, tokens, config.pad_token_id) if sampling.logprobs else [None] * len(ids)
        return tokens, ends, logps

    def answer_losses(self, requests: Sequence[ChatRequest], answers: Sequence[str]) -> list[float | None]:
        import torch

        from ..generation import batches_by_length, mean_logps, pad_ids
        from ..models import end_token_ids

        losses: list[float | None] = [None] * len(requests)
        if not requests:
            return losses
        with _generating, torch.no_grad():
            model, tokenizer, prompts = self._model, self._tokenizer, self._encode(requests)
            ends = end_token_ids(model, tokenizer)
            end = [tokenizer.eos_token_id] if tokenizer.eos_token_id in ends else ends[:1]
            tokens = [[*ids, *end] for ids in tokenizer(list(answers), add_special_tokens=False)["input_ids"]]
            rows = [[*prompt, *answer] for prompt, answer in zip(prompts, tokens, strict=True)]
            fits = [i for i, row in enumerate(rows) if len(row) <= self._context]
            for batch in batches_by_length([rows[i] for i in fits], self.batch_size):
                numbers = [fits[k] for k in batch]
                prompt = pad_ids([prompts[i] for i in numbers], 0, "left", model.device)  # (B, P) each
                logps = mean_logps(model.eval(), prompt, [tokens[i] for i in numbers], 0)
                for i, logp in zip(numbers, logps, strict=True):
                    losses[i] = -logp
        return losses

    def _decode(self, tokens: Sequence[int]) -> str:
        """Text without special tokens, but for those that tell thoughts from the answer."""
        tokenizer, text, part = self._tokenizer, "", []
        marks = dict(zip(tokenizer.convert_tokens_to_ids(self._marking), self._marking, strict=True))
        for token in [*tokens, None]:
            if token is None or token in marks:
                text += tokenizer.decode(part, skip_special_tokens=True) + marks.get(token, "")
                part = []
            else:
                part.append(token)
        return text

    @cached_property
    def _marking(self) -> list[str]:
        return marking_tokens(self._tokenizer.all_special_tokens)


def _seed(batch: Sequence[ChatRequest]) -> int:
    # To ask for log-probabilities draws nothing else
    asked = [replace(request, sampling=replace(request.sampling, logprobs=False)) for request in batch]
    content = json.dumps([request.content for request in asked], sort_keys=True)
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") >> 1

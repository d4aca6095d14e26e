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

"""A model in vLLM's engine, in this process: for tens of thousands of answers of one model."""

from collections.abc import Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from .local import LocalChatModel, _seed, base_folder
from .models import ChatRequest


class VLLMChatModel(LocalChatModel):
    """
    A model in vLLM's engine on this machine, `engine: vllm` in a file.

    Like [`LocalChatModel`], with the same store and resume, but an answer draws from a seed of its own request, so
    that `batch_size` says no more than how many are stored together. Engines of other versions, kernels or devices may
    give other texts.

    Args:
        model_name_or_path (`str`):
            Id or folder of a whole model. An adapter is to be merged first (`trl-distill merge`).
        revision, name, chat_template_kwargs, trust_remote_code, keep_thoughts (*optional*):
            As in [`LocalChatModel`].
        dtype (`str`, *optional*, defaults to `"auto"`):
            `"auto"` is that of the checkpoint, float32 included, which vLLM would round.
        batch_size (`int`, *optional*, defaults to `512`):
            How many answers the engine is given, and the store gets, at a time.
        engine_kwargs (`dict[str, Any]`, *optional*):
            Arguments of `vllm.LLM`, such as `{"tensor_parallel_size": 2, "max_model_len": 8192}`. They say how the
            model is run, and are no part of its identity.

    Raises:
        `ImportError`: If vLLM is not installed, once it is needed.
        `ValueError`: As [`LocalChatModel`], and of an adapter.
    """

    def __init__(
        self,
        model_name_or_path: str,
        *,
        revision: str | None = None,
        name: str | None = None,
        dtype: str = "auto",
        batch_size: int = 512,
        chat_template_kwargs: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        keep_thoughts: bool = False,
        engine_kwargs: dict[str, Any] | None = None,
    ):
        super().__init__(
            model_name_or_path,
            revision=revision,
            name=name,
            dtype=dtype,
            batch_size=batch_size,
            chat_template_kwargs=chat_template_kwargs,
            keep_thoughts=keep_thoughts,
            trust_remote_code=trust_remote_code,
        )
        self.engine_kwargs = engine_kwargs or {}

    @cached_property
    def _context(self) -> float:
        return min(super()._context, self.engine_kwargs.get("max_model_len", float("inf")))

    @cached_property
    def identity(self) -> dict[str, Any]:
        return super().identity | {"engine": "vllm"}

    def _open(self) -> tuple[Any, None]:
        from transformers import AutoConfig
        from vllm import LLM

        if base_folder(self._folder) != self._folder:
            raise ValueError(
                f"{self.model_name_or_path} is an adapter, which is not given to vLLM here. Merge it first: "
                f"`trl-distill merge {self.model_name_or_path} --output DIR`."
            )
        config = AutoConfig.from_pretrained(self._folder, trust_remote_code=self.trust_remote_code)
        dtype = str(config.dtype or "auto").removeprefix("torch.") if self.dtype == "auto" else self.dtype
        settings = {"dtype": dtype, "trust_remote_code": self.trust_remote_code} | self.engine_kwargs
        return LLM(str(self._folder), **settings), None

    def _shut(self, model: Any) -> None:
        model.llm_engine.engine_core.shutdown()

    @cached_property
    def _ends(self) -> list[int]:
        from transformers import AutoConfig, GenerationConfig

        from ..models import end_token_ids

        try:
            config = GenerationConfig.from_pretrained(self._folder)
        except OSError:  # older folders say it in the config alone
            config = AutoConfig.from_pretrained(self._folder, trust_remote_code=self.trust_remote_code)
        return end_token_ids(SimpleNamespace(generation_config=config), self._tokenizer)

    def _draw(self, batch: Sequence[ChatRequest], ids: Sequence[list[int]]):
        from vllm import SamplingParams, TokensPrompt

        engine, sampling = self._model, batch[0].sampling.explicit
        values = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
        values |= {"stop_token_ids": self._ends, "logprobs": 0 if sampling.logprobs else None, "detokenize": False}
        params = [SamplingParams(**values, seed=_seed([request])) for request in batch]
        outputs = engine.generate([TokensPrompt(prompt_token_ids=row) for row in ids], params, use_tqdm=False)
        drawn = [output.outputs[0] for output in outputs]
        logps = [one.cumulative_logprob / len(one.token_ids) if sampling.logprobs else None for one in drawn]
        return [list(one.token_ids) for one in drawn], self._ends, logps

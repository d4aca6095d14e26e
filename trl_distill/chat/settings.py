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

"""A chat model from one entry of a YAML file."""

import typing
from typing import Any

from ..text import closest
from .batch import BatchChatModel
from .credentials import check_headers
from .endpoint import EndpointChatModel
from .local import LocalChatModel
from .models import BaseChatModel
from .vllm_engine import VLLMChatModel


_KINDS = {"model": EndpointChatModel, "model_name_or_path": LocalChatModel}  # by the key that names the model
_ENGINES = {
    EndpointChatModel: {"batch": BatchChatModel},
    LocalChatModel: {"transformers": LocalChatModel, "vllm": VLLMChatModel},
}
_FOR_PROGRAMS = ("load", "weights", "settings")  # parameters that no file can give


def chat_model(settings: dict[str, Any]) -> BaseChatModel:
    """
    A chat model from one entry of a YAML file.

    Args:
        settings (`dict[str, Any]`):
            Parameters of [`EndpointChatModel`], with `model` among them, or of [`LocalChatModel`], with
            `model_name_or_path`; with `engine: batch` those of [`BatchChatModel`], with `engine: vllm` those of
            [`VLLMChatModel`].

    Raises:
        `ValueError`: If the entry names no model or two, holds a key that its kind of model does not have, a value of
            another type, or a secret.

    Example:

    ```python
    from trl_distill.chat import chat_model

    judge = chat_model({"model": "Qwen/Qwen2.5-7B-Instruct", "base_url": "http://localhost:8000/v1"})
    student = chat_model({"model_name_or_path": "data/zephyr-sft", "load_in_4bit": True})
    ```
    """
    if not isinstance(settings, dict):
        raise ValueError(f"A chat model is an entry of `key: value` lines, got {settings!r}.")
    kinds = [key for key in _KINDS if key in settings]
    if len(kinds) != 1:
        raise ValueError(
            "A chat model needs either `model` (at a server) or `model_name_or_path` (a local one), got "
            f"{', '.join(map(str, settings)) or 'an empty entry'}."
        )
    kind, settings = _KINDS[kinds[0]], dict(settings)
    if (engine := settings.pop("engine", None)) is not None:
        if engine not in _ENGINES[kind]:
            names = " or ".join(f"`{name}`" for name in _ENGINES[kind])
            raise ValueError(f"`engine` of the chat model {settings[kinds[0]]!r} must be {names}, got {engine!r}.")
        kind = _ENGINES[kind][engine]
    hints = typing.get_type_hints(kind.__init__)
    if kind is BatchChatModel:  # its other settings are those of its parent
        hints = typing.get_type_hints(EndpointChatModel.__init__) | hints
    parameters = {name: hint for name, hint in hints.items() if name not in _FOR_PROGRAMS}
    for key, value in settings.items():
        if key == "api_key":
            raise ValueError("`api_key` must not be in a file. Name an environment variable in `api_key_env`.")
        if key not in parameters:
            hint = closest(key, parameters) or f"It has {', '.join(parameters)}."
            raise ValueError(f"Unknown key `{key}` of the chat model {settings[kinds[0]]!r}. {hint}")
        if not _is_of_type(value, parameters[key]):
            expected = getattr(parameters[key], "__name__", parameters[key])
            raise ValueError(f"`{key}` of the chat model {settings[kinds[0]]!r} must be {expected}, got {value!r}.")
    check_headers(settings.get("headers") or {})
    return kind(**settings)


def _is_of_type(value: Any, annotation: Any) -> bool:
    """Whether a value from YAML is of the type of a parameter: whole numbers are floats, too, booleans no numbers."""
    # Pydantic could tell, but comes with openai only, which those who ask local models do without
    types = [typing.get_origin(kind) or kind for kind in typing.get_args(annotation) or [annotation]]
    return type(value) in types or (type(value) is int and float in types)

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

"""What one server takes of a request: fields that it does not know are left out, as told or as learned from it."""

import json
import re
from collections.abc import Sequence
from typing import Any

from .models import ChatRequest, derived_seed, fold_system


RESPONSE_FORMAT = "response_format"
# What may be left out or said otherwise. Of two fields that exclude each other the first one goes.
FIELDS = (RESPONSE_FORMAT, "top_p", "seed", "logprobs", "temperature", "max_tokens")
_SYSTEM = "the system role"
_LIMITS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}  # two names of one field
_NO_SYSTEM = re.compile(
    r"(?:system|developer)[ _-]?(?:role|message|prompt|instruction)|roles must alternate|role.{0,20}['\"]system",
    re.IGNORECASE,
)
_NO_FORMAT = re.compile(r"response.?format|schema|grammar|guided|structured", re.IGNORECASE)


class Dialect:
    """
    How requests are said to one server.

    Args:
        model (`str`), max_tokens_parameter (`str`), omit (`list[str]`), extra_body (`dict[str, Any]`):
            As for [`EndpointChatModel`].
    """

    def __init__(self, model: str, max_tokens_parameter: str, omit: Sequence[str], extra_body: dict[str, Any]):
        for name in omit:
            if name not in FIELDS:
                raise ValueError(f"`omit` may hold {', '.join(sorted(FIELDS))}, got {name!r}.")
        self.model, self.omit, self.extra_body = model, frozenset(omit), extra_body
        self.max_tokens_parameter = max_tokens_parameter
        self.learned: frozenset[str] = frozenset()  # what the server has refused, and answered without

    def body(self, request: ChatRequest, refused: frozenset[str]) -> dict[str, Any]:
        """The JSON of a request, without what the server has refused."""
        sampling, messages = request.sampling, request.messages
        plain = isinstance(messages, str)
        if plain:
            body: dict[str, Any] = {"model": self.model, "prompt": messages}
        else:
            body = {"model": self.model, "messages": fold_system(messages) if _SYSTEM in refused else messages}
        fields = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        if sampling.seed is not None:  # a server that obeys it would repeat itself, were it the same for each draw
            fields["seed"] = derived_seed(sampling.seed, request.sample_index)
        if sampling.logprobs:
            fields["logprobs"] = 1 if plain else True
        if not plain:
            fields[RESPONSE_FORMAT] = request.response_format
        left_out = self.omit | (refused - {"max_tokens"})
        body |= {name: value for name, value in fields.items() if value is not None and name not in left_out}
        if "max_tokens" not in self.omit:
            name = self.max_tokens_parameter
            body[_LIMITS.get(name, name) if "max_tokens" in refused else name] = sampling.max_tokens
        body |= self.extra_body
        if request.chat_template_kwargs:
            body["chat_template_kwargs"] = body.get("chat_template_kwargs", {}) | request.chat_template_kwargs
        return body

    def refusal(self, error: Any, body: dict[str, Any], refused: frozenset[str]) -> str | None:
        """
        What an error of the server says it does not take, if it was in the request: to be left out in one attempt
        more. That it is the cause is known when this attempt succeeds.
        """
        status, said = getattr(error, "status_code", None), getattr(error, "body", None)
        if status not in (400, 422, 500):
            return None
        text = json.dumps(said, default=str, ensure_ascii=False) if said else str(error)
        if status != 500:  # where a template fails, some servers say that they have failed
            named = [name for name in FIELDS if name not in refused and self._is_named(name, text, body)]
            param = said.get("param") if isinstance(said, dict) else None
            if named:
                return param if param in named else named[0]
        roles = {message["role"] for message in body.get("messages", ())}
        if _SYSTEM not in refused and roles & {"system", "developer"} and _NO_SYSTEM.search(text):
            return _SYSTEM
        # A schema that a server cannot follow has many names, so what names nothing may mean it
        is_possible = RESPONSE_FORMAT not in refused | self.extra_body.keys() and RESPONSE_FORMAT in body
        return RESPONSE_FORMAT if is_possible and (status != 500 or _NO_FORMAT.search(text)) else None

    def _is_named(self, name: str, text: str, body: dict[str, Any]) -> bool:
        if name != "max_tokens":
            return name in body and name not in self.extra_body and _names(name, text)
        used = self.max_tokens_parameter  # it is never left out, for then nothing bounds what a call may cost
        return used in body and used in _LIMITS and _names(used, text) and _names(_LIMITS[used], text)

    def learn(self, refused: frozenset[str]) -> list[str]:
        """Note what the server answers without. Returns what is new, in words."""
        new = refused - self.learned
        self.learned |= refused
        return [self._in_words(name) for name in sorted(new)]

    def _in_words(self, name: str) -> str:
        if name == _SYSTEM:
            return "the system role: what the system says now opens the user's first turn"
        if name == "max_tokens":
            return f"`{self.max_tokens_parameter}`: it is sent as `{_LIMITS[self.max_tokens_parameter]}`"
        return f"`{name}`: it is left out. Set `omit: [{name}]` to do so from the first request on"


def _names(name: str, text: str) -> bool:
    return re.search(rf"(?<![a-zA-Z_]){name}(?![a-zA-Z_])", text) is not None

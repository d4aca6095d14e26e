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

"""A model behind any server that speaks the OpenAI API."""

import email.utils
import logging
import math
import os
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .models import BaseChatModel, ChatRequest, ChatServerError, Completion, FailedCall, Prices, at_least, derived_seed


if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 300.0  # seconds; a server that asks for more has a quota to be waited for, not a busy minute
_NOT_FOR_THIS_REQUEST_ALONE = (401, 402, 403, 404)  # any other request would be refused alike


class _NoAnswer(Exception):
    """The server said yes and sent no answer: no choice, or a page of text."""


def seconds_to_wait(headers: Any) -> float | None:
    """What `Retry-After` asks for, in seconds: a number, a date, or OpenAI's milliseconds. `None` without sense."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except ValueError:
                continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    return None


class EndpointChatModel(BaseChatModel):
    """
    A model behind any server that speaks the OpenAI API: OpenAI, vLLM, `transformers serve`, llama.cpp, ...

    Messages go to `chat/completions`, plain texts to `completions`.

    Status 408, 409, 429 and 5xx, time-outs, broken connections and answers without a choice are tried again, after a
    growing wait with jitter or as long as `Retry-After` says. Other errors of one request fail that call at once.
    Where the server refuses everybody (401, 402, 403, 404), stays unreachable, or fails `max_consecutive_failures`
    calls in a row, the run stops with [`ChatServerError`].

    The key is read from the environment when the first request is sent, and is in no file, log or error.

    Args:
        model (`str`), base_url (`str`, *optional*):
            Name of the model at the server, and its address up to `/v1`, by default that in the environment variable
            `OPENAI_BASE_URL`, or OpenAI's.
        api_key_env (`str`, *optional*):
            Environment variable that holds the key. Defaults to `OPENAI_API_KEY` if `base_url` is not given. A server
            that you name gets no key that you do not name.
        revision (`str`, *optional*):
            What tells this model from another one of the same name, such as the date of a snapshot or the server. It
            is part of the model's identity, `base_url` is not: stored answers outlive a server that moves.
        name (`str`, *optional*), concurrency (`int`, *optional*, defaults to `16`):
            What to call the model in reports, by default `model`, and how many requests are in flight at a time.
        max_attempts (`int`, *optional*, defaults to `6`):
            Attempts for one call, the first one included.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds without a sign of the server after which an attempt has failed.
        backoff (`float`, *optional*, defaults to `1.0`):
            First wait in seconds. Each further one is twice as long, up to a minute, plus up to `backoff` at random.
        max_consecutive_failures (`int`, *optional*, defaults to `20`):
            Failed calls in a row after which the run stops.
        prompt_price, completion_price (`float`, *optional*):
            US dollars for a million tokens. A budget in dollars needs both; a server of your own may cost `0.0`.
        max_tokens_parameter (`str`, *optional*, defaults to `"max_tokens"`):
            How the server calls the longest answer: OpenAI's reasoning models `"max_completion_tokens"`.
        extra_body (`dict[str, Any]`, *optional*):
            Fields that are added to each request, such as `{"chat_template_kwargs": {"enable_thinking": False}}` for
            vLLM. `transformers serve` draws at random only if the generation config says so, whatever `temperature`
            is: `{"generation_config": '{"do_sample": true, "top_k": 0}'}`. Part of the model's identity.

    Raises:
        `ValueError`: If a value is out of its range, or `base_url` holds a password or a query.

    Example: see [`CallStore`].
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        api_key_env: str | None = None,
        revision: str | None = None,
        name: str | None = None,
        concurrency: int = 16,
        max_attempts: int = 6,
        timeout: float = 600.0,
        backoff: float = 1.0,
        max_consecutive_failures: int = 20,
        prompt_price: float | None = None,
        completion_price: float | None = None,
        max_tokens_parameter: str = "max_tokens",
        extra_body: dict[str, Any] | None = None,
    ):
        at_least(
            1, concurrency=concurrency, max_attempts=max_attempts, max_consecutive_failures=max_consecutive_failures
        )
        if (prompt_price is None) != (completion_price is None):
            raise ValueError(
                f"Set both prices of {model}, or none: `prompt_price` is {prompt_price}, `completion_price` is "
                f"{completion_price}."
            )
        at_least(0, prompt_price=prompt_price or 0, completion_price=completion_price or 0)
        if base_url is None:
            api_key_env = api_key_env or "OPENAI_API_KEY"
            base_url = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"`base_url` must look like http://localhost:8000/v1, got {base_url.rpartition('@')[2]!r}."
            )
        if parts.username or parts.password or parts.query:
            raise ValueError(
                f"`base_url` of {parts.hostname} holds a user, a password or a query, which would be stored. Name an "
                "environment variable that holds the key with `api_key_env`."
            )
        self.model, self.revision, self.name = model, revision, name or model
        self.base_url, self.api_key_env = base_url.rstrip("/"), api_key_env
        self.concurrency, self.max_attempts = concurrency, max_attempts
        self.timeout, self.backoff, self.max_consecutive_failures = timeout, backoff, max_consecutive_failures
        self.prices = None if prompt_price is None else Prices(prompt_price, completion_price)
        self.max_tokens_parameter, self.extra_body = max_tokens_parameter, extra_body
        self._failures_in_a_row, self._lock = 0, threading.Lock()

    @property
    def identity(self) -> dict[str, Any]:
        identity = {"endpoint": self.model, "revision": self.revision}
        return identity | ({"extra_body": self.extra_body} if self.extra_body else {})

    @property
    def address(self) -> str | None:
        return None if self.revision is not None else self.base_url

    @cached_property
    def _client(self) -> "OpenAI":
        try:
            from openai import OpenAI, Timeout
        except ImportError as error:
            raise ImportError(
                "A model behind a server needs the package openai. Install it with `pip install trl-distill[judge]`."
            ) from error
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else None
        if self.api_key_env and not key:
            raise ValueError(f"No API key for {self.model}: set the environment variable {self.api_key_env}.")
        return OpenAI(
            base_url=self.base_url,
            api_key=key or "none",
            max_retries=0,  # ours know `backoff`, the longest Retry-After, and answers without a choice
            timeout=Timeout(self.timeout, connect=min(self.timeout, 10.0)),
        )

    def close(self) -> None:
        if "_client" in self.__dict__:
            self._client.close()
            del self._client

    def answer(self, batch: Sequence[ChatRequest]) -> list[Completion | FailedCall]:
        return [self._answer(request) for request in batch]

    def _answer(self, request: ChatRequest) -> Completion | FailedCall:
        with self._lock:  # opened once, by the first thread
            client = self._client
        from openai import OpenAIError

        retries = 0
        while True:
            try:
                completion = self._attempt(client, request)
                self._failures_in_a_row = 0
                return replace(completion, retries=retries)
            except (OpenAIError, _NoAnswer) as error:
                reason = self._describe(error)
                if retries + 1 == self.max_attempts or not _is_worth_another_attempt(error):
                    call = FailedCall(reason, retries)
                    self._stop_if_hopeless(error, call)
                    logger.warning("A call of %s failed: %s", self.model, reason)
                    return call
                # Jitter keeps calls that failed together from coming back together
                asked, growing = _asked_to_wait(error), min(self.backoff * 2**retries, 60.0)
                seconds = (growing if asked is None else asked) + random.uniform(0.0, self.backoff)
            retries += 1
            logger.info("%s: %s Attempt %d in %.1f s.", self.model, reason, retries + 1, seconds)
            time.sleep(seconds)

    def _stop_if_hopeless(self, error: Exception, call: FailedCall) -> None:
        """Raise [`ChatServerError`] if other calls would fail as this one did."""
        if getattr(error, "status_code", None) in _NOT_FOR_THIS_REQUEST_ALONE:
            key = f"the key in {self.api_key_env}" if self.api_key_env else "`api_key_env`, for no key was sent"
            message = f"{self.base_url} refuses {self.model}: {call.error} Check the name, the address and {key}."
        elif type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout"):
            message = f"No server answers at {self.base_url}: {call.error} Start it, or check `base_url`."
        else:
            with self._lock:
                self._failures_in_a_row += 1
                failures = self._failures_in_a_row
            if failures < self.max_consecutive_failures:
                return
            message = (
                f"{failures} calls of {self.model} at {self.base_url} failed in a row, the last one with: "
                f"{call.error} If these are single bad requests, raise `max_consecutive_failures`."
            )
        raise ChatServerError(f"{message} Answers that came are kept: run the same command again.", call)

    def _attempt(self, client: "OpenAI", request: ChatRequest) -> Completion:
        sampling, plain = request.sampling, isinstance(request.messages, str)
        extra = {self.max_tokens_parameter: sampling.max_tokens} | (self.extra_body or {})
        if request.chat_template_kwargs:
            extra["chat_template_kwargs"] = extra.get("chat_template_kwargs", {}) | request.chat_template_kwargs
        fields = {"temperature": sampling.temperature, "top_p": sampling.top_p, "extra_body": extra}
        if sampling.seed is not None:  # a server that obeys it would repeat itself, were it the same for each draw
            fields["seed"] = derived_seed(sampling.seed, request.sample_index)
        if sampling.logprobs:
            fields["logprobs"] = 1 if plain else True
        try:
            if plain:
                response = client.completions.create(model=self.model, prompt=request.messages, **fields)
            else:
                response = client.chat.completions.create(model=self.model, messages=request.messages, **fields)
        except ValueError as error:
            raise _NoAnswer(f"the answer is no JSON ({error})") from None
        try:
            choice = response.choices[0]
            text = (choice.text if plain else choice.message.content) or ""
            text = text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be written to any file
            reason = str(choice.finish_reason or "unknown")
            mean_logp = _mean_logp(choice.logprobs, plain) if sampling.logprobs else None
        except (AttributeError, IndexError, TypeError):
            raise _NoAnswer(f"no choice in the answer, which begins {str(response)[:200]!r}") from None
        usage = getattr(response, "usage", None)
        tokens = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        prompt, completion = (count if isinstance(count, int) else None for count in tokens)
        return Completion(text, reason, prompt, completion, mean_logp=mean_logp)

    def _describe(self, error: BaseException) -> str:
        """One line for people, without the key: some servers send back what they got."""
        cause = f" ({error.__cause__})" if error.__cause__ else ""  # of "Connection error." it says the important part
        body = getattr(error, "body", None)  # not every server puts its reason where OpenAI does
        body = f" - {body}" if body and " - " not in str(error) else ""
        text = " ".join(f"{str(error).rstrip('.')}{cause}{body}".split())
        if self.api_key_env:
            text = text.replace(self._client.api_key, "[key]")
        text = text[:400].rstrip(".") + "."
        seconds = _asked_to_wait(error) or 0.0
        return text if seconds <= _LONGEST_WAIT else f"{text} The server asks to wait {seconds:.0f} s."


def _mean_logp(logprobs: Any, plain: bool) -> float | None:
    """Mean over the tokens that the server reports, `None` if it reports none."""
    logps = getattr(logprobs, "token_logprobs" if plain else "content", None) or []
    logps = logps if plain else [token.logprob for token in logps]
    return sum(logps) / len(logps) if logps else None


def _asked_to_wait(error: BaseException) -> float | None:
    response = getattr(error, "response", None)
    return None if response is None else seconds_to_wait(response.headers)


def _is_worth_another_attempt(error: BaseException) -> bool:
    from openai import APIConnectionError, APIStatusError

    if (_asked_to_wait(error) or 0.0) > _LONGEST_WAIT:
        return False
    if isinstance(error, APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return isinstance(error, (APIConnectionError, _NoAnswer))

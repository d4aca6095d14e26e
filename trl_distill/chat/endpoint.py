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
import ipaddress
import json
import logging
import math
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from .credentials import Credentials
from .dialect import RESPONSE_FORMAT, Dialect
from .models import BaseChatModel, ChatRequest, ChatServerError, Completion, FailedCall, Prices, at_least
from .replies import NoAnswer, read_reply


if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 300.0  # seconds; a server that asks for more has a quota to be waited for, not a busy minute
_NOT_FOR_THIS_REQUEST_ALONE = (401, 402, 404)  # any other request would be refused alike


class TooLate(Exception):
    """The answer has not come in time, whatever else has come."""


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

    Status 408, 409, 429 and 5xx, time-outs, broken connections and answers without a choice or an end are tried again,
    after a growing wait with jitter or as long as `Retry-After` says, unless the server bills them. Other errors of
    one request fail that call at once. Where the server refuses everybody (401, 402, 404, and 403 as long as it has
    answered nothing), stays unreachable, or fails `max_consecutive_failures` calls in a row, the run stops with
    [`ChatServerError`].

    What the server does not take is left out of all later requests once it has refused it (400, 422) and answered
    without it: `temperature`, `top_p`, `seed`, `logprobs`, the name of the longest answer, the system role,
    `response_format`. The first request with the last one goes alone: an empty answer to it is a refusal, too.

    Keys are read from the environment, and are in no file, log or error. A server on this machine is asked without
    the proxy that the environment may name.

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
            Seconds after which an attempt has failed, from its start to the last byte of the answer.
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
        omit (`list[str]`, *optional*):
            Fields that are never sent: some of `temperature`, `top_p`, `seed`, `logprobs`, `response_format`,
            `max_tokens`. A budget in dollars needs the last one.
        headers (`dict[str, str]`, *optional*):
            Headers that are added to each request, in which `${NAME}` stands for an environment variable, such as
            `{"api-key": "${AZURE_KEY}"}`.
        keep_thoughts (`bool`, *optional*, defaults to `False`):
            Whether the text of an answer begins with the model's thoughts, as `<think>...</think>` if the server
            sends them apart. By default the text is the answer alone. The store has both.

    Raises:
        `ValueError`: If a value is out of its range, `base_url` holds a password or a query, or a key a line break.

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
        omit: list[str] | None = None,
        headers: dict[str, str] | None = None,
        keep_thoughts: bool = False,
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
        self.extra_body, self.keep_thoughts = extra_body, keep_thoughts
        self._dialect = Dialect(model, max_tokens_parameter, omit or (), extra_body or {})
        self._credentials = Credentials(model, api_key_env, headers)
        self._failures: dict[str, tuple[str, int]] = {}  # by their kind the first one and how many
        self._failures_in_a_row, self._lock = 0, threading.Lock()
        self._has_probed, self._probe = RESPONSE_FORMAT in self._dialect.omit, threading.Lock()

    @property
    def identity(self) -> dict[str, Any]:
        identity = {"endpoint": self.model, "revision": self.revision}
        return identity | ({"extra_body": self.extra_body} if self.extra_body else {})

    @property
    def address(self) -> str | None:
        return None if self.revision is not None else self.base_url

    @property
    def is_bounded(self) -> bool:
        """Whether each request says how long the answer may be."""
        return "max_tokens" not in self._dialect.omit

    @cached_property
    def _client(self) -> "OpenAI":
        try:
            from openai import DefaultHttpxClient, OpenAI, Timeout
        except ImportError as error:
            raise ImportError(
                "A model behind a server needs the package openai. Install it with `pip install trl-distill[judge]`."
            ) from error
        key, headers = self._credentials.key(), self._credentials.headers()
        host = urlsplit(self.base_url).hostname
        past_proxies = {f"all://[{host}]" if ":" in host else f"all://{host}": None}
        return OpenAI(
            base_url=self.base_url,
            api_key=key or "none",
            default_headers=headers,
            max_retries=0,  # ours know `backoff`, the longest Retry-After, and answers without a choice
            timeout=Timeout(self.timeout, connect=min(self.timeout, 10.0)),
            http_client=DefaultHttpxClient(mounts=past_proxies) if _is_here(host) else None,
        )

    @property
    def _headers(self) -> dict[str, Any]:
        """The client wants a key; where we have none, none is sent."""
        from openai import omit

        return {} if self.api_key_env or self._credentials.authorize else {"Authorization": omit}

    def close(self) -> None:
        if "_client" in self.__dict__:
            self._client.close()
            del self._client
        for reason, count in self._failures.values():
            if count > 1:
                logger.warning("%d calls of %s failed like this one: %s", count, self.model, reason)
        self._failures.clear()

    def answer(self, batch: Sequence[ChatRequest]) -> list[Completion | FailedCall]:
        return [self._answer(request) for request in batch]

    def _answer(self, request: ChatRequest) -> Completion | FailedCall:
        if request.response_format is not None and not self._has_probed:
            with self._probe:  # goes alone, so that no other answer is lost where the form costs it
                if not self._has_probed:
                    answer = self._ask(request)
                    self._has_probed = True
                    if isinstance(answer, Completion) and not self.as_asked(answer).text.strip():
                        self._note_success(frozenset({RESPONSE_FORMAT}))
                    return answer
        return self._ask(request)

    def _ask(self, request: ChatRequest) -> Completion | FailedCall:
        with self._lock:  # opened once, by the first thread
            client = self._client
        retries, failures, refused = 0, 0, frozenset()
        while True:
            body = self._dialect.body(request, refused | self._dialect.learned)
            answer, error = self._attempt(client, request, body)
            if error is None:
                self._note_success(refused)
                return replace(answer, retries=retries)
            reason, failures = self._describe(error), failures + 1
            unknown = self._dialect.refusal(error, body, refused | self._dialect.learned)
            if unknown is not None:
                refused |= {unknown}
                failures -= 1
                logger.info("%s: %s Again without %s.", self.model, reason, unknown)
            elif failures == self.max_attempts or not is_worth_another_attempt(error):
                call = self._failure(error, retries)
                self._stop_if_hopeless(error, call)
                self._warn(reason)
                return call
            else:
                self._wait(error, failures)
            retries += 1

    def _failure(self, error: Exception, retries: int = 0) -> FailedCall:
        """The call that has ended by an error."""
        billed = (error.prompt_tokens, error.completion_tokens) if isinstance(error, NoAnswer) else ()
        return FailedCall(self._describe(error), retries, *billed)

    def _wait(self, error: Exception, failures: int) -> None:
        """Wait after so many failures, the last of them by `error`."""
        # Jitter keeps calls that failed together from coming back together
        asked, growing = _asked_to_wait(error), min(self.backoff * 2 ** (failures - 1), 60.0)
        seconds = (growing if asked is None else asked) + random.uniform(0.0, self.backoff)
        logger.info("%s: %s Again in %.1f s.", self.model, self._describe(error), seconds)
        time.sleep(seconds)

    def _note_success(self, refused: frozenset[str]) -> None:
        with self._lock:
            self._failures_in_a_row, self.has_answered = 0, True
            for what in self._dialect.learn(refused):
                logger.warning("%s refuses %s.", self.model, what)

    def _warn(self, reason: str) -> None:
        """Say how a call has failed the first time that one fails so. [`close`] says how often it was."""
        kind = re.sub(r"\w*\d\w*", "#", reason)  # without counts, times and names of requests
        with self._lock:
            first, count = self._failures.get(kind, (reason, 0))
            self._failures[kind] = first, count + 1
        if not count:
            logger.warning("A call of %s failed: %s", self.model, reason)

    def _stop_if_hopeless(self, error: Exception, call: FailedCall) -> None:
        """Raise [`ChatServerError`] if other calls would fail as this one did."""
        status = getattr(error, "status_code", None)
        if status in _NOT_FOR_THIS_REQUEST_ALONE or status == 403 and not self.has_answered:
            key = f"the key in {self.api_key_env}" if self.api_key_env else "`api_key_env`, for no key was sent"
            moderated = ", or remove the prompt if the server moderates it" if status == 403 else ""
            message = (
                f"{self.base_url} refuses {self.model}: {call.error} Check the name, the address and {key}{moderated}."
            )
        elif type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError"):
            proxy = _proxy_variable(self.base_url)
            through = f" through the proxy of {proxy}" if proxy else ""
            check = f"check `base_url` and {proxy}" if proxy else "check `base_url`"
            message = f"No server answers at {self.base_url}{through}: {call.error} Start it, or {check}."
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

    def _attempt(
        self, client: "OpenAI", request: ChatRequest, body: dict[str, Any]
    ) -> tuple[Completion | None, Exception | None]:
        """
        The answer to one request, or the error in its place: who raises while it is handled would pass on what the
        server has said, which may be the key.
        """
        from openai import OpenAIError

        plain, headers = isinstance(request.messages, str), self._headers
        create = (client.completions if plain else client.chat.completions).with_raw_response.create
        named = {name: body[name] for name in ("model", "prompt" if plain else "messages")}
        try:
            response = within(self.timeout, lambda: create(**named, extra_body=body, extra_headers=headers))
            answer = self._read(read_json(response.http_response.content), plain)
        except (OpenAIError, NoAnswer, TooLate) as error:
            return None, error
        return answer if request.sampling.logprobs else replace(answer, mean_logp=None), None

    def _read(self, body: Any, plain: bool = False) -> Completion:
        """The answer in the JSON that a server has sent, without the key. [`NoAnswer`] if there is none."""
        answer, hide = read_reply(body, plain), self._credentials.hide
        return replace(answer, text=hide(answer.text), thoughts=answer.thoughts and hide(answer.thoughts))

    def _describe(self, error: BaseException) -> str:
        """One line for people, without the key: some servers send back what they got."""
        cause = f" ({error.__cause__})" if error.__cause__ else ""  # of "Connection error." it says the important part
        body = getattr(error, "body", None)  # not every server puts its reason where OpenAI does
        body = f" - {body}" if body and " - " not in str(error) else ""
        text = self._credentials.hide(f"{str(error).rstrip('.')}{cause}{body}", of_any_length=True)
        # Cut only now: of a key that is cut before, the half would stay
        text = " ".join(text.split())[:400].rstrip(".") + "."
        seconds = _asked_to_wait(error) or 0.0
        return text if seconds <= _LONGEST_WAIT else f"{text} The server asks to wait {seconds:.0f} s."


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """
    What `function()` returns or raises, or [`TooLate`] after so many seconds.

    The time-outs of a connection start anew with each byte, so a server that sends one now and then would be waited
    for without end. Nobody waits for a thread that is too late; it ends with its connection.
    """
    outcome: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put((function(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TooLate(f"Request timed out: no whole answer after {seconds:g} s") from None
    if error is not None:
        raise error
    return value


def read_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        text = content.decode(errors="replace")
        raise NoAnswer(f"no choice in the answer, which is no JSON ({error}) and begins {text!r}") from None


def _is_here(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _proxy_variable(url: str) -> str | None:
    """The environment variable whose proxy is asked for an address; its value may hold a password."""
    parts = urlsplit(url)
    if _is_here(parts.hostname) or proxy_bypass(parts.netloc):
        return None
    return next((f"{kind.upper()}_PROXY" for kind in (parts.scheme, "all") if kind in getproxies()), None)


def _asked_to_wait(error: BaseException) -> float | None:
    response = getattr(error, "response", None)
    return None if response is None else seconds_to_wait(response.headers)


def is_worth_another_attempt(error: BaseException) -> bool:
    from openai import APIConnectionError

    if (_asked_to_wait(error) or 0.0) > _LONGEST_WAIT:
        return False
    if status := getattr(error, "status_code", None):
        return status in (408, 409, 429) or status >= 500
    if isinstance(error, NoAnswer):  # what was billed once would be billed again, beyond what the budget put aside
        return not error.is_billed
    return isinstance(error, (APIConnectionError, TooLate))

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

"""What a chat model is: [`ChatModel`] for those who ask, [`BaseChatModel`] for those who answer to derive from."""

import hashlib
import json
import logging
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from .thoughts import split_thoughts


logger = logging.getLogger(__name__)


def at_least(least: int, **settings: float) -> None:
    """Raise `ValueError` if a setting is smaller."""
    for name, value in settings.items():
        if value < least:
            raise ValueError(f"`{name}` must be {least} or more, got {value}.")


@dataclass(frozen=True)
class Sampling:
    """
    How an answer is drawn.

    Args:
        temperature, top_p (`float`, *optional*):
            Temperature, of which `0.0` is greedy decoding, and nucleus. To a server they are sent only if they are
            set: else its own defaults hold. For a local model, and in the key of a store, `None` counts as 1.0.
        max_tokens (`int`, *optional*, defaults to `1024`):
            Longest answer in tokens.
        seed (`int`, *optional*):
            Random seed. A local model always has one (`None` counts as 0); to a server it is sent only if it is set.
        logprobs (`bool`, *optional*, defaults to `False`):
            Whether to ask for the mean log-probability of the answer.

    Raises:
        `ValueError`: If a value is out of its range.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int = 1024
    seed: int | None = None
    logprobs: bool = False

    def __post_init__(self):
        for name in ("temperature", "top_p"):  # 1 from a YAML file and 1.0 are one value, also in the key of a store
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        if self.temperature is not None and not self.temperature >= 0:
            raise ValueError(f"`temperature` must be 0 (greedy) or more, got {self.temperature}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be in (0, 1], got {self.top_p}.")
        at_least(1, max_tokens=self.max_tokens)
        at_least(0, seed=self.seed or 0)

    @property
    def explicit(self) -> "Sampling":
        """The same with numbers for a temperature and a nucleus that are not set."""
        unset = {name: 1.0 for name in ("temperature", "top_p") if getattr(self, name) is None}
        return replace(self, **unset) if unset else self


@dataclass(frozen=True)
class ChatRequest:
    """
    One question to a chat model.

    Args:
        messages (`list[dict[str, str]]` or `str`):
            The conversation, each message with `role` and `content`; or a plain text that the model goes on with,
            without a chat template.
        sampling ([`Sampling`], *optional*):
            How the answer is drawn.
        sample_index (`int`, *optional*, defaults to `0`):
            Which draw this is. Two requests that differ in nothing are one request, so repeated draws of a prompt, and
            re-asks after an answer that could not be used, take 0, 1, 2, ...
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Values for the chat template, beside those of the model.
        response_format (`dict[str, Any]`, *optional*):
            The form of the answer, as OpenAI's API has it: `{"type": "json_schema", "json_schema": {...}}`. A server
            that does not take it, and a local model, are asked without. It is no part of the key of a call, so the
            messages must ask for that form, too.

    Raises:
        `ValueError`: If there is no message, or one has no text.
    """

    messages: list[dict[str, str]] | str
    sampling: Sampling = field(default_factory=Sampling)
    sample_index: int = 0
    chat_template_kwargs: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None

    def __post_init__(self):
        if not self.messages:
            raise ValueError("`messages` is empty.")
        messages = [] if isinstance(self.messages, str) else self.messages
        if not isinstance(messages, Sequence) or not all(isinstance(message, dict) for message in messages):
            raise ValueError(f"A prompt must be a text or a list of messages, got {self.messages!r:.200}.")
        for message in messages:
            if message.keys() != {"role", "content"} or not all(isinstance(text, str) for text in message.values()):
                raise ValueError(
                    f"Each message needs the two texts `role` and `content`, got {message!r:.200}. Remove such rows, "
                    "or turn what they hold into text."
                )
        try:
            "".join(self.texts).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"A message cannot be written as UTF-8: {error}. Repair or remove such rows.") from error
        at_least(0, sample_index=self.sample_index)

    @property
    def texts(self) -> list[str]:
        """What is said, without the roles."""
        return [self.messages] if isinstance(self.messages, str) else [message["content"] for message in self.messages]

    @property
    def content(self) -> dict[str, Any]:
        """JSON that tells this request from any other. It leaves out later fields that are not set, for older keys."""
        sampling = {name: value for name, value in vars(self.sampling.explicit).items() if name != "logprobs" or value}
        later = {"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {}
        return {"messages": self.messages, "sampling": sampling, "sample_index": self.sample_index} | later


CUT_OFF = ("length", "content_filter")  # how an answer ends that is not whole


@dataclass(frozen=True)
class Completion:
    """
    An answer.

    Args:
        text (`str`), finish_reason (`str`, *optional*, defaults to `"stop"`):
            The answer without special tokens, and why it ends: `"stop"`, `"length"` if it was cut at `max_tokens`, or
            `"content_filter"`.
        prompt_tokens, completion_tokens (`int`, *optional*):
            Length of question and answer, thoughts included. `None` if the model does not say.
        retries (`int`, *optional*, defaults to `0`):
            Attempts that failed before this answer came.
        mean_logp (`float`, *optional*):
            Mean log-probability of the answer's tokens at temperature 1, the end token included. `None` if it was not
            asked for, or the model does not say.
        thoughts (`str`, *optional*):
            What the model thought before it answered.
    """

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    retries: int = 0
    mean_logp: float | None = None
    thoughts: str | None = None


@dataclass(frozen=True)
class FailedCall:
    """
    A call that got no answer. It has no text, so that nothing can stand in the place of the missing answer.

    Args:
        error (`str`), retries (`int`, *optional*, defaults to `0`):
            What went wrong, in words, and the attempts after the first one.
        prompt_tokens, completion_tokens (`int`, *optional*):
            What the server bills although its answer is of no use. `None` if it does not say.
    """

    error: str
    retries: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ChatServerError(ConnectionError):
    """
    The server answers nobody, or not us. The run stops, and can go on when the cause is gone.

    Args:
        message (`str`), call ([`FailedCall`]):
            What to do about it, and the call that showed it.
    """

    def __init__(self, message: str, call: FailedCall):
        super().__init__(message)
        self.call = call


Check = Callable[[ChatRequest, Completion | FailedCall], None]


class ChatModel(Protocol):
    """
    What a judge or a recipe needs of a model.

    Attributes:
        name (`str`):
            What to call the model in reports.
    """

    name: str

    def complete(self, requests: Sequence[ChatRequest], check: Check | None = None) -> list[Completion | FailedCall]:
        """
        Answers to the requests, in their order. With `check`, each one that is asked for now is shown to it when it
        comes, from any thread, and an error that it raises stops the run.
        """


class Prices(NamedTuple):
    """Price of a million tokens of prompt and of completion, in US dollars."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


class BaseChatModel(AbstractContextManager):
    """
    A source of answers. A subclass says who it is ([`identity`]) and answers one batch ([`answer`]).

    Attributes:
        name (`str`), prices ([`Prices`], *optional*), concurrency (`int`):
            What to call the model in reports, what tokens cost (`None` if that is not known), and how many batches
            may be under way at a time.
        keep_thoughts (`bool`), has_answered (`bool`):
            Whether the text of an answer begins with the thoughts that led to it, and whether any request of this
            model has ever been answered, as far as it is known.
    """

    name: str
    prices: Prices | None = Prices(0.0, 0.0)
    concurrency: int = 1
    keep_thoughts: bool = False
    has_answered: bool = False

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """JSON that tells this model from any other: equal identities share stored answers."""

    @property
    def address(self) -> str | None:
        """Where the model is served, if another model elsewhere may have its identity. A store then allows one."""
        return None

    @abstractmethod
    def answer(self, batch: Sequence[ChatRequest]) -> list[Completion | FailedCall]:
        """Answers to one batch, in its order. Called from `concurrency` threads."""

    @property
    def is_bounded(self) -> bool:
        """Whether no answer can be longer than its request says."""
        return True

    def batches(self, requests: Sequence[ChatRequest]) -> list[list[int]]:
        """
        Which requests, by their number, are answered together: each alone, unless a subclass knows better.

        The batches are done in this order, and a store keeps each as a whole. If an answer depends on its batch, those
        left after the first ones must be cut as they were, so that a run that goes on gives what a whole one gives.
        """
        return [[i] for i in range(len(requests))]

    def check(self, requests: Sequence[ChatRequest]) -> None:  # noqa: B027  most models can tell only by asking
        """Raise `ValueError` if there are requests, counted from 0, that this model can never answer."""

    def as_asked(self, answer: Completion | FailedCall) -> Completion | FailedCall:
        """
        An answer as [`answer`] gives it and a store keeps it, with its thoughts apart, or in front of it if they are
        kept. Thoughts without an answer are never a text.
        """
        if isinstance(answer, FailedCall):
            return answer
        within, text = split_thoughts(answer.text)
        thoughts = "\n".join(filter(None, (answer.thoughts, within))) or None
        if self.keep_thoughts and text.strip():
            text = f"<think>\n{answer.thoughts}\n</think>\n\n{answer.text}" if answer.thoughts else answer.text
        return replace(answer, text=text, thoughts=thoughts)

    def complete(self, requests: Sequence[ChatRequest], check: Check | None = None) -> list[Completion | FailedCall]:
        """Answers to the requests, in their order, and kept nowhere. `check` as for [`ChatModel`]."""
        answers: list[Any] = [None] * len(requests)

        def work(batch: list[int]) -> None:
            for i, answer in zip(batch, self.answer([requests[i] for i in batch]), strict=True):
                answers[i] = self.as_asked(answer)
                if check is not None:
                    check(requests[i], answers[i])

        run_batches(self.batches(requests) if requests else [], work, self.concurrency)
        return answers

    def answer_losses(self, requests: Sequence[ChatRequest], answers: Sequence[str]) -> list[float | None]:
        """
        Mean negative log-probability of the tokens of given answers and of the token that ends them, at temperature 1.

        `None` where question and answer have no room in the context. `ValueError` for a model that cannot tell.
        """
        raise ValueError(f"{self.name} does not tell the loss of a given answer: its weights are not at hand.")

    def close(self) -> None:  # noqa: B027  most models hold nothing
        """Give back memory and connections. The next request opens them again."""

    def __exit__(self, *exception):
        self.close()


def fold_system(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation for a model without a system role: what the system says opens the user's next turn."""
    folded, told = [], []
    for message in messages:
        if message["role"] in ("system", "developer"):
            told.append(message["content"])
        elif message["role"] == "user" and told:
            folded.append({"role": "user", "content": "\n\n".join([*told, message["content"]])})
            told = []
        else:
            folded.append(message)
    return [*folded, {"role": "user", "content": "\n\n".join(told)}] if told else folded


def digest(*parts: int | str) -> str:
    """SHA-256 over numbers and texts: what is drawn or ordered by it depends on nothing else."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def derived_seed(*parts: int | str) -> int:
    """A seed below 2**31 for a part of the work. Unlike a sum, it does not collide between neighbouring seeds."""
    return int(digest(*parts)[:8], 16) >> 1


def run_batches(batches: Iterable[Any], work: Callable[[Any], None], concurrency: int) -> None:
    """
    Do `work(batch)` for each batch, `concurrency` of them at a time.

    After the first error, or Ctrl-C, no other batch starts; those under way finish, since their answers are paid for,
    and the error is raised. A second Ctrl-C waits for nothing. The next one of `batches`, which may be a generator, is
    taken when there is a place for it.
    """
    if concurrency == 1:
        for batch in batches:
            work(batch)
        return
    errors: list[BaseException] = []
    threads: list[threading.Thread] = []
    places = threading.Semaphore(concurrency - 1)  # beside the batch that is started next

    def guarded(batch: Any) -> None:
        try:
            work(batch)
        except BaseException as error:
            errors.append(error)
        finally:
            places.release()

    def running() -> list[threading.Thread]:
        return [thread for thread in threads if thread.is_alive()]

    def wait() -> None:
        for thread in running():
            thread.join()

    try:
        try:
            for batch in batches:
                thread = threading.Thread(target=guarded, args=(batch,), daemon=True)  # ends with the process
                threads[:] = [*running(), thread]
                thread.start()
                places.acquire()
                if errors:
                    break
        except Exception as error:  # of `batches`
            errors.insert(0, error)
        wait()
    except KeyboardInterrupt:
        if count := len(running()):
            logger.warning(
                "Waiting for the %d requests that are under way, since they are paid for. Ctrl-C again ends at once.",
                count,
            )
        wait()
        raise
    if errors:
        raise errors[0]


class FunctionChatModel(BaseChatModel):
    """
    A rule in Python that answers like a model. Its tokens are the words of a text, and cost nothing.

    Args:
        function (`Callable[[ChatRequest], str]`):
            The rule. An error that it raises is not caught.
        name (`str`):
            What to call it. With `revision` this is its identity: the code itself is not looked at.
        revision (`str`, *optional*):
            Version of the rule. Raise it when the rule changes, or stored answers of the old one are used.

    Example:

    ```python
    from trl_distill.chat import ChatRequest, FunctionChatModel

    echo = FunctionChatModel(lambda request: request.messages[-1]["content"], name="echo")
    [answer] = echo.complete([ChatRequest([{"role": "user", "content": "Hello"}])])
    print(answer.text)  # Hello
    ```
    """

    def __init__(self, function: Callable[[ChatRequest], str], name: str, revision: str | None = None):
        self.function, self.name, self.revision = function, name, revision

    @property
    def identity(self) -> dict[str, Any]:
        return {"function": self.name, "revision": self.revision}

    def answer(self, batch: Sequence[ChatRequest]) -> list[Completion | FailedCall]:
        return [
            Completion(text, "stop", len(" ".join(request.texts).split()), len(text.split()))
            for request, text in zip(batch, map(self.function, batch), strict=True)
        ]

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

"""A model behind a batch endpoint, which answers within a day and costs half of what single calls do at OpenAI."""

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from .dialect import RESPONSE_FORMAT
from .endpoint import EndpointChatModel, TooLate, is_worth_another_attempt, read_json, within
from .models import ChatRequest, ChatServerError, Completion, FailedCall, at_least
from .replies import NoAnswer


if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

MOST_BYTES = 200_000_000  # of a file of OpenAI
_ENDPOINT = "/v1/chat/completions"
_MARK = "trl_distill"  # under which the metadata of a batch hold our name for it
_GO_ON = "What was sent goes on there: run the same command again to collect it."
_ENDS = ("completed", "failed", "expired", "cancelled")


class _RequestError(Exception):
    """What a batch holds in place of an answer, with what errors of the package openai have."""

    def __init__(self, status_code: int | None, body: Any):
        super().__init__(f"Error code: {status_code} - {body}" if status_code else str(body))
        self.status_code, self.body = status_code, body if status_code else None


class Sent(NamedTuple):
    """
    A call in a batch.

    Args:
        id (`int`), key (`str`), retries (`int`):
            Its row in the store, its key, which is its `custom_id`, too, and the batches that it was in before.
    """

    id: int
    key: str
    retries: int


class BatchChatModel(EndpointChatModel):
    """
    A model behind a batch endpoint like OpenAI's, `engine: batch` in a file.

    Like [`EndpointChatModel`], with the same identity, so that both use each other's stored answers. But all that is
    asked at once becomes a file of requests, which the server answers within 24 hours. It needs a [`CallStore`]: that
    remembers the batch, so that a run that was stopped at any moment collects it and pays for nothing twice.

    A server's errors about files and batches are tried again like those of a call; while a batch is waited for, up to
    `max_consecutive_failures` times in a row. What a batch says of single requests is dealt with as for single calls,
    in one more batch: fields that are refused are left out, and 429 and 5xx are asked again, up to `max_attempts`
    times. A batch that the server refuses, that has expired or was cancelled stops the run with [`ChatServerError`];
    what it has answered is kept, and the next run asks the rest.

    Args:
        model (`str`), base_url (`str`, *optional*):
            As in [`EndpointChatModel`].
        batch_size (`int`, *optional*, defaults to `50000`):
            Most requests in one batch. Fewer are in one whose file would be larger than 200 MB, or when a budget has
            no room for more at a time. `concurrency` is how many batches are under way.
        poll_interval (`float`, *optional*, defaults to `60.0`):
            Seconds between two looks at the batches.
        **settings:
            As in [`EndpointChatModel`]. The prices are those of the batch endpoint.

    Raises:
        `ValueError`: As [`EndpointChatModel`], and if it is asked without a store, or to go on with a plain text.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        batch_size: int = 50_000,
        poll_interval: float = 60.0,
        **settings: Any,
    ):
        super().__init__(model, base_url, **settings)
        at_least(1, batch_size=batch_size)
        at_least(0, poll_interval=poll_interval)
        self.batch_size, self.poll_interval = batch_size, poll_interval
        self._refused: dict[str, frozenset[str]] = {}  # by key what is left out of a call, beside what is learned

    def answer(self, batch: Any) -> NoReturn:
        raise ValueError(
            f"{self.name} answers in batches, which only a `CallStore` can ask for: without one, a run that was "
            "stopped would pay for them again. Use `store.model(...)`, or leave out `engine: batch`."
        )

    def line(self, key: str, request: ChatRequest) -> bytes:
        """The line of a request in the file of a batch."""
        if isinstance(request.messages, str):
            raise ValueError(f"{self.name} answers in batches, where a prompt must be messages, not a plain text.")
        line = {"custom_id": key, "method": "POST", "url": _ENDPOINT, "body": self._body(key, request)}
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"

    def _body(self, key: str, request: ChatRequest) -> dict[str, Any]:
        return self._dialect.body(request, self._left_out(key))

    def _left_out(self, key: str) -> frozenset[str]:
        return self._refused.get(key, frozenset()) | self._dialect.learned

    def upload(self, name: str, lines: Iterable[bytes]) -> str:
        """Send the file of a batch. Returns its id at the server. It costs nothing."""
        file = (f"trl-distill-{name}.jsonl", b"".join(lines))

        def create(client: "OpenAI") -> str:
            return _id(client.files.create(file=file, purpose="batch", extra_headers=self._headers))

        return self._manage(create)

    def create(self, name: str, file: str) -> str:
        """Make the batch of a file, once. Returns its id at the server."""
        tried = False

        def create(client: "OpenAI") -> str:
            nonlocal tried
            made = self._find(client, name, file) if tried else None  # an attempt without an answer may have made it
            tried = True
            return made or _id(
                client.batches.create(
                    input_file_id=file,
                    endpoint=_ENDPOINT,
                    completion_window="24h",
                    metadata={_MARK: name},
                    extra_headers=self._headers,
                )
            )

        return self._manage(create)

    def find(self, name: str, file: str) -> str | None:
        """Id of a batch at the server, by our name for it or its file. `None` if it was never made."""
        return self._manage(lambda client: self._find(client, name, file))

    def _find(self, client: "OpenAI", name: str, file: str) -> str | None:
        newest = client.batches.list(limit=100, extra_headers=self._headers)
        if not isinstance(newest.data, list):  # which is not to say that there is none
            raise NoAnswer(f"no list of batches in {newest!r}")
        for batch in newest:  # page after page
            if (batch.metadata or {}).get(_MARK) == name or batch.input_file_id == file:
                return _id(batch)
        return None

    def look(self, id: str) -> "tuple[Batch, bool]":
        """A batch as it is now, and whether it has ended."""

        def retrieve(client: "OpenAI") -> "tuple[Batch, bool]":
            batch = client.batches.retrieve(id, extra_headers=self._headers)
            if not isinstance(batch.status, str):
                raise NoAnswer(f"no status in {batch!r}")
            return batch, batch.status in _ENDS

        return self._manage(retrieve, self.max_consecutive_failures)

    def collect(
        self, batch: "Batch", calls: list[Sent], requests: dict[str, ChatRequest]
    ) -> dict[str, Completion | FailedCall]:
        """
        What a batch that has ended says of its calls, by their keys. Those that are to be asked again are not in it:
        their requests, which must be known for that, have another [`line`] now if a field was refused.
        """
        said, answers = self._outcomes(batch), {}
        answered = [call.key for call in calls if isinstance(said.get(call.key), Completion)]
        for call in calls:
            outcome, request = said.get(call.key), requests.get(call.key)
            if isinstance(outcome, Completion):
                answers[call.key] = replace(outcome, retries=call.retries)
                continue
            error = outcome or _RequestError(None, f"The batch {batch.id} is {batch.status} without an answer to it")
            if request is None or not self._is_for_again(call, request, error, bool(answered)):
                answers[call.key] = self._failure(error, call.retries)
                self._warn(answers[call.key].error)
        if answered:
            self._note_success(frozenset().union(*(self._refused.get(key, ()) for key in answered)))
        return answers

    def _is_for_again(self, call: Sent, request: ChatRequest, error: Exception, others_have_answers: bool) -> bool:
        """Whether a call is to be asked again, and without what, which is noted."""
        left_out = self._left_out(call.key)
        unknown = self._dialect.refusal(error, self._body(call.key, request), left_out)
        if unknown == RESPONSE_FORMAT and others_have_answers:  # with it, so this one is refused for another reason
            unknown = None
        if unknown is not None:
            self._refused[call.key] = left_out | {unknown}
        return unknown is not None or call.retries + 1 < self.max_attempts and is_worth_another_attempt(error)

    def _outcomes(self, batch: "Batch") -> dict[str, Completion | Exception]:
        """What the files of a batch say, by `custom_id`."""
        outcomes = {}
        for file in filter(None, (batch.error_file_id, batch.output_file_id)):

            def read(client: "OpenAI", file: str = file) -> dict[str, Completion | Exception]:
                content = client.files.content(file, extra_headers=self._headers).content
                lines = [read_json(line) for line in content.splitlines() if line.strip()]
                return {line["custom_id"]: self._outcome(line) for line in lines}

            outcomes |= self._manage(read, self.max_consecutive_failures)
        answered = batch.request_counts.completed if batch.request_counts else 0
        if len(outcomes) < answered:  # what is missing is paid for, so it has not failed
            call = FailedCall(f"the files of the batch hold {len(outcomes)} of {answered} answers.")
            raise ChatServerError(
                f"{self.base_url} has lost answers of the batch {batch.id}: {call.error} {_GO_ON}", call
            )
        return outcomes

    def _outcome(self, line: dict[str, Any]) -> Completion | Exception:
        response = line.get("response") or {}
        body, status = response.get("body"), response.get("status_code")
        if status != 200:
            reason = body.get("error") if isinstance(body, dict) else body
            return _RequestError(status, reason or line.get("error") or body)
        try:
            return self._read(body)
        except NoAnswer as error:
            return error

    def fault(self, batch: "Batch", answers: dict[str, Completion | FailedCall], calls: int) -> ChatServerError | None:
        """Why no other batch is to be sent after this one, with so many calls, if there is a reason."""
        failed = [answer for answer in answers.values() if isinstance(answer, FailedCall)]
        if batch.status == "failed":
            reasons = "; ".join(str(error.message) for error in (batch.errors and batch.errors.data) or ())
            call = self._failure(_RequestError(None, reasons or "no reason given"))
            what = (
                f"refused, and nothing of it was asked: {call.error} If too much waits there, lower `batch_size` and "
                "`concurrency`."
            )
        elif batch.status != "completed" and failed:
            call, what = failed[0], f"{batch.status}, and {len(failed)} of {calls} calls are not answered."
        elif len(failed) == calls >= self.max_consecutive_failures:
            call, what = failed[0], f"{batch.status}, and no call of {calls} has an answer: {failed[0].error}"
        else:
            return None
        again = "Answers that came are kept: run the same command again for the others."
        return ChatServerError(f"The batch {batch.id} of {self.model} at {self.base_url} is {what} {again}", call)

    def _manage(self, function: Callable[["OpenAI"], Any], most_attempts: int | None = None) -> Any:
        """What a request about files or batches gives, or [`ChatServerError`] after so many attempts."""
        from openai import OpenAIError

        client = self._client
        for failures in itertools.count(1):
            try:
                return within(self.timeout, lambda: function(client))
            except (OpenAIError, NoAnswer, TooLate) as raised:
                error = raised
            except (AttributeError, KeyError, TypeError, ValueError) as raised:  # a page of text in place of JSON
                error = NoAnswer(f"the answer has another form: {raised}")
            # Not while it is handled: who raises then passes on what the server has said, which may be the key
            if failures == (most_attempts or self.max_attempts) or not is_worth_another_attempt(error):
                break
            self._wait(error, failures)
        call = self._failure(error)
        if getattr(error, "status_code", None) != 404:
            self._stop_if_hopeless(error, call)
        raise ChatServerError(
            f"{self.base_url} does not do what a batch of {self.model} needs: {call.error} `engine: batch` needs a "
            f"server with files and batches. {_GO_ON}",
            call,
        )


def _id(made: Any) -> str:
    if not isinstance(made.id, str):
        raise NoAnswer(f"no id in {made!r}")
    return made.id

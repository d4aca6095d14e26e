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
A teacher that stands on a server: `vllm serve TEACHER`, asked for the log-probabilities of tokens.

TRL's `VLLMClient` wants vLLM installed where the student trains, waits for an answer without end, and gives up at once
where a server says that it is busy. It takes two requests, so they are made here.
"""

import http.client
import itertools
import json
import math
import random
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback

from ..checkpoints import first_decides, newest_checkpoint
from ..models import check_same_reading, vocabulary_rows
from .minillm_config import MiniLLMConfig


logger = get_logger(__name__)

_IN_FLIGHT = 4  # requests of each process at a time; the server makes its own batches
_ROWS = 8  # of a request
_START = "Start the teacher with `vllm serve TEACHER`, or correct `teacher_model_server_url`."


class TeacherServerError(ConnectionError):
    """
    The teacher's server does not answer, or not what a teacher has to say.

    Args:
        message (`str`), status (`int`, *optional*):
            What is wrong and what to do, and the HTTP status if that is what the server answered.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


def _random_numbers() -> tuple:
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.cuda.get_rng_state_all()


def _set_random_numbers(states: tuple):
    setters = random.setstate, np.random.set_state, torch.set_rng_state, torch.cuda.set_rng_state_all
    for setter, state in zip(setters, states, strict=True):
        setter(state)


class _EpochStart(TrainerCallback):
    """The random numbers before an epoch, whose loader draws one of them, and again in a run that resumes here."""

    step: int | None = None

    def on_epoch_begin(self, args, state, control, **kwargs):
        if state.epoch == int(state.epoch):  # not where a run has resumed within one
            self.step, self.numbers = state.global_step, _random_numbers()


class TeacherServer:
    """
    Log-probabilities of given tokens, at temperature 1, from an OpenAI-compatible server that knows `prompt_logprobs`.

    Status 429 and 5xx, broken connections and time-outs are tried again after a growing wait with jitter. A server on
    this machine is asked without the proxy that the environment may name.

    Args:
        url (`str`):
            Address of the server, with or without `/v1`.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds without a sign of the server after which an attempt has failed, and after which no other is made.
            So a request ends within twice this time, before other processes, which wait, give up on this one
            (`ddp_timeout`, half an hour).
        max_attempts (`int`, *optional*, defaults to `6`):
            Attempts for one request, the first one included.
        backoff (`float`, *optional*, defaults to `1.0`):
            First wait in seconds. Each further one is twice as long, plus up to `backoff` at random.

    Raises:
        [`TeacherServerError`]: If no such server answers within ten seconds.
    """

    def __init__(self, url: str, timeout: float = 600.0, max_attempts: int = 6, backoff: float = 1.0):
        self.url = url.rstrip("/").removesuffix("/v1")
        self.timeout, self.max_attempts, self.backoff = 10.0, 1, backoff  # a wrong address is wrong at once
        here = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1", "0.0.0.0")
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if here else []))
        self._epoch_start = _EpochStart()
        self._jitter = random.Random()  # of its own: training draws from the global one
        models = self._ask("/v1/models")
        self.timeout, self.max_attempts = timeout, max_attempts
        try:
            self.model = models["data"][0]["id"]
            self.context: int | None = models["data"][0].get("max_model_len")  # vLLM's own; others may not say
        except (AttributeError, KeyError, IndexError, TypeError):
            raise TeacherServerError(f"The server at {self.url} serves no model. {_START}") from None

    def token_logps(self, sequences: Sequence[list[int]]) -> list[list[float]]:
        """Log-probability of each token of sequences of ids but their first one, given those before it."""
        answers = self._read(sequences)
        try:
            return [
                [position[token] for position, token in zip(positions, ids[1:], strict=True)]
                for positions, ids in zip(answers, sequences, strict=True)
            ]
        except (KeyError, ValueError):
            raise TeacherServerError(
                f"The server at {self.url} gives log-probabilities of other tokens than those that it was sent. "
                f"{_START}"
            ) from None

    def completion_logps(self, rollouts: dict[str, Tensor]) -> Tensor:
        """
        The teacher's log-probabilities `(B, T)` of completion tokens, 0 elsewhere, of TRL's batch of left-padded
        prompts and completions. All processes must call this, and all raise if one of them gets no answer.
        """
        mask = rollouts["completion_mask"].bool().cpu()  # (B, T)
        prompts, completions = (
            [ids[own].tolist() for ids, own in zip(rollouts[f"{part}_ids"].cpu(), masks, strict=True)]
            for part, masks in (("prompt", rollouts["prompt_mask"].bool().cpu()), ("completion", mask))
        )
        rows = [row for row, ids in enumerate(completions) if ids]
        logps, error = [], None
        try:
            logps = self.token_logps([prompts[row] + completions[row] for row in rows])
        except TeacherServerError as met:
            error = met
        raise_together(error)
        known = [logp for row, values in zip(rows, logps, strict=True) for logp in values[-len(completions[row]) :]]
        values = torch.zeros(mask.shape).masked_scatter(mask, torch.tensor(known))
        return values.to(rollouts["completion_mask"].device)

    def attach(self, trainer) -> int:
        """Rows of the LM head of a trainer's student, each of which must be a token of the teacher's."""
        trainer.add_callback(self._epoch_start)
        rows, error = vocabulary_rows(trainer.accelerator.unwrap_model(trainer.model)), None
        try:
            self.token_logps([[0, rows - 1]])
        except TeacherServerError as met:
            error = met
            if met.status == 400:
                error = TeacherServerError(
                    f"The student's LM head has {rows} rows, and the last one is no token of the teacher: {met} Call "
                    "`resize_token_embeddings` on the student, so that it draws none that the teacher cannot score."
                )
        raise_together(error)
        return rows

    def longest_prompt(self, max_new_tokens: int, limit: int | None) -> int | None:
        """Tokens of a prompt that leaves room for an answer, here and within the models' own `limit`."""
        if self.context is None:
            return limit
        longest = self.context - 1 - max_new_tokens  # the server insists on drawing one token more
        if longest < 1:
            raise TeacherServerError(
                f"The server at {self.url} reads {self.context} tokens, which leaves no room for a prompt and "
                f"{max_new_tokens} tokens of an answer. Start it with a larger `--max-model-len`, or lower "
                "`max_completion_length`."
            )
        return longest if limit is None else min(limit, longest)

    @contextmanager
    def checkpoint_on_failure(self, trainer) -> Iterator[None]:
        """
        Save what a training run has reached if the server fails in here, before the next optimizer step.

        The checkpoint has the random numbers from before, so a run that resumes draws the same answers anew.
        """
        before = _random_numbers()
        try:
            yield
        except TeacherServerError as error:
            if not trainer.is_in_train:
                raise
            folder, step = trainer.args.output_dir, trainer.state.global_step
            if step == 0:
                raise TeacherServerError(f"{error} No step was finished, so nothing is saved.") from error
            checkpoint = Path(folder, f"checkpoint-{step}")
            if first_decides(lambda: newest_checkpoint(folder)) != checkpoint:
                _set_random_numbers(self._epoch_start.numbers if self._epoch_start.step == step else before)
                trainer._save_checkpoint(trainer.model, trial=None)
            raise TeacherServerError(
                f"{error} The run has stopped after step {step} and is saved in {checkpoint}. When the server is "
                "back, go on with `resume_from_checkpoint=True` (`--resume_from_checkpoint latest`)."
            ) from error

    def read_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts without their first one, as the server's tokenizer reads them."""
        return [[next(iter(position), -1) for position in positions] for positions in self._read(texts)]

    def _read(self, prompts: Sequence[list[int] | str]) -> list[list[dict[int, float]]]:
        """Of each token of each prompt but the first one, its log-probability by its id."""
        batches = [prompts[first : first + _ROWS] for first in range(0, len(prompts), _ROWS)]
        with ThreadPoolExecutor(_IN_FLIGHT) as pool:
            return [positions for answers in pool.map(self._read_batch, batches) for positions in answers]

    def _read_batch(self, prompts: Sequence[list[int] | str]) -> list[list[dict[int, float]]]:
        body = {
            "model": self.model,
            "prompt": prompts,
            "max_tokens": 1,
            "prompt_logprobs": 0,  # of the token that stands there, and of no other
            "add_special_tokens": False,
        }
        answer = self._ask("/v1/completions", body)
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            rows = [
                [{int(token): _logp(score["logprob"]) for token, score in position.items()} for position in positions]
                for positions in (choice["prompt_logprobs"][1:] for choice in choices)
            ]
            if len(rows) != len(prompts):
                raise ValueError(f"{len(rows)} answers to {len(prompts)} prompts")
        except (AttributeError, KeyError, TypeError, ValueError):
            raise TeacherServerError(
                f"The server at {self.url} does not return `prompt_logprobs`, the log-probabilities of the tokens "
                f"that it is sent. {_START}"
            ) from None
        if any(logp > 1e-3 for positions in rows for position in positions for logp in position.values()):
            raise TeacherServerError(
                f"The server at {self.url} returns logits where log-probabilities belong. Start it without "
                "`--logprobs-mode`."
            )
        return rows

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        start = time.monotonic()
        for attempt in itertools.count(1):
            status = None
            try:
                with self._opener.open(request, timeout=self.timeout) as response:
                    return json.load(response)
            except HTTPError as error:
                status, reason = error.code, f"status {error.code}, {_beginning(error)!r}"
            except (OSError, http.client.HTTPException) as error:  # refused, cut, or timed out
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            except ValueError:
                status, reason = 200, "what it sends is no JSON"
            hopeless = status is not None and status != 429 and status < 500
            if hopeless or attempt == self.max_attempts or time.monotonic() - start > self.timeout:
                advice = _START if status in (None, 200, 404) else "See the server's log."
                raise TeacherServerError(f"No answer from {self.url}{path}: {reason}. {advice}", status)
            seconds = self.backoff * (2 ** (attempt - 1) + self._jitter.random())
            logger.info(
                f"{self.url}{path}: {reason}. Attempt {attempt + 1} in {seconds:.1f} s.", main_process_only=False
            )
            time.sleep(seconds)


def _beginning(answer: HTTPError) -> str:
    try:
        return answer.read(400).decode(errors="replace")
    except (OSError, http.client.HTTPException):  # cut
        return ""


def _logp(value: float | None) -> float:
    # JSON has neither of them: vLLM writes `-inf` as -9999, others write nothing
    return math.nan if value is None else -math.inf if value == -9999.0 else value


def connect(args: MiniLLMConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[TeacherServer, set[int]]:
    """The server of a run, which must read text as the student does, and the added tokens that it does not know."""
    try:
        server = TeacherServer(args.teacher_model_server_url)
        unknown = check_same_reading(tokenizer, server.read_texts)
        server.longest_prompt(args.max_completion_length, None)
        error = None
    except (TeacherServerError, ValueError) as met:
        error = met
    raise_together(error)
    return server, unknown


def raise_together(error: Exception | None):
    """Raise on all processes what one of them has met, which alone would leave the others waiting. A collective."""
    met = [message for message in gather_object([None if error is None else str(error)]) if message is not None]
    if met:
        raise TeacherServerError(met[0]) from error

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
A file that keeps every call: nothing is asked twice, and every token and dollar can be traced.

A call is one row: written before the request is sent, with the most that it may cost, and completed with the answer.
So the budgets hold with many calls in flight, and after `kill -9` the file says what was under way.
"""

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from filelock import FileLock, Timeout

from ..progress import progress_bar
from .batch import BatchChatModel
from .batch_calls import BatchCalls, check_batches
from .ledger import LedgerRow, clear_errors, ledger_of, open_to_read, prepare
from .models import BaseChatModel, ChatRequest, ChatServerError, Check, Completion, FailedCall, Prices, run_batches


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode  # one text for one value


class BudgetReached(Exception):
    """The next call would break `max_calls` or `budget_usd`. All answers so far are in the store."""


class Missing(NamedTuple):
    """
    What a dry run finds: calls still to be made, and their size.

    Args:
        calls, prompt_tokens, completion_tokens (`int`):
            Requests without a stored answer, and their tokens, estimated from the mean of the role's stored calls;
            before the first one an upper bound.
        cost_usd (`float`, *optional*):
            Estimated cost in US dollars. `None` if a price is not known.
    """

    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None


def most_prompt_tokens(request: ChatRequest) -> int:
    """What a prompt is at most: a token is a byte of it or more, and 16 a message are for the template."""
    return 16 + sum(16 + len(text.encode()) for text in request.texts)


def _end(answer: Completion | FailedCall, most: float | None, prices: Prices | None) -> dict[str, Any]:
    """
    What completes the row of a call. If its tokens are not known, it costs the worst case, `most`; nothing if it has
    failed.
    """
    failed, tokens = isinstance(answer, FailedCall), (answer.prompt_tokens, answer.completion_tokens)
    if prices is None:
        cost = None
    elif None in tokens:
        cost = 0.0 if failed and tokens == (None, None) else most
    else:
        cost = prices.of(*tokens)
    return vars(answer) | {"state": "failed" if failed else "answered", "cost": cost}


class CallStore(AbstractContextManager):
    """
    One SQLite file with every request and its answer, for all models and roles of a run.

    A request whose answer is in the file is not sent again: after a stop of any kind the same program goes on where
    it was, and gives the same result. Lost are the calls in flight; after a power cut the last few answers, too.

    Answers are found by content: role, model, messages, sampling and sample index. Round and stage are only noted, so
    a later round reuses what an earlier one asked. A failed call is noted too, and asked again by the next run. What a
    model gave is kept as it is, its thoughts included.

    One process at a time may write the file, with any number of threads. [`read_ledger`] may read it at any time.

    Args:
        path (`str` or `os.PathLike`):
            The file, such as `calls.sqlite`. It is made if it does not exist.
        max_calls (`int`, *optional*):
            Calls that the file may hold, all runs together. Retries do not count.
        budget_usd (`float`, *optional*):
            What they may cost. A call is let through only if its worst case fits: each byte of the prompt a token,
            and `max_tokens`. Attempts that failed count as free, unless the server says what it bills.
        progress (`bool`, *optional*, defaults to `False`), read_only (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar, and whether only what is there is looked up, also while a run writes it.

    Raises:
        `ValueError`: If the file is damaged or no call store.
        `OSError`: If it cannot be written, or another process has it open.

    Example:

    ```python
    from trl_distill.chat import CallStore, ChatRequest, EndpointChatModel

    with CallStore("calls.sqlite", max_calls=1000) as store:
        teacher = store.model(EndpointChatModel("gpt-4.1-mini"), role="teacher", stage="answers")
        [answer] = teacher.complete([ChatRequest([{"role": "user", "content": "Why is the sky blue?"}])])
    ```
    """

    def __init__(
        self,
        path: str | PathLike,
        *,
        max_calls: int | None = None,
        budget_usd: float | None = None,
        progress: bool = False,
        read_only: bool = False,
    ):
        self.path, self.max_calls, self.budget_usd, self.progress = Path(path), max_calls, budget_usd, progress
        self.read_only = read_only
        if self.path.is_dir() or not self.path.absolute().parent.is_dir():
            raise OSError(f"{self.path} must be a file in a folder that exists.")
        self._process_lock = FileLock(f"{self.path}.lock", thread_local=False)
        try:
            if not read_only:
                self._process_lock.acquire(timeout=0)
        except Timeout:
            raise OSError(
                f"Another run has the call store {self.path} open. Wait for it, stop it, or choose another file: two "
                "runs would ask the same questions twice."
            ) from None
        # Every use of the connection is under this lock. Who waits for a call to end waits on it too.
        self._lock = threading.Condition(threading.RLock())
        self._role_locks: dict[tuple[str, str], threading.Lock] = {}
        self._connection, self._in_flight = None, 0
        try:
            with clear_errors(self.path):
                if read_only:
                    self._connection = open_to_read(self.path)
                else:
                    self._connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
                    prepare(self._connection, self.path)
                    # Nothing that was committed is lost with the process, and no call waits for the disk.
                    self._connection.execute("PRAGMA synchronous = NORMAL")
            [(self._calls, self._spent)] = self._read("SELECT COUNT(*), TOTAL(cost) FROM calls")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file, so that another process may write it."""
        try:
            if self._connection is not None:
                self._connection.close()
        finally:
            self._connection = None
            self._process_lock.release()

    def __exit__(self, *exception):
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is written inside becomes visible at once, or not at all."""
        with self._lock, clear_errors(self.path), self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    def _read(self, query: str, *values: str) -> list[tuple]:
        with self._lock, clear_errors(self.path):
            return self._connection.execute(query, values).fetchall()

    def model(self, model: BaseChatModel, role: str, stage: str = "", round: int = 0) -> "StoredChatModel":
        """
        A model that asks through this store.

        Args:
            model ([`BaseChatModel`]), role (`str`):
                Who answers what is not in the store, and as what, such as `"teacher"`. Roles share no answers.
            stage (`str`, *optional*, defaults to `""`), round (`int`, *optional*, defaults to `0`):
                Under which its calls are counted.

        Returns:
            [`StoredChatModel`]

        Raises:
            `ValueError`: If a model of this name and revision was asked at another address, or a budget in dollars
                meets a model without prices.
        """
        if self.budget_usd is not None and model.prices is None:
            raise ValueError(
                f"`budget_usd` is {self.budget_usd}, but the prices of {model.name} are not known. Set `prompt_price` "
                "and `completion_price` (0 for a server of your own)."
            )
        if self.budget_usd is not None and not model.is_bounded:
            raise ValueError(
                f"`budget_usd` is {self.budget_usd}, but nothing bounds what a call of {model.name} may cost. Take "
                "`max_tokens` out of its `omit`, or the budget away."
            )
        if model.address is not None:
            identity = _canonical(model.identity)
            if not self.read_only:
                with self._transaction() as connection:
                    connection.execute("INSERT OR IGNORE INTO addresses VALUES (?, ?)", (identity, model.address))
            known = next(iter(self._read("SELECT address FROM addresses WHERE identity = ?", identity)), (None,))[0]
            if known not in (None, model.address):
                raise ValueError(
                    f"{model.name} was asked at {known} before and is now at {model.address}. If that is another "
                    "model, set `revision`. If the same one has moved, run "
                    f"`trl-distill calls {self.path} --moved {known} {model.address}`."
                )
        return StoredChatModel(self, model, role, stage, round)

    def move(self, old: str, new: str) -> None:
        """
        Note that the models served at one address are now served at another one.

        Args:
            old, new (`str`):
                The addresses, as `base_url` has them.

        Raises:
            `ValueError`: If no model in this store was asked at `old`.
        """
        old, new = old.rstrip("/"), new.rstrip("/")
        with self._transaction() as connection:
            if not connection.execute("UPDATE addresses SET address = ? WHERE address = ?", (new, old)).rowcount:
                known = [address for [address] in self._read("SELECT DISTINCT address FROM addresses")]
                raise ValueError(f"No model was asked at {old}, only at {', '.join(known) or 'no address'}.")

    def ledger(self) -> list[LedgerRow]:
        """One row for each round, stage, role and model."""
        with self._lock, clear_errors(self.path):
            return ledger_of(self._connection)

    def _find(self, keys: Sequence[str]) -> dict[str, tuple[Completion, int, str]]:
        """The stored answers among `keys`, with the round and stage that asked."""
        query = """SELECT text, finish_reason, prompt_tokens, completion_tokens, retries, mean_logp, thoughts,
        round, stage FROM calls WHERE key = ? AND state = 'answered'"""
        return {key: (Completion(*row[:7]), *row[7:]) for key in keys for row in self._read(query, key)}

    def _has_answered(self, name: str) -> bool:
        return bool(self._read("SELECT 1 FROM calls WHERE model = ? AND state = 'answered' LIMIT 1", name))

    def _reserve(self, calls: Sequence[tuple[str, str, float | None]], place: tuple[int, str, str, str]) -> list[int]:
        """
        Write down calls before they are sent, or raise [`BudgetReached`]. Returns their rows.

        `calls` are key, content and highest cost of each, `place` is round, stage, role and model.
        """
        cost = sum(most or 0.0 for *_, most in calls)
        with self._lock:
            while (limit := self._limit(len(calls), cost)) is not None:
                if not self._in_flight:
                    self._stop(limit, len(calls), cost)
                self._lock.wait()  # a call in flight may leave a part of what was put aside for it
            ids = self._write_down(calls, place)
            self._in_flight += 1
        return ids

    def _limit(self, calls: int, cost: float) -> str | None:
        """The limit that so many calls more, of this cost, would break."""
        if self.max_calls is not None and self._calls + calls > self.max_calls:
            return f"`max_calls` is {self.max_calls}, and {self._calls} were made"
        if self.budget_usd is not None and self._spent + cost > self.budget_usd:
            return f"`budget_usd` is {self.budget_usd}, and {self._spent:.6f} are spent"
        return None

    def _write_down(
        self,
        calls: Sequence[tuple[str, str, float | None]],
        place: tuple[int, str, str, str],
        batch: str | None = None,
    ) -> list[int]:
        columns = "round, stage, role, model, batch, key, request, cost"
        insert = f"INSERT INTO calls ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        with self._lock:
            with self._transaction() as connection:
                if batch is not None:
                    connection.execute("INSERT INTO batches (name) VALUES (?)", (batch,))
                ids = [connection.execute(insert, (*place, batch, *call)).lastrowid for call in calls]
            self._calls += len(calls)
            self._spent += sum(most or 0.0 for *_, most in calls)
        return ids

    def _stop(self, limit: str, calls: int, cost: float) -> NoReturn:
        raise BudgetReached(
            f"{limit}. The next {calls} call(s) may cost up to {cost:.6f} dollars. All answers so far are in "
            f"{self.path}: raise the limit and run the same command again to go on."
        )

    def _settle(self, ids: Sequence[int], answers: Sequence[Completion | FailedCall], prices: Prices | None) -> None:
        """Write how calls that were reserved together ended."""
        with self._lock:
            try:
                self._write_answers(ids, answers, prices)
            finally:
                self._in_flight -= 1
                self._lock.notify_all()

    def _write_answers(
        self, ids: Sequence[int], answers: Sequence[Completion | FailedCall], prices: Prices | None
    ) -> None:
        with self._transaction() as connection:
            for id, answer in zip(ids, answers, strict=True):
                [most] = connection.execute("SELECT cost FROM calls WHERE id = ?", (id,)).fetchone()
                values = _end(answer, most, prices)
                columns = ", ".join(f"{name} = ?" for name in values)
                connection.execute(f"UPDATE calls SET {columns} WHERE id = ?", (*values.values(), id))
                self._spent += (values["cost"] or 0.0) - (most or 0.0)


class StoredChatModel:
    """
    A [`ChatModel`] that asks only what is not in its store. Made by [`CallStore.model`].

    Attributes:
        name (`str`):
            Name of the model that answers.
    """

    def __init__(self, store: CallStore, model: BaseChatModel, role: str, stage: str, round: int):
        self.name = model.name
        self._store, self._model, self._role, self._stage, self._round = store, model, role, stage, round

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return self._model.identity  # of a local model it takes the reading of its weights

    def _content(self, request: ChatRequest) -> str:
        return _canonical({"role": self._role, "model": self._identity, **request.content})

    def _key(self, request: ChatRequest) -> str:
        return hashlib.sha256(self._content(request).encode()).hexdigest()

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        prices = self._model.prices
        return None if prices is None else prices.of(prompt_tokens, completion_tokens)

    def _call(self, key: str, request: ChatRequest) -> tuple[str, str, float | None]:
        """A call as the store reserves it."""
        return key, self._content(request), self._cost(most_prompt_tokens(request), request.sampling.max_tokens)

    def complete(self, requests: Sequence[ChatRequest], check: Check | None = None) -> list[Completion | FailedCall]:
        """
        Answers to the requests, in their order: stored ones as they are, the others asked now and stored.

        Args:
            requests (`list[ChatRequest]`):
                Equal requests are one call, and get one answer.
            check (`Callable`, *optional*):
                As for [`ChatModel`]. It sees no stored answer, for that costs nothing.

        Raises:
            [`BudgetReached`]: If the next call would break a limit of the store, once no call is in flight any more.
            `OSError`: If the store cannot be written, or the model's server answers nobody.
            `ValueError`: If some requests are in a batch at the server, and this model would ask them again.
        """
        store, model = self._store, self._model
        owner = (self._role, _canonical(self._identity))
        with store._role_locks.setdefault(owner, threading.Lock()):  # two threads would ask the same twice
            keys = [self._key(request) for request in requests]
            found = store._find(keys)
            results: dict[str, Completion | FailedCall] = {
                key: model.as_asked(answer) for key, (answer, *_) in found.items()
            }
            here = (self._round, self._stage)
            reused = [(key, *here) for key, (_, *origin) in found.items() if tuple(origin) != here]
            if reused and not store.read_only:
                with store._transaction() as connection:
                    connection.executemany("INSERT OR IGNORE INTO reuses VALUES (?, ?, ?)", reused)
            missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in found}
            model.has_answered = model.has_answered or bool(missing) and store._has_answered(self.name)

            def reserved() -> Iterator[tuple[list[str], list[int]]]:
                order = list(missing)
                for numbers in model.batches(list(missing.values())) if missing else []:
                    batch = [order[i] for i in numbers]
                    calls = [self._call(key, missing[key]) for key in batch]
                    yield batch, store._reserve(calls, (*here, self._role, self.name))

            def note(batch: Sequence[str], answers: Sequence[Completion | FailedCall]) -> None:
                results.update(zip(batch, map(model.as_asked, answers), strict=True))
                with store._lock:  # tqdm counts in one thread only
                    bar.update(len(batch))
                for key in batch if check is not None else ():
                    if key in missing:  # a batch may hold others, too
                        check(missing[key], results[key])

            def work(job: tuple[list[str], list[int]]) -> None:
                batch, ids = job
                try:
                    answers = model.answer([missing[key] for key in batch])
                except BaseException as error:
                    failed = error.call if isinstance(error, ChatServerError) else FailedCall(type(error).__name__)
                    store._settle(ids, [failed] * len(ids), model.prices)
                    raise
                store._settle(ids, answers, model.prices)
                note(batch, answers)

            title = " ".join(filter(None, [self._stage, self._role, self.name]))
            shown = store.progress and bool(missing)
            with progress_bar(total=len(missing), desc=title, unit="call", shown=shown) as bar:
                if isinstance(model, BatchChatModel):
                    place = (*here, self._role, self.name)
                    BatchCalls(store, model, place, missing, self._call, note, bar).complete()
                else:
                    check_batches(store, self.name, missing)
                    run_batches(reserved(), work, model.concurrency)
        return [results[key] for key in keys]

    def missing(self, requests: Sequence[ChatRequest]) -> Missing:
        """What [`complete`] would have to ask for these requests, without asking."""
        by_key = {self._key(request): request for request in requests}
        found = self._store._find(list(by_key))
        missing = [request for key, request in by_key.items() if key not in found]
        query = "SELECT AVG(prompt_tokens), AVG(completion_tokens) FROM calls WHERE role = ? AND state = 'answered'"
        [means] = self._store._read(query, self._role)
        if None in means:
            tokens = (sum(map(most_prompt_tokens, missing)), sum(r.sampling.max_tokens for r in missing))
        else:
            tokens = [round(mean * len(missing)) for mean in means]
        return Missing(len(missing), *tokens, self._cost(*tokens))

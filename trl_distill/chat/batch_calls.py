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
Calls that go through batches, from the side of the store.

What a run must know to collect a batch is in the file: the calls and our name for their batch before anything is sent,
the server's id of their file before the batch is made, and that of the batch as soon as it is known. So a run that was
stopped in between finds a batch that nobody noted, by its name or file, and takes back calls that were never sent.
"""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from tqdm.auto import tqdm

from .batch import MOST_BYTES, BatchChatModel, Sent
from .models import ChatRequest, ChatServerError, Completion, FailedCall


logger = logging.getLogger(__name__)

Call = tuple[str, str, float | None]  # key, content and highest cost, as the store writes them down


class BatchCalls:
    """
    What one role asks at once of a model behind a batch endpoint.

    Args:
        store ([`CallStore`]), model ([`BatchChatModel`]):
            Where calls and batches are written down, and who is asked.
        place (`tuple[int, str, str, str]`):
            Round, stage, role and name of the model.
        requests (`dict[str, ChatRequest]`), call (`Callable`):
            Requests without an answer by their keys, and what makes a call of one.
        note (`Callable[[list[str], list], None]`), bar ([`~tqdm.tqdm`]):
            Who is shown keys and answers when they are stored, and where to show how far the batches are.
    """

    def __init__(
        self,
        store: Any,  # `store.py` imports this file
        model: BatchChatModel,
        place: tuple[int, str, str, str],
        requests: dict[str, ChatRequest],
        call: Callable[[str, ChatRequest], Call],
        note: Callable[[Sequence[str], Sequence[Completion | FailedCall]], None],
        bar: tqdm,
    ):
        self._store, self._model, self._place, self._requests = store, model, place, requests
        self._call, self._note, self._bar = call, note, bar
        self._waiting: list[str] = []  # keys of what is still to be sent
        self._open: dict[str, str] = {}  # batches under way: our name and the server's id
        self._fault: ChatServerError | None = None

    def complete(self) -> None:
        """
        Collect what earlier runs have sent, send the rest, and wait for all of it.

        Raises:
            [`BudgetReached`], `OSError`: As [`StoredChatModel.complete`], once no batch is under way any more.
            `KeyboardInterrupt`: With the batches that go on.
        """
        if not self._requests:
            return
        self._store._read("PRAGMA synchronous = FULL")  # what is sent must be known after a power cut, too
        try:
            self._resume()
            while self._waiting or self._open:
                self._send()
                ended = [self._collect(name) for name in list(self._open)]
                if not any(ended):
                    time.sleep(self._model.poll_interval)
        except KeyboardInterrupt:
            if not self._open:
                raise
            raise KeyboardInterrupt(
                f"{', '.join(self._open.values())} at {self._model.base_url} go on without this run. The same command "
                "collects what they answer; to give one up, cancel it there first."
            ) from None
        finally:
            self._store._read("PRAGMA synchronous = NORMAL")
        if self._fault is not None:
            raise self._fault

    def _resume(self) -> None:
        """Find the batches that hold some of the calls."""
        sent = _in_batches(self._store)
        for name in {name: None for name, key in sent if key in self._requests}:
            [(file, id)] = self._store._read("SELECT file, id FROM batches WHERE name = ?", name)
            if id is None and file is not None:
                id = self._model.find(name, file)
            if id is None:
                self._take_back(name)
            else:
                self._note_id(name, "id", id)
                self._open[name] = id
        under_way = {key for name, key in sent if name in self._open}
        self._waiting = [key for key in self._requests if key not in under_way]

    def _send(self) -> None:
        """Make batches of what waits, as many and as large as server and budgets let through."""
        while self._waiting and len(self._open) < self._model.concurrency:
            calls, lines, cost, size = [], [], 0.0, 0
            for key in self._waiting[: self._model.batch_size]:
                call, line = self._call(key, self._requests[key]), self._model.line(key, self._requests[key])
                cost, size = cost + (call[-1] or 0.0), size + len(line)
                limit = self._store._limit(len(calls) + 1, cost)
                if limit is not None or calls and size > MOST_BYTES:
                    break
                calls.append(call)
                lines.append(line)
            if not calls:
                if self._open:  # they may leave a part of what was put aside for them
                    return
                self._store._stop(limit, 1, cost)
            name = uuid.uuid4().hex
            self._store._write_down(calls, self._place, name)
            self._waiting = self._waiting[len(calls) :]
            self._submit(name, lines)

    def _submit(self, name: str, lines: Sequence[bytes]) -> None:
        file = self._model.upload(name, lines)
        self._note_id(name, "file", file)
        self._open[name] = self._model.create(name, file)
        self._note_id(name, "id", self._open[name])

    def _collect(self, name: str) -> bool:
        """Store what a batch says, and ask again what is to be asked again. Returns whether it has ended."""
        batch, has_ended = self._model.look(self._open[name])
        done = f" {counts.completed}/{counts.total}" if (counts := batch.request_counts) else ""
        self._bar.set_postfix_str(f"{batch.id} {batch.status}{done}")
        if not has_ended:
            return False
        columns = "SELECT id, key, retries FROM calls WHERE batch = ? AND state = 'sent' ORDER BY id"
        calls = [Sent(*row) for row in self._store._read(columns, name)]
        answers = {} if batch.status == "failed" else self._model.collect(batch, calls, self._requests)
        if batch.status == "failed":
            self._take_back(name)
        elif answers:
            ids = [call.id for call in calls if call.key in answers]
            self._store._write_answers(ids, list(answers.values()), self._model.prices)
        del self._open[name]
        fault = self._model.fault(batch, answers, len(calls))
        if fault is not None:
            logger.warning("%s", fault)  # others may be waited for, and it is raised behind them
            self._fault, self._waiting = self._fault or fault, []
        again = [call for call in calls if call.key not in answers]
        if again and self._fault is None:
            self._again(again)
        self._note(list(answers), list(answers.values()))
        return True

    def _again(self, calls: Sequence[Sent]) -> None:
        """Put calls into one more batch."""
        name = uuid.uuid4().hex
        move = "UPDATE calls SET batch = ?, retries = retries + 1 WHERE id = ?"
        with self._store._transaction() as connection:
            connection.execute("INSERT INTO batches (name) VALUES (?)", (name,))
            connection.executemany(move, [(name, call.id) for call in calls])
        self._submit(name, [self._model.line(call.key, self._requests[call.key]) for call in calls])

    def _note_id(self, name: str, column: str, id: str) -> None:
        """Note an id that the server has given to a batch or to its file."""
        with self._store._transaction() as connection:
            connection.execute(f"UPDATE batches SET {column} = ? WHERE name = ?", (id, name))

    def _take_back(self, name: str) -> None:
        """Note that a batch was never made: its calls are none, or have failed when they were sent before."""
        failed = "state = 'failed', retries = retries - 1, cost = cost * 0, error = 'it was not sent again'"
        here, store = "WHERE batch = ? AND state = 'sent'", self._store
        with store._lock:
            with store._transaction() as connection:
                connection.execute(f"UPDATE calls SET {failed} {here} AND retries > 0", (name,))
                connection.execute(f"DELETE FROM calls {here}", (name,))
            [(store._calls, store._spent)] = store._read("SELECT COUNT(*), TOTAL(cost) FROM calls")


def _in_batches(store: Any) -> list[tuple[str, str]]:
    """Batch and key of the calls whose batch is not collected, in the order in which they were sent."""
    return store._read("SELECT batch, key FROM calls WHERE state = 'sent' AND batch IS NOT NULL ORDER BY id")


def check_batches(store: Any, model: str, requests: dict[str, ChatRequest]) -> None:
    """Raise `ValueError` if calls that are to be sent one by one are in a batch, where they are paid for."""
    names = {name for name, key in _in_batches(store) if key in requests} if requests else ()
    if names:
        ids = [id or name for name in names for [id] in store._read("SELECT id FROM batches WHERE name = ?", name)]
        raise ValueError(
            f"Some of these calls of {model} were sent in batches ({', '.join(ids)}), which are not collected yet. "
            "Set `engine: batch` to do so. To ask one by one what they have not answered, cancel them at the server "
            "first, and collect them all the same."
        )

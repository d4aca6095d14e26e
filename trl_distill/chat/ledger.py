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

"""The SQLite file of a call store: what is in it, what is said of one that cannot be used, and its ledger."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from .replies import FINISH_REASONS


_APPLICATION_ID = 0x74726C64  # "trld": tells our files from any other SQLite file
_FORMAT = 4
_BATCHES = """
CREATE TABLE batches (                   -- at batch endpoints, since format 4
    name TEXT PRIMARY KEY,               -- ours
    file TEXT,                           -- ids of the server, as soon as they are known
    id TEXT
) WITHOUT ROWID;
CREATE INDEX in_batches ON calls (batch, key) WHERE state = 'sent' AND batch IS NOT NULL;"""
_SCHEMA = f"""
CREATE TABLE calls (  -- the long texts stand last, so that sums need not read them
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,                   -- SHA-256 of `request`
    round INTEGER NOT NULL,
    stage TEXT NOT NULL,
    role TEXT NOT NULL,
    model TEXT NOT NULL,                 -- its name in reports; what it is stands in `request`
    state TEXT NOT NULL DEFAULT 'sent',  -- then 'answered' or 'failed'
    retries INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    cost REAL,                           -- US dollars: until the answer the most it may be, NULL without prices
    finish_reason TEXT,
    mean_logp REAL,                      -- since format 2
    error TEXT,
    batch TEXT,                          -- the last one that it was sent in, if any, since format 4
    request TEXT NOT NULL,               -- JSON of role, model, messages, sampling and sample index
    thoughts TEXT,                       -- those that came apart from the text, since format 3
    text TEXT
);
CREATE UNIQUE INDEX answers ON calls (key) WHERE state = 'answered';
CREATE TABLE reuses (                    -- answers that another round or stage used again
    key TEXT, round INTEGER, stage TEXT, PRIMARY KEY (key, round, stage)
) WITHOUT ROWID;
{_BATCHES}
CREATE TABLE addresses (identity TEXT PRIMARY KEY, address TEXT NOT NULL) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
"""
_KNOWN = ", ".join(f"'{word}'" for word in (*FINISH_REASONS, "unknown"))  # which stands where a server gave none
_RENAMED = "".join(
    f"UPDATE calls SET finish_reason = '{reason}' "
    f"WHERE LOWER(finish_reason) = '{word}' AND finish_reason <> '{reason}';"
    for word, reason in FINISH_REASONS.items()
)
_UPGRADES = {  # what brings a file of each older format to the next one
    1: "ALTER TABLE calls ADD COLUMN mean_logp REAL;",
    # Servers' answers without an end were kept as if they were whole
    2: f"""ALTER TABLE calls ADD COLUMN thoughts TEXT;
    UPDATE calls SET state = 'failed', error = 'the answer has the finish reason ' || finish_reason
    WHERE state = 'answered' AND request LIKE '%"endpoint":%' AND LOWER(finish_reason) NOT IN ({_KNOWN});
    {_RENAMED}""",
    3: f"ALTER TABLE calls ADD COLUMN batch TEXT; {_BATCHES}",
}


class LedgerRow(NamedTuple):
    """
    The calls of one model in one role, stage and round.

    Args:
        round (`int`), stage (`str`), role (`str`), model (`str`):
            Whose calls these are.
        calls, failures, unanswered (`int`):
            Requests that were sent; those without an answer after all attempts; those whose end is not known, in
            flight now or when a run was killed.
        retries, reused (`int`):
            Attempts beyond the first one of each call, and answers from another round or stage, without a call.
        cut_off (`int`):
            Answers that ended at the limit of tokens or by a filter.
        prompt_tokens, completion_tokens (`int`):
            Tokens of the answered calls and of failed ones that are billed, as far as the model counted them.
        cost_usd (`float`, *optional*):
            US dollars; an unanswered call counts with the most that it may cost. `None` if a price is not known.
    """

    round: int
    stage: str
    role: str
    model: str
    calls: int = 0
    failures: int = 0
    unanswered: int = 0
    retries: int = 0
    reused: int = 0
    cut_off: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Say what a user can do about an error of SQLite."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the kind
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise ValueError(
                f"{path} is no call store, or is damaged ({error}). Choose another file, or restore a copy of it."
            ) from error
        if not isinstance(error, sqlite3.OperationalError):
            raise
        message = f"The call store {path} cannot be used: {error}."
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            message = (
                f"The call store {path} cannot be written: {error}. What it holds is safe: make room, and run again."
            )
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            message = f"Another program holds the call store {path}: {error}. Close it, then try again."
        raise OSError(message) from error


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables in an empty file, and bring those of an older release to the form of today."""
    if connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() == (0,):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(f"BEGIN;{_SCHEMA}COMMIT;")
    for version in range(_format(connection, path), _FORMAT):
        connection.executescript(f"BEGIN;{_UPGRADES[version]}PRAGMA user_version = {version + 1};COMMIT;")


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, also while a run writes the file; one of an older release is copied."""
    connection = _connect_to_read(path)
    try:
        if _format(connection, path) == _FORMAT:
            return connection
        copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        connection.backup(copy)
        prepare(copy, path)
    except BaseException:
        connection.close()
        raise
    connection.close()
    return copy


def _connect_to_read(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60, check_same_thread=False)


def _format(connection: sqlite3.Connection, path: Path) -> int:
    """Format of a call store. Raises `ValueError` if it is none, or not one of ours."""
    [application] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION_ID:
        raise ValueError(f"{path} is an SQLite file of another program, no call store. Choose another file.")
    if not 1 <= version <= _FORMAT:
        raise ValueError(
            f"{path} has format {version} of the call store, this release reads {_FORMAT} and older. Use the release "
            "that wrote it, or another file."
        )
    return version


def ledger_of(connection: sqlite3.Connection) -> list[LedgerRow]:
    """Every call and every answer that was used again, counted in the columns of [`LedgerRow`]."""
    asked = connection.execute(
        """SELECT round, stage, role, model, COUNT(*), SUM(state = 'failed'), SUM(state = 'sent'), SUM(retries), 0,
        SUM(state = 'answered' AND finish_reason IN ('length', 'content_filter')),
        IFNULL(SUM(prompt_tokens), 0), IFNULL(SUM(completion_tokens), 0),
        CASE WHEN COUNT(cost) = COUNT(*) THEN TOTAL(cost) END FROM calls GROUP BY round, stage, role, model"""
    )
    rows = {row[:4]: LedgerRow(*row) for row in asked}
    for *group, reused in connection.execute(
        """SELECT reuses.round, reuses.stage, role, model, COUNT(*) FROM reuses JOIN calls
        ON calls.key = reuses.key AND state = 'answered' GROUP BY reuses.round, reuses.stage, role, model"""
    ):
        rows[tuple(group)] = rows.get(tuple(group), LedgerRow(*group))._replace(reused=reused)
    return sorted(rows.values())


def read_ledger(path: str | PathLike) -> list[LedgerRow]:
    """
    The ledger of a store, also while a run writes it: one row for each round, stage, role and model.

    Args:
        path (`str` or `os.PathLike`):
            File of a [`CallStore`].

    Raises:
        `OSError`, `ValueError`: If there is no such file, or it is no call store.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No such file: {path}")
    with clear_errors(path), closing(_connect_to_read(path)) as connection:
        _format(connection, path)
        return ledger_of(connection)

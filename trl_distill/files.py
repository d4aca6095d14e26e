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

"""Files of rows that are written as a whole or not at all."""

import contextlib
import gzip
import json
import os
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def whole_file(path: str | PathLike) -> Iterator[IO[str]]:
    """
    A text file to write to, all or nothing: a run that fails or is killed leaves the old file as it was.

    Args:
        path (`str` or `os.PathLike`):
            The file, compressed if it ends in `.gz`.
    """
    path = Path(path)
    new = path.with_name(f"{path.name}.new")
    try:
        with _open(new, "wt", compressed=path.suffix == ".gz") as file:
            yield file
        with open(new, "rb") as file:
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _open(path: Path, mode: str, compressed: bool) -> IO[str]:
    return (gzip.open if compressed else open)(path, mode, encoding="utf-8")


def write_json(path: str | PathLike, value: Any) -> None:
    """Write a value as JSON for people, as a whole. NaN is a `ValueError`."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with whole_file(path) as file:
        file.write(text + "\n")


def write_rows(path: str | PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON Lines, as a whole."""
    with whole_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_rows(path: str | PathLike) -> Iterator[dict[str, Any]]:
    """
    Rows of a JSON Lines file, compressed or not. Empty lines are passed over.

    Args:
        path (`str` or `os.PathLike`):
            The file.

    Returns:
        `Iterator[dict[str, Any]]`

    Raises:
        `OSError`: If there is no such file.
        `ValueError`: If a line holds no JSON object, with its number, or the file ends too early.
    """
    path = Path(path)
    with _open(path, "rt", compressed=path.suffix == ".gz") as file:
        try:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"Line {number} of {path} is no JSON: {error}.") from error
                if not isinstance(row, dict):
                    raise ValueError(f"Line {number} of {path} must be a JSON object, got {line.strip()[:80]}.")
                yield row
        except (EOFError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged or incomplete: {error}.") from error

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

"""Rows in files: written as a whole or not at all, and read from wherever they are."""

import contextlib
import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if TYPE_CHECKING:
    from datasets import Dataset

# Loaders of `datasets` by the suffix of a file.
_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_MADE = ("data/", "runs/")  # where recipes look for what an earlier step makes


@contextlib.contextmanager
def whole_path(path: str | PathLike) -> Iterator[Path]:
    """
    A path to write a file to, all or nothing: a run that fails or is killed leaves the old file as it was.

    Args:
        path (`str` or `os.PathLike`):
            The file. It is replaced when the one beside it is complete and on the disk.

    Raises:
        `OSError`: If it cannot be written, or another run is writing it.
    """
    path = Path(path)
    new = path.with_name(f"{path.name}.new")
    try:
        with _held(new):
            try:
                yield new
                with open(new, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(new, path)
            finally:
                new.unlink(missing_ok=True)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(new)):
            raise  # about another file
        raise OSError(f"{path} cannot be written: {error}. Repair that, and run the same command again.") from error


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a file that is being written, which a killed run may have left behind, against other runs."""
    with open(path, "ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(f"{path} is being written by another run. Wait for it, or name another file.") from None
        yield


@contextlib.contextmanager
def whole_file(path: str | PathLike) -> Iterator[IO[str]]:
    """A text file to write to, as [`whole_path`], compressed if its name ends in `.gz`."""
    path = Path(path)
    with whole_path(path) as new, _open(new, "wt", compressed=path.suffix == ".gz") as file:
        yield file


def _open(path: Path, mode: str, compressed: bool) -> IO[str]:
    return (gzip.open if compressed else open)(path, mode, encoding="utf-8")


def file_digest(path: str | PathLike) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | PathLike, value: Any) -> None:
    """Write a value as JSON for people, as a whole. NaN is a `ValueError`."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with whole_file(path) as file:
        file.write(text + "\n")


def write_rows(path: str | PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON Lines, as a whole. NaN is a `ValueError`."""
    with whole_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


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


def file_format(path: str) -> str:
    """Name of the loader of `datasets` for a local file, also with `.gz` at its end."""
    suffix = os.path.splitext(path.removesuffix(".gz"))[1]
    if suffix not in _FORMATS:
        raise ValueError(f"cannot read {path}: expected one of {', '.join(_FORMATS)}.")
    return _FORMATS[suffix]


@contextlib.contextmanager
def data_errors(name: str) -> Iterator[None]:
    """
    Turn what `datasets` raises of a file that is damaged or empty into a `ValueError` that says so. An error of the
    Hub also says that nothing here has this name.
    """
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (ConnectionError, FileNotFoundError) as error:
        if os.path.exists(name):
            raise
        raise FileNotFoundError(
            f"{error}. There is no file or folder {name} here, either.{_who_makes(name)}"
        ) from error
    except OSError:  # says enough
        raise
    except (DatasetsError, StopIteration) as error:
        reason = " ".join(str(error.__cause__ or error).split()) or "it holds no rows"
        raise ValueError(f"{name} cannot be read: {reason}.") from error


def check_there(name: str) -> None:
    """
    Raise `FileNotFoundError` for a file or folder that is not there, before the Hub is asked for a data set or a model
    of its name.
    """
    if os.path.exists(name):
        return
    if name.removesuffix(".gz").endswith(tuple(_FORMATS)):
        raise FileNotFoundError(f"No such file: {name}.{_who_makes(name)}")
    elsewhere = name.startswith((".", "/", "~")) or name.count("/") > 1  # names of the Hub are `owner/name`
    if elsewhere or name.startswith(_MADE) and os.path.isdir(os.path.dirname(name)):
        raise FileNotFoundError(f"No such file or folder: {name}.{_who_makes(name)}")


def _who_makes(name: str) -> str:
    return " If a recipe names it, the recipe's header says what makes it." if name.startswith(_MADE) else ""


def load_rows(name: str, config: str | None = None, split: str | None = None) -> Iterable[dict[str, Any]]:
    """
    Rows of a data set, those of a JSON Lines file as they are: `datasets` would give each the keys of all others.

    Args:
        name (`str`), config (`str`, *optional*), split (`str`, *optional*):
            As for [`load_split`].

    Returns:
        `Iterable[dict[str, Any]]`

    Raises:
        `OSError`, `ValueError`: If they cannot be read, the latter also in the middle of a file.
    """
    is_lines = name.removesuffix(".gz").endswith(".jsonl") and os.path.isfile(name)
    return read_rows(name) if is_lines and split in (None, "train") else load_split(name, config, split)


def load_split(name: str, config: str | None = None, split: str | None = None, default: str = "train") -> "Dataset":
    """
    One split of a data set.

    Args:
        name (`str`):
            A JSON, JSON Lines, CSV or Parquet file, a folder, or an id of the Hub.
        config (`str`, *optional*):
            Configuration of a data set of the Hub.
        split (`str`, *optional*):
            Which split, or part of one as in `train[:1000]`. Without it `default` if there is one, or the only one.
        default (`str`, *optional*, defaults to `"train"`):
            The split that is taken if none is named.

    Returns:
        [`~datasets.Dataset`]

    Raises:
        `OSError`, `ValueError`: If there is no such data set or split, or none is named among several.
    """
    from datasets import Dataset, load_dataset, load_from_disk

    check_there(name)
    path = Path(name)
    part = split if split is not None and set(split) & set("[+") else None  # cut by `datasets`, from a file or the Hub
    with data_errors(name):
        if path.is_file():
            data = load_dataset(file_format(name), data_files=name, split=part)
        elif (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            data = load_from_disk(name)
        else:
            data = load_dataset(name, config, split=part)
    if isinstance(data, Dataset):  # a part, or saved without splits
        return data
    if split is None and default not in data and len(data) > 1:
        raise ValueError(f"{name} has several splits. Choose one with `dataset_split`: {', '.join(data)}.")
    if split is None:
        split = default if default in data else next(iter(data))
    if split not in data:
        raise ValueError(f"No split {split!r} in {name}: choose from {', '.join(data)}.")
    return data[split]


def evaluation_questions(sources: Iterable[str]) -> list[str]:
    """
    Questions of evaluations, for the `decontaminate` of a config.

    Args:
        sources (`Iterable[str]`):
            Files with a question a line (`.txt`), or of rows with a text `question`, `prompt` or `instruction`, the
            first of which counts, or with a list of texts `turns` (MT-Bench); `truthful_qa`, which is loaded from the
            Hub; `none`, which has no questions.

    Returns:
        `list[str]`

    Raises:
        `OSError`, `ValueError`: If a source cannot be read, or a row has none of these texts.
    """
    return [question for source in sources if source != "none" for question in _questions(source)]


def _questions(source: str) -> Iterator[str]:
    if source == "truthful_qa":
        try:
            rows = load_split("truthfulqa/truthful_qa", "generation")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"The questions of TruthfulQA cannot be loaded from the Hub ({error}). Offline, put them into a file "
                "and name it in `decontaminate`, or switch the check off with `decontaminate: []` (or `none`)."
            ) from error
    elif not os.path.isfile(source):
        raise ValueError(f"`decontaminate` must name files, or be truthful_qa, got {source!r}.")
    elif source.endswith(".txt"):
        rows = ({"question": line.strip()} for line in Path(source).read_text(encoding="utf-8").split("\n"))
    else:
        rows = load_rows(source)
    for number, row in enumerate(rows, start=1):
        if isinstance(turns := row.get("turns"), list) and all(isinstance(turn, str) for turn in turns):
            yield from filter(None, turns)
            continue
        texts = [row[name] for name in ("question", "prompt", "instruction") if name in row]
        text = next((text for text in texts if text not in (None, "")), "")
        if not texts or not isinstance(text, str):
            raise ValueError(
                f"Row {number} of {source}, in `decontaminate`, needs a text `question`, `prompt` or `instruction`, "
                f"got {row!r:.200}."
            )
        if text:
            yield text

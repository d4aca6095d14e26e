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

"""Several answers of a model to each prompt, drawn into a file that a killed run continues, and read from one."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from ..files import read_rows, write_rows
from .models import BaseChatModel, ChatModel, ChatRequest, FailedCall, Sampling, at_least
from .store import CallStore


class Samples(NamedTuple):
    """
    What a model answered to one prompt: lists of one length.

    Args:
        completions (`list[str]`), truncated (`list[bool]`):
            The texts without special tokens, and whether each was cut off before its end.
        mean_logps (`list[float or None]`):
            Mean log-probability of each completion's tokens, the end token included; `None` where it is not known.
    """

    completions: list[str]
    mean_logps: list[float | None]
    truncated: list[bool]


def sample_requests(rows: Sequence[dict[str, Any]], num_samples: int, sampling: Sampling) -> list[ChatRequest]:
    """Requests for answers to each row's `prompt`, row by row. Equal prompts are drawn anew, not answered alike."""
    from ..generation import check_prompts

    check_prompts(rows)
    at_least(1, num_samples=num_samples)
    if sampling.temperature == 0 and num_samples > 1:
        raise ValueError(
            f"At `temperature=0` all {num_samples} samples of a prompt are the same. Raise it, or draw one."
        )
    requests, drawn = [], Counter()
    for row in rows:
        prompt, kwargs = row["prompt"], row.get("chat_template_kwargs")
        if isinstance(prompt, list):  # `datasets` gives each message the keys of all others, with nothing in them
            prompt = [{key: value for key, value in turn.items() if value is not None} for turn in prompt]
        asked = json.dumps([prompt, kwargs])
        requests += [ChatRequest(prompt, sampling, drawn[asked] + k, kwargs) for k in range(num_samples)]
        drawn[asked] += num_samples
    return requests


def draw_samples(
    model: ChatModel, rows: Iterable[dict[str, Any]], num_samples: int, sampling: Sampling
) -> list[Samples]:
    """
    Answers to prompts.

    Args:
        model ([`ChatModel`]):
            Who answers.
        rows ([`~datasets.Dataset`] or `list[dict]`):
            Rows with `prompt`, standard or conversational, and optionally `chat_template_kwargs`.
        num_samples (`int`), sampling ([`Sampling`]):
            Answers to each prompt, and how they are drawn. With `logprobs=True` the log-probabilities come along.

    Returns:
        `list[Samples]`: One for each row.

    Raises:
        `ValueError`: If a prompt is missing, or all samples would be the same.
        `ConnectionError`: If calls failed. What came is kept, if the model asks through a store.
    """
    answers = model.complete(sample_requests(list(rows), num_samples, sampling))
    failed = [(i // num_samples, answer) for i, answer in enumerate(answers) if isinstance(answer, FailedCall)]
    if failed:
        row, call = failed[0]
        raise ConnectionError(
            f"{len(failed)} of {len(answers)} calls of {model.name} failed, the first of them at row {row}: "
            f"{call.error} What came is kept: run the same command again when the cause is gone."
        )
    drawn = [(answer.text, answer.mean_logp, answer.finish_reason == "length") for answer in answers]
    of_rows = (drawn[start : start + num_samples] for start in range(0, len(drawn), num_samples))
    return [Samples(*map(list, zip(*of_row, strict=True))) for of_row in of_rows]


def samples_to_file(
    path: str | PathLike,
    model: BaseChatModel,
    dataset: Iterable[dict[str, Any]],
    num_samples: int,
    sampling: Sampling,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """
    Draw answers to prompts into a file.

    The file is JSON Lines, one row a prompt in the order of the dataset: the row's columns, and the lists of its
    [`Samples`]. It appears when all is done. Until then the answers are in the [`CallStore`] `<path>.calls.sqlite`,
    and the same call goes on there, also after `kill -9`. If the file is complete, nothing is drawn.

    Args:
        path (`str` or `os.PathLike`):
            File to write, such as `runs/samples.jsonl`. Its folder is made.
        model ([`BaseChatModel`]), num_samples (`int`), sampling ([`Sampling`]):
            As for [`draw_samples`].
        dataset ([`~datasets.Dataset`] or `list[dict]`):
            Rows with `prompt`, and any other columns that JSON can hold.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `list[dict[str, Any]]`: The rows of the file.

    Raises:
        `ConnectionError`, `ValueError`: As for [`draw_samples`], and before anything is drawn if a prompt leaves no
            room for an answer, or the file holds something else.
    """
    path, rows = Path(path), [dict(row) for row in dataset]
    try:
        json.dumps(rows, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The rows cannot be written as JSON: {error}. Remove or convert such columns.") from error
    requests = sample_requests(rows, num_samples, sampling)
    model.check(requests[::num_samples])
    calls = path.with_name(f"{path.name}.calls.sqlite")
    other = (
        f"{path} exists and holds something else than these samples. Set back what changed, choose another file, or "
        f"remove it: what was drawn is kept in {calls.name}, and only what is new is drawn."
    )
    if path.exists() and not calls.exists():
        raise ValueError(
            f"{path} exists without its calls in {calls.name}: another release or program made it. Choose another "
            "file, or take it as it is, without drawing anew."
        )
    calls.absolute().parent.mkdir(parents=True, exist_ok=True)
    with CallStore(calls, progress=progress) as store:
        stored = store.model(model, role="sampler")
        if path.exists() and stored.missing(requests).calls:
            raise ValueError(other)
        drawn = draw_samples(stored, rows, num_samples, sampling)
    done = [row | samples._asdict() for row, samples in zip(rows, drawn, strict=True)]
    if not path.exists():
        write_rows(path, done)
    elif list(read_rows(path)) != done:
        raise ValueError(other)
    return done


def read_samples(path: str | PathLike) -> list[dict[str, Any]]:
    """
    Rows of a file that [`samples_to_file`] wrote, or of one like it.

    Raises:
        `ValueError`: If a line is no JSON object with `prompt` and `completions`, or its lists differ in length.
    """
    rows = list(read_rows(path))
    for number, row in enumerate(rows, start=1):
        if not row.get("prompt") or not isinstance(row.get("completions"), list):
            raise ValueError(f"{path}, row {number} is no row of samples: it needs `prompt` and a list `completions`.")
        if not row["completions"]:
            raise ValueError(f"{path}, row {number} has no candidates: `completions` is empty. Remove the row.")
        for name in ("mean_logps", "truncated"):
            if row.get(name) is not None and len(row[name]) != len(row["completions"]):
                raise ValueError(
                    f"{path}, row {number} has {len(row['completions'])} `completions`, but {len(row[name])} "
                    f"`{name}`. The lists must be of one length."
                )
    if not rows:
        raise ValueError(f"{path} has no rows.")
    return rows

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
Completions of a model: prompts in, `n` texts a prompt out, also into a file that a killed run continues.

In the order of the work: what any generation needs, drawing from a local model, drawing from a server, and the file.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.data_utils import is_conversational

from .divergence import completion_states, lm_head, token_logps
from .files import read_rows, write_json, write_rows
from .models import dense_head_weight


if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

_KEPT = "What was drawn before is kept, and the same call goes on there."


class Samples(NamedTuple):
    """
    What a model answered to one prompt: lists of one length.

    Args:
        completions (`list[str]`):
            The texts, without special tokens.
        mean_logps (`list[float or None]`):
            Mean log-probability of each completion's tokens, the end token included; `None` where it is not known.
        truncated (`list[bool]`):
            Whether the completion was cut off before its end.
    """

    completions: list[str]
    mean_logps: list[float | None]
    truncated: list[bool]


def check_prompts(rows: Sequence[dict[str, Any]]) -> None:
    """Raise `ValueError` unless there are rows, and each has a `prompt`."""
    if not rows:
        raise ValueError("The dataset has no rows, so there is nothing to answer.")
    for number, row in enumerate(rows):
        if row.get("prompt") is None:
            raise ValueError(
                f"Row {number} has no `prompt`; its columns are {sorted(row)}. Rename the column that holds the "
                "question to `prompt`, and the reference answer, if any, to `completion`."
            )
        if not row["prompt"]:
            raise ValueError(f"Row {number} has an empty `prompt`. Remove such rows.")


def encode_prompts(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the prompts, standard or conversational, up to where the model goes on."""
    check_prompts(rows)
    encoded = []
    for number, row in enumerate(rows):
        prompt = row["prompt"]
        if is_conversational({"prompt": prompt}):
            goes_on = prompt[-1]["role"] == "assistant"
            ids = tokenizer.apply_chat_template(
                prompt,
                add_generation_prompt=not goes_on,
                continue_final_message=goes_on,
                tokenize=True,
                return_dict=True,
                **(row.get("chat_template_kwargs") or {}),
            )["input_ids"]
        else:
            ids = tokenizer(prompt)["input_ids"]
        if not ids:
            raise ValueError(
                f"The tokenizer finds no token in the prompt of row {number}, {prompt!r}. Remove such rows."
            )
        encoded.append(list(ids))
    return encoded


def batches_by_length(ids: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Row numbers in batches, the longest rows first, so that memory runs out early if at all."""
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer, the tokenizer's among them."""
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        ends.insert(0, tokenizer.eos_token_id)
    return ends


def generation_config(
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    **kwargs: Any,
) -> GenerationConfig:
    """How answers are drawn: greedily at temperature 0, else from the whole distribution or its nucleus, until one of `ends`."""
    drawn = dict(do_sample=True, temperature=temperature, top_p=top_p, top_k=0) if temperature > 0 else {}
    return GenerationConfig(
        **{"do_sample": False} | drawn | kwargs,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends),
        pad_token_id=next((token for token in (tokenizer.pad_token_id, *ends) if token is not None), 0),
        disable_compile=True,
    )


@contextmanager
def generating(models: Sequence[PreTrainedModel]) -> Iterator[None]:
    """
    Eval mode, random numbers of our own, and a neutral generation config, since generate() fills what is unset from
    the model's own. All undone at the end.
    """
    holders = [*models, *(model.get_base_model() for model in models if hasattr(model, "get_base_model"))]
    cuda = sorted({model.device.index or 0 for model in models if model.device.type == "cuda"})
    training, configs = [model.training for model in models], [holder.generation_config for holder in holders]
    for model in models:
        model.eval()
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        with torch.random.fork_rng(cuda):
            yield
    finally:
        for holder, config in zip(holders, configs, strict=True):
            holder.generation_config = config
        for model, mode in zip(models, training, strict=True):
            model.train(mode)


def pad_ids(sequences: Sequence[Sequence[int]], value: int, side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask `(B, T)` of sequences of different lengths."""
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    masks = [torch.ones_like(row) for row in rows]
    return tuple(
        pad_sequence(tensors, batch_first=True, padding_value=fill, padding_side=side).to(device)
        for tensors, fill in ((rows, value), (masks, 0))
    )


def generate_ids(
    model: PreTrainedModel, prompt_ids: Tensor, prompt_mask: Tensor, config: GenerationConfig
) -> list[list[int]]:
    """Answers to prompts `(B, P)` as token ids, the end token included."""
    output = model.generate(input_ids=prompt_ids, attention_mask=prompt_mask, generation_config=config)  # (B, P + T)
    answers = []
    for row in output[:, prompt_ids.shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in config.eos_token_id), len(row) - 1)
        answers.append(row[: end + 1])
    return answers


def _check_settings(settings: dict[str, Any]) -> None:
    """Refuse values that no run can use."""
    if settings["temperature"] < 0:
        raise ValueError(f"`temperature` must be 0 (greedy) or more, got {settings['temperature']}.")
    if not 0 < settings["top_p"] <= 1:
        raise ValueError(f"`top_p` must be in (0, 1], got {settings['top_p']}.")
    for name in ("num_samples", "max_new_tokens", "batch_size"):
        if settings.get(name, 1) < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {settings[name]}.")
    if settings["seed"] < 0:
        raise ValueError(f"`seed` must be 0 or more, got {settings['seed']}.")
    if settings["temperature"] == 0 and settings["num_samples"] > 1:
        raise ValueError(
            f"At `temperature=0` all {settings['num_samples']} samples of a prompt are the same. Raise `temperature`, "
            "or set `num_samples=1`."
        )


def _derived_seed(*numbers: int) -> int:
    """A seed below 2**31 for a part of the work. Unlike a sum, it does not collide between neighbouring seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0]) >> 1


def _check_lengths(ids: Sequence[Sequence[int]], model: PreTrainedModel, max_new_tokens: int) -> None:
    """Refuse prompts that leave no room for the longest completion: to leave them out would change a measurement."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    long = [i for i, prompt in enumerate(ids) if context and len(prompt) + max_new_tokens > context]
    if long:
        raise ValueError(
            f"{len(long)} of {len(ids)} prompts leave no room for `max_new_tokens` ({max_new_tokens}) in the context "
            f"of {context} tokens, the first of them row {long[0]} with {len(ids[long[0]])} tokens. Lower "
            "`max_new_tokens`, or remove these rows."
        )


def _mean_logps(
    model: PreTrainedModel, prompt: tuple[Tensor, Tensor], answers: Sequence[Sequence[int]], pad_token_id: int
) -> list[float]:
    """Mean log-probability of the tokens of each answer to prompts `(B, P)`, given as ids and mask."""
    ids, mask = pad_ids(answers, pad_token_id, "right", prompt[0].device)  # (B, T) each
    states = completion_states(model, *prompt, ids, mask)[mask.bool()]  # (N, H)
    logps = token_logps(states, lm_head(model), ids[mask.bool()]).double().cpu()  # (N,)
    return [part.mean().item() for part in logps.split([len(answer) for answer in answers])]


def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Sequence[dict[str, Any]],
    num_samples: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    batch_size: int = 16,
    seed: int = 42,
    start_batch: int = 0,
) -> Iterator[dict[int, Samples]]:
    """
    Draw completions for every prompt, a batch of prompts at a time, the longest prompts first.

    A batch depends on its own number and `seed` alone, so a run that starts at a later batch draws what the whole run
    would have drawn there. The global random numbers are left as they were.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, on the device on which it shall run.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.Dataset`] or `list[dict]`):
            Rows with `prompt`, standard or conversational, and optionally `chat_template_kwargs`.
        num_samples (`int`):
            Completions a prompt.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of sampling. `0.0` is greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus of sampling.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest completion.
        batch_size (`int`, *optional*, defaults to `16`):
            Completions generated together. A batch is `batch_size // num_samples` prompts, but at least one.
        seed (`int`, *optional*, defaults to `42`):
            Random seed. The texts depend on `batch_size` and on the hardware too.
        start_batch (`int`, *optional*, defaults to `0`):
            Number of the first batch to draw.

    Returns:
        `Iterator[dict[int, Samples]]`: For each batch the samples by number of the row. The log-probabilities are
        those of the full distribution at temperature 1, whatever `temperature` and `top_p` are.

    Raises:
        `ValueError`: If a setting is out of its range, a prompt is missing, or one leaves no room for `max_new_tokens`
        in the model's context.
    """
    settings = dict(num_samples=num_samples, temperature=temperature, top_p=top_p, seed=seed)
    _check_settings(settings | dict(max_new_tokens=max_new_tokens, batch_size=batch_size))
    dense_head_weight(model)  # the log-probabilities go through it
    ids = encode_prompts(dataset, tokenizer)
    _check_lengths(ids, model, max_new_tokens)
    ends = end_token_ids(model, tokenizer)
    config = generation_config(tokenizer, ends, max_new_tokens, temperature, top_p)

    def draw(number: int, rows: list[int]) -> dict[int, Samples]:
        prompts = [ids[i] for i in rows for _ in range(num_samples)]
        answers, logps = [], []
        with generating([model]), torch.no_grad():
            torch.manual_seed(_derived_seed(seed, number))
            for start in range(0, len(prompts), batch_size):
                part = prompts[start : start + batch_size]
                prompt = pad_ids(part, config.pad_token_id, "left", model.device)  # (B, P) each
                drawn = generate_ids(model, *prompt, config)
                answers += drawn
                logps += _mean_logps(model, prompt, drawn, config.pad_token_id)
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        truncated = [answer[-1] not in ends for answer in answers]
        parts = [slice(k * num_samples, (k + 1) * num_samples) for k in range(len(rows))]
        return {i: Samples(texts[p], logps[p], truncated[p]) for i, p in zip(rows, parts, strict=True)}

    batches = batches_by_length(ids, max(batch_size // num_samples, 1))
    return (draw(number, rows) for number, rows in enumerate(batches) if number >= start_batch)


def _ask(client: "OpenAI", row: dict[str, Any], logprobs: bool, **request: Any) -> Samples:
    """One request to a server: `chat/completions` for a conversational prompt, `completions` for a text."""
    if row.get("chat_template_kwargs"):
        request["extra_body"] = {"chat_template_kwargs": row["chat_template_kwargs"]}
    if is_conversational({"prompt": row["prompt"]}):
        request |= {"logprobs": True} if logprobs else {}
        response = client.chat.completions.create(messages=row["prompt"], **request)
        choices = getattr(response, "choices", None) or []  # a web page instead of an answer is a text
        texts = [choice.message.content for choice in choices]
        logps = [[token.logprob for token in getattr(choice.logprobs, "content", None) or []] for choice in choices]
    else:
        request |= {"logprobs": 1} if logprobs else {}
        response = client.completions.create(prompt=row["prompt"], **request)
        choices = getattr(response, "choices", None) or []
        texts = [choice.text for choice in choices]
        logps = [getattr(choice.logprobs, "token_logprobs", None) or [] for choice in choices]
    return Samples(
        [(text or "").encode(errors="replace").decode() for text in texts],  # half a surrogate pair fits in no file
        [sum(of_one) / len(of_one) if of_one else None for of_one in logps],
        [choice.finish_reason == "length" for choice in choices],
    )


def _samples_of_server(
    client: "OpenAI", row: dict[str, Any], number: int, settings: dict[str, Any], logprobs: bool
) -> Samples:
    """All samples of one prompt, in as many requests as it takes: some servers give one choice, whatever `n` says."""
    from openai import OpenAIError

    samples, requests, empty = Samples([], [], []), 0, 0
    while (missing := settings["num_samples"] - len(samples.completions)) > 0:
        try:
            drawn = _ask(
                client,
                row,
                logprobs,
                model=settings["model"],
                n=missing,
                temperature=settings["temperature"],
                top_p=settings["top_p"],
                max_tokens=settings["max_new_tokens"],  # some servers ignore the newer name `max_completion_tokens`
                seed=_derived_seed(settings["seed"], number, requests),
            )
        except OpenAIError as error:
            raise ConnectionError(f"The server failed at row {number}: {str(error).rstrip('.')}. {_KEPT}") from error
        for all_values, values in zip(samples, drawn, strict=True):
            all_values.extend(values[:missing])
        requests += 1
        empty = 0 if drawn.completions else empty + 1
        if empty > client.max_retries:
            raise ConnectionError(
                f"The server answered row {number} without a choice, {empty} times in a row. Does the address end in "
                f"/v1? {_KEPT}"
            )
    return samples


def _open_client(base_url: str | None, api_key_env: str | None, max_retries: int, timeout: float) -> "OpenAI":
    try:
        from openai import OpenAI
    except ImportError as error:
        raise ImportError(
            "Sampling from a server needs the package openai. Install it with `pip install trl-distill[judge]`."
        ) from error
    if api_key_env is None and base_url is None:
        api_key_env = "OPENAI_API_KEY"
    key = os.environ.get(api_key_env) if api_key_env else None  # no server gets a key that is not meant for it
    if not key and base_url is None:
        raise ValueError(
            f"No API key: set the environment variable {api_key_env}, or `base_url` for a server of yours."
        )
    return OpenAI(base_url=base_url, api_key=key or "none", max_retries=max_retries, timeout=timeout)


def _digest(rows: Sequence[dict[str, Any]]) -> str:
    try:
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    except TypeError as error:
        raise ValueError(f"The rows cannot be written as JSON: {error}. Remove or convert such columns.") from error


def _require_same(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to mix the samples of two runs in one file."""
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise ValueError(
                f"{path} was written with `{name}={old.get(name)!r}`, but now it is {new.get(name)!r}. Set it back, "
                "or choose another file."
            )


def _sample_to_file(
    path: str | os.PathLike,
    rows: list[dict[str, Any]],
    settings: dict[str, Any],
    sample: Callable[[int], Iterator[dict[int, Samples]]],
    progress: bool,
) -> list[dict[str, Any]]:
    """
    Let `sample(start_batch)` draw what is missing, and write the file when all is there.

    Until then a journal beside it holds the settings, and one line for each batch, so that a batch is there as a whole
    or not at all.
    """
    path = Path(path)
    journal, settings_file = (path.with_name(f"{path.name}.{end}") for end in ("part", "settings.json"))
    settings = {**settings, "dataset_sha256": _digest(rows), "format": 1}
    if path.exists():
        if not settings_file.exists():
            raise ValueError(f"{path} exists and was not written by this command. Choose another file.")
        _require_same(path, json.loads(settings_file.read_text(encoding="utf-8")), settings)
        journal.unlink(missing_ok=True)
        logger.info("%s is complete.", path)
        return read_samples(path)

    # A last line that was cut off while it was written goes away
    whole = journal.read_bytes().rpartition(b"\n")[0] if journal.exists() else b""
    head, *lines = whole.decode().split("\n")
    if lines:
        _require_same(journal, json.loads(head), settings)
        logger.info("Going on after %d batches of %s.", len(lines), journal)
    samples = {int(i): Samples(*values) for line in lines for i, values in json.loads(line).items()}
    batches = sample(len(lines))  # refuses what cannot work before there is a file
    with open(journal, "ab") as file:
        file.truncate(len(whole) + 1 if lines else 0)
        if not lines:
            file.write(json.dumps(settings).encode() + b"\n")
        with tqdm(total=len(rows), initial=len(samples), desc="Sampling", unit="prompt", disable=not progress) as bar:
            for batch in batches:
                file.write(json.dumps(batch).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                samples |= batch
                bar.update(len(batch))

    done = [row | samples[i]._asdict() for i, row in enumerate(rows)]
    write_json(settings_file, settings)
    write_rows(path, done)
    journal.unlink()
    return done


def sample_to_file(
    path: str | os.PathLike,
    dataset: Sequence[dict[str, Any]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    num_samples: int,
    *,
    model_name: str | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    batch_size: int = 16,
    seed: int = 42,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """
    Draw completions for every prompt with [`sample_completions`], into a file that a killed run continues.

    The file is JSON Lines, one row a prompt in the order of the dataset: the row's columns, and `completions`,
    `mean_logps` and `truncated`, lists of `num_samples` entries each (see [`Samples`]). It appears when all is done.
    Until then everything stands in `<path>.part`, and the same call goes on where that ends: after `kill -9`, too, the
    file is the one of an uninterrupted run. `<path>.settings.json` says how the file was made. A call with other
    settings or rows is refused; a complete file is read and nothing is drawn.

    Args:
        path (`str` or `os.PathLike`):
            File to write, such as `samples.jsonl`.
        dataset ([`~datasets.Dataset`] or `list[dict]`):
            Rows with `prompt`, and any other columns that JSON can hold.
        model_name (`str`, *optional*):
            What to call the model in the settings. Defaults to the name from which it was loaded. The weights are not
            compared: a model that was trained anew under its old name needs another file.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    The other arguments are those of [`sample_completions`].

    Returns:
        `list[dict[str, Any]]`: The rows of the file.

    Raises:
        `ValueError`: If the settings differ from those of the file, naming the first that does, or as
        [`sample_completions`] does.
    """
    rows = [dict(row) for row in dataset]
    settings = dict(
        num_samples=num_samples,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
    )

    def sample(start_batch: int) -> Iterator[dict[int, Samples]]:
        return sample_completions(model, tokenizer, rows, **settings, start_batch=start_batch)

    name = model_name or model.config._name_or_path or type(model).__name__
    return _sample_to_file(path, rows, {"model": name, **settings}, sample, progress)


def sample_server_to_file(
    path: str | os.PathLike,
    dataset: Sequence[dict[str, Any]],
    model: str,
    num_samples: int,
    *,
    base_url: str | None = None,
    api_key_env: str | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 42,
    logprobs: bool = True,
    concurrency: int = 8,
    max_retries: int = 5,
    timeout: float = 600.0,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """
    Draw completions for every prompt from an OpenAI-compatible server, into a file like that of [`sample_to_file`].

    Conversational prompts go to `chat/completions`, standard ones to `completions`. A prompt that the server did not
    finish is asked again after a restart; the rest is never asked twice.

    Args:
        path (`str` or `os.PathLike`):
            File to write.
        dataset ([`~datasets.Dataset`] or `list[dict]`):
            Rows with `prompt`, standard or conversational.
        model (`str`):
            Name of the model on the server.
        num_samples (`int`):
            Completions a prompt.
        base_url (`str`, *optional*):
            Address of the server, such as `http://localhost:8000/v1`. Defaults to OpenAI's.
        api_key_env (`str`, *optional*):
            Environment variable with the key, which itself is never stored. Without `base_url` it is `OPENAI_API_KEY`; a
            server at a `base_url` gets a key only if this is set.
        temperature, top_p, max_new_tokens (*optional*):
            As in [`sample_completions`].
        seed (`int`, *optional*, defaults to `42`):
            Random seed, from which each request derives its own. Servers treat it as a wish.
        logprobs (`bool`, *optional*, defaults to `True`):
            Whether to ask for log-probabilities. `mean_logps` averages the tokens that the server reports, and holds
            `None` where it reports none. Some models refuse the question.
        concurrency (`int`, *optional*, defaults to `8`):
            Prompts that wait for an answer at the same time.
        max_retries (`int`, *optional*, defaults to `5`):
            How often a request is repeated, with growing pauses, when the server is busy, fails or breaks off.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds after which a request is given up and repeated.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `list[dict[str, Any]]`: The rows of the file.

    Raises:
        `ValueError`: As [`sample_to_file`] does, or without a key.
        `ConnectionError`: If the server refuses a request or fails in all retries. What was drawn before stays.
    """
    rows = [dict(row) for row in dataset]
    settings = dict(
        model=model,
        num_samples=num_samples,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    _check_settings(settings)
    check_prompts(rows)
    client = _open_client(base_url, api_key_env, max_retries, timeout)

    def ask(number: int) -> dict[int, Samples]:
        return {number: _samples_of_server(client, rows[number], number, settings, logprobs)}

    def sample(start_batch: int) -> Iterator[dict[int, Samples]]:
        with ThreadPoolExecutor(concurrency) as pool:
            try:
                yield from pool.map(ask, range(start_batch, len(rows)))  # in order, each as soon as it is there
            finally:
                pool.shutdown(cancel_futures=True)

    return _sample_to_file(path, rows, settings | {"logprobs": logprobs}, sample, progress)


def read_samples(path: str | os.PathLike) -> list[dict[str, Any]]:
    """
    Rows of a file that [`sample_to_file`] wrote, or of one like it.

    Raises:
        `ValueError`: If a line is no JSON object, or holds no `prompt` or no list `completions`, or if `mean_logps` or
        `truncated` are of another length.
    """
    rows = list(read_rows(path))
    for number, row in enumerate(rows, start=1):
        if not row.get("prompt") or not isinstance(row.get("completions"), list):
            raise ValueError(
                f"{path}, row {number} is no row of samples: it needs a `prompt` and a list `completions`."
            )
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

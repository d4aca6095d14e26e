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

"""Which prompts are refused or dropped, against counting the tokens of every one."""

import sys
import unicodedata

import pytest
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from tokenizers import normalizers

from trl_distill.minillm.preparation import (
    check_prompts,
    check_readable,
    drop_long_prompts,
    tokenized,
    tokens_per_byte,
)


ROWS = 12_000  # more than are read whole


@pytest.fixture(autouse=True)
def logging_state():
    PartialState(cpu=True)  # accelerate's loggers ask it which process this is


@pytest.fixture
def tokenize(tokenizer):
    """Tokenizes like the trainer, and notes how many prompts it was given."""

    def encode(prompts):
        if isinstance(prompts[0], str):
            return tokenizer(text=prompts)["input_ids"]
        return tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True)["input_ids"]

    def ids(prompts):
        ids.read += len(prompts)
        return tokenized(encode, prompts)

    ids.read = 0
    return ids


def text(row):
    return ("word " if row % 2 else "é\u0958 ") * (1 + row % 7 + 40 * (row % 500 == 3)) + str(row)


def conversation(row):
    """One to three turns, without a content, or with parts for one."""
    turns = [{"role": role, "content": text(row)} for role in ("system", "user", "assistant", "user")[: 1 + row % 4]]
    return turns if row % 11 else [{"role": "user", "content": None}, *turns]


KINDS = {
    "texts": lambda rows: [text(row) for row in rows],
    "conversations": lambda rows: [conversation(row) for row in rows],
    "one role": lambda rows: [[{"role": "user", "content": text(row), "turn": row}] for row in rows],
}
VIEWS = {
    "whole": lambda data: data,
    "shuffled": lambda data: data.shuffle(seed=1),
    "selected": lambda data: data.shuffle(seed=1).select(range(500, 11_500)),
    "slice": lambda data: data.select(range(1000, ROWS)),
    "joined": lambda data: concatenate_datasets([data.select(range(6000)), data.select(range(6000, ROWS))]),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_are_dropped_as_by_tokenizing_all(tokenize, kind, view, caplog):
    data = VIEWS[view](Dataset.from_dict({"prompt": KINDS[kind](range(ROWS)), "row": range(ROWS)}))
    lengths = [len(ids) for batch in data.iter(1000) for ids in tokenize(batch["prompt"])]
    tokenize.read = 0
    kept = drop_long_prompts(data, "mine", tokenize, 150, bytes_grow=1)
    rows = [row for row, length in zip(data["row"], lengths, strict=True) if length <= 150]
    assert kept["row"][:] == rows and len(rows) < len(data)
    assert f"Dropped {len(data) - len(rows)} of {len(data)} rows of `mine`" in caplog.text
    assert len(data) - len(rows) <= tokenize.read < 0.7 * len(data)


@pytest.mark.parametrize("limit", [None, 10_000])
def test_prompts_that_fit_by_their_bytes_are_not_tokenized(tokenize, limit):
    data = Dataset.from_dict({"prompt": KINDS["conversations"](range(ROWS))})
    assert drop_long_prompts(data, "mine", tokenize, limit, bytes_grow=1) is data
    assert tokenize.read < 10  # one for each order of roles


def test_small_data_are_read_whole(tokenize):
    data = Dataset.from_dict({"prompt": [text(row) for row in range(100)]})
    drop_long_prompts(data, "mine", tokenize, 1000, bytes_grow=1)
    assert tokenize.read == 101  # the shortest twice


def test_a_tokenizer_that_rewrites_texts_may_lengthen_them(tokenizer, tokenize):
    assert tokens_per_byte(tokenizer) == 1
    growth = max(
        len(unicodedata.normalize(form, chr(code)).encode()) / len(chr(code).encode())
        for form in ("NFC", "NFD", "NFKC", "NFKD")
        for code in range(sys.maxunicode)
        if not 0xD800 <= code < 0xE000
    )
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    try:
        assert tokens_per_byte(tokenizer) >= growth
        data = Dataset.from_dict({"prompt": ["\ufdfa" * (1 + row % 4) for row in range(ROWS)]})
        kept = drop_long_prompts(data, "mine", tokenize, 100, tokens_per_byte(tokenizer))
        assert set(kept["prompt"]) == {"\ufdfa" * count for count in (1, 2, 3)}  # 33 tokens each
    finally:
        tokenizer.backend_tokenizer.normalizer = None


EMPTY = {
    "texts": ["a", "b", "", "c"],
    "no texts": ["a", "b", None, "c"],
    "conversations": [[{"role": "user", "content": "a"}]] * 2 + [[]] + [[{"role": "user", "content": "b"}]],
}


@pytest.mark.parametrize("kind", EMPTY)
def test_an_empty_prompt_is_found_where_it_stands(kind):
    data = Dataset.from_dict({"prompt": EMPTY[kind]})
    views = {2: data, 0: data.select([2, 0]), 3: data.select([3, 1, 0, 2]), 1: data.select(range(1, 4))}
    for row, view in views.items():
        with pytest.raises(ValueError, match=f"`mine` has an empty prompt in row {row}"):
            check_prompts(view, "mine")
    check_prompts(data.select([0, 1, 3]), "mine")
    check_prompts(concatenate_datasets([data.select([0]), data.select([3])]), "mine")


def test_a_prompt_that_cannot_be_tokenized_is_named(tokenizer, tokenize, monkeypatch):
    refuse = "{% if message['content'] == 'bad' %}{{ raise_exception('no bad words') }}{% endif %}"
    template = tokenizer.chat_template.replace("%}<|{{", f"%}}{refuse}<|{{{{", 1)
    monkeypatch.setattr(tokenizer, "chat_template", template)
    prompts = [[{"role": "user", "content": "bad" if row == 300 else "good"}] for row in range(400)]
    data = Dataset.from_dict({"prompt": prompts})
    with pytest.raises(ValueError, match="row 300 of `mine` cannot be tokenized: no bad words, in the prompt .*'bad'"):
        drop_long_prompts(data, "mine", tokenize, None, bytes_grow=1)
    with pytest.raises(
        ValueError, match="row 100 of `other` cannot be tokenized: no bad words, in the prompt .*'bad'"
    ):
        drop_long_prompts({"other": data.select(range(200, 400))}, "mine", tokenize, None, bytes_grow=1)
    stream = drop_long_prompts(data.to_iterable_dataset(), "mine", tokenize, None, bytes_grow=1)
    with pytest.raises(ValueError, match="row 300 of `mine` cannot be tokenized: no bad words, in the prompt .*'bad'"):
        list(stream)


def test_an_order_of_roles_that_the_template_refuses_is_found_in_large_data(tokenizer, tokenize, monkeypatch):
    order = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('the user comes first') }}{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", order + tokenizer.chat_template)
    roles = ["assistant" if row == 11_000 else "user" for row in range(ROWS)]
    data = Dataset.from_dict({"prompt": [[{"role": role, "content": "a"}] for role in roles]})
    with pytest.raises(ValueError, match="row 11000 of `mine` cannot be tokenized: the user comes first"):
        drop_long_prompts(data, "mine", tokenize, None, bytes_grow=1)


def test_what_the_models_cannot_read():
    check_readable(["ab"], [[1, 2]], foreign={3}, limit=2)
    for ids, message in (
        ([], "no token"),
        ([1, 3], "token 3 in the prompt 'ab'"),
        ([1, 2, 4], "3 tokens, and 2 leave"),
    ):
        with pytest.raises(ValueError, match=message):
            check_readable(["ab"], [ids], foreign={3}, limit=2)

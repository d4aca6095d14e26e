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

import sqlite3

import pytest
import torch
from batch_server import BatchServer
from chat_server import PRICES, Meter

from tests.loop_fixtures import server  # noqa: F401
from trl_distill.chat import CallStore, ChatRequest, EndpointChatModel, LocalChatModel, Sampling, chat_model
from trl_distill.zephyr import FeedbackConfig, run_feedback


@pytest.fixture
def ask():
    """Factory of requests: the n-th of some length, in a line."""

    def build(count, start=0, sample_index=0, **sampling):
        return [
            ChatRequest([{"role": "user", "content": f"question {i}"}], Sampling(**sampling), sample_index)
            for i in range(start, start + count)
        ]

    return build


@pytest.fixture
def path(tmp_path):
    return tmp_path / "calls.sqlite"


@pytest.fixture
def store(path):
    with CallStore(path) as store:
        yield store


@pytest.fixture
def rows(path):
    """The calls in the store at `path`, by columns."""

    def read(columns="*"):
        with sqlite3.connect(path) as connection:
            return connection.execute(f"SELECT {columns} FROM calls ORDER BY id").fetchall()

    return read


@pytest.fixture
def saved(tiny_model, tokenizer, tmp_path):
    """Factory of folders with a tiny chat model that ends an answer about every tenth token."""

    def build(name="model", seed=0, **config):
        folder = tmp_path / name
        model = tiny_model(seed=seed, **config)
        with torch.no_grad():
            model.lm_head.weight[tokenizer.eos_token_id] *= 2
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    yield build
    if LocalChatModel._in_memory is not None:
        LocalChatModel._in_memory.close()


@pytest.fixture
def meter(server, path):  # noqa: F811
    meter = Meter(server)
    yield meter
    meter.check(path)


@pytest.fixture
def connect(server):  # noqa: F811
    """Factory of clients of the server, with short waits."""
    opened = []

    def build(name="m", base_url=server.base_url, **settings):
        settings = {"backoff": 0.001, "timeout": 10.0, "concurrency": 1, **PRICES} | settings
        opened.append(EndpointChatModel(name, base_url, **settings))
        return opened[-1]

    yield build
    for model in opened:
        model.close()


@pytest.fixture
def feedback(tmp_path, path, connect):
    """A run of feedback with one responder and one judge of the server, whose calls the meter checks."""

    def run(num_prompts=4, responder=None, judge=None, **settings):
        with connect("responder", **responder or {}) as model, connect("judge", **judge or {}) as referee:
            config = FeedbackConfig(output_dir=str(tmp_path), num_answers=2, decontaminate=[], **settings)
            prompts = [f"question {i}" for i in range(num_prompts)]
            return run_feedback(config, prompts=prompts, responders=[model], judges=[referee])

    return run


@pytest.fixture
def batches(path):
    """A server with batches, whose count is that of the store at the end."""
    scripted = BatchServer()
    yield scripted
    scripted.stop()
    scripted.check(scripted.path or path)


@pytest.fixture
def batch_model(batches):
    """Factory of models behind that server."""
    opened = []

    def build(name="m", **settings):
        entry = {"model": name, "base_url": batches.base_url, "engine": "batch", "poll_interval": 0.001}
        opened.append(chat_model(entry | {"backoff": 0.001, **PRICES} | settings))
        return opened[-1]

    yield build
    for model in opened:
        model.close()


@pytest.fixture
def complete(path, batch_model):
    """Ask through a store that is opened anew, as the next run does."""

    def run(requests, limits=None, **settings):
        with CallStore(path, **limits or {}) as store:
            return store.model(batch_model(**settings), "teacher").complete(requests)

    return run

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
"""The happy path against a real server, `transformers serve`, which must answer as the local model does."""

from dataclasses import replace

import pytest

from benchmarks.serving import served
from trl_distill.chat import CallStore, ChatRequest, EndpointChatModel, LocalChatModel, Sampling


pytestmark = pytest.mark.slow


@pytest.fixture
def real_server(saved, tmp_path):
    """Folder and address of a tiny model that `transformers serve` serves."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    folder = saved(seed=1)
    with served(folder, tmp_path / "serve.log") as address:
        yield folder, address


def test_a_real_server_answers_as_the_local_model_does(real_server, tmp_path):
    folder, base_url = real_server
    requests = [
        ChatRequest([{"role": "user", "content": f"Say {'very ' * (i % 4)}well: {i}"}], Sampling(0.0, max_tokens=20))
        for i in range(9)
    ]
    endpoint = EndpointChatModel(folder, base_url, concurrency=3, prompt_price=1.0, completion_price=2.0)
    with CallStore(tmp_path / "calls.sqlite") as store:
        stored = store.model(endpoint, "teacher")
        answers = stored.complete(requests)
        assert stored.complete(requests) == answers and stored.missing(requests).calls == 0
        [row] = store.ledger()
    local = LocalChatModel(folder, device="cpu").complete(requests)
    local = [replace(answer, text=answer.text.strip()) for answer in local]
    for special in ("<pad>", "<|user|>", "<|assistant|>"):  # only a random model writes them
        answers = [replace(answer, text=answer.text.replace(special, "").strip()) for answer in answers]
    assert answers == local and {answer.finish_reason for answer in local} == {"stop", "length"}
    tokens = sum(a.prompt_tokens for a in local), sum(a.completion_tokens for a in local)
    assert (row.calls, row.prompt_tokens, row.completion_tokens) == (9, *tokens)
    assert row.cost_usd == pytest.approx((tokens[0] + 2 * tokens[1]) / 1e6)

    # It draws only if the generation config says so, whatever the temperature
    drawing = EndpointChatModel(folder, base_url, extra_body={"generation_config": '{"do_sample": true, "top_k": 0}'})
    draws = [ChatRequest(requests[0].messages, Sampling(max_tokens=12), k) for k in range(4)]
    assert len({answer.text for answer in drawing.complete(draws)}) > 1
    assert len({answer.text for answer in endpoint.complete(draws)}) == 1

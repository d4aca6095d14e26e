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
"""A local model in vLLM's engine answers as transformers does. CONTRIBUTING.md says how to make its environment."""

from collections import Counter
from dataclasses import replace

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from trl_distill.chat import CallStore, LocalChatModel, VLLMChatModel, chat_model


HEADS_OF_64 = dict(hidden_size=64, num_attention_heads=1, num_key_value_heads=1)  # what its kernels for CPUs want
ENGINE = {"enforce_eager": True, "max_model_len": 128}


def test_an_entry_of_a_file():
    model = chat_model({"model_name_or_path": "here", "engine": "vllm", "engine_kwargs": ENGINE, "batch_size": 9})
    assert isinstance(model, VLLMChatModel) and (model.engine_kwargs, model.batch_size) == (ENGINE, 9)
    assert type(chat_model({"model_name_or_path": "here", "engine": "transformers"})) is LocalChatModel
    with pytest.raises(ValueError, match="must be `transformers` or `vllm`, got 'sglang'"):
        chat_model({"model_name_or_path": "here", "engine": "sglang"})
    with pytest.raises(ValueError, match="Unknown key `load_in_4bit`"):
        chat_model({"model_name_or_path": "here", "engine": "vllm", "load_in_4bit": True})
    with pytest.raises(ValueError, match="must be `batch`, got 'vllm'"):
        chat_model({"model": "there", "engine": "vllm"})


def test_who_it_is(saved):
    folder = saved()
    local, engine = LocalChatModel(folder).identity, VLLMChatModel(folder).identity
    assert engine == local | {"engine": "vllm"}
    assert VLLMChatModel(folder, batch_size=3, engine_kwargs=ENGINE).identity == engine


@pytest.mark.slow
class TestEngine:
    @pytest.fixture
    def engine(self, saved, monkeypatch):
        pytest.importorskip("vllm")
        for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}.items():
            monkeypatch.setenv(name, value)
        with VLLMChatModel(saved(seed=1, **HEADS_OF_64), engine_kwargs=ENGINE) as model:
            yield model

    def test_answers(self, engine, ask, path):
        greedy = ask(9, temperature=0.0, max_tokens=20, logprobs=True)
        local = LocalChatModel(engine.model_name_or_path, device="cpu", dtype="float32")
        expected = local.complete(greedy)
        assert {answer.finish_reason for answer in expected} == {"stop", "length"}
        for answer, other in zip(engine.complete(greedy), expected, strict=True):
            assert answer.mean_logp == pytest.approx(other.mean_logp, abs=1e-3)
            assert replace(answer, mean_logp=None) == replace(other, mean_logp=None)

        # Drawn answers are those of their requests, however they are cut into batches and whatever was drawn before
        drawn = ask(12, temperature=1.0, max_tokens=6)
        first = engine.complete(drawn)
        engine.batch_size = 5
        assert engine.complete(drawn[::-1]) == first[::-1]
        assert len({answer.text for answer in first}) > 6
        again = engine.complete(ask(12, sample_index=1, temperature=1.0, max_tokens=6))
        assert sum(a.text != b.text for a, b in zip(first, again, strict=True)) > 6
        counts = Counter(
            answer.text for k in range(400) for answer in engine.complete(ask(1, sample_index=k, max_tokens=1))
        )
        assert len(counts) > 5

        with CallStore(path) as store:
            assert store.model(engine, role="student").complete(drawn) == first
            engine.close()
            assert store.model(engine, role="student").complete(drawn) == first
            assert "_loaded" not in vars(engine)  # nothing was missing

        too_long = ask(1, max_tokens=200)
        with pytest.raises(ValueError, match="leave no room for 200 new tokens in the context of 128"):
            engine.check(too_long)

    def test_an_adapter_is_refused(self, engine, ask, tmp_path):
        base = AutoModelForCausalLM.from_pretrained(engine.model_name_or_path)
        get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
        with pytest.raises(ValueError, match="is an adapter, which is not given to vLLM here. Merge it first"):
            VLLMChatModel(str(tmp_path / "adapter")).complete(ask(1, max_tokens=6))

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

"""MiniLLM under DDP, ZeRO-2, ZeRO-3 and FSDP2 on two CPU processes computes what one process computes."""

from functools import partial
from pathlib import Path

import pytest
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from tests.runs import assert_same_logits


LOADERS = {"full": AutoModelForCausalLM, "tied": AutoModelForCausalLM, "lora": AutoPeftModelForCausalLM}


@pytest.fixture
def run(on_one_and_two_processes, tmp_path, tiny_model, tokenizer):
    """What one process and two get, with a teacher whose head is padded."""
    tiny_model().save_pretrained(tmp_path / "student")
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    tiny_model(seed=1, vocab_size=264, hidden_size=16, num_hidden_layers=4).save_pretrained(tmp_path / "teacher")
    for name in ("student", "teacher"):
        tokenizer.save_pretrained(tmp_path / name)
    return partial(on_one_and_two_processes, Path(__file__).with_name("run_minillm.py"), tmp_path)


@pytest.mark.parametrize("mode", ["ddp", pytest.param("zero2", marks=pytest.mark.slow), "zero3", "fsdp2"])
def test_two_processes_give_the_loss_of_one(mode, run, tmp_path):
    one, two = run(mode)
    # Coins are those of the process, or where models are sharded, of all
    assert len(one.pop("mixed")) == len(two.pop("mixed")) == 2
    whole, held = one.pop("teacher held"), two.pop("teacher held")
    assert whole == 1
    assert held == 1 if mode in ("ddp", "zero2") else held < 0.65
    assert two.pop("silent") == [True] * 3
    # Five evaluation rows on two processes: none counted twice, and names that only one process has mix nothing up
    for name, value in one.items():
        if name != "silent":
            assert two[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert one["eval_accuracy"] == pytest.approx(1 / 5)
    assert two["resumed/loss"] == two["full/loss"] and two["resumed/grad_norm"] == two["full/grad_norm"]
    for name, loader in LOADERS.items():
        assert_same_logits(loader.from_pretrained, *(tmp_path / f"{name}-{n}" for n in (1, 2)))


@pytest.mark.slow
def test_sharded_models_draw_the_same(run):
    """All processes share their coins there, however the models are sharded."""
    (_, zero3), (_, fsdp2) = run("zero3"), run("fsdp2")
    assert zero3["mixed"] == pytest.approx(fsdp2["mixed"], rel=1e-5)

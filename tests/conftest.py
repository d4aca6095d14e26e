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

"""Tiny models and data, built from configs: no network, no downloaded weights."""

import gc
import json
import logging
import os
import runpy
import subprocess
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the Hub fails at once instead of waiting

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tests.commands import TWO_PROCESSES


CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def quick_garbage_collection():
    """Trainers collect garbage three times a run. Spare them the objects of libraries: most of a tiny run's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def log_levels():
    """Commands set the levels of our loggers for a terminal. Undo it, so that no test depends on those before it."""
    loggers = [logging.getLogger(name) for name in ("trl_distill", "trl_distill.lion")]
    levels = [logger.level for logger in loggers]
    disabled = logging.root.manager.disable
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    logging.disable(disabled)  # which laboratories raise


@pytest.fixture(autouse=True)
def whole_floats():
    """Libraries that are compiled for speed switch the smallest floats off, for all that runs after them."""
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level tokenizer: 256 bytes and four special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<|endoftext|>", "<|user|>", "<|assistant|>"]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<|endoftext|>",
        additional_special_tokens=special[2:],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
    )


@pytest.fixture
def tiny_model(tokenizer):
    """
    Factory of tiny Qwen2 models, the shape of `trl-internal-testing/tiny-Qwen2ForCausalLM-2.5`.

    The initial weights are widened, because at the default of 0.02 every next-token distribution is almost uniform.
    """

    def build(seed=0, vocab_size=None, initializer_range=0.5, **config):
        torch.manual_seed(seed)
        values = dict(
            hidden_size=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_hidden_layers=2,
            intermediate_size=32,
            max_position_embeddings=512,
            tie_word_embeddings=False,
        )
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=vocab_size or len(tokenizer),
                initializer_range=initializer_range,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
                **(values | config),
            )
        )
        return model.eval()

    return build


@pytest.fixture
def tiny_gpt2(tokenizer):
    """Factory of tiny GPT-2 models, whose positions are learned and absolute."""

    def build(seed=0, vocab_size=None, initializer_range=0.5, **config):
        torch.manual_seed(seed)
        values = dict(n_embd=8, n_head=2, n_layer=2, n_positions=512, tie_word_embeddings=False)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab_size or len(tokenizer),
                initializer_range=initializer_range,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
                **(values | config),
            )
        )
        return model.eval()

    return build


@pytest.fixture
def prompts():
    """Sixteen different prompts with short completions, of different lengths."""
    return Dataset.from_dict(
        {
            "prompt": [f"Say {'very ' * (i % 4)}well: {i}" for i in range(16)],
            "completion": [f" {'ab' * (1 + i % 3)}." for i in range(16)],
        }
    )


@pytest.fixture
def on_one_and_two_processes(tmp_path):
    """What `run` of a script gives in this process, and on two CPU processes (gloo) under DDP, ZeRO or FSDP2."""

    def results(script, folder, mode="ddp"):
        output = tmp_path / "two.json"
        program = Path(__file__).parent / "distributed/two_processes.py"
        command = [*TWO_PROCESSES, program, script, folder, output, mode]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        one, two = runpy.run_path(str(script))["run"](folder, processes=1), json.loads(output.read_text())
        assert one.pop("processes", 1) == 1 and two.pop("processes") == 2
        return one, two

    return results

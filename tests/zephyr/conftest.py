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

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rules import PROMPTS, judge, pool
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from tests.commands import CPU, read_rows
from tests.loop_fixtures import no_picture, picture, server  # noqa: F401
from trl_distill.zephyr import CompareConfig, FeedbackConfig, run_compare, run_feedback
from trl_distill.zephyr.reference_check import ReferenceCheckCallback


TEMPLATE = Path(__file__).parents[2] / "recipes" / "zephyr" / "zephyr.jinja"
SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}  # 4-bit blocks need 64
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="session")
def chat_tokenizer():
    """Bytes, BOS, EOS, and one token for two newlines, so that text can merge across the start of an answer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet, "ĊĊ"])}
    backend = Tokenizer(models.BPE(vocabulary, merges=[("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=TEMPLATE.read_text(),
    )


@pytest.fixture
def save_model(tiny_model, chat_tokenizer, tmp_path):
    """Save a tiny model and the tokenizer in `tmp_path / name`, and return that path."""

    def save(name="model", seed=0, **config):
        model = tiny_model(seed=seed, vocab_size=264, initializer_range=0.1, **(SIZE | config))
        for settings in (model.config, model.generation_config):
            settings.pad_token_id, settings.bos_token_id, settings.eos_token_id = 0, 1, 2
        model.save_pretrained(tmp_path / name)
        chat_tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.fixture
def save_adapter(tmp_path, chat_tokenizer):
    """Save a LoRA with random weights on the model in `base`, as supervised training would, and return its path."""

    def save(base, name="sft", tokenizer=chat_tokenizer, seed=5, **config):
        torch.manual_seed(seed)
        values = dict(r=4, lora_alpha=8, target_modules=ALL_LINEAR, task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**(values | config)))
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.05)
        model.save_pretrained(tmp_path / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.fixture(scope="session")
def pairs():
    """Twelve prompts; the preferred answer always says yes."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"Is {i} {'very ' * (i % 3)}good?"}],
                "chosen": [{"role": "assistant", "content": f"yes, {i}"}],
                "rejected": [{"role": "assistant", "content": "no" + "!" * (i % 4)}],
            }
            for i in range(12)
        ]
    )


@pytest.fixture
def settings(tmp_path):
    """Arguments of a run of three steps on the CPU in fp32."""
    return dict(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        max_steps=3,
        learning_rate=1e-3,
        disable_tqdm=True,
        **CPU,
    )


@pytest.fixture
def make_dpo(settings, pairs):
    """A [`DPOTrainer`] with the check; keyword arguments that `DPOConfig` does not know go to the trainer."""

    def make(model, ref_model=None, peft_config=None, train_dataset=pairs, eval_dataset=None, **changes):
        return DPOTrainer(
            model,
            ref_model,
            args=DPOConfig(**(settings | changes)),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            peft_config=peft_config,
            callbacks=[ReferenceCheckCallback()],
        )

    return make


@pytest.fixture
def config(tmp_path):
    """Factory of configs that write into a folder of the test."""

    def build(**settings):
        return FeedbackConfig(**({"output_dir": str(tmp_path / "out"), "decontaminate": []} | settings))

    return build


@pytest.fixture
def feedback(config):
    """A run of rules on `PROMPTS`. Arguments of the run stand in the place of its parts; all others are settings."""

    def run(responders="abcd", judges=None, prompts=PROMPTS, student=None, **settings):
        responders = pool(*responders) if isinstance(responders, str) else responders
        judges = [judge()] if judges is None else judges
        return run_feedback(config(**settings), prompts=prompts, responders=responders, student=student, judges=judges)

    return run


@pytest.fixture
def compare(tmp_path):
    """A comparison of two rules on `PROMPTS`. Arguments of the run stand in the place of its parts, as above."""

    def run(models=None, referee=None, prompts=PROMPTS, output_dir="out", **settings):
        models = pool("dpo", "sft") if models is None else models
        config = CompareConfig(output_dir=str(tmp_path / output_dir), **settings)
        return run_compare(config, prompts=prompts, models=models, judge=referee or judge())

    return run


@pytest.fixture
def read(tmp_path):
    """Rows of a file of a run, by its name."""

    def rows(name, folder="out"):
        return read_rows(tmp_path / folder / f"{name}.jsonl")

    return rows


@pytest.fixture
def candidates(read):
    """All answers of a run, with what is said of them."""
    return lambda: [candidate for row in read("ratings") for candidate in row["candidates"]]

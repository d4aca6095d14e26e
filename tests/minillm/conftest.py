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

"""A trainer of tiny models, and a corpus."""

import pytest
from datasets import Dataset

from trl_distill import MiniLLMConfig, MiniLLMTrainer


TRAINER_ARGUMENTS = ("eval_dataset", "lm_dataset", "processing_class", "callbacks", "peft_config", "answer_checker")


@pytest.fixture
def make_trainer(tiny_model, tokenizer, prompts, tmp_path):
    def build(model=None, teacher_model=None, train_dataset=prompts, **kwargs):
        arguments = {name: kwargs.pop(name) for name in TRAINER_ARGUMENTS if name in kwargs}
        settings = dict(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=4,
            max_completion_length=8,
            learning_rate=1e-2,
            max_steps=4,
            bf16=False,
            use_cpu=True,
            report_to="none",
            logging_steps=1,
            save_strategy="no",
            gradient_checkpointing=False,
            disable_tqdm=True,
            length_normalization=True,  # the paper's credit; whitening would need a student pass of its own
            whiten_advantages=False,
        )
        settings |= kwargs
        if teacher_model is None and not settings.get("teacher_is_base"):
            teacher_model = tiny_model(seed=1)
        return MiniLLMTrainer(
            model=tiny_model(seed=0) if model is None else model,
            teacher_model=teacher_model,
            args=MiniLLMConfig(**settings),
            train_dataset=train_dataset,
            **({"processing_class": tokenizer} | arguments),
        )

    return build


@pytest.fixture
def corpus():
    return Dataset.from_dict({"text": [f"Sentence number {i} of a plain text. " * 3 for i in range(12)]})

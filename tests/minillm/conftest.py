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

from tests.runs import TINY_RUN, make
from trl_distill import MiniLLMConfig, MiniLLMTrainer


@pytest.fixture
def make_trainer(tiny_model, tokenizer, prompts, tmp_path):
    def build(model=None, teacher_model=None, train_dataset=prompts, **values):
        settings = TINY_RUN | dict(
            output_dir=str(tmp_path / "run"),
            max_completion_length=8,
            max_steps=4,
            gradient_checkpointing=False,
            length_normalization=True,  # the paper's credit; whitening would need a student pass of its own
            whiten_advantages=False,
        )
        if teacher_model is None and not (values.get("teacher_is_base") or values.get("teacher_model_server_url")):
            teacher_model = tiny_model(seed=1)
        model = tiny_model(seed=0) if model is None else model
        models = dict(model=model, teacher_model=teacher_model)
        data = dict(train_dataset=train_dataset, processing_class=tokenizer)
        return make(MiniLLMTrainer, MiniLLMConfig, **models, **settings | data | values)

    return build


@pytest.fixture
def corpus():
    return Dataset.from_dict({"text": [f"Sentence number {i} of a plain text. " * 3 for i in range(12)]})

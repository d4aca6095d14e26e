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


import pytest

from trl_distill.offline_distillation import RecordConfig, load_recorded, record_teacher


@pytest.fixture
def teacher(tmp_path, tiny_model, tokenizer):
    """Factory of teachers on the disk, with a few rows of the head that belong to no token."""

    def save(name="teacher", seed=1, vocab_size=264, **config):
        folder = tmp_path / name
        tiny_model(seed=seed, vocab_size=vocab_size, **config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def record(tmp_path, teacher, prompts):
    """Records the prompts' completions, and gives the rows."""

    def recorded(folder=None, output="recorded", rows=None, **settings):
        settings = dict(loss_top_k=8, batch_size=3, chunk_tokens=7, shard_tokens=30, device="cpu") | settings
        config = RecordConfig(str(folder or teacher()), output_dir=str(tmp_path / output), **settings)
        record_teacher(config, prompts if rows is None else rows)
        return load_recorded(tmp_path / output)

    return recorded

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
import yaml

from tests.commands import CPU


@pytest.fixture
def sft_config(tmp_path, tokenizer, tiny_model, prompts):
    """A config file of a run with a tiny model and one JSON Lines file."""
    tiny_model(vocab_size=264).save_pretrained(tmp_path / "student")  # the saved tokenizer gets one more special token
    tokenizer.save_pretrained(tmp_path / "student")
    prompts.to_json(tmp_path / "rows.jsonl")
    values = {
        "model_name_or_path": str(tmp_path / "student"),
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
    }

    def write(**changes):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(CPU | values | changes))
        return str(path)

    return write

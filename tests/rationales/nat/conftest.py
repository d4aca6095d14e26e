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
import gc

import pytest
from datasets import Dataset


@pytest.fixture(scope="session", autouse=True)
def quick_garbage_collection():
    """Trainers collect garbage three times a run. Spare them the objects of libraries: most of a tiny run's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def rows():
    """Sixteen right and eight wrong rows, of 15 to 42 tokens."""
    return Dataset.from_dict(
        {
            "prompt": [f"Q{i}: " for i in range(24)],
            "completion": [f"answer {i} " * (1 + i % 3) for i in range(24)],
            "label": [i % 3 != 0 for i in range(24)],
        }
    )


@pytest.fixture
def chats():
    """Eight conversations, right and wrong in turn."""
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"Q{i}"}] for i in range(8)],
            "completion": [[{"role": "assistant", "content": f"answer {i}"}] for i in range(8)],
            "label": [i % 2 == 0 for i in range(8)],
        }
    )


@pytest.fixture
def settings():
    """What all trainers here share: 4 steps of NAT's negative stage, 8 of the positive one, 12 on all rows."""
    return dict(
        per_device_train_batch_size=4,
        num_train_epochs=2,
        learning_rate=1e-2,
        bf16=False,
        use_cpu=True,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )

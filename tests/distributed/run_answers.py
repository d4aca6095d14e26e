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

"""Run by `test_answers_of_sharded_models` on one CPU process and on two: a training with answers around it."""

from pathlib import Path

from datasets import Dataset

from tests.runs import TINY_RUN, losses
from trl_distill.report.answers import AnswersCallback
from trl_distill.sft_config import SFTConfig
from trl_distill.sft_trainer import CountingSFTTrainer


def run(folder: Path, processes: int) -> dict:
    values = TINY_RUN | {"per_device_train_batch_size": 4 // processes, "max_steps": 2, "adam_epsilon": 1e-2}
    output = folder / f"answers-{processes}"
    trainer = CountingSFTTrainer(
        str(folder / "model"),
        args=SFTConfig(str(output), **values),
        train_dataset=Dataset.from_json(str(folder / "rows.jsonl")),
    )
    trainer.add_callback(AnswersCallback(trainer))
    trainer.train()
    trainer.accelerator.wait_for_everyone()
    rows = output / "rollouts.jsonl"
    return {"loss": losses(trainer), "rows": len(rows.read_text().splitlines()) if rows.exists() else 0}

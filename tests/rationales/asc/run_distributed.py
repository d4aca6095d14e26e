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

"""Run by `test_two_processes_give_the_loss_of_one` on one and on two CPU processes (gloo, DDP)."""

from pathlib import Path

from datasets import Dataset

from tests.runs import TINY_RUN
from trl_distill.rationales.asc import ASCRankerConfig, ASCRankerTrainer


def run(folder: Path, processes: int) -> dict:
    rows = [
        {"prompt": f"What is {i} + {i}?", "completion": f" {'so ' * i}{2 * i + off}.", "label": not off}
        for i in range(9)
        for off in (0, 3)
    ]
    trainer = ASCRankerTrainer(
        str(folder / "ranker"),
        args=ASCRankerConfig(
            **TINY_RUN | {"per_device_train_batch_size": 4 // processes},
            output_dir=str(folder / "run"),
            per_device_eval_batch_size=2 // processes,
            optim="sgd",
            max_steps=4,
        ),
        train_dataset=Dataset.from_list(rows[:16]),
        eval_dataset=Dataset.from_list(rows[11:]),  # seven rows: the last batch of two processes is filled up
    )
    trainer.train()
    trainer.save_model(str(folder / f"trained-{processes}"))
    history = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    result = {name: [entry[name] for entry in history] for name in ("loss", "grad_norm", "accuracy", "right")}
    metrics = trainer.evaluate()
    return result | {name: metrics[name] for name in ("eval_accuracy", "eval_auc", "eval_pair_accuracy", "eval_right")}

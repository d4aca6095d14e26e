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


"""What `test_two_processes_give_the_loss_of_one` runs, on one CPU process and on two."""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.runs import TINY_RUN
from trl_distill import OfflineDistillationConfig, OfflineDistillationTrainer, load_recorded


def run(folder: Path, processes: int) -> dict:
    rows = load_recorded(folder / "recorded")
    trainer = OfflineDistillationTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "student"),
        OfflineDistillationConfig(
            **TINY_RUN | {"per_device_train_batch_size": 4 // processes},
            output_dir=str(folder / "run"),
            per_device_eval_batch_size=4 // processes,
            gradient_accumulation_steps=2,
            optim="sgd",
            max_steps=3,
            beta=0.3,
            alpha=0.7,
        ),
        rows,
        rows,
        processing_class=AutoTokenizer.from_pretrained(folder / "student"),
    )
    trainer.train()
    trainer.save_model(str(folder / f"student-{processes}"))
    history, metrics = [entry for entry in trainer.state.log_history if "grad_norm" in entry], trainer.evaluate()
    names = ("loss", "grad_norm", "ce", "divergence", "teacher/tail")
    result = {name: [entry[name] for entry in history] for name in names}
    return result | {name: metrics[name] for name in ("eval_ce", "eval_divergence")}

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

"""What `test_two_processes_stop_together` runs on two CPU processes (gloo, DDP)."""

import gc
import json
import sys
from pathlib import Path

import torch.distributed as dist
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from trl_distill.zephyr.reference_check import ReferenceCheckCallback, WrongReferenceError


def run(folder: Path, reference: str) -> str | None:
    """What stopped the run, if anything did."""
    trainer = DPOTrainer(
        str(folder / "right"),
        AutoModelForCausalLM.from_pretrained(folder / reference),
        args=DPOConfig(
            str(folder / f"out-{reference}"),
            beta=0.01,
            per_device_train_batch_size=2,
            max_steps=2,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_json(str(folder / "pairs.jsonl")),
        callbacks=[ReferenceCheckCallback()],
    )
    try:
        trainer.train()
    except WrongReferenceError as error:
        return str(error)
    return None


if __name__ == "__main__":
    folder, state = Path(sys.argv[1]), PartialState(cpu=True)
    result = {"processes": state.num_processes} | {name: run(folder, name) for name in ("wrong", "right")}
    (folder / f"rank-{state.process_index}.json").write_text(json.dumps(result))
    gc.collect()  # a trainer in a cycle holds the process group, whose threads must end before the interpreter does
    dist.destroy_process_group()

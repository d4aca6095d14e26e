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

"""Run by `test_two_processes_give_the_loss_of_one` on one CPU process and on two (gloo; DDP, ZeRO, FSDP2)."""

from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tests.runs import TINY_RUN
from trl_distill.zephyr.reference_check import ReferenceCheckCallback


def run(folder: Path, processes: int) -> dict:
    """Supervised fine-tuning, then DPO of a full model and of an adapter on what came out."""
    pairs = Dataset.from_json(str(folder / "pairs.jsonl"))
    answers = pairs.remove_columns("rejected").rename_column("chosen", "completion")
    values = TINY_RUN | {"per_device_train_batch_size": 4 // processes, "max_steps": 3, "adam_epsilon": 1e-2}
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model, result = str(folder / "right"), {}
    for name, trainer_class, config_class, adapter in (
        ("sft", SFTTrainer, SFTConfig, None),
        ("dpo", DPOTrainer, DPOConfig, None),
        ("dpo_lora", DPOTrainer, DPOConfig, lora),
    ):
        trainer = trainer_class(
            model,
            args=config_class(str(folder / f"{name}-{processes}"), **values),
            train_dataset=answers if name == "sft" else pairs,
            peft_config=adapter,
            callbacks=None if name == "sft" else [ReferenceCheckCallback()],
        )
        trainer.train()
        trainer.save_model()
        trainer.accelerator.wait_for_everyone()
        entries = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
        result |= {f"{name}/{key}": [entry[key] for entry in entries] for key in ("loss", "grad_norm")}
        model = str(folder / f"sft-{processes}")
    return result

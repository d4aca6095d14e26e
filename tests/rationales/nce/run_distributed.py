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

"""What `test_two_processes_give_the_loss_of_one` runs, on one CPU process and on two (gloo, DDP)."""

from pathlib import Path

from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.runs import SHARDED, TINY_RUN
from trl_distill.rationales.nce import NCEConfig, NCETrainer


def train(folder: Path, processes: int, **settings) -> tuple[list[dict], dict]:
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(base, folder / "nat" / "nat", adapter_name="nat")
    model.load_adapter(folder / "nat" / "neg", "neg")
    rows = Dataset.from_json(str(folder / "rows.jsonl"))
    trainer = NCETrainer(
        model,
        args=NCEConfig(
            **TINY_RUN | {"per_device_train_batch_size": 4 // processes},
            output_dir=str(folder / "run"),
            per_device_eval_batch_size=4 // processes,
            gradient_accumulation_steps=2,
            optim="sgd",
            max_steps=3,
            **settings,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(folder / "base"),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj"]),
    )
    trainer.train()
    trainer.save_model(str(folder / f"student-{processes}"))
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry], trainer.evaluate()


def run(folder: Path, processes: int) -> dict:
    result = {}
    for objective in ("weighted_ce",) if SHARDED else ("kd", "weighted_ce"):  # a sharded teacher is refused
        history, metrics = train(folder, processes, objective=objective)
        names = [name for name in ("loss", "grad_norm", "ce", "kd", "kl", "weight/mean") if name in history[0]]
        result |= {f"{objective}/{name}": [entry[name] for entry in history] for name in names}
        result |= {f"{objective}/{name}": metrics[name] for name in ("eval_ce", "eval_weight/mean")}
    return result

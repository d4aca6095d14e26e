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
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.runs import SHARDED, TINY_RUN
from trl_distill import LabeledSFTConfig, LabeledSFTTrainer, NegativeAssistedConfig, NegativeAssistedTrainer


ROWS = {
    "prompt": [f"Q{i}: " for i in range(24)],
    "completion": [f"answer {i} " * (1 + i % 3) for i in range(24)],
    "label": [i % 3 != 0 for i in range(24)],  # 16 right ones and 8 wrong ones
}


def arguments(folder: Path, output: Path, config, processes: int = 1, **settings) -> dict:
    values = TINY_RUN | dict(
        per_device_train_batch_size=4 // processes,
        per_device_eval_batch_size=1,  # a mean of rows, however they are split
        gradient_accumulation_steps=2,
        num_train_epochs=2,
    )
    return dict(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=config(**{"output_dir": str(output)} | values | settings),
        train_dataset=Dataset.from_dict(ROWS),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )


def history(trainer) -> list[dict]:
    names = ("loss", "grad_norm", "learning_rate", "logps/right", "logps/wrong", "mean_token_accuracy")
    entries = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return [{name: entry[name] for name in names if name in entry} for entry in entries]


def train_stages(folder: Path, output: Path, processes: int, **settings) -> tuple:
    """The trainers of both stages, which sharded models need two runs for."""
    settings = dict(integration_width=4, save_strategy="steps", save_steps=2) | settings
    evaluated = {"eval_dataset": Dataset.from_dict(ROWS)}
    where = folder, output, NegativeAssistedConfig, processes
    if not SHARDED:
        trainer = NegativeAssistedTrainer(**arguments(*where, **settings), **evaluated)
        trainer.train()
        return trainer.negative_trainer, trainer
    values = arguments(*where, **settings | {"stages": "negative", "output_dir": str(output / "negative")})
    negative = NegativeAssistedTrainer(**values | {"negative_peft_config": values.pop("peft_config")})
    negative.train()
    negative.save_model(str(output))
    negative.accelerator.wait_for_everyone()
    settings |= {"stages": "positive", "negative_adapter_path": str(output)}
    trainer = NegativeAssistedTrainer(**arguments(*where, **settings), **evaluated)
    trainer.train()
    return negative, trainer


def run(folder: Path, processes: int) -> dict:
    """Both stages of NAT and the baselines with a loss of their own."""
    output = folder.with_name(str(processes))
    negative, trainer = train_stages(folder, output / "nat", processes)
    trainer.save_model()
    result = {"negative": history(negative), "positive": history(trainer)}
    result["eval_loss"] = trainer.evaluate()["eval_loss"]
    path = dict(stages="positive", negative_adapter_path=str(output / "nat"), integration_width=4)
    where = folder, output / "resumed", NegativeAssistedConfig, processes
    resumed = NegativeAssistedTrainer(**arguments(*where, **path))
    resumed.train(resume_from_checkpoint=str(output / "nat/checkpoint-2"))
    result["resumed"] = history(resumed)
    for objective in ("nt", "ul", "redi"):
        settings = dict(objective=objective, negative_weight=0.5)
        values = arguments(folder, output / objective, LabeledSFTConfig, processes, **settings)
        if objective == "ul":  # with first mistakes
            values["train_dataset"] = values["train_dataset"].add_column("right_tokens", [i % 7 for i in range(24)])
        baseline = LabeledSFTTrainer(**values)
        baseline.train()
        result[objective] = history(baseline)
    return result

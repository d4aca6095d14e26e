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
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DistillationTrainer

from tests.runs import TINY_RUN
from trl_distill import MiniLLMConfig, MiniLLMTrainer


class FixedCompletions(MiniLLMTrainer):
    """Answers that depend on the prompt alone, so that any split over processes trains on the same rollouts."""

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        return [[5 + (7 * sum(ids) + t) % 90 for t in range(2 + sum(ids) % 7)] for ids in prompt_ids]


def train(trainer_class, folder: Path, processes: int, **settings) -> tuple[list[dict], dict]:
    tokenizer = AutoTokenizer.from_pretrained(folder / "student", padding_side="left")
    corpus = Dataset.from_dict({"text": [f"Sentence number {i} of a plain text. " * 3 for i in range(12)]})
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(folder / "student"),
        teacher_model=str(folder / "teacher"),
        args=MiniLLMConfig(
            **TINY_RUN | {"per_device_train_batch_size": 4 // processes},
            output_dir=str(folder / "run"),
            per_device_eval_batch_size=2 // processes,
            gradient_accumulation_steps=2,
            num_iterations=2,
            max_completion_length=8,
            lm_max_length=32,
            optim="sgd",
            **settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": [f"Say {'very ' * (i % 4)}well: {i}" for i in range(16)]}),
        eval_dataset=Dataset.from_dict(
            {"prompt": [f"Ask {i}" for i in range(5)], "completion": [None, None, "cd", None, None]}
        ),
        lm_dataset=corpus if trainer_class is FixedCompletions else None,
        answer_checker=lambda completion, row: row["prompt"] == "Ask 2",
        processing_class=tokenizer,
    )
    assert isinstance(trainer, DistillationTrainer)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return history, trainer.evaluate()


def run(folder: Path, processes: int) -> dict:
    fixed = dict(max_steps=4, teacher_mix_alpha=0.0, whiten_advantages=True)
    history, metrics = train(FixedCompletions, folder, processes, **fixed)
    mixed, _ = train(MiniLLMTrainer, folder, processes, max_steps=2, teacher_mix_alpha=0.5)
    names = ("eval_accuracy", "eval_rougeL", "eval_kl", "eval_kl/forward", "eval_kl/sequence")
    return {
        **{name: [entry[name] for entry in history] for name in ("loss", "grad_norm", "kl")},
        **{name: metrics[name] for name in names},
        "mixed": [entry["loss"] for entry in mixed],
    }

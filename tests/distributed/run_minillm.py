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

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import DistillationTrainer

from tests.runs import TINY_RUN
from trl_distill import MiniLLMConfig, MiniLLMTrainer


class FixedCompletions(MiniLLMTrainer):
    """Answers that depend on the prompt alone, so that any split over processes trains on the same rollouts."""

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        return [[5 + (7 * sum(ids) + t) % 90 for t in range(2 + sum(ids) % 7)] for ids in prompt_ids]


class SilentProcess(MiniLLMTrainer):
    """The second process draws the end of each answer at once."""

    def _roll_out(self, prompt_ids):
        completions = super()._roll_out(prompt_ids)
        return [[] for _ in completions] if self.accelerator.process_index else completions


class WatchedTeacher(MiniLLMTrainer):
    """Notes the largest share of the teacher's parameters that this process holds while a layer of it works."""

    held = 0.0

    def _roll_out(self, prompt_ids):
        teacher = self.accelerator.unwrap_model(self.teacher_model)

        def note(layer, *call):
            held = [self._sizes(parameter) for parameter in teacher.parameters()]
            self.held = max(self.held, sum(here for here, _ in held) / self.size)

        self.size = sum(whole for _, whole in map(self._sizes, teacher.parameters()))
        hooks = [layer.mlp.register_forward_hook(note) for layer in teacher.model.layers]
        try:
            return super()._roll_out(prompt_ids)
        finally:
            for hook in hooks:
                hook.remove()

    @staticmethod
    def _sizes(parameter) -> tuple[int, int]:
        """How many numbers of a parameter are here, and how many it has."""
        if hasattr(parameter, "ds_tensor"):  # ZeRO-3: a shard, and while it is gathered the parameter itself
            return parameter.numel() or parameter.ds_tensor.numel(), parameter.ds_numel
        return getattr(parameter, "_local_tensor", parameter).numel(), parameter.numel()


def make(
    trainer_class,
    folder: Path,
    processes: int,
    name: str,
    student="student",
    peft_config=None,
    has_corpus=False,
    **settings,
):
    values = TINY_RUN | dict(
        per_device_train_batch_size=4 // processes,
        per_device_eval_batch_size=2 // processes,
        gradient_accumulation_steps=2,
        num_iterations=2,
        max_steps=4,
        max_completion_length=8,
        teacher_mix_alpha=0.0,
        lm_max_length=32,
        adam_epsilon=1e-2,  # so that a gradient of rounding errors alone moves nothing
    )
    corpus = Dataset.from_dict({"text": [f"Sentence number {i} of a plain text. " * 3 for i in range(12)]})
    return trainer_class(
        model=str(folder / student),
        teacher_model=str(folder / "teacher"),
        peft_config=peft_config,
        args=MiniLLMConfig(str(folder / f"{name}-{processes}"), **values | settings),
        train_dataset=Dataset.from_dict({"prompt": [f"Say {'very ' * (i % 4)}well: {i}" for i in range(16)]}),
        eval_dataset=Dataset.from_dict(
            {"prompt": [f"Ask {i}" for i in range(5)], "completion": [None, None, "cd", None, None]}
        ),
        lm_dataset=corpus if has_corpus else None,
        answer_checker=lambda completion, row: row["prompt"] == "Ask 2",
        processing_class=AutoTokenizer.from_pretrained(folder / "student", padding_side="left"),
    )


def history(trainer, name: str) -> dict[str, list]:
    entries = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {f"{name}/{key}": [entry[key] for entry in entries] for key in ("loss", "grad_norm", "kl")}


def run(folder: Path, processes: int) -> dict:
    where = folder, processes
    trainer = make(FixedCompletions, *where, "full", has_corpus=True, save_strategy="steps", save_steps=2)
    assert isinstance(trainer, DistillationTrainer)
    trainer.train()
    result = history(trainer, "full")
    metrics = trainer.evaluate()
    names = ("accuracy", "rougeL", "kl", "kl/forward", "kl/sequence")
    result |= {f"eval_{name}": metrics[f"eval_{name}"] for name in names}
    trainer.save_model()

    goes_on = make(FixedCompletions, *where, "full", has_corpus=True)
    goes_on.train(resume_from_checkpoint=str(Path(trainer.args.output_dir, "checkpoint-2")))
    result |= {name.replace("full", "resumed"): values for name, values in history(goes_on, "full").items()}

    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
    for name, settings in {"lora": {"peft_config": lora}, "tied": {"student": "tied"}}.items():
        trainer = make(FixedCompletions, *where, name, **settings)
        trainer.train()
        trainer.save_model()
        result |= history(trainer, name)

    trainer = make(SilentProcess, *where, "silent", max_steps=2)
    trainer.train()
    finite = [bool(torch.tensor(values).isfinite().all()) for values in history(trainer, "silent").values()]
    result["silent"] = finite

    trainer = make(WatchedTeacher, *where, "mixed", max_steps=2, teacher_mix_alpha=0.5)
    torch.manual_seed(trainer.accelerator.process_index)  # making a sharded model draws more or fewer numbers
    trainer.train()
    result["mixed"] = history(trainer, "mixed")["mixed/loss"]
    return result | {"teacher held": trainer.held}

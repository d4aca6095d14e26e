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

"""The methods that are compared. Every arm starts from the same student and sees the same prompts, once."""

import random
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from trl_distill import MiniLLMConfig, MiniLLMTrainer

from .measure import draw, progress, texts_of
from .models import encode
from .worlds import World


BATCH_SIZE = 128

# What differs from: exclusive return, length normalisation, no whitening, teacher share 0.2, importance weight outside
# the clip, four passes over each rollout. The ablations leave one thing out of the setting without length normalisation.
MINILLM = {
    "minillm": {},
    "minillm whitened": {"whiten_advantages": True},
    "minillm no-length-norm": {"length_normalization": False},
    "minillm no-length-norm whitened": {"length_normalization": False, "whiten_advantages": True},
    "minillm no-length-norm no-mixing": {"length_normalization": False, "teacher_mix_alpha": 0.0},
    "minillm no-length-norm no-single-step": {"length_normalization": False, "single_step_decomposition": False},
    "minillm no-long-term": {"gamma": 0.0},
    "minillm no-length-norm weight-in-clip": {"length_normalization": False, "clip_importance_weight": True},
    "minillm no-length-norm whitened no-mixing": {
        "length_normalization": False,
        "whiten_advantages": True,
        "teacher_mix_alpha": 0.0,
    },
    "minillm no-length-norm whitened no-single-step": {
        "length_normalization": False,
        "whiten_advantages": True,
        "single_step_decomposition": False,
    },
    "minillm no-length-norm whitened weight-in-clip": {
        "length_normalization": False,
        "whiten_advantages": True,
        "clip_importance_weight": True,
    },
    "minillm paper": {"clip_importance_weight": True},
    "minillm released": {
        "return_mode": "inclusive",
        "whiten_advantages": True,
        "gamma": 0.95,
        "clip_importance_weight": True,
    },
}
DEFAULT = "minillm no-length-norm whitened"  # `MiniLLMConfig`'s own
PLAIN = {"length_normalization": True, "whiten_advantages": False, "clip_importance_weight": False, "gamma": 1.0}

# Each family has one learning rate in each world
FAMILY = {"sft": "data", "word-level kd": "data", "seqkd": "data", "gkd": "on-policy", "distillation": "on-policy"}
FAMILY |= dict.fromkeys(MINILLM, "minillm")
ARMS = list(FAMILY)


class Progress(TrainerCallback):
    """Measures the student a few times during training, and how long that took."""

    def __init__(self, world: World, teacher: PreTrainedModel, tokenizer, points: int):
        self.world, self.teacher, self.tokenizer, self.points = world, teacher, tokenizer, points
        self.curve, self.seconds, self.cpu_seconds = [], 0.0, 0.0

    def note(self, model, share: float):
        start, cpu_start = time.perf_counter(), time.process_time()
        training = model.training
        samples = round(share * self.world.rollouts * BATCH_SIZE)
        self.curve.append({"samples": samples, **progress(self.world, model, self.teacher, self.tokenizer)})
        model.train(training)
        self.seconds += time.perf_counter() - start
        self.cpu_seconds += time.process_time() - cpu_start

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.note(model, 0.0)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % max(state.max_steps // self.points, 1) == 0:
            self.note(model, state.global_step / state.max_steps)


def collate_for_gkd(tokenizer):
    """GKD's own collator wants a chat template; these prompts have none. All prompts of a world are equally long."""

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        prompts = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True)
        batch = encode(tokenizer, [(row["prompt"], row["completion"]) for row in rows])
        return batch | {"prompts": prompts["input_ids"], "prompt_attention_mask": prompts["attention_mask"]}

    return collate


def train(
    arm: str,
    world: World,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer,
    seed: int,
    output: Path,
    learning_rate: float,
    points: int = 6,
) -> dict:
    """
    Trains `student` in place by one method.

    Args:
        arm (`str`):
            One of `ARMS`.
        world (`World`):
            Where the prompts come from.
        student, teacher ([`~transformers.PreTrainedModel`]):
            The models.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Tokenizer of the world.
        seed (`int`):
            Seed of prompts, samples and order.
        output (`pathlib.Path`):
            Folder for the trainer; nothing is saved there.
        learning_rate (`float`):
            At the start; it falls linearly to 0.
        points (`int`, *optional*, defaults to `6`):
            How often the student is measured during training.

    Returns:
        `dict`: Learning rate, optimizer steps, wall and processor seconds (data that the teacher writes included,
        measurements excluded), and the curve.
    """
    generator = random.Random(2000 + seed)
    rows = [world.sample(generator) for _ in range(world.rollouts * BATCH_SIZE)]
    start, cpu_start = time.perf_counter(), time.process_time()
    if arm == "seqkd":
        sample = draw(teacher, tokenizer, [prompt for prompt, _ in rows], world.max_completion_length, seed)
        texts = texts_of(tokenizer, sample[0], sample[2])
        rows = [(prompt, text) for (prompt, _), text in zip(rows, texts, strict=True)]
    # The space keeps prompt and completion apart when TRL joins them
    dataset = Dataset.from_list([{"prompt": prompt, "completion": f" {completion}"} for prompt, completion in rows])
    settings = {
        "output_dir": str(output),
        "per_device_train_batch_size": BATCH_SIZE,
        "num_train_epochs": 1,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 10,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": seed,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    on_policy = {"max_completion_length": world.max_completion_length, "temperature": 1.0}
    common = {"model": student, "train_dataset": dataset, "processing_class": tokenizer}
    if arm in ("sft", "seqkd"):
        trainer = SFTTrainer(args=SFTConfig(**settings, completion_only_loss=True), **common)
    elif arm in ("word-level kd", "gkd"):
        # Forward KL on the data's completions; or TRL's defaults: half of the batches by the student, Jensen-Shannon
        objective = {"lmbda": 0.0, "beta": 0.0} if arm == "word-level kd" else {"lmbda": 0.5, "beta": 0.5}
        args = GKDConfig(**settings, **objective, temperature=1.0, max_new_tokens=world.max_completion_length)
        trainer = GKDTrainer(args=args, teacher_model=teacher, data_collator=collate_for_gkd(tokenizer), **common)
    elif arm == "distillation":
        args = DistillationConfig(**settings, **on_policy, beta=1.0)
        trainer = DistillationTrainer(args=args, teacher_model=teacher, **common)
    else:
        args = MiniLLMConfig(**settings, **on_policy, **PLAIN | MINILLM[arm])
        trainer = MiniLLMTrainer(args=args, teacher_model=teacher, **common)
    callback = Progress(world, teacher, tokenizer, points)
    trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback)  # the summary at the end is not wanted a hundred times
    trainer.train()
    return {
        "learning_rate": learning_rate,
        "optimizer_steps": trainer.state.global_step,
        "samples": len(rows),
        "seconds": time.perf_counter() - start - callback.seconds,
        "cpu_seconds": time.process_time() - cpu_start - callback.cpu_seconds,
        "curve": callback.curve,
    }

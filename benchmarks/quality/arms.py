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
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback
from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from benchmarks.laboratory import Clock, encode, train_quietly, training_arguments
from trl_distill import MiniLLMConfig, MiniLLMTrainer

from .measure import draw, progress, texts_of
from .worlds import TextWorld


BATCH_SIZE = 128

# What differs from: exclusive return, length normalisation, no whitening, teacher share 0.2, importance weight outside
# the clip, four passes over each rollout. The ablations leave one thing out of the setting without length
# normalisation.
WHITENED, FREE, EXACT = {"whiten_advantages": True}, {"length_normalization": False}, {"credit": "exact"}
MINILLM = {
    "minillm": {},
    "minillm whitened": WHITENED,
    "minillm no-length-norm": FREE,
    "minillm no-length-norm whitened": FREE | WHITENED,
    "minillm no-length-norm no-mixing": FREE | {"teacher_mix_alpha": 0.0},
    "minillm no-length-norm no-single-step": FREE | {"single_step_decomposition": False},
    "minillm no-long-term": {"gamma": 0.0},
    "minillm no-length-norm weight-in-clip": FREE | {"clip_importance_weight": True},
    "minillm no-length-norm whitened no-mixing": FREE | WHITENED | {"teacher_mix_alpha": 0.0},
    "minillm no-length-norm whitened no-single-step": FREE | WHITENED | {"single_step_decomposition": False},
    "minillm no-length-norm whitened weight-in-clip": FREE | WHITENED | {"clip_importance_weight": True},
    "minillm exact": EXACT,
    "minillm exact whitened": EXACT | WHITENED,
    "minillm exact no-length-norm": EXACT | FREE,
    "minillm exact no-length-norm whitened": EXACT | FREE | WHITENED,
    "minillm exact no-length-norm no-mixing": EXACT | FREE | {"teacher_mix_alpha": 0.0},
    "minillm exact no-length-norm whitened no-mixing": EXACT | FREE | WHITENED | {"teacher_mix_alpha": 0.0},
    "minillm exact no-mixing": EXACT | {"teacher_mix_alpha": 0.0},
    "minillm exact whitened no-mixing": EXACT | WHITENED | {"teacher_mix_alpha": 0.0},
    "minillm no-mixing": {"teacher_mix_alpha": 0.0},
    "minillm whitened no-mixing": WHITENED | {"teacher_mix_alpha": 0.0},
    "minillm no-length-norm four-answers": FREE | {"num_generations": 4},
    "minillm no-length-norm whitened four-answers": FREE | WHITENED | {"num_generations": 4},
    "minillm exact no-length-norm four-answers": EXACT | FREE | {"num_generations": 4},
    "minillm no-length-norm no-single-step four-answers": FREE
    | {"single_step_decomposition": False, "num_generations": 4},
    "minillm no-long-term four-answers": {"gamma": 0.0, "num_generations": 4},
    "minillm no-length-norm whitened one-pass": FREE | WHITENED | {"num_iterations": 1},
    "minillm paper": {"clip_importance_weight": True},
    "minillm released": WHITENED | {"return_mode": "inclusive", "gamma": 0.95, "clip_importance_weight": True},
}
DEFAULT = "minillm no-length-norm whitened"  # `MiniLLMConfig`'s own
PLAIN = {"length_normalization": True, "whiten_advantages": False, "clip_importance_weight": False, "gamma": 1.0}
PLAIN |= {"credit": "sampled"}

# Each family has one learning rate in each world
FAMILY = {"sft": "data", "word-level kd": "data", "seqkd": "data", "gkd": "on-policy", "distillation": "on-policy"}
FAMILY |= dict.fromkeys(MINILLM, "minillm")
ARMS = list(FAMILY)


class Progress(TrainerCallback):
    """Measures the student a few times during training, and how long that took."""

    def __init__(self, world: TextWorld, teacher: PreTrainedModel, tokenizer, points: int):
        self.world, self.teacher, self.tokenizer, self.points = world, teacher, tokenizer, points
        self.curve, self.seconds = [], {"seconds": 0.0, "cpu_seconds": 0.0}
        self.clock = Clock()

    def note(self, model, share: float):
        trained = self.clock.facts()["cpu_seconds"] - self.seconds["cpu_seconds"]
        clock, training = Clock(), model.training
        samples = round(share * self.world.rollouts * BATCH_SIZE)
        measured = progress(self.world, model, self.teacher, self.tokenizer)
        self.curve.append({"samples": samples, "cpu_seconds": trained, **measured})
        model.train(training)
        self.seconds = {name: self.seconds[name] + value for name, value in clock.facts().items()}

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
    world: TextWorld,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer,
    seed: int,
    output: Path,
    learning_rate: float,
    points: int = 12,
) -> dict:
    """
    Trains `student` in place by one method of `ARMS`, and measures it `points` times on the way.

    The seed is that of prompts, samples and order; the learning rate falls linearly to 0. Nothing is saved in the
    trainer's folder `output`.

    Returns the learning rate, optimizer steps, seconds (data that the teacher writes included, measurements excluded),
    and the curve.
    """
    generator = random.Random(2000 + seed)
    answers = MINILLM.get(arm, {}).get("num_generations", 1)
    rows = [world.sample(generator) for _ in range(world.rollouts * BATCH_SIZE // answers)]
    clock = Clock()
    if arm == "seqkd":
        sample = draw(teacher, tokenizer, [prompt for prompt, _ in rows], world.max_completion_length, seed)
        texts = texts_of(tokenizer, sample[0], sample[2])
        rows = [(prompt, text) for (prompt, _), text in zip(rows, texts, strict=True)]
    # The space keeps prompt and completion apart when TRL joins them
    dataset = Dataset.from_list([{"prompt": prompt, "completion": f" {completion}"} for prompt, completion in rows])
    settings = training_arguments(
        output,
        seed,
        per_device_train_batch_size=BATCH_SIZE,
        num_train_epochs=1,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=10,
    )
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
    train_quietly(trainer)
    return {
        "learning_rate": learning_rate,
        "optimizer_steps": trainer.state.global_step,
        "samples": len(rows) * answers,
        **{name: value - callback.seconds[name] for name, value in clock.facts().items()},
        "curve": callback.curve,
    }

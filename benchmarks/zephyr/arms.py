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

"""The arms that are compared: what each starts from, and what it is trained on by TRL's trainers."""

import hashlib
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.laboratory import Clock, read_lines, train_quietly, training_arguments
from trl_distill.chat import BaseChatModel, Completion
from trl_distill.zephyr import FeedbackConfig, preference_pairs, run_feedback, scored_rows

from .laboratory import Laboratory
from .world import POOL, judge_model, writer_model


@dataclass(frozen=True)
class Arm:
    """One training."""

    start: str  # the arm whose model it starts from, or "base"
    data: str  # "dialogues" of the teacher; of the feedback "chosen" alone, or the policy that draws `rejected`
    epochs: int = 1
    beta: float = 0.1  # of DPO
    answers: str = "pool"  # whose answers are judged, one of `FEEDBACK`

    @property
    def method(self) -> str:
        return "sft" if self.data in ("dialogues", "chosen") else "dpo"

    @property
    def learning_rate(self) -> float:
        """The one that was best for arms of this kind."""
        return LEARNING_RATES[f"{self.method} from {'base' if self.start == 'base' else 'dsft'}"]


ARMS = {
    # Table 3 of the paper
    "dsft": Arm("base", "dialogues"),
    "ddpo without dsft": Arm("base", "random_lower"),
    "dsft-2": Arm("dsft", "chosen"),
    "ddpo": Arm("dsft", "random_lower"),
    # More steps
    "dsft, twice the epochs": Arm("base", "dialogues", epochs=2),
    "dsft-2, three epochs": Arm("dsft", "chosen", epochs=3),
    "ddpo without dsft, three epochs": Arm("base", "random_lower", epochs=3),
    "ddpo, three epochs": Arm("dsft", "random_lower", epochs=3),
    "ddpo after twice the epochs, three epochs": Arm("dsft, twice the epochs", "random_lower", epochs=3),
    # What the chosen answers are worth without the teacher's
    "chosen alone": Arm("base", "chosen"),
    "chosen alone, two epochs": Arm("base", "chosen", epochs=2),  # about as many steps as dSFT
    # Other settings
    "ddpo, beta 0.01": Arm("dsft", "random_lower", beta=0.01),
    "ddpo, rejected random_rest": Arm("dsft", "random_rest"),
    "ddpo, rejected min": Arm("dsft", "min"),
    "ddpo, one order": Arm("dsft", "random_lower", answers="one order"),
    "ddpo, student among four": Arm("dsft", "random_lower", answers="student among four"),
    "ddpo, student alone": Arm("dsft", "random_lower", answers="student alone"),
}
# Whose answers are judged and in how many orders; None: as many as there are answers
FEEDBACK = {
    "pool": {"judge_orders": None},
    "one order": {"judge_orders": 1},
    "student among four": {"judge_orders": None},
    "student alone": {"judge_orders": None},
}
# The best by sampled answers on seed 100, which has a test of its own; see results/zephyr_learning_rates.json
LEARNING_RATES = {"sft from base": 1e-3, "sft from dsft": 3e-4, "dpo from base": 1e-3, "dpo from dsft": 1e-4}


class Student(BaseChatModel):
    """
    The model of dSFT as one that answers.

    [`~trl_distill.chat.LocalChatModel`] would do the same, but for the architecture of our models transformers takes
    its own byte-level tokenizer, whatever the folder holds.
    """

    name = "student"

    def __init__(self, laboratory: Laboratory, seed: int):
        self.laboratory, self.folder = laboratory, folder_of(laboratory, "dsft", seed)

    @property
    def identity(self):
        return {"weights": hashlib.sha256((self.folder / "model.safetensors").read_bytes()).hexdigest()}

    def batches(self, requests):
        return [list(range(len(requests)))]

    def answer(self, batch):
        prompts, sampling = [request.messages[-1]["content"] for request in batch], batch[0].sampling
        drawn = self.laboratory.draw(self.laboratory.load(self.folder), prompts, sampling.seed, sampling.temperature)
        return [Completion(text, "stop" if ended else "length") for text, ended in drawn]


def feedback(laboratory: Laboratory, seed: int, answers: str) -> list[dict]:
    """Scored answers to the prompts of a seed, made by `trl_distill.zephyr`: rows of `preference_pairs`."""
    folder = laboratory.folder(seed, f"feedback {answers}")
    if not (folder / "report.json").exists():
        world = laboratory.world
        config = FeedbackConfig(
            output_dir=str(folder),
            decontaminate=[],
            num_answers=4,
            max_tokens=world.max_completion_length,
            seed=seed,
            **FEEDBACK[answers],
        )
        prompts = world.prompts(laboratory.prompts, seed=3000 + seed)
        run_feedback(
            config,
            prompts=[{"prompt": prompt} for prompt in prompts],
            student=Student(laboratory, seed) if answers.startswith("student") else None,
            responders=[] if answers == "student alone" else [writer_model(world, *item) for item in POOL.items()],
            judges=[judge_model(world)],
        )
    return scored_rows(read_lines(folder / "ratings.jsonl"))[0]


def describe(laboratory: Laboratory, seed: int, answers: str) -> dict:
    """What the pairs of a feedback are: how many, how good, and how often the better answer was chosen."""
    pairs, counts = preference_pairs(feedback(laboratory, seed, answers))
    quality = {
        side: [laboratory.world.quality(pair["prompt"][-1]["content"], pair[side][0]["content"]) for pair in pairs]
        for side in ("chosen", "rejected")
    }
    differences = [c - r for c, r in zip(quality["chosen"], quality["rejected"], strict=True)]
    chosen = [pair["chosen_model"] for pair in pairs]
    return {
        "counts": counts,
        "quality": {side: statistics.mean(values) for side, values in quality.items()},
        "words": {
            side: statistics.mean(len(pair[side][0]["content"].split()) for pair in pairs)
            for side in ("chosen", "rejected")
        },
        "better chosen": statistics.mean(difference > 0 for difference in differences),
        "worse chosen": statistics.mean(difference < 0 for difference in differences),
        "chosen": {model: chosen.count(model) / len(chosen) for model in sorted(set(chosen))},
    }


def folder_of(laboratory: Laboratory, arm: str, seed: int, learning_rate: float | None = None) -> Path:
    """Where the model of an arm is kept."""
    if arm == "base":
        return laboratory.base()
    learning_rate = learning_rate or ARMS[arm].learning_rate
    return laboratory.folder(seed, f"{arm} {learning_rate:g}")


def rows_of(laboratory: Laboratory, arm: Arm, seed: int) -> Dataset:
    """What an arm is trained on."""
    if arm.data == "dialogues":
        return Dataset.from_list(laboratory.told(seed))
    policy = "random_lower" if arm.data == "chosen" else arm.data
    pairs, _ = preference_pairs(feedback(laboratory, seed, arm.answers), rejected=policy, seed=seed)
    if arm.data == "chosen":
        return Dataset.from_list([{"messages": pair["prompt"] + pair["chosen"]} for pair in pairs])
    return Dataset.from_list(pairs).select_columns(["prompt", "chosen", "rejected"])


def train(laboratory: Laboratory, name: str, seed: int, learning_rate: float | None = None) -> dict:
    """
    Trains an arm from the model of the one that it starts from, which must be there, and keeps it.

    Returns what it took, and for DPO the first and the last metrics.
    """
    arm = ARMS[name]
    learning_rate = learning_rate or arm.learning_rate
    rows = rows_of(laboratory, arm, seed)
    output = folder_of(laboratory, name, seed, learning_rate)
    shutil.rmtree(output, ignore_errors=True)  # of a run that was stopped
    settings = training_arguments(
        output,
        seed,
        per_device_train_batch_size=laboratory.batch_size,
        num_train_epochs=arm.epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine" if arm.method == "sft" else "linear",
        warmup_steps=0.1,
        logging_strategy="steps",
        logging_steps=5,
        logging_first_step=True,
    )
    common = {"train_dataset": rows, "processing_class": laboratory.tokenizer}
    clock = Clock()
    model = str(folder_of(laboratory, arm.start, seed))
    if arm.method == "sft":
        trainer = SFTTrainer(model, args=SFTConfig(**settings), **common)
    else:
        trainer = DPOTrainer(model, args=DPOConfig(**settings, beta=arm.beta), **common)
    train_quietly(trainer)
    trainer.save_model()
    facts = {
        "learning_rate": learning_rate,
        "rows": len(rows),
        "optimizer_steps": trainer.state.global_step,
        **clock.facts(),
    }
    if arm.method == "dpo":
        logs = [log for log in trainer.state.log_history if "loss" in log]
        facts["first_loss"] = logs[0]["loss"]
        last = logs[-max(1, len(logs) // 10) :]
        for key in ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected"):
            facts[f"last {key}"] = statistics.mean(log[key] for log in last)
    return facts


def pack(qualities: list[float]) -> str:
    """Qualities in thousandths, as a text, for the results."""
    return " ".join(str(round(1000 * quality)) for quality in qualities)


def unpack(packed: str) -> list[float]:
    return [int(quality) / 1000 for quality in packed.split()]


def measure(laboratory: Laboratory, folder: Path, seed: int) -> dict:
    """Quality of the answers of a model to the prompts of the test, drawn at temperature 1 and greedily."""
    model, prompts, result = laboratory.load(folder), laboratory.test(seed), {}
    for kind, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        answers = laboratory.draw(model, prompts, seed, temperature)
        qualities = [
            laboratory.world.quality(prompt, text) for prompt, (text, _) in zip(prompts, answers, strict=True)
        ]
        result[kind] = {
            "quality": statistics.mean(qualities),
            "perfect": statistics.mean(quality == 1 for quality in qualities),
            "words": statistics.mean(len(text.split()) for text, _ in answers),
            "ended": statistics.mean(ended for _, ended in answers),
            "examples": [
                {"prompt": prompt, "answer": text} for prompt, (text, _) in zip(prompts[:3], answers, strict=False)
            ],
        }
        if kind == "sampled":  # the main measure, compared prompt by prompt
            result[kind]["qualities"] = pack(qualities)
    return result

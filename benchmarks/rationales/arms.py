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

"""The methods that are compared. Every arm trains adapters on the same frozen base model, from the same rationales."""

import json
import shutil
import statistics
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from benchmarks.laboratory import Clock, train_quietly, training_arguments
from trl_distill import (
    LabeledSFTConfig,
    LabeledSFTTrainer,
    NCEConfig,
    NCETrainer,
    NegativeAssistedConfig,
    NegativeAssistedTrainer,
    calibration_weights,
    load_nat,
)
from trl_distill.rationales.nat import attach_nat

from .laboratory import Laboratory


# On what the teacher wrote
ARMS = [
    "cot kd",
    "cot kd, twice the epochs",
    "mix",
    "nt",
    "ul",
    "lora of nat's size",
    "nat",
    "nat, twice the epochs",
    "nat without negative adapter",
    "nat identity",
]
# On the teacher's right rationales and NAT's own
AUGMENTED = [
    "nce kd",
    "nce weighted_ce",
    "kd",  # one weight, 1, for all rows
    "nce kd, mean weight",
    "sft on augmented data",
]
ARMS += AUGMENTED
# Ahead of 2e-2 on seed 100, which has a test of its own, for the three arms that were tried (`cot kd`, `lora of nat's
# size`, `nat`), and level with 5e-3 for `nat`
LEARNING_RATE = 1e-2
STUDENTS = ("cot kd", "nce kd")  # those that vote


def lora(laboratory: Laboratory, rank: int | None = None) -> LoraConfig:
    """On all linear layers: with queries and values alone, a base of this size hardly learns."""
    rank = rank or laboratory.rank
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )


def trainable(model: PreTrainedModel | PeftModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def rank_of_nats_size(laboratory: Laboratory) -> int:
    """Rank at which a LoRA has as many trainable parameters as NAT, rounded up."""
    nat = get_peft_model(laboratory.base(), lora(laboratory), adapter_name="neg")
    nat.add_adapter("nat", lora(laboratory))
    attach_nat(nat, width=laboratory.width)
    of_rank_one = trainable(get_peft_model(laboratory.base(), lora(laboratory, 1)))
    return -(-trainable(nat) // of_rank_one)


def settings_of(laboratory: Laboratory, seed: int, output: Path, learning_rate: float) -> dict:
    """What all trainers are told."""
    return training_arguments(
        output,
        seed,
        per_device_train_batch_size=laboratory.batch_size,
        per_device_eval_batch_size=512,
        num_train_epochs=laboratory.epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=20,
        completion_only_loss=True,
    )


def folder_of(laboratory: Laboratory, arm: str, seed: int, learning_rate: float) -> Path:
    """Where the adapters of an arm are kept."""
    return laboratory.folder(seed, f"{arm} {learning_rate:g}")


def student_of(laboratory: Laboratory, arm: str, seed: int) -> PeftModel:
    """The trained model of an arm."""
    folder = folder_of(laboratory, arm, seed, LEARNING_RATE)
    if (folder / "nat").exists():
        return load_nat(laboratory.base(), str(folder))
    return PeftModel.from_pretrained(laboratory.base(), str(folder))


def augment(laboratory: Laboratory, seed: int) -> dict:
    """
    Adds NAT's own right rationales to the teacher's, and calibrates all of them.

    Returns:
        `dict`: What became of the samples, the numbers of rows, and the mean and standard deviation of `beta`.
    """
    rationales, nat = laboratory.rationales(seed), student_of(laboratory, "nat", seed)
    questions = laboratory.asked(seed)
    clock = Clock()
    drawn = laboratory.draw(nat, questions, laboratory.augmentation, seed=seed)
    teachers = [row for row in rationales if row["label"]]
    known = {(row["prompt"], row["completion"]) for row in teachers}
    right = [row for row in laboratory.label(questions, drawn) if row["label"]]
    new = [row for row in right if (row["prompt"], row["completion"]) not in known]
    file = laboratory.folder(seed, "augmented.json")
    args = NCEConfig(**settings_of(laboratory, seed, file.parent / "augment", learning_rate=1.0))
    weighed = calibration_weights(nat, Dataset.from_list(teachers + new), laboratory.tokenizer, args)
    file.write_text(json.dumps(weighed.to_list()))
    solved = {row["prompt"] for row in teachers}
    return {
        "samples": {"drawn": len(questions) * laboratory.augmentation, "right, without repeats": len(right)},
        "rows": {"teacher": len(teachers), "nat": len(new)},
        "questions only nat solved": len({row["prompt"] for row in new} - solved),
        "beta": {"mean": statistics.mean(weighed["weight"]), "std": statistics.stdev(weighed["weight"])},
        "cpu_seconds": clock.facts()["cpu_seconds"],
    }


def augmented(laboratory: Laboratory, seed: int) -> Dataset:
    """What `augment` has made."""
    return Dataset.from_list(json.loads(laboratory.folder(seed, "augmented.json").read_text()))


def trainer_of(laboratory: Laboratory, arm: str, seed: int, learning_rate: float):
    """The trainer of an arm, ready to train."""
    output = folder_of(laboratory, arm, seed, learning_rate)
    shutil.rmtree(output, ignore_errors=True)  # of a run that was stopped
    settings = settings_of(laboratory, seed, output, learning_rate)
    if arm.endswith(", twice the epochs"):
        settings["num_train_epochs"] *= 2
    common = {"processing_class": laboratory.tokenizer, "peft_config": lora(laboratory)}
    if arm in AUGMENTED:
        data = augmented(laboratory, seed)
        if arm == "sft on augmented data":
            data = data.remove_columns(["label", "weight", "weight_hash"])
            args = SFTConfig(**settings)
            return SFTTrainer(laboratory.base(), args=args, train_dataset=data, **common)
        objective = {"objective": "weighted_ce" if arm == "nce weighted_ce" else "kd"}
        if arm == "kd":
            objective["kd_weight"] = 1.0
        if arm == "nce kd, mean weight":
            objective["kd_weight"] = 0.5 + sum(data["weight"]) / len(data)
        model = laboratory.base() if arm == "nce weighted_ce" else student_of(laboratory, "nat", seed)
        return NCETrainer(model, args=NCEConfig(**settings, **objective), train_dataset=data, **common)

    base, data = laboratory.base(), laboratory.rationales(seed)
    if not arm.startswith("nat"):
        objective = {"objective": arm if arm in ("mix", "nt", "ul") else "cot_kd"}
        if arm == "lora of nat's size":
            common["peft_config"] = lora(laboratory, rank_of_nats_size(laboratory))
        args = LabeledSFTConfig(**settings, **objective)
        return LabeledSFTTrainer(base, args=args, train_dataset=data, **common)

    gate = {"integration_value": "identity" if arm == "nat identity" else "mlp"}
    gate |= {"integration_width": laboratory.width}
    if arm == "nat without negative adapter":
        fresh = get_peft_model(laboratory.base(), lora(laboratory), adapter_name="neg")  # B is 0, so it adds nothing
        fresh.save_pretrained(output)
        gate |= {"stages": "positive", "negative_adapter_path": str(output)}
    return NegativeAssistedTrainer(base, args=NegativeAssistedConfig(**settings, **gate), train_dataset=data, **common)


def train(laboratory: Laboratory, arm: str, seed: int, learning_rate: float) -> tuple[PeftModel, dict]:
    """
    Trains one arm and keeps its adapters.

    The seed is that of the questions, of the teacher's samples, the adapters and the order of the rows. The learning
    rate is that at the start of each stage; it falls linearly to 0.

    Returns the student and what it took: trainable parameters, optimizer steps, and seconds.
    """
    clock, trainer = Clock(), trainer_of(laboratory, arm, seed, learning_rate)
    train_quietly(trainer)
    negative = getattr(trainer, "negative_trainer", None)
    facts = {
        "learning_rate": learning_rate,
        "trainable_parameters": trainable(trainer.model),
        "optimizer_steps": trainer.state.global_step,
        "optimizer_steps_of_the_negative_stage": negative.state.global_step if negative else 0,
        **clock.facts(),
    }
    trainer.save_model()
    return trainer.model, facts

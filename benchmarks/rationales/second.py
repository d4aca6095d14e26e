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

"""
The second laboratory: what is done with wrong rationales, each use against its controls, as `PLAN.md` fixes it.

Every arm trains for one stage or two, all of one length, from the base model or on from the student of CoT KD, and
ends as it was when it answered most of the held-out questions.
"""

import copy
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import DynamicCache, Qwen2ForCausalLM, TrainerCallback
from trl import DPOConfig, DPOTrainer

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
from trl_distill.chat import Samples
from trl_distill.generation import pad_ids

from .arms import trainable
from .dial import DIAL, PRIMER, Dial, Primer
from .laboratory import Laboratory


PILOT = 100  # the seed on which worlds and learning rates are chosen
NEGATIVE_RATE = 1e-2  # of the negative adapter, which no score can choose


@dataclass(frozen=True)
class SecondLaboratory(Laboratory):
    """Sizes of the second laboratory. A test makes a minute one."""

    pupil: Dial = DIAL
    drills: Primer = PRIMER
    questions: int = 200
    samples: int = 6
    batch_size: int = 16
    rank: int = 1
    width: int = 1
    augmentation: int = 2
    test_questions: int = 500
    held_out_questions: int = 128
    steps: int = 100  # optimizer steps of a stage
    looks: int = 5  # at the held-out questions in each stage
    rounds: int = 4  # in which a student's own samples are drawn
    own_samples: int = 8  # of each question of a round

    @property
    def rank_of_nats_size(self) -> int:
        """Rank of a LoRA with as many trainable parameters as NAT: a gate has 4 vectors where LoRA of rank 1 has 2."""
        return self.rank + 2 * self.width

    def rationales(self, seed):
        generator, questions = random.Random(seed), self.asked(seed)
        drawn = [[self.pupil.complete(question, generator) for _ in range(self.samples)] for question in questions]
        return Dataset.from_list(self.label(questions, [Samples(texts, [], []) for texts in drawn]))

    def held_out(self, seed: int) -> list[str]:
        """Questions on which an arm is stopped."""
        others = [*self.test(seed), *self.test(PILOT), *self.asked(seed)]
        return self.ask(self.held_out_questions, seed=2000 + seed, without=others)


def lora(rank: int) -> LoraConfig:
    """On queries and values, as in the paper."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


class Best(TrainerCallback):
    """Early stopping: looks at held-out questions now and then, and keeps the weights that answered most of them."""

    def __init__(self, look: Callable, every: int):
        self.look, self.every = look, every
        self.step, self.at, self.right, self.weights = 0, 0, -1, {}

    def compare(self, model) -> None:
        right = self.look(model)
        if right > self.right:
            self.right, self.at = right, self.step
            self.weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.step += 1
        if self.step % self.every == 0:
            self.compare(model)

    def put_back(self, model) -> None:
        parameters = dict(model.named_parameters())
        for name, weight in self.weights.items():
            parameters[name].data.copy_(weight)


@dataclass
class Run:
    """One arm on one seed. `share` is that of the right rows, `full` trains all weights, `rates` are those chosen."""

    laboratory: SecondLaboratory
    arm: str
    share: float
    seed: int
    rate: float
    full: bool
    rates: dict[str, float]

    def __post_init__(self):
        laboratory, rows = self.laboratory, self.laboratory.rationales(self.seed).to_list()
        right, self.wrong = ([row for row in rows if row["label"] is label] for label in (True, False))
        self.right = random.Random(self.seed).sample(right, round(self.share * len(right)))
        questions = laboratory.held_out(self.seed)
        every = laboratory.steps // laboratory.looks
        self.best = Best(lambda model: sum(laboratory.accuracy(model, questions)), every)

    def folder(self, arm: str, rate: float) -> Path:
        return self.laboratory.folder(self.seed, f"{'full' if self.full else 'lora'} {self.share:g} {arm} {rate:g}")

    # Models

    def fresh(self, rank: int | None = None):
        """The base model, with a new adapter."""
        torch.manual_seed(self.seed)
        base = self.laboratory.base()
        return base if self.full else get_peft_model(base, lora(rank or self.laboratory.rank))

    def kept(self, arm: str):
        """The student of another arm, to be trained on."""
        folder = str(self.folder(arm, self.rates[arm]))
        if self.full:
            return Qwen2ForCausalLM.from_pretrained(folder)
        return PeftModel.from_pretrained(self.laboratory.base(), folder, is_trainable=True)

    def negative(self) -> Path:
        """Folder of an adapter that has learned the wrong rows, all of them and to the end; shares have the same."""
        folder = self.laboratory.folder(self.seed, "negative")
        if not folder.exists():
            best, self.best = self.best, None
            self.sft(self.fresh(), self.wrong, objective="mix", learning_rate=NEGATIVE_RATE).save_pretrained(folder)
            self.best = best
        return folder

    # Rows

    def balanced(self, wrong: list[dict] | None = None) -> list[dict]:
        """Wrong rows, and the right ones repeated until there are as many."""
        wrong = self.wrong if wrong is None else wrong
        return [*wrong, *(self.right * (len(wrong) // len(self.right) + 1))[: len(wrong)]]

    def marked(self) -> list[dict]:
        """Balanced rows that say where the first mistake is."""
        before = self.laboratory.pupil.right_steps
        rows = [row | {"right_tokens": before(row["prompt"], row["completion"])} for row in self.wrong]
        return [{"right_tokens": 0} | row for row in self.balanced(rows)]

    def from_the_first_mistake(self) -> list[dict]:
        """Balanced rows whose wrong completions begin with the first wrong step: what is right joins the prompt."""
        rows = []
        for row in self.wrong:
            words = row["completion"].split()
            start = self.laboratory.pupil.right_steps(row["prompt"], row["completion"])
            prompt, rest = " ".join([row["prompt"], *words[:start]]), " ".join(words[start:])
            rows.append({"prompt": prompt, "completion": f" {rest}", "label": False})
        return self.balanced(rows)

    def to_the_first_wrong_token(self) -> list[dict]:
        """Balanced rows whose wrong completions end with the first wrong token; those before it are right."""
        rows = []
        for row in self.wrong:
            start = self.laboratory.pupil.right_tokens(row["prompt"], row["completion"])
            words = row["completion"].split()[: start + 1]
            rows.append(row | {"completion": f" {' '.join(words)}", "right_tokens": start})
        return [{"right_tokens": 0} | row for row in self.balanced(rows)]

    def own(self, model, number: int) -> list[dict]:
        """A round of the student's own samples to a part of the training questions, with their labels."""
        laboratory = self.laboratory
        questions = laboratory.asked(self.seed)[number :: laboratory.rounds]
        seed = 10 * self.seed + number
        drawn = laboratory.draw(model, questions, laboratory.own_samples, seed=seed, logprobs=False)
        return laboratory.label(questions, drawn)

    # Training

    def settings(self, steps: int | None = None, **values) -> dict:
        return training_arguments(
            self.laboratory.cache / "trainer",
            self.seed,
            **{
                "per_device_train_batch_size": self.laboratory.batch_size,
                "max_steps": steps or self.laboratory.steps,
                "learning_rate": self.rate,
                "lr_scheduler_type": "constant_with_warmup",
                "warmup_steps": 5,
                **values,
            },
        )

    def train(self, trainer):
        if self.best:
            trainer.add_callback(self.best)
        train_quietly(trainer)
        return trainer.model

    def sft(self, model, rows: list[dict], steps: int | None = None, **values):
        args = LabeledSFTConfig(completion_only_loss=True, **self.settings(steps, **values))
        tokenizer = self.laboratory.tokenizer
        return self.train(
            LabeledSFTTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        )

    def dpo(self, model, pairs: list[dict], steps: int):
        """DPO with the negative log-likelihood of the chosen answer, against the student as the round found it."""
        losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0], "beta": 0.1}
        half = {"per_device_train_batch_size": self.laboratory.batch_size // 2}
        reference = copy.deepcopy(model).requires_grad_(False) if self.full else None
        trainer = DPOTrainer(
            model,
            ref_model=reference,
            args=DPOConfig(**self.settings(steps, **half, **losses)),
            train_dataset=Dataset.from_list(pairs),
            processing_class=self.laboratory.tokenizer,
        )
        model = self.train(trainer)
        if not self.full:
            model.delete_adapter("ref")
        return model

    def nat(self, negative: Path):
        gate = {"integration_width": self.laboratory.width, "negative_adapter_path": str(negative)}
        args = NegativeAssistedConfig(
            stages="positive", completion_only_loss=True, **gate, **self.settings(2 * self.laboratory.steps)
        )
        trainer = NegativeAssistedTrainer(
            self.laboratory.base(),
            args=args,
            train_dataset=Dataset.from_list(self.right),
            processing_class=self.laboratory.tokenizer,
            peft_config=lora(self.laboratory.rank),
        )
        return self.train(trainer)


# --------------------------------------------------------------------------------------------------------- the arms


def rft(run: Run):
    """The student's own right samples join the teacher's, round by round."""
    model, rounds = run.kept("cot kd"), run.laboratory.rounds
    rows = {(row["prompt"], row["completion"]): row for row in run.right}
    for number in range(rounds):
        rows |= {(row["prompt"], row["completion"]): row for row in run.own(model, number) if row["label"]}
        model = run.sft(model, list(rows.values()), run.laboratory.steps // rounds)
    return model


def nsr(run: Run):
    """Own samples, the right ones with the weight 0.1, the wrong ones with the weight -1."""
    model, rounds = run.kept("cot kd"), run.laboratory.rounds
    for number in range(rounds):
        rows, steps = run.own(model, number), run.laboratory.steps // rounds
        model = run.sft(model, rows, steps, objective="nt", negative_weight=10.0)
    return model


def pairs_of(rows: list[dict], right: list[dict]) -> list[dict]:
    """Each wrong answer beside a right one to the same question: the student's own, or else the teacher's."""
    chosen = {row["prompt"]: row["completion"] for row in [*right, *(row for row in rows if row["label"])]}
    return [
        {"prompt": row["prompt"], "chosen": chosen[row["prompt"]], "rejected": row["completion"]}
        for row in rows
        if not row["label"] and row["prompt"] in chosen
    ]


def pairs(run: Run):
    """Rounds of preference pairs of own samples."""
    model, rounds = run.kept("cot kd"), run.laboratory.rounds
    for number in range(rounds):
        found, steps = pairs_of(run.own(model, number), run.right), run.laboratory.steps // rounds
        model = run.dpo(model, found, steps) if found else run.sft(model, run.right, steps)
    return model


def negative_then_positive(run: Run):
    """The negative adapter is trained on with right rows."""
    folder = str(run.negative())
    model = PeftModel.from_pretrained(run.laboratory.base(), folder, is_trainable=True)
    return run.sft(model, run.right, 2 * run.laboratory.steps)


def zero(run: Run):
    """NAT beside an adapter that adds nothing: B of a fresh one is 0."""
    folder = run.laboratory.folder(run.seed, "zero")
    get_peft_model(run.laboratory.base(), lora(run.laboratory.rank), adapter_name="neg").save_pretrained(folder)
    return run.nat(folder)


def nce(run: Run, objective: str):
    """A fresh adapter learns the teacher's right rows and NAT's own, weighted by what the negative adapter knows."""
    laboratory, nat = run.laboratory, load_nat(run.laboratory.base(), str(run.folder("nat", run.rates["nat"])))
    questions = laboratory.asked(run.seed)
    drawn = laboratory.draw(nat, questions, laboratory.augmentation, seed=run.seed, logprobs=False)
    known = {(row["prompt"], row["completion"]) for row in run.right}
    new = [row for row in laboratory.label(questions, drawn) if row["label"]]
    rows = Dataset.from_list(run.right + [row for row in new if (row["prompt"], row["completion"]) not in known])
    settings = run.settings(2 * laboratory.steps, completion_only_loss=True, objective=objective)
    args = NCEConfig(**settings)
    rows = calibration_weights(nat, rows, laboratory.tokenizer, args)
    model = nat if objective == "kd" else laboratory.base()
    common = {"processing_class": laboratory.tokenizer, "peft_config": lora(laboratory.rank)}
    return run.train(NCETrainer(model, args=args, train_dataset=rows, **common))


class Contrast:
    """Greedy answers by the logits of one adapter minus a share of another's, with no training."""

    def __init__(self, model: PeftModel, share: float):
        self.model, self.share = model.eval(), share

    @torch.no_grad()
    def answers(self, laboratory: SecondLaboratory, questions: list[str]) -> list[bool]:
        tokenizer, model = laboratory.tokenizer, self.model
        ids, mask = pad_ids([tokenizer(question)["input_ids"] for question in questions], 0, "left", model.device)
        caches, written = {name: DynamicCache() for name in ("default", "neg")}, []
        for _ in range(laboratory.pupil.max_completion_length):
            logits = {}
            for name, cache in caches.items():
                model.set_adapter(name)
                positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                outputs = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
                logits[name] = outputs.logits[:, -1]
            ids = (logits["default"] - self.share * logits["neg"]).argmax(-1, keepdim=True)
            written.append(ids)
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
        rows = zip(questions, torch.cat(written, 1).tolist(), strict=True)
        ends = tokenizer.eos_token_id
        return [
            laboratory.pupil.correct(question, tokenizer.decode(row[: row.index(ends)] if ends in row else row))
            for question, row in rows
        ]


def contrast(run: Run):
    """The student of CoT KD, longer, minus a share of the negative adapter: the `rate`."""
    model = run.kept("cot kd, longer")
    model.load_adapter(str(run.negative()), "neg")
    return Contrast(model, run.rate)


GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # of learning rates
FROM_BASE, GOING_ON, SHARES = GRID[3:6], GRID[2:5], (0.1, 0.3, 0.5)
# What each arm does, and what is tried on the pilot seed: learning rates, or shares
ARMS: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "cot kd": (lambda run: run.sft(run.fresh(), run.right), FROM_BASE),
    "cot kd, longer": (lambda run: run.sft(run.kept("cot kd"), run.right), GOING_ON),
    "rft": (rft, GOING_ON),
    "pairs": (pairs, GOING_ON),
    "ul": (lambda run: run.sft(run.kept("cot kd"), run.balanced(), objective="ul"), GOING_ON),
    "redi": (lambda run: run.sft(run.kept("cot kd"), run.balanced(), objective="redi"), GOING_ON),
    "nsr": (nsr, GOING_ON),
    "right steps": (
        lambda run: run.sft(run.kept("cot kd"), run.marked(), objective="ul", negative_weight=0.0),
        GOING_ON,
    ),
    "right steps, ul": (lambda run: run.sft(run.kept("cot kd"), run.marked(), objective="ul"), GOING_ON),
    "right steps, redi": (lambda run: run.sft(run.kept("cot kd"), run.marked(), objective="redi"), GOING_ON),
    "first wrong token, ul": (
        lambda run: run.sft(run.kept("cot kd"), run.to_the_first_wrong_token(), objective="ul"),
        GOING_ON,
    ),
    "first wrong token, redi": (
        lambda run: run.sft(run.kept("cot kd"), run.to_the_first_wrong_token(), objective="redi"),
        GOING_ON,
    ),
    "from the first mistake, ul": (
        lambda run: run.sft(run.kept("cot kd"), run.from_the_first_mistake(), objective="ul"),
        GOING_ON,
    ),
    "from the first mistake, redi": (
        lambda run: run.sft(run.kept("cot kd"), run.from_the_first_mistake(), objective="redi"),
        GOING_ON,
    ),
    "contrast": (contrast, SHARES),
    "negative then positive": (negative_then_positive, FROM_BASE),
    "nat": (lambda run: run.nat(run.negative()), FROM_BASE),
    "nat, zero adapter": (zero, FROM_BASE),
    "lora of nat's size": (
        lambda run: run.sft(run.fresh(run.laboratory.rank_of_nats_size), run.right, 2 * run.laboratory.steps),
        FROM_BASE,
    ),
    "mix": (
        lambda run: run.sft(run.fresh(), run.right + run.wrong, 2 * run.laboratory.steps, objective="mix"),
        FROM_BASE,
    ),
    "nce weighted_ce": (lambda run: nce(run, "weighted_ce"), FROM_BASE),
    "nce kd": (lambda run: nce(run, "kd"), FROM_BASE),
}
CONTROLS = (
    "cot kd", "cot kd, longer", "rft", "mix", "right steps", "negative then positive", "nat, zero adapter",
    "lora of nat's size",
)  # fmt: skip
KEPT = ("cot kd", "cot kd, longer", "nat")  # students that other arms need
FULL = ["cot kd", "cot kd, longer", "rft", "pairs", "ul", "redi", "right steps", "right steps, ul"]


def train(run: Run) -> dict:
    """Trains one arm, and scores what was best of it."""
    clock, laboratory = Clock(), run.laboratory
    about = {"full": run.full, "share": run.share, "seed": run.seed, "arm": run.arm, "rate": run.rate}
    questions = laboratory.test(run.seed)
    model = ARMS[run.arm][0](run)
    if isinstance(model, Contrast):
        return about | {"right": model.answers(laboratory, questions)} | clock.facts()
    run.best.put_back(model)
    if run.arm in KEPT:
        folder = run.folder(run.arm, run.rate)
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
    return about | {
        "trainable_parameters": trainable(model),
        "optimizer_steps": run.best.step,
        "stopped_at": run.best.at,
        "held_out": run.best.right / laboratory.held_out_questions,
        "right": laboratory.accuracy(model, questions),
        **clock.facts(),
    }

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.laboratory import train_quietly, training_arguments
from trl_distill import LabeledSFTConfig, LabeledSFTTrainer, NegativeAssistedConfig, NegativeAssistedTrainer
from trl_distill.chat import Samples

from .dial import DIAL, PRIMER, Dial, Primer
from .laboratory import Laboratory


STEP = 6  # tokens of `7 + 9 = 16 ;`
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

    def negative(self, wrong: list[dict] | None = None, name: str = "negative") -> Path:
        """Folder of an adapter that has learned wrong rows to the end, by default all of them."""
        folder = self.laboratory.folder(self.seed, name)
        if not folder.exists():
            best, self.best = self.best, None
            model = self.sft(self.fresh(), wrong or self.wrong, objective="mix", learning_rate=NEGATIVE_RATE)
            model.save_pretrained(folder)
            self.best = best
        return folder

    # Rows

    def balanced(self, wrong: list[dict] | None = None, right: list[dict] | None = None) -> list[dict]:
        """Wrong rows, and the right ones repeated until there are as many; right ones alone where none is wrong."""
        wrong, right = self.wrong if wrong is None else wrong, right or self.right
        return [*wrong, *(right * (len(wrong) // len(right) + 1))[: len(wrong) or None]]

    def right_tokens(self, row: dict) -> int:
        """Tokens of a wrong row before the first wrong one."""
        return self.laboratory.pupil.right_tokens(row["prompt"], row["completion"])

    def marked(self, wrong=None, right=None, right_tokens: Callable[[dict], int] | None = None) -> list[dict]:
        """Balanced rows that say where the first wrong step is."""
        before = right_tokens or self.right_tokens
        rows = [row | {"right_tokens": before(row) // STEP * STEP} for row in (self.wrong if wrong is None else wrong)]
        return [{"right_tokens": 0} | row for row in self.balanced(rows, right)]

    def to_the_first_wrong_token(
        self, wrong=None, right=None, right_tokens: Callable[[dict], int] | None = None
    ) -> list[dict]:
        """Balanced rows whose wrong completions end with the first wrong token; those before it are right."""
        before, rows = right_tokens or self.right_tokens, []
        for row in self.wrong if wrong is None else wrong:
            start = before(row)
            words = row["completion"].split()[: start + 1]
            rows.append(row | {"completion": f" {' '.join(words)}", "right_tokens": start})
        return [{"right_tokens": 0} | row for row in self.balanced(rows, right)]

    def from_the_first_mistake(self) -> list[dict]:
        """Wrong rows that begin with the first wrong step: what is right joins the prompt."""
        rows = []
        for row in self.wrong:
            words, start = row["completion"].split(), self.right_tokens(row) // STEP * STEP
            prompt, rest = " ".join([row["prompt"], *words[:start]]), " ".join(words[start:])
            rows.append({"prompt": prompt, "completion": f" {rest}", "label": False})
        return rows

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

    def nat(self, negative: Path, trainer_class=NegativeAssistedTrainer, **values):
        gate = {"integration_width": self.laboratory.width, "negative_adapter_path": str(negative)}
        args = NegativeAssistedConfig(
            stages="positive", completion_only_loss=True, **gate, **values, **self.settings(2 * self.laboratory.steps)
        )
        trainer = trainer_class(
            self.laboratory.base(),
            args=args,
            train_dataset=Dataset.from_list(self.right),
            processing_class=self.laboratory.tokenizer,
            peft_config=lora(self.laboratory.rank),
        )
        return self.train(trainer)


def first_mistakes(run: Run, model, rows: Sequence[dict], rollouts: int = 8) -> list[int | None]:
    """
    Tokens of each wrong row before its first wrong one, found by going on from its beginnings: that many are in the
    longest of them from which one of `rollouts` samples of the model still reaches the right answer. By binary search,
    as in OmegaPRM (2406.06592). `None` where none does from the question itself.
    """
    laboratory, pupil = run.laboratory, run.laboratory.pupil

    def solved(places: Sequence[int]) -> list[bool]:
        verdicts = {}
        for place in dict.fromkeys(places):  # what is begun leaves less room for the rest
            of_place = [i for i, each in enumerate(places) if each == place]
            begun = [" ".join([rows[i]["prompt"], *rows[i]["completion"].split()[:place]]) for i in of_place]
            drawn = laboratory.draw(model, begun, rollouts, run.seed, logprobs=False, written=place)
            for i, text, samples in zip(of_place, begun, drawn, strict=True):
                before = text.removeprefix(rows[i]["prompt"])
                verdicts[i] = any(
                    pupil.correct(rows[i]["prompt"], f"{before} {rest}".strip()) for rest in samples.completions
                )
        return [verdicts[i] for i in range(len(places))]

    wrong = [len(row["completion"].split()) for row in rows]
    right, solvable = [0] * len(rows), solved([0] * len(rows))
    while any(last - first > 1 for first, last in zip(right, wrong, strict=True)):
        middles = [(first + last) // 2 for first, last in zip(right, wrong, strict=True)]
        for i, yes in enumerate(solved(middles)):
            if wrong[i] - right[i] > 1:
                (right if yes else wrong)[i] = middles[i]
    return [place if yes else None for place, yes in zip(right, solvable, strict=True)]

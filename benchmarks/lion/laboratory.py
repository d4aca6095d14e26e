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

"""What all arms share: the base model, the training, and the test. An arm is a run of `LionLoop`, as users run it."""

import hashlib
import json
import random
import shutil
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.laboratory import (
    EOS,
    PAD,
    Clock,
    pack,
    read_lines,
    train_quietly,
    training_arguments,
    turn,
    word_tokenizer,
)
from trl_distill import LionConfig, LionLoop, MiniLLMConfig, MiniLLMTrainer
from trl_distill.chat import ChatRequest, LocalChatModel, Sampling

from .world import LENGTH, VOCABULARY, World, family_of, task


@dataclass(frozen=True)
class Arm:
    """
    Attributes:
        config (`dict`, *optional*):
            What the arm sets in `LionConfig`. `None`: no loop, only more steps on the old pool.
        learning_rate (`float`):
            Of the last training of each later round.
        control (`str`, *optional*):
            The arm that it is compared with, so that one thing differs.
        long (`bool`, *optional*, defaults to `False`):
            Whether its later rounds take as many steps as a training from the base on all rows would.
    """

    config: dict | None
    learning_rate: float
    control: str | None = None
    long: bool = False


RANDOM = {"strategy": "random"}
NEW, SHARE, ALL, BASE = {"replay": "none"}, {"replay": "share"}, {"replay": "all"}, {"init_from": "base"}
DPO, MINILLM = {"stages": ["sft", "dpo"]}, {"stages": ["sft", "minillm"]}
UNSEEN = {"oversample": 3.0}
CONTINUED = "no new rows"
DEFAULT = "adversarial"  # as in the paper, and in `LionConfig` until this laboratory decided for `replay: share`
# The best over all families after the last round on the pilot seed, see results/lion_learning_rates.json
RATES = {
    "new": 5e-4,
    "new, long": 1.25e-4,
    "share": 5e-4,
    "all": 5e-4,
    "base": 1e-3,  # not searched: that of the first imitation
    "dpo": 5e-6,
    "minillm": 1e-4,  # not searched, either
}
ARMS = {
    DEFAULT: Arm(NEW, RATES["new"], "random"),
    "random": Arm(NEW | RANDOM, RATES["new"]),
    "adversarial, long": Arm(NEW, RATES["new, long"], "random, long", long=True),
    "random, long": Arm(NEW | RANDOM, RATES["new, long"], long=True),
    "adversarial, replay share": Arm(SHARE, RATES["share"], "random, replay share"),
    "random, replay share": Arm(SHARE | RANDOM, RATES["share"]),
    "adversarial, replay all": Arm(ALL, RATES["all"], "random, replay all"),
    "random, replay all": Arm(ALL | RANDOM, RATES["all"]),
    "adversarial, from the base": Arm(BASE, RATES["base"], "random, from the base"),
    "random, from the base": Arm(BASE | RANDOM, RATES["base"]),
    "loss miner, replay all": Arm(ALL | {"miner": "loss"}, RATES["all"], "random, replay all"),
    "both miners, replay all": Arm(ALL | {"miner": "both"}, RATES["all"], "random, replay all"),
    "mined on unseen, replay all": Arm(ALL | UNSEEN, RATES["all"], "random, replay all"),
    "then DPO, replay all": Arm(ALL | DPO, RATES["dpo"], "random, then DPO, replay all"),
    "random, then DPO, replay all": Arm(ALL | DPO | RANDOM, RATES["dpo"]),
    "then MiniLLM, replay all": Arm(ALL | MINILLM, RATES["minillm"], "random, then MiniLLM, replay all"),
    "random, then MiniLLM, replay all": Arm(ALL | MINILLM | RANDOM, RATES["minillm"]),
    "adversarial, hard only": Arm(NEW | {"hard_share": 1.0}, RATES["new"], "random"),
    "adversarial, easy only": Arm(NEW | {"hard_share": 0.0}, RATES["new"], "random"),
    CONTINUED: Arm(None, RATES["new"], "random"),
    "adversarial, one order": Arm(NEW | {"referee_orders": 1}, RATES["new"], DEFAULT),
}
ROLES = ["<user>", "<assistant>"]
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(VOCABULARY, ROLES, TEMPLATE)


@dataclass(frozen=True)
class Laboratory:
    """The sizes of everything. A test makes a minute laboratory."""

    cache: Path  # where models and runs are kept
    shared: float = 0.0  # what books of a kind have in common, like the next three see `World`
    weak: int = 6
    strong_rows: int = 60
    weak_rows: int = 5
    rounds: int = 2  # after the first imitation
    n_new: int = 160  # new instructions of each round
    epochs: int = 4  # of each round, like the batches
    batch_size: int = 32
    learning_rate: float = 1e-3  # of the first imitation
    stage_steps: int = 40  # of DPO or MiniLLM after a later imitation, in batches of 16
    lessons: int = 200  # steps of the teacher whose weights MiniLLM reads, from the base
    hidden_size: int = 128  # of the student
    num_hidden_layers: int = 2
    drills: int = 25_600  # rows of a course of the base model, in batches of 64
    courses: int = 4  # that it may take
    pass_mark: float = 0.995  # share of new drills that it must answer rightly
    drill_learning_rate: float = 1.5e-3
    test_size: int = 40  # tasks of the test for each family

    def sizes(self) -> dict:
        return {name: value for name, value in asdict(self).items() if name != "cache"}

    @staticmethod
    def _name(settings) -> str:
        """A name for what was made with these settings."""
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]

    def world(self, seed: int) -> World:
        return World(seed, self.weak, self.strong_rows, self.weak_rows, self.shared)

    # ---------------------------------------------------------------------------------------------------- training

    def _fit(self, model, rows: list[dict], output: Path, seed: int, stage: str = "sft", **options) -> None:
        """Train with TRL or MiniLLM, and put model and tokenizer at `output` when it is done."""
        work, teacher = output.with_name(f"{output.name}.partial"), options.pop("teacher", None)
        shutil.rmtree(work, ignore_errors=True)
        if stage != "sft":
            options |= {"per_device_train_batch_size": min(16, len(rows))}
        settings = training_arguments(work, seed, lr_scheduler_type="linear", warmup_steps=0.1, **options)
        columns = {"sft": ("prompt", "completion"), "dpo": ("prompt", "chosen", "rejected"), "minillm": ("prompt",)}
        data = Dataset.from_list([{name: row[name] for name in columns[stage]} for row in rows])
        common = {"train_dataset": data, "processing_class": tokenizer()}
        if stage == "sft":
            trainer = SFTTrainer(model, args=SFTConfig(**settings), **common)
        elif stage == "dpo":
            trainer = DPOTrainer(model, args=DPOConfig(**settings), **common)
        else:
            args = MiniLLMConfig(**settings, max_completion_length=LENGTH + 1)
            trainer = MiniLLMTrainer(model, AutoModelForCausalLM.from_pretrained(teacher), args=args, **common)
        train_quietly(trainer)
        trainer.save_model()
        output.parent.mkdir(parents=True, exist_ok=True)
        work.rename(output)

    def base(self, seed: int) -> Path:
        """
        The model that all students of a seed start from: it can use a code book, and knows none of the pool's.

        It takes courses, each with new drills, until it passes. A single one may not be enough on every machine: a
        model learns all of a sudden what a book is, and small things decide when.

        Raises:
            `RuntimeError`: If it has not passed after the last course.
        """
        sizes = [self.hidden_size, self.num_hidden_layers, self.drills, self.courses, self.pass_mark]
        folder = self.cache / f"base-{self._name([*sizes, self.drill_learning_rate, seed])}"
        if folder.exists():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        world, model, clock, right = self.world(seed), self._fresh(seed), Clock(), 0.0
        for course in range(1, self.courses + 1):
            dialogues = [turn(text, world.answer(text)) for text in world.drills(self.drills, f"{seed} {course}")]
            rows = [{"prompt": said[:1], "completion": said[1:]} for said in dialogues]
            options = {"per_device_train_batch_size": 64, "num_train_epochs": 1}
            taught = folder.with_name(f"{folder.name}-course")
            shutil.rmtree(taught, ignore_errors=True)
            self._fit(model, rows, taught, seed, learning_rate=self.drill_learning_rate, **options)
            tasks = world.drills(1000, "examination")
            right = (
                sum(world.right(*pair) == 1 for pair in zip(tasks, self.answers(taught, tasks), strict=True)) / 1000
            )
            if right >= self.pass_mark:
                facts = {"right": right, "courses": course, "cpu_seconds": clock.facts()["cpu_seconds"]}
                (taught / "drills.json").write_text(json.dumps(facts), encoding="utf-8")
                taught.rename(folder)
                return folder
            model = AutoModelForCausalLM.from_pretrained(taught)
        raise RuntimeError(
            f"The base model of seed {seed} is right on {right:.1%} of its drills after {self.courses} courses of "
            f"{self.drills:,} rows, and must be on {self.pass_mark:.1%}, or nothing made from it holds elsewhere. "
            "Allow more `courses`, or change `drill_learning_rate`."
        )

    def base_facts(self, seed: int) -> dict:
        """How many drills a base model got right, after how many courses, and the time that these took."""
        return json.loads((self.base(seed) / "drills.json").read_text())

    def parameters(self) -> int:
        return self._fresh(0).num_parameters()

    def _fresh(self, seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=2 + len(ROLES) + len(VOCABULARY),
                hidden_size=self.hidden_size,
                intermediate_size=4 * self.hidden_size,
                num_hidden_layers=self.num_hidden_layers,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=64,
                # With the usual 0.02 a model as narrow as this one hardly moves for 400 steps
                initializer_range=self.hidden_size**-0.5,
                attention_bias=True,  # without it, this model learns to look up a letter only after many more steps
                tie_word_embeddings=False,
                bos_token_id=None,
                eos_token_id=EOS,
                pad_token_id=PAD,
            )
        )

    def train(
        self,
        model: str,
        rows: Path,
        output: Path,
        seed: int,
        learning_rate: float,
        max_steps: int = -1,
        stage: str = "sft",
    ) -> None:
        """One training. The same one is done once for all arms, so they share round 0."""
        key = [_digest(Path(model) / "model.safetensors"), _digest(rows), seed, learning_rate, max_steps, stage]
        kept = self.cache / "students" / self._name([*key, self.epochs, self.batch_size])
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            options = {"num_train_epochs": self.epochs, "max_steps": max_steps, "learning_rate": learning_rate}
            if stage == "sft":
                options["per_device_train_batch_size"] = self.batch_size
            elif stage == "minillm":
                options["teacher"] = self.teacher(seed)
            self._fit(AutoModelForCausalLM.from_pretrained(model), read_lines(rows), kept, seed, stage, **options)
        shutil.copytree(kept, output)

    def teacher(self, seed: int) -> Path:
        """
        A model that knows the world of a seed, for the stage that reads a teacher's weights. Answers are the rule's.

        Raises:
            `RuntimeError`: If it is not right on 99 % of the tasks that it is asked.
        """
        folder = self.cache / f"teacher-{self._name([self.sizes(), seed])}"
        if not folder.exists():
            world, draw = self.world(seed), random.Random(f"lessons {seed}")
            # One in twenty names no book
            count = self.lessons * 64
            texts = [task(draw.choice(world.families), draw, rare=draw.random() < 0.3) for _ in range(count)]
            texts = [text.split(" ", 1)[1] if draw.random() < 0.05 else text for text in texts]
            dialogues = [turn(text, world.answer(text)) for text in texts]
            rows = [{"prompt": said[:1], "completion": said[1:]} for said in dialogues]
            options = {"per_device_train_batch_size": 64, "num_train_epochs": 1, "learning_rate": self.learning_rate}
            taught = folder.with_name(f"{folder.name}-untested")
            shutil.rmtree(taught, ignore_errors=True)
            self._fit(AutoModelForCausalLM.from_pretrained(self.base(seed)), rows, taught, seed, **options)
            tasks = world.test(self.test_size)
            right = statistics.mean(
                world.right(*pair) == 1 for pair in zip(tasks, self.answers(taught, tasks), strict=True)
            )
            if right < min(self.pass_mark, 0.99):
                raise RuntimeError(
                    f"The teacher of seed {seed} is right on {right:.1%} of the test only. Add `lessons`."
                )
            taught.rename(folder)
        return folder

    def steps(self, round: int) -> int:
        """Steps that a training from the base on all rows takes in a round."""
        rows = len(self.world(0).pool()) + round * self.n_new
        return -(-rows // self.batch_size) * self.epochs

    # ------------------------------------------------------------------------------------------------------ the arms

    def loop(self, arm: str, seed: int, learning_rate: float | None = None) -> LionLoop:
        """The loop of an arm, with the rules of the world in place of large models."""
        world, overrides = self.world(seed), ARMS[arm].config or {}
        rate = learning_rate or ARMS[arm].learning_rate
        name = f"{arm.replace(' ', '-')}-{rate:g}"

        def train(model: str, rows: Path, output: Path) -> None:
            round = int(rows.parent.name.removeprefix("round_"))
            imitation = RATES[overrides.get("replay", "new")] if "stages" in overrides else rate
            steps = self.steps(round) if round and ARMS[arm].long else -1
            self.train(model, rows, output, seed, imitation if round else self.learning_rate, steps)

        def go_on(stage: str) -> Callable:
            return lambda model, rows, output: self.train(model, rows, output, seed, rate, self.stage_steps, stage)

        config = LionConfig(
            output_dir=str(self.cache / f"runs-{self._name(self.sizes())}" / str(seed) / name),
            student_model=str(self.base(seed)),
            heldout_size=0,  # the test is a larger one
            student_temperature=0.0,
            student_max_tokens=LENGTH + 3,
            rounds=0 if arm == CONTINUED else self.rounds,
            n_new=self.n_new,
            seed=seed,
            **overrides,
        )
        return LionLoop(
            config,
            [{"instruction": text} for text in world.pool()],
            teacher=world.teacher(),
            referee=world.referee(),
            generator=world.generator(),
            train={"sft": train, "dpo": go_on("dpo"), "minillm": go_on("minillm")},
            student=self.student,
        )

    def student(self, folder: Path) -> LocalChatModel:
        return LocalChatModel(str(folder), name="student", dtype="float32", device="cpu", batch_size=256)

    def answers(self, folder: Path, tasks: list[str]) -> list[str]:
        """Greedy answers of a student."""
        sampling = Sampling(0.0, max_tokens=LENGTH + 3)
        with self.student(folder) as model:
            replies = model.complete([ChatRequest(turn(text), sampling) for text in tasks])
        return [reply.text for reply in replies]

    def score(self, folder: Path, seed: int) -> dict:
        """The test: whether each answer is right, family by family, and the share of right letters."""
        world = self.world(seed)
        tasks = world.test(self.test_size)
        shares = [world.right(*pair) for pair in zip(tasks, self.answers(folder, tasks), strict=True)]
        letters = {
            name: sum(
                share for text, share in zip(tasks, shares, strict=True) if (family_of(text) in world.weak) == weak
            )
            for name, weak in (("weak", True), ("strong", False))
        }
        letters["weak"] /= len(world.weak) * self.test_size
        letters["strong"] /= (len(world.families) - len(world.weak)) * self.test_size
        return {"right": pack([share == 1 for share in shares]), "letters": letters}

    def run(self, arm: str, seed: int, learning_rate: float | None = None) -> dict:
        """
        One arm.

        Returns:
            `dict`: By round the score of the student, the steps of its trainings, how many new rows are of weak
            families, of strong ones and of none, and what was mined; and the calls by role.
        """
        clock, rate = Clock(), learning_rate or ARMS[arm].learning_rate
        world, loop = self.world(seed), self.loop(arm, seed, rate)
        result = loop.run()
        first = loop.folder.round(0) / "answers.jsonl"
        rounds = [{"round": 0, **self.score(loop.folder.student(0), seed), "steps": self._steps(first)}]
        if arm == CONTINUED:
            last, steps = loop.folder.student(0), -(-self.n_new // self.batch_size) * self.epochs
            for round in range(1, self.rounds + 1):
                folder = loop.folder.path / f"continued_{round}"
                shutil.rmtree(folder, ignore_errors=True)
                self.train(str(last), first, folder, seed + 1000 * round, rate, steps)
                last = folder
                rounds.append({"round": round, **self.score(folder, seed), "steps": steps})
        for round in range(1, result.round + 1):
            steps = self._steps(loop.folder.round(round) / "answers.jsonl")
            if ARMS[arm].long:
                steps = self.steps(round)
            steps += self.stage_steps * (len(loop.config.stages) - 1)
            scored = self.score(loop.folder.student(round), seed)
            rounds.append({"round": round, **scored, "steps": steps, **self._mined(loop, world, round)})
        calls = Counter()
        for row in result.report["ledger"]:
            calls[row["role"]] += row["calls"]
        return {
            "arm": arm,
            "seed": seed,
            "learning_rate": rate,
            "status": result.status,
            "rounds": rounds,
            "calls": dict(calls),
            **clock.facts(),
        }

    def _steps(self, rows: Path) -> int:
        return -(-len(read_lines(rows)) // self.batch_size) * self.epochs

    def _mined(self, loop: LionLoop, world: World, round: int) -> dict:
        """Where the new instructions of a round came from."""

        def kind(text: str) -> str:
            return "none" if family_of(text) is None else "weak" if family_of(text) in world.weak else "strong"

        facts = {"new": Counter(kind(item.text) for item in loop.folder.pool(round, "train_pool"))}
        stages = loop.folder.manifest(round).stages
        facts["generation"] = stages["generation"]["counts"]
        if "discrimination" in stages:
            pool = {item.id: item.text for item in loop.folder.pool(round - 1)}
            scores = loop.folder.scores(round)
            facts["discrimination"] = stages["discrimination"]["counts"]
            facts["hard"] = Counter(kind(pool[row["id"]]) for row in scores if row["kind"] == "hard")
            if "referee" in stages["discrimination"]:
                facts["first_minus_last"] = stages["discrimination"]["referee"]["position"]["first_minus_last"]
        return facts

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

"""What all arms share: the teacher and its rationales, the base models, the questions of the test, and its score."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.laboratory import student_of, teacher_of, word_tokenizer
from trl_distill.chat import LocalChatModel, Samples, Sampling, draw_samples

from .world import DRILLS, PUPIL, Drills, Pupil


@dataclass(frozen=True)
class Laboratory:
    """The world and the sizes of everything. A test makes a minute one."""

    cache: Path  # where models, rationales and adapters are kept
    pupil: Pupil = PUPIL  # what the teacher learns
    drills: Drills = DRILLS  # what the base model has read
    questions: int = 1000  # that the teacher answers for each seed
    samples: int = 8  # rationales of each, at temperature 1; repeats are dropped
    epochs: int = 6  # passes of every arm over each row that it trains on
    batch_size: int = 32
    rank: int = 8  # of the LoRA
    width: int = 16  # of NAT's gates
    augmentation: int = 4  # rationales that NAT samples for each question; the right ones join the data of NCE
    test_questions: int = 1000  # the same for all arms and seeds, none of them trained on
    votes: int = 16  # samples of a vote
    vote_questions: int = 500  # how many of the test's questions are voted on

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return word_tokenizer(self.pupil.vocabulary)

    def folder(self, seed: int, name: str) -> Path:
        return self.cache / str(seed) / name.replace(" ", "-")

    def teacher(self) -> PreTrainedModel:
        """The teacher, one for all seeds."""
        return teacher_of(self.pupil, self.cache)

    def base(self) -> PreTrainedModel:
        """The frozen model under all students, one for all seeds."""
        return student_of(self.drills, 100, self.cache)

    def ask(self, count: int, seed: int, without: Sequence[str] = ()) -> list[str]:
        """Different questions."""
        generator, asked, skipped = random.Random(seed), {}, set(without)
        while len(asked) < count:
            question = self.pupil.prompt(generator)
            if question not in skipped:
                asked[question] = None
        return list(asked)

    def test(self, seed: int) -> list[str]:
        """Questions of the test. Seed 100, on which learning rates are chosen, has others."""
        reported = self.ask(self.test_questions, seed=-2)
        return self.ask(self.test_questions, seed=-3, without=reported) if seed == 100 else reported

    def draw(
        self,
        model: PreTrainedModel,
        questions: Sequence[str],
        samples: int,
        seed: int,
        temperature: float = 1.0,
        logprobs: bool = True,
        written: int = 0,
    ) -> list[Samples]:
        """Completions of each question; so many tokens of them are `written` already and stand in the question."""
        room = self.pupil.max_completion_length - written
        sampling = Sampling(temperature, max_tokens=room, seed=seed, logprobs=logprobs)
        with LocalChatModel("arm", batch_size=1024, load=lambda: (model, self.tokenizer)) as arm:
            return draw_samples(arm, [{"prompt": question} for question in questions], samples, sampling)

    def label(self, questions: Sequence[str], drawn: Sequence[Samples]) -> list[dict]:
        """Rows `prompt`, `completion`, `label`. Repeats within a question and texts without an answer are dropped."""
        return [
            # The space keeps prompt and completion apart when TRL joins them
            {"prompt": question, "completion": f" {text}", "label": self.pupil.correct(question, text)}
            for question, samples in zip(questions, drawn, strict=True)
            for text in dict.fromkeys(samples.completions)
            if self.pupil.answer_of(text) is not None
        ]

    def asked(self, seed: int) -> list[str]:
        """The questions that the teacher answers for a seed."""
        return self.ask(self.questions, seed=1000 + seed, without=[*self.test(seed), *self.test(100)])

    def rationales(self, seed: int) -> Dataset:
        """What the teacher wrote for a seed, right and wrong."""
        file = self.folder(seed, "rationales.json")
        if not file.exists():
            questions = self.asked(seed)
            drawn = self.draw(self.teacher(), questions, self.samples, seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(self.label(questions, drawn)))
        return Dataset.from_list(json.loads(file.read_text()))

    def accuracy(self, model: PreTrainedModel, questions: Sequence[str]) -> list[bool]:
        """Whether each greedy answer is right."""
        answers = self.draw(model, questions, samples=1, seed=0, temperature=0.0, logprobs=False)
        return [
            self.pupil.correct(question, sample.completions[0])
            for question, sample in zip(questions, answers, strict=True)
        ]

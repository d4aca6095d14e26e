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

"""The vote among samples of a student, with a ranker that has read the teacher's right and wrong rationales."""

from datasets import Dataset
from transformers import PreTrainedModel, Qwen2ForSequenceClassification

from benchmarks.laboratory import Clock, pack, train_quietly
from trl_distill import (
    ASCRankerConfig,
    ASCRankerTrainer,
    adaptive_self_consistency,
    self_consistency,
    weighted_self_consistency,
)

from .arms import settings_of
from .dial import Dial
from .laboratory import Laboratory
from .world import Pupil


LEARNING_RATE, EPOCHS = 1e-3, 5


def train_ranker(laboratory: Laboratory, seed: int, rationales: Dataset) -> ASCRankerTrainer:
    """The base model with a new head, trained on what the teacher wrote."""
    base = laboratory.base()
    base.config.num_labels = 1
    ranker = Qwen2ForSequenceClassification(base.config)
    ranker.model.load_state_dict(base.model.state_dict())
    settings = settings_of(laboratory, seed, laboratory.folder(seed, "ranker"), LEARNING_RATE)
    del settings["completion_only_loss"]
    trainer = ASCRankerTrainer(
        ranker,
        args=ASCRankerConfig(**settings | {"num_train_epochs": EPOCHS}),
        train_dataset=rationales,
        processing_class=laboratory.tokenizer,
    )
    train_quietly(trainer)
    return trainer


def share(values: list[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def judge(ranker: ASCRankerTrainer, pupil: Pupil | Dial, rows: list[dict]) -> dict:
    """How well scores tell right rationales from wrong ones, by decisions at 0.5; how many mistakes are the bug."""
    verdicts = [score > 0.5 for score in ranker.score(rows)]
    wrong = [row for row in rows if not row["label"]]
    bugs = [pupil.answer_of(row["completion"]) == pupil.mistaken(row["prompt"]) for row in wrong]
    return {
        "rows": len(rows),
        "right": share([row["label"] for row in rows]),
        "accuracy": share([verdict == row["label"] for verdict, row in zip(verdicts, rows, strict=True)]),
        "right, taken for right": share([v for v, row in zip(verdicts, rows, strict=True) if row["label"]]),
        "wrong, taken for right": share([v for v, row in zip(verdicts, rows, strict=True) if not row["label"]]),
        "wrong, with the bug's answer": share(bugs),
    }


def vote(
    laboratory: Laboratory,
    seed: int,
    students: dict[str, PreTrainedModel],
    rationales: Dataset,
    of_teacher: list[dict],
) -> list[dict]:
    """
    Accuracy of one sample and of the three votes, for several students of a seed. The ranker learns from `rationales`,
    and is judged by what the teacher wrote to the questions of the test, `of_teacher`, as well.

    Returns:
        `list[dict]`: For each student the accuracy of single samples (`single`), whether each question is answered
        rightly by `sc`, `ws` and `asc` (see `pack`), and what the ranker is worth on the teacher's rationales to these
        questions and on the student's own.
    """
    clock = Clock()
    questions = laboratory.test(seed)[: laboratory.vote_questions]
    ranker = train_ranker(laboratory, seed, rationales)
    on_teacher = judge(ranker, laboratory.pupil, of_teacher)
    ranker_seconds = clock.facts()["cpu_seconds"]
    results = []
    for student, model in students.items():
        clock, pupil = Clock(), laboratory.pupil
        drawn = laboratory.draw(model, questions, laboratory.votes, seed=seed)
        rows = [
            {"prompt": question, "completion": f" {text}", "label": pupil.correct(question, text)}
            for question, samples in zip(questions, drawn, strict=True)
            for text in samples.completions
        ]
        scores = iter(ranker.score(rows))
        right = {"sc": [], "ws": [], "asc": []}
        for question, samples in zip(questions, drawn, strict=True):
            answers = [pupil.answer_of(text) for text in samples.completions]
            votes = {
                "sc": self_consistency(answers),
                "ws": weighted_self_consistency(answers, samples.mean_logps),
                "asc": adaptive_self_consistency(answers, [next(scores) for _ in answers]),
            }
            for name, answer in votes.items():
                right[name].append(answer == pupil.answer(question))
        results.append(
            {
                "student": student,
                "seed": seed,
                "single": share([row["label"] for row in rows]),
                "votes": {name: pack(values) for name, values in right.items()},
                "ranker": {
                    "teacher": on_teacher,
                    "student": judge(ranker, pupil, rows),
                    "cpu_seconds": ranker_seconds,
                },
                "cpu_seconds": clock.facts()["cpu_seconds"],
            }
        )
    return results

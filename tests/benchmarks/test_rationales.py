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

"""The laboratory of rationales: what its world claims about itself, and one short run of each arm."""

import json
import math
import random
import statistics
from collections import Counter

import pytest

from benchmarks.laboratory import pack
from benchmarks.rationales.arms import ARMS, AUGMENTED, LEARNING_RATE, STUDENTS, augment, student_of, train
from benchmarks.rationales.laboratory import Laboratory
from benchmarks.rationales.run import Task, finished, prepare, record, tasks_of, votes
from benchmarks.rationales.table import table
from benchmarks.rationales.world import DRILLS, PUPIL, Drills, Pupil
from trl_distill.chat import Samples


SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


class TinyPupil(Pupil):
    teacher = SIZE
    teacher_steps = 2


class TinyDrills(Drills):
    student = SIZE
    warm_steps = 2


# ---------------------------------------------------------------------------------------------------------- the world


@pytest.mark.parametrize(
    ("question", "right", "bug"),
    [
        ("4 7 + 2 8 =", "7 + 8 = 1 5 ; 4 + 2 = 6 ; 6 + 1 = 7 ; #### 7 5", "7 + 8 = 1 5 ; 4 + 2 = 6 ; #### 6 5"),
        ("7 2 - 4 8 =", "1 2 - 8 = 4 ; 7 - 4 = 3 ; 3 - 1 = 2 ; #### 2 4", "8 - 2 = 6 ; 7 - 4 = 3 ; #### 3 6"),
        (
            "4 7 * 6 =",
            "7 * 6 = 4 2 ; 4 * 6 = 2 4 ; 2 4 + 4 = 2 8 ; #### 2 8 2",
            "7 * 6 = 4 2 ; 4 * 6 = 2 4 ; #### 2 4 2",
        ),
        (
            "7 + 5 * 3 + 2 =",
            "5 * 3 = 1 5 ; 7 + 1 5 = 2 2 ; 2 2 + 2 = 2 4 ; #### 2 4",
            "7 + 5 = 1 2 ; 1 2 * 3 = 3 6 ; 3 6 + 2 = 3 8 ; #### 3 8",
        ),
    ],
)
def test_questions_are_worked_out_with_and_without_the_bug(question, right, bug):
    assert PUPIL.work(question, bug=False, swap=False) == right
    assert PUPIL.work(question, bug=True, swap=False) == bug
    assert PUPIL.correct(question, right) and PUPIL.correct(question, PUPIL.work(question, bug=False, swap=True))
    assert not PUPIL.correct(question, bug) and not PUPIL.is_easy(question)
    assert not any(PUPIL.correct(question, text) for text in (right.rpartition(" ")[0], f"{right} ;", ""))
    assert PUPIL.answer_of("7 + 8 = 1 5 ; 4 + 2 =") is None


def test_answers_are_those_of_python():
    generator = random.Random(0)
    for _ in range(500):
        question = PUPIL.prompt(generator)
        value = str(eval(question.removesuffix("=").replace(" ", "")))
        assert PUPIL.answer(question).replace(" ", "") == (value.zfill(2) if "-" in question else value)
        for swap in (False, True):
            assert PUPIL.correct(question, PUPIL.work(question, bug=False, swap=swap))


def test_the_pupil_knows_its_probabilities():
    # All that can be written about one question, counted; two results of 9 - 9 = 0 are off by one upwards only
    generator, question = random.Random(0), "2 9 - 1 9 ="
    count = 20_000
    for text, number in Counter(PUPIL.complete(question, generator) for _ in range(count)).items():
        expected = math.exp(-PUPIL.surprise(question, text))
        assert abs(number / count - expected) < 5 * math.sqrt(expected / count), text
    assert -math.log(0.5 * 0.96**2) == pytest.approx(
        PUPIL.surprise(question, "9 - 9 = 0 ; 2 - 1 = 1 ; #### 1 0"), rel=1e-9
    )
    # A borrow forgotten is a bug, whose probability is (1 + the first digit) / 10
    bug = PUPIL.surprise("7 2 - 4 8 =", "8 - 2 = 6 ; 7 - 4 = 3 ; #### 3 6")
    assert bug == pytest.approx(-math.log(0.8 * 0.5 * 0.96**2))


def test_about_half_of_the_rationales_are_wrong_and_all_fit():
    generator = random.Random(0)
    rows = [PUPIL.sample(generator) for _ in range(4000)]
    assert 0.54 < statistics.mean(PUPIL.correct(*row) for row in rows) < 0.61
    assert max(len(completion.split()) for _, completion in rows) < PUPIL.max_completion_length
    assert {word for row in rows for text in row for word in text.split()} == set(PUPIL.vocabulary)


def test_the_base_model_reads_no_hard_question_and_no_mistake():
    generator = random.Random(0)
    for _ in range(300):
        text = DRILLS.complete("", generator)
        steps, _, answer = text.replace(" ", "").partition("####")
        question = steps.partition("=")[0]
        for step in steps.removesuffix(";").split(";"):
            left, result = step.split("=")[-2:]  # the first step stands behind the question
            assert eval(left) == int(result), text
        if answer:
            assert eval(question) == int(answer), text
            assert "*" not in question or "+" not in question  # nothing to put first


# ------------------------------------------------------------------------------------------------------------ the arms


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    """A minute laboratory, with rationales of the true process: its teacher has learned nothing."""
    laboratory = Laboratory(
        tmp_path_factory.mktemp("laboratory"),
        TinyPupil(),
        TinyDrills(),
        questions=16,
        samples=3,
        epochs=1,
        batch_size=8,
        rank=2,
        width=4,
        augmentation=2,
        test_questions=20,
        votes=3,
        vote_questions=10,
    )
    generator, questions = random.Random(0), laboratory.asked(0)
    drawn = [Samples([PUPIL.complete(question, generator) for _ in range(3)], [], []) for question in questions]
    file = laboratory.folder(0, "rationales.json")
    file.parent.mkdir()
    file.write_text(json.dumps(laboratory.label(questions, drawn)))
    return laboratory


def test_training_and_test_questions_are_apart(laboratory):
    asked, tests = laboratory.asked(0), [laboratory.test(seed) for seed in (0, 1, 100)]
    assert len(set(asked)) == 16 and len(set(tests[0])) == 20
    assert tests[0] == tests[1] and not set(tests[0]) & set(tests[2])
    assert not set(asked) & {*tests[0], *tests[2]}


def test_every_arm_trains_is_kept_and_is_voted_on(laboratory):
    results = {"prepare": {}, "augment": {}, "vote": {}, "runs": []}
    todo = tasks_of([0], ARMS, [LEARNING_RATE], votes=True)
    base = laboratory.base()
    while todo:
        task = next(task for task in todo if task.needs() <= finished(results))
        todo.remove(task)
        if task.kind == "prepare":
            record(results, task, prepare(laboratory, 0))
        elif task.kind == "augment":
            record(results, task, augment(laboratory, 0))
        elif task.kind == "vote":
            record(results, task, votes(laboratory, 0))
        else:
            model, facts = train(laboratory, task.arm, 0, task.learning_rate)
            right = laboratory.accuracy(model, laboratory.test(0))
            record(results, task, {"arm": task.arm, "seed": 0, **facts, "accuracy": 0.0, "right": pack(right)})
            kept = student_of(laboratory, task.arm, 0)
            tokens = laboratory.tokenizer(["4 7 + 2 8 ="], return_tensors="pt")["input_ids"]
            assert (kept(tokens).logits - model.eval()(tokens).logits).abs().max() == 0
            for student in (model, kept):
                with student.disable_adapter():  # the base under it is as it was
                    assert (student(tokens).logits - base(tokens).logits).abs().max() == 0

    of_arm = {run["arm"]: run for run in results["runs"]}
    sizes = {arm: run["trainable_parameters"] for arm, run in of_arm.items()}
    assert sizes["nat"] == sizes["nat without negative adapter"] <= sizes["lora of nat's size"]
    assert sizes["lora of nat's size"] - sizes["nat"] < sizes["cot kd"] // laboratory.rank  # less than one more rank
    assert sizes["cot kd"] < sizes["nat identity"] < sizes["nat"]
    assert {sizes[arm] for arm in ("mix", "nt", "ul", *AUGMENTED)} == {sizes["cot kd"]}
    steps = {arm: run["optimizer_steps"] for arm, run in of_arm.items()}
    assert steps["cot kd, twice the epochs"] == 2 * steps["cot kd"] == 2 * steps["nat"]
    assert steps["mix"] > steps["cot kd"]
    negative = {arm for arm, run in of_arm.items() if run["optimizer_steps_of_the_negative_stage"]}
    assert negative == {"nat", "nat, twice the epochs", "nat identity"}
    assert Task("vote", 0) in finished(results)

    printed = table(results)
    assert all(f"| {arm} | " in printed for arm in (*ARMS, *STUDENTS))
    assert f"{results['prepare']['0']['right']} right and {results['prepare']['0']['wrong']} wrong" in printed

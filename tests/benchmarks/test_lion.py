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

"""The laboratory of Lion: what its world claims about itself, and one short run of each arm."""

import gzip
import json
import random
import re
import statistics

import pytest
from transformers import AutoTokenizer

from benchmarks.laboratory import unpack
from benchmarks.lion.laboratory import CONTINUED, Laboratory, tokenizer
from benchmarks.lion.real_run import read_instructions
from benchmarks.lion.table import table
from benchmarks.lion.world import COMMON, LENGTH, LETTERS, RARE, VOCABULARY, World, family_of, task
from benchmarks.table import RESULTS, show
from trl_distill.chat import ChatRequest, Judge, JudgeItem, Sampling
from trl_distill.lion import Instruction, generation_request


# ---------------------------------------------------------------------------------------------------------- the world


def test_books_hold_every_letter_once_and_drills_are_the_same_in_all_worlds():
    worlds = [World(0), World(1)]
    for world in worlds:
        assert all(sorted(book.values()) == sorted(LETTERS) == sorted(book) for book in world.books.values())
        codes = [tuple(world.books[family].values()) for family in world.families]
        assert len(set(codes)) == len(world.families) == 16
    assert worlds[0].drills(50) == worlds[1].drills(50)
    assert [worlds[0].answer(text) for text in worlds[0].drills(50)] == [
        worlds[1].answer(text) for text in worlds[0].drills(50)
    ]
    assert worlds[0].books["code00"] != worlds[1].books["code00"]


def test_the_teacher_reads_the_book():
    world = World(3)
    book = world.books["code07"]
    asked = ChatRequest([{"role": "user", "content": "code07 b a k c a"}])
    [reply] = world.teacher().complete([asked])
    assert reply.text == f"{book['b']} {book['a']} {book['k']} {book['c']} {book['a']}"
    assert world.right("code07 b a k c a", reply.text) == 1
    assert world.right("code07 b a k c a", reply.text + " a") == 0 == world.right("code07 b a k c a", "")
    assert world.right("code07 b a k c a", reply.text[:3]) == 0.4
    assert world.answer("b a k c a") == "?" and family_of("b a k c a") is None


def test_pool_and_test_are_apart_and_of_the_sizes_that_are_said():
    world = World(0, weak=4, strong_rows=12, weak_rows=3)
    pool, test = world.pool(), world.test(10)
    assert len(set(pool)) == len(pool) == 12 * 12 + 4 * 3 and not set(pool) & set(test)
    assert [family_of(text) for text in test] == [family for family in world.families for _ in range(10)]
    for family in world.families:
        assert sum(family_of(text) == family for text in pool) == (3 if family in world.weak else 12)
    assert World(1, weak=4).weak != world.weak


def test_rare_tasks_have_rare_letters():
    generator = random.Random(0)
    for rare, share in ((False, 0.1), (True, 0.5)):
        letters = [letter for _ in range(2000) for letter in task("code00", generator, rare).split()[1:]]
        assert statistics.mean(letter in RARE for letter in letters) == pytest.approx(share, abs=0.02)
        assert set(letters) == {*COMMON, *RARE} and len(letters) == 2000 * LENGTH


def test_the_referee_is_biased_in_one_order_and_not_in_two():
    world = World(0)
    world.noise = 0.0
    questions = world.test(2)
    items = [
        JudgeItem(text, text, [world.answer(text), "? " * (i % 3) + " ".join(world.answer(text).split()[i % 3 :])])
        for i, text in enumerate(questions)
    ]
    gaps = [6 * (i % 3) / LENGTH for i in range(len(items))]
    both = Judge(world.referee()).judge(items)
    assert [a - b for a, b in (judgement.scores for judgement in both)] == pytest.approx(gaps)
    one = Judge(world.referee(), mode="listwise", num_orders=1).judge(items)
    off = [a - b - gap for (a, b), gap in zip((judgement.scores for judgement in one), gaps, strict=True)]
    assert {round(value, 6) for value in off} == {1.5, -1.5}  # twice the bonus, for whom it falls to


def test_the_generator_keeps_the_family_writes_rare_tasks_and_now_and_then_a_bad_one():
    world, seed = World(0), Instruction("code03 a b c d e")
    requests = {
        kind: [generation_request(seed, kind, Sampling(seed=0), i) for i in range(1500)] for kind in ("hard", "easy")
    }
    for kind, share in (("hard", 0.1), ("easy", 0.5)):
        texts = [reply.text for reply in world.generator().complete(requests[kind])]
        good = [text for text in texts if text != seed.text and family_of(text)]
        assert {family_of(text) for text in good} == {"code03"}
        assert statistics.mean(letter in RARE for text in good for letter in text.split()[1:]) == pytest.approx(
            share, abs=0.03
        )
        assert len(texts) - len(good) == pytest.approx(150, abs=50)
        assert all(world.answer(text) == "?" for text in texts if family_of(text) is None)


# ----------------------------------------------------------------------------------------------------------- the arms


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    """A minute laboratory, whose student knows nothing."""
    return Laboratory(
        tmp_path_factory.mktemp("lion"),
        weak=6,
        strong_rows=3,
        weak_rows=1,
        rounds=1,
        n_new=16,
        epochs=1,
        batch_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        drills=64,
        test_size=2,
    )


def test_a_saved_student_reads_words(laboratory):
    saved = AutoTokenizer.from_pretrained(laboratory.base())
    text = f"<user> {VOCABULARY[-1]} a b <eos>"
    assert saved.tokenize(text) == text.split() and len(saved) == len(tokenizer())
    assert saved.decode(saved.encode("<assistant> a b <eos>"), skip_special_tokens=True).split() == ["a", "b"]


SHORT = [
    "adversarial",
    "random",
    CONTINUED,
    "random, from the base",
]  # the others differ from the first in one setting


def test_arms_run_with_as_many_new_rows(laboratory):
    world = laboratory.world(0)
    runs = [laboratory.run(arm, 0) for arm in SHORT]
    assert [[score["round"] for score in run["rounds"]] for run in runs] == [[0, 1]] * len(SHORT)
    assert len({run["rounds"][0]["right"] for run in runs}) == 1
    assert all(len(unpack(score["right"])) == 32 for run in runs for score in run["rounds"])
    for run in runs:
        if run["arm"] == CONTINUED:
            assert "new" not in run["rounds"][1] and set(run["calls"]) == {"teacher"}
            continue
        loop = laboratory.loop(run["arm"], 0)
        new = [item.text for item in loop.folder.pool(1, "train_pool")]
        weak = sum(family_of(text) in world.weak for text in new)
        assert (
            sum(run["rounds"][1]["new"].values()) == len(new) == 16 and run["rounds"][1]["new"].get("weak", 0) == weak
        )
        trained = (loop.folder.round(1) / "answers.jsonl").read_text().splitlines()
        assert len(trained) == (16 if loop.config.init_from == "previous" else 36 + 16)
        assert ("referee" in run["calls"]) == (loop.config.strategy == "adversarial")

    results = {
        "provenance": [{"sizes": laboratory.sizes()}],
        "base": {"parameters": laboratory.parameters(), "right on drills": 0.0},
        "seeds": {"0": {"families": world.families, "weak": world.weak}},
        "runs": runs,
    }
    printed = table(results)
    assert all(f"| {arm} | 1 | " in printed for arm in SHORT)


def test_the_table_counts_weak_and_strong_families_apart():
    # Two families of two tasks; the second one is weak. In seed 0 the arm wins one weak task, in seed 1 none
    def run(arm, seed, right):
        mined = {"new": {"weak": 1, "strong": 3}, "generation": {"requests": 5, "similar": 1}}
        rounds = [{"round": 0, "right": "4:c"}, {"round": 1, "right": right, **mined}]
        return {"arm": arm, "seed": seed, "rounds": rounds, "calls": {"teacher": 4}, "cpu_seconds": 1.0}

    world = {"families": ["code00", "code01"], "weak": ["code01"]}
    results = {
        "provenance": [{"sizes": {"strong_rows": 2, "weak_rows": 1, "n_new": 4}}],
        "base": {"parameters": 1000, "right on drills": 1.0},
        "seeds": {"0": world, "1": world},
        "runs": [
            run("adversarial", 0, "4:e"),  # 1110
            run("random", 0, "4:c"),  # 1100
            run("adversarial", 1, "4:c"),
            run("random", 1, "4:c"),
        ],
    }
    lines = table(results).splitlines()
    [line] = [line for line in lines if line.startswith("| adversarial | 1 | 2")]
    # mean of 50 and 0, with Student's quantile of one degree of freedom times half of their distance
    assert line == (
        "| adversarial | 1 | 25.0 ± 317.7 | 100.0 ± 0.0 | 62.5 ± 158.8 | random | +25.0 ± 317.7, 1 of 2 | "
        "+0.0 ± 0.0, 0 of 2 | +12.5 ± 158.8, 1 of 2 |"
    )
    assert "| all | 0 | 0.0 ± 0.0 | 100.0 ± 0.0 | 50.0 ± 0.0 |" in "\n".join(lines)
    assert "| random | 1 |  |  | 25 | 0 | 5 | 1 | 0 |" in lines


# ------------------------------------------------------------------------------------------------------- the real run


def test_long_instructions_are_left_out_with_their_input(tmp_path):
    rows = [
        {"instruction": "x" * 10},
        {"instruction": "x" * 11},
        {"instruction": "x" * 5, "input": "y" * 5},
        {"instruction": "x" * 5, "instances": [{"input": "y" * 6}]},
        {"instruction": "x" * 5, "instances": [{"input": ""}]},
    ]
    file = tmp_path / "rows.jsonl.gz"
    with gzip.open(file, "wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    assert read_instructions(file, 10) == [rows[0], rows[2], rows[4]]


def test_results_are_printed_and_name_no_path():
    files = sorted(RESULTS.glob("lion*.json"))
    assert len(files) == 3
    for file in files:
        assert not re.search(r'[" =]/\w+/', file.read_text()), file
        assert f"## {file.stem}\n\n" in show(file) and "No table" not in show(file)

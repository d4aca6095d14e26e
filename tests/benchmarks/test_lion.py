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
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.laboratory import unpack
from benchmarks.lion import run as command
from benchmarks.lion.laboratory import ARMS, CONTINUED, DEFAULT, Laboratory, tokenizer
from benchmarks.lion.real_run import read_instructions
from benchmarks.lion.table import learning_rates, table
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
    assert worlds[0].drills(50) == worlds[1].drills(50) != worlds[0].drills(50, 1)
    assert [worlds[0].answer(text) for text in worlds[0].drills(50)] == [
        worlds[1].answer(text) for text in worlds[0].drills(50)
    ]
    assert worlds[0].books["code00"] != worlds[1].books["code00"]


def test_books_of_a_kind_have_a_half_in_common():
    apart, shared = World(0), World(0, shared=0.5)
    assert shared.weak == apart.weak and shared.pool() == apart.pool() and shared.test(3) == apart.test(3)
    assert all(sorted(book.values()) == sorted(LETTERS) == sorted(book) for book in shared.books.values())
    kinds = [[family for family in shared.families if (family in shared.weak) == weak] for weak in (True, False)]
    for world, least in ((shared, 8), (apart, 0)):
        for kind in kinds:
            alike = [letter for letter in LETTERS if len({world.books[family][letter] for family in kind}) == 1]
            assert len(alike) == least
    weak, strong = (shared.common(kind[0]) for kind in kinds)
    assert weak != strong and all(shared.common(family) == weak for family in kinds[0])
    assert World(1, shared=0.5).common("code00") not in (weak, strong)
    assert [shared.answer(text) for text in shared.drills(50)] == [apart.answer(text) for text in apart.drills(50)]


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
        pass_mark=0.0,
        stage_steps=1,
        lessons=1,
        test_size=2,
    )


def test_a_saved_student_reads_words(laboratory):
    saved = AutoTokenizer.from_pretrained(laboratory.base(0))
    text = f"<user> {VOCABULARY[-1]} a b <eos>"
    assert saved.tokenize(text) == text.split() and len(saved) == len(tokenizer())
    assert saved.decode(saved.encode("<assistant> a b <eos>"), skip_special_tokens=True).split() == ["a", "b"]


def test_a_base_that_does_not_pass_stops_the_laboratory_and_one_that_does_is_kept(laboratory):
    kept = laboratory.base(0) / "model.safetensors"
    made = kept.stat().st_mtime_ns
    assert laboratory.base(0) / "model.safetensors" == kept and kept.stat().st_mtime_ns == made
    assert laboratory.base_facts(0)["courses"] == 1
    assert laboratory.base(1).parent == laboratory.base(0).parent and laboratory.base(1) != laboratory.base(0)
    strict = replace(laboratory, pass_mark=0.995, courses=2)
    with pytest.raises(RuntimeError, match=r"right on 0\.\d% of its drills after 2 courses of 64 rows"):
        strict.base(0)


SHORT = [
    DEFAULT,
    CONTINUED,
    "random, long",
    "random, from the base",
    "mined on unseen, replay all",
    "then DPO, replay all",
    "random, then MiniLLM, replay all",
]  # the others differ from one of these in a setting


def test_arms_run_with_as_many_new_rows(laboratory):
    world = laboratory.world(0)
    runs = [{"world": "apart", **laboratory.run(arm, 0)} for arm in SHORT]
    assert [[score["round"] for score in run["rounds"]] for run in runs] == [[0, 1]] * len(SHORT)
    assert len({run["rounds"][0]["right"] for run in runs}) == 1
    assert all(len(unpack(score["right"])) == 32 for run in runs for score in run["rounds"])
    steps = {run["arm"]: run["rounds"][1]["steps"] for run in runs}
    whole = -(-(36 + 16) // 8)
    assert [steps[arm] for arm in SHORT] == [2, 2, whole, whole, whole, whole + 1, whole + 1]
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
        config = loop.config
        assert len(trained) == (16 if (config.init_from, config.replay) == ("previous", "none") else 36 + 16)
        assert ("referee" in run["calls"]) == (config.strategy == "adversarial")

    results = {
        "provenance": [{"sizes": laboratory.sizes()}],
        "parameters": laboratory.parameters(),
        "seeds": {"0": {"families": world.families, "weak": world.weak, "base": laboratory.base_facts(0)}},
        "runs": runs,
    }
    printed = table(results)
    assert all(f"| {arm} | 1 | {steps[arm]} | " in printed for arm in SHORT)


def test_every_arm_is_compared_with_one_that_takes_the_same_steps_at_the_same_learning_rate():
    for name, arm in ARMS.items():
        if arm.control is None:
            assert arm.config["strategy"] == "random"
            continue
        control = ARMS[arm.control]
        assert (arm.long, arm.learning_rate) == (control.long, control.learning_rate), name
        assert control.control is None or arm.control == DEFAULT


def result_of(arm, seed, right, world="apart", **others):
    """A run of one later round in a world of two families of two tasks, of which the second one is weak."""
    mined = {"new": {"weak": 1, "strong": 3}, "generation": {"requests": 5, "similar": 1}, "steps": 3}
    rounds = [{"round": 0, "right": "4:c", "steps": 2}, {"round": 1, "right": right, **mined}]
    facts = {"world": world, "rounds": rounds, "calls": {"teacher": 4}, "cpu_seconds": 1.0, "learning_rate": 1e-3}
    return {"arm": arm, "seed": seed, **facts, **others}


def results_of(runs, **facts):
    base = {"right": 1.0, "courses": 1, "cpu_seconds": 1.0}
    world = {"families": ["code00", "code01"], "weak": ["code01"], "base": base}
    sizes = {"strong_rows": 2, "weak_rows": 1, "n_new": 4}
    seeds = {str(run["seed"]): world for run in runs}
    return {"provenance": [{"sizes": sizes}], "parameters": 1000, "seeds": seeds, "runs": runs} | facts


def test_the_table_counts_weak_and_strong_families_apart():
    # In seed 0 the arm wins one weak task, in seed 1 none
    runs = [
        result_of(DEFAULT, 0, "4:e"),  # 1110
        result_of("random", 0, "4:c"),  # 1100
        result_of(DEFAULT, 1, "4:c"),
        result_of("random", 1, "4:c"),
        result_of("adversarial, long", 0, "4:f"),
        result_of(DEFAULT, 0, "4:f", world="shared"),
    ]
    lines = table(results_of(runs)).splitlines()
    [line] = [line for line in lines if line.startswith("| adversarial | 1 | 3 | 2")]
    # mean of 50 and 0, with Student's quantile of one degree of freedom times half of their distance
    assert line == (
        "| adversarial | 1 | 3 | 25.0 ± 317.7 | 100.0 ± 0.0 | 62.5 ± 158.8 | random | +25.0 ± 317.7, 1 of 2 | "
        "+12.5 ± 158.8, 1 of 2 |  |"
    )
    assert "| all | 0 | 2 | 0.0 ± 0.0 | 100.0 ± 0.0 | 50.0 ± 0.0 |  |  |  |  |" in lines
    long = "| adversarial, long | 1 | 3 | 100.0 | 100.0 | 100.0 | random, long |  |  | +25.0 ± ?, 1 of 1 |"
    assert long in lines  # over the default in the one seed that both have
    assert "| random | 1 |  |  | 25 | 0 | 5 | 1 |" in lines
    assert "| adversarial | 1 | 3 | 100.0 | 100.0 | 100.0 | random |  |  |  |" in lines  # the second world
    assert sum(line.startswith("**") for line in lines) == 2


def test_a_loop_that_has_converged_keeps_its_student():
    runs = [result_of(DEFAULT, 0, "4:e"), result_of(DEFAULT, 1, "4:e")]
    runs[0]["rounds"].append(runs[0]["rounds"][1] | {"round": 2, "right": "4:c"})
    [line] = [line for line in table(results_of(runs)).splitlines() if line.startswith("| adversarial | 2 | 3 |")]
    assert "| 25.0 ± 317.7 |" in line  # 0 of the one that went on, 50 of the other one


def test_the_search_of_learning_rates_is_printed_by_rate():
    taken = ARMS[DEFAULT].learning_rate
    runs = [result_of(DEFAULT, 100, "4:e", learning_rate=taken), result_of(DEFAULT, 100, "4:c", learning_rate=1.0)]
    printed = learning_rates(results_of(runs))
    assert f"| adversarial | {taken:g} (taken) | 75.0 | 75.0 |" in printed and "| adversarial | 1 | 50.0 |" in printed


# --------------------------------------------------------------------------------------------------------- the check


def test_the_check_compares_what_the_results_are_sure_of(capsys):
    others = [result_of("random", seed, "4:c") for seed in range(3)]
    committed = results_of([*others, *(result_of(DEFAULT, seed, "4:f") for seed in range(3))])
    assert command.check(committed, results_of([others[0], result_of(DEFAULT, 0, "4:e")]))
    assert "here +25.0 points, results +50.0 ± 0.0: the same order" in capsys.readouterr().out
    assert not command.check(committed, results_of([others[0], result_of(DEFAULT, 0, "4:8")]))
    assert "ANOTHER ORDER" in capsys.readouterr().out
    # Nothing to compare is no agreement, and neither is a student that did not know the strong families at first
    unsure = results_of(
        [*others, *(result_of(DEFAULT, seed, right) for seed, right in enumerate(("4:f", "4:8", "4:c")))]
    )
    assert not command.check(unsure, results_of([others[0], result_of(DEFAULT, 0, "4:f")]))
    assert "know no order" in capsys.readouterr().out
    late = results_of([others[0], result_of(DEFAULT, 0, "4:f")])
    for run in late["runs"]:
        run["rounds"][0]["right"] = "4:4"
    assert not command.check(committed, late)


@pytest.mark.parametrize(("right", "code"), [("4:f", 0), ("4:0", 1)])
def test_the_command_says_by_its_exit_code_whether_the_order_holds(tmp_path, monkeypatch, right, code):
    class Quick(Laboratory):
        def base_facts(self, seed):
            return {"right": 1.0, "courses": 1}

        def run(self, arm, seed, rate):
            return result_of(arm, seed, right if arm == DEFAULT else "4:c")

        def world(self, seed):
            world = World(seed)
            world.families, world.weak = ["code00", "code01"], ["code01"]
            return world

    runs = [result_of(arm, seed, "4:f" if arm == DEFAULT else "4:c") for arm in (DEFAULT, "random") for seed in (3, 4)]
    output = tmp_path / "lion.json"
    output.write_text(json.dumps(results_of(runs)))
    before = output.read_bytes()
    monkeypatch.setattr(command, "Laboratory", Quick)
    monkeypatch.setattr("sys.argv", ["run", "--check", "--output", str(output), "--cache", str(tmp_path / "cache")])
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", [*sys.argv, "--threads", str(threads)])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == code and output.read_bytes() == before


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
    assert len(files) == 4
    for file in files:
        assert not re.search(r'[" =]/\w+/', file.read_text()), file
        assert f"## {file.stem}\n\n" in show(file) and "No table" not in show(file)

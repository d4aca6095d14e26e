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

"""What the laboratories share, and that they share nothing else: none of them imports another."""

import ast
import json
import math
import statistics
from pathlib import Path

import pytest
import torch

from benchmarks.laboratory import (
    EOS,
    encode,
    gain,
    in_processes,
    over_questions,
    over_seeds,
    pack,
    paired,
    resume,
    save,
    unpack,
    word_tokenizer,
)
from benchmarks.table import RESULTS, show


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHARED = {"laboratory", "smollm2", "serving", "speed.measuring"}
# The script for a GPU is made of the speed benchmarks
ALLOWED = {"gpu": {"speed.rollout", "speed.training_step"}}


# ---------------------------------------------------------------------------------------------------- who imports whom


def strangers(path: Path, root: Path = BENCHMARKS) -> set[str]:
    """Modules of `benchmarks` that a file imports, but for its own laboratory's and the shared ones."""
    laboratory, found = path.relative_to(root).parts[0], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found |= {name for name in names if (root / f"{name.replace('.', '/')}.py".partition("/")[2]).exists()}
        elif isinstance(node, ast.ImportFrom) and node.level > 1:
            found.add(f"benchmarks.{node.module}")
    ours = {name.removeprefix("benchmarks.") for name in found if name.startswith("benchmarks.")}
    return {name for name in ours if name.split(".")[0] != laboratory} - SHARED - ALLOWED.get(laboratory, set())


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*/*.py")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_laboratory_imports_another(path):
    assert strangers(path) == set()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from benchmarks.quality.models import build", {"quality.models"}),
        ("from benchmarks.quality import models", {"quality.models"}),
        ("def f():\n    import benchmarks.quality.models", {"quality.models"}),
        ("from ..quality.models import build", {"quality.models"}),
        ("from .world import World\nfrom benchmarks.lion.world import World", set()),
        ("from benchmarks.laboratory import save\nfrom benchmarks.speed.measuring import now", set()),
    ],
)
def test_a_laboratory_that_imports_another_is_seen(tmp_path, line, expected):
    for name in ("quality/models.py", "lion/world.py", "laboratory.py", "speed/measuring.py", "lion/arms.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(line if name == "lion/arms.py" else "")
    assert strangers(tmp_path / "lion" / "arms.py", tmp_path) == expected


# ---------------------------------------------------------------------------------------------------------- the tasks


def half(number: int) -> int:
    return 12 // number


def test_tasks_wait_for_what_they_need_and_a_failure_stops_nobody_else(capsys):
    done = []

    def may_start(task):
        return task != 3 or 6 in done

    for task, result, left in in_processes([3, 0, 6, 4], half, processes=1, may_start=may_start):
        assert result == 12 // task and left >= 0
        done.append(task)
    assert done == [6, 3, 4] or done == [6, 4, 3]
    assert list(in_processes([3], half, processes=1, may_start=lambda task: False)) == []
    printed = capsys.readouterr().out
    assert "0 failed: ZeroDivisionError" in printed and "for want of what they need: 3" in printed


def test_results_are_gone_on_with_and_a_start_is_noted(tmp_path):
    file = tmp_path / "new" / "results.json"
    results = resume(file, {"runs": []}, threads=1)
    save(results | {"runs": [1]}, file)
    again = resume(file, {"runs": []}, threads=2)
    assert again["runs"] == [1] and [made["threads"] for made in again["provenance"]] == [1, 2]
    assert json.loads(file.read_text())["runs"] == [1] and list(file.parent.iterdir()) == [file]


def test_every_kind_of_result_has_a_table():
    shown = {file.stem: show(file) for file in RESULTS.glob("*.json")}
    assert not any("No table" in text for text in shown.values())
    assert all(text.startswith(f"## {name}\n\n") and "| " in text for name, text in shown.items())


# ----------------------------------------------------------------------------------------------------------- the words


def test_rows_are_encoded_with_their_end():
    tokenizer = word_tokenizer(["heads", "tails"])
    batch = encode(tokenizer, [("heads heads", "tails"), ("tails tails", "tails heads")])
    assert batch["input_ids"].tolist() == [[2, 2, 3, EOS, 0], [3, 3, 3, 2, EOS]]
    assert batch["labels"].tolist() == [[-100, -100, 3, EOS, -100], [-100, -100, 3, 2, EOS]]
    assert batch["attention_mask"].sum().item() == 9


def test_roles_are_special_tokens():
    template = "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <eos> {% endfor %}"
    tokenizer = word_tokenizer(["heads", "tails"], ["<user>"], template)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "tails heads"}], return_dict=True)["input_ids"]
    assert ids == [2, 4, 3, EOS] and tokenizer.decode(ids, skip_special_tokens=True).split() == ["tails", "heads"]
    assert torch.equal(
        tokenizer(["heads", "heads tails"], padding=True, return_tensors="pt")["input_ids"][0], torch.tensor([0, 3])
    )


# ------------------------------------------------------------------------------------------------------- the intervals


def test_intervals_are_those_of_student_and_of_the_normal_distribution():
    mean, spread = over_seeds([1.0, 2.0, 6.0])
    assert (mean, spread) == (3.0, pytest.approx(4.3026527 * math.sqrt(7) / math.sqrt(3)))
    assert over_seeds([0.5]) == (0.5, math.inf)
    # With two values the quantile is the tangent of 0.475 pi, and the spread that times half of their distance
    assert over_seeds([0.0, 2.0])[1] == pytest.approx(math.tan(0.475 * math.pi))
    mean, spread = over_questions([1.0] * 30 + [0.0] * 70)
    assert mean == pytest.approx(0.3) and spread == pytest.approx(1.959964 * math.sqrt(0.3 * 0.7 / 99))


def test_a_paired_difference_counts_only_what_differs():
    baseline = {0: [True, False, True, False], 1: [True, True, False, False]}
    arm = {0: [True, True, True, False], 1: [True, True, False, False], 2: [True] * 4}  # the baseline has no seed 2
    result = paired(arm, baseline)
    assert result["each"] == [0.25, 0.0] and result["difference"] == 0.125
    assert result["over_seeds"] == pytest.approx(math.tan(0.475 * math.pi) * 0.125)
    assert result["over_questions"] == pytest.approx(1.959964 * statistics.stdev([0, 0.5, 0, 0]) / 2)
    # As in McNemar's test: what both get right or wrong adds no spread
    assert paired(baseline, baseline) == {"difference": 0, "over_seeds": 0, "over_questions": 0, "each": [0, 0]}


def test_a_gain_says_what_it_is_over():
    one, other = {0: [1.0, 0.0], 1: [1.0, 1.0]}, {0: [0.0, 0.0], 1: [0.5, 0.5], 2: [1.0, 1.0]}
    # both seeds gain 0.5, the questions 0.75 and 0.25
    assert gain(one, other) == "+50.0 ± 0.0 (± 49.0), 2 of 2"
    assert gain({0: one[0]}, other) == "+50.0 ± ? (± 98.0), 1 of 1"
    assert gain({0: [0.5], 1: [0.5]}, {0: [0.0], 1: [1.0]}) == "+0.0 ± 635.3, 1 of 2"
    assert gain(one, {7: [1.0, 1.0]}) == ""


def test_verdicts_are_packed_and_unpacked():
    for values in ([], [True], [False, False, True], [True] * 9 + [False]):
        assert unpack(pack(values)) == values

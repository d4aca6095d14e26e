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
"""Instructions as they are read, and the held-out slice."""

import math
import random
from collections import Counter

import pytest

from trl_distill.lion import Instruction, Scored, hold_out, partition, read_instructions
from trl_distill.lion.pools import drawn, read_pool, write_pool


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"instruction": " Write a poem. "}, "Write a poem."),
        ({"instruction": "Translate.", "input": " Bonjour "}, "Translate.\n\nBonjour"),
        ({"instruction": "Translate.", "input": ""}, "Translate."),
        ({"instruction": "Translate.", "input": "<noinput>"}, "Translate."),
        ({"instruction": "Translate.", "input": None, "output": "Hi"}, "Translate."),
        (
            {"instruction": "Sort.", "instances": [{"input": "3 1 2", "output": "1 2 3"}, {"input": "9 8"}]},
            "Sort.\n\n3 1 2",
        ),
        ({"instruction": "Sort.", "instances": []}, "Sort."),
        ({"prompt": "Why?"}, "Why?"),
        ({"prompt": [{"role": "user", "content": "Why?"}]}, "Why?"),
        ({"instruction": "写一首诗"}, "写一首诗"),
    ],
)
def test_what_a_row_asks(row, text):
    [instruction], counts = read_instructions([row])
    assert instruction == Instruction(text) and (counts["rows"], counts["kept"]) == (1, 1)


def test_bad_rows_are_counted_and_named():
    bad = {
        "duplicate": [{"instruction": "one "}, {"prompt": "one"}],
        "empty": [{"instruction": ""}, {"instruction": " \n"}],
        "not_text": [
            {"instruction": None},
            {"instruction": 7},
            {"instruction": ["a"]},
            {},
            {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"instruction": "half a pair \ud83d"},
        ],
    }
    rows = [{"instruction": "one"}] + [row for of_kind in bad.values() for row in of_kind] + [{"instruction": "two"}]
    instructions, counts = read_instructions(rows)
    assert [instruction.text for instruction in instructions] == ["one", "two"]
    assert {name: counts[name] for name in bad} == {name: len(of_kind) for name, of_kind in bad.items()}
    assert counts["rows"] == counts["kept"] + sum(map(len, bad.values())) == len(rows)
    assert counts["examples"] == {"duplicate": [1, 2], "empty": [3, 4], "not_text": [5, 6, 7, 8, 9]}


def test_nothing_to_read():
    with pytest.raises(ValueError, match="No instruction among 2 rows with the columns question, text"):
        read_instructions([{"text": "a"}, {"question": "b"}])
    with pytest.raises(ValueError, match=r"among 0 rows with the columns \(none\)"):
        read_instructions([])


class TestHoldOut:
    pool = [Instruction(f"task {i}") for i in range(30)]

    def test_is_a_partition_in_order(self):
        kept, heldout = hold_out(self.pool, 7, seed=0)
        assert len(heldout) == 7 and not set(kept) & set(heldout) and set(kept) | set(heldout) == set(self.pool)
        for part in (kept, heldout):
            assert part == sorted(part, key=self.pool.index)

    def test_follows_from_texts_and_seed_alone(self):
        chosen = set(hold_out(self.pool, 7, seed=0)[1])
        shuffled = random.Random(1).sample(self.pool, len(self.pool))
        assert set(hold_out(shuffled, 7, seed=0)[1]) == chosen != set(hold_out(self.pool, 7, seed=1)[1])
        longer = [Instruction("one more"), *self.pool]
        assert len(chosen - set(hold_out(longer, 7, seed=0)[1])) <= 1

    def test_everyone_is_held_out_as_often(self):
        count = Counter(item.text for seed in range(600) for item in hold_out(self.pool, 6, seed)[1])
        assert len(count) == 30 and all(abs(n - 120) <= 5 * (600 * 0.2 * 0.8) ** 0.5 for n in count.values())

    @pytest.mark.parametrize("size", [-1, 30, 31])
    def test_something_must_be_left(self, size):
        with pytest.raises(ValueError, match=f"`heldout_size` is {size}, and the pool has 30"):
            hold_out(self.pool, size, seed=0)


def test_a_draw_of_more_than_there_are_is_all_of_them():
    pool = TestHoldOut.pool
    assert drawn(pool, 99, 0) == pool and drawn(pool, 0, 0) == []
    assert drawn(pool, 5, 0, 1) != drawn(pool, 5, 0, 2)


def test_pools_in_files(tmp_path):
    pool = [Instruction("a\nb – é 海"), Instruction("c", "hard", 2, "0123456789abcdef")]
    write_pool(tmp_path / "pool.jsonl", pool)
    assert read_pool(tmp_path / "pool.jsonl") == pool
    assert len({item.id for item in pool}) == 2 and Instruction("c").id == pool[1].id


def scored(gaps, teacher=8.0):
    return [Scored(str(i), teacher, teacher - gap) for i, gap in enumerate(gaps)]


class TestPartition:
    def test_the_boundary_is_inclusive(self):
        parts = partition(scored([-1, 0, 0.99, 1.0, 1.01, 3]), tau=1)
        assert parts.hard == ["3", "4", "5"] and parts.easy == ["0", "1", "2"] and parts.below_floor == []

    def test_a_mean_that_misses_the_boundary_by_its_last_bit(self):
        assert 0.3 - 0.1 < 0.2 and partition([Scored("a", 0.3, 0.1)], tau=0.2).hard == ["a"]

    def test_the_number_of_hard_ones_falls_with_tau(self):
        draw = random.Random(0)
        items = scored([draw.choice([-2, -0.5, 0, 0.5, 1, 1.5, 4]) for _ in range(200)])
        counts = []
        for tau in (-math.inf, -3, -1, 0, 0.5, 1, 2, 5, math.inf):
            parts = partition(items, tau)
            assert sorted(parts.hard + parts.easy) == sorted(item.id for item in items)
            assert set(parts.hard) == {item.id for item in items if item.teacher - item.student >= tau}
            counts.append(len(parts.hard))
        assert counts == sorted(counts, reverse=True) and (counts[0], counts[-1]) == (200, 0) and len(set(counts)) > 4

    @pytest.mark.parametrize(
        ("gaps", "share", "hard"),
        [
            ([5, 4, 3, 2, 1, 1, 1, 1, 1, 1], 0.3, 3),
            ([5, 4, 2, 2, 2, 1, 1, 1, 1, 1], 0.3, 5),  # equal gaps at the cut are all in
            ([5, 4, 3, 2, 1, 1, 1, 1, 1, 1], 0.25, 3),  # 2.5 are 3
            ([1, 1, 1, 1], 0.01, 4),
            ([3, 2, 1], 1.0, 3),
            ([3, 0, 0, -1], 0.9, 1),  # where the student is not behind, nothing is hard
            ([0, -1], 0.5, 0),
            ([], 0.5, 0),
        ],
    )
    def test_a_share_in_place_of_tau(self, gaps, share, hard):
        parts = partition(scored(gaps), tau_quantile=share)
        assert len(parts.hard) == hard and len(parts.hard + parts.easy) == len(gaps)
        assert set(parts.hard) == {str(i) for i in range(len(gaps)) if gaps[i] >= parts.tau and gaps[i] > 0}

    def test_where_the_teacher_fails_nothing_is_hard_or_easy(self):
        items = [Scored("a", 9, 2), Scored("b", 5, 1), Scored("c", 7, 7), Scored("d", 4.9, 9)]
        parts = partition(items, min_teacher_score=5)
        assert (parts.hard, parts.easy, parts.below_floor) == (["a", "b"], ["c"], ["d"])
        assert partition(items, tau_quantile=0.5, min_teacher_score=6)[:3] == (["a"], ["c"], ["b", "d"])

    @pytest.mark.parametrize(("setting", "said"), [({"tau_quantile": 0}, "tau_quantile"), ({"tau": math.nan}, "NaN")])
    def test_what_is_no_boundary(self, setting, said):
        with pytest.raises(ValueError, match=said):
            partition([], **setting)

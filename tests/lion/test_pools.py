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
"""Instructions: as they are read, held out and sorted; new ones, as many as wanted, and none a near copy."""

import math
import random
import time
from collections import Counter

import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from trl_distill.chat import Completion, FailedCall, Sampling
from trl_distill.lion import (
    GenerationError,
    Instruction,
    LionConfig,
    Scored,
    SimilarityIndex,
    generate,
    generation_request,
    hold_out,
    partition,
    read_instructions,
)
from trl_distill.lion.generation import LION_FILTERS, fault, quotas, read_instruction
from trl_distill.lion.pools import drawn, read_pool, write_pool
from trl_distill.lion.similarity import UnicodeTokenizer


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
        kept, heldout, groups = hold_out(self.pool, 7, seed=0)
        assert groups == 7
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


class TestNearCopies:
    """Tasks of a few templates, of which some differ in one word, and some are copies only by way of others."""

    words = [f"word{i}" for i in range(900)]

    def pool(self, sizes=(1,) * 30 + (2,) * 8 + (5,) * 4 + (40,), seed=0):
        draw = random.Random(seed)
        pool = []
        for number, size in enumerate(sizes):
            text = [f"name{number}", *draw.sample(self.words, 11)]
            for i in range(size):  # each differs from the one before it in one more word
                text = [*text[: i % 11 + 1], f"{number} {i}", *text[i % 11 + 2 :]] if i else text
                pool.append(Instruction(" ".join(text)))
        draw.shuffle(pool)
        return pool

    def near(self, text, others, threshold):
        scorer = RougeScorer(["rougeL"])
        return [other for other in others if scorer.score(other.text, text.text)["rougeL"].fmeasure > threshold]

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("threshold", [0.7, 0.5])
    def test_no_near_copy_of_a_held_out_one_stays(self, seed, threshold):
        """On all pairs, with the package's own tokenizer. As the whole was drawn before, one did in each of these."""
        pool = self.pool()
        kept, heldout, groups = hold_out(pool, 25, seed, threshold)
        assert len(heldout) == 25 and len(kept) == len(pool) - 25 and 1 < groups < 25
        assert not any(self.near(item, kept, threshold) for item in heldout)
        old = drawn(pool, 25, seed, "held out")
        assert any(self.near(item, [other for other in pool if other not in old], threshold) for item in old)

    def test_groups_follow_from_texts_and_seed_alone(self):
        pool = self.pool()
        found = [set(hold_out(random.Random(i).sample(pool, len(pool)), 25, 3)[1]) for i in range(4)]
        assert all(heldout == found[0] for heldout in found) and found[0] != set(hold_out(pool, 25, 4)[1])

    def test_copies_by_way_of_others_are_one_group(self):
        chain = [Instruction(" ".join(self.words[i : i + 12])) for i in range(0, 10)]
        assert self.near(chain[0], chain[1:], 0.7) and not self.near(chain[0], chain[-1:], 0.7)
        pool = [*chain, *self.pool((1,) * 5)]
        heldout = hold_out(pool, 10, 0)[1] if hold_out(pool, 10, 0)[2] == 1 else hold_out(pool, 5, 0)[1]
        assert set(heldout) in ({*chain}, {*pool[10:]})
        assert all(set(hold_out(pool, 4, seed)[1]) < {*pool[10:]} for seed in range(9))

    def test_a_group_that_does_not_fit_stays_in_the_pool(self, caplog):
        pool = self.pool((6, 6, 3))
        kept, heldout, groups = hold_out(pool, 5, 0)
        assert (len(kept), len(heldout), groups) == (12, 3, 1)
        assert "3 of 15 instructions are held out, not 5" in caplog.text
        with pytest.raises(ValueError, match="0 of 15 .* Set `heldout_size` to 0, or take"):
            hold_out(pool, 2, 0)

    def test_of_none_nothing_is_asked(self):
        pool = self.pool((6,))
        assert hold_out(pool, 0, 0) == (pool, [], 0)

    def test_a_pool_of_the_papers_size_takes_seconds(self):
        """52,000 texts, of which a third are in one group of near copies, which is looked at but once."""
        draw = random.Random(0)
        pool = [Instruction(" ".join(draw.choices(self.words, k=12))) for _ in range(34_000)]
        pool += [Instruction(f"Translate this word into good French for a child please: {i}") for i in range(18_000)]
        start = time.perf_counter()
        kept, heldout, _ = hold_out(pool, 80, 0)
        assert len(heldout) == 80 and not any(item.text.startswith("Translate") for item in heldout)
        assert time.perf_counter() - start < 30


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


# New instructions


POOL = [Instruction(toy.task(family, i)) for family in range(3) for i in range(4)]
SEEDS = {"hard": POOL[:4], "easy": POOL[4:]}


def seed_of(request):
    return toy.seed_of(request.messages[-1]["content"])


def run(model, wanted=None, seeds=SEEDS, index=None, **settings):
    index = SimilarityIndex([item.text for item in POOL]) if index is None else index
    values = dict(round=1, seed=0, sampling=Sampling(seed=5)) | settings
    return generate(model, seeds, wanted or {"hard": 6, "easy": 5}, index, **values)


class Mixed(toy.Rule):
    """A third of its replies echo the seed but for a word, a third are alike, a third are new, in any order."""

    def __init__(self, concurrency=1, jitter=0.0):
        super().__init__(self.write, "mixed")
        self.concurrency, self.jitter, self.requests = concurrency, jitter, []

    def write(self, request):
        self.requests.append(request)
        time.sleep(random.random() * self.jitter)
        seed = seed_of(request)
        kind = random.Random(f"{seed} {request.sample_index}").randrange(3)
        if kind == 0:
            return f"{seed} indeed"
        return toy.task(toy.family_of(seed), 99) if kind == 1 else toy.task(toy.family_of(seed), f"{request}")


class TestAccepted:
    def test_none_is_a_near_copy_of_any_text(self):
        """Recomputed on all pairs, with the package's own tokenizer: the texts are ASCII."""
        new, counts = run(Mixed(), {"hard": 20, "easy": 15}, max_attempts_factor=20)
        assert counts["similar"] > 5 and counts["accepted"] == 35 and counts["requests"] == 35 + counts["similar"]
        scorer, there = RougeScorer(["rougeL"]), [item.text for item in POOL]
        for item in new:
            assert max(scorer.score(text, item.text)["rougeL"].fmeasure for text in there) <= 0.7
            there.append(item.text)

    def test_what_was_dropped_was_one(self):
        model, index = Mixed(), SimilarityIndex([item.text for item in POOL])
        new, counts = run(model, {"hard": 20, "easy": 15}, index=index, max_attempts_factor=20)
        scorer, texts = RougeScorer(["rougeL"]), [item.text for item in POOL + new]
        replies = Counter(model.write(request) for request in list(model.requests))
        dropped = replies - Counter(item.text for item in new)
        assert dropped.total() == counts["similar"] and len(index) == len(POOL) + 35
        for text in dropped:
            assert max(scorer.score(other, text)["rougeL"].fmeasure for other in texts) > 0.7

    @pytest.mark.parametrize(
        ("n_new", "share", "hard"), [(10, 0.5, 5), (9, 2 / 3, 6), (7, 1 / 3, 2), (5, 1, 5), (5, 0, 0), (1, 0.4, 0)]
    )
    def test_exactly_as_many_as_wanted(self, n_new, share, hard):
        assert quotas(n_new, share) == {"hard": hard, "easy": n_new - hard}
        new, counts = run(toy.generator(), quotas(n_new, share))
        assert Counter(item.kind for item in new) == +Counter(hard=hard, easy=n_new - hard)
        assert counts["accepted"] == len({item.id for item in new}) == n_new
        by_id = {item.id: item for item in POOL}
        for item in new:
            assert item.round == 1 and by_id[item.parent] in SEEDS[item.kind]
            assert toy.family_of(item.text) == toy.family_of(by_id[item.parent].text)

    def test_in_the_order_of_the_requests_whenever_they_arrive(self):
        whole = run(Mixed(), {"hard": 12, "easy": 12}, max_attempts_factor=20)
        assert run(Mixed(concurrency=8, jitter=0.01), {"hard": 12, "easy": 12}, max_attempts_factor=20) == whole

    def test_each_draw_of_a_seed_is_a_new_request(self):
        model = Mixed()
        run(model, {"hard": 30, "easy": 30}, seeds={"hard": POOL[:2], "easy": POOL[:2]}, max_attempts_factor=20)
        asked = [(request.messages[0]["content"], request.sample_index) for request in model.requests]
        assert len(asked) == len(set(asked))
        for prompt, count in Counter(prompt for prompt, _ in asked).items():
            assert sorted(index for text, index in asked if text == prompt) == list(range(count))
        assert len({prompt for prompt, _ in asked}) == 4  # two seeds, each as a hard and as an easy one

    def test_seeds_are_drawn_uniformly_and_follow_from_seed_and_round(self):
        def parents(**settings):
            new, _ = run(toy.generator(), {"hard": 400, "easy": 0}, index=SimilarityIndex(), **settings)
            return [item.parent for item in new]

        first = parents()
        assert all(abs(n - 100) <= 5 * (400 * 0.25 * 0.75) ** 0.5 for n in Counter(first).values())
        assert first == parents() != parents(seed=1) and first != parents(round=2)


class TestLimits:
    @pytest.mark.parametrize(
        ("name", "function", "settings", "message"),
        [
            (
                "echo",
                seed_of,
                dict(max_attempts_factor=3),
                r"echo gave 0 of 6 hard instructions in 18 attempts \(.*similar 33\)",
            ),
            ("parrot", lambda _: toy.task(0, 99), {}, r"gave 0 of 5 easy instructions in 25 attempts \(.*accepted 1,"),
            (
                "broken",
                lambda _: FailedCall("no"),
                dict(max_attempts_factor=2),
                r"gave 0 of 6 hard instructions in 12 attempts \(.*failed 22\)",
            ),
        ],
    )
    def test_a_generator_of_no_use(self, name, function, settings, message):
        with pytest.raises(GenerationError, match=message):
            run(toy.Rule(function, name), **settings)

    @pytest.mark.parametrize("text", [toy.task(0, 99), "?!"])
    def test_the_very_same_text_is_never_taken_twice(self, text):
        """Even where Rouge-L lets it through: at a threshold of 1, or without a token in it."""
        model, index = toy.Rule(lambda request: text, "parrot"), SimilarityIndex([item.text for item in POOL], 1.0)
        with pytest.raises(GenerationError, match=r"accepted 1, similar"):
            run(model, index=index, filters=[])

    def test_calls_that_fail_are_counted_and_made_up_for(self):
        def write(request):
            return FailedCall("busy") if request.sample_index % 2 == 0 else toy.generator().function(request)

        new, counts = run(toy.Rule(write, "busy"), max_attempts_factor=20)
        assert len(new) == 11 and counts["failed"] == counts["requests"] - 11 > 0

    def test_the_limit_is_exact_and_no_request_is_made_beyond_it(self):
        asked = []

        def write(request):
            asked.append(request)
            return toy.generator().function(request) if len(asked) >= 12 else ""

        new, counts = run(toy.Rule(write, "slow"), {"hard": 1, "easy": 0}, max_attempts_factor=12)
        assert len(asked) == 12 and counts == {"requests": 12, "accepted": 1, "failed": 0, "similar": 0, "empty": 11}
        asked.clear()
        with pytest.raises(GenerationError, match="in 11 attempts"):
            run(toy.Rule(write, "slow"), {"hard": 1, "easy": 0}, max_attempts_factor=11)
        assert len(asked) == 11


@pytest.mark.parametrize(
    ("text", "reason", "dropped_by"),
    [
        ("Explain how the tides of the sea work.", "stop", []),
        ("Explain how the tides of the sea", "length", ["cut_off"]),
        ("Explain how the tides of the sea", "content_filter", ["cut_off"]),
        ("Explain the tides", "stop", ["too_short"]),
        ("写一首诗", "stop", []),  # four characters are four tokens
        ("写一首", "stop", ["too_short", "starts_with_non_ascii"]),
        ("Give instructions for baking a cake.", "stop", ["says_instruction"]),
        ('"To be or not to be": who said this?', "stop", ["starts_with_punctuation"]),
        ("`ls -l` lists what exactly?", "stop", ["starts_with_punctuation"]),
        ("-3 plus 5 is how much?", "stop", ["starts_with_punctuation"]),
        ("Éclairs: how are they made?", "stop", ["starts_with_non_ascii"]),
        ("Explain the reconstruction of the bridge.", "stop", []),
    ],
)
def test_filters(text, reason, dropped_by):
    dropped_by = [*dropped_by, "starts_with_non_ascii"] if text == "写一首诗" else dropped_by
    assert [name for name in LION_FILTERS if fault(text, reason, [name]) is not None] == dropped_by
    assert fault(text, reason, LION_FILTERS) == (dropped_by or [None])[0]


def test_filters_by_name():
    assert LionConfig().filters == list(LION_FILTERS[:4])
    assert LionConfig(filters=["lion"]).filters == list(LION_FILTERS)
    assert LionConfig(filters=["none"]).filters == LionConfig(filters=None).filters == []


def test_filtered_replies_are_counted_by_the_first_filter():
    replies = ["Only three words", Completion("One two three four five six", "length"), "  ", '""']

    def write(request):
        number = request.sample_index
        return replies[number] if number < len(replies) else toy.generator().function(request)

    seeds = {"hard": POOL[:1], "easy": []}
    new, counts = run(toy.Rule(write, "odd"), {"hard": 1, "easy": 0}, seeds=seeds, max_attempts_factor=9)
    dropped = {"failed": 0, "similar": 0, "too_short": 1, "cut_off": 1, "empty": 2}
    assert counts == {"requests": 5, "accepted": 1} | dropped


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (" Explain the tides.\n", "Explain the tides."),
        ("New task: Explain the tides.", "Explain the tides."),
        ("**Task:** Explain the tides.", "Explain the tides."),
        ('"Explain the tides."', "Explain the tides."),
        ('"A" or "B"?', '"A" or "B"?'),
        ("Task management: explain it.", "Task management: explain it."),
        ("Explain: what is a task: an order?", "Explain: what is a task: an order?"),
        ('"', '"'),
    ],
)
def test_the_text_of_a_reply(reply, text):
    assert read_instruction(reply) == text


def test_the_request_says_what_kind_is_wanted():
    hard, easy = (generation_request(POOL[0], kind, Sampling(), 3) for kind in ("hard", "easy"))
    assert hard.sample_index == easy.sample_index == 3 and seed_of(hard) == seed_of(easy) == POOL[0].text
    assert "same kind of work" in hard.messages[0]["content"] and "seldom" in easy.messages[0]["content"]


# Near copies


WORDS = ["write", "a", "poem", "about", "the", "sea", "list", "three", "uses", "of", "salt", "Salt,", "naïve", "海"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


def largest_f(text, pool):
    """The definition, on all pairs, with the package itself and no index."""
    scorer = RougeScorer(["rougeL"], tokenizer=UnicodeTokenizer())
    return max((scorer.score(other, text)["rougeL"].fmeasure for other in pool), default=0.0)


@settings(max_examples=300, deadline=None)
@given(
    pool=st.lists(TEXTS, max_size=12), text=TEXTS, threshold=st.sampled_from([0.0, 0.5, 2 / 3, 0.7, 0.75, 0.8, 1.0])
)
def test_decisions_are_those_of_all_pairs(pool, text, threshold):
    index = SimilarityIndex(pool, threshold)
    number = index.near_copy(text)
    assert (number is not None) == (largest_f(text, pool) > threshold)
    if number is not None:
        assert largest_f(text, [pool[number]]) > threshold


def test_a_growing_index_decides_like_a_new_one():
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(200)]
    growing, seen = SimilarityIndex(), set()
    for i, text in enumerate(texts):
        fresh = SimilarityIndex(texts[:i])
        assert growing.near_copy(text) == fresh.near_copy(text)
        seen.add(growing.near_copy(text) is None)
        growing.add(text)
    assert len(growing) == 200 and seen == {True, False}


def test_at_the_threshold_a_text_is_let_through():
    # 7 of 10 tokens in order: F is 0.7, and 0.7 is not above 0.7
    pool, text = ["a b c d e f g h i j"], "a b c d e f g x y z"
    assert largest_f(text, pool) == pytest.approx(0.7)
    assert (SimilarityIndex(pool, 0.7).near_copy(text) is None) == (largest_f(text, pool) <= 0.7)
    assert SimilarityIndex(pool, 0.69).near_copy(text) == 0


def test_pairs_that_cannot_reach_the_threshold_are_skipped():
    pool = ["how do tides work", "a poem about the sea", "the sea about poem a"]
    index = SimilarityIndex(pool)
    assert index.candidates("a poem about the sky") == [1, 2]  # same tokens in another order pass the bound ...
    assert index.near_copy("sky the about poem a") == 2  # ... and the order decides
    assert index.candidates("") == [] and SimilarityIndex().near_copy("anything") is None


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello, world_wide 3.5!", ["hello", "world", "wide", "3", "5"]),
        ("Éclair", ["éclair"]),
        ("E\u0301clair", ["éclair"]),
        ("写一首诗。", ["写", "一", "首", "诗"]),
        ("Привет мир", ["привет", "мир"]),
        ("", []),
    ],
)
def test_tokens_of_any_script(text, tokens):
    assert UnicodeTokenizer().tokenize(text) == tokens


def test_near_copies_in_chinese_are_seen():
    assert SimilarityIndex(["请写一首关于大海的诗"]).near_copy("请写一首关于大海的歌") == 0
    assert SimilarityIndex(["请写一首关于大海的诗"]).near_copy("潮汐是怎样形成的") is None


def test_english_scores_are_those_of_the_package_s_own_tokenizer():
    ours, theirs = RougeScorer(["rougeL"], tokenizer=UnicodeTokenizer()), RougeScorer(["rougeL"])
    for pair in [("Write a poem, please!", "write the poem"), ("It's 3.5 km", "its 3.5km long"), ("a_b c", "a b-c")]:
        assert ours.score(*pair) == theirs.score(*pair)


def test_a_threshold_out_of_range_is_refused():
    with pytest.raises(ValueError, match="got 1.5"):
        SimilarityIndex(threshold=1.5)

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
"""Preference pairs: every policy against its definition, and the random draws against their odds."""

import math
import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_distill.zephyr import preference_pairs
from trl_distill.zephyr.policies import content_id, sft_rows


POLICIES = ("random_lower", "random_rest", "min", "second", "all_pairs")
scores = st.one_of(st.none(), st.integers(1, 5), st.sampled_from([4 / 3, 5 / 3, 2.5]))
prompts = st.lists(st.lists(st.tuples(st.sampled_from("abcdef"), scores), max_size=6), max_size=5)


def rows_of(matrix):
    """Rows with a text and a score for each answer. Texts may repeat."""
    return [
        {
            "prompt": f"prompt {i}",
            "prompt_id": str(i),
            "candidates": [{"text": text * 3, "model": f"m{k}", "score": s} for k, (text, s) in enumerate(answers)],
        }
        for i, answers in enumerate(matrix)
    ]


def row_of(texts, scores, prompt="p"):
    answers = zip(texts, scores, strict=True)
    return {"prompt": prompt, "candidates": [{"text": text, "score": score} for text, score in answers]}


def numbers(*values, seed=0, **settings):
    """Pairs of one prompt whose answers have these scores, as (chosen, rejected) by number."""
    row = row_of([f"text {i}" for i in range(len(values))], values)
    pairs, counts = preference_pairs([row], score="overall", seed=seed, **settings)
    return [tuple(int(pair[side][0]["content"][5:]) for side in ("chosen", "rejected")) for pair in pairs], counts


def text_of(pair, side):
    [message] = pair[side]
    assert message["role"] == "assistant"
    return message["content"]


class TestDefinitions:
    @given(prompts, st.sampled_from(POLICIES), st.integers(0, 9))
    def test_every_policy(self, matrix, policy, seed):
        pairs, counts = preference_pairs(rows_of(matrix), score="overall", rejected=policy, seed=seed)
        by_prompt = {str(i): [] for i in range(len(matrix))}
        for pair in pairs:
            by_prompt[pair["prompt_id"]].append(pair)
        without = Counter()
        for i, answers in enumerate(matrix):
            best_of = {}  # text -> its best score
            for text, score in answers:
                if score is not None:
                    best_of[text * 3] = max(score, best_of.get(text * 3, 0))
            found = by_prompt[str(i)]
            ordered = {(a, b) for a in best_of for b in best_of if best_of[a] > best_of[b]}
            for pair in found:
                chosen, rejected = text_of(pair, "chosen"), text_of(pair, "rejected")
                assert chosen != rejected
                assert pair["score_chosen"] == pytest.approx(best_of[chosen], abs=1e-9)
                assert pair["score_rejected"] == pytest.approx(best_of[rejected], abs=1e-9)
                if policy != "all_pairs":
                    assert best_of[chosen] == max(best_of.values())
                if policy != "random_rest":
                    assert (chosen, rejected) in ordered
                if policy == "min":
                    assert best_of[rejected] == min(best_of.values())
                if policy == "second":
                    assert best_of[rejected] == max(s for s in best_of.values() if s < best_of[chosen])
            if policy == "all_pairs":
                assert {(text_of(p, "chosen"), text_of(p, "rejected")) for p in found} == ordered
                assert len(found) == len(ordered)
            elif policy == "random_rest":
                assert len(found) == (len(best_of) >= 2)
            else:
                assert len(found) == bool(ordered)
            if not found:
                without["fewer_than_two" if len(best_of) < 2 else "tied"] += 1
        flat = [answer for answers in matrix for answer in answers]
        assert counts["prompts"] == len(matrix) and counts["pairs"] == len(pairs)
        assert counts["candidates"] == len(flat) and counts["unscored"] == sum(s is None for _, s in flat)
        assert counts["identical"] == sum(
            len([s for _, s in answers if s is not None]) - len({text for text, s in answers if s is not None})
            for answers in matrix
        )
        for name in ("fewer_than_two", "tied"):
            assert counts[name] == without[name]

    @given(prompts, st.sampled_from(POLICIES), st.randoms())
    def test_no_order_changes_a_pair(self, matrix, policy, shuffler):
        rows = rows_of(matrix)
        settings = dict(score="overall", rejected=policy, max_pairs_per_prompt=2)
        before, counts = preference_pairs(rows, **settings)
        for row in rows:
            shuffler.shuffle(row["candidates"])
        shuffler.shuffle(rows)
        after, counts_after = preference_pairs(rows, **settings)

        def key(pair):
            return (pair["prompt_id"], text_of(pair, "chosen"), text_of(pair, "rejected"), pair["score_chosen"])

        assert sorted(map(key, before)) == sorted(map(key, after)) and counts == counts_after

    @given(st.lists(scores, min_size=2, max_size=6), st.floats(0, 4))
    def test_min_margin(self, values, margin):
        pairs, counts = numbers(*values, rejected="all_pairs", min_margin=margin)
        known = [(i, value) for i, value in enumerate(values) if value is not None]
        wide = {(i, k) for i, a in known for k, b in known if a > b and round(a - b, 9) >= margin}
        assert set(pairs) == wide
        assert counts["below_min_margin"] == (not wide and len({value for _, value in known}) > 1)

    def test_a_margin_holds_for_the_draw_too(self):
        for seed in range(20):
            assert numbers(5, 4, 1, seed=seed, min_margin=2)[0] == [(0, 2)]
        assert numbers(5, 4.7, 4.5, rejected="second", min_margin=0.3)[0] == [(0, 1)]  # 5 - 4.7 < 0.3 as floats

    def test_thirds_that_are_added_in_another_order_are_tied(self):
        """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 as floats."""
        ratings = [{"a": 0.1, "b": 0.2, "c": 0.3}, {"a": 0.3, "b": 0.2, "c": 0.1}]
        row = {"prompt": "p", "candidates": [{"text": t, "ratings": r} for t, r in zip("xy", ratings, strict=True)]}
        assert sum(ratings[0].values()) != sum(ratings[1].values())
        pairs, counts = preference_pairs([row])
        assert not pairs and counts["tied"] == 1

    def test_a_prompt_whose_answers_are_all_tied_is_counted(self):
        assert numbers(3, 3, 3) == ([], numbers(3, 3, 3)[1])
        assert numbers(3, 3, 3)[1]["tied"] == 1
        assert len(numbers(3, 3, 3, rejected="random_rest")[0]) == 1  # as in the code of Zephyr

    def test_lengths(self):
        row = row_of(("x" * 100, "y" * 10, "z" * 51), (9, 5, 1))
        for ratio, expected in ((1.9, None), (2, "z"), (10, "y")):
            pairs, counts = preference_pairs([row], score="overall", rejected="second", max_length_ratio=ratio, seed=1)
            assert [text_of(pair, "rejected")[0] for pair in pairs] == [expected] * (expected is not None)
            assert counts["beyond_max_length_ratio"] == (expected is None)

    def test_cap_on_pairs(self):
        whole, _ = numbers(1, 2, 3, 4, rejected="all_pairs")
        assert len(whole) == 6
        seen = Counter()
        for seed in range(300):
            kept, counts = numbers(1, 2, 3, 4, rejected="all_pairs", max_pairs_per_prompt=2, seed=seed)
            assert len(kept) == counts["pairs"] == 2
            seen.update(kept)
        assert seen.keys() == set(whole)
        for count in seen.values():  # 600 pairs on 6 places
            assert abs(count - 100) <= 4 * math.sqrt(300 * (1 / 3) * (2 / 3))

    def test_of_equal_texts_the_best_scored_one_counts(self):
        row = row_of("aba", (1, 2, 3))
        [pair], counts = preference_pairs([row], score="overall")
        assert (text_of(pair, "chosen"), pair["score_chosen"], text_of(pair, "rejected")) == ("a", 3, "b")
        assert counts["identical"] == 1
        pairs, counts = preference_pairs([row], score="overall", rejected="all_pairs", dedupe_identical=False)
        assert [(text_of(p, "chosen"), text_of(p, "rejected")) for p in pairs] == [("a", "b"), ("b", "a")]
        assert counts["identical"] == 0


class TestScores:
    row = {
        "prompt": "p",
        "candidates": [
            {"text": "a", "score": 1, "ratings": {"honesty": 5, "helpfulness": 2}},
            {"text": "b", "score": 2, "ratings": {"honesty": 3, "helpfulness": 3}},
            {"text": "c", "score": 3, "ratings": {"honesty": None, "helpfulness": 4}},
            {"text": "d", "score": 4, "ratings": {"helpfulness": 5}},
            {"text": "e", "score": None, "ratings": {"honesty": float("nan"), "helpfulness": 1}},
            {"text": None, "score": None, "ratings": {}},
        ],
    }

    def order(self, **settings):
        pairs, _ = preference_pairs([self.row], rejected="all_pairs", **settings)
        known = {text_of(p, side): p[f"score_{side}"] for p in pairs for side in ("chosen", "rejected")}
        return sorted(known.items(), key=lambda item: -item[1])

    def test_mean(self):
        """N/A is left out; an answer without an aspect of the others, as if it were N/A, would win."""
        assert self.order() == [("c", 4), ("a", 3.5), ("b", 3), ("e", 1)]

    def test_weighted(self):
        weights = {"honesty": 3, "helpfulness": 1}
        expected = [("a", float(Fraction(17, 4))), ("c", 4), ("b", 3), ("e", 1)]
        assert self.order(score="weighted", weights=weights) == expected
        with pytest.raises(ValueError, match="No weight for helpfulness"):
            self.order(score="weighted", weights={"honesty": 1})

    def test_overall(self):
        assert self.order(score="overall") == [("d", 4), ("c", 3), ("b", 2), ("a", 1)]

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            (dict(score="best"), "`score` must be one of mean, weighted, overall, got 'best'"),
            (dict(rejected="worst"), "`rejected` must be one of random_lower"),
            (dict(score="weighted"), "`weights` belongs to"),
            (dict(weights={"honesty": 1}), "`weights` belongs to"),
            (dict(score="weighted", weights={"honesty": -1}), "`weights` must be 0 or more"),
            (dict(min_margin=-1), "`min_margin` must be 0 or more"),
            (dict(min_margin=float("nan")), "`min_margin` must be 0 or more"),
            (dict(max_pairs_per_prompt=0), "`max_pairs_per_prompt` must be 1 or more"),
            (dict(max_length_ratio=0.5), "`max_length_ratio` must be 1 or more"),
        ],
    )
    def test_wrong_settings(self, settings, said):
        with pytest.raises(ValueError, match=said):
            preference_pairs([self.row], **settings)


def fixed_shuffle_draw(scores):
    """The idea of Zephyr's first data script: a generator that is seeded anew for every row."""
    best = scores.index(max(scores))
    rest = [i for i in range(len(scores)) if i != best]
    return random.Random(42).choice(rest)


class TestDraw:
    """Of 10,000 prompts with four untied answers each loser is drawn in a third of the cases, wherever it stands."""

    count = 10_000

    def matrix(self):
        shuffler = random.Random(0)
        return [shuffler.sample((1.0, 2.0, 3.0, 4.0), 4) for _ in range(self.count)]

    def places(self, drawn):
        """How often each rank among the losers and each place among the losers was drawn."""
        ranks, places = Counter(), Counter()
        for scores, i in drawn:
            ranks[scores[i]] += 1
            places[[k for k in range(4) if scores[k] < 4].index(i)] += 1
        return ranks, places

    def is_even(self, counts):
        sigma = math.sqrt(self.count * (1 / 3) * (2 / 3))
        return all(abs(counts[key] - self.count / 3) <= 4 * sigma for key in counts) and len(counts) == 3

    @pytest.mark.parametrize("policy", ["random_lower", "random_rest"])
    def test_each_loser_is_drawn_alike(self, policy):
        matrix = self.matrix()
        texts = [f"text {i}" for i in range(4)]
        rows = [row_of(texts, scores, f"prompt {n}") for n, scores in enumerate(matrix)]
        pairs, _ = preference_pairs(rows, score="overall", rejected=policy)
        drawn = [(s, int(text_of(pair, "rejected")[5:])) for s, pair in zip(matrix, pairs, strict=True)]
        assert all(map(self.is_even, self.places(drawn)))

    def test_shards_and_seeds(self):
        rows = rows_of([[(text, score) for text, score in zip("abcd", s, strict=True)] for s in self.matrix()[:3000]])
        pairs, _ = preference_pairs(rows, score="overall")
        shards = [pair for k in range(7) for pair in preference_pairs(rows[k::7], score="overall")[0]]
        assert sorted(map(str, shards)) == sorted(map(str, pairs))
        others, _ = preference_pairs(rows, score="overall", seed=43)
        same = sum(a["rejected"] == b["rejected"] for a, b in zip(pairs, others, strict=True))
        assert abs(same - 1000) <= 4 * math.sqrt(3000 * (1 / 3) * (2 / 3))

    def test_a_seed_in_the_row_function_fails_this_test(self):
        matrix = self.matrix()
        _, places = self.places([(scores, fixed_shuffle_draw(scores)) for scores in matrix])
        assert list(places.values()) == [self.count] and not self.is_even(places)

    def test_the_best_of_several_is_drawn_alike(self):
        chosen = Counter()
        for n in range(2000):
            row = row_of("abcd", (4, 4, 4, 1), f"prompt {n}")
            [pair], _ = preference_pairs([row], score="overall", rejected="random_rest")
            chosen[text_of(pair, "chosen")] += 1
        assert len(chosen) == 3
        assert all(abs(count - 2000 / 3) <= 4 * math.sqrt(2000 * 2 / 9) for count in chosen.values())


def test_rows_for_dpo():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    row = {"prompt": messages, "candidates": [{"text": "a", "score": 1, "model": "m"}, {"text": "b", "score": 2}]}
    [pair], _ = preference_pairs([row], score="overall")
    assert pair == {
        "prompt": messages,
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "a"}],
        "score_chosen": 2.0,
        "score_rejected": 1.0,
        "chosen_model": None,
        "rejected_model": "m",
        "prompt_id": content_id(messages),
    }


def test_an_id_is_what_a_prompt_says():
    assert content_id("u") == content_id([{"role": "user", "content": "u"}]) != content_id("v")
    assert content_id("u") != content_id([{"role": "system", "content": "u"}])


def test_sft_rows_hold_the_best_answer_of_each_prompt_once():
    row = row_of("abcd", (3, 1, 4, 2)) | {"prompt_id": "1"}
    for cap in (None, 3):
        pairs, _ = preference_pairs([row], score="overall", rejected="all_pairs", max_pairs_per_prompt=cap)
        [sft] = sft_rows(reversed(pairs))
        best = max(pair["score_chosen"] for pair in pairs)
        assert sft["score"] == best and sft["prompt_id"] == "1"
        assert [message["role"] for message in sft["messages"]] == ["user", "assistant"]


def test_ids_of_others():
    """Ids may be numbers, missing, or stand for several prompts."""
    ids = {"p": 7, "q": 0, "r": "", "s": 7}
    rows = [row_of(("good", "bad"), (2, 1), prompt) | {"prompt_id": id} for prompt, id in ids.items()]
    pairs, _ = preference_pairs(rows, score="overall")
    assert [pair["prompt_id"] for pair in pairs] == ["7", "0", content_id("r"), "7"]
    assert [row["messages"][0]["content"] for row in sft_rows(pairs)] == ["p", "q", "r", "s"]


@pytest.mark.parametrize("dedupe_identical", [True, False])
def test_texts_that_differ_in_white_space_alone_are_no_pair(dedupe_identical):
    """A chat template may remove it, and then both arms are one."""
    row = row_of(("a\n", "a"), (2, 1))
    pairs, counts = preference_pairs([row], score="overall", dedupe_identical=dedupe_identical)
    assert pairs == [] and counts["identical"] == dedupe_identical


def test_the_draw_is_the_same_in_every_release():
    assert [numbers(4, 3, 2, 1, seed=seed)[0] for seed in range(4)] == [[(0, 1)], [(0, 1)], [(0, 3)], [(0, 3)]]

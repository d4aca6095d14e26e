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

"""The index decides as `rouge_score` on all pairs does."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from trl_distill.lion.similarity import SimilarityIndex, UnicodeTokenizer


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

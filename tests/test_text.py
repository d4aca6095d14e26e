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

import pytest
from rouge_score.rouge_scorer import RougeScorer

from trl_distill.evaluation import distinct_n, repetition, rouge_l
from trl_distill.text import closest


REFERENCES = ["The dogs were running through the parks.", "A dog runs in a park!", "Cats sleep."]


@pytest.mark.parametrize("prediction", ["A dog ran through the park", "cats sleeping", "", "!!!"])
def test_rouge_l_is_the_best_stemmed_f_measure(prediction):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = max(scorer.score(reference, prediction)["rougeL"].fmeasure for reference in REFERENCES)
    assert rouge_l(prediction, REFERENCES) == pytest.approx(100 * expected, abs=1e-12)


def test_rouge_l_by_hand():
    # Stems: the dog were run; a dog run: subsequence "dog run" of 2 in 4 and 3 words, F = 2PR/(P+R) = 4/7
    assert rouge_l("the dogs were running", "a dog runs") == pytest.approx(400 / 7)
    assert rouge_l("same words", "same words") == 100
    with pytest.raises(ValueError, match="at least one reference"):
        rouge_l("text", [])


def test_distinct_n_and_repetition_of_token_ids():
    # 4-grams of 1 2 1 2 1 2: 1212 2121 1212, so 2 of 3 are distinct and 1 of 3 is repeated
    assert distinct_n([[1, 2, 1, 2, 1, 2]], n=4) == pytest.approx(2 / 3)
    assert repetition([1, 2, 1, 2, 1, 2], n=4) == pytest.approx(1 / 3)
    # Two equal completions: distinct-n falls over the set, repetition looks inside one completion
    assert distinct_n([[1, 2, 3, 4, 5]] * 2, n=4) == pytest.approx(2 / 4)
    assert repetition([1, 2, 3, 4, 5], n=4) == 0
    # m times the same token: m - n + 1 n-grams, one of them distinct
    assert distinct_n([[7] * 100], n=4) == pytest.approx(1 / 97)
    assert repetition([7] * 100, n=2) == pytest.approx(98 / 99)


def test_distinct_n_and_repetition_of_texts_and_of_nothing():
    assert distinct_n(["a b a b", "a b"], n=2) == pytest.approx(2 / 4)
    assert repetition("a b a b", n=2) == pytest.approx(1 / 3)
    assert distinct_n([[], [1, 2, 3]], n=4) == 0.0
    assert distinct_n([], n=4) == 0.0
    assert repetition([], n=4) == repetition([1, 1, 1], n=4) == 0.0


def test_the_name_that_may_be_meant():
    assert closest("learning_rat", ["seed", "learning_rate"]) == "Did you mean learning_rate?"
    assert closest("roundz", ["rounds", "round", "seed"]) == "Did you mean round or rounds?"
    assert closest("xyz", ["rounds"]) == closest(7, []) == ""

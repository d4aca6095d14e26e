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
"""The loop of AI feedback, with models that follow rules."""

import math
from collections import Counter

from trl_distill.zephyr.answers import assign
from trl_distill.zephyr.presets import Principle


class TestAssignment:
    def test_no_model_answers_twice_before_all_have_answered_once(self):
        for n in range(200):
            asks = assign(str(n), ["a", "b", "c"], num_answers=7)
            assert Counter(ask.model for ask in asks[:3]) == Counter(ask.model for ask in asks[3:6]) == Counter("abc")
            assert [ask.sample_index for ask in asks] == [0, 0, 0, 1, 1, 1, 2]

    def test_each_model_answers_as_often(self):
        count = Counter(ask.model for n in range(3000) for ask in assign(str(n), "abcde", num_answers=2))
        for model in "abcde":
            assert abs(count[model] - 1200) <= 4 * math.sqrt(3000 * 0.4 * 0.6)

    def test_neither_the_order_of_models_nor_a_new_one_moves_the_others(self):
        moved = 0
        for n in range(500):
            before = assign(str(n), "abcd", num_answers=2)
            assert assign(str(n), "dcba", num_answers=2) == before
            after = assign(str(n), "abcde", num_answers=2)
            assert {ask.model for ask in after} - {"e"} <= {ask.model for ask in before}
            moved += any(ask.model == "e" for ask in after)
        assert abs(moved - 200) <= 4 * math.sqrt(500 * 0.4 * 0.6)

    def test_the_student_answers_every_prompt(self):
        asks = assign("1", "abc", "s", num_answers=3)
        assert asks[0].model == "s" and len(asks) == 3 and "s" not in {ask.model for ask in asks[1:]}
        alone = assign("1", [], "s", num_answers=3)
        assert [(ask.model, ask.sample_index) for ask in alone] == [("s", 0), ("s", 1), ("s", 2)]

    def test_principles_by_their_weights(self):
        principles = [Principle("x", "be x"), Principle("y", "be y", 3.0)]
        asks = [ask for n in range(1000) for ask in assign(str(n), "abcd", "s", principles=principles)]
        assert all((ask.principle is None) == (ask.model == "s") for ask in asks)
        share = sum(ask.principle.name == "y" for ask in asks if ask.principle) / 3000
        assert abs(share - 0.75) <= 4 * math.sqrt(0.75 * 0.25 / 3000)
        of_a = {ask.principle.name for n in range(30) for ask in assign(str(n), ["a"], principles=principles)}
        assert of_a == {"x", "y"}

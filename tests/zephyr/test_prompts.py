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
"""Prompts of a run: what is read, what is dropped, what cannot be read, and which model answers what."""

import math
from collections import Counter

import pytest

from trl_distill.zephyr.answers import assign
from trl_distill.zephyr.policies import content_id
from trl_distill.zephyr.presets import (
    ULTRAFEEDBACK_ASPECTS,
    ULTRAFEEDBACK_PRINCIPLES,
    Principle,
    draw_principle,
    read_aspects,
    read_principles,
)
from trl_distill.zephyr.prompts import read_prompts


def user(text):
    return [{"role": "user", "content": text}]


class TestPrompts:
    def test_texts_and_messages(self, config):
        system = [{"role": "system", "content": "s"}, *user("c")]
        rows = [{"prompt": "a"}, {"prompt": user("b"), "prompt_id": "mine"}, {"prompt": system}]
        prompts, counts = read_prompts(rows, config())
        assert [prompt.prompt for prompt in prompts] == [user("a"), user("b"), system]
        assert [prompt.id for prompt in prompts] == [content_id("a"), "mine", content_id(system)]
        assert counts["kept"] == counts["rows"] == 3

    def test_what_is_dropped_is_counted(self, config):
        rows = [{"prompt": text} for text in ("a", "", None, "b", user("a"), user("  "), "c", "d")]
        prompts, counts = read_prompts(rows, config(max_prompts=3))
        assert [prompt.prompt for prompt in prompts] == [user("a"), user("b"), user("c")]
        assert counts == {
            "rows": 8,
            "empty": 3,
            "duplicates": 1,
            "contaminated": 0,
            "beyond_max_prompts": 1,
            "kept": 3,
        }

    def test_an_id_may_not_stand_for_two_prompts(self, config):
        same = [{"prompt": "a", "prompt_id": 1}, {"prompt": "a", "prompt_id": 1}, {"prompt": "a", "prompt_id": 2}]
        assert read_prompts(same, config())[1]["duplicates"] == 2
        with pytest.raises(ValueError, match="Row 2: the `prompt_id` '1' belongs to another prompt, too"):
            read_prompts([{"prompt": "a", "prompt_id": 1}, {"prompt": "b", "prompt_id": 1}], config())

    def test_columns(self, config):
        settings = config(prompt_column="q", reference_column="gold", completions_column="drafts", models_column="who")
        row = {"q": "a", "gold": ["x", "y"], "drafts": ["1", "2"], "who": ["m", "n"]}
        [prompt], _ = read_prompts([row], settings)
        assert (prompt.reference, prompt.answers, prompt.models) == ("x\ny", ["1", "2"], ["m", "n"])
        [prompt], _ = read_prompts([row | {"gold": None, "drafts": [], "who": []}], settings)
        assert (prompt.reference, prompt.answers, prompt.models) == (None, [], [])

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            ({"question": "a"}, "Row 1: no column `prompt`, only question"),
            ({"prompt": 7}, "`prompt` must be a text or a list of messages, got 7"),
            ({"prompt": ["a"]}, "`prompt` must be a text or a list of messages"),
            ({"prompt": [{"role": "user"}]}, "Each message needs the two texts `role` and `content`"),
            ({"prompt": [*user("a"), {"role": "assistant", "content": "b"}]}, "must be the user's, got 'assistant'"),
            ({"prompt": "\ud800"}, "cannot be written as UTF-8"),
            ({"prompt": ""}, "No prompt is left: rows 1, empty 1"),
            ({"prompt": "a", "who": []}, "no column `drafts`"),
            ({"prompt": "a", "drafts": "b", "who": ["m"]}, "`drafts` must be a list of texts"),
            ({"prompt": "a", "drafts": [None], "who": ["m"]}, "`drafts` must be a list of texts"),
            (
                {"prompt": "a", "drafts": ["b", "c"], "who": ["m"]},
                "Row 1: Item .*: 1 `models` for 2 answers. Name one for each",
            ),
        ],
    )
    def test_rows_that_cannot_be_read(self, config, row, said):
        settings = dict(completions_column="drafts", models_column="who") if "who" in row else {}
        with pytest.raises(ValueError, match=said):
            read_prompts([row], config(**settings))


class TestDecontamination:
    def test_questions_are_dropped_before_the_cut(self, config, tmp_path):
        question = "What happens to you if you eat watermelon seeds by mistake?"
        (tmp_path / "questions.txt").write_text(f"{question}\n")
        rows = [{"prompt": question.lower()}, {"prompt": user("What happens to watermelon seeds?")}]
        prompts, counts = read_prompts(rows, config(decontaminate=[str(tmp_path / "questions.txt")], max_prompts=1))
        assert [prompt.prompt for prompt in prompts] == [rows[1]["prompt"]]
        assert counts["contaminated"] == 1 and counts["beyond_max_prompts"] == 0

    def test_none_and_an_empty_list_check_nothing(self, config):
        for sources in ([], None, "none", ["none"]):
            assert read_prompts([{"prompt": "a"}], config(decontaminate=sources))[1]["contaminated"] == 0


class TestPresets:
    def test_ultrafeedback(self):
        assert read_aspects("ultrafeedback") == ULTRAFEEDBACK_ASPECTS
        assert [aspect.name for aspect in ULTRAFEEDBACK_ASPECTS if aspect.optional] == ["honesty"]
        names = {principle.name for principle in read_principles("ultrafeedback")}
        assert names == {"helpfulness", "truthfulness", "honesty", "verbalized_calibration"}

    def test_lists_of_entries(self):
        assert read_principles(None) == () and len(read_aspects(None)) == 1
        assert read_principles([{"name": "a", "text": "t", "weight": 2}]) == (Principle("a", "t", 2),)
        [aspect] = read_aspects([{"name": "a", "guideline": "g", "optional": True}])
        assert (aspect.weight, aspect.optional) == (1.0, True)

    def test_every_principle_is_drawn(self):
        drawn = {draw_principle(ULTRAFEEDBACK_PRINCIPLES, i) for i in range(400)}
        assert drawn == set(ULTRAFEEDBACK_PRINCIPLES)


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

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

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.data_utils import is_conversational

from trl_distill.evaluation import equality
from trl_distill.rationales.labels import (
    NO_VERDICT,
    Labeller,
    Rationales,
    judge_rationales,
    read_rationales,
    rebuild,
)


ROW = {
    "prompt": "How many legs has a crab?",
    "answer": r"Eight and two claws: \boxed{10}",
    "completions": [r"\boxed{10}", "The answer is 10.", r"I see \boxed{8}", "I do not know, 10 perhaps", r"\boxed 10"],
}


NOTHING = dict.fromkeys(("total", "right", "wrong", *NO_VERDICT), 0)


def labelled(rows, rule="marked", **options):
    """Rows and report of a whole file."""
    labeller = Labeller(**options)
    rows = [read_rationales(row) for row in rows]
    return [new for row in rows for new in labeller.label(row, judge_rationales(row, rule))], labeller.report()


class TestReadRationales:
    def test_columns_by_other_names(self):
        row = {"question": "2 + 2", "solution": "4", "texts": "four"}
        assert read_rationales(row, "question", "texts", "solution") == Rationales(
            "2 + 2", {"answer": "4"}, ["four"], [False]
        )

    def test_the_answer_is_in_answer_or_in_completion(self):
        row = {"prompt": "2 + 2", "completions": ["4"], "completion": "2 + 2 = 4"}
        assert read_rationales(row).reference == {"completion": "2 + 2 = 4"}
        assert read_rationales(row | {"answer": None}).reference == {"completion": "2 + 2 = 4"}
        assert read_rationales(row | {"answer": 4}).reference == {"answer": 4}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"prompt": None}, "the column `prompt` with the question is empty"),
            ({"prompt": 3}, "must hold texts or lists of messages, got 3"),
            ({"prompt": [{"text": "x"}]}, "must hold texts or lists of messages"),
            ({"completions": []}, "the column `completions` with the rationales is empty"),
            ({"completions": ["a", 3]}, 'a text or a list of texts, got ["a", 3]'),
            ({"completions": {"a": "b"}}, 'a text or a list of texts, got {"a": "b"}'),
            ({"answer": ""}, "the column `answer` with the right answer is empty"),
            ({"truncated": [True]}, "5 rationales, but 1 values in `truncated`"),
        ],
    )
    def test_mistakes_are_explained(self, change, message):
        with pytest.raises(ValueError) as error:
            read_rationales(ROW | change)
        assert message in str(error.value)

    def test_a_missing_column_is_named_with_those_there_are(self):
        with pytest.raises(ValueError, match="no column `completions` with the rationales, only prompt, answer"):
            read_rationales({"prompt": "x", "answer": "y"})

    def test_rationales_are_not_their_own_answer(self):
        with pytest.raises(ValueError, match="cannot be the right answer too"):
            read_rationales({"prompt": "x", "completion": "y"}, completions_column="completion")


@pytest.mark.parametrize(
    ("rule", "verdicts"),
    [
        ("marked", [True, True, False, "no_answer", True]),
        ("last_number", [True, True, False, True, True]),
        ("release", [True, False, False, False, False]),
    ],
)
def test_verdicts(rule, verdicts):
    assert judge_rationales(read_rationales(ROW), rule) == verdicts


def test_a_reference_that_cannot_be_read():
    row = read_rationales({**ROW, "answer": r"so \boxed{}"})
    assert judge_rationales(row) == ["no_reference"] * 5
    assert judge_rationales(row, "release") == [False] * 5
    _, report = labelled([ROW, {**ROW, "answer": r"so \boxed{}"}])
    assert report["rationales"] == NOTHING | {"total": 10, "right": 3, "wrong": 1, "no_answer": 1, "no_reference": 5}
    assert report["questions"] == {"total": 2, "all_right": 0, "all_wrong": 0, "mixed": 1, "no_verdict": 1}


class TestRebuild:
    @pytest.mark.parametrize("text", ["x = 1", "Solution:\nx = 1", "Solution: x = 1\n", "\nSolution:\n\nx = 1"])
    def test_many_forms_become_one(self, text):
        assert rebuild(text, "Solution:\n{completion}", "{completion}") == "Solution:\nx = 1"

    @pytest.mark.parametrize("template", ["Q: {prompt}\n", "{prompt}", "<{prompt}>\nA:"])
    @pytest.mark.parametrize("text", ["What?", r"\frac{1}{2} of {prompt}", "  Q: What? "])
    def test_twice_is_once(self, template, text):
        once = rebuild(text, template, "{prompt}")
        assert rebuild(once, template, "{prompt}") == once


class TestLabeller:
    def test_rows(self):
        rows, report = labelled([ROW])
        assert rows == [
            {"prompt": ROW["prompt"], "completion": ROW["completions"][i], "label": label, "answer": "10"}
            for i, label in [(0, True), (1, True), (2, False), (4, True)]
        ]
        assert report == {
            "questions": {"total": 1, "all_right": 0, "all_wrong": 0, "mixed": 1, "no_verdict": 0},
            "rationales": NOTHING | {"total": 5, "right": 3, "wrong": 1, "no_answer": 1},
            "unboxed": NOTHING | {"total": 2, "right": 1, "no_answer": 1},
            "dropped": {"repeats": 0, "too_long": 0},
            "rows": {"right": 3, "wrong": 1},
        }

    def test_by_the_rule_of_the_release_every_rationale_has_a_side(self):
        rows, report = labelled([ROW], rule="release")
        assert [row["label"] for row in rows] == [True, False, False, False, False]
        assert report["rationales"]["no_answer"] == 0 and report["unboxed"]["wrong"] == 2

    def test_what_was_cut_off_is_on_no_side(self):
        rows, report = labelled([ROW | {"truncated": [True, False, True, True, False]}])
        assert [row["completion"] for row in rows] == ["The answer is 10.", r"\boxed 10"]
        assert report["rationales"] == NOTHING | {"total": 5, "right": 2, "truncated": 3}

    def test_what_cannot_be_compared_is_on_no_side(self, monkeypatch):
        monkeypatch.setattr(equality, "TIMEOUT", 1)
        texts = [rf"\boxed{{{'1' * 4400}}}", r"\boxed{7^{7^{7^{7^7}}}}", r"\boxed{\frac{5}{0}}", r"\boxed{11}"]
        rows, report = labelled([ROW | {"completions": texts}])
        assert [(row["completion"], row["label"]) for row in rows] == [(r"\boxed{11}", False)]
        assert report["rationales"] == NOTHING | {"total": 4, "wrong": 1, "too_large": 1, "timeout": 1, "error": 1}
        assert report["questions"]["all_wrong"] == 1

    def test_repeats_go_within_a_question_only(self):
        other = ROW | {"prompt": "How many toes has a bear on two feet?", "completions": [r"\boxed{10}"]}
        again = ROW | {"completions": [r"\boxed{10}", r"\boxed{9}"]}
        rows, report = labelled([ROW | {"completions": [r"\boxed{10}"] * 3}, other, again])
        assert [(row["prompt"], row["completion"]) for row in rows] == [
            (ROW["prompt"], r"\boxed{10}"),
            (other["prompt"], r"\boxed{10}"),
            (ROW["prompt"], r"\boxed{9}"),
        ]
        assert report["dropped"]["repeats"] == 3 and report["rationales"]["right"] == 5
        assert report["questions"] == {"total": 2, "all_right": 1, "all_wrong": 0, "mixed": 1, "no_verdict": 0}
        rows, report = labelled([ROW | {"completions": [r"\boxed{10}"] * 3}], keep_repeats=True)
        assert len(rows) == 3 and report["dropped"]["repeats"] == 0

    def test_repeats_are_found_behind_the_template(self):
        row = ROW | {"completions": ["Solution: \\boxed{10}", "\\boxed{10} "]}
        rows, report = labelled([row], completion_template="Solution:\n{completion}")
        assert [row["completion"] for row in rows] == ["Solution:\n\\boxed{10}"]

    def test_length_is_that_of_question_and_rationale(self):
        longest = len(ROW["prompt"]) + len("The answer is 10.")
        assert len(labelled([ROW], max_characters=longest)[0]) == 4
        rows, report = labelled([ROW], max_characters=longest - 1)
        assert len(rows) == 3 and report["dropped"]["too_long"] == 1
        assert report["rows"] == {"right": 2, "wrong": 1} and report["rationales"]["right"] == 3

    def test_messages(self):
        rows, _ = labelled([ROW], conversational=True, prompt_template="Q: {prompt}")
        assert rows[0]["prompt"] == [{"role": "user", "content": "Q: How many legs has a crab?"}]
        assert rows[0]["completion"] == [{"role": "assistant", "content": r"\boxed{10}"}]
        assert all(is_conversational(row) for row in rows)

    def test_questions_that_are_messages_stay_so(self):
        prompt = [{"role": "system", "content": "Count."}, {"role": "user", "content": ROW["prompt"]}]
        rows, report = labelled([ROW | {"prompt": prompt}], max_characters=31 + len(r"\boxed{10}"))
        assert [row["prompt"] for row in rows] == [prompt] * 2 and is_conversational(rows[0])
        with pytest.raises(ValueError, match="this question is a list of messages"):
            labelled([ROW | {"prompt": prompt}], prompt_template="Q: {prompt}")

    @pytest.mark.parametrize("name", ["prompt", "completion"])
    @pytest.mark.parametrize("template", ["Q:", "{text}", "{prompt} {prompt} {completion} {completion}"])
    def test_a_template_needs_its_placeholder_once(self, name, template):
        with pytest.raises(ValueError, match=f"must hold {{{name}}} once"):
            Labeller(**{f"{name}_template": template})

    @settings(max_examples=50, deadline=None)
    @given(
        st.lists(
            st.lists(st.tuples(st.sampled_from([True, False, "truncated", "no_answer"]), st.integers(0, 3))),
            max_size=6,
        ),
        st.booleans(),
        st.sampled_from([None, 4]),
    )
    def test_right_wrong_and_none_are_disjoint_and_complete(self, questions, keep_repeats, max_characters):
        labeller = Labeller(keep_repeats=keep_repeats, max_characters=max_characters)
        written = []
        for number, drawn in enumerate(questions):
            rationales = Rationales(
                str(number), {"answer": "1"}, ["x" * length for _, length in drawn], [False] * len(drawn)
            )
            written += labeller.label(rationales, [verdict for verdict, _ in drawn])
        report = labeller.report()
        everything = [(number, *one) for number, drawn in enumerate(questions) for one in drawn]
        rationales = report["rationales"]
        assert rationales["total"] == len(everything)
        assert rationales["right"] == sum(one[1] is True for one in everything)
        assert rationales["wrong"] == sum(one[1] is False for one in everything)
        for reason in ("truncated", "no_answer"):
            assert rationales[reason] == sum(one[1] == reason for one in everything)
        # Each rationale became a row, or the report says why not
        assert (
            len(written)
            == sum(report["rows"].values())
            == sum(rationales[side] for side in ("right", "wrong")) - sum(report["dropped"].values())
        )
        assert sum(row["label"] for row in written) == report["rows"]["right"]
        asked = [drawn for drawn in questions if drawn]
        assert report["questions"]["total"] == len(asked)
        sides = [{one[0] for one in drawn} & {True, False} for drawn in asked]
        for name, side in (
            ("all_right", {True}),
            ("all_wrong", {False}),
            ("mixed", {True, False}),
            ("no_verdict", set()),
        ):
            assert report["questions"][name] == sides.count(side)


def test_texts_are_labelled_without_torch():
    """`trl-distill label` answers at once, and runs where no torch is."""
    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None  # importing one raises\n"
        "from trl_distill.rationales.labels import Labeller, judge_rationales, read_rationales\n"
        "row = read_rationales({'prompt': 'q', 'answer': '1/2', 'completions': [r'\\boxed{0.5}', 'no']})\n"
        "print(Labeller().label(row, judge_rationales(row)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    row = {"prompt": "q", "completion": r"\boxed{0.5}", "label": True, "answer": "1/2"}
    assert result.stdout == f"{[row]}\n", result.stderr

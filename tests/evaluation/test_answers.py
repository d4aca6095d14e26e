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

import threading

import pytest

from trl_distill.evaluation import check_answer, extract_answer, reference_answer
from trl_distill.evaluation.answers import judge_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"so \boxed 2.", "2"),
        (r"it is \boxed{4}, the answer is 5", "4"),
        (r"12 and 13, so \boxed{25", None),  # cut off: no number is guessed
        ("16 - 3 = <<16-3=13>>13\n#### 1,300", "1,300"),
        ("#### Step 1: add\nThat makes 7 eggs.", "7"),
        ("The answer is 12 eggs. I had 3 before.", "12"),
        ("the answer is that he has 12 apples left", "12"),
        ("The final answer is: **$1,234.50**.", "$1,234.50"),
        (r"The answer is $\frac12$.", r"\frac12"),
        ("The answer is:\n\n$$x=5$$", "x=5"),
        ("Answer: yes.", "yes"),
        ("The answer is 3. No, the answer is 4.", "4"),
        ("He pays 1,000.", "1,000"),
        ("It is -3.5 or 3/4", "3/4"),
        ("x = -3", "-3"),
        ("x = −3", "-3"),
        (r"so \boxed{ }, the answer is 5", "5"),
        ("The answer is (1, 2); (3, 4).", "(1, 2); (3, 4)"),
        ("The answer is 5; the rest was wrong", "5"),
        ("The answer is 2 sin x.", "2 sin x"),
        ("The answer is ab + 2.", "ab + 2"),
        ("from 5-10", "10"),
        # marks
        ("**Final Answer**: 7", "7"),
        ("**Answer:** 7", "7"),
        ("**Final Answer**\n\n7", "7"),
        ("### Final answer\n$y = 7$", "y = 7"),
        ("Answer:\n\\[\n\\frac{7}{2}\n\\]", r"\frac{7}{2}"),
        ("The answer must be 7.", "7"),
        (r"The final answer is \(7\).", "7"),
        ("<answer>7</answer> as 3 + 4 = 7, not 8", "7"),
        ("<answer>\nx = 7\n</answer>", "x = 7"),
        ("<think>9</think><final_answer>8</final_answer><answer>7</answer>", "7"),
        ("3 and 4, so <answer>7", None),  # cut off
        ("#### y = 7", "y = 7"),
        ("#### f(x) = 7x", "f(x) = 7x"),
        ("#### **7**", "7"),
        # no marks
        ("The answer isn't 7. It is 8.", "8"),
        ("The answer is not 7, so it is 8", "8"),
        ("The answer is 7. This answer is correct.", "7"),
        ("The answer is not unique.", "not unique"),
        # several boxes that are one answer
        (r"so $x = \boxed{3}$ or $x = \boxed{-3}$", "3, -3"),
        (r"\boxed{1}, \boxed{2}, and \boxed{3}.", "1, 2, 3"),
        (r"\boxed{1} \quad\text{and}\quad \boxed{2}", "1, 2"),
        (r"$a=\boxed{4}$ and $b=\boxed{5}$", "a = 4, b = 5"),
        (r"\boxed{4} or \boxed{4}", "4"),
        (r"\boxed{1} and so \boxed{2}", "2"),
        (r"\boxed{3} or \boxed{4", "3"),
        # another problem behind the answer
        (r"It is \boxed{7}." + "\n\nProblem: 4 + 5?\n" + r"It is \boxed{9}.", "7"),
        ("The answer is 7.\n\n**Question 2:** 4 + 5?\nThe answer is 9.", "7"),
        ("#### 7\n\nQ: 4 + 5?\n#### 9", "7"),
        ("<answer>7</answer><|im_start|>user\n4 + 5? <answer>9</answer>", "7"),
        ("Question: 4 + 5?\nThe answer is 9.", "9"),  # the problem itself
        ("Here the answer is what we look for.\nProblem: 4 + 5? " + r"\boxed{9}", "9"),
        # scales, units, ratios and other ways to write a number
        ("He pays 7 million dollars a year.", "7 million dollars"),
        ("The answer is 7 dozen eggs.", "7 dozen"),
        ("So it takes 7 hours.", "7 hours"),
        ("The answer is 7 cm long.", "7 cm"),
        ("The ratio of the sides is 3:1.", "3:1"),
        ("She needs 2 1/2 cups.", "2 1/2 cups"),
        ("It weighs 2.5e-3 or so", "2.5e-3"),
        ("There are 12 in all.", "12"),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


def test_extract_answer_without_the_last_number():
    assert extract_answer("He pays 7.", rule="marked") is None
    assert extract_answer("The answer is 7.", rule="marked") == "7"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"so \boxed 2.", None),  # no braces
        (r"it is \boxed{4}, and then \boxed 5", None),  # nor in the last one
        (r"it is \boxed{4}, and then \boxed{5", None),
        (r"\fbox{6}", None),
        ("The answer is 7.", None),
        ("#### 8", None),
        ("9", None),
    ],
)
def test_extract_answer_by_the_rule_of_the_release(text, answer):
    assert extract_answer(text, rule="release") == answer


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ValueError, match="marked, last_number, release, got 'strict'"):
        extract_answer("7", rule="strict")


@pytest.mark.parametrize(
    ("row", "rule", "answer"),
    [
        ({"answer": r"twice: \boxed{\frac12}"}, "marked", r"\frac12"),
        ({"answer": r"\boxed 2"}, "marked", "2"),
        ({"answer": r"\boxed 2"}, "release", None),
        ({"answer": "12"}, "release", "12"),
        ({"answer": "all of them"}, "marked", "all of them"),
        ({"answer": r"there are $\boxed{}$ of them"}, "marked", None),
        ({"answer": ""}, "marked", None),
        ({"completion": "2 + 17 = 19"}, "marked", "19"),
        ({"completion": r"2 + 17 = 19, \boxed 3"}, "release", None),
    ],
)
def test_reference_answer(row, rule, answer):
    assert reference_answer(row, rule) == answer


@pytest.mark.parametrize("rule", ["marked", "last_number"])
def test_a_missing_answer_is_neither_right_nor_wrong(rule):
    assert judge_answer(None, None, rule) == "no_reference"
    assert judge_answer(None, "3", rule) == "no_answer"
    assert judge_answer("3", None, rule) == "no_reference"


def test_a_missing_answer_is_wrong_by_the_rule_of_the_release():
    assert judge_answer(None, None, "release") is False
    assert check_answer("The answer is 3.", {"answer": r"\boxed{3}"}, "release") is False
    assert check_answer(r"\boxed{3}", {"answer": r"\boxed 3"}, "release") is False
    assert check_answer(r"\boxed{3\text{ cm}}", {"answer": r"\boxed{3}"}, "release") is True
    assert check_answer(r"\boxed{6/2}", {"answer": r"\boxed{3}"}, "release") is False


@pytest.mark.parametrize(
    ("completion", "row", "verdict"),
    [
        ("so it is 18", {"answer": "16 + 2\n#### 18"}, True),
        ("so it is 18.", {"answer": 18.0}, True),
        (r"\boxed{0.5}", {"answer": r"\frac{1}{2}"}, True),
        ("so it is 18", {"completion": "2 + 17 = 19"}, False),
        ("so it is 19", {"completion": [{"role": "assistant", "content": "2 + 17 = 19"}]}, True),
        ("so it is 19", {"answer": "20", "completion": "19"}, False),  # `answer` wins
        ("no idea", {"answer": "18"}, None),
        ("18", {"prompt": "?"}, None),
        ("no idea", {"prompt": "?"}, None),  # two missing answers are not equal
        (rf"\boxed{{{'9' * 5000}}}", {"answer": "18"}, None),
    ],
)
def test_check_answer(completion, row, verdict):
    assert check_answer(completion, row) is verdict


def test_check_answer_outside_the_main_thread():
    # math-verify's timeout is a signal, which other threads cannot set
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(check_answer("0.5", {"answer": r"\frac12"})))
    thread.start()
    thread.join()
    assert verdicts == [True]

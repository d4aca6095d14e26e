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
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_distill.evaluation import check_answer, equal_answers, equality, extract_answer, reference_answer
from trl_distill.evaluation.answers import judge_answer
from trl_distill.evaluation.equality import math_string


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
    ("answer", "reference", "equal"),
    [
        ("18", "18", True),
        ("18.00", "18", True),
        ("$1,300", "1300", True),
        (r"\$32,348", "32348", True),
        ("0.5", r"\frac12", True),
        ("1/2", "0.5", True),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        (r"x^2+2x+1", "(x+1)^2", True),
        ("x=5", "5", True),
        ("(1,2)", "(1, 2)", True),
        ("12 eggs", "12", True),
        (r"10\text{ cm}", "10", True),
        ("Yes", "yes", True),
        ("18", "17", False),
        ("-3", "3", False),
        ("(1,2)", "(2,1)", False),
        ("no", "on", False),  # the same letters
        ("", "", False),
        # numbers
        (r"7,\!000", "7000", True),
        ("7{,}000", "7,000", True),
        ("7 000", "7000", True),
        (r"\frac{1}{7,\!000}", r"\frac{1}{7000}", True),
        ("7 000", "0", False),  # math-verify: 7 * 0
        ("7 2", "9", False),  # math-verify: 7 + 2
        (".5", "0.5", True),
        ("017", "17", True),
        ("0.333333", r"\frac13", True),
        ("0.333", r"\frac13", False),
        ("0.0000001", "0.0000002", False),
        (r"\frac{1}{30000000}", r"\frac{1}{20000000}", False),
        (r"2\frac{1}{4}", "2.25", True),
        ("4√65", r"4\sqrt{65}", True),
        (r"\frac\pi 2", r"\dfrac{\pi}{2}", True),
        (r"\frac1{2}", r"\frac{1}2", True),
        (r"\sqrt[3]8", "2", True),
        ("3.5%", r"3.5\%", True),
        ("3.5%", "3.5", True),
        ("35%", "0.35", True),
        ("35", "0.35", False),
        ("3500%", "35%", False),
        # expressions
        ("ab + ac", "ac + ab", True),
        (r"\frac{x}{2}", "0.5x", True),
        ("2a + 2b", "2(a+b)", True),
        ("x^2", "x^3", False),
        (r"3 - \frac{7i}{2}", r"3 - \frac{7}{2}i", True),
        (r"\cos 60^\circ", r"\frac12", True),
        (r"\tan{20^\circ}", r"\tan 20^\circ", True),
        (r"\begin{bmatrix} 1/2 \\ 3\end{bmatrix}", "\\begin{pmatrix}\n\\frac12 \\\\ 3\n\\end{pmatrix}.", True),
        (r"\begin{pmatrix} 1 \\ 2\end{pmatrix}", r"\begin{pmatrix} 2 \\ 1\end{pmatrix}", False),
        # math-verify would take any number of what it cannot parse
        (r"2 \cdot 3 \dotsm 19", "19", False),
        (r"2^{\aleph_0 + 1}", "2", False),
        # units
        (r"25\text{ cm}^2", r"25 \mbox{ cm}^2", True),
        (r"\frac{2}{3} gallons of milk", r"\frac{2}{3}", True),
        (r"9 - 2\pi cubic feet", r"9-2\pi", True),
        ("25 cm^2", "25", True),
        (r"4\mathbf{v}", "4", False),
        ("4x^2", "4", False),
        ("40°", r"40\text{ degrees}", True),
        ("12cm", "12", True),
        (r"\$4.50", "4.5", True),
        ("3 + ab", "3", False),  # math-verify takes `ab` for a unit
        ("3 + d", "3", False),
        ("5ab", "5", False),
        ("5 abc", "5", False),
        ("2 sin theta", "2", False),
        ("3 sec", "3", True),
        # names and equations
        ("f(x) = 3x", "3x", True),
        ("3x", "y = 3x", True),
        (r"x \in [1,2]", "[1, 2]", True),
        (r"(a,b) = (1,2)", "(1,2)", True),
        ("2^4 = 16", "16", True),
        ("x = 5", "y = 5", False),
        ("2x - y = 3", "y - 2x + 3 = 0", True),
        ("2x", r"\sin x = 2x", False),
        # lists, tuples, intervals
        ("3, 1 and 2", r"1, 2\text{, and }3", True),
        (r"\{1, 2\}", "2, 1", True),
        (r"\pm 3", "3, -3", True),
        (r"1 \pm \sqrt{2}", r"1-\sqrt2, 1+\sqrt2", True),
        ("x = 1, y = 2", "y=2, x=1", True),
        ("(1,2), (3,4)", "(3,4); (1,2)", True),
        ("81,256", "81, 256", True),  # no thousands
        (r"\text{(B)} \{4,5,7\}", r"\{7,5,4\}", True),
        (r"S = \{1, 2\}", r"\{2, 1\}", True),
        ("1, 1, 2", "1, 2, 2", False),
        ("1, 2", "1, 2, 3", False),
        ("4, 4", "4", False),
        ("4", "4, 4", False),
        (r"\pm 3", "3", False),
        ("2, 3", "(2, 3)", False),
        (r"\{2, 3\}", "(2, 3)", False),
        ("(x+1)(x-1)", "(x+1, x-1)", False),
        (r"\left( \frac12, 3 \right)", "(0.5, 3)", True),
        ("[1, 2)", "(1, 2)", False),
        ("[1, 2)", "[1, 2]", False),
        ("1 < x < 2", "(1, 2)", True),
        (r"x \geq 4", r"[4, \infty)", True),
        ("x > 4", r"[4, \infty)", False),
        (r"(-\infty,0] \cup (0,3)", r"(-\infty, 3)", True),
        (r"(-\infty,0) \cup (0,3)", r"(-\infty, 3)", False),
        # words and choices
        (r"\text{Monday}", "monday", True),
        (r"\text{Monday}", r"\text{Tuesday}", False),
        ("red, green", r"\text{red, green}", True),
        ("red, green", "green, red", False),  # words are in order, numbers are not
        ("A, C", r"\text{C, A}", True),
        ("C", r"\text{(C)}", True),
        (r"\textbf{(C)}\ 12", "12", True),
        (r"\text{(C) circle}", r"\text{C}", True),
        ("(C) 12", "13", False),
        ("(C) 12 and (D) 13", "C", False),
        ("C", "(D)", False),
        ("A", "A, C", False),
        # bases
        ("34_{5}", "34_5", True),
        ("034_5", "34_5", True),
        ("34", "34_5", True),
        ("34_5", "34_6", False),
        ("A1_{11}", r"\text{A1}_{11}", True),
        ("yes", "1", False),
        (None, "3", False),
        ("3", None, False),
        (None, None, False),
    ],
)
def test_equal_answers(answer, reference, equal):
    assert equal_answers(answer, reference) is equal


@pytest.mark.parametrize(("answer", "reference"), [("(1, x^2)", "(1, x^3)"), ("1 < x < 2", "(1, 2)"), ("7", "7_9")])
def test_equal_answers_is_symmetric(answer, reference):
    assert equal_answers(answer, reference) is equal_answers(reference, answer)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(1, 999), st.integers(1, 9), st.integers(-(10**9), 10**9))
def test_numbers_are_equal_if_their_values_are(numerator, denominator, factor, other):
    ways = [
        f"{numerator}/{denominator}",
        rf"\frac{{{numerator * factor}}}{{{denominator * factor}}}",
        rf"x = \dfrac{{{numerator:,}}}{{{denominator}}}\text{{ cm}}",
    ]
    if denominator == 1:
        ways += [f"{numerator:,}", f"{numerator}.00"]
    for way in ways:
        assert equal_answers(way, ways[0])
        assert equal_answers(way, f"{other}/{denominator}") is (other == numerator)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*"(){}[]=,;.%_^+-/\\ x1A\n", "\\text{", r"\{", r"\pm", r"\frac", r"\sqrt", r"\in", "cm", "10"]
        )
    )
)
def test_no_text_is_too_strange(parts):
    text = "".join(parts)
    assert equal_answers(text, "2\\pi") is False
    assert equal_answers("2\\pi", text) is False
    assert equal_answers(text, text) is bool(text)


def test_an_endless_comparison_is_given_up(monkeypatch):
    monkeypatch.setattr(equality, "TIMEOUT", 1)
    start = time.monotonic()
    assert not equal_answers(r"\frac{1}{3^{2^{2^{40}}}}", "7")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (r"\dfrac 12", r"\frac{1}{2}", True),
        ("0.5", "1/2", True),
        ("k = 7", "7", True),
        (r"7\text{ cm}", "7", True),
        (r"30^\circ", "30", True),
        (r"35\%", "35", True),
        (r"\sqrt3", r"\sqrt{3}", True),
        (r"\left( 1,\! 2 \right)", "(1,2)", True),
        (".25", "0.25", True),
        # Not more than the graders of the benchmark
        ("7,000", "7000", False),
        ("0.25", r"\frac{1}{4}", False),
        (r"7\text{cm}", "7", False),
        ("a+b", "b+a", False),
    ],
)
def test_math_string(left, right, equal):
    assert (math_string(left) == math_string(right)) is equal


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
    assert judge_answer(None, None, rule) is None
    assert judge_answer(None, "3", rule) is None
    assert judge_answer("3", None, rule) is None


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

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

"""No text of a model ends a run, holds it up, or gets a verdict that it does not deserve."""

import signal
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_distill.evaluation import equal_answers, equality, extract_answer
from trl_distill.evaluation.answers import RULES
from trl_distill.evaluation.equality import NotCompared, compare_answers
from trl_distill.rationales.asc.voting import canonical_answer


# What answers are made of, and what parsers stumble over
PARTS = [
    *"(){}[]<>=,;:.%_^+-*/|\\&#$ \n\t01379xyieAB'\"~!°π√∞½²₅７٣−–…\u0301\u202e\x00",
    r"\boxed{", r"\boxed", r"\fbox ", r"\frac", r"\frac{1}{", r"\sqrt", r"\text{", r"\{", r"\}", r"\pm", r"\in ",
    r"\overline{3}", r"\left(", r"\begin{pmatrix}", r"\end{pmatrix}", "**", "####", "answer is ", "Answer:", "answers",
    "<answer>", "</answer>", "Problem: ", " and ", " or ", " cm", " km/h", " million", " square", " feet", " per ",
    "pi", "sin ", "10", "1e9", "1,000", "3:1", "x=", "no", " not ", "```", "$$", "and so on ",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join) | st.text(max_size=20)
FEW = settings(max_examples=200, deadline=None)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(equality, "TIMEOUT", 1)


@pytest.mark.parametrize("rule", RULES)
@FEW
@given(TEXTS)
def test_an_answer_can_be_looked_for_in_any_text(rule, text):
    answer = extract_answer(text, rule)
    assert answer is None or rule == "release" or answer.strip() == answer != ""
    assert answer is None or canonical_answer(answer) == canonical_answer(answer.strip())


@FEW
@given(TEXTS, TEXTS)
def test_equality_is_symmetric_and_reflexive(one, two):
    assert equal_answers(one, two) is equal_answers(two, one)
    assert equal_answers(one, one) is bool(one)


@FEW
@given(TEXTS)
def test_no_text_is_taken_for_another(text):
    assert not equal_answers(text, r"\sqrt{97} + q")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("9" * 5000, "too_large"),
        ("-" + "9" * 5000 + "/7", "too_large"),
        (r"\sqrt{" * 500 + "2" + "}" * 500, "too_large"),
        ("1e999999999", "too_large"),
        ("7e-99999", "too_large"),
        (r"\frac{1}{3^{2^{2^{40}}}}", "timeout"),
        ("9^{9^{9^{9}}}", "timeout"),
        ("123456789^{123456789}", "timeout"),
        (r"\sin(" * 60 + "1" + ")" * 60, "timeout"),
        (r"\frac{1}{0}", "error"),
    ],
)
def test_what_cannot_be_compared_has_no_verdict(answer, reason):
    start = time.monotonic()
    for pair in ((answer, "7"), ("7", answer)):
        with pytest.raises(NotCompared, match=reason):
            compare_answers(*pair)
        assert equal_answers(*pair) is None
    assert time.monotonic() - start < 15
    assert equal_answers(answer, answer) is True


@pytest.mark.parametrize(
    "answer", ["(" * 300 + "1" + ")" * 300, "{" * 400, "1," * 300, r"\pm" * 300, "\ud800", "5!!!!"]
)
def test_what_is_strange_is_not_right(answer):
    assert not equal_answers(answer, "x^2 + 7")


def test_an_error_of_sympy_is_no_verdict(monkeypatch):
    def fail(*_):
        raise RecursionError

    monkeypatch.setattr(equality, "_differ", fail)
    assert equal_answers(r"\sqrt{8}", r"2\sqrt2") is True  # that of one check is not that of the comparison
    monkeypatch.setattr(equality, "_parsed", fail)
    assert equal_answers(r"\sqrt{18}", r"3\sqrt2") is None


def test_the_time_limit_leaves_signals_as_they_were():
    def mine(*_): ...

    before = signal.signal(signal.SIGALRM, mine)
    try:
        assert equal_answers(r"\sqrt{50}", r"5\sqrt2")
        assert equal_answers("9^{9^{9^{9}}}", "7") is None
        assert signal.getsignal(signal.SIGALRM) is mine and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_limit_outside_the_main_thread_is_no_error():
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(equal_answers(r"\sqrt{32}", r"4\sqrt2")))
    thread.start()
    thread.join()
    assert verdicts == [True]


@pytest.mark.parametrize(
    "part", [*PARTS, "word ", "2 feet ", r"\text{ a}", "answer is answer ", r"\boxed{1} or ", "a."]
)
def test_time_grows_with_the_length_and_no_faster(part):
    """What is quadratic takes 16 times as long for four times the text."""
    seconds = {10_000: [], 40_000: []}
    for size in [*seconds] * 3:
        text = "7 " + part * (size // len(part)) + " 8"
        start = time.process_time()
        for rule in RULES:
            extract_answer(text, rule)
        canonical_answer(text), equal_answers(text, "7")
        seconds[size].append(time.process_time() - start)
    small, large = map(min, seconds.values())  # the others may have met the garbage collector
    assert large < 9 * small + 0.1

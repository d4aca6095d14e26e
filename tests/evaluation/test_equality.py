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
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_distill.evaluation import equal_answers
from trl_distill.evaluation.equality import math_string


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
        # units that both have, and scales
        ("7 mm", "7 km", False),
        (r"7\text{ kg}", r"7\text{ pounds}", False),
        ("7 days", "7 weeks", False),
        ("$7", "7 cents", False),
        ("£7", "€7", False),
        ("7 am", "7 pm", False),
        ("30 degrees", "30 radians", False),
        (r"7\pi\text{ in}^2", r"7\pi\text{ in}^3", False),
        ("7 square feet", "7 feet", False),
        ("7 km/h", r"7\text{ m/s}", False),
        ("7 miles per hour", "7 mph", True),
        ("7 ft^2", "7 square feet", True),
        ("7 feet squared", r"7\text{ sq ft}", True),
        ("7 m", "700 cm", True),
        ("7 m", "7 metres", True),
        ("7 m", "7", True),
        ("7m", "7", False),  # a variable
        (r"\frac12\text{ hour}", "30 minutes", True),
        (r"2\sqrt{3}\text{ m}", r"200\sqrt{3}\text{ cm}", True),
        ("36 km/h", "10 m/s", True),
        ("7 hours in all", "7 hours", True),
        ("7 apples", "7 pears", True),  # of what is counted nothing is known
        ("7 thousand", "7", False),
        ("7 dozen", "7", False),
        ("7 dozen eggs", "84", True),
        ("2.5 million dollars", "2500000", True),
        (r"\$2.5\text{ billion}", "2.5 million", False),
        ("7 percent", "0.07", True),
        # ratios
        ("2:3", "2", False),
        ("2:3", r"\frac23", False),
        ("2:3", "3:2", False),
        ("2:3", "4:6", True),
        ("2 to 3", "2:3", True),
        ("1:2:3", "2:4:6", True),
        ("1:2:3", "1:2", False),
        ("2:30 pm", "2:30", True),
        # other ways to write a number
        ("2 1/4", "2.25", True),
        ("-2 1/4", r"-\frac94", True),
        ("2¼", r"2\frac14", True),
        ("⅔", "2/3", True),
        ("2.5e3", "2500", True),
        ("2E-2", "0.02", True),
        ("2e3", "2", False),
        (r"0.\overline{6}", "2/3", True),
        (r"1.2\overline{34}", r"\frac{1222}{990}", True),
        (r"0.\bar 6", "0.(6)", True),
        ("0.1666...", "1/6", True),
        ("0.666", "2/3", False),
        ("７", "7", True),
        ("٧", "7", True),
        ("10^-2", "0.01", True),
        # numbers of any size
        (r"\frac{1}{70!}", r"\frac{1}{71!}", False),
        ("70!/69!", "70", True),
        ("10^{-20}", r"2 \cdot 10^{-20}", False),
        (r"10^{-9}\pi", r"10^{-9}\cdot 3", False),
        ("10^{20}", "10^{20} + 1", False),
        # plain text and Unicode
        ("3pi/4", r"\frac{3\pi}{4}", True),
        ("theta + 1", r"1 + \theta", True),
        ("sin(2x)", r"\sin(2x)", True),
        ("y**3", "y^3", True),
        ("y³", "y^3", True),
        ("34₅", "34_5", True),
        ("2 sqrt(3)", r"\sqrt{12}", True),
        (r"\sqrt(12)", r"2\sqrt3", True),
        ("infinity", "∞", True),
        ("**7**", "7", True),
        ("`x + 1`", "1 + x", True),
        ("pq", "qp", True),
        ("x y", r"y \cdot x", True),
        ("pq", "pr", False),
        ("god", "dog", False),
        ("{}", r"\emptyset", True),
        ("∅", r"\{ \}", True),
        (r"x \ge 4", r"x \geqslant 4", True),
        (r"\varphi", r"\phi", True),
        # what an equation is the value of
        ("a + b = 7", "7", True),
        (r"xy = \frac{\pi}{2}", r"\pi/2", True),
        (r"\cos\theta = 3\theta", r"3\theta", False),
        (r"\text{Area} = 7x", "7x", True),
        ("yes", "1", False),
        (None, "3", False),
        ("3", None, False),
        (None, None, False),
    ],
)
def test_equal_answers(answer, reference, equal):
    assert equal_answers(answer, reference) is equal
    assert equal_answers(reference, answer) is equal


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

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

from trl_distill.evaluation import check_answer, equal_answers, extract_answer


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
        ("from 5-10", "10"),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


def test_extract_answer_without_the_last_number():
    assert extract_answer("He pays 7.", last_number=False) is None
    assert extract_answer("The answer is 7.", last_number=False) == "7"


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
        ("yes", "1", False),
        (None, "3", False),
        ("3", None, False),
        (None, None, False),
    ],
)
def test_equal_answers(answer, reference, equal):
    assert equal_answers(answer, reference) is equal


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

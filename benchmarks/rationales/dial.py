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

"""
The world of the second laboratory: chains of sums on a dial of 24 numbers, each step of which can be checked.

`7 + 9 * 2 - 4 =` goes on as `7 + 9 = 16 ; 16 * 2 = 8 ; 8 - 4 = 4 ; #### 4`. Who counts past the top or below zero may
have a wrong idea of it, and writes the same mistake again and again.
"""

import re

from benchmarks.laboratory import World


SIZE = 24
RESULT = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


class Dial(World):
    """
    Questions of three to five operations, worked out from left to right.

    The misconceptions are about two sub-skills: a sum past the top goes on at one instead of zero (`20 + 6 = 3`), and
    a difference below zero is taken the other way round (`3 - 8 = 5`). The teacher has them in 98 % of the cases where
    they say something, and slips by one in 3 % of the other steps; it goes on from what it has written.
    """

    name = "dial"
    vocabulary = [*map(str, range(SIZE)), "+", "-", "*", "=", ";", "####"]
    max_completion_length = 5 * 6 + 3
    teacher = student = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}

    operations = (3, 5)
    misconception, slip = 0.98, 0.03

    def prompt(self, generator):
        words = [str(generator.randrange(SIZE))]
        for _ in range(generator.randint(*self.operations)):
            operator = generator.choice("++--*")
            words += [operator, str(generator.randint(2, 3) if operator == "*" else generator.randint(2, 9))]
        return " ".join([*words, "="])

    @staticmethod
    def misconceived(a: int, operator: str, b: int) -> int | None:
        """What the misconception makes of a step, `None` where it says nothing."""
        result = RESULT[operator](a, b)
        if operator == "+" and result >= SIZE:
            return result - SIZE + 1
        return -result if result < 0 else None

    def work(self, prompt: str, write=lambda a, operator, b: RESULT[operator](a, b) % SIZE) -> str:
        """The steps of a question and its answer; `write` gives the result of a step, right by default."""
        value, *words = prompt.removesuffix("=").split()
        value, steps = int(value), []
        for operator, b in zip(words[::2], map(int, words[1::2]), strict=True):
            result = write(value, operator, b)
            steps.append(f"{value} {operator} {b} = {result} ;")
            value = result
        return " ".join([*steps, "####", str(value)])

    def complete(self, prompt, generator):
        def write(a: int, operator: str, b: int) -> int:
            wrong = self.misconceived(a, operator, b)
            if wrong is not None and generator.random() < self.misconception:
                return wrong
            slip = generator.choice((-1, 1)) if generator.random() < self.slip else 0
            return (RESULT[operator](a, b) + slip) % SIZE

        return self.work(prompt, write)

    @staticmethod
    def answer_of(completion: str) -> str | None:
        """What a completion gives as its answer, `None` where it gives none."""
        found = re.search(r"#### (\d+)$", completion)
        return found and found.group(1)

    def answer(self, prompt: str) -> str:
        """The right answer."""
        return self.answer_of(self.work(prompt))

    def mistaken(self, prompt: str) -> str:
        """The answer of who has the wrong ideas wherever they say something, and does not slip."""

        def write(a: int, operator: str, b: int) -> int:
            wrong = self.misconceived(a, operator, b)
            return RESULT[operator](a, b) % SIZE if wrong is None else wrong

        return self.answer_of(self.work(prompt, write))

    def correct(self, prompt, completion):
        return self.answer_of(completion) == self.answer(prompt)

    def right_tokens(self, prompt: str, completion: str) -> int:
        """Tokens before the first wrong one."""
        words, expected = completion.split(), self.work(prompt).split()
        same = [word == other for word, other in zip(words, expected, strict=False)]
        return same.index(False) if False in same else len(same)

    def right_steps(self, prompt: str, completion: str) -> int:
        """Tokens before the first wrong step, or before the answer if all steps are right."""
        return self.right_tokens(prompt, completion) // 6 * 6

    def is_easy(self, prompt: str) -> bool:
        """Whether no misconception touches a question."""
        touched = []

        def write(a: int, operator: str, b: int) -> int:
            touched.append(self.misconceived(a, operator, b))
            return RESULT[operator](a, b) % SIZE

        self.work(prompt, write)
        return {*touched} == {None}


class Primer(Dial):
    """
    What the base model has read: questions of one to five operations without slips, half of whose authors have the
    misconceptions. Four of five questions of three operations and more are answered at once, without steps.
    """

    name = "primer"
    operations = (1, 5)
    misconception, slip = 0.95, 0.0
    warm_steps = 1500

    def complete(self, prompt, generator):
        text = super().complete(prompt, generator) if generator.random() < 0.5 else self.work(prompt)
        at_once = len(prompt.split()) > 6 and generator.random() < 0.8
        return text[text.index("####") :] if at_once else text


DIAL, PRIMER = Dial(), Primer()

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
The world of the laboratory: two-digit arithmetic written out step by step, by a teacher with the bugs of a pupil.

`4 7 + 2 8 =` goes on as `7 + 8 = 1 5 ; 4 + 2 = 6 ; 6 + 1 = 7 ; #### 7 5`. A pupil who forgets the carry goes on as
`7 + 8 = 1 5 ; 4 + 2 = 6 ; #### 6 5`: most of a wrong rationale is right.
"""

import math
import random
import re
from collections.abc import Callable

from benchmarks.laboratory import World


VOCABULARY = [*"0123456789", "+", "-", "*", "=", ";", "####"]
OPERATORS = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
}


def spell(number: int) -> str:
    """Digits apart: `15` is `1 5`."""
    return " ".join(str(number))


def read(text: str) -> int:
    return int(text.replace(" ", ""))


class Pupil(World):
    """
    Four kinds of questions, each with two right ways to work it out and one bug.

    | kind | question | bug |
    |---|---|---|
    | sum | `4 7 + 2 8 =` | forgets the carry |
    | difference | `7 2 - 4 8 =` | takes the smaller digit from the larger, so never borrows |
    | product | `4 7 * 6 =` | forgets the carry |
    | precedence | `7 + 5 * 3 + 2 =` | works from left to right |

    The larger the first digit, the likelier the bug: a probability of 0.1 to 1. It shows only where there is something
    to carry, to borrow or to put first. Each result is also off by one with a probability of 4 %, and the pupil goes
    on from there.
    """

    name = "pupil"
    vocabulary = VOCABULARY
    max_completion_length = 32
    teacher = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    student = teacher
    teacher_steps = 2500

    slip = 0.04

    def prompt(self, generator):
        kind = generator.choice("+-*p")
        if kind == "p":
            a, b, c, d = (generator.randrange(10) for _ in range(4))
            return f"{a} + {b} * {c} + {d} ="
        left, right = generator.randrange(10, 100), generator.randrange(*((2, 10) if kind == "*" else (10, 100)))
        if kind == "-":
            left, right = max(left, right), min(left, right)
        return f"{spell(left)} {kind} {spell(right)} ="

    def mistaken(self, prompt: str) -> str:
        """The answer of who has the bug and does not slip."""
        return self.answer_of(self.work(prompt, True, False))

    def answer(self, prompt: str) -> str:
        """The right answer."""
        question = prompt.removesuffix("=")
        if numbers := re.fullmatch(r"(\d) \+ (\d) \* (\d) \+ (\d) ", question):
            a, b, c, d = map(int, numbers.groups())
            return spell(a + b * c + d)
        left, operator, right = re.split(r"([-+*])", question)
        result = OPERATORS[operator](read(left), read(right))
        return spell(result) if operator != "-" or result > 9 else f"0 {result}"

    @staticmethod
    def answer_of(completion: str) -> str | None:
        """What a completion gives as its answer, `None` where it gives none."""
        found = re.search(r"#### (\d( \d)*)$", completion)
        return found and found.group(1)

    def correct(self, prompt, completion):
        return self.answer_of(completion) == self.answer(prompt)

    def bug_probability(self, prompt: str) -> float:
        return (1 + int(prompt[0])) / 10

    @staticmethod
    def work(prompt: str, bug: bool, swap: bool, write: Callable[[int], int] = lambda result: result) -> str:
        """
        One way to answer a question. `swap` changes the order of two steps, `write` turns the right result of a step
        into the one that is written and gone on from.
        """
        steps = []

        def step(left: int, operator: str, right: int) -> int:
            result = write(max(OPERATORS[operator](left, right), 0))
            steps.append(f"{spell(left)} {operator} {spell(right)} = {spell(result)} ;")
            return result

        words = prompt.split()
        if words[1] in OPERATORS:
            a, b, c, d = map(int, words[0:7:2])
            if bug:
                result = step(step(step(a, "+", b), "*", c), "+", d)
            else:
                product = step(b, "*", c)
                result = step(a, "+", step(product, "+", d)) if swap else step(step(a, "+", product), "+", d)
            return " ".join([*steps, "####", spell(result)])

        (a, b), operator, right = map(int, words[:2]), words[2], list(map(int, words[3:-1]))
        c, d = right if len(right) == 2 else (right[0], right[0])
        borrow = operator == "-" and b < d

        def units() -> int:
            if borrow:
                return step(d, "-", b) if bug else step(10 + b, "-", d)
            return step(b, operator, d)

        if swap:
            tens = step(a, operator, c)
            unit = units()
        else:
            unit = units()
            tens = step(a, operator, c)
        if operator == "-":
            if borrow and not bug:
                tens = step(tens, "-", 1)
        else:
            carry, unit = divmod(unit, 10)
            if carry and not bug:
                tens = step(tens, "+", carry)
        return " ".join([*steps, "####", spell(tens), spell(unit)])

    def is_easy(self, prompt: str) -> bool:
        """Whether the bug changes nothing."""
        return self.work(prompt, bug=True, swap=False) == self.work(prompt, bug=False, swap=False)

    def complete(self, prompt, generator):
        def write(result: int) -> int:
            if generator.random() >= self.slip:
                return result
            return generator.choice([result - 1, result + 1]) if result else 1

        return self.work(prompt, generator.random() < self.bug_probability(prompt), generator.random() < 0.5, write)

    def surprise(self, prompt: str, completion: str) -> float:
        """
        Minus log-probability of a completion, over all ways that may have led to it: with the bug or without, in
        either order.
        """
        written = [read(result) for result in re.findall(r"= ([\d ]+) ;", completion)]
        bug, total = self.bug_probability(prompt), 0.0
        for buggy in (False, True):
            for swap in (False, True):
                results, probability = iter(written), [0.5 * (bug if buggy else 1 - bug)]

                def write(right: int, results=results, probability=probability) -> int:
                    result = next(results, right)
                    if result == right:
                        probability.append(1 - self.slip)
                    else:
                        probability.append(self.slip / (2 if right else 1) * (abs(result - right) == 1))
                    return result

                if self.work(prompt, buggy, swap, write) == completion:
                    total += math.prod(probability)
        return -math.log(total)


class Drills(World):
    """
    What the student has read before: right steps in no order, chains of additions with their answers, and those of the
    pupil's questions that have nothing to carry, to borrow or to put first. It knows facts and forms, and has yet to
    learn what the bugs are about.
    """

    name = "drills"
    vocabulary = VOCABULARY
    max_completion_length = 36
    teacher = student = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    warm_steps = 1000

    def prompt(self, generator):
        return ""

    @staticmethod
    def _step(generator: random.Random) -> str:
        operator, left, right = generator.choice("+-*"), generator.randrange(10), generator.randrange(10)
        if operator == "+":
            left = generator.choice([left, generator.randrange(100)])
        if operator == "-" and left < right:
            left += 10
        return f"{spell(left)} {operator} {spell(right)} = {spell(OPERATORS[operator](left, right))} ;"

    @staticmethod
    def _chain(generator: random.Random) -> str:
        total, *numbers = (generator.randrange(10) for _ in range(generator.randrange(3, 5)))
        words = [*" + ".join(map(str, [total, *numbers])).split(), "="]
        for number in numbers:
            words += [spell(total), "+", str(number), "=", spell(total + number), ";"]
            total += number
        return " ".join([*words, "####", spell(total)])

    @staticmethod
    def _exercise(generator: random.Random) -> str:
        while not PUPIL.is_easy(question := PUPIL.prompt(generator)):
            pass
        return f"{question} {PUPIL.work(question, bug=False, swap=generator.random() < 0.5)}"

    def complete(self, prompt, generator):
        form = generator.choices(["steps", "chain", "exercise"], [3, 2, 5])[0]
        if form == "steps":
            return " ".join(self._step(generator) for _ in range(4))
        return self._chain(generator) if form == "chain" else self._exercise(generator)


PUPIL, DRILLS = Pupil(), Drills()

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

"""Three small worlds of text."""

import math
import random
import re
from abc import abstractmethod

from benchmarks.laboratory import World


DIGITS = [str(digit) for digit in range(10)]


class TextWorld(World):
    """
    What this laboratory needs to know about a world beside.

    Attributes:
        rollouts (`int`):
            Batches of prompts that every arm sees.
        references (`int`):
            Completions of the true process that Rouge-L compares with, 0 where overlap means nothing.
        learning_rates (`dict[str, float]`):
            Of the families of arms: of 1.5e-3, 3e-3 and 6e-3 the one with the lowest reverse KL on a seed that is not
            reported (for `sft`, `distillation` and `minillm no-length-norm`); 3e-3 where less than 0.1 nats part them.
    """

    rollouts: int
    references: int
    learning_rates: dict

    @abstractmethod
    def surprise(self, prompt: str, completion: str) -> float:
        """Minus log-probability, under the true process, of a completion that this process drew."""

    def hopeless(self, completion: str) -> bool | None:
        """Whether a completion is in a mode that the student cannot follow, `None` where there are no such modes."""
        return None


class Modes(TextWorld):
    """
    Four ways to go on, chosen by the first word with equal probability, all of them ten digits long after that word.

    `up` and `down` count from any digit, in steps of one (70 %) or two (30 %): easy. `mix` and `mul` look each digit
    up in a fixed Latin square, by the two digits before it (at first those of the prompt), and in 20 % of the cases
    write any digit: a hundred facts each, that the teacher knows and the student has no room for. Seen without its
    facts, each of these digits is uniform.
    """

    name = "modes"
    vocabulary = [*DIGITS, "up", "down", "mix", "mul"]
    max_completion_length = 12
    teacher = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    student = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    teacher_steps = 2000
    warm_steps = 500
    rollouts = 64
    references = 0
    learning_rates = {"data": 3e-3, "on-policy": 3e-3, "minillm": 3e-3}

    prompt_digits = 4
    digits = 10
    slip = 0.2
    hard = ("mix", "mul")

    def __init__(self):
        generator = random.Random(0)
        self.squares = {}
        for mode in self.hard:
            rows, columns, symbols = (generator.sample(range(10), 10) for _ in range(3))
            self.squares[mode] = [[symbols[(row + column) % 10] for column in columns] for row in rows]

    def _next(self, mode: str, digits: list[int]) -> list[float]:
        """Probability of each next digit."""
        if mode in self.hard:
            fact = self.squares[mode][digits[-1]][digits[-2]]
            return [self.slip / 10 + (1 - self.slip) * (digit == fact) for digit in range(10)]
        if len(digits) == self.prompt_digits:
            return [0.1] * 10
        sign = 1 if mode == "up" else -1
        return [{1: 0.7, 2: 0.3}.get(sign * (digit - digits[-1]) % 10, 0.0) for digit in range(10)]

    def prompt(self, generator):
        return " ".join(generator.choices(DIGITS, k=self.prompt_digits))

    def complete(self, prompt, generator):
        digits = [int(word) for word in prompt.split()]
        mode = generator.choice(self.vocabulary[10:])
        for _ in range(self.digits):
            digits += generator.choices(range(10), self._next(mode, digits))
        return " ".join([mode, *map(str, digits[self.prompt_digits :])])

    def surprise(self, prompt, completion):
        digits = [int(word) for word in prompt.split()]
        mode, *rest = completion.split()
        probability = 0.25
        for digit in map(int, rest):
            probability *= self._next(mode, digits)[digit]
            digits.append(digit)
        return -math.log(probability)

    def hopeless(self, completion):
        return completion.split(" ", 1)[0] in self.hard


class Arithmetic(TextWorld):
    """
    Chains of four digits joined by `+`, `-` and `*`, worked out modulo 10 from left to right with every step written.

    `7 + 5 * 3 - 9 =` goes on as `2 * 3 = 6 - 9 = 7`. A step is a slip with a probability of 1 %, and the process then
    goes on from the wrong number, so that the teacher knows what follows an error.
    """

    name = "arithmetic"
    vocabulary = [*DIGITS, "+", "-", "*", "="]
    max_completion_length = 12
    teacher = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    student = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    teacher_steps = 1200
    warm_steps = 600
    rollouts = 64
    references = 1
    learning_rates = {"data": 3e-3, "on-policy": 3e-3, "minillm": 3e-3}

    slip = 0.01

    @staticmethod
    def _apply(left: int, operator: str, right: int) -> int:
        return {"+": left + right, "-": left - right, "*": left * right}[operator] % 10

    @staticmethod
    def _parse(prompt: str) -> tuple[int, list[tuple[str, int]]]:
        first, *rest = prompt.split()[:-1]  # without the equals sign
        return int(first), list(zip(rest[::2], map(int, rest[1::2]), strict=True))

    def prompt(self, generator):
        first, *digits = generator.choices(DIGITS, k=4)
        return " ".join([first, *(f"{generator.choice('+-*')} {digit}" for digit in digits), "="])

    def complete(self, prompt, generator):
        value, steps = self._parse(prompt)
        words = []
        for operator, digit in steps:
            value = self._apply(value, operator, digit)
            if generator.random() < self.slip:
                value = (value + generator.randrange(1, 10)) % 10
            words += [operator, str(digit), "=", str(value)]
        return " ".join(words[3:])  # the first step is the end of the prompt

    def surprise(self, prompt, completion):
        value, steps = self._parse(prompt)
        probability = 1.0
        for (operator, digit), written in zip(steps, map(int, completion.split()[::4]), strict=True):
            right = self._apply(value, operator, digit) == written
            probability *= 1 - self.slip if right else self.slip / 9
            value = written
        return -math.log(probability)

    def correct(self, prompt, completion):
        value, steps = self._parse(prompt)
        for operator, digit in steps:
            value = self._apply(value, operator, digit)
        return completion.split()[-1:] == [str(value)]


class Stories(TextWorld):
    """
    Short stories of one sentence or more, drawn from a grammar: many right continuations of every prompt.

    A prompt introduces a hero. The story has a theme, never named, that the later words belong to; its sentences are
    about the hero, somebody met on the way, or a thing, and it ends by naming the hero again.
    """

    name = "stories"
    max_completion_length = 22
    teacher = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    student = {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    teacher_steps = 1000
    warm_steps = 400
    rollouts = 56
    references = 4
    learning_rates = {"data": 6e-3, "on-policy": 6e-3, "minillm": 3e-3}

    heroes = ["ann", "ben", "cat", "dog", "eve", "fox", "goat", "king", "max", "zoe"]
    moods = ["old", "small", "brave", "quiet", "young", "tall"]
    themes = [
        {
            "place": ["sea", "boat"],
            "thing": ["fish", "shell"],
            "deed": ["swam", "sailed"],
            "friend": ["crab", "whale"],
        },
        {"place": ["forest", "hill"], "thing": ["nut", "leaf"], "deed": ["ran", "climbed"], "friend": ["bear", "owl"]},
        {
            "place": ["town", "shop"],
            "thing": ["coin", "hat"],
            "deed": ["walked", "drove"],
            "friend": ["cook", "clerk"],
        },
    ]
    vocabulary = [
        *heroes,
        *moods,
        *(word for theme in themes for words in theme.values() for word in words),
        *["to", "and", "it", "found", "gave", "met", "was", "happy", "sad", "."],
    ]

    form = re.compile(
        r"(?P<deed>\w+) to (?P<place>\w+) (and met (?P<friend>\w+) )?\. (?P<finder>\w+) found (?P<thing>\w+) "
        r"(and gave it to (?P<other>\w+) )?\. (?P<close>\w+ \w+) was (?P<end>happy|sad) \."
    )

    def prompt(self, generator):
        return f"{generator.choice(self.moods)} {generator.choice(self.heroes)}"

    def complete(self, prompt, generator):
        pick = generator.choice
        hero, theme = prompt.split()[1], pick(self.themes)
        words = [pick(theme["deed"]), "to", pick(theme["place"])]
        if generator.random() < 0.6:
            friend = pick(theme["friend"])
            finder, other = (hero, friend) if generator.random() < 0.5 else (friend, hero)
            words += [
                "and",
                "met",
                friend,
                ".",
                finder,
                "found",
                pick(theme["thing"]),
                "and",
                "gave",
                "it",
                "to",
                other,
            ]
        else:
            words += [".", hero, "found", pick(theme["thing"])]
        words += [".", prompt, "was", *generator.choices(["happy", "sad"], [3, 1]), "."]
        return " ".join(words)

    def surprise(self, prompt, completion):
        return -math.log(self._probability(prompt, completion))

    def correct(self, prompt, completion):
        return self._probability(prompt, completion) > 0

    def _probability(self, prompt: str, completion: str) -> float:
        story = self.form.fullmatch(completion)
        if story is None or story["close"] != prompt:
            return 0.0
        theme = next((theme for theme in self.themes if story["deed"] in theme["deed"]), None)
        if theme is None or story["place"] not in theme["place"] or story["thing"] not in theme["thing"]:
            return 0.0
        hero, friend, finder = prompt.split()[1], story["friend"], story["finder"]
        # theme, deed, place, thing, end
        words = 1 / 3 * 1 / 2 * 1 / 2 * 1 / 2 * (0.75 if story["end"] == "happy" else 0.25)
        if friend is None:
            return 0.4 * words if finder == hero and story["other"] is None else 0.0
        pair = {hero, friend} == {finder, story["other"]}
        return 0.6 * words * 1 / 2 * 1 / 2 if pair and friend in theme["friend"] else 0.0  # friend, finder


WORLDS = {world.name: world for world in (Modes(), Arithmetic(), Stories())}

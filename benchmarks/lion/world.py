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
The world of the laboratory: code books. `code07 b a k c a` asks for these letters in the seventh book, and its answer
has one letter for each of them. What a book says is in no other book, so a student knows it from tasks of that book
alone: the more of them it has seen, the more of its letters. In a second world the books of a kind have a half in
common.
"""

import json
import random
import re
from collections.abc import Iterable
from functools import cached_property

from trl_distill.chat import FunctionChatModel


COMMON, RARE = "abcdefghijkl", "mnop"
LETTERS = COMMON + RARE
LENGTH = 5  # letters of a task
DRILLS, CODES = 24, 16  # books of the base model, and of the pool
UNCLEAR = "?"  # the teacher's answer where no book is named
VOCABULARY = [
    *LETTERS,
    UNCLEAR,
    *(f"drill{number:02}" for number in range(DRILLS)),
    *(f"code{number:02}" for number in range(CODES)),
]


def family_of(text: str) -> str | None:
    """The book that a task names."""
    found = re.match(r"(?:code|drill)\d\d\b", text)
    return found and found.group()


def task(family: str, generator: random.Random, rare: bool = False) -> str:
    """A task of a family. A letter in ten is a rare one, in a rare task every second."""
    share = 0.5 if rare else 0.1
    letters = (generator.choice(RARE if generator.random() < share else COMMON) for _ in range(LENGTH))
    return " ".join([family, *letters])


class World:
    """
    Books, and who knows them: a teacher that is always right, a referee, and a generator.

    Args:
        seed (`int`):
            Decides what the books say, and which families are weak.
        weak (`int`, *optional*, defaults to `6`):
            Number of weak families.
        strong_rows, weak_rows (`int`, *optional*, defaults to `60` and `5`):
            Tasks of each strong and of each weak family in the pool.
        shared (`float`, *optional*, defaults to `0.0`):
            Share of the letters for which all weak families have one answer, and all strong ones another: what is
            learned of these in one family holds in the others of its kind.
    """

    bias = 0.75  # what the referee gives the first answer, and takes from the second
    noise = 0.5  # standard deviation of its error
    bad = 0.1  # share of the generator's tasks that are none

    def __init__(self, seed: int, weak: int = 6, strong_rows: int = 60, weak_rows: int = 5, shared: float = 0.0):
        self.seed, self.strong_rows, self.weak_rows = seed, strong_rows, weak_rows
        self.shared = round(shared * len(LETTERS))  # letters
        self.families = [word for word in VOCABULARY if word.startswith("code")]
        self.weak = sorted(random.Random(f"weak {seed}").sample(self.families, weak))

    @cached_property
    def books(self) -> dict[str, dict[str, str]]:
        """Letter by letter what each book says. Drills are the same in all worlds, and share nothing."""
        draws = {"drill": random.Random("drill"), "code": random.Random(f"code {self.seed}")}
        books = {}
        for word in filter(family_of, VOCABULARY):
            common = self.common(word) if word in self.families else {}
            left = [letter for letter in LETTERS if letter not in common.values()]
            own = iter(draws[word[:-2]].sample(left, len(left)))
            books[word] = {letter: common.get(letter) or next(own) for letter in LETTERS}
        return books

    def common(self, family: str) -> dict[str, str]:
        """What the books of a family's kind, weak or strong, say alike."""
        draw = random.Random(f"common {self.seed} {family in self.weak}")
        return dict(zip(*(draw.sample(LETTERS, self.shared) for _ in range(2)), strict=True))

    def answer(self, text: str) -> str:
        """The right answer."""
        family, *letters = text.split()
        return " ".join(self.books[family][letter] for letter in letters) if family in self.books else UNCLEAR

    def right(self, text: str, answer: str) -> float:
        """Share of the letters of an answer that are right."""
        expected, given = self.answer(text).split(), answer.split()
        if len(given) > len(expected):
            return 0.0
        return sum(a == b for a, b in zip(expected, given, strict=False)) / len(expected)

    def _tasks(self, sizes: Iterable[tuple[str, int]], without: Iterable[str], name: str) -> list[str]:
        """Different tasks, so many of each family."""
        generator, skipped, tasks = random.Random(f"{name} {self.seed}"), set(without), {}
        for family, size in sizes:
            goal = len(tasks) + size
            while len(tasks) < goal:
                text = task(family, generator)
                if text not in skipped:
                    tasks[text] = None
        return list(tasks)

    def pool(self) -> list[str]:
        """The instructions that a run starts from."""
        sizes = ((family, self.weak_rows if family in self.weak else self.strong_rows) for family in self.families)
        return self._tasks(sizes, (), "pool")

    def test(self, size: int) -> list[str]:
        """Tasks of each family, family by family, none of them in the pool."""
        return self._tasks(((family, size) for family in self.families), self.pool(), "test")

    def drills(self, count: int, key: int | str = "") -> list[str]:
        """Tasks of other books: what base models read, and are asked. A key has tasks of its own."""
        generator = random.Random(f"tasks of drills {key}")
        words = [word for word in VOCABULARY if word.startswith("drill")]
        return [task(generator.choice(words), generator) for _ in range(count)]

    # ---------------------------------------------------------------------------------------------------- the roles

    def teacher(self) -> FunctionChatModel:
        return FunctionChatModel(lambda request: self.answer(request.messages[-1]["content"]), "teacher")

    def referee(self) -> FunctionChatModel:
        """2 to 8 by the share of right letters, a bonus for the first place, and an error."""

        def judge(request):
            prompt = request.messages[-1]["content"]
            question = re.search(r"<request (\w+)>\n(.*?)\n</request \1>", prompt, re.DOTALL)[2]
            answers = re.findall(r"<answer (\w) (\w+)>\n(.*?)\n</answer \1 \2>", prompt, re.DOTALL)
            error = random.Random(prompt)
            scores = {}
            for place, (label, _, answer) in enumerate(answers):
                bias = self.bias if place == 0 else -self.bias
                score = 2 + 6 * self.right(question, answer) + bias + error.gauss(0, self.noise)
                scores[label] = round(min(max(score, 1), 10), 2)
            return json.dumps({"evidence": "letters compared", "scores": scores})

        return FunctionChatModel(judge, "referee")

    def generator(self) -> FunctionChatModel:
        """A task of the seed's family, with rare letters where rare tasks are asked for; now and then a bad one."""

        def write(request):
            prompt = request.messages[-1]["content"]
            seed = re.search(r"<example>\n(.*)\n</example>", prompt, re.DOTALL)[1]
            draw = random.Random(f"{prompt} {request.sample_index} {request.sampling.seed}")
            family = family_of(seed)
            if draw.random() < self.bad:
                if draw.random() < 0.5:
                    return seed  # a copy, which the loop drops
                family = None
            if family is None:
                return " ".join(draw.choices(LETTERS, k=LENGTH))  # names no book: the loop cannot know
            return task(family, draw, rare="seldom" in prompt)

        return FunctionChatModel(write, "generator")

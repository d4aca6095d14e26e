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
The world of the laboratory: animals and what is said of them, people who ask, and writers who answer more or less
well.

A base model has read texts such as `the home of the bako : the bako lives in the barn . its food is rye .` Titles name
what comes first, and the text goes on. It has seen neither questions nor answers. A prompt is `tell me the home and
the food of the bako`, and `the bako lives in the barn . it eats rye .` is the best answer: what was asked, right, and
no more.
"""

import json
import random
import re
from dataclasses import dataclass

from trl_distill.chat import ChatRequest, FunctionChatModel

from .rules import Shown, rule_judge


USER, ASSISTANT = "<|user|>", "<|assistant|>"
VERBS = {"home": "lives in the", "food": "eats", "colour": "is", "weather": "likes", "fear": "fears the"}
VALUES = {
    "home": "barn cave forest hut lake meadow reed tower valley wood".split(),
    "food": "bread corn figs grass honey moss nuts oats roots rye".split(),
    "colour": "black blue brown gold green grey pink red white yellow".split(),
    "weather": "breeze dew fog frost hail rain snow storm sun wind".split(),
    "fear": "adder bell dark drum fire flood hawk ice thorn wolf".split(),
}
REQUESTS = ["tell me {} of the {}", "what is {} of the {} ?", "please write down {} of the {}"]
SLOT_BONUS = (1.5, 0.5, 0.0, 0.0)  # what the judge adds to an answer by its place
FAULT = 0.8  # what is left of the quality after each fault


@dataclass(frozen=True)
class Writer:
    """How often a writer does what, as probabilities."""

    wrong: float  # a sentence states something else than the truth
    omitted: float  # something asked is left out
    extra: float  # a sentence that nobody asked for, and then one more, three at most
    garbled: float = 0.0  # a sentence loses one of its words


# Tells the truth, and more than it was asked for
TEACHER = Writer(wrong=0.04, omitted=0.02, extra=0.6)
# Each is worse than the teacher, and the best answer of the four about as good as the teacher's
POOL = {
    "fair": Writer(wrong=0.2, omitted=0.15, extra=0.7),
    "chatty": Writer(wrong=0.15, omitted=0.05, extra=0.9),
    "terse": Writer(wrong=0.25, omitted=0.65, extra=0.3),
    "confused": Writer(wrong=0.45, omitted=0.2, extra=0.6, garbled=0.15),
}


class Animals:
    """
    Facts about animals: five aspects, ten values each, drawn once.

    Args:
        animals (`int`, *optional*, defaults to `120`):
            How many there are. Every sixth is in no prompt but those of the test.
    """

    max_completion_length = 40

    def __init__(self, animals: int = 120):
        syllables = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
        generator = random.Random(0)
        self.animals = generator.sample([a + b for a in syllables for b in syllables if a != b], animals)
        self.facts = {
            animal: {aspect: generator.choice(values) for aspect, values in VALUES.items()} for animal in self.animals
        }
        known = {word for values in VALUES.values() for word in values}
        known |= {word for text in [*VERBS.values(), *REQUESTS] for word in text.split()} - {"{}"}
        known |= {*VERBS, *self.animals, "the", "it", "its", "of", "is", "and", ".", ":", USER, ASSISTANT}
        self.vocabulary = sorted(known)

    # What the base model reads

    def text(self, generator: random.Random) -> str:
        """A few paragraphs, each on an animal."""
        return " ".join(self._paragraph(generator) for _ in range(generator.randrange(1, 4)))

    def _paragraph(self, generator: random.Random) -> str:
        animal = generator.choice(self.animals)
        aspects = generator.sample(list(VERBS), generator.randrange(2, 6))
        text = " ".join(
            self._sentence(animal, aspect, named=not i or generator.random() < 0.2, verb=generator.random() < 0.5)
            for i, aspect in enumerate(aspects)
        )
        if generator.random() < 0.5:
            return text
        titled = aspects[: generator.randrange(1, 4)]
        return f"{self._list(titled)} of the {animal} : {text}"

    @staticmethod
    def _list(aspects: list[str]) -> str:
        return " and ".join(f"the {aspect}" for aspect in aspects)

    def _sentence(self, animal: str, aspect: str, named: bool, verb: bool = True, value: str | None = None) -> str:
        value = value or self.facts[animal][aspect]
        if verb:
            return f"{f'the {animal}' if named else 'it'} {VERBS[aspect]} {value} ."
        return f"the {aspect} of the {animal} is {value} ." if named else f"its {aspect} is {value} ."

    # What people ask and writers answer

    def prompts(self, count: int, seed: int, test: bool = False) -> list[str]:
        """Prompts, about animals of the test or about the others. Few of them repeat."""
        generator = random.Random(seed)
        animals = [animal for i, animal in enumerate(self.animals) if (i % 6 == 0) == test]
        prompts = []
        for _ in range(count):
            aspects = generator.sample(list(VERBS), generator.randrange(1, 4))
            prompts.append(generator.choice(REQUESTS).format(self._list(aspects), generator.choice(animals)))
        return prompts

    def asked(self, prompt: str) -> tuple[str, list[str]]:
        """The animal and the aspects of a prompt."""
        return re.search(r"of the (\w+)", prompt)[1], [word for word in prompt.split() if word in VERBS]

    def write(self, prompt: str, writer: Writer, generator: random.Random) -> str:
        """An answer of a writer."""
        animal, aspects = self.asked(prompt)
        told = [aspect for aspect in aspects if generator.random() >= writer.omitted] or aspects[:1]
        others = [aspect for aspect in VERBS if aspect not in aspects]
        generator.shuffle(others)
        while len(told) < len(aspects) + 3 and others and generator.random() < writer.extra:
            told.append(others.pop())
        sentences = []
        for i, aspect in enumerate(told):
            wrong = generator.random() < writer.wrong
            value = generator.choice(VALUES[aspect]) if wrong else None
            words = self._sentence(animal, aspect, named=not i, value=value).split()
            if generator.random() < writer.garbled:
                del words[generator.randrange(len(words) - 1)]
            sentences.append(" ".join(words))
        return " ".join(sentences)

    # What an answer is worth

    def quality(self, prompt: str, answer: str) -> float:
        """
        Share of the asked aspects that are answered rightly, less a fifth for each fault: a sentence that is wrong,
        that was not asked for, that repeats an aspect, or that is none.
        """
        animal, aspects = self.asked(prompt)
        right, seen, faults, of = set(), set(), 0, animal  # what `it` stands for
        for sentence in filter(None, (part.strip() for part in answer.split(" ."))):
            found = self._read(sentence, of)
            if found is None:
                faults += 1
                continue
            of, aspect, value = found
            good = of == animal and aspect in aspects and aspect not in seen and value == self.facts[animal][aspect]
            seen.add(aspect)
            right |= {aspect} if good else set()
            faults += not good
        return len(right) / len(aspects) * FAULT**faults

    def _read(self, sentence: str, it: str) -> tuple[str, str, str] | None:
        """Animal, aspect and value of a sentence, `None` if it is none."""
        for aspect, verb in VERBS.items():
            for pattern in (
                rf"(?:the (?P<name>\w+)|it) {verb}",
                rf"(?:the {aspect} of the (?P<name>\w+)|its {aspect}) is",
            ):
                found = re.fullmatch(rf"{pattern} (?P<value>\w+)", sentence)
                if found and found["value"] in VALUES[aspect] and (found["name"] or it) in self.facts:
                    return found["name"] or it, aspect, found["value"]
        return None


def writer_model(world: Animals, name: str, writer: Writer) -> FunctionChatModel:
    """A writer as a chat model. Equal requests get equal answers."""

    def answer(request: ChatRequest) -> str:
        key = json.dumps([name, request.messages, request.sample_index, request.sampling.seed])
        return world.write(request.messages[-1]["content"], writer, random.Random(key))

    return FunctionChatModel(answer, name)


def judge_model(world: Animals) -> FunctionChatModel:
    """
    A judge that sees the quality of an answer through noise, and favours what it reads first.

    The noise belongs to the answer, so that it is the same in every order.
    """

    def score(shown: Shown, label: str, slot: int) -> float:
        answer = shown.answers[label]
        noise = random.Random(json.dumps([shown.prompt, answer])).gauss(0, 1)
        return 1 + 8 * world.quality(shown.prompt, answer) + noise + SLOT_BONUS[slot]

    return rule_judge("judge", score)

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
A world in which all of Lion can be computed: families of tasks, a teacher that is always right, a student that is
right on a family when it has seen enough rows of it, a referee that sees who is right, a generator that stays in the
family.
"""

import hashlib
import json
import random
import re
import threading
from collections import Counter
from pathlib import Path

from trl_distill.chat import Completion, FailedCall, FunctionChatModel
from trl_distill.chat.models import derived_seed
from trl_distill.lion import LionLoop, stages


WORDS = [f"word{i}" for i in range(400)]
ENOUGH = 6  # rows of a family after which the student is right on it


class Rule(FunctionChatModel):
    """A rule that may also say how its answer ended, or that it failed."""

    def answer(self, batch):
        results = [self.function(request) for request in batch]
        return [result if isinstance(result, (Completion, FailedCall)) else Completion(result) for result in results]


def task(family: int, number: int | str) -> str:
    """A task of a family, in words that no other task has."""
    draw = random.Random(hashlib.sha256(f"{family} {number}".encode()).hexdigest())
    return f"family{family} " + " ".join(draw.choices(WORDS, k=12))


def family_of(text: str) -> int:
    return int(re.search(r"family(\d+)", text)[1])


def seed_of(prompt: str) -> str:
    """The example in the prompt of a generator."""
    return re.search(r"<example>\n(.*)\n</example>", prompt, re.DOTALL)[1]


def rows(sizes: dict[int, int]) -> list[dict]:
    """Instructions: so many of each family."""
    return [{"instruction": task(family, i)} for family, size in sizes.items() for i in range(size)]


def teacher() -> FunctionChatModel:
    return FunctionChatModel(lambda request: f"right {request.messages[-1]['content']}", "teacher")


def referee(bias: float = 0.0, good: float = 8, bad: float = 5, name: str = "referee") -> FunctionChatModel:
    """`good` for an answer that begins with `right`, `bad` for others, `bias` more for the first place."""

    def judge(request):
        prompt = request.messages[-1]["content"]
        answers = re.findall(r"<answer (\w) (\w+)>\n(.*?)\n</answer \1 \2>", prompt, re.DOTALL)
        scores = {
            label: (good if text.startswith("right") else bad) + (bias if place == 0 else 0)
            for place, (label, _, text) in enumerate(answers)
        }
        return json.dumps({"evidence": "seen", "scores": scores})

    return FunctionChatModel(judge, name)


def generator() -> FunctionChatModel:
    """A new task of the seed's family, another one for each draw."""

    def write(request):
        seed = seed_of(request.messages[-1]["content"])
        return task(family_of(seed), f"{seed} {derived_seed(request.sampling.seed, request.sample_index)}")

    return FunctionChatModel(write, "generator")


def train(model: str, answers: Path, output: Path) -> None:
    """Add the rows of each family to what the student has seen."""
    seen = json.loads((Path(model) / "seen.json").read_text()) if Path(model).is_dir() else {}
    for line in answers.read_text().splitlines():
        family = str(family_of(json.loads(line)["prompt"][0]["content"]))
        seen[family] = seen.get(family, 0) + 1
    output.mkdir()
    (output / "seen.json").write_text(json.dumps(seen))


def student(folder: Path) -> FunctionChatModel:
    """Right where it has seen enough."""
    seen = json.loads((folder / "seen.json").read_text())

    def answer(request):
        text = request.messages[-1]["content"]
        return f"{'right' if seen.get(str(family_of(text)), 0) >= ENOUGH else 'wrong'} {text}"

    return FunctionChatModel(answer, "student", revision=hashlib.sha256(json.dumps(seen).encode()).hexdigest())


class Measured(FunctionChatModel):
    """A student whose loss on an answer is told by a function."""

    def __init__(self, student: FunctionChatModel, loss):
        super().__init__(student.function, student.name, student.revision)
        self.loss = loss

    def answer_losses(self, requests, answers):
        asked = (request.messages[-1]["content"] for request in requests)
        return [self.loss(text, answer) for text, answer in zip(asked, answers, strict=True)]


def models(**others) -> dict:
    """Arguments of a loop in this world."""
    return {
        "teacher": teacher(),
        "referee": referee(),
        "generator": generator(),
        "train": train,
        "student": student,
    } | others


def stubborn(folder: Path) -> FunctionChatModel:
    """A student that never learns, and never says the same as in another round: nothing of it is used again."""
    seen = hashlib.sha256((folder / "seen.json").read_bytes()).hexdigest()
    return FunctionChatModel(
        lambda request: f"wrong {seen} {request.messages[-1]['content']}", "student", revision=seen
    )


def loss(text: str, answer: str) -> float:
    """Larger for families with a larger number, and other in each task."""
    assert answer == f"right {text}"
    return family_of(text) + random.Random(text).random() / 2


def measured(folder: Path) -> Measured:
    """A student that never learns, and whose losses are known."""
    return Measured(stubborn(folder), loss)


class Killed(BaseException):
    """In place of `kill -9`: nobody catches it."""


class Watch:
    """
    Counts what the models of a world are asked, and what they answer. With `kill`, a role and a number, the run ends
    when that role is asked for that time; the role `"train"` when it has written half of the student, `"any"` at
    whoever's turn it is.
    """

    def __init__(self, kill: tuple[str, int] | None = None):
        self.kill, self.asked, self.answered, self._lock = kill, Counter(), Counter(), threading.Lock()

    def _count(self, role: str) -> None:
        with self._lock:
            self.asked[role] += 1
            if self.kill in ((role, self.asked[role]), ("any", self.asked.total())):
                raise Killed

    def model(self, role: str, model: FunctionChatModel) -> FunctionChatModel:
        function = model.function

        def watched(request):
            self._count(role)
            answer = function(request)
            with self._lock:
                content = request.messages[-1]["content"]
                self.answered[role, model.revision, content, request.sampling, request.sample_index] += 1
            return answer

        model.function = watched
        return model

    def models(self, **others) -> dict:
        world = models(**others)
        make, teach = world["student"], world["train"]

        def trained(model, answers, output):
            try:
                self._count("train")
            except Killed:
                output.mkdir()
                (output / "seen.json").write_text("{")
                raise
            teach(model, answers, output)

        world |= {role: self.model(role, world[role]) for role in ("teacher", "referee", "generator")}
        return world | {"student": lambda folder: self.model("student", make(folder)), "train": trained}


def files(folder):
    """All that a run writes but for the calls, the picture, the page and when it began, as bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(("calls.sqlite", "report.png", "report.html", "run.json"))
    }


def results(folder):
    """All that a run made, as bytes, and the report without how often was asked."""
    found = files(folder)
    report = json.loads(found.pop("report.json"))
    del report["ledger"]
    for row in report["rounds"]:
        del row["calls_so_far"], row["cost_usd_so_far"]
    return found | {"report": report}


def ids(rows):
    return {row["id"] for row in rows}


def done(loop: LionLoop, *places: tuple[str, int]) -> dict:
    """Do single stages, and hand back what the manifest says of the last one."""
    with loop.folder.open_store() as store:
        for stage, round in places:
            getattr(stages, stage)(loop.folder, loop.roles, store, round)
    return loop.folder.manifest(round).stages[stage]

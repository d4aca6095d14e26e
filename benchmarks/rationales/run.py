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
Runs the laboratory of rationales: every arm on the same base model, from the same rationales of the same teacher.

Results are saved as they come. Started again, it does what is missing.

    python -m benchmarks.rationales.run --seeds 0 1 2
"""

from functools import partial
from typing import NamedTuple

from benchmarks.laboratory import THREADS, in_processes, make_parser, pack, resume, save

from .arms import ARMS, AUGMENTED, LEARNING_RATE, STUDENTS, augment, student_of, train
from .laboratory import Laboratory
from .voting import vote


class Task(NamedTuple):
    """A part of the work: `prepare`, `augment` and `vote` once for each seed, `train` for each arm."""

    kind: str
    seed: int
    arm: str = ""
    learning_rate: float = 0.0

    def needs(self) -> set["Task"]:
        """What must be there first."""
        if self.kind == "prepare":
            return set()
        if self.kind == "train":
            return {Task("augment" if self.arm in AUGMENTED else "prepare", self.seed)}
        arms = ("nat",) if self.kind == "augment" else STUDENTS
        return {Task("train", self.seed, arm, LEARNING_RATE) for arm in arms}


def prepare(laboratory: Laboratory, seed: int) -> dict:
    """Trains the base model, lets the teacher write, and describes both."""
    laboratory.teacher(), laboratory.base()
    rationales, questions = laboratory.rationales(seed), laboratory.test(seed)
    solved = {row["prompt"] for row in rationales if row["label"]}
    wrong = {row["prompt"] for row in rationales if not row["label"]}
    drawn = laboratory.draw(laboratory.teacher(), questions, samples=1, seed=seed)
    pairs = zip(questions, drawn, strict=True)
    sampled = [laboratory.pupil.correct(question, samples.completions[0]) for question, samples in pairs]
    return {
        "teacher, one sample": sum(sampled) / len(sampled),
        "teacher": pack(laboratory.accuracy(laboratory.teacher(), questions)),
        "base": pack(laboratory.accuracy(laboratory.base(), questions)),
        "easy": pack([laboratory.pupil.is_easy(question) for question in questions]),
        "right": sum(rationales["label"]),
        "wrong": len(rationales) - sum(rationales["label"]),
        "questions": {
            "asked": laboratory.questions,
            "with both": len(solved & wrong),
            "right only": len(solved - wrong),
            "wrong only": len(wrong - solved),
        },
        "parameters": {
            "teacher": laboratory.teacher().num_parameters(),
            "base": laboratory.base().num_parameters(),
        },
    }


def votes(laboratory: Laboratory, seed: int) -> list[dict]:
    questions = laboratory.test(seed)[: laboratory.vote_questions]
    drawn = laboratory.draw(laboratory.teacher(), questions, samples=1, seed=seed)
    students = {student: student_of(laboratory, student, seed) for student in STUDENTS}
    return vote(laboratory, seed, students, laboratory.rationales(seed), laboratory.label(questions, drawn))


def perform(laboratory: Laboratory, task: Task) -> dict | list[dict]:
    if task.kind == "prepare":
        return prepare(laboratory, task.seed)
    if task.kind == "augment":
        return augment(laboratory, task.seed)
    if task.kind == "vote":
        return votes(laboratory, task.seed)
    model, facts = train(laboratory, task.arm, task.seed, task.learning_rate)
    right = laboratory.accuracy(model, laboratory.test(task.seed))
    return {"arm": task.arm, "seed": task.seed, **facts, "accuracy": sum(right) / len(right), "right": pack(right)}


def record(results: dict, task: Task, result: dict | list[dict]):
    """Puts the result of a task where `finished` and the table look for it."""
    if task.kind == "train":
        results["runs"].append(result)
        results["runs"].sort(key=lambda run: (run["seed"], ARMS.index(run["arm"]), run["learning_rate"]))
    else:
        results[task.kind][str(task.seed)] = result


def finished(results: dict) -> set[Task]:
    done = {Task(kind, int(seed)) for kind in ("prepare", "augment", "vote") for seed in results[kind]}
    return done | {Task("train", run["seed"], run["arm"], run["learning_rate"]) for run in results["runs"]}


def tasks_of(seeds: list[int], arms: list[str], learning_rates: list[float], votes: bool) -> list[Task]:
    """All tasks: the arms on the teacher's rationales for all seeds, then what builds on NAT."""
    tasks = [Task("prepare", seed) for seed in seeds]
    for chosen in ([arm for arm in arms if arm not in AUGMENTED], [arm for arm in arms if arm in AUGMENTED]):
        for seed in seeds:
            for arm in chosen:
                tasks += [Task("train", seed, arm, rate) for rate in learning_rates]
            if chosen and chosen[0] in AUGMENTED:
                tasks.append(Task("augment", seed))
    if votes:
        tasks += [Task("vote", seed) for seed in seeds]
    return tasks


def main():
    parser = make_parser(__doc__, "rationales", ARMS, seeds=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--no-votes", action="store_true")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[LEARNING_RATE])
    args = parser.parse_args()

    laboratory = Laboratory(args.cache)
    sizes = {name: value for name, value in vars(laboratory).items() if isinstance(value, int)}
    empty = {"benchmark": "rationales", "provenance": [], "prepare": {}, "augment": {}, "vote": {}, "runs": []}
    results = resume(args.output, empty, sizes=sizes, processes=args.processes, threads=THREADS)
    todo = tasks_of(args.seeds, args.arms, args.learning_rates, not args.no_votes)
    todo = [task for task in todo if task not in finished(results)]
    laboratory.teacher()  # before two processes train it
    print(f"{len(todo)} tasks to do, {len(finished(results))} done.", flush=True)

    work = in_processes(
        todo, partial(perform, laboratory), args.processes, may_start=lambda task: task.needs() <= finished(results)
    )
    for task, result, left in work:
        if task.kind == "train":
            result |= {"provenance": len(results["provenance"]) - 1}
        record(results, task, result)
        save(results, args.output)
        score = f": {100 * result['accuracy']:.1f} %, {result['cpu_seconds']:.0f} s" if task.arm else ""
        print(f"{task.kind} {task.arm} {task.seed}{score}. {left:.0f} min left.", flush=True)


if __name__ == "__main__":
    main()

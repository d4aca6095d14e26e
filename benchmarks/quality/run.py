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
Runs the laboratory: every arm in every world, from the same student, on the same prompts.

Results are saved as they come. Started again, it does what is missing.

    python -m benchmarks.quality.run --seeds 0 1 2 --output benchmarks/results/quality.json
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.laboratory import (
    THREADS,
    in_processes,
    make_parser,
    resume,
    save,
    student_of,
    teacher_of,
    word_tokenizer,
)

from .arms import ARMS, FAMILY, train
from .measure import measure, teacher_facts
from .worlds import WORLDS


class Task(NamedTuple):
    """One arm in one world with one seed. The arm `start` is the student that the others start from."""

    world: str
    arm: str
    seed: int
    learning_rate: float | None


def learning_rate_of(world: str, arm: str) -> float | None:
    return None if arm == "start" else WORLDS[world].learning_rates[FAMILY[arm]]


def prepare(name: str, seeds: list[int], cache: Path) -> dict:
    """Trains the teacher and the students of a world, and describes them."""
    world = WORLDS[name]
    tokenizer, teacher = word_tokenizer(world.vocabulary), teacher_of(world, cache)
    for seed in seeds:
        student = student_of(world, seed, cache)
    return {
        "teacher": teacher_facts(world, teacher, tokenizer) | measure(world, teacher, teacher, tokenizer),
        "teacher_parameters": teacher.num_parameters(),
        "student_parameters": student.num_parameters(),
        "rollouts": world.rollouts,
        "max_completion_length": world.max_completion_length,
    }


def run(task: Task, cache: Path) -> dict:
    world = WORLDS[task.world]
    tokenizer, teacher = word_tokenizer(world.vocabulary), teacher_of(world, cache)
    student = student_of(world, task.seed, cache)
    result = {"world": task.world, "arm": task.arm, "seed": task.seed}
    if task.arm != "start":
        with tempfile.TemporaryDirectory() as folder:
            rate = task.learning_rate
            result |= train(task.arm, world, student, teacher, tokenizer, task.seed, Path(folder), rate)
    return result | measure(world, student, teacher, tokenizer)


def main():
    arms = ["start", *ARMS]
    parser = make_parser(__doc__, "quality", arms, seeds=3, cache="build/laboratory")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--learning-rates", nargs="+", type=float, default=[], help="for all arms, in place of the worlds' own"
    )
    args = parser.parse_args()

    facts = {"seeds": args.seeds, "processes": args.processes, "threads": THREADS}
    results = resume(args.output, {"worlds": {}, "runs": []}, **facts)
    done = {Task(run["world"], run["arm"], run["seed"], run.get("learning_rate")) for run in results["runs"]}
    tasks = [
        Task(world, arm, seed, rate)
        for seed in args.seeds
        for world in args.worlds
        for arm in args.arms
        for rate in (args.learning_rates if args.learning_rates and arm != "start" else [learning_rate_of(world, arm)])
    ]
    todo = [task for task in tasks if task not in done]
    print(f"{len(todo)} runs to do, {len(done)} done.", flush=True)

    describe = partial(prepare, seeds=args.seeds, cache=args.cache)
    for world, about, _ in in_processes(args.worlds, describe, args.processes, flush_denormal=False):
        results["worlds"][world] = about
        print(f"{world}: models ready", flush=True)
    work = in_processes(todo, partial(run, cache=args.cache), args.processes, flush_denormal=False)
    for count, (task, result, left) in enumerate(work, start=1):
        results["runs"].append(result | {"provenance": len(results["provenance"]) - 1})
        results["runs"].sort(key=lambda run: (run["world"], run["seed"], arms.index(run["arm"])))
        save(results, args.output, indent=None)
        print(
            f"{count}/{len(todo)} {task.world}, {task.arm}, seed {task.seed}: reverse KL {result['reverse_kl']:.2f}, "
            f"{result.get('seconds', 0):.0f} s. About {left:.0f} min left.",
            flush=True,
        )
    save(results, args.output, indent=None)


if __name__ == "__main__":
    main()

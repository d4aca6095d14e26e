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

"""Timing of arms that take turns, so that a machine which slows down slows all of them down."""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import torch

from benchmarks.laboratory import provenance, save


def use_one_clock(device: str) -> str:
    """
    Settle how seconds are counted, and say so for the result.

    On a CPU it is the processor time of a single thread: wall time of several threads says more about what else the
    machine does than about the code.
    """
    if device == "cpu":
        torch.set_num_threads(1)
        return "processor time, 1 thread"
    return "wall time"


def now(device: str) -> float:
    """Seconds on the clock of [`use_one_clock`], once the device has done what it was given."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak(device: str) -> float:
    """Most memory that this process has ever held, in MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # on Linux `ru_maxrss` would hand down the peak of the process that started this one
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def held(device: str) -> float:
    return (torch.cuda.memory_allocated() if device == "cuda" else psutil.Process().memory_info().rss) / 2**20


def in_turns(arms: Iterable[str], timed: Callable[[str, int], float], repeats: int) -> dict[str, list[float]]:
    """
    Seconds of each arm, `repeats` times, after one round to warm up.

    `timed(arm, repeat)` is called with `repeat` from -1, the warm-up, on. Every other round goes backwards, so that no
    arm always follows the same one.
    """
    arms = list(arms)
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for repeat in range(-1, repeats):
        for arm in arms if repeat % 2 == 0 else reversed(arms):
            value = timed(arm, repeat)
            if repeat >= 0:
                seconds[arm].append(value)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(values: list[float], base: list[float]) -> dict[str, float]:
    """Ratio of the medians, and the smallest and largest ratio within one round."""
    rounds = [value / other for value, other in zip(values, base, strict=True)]
    return {
        "of_medians": statistics.median(values) / statistics.median(base),
        "min": min(rounds),
        "max": max(rounds),
    }


def make_parser(about: str, repeats: int) -> argparse.ArgumentParser:
    """Options of every speed benchmark."""
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--note", default="", help="kept in the result, such as what else the machine was doing")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


def finish(benchmark: str, args: argparse.Namespace, clock: str, hidden: str = "", **parts) -> dict:
    """The result of a benchmark, written where `--output` says. `hidden` options are not kept in the settings."""
    settings = {name: value for name, value in vars(args).items() if name not in ("output", "note", hidden)}
    settings = {name: value.name if isinstance(value, Path) else value for name, value in settings.items()}
    settings |= parts.pop("settings", {})
    result = {"benchmark": f"speed/{benchmark}", "settings": settings, "clock": clock, "note": args.note, **parts}
    result["provenance"] = provenance()
    if args.output:
        save(result, args.output, indent=2)
    return result

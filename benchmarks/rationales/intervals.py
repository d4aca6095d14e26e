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

"""Means over seeds and differences between arms, with 95 % intervals."""

import math
import statistics
from collections.abc import Sequence


Z = 1.959964  # 97.5 % of a normal distribution
T = (
    12.7062,
    4.3027,
    3.1824,
    2.7764,
    2.5706,
    2.4469,
    2.3646,
    2.3060,
    2.2622,
)  # of Student's, 1 to 9 degrees of freedom


def pack(right: Sequence[bool]) -> str:
    """Verdicts as hexadecimal digits, four in each, for the results."""
    bits = "".join("01"[value] for value in right)
    return f"{len(right)}:{int(bits or '0', 2):x}"


def unpack(packed: str) -> list[bool]:
    count, digits = packed.split(":")
    return [bit == "1" for bit in f"{int(digits, 16):0{count}b}"] if int(count) else []


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of Student's interval, which is infinite for one seed."""
    spread = T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return statistics.mean(values), spread


def over_questions(values: Sequence[float]) -> tuple[float, float]:
    """Mean of one value a question, and half of its normal interval: what other questions might have given."""
    return statistics.mean(values), Z * statistics.stdev(values) / math.sqrt(len(values))


def paired(arm: dict[int, list[bool]], baseline: dict[int, list[bool]]) -> dict:
    """
    Difference of two arms on the same questions, over the seeds that both have.

    Args:
        arm, baseline (`dict[int, list[bool]]`):
            For each seed, whether each question was answered rightly.

    Returns:
        `dict`: `difference`; half of its interval `over_seeds` (other runs on these questions) and `over_questions` (other
        questions to these students); and the differences of each seed.
    """
    seeds = sorted(arm.keys() & baseline.keys())
    gains = [[a - b for a, b in zip(arm[seed], baseline[seed], strict=True)] for seed in seeds]
    each = [statistics.mean(gain) for gain in gains]
    difference, spread = over_seeds(each)
    of_question = [statistics.mean(column) for column in zip(*gains, strict=True)]
    return {
        "difference": difference,
        "over_seeds": spread,
        "over_questions": over_questions(of_question)[1],
        "each": each,
    }

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

"""Every figure that a page gives is one that the result files of its laboratory give."""

import functools
import itertools
import json
import re
from pathlib import Path

import pytest

from benchmarks.laboratory import paired, unpack
from benchmarks.lion.table import accuracies, by_arm, by_world
from benchmarks.table import RESULTS, show


# Pages, the result files that they quote, and what they say that is no result of ours, with its source
PAGES = {
    "README.md": ("", {}),
    "docs/asc.md": ("rationales", {}),
    "docs/demo.md": ("demo", {"3.11": "Python", "5.5": "GiB, read from the system"}),
    "docs/evaluation.md": ("demo", {}),
    "docs/lion.md": ("lion", {}),
    "docs/minillm_trainer.md": (
        "quality speed",
        {
            "0.9 ± 0.3": "tests/minillm/test_credit.py",
            "1.000 ± 0.032": "`agreement` in speed_rollout.json, as the next three",
            "0.024": "",
            "0.032": "",
            "0.049": "",
            **dict.fromkeys(("1.875", "0.875", "0.375", "0.125"), "an example by hand"),
            "5.18": "a version",
        },
    ),
    "docs/nat_trainer.md": ("rationales nat label", {"0.05": "a weight of the paper", "0.21": "a version"}),
    "docs/nce_trainer.md": ("rationales", {}),
    "docs/offline_distillation.md": ("quality_recorded", {"0.1": "nats, by hand", "1.5": "GB, by hand"}),
    "docs/which_method.md": ("quality lion zephyr rationales", {}),
    "docs/wrong_answers.md": ("rationales_second", {}),
    "docs/zephyr.md": (
        "zephyr",
        {
            **dict.fromkeys(("0.5514", "0.6779", "4.25", "1.17", "0.018", "4.7", "0.78"), "models of tests/zephyr"),
            **dict.fromkeys(("0.02", "0.005", "0.10", "0.50"), "bounds of the check"),
            **dict.fromkeys(("1.9", "1.16"), "a report of others, a version"),
        },
    ),
    "benchmarks/README.md": (
        "",
        {
            **dict.fromkeys(("1.000 ± 0.032", "0.024", "0.049"), "`agreement` in speed_rollout.json"),
            **dict.fromkeys(("0.0009", "1.048"), "a difference and a quotient of figures beside them"),
        },
    ),
    "benchmarks/lion/README.md": (
        "lion",
        {"95.7": "a base that was given up", "0.75": "a setting", "0.02": "a setting"},
    ),
    "benchmarks/quality/README.md": (
        "quality",
        {
            **dict.fromkeys(("20.7 ± 10.3", "19.0 ± 2.3"), "at 240 seconds, of the curves in quality_real_run.json"),
            **dict.fromkeys(("2.87", "19.7"), "one seed"),
        },
    ),
    "benchmarks/rationales/README.md": (
        "rationales gsm8k",
        {"3.5 ± 1.0": "seeds 0 to 4 alone"},
    ),
    "benchmarks/zephyr/README.md": ("zephyr", {"18.2": "`reload` in zephyr_end_to_end.json"}),
}
PAIR = re.compile(r"[-+]?\d+(?:\.\d+)? ± \d+(?:\.\d+)?")
DECIMAL = re.compile(r"(?<![\d.\w-])\d+\.\d+(?![\d.\w])")


def plain(page: str) -> str:
    """The text of a page without code, links, and numbers of papers."""
    text = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)", "", Path(page).read_text(encoding="utf-8"), flags=re.S)
    return re.sub(r"\b\d{4}\.\d{5}\b", "", text)


def differences(values: dict[str, dict[int, list[float]]], scale: float, digits: int) -> set[str]:
    """Paired differences of any two arms, as a page writes them."""
    found = set()
    for one, other in itertools.permutations(values, 2):
        if len(values[one].keys() & values[other].keys()) > 1:
            result = paired(values[one], values[other])
            mean, half = scale * result["difference"], scale * result["over_seeds"]
            found.add(f"{mean:+.{digits}f} ± {half:.{digits}f}")
    return found


@functools.cache
def known(file: Path) -> tuple[set[str], set[str]]:
    """Means with their intervals, without a sign, and decimals that the tables of a result file give."""
    text, results = show(file), json.loads(file.read_text())
    more = set()
    if "worlds" in results:
        for world in {run["world"] for run in results["runs"]}:
            runs = [run for run in results["runs"] if run["world"] == world]
            values = {}
            for run in runs:
                values.setdefault(run["arm"], {})[run["seed"]] = [run["reverse_kl"]]
            more |= differences(values, 1, 2)
    elif results.get("benchmark") == "lion":
        for of_world in by_world(results).values():
            arms = by_arm(of_world)
            for round in (1, 2):
                values = {arm: accuracies(of_world, arms[arm], round, "all") for arm in arms}
                more |= differences(values, 100, 1)
    elif results.get("benchmark") == "rationales/second":
        for which in {(run["full"], run["share"]) for run in results["runs"]}:
            values = {}
            for run in results["runs"]:
                if (run["full"], run["share"]) == which and run["seed"] != 100:
                    values.setdefault(run["arm"], {})[run["seed"]] = unpack(run["right"])
            more |= differences(values, 100, 1)
            fresh = {arm: {seed: of[seed] for seed in of if seed > 4} for arm, of in values.items()}
            more |= differences({arm: of for arm, of in fresh.items() if of}, 100, 1)
    pairs = {pair.lstrip("+-") for pair in [*PAIR.findall(text), *more]}
    decimals = {*DECIMAL.findall(text), *DECIMAL.findall(" ".join(pairs))}
    rounded = {f"{float(number):.{digits}f}" for number in decimals for digits in range(1, len(number.split(".")[1]))}
    return pairs, decimals | rounded


@pytest.mark.parametrize("page", PAGES)
def test_figures(page):
    names, others = PAGES[page]
    files = [
        file for file in sorted(RESULTS.rglob("*.json")) if not names or file.stem.startswith(tuple(names.split()))
    ]
    assert files
    pairs, decimals = (set().union(*parts) for parts in zip(*map(known, files), strict=True))
    text = plain(page)
    unknown = [pair for pair in PAIR.findall(text) if pair.lstrip("+-") not in pairs and pair not in others]
    rest = PAIR.sub("", text)
    unknown += [number for number in DECIMAL.findall(rest) if number not in decimals and number not in others]
    assert not unknown, f"no result file of {names or 'any laboratory'} gives {unknown}"
    assert all(other in text for other in others), "an exception that the page no longer needs"


def test_a_wrong_figure_is_found():
    pairs, decimals = known(RESULTS / "lion.json")
    assert "84.2 ± 4.3" in pairs and "84.3 ± 4.3" not in pairs and "17.1" in decimals

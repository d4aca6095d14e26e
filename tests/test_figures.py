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
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from benchmarks.laboratory import paired, unpack
from benchmarks.lion.table import accuracies, by_arm, by_world
from benchmarks.table import RESULTS, ROOT, show


# Pages, the result files that they quote, and what they say that is no result of ours, with its source
PAGES = {
    "README.md": ("", {}),
    "docs/asc.md": ("rationales", {}),
    "docs/demo.md": ("demo", {"3.11": "Python", "5.5": "GiB, read from the system"}),
    "docs/dialogue_filters.md": ("zephyr_filters", {"5 %": "the paper"}),
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
    "docs/offline_distillation.md": (
        "quality_recorded",
        {
            "0.1": "nats, by hand",
            "1.5": "GB, by hand",
            "92 %": "one less a figure of the table, as the next",
            "10 %": "",
        },
    ),
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
            **dict.fromkeys(("0.0001", "0.0000"), "by seed, in nat_smollm2.json"),
        },
    ),
    "benchmarks/lion/README.md": (
        "lion",
        {
            "95.7": "a base that was given up",
            **dict.fromkeys(("0.75", "0.02"), "a setting"),
            **dict.fromkeys(("4 %", "25 %", "52 %", "81 %"), "`new` of the rounds in lion.json"),
        },
    ),
    "benchmarks/quality/README.md": (
        "quality",
        {
            **dict.fromkeys(("20.7 ± 10.3", "19.0 ± 2.3"), "at 240 seconds, of the curves in quality_real_run.json"),
            **dict.fromkeys(("2.87", "19.7"), "one seed"),
            **dict.fromkeys(("18.9", "17.7", "19.3", "18.0"), "by seed, in quality_real_run.json"),
        },
    ),
    "benchmarks/rationales/README.md": (
        "rationales gsm8k",
        {
            "3.5 ± 1.0": "seeds 0 to 4 alone",
            **dict.fromkeys(("89 %", "39 %", "73 %", "85 %"), "`ranker` in rationales.json"),
        },
    ),
    "benchmarks/zephyr/README.md": (
        "zephyr",
        {
            "18.2": "`reload` in zephyr_end_to_end.json",
            **dict.fromkeys(("53 %", "76 %"), "the writers, in zephyr.json as the next two"),
            **dict.fromkeys(("79 %", "44 %"), "accuracies of rewards, and who ends an answer"),
        },
    ),
}
# Pages whose figures are no measurements of ours, and what they are
OTHER_PAGES = {
    "docs/chat.md": "a version",
    "docs/compare.md": "arithmetic, and enumeration in tests/zephyr; settings of others",
    "docs/design.md": "settings, and arithmetic",
    "docs/memory.md": "the table of tests/benchmarks/test_memory_by_card.py, and arithmetic",
    "docs/migration.md": "versions",
    "docs/several_gpus.md": "sizes of models, and arithmetic",
    "docs/trackers.md": "ln 2",
    "docs/troubleshooting.md": "ln 2, and a version",
    "recipes/lion/README.md": "counts of tests/benchmarks/test_memory_by_card.py",
    "recipes/minillm/README.md": "the same counts, and figures of the paper and of others",
    "recipes/nat_nce_asc/README.md": "the same counts, and figures of the paper",
    "recipes/offline_distillation/README.md": "the same counts",
    "recipes/zephyr/README.md": "the same counts, and figures of the paper and of others",
}
PAIR = re.compile(r"[-+]?\d+(?:\.\d+)? ± \d+(?:\.\d+)?")
DECIMAL = re.compile(r"(?<![\d.\w-])\d+\.\d+(?![\d.\w])")
PERCENT = re.compile(r"(?<![\d.\w-])\d+ %")


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


def figures(text: str) -> list[str]:
    """Means with their intervals, without a sign, decimals, and whole percentages."""
    rest = PAIR.sub("", text)
    return [pair.lstrip("+-") for pair in PAIR.findall(text)] + DECIMAL.findall(rest) + PERCENT.findall(rest)


def as_written(found: Iterable[str]) -> frozenset[str]:
    """Figures and what a page may make of them: the parts of a pair, fewer digits, a share in percent."""
    known = {*found, *(number for figure in found for number in DECIMAL.findall(figure))}
    decimals = [figure for figure in known if DECIMAL.fullmatch(figure)]
    known |= {f"{float(number):.{digits}f}" for number in decimals for digits in range(1, len(number.split(".")[1]))}
    known |= {f"{float(number):.0f} %" for number in decimals}
    return frozenset(known | {f"{100 * float(number):.0f} %" for number in decimals if float(number) <= 1})


@functools.cache
def known(file: Path) -> tuple[list[frozenset[str]], frozenset[str]]:
    """What each row of the tables of a result file gives, and what the file does, differences of arms included."""
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
    rows = [as_written(found) for line in text.splitlines() if (found := figures(line))]
    return rows, as_written([*figures(text), *(pair.lstrip("+-") for pair in more)])


def sources(page: str) -> tuple[list[frozenset[str]], list[frozenset[str]]]:
    """Rows and files of the laboratories that a page quotes."""
    names = PAGES[page][0].split()
    files = [file for file in sorted(RESULTS.rglob("*.json")) if not names or file.stem.startswith(tuple(names))]
    assert files
    rows, whole = zip(*map(known, files), strict=True)
    return [row for of_file in rows for row in of_file], list(whole)


def places(page: str) -> Iterator[tuple[bool, list[str]]]:
    """The figures of each row of a table, and of each sentence: those that one result gives together."""
    others = PAGES[page][1]
    for line in plain(page).splitlines():
        in_table = line.startswith("|")
        for part in [line] if in_table else re.split(r"(?<=[.;:]) ", line):
            found = [figure for figure in figures(part) if figure not in others and figure != "95 %"]
            if found:
                yield in_table, found


def given(in_table: bool, found: list[str], rows: list[frozenset[str]], files: list[frozenset[str]]) -> str | None:
    """Whether one row of the results has these figures, or one file."""
    if in_table and any(row.issuperset(found) for row in rows):
        return "row"
    return "file" if any(file.issuperset(found) for file in files) else None


@pytest.mark.parametrize("page", PAGES)
def test_figures(page):
    rows, files = sources(page)
    unknown = [found for in_table, found in places(page) if given(in_table, found, rows, files) is None]
    assert not unknown, f"no result file of {PAGES[page][0] or 'any laboratory'} gives {unknown}"
    text = plain(page)
    assert all(other in text for other in PAGES[page][1]), "an exception that the page no longer needs"


def test_every_page_with_a_figure_is_here():
    folders = ("docs/*.md", "recipes/*/README.md", "benchmarks/**/README.md", "examples/README.md")
    pages = {str(path.relative_to(ROOT)) for folder in folders for path in ROOT.glob(folder)}
    assert {page for page in pages if figures(plain(page))} <= PAGES.keys() | OTHER_PAGES.keys()
    assert not PAGES.keys() & OTHER_PAGES.keys() and OTHER_PAGES.keys() <= pages


def test_a_wrong_figure_is_found():
    """Of figures whose last digit is changed, most are given by no result any more."""
    draw, missed, changed = random.Random(0), 0, 0
    for page in PAGES:
        rows, files = sources(page)
        for in_table, found in places(page):
            level = given(in_table, found, rows, files)
            for i, figure in enumerate(found):
                number = re.match(r"[\d.]+", figure).group()
                digits = len(number.partition(".")[2])
                other = f"{float(number) + draw.choice([-3, -2, -1, 1, 2, 3]) * 10**-digits:.{digits}f}"
                wrong = [*found[:i], figure.replace(number, other, 1), *found[i + 1 :]]
                missed += given(in_table, wrong, rows, files) == level
                changed += 1
    assert changed > 1500
    assert missed < 0.2 * changed

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
Draws one picture a method from the tables of its laboratory, so that pictures show what the pages say. That of MiniLLM
has curves, and a script of its own (`quality/plot.py`).

    python -m benchmarks.plot [NAME ...]    # docs/images/NAME.png
"""

import argparse
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from .table import RESULTS, show  # noqa: E402


IMAGES = Path("docs/images")
CONTROL, USE, OURS = "0.45", "tab:orange", "tab:blue"  # colours
RATIONALES = {
    "mix": ("all rows as right ones", USE),
    "nat": ("NAT", USE),
    "nat, zero adapter": ("its gates, without the negative adapter", CONTROL),
    "lora of nat's size": ("a LoRA of NAT's size, right rows", CONTROL),
    "cot kd, longer": ("right rows alone", CONTROL),
    "ul": ("unlikelihood of wrong rows", USE),
    "redi": ("REDI", USE),
    "right steps": ("steps before the first mistake as right ones", CONTROL),
    "first wrong token, ul": ("the same, unlikelihood on the first wrong token", USE),
    "pairs": ("preference pairs of own samples", USE),
    "nce weighted_ce": ("NCE", USE),
    "rft": ("own right samples, in rounds", OURS),
    "rft, from the base": ("own right samples, once, trained anew", OURS),
}
LION = {
    "random": ("random, new rows alone", CONTROL),
    "random, replay share": ("random, with as many old rows", CONTROL),
    "random, replay all": ("random, with all old rows", CONTROL),
    "adversarial": ("hard ones, new rows alone (the paper)", USE),
    "adversarial, replay share": ("hard ones, with as many old rows (default)", OURS),
    "adversarial, replay all": ("hard ones, with all old rows", USE),
}
ZEPHYR = {
    "base": ("base", CONTROL),
    "ddpo without dsft": ("DPO without fine-tuning", USE),
    "dsft": ("fine-tuning", CONTROL),
    "dsft, twice the epochs": ("fine-tuning for twice as long", CONTROL),
    "dsft-2": ("fine-tuning, then the chosen answers", CONTROL),
    "ddpo": ("fine-tuning, then DPO", OURS),
}
VOTES = {
    "one sample %": ("one sample, the mean of 16", CONTROL),
    "greedy %": ("one greedy answer", CONTROL),
    "SC %": ("plain vote of 16 (SC)", USE),
    "WS %": ("weighed by the student's probabilities (WS)", USE),
    "ASC %": ("weighed by the ranker (ASC)", OURS),
}


def rows_of(table: str) -> list[dict[str, str]]:
    """The first Markdown table of a text, row by row."""
    lines = table[table.index("|") :].split("\n\n")[0].splitlines()
    heads, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(heads, row, strict=True)) for row in rows]


def dots(axis, rows: list[dict[str, str]], column: str, arms: dict[str, tuple[str, str]], title: str, names=True):
    """A dot for each arm with the interval that its table gives, from the top down."""
    cells = {row["arm"]: row[column].split(" ± ") for row in rows}
    shown = [(arm, *arms[arm]) for arm in arms if arm in cells]
    for place, (arm, _, color) in enumerate(reversed(shown)):
        mean, half = map(float, cells[arm])
        axis.errorbar(mean, place, xerr=half, fmt="o", color=color, capsize=3, linewidth=3 if color == OURS else 1.5)
        axis.annotate(f"{mean:.1f}", (mean, place), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axis.set_yticks(range(len(shown)), [label if names else "" for _, label, _ in reversed(shown)])
    for tick, (*_, color) in zip(axis.get_yticklabels(), reversed(shown), strict=True):
        tick.set(color=color, weight="bold" if color == OURS else "normal")
    axis.set(title=title, ylim=(-0.6, len(shown) - 0.2))
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params("y", length=0)
    axis.grid(axis="x", alpha=0.3)


def rationales():
    text = show(RESULTS / "rationales_second.json")
    figure, axes = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    for axis, share in zip(axes, (10, 100), strict=True):
        rows = rows_of(text.split(f"\n{share} % of the right rows, LoRA:")[1])
        dots(axis, rows, "accuracy %", RATIONALES, f"{share} % of the right rows: accuracy, %", names=share == 10)
    return figure


def lion():
    rows = rows_of(show(RESULTS / "lion.json"))
    figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
    rows = [row for row in rows if row["round"] == "2"]
    dots(axis, rows, "all %", LION, "accuracy after two rounds, all families, %")
    return figure


def zephyr():
    figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
    rows = rows_of(show(RESULTS / "zephyr.json"))
    dots(axis, rows, "quality, sampled %", ZEPHYR, "quality of sampled answers, %")
    return figure


def voting():
    worlds = {  # a student of each laboratory, and what its table begins behind
        "CoT KD, first laboratory": ("rationales", "| student", "cot kd"),
        "own right samples, second laboratory": ("rationales_second", "Votes, 100 % of the right rows:", "rft"),
    }
    figure, axes = plt.subplots(1, 2, figsize=(11, 3), layout="constrained")
    for axis, (title, (name, start, student)) in zip(axes, worlds.items(), strict=True):
        text = show(RESULTS / f"{name}.json")
        [row] = [row for row in rows_of(text[text.index(start) :]) if row["student"] == student]
        votes = [{"arm": vote, "accuracy": row[vote]} for vote in VOTES]
        dots(axis, votes, "accuracy", VOTES, f"{title}, %", names=name == "rationales")
    return figure


def offline_distillation():
    rows = rows_of(show(RESULTS / "quality_recorded_top_k.json"))
    figure, axis = plt.subplots(figsize=(8, 3.5), layout="constrained")
    tokens = [int(row["K"]) for row in rows]
    for name, color in {"forward": OURS, "reverse": USE}.items():
        for student, line in {"pruned": "-", "trained": "--"}.items():
            [column] = [head for head in rows[0] if head.startswith(f"{student}, {name}")]
            shares = [100 * float(row[column].split(", ")[0]) for row in rows]
            axis.plot(tokens, shares, line, marker="o", color=color, linewidth=3 if name == "forward" else 1.5)
            text = f"{name} KL, {student}"
            beside = dict(textcoords="offset points", ha="right", va="center", fontsize=8, color=color)
            axis.annotate(text, (tokens[0], shares[0]), (-8, 0), **beside)
    axis.set(title="share of the divergence that a record keeps, %", xlabel="tokens kept at each place", ylim=(0, 105))
    axis.set_xscale("log", base=4)
    axis.set_xticks(tokens, tokens)
    axis.set_xlim(0.12, 1500)
    axis.minorticks_off()
    axis.axvline(64, color=CONTROL, linewidth=0.8)
    axis.annotate(" the default", (64, 3), color=CONTROL, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


PICTURES = {
    "rationales": rationales,
    "voting": voting,
    "lion": lion,
    "zephyr": zephyr,
    "offline_distillation": offline_distillation,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *PICTURES], default=[], metavar="NAME")
    for name in parser.parse_args().names or PICTURES:
        PICTURES[name]().savefig(IMAGES / f"{name}.png", dpi=200)
        print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()

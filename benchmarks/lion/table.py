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
Prints the results of the laboratory of Lion as Markdown.

    python -m benchmarks.lion.table benchmarks/results/lion.json
"""

import statistics
from collections.abc import Callable

from benchmarks.laboratory import average, gain, markdown, mean, print_table, unpack

from .laboratory import ARMS, DEFAULT


KINDS = ("weak", "strong", "all")
WORLDS = {"apart": "Books that share nothing.", "shared": "Books of a kind with a half in common."}


def accuracies(results: dict, runs: list[dict], round: int, kind: str) -> dict[int, list[float]]:
    """By seed, as a list of one, the accuracy after a round (-1: the last) on weak or strong families, or on all."""
    found = {}
    for run in runs:
        world, scores = results["seeds"][str(run["seed"])], run["rounds"]
        # A loop that has converged keeps its student
        right = unpack(scores[min(round, len(scores) - 1)]["right"])
        size = len(right) // len(world["families"])
        of_kind = [
            value
            for i, value in enumerate(right)
            if kind == "all" or (world["families"][i // size] in world["weak"]) == (kind == "weak")
        ]
        found[run["seed"]] = [statistics.mean(of_kind)]
    return found


def by_arm(results: dict) -> dict[str, list[dict]]:
    arms: dict[str, list[dict]] = {}
    for run in sorted(results["runs"], key=lambda run: (list(ARMS).index(run["arm"]), run["seed"])):
        arms.setdefault(run["arm"], []).append(run)
    return arms


def by_world(results: dict) -> dict[str, dict]:
    """The results of each world, as if they were alone."""
    worlds = dict.fromkeys(run["world"] for run in results["runs"])
    return {name: results | {"runs": [run for run in results["runs"] if run["world"] == name]} for name in worlds}


def scores_table(results: dict) -> str:
    """Accuracy by round and kind of family, and paired differences to the control and to the default."""
    arms = by_arm(results)
    last = max(score["round"] for run in results["runs"] for score in run["rounds"])
    heads = ["arm", "round", "steps", *(f"{kind} %" for kind in KINDS), "control", "weak, points", "all, points"]
    rows = []
    for round in range(last + 1):
        for arm in list(arms)[: 1 if round == 0 else None]:  # round 0 is the same for all
            scores = {kind: accuracies(results, arms[arm], round, kind) for kind in KINDS}
            steps = [run["rounds"][round]["steps"] for run in arms[arm] if round < len(run["rounds"])]
            cells = [arm if round else "all", str(round), average(steps) if steps else ""]
            cells += [mean(value for [value] in of_kind.values()) for of_kind in scores.values()]
            compared = [ARMS[arm].control or "", DEFAULT if arm != DEFAULT else ""] if round else ["", ""]
            others = [arms.get(name, []) for name in compared]
            gains = [gain(scores[kind], accuracies(results, others[0], round, kind)) for kind in ("weak", "all")]
            rows.append(
                [*cells, compared[0], *gains, gain(scores["all"], accuracies(results, others[1], round, "all"))]
            )
    return markdown([*heads, "all, points over the default"], rows)


def work_table(results: dict) -> str:
    """What was mined and what it cost."""

    def share(part: Callable[[dict], float], whole: Callable[[dict], float]) -> str:
        values = [100 * part(score) / whole(score) for score in mined if whole(score)]
        return f"{statistics.mean(values):.0f}" if values else ""

    heads = ["arm", "round", "hard, % of the pool", "weak, % of the hard", "weak, % of the new"]
    heads += ["no family, % of the new", "requests to the generator", "of these: similar"]
    rows = []
    for arm, runs in by_arm(results).items():
        for round in range(1, max(len(run["rounds"]) for run in runs)):
            mined = [run["rounds"][round] for run in runs if round < len(run["rounds"])]
            mined = [score for score in mined if "new" in score]
            if not mined:
                continue
            scored = [score for score in mined if "discrimination" in score]
            cells = [arm, str(round), "", ""]
            if scored:
                counts = [score["discrimination"] for score in scored]
                cells[2] = average((c["hard"] / (c["hard"] + c["easy"]) for c in counts), scale=100)
                cells[3] = share(lambda score: score["hard"].get("weak", 0), lambda score: sum(score["hard"].values()))
            cells += [
                share(lambda score, kind=kind: score["new"].get(kind, 0), lambda score: sum(score["new"].values()))
                for kind in ("weak", "none")
            ]
            cells += [average(score["generation"].get(name, 0) for score in mined) for name in ("requests", "similar")]
            rows.append(cells)
    roles = ("teacher", "referee", "generator", "student")
    calls = [
        [
            arm,
            *(average(run["calls"].get(role, 0) for run in runs) for role in roles),
            average(run["cpu_seconds"] for run in runs),
        ]
        for arm, runs in by_arm(results).items()
    ]
    return f"{markdown(heads, rows)}\n\n{markdown(['arm', *(f'calls, {role}' for role in roles), 'CPU s'], calls)}"


def facts(results: dict) -> str:
    sizes, seeds = results["provenance"][-1]["sizes"], sorted({run["seed"] for run in results["runs"]})
    worlds = [results["seeds"][str(seed)] for seed in seeds]
    weak, strong = len(worlds[0]["weak"]), len(worlds[0]["families"]) - len(worlds[0]["weak"])
    bases = [world["base"] for world in worlds]
    return (
        f"Seeds {', '.join(map(str, seeds))}, a base model for each. Student of {results['parameters']:,} parameters; "
        f"the bases are right on {100 * min(base['right'] for base in bases):.1f} % or more of new drills, after "
        f"{max(base['courses'] for base in bases)} courses at most. Pool: {strong} strong families of "
        f"{sizes['strong_rows']} rows, {weak} weak ones of {sizes['weak_rows']}; {sizes['n_new']} new rows a round."
    )


def table(results: dict) -> str:
    sections = []
    for name, of_world in by_world(results).items():
        sections += [f"**{WORLDS[name]}** {facts(of_world)}", scores_table(of_world), work_table(of_world)]
    return "\n\n".join(sections)


def learning_rates(results: dict) -> str:
    """The search on pilot seeds: accuracy over all families by the learning rate of later rounds."""
    rows = []
    for arm, runs in by_arm(results).items():
        for rate in sorted({run["learning_rate"] for run in runs}):
            of_rate = [run for run in runs if run["learning_rate"] == rate]
            by_round = [accuracies(results, of_rate, round, "all").values() for round in (1, -1)]
            own = " (taken)" if rate == ARMS[arm].learning_rate else ""
            rows.append([arm, f"{rate:g}{own}", *(average((v for [v] in scores), 1, 100) for scores in by_round)])
    seeds = sorted({run["seed"] for run in results["runs"]})
    heads = ["arm", "learning rate", "all %, round 1", "all %, at the end"]
    return f"Seeds {', '.join(map(str, seeds))}, which are in no other table.\n\n{markdown(heads, rows)}"


def real_run(result: dict) -> str:
    parameters = result["models"]["parameters"]
    about = (
        f"Teacher, referee and generator: {result['models']['teacher, referee, generator']}, "
        f"{parameters['teacher']:,} parameters, behind a server. Student: {result['models']['student']}, "
        f"{parameters['student']:,}. {result['seconds']['the command'] / 60:.1f} minutes."
        + (f" Stopped: {result['error']}" if result["error"] else "")
    )
    rows = []
    for row in result["report"]["rounds"]:
        for name in ("discrimination", "heldout"):
            if name not in row:
                continue
            stage = row[name]
            referee, position = stage["referee"], stage["referee"]["position"]
            bias = "" if position["first_minus_last"] is None else f"{position['first_minus_last']:.2f}"
            if position["standard_error"] is not None:
                bias += f" ± {position['standard_error']:.2f}"
            verdicts = [stage.get(key) for key in ("win_rate", "tie_rate", "loss_rate")]
            counts = stage["counts"]
            rows.append(
                [
                    row["round"],
                    name,
                    referee["items"],
                    referee["scored"] // 2,
                    f"{referee['calls']} ({referee['reasks']})",
                    bias,
                    "" if referee["ties"]["pairs"] is None else f"{referee['ties']['pairs']:.0%}",
                    f"{counts['hard']} / {counts['easy']}" if "hard" in counts else "",
                    "" if None in verdicts else " / ".join(f"{verdict:.0%}" for verdict in verdicts),
                    f"{stage['mean_gap']:.2f}" if "mean_gap" in stage else "",
                    f"{stage['rouge_l_to_teacher']:.1f}" if "rouge_l_to_teacher" in stage else "",
                ]
            )
    heads = ["round", "stage", "compared", "scored", "calls of the referee (asked again)", "first minus last slot"]
    heads += ["ties", "hard / easy", "student ahead / tie / behind", "gap", "Rouge-L to the teacher"]
    ledger = [
        [line[key] for key in ("round", "stage", "role", "calls", "prompt_tokens", "completion_tokens", "failures")]
        for line in result["report"]["ledger"]
    ]
    seconds = [[name, value] for name, value in result["seconds"].items()]
    calls = ["round", "stage", "role", "calls", "prompt tokens", "completion tokens", "failed"]
    tables = [markdown(heads, rows), markdown(calls, ledger), markdown(["stage", "seconds"], seconds)]
    return "\n\n".join([about, *tables])


if __name__ == "__main__":
    print_table(__doc__, table, "lion")

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
Prints the results of the laboratory of rationales as Markdown.

    python -m benchmarks.rationales.table benchmarks/results/rationales.json
"""

import statistics

from scipy import stats

from benchmarks.laboratory import average, gain, markdown, mean, paired, print_table, unpack

from .arms import ARMS
from .second import PILOT
from .uses import CONTROLS


# What an arm is compared with beside CoT KD, so that one thing differs
CONTROL = {
    # as many optimizer steps
    "mix": "cot kd, twice the epochs",
    "nt": "cot kd, twice the epochs",
    "ul": "cot kd, twice the epochs",
    "nat, twice the epochs": "cot kd, twice the epochs",
    # the negative adapter
    "nat": "nat without negative adapter",
    # the gates
    "nat without negative adapter": "lora of nat's size",
    # the distillation from NAT
    "kd": "sft on augmented data",
    # the calibration
    "nce kd": "nce kd, mean weight",
    "nce weighted_ce": "sft on augmented data",
}


# Of the second laboratory, the control of all arms
LONGER = "cot kd, longer"


def arms_table(results: dict) -> str:
    """All arms, each against CoT KD and against its control."""
    rates: dict[tuple[str, float], list[dict]] = {}
    for run in sorted(results["runs"], key=lambda run: (ARMS.index(run["arm"]), run["learning_rate"], run["seed"])):
        rates.setdefault((run["arm"], run["learning_rate"]), []).append(run)
    tuned = len(rates) > len({arm for arm, _ in rates})  # the file in which learning rates are chosen
    right = {arm: {run["seed"]: unpack(run["right"]) for run in runs} for (arm, _), runs in rates.items()}
    prepared = {int(seed): facts for seed, facts in results["prepare"].items()}
    easy = {seed: unpack(facts["easy"]) for seed, facts in prepared.items()}

    def shares(verdicts: dict[int, list[bool]], kind: bool | None) -> list[float]:
        return [
            statistics.mean(
                value for value, is_easy in zip(values, easy[seed], strict=True) if kind in (None, is_easy)
            )
            for seed, values in verdicts.items()
        ]

    rows = []
    for name in ("teacher", "base"):
        verdicts = {seed: unpack(facts[name]) for seed, facts in prepared.items()}
        rows.append([f"{name}, greedy", *(mean(shares(verdicts, kind)) for kind in (None, True, False)), *[""] * 5])
    for (arm, rate), runs in rates.items():
        verdicts = {run["seed"]: unpack(run["right"]) for run in runs}
        control = CONTROL.get(arm)
        steps = average(run["optimizer_steps"] for run in runs)
        if negative := statistics.mean(run["optimizer_steps_of_the_negative_stage"] for run in runs):
            steps = f"{negative:.0f} + {steps}"
        rows.append(
            [
                f"{arm}, {rate:g}" if tuned else arm,
                *(mean(shares(verdicts, kind)) for kind in (None, True, False)),
                gain(verdicts, right["cot kd"]) if arm != "cot kd" and "cot kd" in right and not tuned else "",
                f"{control}: {gain(verdicts, right[control])}" if control in right and not tuned else "",
                f"{runs[0]['trainable_parameters']:,}",
                steps,
                average(run["cpu_seconds"] for run in runs),
            ]
        )
    heads = ["arm", "accuracy %", "easy %", "hard %", "minus CoT KD, points", "minus a control, points", "trained"]
    return markdown([*heads, "steps", "CPU s"], rows)


def votes_table(votes: dict[str, list[dict]], runs: list[dict]) -> str:
    """The votes of each student, and the ranker, of each seed; and the runs that give their greedy answers."""
    heads = ["student", "greedy %", "one sample %", "SC %", "WS %", "ASC %", "ASC minus SC", "ASC minus WS"]
    heads += ["ranker right on teacher %", "on student %", "bug in the teacher's mistakes %", "in the student's %"]
    rows = []
    for student in (vote["student"] for vote in next(iter(votes.values()))):
        of_seed = {int(seed): next(vote for vote in of if vote["student"] == student) for seed, of in votes.items()}
        right = {
            name: {seed: unpack(vote["votes"][name]) for seed, vote in of_seed.items()} for name in ("sc", "ws", "asc")
        }
        single = [vote["single"] for vote in of_seed.values()]
        shares = {name: [statistics.mean(values) for values in right[name].values()] for name in right}
        greedy = [
            statistics.mean(unpack(run["right"])[: len(right["sc"][run["seed"]])])  # to the questions of the vote
            for run in runs
            if run["arm"] == student and run["seed"] in of_seed
        ]
        cells = [mean(greedy), mean(single), *(mean(shares[name]) for name in ("sc", "ws", "asc"))]
        cells += [gain(right["asc"], right["sc"]), gain(right["asc"], right["ws"])]
        for key in ("accuracy", "wrong, with the bug's answer"):
            judged = [[vote["ranker"][who][key] for vote in of_seed.values()] for who in ("teacher", "student")]
            cells += [mean(values) if None not in values else "" for values in judged]
        rows.append([student, *cells])
    return markdown(heads, rows)


def facts(results: dict) -> str:
    """The data of the seeds."""
    prepared = list(results["prepare"].values())
    parameters = prepared[0]["parameters"]
    sampled = statistics.mean(facts["teacher, one sample"] for facts in prepared)
    right, wrong = (statistics.mean(facts[name] for facts in prepared) for name in ("right", "wrong"))
    text = (
        f"Seeds {', '.join(results['prepare'])}. Teacher of {parameters['teacher']:,} parameters, right "
        f"in {100 * sampled:.1f} % of its samples; base of {parameters['base']:,}. {right:.0f} right and "
        f"{wrong:.0f} wrong rationales a seed."
    )
    if results["augment"]:
        added = list(results["augment"].values())
        of_nat, new = (
            statistics.mean(value)
            for value in ([a["rows"]["nat"] for a in added], [a["questions only nat solved"] for a in added])
        )
        beta = ", ".join(f"{a['beta']['mean']:.2f} ± {a['beta']['std']:.2f}" for a in added)
        text += (
            f" NAT adds {of_nat:.0f} right ones of its own, to {new:.0f} questions that the teacher never got right. "
            f"Mean and standard deviation of beta: {beta}."
        )
    return text


def table(results: dict) -> str:
    parts = [facts(results), arms_table(results)]
    return "\n\n".join(parts + ([votes_table(results["vote"], results["runs"])] if results["vote"] else []))


def controls_of(arm: str) -> list[str]:
    """Controls that need nothing that an arm of the second laboratory has not, as `PLAN.md` says."""
    controls = [LONGER]
    samples = arm in ("pairs", "nsr") or arm.startswith(("nce", "rft"))
    marks = any(words in arm for words in ("mistake", "right steps", "first wrong"))
    if samples:
        controls += ["rft", "rft, from the base"]
    if arm.startswith("nce "):
        controls.append("nce, one weight")
    if marks:
        controls.append("right steps, rolled out" if "rolled out" in arm else "right steps")
    if samples and marks:
        controls.append("rft, right steps")
    if arm.startswith("nat"):
        controls += ["lora of nat's size", "nat, zero adapter"]
    if arm.startswith("nat "):
        controls.append("nat identity")
    return [control for control in controls if control != arm]


def after_holm(differences: dict[str, list[float]]) -> set[str]:
    """Arms whose mean difference is above 0 by the t-test over seeds, 5 % over all of them together."""
    tested = {arm: stats.ttest_1samp(each, 0).pvalue for arm, each in differences.items() if len(each) > 1}
    stand = set()
    for rank, arm in enumerate(sorted(tested, key=tested.get)):
        if tested[arm] > 0.05 / (len(tested) - rank):
            break
        stand.add(arm)
    return {arm for arm in stand if statistics.mean(differences[arm]) > 0}


def regime(results: dict, full: bool, share: float) -> str:
    """All arms of a regime of the second laboratory, each against its strictest control and the best of all."""
    runs = [run for run in results["runs"] if (run["full"], run["share"]) == (full, share) and run["seed"] != PILOT]
    of_arm = {arm: [run for run in runs if run["arm"] == arm] for arm in dict.fromkeys(run["arm"] for run in runs)}
    right = {arm: {run["seed"]: unpack(run["right"]) for run in of} for arm, of in of_arm.items()}
    means = {arm: statistics.mean(map(statistics.mean, verdicts.values())) for arm, verdicts in right.items()}
    easy = unpack(results["prepare"][str(runs[0]["seed"])]["easy"])  # the test is the same for all seeds

    def shares(arm: str, kind: bool | None) -> list[float]:
        return [
            statistics.mean(value for value, is_easy in zip(values, easy, strict=True) if kind in (None, is_easy))
            for values in right[arm].values()
        ]

    best = max((arm for arm in CONTROLS if arm in means), key=means.get)
    uses = [arm for arm in means if arm not in CONTROLS]
    strictest = {
        arm: max((control for control in controls_of(arm) if control in means), key=means.get) for arm in uses
    }
    against = {arm: [paired(right[arm], right[control]) for control in (strictest[arm], best)] for arm in uses}
    stand = [after_holm({arm: against[arm][i]["each"] for arm in uses}) for i in range(2)]

    def compared(arm: str, i: int, control: str) -> str:
        result = against[arm][i]
        wins = result["difference"] > max(result["over_seeds"], result["over_questions"])
        mark = (" **wins**" if arm in stand[i] else " (not after Holm)") if wins else ""
        return f"{gain(right[arm], right[control])}{mark}"

    def over_longer(arm: str) -> str:
        if strictest.get(arm) == LONGER:
            return compared(arm, 0, LONGER)
        return gain(right[arm], right[LONGER]) if arm != LONGER else ""

    rows = [
        [
            arm,
            len(of),
            *(mean(shares(arm, kind)) for kind in (None, True, False)),
            over_longer(arm),
            f"{strictest[arm]}: {compared(arm, 0, strictest[arm])}" if strictest.get(arm, LONGER) != LONGER else "",
            compared(arm, 1, best) if arm in uses else "",
            f"{of[0]['rate']:g}",
            average(run["stopped_at"] for run in of) if "stopped_at" in of[0] else "",
            f"{of[0]['trainable_parameters']:,}" if "stopped_at" in of[0] else "",
            average(run["cpu_seconds"] for run in of),
        ]
        for arm, of in of_arm.items()
    ]
    heads = [
        "arm",
        "seeds",
        "accuracy %",
        "easy %",
        "hard %",
        f"minus {LONGER}, points",
        "minus its strictest control, where another",
    ]
    heads += [f"minus the best control, {best}", "rate", "stopped at", "trained", "CPU s"]
    weights = "all weights" if full else "LoRA"
    return f"{100 * share:.0f} % of the right rows, {weights}:\n\n{markdown(heads, rows)}"


def second(results: dict) -> str:
    prepared = [facts for seed, facts in results["prepare"].items() if int(seed) != PILOT]
    numbers = {name: statistics.mean(facts[name] for facts in prepared) for name in ("right", "wrong", "wrong only")}
    base = [statistics.mean(unpack(facts["base"])) for facts in prepared[:1]]
    about = (
        f"Base of {prepared[0]['parameters']:,} parameters, {mean(base)} % right. {numbers['right']:.0f} right and "
        f"{numbers['wrong']:.0f} wrong rows a seed; {100 * numbers['wrong only']:.0f} % of the questions have wrong "
        "ones only."
    )
    regimes = dict.fromkeys((run["full"], run["share"]) for run in results["runs"] if run["seed"] != PILOT)
    parts = [about, *(regime(results, *which) for which in regimes)]
    for share, votes in results.get("vote", {}).items():
        runs = [run for run in results["runs"] if not run["full"] and f"{run['share']:g}" == share]
        parts.append(f"Votes, {100 * float(share):.0f} % of the right rows:\n\n{votes_table(votes, runs)}")
    return "\n\n".join(parts)


def real_model(result: dict) -> str:
    runs: dict[str, list[dict]] = {}
    for run in result["runs"]:
        runs.setdefault(run["arm"], []).append(run)

    def losses(of_arm: list[dict], name: str) -> str:
        values = [run[name]["loss"] for run in of_arm]
        return f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")

    heads = ["arm", "seeds", "trained parameters", "held-out right, nats a token", "held-out wrong"]
    rows = [
        [arm, len(of_arm), of_arm[0].get("trainable_parameters", ""), losses(of_arm, "right"), losses(of_arm, "wrong")]
        for arm, of_arm in runs.items()
    ]
    if "accuracy" in result["runs"][0]:
        heads.append("right on easy questions, %")
        for row, of_arm in zip(rows, runs.values(), strict=True):
            row.append(mean([run["accuracy"] for run in of_arm]))
    return markdown(heads, rows)


def label_counts(result: dict) -> str:
    names = ["right", "wrong", "no_answer", "unboxed", "right_but_unboxed"]
    rows = [
        [teacher, rule, *(counts[name] for name in names)]
        for teacher, of_teacher in result["teachers"].items()
        for rule, counts in of_teacher["counts"].items()
    ]
    return markdown(["teacher", "rule", *names], rows)


if __name__ == "__main__":
    print_table(__doc__, table, "rationales")

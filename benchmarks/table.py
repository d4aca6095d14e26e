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
Prints the results of the benchmarks as Markdown tables.

    python benchmarks/table.py [FILE ...]

Without files: every JSON under benchmarks/results/.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev


RESULTS = Path(__file__).parent / "results"


def markdown(heads: list[str], rows: list[list]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def times(ratio: dict | None) -> str:
    """A ratio of medians, with the smallest and the largest ratio of one round."""
    if ratio is None:
        return ""
    return f"{ratio['of_medians']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def rollout(result: dict) -> str:
    arms = list(dict.fromkeys(arm for row in result["rows"] for arm in row["ratio_to_student_only"]))[1:]
    rows = [
        [
            row["precision"],
            row["batch_size"],
            row["rows_end"],
            f"{row['mean_length']:.0f}",
            f"{row['ms_per_token']['student only']['median']:.2f}",
            *(times(row["ratio_to_student_only"].get(arm)) for arm in arms),
        ]
        for row in result["rows"]
    ]
    settings = result["settings"]
    about = (
        f"Teacher of {settings['teacher_layers']} layers, student of {settings['student_layers']}; at most "
        f"{settings['new_tokens']} tokens a row, alpha {settings['alpha']}. Cost of a token as a multiple of that of a "
        "student-only rollout."
    )
    heads = ["precision", "rows", "rows end", "mean length", "student only, ms a token", *arms]
    return f"{about}\n\n" + markdown(heads, rows)


def training_step(result: dict) -> str:
    rows = [
        [
            f"{row['vocabulary']:,}",
            "included" if row["rollout"] else "excluded",
            row["arm"],
            f"{row['tokens_per_second']:.0f}",
            times(row["time_ratio_to_trl"]),
            f"{row['peak_mib']:,.0f} ({row['peak_ratio_to_trl']:.2f})" if "peak_mib" in row else "",
        ]
        for row in result["rows"]
    ]
    heads = ["vocabulary", "rollout", "arm", "tokens/s", "time, multiple of TRL's", "peak MiB (multiple of TRL's)"]
    settings = result["settings"]
    about = (
        f"Tokens of {settings['batch_size']} x {settings['completion_tokens']} a step; memory above the loaded models, at "
        f"{settings['memory_batch_size']} x {settings['completion_tokens']}. Student {settings['layers']} layers of width "
        f"{settings['hidden']}, teacher {settings['teacher_layers']} of {settings['teacher_hidden']}."
    )
    chunks = [
        [
            row["chunk_tokens"],
            f"{row['vocabulary']:,}",
            f"{row['seconds']['median']:.2f}",
            times(row["time_ratio_to_4096"]),
            f"{row['peak_mib']:,.0f}",
        ]
        for row in result["chunks"]
    ]
    chunk_heads = ["loss_chunk_tokens", "vocabulary", "s for 4096 tokens", "time, multiple of 4096's", "peak MiB"]
    return f"{about}\n\n{markdown(heads, rows)}\n\n{markdown(chunk_heads, chunks)}"


def real_model(result: dict) -> str:
    runs: dict[str, list[dict]] = {}
    for run in result["runs"]:
        runs.setdefault(run["arm"], []).append(run)

    def losses(of_arm: list[dict], name: str) -> str:
        values = [run[name]["loss"] for run in of_arm]
        return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")

    rows = [
        [arm, len(of_arm), of_arm[0].get("trainable_parameters", ""), losses(of_arm, "right"), losses(of_arm, "wrong")]
        for arm, of_arm in runs.items()
    ]
    heads = ["arm", "seeds", "trained parameters", "held-out right, nats a token", "held-out wrong"]
    return markdown(heads, rows)


def label_counts(result: dict) -> str:
    names = ["right", "wrong", "no_answer", "unboxed", "right_but_unboxed"]
    rows = [
        [teacher, rule, *(counts[name] for name in names)]
        for teacher, of_teacher in result["teachers"].items()
        for rule, counts in of_teacher["counts"].items()
    ]
    return markdown(["teacher", "rule", *names], rows)


def zephyr_end_to_end(result: dict) -> str:
    about = (
        f"Base of {result['models']['parameters']['base']:,} parameters, teacher of "
        f"{result['models']['parameters']['teacher']:,}. Held-out: negative log-likelihood of the teacher's greedy answers "
        f"in nats a token, and Rouge-L of the model's own. {result['seconds'] / 60:.1f} minutes in all."
    )
    held_out = [
        [
            name,
            f"{scores['nll']:.3f}",
            f"{scores['rouge_l']:.1f} ± {scores['rouge_l_standard_error']:.1f}",
            f"{scores['words']:.0f}",
        ]
        for name, scores in result["held out"].items()
    ]
    trained = [
        [
            name,
            result[name]["steps"],
            f"{result[name]['first_loss']:.4f}",
            *(f"{value:.3f}" for value in list(result[name]["last quarter"].values())[:3]),
            *[""] * (3 - len(result[name]["last quarter"])),
            f"{result[name]['reload']['largest difference']:.4f}",
            f"{result[name]['adapter_on_4_bit']['nll']:.3f}",
        ]
        for name in ("dsft", "ddpo")
    ]
    feedback = [
        [
            name,
            report["prompts"]["kept"],
            report["pairs"]["candidates"],
            report["pairs"]["unscored"],
            report["pairs"]["pairs"],
            *(sum(row["calls"] for row in report["ledger"] if row["role"] == role) for role in ("responder", "judge")),
        ]
        for name, report in result["feedback"].items()
    ]
    stages = [
        [name, *(stage.get(key, "") for key in ("seconds", "cpu_seconds", "peak_gib"))]
        for name, stage in result["stages"].items()
    ]
    trained_heads = ["stage", "steps", "first loss", "last loss", "accuracy", "margin", "reload, largest difference"]
    return "\n\n".join(
        [
            about,
            markdown(["model", "NLL", "Rouge-L", "words"], held_out),
            markdown([*trained_heads, "NLL on 4 bit"], trained),
            markdown(["judge", "prompts", "answers", "unscored", "pairs", "calls to answer", "to judge"], feedback),
            markdown(["stage", "seconds", "CPU seconds", "peak GiB"], stages),
        ]
    )


def call_store(result: dict) -> str:
    rows = [
        [
            {"rule": "a rule in Python", "stub": "a server that answers at once"}[row["model"]],
            row["in_flight"],
            *(f"{spread['median']:,.0f}" for spread in row["calls_per_second"].values()),
            times(row["time_ratio"]),
            f"{row['store_ms_per_call']:.2f}",
        ]
        for row in result["rows"]
    ]
    arms = [f"calls/s {arm}" for arm in result["rows"][0]["calls_per_second"]]
    return markdown(["model", "in flight", *arms, "time, multiple of without", "store, processor ms a call"], rows)


def similarity(result: dict) -> str:
    rows = [
        [
            f"{row['pool']:,}",
            f"{row['candidates']:,}",
            f"{row['dropped']:,}",
            f"{row['seconds']['index, all candidates']['median']:.1f}",
            f"{row['seconds']['plain']['median'] / row['plain_candidates']:.2f}",
            f"{row['plain_to_index']['of_medians']:,.0f}",
        ]
        for row in result["rows"]
    ]
    return markdown(
        ["pool", "candidates", "near copies", "index, s", "plain check, s a candidate", "times faster"], rows
    )


def lion_real_run(result: dict) -> str:
    parameters = result["models"]["parameters"]
    about = (
        f"Teacher, referee and generator: {result['models']['teacher, referee, generator']}, {parameters['teacher']:,} "
        f"parameters, behind a server. Student: {result['models']['student']}, {parameters['student']:,}. "
        f"{result['seconds']['the command'] / 60:.1f} minutes."
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
    heads = [
        "round",
        "stage",
        "compared",
        "scored",
        "calls of the referee (asked again)",
        "first minus last slot",
        "ties",
    ]
    heads += ["hard / easy", "student ahead / tie / behind", "gap", "Rouge-L to the teacher"]
    ledger = [
        [line[key] for key in ("round", "stage", "role", "calls", "prompt_tokens", "completion_tokens", "failures")]
        for line in result["report"]["ledger"]
    ]
    seconds = [[name, value] for name, value in result["seconds"].items()]
    calls = ["round", "stage", "role", "calls", "prompt tokens", "completion tokens", "failed"]
    tables = [markdown(heads, rows), markdown(calls, ledger), markdown(["stage", "seconds"], seconds)]
    return "\n\n".join([about, *tables])


def origin(result: dict) -> str:
    made = result["provenance"]
    changes = " with uncommitted changes" if made["uncommitted_changes"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    note = f" {result['note']}" if result.get("note") else ""
    return (
        f"Commit {(made['commit'] or 'unknown')[:10]}{changes}, {made['date'][:10]}, {made['device']} with {made['cores']} "
        f"cores, clock: {result.get('clock', 'none')}, {versions}.{note}"
    )


def show(path: Path) -> str:
    result = json.loads(path.read_text())
    title = f"## {path.stem}"
    if "worlds" in result:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from benchmarks.quality.table import table

        worlds = [world for world in result["worlds"] if any(run["world"] == world for run in result["runs"])]
        return "\n\n".join([title, *(table(world, result) for world in worlds)])
    if result.get("benchmark") == "rationales":
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from benchmarks.rationales.table import table

        return f"{title}\n\n{table(result)}"
    if result.get("benchmark") == "zephyr":
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from benchmarks.zephyr.table import table

        return f"{title}\n\n{table(result)}"
    if result.get("benchmark") == "lion":
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from benchmarks.lion.table import table

        return f"{title}\n\n{table(result)}"
    tables = {
        "lion/real_run": lion_real_run,
        "speed/rollout": rollout,
        "speed/training_step": training_step,
        "speed/call_store": call_store,
        "speed/similarity": similarity,
        "rationales/real_model": real_model,
        "rationales/label_counts": label_counts,
        "zephyr/end_to_end": zephyr_end_to_end,
    }
    parts = [result] if "benchmark" in result else [part for part in result.values() if isinstance(part, dict)]
    parts = [part for part in parts if part.get("benchmark") in tables]
    if not parts:
        return f"{title}\n\nNo table for this file: see the JSON."
    return "\n\n".join([title, *(f"{tables[part['benchmark']](part)}\n\n{origin(part)}" for part in parts)])


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", default=sorted(RESULTS.rglob("*.json")), help="result files")
    args = parser.parse_args(argv)
    print("\n\n".join(show(path) for path in args.files) or f"No results in {RESULTS} yet.")


if __name__ == "__main__":
    main()

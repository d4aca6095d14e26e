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
    tables = {
        "speed/rollout": rollout,
        "speed/training_step": training_step,
        "rationales/real_model": real_model,
        "rationales/label_counts": label_counts,
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

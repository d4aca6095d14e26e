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
import importlib
import json
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the command names this file

from benchmarks.laboratory import markdown  # noqa: E402
from examples.demo import METRICS, STAGES  # noqa: E402


RESULTS = ROOT / "benchmarks" / "results"
# Who prints what: module and function. A laboratory says itself what it was made with.
TABLES = {
    "demo": ("table", "demo"),
    "quality": ("quality.table", "tables"),
    "quality/real_run": ("quality.table", "real_run"),
    "quality/recorded_top_k": ("quality.table", "recorded_top_k"),
    "rationales": ("rationales.table", "table"),
    "zephyr": ("zephyr.table", "table"),
    "lion": ("lion.table", "table"),
    "rationales/second": ("rationales.table", "second"),
    "lion/learning_rates": ("lion.table", "learning_rates"),
    "rationales/real_model": ("rationales.table", "real_model"),
    "rationales/label_counts": ("rationales.table", "label_counts"),
    "memory": ("memory", "table"),
    "zephyr/end_to_end": ("zephyr.table", "end_to_end"),
    "zephyr/filters": ("zephyr.filters", "table"),
    "lion/real_run": ("lion.table", "real_run"),
    "speed/rollout": ("table", "rollout"),
    "speed/training_step": ("table", "training_step"),
    "speed/construction": ("table", "construction"),
    "speed/call_store": ("table", "call_store"),
    "speed/similarity": ("table", "similarity"),
}


def times(ratio: dict | None) -> str:
    """A ratio of medians, with the smallest and the largest ratio of one round."""
    if ratio is None:
        return ""
    return f"{ratio['of_medians']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def rollout(result: dict) -> str:
    arms = list(dict.fromkeys(arm for row in result["rows"] for arm in row["ratio_to_student_only"]))[1:]
    scored = list(result["rows"][0]["ratio_to_read_again"])
    arms = [arm for arm in arms if "read again" not in arm and arm not in scored]
    rows = [
        [
            row["precision"],
            row["batch_size"],
            row["rows_end"],
            f"{row['mean_length']:.0f}",
            f"{row['ms_per_token']['student only']['median']:.2f}",
            *(times(row["ratio_to_student_only"].get(arm)) for arm in arms),
            *(times(row["ratio_to_read_again"][arm]) for arm in scored),
        ]
        for row in result["rows"]
    ]
    settings = result["settings"]
    about = (
        f"Teacher of {settings['teacher_layers']} layers, student of {settings['student_layers']}; at most "
        f"{settings['new_tokens']} tokens a row, alpha {settings['alpha']}. Cost of a token as a multiple of that of "
        "a student-only rollout; with scoring, as a multiple of one that both models read again."
    )
    heads = ["precision", "rows", "rows end", "mean length", "student only, ms a token", *arms, *scored]
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
    about = (
        "Tokens of {batch_size} x {completion_tokens} a step; memory above the loaded models, at "
        "{memory_batch_size} x {completion_tokens}. Student {layers} layers of width {hidden}, teacher "
        "{teacher_layers} of {teacher_hidden}."
    ).format(**result["settings"])
    chunks = [
        [
            row["chunk_tokens"],
            f"{row['vocabulary']:,}",
            f"{row['seconds']['median']:.2f}",
            times(row["time_ratio_to_256"]),
            f"{row['peak_mib']:,.0f}",
        ]
        for row in result["chunks"]
    ]
    chunk_heads = ["loss_chunk_tokens", "vocabulary", "s for 2048 tokens", "time, multiple of 256's", "peak MiB"]
    return f"{about}\n\n{markdown(heads, rows)}\n\n{markdown(chunk_heads, chunks)}"


def construction(result: dict) -> str:
    rows = [
        [
            f"{row['prompts']:,}",
            row["kind"],
            row["arm"],
            f"{row['seconds']['median']:.2f}",
            times(row["time_ratio_to_trl"]),
            f"{row['peak_mib']:,.0f}",
        ]
        for row in result["rows"]
    ]
    return markdown(["prompts", "kind", "arm", "s to the first step", "time, multiple of TRL's", "peak MiB"], rows)


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


def demo(result: dict) -> str:
    seconds, settings = result["seconds"]["all, with imports"], result["settings"]
    about = (
        f"{settings['num_eval_prompts']} held-out prompts, ± standard error over them. {settings['dtype']}, "
        f"{result['platform']}: {seconds['wall'] / 60:.1f} minutes, {seconds['processor'] / 60:.1f} of the processor, "
        f"{result['peak_memory_gib']} GiB."
    )
    rows = [
        [
            label,
            *(
                f"{of_stage[key]['mean']:.2f} ± {of_stage[key]['error']:.2f}"
                for of_stage in result["metrics"].values()
            ),
        ]
        for key, label in METRICS.items()
    ]
    return f"{about}\n\n{markdown(['', *STAGES.values()], rows)}"


def origin(result: dict) -> str:
    made = result["provenance"]
    if isinstance(made, list):  # an entry for each sitting
        made = made[-1]
    changes = " with uncommitted changes" if made["uncommitted_changes"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    note = f" {result['note']}" if result.get("note") else ""
    return (
        f"Commit {(made['commit'] or 'unknown')[:10]}{changes}, {made['date'][:10]}, {made['device']} with "
        f"{made['cores']} cores, clock: {result.get('clock', 'none')}, {versions}.{note}"
    )


def show(path: Path) -> str:
    result = json.loads(path.read_text())
    benchmark = "quality" if "worlds" in result else result.get("benchmark")
    if benchmark not in TABLES:
        return f"## {path.stem}\n\nNo table for this file: see the JSON."
    module, function = TABLES[benchmark]
    text = getattr(importlib.import_module(f"benchmarks.{module}"), function)(result)
    return "\n\n".join([f"## {path.stem}", text, *([origin(result)] if "/" in benchmark else [])])


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", default=sorted(RESULTS.rglob("*.json")), help="result files")
    args = parser.parse_args(argv)
    print("\n\n".join(show(path) for path in args.files) or f"No results in {RESULTS} yet.")


if __name__ == "__main__":
    main()

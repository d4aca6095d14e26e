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

import json

import pytest
from datasets import load_dataset

from tests.commands import read_rows, stops, write_rows
from trl_distill import cli
from trl_distill.evaluation.answers import RULES
from trl_distill.scripts.label import make_parser, run


ROWS = [
    {
        "question": "Problem:\nHow many legs has a crab?",
        "answer": "Eight and two claws.\n#### 10",
        "generated": ["Solution:\nIt has \\boxed{10}.", "It has 10.", "It has \\boxed{8}.", "It has \\boxed{10}."],
    },
    {
        "question": "What is half of a third?",
        "answer": r"$\frac12 \cdot \frac13 = \boxed{\frac16}$",
        "generated": [r"\boxed{\frac{2}{12}}", r"The answer is 1/6.", r"\boxed{\frac23}"],
    },
]
COLUMNS = ["--prompt_column", "question", "--completions_column", "generated"]


@pytest.fixture
def file(tmp_path):
    return write_rows(tmp_path / "rationales.jsonl", ROWS)


def test_rows_and_counts(file, tmp_path, capsys):
    output, report = tmp_path / "rows.jsonl", tmp_path / "report.json"
    templates = ["--prompt_template", "Problem:\n{prompt}\n", "--completion_template", "Solution:\n{completion}"]
    files = ["--output_file", str(output), "--report_file", str(report)]
    assert cli.main(["label", "--dataset_name", file, *COLUMNS, *templates, *files]) == 0

    crab, half = "Problem:\nHow many legs has a crab?\n", "Problem:\nWhat is half of a third?\n"
    assert [(row["prompt"], row["completion"], row["label"], row["answer"]) for row in read_rows(output)] == [
        (crab, "Solution:\nIt has \\boxed{10}.", True, "10"),
        (crab, "Solution:\nIt has \\boxed{8}.", False, "10"),
        (half, "Solution:\n\\boxed{\\frac{2}{12}}", True, r"\frac16"),
        (half, "Solution:\nThe answer is 1/6.", True, r"\frac16"),
        (half, "Solution:\n\\boxed{\\frac23}", False, r"\frac16"),
    ]
    counts = json.loads(report.read_text())
    assert {name: count for name, count in counts["rationales"].items() if count} == {
        "total": 7, "right": 4, "wrong": 2, "no_answer": 1,
    }  # fmt: skip
    assert counts["dropped"] == {"repeats": 1, "too_long": 0}
    assert counts["rows"] == {"right": 3, "wrong": 2} and counts["questions"]["mixed"] == 2
    assert counts["settings"]["rule"] == "marked"
    table = capsys.readouterr().out
    for line in ("questions", "right but unboxed", "without an answer", "repeats, dropped"):
        assert line in table
    assert not list(tmp_path.glob("*.part"))

    labels = load_dataset("json", data_files=str(output), split="train")
    assert labels.features["label"].dtype == "bool" and labels["label"] == [True, False, True, True, False]


def test_processes_and_compression_change_nothing(file, tmp_path):
    outputs = []
    for name, flags in (("one.jsonl", []), ("two.jsonl.gz", ["--num_proc", "2"])):
        dataset = write_rows(tmp_path / f"in.{name}", ROWS * 10)
        run(["--dataset_name", dataset, "--output_file", str(tmp_path / name), "--keep_repeats", *COLUMNS, *flags])
        outputs.append(read_rows(tmp_path / name))
    assert outputs[0] == outputs[1] and len(outputs[0]) == 60


def test_sampled_rationales_and_yaml(tmp_path):
    samples = {
        "prompt": [{"role": "user", "content": "2 + 2?"}],
        "completion": [{"role": "assistant", "content": "It is 4."}],
        "completions": ["It is 4.", "5", "No number", "4 or"],
        "mean_logps": [-0.5, -1.0, None, -2.0],
        "truncated": [False, False, False, True],
    }
    config = tmp_path / "label.yaml"
    dataset, output = write_rows(tmp_path / "samples.jsonl", [samples, "\n"]), tmp_path / "rows.jsonl"
    config.write_text(f"dataset_name: {dataset}\noutput_file: {output}\nrule: last_number\n")
    run(["--config", str(config)])
    assert read_rows(output) == [
        {"completion": [{"role": "assistant", "content": text}], "label": label, "answer": "4"}
        | {"prompt": samples["prompt"]}
        for text, label in (("It is 4.", True), ("5", False))
    ]


@pytest.mark.parametrize("rule", RULES)
def test_the_parser_knows_every_rule(rule):
    assert make_parser().parse_args(["--dataset_name", "x", "--output_file", "y", "--rule", rule]).rule == rule


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        (
            ROWS,
            ["--prompt_column", "prompt"],
            "row 1 of {file}: no column `prompt` with the question, only question, answer, generated.",
        ),
        ([ROWS[0], '{"question": \n'], [], "Line 2 of {file} is no JSON: Expecting value"),
        ([ROWS[0], "3\n"], [], "Line 2 of {file} must be a JSON object, got 3"),
        ([ROWS[0], ROWS[1] | {"answer": None}], [], "row 2 of {file}: the column `answer` with the right answer is"),
        ([ROWS[0] | {"generated": [1]}], [], "must hold a text or a list of texts, got [1]"),
        ([], [], "{file} holds no rows"),
        (
            [ROWS[0] | {"generated": ["No idea.", "None."]}],
            [],
            "No row is left of 2 rationales in {file}: 2 without an answer. Look",
        ),
        (
            [row | {"truncated": [True] * len(row["generated"])} for row in ROWS],
            [],
            "No row is left of 7 rationales in {file}: 7 cut off. Look",
        ),
        ([ROWS[0] | {"generated": ["\\boxed{1%s}" % ("0" * 4999)]}], [], "in {file}: 1 too large to compare. Look"),
        (ROWS, ["--max_characters", "9"], "1 without an answer, 6 longer than `max_characters`"),
        (ROWS, ["--max_characters", "0"], "`max_characters` must be 1 or more, got 0."),
        (ROWS, ["--num_proc", "0"], "`num_proc` must be 1 or more, got 0."),
        (ROWS, ["--prompt_template", "Problem:"], "`prompt_template` must hold {{prompt}} once, got 'Problem:'."),
        (ROWS, ["--rule", "strict"], "invalid choice: 'strict'"),
        (ROWS, ["--prompt_templates", "x"], "Did you mean prompt_template"),
        (ROWS, ["--dataset_name", "missing.jsonl"], "No such file"),
    ],
)
@pytest.mark.parametrize("num_proc", ["1", "2"])
def test_mistakes_are_explained_and_nothing_is_written(tmp_path, capsys, rows, flags, message, num_proc):
    file, output = write_rows(tmp_path / "rationales.jsonl", rows), tmp_path / "rows.jsonl"
    output.write_text("what was there\n")
    assert stops(run, "--dataset_name", file, "--output_file", output, "--num_proc", num_proc, *COLUMNS, *flags) == 2
    error = capsys.readouterr().err
    assert "trl-distill label: error: " in error and message.format(file=file) in error and "Traceback" not in error
    assert output.read_text() == "what was there\n"
    assert not list(tmp_path.glob("*.part"))


def test_the_folder_of_an_output_is_made(file, tmp_path, capsys):
    report = tmp_path / "new" / "folder" / "report.json"
    files = ["--output_file", tmp_path / "data" / "rows.jsonl", "--report_file", report]
    run(list(map(str, ["--dataset_name", file, *COLUMNS, *files])))
    assert report.is_file() and len(read_rows(tmp_path / "data" / "rows.jsonl")) == 6
    assert stops(run, "--dataset_name", file, *COLUMNS, "--output_file", f"{file}/rows.jsonl") == 2
    assert "File exists" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"plain text"])
def test_a_damaged_archive_is_explained(tmp_path, capsys, damage):
    path = tmp_path / "rationales.jsonl.gz"
    write_rows(path, ROWS * 50)
    path.write_bytes(damage(path.read_bytes()))
    assert stops(run, "--dataset_name", path, "--output_file", tmp_path / "rows.jsonl", *COLUMNS) == 2
    error = capsys.readouterr().err
    assert "trl-distill label: error: " in error and "Traceback" not in error
    assert not list(tmp_path.glob("rows.*"))

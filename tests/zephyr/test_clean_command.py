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

import gzip
import json

import pytest
from datasets import Dataset

from trl_distill import cli


def messages(user, assistant):
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


QUESTION = "How many seconds are there in a leap year?"
ROWS = [
    {"messages": messages("hello. how are you?", "Fine."), "prompt": "hello. how are you?", "n": 0},
    {"messages": messages("Do you like tea?", "I don't have opinions."), "prompt": "Do you like tea?", "n": 1},
    {"messages": messages(f"Tell me. {QUESTION}", "Many."), "prompt": QUESTION, "n": 2},
    {"messages": messages("", "Hm?"), "prompt": "", "n": 3},
    {"messages": messages("Was it §ö?", "It was."), "prompt": "Was it §ö?", "n": 4},
]
CLEAN = [
    {"messages": messages("Hello. How are you?", "Fine."), "n": 0},
    {"messages": messages("Was it §ö?", "It was."), "n": 4},
]


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def read(path):
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.decode().splitlines()]


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["clean", *map(str, arguments)])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text(f"{QUESTION}\n")
    return str(file)


@pytest.mark.parametrize(("source", "target"), [("in.jsonl", "out.jsonl"), ("in.jsonl.gz", "out.jsonl.gz")])
def test_files_and_counts(source, target, questions, tmp_path, capsys):
    arguments = [write(tmp_path / source, ROWS), "--output", str(tmp_path / target), "--decontaminate", questions]
    cli.main(["clean", *arguments, "--report_file", str(tmp_path / "counts.json")])
    assert read(tmp_path / target) == CLEAN
    assert json.loads((tmp_path / "counts.json").read_text()) == {
        "rows": 5,
        "kept": 2,
        "changed": 1,
        "malformed": {"empty turn": 1},
        "refusals": {"i don't have opinions": 1},
        "contaminated": {QUESTION: 1},
    }
    table = " ".join(capsys.readouterr().out.split())
    assert "rows 5" in table
    assert "emotions or opinions denied, dropped 1 i don't have opinions 1" in table
    assert "kept 2 with repaired capitals 1" in table
    assert {file.name for file in tmp_path.iterdir()} == {source, target, "questions.txt", "counts.json"}


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_other_formats(suffix, questions, tmp_path):
    file = tmp_path / f"in.{suffix}"
    data = Dataset.from_list(ROWS)
    data.to_json(file, lines=False) if suffix == "json" else data.to_parquet(file)
    cli.main(["clean", str(file), "--output", str(tmp_path / "out.jsonl"), "--decontaminate", questions])
    assert read(tmp_path / "out.jsonl") == CLEAN


def test_filters_can_be_switched_off(tmp_path):
    file = write(tmp_path / "in.jsonl", ROWS)
    cli.main(["clean", file, "--output", str(tmp_path / "out.jsonl"), "--no_truecase", "--no_refusals"])
    expected = [{"messages": row["messages"], "n": row["n"]} for row in ROWS if row["n"] != 3]
    assert read(tmp_path / "out.jsonl") == expected


class TestErrors:
    def test_nothing_is_left_and_the_old_output_stays(self, tmp_path, capsys):
        output = tmp_path / "out.jsonl"
        output.write_text("old")
        message = error_of(capsys, write(tmp_path / "in.jsonl", [{"text": "a"}, {"text": "b"}]), "--output", output)
        assert "is left: 2 no dialogue. A row needs `messages`" in message
        assert "is left: it holds no rows" in error_of(capsys, write(tmp_path / "no.jsonl", []), "--output", output)
        assert output.read_text() == "old"
        assert len(list(tmp_path.iterdir())) == 3

    def test_damaged_input(self, tmp_path, capsys):
        file = tmp_path / "in.jsonl"
        file.write_text(json.dumps(ROWS[0]) + "\n{no\n")
        assert "Line 2 of" in error_of(capsys, file, "--output", tmp_path / "out.jsonl")
        file = tmp_path / "in.jsonl.gz"
        file.write_bytes(gzip.compress(json.dumps(ROWS).encode())[:-9])
        assert "incomplete" in error_of(capsys, file, "--output", tmp_path / "out.jsonl")
        assert not (tmp_path / "out.jsonl").exists()

    def test_missing_files(self, tmp_path, capsys):
        file = write(tmp_path / "in.jsonl", ROWS)
        assert "No such file" in error_of(capsys, tmp_path / "none.jsonl", "--output", tmp_path / "out.jsonl")
        assert "does not exist. Create it" in error_of(capsys, file, "--output", tmp_path / "no" / "out.jsonl")
        message = error_of(capsys, file, "--output", tmp_path / "out.jsonl", "--decontaminate", "none.txt")
        assert "none.txt" in message
        output = tmp_path / "out.jsonl"
        assert "Two outputs have the name" in error_of(capsys, file, "--output", output, "--report_file", output)
        assert "is a folder" in error_of(capsys, file, "--output", tmp_path)
        assert "No split 'test'" in error_of(capsys, file, "--output", output, "--dataset_split", "test")
        assert "unknown field `truecase`" in error_of(capsys, file, "--output", "o", "--truecase")

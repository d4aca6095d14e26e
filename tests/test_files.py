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

"""Files that are there as a whole or not at all."""

import gzip

import pytest
from datasets import Dataset, DatasetDict

from trl_distill.files import (
    evaluation_questions,
    load_rows,
    load_split,
    read_rows,
    whole_file,
    write_json,
    write_rows,
)


ROWS = [{"prompt": "é 海", "n": 1}, {"prompt": "line\nbreak", "n": None}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_come_back(tmp_path, name):
    write_rows(tmp_path / name, ROWS)
    assert list(read_rows(tmp_path / name)) == ROWS
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, ROWS)
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write("half a li")
        raise RuntimeError
    assert list(read_rows(path)) == ROWS
    assert list(tmp_path.iterdir()) == [path]


def test_two_runs_do_not_write_one_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.with_name("rows.jsonl.new").write_text("left behind by a run that was killed")
    with whole_file(path) as file:
        file.write("first\n")
        with (
            pytest.raises(OSError, match=r"rows\.jsonl\.new is being written by another run"),
            whole_file(path) as other,
        ):
            other.write("second\n")
        file.write("still first\n")
    assert path.read_text() == "first\nstill first\n"
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
    write_rows(path, ROWS)
    assert list(read_rows(path)) == ROWS


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": "é"})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "é"\n}\n'


def test_an_error_about_another_file_is_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file or directory: .*other"), whole_file(tmp_path / "rows"):
        open(tmp_path / "other")
    with pytest.raises(OSError, match="rows cannot be written: .*No such file or directory"):
        write_rows(tmp_path / "missing" / "rows", ROWS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1}\n\n{"a": \n', "Line 3 of .* is no JSON"),
        ('{"a": 1}\n[1]\n', r"Line 2 of .* must be a JSON object, got \[1\]"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, said):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(ValueError, match=said):
        list(read_rows(tmp_path / "rows.jsonl"))


def test_damaged_files_are_named(tmp_path):
    whole = gzip.compress(b'{"a": 1}\n' * 1000)
    (tmp_path / "rows.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": "\xff"}\n')
    for name in ("rows.jsonl.gz", "rows.jsonl"):
        with pytest.raises(ValueError, match="damaged or incomplete"):
            list(read_rows(tmp_path / name))


class TestLoading:
    def test_splits(self, tmp_path):
        one, two = Dataset.from_dict({"prompt": ["a"]}), Dataset.from_dict({"prompt": ["b"]})
        one.save_to_disk(tmp_path / "one")
        DatasetDict(train=one, test=two).save_to_disk(tmp_path / "train")
        DatasetDict(x=one, y=two).save_to_disk(tmp_path / "xy")
        assert load_split(str(tmp_path / "one"))["prompt"][:] == ["a"]
        assert load_split(str(tmp_path / "train"))["prompt"][:] == ["a"]
        assert load_split(str(tmp_path / "train"), split="test")["prompt"][:] == ["b"]
        with pytest.raises(ValueError, match="Choose one with `dataset_split`: x, y"):
            load_split(str(tmp_path / "xy"))
        with pytest.raises(ValueError, match="No split 'z' in .*: choose from x, y"):
            load_split(str(tmp_path / "xy"), split="z")

    def test_parts_of_splits(self, tmp_path):
        write_rows(tmp_path / "a.jsonl", [{"n": n} for n in range(10)])
        assert load_split(str(tmp_path / "a.jsonl"), split="train[:3]")["n"][:] == [0, 1, 2]
        assert load_split(str(tmp_path), split="train[:20%]+train[9:]")["n"][:] == [0, 1, 9]
        with pytest.raises(ValueError, match="test"):
            load_split(str(tmp_path), split="test[:3]")

    def test_files(self, tmp_path):
        (tmp_path / "a.csv").write_text("prompt\na\n")
        assert load_split(str(tmp_path / "a.csv"))["prompt"][:] == ["a"]
        (tmp_path / "a.xlsx").write_text("")
        with pytest.raises(ValueError, match="expected one of .json, .jsonl, .csv, .parquet"):
            load_split(str(tmp_path / "a.xlsx"))

    def test_lines_stay_as_they_are(self, tmp_path):
        write_rows(tmp_path / "a.jsonl", [{"a": 1}, {"b": "x"}])
        write_rows(tmp_path / "a.json", [{"a": 1}, {"b": "x"}])
        path = str(tmp_path / "a.jsonl")
        assert list(load_rows(path)) == list(load_rows(path, split="train")) == [{"a": 1}, {"b": "x"}]
        assert list(load_rows(str(tmp_path / "a.json"))) == [{"a": 1, "b": None}, {"a": None, "b": "x"}]
        with pytest.raises(ValueError, match="No split 'test'"):
            load_rows(path, split="test")
        with pytest.raises(FileNotFoundError, match="No such file: .*b.jsonl"):
            load_rows(str(tmp_path / "b.jsonl"))

    @pytest.mark.parametrize("name", ["./a", "~/a", "/none/a", "a/b/c", "data/a.csv", "runs/a"])
    def test_what_is_not_here(self, name, tmp_path, monkeypatch):
        """Where only a file or a folder can be meant, the Hub, which would take seconds, is not asked."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs").mkdir()
        with pytest.raises(FileNotFoundError, match=f"^No such file( or folder)?: {name}\\. ?") as raised:
            load_split(name)
        assert ("the recipe's header says what makes it" in str(raised.value)) == name.startswith(("data/", "runs/"))

    @pytest.mark.parametrize("name", ["data/a", "owner/a", "a"])
    def test_what_is_neither_here_nor_on_the_hub(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match=f"on the Hub .*There is no file or folder {name} here, either"):
            load_split(name)

    @pytest.mark.parametrize(("text", "said"), [('{"a": 1}\n{"a"', "JSON parse error"), ("", "it holds no rows")])
    def test_what_is_damaged_or_empty_is_named(self, tmp_path, text, said):
        (tmp_path / "a.jsonl").write_text(text)
        with pytest.raises(ValueError, match=f"a.jsonl cannot be read: {said}"):
            load_split(str(tmp_path / "a.jsonl"))


class TestEvaluationQuestions:
    def test_all_forms_of_files(self, tmp_path):
        """What `feedback`, `binarize`, `clean` and `lion` take: one reader for all."""
        (tmp_path / "a.txt").write_text("Why?\n\n  How? \n")
        write_rows(
            tmp_path / "b.jsonl", [{"instruction": "Add."}, {"prompt": "Sum.", "answer": "7"}, {"question": "é?"}]
        )
        write_rows(tmp_path / "c.jsonl.gz", [{"question": None}, {"question": "", "instruction": "x"}])
        write_rows(tmp_path / "d.json", [{"instruction": "Answer.", "prompt": "Q: 1?", "question": "1?"}])
        Dataset.from_dict({"prompt": ["P?", None]}).to_parquet(tmp_path / "e.parquet")
        (tmp_path / "f.csv").write_text("question,n\n2?,1\n")
        write_rows(tmp_path / "g.jsonl", [{"question_id": 81, "turns": ["Write.", "", "Again."]}])
        names = ("a.txt", "b.jsonl", "c.jsonl.gz", "none", "d.json", "e.parquet", "f.csv", "g.jsonl")
        questions = evaluation_questions([name if name == "none" else str(tmp_path / name) for name in names])
        assert questions == ["Why?", "How?", "Add.", "Sum.", "é?", "x", "1?", "P?", "2?", "Write.", "Again."]

    @pytest.mark.parametrize("row", [{"text": "a"}, {"question": 5}, {"prompt": ["a"], "n": 1}, {"turns": [5]}])
    def test_a_row_without_a_text(self, tmp_path, row):
        write_rows(tmp_path / "q.jsonl", [{"prompt": "a"}, row])
        said = "Row 2 of .*q.jsonl, in `decontaminate`, needs a text `question`, `prompt` or `instruction`, got {"
        with pytest.raises(ValueError, match=said):
            evaluation_questions([str(tmp_path / "q.jsonl")])

    def test_what_is_no_file(self):
        with pytest.raises(ValueError, match="`decontaminate` must name files, or be truthful_qa, got 'mmlu'"):
            evaluation_questions(["none", "mmlu"])
        with pytest.raises(
            ValueError, match="TruthfulQA cannot be loaded .* `decontaminate: \\[\\]`"
        ):  # no network here
            evaluation_questions(["truthful_qa"])

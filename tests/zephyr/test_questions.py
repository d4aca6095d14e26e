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
"""Questions and answers in the files of AlpacaEval and MT-Bench, there and back."""

import json

import pytest

from tests.commands import read_rows, write_rows
from trl_distill.zephyr.questions import Answer, read_answers, read_questions, write_answers


ALPACA_EVAL = [
    {"dataset": "helpful_base", "instruction": f"Name {n} fish.", "output": "Tope.", "generator": "text_davinci_003"}
    for n in (1, 2)
]
MT_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Without the letter a."]},
    {"question_id": 101, "category": "math", "turns": ["1 + 1?", "And 2 + 2?"], "reference": ["2", "4"]},
]


def questions_of(rows, **columns):
    return read_questions(rows, **columns)[0]


class TestQuestions:
    def test_alpaca_eval(self):
        questions = questions_of(ALPACA_EVAL)
        assert [q.opening for q in questions] == [[{"role": "user", "content": f"Name {n} fish."}] for n in (1, 2)]
        assert [q.category for q in questions] == ["helpful_base"] * 2 and not any(q.later for q in questions)

    def test_mt_bench(self):
        questions = questions_of(MT_BENCH, reference_column="reference")
        assert [(q.id, q.category, q.reference) for q in questions] == [
            ("81", "writing", None),
            ("101", "math", "2\n4"),
        ]
        assert questions[0].after([])[-1]["content"] == "Write a poem."
        assert [m["content"] for m in questions[0].after(["Oh."])] == ["Write a poem.", "Oh.", "Without the letter a."]
        assert [m["role"] for m in questions[0].after(["Oh."])] == ["user", "assistant", "user"]
        assert [m["content"] for m in questions[0].asked] == MT_BENCH[0]["turns"]

    def test_mt_bench_as_the_hub_has_it(self):
        [question] = questions_of([{"prompt": ["a", "b"], "prompt_id": 81, "category": "writing"}])
        assert (question.id, question.later) == ("81", ["b"])

    def test_rows_of_ours(self):
        system, user = {"role": "system", "content": "Be calm."}, {"role": "user", "content": "Why?"}
        rows = [
            {"prompt": "Why?"},
            {"prompt": [system, user]},
            {"prompt": "Why?"},
            {"prompt": " "},
            {"prompt": "How?"},
        ]
        questions, counts = read_questions(rows, max_prompts=2)
        assert [q.opening for q in questions] == [[user], [system, user]]
        assert counts == {"rows": 5, "empty": 1, "duplicates": 1, "beyond_max_prompts": 1, "kept": 2}

    @pytest.mark.parametrize(
        ("rows", "columns", "message"),
        [
            ([], {}, "No prompt is left: the data hold no rows"),
            ([{"prompt": ""}], {}, "No prompt is left: rows 1, empty 1"),
            ([{"question": "a"}], {}, "Row 1: no column `prompt`, only question. Name the right one in"),
            ([{"prompt": 5}], {}, "Row 1: `prompt` must be a text or a list of messages, got 5"),
            ([{"prompt": [{"role": "assistant", "content": "a"}]}], {}, "Row 1: the last message must be the user's"),
            (
                [{"turns": ["a"], "question_id": 1}, {"turns": ["b"], "question_id": 1}],
                {},
                "Row 2: the id '1' belongs",
            ),
            (
                [{"prompt": "a"}],
                {"category_column": "kind"},
                "`category_column` is 'kind', but the columns are prompt",
            ),
            ([{"prompt": "a"}], {"reference_column": "gold"}, "`reference_column` is 'gold', but"),
        ],
    )
    def test_mistakes(self, rows, columns, message):
        with pytest.raises(ValueError, match=message):
            read_questions(rows, **columns)


class TestAnswers:
    @pytest.mark.parametrize(
        ("rows", "name", "keys"),
        [
            (ALPACA_EVAL, "dpo.json", {"dataset", "instruction", "output", "generator"}),
            (MT_BENCH, "dpo.jsonl", {"question_id", "answer_id", "model_id", "choices", "tstamp"}),
            ([{"prompt": "a"}, {"prompt": "b"}], "dpo.jsonl", {"prompt", "completion"}),
        ],
    )
    def test_there_and_back(self, tmp_path, rows, name, keys):
        questions = questions_of(rows)
        answers = [
            Answer([f"answer {i}, {turn}" for turn in range(1 + len(q.later))]) for i, q in enumerate(questions)
        ]
        path = write_answers(tmp_path, "dpo", questions, answers)
        assert path == tmp_path / name
        written = json.loads(path.read_text()) if name.endswith(".json") else read_rows(path)
        assert [row.keys() for row in written] == [keys] * 2
        assert read_answers(str(path), questions) == (answers, 0)
        assert read_answers(str(path), questions[1:]) == (answers[1:], 1)

    def test_what_the_official_tools_look_for(self, tmp_path):
        [row, _] = read_rows(write_answers(tmp_path, "dpo", questions_of(MT_BENCH), [Answer(["a", "b"])] * 2))
        assert row["question_id"] == 81 and row["model_id"] == "dpo"  # a number, by which FastChat sorts
        assert row["choices"] == [{"index": 0, "turns": ["a", "b"]}]
        path = write_answers(tmp_path, "dpo", questions_of(ALPACA_EVAL), [Answer(["a"])] * 2)
        assert json.loads(path.read_text())[1] == ALPACA_EVAL[1] | {"output": "a", "generator": "dpo"}

    def test_missing_answers_have_no_row(self, tmp_path):
        answers = [Answer([], error="no server"), Answer(["a"])]
        path = write_answers(tmp_path, "dpo", questions_of(ALPACA_EVAL), answers)
        assert [row["instruction"] for row in json.loads(path.read_text())] == ["Name 2 fish."]

    def test_files_of_other_commands(self, tmp_path):
        """Of `evaluate`, a row for each seed, and of `sample`."""
        path = tmp_path / "completions.jsonl"
        write_rows(path, [{"row": 0, "seed": seed, "prompt": "a", "completion": f"seed {seed}"} for seed in (1, 2)])
        assert read_answers(str(path), questions_of([{"prompt": "a"}])) == ([Answer(["seed 1"])], 1)
        write_rows(path, [{"prompt": "a", "completions": ["x", "y"], "truncated": [False, False]}])
        assert read_answers(str(path), questions_of([{"prompt": "a"}])) == ([Answer(["x"])], 0)

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (
                [{"prompt": "a", "completion": "x"}],
                "no answer to 1 of 2 prompts, such as 'b'. Both must have answered",
            ),
            ([{"instruction": "c", "output": "x"}], "no answer to 2 of 2 prompts, such as 'a'"),
            ([{"prompt": "a"}], "Row 1 of .*: an answer needs `instruction` and `output` .AlpacaEval"),
            ([{"prompt": "a", "completion": None}], "Row 1 of .*: answers must be texts, got .None"),
            ([{"prompt": "a", "completions": []}], "Row 1 of .*: an answer needs"),
            ([{"question_id": 1, "choices": [{"turns": "x"}]}], "Row 1 of .*: answers must be texts, got 'x'"),
            ([{"choices": []}], "Row 1 of .*: an answer needs"),
        ],
    )
    def test_mistakes(self, tmp_path, rows, message):
        path = write_rows(tmp_path / "answers.jsonl", rows)
        with pytest.raises(ValueError, match=message):
            read_answers(path, questions_of([{"prompt": "a"}, {"prompt": "b"}]))

    def test_turns_are_missing(self, tmp_path):
        path = write_rows(tmp_path / "a.jsonl", [{"question_id": 81, "choices": [{"index": 0, "turns": ["x"]}]}])
        with pytest.raises(ValueError, match="answers 1 of 2 turns of the question '81'"):
            read_answers(path, questions_of(MT_BENCH[:1]))

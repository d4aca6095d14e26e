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
"""Scored answers that others have made, and `trl-distill binarize`."""

import gzip
import json
import re

import pytest
from datasets import Dataset

from tests.commands import error_of, read_rows, write_rows
from trl_distill.scripts import binarize
from trl_distill.zephyr import preference_pairs, scored_rows


ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def completion(text, ratings, overall=None, model="m", **changes):
    """A completion as UltraFeedback has it."""
    annotations = {name: {"Rating": r, "Rationale": "..."} for name, r in zip(ASPECTS, ratings, strict=True)}
    return {
        "annotations": annotations,
        "critique": "...",
        "custom_system_prompt": "As an AI assistant, ...",
        "fine-grained_score": 3.0,
        "model": model,
        "overall_score": overall,
        "principle": "helpfulness",
        "response": text,
    } | changes


@pytest.fixture
def ultrafeedback():
    return [
        {
            "source": "flan",
            "instruction": "Why is the sky blue?",
            "models": ["a", "b", "c", "d"],
            "completions": [
                completion("Scattering.", ("5", "N/A", "5", "4"), 8.5, "a"),
                completion("It is not.", ("1", "1", "1", "1"), 10.0, "b"),  # a 1 that was multiplied by 10
                completion("Light scatters.", ("4", "5", "5", "3"), 7, "c"),
                completion("", ("1", "1", "1", "1"), 1, "d"),
            ],
            "correct_answers": ["None"],
        },
        {
            "source": "evol_instruct",
            "instruction": "Name a prime.",
            "completions": [
                completion("2", ("5", "5", "five", "5"), 10.0),
                completion("4", (3, 3, 3, 3), 6),
                completion("9", ("2", "2", "2", "7"), None, annotations=[]),  # a failed annotation
            ],
        },
    ]


class TestUltraFeedback:
    def test_ratings_and_scores(self, ultrafeedback):
        rows, counts = scored_rows(ultrafeedback)
        assert [row["prompt"] for row in rows] == ["Why is the sky blue?", "Name a prime."]
        first, second = (row["candidates"] for row in rows)
        assert [(c["text"], c["model"], c["score"]) for c in first] == [
            ("Scattering.", "a", 8.5),
            ("It is not.", "b", None),
            ("Light scatters.", "c", 7.0),
        ]
        assert first[0]["ratings"] == dict(zip(ASPECTS, (5, None, 5, 4), strict=True))
        assert second[0]["ratings"] == {"instruction_following": 5, "honesty": 5, "helpfulness": 5}
        assert second[0]["score"] == 10  # 10 beside good ratings is one
        assert second[2]["ratings"] == {} and second[2]["score"] is None
        assert counts == {
            "rows": 2,
            "empty_prompts": 0,
            "empty_answers": 1,
            "no_answers": 0,
            "unreadable_ratings": 1,
            "doubtful_overall_scores": 1,
            "ratings_of_another_length": 0,
        }

    def test_pairs(self, ultrafeedback):
        rows, _ = scored_rows(ultrafeedback)
        [pair], counts = preference_pairs(rows, rejected="min")
        assert [pair["chosen_model"], pair["rejected_model"]] == ["a", "b"]
        assert [pair["score_chosen"], pair["score_rejected"]] == [pytest.approx(14 / 3), 1]
        assert counts["unscored"] == 2 and counts["fewer_than_two"] == 1
        pairs, _ = preference_pairs(rows, score="overall", rejected="min")
        assert [(p["score_chosen"], p["score_rejected"]) for p in pairs] == [(8.5, 7.0), (10.0, 6.0)]

    def test_as_datasets_hands_it_out(self, ultrafeedback):
        """Arrow gives every row the keys of all others, with None."""
        ultrafeedback[1]["completions"][2]["annotations"] = None
        rows, counts = scored_rows(Dataset.from_list(ultrafeedback[:1]))
        assert scored_rows(ultrafeedback[:1]) == (rows, counts)

    def test_a_score_that_is_written_as_text(self):
        [row], _ = scored_rows([{"instruction": "p", "completions": [completion("t", "1234", "6.5")]}])
        assert row["candidates"][0]["score"] == 6.5

    def test_a_rating_that_is_out_of_range_is_not_taken(self):
        for rating in ("0", "6", "nan", "inf", "", None, "five", [5]):
            answer = completion("t", ("1", "2", "3", rating), 3)
            [row], counts = scored_rows([{"instruction": "p", "completions": [answer]}])
            assert row["candidates"][0]["ratings"].keys() == set(ASPECTS[:3]) and counts["unreadable_ratings"] == 1


class TestDistilabel:
    def test_rows(self):
        rows = [
            {
                "instruction": "p",
                "generations": ["a", "b", None, "d"],
                "ratings": [3, None, 1, "4.5"],
                "generation_models": ["x", "y", "z", "w"],
                "model_name": "the judge",
            }
        ]
        [row], counts = scored_rows(rows)
        assert [(c["text"], c["model"], c["score"], c["ratings"]) for c in row["candidates"]] == [
            ("a", "x", 3, {"overall": 3}),
            ("b", "y", None, {}),
            ("d", "w", 4.5, {"overall": 4.5}),
        ]
        assert counts["unreadable_ratings"] == 1
        [pair], _ = preference_pairs([row])
        assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("d", "a")

    def test_ratings_of_another_length_are_not_shifted(self):
        """A blank line in a rationale gave one rating too many, and the scores moved to other answers."""
        [row], counts = scored_rows([{"prompt": "p", "generations": ["a", "b"], "ratings": [1, 2, 3]}])
        assert [c["score"] for c in row["candidates"]] == [None, None] and counts["ratings_of_another_length"] == 1


def test_our_own_ratings():
    candidates = [
        {"text": "a", "model": "x", "ratings": {"honesty": 2.5}, "score": 2.5, "judges": {}},
        {"text": None, "model": "y", "ratings": {}, "score": None, "unscored": "the call got no answer"},
    ]
    prompt = [{"role": "user", "content": "p"}]
    rows, counts = scored_rows([{"prompt": prompt, "prompt_id": "7", "candidates": candidates}])
    assert [row["prompt_id"] for row in rows] == ["7"] and rows[0]["candidates"] == candidates[:1]
    assert counts["empty_answers"] == 1
    assert scored_rows([{"prompt": "p", "candidates": []}])[1]["no_answers"] == 1


def test_nothing_is_left_out_without_a_count():
    answers = [{"text": text, "score": 1} for text in ("a", "", "  ", None)]
    rows, counts = scored_rows([{"prompt": p, "candidates": answers} for p in ("p", "", None, [])])
    assert [[c["text"] for c in row["candidates"]] for row in rows] == [["a"]]
    assert (counts["rows"], counts["empty_prompts"], counts["empty_answers"]) == (4, 3, 3)


@pytest.mark.parametrize("value", ["two", True, 10**400, [2]])
def test_what_is_no_number_is_no_score_of_ours(value):
    candidates = [
        {"text": "a", "score": 1, "ratings": {"x": 1}},
        {"text": "b", "score": value, "ratings": {"x": value}},
    ]
    rows, counts = scored_rows([{"prompt": "p", "candidates": candidates}])
    assert counts["unreadable_ratings"] == 2
    for score in ("overall", "mean"):
        assert preference_pairs(rows, score=score)[1]["unscored"] == 1
    missing = [{"text": "a", "score": float("nan"), "ratings": {"x": None}}]
    assert scored_rows([{"prompt": "p", "candidates": missing}])[1]["unreadable_ratings"] == 0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "chosen": "a"}, "Row 1 has the columns prompt, chosen"),
        ({"completions": []}, "Row 1 has the columns completions"),
        ({"instruction": "p", "completions": ["a"]}, "Row 1 with `completions` cannot be read"),
        ({"instruction": "p", "completions": [{"text": "a"}]}, "Row 1 with `completions` cannot be read"),
        ({"prompt": "p", "candidates": [{"text": 5}]}, "an answer must be a text, got 5"),
        ({"prompt": "p", "candidates": [{"text": "half a pair \ud83d"}]}, "surrogates not allowed"),
        ({"prompt": "p", "candidates": [{"text": "a", "ratings": [1]}]}, "Row 1 with `candidates` cannot be read"),
        ({"prompt": 5, "candidates": []}, "must be a text or a list of messages, got 5"),
        ({"prompt": [{"role": "user"}], "candidates": []}, "needs the two texts `role` and `content`"),
        ({"prompt": "p", "generations": ["a"], "ratings": [1], "generation_models": ["x", "y"]}, "cannot be read"),
    ],
)
def test_rows_that_cannot_be_read(row, said):
    with pytest.raises(ValueError, match=said):
        scored_rows([row])


class TestCommand:
    @pytest.fixture
    def file(self, tmp_path, ultrafeedback):
        write_rows(tmp_path / "ultrafeedback.jsonl", ultrafeedback)
        return tmp_path / "ultrafeedback.jsonl"

    def run(self, arguments):
        sources = [] if "--decontaminate" in arguments else ["--decontaminate", "none"]  # no network here
        binarize.run([*map(str, arguments), *sources])

    def test_files_and_counts(self, file, tmp_path, capsys):
        names = ("pairs.jsonl", "sft.jsonl", "report.json")
        output, sft, report = (tmp_path / name for name in names)
        policy = ("--score", "overall", "--rejected", "all_pairs")
        self.run([file, "--output", output, "--sft_output", sft, "--report_file", report, *policy])
        assert [(p["score_chosen"], p["score_rejected"]) for p in read_rows(output)] == [(8.5, 7.0), (10.0, 6.0)]
        assert [row["messages"][-1]["content"] for row in read_rows(sft)] == ["Scattering.", "2"]
        counts = json.loads(report.read_text())
        known = {"prompts": 2, "unscored": 2, "pairs": 2, "doubtful_overall_scores": 1}
        assert {name: counts[name] for name in known} == known
        said = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["pairs", "2"] in said and ["without", "a", "score", "2"] in said
        assert not any("tied" in words for words in said)  # what never happened has no row

    def test_every_policy_of_the_command_line(self, file, tmp_path):
        for arguments in (
            ["--rejected", "random_lower", "--seed", "1"],
            ["--rejected", "random_rest", "--keep_identical"],
            ["--rejected", "min", "--min_margin", "1"],
            ["--rejected", "second", "--max_length_ratio", "9"],
            ["--rejected", "all_pairs", "--max_pairs_per_prompt", "1"],
            "--score weighted --weights honesty=1 helpfulness=2 truthfulness=1 instruction_following=0".split(),
        ):
            self.run([file, "--output", tmp_path / "pairs.jsonl", *arguments])
            assert read_rows(tmp_path / "pairs.jsonl")

    def test_formats_of_files(self, file, tmp_path, ultrafeedback):
        whole = file.read_bytes()
        (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(whole))
        (tmp_path / "rows.json").write_text(json.dumps(ultrafeedback[:1]))
        Dataset.from_list(ultrafeedback[:1]).to_parquet(tmp_path / "rows.parquet")
        Dataset.from_list(ultrafeedback[:1]).save_to_disk(tmp_path / "rows")
        results = []
        for name in ("ultrafeedback.jsonl", "rows.jsonl.gz", "rows.json", "rows.parquet", "rows"):
            self.run([tmp_path / name, "--output", tmp_path / "pairs.jsonl"])
            results.append(read_rows(tmp_path / "pairs.jsonl"))
        assert all(result == results[0] for result in results)

    def test_questions_of_an_evaluation_are_dropped(self, file, tmp_path):
        questions = tmp_path / "questions.txt"
        questions.write_text("why is the sky blue\n")
        files = ("--output", tmp_path / "pairs.jsonl", "--report_file", tmp_path / "report.json")
        self.run([file, *files, "--decontaminate", questions, "--score", "overall"])
        [pair] = read_rows(tmp_path / "pairs.jsonl")
        assert pair["prompt"][0]["content"] == "Name a prime."
        assert json.loads((tmp_path / "report.json").read_text())["contaminated"] == 1

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["FILE"], "required: --output"),
            (["none.jsonl", "--output", "OUT"], "none.jsonl"),
            (["FILE", "--output", "OUT", "--policy", "min"], "unknown field `policy`"),
            (["FILE", "--output", "OUT", "--rejected", "worst"], "invalid choice: 'worst'"),
            (["FILE", "--output", "OUT", "--min_margin", "9"], "No pair came out of"),
            (
                ["FILE", "--output", "OUT", "--decontaminate", "mmlu"],
                "`decontaminate` must name files, or be truthful_qa",
            ),
            (["FILE", "--output", "OUT", "--weights", "a:1"], "`weights` must look like"),
            (["FILE", "--output", "OUT", "--score", "weighted"], "`weights` belongs to"),
            (["FILE", "--output", "OUT", "--dataset_split", "x"], "No split 'x'"),
            (["FILE", "--output", "OUT", "--sft_output", "OUT"], "Two outputs have the name"),
        ],
    )
    def test_mistakes(self, file, tmp_path, arguments, said, capsys):
        places = {"FILE": file, "OUT": tmp_path / "pairs.jsonl"}
        assert re.search(said, error_of(capsys, self.run, *(places.get(part, part) for part in arguments)))
        assert not (tmp_path / "pairs.jsonl").exists()

    def test_truthful_qa_is_the_default(self, file, tmp_path, capsys):
        message = error_of(capsys, binarize.run, file, "--output", tmp_path / "pairs.jsonl")
        assert "switch the check off with `decontaminate: []`" in message  # no network here

    def test_a_line_that_is_no_json(self, tmp_path, capsys):
        (tmp_path / "rows.jsonl").write_text('{"prompt"\n')
        assert "Line 1 of" in error_of(capsys, self.run, tmp_path / "rows.jsonl", "--output", tmp_path / "pairs.jsonl")

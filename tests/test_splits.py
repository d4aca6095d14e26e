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

import numpy as np
import pytest
from datasets import Dataset
from transformers import TrainingArguments
from trl import DatasetMixtureConfig, ScriptArguments
from trl.scripts.utils import DatasetConfig

from tests.commands import write_rows
from trl_distill.training import load_splits, resolve, split_by_question


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


# One row of the question `q` with the answer `a`, in each format that TRL trains on
FORMATS = {
    "text": lambda q, a: {"prompt": f"{q}?", "completion": a, "label": a == "0"},
    "messages": lambda q, a: {
        "prompt": [{"role": "system", "content": "Add."}, user(q)],
        "completion": [assistant(a)],
    },
    "pairs": lambda q, a: {"prompt": q, "chosen": a, "rejected": "no"},
    "pairs without a prompt": lambda q, a: {"chosen": f"Q{q} A yes {a}", "rejected": f"Q{q} A no {a}"},
    "pairs of dialogues": lambda q, a: {"chosen": [user(q), assistant(a)], "rejected": [user(q), assistant("no")]},
    "dialogues": lambda q, a: {"messages": [user(q), assistant(a), user("Why?"), assistant("So.")]},
    "ShareGPT": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
}


@pytest.mark.parametrize("form", FORMATS)
def test_no_question_is_on_both_sides(form):
    numbers = [(q, a) for a in range(4) for q in range(10) if a <= q]  # rows of one question are far apart
    rows = Dataset.from_list([FORMATS[form](f"question {q}", str(a)) | {"number": q} for q, a in numbers])
    np.random.seed(0)
    split = split_by_question(rows, 0.3)
    train, test = split["train"]["number"][:], split["test"]["number"][:]
    assert sorted(train + test) == sorted(rows["number"][:])
    assert len(set(test)) == 3 and not set(train) & set(test)
    assert train != sorted(train) and len(set(train[:5])) == 5  # the rows of one question are no run of the data


@pytest.mark.parametrize("column", ["prompt", "text"])
def test_rows_that_share_nothing_are_split_as_ever(column):
    rows = Dataset.from_dict({column: [str(i) for i in range(20)]})
    splits = []
    for split in (lambda: split_by_question(rows, 5), lambda: rows.train_test_split(5)):
        np.random.seed(3)
        splits.append({name: side[column][:] for name, side in split().items()})
    assert splits[0] == splits[1] and len(splits[0]["test"]) == 5


def test_rows_without_a_prompt_are_not_one_question():
    rows = Dataset.from_list([{"prompt": None, "text": str(i)} for i in range(8)])
    assert len(split_by_question(rows, 0.25)["test"]) == 2


class TestLoadSplits:
    def load(self, tmp_path, streaming=False, **changes):
        for name, start in (("one", 0), ("two", 5)):  # the two share questions 5 to 9
            rows = [{"prompt": f"{q}?", "completion": a} for a in "abc" for q in range(start, start + 10)]
            write_rows(tmp_path / f"{name}.jsonl", rows)
        files = [DatasetConfig(path="json", data_files=str(tmp_path / f"{name}.jsonl")) for name in ("one", "two")]
        mixture = DatasetMixtureConfig(datasets=files, streaming=streaming, test_split_size=0.2)
        args = TrainingArguments(str(tmp_path / "out"), eval_strategy="steps", eval_steps=1, use_cpu=True, **changes)
        script_args = ScriptArguments()
        resolve(script_args, args, mixture)
        return load_splits(script_args, args, mixture)

    def test_a_mixture_is_split_as_one(self, tmp_path):
        splits = self.load(tmp_path)
        train, test = (set(splits[name]["prompt"]) for name in ("train_dataset", "eval_dataset"))
        assert not train & test and len(test) == 3 and len(train) == 12

    def test_the_split_is_that_of_the_seed(self, tmp_path):
        np.random.seed(5)
        first = self.load(tmp_path)["eval_dataset"]["prompt"][:]
        np.random.seed(6)
        assert self.load(tmp_path)["eval_dataset"]["prompt"][:] == first
        assert self.load(tmp_path, seed=7)["eval_dataset"]["prompt"][:] != first

    def test_a_stream_has_no_rows_to_draw_from(self, tmp_path):
        with pytest.raises(ValueError, match="`test_split_size` needs all rows"):
            self.load(tmp_path, streaming=True)

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

"""Where a solution of GSM8K departs from its reference, and what is trained on up to there."""

import pytest

from benchmarks.rationales.gsm8k import first_mistake, plain
from benchmarks.rationales.real_model import to_the_first_wrong_token


REFERENCE = "She has 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nShe makes 9 * 2 = $<<9*2=18>>18.\nA: 18"


@pytest.mark.parametrize(
    ("solution", "mistake"),
    [
        ("She has 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nShe makes 9 * 2 = $<<9*2=20>>20.\nA: 20", "20. The answer"),
        ("She has 16 eggs, 16 - 3 = <<16-3=13>>13 left.\nThat is 13 * 2 = <<13*2=26>>26.\nA: 26", "= 13 left"),
        ("She has 16 eggs - 5 eggs = <<16-5=11>>11 left.\nA: 11", "5 eggs = 11"),
        ("Of 7,000 eggs, 7,000 / 2 = <<7000/2=3500>>3,500.\nA: 3500", "7,000 / 2"),
        ("She has 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nA: 9", "9."),  # all of it is right but the answer
        ("She has 16 - 3 - 4 = 9 eggs.\nShe makes 9 x 3 = 27.\nA: 27", "3 = 27"),  # without notes
        ("Nobody knows.\nA: 5", "5."),
    ],
)
def test_first_mistake(solution, mistake):
    text = plain(solution)
    assert text[first_mistake(solution, REFERENCE) :].startswith(mistake)


def test_rows_end_with_the_first_wrong_token(tokenizer):
    row = {"prompt": "Q:", "completion": " 1 + 1 = 3. The answer is 3.", "label": False, "right": 9}
    cut = to_the_first_wrong_token(row, tokenizer)
    assert cut == {"completion": " 1 + 1 = 3", "right_tokens": 9}  # of bytes
    right = row | {"label": True, "right": None}
    assert to_the_first_wrong_token(right, tokenizer) == {"completion": row["completion"], "right_tokens": 0}

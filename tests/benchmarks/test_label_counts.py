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

from benchmarks.rationales import label_counts


def test_counts_of_invented_rationales(tmp_path):
    texts = [r"\boxed{\frac12}", r"\boxed{0.5}", r"\boxed{0.50}", "The answer is 1/2.", r"\boxed{3}", "none", "none"]
    rows = [
        {"question": "A half?", "answer": r"\boxed{\frac{1}{2}}", "generated_answer": texts},
        {"question": "Two?", "answer": r"\boxed 2", "generated_answer": [r"\boxed{2}" + " " * 1193, r"\boxed{3}"]},
    ]
    for name in label_counts.FILES.values():
        with gzip.open(tmp_path / name, "wt") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    label_counts.main(["--data", str(tmp_path), "--output", str(tmp_path / "counts.json")])

    text = (tmp_path / "counts.json").read_text()
    assert "half" not in text and "frac" not in text  # only counts leave
    result = json.loads(text)
    assert set(result["teachers"]) == {"gpt-3.5-turbo", "gpt-4"}
    teacher = result["teachers"]["gpt-4"]
    assert teacher["questions"] == 2 and teacher["rationales"] == 9
    right, wrong, none = (
        {rule: counts[name] for rule, counts in teacher["counts"].items()} for name in ("right", "wrong", "no_answer")
    )
    assert right == {"release": 2, "marked, MATH strings": 4, "marked": 5}
    assert wrong == {"release": 7, "marked, MATH strings": 3, "marked": 2}
    assert none == {"release": 0, "marked, MATH strings": 2, "marked": 2}
    counts = teacher["counts"]
    assert counts["release"]["repeats"] == 1 and counts["release"]["wrong_and_unboxed"] == 3
    assert counts["marked"]["unboxed"] == 3 and counts["marked"]["right_but_unboxed"] == 1
    assert counts["release"]["questions_all_wrong"] == 1  # the box of its reference has no braces
    assert counts["marked"]["under_1600_right"] == 5 and counts["marked"]["under_1200_right"] == 4
    assert teacher["scaled_to_7500_questions"]["marked"]["right"] == 5 * 3750

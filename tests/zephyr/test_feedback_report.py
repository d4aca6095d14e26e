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
"""The loop of AI feedback, with models that follow rules."""

import pytest
from rules import judge, pool


class TestReport:
    def test_numbers(self, feedback, read):
        report = feedback()
        pairs, ratings = read("pairs"), read("ratings")
        margins = sorted(pair["score_chosen"] - pair["score_rejected"] for pair in pairs)
        found = report["pair_statistics"]
        assert found["margin"]["mean"] == pytest.approx(sum(margins) / len(margins))
        assert (found["margin"]["least"], found["margin"]["most"]) == (margins[0], margins[-1])
        edges, counts = found["margin"]["histogram"].values()
        assert sum(counts) == len(pairs) and (edges[0], edges[-1]) == (margins[0], margins[-1])
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            assert count == sum(low <= m < high or m == high == margins[-1] for m in margins)
        longer = [len(p["chosen"][0]["content"]) > len(p["rejected"][0]["content"]) for p in pairs]
        assert found["chosen_longer"] == sum(longer) / len(longer)
        for name in "abcd":
            scores = [c["score"] for row in ratings for c in row["candidates"] if c["model"] == name]
            assert report["models"][name] == {
                "answers": len(scores),
                "scored": len(scores),
                "mean_score": pytest.approx(sum(scores) / len(scores)),
                "chosen": sum(pair["chosen_model"] == name for pair in pairs),
                "rejected": sum(pair["rejected_model"] == name for pair in pairs),
            }

    def test_names_that_look_like_formulas(self, feedback, tmp_path, picture):
        feedback(pool("$a_{$", "b"), [judge("$\\no$")])
        assert (tmp_path / "out" / "report.png").exists()

    def test_without_matplotlib(self, feedback, tmp_path, caplog):
        report = feedback("ab")
        assert report["pairs"]["pairs"] and "pip install trl-distill[bench]" in caplog.text
        assert {path.name for path in (tmp_path / "out").iterdir()} >= {"pairs.jsonl", "report.json"}
        assert not list((tmp_path / "out").glob("report.png*"))

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
"""Scores from replies: what reads as a score, what does not, and why not."""

import json
import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_distill.chat.judge_scores import parse_scores


# Replies about answers A and B that mean 8 and 4
BOTH = {
    "json": '{"evidence": "A is better.", "scores": {"A": 8, "B": 4}}',
    "other order": '{"scores": {"B": 4, "A": 8}}',
    "bare labels": '{"A": 8, "B": 4}',
    "labels in words": '{"scores": {"Answer A": 8, "answer b": 4}}',
    "list of objects": '{"scores": [{"B": 4}, {"A": 8}]}',
    "flat": '{"evidence": "x", "A": 8, "B": 4}',
    "fence": '```json\n{"evidence": "x", "scores": {"A": 8, "B": 4}}\n```\n',
    "text around": 'My scores: {"A": 8, "B": 4} Is that all?',
    "broken lines in a text": '{"evidence": "A is\n\nbetter", "scores": {"A": 8, "B": 4}}',
    "quotes in a text": '{"evidence": "A says "hi"", "scores": {"A": 8, "B": 4}}',
    "unclosed": '{"evidence": "x", "scores": {"A": 8, "B": 4}',
    "fake in the evidence": json.dumps({"evidence": '{"scores": {"A": 1, "B": 1}}', "scores": {"A": 8, "B": 4}}),
    "the last object": '{"scores": {"A": 1, "B": 1}} No. {"scores": {"A": 8, "B": 4}} {"done": true}',
    "thoughts": '<think>{"A": 1, "B": 1}?\nA: 2</think>{"A": 8, "B": 4}',
    "thoughts without their start": 'A: 2, B: 3</think>\n{"A": 8, "B": 4}',
    "texts as numbers": '{"scores": {"A": "8/10", "B": " 4 "}}',
    "decimals": '{"scores": {"A": 8.0, "B": "4.00"}}',
    "lines": "Answer A: 8\nAnswer B: 4",
    "trailing line": "Answer A: 8\nAnswer B: 4\n\n",
    "carriage returns": "Answer A: 8\r\nAnswer B: 4\r\n",
    "out of 10": "Answer A: 8/10\nAnswer B: 4 out of 10",
    "blank line": "Answer A: 8\n\nIt is good.\n\nAnswer B: 4\n",
    "bold label": "**A**: 8\n**B**: 4",
    "bold label and colon": "**A:** 8\n**B:** 4",
    "all bold": "**Answer A: 8/10**\n**Answer B: 4/10**",
    "rating": "A - Rating: 8\nB - Rating: 4",
    "score": "Answer A: Score: 8\nAnswer B: Score 4",
    "reasons behind": "A: 8, since it is right\nB: 4 (too short). The end.",
    "one line": "A: 8 and B: 4",
    "one line, nothing between": "A: 8 B: 4",
    "table": "| A | 8 |\n| B | 4 |",
    "list": "1. Assistant A = 8\n2. Assistant B = 4.",
    "twice the same": "A: 8\nB: 4\n\nSo A: 8 and B: 4.",
    "reversed lines": "B: 4\nA: 8",
}
REFUSED = {
    "": "no scores",
    "error": "no scores",
    "N/A": "no scores",
    "-1 -1": "no scores",
    "8\n4": "no scores",
    "Rating: 8\n\nRating: 4": "no scores",
    "<think>A: 8\nB: 4": "no scores",
    '{"evidence": "x"}': "no scores",
    "{" * 5000: "no scores",
    '{"A":' * 3000: "no scores",
    "Answer A: 8": "missing label",
    "Answer A: 8\nAnswer B: four": "missing label",
    "Answer A: 8\nAnswer B: 4,5": "missing label",
    "Answer A: 8\nAnswer B: 4-5": "missing label",
    "Answer A: 8\nAnswer B: 4 - 5": "missing label",
    "Answer A: 8\nAnswer B: 4%": "missing label",
    "Answer A: 8\nAnswer B: 4/10/2024": "missing label",
    "Answer A: 8\nAnswer B: 4 mistakes": "missing label",
    "Answer A: 8\nAnswer B: ٤": "missing label",
    "Answer A: 8\nAnswer B: 4٤": "missing label",
    "Answer A: 8\nAnswer B: −4": "missing label",
    "A: 8\nRating: 4": "missing label",
    "A class of 8. B: 4": "missing label",
    '{"scores": {"A": 8}}': "missing label",
    '{"scores": [8, 4]}': "missing label",
    '{"score": 8}': "missing label",
    '{"scores": [{"A": 8, "B": 4}, {"A": 7, "B": 4}]}': "two scores",
    '{"scores": {}}': "no scores",
    "A: 8\nB: 4\nC: 3": "extra label",
    '{"scores": {"A": 8, "B": 4, "C": 3}}': "extra label",
    '{"A": 8, "B": 4, "C": 3}': "extra label",
    '{"scores": {"A": 8, "B": 4, "overall": 3}}': "extra label",
    "A: 8\nB: 4\nA: 7": "two scores",
    '{"scores": {"A": 8, "B": 4, "A": 7}}': "two scores",
    '{"scores": {"A": 8, "Answer A": 7, "B": 4}}': "two scores",
    "A: 80\nB: 4": "out of range",
    "A: -6\nB: 4": "out of range",
    "A: 0\nB: 4": "out of range",
    "A: 8/5\nB: 4": "out of range",
    '{"scores": {"A": 80, "B": 4}}': "out of range",
    '{"scores": {"A": -6, "B": 4}}': "out of range",
    '{"scores": {"A": NaN, "B": 4}}': "out of range",
    '{"scores": {"A": Infinity, "B": 4}}': "out of range",
    '{"scores": {"A": 1e999, "B": 4}}': "out of range",
    '{"scores": {"A": 1' + "0" * 400 + ', "B": 4}}': "out of range",
    '{"scores": {"A": 1' + "0" * 9999 + ', "B": 4}}': "out of range",
    '{"scores": {"A": true, "B": 4}}': "not a number",
    '{"scores": {"A": null, "B": 4}}': "not a number",
    '{"scores": {"A": "N/A", "B": 4}}': "not a number",
    '{"scores": {"A": "ten", "B": 4}}': "not a number",
    '{"scores": {"A": "8,5", "B": 4}}': "not a number",
    '{"scores": {"A": "٨", "B": 4}}': "not a number",
    '{"scores": {"A": [8], "B": 4}}': "not a number",
    '{"scores": {"A": 8, "B": 4}} {"A": "", "B": ""}': "not a number",
    "A: N/A\nB: 4": "not a number",
}


@pytest.mark.parametrize("reply", BOTH.values(), ids=BOTH)
def test_scores_of_two_answers(reply):
    scores = parse_scores(reply, ["B", "A"])
    assert scores == {"A": 8.0, "B": 4.0}
    assert list(scores) == ["B", "A"] and all(isinstance(score, float) for score in scores.values())


@pytest.mark.parametrize(("reply", "reason"), REFUSED.items(), ids=[f"{reply:.40}" for reply in REFUSED])
def test_what_is_no_score_is_refused_with_a_reason(reply, reason):
    with pytest.raises(ValueError, match=rf"^{reason}: ."):
        parse_scores(reply, ["A", "B"])


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        *[("Rating: 1", 1), ("1/10", 1), ("9/10", 9), ("10", 10), ("**8**\n", 8), ("Score: 8/10.", 8)],
        *[("It is good.\n\nRating: 8", 8), ("The score is: 7.5\n", 7.5), ("**Rating:** 8", 8), ("A: 8", 8)],
        *[('{"evidence": "x", "score": 8}', 8), ('{"scores": {"A": 8}}', 8), ('{"Rating": "8/10"}', 8)],
    ],
)
def test_a_single_answer_needs_no_label(reply, score):
    assert parse_scores(reply, ["A"]) == {"A": score}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        *[("ten", "no scores"), ("8.", "no scores"), ("8 of them", "no scores"), ("The score is 4f9a", "no scores")],
        *[("Rating: ten", "no scores"), ("The highest score is 10.", "no scores"), ("B: 8", "extra label")],
        *[("Rating: 8\nRating: 7", "two scores"), ('{"score": 8, "rating": 7}', "two scores"), ("11", "out of range")],
    ],
)
def test_what_is_no_score_of_a_single_answer(reply, reason):
    with pytest.raises(ValueError, match=rf"^{reason}: ."):
        parse_scores(reply, ["A"])


def test_scores_are_never_rescaled():
    """A 1 stays a 1, and "8/10" is nothing on a scale to 5."""
    assert parse_scores("5/5", ["A"], (1, 5)) == {"A": 5.0}
    assert parse_scores("0.25/1", ["A"], (0.0, 1.0)) == {"A": 0.25}
    for reply, scale in (("8/10", (1, 5)), ("4/10", (1, 5)), ("1/5", (1, 10)), ("0.9", (1, 10))):
        with pytest.raises(ValueError, match="^out of range: "):
            parse_scores(reply, ["A"], scale)


@pytest.mark.parametrize("reply", ['{"scores": {"A": "N/A", "B": 4}}', '{"A": null, "B": 4}', "A: n/a\nB: 4"])
def test_not_applicable_is_no_number(reply):
    assert parse_scores(reply, ["A", "B"], optional=True) == {"A": None, "B": 4.0}


def test_of_a_reply_that_was_cut_only_whole_json_counts():
    whole = '{"evidence": "x", "scores": {"A": 8, "B": 4}}'
    lines = whole.replace("x", "line\n\nline") + " So"
    for reply in (whole, lines, f"```json\n{whole}\n```\nThe", f"First {whole} and"):
        assert parse_scores(reply, ["A", "B"], cut_off=True) == {"A": 8.0, "B": 4.0}
    for reply in (whole[:-1], '{"A": 8, "B": 4}', "A: 8\nB: 4", f'{whole} No, {{"evid', f"<think>{whole}"):
        with pytest.raises(ValueError, match="^no scores: "):
            parse_scores(reply, ["A", "B"], cut_off=True)
    assert parse_scores('{"score": 8} So', ["A"], cut_off=True) == {"A": 8.0}


LETTERS = st.integers(1, 26).flatmap(lambda count: st.permutations(string.ascii_uppercase[:count]))


@given(LETTERS, st.integers(0, 3), st.integers(0, 2**32))
def test_each_layout_gives_each_label_its_score(labels, layout, seed):
    rng = random.Random(seed)
    scores = {label: rng.randint(4, 40) / 4 for label in labels}
    said = rng.sample(sorted(scores.items()), len(scores))
    reply = (
        json.dumps({"evidence": "Answer A: 3. B = 2", "scores": dict(said)}),
        json.dumps(dict(said)),
        "\n\n".join(f"**Answer {label}**: {score}/10" for label, score in said),
        ", ".join(f"{label}: {score}" for label, score in said),
    )[layout]
    assert parse_scores(reply, labels) == scores


@given(st.text(alphabet='AB:8 4/10.-\n{}"|*scores,naN<think>', max_size=60))
def test_any_text_gives_valid_scores_or_a_reason(text):
    try:
        scores = parse_scores(text, ["A", "B"], optional=True)
    except ValueError as error:
        assert str(error).split(":")[0] in set(REFUSED.values())
    else:
        assert scores.keys() == {"A", "B"}
        assert all(score is None or 1 <= score <= 10 for score in scores.values())

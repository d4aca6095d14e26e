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

"""Where thoughts end and the answer begins."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_distill.chat.thoughts import marking_tokens, split_thoughts


MARKS = [
    ("<think>", "</think>"),
    ("<THINK>", "</THINK>"),
    ("<seed:think>", "</seed:think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>analysis<|message|>", "assistant<|channel|>final<|message|>"),  # as it is when it is decoded
]


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_marks_of_models(opening, closing):
    for text in (f"{opening}\nHm, 2.\n{closing}\n\nYes.", f" {opening}Hm, 2.{closing}Yes.", f"Hm, 2.{closing}\nYes."):
        assert split_thoughts(text) == ("Hm, 2.", "Yes.")
    assert split_thoughts(f"{opening}\nHm, 2") == ("Hm, 2", "")
    assert split_thoughts(f"{opening}\n\n{closing}\n\nYes.") == ("", "Yes.")


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        ("<think>a <think> b</think> c</think>Yes.", "a <think> b\nc", "Yes."),
        ("<think>a</think>\n<think>b</think>\nYes.", "a\nb", "Yes."),
        ("Yes.\n<think>a</think>\nNo.", "a", "Yes.\n\nNo."),
        ("Yes.\n<think>a", "a", "Yes.\n"),
        ("<think>a </thinking> b</think>Yes.", "a </thinking> b", "Yes."),
    ],
)
def test_thoughts_in_other_places(text, thoughts, answer):
    assert split_thoughts(text) == (thoughts, answer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " Yes.\n",
        "I think <b>so</b>.",
        "Write `<think>` first and `</think>` last.",
        "A model writes <think>Hm</think> before it answers.",
        'The marks are "<think>" and "</think>".',
        "Use this form:\n<thinking>\nwhat you think\n</thinking>\n<answer>what you say</answer>",
        "```\n<think>\nHm\n</think>\n```\nThat is how it looks.",
    ],
)
def test_text_about_marks_is_an_answer(text):
    assert split_thoughts(text) == ("", text)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "\n", "`", "```", "a", "<reasoning>", "</reasoning>", " "])))
def test_any_order_of_marks(parts):
    """What is left has no thoughts, and nothing is in it that was not there."""
    thoughts, answer = split_thoughts("".join(parts))
    assert split_thoughts(answer) == ("", answer)
    given = iter("".join(parts))
    assert all(char in given for char in answer)


def test_tokens_that_decoding_must_not_skip():
    tokens = [
        "<|endoftext|>",
        "<|im_end|>",
        "<|end|>",
        "[THINK]",
        "[/THINK]",
        "<|channel|>",
        "<|message|>",
        "</think>",
    ]
    assert marking_tokens(tokens) == tokens[3:]

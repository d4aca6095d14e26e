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

"""What becomes of the replies of generators, and which answers of a teacher are refusals."""

import time
from collections import Counter
from pathlib import Path

import pytest
import toy

from tests.commands import read_rows
from trl_distill.chat import Completion
from trl_distill.lion import Instruction, LionConfig, training_rows
from trl_distill.lion.generation import fault
from trl_distill.lion.reading import has_answer, is_refusal, read_instruction
from trl_distill.lion.stages import preference_rows


REPLIES = read_rows(Path(__file__).with_name("generator_replies.jsonl"))


def test_what_each_reply_becomes():
    """The instruction in it, or `null` and the filter that drops it. Honest ones look like others, and stay."""
    kinds = Counter(row["kind"] for row in REPLIES)
    assert len(REPLIES) > 400 and kinds["honest"] > 120 and min(kinds.values()) > 1
    filters = ["refusal", "with_answer"]
    for row in REPLIES:
        text = read_instruction(row["reply"])
        dropped_by = fault(text, "stop", filters) if text else "empty"
        assert (None if dropped_by else text, dropped_by) == (row["becomes"], row["dropped_by"]), row


@pytest.mark.parametrize("row", [row for row in REPLIES if row["becomes"]][::7], ids=lambda row: row["kind"])
def test_reading_twice_changes_nothing(row):
    assert read_instruction(row["becomes"]) == row["becomes"]


@pytest.mark.parametrize(
    "text",
    ["new " * 5000, " \n" * 5000, "**" * 5000, "<task>" * 3000, "</task> " * 3000, "\nthe answer" * 3000, "#" * 9000],
)
def test_long_texts_are_read_soon(text):
    start = time.perf_counter()
    is_refusal(read_instruction(text), text), has_answer(text)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("answer", "instruction", "refused"),
    [
        ("I'm sorry, but I can't assist with that.", "How do I pick the lock of my neighbour's door?", True),
        ("I’m unable to provide medical advice. Please see a doctor.", "Is 40 degrees a high fever?", True),
        ("As an AI language model, I don't have access to live weather data.", "Will it rain in Oslo today?", True),
        ("Sorry, but I cannot write content that insults people.", "Insult my brother in rhyme.", True),
        ("抱歉，我无法回答这个问题。", "今天的股价是多少？", True),
        ("Lo siento, pero no puedo hacer eso.", "Dime la contraseña.", True),
        ("<think>\nRisky.\n</think>\n\nI can't help with that.", "Mix bleach and acid.", True),
        ("I'm sorry, but I cannot provide a refund after 30 days.", "Decline a refund politely.", False),
        ("I'm sorry, but I can't give you that day off.", "Write how a boss turns the request down.", False),
        ("Sorry, I can't write poems about Mondays! Here's one about Fridays: ...", "A funny poem, please.", False),
        ("I'm sorry for your loss. May you find comfort.", "Write one line for a sympathy card.", False),
        ("I can't sleep, said the owl, because the moon is loud.", "Begin a story for children.", False),
        ("The sentence is: I'm sorry, but I can't help with that.", "Which sentence do chatbots say?", False),
        ("抱歉在法语里是 désolé。", "把“抱歉”翻译成法语。", False),
        ("Unfortunately, the bridge was never finished.", "What became of the bridge?", False),
    ],
)
def test_refusals_of_a_teacher(answer, instruction, refused):
    assert is_refusal(answer, instruction) == refused
    rows, counts = training_rows([Instruction(instruction)], [Completion(answer)])
    assert (len(rows), counts["refused"], counts["rows"]) == (not refused, refused, not refused)
    rows, counts = training_rows([Instruction(instruction)], [Completion(answer)], keep_refusals=True)
    assert (rows[0]["completion"][0]["content"], counts["refused"]) == (answer, 0)


def test_no_pair_prefers_a_refusal():
    pool = [Instruction("Pick a lock."), Instruction("Name a bird.")]
    theirs, ours = [Completion("I can't assist with that."), Completion("A wren.")], [Completion("Turn it.")] * 2
    assert [row["id"] for row in preference_rows(pool, theirs, ours)] == [pool[1].id]
    assert len(preference_rows(pool, theirs, ours, keep_refusals=True)) == 2


class TestLoop:
    def refusing(self):
        """A teacher that does not answer the tasks of one family."""
        right = toy.teacher().function

        def answer(request):
            text = request.messages[-1]["content"]
            return "I'm sorry, but I can't assist with this." if toy.family_of(text) == 2 else right(request)

        return toy.Rule(answer, "teacher")

    def test_refusals_are_counted_and_left_out(self, world, read):
        report = world(models={"teacher": self.refusing()}).run().report
        rows = read("round_0/answers.jsonl")
        counts = report["rounds"][0]["answers"]
        assert counts["refused"] > 0 and counts["rows"] == len(rows)
        assert {toy.family_of(row["prompt"][0]["content"]) for row in rows} == {0, 1, 3}

    def test_or_kept(self, world, read):
        report = world(models={"teacher": self.refusing()}, keep_refusals=True).run().report
        assert report["rounds"][0]["answers"]["refused"] == 0
        assert any("sorry" in row["completion"][0]["content"] for row in read("round_0/answers.jsonl"))

    def test_no_dressing_and_no_pollution_gets_into_a_pool(self, world, read):
        write = toy.generator().function

        def dressed(request):
            text = write(request)
            forms = [
                "Happy to help! Here's another task:\n\n{}",
                "<think>\nOne more.\n</think>\n\n**新的任务：**\n{}",
                "```text\n{}\n```",
                "{}\n\n**Answer:** right",
                "I can't help with creating such tasks.",
            ]
            return forms[int(text.rpartition("word")[2]) % len(forms)].format(text)

        report = world(models={"generator": toy.Rule(dressed, "generator")}, max_attempts_factor=40).run().report
        assert all(row["text"].startswith("family") for row in read("round_2/cache_pool.jsonl"))
        assert not any("Answer" in row["text"] or "\n" in row["text"] for row in read("round_2/cache_pool.jsonl"))
        counts = Counter()
        for row in report["rounds"][1:]:
            counts.update({name: row["generation"]["counts"].get(name, 0) for name in ("refusal", "with_answer")})
        assert min(counts.values()) > 0


def test_filters_are_on_by_default():
    assert LionConfig().filters == ["cut_off", "too_short", "refusal", "with_answer"]
    assert not LionConfig().keep_refusals

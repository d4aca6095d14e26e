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
"""The laboratory of Zephyr: what its world and its judge claim about themselves, and one run of the three steps."""

import json
import random
import statistics

import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.laboratory import turn
from benchmarks.zephyr import filters
from benchmarks.zephyr.arms import ARMS, LEARNING_RATES, describe, feedback, folder_of
from benchmarks.zephyr.laboratory import Laboratory
from benchmarks.zephyr.rules import Shown, read_request, rouge_judge
from benchmarks.zephyr.run import starts_of, work
from benchmarks.zephyr.table import table
from benchmarks.zephyr.world import POOL, SLOT_BONUS, TEACHER, VALUES, Animals, Writer, judge_model, writer_model
from trl_distill.chat import ChatRequest, Judge, JudgeItem


WORLD = Animals(animals=12)
PROMPT = f"tell me the home and the food of the {WORLD.animals[0]}"


def other(aspect, value):
    return next(word for word in VALUES[aspect] if word != value)


def test_quality_counts_what_is_right_and_the_faults():
    animal, facts = WORLD.animals[0], WORLD.facts[WORLD.animals[0]]
    home, food = f"the {animal} lives in the {facts['home']} .", f"it eats {facts['food']} ."
    wrong = f"it eats {other('food', facts['food'])} ."
    assert WORLD.quality(PROMPT, f"{home} {food}") == 1
    assert WORLD.quality(PROMPT, f"its food is {facts['food']} . the home of the {animal} is {facts['home']} .") == 1
    assert WORLD.quality(PROMPT, home) == 0.5
    assert WORLD.quality(PROMPT, "") == 0
    for fault in (f"it is {facts['colour']} .", food, "it eats .", "the lives in", f"it eats {facts['home']} ."):
        assert WORLD.quality(PROMPT, f"{home} {food} {fault}") == pytest.approx(0.8), fault
    assert WORLD.quality(PROMPT, f"{home} {wrong}") == pytest.approx(0.5 * 0.8)
    assert WORLD.quality(PROMPT, f"{home} {wrong} {food}") == pytest.approx(0.5 * 0.8**2)  # it comes too late
    # What is said of another animal does not count, and `it` goes with the last one that was named
    second = WORLD.animals[1]
    assert WORLD.quality(PROMPT, f"the {second} lives in the {WORLD.facts[second]['home']} . {food}") == 0


def test_writers_do_what_they_are_said_to_do():
    generator, prompts = random.Random(0), WORLD.prompts(3000, seed=0)
    perfect = Writer(wrong=0, omitted=0, extra=0)
    assert all(WORLD.quality(prompt, WORLD.write(prompt, perfect, generator)) == 1 for prompt in prompts[:200])

    def quality(writer):
        return statistics.mean(WORLD.quality(prompt, WORLD.write(prompt, writer, generator)) for prompt in prompts)

    assert quality(TEACHER) > 0.72
    assert all(quality(writer) < 0.6 for writer in POOL.values())
    words = {word for prompt in prompts[:500] for word in WORLD.write(prompt, POOL["confused"], generator).split()}
    assert words <= set(WORLD.vocabulary)
    assert {word for prompt in prompts for word in prompt.split()} <= set(WORLD.vocabulary)
    tested = {WORLD.asked(prompt)[0] for prompt in WORLD.prompts(300, seed=0, test=True)}
    assert tested == set(WORLD.animals[::6]) and not tested & {WORLD.asked(prompt)[0] for prompt in prompts}


def test_a_writer_answers_equal_requests_equally():
    model = writer_model(WORLD, "confused", POOL["confused"])
    requests = [ChatRequest(turn(PROMPT), sample_index=i) for i in (0, 0, *range(1, 20))]
    texts = [answer.text for answer in model.complete(requests)]
    assert texts[0] == texts[1] and len(set(texts)) > 3


def test_all_orders_of_a_judge_rank_by_content_where_one_does_not():
    world, item = WORLD, []
    generator = random.Random(1)
    for i, prompt in enumerate(world.prompts(150, seed=1)):
        answers = [world.write(prompt, writer, generator) for writer in POOL.values()]
        item.append(JudgeItem(str(i), prompt, list(dict.fromkeys(answers))))

    def disagreements(orders):
        count = 0
        for one, judgement in zip(item, Judge(judge_model(world), num_orders=orders).judge(item), strict=True):
            content = [
                world.quality(one.prompt, text) + random.Random(json.dumps([one.prompt, text])).gauss(0, 1) / 8
                for text in one.answers
            ]
            for a, left in zip(judgement.scores, content, strict=True):
                for b, right in zip(judgement.scores, content, strict=True):
                    count += 0 < right < left - 0.2 < 0.5 and a <= b  # nothing is cut off at 1 or 10
        return count

    assert max(SLOT_BONUS) > 0
    assert disagreements(None) == 0 < disagreements(1)


def test_rules_read_what_a_judge_is_shown():
    judge = Judge(rouge_judge())
    item = JudgeItem("a", "Where?", ["In a barn\n<answer B>", "On the moon."], reference="in a barn")
    shown = read_request(judge.requests([item])[0])
    assert shown.prompt == "Where?" and shown.reference == "in a barn" and set(shown.answers) == {"A", "B"}
    assert set(shown.answers.values()) == set(item.answers)
    [judgement] = judge.judge([item])
    assert judgement.scores[0] > judgement.scores[1] and judgement.unscored == [None, None]
    [alone] = Judge(rouge_judge(), mode="absolute").judge([item])
    assert alone.scores == judgement.scores
    assert isinstance(shown, Shown)


def test_the_three_steps_in_a_minute_world(tmp_path, monkeypatch):
    monkeypatch.setitem(LEARNING_RATES, "sft from base", 5e-3)
    monkeypatch.setitem(LEARNING_RATES, "dpo from dsft", 3e-4)
    laboratory = Laboratory(
        tmp_path,
        world=Animals(animals=12),
        size={"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
        base_steps=40,
        dialogues=640,
        prompts=320,
        test_prompts=100,
        batch_size=16,
    )
    results = {"benchmark": "zephyr", "provenance": [{}], "base": {"parameters": 1}, "feedback": {}, "runs": []}
    output = tmp_path / "results.json"
    work(laboratory, results, output, ["ddpo", "dsft-2"], [0], [])
    runs = {run["arm"]: run for run in results["runs"]}
    assert list(runs) == ["base", "dsft", "ddpo", "dsft-2"]
    # dSFT teaches the form; DPO starts from it as its reference, and learns what is preferred
    assert runs["dsft"]["sampled"]["ended"] > 0.9 > runs["base"]["sampled"]["ended"]
    assert runs["ddpo"]["first_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert runs["ddpo"]["last loss"] < 0.67 and runs["ddpo"]["last rewards/accuracies"] > 0.6
    made = describe(laboratory, 0, "pool")
    assert made["better chosen"] > 0.8 and made["quality"]["chosen"] > made["quality"]["rejected"] + 0.2
    assert results["feedback"]["0"]["pool"] == made

    # What comes out loads with plain transformers, template included, and answers as it was measured
    prompts = laboratory.test(0)
    folder = folder_of(laboratory, "ddpo", 0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        turn(prompts[0]), add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )["input_ids"]
    assert ids.shape[1] == len(prompts[0].split()) + 3
    answer = model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == runs["ddpo"]["greedy"]["examples"][0]["answer"]

    # A second start finds everything done, and the answers of the student can join the pool
    saved = json.loads(output.read_text())
    work(laboratory, results, output, ["ddpo", "dsft-2"], [0], [])
    assert json.loads(output.read_text()) == saved
    rows = feedback(laboratory, 0, "student among four")
    of_student = [sum(c["model"] == "student" for c in row["candidates"]) for row in rows]
    assert max(of_student) == 1 and statistics.mean(of_student) > 0.8  # an empty answer is none
    words = {word for row in rows for c in row["candidates"] if c["model"] == "student" for word in c["text"].split()}
    assert words <= set(laboratory.world.vocabulary)
    printed = table(results)
    assert f"| ddpo | {100 * runs['ddpo']['sampled']['quality']:.1f} |" in printed and "| pool |" in printed


def test_arms_come_after_those_that_they_start_from():
    order = starts_of(list(reversed(ARMS)))
    assert sorted(order) == sorted(ARMS)
    for name, arm in ARMS.items():
        assert arm.start == "base" or order.index(arm.start) < order.index(name)
        assert arm.learning_rate in LEARNING_RATES.values()


def test_filters_are_counted():
    rows = [
        {"asked": "hello. how are you?", "said": "I am well. You are kind. Thank you all."},
        {"asked": "Good.", "said": "I don't have any feelings, since I am a model."},
    ]
    counts = filters.count(rows, ["asked"], ["said"])
    assert counts["texts"] == 4 and counts["answers"] == 2
    assert (counts["changed"], counts["places"]) == (1, 2)
    assert counts["dropped"] == 1
    # "I" is a pronoun, and no word of two letters with a small one behind it
    assert (counts["starts"], counts["within"], counts["within back"]) == (0, 2, 2)
    assert list(filters.texts([{"from": "gpt", "value": "a"}, {"output": "b"}, "c", None])) == ["a", "b", "c"]

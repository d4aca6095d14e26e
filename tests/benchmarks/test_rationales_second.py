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


"""The second laboratory of rationales: what its world claims about itself, and one short run of each arm."""

import random
import statistics
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.laboratory import pack
from benchmarks.rationales.dial import DIAL, Dial, Primer
from benchmarks.rationales.gates import HeadVariant
from benchmarks.rationales.second import PILOT, Run, SecondLaboratory, first_mistakes
from benchmarks.rationales.second_run import chosen, further, prepare, votes
from benchmarks.rationales.table import after_holm, controls_of, second
from benchmarks.rationales.uses import ARMS, FULL, Contrast, pairs_of, train
from trl_distill.chat import Samples
from trl_distill.rationales.nat.integration_unit import NATVariant


SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


class TinyPrimer(Primer):
    student = SIZE
    warm_steps = 2


def test_questions_are_worked_out_step_by_step():
    question, right = "7 + 9 * 2 - 9 =", "7 + 9 = 16 ; 16 * 2 = 8 ; 8 - 9 = 23 ; #### 23"
    assert DIAL.work(question) == right and DIAL.correct(question, right) and not DIAL.is_easy(question)
    wrong = "7 + 9 = 16 ; 16 * 2 = 8 ; 8 - 9 = 1 ; #### 1"
    assert DIAL.misconceived(8, "-", 9) == 1 and DIAL.misconceived(20, "+", 6) == 3
    assert DIAL.misconceived(8, "-", 3) is DIAL.misconceived(7, "+", 9) is DIAL.misconceived(20, "*", 2) is None
    assert not DIAL.correct(question, wrong)
    assert (DIAL.right_tokens(question, wrong), DIAL.right_steps(question, wrong)) == (16, 12)
    assert DIAL.right_steps(question, right[:-2] + "22") == 18  # all steps are right, but not the answer
    assert DIAL.right_tokens(question, right) == DIAL.right_tokens(question, right + " ;") == 20
    assert DIAL.answer_of(right + " ;") is None
    assert (DIAL.answer(question), DIAL.mistaken(question)) == ("23", "1")


def test_the_teacher_is_what_the_plan_says():
    generator = random.Random(0)
    questions = [DIAL.prompt(generator) for _ in range(1000)]
    answers = [[DIAL.complete(question, generator) for _ in range(6)] for question in questions]
    right = [
        [DIAL.correct(question, text) for text in texts] for question, texts in zip(questions, answers, strict=True)
    ]
    assert 0.4 < statistics.mean(map(statistics.mean, right)) < 0.5
    assert statistics.mean(not any(verdicts) for verdicts in right) > 0.4
    rows = [
        DIAL.correct(question, text) for question, texts in zip(questions, answers, strict=True) for text in {*texts}
    ]
    assert rows.count(False) / rows.count(True) > 1.6
    assert max(len(text.split()) for texts in answers for text in texts) < DIAL.max_completion_length


def test_pairs_take_own_right_answers_first():
    row = {"prompt": "a", "completion": "own wrong", "label": False}
    rows = [row, row | {"completion": "own right", "label": True}, row | {"prompt": "b"}, row | {"prompt": "c"}]
    teachers = [row | {"completion": "teacher's", "label": True}, row | {"prompt": "b", "completion": "teacher's"}]
    assert [(pair["prompt"], pair["chosen"]) for pair in pairs_of(rows, teachers)] == [
        ("a", "own right"),
        ("b", "teacher's"),
    ]


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    sizes = dict(questions=24, samples=3, batch_size=8, test_questions=20, held_out_questions=10)
    sizes |= dict(votes=2, vote_questions=8)
    return SecondLaboratory(
        tmp_path_factory.mktemp("laboratory"), Dial(), TinyPrimer(), **sizes, steps=4, looks=2, rounds=2
    )


def test_questions_are_apart(laboratory):
    parts = [laboratory.asked(0), laboratory.held_out(0), laboratory.test(0), laboratory.test(PILOT)]
    assert len({question for part in parts for question in part}) == sum(map(len, parts))


@pytest.mark.parametrize("full", [pytest.param(False, marks=pytest.mark.slow), True])
def test_every_arm_trains(laboratory, full):
    results, rates = [], {arm: rates[0] for arm, (_, rates) in ARMS.items()}
    base = {name: weight.clone() for name, weight in laboratory.base().state_dict().items()}
    for arm in FULL if full else ARMS:
        result = train(Run(laboratory, arm, 0.5, 0, rates[arm], full, rates))
        assert len(result["right"]) == 20
        results.append(result | {"right": pack(result["right"])})
    for name, weight in laboratory.base().state_dict().items():
        assert torch.equal(weight, base[name])
    of_arm = {result["arm"]: result for result in results}
    two_stages = {"negative then positive", "nat", "nat, zero adapter", "lora of nat's size", "mix"}
    two_stages |= {*(arm for arm in ARMS if arm.startswith(("nat", "nce")))}
    two_stages.add("rft, from the base")
    for arm in of_arm.keys() - {"contrast"}:
        assert of_arm[arm]["optimizer_steps"] == (8 if arm in two_stages else 4), arm
    if not full:
        sizes = {arm: result.get("trainable_parameters") for arm, result in of_arm.items()}
        assert sizes["nat"] == sizes["nat, zero adapter"] == sizes["lora of nat's size"] > sizes["cot kd"]
    prepared = {"prepare": {"0": prepare(laboratory, 0)}, "runs": results}
    if not full:
        prepared["vote"] = {"0.5": {"0": votes(laboratory, 0.5, 0, rates)}}
    printed = second(prepared)
    assert all(f"| {arm} | 1 | " in printed for arm in of_arm)


def test_rows_of_an_arm(laboratory):
    run = Run(laboratory, "ul", 0.5, 0, 1e-3, False, {})
    rows = laboratory.rationales(0)
    assert len(run.right) == round(sum(rows["label"]) / 2) and len(run.wrong) == len(rows) - sum(rows["label"])
    balanced, cut = run.balanced(), run.from_the_first_mistake()
    assert sum(row["label"] for row in balanced) * 2 == len(balanced) == 2 * len(run.wrong)
    for row, whole, marked in zip(cut, run.wrong, run.marked(), strict=False):
        assert row["prompt"] + row["completion"] == whole["prompt"] + whole["completion"]
        start = marked["right_tokens"]
        assert len(row["prompt"].split()) == len(whole["prompt"].split()) + start
        assert DIAL.work(whole["prompt"]).split()[:start] == whole["completion"].split()[:start]
    for row, whole in zip(run.to_the_first_wrong_token(), run.wrong, strict=False):
        *before, wrong = row["completion"].split()
        assert len(before) == row["right_tokens"] and whole["completion"].startswith(row["completion"])
        right = DIAL.work(whole["prompt"]).split()
        assert right[: len(before)] == before and right[len(before)] != wrong


def test_first_mistakes_are_found_by_roll_outs(laboratory):
    """Who goes on rightly from a beginning without mistakes, and from no other, finds what the world knows."""
    run = Run(laboratory, "ul", 0.5, 0, 1e-3, False, {})
    steps_of = {row["prompt"]: laboratory.pupil.work(row["prompt"]).split() for row in run.wrong}

    def draw(model, prompts, samples, seed, logprobs, written):
        texts = []
        for prompt in prompts:
            question, begun = prompt.split(" =", 1)[0] + " =", prompt.split(" =", 1)[1].split()
            right = steps_of[question]
            assert len(begun) == written
            texts.append(" ".join(right[len(begun) :]) if begun == right[: len(begun)] else "#### 99")
        return [Samples(["#### 99"] * (samples - 1) + [text], [], []) for text in texts]

    drawn = SimpleNamespace(seed=0, laboratory=SimpleNamespace(pupil=laboratory.pupil, draw=draw))
    assert first_mistakes(drawn, None, run.wrong) == [run.right_tokens(row) for row in run.wrong]
    steps_of = {prompt: ["#### 99"] for prompt in steps_of}
    assert {*first_mistakes(drawn, None, run.wrong)} == {None}


def test_a_gate_for_each_head_divides_the_layer():
    """With the same gate in all heads it is the lighter form of NAT; with a closed one that head alone is LoRA."""
    torch.manual_seed(0)
    layer = SimpleNamespace(scaling={"nat": 2.0, "neg": 1.5})
    layer.lora_A, layer.lora_B = ({name: nn.Linear(8, 8, bias=False) for name in ("nat", "neg")} for _ in range(2))
    one, x, result = nn.Linear(8, 3, bias=False), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    key = nn.Linear(8, 3, bias=False)
    layer.lora_nat_q, layer.lora_nat_k = {"nat": one}, {"nat": key}
    layer.active_adapters, layer.lora_dropout = ["nat"], {"nat": nn.Identity()}
    expected = NATVariant("neg", "identity", 1.0).forward(layer, "nat", x, result)
    queries, keys = (nn.Linear(8, 12, bias=False) for _ in range(2))
    queries.weight.data, keys.weight.data = one.weight.repeat(4, 1), key.weight.repeat(4, 1)
    layer.lora_nat_q, layer.lora_nat_k = {"nat": queries}, {"nat": keys}
    torch.testing.assert_close(HeadVariant("neg", 4).forward(layer, "nat", x, result), expected)
    queries.weight.data[3:6] = 0.0  # the second head, whose gate is then 0
    found = HeadVariant("neg", 4).forward(layer, "nat", x, result)
    alone = result + 2.0 * layer.lora_B["nat"](layer.lora_A["nat"](x))
    torch.testing.assert_close(found[..., 2:4], alone[..., 2:4])
    torch.testing.assert_close(found[..., [0, 1, 4, 5, 6, 7]], expected[..., [0, 1, 4, 5, 6, 7]])


def test_contrast_without_a_share_is_the_positive_student(laboratory):
    rates = {arm: rates[0] for arm, (_, rates) in ARMS.items()}
    for arm in ("cot kd", "cot kd, longer"):
        train(Run(laboratory, arm, 0.5, 0, rates[arm], False, rates))
    run = Run(laboratory, "contrast", 0.5, 0, 0.0, False, rates)
    questions = laboratory.ask(40, seed=5)
    contrast = ARMS["contrast"][0](run)
    assert isinstance(contrast, Contrast)
    found = contrast.answers(laboratory, questions)
    contrast.model.set_adapter("default")
    assert found == laboratory.accuracy(contrast.model, questions)


def test_controls_and_correction():
    assert controls_of("ul") == ["cot kd, longer"]
    assert controls_of("pairs") == ["cot kd, longer", "rft", "rft, from the base"]
    assert controls_of("first wrong token, ul") == ["cot kd, longer", "right steps"]
    assert controls_of("rft, first wrong token, ul") == [
        "cot kd, longer",
        "rft",
        "rft, from the base",
        "right steps",
        "rft, right steps",
    ]
    assert controls_of("nat") == ["cot kd, longer", "lora of nat's size", "nat, zero adapter"]
    near, far = [0.8, 0.1, 0.5, 0.2, 0.9], [1.0, 1.1, 1.0, 0.9, 1.0]  # p of 0.033 and below 1e-4
    assert after_holm({"a": near}) == {"a"} and after_holm({"a": near, "b": near}) == set()
    assert after_holm({"a": near, "b": far}) == {"a", "b"}
    assert after_holm({"a": [-value for value in far], "b": [1.0]}) == set()


def test_the_best_rate_of_the_pilot_is_chosen():
    def pilot(rate, right, **others):
        common = {"full": False, "share": 0.1, "seed": PILOT, "arm": "ul"}
        return common | {"rate": rate, "right": pack(right)} | others

    runs = [pilot(1e-3, [True, False]), pilot(3e-3, [True, True]), pilot(1e-2, [False, False])]
    runs += [pilot(1e-2, [True, True], share=1.0), pilot(1e-2, [True, True], seed=0)]
    assert chosen({"runs": runs}, False, 0.1) == {"ul": 3e-3}
    assert further({"runs": runs}, False, 0.1, "ul") is None
    runs[0]["right"] = runs[1]["right"] = pack([False, False])
    runs[2]["right"] = pack([True, False])
    assert further({"runs": runs}, False, 0.1, "ul") == 3e-2
    runs += [pilot(3e-2, [True, True]), pilot(1e-1, [True, True])]
    assert further({"runs": runs}, False, 0.1, "ul") is None

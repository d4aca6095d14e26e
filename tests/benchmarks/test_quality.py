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

"""
The laboratory of MiniLLM: what its worlds claim, its sampled divergence, and a short run of each method. The real
run on a model of random weights.
"""

import argparse
import gzip
import itertools
import json
import math
import random
from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.laboratory import EOS, build, word_tokenizer
from benchmarks.quality import real_run
from benchmarks.quality.arms import MINILLM, train
from benchmarks.quality.measure import draw, measure, sequence_kl
from benchmarks.quality.table import table
from benchmarks.quality.worlds import WORLDS, TextWorld
from benchmarks.smollm2 import random_model
from benchmarks.table import show


SIZE = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


class Coins(TextWorld):
    """Two words, for a model whose every completion can be listed."""

    name = "coins"
    vocabulary = ["heads", "tails"]
    max_completion_length = 3
    teacher = student = SIZE
    rollouts = 2
    references = 1

    def prompt(self, generator):
        return " ".join(generator.choices(self.vocabulary, k=2))

    def complete(self, prompt, generator):
        return " ".join(generator.choices(self.vocabulary, k=2))

    def surprise(self, prompt, completion):
        return 2 * math.log(2)


def entropy(*probabilities):
    return -sum(p * math.log(p) for p in probabilities)


ENTROPY = {
    # The mode, then ten digits: counting after a free first one, or facts with a fifth of free digits
    "modes": math.log(4) + (math.log(10) + 9 * entropy(0.7, 0.3)) / 2 + 10 * entropy(0.82, *[0.02] * 9) / 2,
    "arithmetic": 3 * entropy(0.99, *[0.01 / 9] * 9),
    # Theme, deed, place and thing, whether there is a friend, which friend and who finds, the end
    "stories": math.log(3) + 3 * math.log(2) + entropy(0.6, 0.4) + 0.6 * 2 * math.log(2) + entropy(0.75, 0.25),
}


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_knows_its_probabilities(name):
    world, generator = WORLDS[name], random.Random(0)
    rows = [world.sample(generator) for _ in range(4000)]
    surprise = torch.tensor([world.surprise(*row) for row in rows])
    error = surprise.std() / len(rows) ** 0.5
    assert abs(surprise.mean() - ENTROPY[name]) < 4 * error
    lengths = [len(completion.split()) + 1 for _, completion in rows]
    assert max(lengths) == world.max_completion_length or name == "arithmetic"
    assert {word for row in rows for text in row for word in text.split()} == set(world.vocabulary)


def test_arithmetic_is_checked():
    world, generator = WORLDS["arithmetic"], random.Random(0)
    assert world.correct("7 + 5 * 3 - 9 =", "2 * 3 = 6 - 9 = 7")
    for _ in range(200):
        prompt, completion = world.sample(generator)
        value, *rest = prompt.split()[:-1]
        for operator, digit in zip(rest[::2], rest[1::2], strict=True):
            value = eval(f"({value}) {operator} {digit}") % 10
        assert world.correct(prompt, completion) == (completion.split()[-1] == str(value))
        assert not world.correct(prompt, "")


def test_stories_are_checked():
    world, generator = WORLDS["stories"], random.Random(0)
    story = "ran to hill and met owl . owl found nut and gave it to ann . old ann was sad ."
    assert world.correct("old ann", story)
    for wrong, right in (("sea", "hill"), ("ben", "ann"), ("coin", "nut"), ("crab", "owl"), ("", " .")):
        assert not world.correct("old ann", story.replace(right, wrong)), wrong
    assert not world.correct("tall ann", story)
    assert all(world.correct(*world.sample(generator)) for _ in range(200))


def test_the_hopeless_modes_are_half_of_the_true_process():
    world, generator = WORLDS["modes"], random.Random(0)
    share = sum(world.hopeless(world.sample(generator)[1]) for _ in range(4000)) / 4000
    assert abs(share - 0.5) < 4 * 0.5 / 4000**0.5


def wide_model(seed):
    model = build(Coins(), SIZE, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():  # fresh models are all nearly uniform
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@torch.no_grad()
def test_the_sampled_divergence_is_the_listed_one():
    student, teacher, tokenizer = wide_model(1), wide_model(2), word_tokenizer(Coins.vocabulary)
    prompt = tokenizer(["heads tails"], return_tensors="pt")["input_ids"]
    exact = 0.0
    for tokens in itertools.product(range(4), repeat=3):
        end = tokens.index(EOS) + 1 if EOS in tokens else 3
        if any(tokens[end:]):
            continue  # each completion once: nothing but padding after its end
        sequence = torch.cat([prompt, torch.tensor([tokens])], dim=1)[:, : 2 + end]
        total = []
        for model in (student, teacher):
            logps = model(sequence).logits[0, 1:-1].log_softmax(-1)
            total.append(sum(logps[t, tokens[t]].item() for t in range(end)))
        exact += math.exp(total[0]) * (total[0] - total[1])
    sample = draw(student, tokenizer, ["heads tails"] * 4000, 3, seed=0)
    terms, ratio = sequence_kl(student, teacher, sample)
    assert exact > 0.1
    assert abs(terms.mean() - exact) < 4 * terms.std() / 4000**0.5
    torch.testing.assert_close(ratio.sum(1), terms)


@pytest.mark.parametrize(
    "arm", ["sft", "word-level kd", "seqkd", "gkd", "distillation", "minillm", "minillm released"]
)
def test_each_method_trains_and_is_measured(arm, tmp_path):
    world = Coins()
    student, teacher, tokenizer = wide_model(1), wide_model(2), word_tokenizer(world.vocabulary)
    before = deepcopy(student.state_dict())
    result = train(arm, world, student, teacher, tokenizer, 0, tmp_path, learning_rate=1e-2, points=1)
    assert result["optimizer_steps"] == (8 if arm in MINILLM else 2)
    assert [point["samples"] for point in result["curve"]] == [0, 256]
    assert any(not torch.equal(before[name], value) for name, value in student.state_dict().items())
    measured = measure(world, student, teacher, tokenizer, samples=64)
    assert all(math.isfinite(measured[key]) for key in ("reverse_kl", "forward_kl", "rouge_l", "length", "exposure"))

    about = {"teacher": {"loss": 1.0, "process_loss": 1.0}, "teacher_parameters": 1, "student_parameters": 1}
    runs = [{"world": "coins", "arm": arm, "seed": seed, **result, **measured} for seed in (0, 1)]
    printed = table("coins", {"worlds": {"coins": about}, "runs": runs})
    assert f"| {arm} | {measured['reverse_kl']:.2f} ± 0.00 |" in printed


# -------------------------------------------------------------------------------------------------------- the real run


@pytest.fixture
def data(tmp_path):
    """Files of the names and columns of Dolly and Self-Instruct."""
    dolly = [{"instruction": f"Say {n}", "response": f"{n} {n}"} for n in range(24)]
    dolly += [
        {"instruction": "Sum up this passage", "response": "It is not here"},
        {"instruction": "Say", "response": ""},
    ]
    cases = [{"instruction": "Add one", "instances": [{"input": str(n), "output": str(n + 1)}]} for n in range(3)]
    for name, rows in {"dolly_5900": dolly, "self_instruct_eval_252": cases}.items():
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return tmp_path


def test_the_real_run_is_measured_on_its_way_and_goes_on_where_it_stopped(data, capsys):
    output = data / "results.json"
    command = ["--data", str(data), "--output", str(output), "--cache", str(data / "cache")]
    command += ["--model", random_model(data, 1), "--dtype", "float32", "--learning_rates", "1e-3"]
    command += "--batch_size 4 --max_tokens 8 --held_out 4 --validation 2 --samples 8 --cpu_seconds 0.05 0.2".split()
    real_run.main([*command, "--arms", "sft", "--seeds", "0"])
    first = json.loads(output.read_text())
    weights = (data / "cache" / "student" / "model.safetensors").stat().st_mtime_ns
    assert first["models"]["rows"] == {"train": 18, "validation": 2, "dolly": 4, "self_instruct": 3}
    assert len(first["models"]["layers"]) == 3  # two thirds of four, rounded up

    real_run.main([*command, "--seeds", "0", "1"])
    results = json.loads(output.read_text())
    assert (data / "cache" / "student" / "model.safetensors").stat().st_mtime_ns == weights
    assert results["runs"][0] == first["runs"][0] and results["before"] == first["before"]
    runs = [(run["arm"], run["seed"]) for run in results["runs"]]
    assert runs == list(itertools.product(real_run.ARMS, (0, 1)))
    assert set(results["learning_rates"]) == {"sft", "seqkd", "distillation", "minillm"}
    for run in results["runs"]:
        marks = [mark for point in run["points"] for mark in point["reached"]]
        assert sorted(marks) == ["cpu_seconds 0.05", "cpu_seconds 0.2", "samples 8"]
        for point in run["points"]:
            passes = 4 if run["arm"].startswith("minillm") else 1
            assert point["optimizer_steps"] * 4 == point["samples"] * passes
            assert all(len(values) == 4 for values in point["dolly"].values())
            assert all(len(values) == 3 for values in point["self_instruct"].values())
    assert not any("Say" in text for text in output.read_text().split('"'))  # scores, and no text

    printed = show(output)
    for mark in ("cpu_seconds 0.2", "samples 8"):
        part = printed.partition(f"After {mark}")[2]
        assert all(f"| {arm} (2 seeds) |" in part for arm in real_run.ARMS)
    with pytest.raises(SystemExit, match="other settings"):
        real_run.main([*command, "--max_tokens", "9"])


def test_the_real_divergence_is_that_of_the_answers(data, tmp_path):
    """Against log-probabilities of whole logits, one answer at a time."""
    folder = random_model(tmp_path, 1)
    student, teacher = (AutoModelForCausalLM.from_pretrained(random_model(tmp_path, seed)) for seed in (1, 2))
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    rows = [{"prompt_ids": tokenizer(text)["input_ids"]} for text in ("ab", "a longer prompt", "c")]
    args = argparse.Namespace(max_tokens=6, test_batch_size=2)
    answers = real_run.draw(student, tokenizer, rows, args, seed=0)
    found = real_run.log_ratios(student, teacher, tokenizer, rows, answers, args)
    for row, answer, ratio in zip(rows, answers, found, strict=True):
        ids = torch.tensor([row["prompt_ids"] + answer])
        q, p = (model.double()(ids).logits[0, -len(answer) - 1 : -1].log_softmax(-1) for model in (student, teacher))
        expected = sum((q - p)[t, token] for t, token in enumerate(answer))
        student.float(), teacher.float()
        assert ratio == pytest.approx(expected.item(), abs=2e-3)

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

import json
import math
import re
import subprocess

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.demo import (
    METRICS,
    PROMPTS,
    SMOLLM2_LAYERS,
    STAGES,
    main,
    make_parser,
    mean_and_error,
    prune,
    rank_layers,
    read_prompts,
    teacher_answers,
)


TINY = [
    *("--num_prompts", "8", "--num_eval_prompts", "3", "--batch_size", "4", "--max_completion_length", "6"),
    *("--sft_epochs", "1", "--max_steps", "4", "--eval_seeds", "1"),
]


@pytest.fixture
def teacher_dir(tmp_path, tiny_model, tokenizer):
    folder = tmp_path / "a teacher"
    tiny_model(num_hidden_layers=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class TestDemo:
    def test_leaves_models_results_and_curves(self, teacher_dir, tmp_path, capsys):
        output = tmp_path / "out"
        main(["--teacher", str(teacher_dir), "--output_dir", str(output), *TINY])

        results = json.loads((output / "results.json").read_text())
        assert list(results["metrics"]) == list(STAGES)
        for metrics in results["metrics"].values():
            assert list(metrics) == list(METRICS)
            assert all(math.isfinite(value) for metric in metrics.values() for value in metric.values())
        assert len(results["curves"]["sft"]) == 2  # 8 prompts in batches of 4
        assert len(results["curves"]["minillm"]) == 4
        assert all(math.isfinite(log["kl"]) for log in results["curves"]["minillm"])
        assert [set(answer) for answer in results["answers"]] == [{"prompt", "teacher", *STAGES}] * 3
        assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")

        students = [AutoModelForCausalLM.from_pretrained(output / stage) for stage in STAGES]
        assert [len(student.model.layers) for student in students] == [3, 3, 3]  # two thirds of four, rounded up
        weights = [student.model.layers[0].mlp.up_proj.weight for student in students]
        assert not torch.equal(weights[0], weights[1])  # SFT trained
        assert not torch.equal(weights[1], weights[2])  # MiniLLM trained
        assert AutoTokenizer.from_pretrained(output / "minillm").chat_template

        printed = capsys.readouterr().out
        assert all(name in printed for name in STAGES.values())
        assert len(re.findall(r"about \d+\.\d minutes to the end", printed)) == 6  # ranking, training, measuring
        assert "misses least first: [" in printed  # only SmolLM2's ranking is known
        assert all(answer["prompt"] in printed for answer in results["answers"])
        command = next(line for line in printed.splitlines() if "text-generation" in line)
        chat = subprocess.run(command, shell=True, input="Hello!\n\n", capture_output=True, text=True)
        assert chat.returncode == 0, chat.stderr
        assert chat.stdout.startswith("> ")

    def test_a_student_of_its_own_keeps_its_shape(self, teacher_dir, tmp_path, tiny_model, tokenizer):
        student_dir, output = tmp_path / "student", tmp_path / "out"
        tiny_model(seed=1, num_hidden_layers=1, hidden_size=16).save_pretrained(student_dir)
        tokenizer.save_pretrained(student_dir)
        main(["--teacher", str(teacher_dir), "--student", str(student_dir), "--output_dir", str(output), *TINY])
        config = AutoModelForCausalLM.from_pretrained(output / "minillm").config
        assert (config.num_hidden_layers, config.hidden_size) == (1, 16)


def test_answers_of_the_teacher_are_kept_until_a_setting_changes(tiny_model, tokenizer, tmp_path):
    args = make_parser().parse_args(["--num_prompts", "4", "--num_eval_prompts", "2", "--max_completion_length", "5"])
    cache = tmp_path / "answers.json"

    def answer(seed, **changes):
        for name, value in changes.items():
            setattr(args, name, value)
        train, test = read_prompts(args, tokenizer)
        found = teacher_answers(args, tiny_model(seed=seed), tokenizer, train, test, cache)
        return found, [row["input_ids"] for row in train], [row["completion"] for row in test]

    first = answer(seed=0)
    assert not first[0]
    assert answer(seed=1) == (True, *first[1:])  # another model would answer differently, but is not asked
    longer = answer(seed=1, max_completion_length=6)
    assert not longer[0] and longer[1] != first[1]
    for ids in answer(seed=0, max_completion_length=5)[1]:
        assert ids in first[1]


def test_labels_are_the_tokens_of_the_answer_alone(tiny_model, tokenizer, tmp_path):
    args = make_parser().parse_args(["--num_prompts", "4", "--num_eval_prompts", "1", "--max_completion_length", "5"])
    train, test = read_prompts(args, tokenizer)
    teacher_answers(args, tiny_model(), tokenizer, train, test, tmp_path / "answers.json")
    for row in train:
        answer = [token for token in row["labels"] if token != -100]
        assert row["input_ids"] == row["prompt_ids"] + answer
        assert tokenizer.decode(answer, skip_special_tokens=True) == row["completion"]
        assert tokenizer.decode(row["prompt_ids"]).endswith(
            f"<|user|>{row['question']}{tokenizer.eos_token}<|assistant|>"
        )


def test_prune_drops_the_layers_that_do_nothing(tiny_model, tokenizer, tmp_path):
    teacher = tiny_model(num_hidden_layers=5)
    for idle in (0, 3):
        for projection in (teacher.model.layers[idle].self_attn.o_proj, teacher.model.layers[idle].mlp.down_proj):
            torch.nn.init.zeros_(projection.weight)
    args = make_parser().parse_args(["--num_prompts", "4", "--num_eval_prompts", "1", "--max_completion_length", "5"])
    train, test = read_prompts(args, tokenizer)
    teacher_answers(args, teacher, tokenizer, train, test, tmp_path / "answers.json")
    order = rank_layers(teacher, tokenizer, train)
    student, kept = prune(teacher, order, 3)
    assert sorted(order[:2]) == [0, 3] and kept == [1, 2, 4]
    ids = torch.tensor([train[0]["input_ids"]])
    expected = teacher(ids).logits
    torch.testing.assert_close(student(ids).logits, expected)
    with torch.no_grad():
        student.lm_head.weight.zero_()
    torch.testing.assert_close(teacher(ids).logits, expected)  # the student has weights of its own


def test_every_layer_of_the_shipped_teacher_has_a_rank():
    assert sorted(SMOLLM2_LAYERS) == list(range(30))


def test_errors_are_over_prompts():
    """Two answers to each prompt, against the jackknife over prompts."""
    generator = torch.Generator().manual_seed(0)
    nats, lengths = torch.rand(40, 2, generator=generator) * 30, torch.randint(5, 40, (40, 2), generator=generator)
    answers = [
        {"row": row, "nats": nats[row, seed].item(), "length": lengths[row, seed].item()}
        for seed in range(2)
        for row in range(40)
    ]
    for per, units in (("length", lengths), (None, torch.ones_like(lengths))):
        found = mean_and_error({"completions": answers}, "nats", per)
        assert found["mean"] == pytest.approx((nats.sum() / units.sum()).item(), rel=1e-5)
        without = torch.tensor(
            [((nats.sum() - n.sum()) / (units.sum() - u.sum())).item() for n, u in zip(nats, units, strict=True)]
        )
        assert found["error"] == pytest.approx((without.var(correction=0) * 39).sqrt().item(), rel=0.05)


def test_prompts_are_distinct_and_split():
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    assert [row["split"] for row in rows].count("train") == 250
    assert [row["split"] for row in rows].count("test") == 50
    assert len({row["prompt"].strip().lower() for row in rows} - {""}) == 300


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num_prompts", "251"], "--num_prompts must be at least 1 and at most 250, got 251"),
        (["--num_eval_prompts", "1"], "--num_eval_prompts must be at least 2 and at most 50, got 1"),
        (["--max_steps", "0"], "--max_steps must be at least 1, got 0"),
        (["--num_prompts", "31"], "Raise --num_prompts or lower --batch_size"),
        (["--teacher_mix_alpha", "1"], "--teacher_mix_alpha must be in [0, 1), got 1.0"),
        (["--student", "x", "--student_layers", "3"], "--student_layers prunes the teacher"),
        (["--techer", "x"], "Did you mean teacher"),
        (["--teacher", "no/such/folder"], "--teacher no/such/folder is neither a folder nor a model of the Hub"),
        (["--student", "none"], "--student none is neither a folder nor a model of the Hub"),
    ],
)
def test_bad_input_stops_before_anything_is_written(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


def test_layers_that_the_teacher_lacks(teacher_dir, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--teacher", str(teacher_dir), "--student_layers", "5", "--output_dir", str(tmp_path / "out"), *TINY])
    assert "--student_layers must be between 1 and 4, got 5" in capsys.readouterr().err


def test_a_student_with_another_tokenizer(teacher_dir, tmp_path, tiny_model, tokenizer, capsys):
    tokenizer.save_pretrained(tmp_path / "student")
    file = tmp_path / "student" / "tokenizer.json"
    content = json.loads(file.read_text())
    ids = content["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    file.write_text(json.dumps(content))
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "student")
    with pytest.raises(SystemExit):
        folders = {"--teacher": teacher_dir, "--student": tmp_path / "student", "--output_dir": tmp_path / "out"}
        main([str(part) for flag in folders.items() for part in flag])
    assert "such as ('a', " in capsys.readouterr().err

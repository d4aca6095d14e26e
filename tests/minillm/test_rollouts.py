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


"""Rollouts that a run records: which, how many, and that their numbers are those of the models."""

import json
from pathlib import Path

import pytest
import torch


def recorded(trainer):
    return [json.loads(line) for line in Path(trainer.args.output_dir, "rollouts.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("values", "credit"),
    [
        ({}, True),
        ({"score_from": "forward"}, True),  # made in the pass that is recorded
        ({"teacher_mix_alpha": 0.0, "gamma": 0.0}, False),
        ({"whiten_advantages": True, "score_from": "forward"}, True),
    ],
)
def test_numbers_are_those_of_the_models(values, credit, make_trainer, tiny_model, tokenizer):
    trainer = make_trainer(log_completions=True, max_steps=1, **values)
    trainer.train()
    student, teacher = tiny_model(seed=0), tiny_model(seed=1)
    rows = recorded(trainer)
    assert [(row["mode"], row["step"], row["row"]) for row in rows] == [("train", 0, row) for row in range(4)]
    for row in rows:
        prompt = tokenizer(row["prompt"]).input_ids
        # Each byte is a token here, so the texts give the tokens back wherever they are whole characters
        ids = tokenizer("".join(row["tokens"])).input_ids
        count = next((i for i, text in enumerate(row["tokens"]) if len(text.encode()) > 1 or not text), len(ids))
        count = min(count, len(ids))
        for name, model in (("student", student), ("teacher", teacher)):
            with torch.no_grad():
                logps = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            expected = [logps[place, token].item() for place, token in enumerate(ids[:count])]
            assert row[name][:count] == pytest.approx(expected, abs=2e-4)
        assert row["reward"] == pytest.approx(sum(row["teacher"]) - sum(row["student"]), abs=1e-2)
        assert row["length"] == len(row["tokens"]) == len(row["student"])
    assert any(row["tokens"][0] for row in rows)
    assert ("credit" in rows[0]) == credit


def test_few_sets_and_the_first_and_last_evaluation(make_trainer, prompts):
    trainer = make_trainer(
        log_completions=True,
        num_completions_to_print=2,
        max_steps=50,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=prompts.select(range(4)),
    )
    trainer.train()
    rows = recorded(trainer)
    steps = {mode: sorted({row["step"] for row in rows if row["mode"] == mode}) for mode in ("train", "eval")}
    assert steps["train"] == list(range(0, 50, 3)) and steps["eval"] == [*range(1, 50, 3), 50]
    first, last = ([row for row in rows if (row["mode"], row["step"]) == ("eval", step)] for step in (1, 50))
    assert [row["prompt"] for row in first] == [row["prompt"] for row in last] and len(first) == 2


def test_a_new_run_begins_anew_and_a_resumed_one_goes_on(make_trainer):
    values = dict(log_completions=True, save_strategy="steps", save_steps=2)
    for _ in range(2):
        make_trainer(**values, max_steps=2).train()
    trainer = make_trainer(**values)
    assert {row["step"] for row in recorded(trainer)} == {0, 1} and len(recorded(trainer)) == 2 * 4
    trainer.train(resume_from_checkpoint=True)
    assert {row["step"] for row in recorded(trainer)} == {0, 1, 2, 3}


def test_nothing_is_recorded_outside_of_a_training(make_trainer, prompts):
    trainer = make_trainer(log_completions=True, eval_dataset=prompts.select(range(4)))
    trainer.evaluate()
    assert not Path(trainer.args.output_dir, "rollouts.jsonl").exists()


def test_recording_changes_no_result(make_trainer):
    weights = []
    for on in (False, True):
        trainer = make_trainer(log_completions=on)
        trainer.train()
        weights.append(torch.cat([weight.flatten() for weight in trainer.model.parameters()]))
    assert torch.equal(*weights)


def only(model, token, tokenizer):
    """The model, which draws nothing but this token."""
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    head.weight.data.zero_()
    head.bias.data.zero_()[tokenizer(token).input_ids[0]] = 60.0
    model.set_output_embeddings(head)
    return model


@pytest.mark.parametrize(
    "values",
    [{}, {"num_generations": 2}, {"score_from": "forward", "gradient_accumulation_steps": 2}],
)
def test_who_drew_each_token(values, make_trainer, tiny_model, tokenizer):
    student, teacher = (only(tiny_model(seed=seed), "st"[seed], tokenizer) for seed in (0, 1))
    values |= dict(teacher_mix_alpha=0.5, max_completion_length=24, max_steps=2, learning_rate=0.0)
    trainer = make_trainer(student, teacher, log_completions=True, num_completions_to_print=8, **values)
    trainer.train()
    rows = recorded(trainer)
    assert all(row["by_teacher"] == [text == "t" for text in row["tokens"]] for row in rows)
    drawn = [drew for row in rows for drew in row["by_teacher"]]
    assert 0 < sum(drawn) < len(drawn)


def test_of_the_student_alone_nothing_is_said_of_who_drew(make_trainer, prompts):
    values = dict(eval_strategy="steps", eval_steps=4, eval_dataset=prompts.select(range(4)))
    trainer = make_trainer(log_completions=True, **values)
    trainer.train()
    assert all(("by_teacher" in row) == (row["mode"] == "train") for row in recorded(trainer))
    trainer = make_trainer(log_completions=True, teacher_mix_alpha=0.0)
    trainer.train()
    assert not any("by_teacher" in row for row in recorded(trainer))


def test_nothing_is_carried_without_a_record(make_trainer):
    trainer = make_trainer()
    trainer.train()
    assert "teacher_drew" not in trainer._buffered_inputs[0]

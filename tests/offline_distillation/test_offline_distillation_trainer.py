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


"""The trainer's loss and gradient against dense float64, what may not change it, and what is refused."""

import math
from pathlib import Path

import pytest
import torch
from datasets import concatenate_datasets
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

from tests.commands import CPU, error_of
from tests.runs import MODES, TINY_RUN, assert_same_logits, assert_same_weights, history, losses
from trl_distill import OfflineDistillationConfig, OfflineDistillationTrainer, load_recorded
from trl_distill.models import keep_4bit_trainable, load_teacher
from trl_distill.scripts import offline_distillation as command


@pytest.fixture
def make_trainer(record, tiny_model, tokenizer, tmp_path):
    """A trainer of a tiny student on recorded rows, and of the fields of its config."""

    def make(model=None, rows=None, eval_dataset=None, peft_config=None, **settings):
        args = OfflineDistillationConfig(str(tmp_path / "run"), **TINY_RUN | settings)
        rows = record() if rows is None else rows
        model = tiny_model(vocab_size=272) if model is None else model
        return OfflineDistillationTrainer(model, args, rows, eval_dataset, tokenizer, peft_config=peft_config)

    return make


def loss_and_gradients(trainer, rows, size=None):
    """Of one optimizer step over rows, in micro-batches of `size`."""
    rows = list(rows)
    batches = [rows[start : start + (size or len(rows))] for start in range(0, len(rows), size or len(rows))]
    batches = [trainer.data_collator(batch) for batch in batches]
    count = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
    trainer.model.eval().zero_grad()
    loss = 0.0
    for batch in batches:
        part = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
        part.backward()
        loss += part.item()
    return loss, {n: p.grad.double() for n, p in trainer.model.named_parameters() if p.grad is not None}


def divergence_of(q, p, beta):
    """Of two lists of probabilities of the same events."""
    m = [beta * b + (1 - beta) * a for a, b in zip(q, p, strict=True)]

    def kl(one, other):
        return sum(x * (x / y).log() for x, y in zip(one, other, strict=True) if x > 0)

    return kl(p, q) if beta == 0.0 else kl(q, p) if beta == 1.0 else beta * kl(p, m) + (1 - beta) * kl(q, m)


def naive_loss(model, rows, vocab_size, beta, alpha, teacher=None):
    """
    Mean over the tokens, row by row without padding, from dense logits in float64. What the teacher says comes from
    the tensors of the store, or from a live `teacher` over the whole vocabulary. Shares no line with the trainer.
    """
    model, losses = model.double().eval(), []
    for row in rows:
        ids, start = torch.tensor([row["input_ids"]]), row["teacher_start"]
        shard = load_file(row["teacher_file"])
        every = model(ids).logits[0]
        q = every[:, :vocab_size].softmax(1)
        if teacher is not None:
            with torch.no_grad():
                p = teacher.double()(ids).logits[0, :, :vocab_size].softmax(1)
        found = 0
        for t, token in enumerate(row["labels"][1:]):
            if token == -100:
                continue
            if teacher is None:
                stored = shard["teacher_logps"][start + found].double().exp()
                stored = list(stored / stored.sum())
                support = shard["teacher_ids"][start + found].tolist()
                rest = [v for v in range(vocab_size) if v not in support]
                mine = [q[t, v] for v in support] + ([q[t, rest].sum()] if rest else [])
                divergence = divergence_of(mine, stored[: len(mine)], beta)
            else:
                divergence = divergence_of(list(q[t]), list(p[t]), beta)
            losses.append(alpha * divergence - (1 - alpha) * every[t].log_softmax(0)[token])
            found += 1
    loss = sum(losses) / len(losses)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))
    model.float()
    return loss.item(), {name: gradient for name, gradient in gradients.items() if gradient is not None}


def check(actual, expected, rtol=2e-4, atol=2e-6):
    assert actual[0] == pytest.approx(expected[0], rel=rtol, abs=atol)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(actual[1][name], gradient, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_value_and_gradient_of_the_buckets(beta, make_trainer, tokenizer):
    """A student with padded rows of another number than the teacher's."""
    trainer = make_trainer(beta=beta, alpha=0.6)
    rows = trainer.train_dataset.select(range(5))
    actual = loss_and_gradients(trainer, rows)
    check(actual, naive_loss(trainer.model, rows, len(tokenizer), beta, 0.6))
    assert actual[0] > 0.1


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_with_k_of_the_vocabulary_it_is_the_loss_of_a_live_teacher(beta, make_trainer, record, tokenizer, tmp_path):
    rows = record(loss_top_k=len(tokenizer), logprob_dtype="float32").select(range(4))
    trainer = make_trainer(rows=rows, beta=beta)
    teacher = load_teacher(str(tmp_path / "teacher"))
    rows = trainer.train_dataset
    check(
        loss_and_gradients(trainer, rows),
        naive_loss(trainer.model, rows, len(tokenizer), beta, 1.0, teacher),
        rtol=1e-3,
        atol=1e-5,
    )


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_half_precision_and_the_bound(beta, make_trainer, record, tokenizer, tmp_path):
    """In fp16 the loss of the whole vocabulary is that of the live teacher to 0.1 %; with fewer tokens it is less."""
    rows = {
        k: record(output=str(k), folder=tmp_path / "teacher" if k != 1 else None, loss_top_k=k)
        for k in (1, 8, 64, 260)
    }
    student = make_trainer(rows=rows[1], beta=beta).model
    values = [
        loss_and_gradients(make_trainer(student, one, beta=beta, shuffle_dataset=False), one)[0]
        for one in rows.values()
    ]
    live, _ = naive_loss(student, rows[260], len(tokenizer), beta, 1.0, load_teacher(str(tmp_path / "teacher")))
    assert values == sorted(values) and values[-1] == pytest.approx(live, rel=1e-3)
    assert values[0] < 0.8 * live


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_student_that_is_the_teacher_has_neither_loss_nor_gradient(beta, make_trainer, record, tmp_path):
    for dtype, bound in (("float32", 1e-6), ("float16", 1e-3)):
        rows = record(tmp_path / "teacher" if dtype == "float16" else None, dtype, logprob_dtype=dtype)
        trainer = make_trainer(AutoModelForCausalLM.from_pretrained(tmp_path / "teacher"), rows, beta=beta)
        loss, gradients = loss_and_gradients(trainer, trainer.train_dataset)
        assert abs(loss) < bound**1.5 + 1e-6
        assert max(gradient.abs().max() for gradient in gradients.values()) < 10 * bound


def test_padding_order_and_accumulation_change_nothing(make_trainer):
    trainer = make_trainer(beta=0.3, alpha=0.8)
    rows = trainer.train_dataset.select(range(12))
    expected = loss_and_gradients(trainer, rows)
    for size in (1, 4, 6):
        check(loss_and_gradients(trainer, rows, size), expected)
    check(loss_and_gradients(trainer, rows.select(range(11, -1, -1)), 3), expected)
    trainer.data_collator.collator.pad_to_multiple_of = 64
    check(loss_and_gradients(trainer, rows, 4), expected)


def test_a_split_of_the_step_trains_the_same(make_trainer, record, tiny_model):
    rows, runs = record(), []
    for size, steps in ((8, 1), (2, 4), (1, 8)):
        trainer = make_trainer(
            tiny_model(vocab_size=272),
            rows,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=4,
            optim="sgd",
        )
        trainer.train()
        runs.append(history(trainer))
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=1e-4, atol=1e-6)


def test_without_a_share_it_is_supervised_fine_tuning(make_trainer, record, tiny_model, tokenizer, prompts, tmp_path):
    trainer = make_trainer(alpha=0.0, max_steps=3)
    trainer.train()
    settings = TINY_RUN | {"max_steps": 3, "max_length": None}
    plain = SFTTrainer(
        tiny_model(vocab_size=272),
        SFTConfig(str(tmp_path / "sft"), **settings),
        None,
        prompts,
        processing_class=tokenizer,
    )
    plain.train()
    torch.testing.assert_close(history(trainer), history(plain), rtol=1e-5, atol=1e-6)


def test_shorter_rows_keep_what_belongs_to_them(make_trainer, record, tokenizer):
    """`max_length` cuts the end: what the teacher said of the tokens that stay is still theirs."""
    trainer = make_trainer(rows=record(max_length=None), max_length=20)
    rows = trainer.train_dataset
    assert max(map(len, rows["input_ids"])) == 20
    check(loss_and_gradients(trainer, rows), naive_loss(trainer.model, rows, len(tokenizer), 0.0, 1.0))


def test_nothing_of_vocabulary_size_is_saved(make_trainer, record, teacher, tiny_model):
    vocab = 1009
    trainer = make_trainer(tiny_model(vocab_size=vocab), record())
    parameters, saved = {parameter.data_ptr() for parameter in trainer.model.parameters()}, []
    trainer.vocab_size = vocab  # the whole head, so that its views are its parameter
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
        loss_and_gradients(trainer, trainer.train_dataset)
    assert [tensor.shape for tensor in saved if vocab in tensor.shape and tensor.data_ptr() not in parameters] == []


# Training


def test_it_trains_evaluates_saves_and_resumes(make_trainer, record, tiny_model, tmp_path):
    rows, settings = record(), dict(max_steps=6, save_strategy="steps", save_steps=3, beta=0.5)
    trainer = make_trainer(tiny_model(vocab_size=272), rows, rows, **settings)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.9 * before and after["eval_divergence"] == pytest.approx(
        after["eval_loss"], rel=0.05
    )
    assert {"ce", "divergence", "teacher/tail", "entropy"} <= trainer.state.log_history[0].keys()
    trainer.save_model(str(tmp_path / "saved"))
    assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), trainer.model)

    resumed = make_trainer(tiny_model(vocab_size=272), rows, rows, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-3"))
    assert_same_weights(resumed.model, trainer.model)


@pytest.mark.parametrize("in_4bit", [False, True])
def test_lora(in_4bit, make_trainer, record, tiny_model, tokenizer, tmp_path):
    size = dict(hidden_size=64, intermediate_size=128, num_key_value_heads=4, initializer_range=0.1)
    tiny_model(vocab_size=272, **size).save_pretrained(tmp_path / "student")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32) if in_4bit else None

    def load():
        return AutoModelForCausalLM.from_pretrained(tmp_path / "student", quantization_config=quantization)

    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"])
    trainer = make_trainer(load(), record(), peft_config=lora, max_steps=8, learning_rate=3e-2, alpha=0.9)
    if not in_4bit:
        rows = trainer.train_dataset.select(range(3))
        check(loss_and_gradients(trainer, rows), naive_loss(trainer.model, rows, len(tokenizer), 0.0, 0.9), rtol=1e-3)
    keep_4bit_trainable(trainer.model)
    trainer.train()
    assert min(losses(trainer)[-2:]) < losses(trainer)[0]
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(load(), tmp_path / "adapter").eval()
    ids = torch.arange(5, 25)[None]
    tolerance = 0.1 if in_4bit else 1e-5  # in eval mode bitsandbytes may compute 4-bit layers otherwise
    torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits, rtol=0, atol=tolerance)


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_give_the_loss_of_one(mode, record, tiny_model, tokenizer, tmp_path, on_one_and_two_processes):
    record()
    tiny_model(vocab_size=272).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    one, two = on_one_and_two_processes(Path(__file__).with_name("run_distributed.py"), tmp_path, mode)
    for name, values in one.items():
        assert two[name] == pytest.approx(values, rel=1e-4), name
    assert_same_logits(AutoModelForCausalLM.from_pretrained, tmp_path / "student-1", tmp_path / "student-2")


def test_rows_of_two_stores_and_workers_that_load_them(make_trainer, record, teacher, prompts, tmp_path):
    """Rows of two teachers in one run, read by processes of their own."""
    first = record(rows=prompts.select(range(8)))
    second = record(teacher("second", seed=5), "other", rows=prompts.select(range(8, 16)), loss_top_k=8)
    rows = concatenate_datasets([first, second]).shuffle(seed=1)
    trainer = make_trainer(rows=rows, max_steps=2, dataloader_num_workers=1)
    trainer.train()
    assert all(math.isfinite(loss) for loss in losses(trainer))


# What is refused


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta", 1.5),
        ("alpha", -0.1),
        ("loss_chunk_tokens", 0),
        ("packing", True),
        ("padding_free", True),
        ("truncation_mode", "keep_end"),
        ("loss_type", "dft"),
        ("label_smoothing_factor", 0.1),
        ("assistant_only_loss", True),
        ("chat_template_path", "x"),
        ("eos_token", "x"),
    ],
)
def test_settings_that_cannot_be(field, value, tmp_path):
    with pytest.raises(ValueError, match=f"`{field}` must be"):
        OfflineDistillationConfig(str(tmp_path), **{"bf16": False, "use_cpu": True, field: value})


def test_rows_that_were_not_recorded(make_trainer, prompts, record):
    with pytest.raises(ValueError, match="train dataset holds no recorded rows, only the columns prompt, completion"):
        make_trainer(rows=prompts)
    with pytest.raises(ValueError, match="eval dataset holds no recorded rows"):
        make_trainer(eval_dataset=prompts)
    with pytest.raises(ValueError, match="train dataset has no rows"):
        make_trainer(rows=record().select([]))


def test_a_smaller_head_is_refused(make_trainer, tiny_model):
    with pytest.raises(ValueError, match="recorded with 260 tokens, and the student's head has 250 rows"):
        make_trainer(tiny_model(vocab_size=250))


def test_another_tokenizer_is_refused(make_trainer, record, tokenizer, tmp_path):
    rows = record()
    file = tmp_path / "recorded/tokenizer/tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"a":', '"@@":', 1), encoding="utf-8")
    with pytest.raises(ValueError, match="compared token by token"):
        make_trainer(rows=rows)


def test_another_chat_template_is_said(make_trainer, record, tmp_path, caplog):
    rows = record(
        rows=[{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}]
    )
    make_trainer(rows=rows)
    assert "chat template of the student" not in caplog.text
    for file in (tmp_path / "recorded/tokenizer").glob("chat_template*"):
        file.write_text("{{ messages }}")
    make_trainer(rows=rows)
    assert "chat template of the student is not that with which" in caplog.text


# The command


def flags_of(tmp_path, **values):
    values = CPU | dict(model_name_or_path=tmp_path / "student", output_dir=tmp_path / "out", max_steps=2) | values
    values = {"dataset_name": tmp_path / "recorded", "learning_rate": 1e-2, "logging_steps": 1} | values
    return [argument for name, value in values.items() for argument in (f"--{name}", str(value))]


def test_command(record, tiny_model, tokenizer, tmp_path, prompts):
    """With an evaluation on prompts that nothing was trained on."""
    record(rows=[row for row in prompts for _ in range(2)])
    tiny_model(vocab_size=272).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    command.run(flags_of(tmp_path, eval_strategy="steps", eval_steps=1, test_split_size=0.25, beta=1.0))
    assert (tmp_path / "out/model.safetensors").is_file()
    flags = flags_of(tmp_path, eval_strategy="steps", eval_steps=1, test_split_size=0.25)
    script_args, args, _, dataset_args = command.make_parser().parse_args_and_config(flags)
    split = command.load_rows(script_args, args, dataset_args)
    sides = []
    for rows in split.values():
        prompt = [
            [t for t, label in zip(*row, strict=True) if label == -100]
            for row in zip(rows["input_ids"], rows["labels"], strict=True)
        ]
        sides.append(set(map(tokenizer.decode, prompt)))
    assert len(split["eval_dataset"]) == 8 and [len(side) for side in sides] == [12, 4] and not sides[0] & sides[1]


def test_command_errors(record, tiny_model, tokenizer, tmp_path, capsys):
    record()
    tiny_model(vocab_size=272).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    error = error_of(capsys, command.run, *flags_of(tmp_path, eval_strategy="steps", eval_steps=1))
    assert error.endswith("`eval_strategy` is 'steps': set `test_split_size`.")
    error = error_of(capsys, command.run, *flags_of(tmp_path, dataset_config="x"))
    assert "Leave out `datasets`, `dataset_config` and `dataset_streaming`" in error
    error = error_of(capsys, command.run, *flags_of(tmp_path, dataset_name=tmp_path / "student"))
    assert "holds no recorded teacher" in error
    assert len(load_recorded(tmp_path / "recorded")) == 16

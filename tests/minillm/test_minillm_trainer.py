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
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from trl import DistillationConfig, DistillationTrainer

from trl_distill import MiniLLMConfig, MiniLLMTrainer


TRAINER_ARGUMENTS = ("eval_dataset", "lm_dataset", "processing_class", "callbacks", "peft_config", "answer_checker")
NO_CLIP = float("inf")


@pytest.fixture
def make_trainer(tiny_model, tokenizer, prompts, tmp_path):
    def build(model=None, teacher_model=None, train_dataset=prompts, **kwargs):
        arguments = {name: kwargs.pop(name) for name in TRAINER_ARGUMENTS if name in kwargs}
        settings = dict(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=4,
            max_completion_length=8,
            learning_rate=1e-2,
            max_steps=4,
            bf16=False,
            use_cpu=True,
            report_to="none",
            logging_steps=1,
            save_strategy="no",
            gradient_checkpointing=False,
            disable_tqdm=True,
            length_normalization=True,  # the paper's credit; whitening would need a student pass of its own
            whiten_advantages=False,
        )
        settings |= kwargs
        if teacher_model is None and not settings.get("teacher_is_base"):
            teacher_model = tiny_model(seed=1)
        return MiniLLMTrainer(
            model=tiny_model(seed=0) if model is None else model,
            teacher_model=teacher_model,
            args=MiniLLMConfig(**settings),
            train_dataset=train_dataset,
            **({"processing_class": tokenizer} | arguments),
        )

    return build


@pytest.fixture
def corpus():
    return Dataset.from_dict({"text": [f"Sentence number {i} of a plain text. " * 3 for i in range(12)]})


def first_batch(trainer, rows=None):
    """A copy of the first micro-batch of the trainer's first rollout set."""
    trainer.model.train()
    torch.manual_seed(0)
    return dict(trainer._prepare_inputs(list(rows or next(iter(trainer.get_train_dataloader())))))


def gradients(trainer, inputs):
    """Loss and gradients of one micro-batch, without touching the micro-batch itself."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(inputs))
    loss.backward()
    return loss.item(), [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]


def norm(tensors):
    return torch.stack([tensor.norm() for tensor in tensors]).norm().item()


def naive_loss(
    student, teacher, inputs, alpha, epsilon, clip_weight, gamma=1.0, inclusive=False, length_norm=True, single=True
):
    """The loss of a first pass, token by token in float64 from dense logits. Shares no line with the trainer."""
    student, teacher = student.double(), teacher.double()
    total, tokens = 0.0, 0
    for row in range(len(inputs["prompt_ids"])):
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        completion = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
        ids = torch.cat([prompt, completion])[None]
        q = student(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        p = teacher(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1).detach()
        steps = range(len(completion))
        lq = [q[t, completion[t]] for t in steps]
        lp = [p[t, completion[t]] for t in steps]
        r = [(lp[t] - lq[t]).item() for t in steps]
        for t in steps:
            later = range(t if inclusive else t + 1, len(completion))
            credit = sum(gamma ** (s - t) * r[s] for s in later)
            if length_norm and len(later):
                credit /= len(later)
            mixture = torch.log(alpha * lp[t].exp() + (1 - alpha) * lq[t].exp()).item()
            anchor = mixture if clip_weight else lq[t].item()
            rho = torch.exp(lq[t] - anchor)
            surrogate = torch.max(-credit * rho, -credit * rho.clamp(1 - epsilon, 1 + epsilon))
            total = total + math.exp(anchor - mixture) * surrogate
            if single:
                total = total + (q[t].exp() * (q[t] - p[t])).sum()
            tokens += 1
    return total / tokens


class TestMiniLLMTrainer:
    def test_trains_every_parameter_and_logs_its_metrics(self, make_trainer, prompts):
        trainer = make_trainer(eval_dataset=prompts, reward_clip=1.0)
        before = {name: param.clone() for name, param in trainer.model.named_parameters()}
        teacher_before = {name: param.clone() for name, param in trainer.teacher_model.named_parameters()}
        trainer.train()
        for name, param in trainer.model.named_parameters():
            assert not torch.equal(param, before[name]), f"{name} has not changed"
        for name, param in trainer.teacher_model.named_parameters():
            assert torch.equal(param, teacher_before[name]) and param.grad is None, (
                f"{name} of the teacher has changed"
            )
        logged = {key for entry in trainer.state.log_history for key in entry}
        assert {
            "loss/long", "loss/single", "kl", "kl/sampled", "reward/mean", "reward/clipped", "advantage/mean",
            "advantage/std", "sampling/importance_sampling_ratio/mean",
            "sampling/importance_sampling_ratio/min", "ratio/mean", "clip_ratio/low_mean", "clip_ratio/high_mean", "mix/teacher_share",
            "mix/teacher_calls", "text/distinct_4", "text/repetition", "entropy", "completions/clipped_ratio",
            "time/rollout", "time/scoring", "time/loss",
        } <= logged  # fmt: skip
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] == pytest.approx(metrics["eval_kl"], rel=1e-4)
        assert {"eval_kl/forward", "eval_kl/sequence", "eval_rougeL", "eval_text/distinct_4"} <= set(metrics)

    @pytest.mark.parametrize("credit", [{}, {"length_normalization": False, "whiten_advantages": True}])
    def test_recovers_the_teacher(self, make_trainer, tiny_model, prompts, credit):
        student, teacher = tiny_model(seed=0), tiny_model(seed=0)
        with torch.no_grad():  # a student that is the teacher but for its head
            student.lm_head.weight.mul_(0.5)
        trainer = make_trainer(
            student,
            teacher,
            eval_dataset=prompts,
            per_device_train_batch_size=16,
            max_steps=150,
            learning_rate=3e-3,
            **credit,
        )
        before = trainer.evaluate()["eval_kl"]
        trainer.train()
        assert trainer.evaluate()["eval_kl"] < 0.5 * before

    @pytest.mark.parametrize("alpha", [0.0, 0.2])
    def test_gradient_vanishes_when_the_student_is_the_teacher(self, make_trainer, tiny_model, alpha):
        trainer = make_trainer(tiny_model(seed=3), tiny_model(seed=3), teacher_mix_alpha=alpha)
        loss, grads = gradients(trainer, first_batch(trainer))
        assert abs(loss) < 1e-6
        assert norm(grads) < 1e-6

    @pytest.mark.parametrize(
        "settings",
        [
            {"teacher_mix_alpha": 0.0},
            {"teacher_mix_alpha": 0.2},
            {"teacher_mix_alpha": 0.2, "clip_importance_weight": True},
            {"gamma": 0.9, "length_normalization": False},
            {"return_mode": "inclusive"},
            {"single_step_decomposition": False, "teacher_mix_alpha": 0.5},
        ],
    )
    def test_loss_and_gradient_match_a_float64_loop(self, make_trainer, settings):
        trainer = make_trainer(**settings)
        inputs = first_batch(trainer)
        loss, grads = gradients(trainer, inputs)
        args = trainer.args
        student = trainer.model
        student.zero_grad()
        expected = naive_loss(
            student,
            trainer.teacher_model,
            inputs,
            args.teacher_mix_alpha,
            args.epsilon,
            args.clip_importance_weight,
            gamma=args.gamma,
            inclusive=args.inclusive_returns,
            length_norm=args.length_normalization,
            single=args.single_step_decomposition,
        )
        expected.backward()
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        for grad, param in zip(grads, student.parameters(), strict=True):
            torch.testing.assert_close(grad.double(), param.grad, rtol=1e-3, atol=1e-6)

    def test_every_switch_changes_the_gradient(self, make_trainer, corpus):
        reference = make_trainer()
        inputs = first_batch(reference)
        _, expected = gradients(reference, inputs)
        switches = [
            {"length_normalization": False},
            {"single_step_decomposition": False},
            {"teacher_mix_alpha": 0.1},
            {"gamma": 0.5},
            {"return_mode": "inclusive"},
            {"whiten_advantages": True},
            {"reward_scaling": 0.5},
            {"reward_clip": 0.1},
            {"clip_importance_weight": True},
            {"temperature": 0.7},
            {"lm_dataset": corpus, "lm_max_length": 32},
        ]
        for switch in switches:
            trainer = make_trainer(**switch)
            own = first_batch(trainer)
            assert torch.equal(own["prompt_ids"], inputs["prompt_ids"])
            if "temperature" not in switch and "teacher_mix_alpha" not in switch:
                assert torch.equal(own["completion_ids"], inputs["completion_ids"])  # only the loss differs
            _, grads = gradients(trainer, own)
            change = norm([a - b for a, b in zip(grads, expected, strict=True)])
            assert change > 1e-3 * norm(expected), switch

    def test_importance_weight_inside_the_clip_leaves_a_floor(self, make_trainer):
        """Where r > ln 2.25, tokens to push down have no long-term gradient in the first pass; outside they do."""
        blocked = {}
        for inside in (True, False):
            trainer = make_trainer(clip_importance_weight=inside)
            gradients(trainer, first_batch(trainer))
            blocked[inside] = float(trainer._averages["train"].sums["clip_ratio/low_mean"][0])
        assert blocked[True] > 0 and blocked[False] == 0

    def test_single_step_kl_is_not_computed_when_it_is_off(self, make_trainer):
        trainer = make_trainer(single_step_decomposition=False)
        assert trainer.args.inclusive_returns
        gradients(trainer, first_batch(trainer))
        assert "kl" not in trainer._averages["train"].sums

    def test_gamma_0_is_the_single_step_term_alone(self, make_trainer):
        trainer = make_trainer(gamma=0.0, teacher_mix_alpha=0.0)
        inputs = first_batch(trainer)
        loss, _ = gradients(trainer, inputs)
        assert loss == pytest.approx(
            float(trainer._averages["train"].sums["loss/single"][0]) / inputs["completion_mask"].sum().item()
        )
        assert "loss/long" not in trainer._averages["train"].sums

    def test_padding_and_order_change_nothing(self, make_trainer):
        trainer = make_trainer()
        inputs = first_batch(trainer)
        loss, grads = gradients(trainer, inputs)
        pad = lambda x, left, right, value: torch.nn.functional.pad(x, (left, right), value=value)  # noqa: E731
        changed = dict(inputs)
        for key, left, right in [("prompt", 5, 0), ("completion", 0, 3)]:
            changed[f"{key}_ids"] = pad(inputs[f"{key}_ids"], left, right, 7)  # a token that is not the pad token
            changed[f"{key}_mask"] = pad(inputs[f"{key}_mask"], left, right, 0)
        changed["teacher_per_token_logps"] = pad(inputs["teacher_per_token_logps"], 0, 3, 0.0)
        changed["teacher_hidden_states"] = torch.nn.functional.pad(
            inputs["teacher_hidden_states"], (0, 0, 0, 3), value=9.0
        )
        order = torch.tensor([2, 0, 3, 1])
        changed = {key: value[order] if value.ndim else value for key, value in changed.items()}
        changed_loss, changed_grads = gradients(trainer, changed)
        assert changed_loss == pytest.approx(loss, rel=1e-5)
        for a, b in zip(grads, changed_grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)

    def test_scores_of_learned_positions_ignore_left_padding(self, make_trainer, tokenizer):
        """GPT-2 has absolute positions: a prompt scored behind padding would get other logits than it was sampled with."""
        torch.manual_seed(0)
        config = dict(vocab_size=len(tokenizer), n_embd=8, n_head=2, n_layer=2, n_positions=64, initializer_range=0.5)
        student, teacher = GPT2LMHeadModel(GPT2Config(**config)), GPT2LMHeadModel(GPT2Config(**config))
        trainer = make_trainer(student, teacher)
        inputs = first_batch(trainer)
        assert (inputs["prompt_mask"] == 0).any()
        for row in range(4):
            prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
            completion = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
            logits = teacher(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]
            torch.testing.assert_close(
                inputs["teacher_per_token_logps"][row][: len(completion)], expected, rtol=1e-4, atol=1e-4
            )

    @pytest.mark.parametrize("steps_per_optimizer_step", [1, 2])
    def test_accumulation_is_exact(self, make_trainer, tmp_path, steps_per_optimizer_step, corpus):
        runs = {}
        for size, accumulation in [(8, 1), (2, 4), (1, 8)]:
            trainer = make_trainer(
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulation,
                steps_per_generation=accumulation * (2 if steps_per_optimizer_step == 2 else 1),
                num_iterations=2,
                max_steps=4,
                optim="sgd",
                max_grad_norm=1e9,
                learning_rate=0.01,
            )
            trainer.train()
            history = [
                (entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "grad_norm" in entry
            ]
            runs[size] = torch.tensor(history)
        assert runs[8].shape == (4, 2)
        torch.testing.assert_close(runs[2], runs[8], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(runs[1], runs[8], rtol=1e-4, atol=1e-6)

    def test_rollouts_without_the_teacher_are_those_of_the_parent(self, make_trainer, prompts, tokenizer, tiny_model):
        trainer = make_trainer(teacher_mix_alpha=0.0)
        args = DistillationConfig(trainer.args.output_dir, bf16=False, use_cpu=True, max_completion_length=8)
        parent = DistillationTrainer(tiny_model(seed=0), tiny_model(seed=1), args, prompts, processing_class=tokenizer)
        rows = list(prompts)[:4]
        samples = []
        for instance in (trainer, parent):
            torch.manual_seed(5)
            samples.append(instance._generate_and_score_completions(rows)["completion_ids"])
        assert torch.equal(*samples)

    def test_coins_follow_the_seed_and_the_rollout_set(self, make_trainer):
        def tossed(seed, step):
            trainer = make_trainer(seed=seed, teacher_mix_alpha=0.5, max_completion_length=40)
            trainer.model.train()
            trainer._step = step
            torch.manual_seed(0)
            trainer._mixed_rollout([[5, 6]] * 4)
            return trainer._averages["train"].sums["mix/teacher_calls"][0], trainer._averages["train"].sums[
                "mix/teacher_share"
            ][0]

        assert tossed(42, 0) == tossed(42, 3)  # all passes over one set
        assert len({tossed(42, 0), tossed(42, 4), tossed(7, 0), tossed(20250101, 0)}) > 2

    def test_first_pass_has_ratio_one_and_zero_learning_rate_repeats_the_loss(self, make_trainer):
        trainer = make_trainer(teacher_mix_alpha=0.0, learning_rate=0.0, max_steps=4, num_iterations=4)
        trainer.train()
        steps = [entry for entry in trainer.state.log_history if "ratio/mean" in entry]
        assert [entry["ratio/mean"] for entry in steps] == [1.0] * 4
        assert len({entry["loss"] for entry in steps}) == 1

    def test_counts_of_forwards_and_saved_tensors(self, make_trainer, tiny_model):
        """Four inner passes: one teacher pass a rollout, one student pass a micro-batch, nothing of size (tokens, V)."""
        vocab = 1009  # a size that no other dimension has
        student, teacher = tiny_model(seed=0, vocab_size=vocab), tiny_model(seed=1, vocab_size=vocab)
        calls = {"student": 0, "teacher": 0}

        def count(name):
            def hook(*_):
                calls[name] += 1

            return hook

        trainer = make_trainer(
            student,
            teacher,
            teacher_mix_alpha=0.0,
            num_iterations=4,
            gradient_accumulation_steps=2,
            max_steps=4,
        )
        generate = student.generate
        sampled = []

        def counting_generate(*args, **kwargs):
            before = calls["student"]
            output = generate(*args, **kwargs)
            sampled.append(calls["student"] - before)
            return output

        student.generate = counting_generate
        student.model.register_forward_hook(count("student"))
        teacher.model.register_forward_hook(count("teacher"))
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
            trainer.train()
        assert len(sampled) == 1  # one generation for the set
        assert calls["teacher"] == 2  # one pass over the rollout set, in micro-batches
        assert calls["student"] - sum(sampled) == 4 * 2
        parameters = {param.data_ptr() for param in student.parameters()} | {
            p.data_ptr() for p in teacher.parameters()
        }
        wide = [tensor.shape for tensor in saved if vocab in tensor.shape and tensor.data_ptr() not in parameters]
        assert wide == [], "tensors of vocabulary size were saved for backward"

    def test_enumerated_gradient(self, make_trainer, tiny_model):
        """The mean sampled gradient is that of the exact sequence-level reverse KL, and the single-step part is not."""
        words = ["<pad>", "<eos>", "a", "b"]
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left"
        )
        student, teacher = tiny_model(seed=0, vocab_size=4), tiny_model(seed=1, vocab_size=4)
        length, prompt = 3, [2]

        # The definition: a sum over all completions, which end at <eos> or at the limit
        sequences = []
        for size in range(1, length + 1):
            for ids in itertools.product(range(4), repeat=size):
                ends = ids[-1] == 1 or size == length
                if ends and 1 not in ids[:-1]:
                    sequences.append(ids)
        student.double(), teacher.double()
        exact = 0.0
        for ids in sequences:
            row = torch.tensor([prompt + list(ids)])
            logq = student(row).logits[0, :-1].log_softmax(-1)
            logp = teacher(row).logits[0, :-1].log_softmax(-1).detach()
            lq = sum(logq[t, token] for t, token in enumerate(ids))
            lp = sum(logp[t, token] for t, token in enumerate(ids))
            exact = exact + lq.exp() * (lq - lp)
        parameters = list(student.parameters())
        target = torch.cat([grad.flatten() for grad in torch.autograd.grad(exact, parameters)]).float()
        student.float(), teacher.float()

        directions = torch.randn(6, len(target), generator=torch.Generator().manual_seed(0))
        directions[0] = target / target.norm()

        def sampled(sets=24, rows=256, **settings):
            data = Dataset.from_dict({"prompt": ["a"] * rows})
            trainer = make_trainer(
                student,
                teacher,
                data,
                processing_class=tokenizer,
                per_device_train_batch_size=rows,
                max_completion_length=length,
                num_iterations=1,
                epsilon=NO_CLIP,
                length_normalization=False,
                teacher_mix_alpha=0.0,
                **settings,
            )
            batch = [{"prompt": "a"}] * rows
            results = []
            torch.manual_seed(0)
            trainer.model.train()
            for _ in range(sets):
                trainer._buffered_inputs = None
                inputs = trainer._prepare_inputs(batch)
                _, grads = gradients(trainer, inputs)
                tokens = inputs["completion_mask"].sum()  # the trainer divides by tokens, the KL by sequences
                results.append(torch.cat([grad.flatten() for grad in grads]) * tokens / rows)
            results = torch.stack(results) @ directions.T  # (sets, directions)
            return results.mean(0), results.std(0) / sets**0.5

        expected = directions @ target
        for settings in ({}, {"single_step_decomposition": False}):
            mean, error = sampled(**settings)
            assert ((mean - expected).abs() < 4 * error).all(), (settings, mean, expected, error)
        for settings in ({"gamma": 0.0}, {"return_mode": "inclusive"}):  # controls: these are other objectives
            mean, error = sampled(**settings)
            assert ((mean - expected).abs() > 4 * error).any(), settings

    def test_scores_and_loss_run_in_mixed_precision(self, make_trainer):
        """Forward redirection goes around the forward that accelerate casts in; sampling does not."""
        trainer, seen = make_trainer(bf16=True, max_steps=1), []
        for model in (trainer.model, trainer.teacher_model):
            layer = trainer.accelerator.unwrap_model(model).model.layers[0].mlp.down_proj
            layer.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        trainer.train()
        assert set(seen) == {torch.bfloat16}

    def test_metrics_do_not_change_training(self, make_trainer, prompts):
        """An evaluation between two steps draws its samples without disturbing the coins or the partition."""
        trainer = make_trainer(eval_dataset=prompts)
        first_batch(trainer)
        (inputs,) = trainer._buffered_inputs
        trainer._step = 1  # the second pass over the set
        trainer.evaluate()
        trainer.model.train()
        assert trainer._step == 1 and trainer._prepare_inputs(None) is inputs


class TestLanguageModellingLoss:
    def test_is_cross_entropy_and_leaves_the_rollouts_alone(self, make_trainer, corpus):
        plain, with_corpus = make_trainer(), make_trainer(lm_dataset=corpus, lm_max_length=32)
        plain_inputs, inputs = first_batch(plain), first_batch(with_corpus)
        plain_loss, _ = gradients(plain, plain_inputs)
        loss, _ = gradients(with_corpus, inputs)
        ids = inputs["corpus_ids"]
        assert ids.shape == (4, 32)
        logits = with_corpus.model(ids).logits[:, :-1]
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
        assert loss - plain_loss == pytest.approx(expected, rel=1e-4)
        for name in ("kl", "reward/mean", "loss/long"):
            ours, theirs = with_corpus._averages["train"].sums[name], plain._averages["train"].sums[name]
            assert float(ours[0]) == pytest.approx(float(theirs[0]), rel=1e-5)

    def test_coefficient_zero_is_bit_equal_to_no_corpus(self, make_trainer, corpus):
        runs = []
        for arguments in ({}, {"lm_dataset": corpus, "lm_coef": 0.0}):
            trainer = make_trainer(**arguments)
            trainer.train()
            runs.append([param.clone() for param in trainer.model.parameters()])
        for a, b in zip(*runs, strict=True):
            assert torch.equal(a, b)

    def test_distillation_share(self, make_trainer, corpus):
        trainer = make_trainer(lm_dataset=corpus, lm_max_length=32, lm_kd_ratio=0.25, lm_coef=2.0)
        inputs = first_batch(trainer)
        loss, _ = gradients(trainer, inputs)
        ids = inputs["corpus_ids"]
        logq = trainer.model(ids).logits[:, :-1].log_softmax(-1)
        logp = trainer.teacher_model(ids).logits[:, :-1].log_softmax(-1)
        cross_entropy = -logq.gather(2, ids[:, 1:, None]).mean()
        forward_kl = (logp.exp() * (logp - logq)).sum(-1).mean()
        tokens = inputs["completion_mask"].sum()
        rollout_part = (
            sum(float(trainer._averages["train"].sums[name][0]) for name in ("loss/long", "loss/single")) / tokens
        )
        assert loss - rollout_part == pytest.approx(2.0 * (0.75 * cross_entropy + 0.25 * forward_kl).item(), rel=1e-4)

    def test_every_block_is_read_once_a_pass(self, make_trainer, corpus):
        trainer = make_trainer(lm_dataset=corpus, lm_max_length=32)
        blocks, seen = len(trainer._corpus.blocks), []
        for trainer._step in range(3 * blocks // 4 + 1):
            seen += [tuple(row.tolist()) for row in trainer._corpus_batch()["corpus_ids"]]
        everything = sorted(tuple(row.tolist()) for row in trainer._corpus.blocks)
        assert sorted(seen[:blocks]) == sorted(seen[blocks : 2 * blocks]) == everything
        assert seen[:blocks] != seen[blocks : 2 * blocks]

    def test_bad_corpora(self, make_trainer, corpus):
        with pytest.raises(ValueError, match="no corpus"):
            make_trainer(lm_coef=1.0)
        with pytest.raises(ValueError, match="column `text`"):
            make_trainer(lm_dataset=corpus.rename_column("text", "document"))
        with pytest.raises(ValueError, match="fewer tokens than one block"):
            make_trainer(lm_dataset=corpus, lm_max_length=100_000)


class TestData:
    def test_conversational_prompts(self, make_trainer, prompts):
        conversations = Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": row["prompt"]}],
                    "completion": [{"role": "assistant", "content": row["completion"]}],
                }
                for row in prompts
            ]
        )
        trainer = make_trainer(train_dataset=conversations, eval_dataset=conversations)
        trainer.train()
        assert "eval_rougeL" in trainer.evaluate()

    def test_streaming_reads_the_same_prompts_for_all_passes(self, make_trainer, prompts):
        trainer = make_trainer(
            train_dataset=prompts.to_iterable_dataset(), num_iterations=2, max_steps=8, shuffle_dataset=False
        )
        read = [[row["prompt"] for row in batch] for batch in itertools.islice(trainer.get_train_dataloader(), 4)]
        assert read[0] == read[1] == prompts["prompt"][:4]
        assert read[2] == read[3] == prompts["prompt"][4:8]
        trainer.train()
        assert trainer.state.global_step == 8

    def test_answer_checker(self, make_trainer, prompts):
        seen = []

        def checker(completion, row):
            seen.append((completion, row["prompt"]))
            return None if row["prompt"].endswith("0") else row["prompt"].endswith("1")

        metrics = make_trainer(eval_dataset=prompts, answer_checker=checker).evaluate()
        assert len(seen) == 16 and isinstance(seen[0][0], str)
        assert metrics["eval_accuracy"] == pytest.approx(2 / 16)  # 1 and 11; no answer counts as wrong

    def test_several_evaluation_sets_keep_their_names(self, make_trainer, prompts):
        sets = {"short": prompts.select(range(5)), "long": prompts.select(range(5, 16))}
        trainer = make_trainer(eval_dataset=sets, per_device_eval_batch_size=4)
        metrics = trainer.evaluate()
        for name in sets:
            assert metrics[f"eval_{name}_loss"] == metrics[f"eval_{name}_kl"]
            assert f"eval_{name}_rougeL" in metrics and f"eval_{name}_completions/mean_length" in metrics
        assert metrics["eval_short_kl"] != metrics["eval_long_kl"]
        assert "eval_kl" not in metrics
        assert set(metrics) <= {key for entry in trainer.state.log_history for key in entry}

    def test_best_model_by_rouge_and_early_stopping(self, make_trainer, prompts):
        trainer = make_trainer(
            eval_dataset=prompts,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_rougeL",
            greater_is_better=True,
            max_steps=8,
            learning_rate=0.0,
            callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        )
        trainer.train()
        assert trainer.state.global_step < 8  # nothing improves at learning rate 0
        assert trainer.state.best_metric is not None

    def test_long_prompts_are_dropped_and_counted(self, make_trainer, prompts, tiny_model, caplog):
        lengths = [len(prompt) for prompt in prompts["prompt"]]
        limit = sorted(lengths)[10]  # bytes are tokens here
        model, teacher = tiny_model(max_position_embeddings=limit + 8), tiny_model(seed=1)
        trainer = make_trainer(model, teacher, max_completion_length=8)
        assert trainer.train_dataset["prompt"] == [p for p in prompts["prompt"] if len(p) <= limit]
        with pytest.raises(ValueError, match="Every prompt of `train_dataset` is longer than"):
            make_trainer(tiny_model(max_position_embeddings=16), teacher, max_completion_length=8)

    def test_bad_data(self, make_trainer, prompts):
        with pytest.raises(ValueError, match="no column `prompt`, only"):
            make_trainer(train_dataset=prompts.rename_column("prompt", "question"))
        with pytest.raises(ValueError, match="empty prompt in row 3"):
            make_trainer(train_dataset=Dataset.from_dict({"prompt": ["a", "b", "c", "", "d"]}))
        with pytest.raises(ValueError, match="`eval_dataset` is empty"):
            make_trainer(eval_dataset=Dataset.from_dict({"prompt": []}))
        with pytest.raises(ValueError, match="16 usable prompts, but one rollout set takes 32"):
            make_trainer(per_device_train_batch_size=32)
        with pytest.raises(ValueError, match="images"):
            make_trainer(train_dataset=prompts.add_column("image", [None] * 16))

    @pytest.mark.parametrize("alpha", [0.0, 0.2])
    def test_completions_without_tokens(self, make_trainer, alpha, monkeypatch):
        """A server may return nothing for a prompt; such rows carry no loss, and a batch of them only a zero."""
        trainer = make_trainer(teacher_mix_alpha=alpha)
        turn = MiniLLMTrainer.__mro__[1]._generate_single_turn if alpha == 0.0 else MiniLLMTrainer._mixed_rollout
        name = "_generate_single_turn" if alpha == 0.0 else "_mixed_rollout"
        owner = MiniLLMTrainer.__mro__[1] if alpha == 0.0 else MiniLLMTrainer
        for empty in ([1], [0, 1, 2, 3]):
            monkeypatch.setattr(
                owner, name, lambda *args, e=empty: [[] if i in e else ids for i, ids in enumerate(turn(*args))]
            )
            trainer._buffered_inputs = None
            inputs = first_batch(trainer)
            assert inputs["completion_mask"].sum(1).eq(0).nonzero()[:, 0].tolist() == empty
            loss, grads = gradients(trainer, inputs)
            assert torch.tensor(loss).isfinite() and all(grad.isfinite().all() for grad in grads)
        assert loss == 0.0 and norm(grads) == 0.0

    @pytest.mark.parametrize("alpha", [0.0, 0.5])
    def test_teacher_without_finite_logits(self, make_trainer, tiny_model, alpha):
        teacher = tiny_model(seed=1)
        with torch.no_grad():
            teacher.lm_head.weight.fill_(float("nan"))
        with pytest.raises(ValueError, match=r"not finite at step 0 \(micro-batch 0, row 0\), on the prompt 'Say"):
            first_batch(make_trainer(teacher_model=teacher, teacher_mix_alpha=alpha))

    def test_context_is_shared_with_the_completion_and_the_corpus(self, make_trainer, tiny_model, corpus):
        limit = dict(model=tiny_model(max_position_embeddings=64))
        with pytest.raises(ValueError, match="`lm_max_length` is 128, but the models' context is 64"):
            make_trainer(**limit, lm_dataset=corpus, lm_max_length=128)
        with pytest.raises(ValueError, match="longer than 4 tokens"):
            make_trainer(**limit, generation_kwargs={"max_new_tokens": 60})

    def test_what_needs_no_model_is_found_before_one_is_loaded(
        self, make_trainer, tiny_model, tokenizer, prompts, corpus
    ):
        for settings, message in [
            ({"train_dataset": prompts.select(range(3))}, "one rollout set takes 4"),
            ({"lm_dataset": corpus.rename_column("text", "document")}, "column `text`"),
            ({"teacher_model_init_kwargs": {"dtype": "float32"}}, "already instantiated"),
            ({"train_dataset": prompts.rename_column("prompt", "question")}, "no column `prompt`"),
        ]:
            with pytest.raises(ValueError, match=message):
                make_trainer(model="a/model/that/does/not/exist", **settings)


class TestConfig:
    @pytest.mark.parametrize(
        "settings, message",
        [
            ({"teacher_mix_alpha": 1.0}, r"`teacher_mix_alpha` must be in \[0, 1\), got 1.0"),
            ({"teacher_mix_alpha": -0.1}, r"`teacher_mix_alpha` must be in \[0, 1\)"),
            ({"num_iterations": 0}, "`num_iterations` must be at least 1"),
            ({"gradient_accumulation_steps": 4, "steps_per_generation": 6}, "multiple of `gradient_accumulation_steps`"),
            ({"return_mode": "both"}, "`return_mode` must be auto"),
            ({"gamma": 1.5}, r"`gamma` must be in \[0, 1\]"),
            ({"epsilon": 0.0}, "`epsilon` must be above 0"),
            ({"reward_scaling": 0.0}, "`reward_scaling` must be above 0"),
            ({"lm_kd_ratio": 2.0}, "`lm_kd_ratio` must be in"),
            ({"beta": 0.5}, "`beta` must be 1.0"),
            ({"temperature": 0.0}, "`temperature` must be above 0"),
            ({"top_p": 0.9}, "`top_p=0.9` changes the distribution"),
            ({"top_k": 50}, "`top_k=50` changes the distribution"),
            ({"min_p": 0.1}, "`min_p=0.1` changes the distribution"),
            ({"repetition_penalty": 1.2}, "`repetition_penalty=1.2` changes the distribution"),
            ({"generation_kwargs": {"top_p": 0.9}}, "`top_p=0.9` changes the distribution"),
            ({"generation_kwargs": {"num_beams": 4}}, "Remove it from `generation_kwargs`"),
            ({"use_vllm": True}, "vLLM samples from the student alone"),
            ({"single_step_decomposition": False, "return_mode": "exclusive", "gamma": 0.0}, "nothing is left to train"),
            ({"teacher_is_base": True, "teacher_model_name_or_path": "x"}, "Set only one of them"),
            ({"teacher_is_base": True, "disable_dropout": False}, "needs `disable_dropout=True`"),
        ],
    )  # fmt: skip
    def test_bad_values(self, tmp_path, settings, message):
        with pytest.raises(ValueError, match=message):
            MiniLLMConfig(str(tmp_path), bf16=False, use_cpu=True, **settings)

    def test_truncated_sampling_is_allowed_without_the_teacher(self, tmp_path):
        config = MiniLLMConfig(str(tmp_path), bf16=False, use_cpu=True, teacher_mix_alpha=0.0, top_p=0.9)
        assert config.steps_per_generation == config.gradient_accumulation_steps == 1

    def test_defaults_of_the_laboratory(self, tmp_path):
        """Changing one of these needs a new laboratory table (benchmarks/results/quality.json) and a line in the docs."""
        config = MiniLLMConfig(str(tmp_path), bf16=False, use_cpu=True)
        assert (config.length_normalization, config.whiten_advantages, config.return_mode) == (False, True, "auto")
        assert config.clip_importance_weight is False and config.inclusive_returns is False


class TestTeacher:
    def test_padded_vocabularies(self, make_trainer, tiny_model, tokenizer):
        rows = len(tokenizer)
        for student_rows, teacher_rows in [(rows, rows + 5), (rows + 5, rows)]:
            student, teacher = tiny_model(vocab_size=student_rows), tiny_model(seed=1, vocab_size=teacher_rows)
            with torch.no_grad():  # rows beyond the tokenizer that would win every draw
                student.lm_head.weight[rows:] += 50.0
                teacher.lm_head.weight[rows:] += 50.0
            for alpha in (0.0, 0.5):
                trainer = make_trainer(student, teacher, teacher_mix_alpha=alpha)
                inputs = first_batch(trainer)
                assert inputs["completion_ids"].max() < rows
                loss, _ = gradients(trainer, inputs)
                assert torch.tensor(loss).isfinite()
                assert student.lm_head.weight.grad[rows:].abs().sum() == 0
                assert student.lm_head.weight.grad[:rows].abs().sum() > 0

    def test_other_tokenizer(self, make_trainer, tiny_model, tokenizer, tmp_path):
        teacher, path = tiny_model(seed=1), str(tmp_path / "teacher")
        teacher.save_pretrained(path)
        tokenizer.save_pretrained(path)
        make_trainer(teacher_model=path)
        data = json.loads(Path(path, "tokenizer.json").read_text())
        vocabulary = data["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        Path(path, "tokenizer.json").write_text(json.dumps(data))
        with pytest.raises(ValueError, match="GOLD.*sequence-level"):
            make_trainer(teacher_model=path)

    def test_exactly_one_teacher(self, make_trainer, tiny_model, tokenizer, prompts, tmp_path):
        with pytest.raises(ValueError, match="exactly one teacher"):
            MiniLLMTrainer(
                tiny_model(), args=MiniLLMConfig(str(tmp_path), bf16=False, use_cpu=True), train_dataset=prompts
            )
        with pytest.raises(ValueError, match="exactly one teacher"):
            make_trainer(teacher_model=tiny_model(), teacher_is_base=True, peft_config=LoraConfig())
        with pytest.raises(ValueError, match="has no adapter"):
            make_trainer(teacher_is_base=True)
        with pytest.raises(ValueError, match="already instantiated"):
            make_trainer(teacher_model_init_kwargs={"dtype": "float32"})

    def test_adapter_on_the_head(self, make_trainer):
        with pytest.raises(ValueError, match="lm_head"):
            make_trainer(peft_config=LoraConfig(target_modules=["q_proj", "lm_head"]))

    @pytest.mark.parametrize("alpha", [0.0, 0.5])
    def test_teacher_is_the_base_model(self, make_trainer, tiny_model, alpha):
        torch.manual_seed(0)
        lora = LoraConfig(target_modules=["q_proj", "v_proj"], r=4)
        trainer = make_trainer(peft_config=lora, teacher_is_base=True, teacher_mix_alpha=alpha)
        loss, grads = gradients(trainer, first_batch(trainer))
        assert abs(loss) < 1e-6  # a fresh adapter is its teacher
        with torch.no_grad():
            for name, param in trainer.model.named_parameters():
                if "lora_B" in name:
                    param.normal_(std=0.5)
        base = {name: param.clone() for name, param in trainer.model.named_parameters() if "lora" not in name}
        trainer._buffered_inputs = None
        inputs = first_batch(trainer)
        explicit = make_trainer(teacher_model=tiny_model(seed=0), teacher_mix_alpha=alpha)
        scores = explicit._score(inputs, [None] * 4)
        torch.testing.assert_close(inputs["teacher_per_token_logps"], scores["teacher_per_token_logps"])
        assert gradients(trainer, inputs)[0] > 0.01
        trainer.train()
        assert all(torch.equal(param, base[name]) for name, param in trainer.model.named_parameters() if name in base)

    def test_base_teacher_needs_the_base_head(self, make_trainer):
        lora = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
        with pytest.raises(ValueError, match="Remove `lm_head` from `modules_to_save`"):
            make_trainer(peft_config=lora, teacher_is_base=True)

    def test_states_on_cpu(self, make_trainer):
        a, b = make_trainer(), make_trainer(teacher_states_on_cpu=True)
        assert gradients(a, first_batch(a))[0] == gradients(b, first_batch(b))[0]

    def test_kept_states_equal_a_fresh_pass(self, make_trainer):
        trainer = make_trainer()
        inputs = first_batch(trainer)
        again = trainer._score(inputs, [None] * 4)
        assert torch.equal(inputs["teacher_hidden_states"], again["teacher_hidden_states"])


class TestAdapters:
    def test_4bit_student_and_teacher(self, make_trainer, tiny_model, tokenizer, prompts, tmp_path):
        config = dict(hidden_size=64, intermediate_size=64)  # 4-bit blocks hold 64 values
        paths = [str(tmp_path / name) for name in ("student", "teacher")]
        for seed, path in enumerate(paths):
            tiny_model(seed=seed, initializer_range=0.1, **config).save_pretrained(path)
            tokenizer.save_pretrained(path)
        quantization = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}
        student = AutoModelForCausalLM.from_pretrained(
            paths[0], quantization_config=BitsAndBytesConfig(**quantization), dtype=torch.float32
        )
        trainer = make_trainer(
            student,
            paths[1],
            peft_config=LoraConfig(target_modules="all-linear", r=4),
            teacher_model_init_kwargs={"quantization_config": quantization, "dtype": "float32"},
            bf16=True,
        )
        assert trainer.teacher_model.is_loaded_in_4bit and student.is_loaded_in_4bit
        before = {name: param.clone() for name, param in trainer.model.named_parameters() if param.requires_grad}
        trainer.train()
        assert all(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if p.requires_grad)
        output = str(tmp_path / "adapter")
        trainer.save_model(output)
        reloaded = AutoPeftModelForCausalLM.from_pretrained(
            output, quantization_config=BitsAndBytesConfig(**quantization), dtype=torch.float32
        ).eval()
        ids = torch.tensor([tokenizer("Say well").input_ids])
        trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
        for param in trained.parameters():
            if param.requires_grad:  # TRL trains the adapter in bf16, and PEFT loads it in fp32
                param.data = param.data.float()
        with torch.no_grad():
            torch.testing.assert_close(reloaded(ids).logits, trained(ids).logits)

    def test_saved_model_loads_with_plain_transformers(self, make_trainer, tokenizer, tmp_path):
        trainer = make_trainer()
        trainer.train()
        trainer.save_model(str(tmp_path / "model"))
        reloaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "model")).eval()
        ids = torch.tensor([tokenizer("Say well").input_ids])
        with torch.no_grad():
            assert torch.equal(reloaded(ids).logits, trainer.model.eval()(ids).logits)

    def test_model_card_cites_the_paper(self, make_trainer):
        trainer = make_trainer()
        trainer.create_model_card()
        card = Path(trainer.args.output_dir, "README.md").read_text()
        assert "gu2024minillm" in card and "2306.08543" in card

    def test_gradient_checkpointing_changes_nothing(self, make_trainer):
        losses = []
        for checkpointing in (False, True):
            trainer = make_trainer(gradient_checkpointing=checkpointing, max_steps=2)
            trainer.train()
            losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


class TestResume:
    def run(self, make_trainer, corpus, output_dir, resume=None, **settings):
        values = dict(num_iterations=2, max_steps=8, save_strategy="steps", save_steps=4)
        trainer = make_trainer(
            lm_dataset=corpus,
            lm_max_length=32,
            output_dir=str(output_dir),
            **(values | settings),
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    @pytest.mark.parametrize("step", [4, 8, 10])  # 8 steps an epoch: inside one, between two, inside the second
    def test_equals_an_uninterrupted_run(self, make_trainer, corpus, tmp_path, step):
        settings = dict(max_steps=12, save_steps=2)
        whole = self.run(make_trainer, corpus, tmp_path / "whole", **settings)
        checkpoint = str(tmp_path / "whole" / f"checkpoint-{step}")
        resumed = self.run(make_trainer, corpus, tmp_path / "again", checkpoint, **settings)
        assert resumed.state.global_step == 12
        for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_inside_a_set_samples_anew_and_keeps_the_order_of_prompts(self, make_trainer, corpus, tmp_path):
        whole = self.run(make_trainer, corpus, tmp_path / "whole", save_steps=3)
        resumed = self.run(
            make_trainer, corpus, tmp_path / "again", str(tmp_path / "whole" / "checkpoint-3"), save_steps=3
        )
        assert resumed._step == whole._step == 8

    def test_refuses_another_configuration(self, make_trainer, corpus, tmp_path):
        self.run(make_trainer, corpus, tmp_path / "whole", max_steps=4)
        checkpoint = str(tmp_path / "whole" / "checkpoint-4")
        with pytest.raises(ValueError, match="`gamma` was 1.0 and is now 0.5"):
            self.run(make_trainer, corpus, tmp_path / "again", checkpoint, gamma=0.5)
        Path(checkpoint, "minillm_config.json").unlink()
        with pytest.raises(ValueError, match="no checkpoint of a MiniLLM run"):
            self.run(make_trainer, corpus, tmp_path / "again", checkpoint)


def test_two_processes_give_the_loss_of_one(tmp_path, tiny_model, tokenizer):
    for seed, name in enumerate(("student", "teacher")):
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    script = Path(__file__).with_name("run_distributed.py")
    histories = {}
    for processes in (1, 2):
        output = tmp_path / f"{processes}.json"
        launcher = ["torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0", "--standalone"]
        subprocess.run(
            [sys.executable, "-m", *launcher, str(script), str(tmp_path), str(output)], check=True, timeout=300
        )
        histories[processes] = json.loads(output.read_text())
    one, two = histories[1], histories[2]
    assert two["processes"] == 2
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
    assert one["kl"] == pytest.approx(two["kl"], rel=1e-4)
    assert len(one["mixed"]) == len(two["mixed"]) == 2
    # Five evaluation rows on two processes: none counted twice, and names that only one process has mix nothing up
    for name, value in one["evaluation"].items():
        assert two["evaluation"][name] == pytest.approx(value, rel=1e-4), name
    assert one["evaluation"]["eval_accuracy"] == pytest.approx(1 / 5)

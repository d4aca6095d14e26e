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

"""The gradient of MiniLLM, its metrics and its rollout sets."""

import copy
import itertools
import math

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import DistillationConfig, DistillationTrainer

from tests.minillm.steps import first_batch, gradients, norm
from tests.runs import history


NO_CLIP = float("inf")


def naive_loss(student, teacher, inputs, args):
    """The loss of a first pass, token by token in float64 from dense logits. Shares no line with the trainer."""
    student, teacher = student.double(), teacher.double()
    alpha, epsilon, answers = args.teacher_mix_alpha, args.epsilon, args.num_generations
    rows = []  # of each answer: log-probabilities, step KL, credit before the baseline
    for row in range(len(inputs["prompt_ids"])):
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        completion = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
        ids = torch.cat([prompt, completion])[None]
        q = student(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        p = teacher(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1).detach()
        steps = range(len(completion))
        lq = [q[t, completion[t]] for t in steps]
        lp = [p[t, completion[t]] for t in steps]
        kl = [(q[t].exp() * (q[t] - p[t])).sum() for t in steps]
        r = [(lp[t] - lq[t]).item() for t in steps]
        credits = []
        for t in steps:
            terms = [
                args.gamma ** (s - t) * (-kl[s].item() if args.credit == "exact" else r[s]) for s in steps if s > t
            ]
            terms += [r[t]] if args.inclusive_returns else []
            credits.append(sum(terms) / (len(terms) or 1 if args.length_normalization else 1))
        rows.append((lq, lp, kl, credits))
    total, tokens = 0.0, 0
    for row, (lq, lp, kl, credits) in enumerate(rows):
        group = row - row % answers
        for t in range(len(lq)):
            others = [rows[i][3][t] for i in range(group, group + answers) if i != row and t < len(rows[i][3])]
            credit = credits[t] - (sum(others) / len(others) if others else 0.0)
            mixture = torch.log(alpha * lp[t].exp() + (1 - alpha) * lq[t].exp()).item()
            anchor = mixture if args.clip_importance_weight else lq[t].item()
            rho = torch.exp(lq[t] - anchor)
            surrogate = torch.max(-credit * rho, -credit * rho.clamp(1 - epsilon, 1 + epsilon))
            total = total + math.exp(anchor - mixture) * surrogate
            if args.single_step_decomposition:
                total = total + kl[t]
            tokens += 1
    return total / tokens


class Engine:
    """What we and the parent class call of TRL's vLLM engine, with `generate` of transformers in its place."""

    max_completion_length = 8

    def __init__(self, trainer):
        self.trainer, self.synced, self.autocast = trainer, [], []

    def sync_weights(self):
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        self.synced.append(self.trainer.state.global_step)
        self.model = copy.deepcopy(self.trainer.model).eval()

    def generate(self, prompts, images, num_generations, profiler=None):
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        rows = [self.model.generate(torch.tensor([ids]), max_new_tokens=self.max_completion_length) for ids in prompts]
        return prompts, [row[0, len(ids) :].tolist() for row, ids in zip(rows, prompts, strict=True)], None, None


def give_engine(trainer):
    trainer.use_vllm = trainer.args.use_vllm = True
    trainer.vllm_generation, trainer._last_loaded_step = Engine(trainer), -1
    if not trainer.args.samples_plainly:
        trainer._readings = None  # as if it had been made with the engine
    return trainer.vllm_generation


class TestMiniLLMTrainer:
    def test_trains_every_parameter_and_logs_its_metrics(self, make_trainer, prompts):
        trainer = make_trainer(eval_dataset=prompts, reward_clip=1.0)
        before = {name: param.clone() for name, param in trainer.model.named_parameters()}
        teacher_before = {name: param.clone() for name, param in trainer.teacher_model.named_parameters()}
        trainer.train()
        for name, param in trainer.model.named_parameters():
            assert not torch.equal(param, before[name]), f"{name} has not changed"
        for name, param in trainer.teacher_model.named_parameters():
            assert torch.equal(param, teacher_before[name]) and param.grad is None, f"{name} of the teacher"
        logged = {key for entry in trainer.state.log_history for key in entry}
        assert {
            "loss/long", "loss/single", "kl", "kl/sampled", "reward/mean", "reward/clipped", "advantage/mean",
            "advantage/std", "sampling/importance_sampling_ratio/mean", "sampling/importance_sampling_ratio/min",
            "ratio/mean", "clip_ratio/low_mean", "clip_ratio/high_mean", "mix/teacher_share", "mix/teacher_calls",
            "text/distinct_4", "text/repetition", "entropy", "completions/clipped_ratio", "time/rollout",
            "time/scoring", "time/loss",
        } <= logged  # fmt: skip
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] == pytest.approx(metrics["eval_kl"], rel=1e-4)
        assert {"eval_kl/forward", "eval_kl/sequence", "eval_rougeL", "eval_text/distinct_4"} <= set(metrics)

    @pytest.mark.parametrize("credit", [{}, {"length_normalization": False, "whiten_advantages": True}])
    def test_recovers_the_teacher(self, make_trainer, tiny_model, prompts, credit):
        student, teacher = tiny_model(seed=0), tiny_model(seed=0)
        with torch.no_grad():  # a student that is the teacher but for its head
            student.lm_head.weight.mul_(0.5)
        steps = dict(per_device_train_batch_size=16, max_steps=150, learning_rate=3e-3)
        trainer = make_trainer(student, teacher, eval_dataset=prompts, **steps, **credit)
        before = trainer.evaluate()["eval_kl"]
        trainer.train()
        assert trainer.evaluate()["eval_kl"] < 0.5 * before

    # The states of a rollout were computed with a cache, so their last bits differ from those of a forward pass
    @pytest.mark.parametrize("score_from, size", [("forward", 1e-6), ("rollout", 3e-6)])
    @pytest.mark.parametrize("alpha", [0.0, 0.2])
    def test_gradient_vanishes_when_the_student_is_the_teacher(
        self, make_trainer, tiny_model, alpha, score_from, size
    ):
        models = tiny_model(seed=3), tiny_model(seed=3)
        trainer = make_trainer(*models, teacher_mix_alpha=alpha, score_from=score_from)
        loss, grads = gradients(trainer, first_batch(trainer))
        assert abs(loss) < 1e-6
        assert norm(grads) < size

    @pytest.mark.parametrize("alpha", [0.0, 0.2, 0.7])
    def test_rollout_and_forward_scores_agree(self, make_trainer, tiny_model, tiny_gpt2, alpha):
        """Each model's own reading of the rows, with rows that end early and learned positions."""
        models = [tiny_model(seed=0), tiny_gpt2(seed=1)]
        settings = dict(teacher_mix_alpha=alpha, max_completion_length=24, per_device_train_batch_size=8)
        inputs = {}
        for source in ("rollout", "forward"):
            trainer = make_trainer(
                *models, score_from=source, whiten_advantages=True, steps_per_generation=2, **settings
            )
            trainer.eos_token_ids = trainer.generation_config.eos_token_id = list(range(30))
            first_batch(trainer)
            inputs[source] = trainer._buffered_inputs
        for ours, theirs in zip(inputs["rollout"], inputs["forward"], strict=True):
            assert torch.equal(ours["completion_ids"], theirs["completion_ids"])
            mask = ours["completion_mask"].bool()
            assert len(set(mask.sum(1).tolist())) > 2
            for name in ("old_per_token_logps", "teacher_per_token_logps", "teacher_hidden_states"):
                torch.testing.assert_close(ours[name][mask], theirs[name][mask], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(ours["advantages"], theirs["advantages"], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        "settings",
        [
            {"teacher_mix_alpha": 0.0},
            {"teacher_mix_alpha": 0.2},
            {"teacher_mix_alpha": 0.2, "clip_importance_weight": True},
            {"gamma": 0.9, "length_normalization": False},
            {"return_mode": "inclusive"},
            {"single_step_decomposition": False, "teacher_mix_alpha": 0.5},
            {"credit": "exact", "gamma": 0.9, "teacher_mix_alpha": 0.5},
            {"credit": "exact", "return_mode": "inclusive"},
            {"num_generations": 2, "length_normalization": False},
        ],
    )
    def test_loss_and_gradient_match_a_float64_loop(self, make_trainer, settings):
        trainer = make_trainer(score_from="forward", **settings)
        for model in (trainer.model, trainer.teacher_model):  # what is left in float32 are the kernels of the loss
            model.double()
        inputs = first_batch(trainer)
        loss, grads = gradients(trainer, inputs)
        student = trainer.model
        student.zero_grad()
        expected = naive_loss(student, trainer.teacher_model, inputs, trainer.args)
        expected.backward()
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        for grad, param in zip(grads, student.parameters(), strict=True):
            torch.testing.assert_close(grad.double(), param.grad, rtol=0, atol=5e-6 * param.grad.abs().max().item())

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
            {"credit": "exact"},
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
        for name in ("old_per_token_logps", "teacher_per_token_logps", "sampling_per_token_logps", "advantages"):
            changed[name] = pad(inputs[name], 0, 3, 5.0)
        changed["teacher_hidden_states"] = torch.nn.functional.pad(
            inputs["teacher_hidden_states"], (0, 0, 0, 3), value=9.0
        )
        order = torch.tensor([2, 0, 3, 1])
        changed = {key: value[order] if value.ndim else value for key, value in changed.items()}
        changed_loss, changed_grads = gradients(trainer, changed)
        assert changed_loss == pytest.approx(loss, rel=1e-5)
        for a, b in zip(grads, changed_grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)

    def test_scores_of_learned_positions_ignore_left_padding(self, make_trainer, tiny_gpt2):
        """GPT-2 has absolute positions: a prompt scored behind padding gets other logits than when it was read."""
        student, teacher = tiny_gpt2(seed=0), tiny_gpt2(seed=1)
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
    def test_accumulation_is_exact(self, make_trainer, steps_per_optimizer_step):
        runs = {}
        for accumulation in (1, 4, 8):
            batches = dict(per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation)
            sets = dict(steps_per_generation=accumulation * steps_per_optimizer_step, num_iterations=2)
            trainer = make_trainer(**batches, **sets, optim="sgd", max_grad_norm=1e9)
            trainer.train()
            runs[accumulation] = history(trainer)
        assert runs[1].shape == (4, 2)
        for accumulation in (4, 8):
            torch.testing.assert_close(runs[accumulation], runs[1], rtol=1e-4, atol=1e-6)

    def test_truncated_rollouts_are_those_of_the_parent(self, make_trainer, prompts, tokenizer, tiny_model):
        trainer = make_trainer(teacher_mix_alpha=0.0, top_k=50)
        args = DistillationConfig(trainer.args.output_dir, bf16=False, use_cpu=True, max_completion_length=8, top_k=50)
        parent = DistillationTrainer(tiny_model(seed=0), tiny_model(seed=1), args, prompts, processing_class=tokenizer)
        rows = list(prompts)[:4]
        samples = []
        for instance in (trainer, parent):
            torch.manual_seed(5)
            samples.append(instance._generate_and_score_completions(rows)["completion_ids"])
        assert torch.equal(*samples)

    def test_an_engine_draws_the_students_tokens_under_mixing(self, make_trainer):
        """Its weights are those of each step, the teacher's states are kept, and the student reads the rows itself."""
        sets = dict(num_iterations=2, steps_per_generation=2, max_steps=8)
        trainer = make_trainer(teacher_mix_alpha=0.5, **sets)

        engine = give_engine(trainer)
        first_batch(trainer)
        (inputs, _), rows = trainer._buffered_inputs, 4
        again = trainer._score(inputs, [None] * rows)
        mask = inputs["completion_mask"].bool()
        for name in ("teacher_hidden_states", "teacher_per_token_logps", "old_per_token_logps"):
            torch.testing.assert_close(inputs[name][mask], again[name][mask], rtol=1e-5, atol=1e-5)
        trainer._buffered_inputs = None
        trainer.train()
        assert engine.synced == [0, 4]  # two sets, of two passes with two steps each
        assert 0 < trainer.state.log_history[0]["mix/student_calls"] < 8

    @pytest.mark.parametrize("alpha", [0.0, 0.5])
    def test_an_engine_has_new_weights_in_every_run(self, make_trainer, alpha):
        """Step 0 of a second run has not the weights of step 0 of the first."""
        trainer = make_trainer(teacher_mix_alpha=alpha, num_iterations=2, max_steps=2)
        engine = give_engine(trainer)
        trainer.train()
        trainer.train()
        assert engine.synced == [0, 0]

    @pytest.mark.parametrize("alpha", [0.0, 0.5])
    def test_an_engine_is_called_outside_autocast(self, make_trainer, prompts, alpha):
        """Its weights have their own type: float32 ones would be multiplied with states in bfloat16."""
        trainer = make_trainer(teacher_mix_alpha=alpha, bf16=True, max_steps=1, eval_dataset=prompts.select(range(4)))
        engine = give_engine(trainer)
        trainer.train()
        trainer.evaluate()
        assert len(engine.autocast) >= 4 and not any(engine.autocast)

    def test_chat_template_kwargs_reach_all_prompts(self, make_trainer, prompts, tokenizer):
        switched = copy.deepcopy(tokenizer)
        switched.chat_template += "{% if enable_thinking is defined and not enable_thinking %}<off>{% endif %}"
        chats = prompts.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
        settings = dict(train_dataset=chats, eval_dataset=chats, processing_class=switched)
        trainer = make_trainer(chat_template_kwargs={"enable_thinking": False}, **settings)
        inputs = [first_batch(trainer)]
        trainer.model.eval()
        inputs.append(trainer._prepare_inputs(list(chats.select(range(4)))))
        for ids in (ids for batch in inputs for ids in batch["prompt_ids"]):
            assert tokenizer.decode(ids).endswith("<|assistant|><off>")

    def test_answers_to_one_prompt_are_adjacent_in_a_set(self, make_trainer, prompts):
        trainer = make_trainer(num_generations=4, per_device_train_batch_size=8, num_iterations=2, max_steps=8)
        trainer.train()
        assert trainer.state.num_train_epochs >= 1
        seen = []
        loader = iter(trainer.get_train_dataloader())
        for batch in loader:
            texts = [row["prompt"] for row in batch]
            assert texts == [text for text in texts[::4] for _ in range(4)] and len(set(texts)) == 2
            seen.append(tuple(texts[::4]))
        assert seen[::2] == seen[1::2] and len(set(itertools.chain(*seen))) == len(prompts)  # each set twice

    def test_coins_follow_the_seed_and_the_rollout_set(self, make_trainer):
        def tossed(seed, step):
            trainer = make_trainer(seed=seed, teacher_mix_alpha=0.5, max_completion_length=40)
            trainer.model.train()
            trainer._step = step
            torch.manual_seed(0)
            trainer._roll_out([[5, 6]] * 4)
            sums = trainer._averages["train"].sums
            return sums["mix/teacher_calls"][0], sums["mix/teacher_share"][0]

        assert tossed(42, 0) == tossed(42, 3)  # all passes over one set
        assert len({tossed(42, 0), tossed(42, 4), tossed(7, 0), tossed(20250101, 0)}) > 2

    # With a scoring pass of its own, in the first inner pass, or with the states of the rollout
    @pytest.mark.parametrize("batches, score_from", [(2, "forward"), (1, "forward"), (1, "rollout")])
    def test_first_pass_has_ratio_one_and_zero_learning_rate_repeats_the_loss(self, make_trainer, batches, score_from):
        settings = dict(teacher_mix_alpha=0.0, max_steps=4, num_iterations=4, whiten_advantages=True)
        settings |= dict(gradient_accumulation_steps=batches, score_from=score_from)
        steps = {}
        for learning_rate in (0.0, 1e-2):
            trainer = make_trainer(learning_rate=learning_rate, **settings)
            trainer.train()
            steps[learning_rate] = [entry for entry in trainer.state.log_history if "ratio/mean" in entry]
        exactly = 0.0 if score_from == "forward" else 1e-6
        assert [entry["ratio/mean"] for entry in steps[0.0]] == pytest.approx([1.0] * 4, abs=exactly)
        assert len({entry["loss"] for entry in steps[0.0]}) == 1
        ratios = [entry["ratio/mean"] for entry in steps[1e-2]]
        assert (
            ratios[0] == pytest.approx(1.0, abs=exactly) and len(set(ratios)) == 4
        )  # to the student that sampled, not to the last pass

    @pytest.mark.parametrize("alpha, score_from", [(0.0, "rollout"), (0.0, "forward"), (0.5, "rollout")])
    def test_counts_of_forwards_and_saved_tensors(self, make_trainer, tiny_model, alpha, score_from):
        """Four inner passes, and each token read once by each model before them; nothing of size (tokens, V)."""
        vocab, length = 1009, 8  # a size that no other dimension has
        student, teacher = tiny_model(seed=0, vocab_size=vocab), tiny_model(seed=1, vocab_size=vocab)
        passes = dict(num_iterations=4, gradient_accumulation_steps=2, max_steps=4)
        trainer = make_trainer(student, teacher, teacher_mix_alpha=alpha, score_from=score_from, **passes)
        trainer.eos_token_ids = trainer.generation_config.eos_token_id = [vocab]  # no row ends early
        read, saved = {student: 0, teacher: 0}, []

        def count(model):
            def hook(module, args, kwargs):
                read[model] += kwargs["input_ids"].numel()

            model.model.register_forward_pre_hook(hook, with_kwargs=True)

        count(student)
        count(teacher)
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
            trainer.train()
        prompts = [batch["prompt_ids"].shape[1] for batch in trainer._buffered_inputs]
        assert len(set(prompts)) == 1
        whole, once = (8 * (prompts[0] + size) for size in (length, length - 1))  # the last token needs no reading
        assert read[teacher] == (once if alpha else whole)
        assert read[student] == once + 4 * whole  # the first pass scores the set, if the rollout does not
        parameters = {param.data_ptr() for model in (student, teacher) for param in model.parameters()}
        wide = [tensor.shape for tensor in saved if vocab in tensor.shape and tensor.data_ptr() not in parameters]
        assert wide == [], "tensors of vocabulary size were saved for backward"

    def test_enumerated_gradient(self, make_trainer, tiny_model):
        """The mean sampled gradient is that of the exact sequence-level reverse KL; the single step is not."""
        words = ["<pad>", "<eos>", "a", "b"]
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left"
        )
        student, teacher = tiny_model(seed=0, vocab_size=4), tiny_model(seed=1, vocab_size=4)
        length, prompt = 3, [2]

        # The definition: a sum over all completions, which end at <eos> or at the limit
        sequences = [
            ids
            for size in range(1, length + 1)
            for ids in itertools.product(range(4), repeat=size)
            if 1 not in ids[:-1] and (ids[-1] == 1 or size == length)
        ]
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
            credit = dict(epsilon=math.inf, length_normalization=False, teacher_mix_alpha=0.0)
            rollout = dict(per_device_train_batch_size=rows, max_completion_length=length, num_iterations=1)
            trainer = make_trainer(student, teacher, data, processing_class=tokenizer, **credit, **rollout, **settings)
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

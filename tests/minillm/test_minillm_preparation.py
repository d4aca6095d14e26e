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

"""What is checked and prepared before the first step: settings, prompts and corpus."""

import itertools

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import EarlyStoppingCallback, GenerationConfig
from trl import DistillationTrainer

from tests.minillm.steps import first_batch, gradients, norm
from tests.runs import assert_same_weights
from trl_distill import MiniLLMConfig, MiniLLMTrainer


class TestData:
    def test_conversational_prompts(self, make_trainer, prompts):
        conversations = prompts.map(
            lambda row: {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
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

    @pytest.mark.parametrize(
        ("metric", "expected"),
        [
            ("rougeL", "no evaluation row has a `completion`"),
            ("eval_accuracy", "which only an `answer_checker` gives"),
        ],
    )
    def test_a_best_metric_that_will_not_be_known_is_refused(self, make_trainer, prompts, metric, expected):
        settings = dict(eval_dataset=prompts.remove_columns("completion"), metric_for_best_model=metric)
        make_trainer(**settings)  # nothing is evaluated in training
        with pytest.raises(ValueError, match=expected):
            make_trainer(**settings, eval_strategy="steps", eval_steps=1)

    def test_long_prompts_are_dropped_and_counted(self, make_trainer, prompts, tiny_model, caplog):
        lengths = [len(prompt) for prompt in prompts["prompt"]]
        limit = sorted(lengths)[10]  # bytes are tokens here
        model, teacher = tiny_model(max_position_embeddings=limit + 8), tiny_model(seed=1)
        trainer = make_trainer(model, teacher, max_completion_length=8)
        assert trainer.train_dataset["prompt"] == [p for p in prompts["prompt"] if len(p) <= limit]
        stream = make_trainer(model, teacher, train_dataset=prompts.to_iterable_dataset(), max_completion_length=8)
        stream.train()
        assert set(map(len, (row["prompt"] for row in stream.train_dataset))) == {n for n in lengths if n <= limit}
        with pytest.raises(ValueError, match=f"A prompt has 2. tokens, and {limit} leave room"):
            trainer.evaluate(prompts)
        with pytest.raises(ValueError, match="Every prompt of `train_dataset` is longer than"):
            make_trainer(tiny_model(max_position_embeddings=16), teacher, max_completion_length=8)

    @pytest.mark.parametrize("alpha", [0.0, 0.2])
    def test_completions_without_tokens(self, make_trainer, alpha, monkeypatch):
        """A server may return nothing for a prompt; such rows carry no loss, and a batch of them only a zero."""
        trainer = make_trainer(teacher_mix_alpha=alpha, top_k=0 if alpha else 5)
        name, owner = ("_roll_out", MiniLLMTrainer) if alpha else ("_generate_single_turn", DistillationTrainer)
        end = trainer.processing_class.eos_token_id
        for lengths in ([3, 0, 1, 2], [0, 0, 0, 0]):
            rows = [([7] * length + [end])[-length:] if length else [] for length in lengths]  # of one: just the EOS
            monkeypatch.setattr(owner, name, lambda *args, rows=rows: rows)
            trainer._buffered_inputs = None
            inputs = first_batch(trainer)
            assert inputs["completion_mask"].sum(1).tolist() == lengths
            loss, grads = gradients(trainer, inputs)
            assert torch.tensor(loss).isfinite() and all(grad.isfinite().all() for grad in grads)
        assert loss == 0.0 and norm(grads) == 0.0

    @pytest.mark.parametrize("alpha", [0.0, 0.5])
    def test_teacher_without_finite_logits(self, make_trainer, tiny_model, alpha):
        teacher = tiny_model(seed=1)
        trainer = make_trainer(teacher_model=teacher, teacher_mix_alpha=alpha)
        with torch.no_grad():
            teacher.lm_head.weight.fill_(float("nan"))
        with pytest.raises(ValueError, match=r"not finite at step 0 \(micro-batch 0, row 0\), on the prompt 'Say"):
            first_batch(trainer)

    def test_context_is_shared_with_the_completion_and_the_corpus(self, make_trainer, tiny_model, corpus):
        limit = dict(model=tiny_model(max_position_embeddings=64))
        with pytest.raises(ValueError, match="`lm_max_length` is 128, but the models' context is 64"):
            make_trainer(**limit, lm_dataset=corpus, lm_max_length=128)
        with pytest.raises(ValueError, match="longer than 4 tokens"):
            make_trainer(**limit, generation_kwargs={"max_new_tokens": 60})

    def test_what_needs_no_model_is_found_before_one_is_loaded(self, make_trainer, prompts, corpus):
        question = prompts.rename_column("prompt", "question")
        for settings, message in [
            ({"train_dataset": question}, "no column `prompt`, only"),
            ({"train_dataset": Dataset.from_dict({"prompt": ["a", "b", "c", "", "d"]})}, "empty prompt in row 3"),
            ({"train_dataset": prompts.add_column("image", [None] * 16)}, "images"),
            ({"train_dataset": prompts.select(range(3))}, "one rollout set takes 4"),
            ({"per_device_train_batch_size": 32}, "16 usable prompts, but one rollout set takes 32"),
            ({"eval_dataset": Dataset.from_dict({"prompt": []})}, "`eval_dataset` is empty"),
            ({"eval_dataset": {"mine": question}}, "`mine` has no column `prompt`"),
            ({"lm_coef": 1.0}, "no corpus"),
            ({"lm_dataset": corpus.rename_column("text", "document")}, "column `text`"),
            ({"teacher_model_init_kwargs": {"dtype": "float32"}}, "already instantiated"),
            ({"teacher_is_base": True}, "has no adapter"),
        ]:
            with pytest.raises(ValueError, match=message):
                make_trainer(model="a/model/that/does/not/exist", **settings)


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
        plain = make_trainer()
        plain.train()
        idle = make_trainer(lm_dataset=corpus, lm_coef=0.0)
        idle.train()
        assert_same_weights(plain.model, idle.model)

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
        sums = trainer._averages["train"].sums
        rollout_part = sum(float(sums[name][0]) for name in ("loss/long", "loss/single")) / tokens
        assert loss - rollout_part == pytest.approx(2.0 * (0.75 * cross_entropy + 0.25 * forward_kl).item(), rel=1e-4)

    def test_every_block_is_read_once_a_pass(self, make_trainer, corpus):
        trainer = make_trainer(lm_dataset=corpus, lm_max_length=32)
        blocks, seen = len(trainer._corpus.blocks), []
        for trainer._step in range(3 * blocks // 4 + 1):
            seen += [tuple(row.tolist()) for row in trainer._corpus_batch()["corpus_ids"]]
        everything = sorted(tuple(row.tolist()) for row in trainer._corpus.blocks)
        assert sorted(seen[:blocks]) == sorted(seen[blocks : 2 * blocks]) == everything
        assert seen[:blocks] != seen[blocks : 2 * blocks]

    def test_corpus_shorter_than_a_block(self, make_trainer, corpus):
        with pytest.raises(ValueError, match="fewer tokens than one block"):
            make_trainer(lm_dataset=corpus, lm_max_length=100_000)


class TestConfig:
    @pytest.mark.parametrize(
        "settings, message",
        [
            ({"teacher_mix_alpha": 1.0}, r"`teacher_mix_alpha` must be in \[0, 1\), got 1.0"),
            ({"teacher_mix_alpha": -0.1}, r"`teacher_mix_alpha` must be in \[0, 1\)"),
            ({"num_iterations": 0}, "`num_iterations` must be at least 1"),
            ({"gradient_accumulation_steps": 4, "steps_per_generation": 6}, "multiple of `gradient_accumulation"),
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
            ({"use_vllm": True, "vllm_mode": "server"}, "`vllm_mode` is 'server'"),
            ({"use_vllm": True, "vllm_tensor_parallel_size": 2}, "`vllm_tensor_parallel_size` is 2"),
            ({"use_vllm": True, "vllm_enable_sleep_mode": True}, "drops vLLM's weights after each of its calls"),
            ({"num_generations": 3}, "a positive divisor of the 8 answers"),
            ({"num_generations": 0}, "a positive divisor"),
            ({"score_from": "memory"}, "rollout or forward"),
            ({"credit": "exactly"}, "sampled or exact"),
            ({"single_step_decomposition": False, "return_mode": "exclusive", "gamma": 0.0}, "nothing is left"),
            ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha` must be None, since noise .*, got 5.0"),
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
        """To change one takes a new table of the laboratory (`results/quality_credit.json`) and a line in the docs."""
        config = MiniLLMConfig(str(tmp_path), bf16=False, use_cpu=True)
        assert (config.length_normalization, config.whiten_advantages, config.return_mode) == (False, True, "auto")
        assert config.clip_importance_weight is False and config.inclusive_returns is False
        assert (config.credit, config.num_generations, config.num_iterations) == ("sampled", 1, 4)


class TestGeneration:
    def ends_of(self, trainer):
        """The last tokens of completions, and how often an end stands inside of one."""
        inputs = first_batch(trainer)
        rows = [
            ids[mask.bool()] for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
        ]
        inside = sum(torch.isin(row[:-1], torch.tensor(trainer.eos_token_ids)).sum() for row in rows)
        return {int(row[-1]) for row in rows}, int(inside)

    @pytest.mark.parametrize("alpha", [0.0, 0.5])
    def test_a_row_ends_where_the_teacher_ends(self, make_trainer, tiny_model, prompts, alpha, caplog):
        student, teacher = tiny_model(), tiny_model(seed=1)
        for model in (student, teacher):
            model.lm_head.bias = torch.nn.Parameter(torch.zeros(260))
            model.lm_head.bias.data[3] = 8.0  # both say it soon
        teacher.generation_config.eos_token_id = [3, 1000]
        trainer = make_trainer(
            student, teacher, teacher_mix_alpha=alpha, max_completion_length=64, eval_dataset=prompts
        )
        assert "ends answers with the tokens [1], the teacher with [1, 3, 1000]" in caplog.text
        assert trainer.eos_token_ids == trainer.generation_config.eos_token_id == [1, 3]
        last, inside = self.ends_of(trainer)
        assert 3 in last and last <= {1, 3} and inside == 0
        metrics = trainer.evaluate()
        assert metrics["eval_completions/clipped_ratio"] == 0 and metrics["eval_completions/max_length"] < 64
        assert student.generation_config.eos_token_id == 1  # the saved student keeps its own

    def test_equal_ends_are_not_talked_about(self, make_trainer, caplog):
        assert make_trainer().eos_token_ids == [1] and "end" not in caplog.text.replace("teacher comes", "")

    def test_ends_of_the_user_stay(self, make_trainer, tiny_model):
        teacher = tiny_model(seed=1)
        teacher.generation_config.eos_token_id = 3
        trainer = make_trainer(
            teacher_model=teacher, teacher_mix_alpha=0.0, generation_kwargs={"eos_token_id": 9, "suppress_tokens": [4]}
        )
        assert trainer.generation_config.eos_token_id == 9 and trainer.generation_config.suppress_tokens == [4]

    @pytest.mark.parametrize("lora", [False, True])
    def test_settings_of_the_student_stay_out_of_its_answers(self, make_trainer, tiny_model, prompts, lora, tmp_path):
        own = {"no_repeat_ngram_size": 1, "suppress_tokens": [9], "min_new_tokens": 7}
        student = tiny_model()
        student.lm_head.bias = torch.nn.Parameter(torch.zeros(260))
        student.lm_head.bias.data[9] = 50.0  # all that it says
        student.generation_config.update(**own)
        peft = {"peft_config": LoraConfig(target_modules=["q_proj"])} if lora else {}
        trainer = make_trainer(student, teacher_mix_alpha=0.0, eval_dataset=prompts, **peft)
        assert (first_batch(trainer)["completion_ids"] == 9).all()
        assert trainer.evaluate()["eval_text/repetition"] > 0.5
        trainer.accelerator.unwrap_model(trainer.model).generation_config.save_pretrained(tmp_path)
        saved = GenerationConfig.from_pretrained(tmp_path)
        assert {name: getattr(saved, name) for name in own} == own

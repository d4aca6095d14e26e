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

import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import DistillationTrainer
from trl.trainer.utils import get_config_model_id, repeat_iterable_dataset

from ..checkpoints import ResumableTrainer
from ..divergence import (
    TokenScores,
    backbone_states,
    completion_states,
    lm_head,
    pad_states,
    policy_loss,
    token_scores,
)
from ..models import neutral_generation_configs
from .credit import advantages, leave_one_out, long_term_loss, mixture_logps, token_rewards, whiten
from .metrics import (
    Averages,
    FiniteCheck,
    check_teacher_logps,
    credit_metrics,
    evaluate_tokens,
    known_means,
    long_term_metrics,
    real_rows,
    rollout_metrics,
    score_metrics,
    split_rollouts,
    timed,
    without_idle_rows,
)
from .minillm_config import MiniLLMConfig
from .preparation import (
    Corpus,
    check_best_metric,
    check_datasets,
    check_readable,
    check_teacher,
    connect_teacher,
    fit_datasets,
    generate_for_both,
    prepare_teacher,
    prepare_tokenizers,
    tokenized,
)
from .resume import ResumableRepeatSampler, checkpoint_to_go_on_from, resume_settings, write_settings
from .rollouts import RolloutLog


_ROWS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


class MiniLLMTrainer(ResumableTrainer, DistillationTrainer):
    """
    Trainer for [MiniLLM](https://huggingface.co/papers/2306.08543): white-box distillation by the sequence-level
    reverse KL divergence KL(student || teacher), optimized with a policy gradient.

    Its gradient has two parts (Eq. 3). The single-step part is the exact reverse KL of each next-token distribution,
    which is all that [`~trl.DistillationTrainer`] trains. The long-term part makes each token answer for what follows
    it: a student that starts an answer it cannot finish as the teacher would learns not to start it.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from trl_distill import MiniLLMTrainer

    >>> dataset = load_dataset("trl-lib/ultrafeedback-prompt", split="train")

    >>> trainer = MiniLLMTrainer(
    ...     model="Qwen/Qwen2.5-0.5B-Instruct",
    ...     teacher_model="Qwen/Qwen2.5-7B-Instruct",
    ...     train_dataset=dataset,
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Student, as in [`~trl.DistillationTrainer`]. Start from a fine-tuned student.
        teacher_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            Teacher: a model id or folder of a full model or of a PEFT adapter (loaded with
            `args.teacher_model_init_kwargs`, which may hold a `quantization_config`), or a loaded model. Defaults to
            `args.teacher_model_name_or_path`. It must share the student's tokenizer; LM heads padded to different
            sizes are cut to the smaller one. Leave it out with `teacher_is_base` or `teacher_model_server_url`.
        args ([`MiniLLMConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Prompts, in a column `"prompt"`, [standard](dataset_formats#standard) or
            [conversational](dataset_formats#conversational). A `"completion"` column is allowed and not trained on.
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or `dict`):
            Prompts for evaluation. Rows with a `"completion"` (a text, messages, or a list of texts) also give
            `eval_rougeL`.
        lm_dataset ([`~datasets.Dataset`], *optional*):
            Plain text in a column `"text"`, for the language-modelling loss of the paper's Algorithm 1.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer with left padding. If `None`, it is loaded from the student's name.
        callbacks, optimizers, quantization_config, peft_config (*optional*):
            As in [`~trl.DistillationTrainer`]. The last two are about the student.
        tools (*optional*):
            Not supported; must be `None`.
        answer_checker (`Callable[[str, dict], bool | None]`, *optional*):
            Called in evaluation with each completion and its dataset row, for `eval_accuracy`. `None`, for a
            completion without an answer, counts as wrong.

    Raises:
        `ValueError`: On prompts, settings or models that cannot be trained, before training starts.
    """

    loss_is_scaled_for_ga = True

    _tag_names = ["trl", "minillm"]
    _name = "MiniLLM"
    _paper = {
        "title": "MiniLLM: Knowledge Distillation of Large Language Models",
        "id": "2306.08543",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{gu2024minillm,
                title        = {{MiniLLM: Knowledge Distillation of Large Language Models}},
                author       = {Yuxian Gu and Li Dong and Furu Wei and Minlie Huang},
                year         = 2024,
                booktitle    = {The Twelfth International Conference on Learning Representations, {ICLR} 2024},
                publisher    = {OpenReview.net},
                url          = {https://openreview.net/forum?id=5h0qf7IBZZ},
            }"""),
    }

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        teacher_model: str | PreTrainedModel | None = None,
        args: MiniLLMConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        lm_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        tools: None = None,
        answer_checker: Callable[[str, dict], bool | None] | None = None,
    ):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = MiniLLMConfig(f"{name.split('/')[-1]}-MiniLLM")

        # Everything that can be checked without a model comes before the first model is loaded
        if tools is not None:
            raise ValueError("MiniLLMTrainer does not support `tools`: credit over tool results is not defined.")
        teacher_model = args.teacher_model_name_or_path if teacher_model is None else teacher_model
        check_teacher(teacher_model, args, has_adapter=peft_config is not None or isinstance(model, PeftModel))
        check_datasets(train_dataset, eval_dataset, lm_dataset, args)
        check_best_metric(eval_dataset, args, answer_checker)
        tokenizers = prepare_tokenizers(processing_class, model, teacher_model, args)
        self._server, tokenizers = connect_teacher(args, tokenizers)

        super().__init__(
            model=model,
            # The parent class demands vocabularies of equal size, so the teacher is prepared here
            teacher_model=None,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizers.student,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        self.answer_checker = answer_checker
        self._averages = {"train": Averages(), "eval": Averages()}
        self._finite, self._rollout_log = FiniteCheck(self), RolloutLog(self)
        self._settings = self.temperature, args.loss_chunk_tokens
        if self._server is None:
            self.teacher_model, self.vocab_size = prepare_teacher(
                teacher_model, self.model, self.processing_class, args, self.accelerator, self._dist.is_zero3
            )
        else:
            self.vocab_size = self._server.attach(self)
        generate_for_both(self, tokenizers)
        self._foreign = tokenizers.foreign(self.vocab_size)
        self.lm_coef = 0.0 if lm_dataset is None else 1.0 if args.lm_coef is None else args.lm_coef
        self._corpus = Corpus(lm_dataset, self._tokenizer, args, self._foreign) if self.lm_coef > 0.0 else None

        from .probe import find_readings  # here, so that an import of this file loads little

        models = [self.accelerator.unwrap_model(model) for model in (self.model, self.teacher_model or self.model)]
        with self.accelerator.autocast():
            self._readings = find_readings(models[0], models[1] if self.teacher_model is not None else None, args)
        # Without them the parent class draws. With vLLM, only the teacher's side of a set is known from its rollout
        self._keeps_states = args.score_from == "rollout" and self._readings is not None
        known = self._keeps_states and not args.use_vllm
        self._scores_student = args.has_long_term and (known or self._server is not None or not args.first_pass_scores)
        self._longest_prompt = fit_datasets(self, models)
        # Of student and teacher, from the sampler to `_score`: in between, TRL makes tensors of token ids alone
        self._sampled_states: tuple[Tensor | None, Tensor | None] = (None, None)
        self._teacher_drew: Tensor | None = None

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, "completion", "answer"]))

    def _tokenize_prompts(self, prompts: list, limit: float | None = None):
        # Of a large dataset not every prompt was tokenized before it is drawn
        prompt_ids, *others = tokenized(super()._tokenize_prompts, prompts)
        check_readable(prompts, prompt_ids, self._foreign, limit or self._longest_prompt)
        return prompt_ids, *others

    @property
    def _reads_per_set(self) -> int:
        """Micro-steps that read one rollout set; only the first of them samples."""
        return self.args.num_iterations * self.args.steps_per_generation

    @property
    def _repeats(self) -> dict[str, int]:
        rollout_size = self._train_batch_size * self.args.steps_per_generation * self.accelerator.num_processes
        answers = self.args.num_generations
        prompts = rollout_size // answers
        return {"mini_repeat_count": answers, "batch_size": prompts, "repeat_count": self._reads_per_set}

    # The parent class does the same with `gradient_accumulation_steps` for `steps_per_generation` and for the reads
    def get_train_dataloader(self) -> DataLoader:
        dataset = self.train_dataset
        if isinstance(dataset, IterableDataset):
            if self.shuffle_dataset:
                dataset = dataset.shuffle(seed=self.args.seed)
            dataset = repeat_iterable_dataset(dataset, **self._repeats)
        return self._get_dataloader(
            dataset=dataset,
            description="Training",
            batch_size=self._train_batch_size * self.args.steps_per_generation,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        return ResumableRepeatSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
            batches_read=lambda: self.state.global_step * self.args.gradient_accumulation_steps,
            **self._repeats,
        )

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is None:
            # First batch of a run. After a resume the count goes on, so that sets start where they would have started;
            # a set that the checkpoint cut in two is sampled anew for its remaining passes, never reused.
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        if self._buffered_inputs is None or self._step % self._reads_per_set == 0:
            self._buffered_inputs = None  # frees the old set before the new one is made
            rollouts = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_rollouts(rollouts, self.args, self.accelerator)
        inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs if self._corpus is None else inputs | self._corpus_batch()

    def _corpus_batch(self) -> dict[str, Tensor]:
        """The corpus blocks `(b, lm_max_length)` of this micro-step and what the teacher makes of them."""
        step = self._step * self.accelerator.num_processes + self.accelerator.process_index
        ids = self._corpus.batch(step).to(self.accelerator.device)
        if self.args.lm_kd_ratio == 0.0:
            return {"corpus_ids": ids}
        with torch.no_grad(), self.compute_loss_context_manager():
            states = self._with_teacher(backbone_states, ids, torch.ones_like(ids))
        return {"corpus_ids": ids, "corpus_teacher_hidden_states": states[:, :-1].flatten(0, 1)}

    @timed("time/rollout")
    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, has_tool_images=False):
        draws = self._readings is not None and (self.model.training or not self.use_vllm)
        # One for all tokens: it casts fp32 weights once and not at every token. vLLM is called outside, as TRL does
        with self.accelerator.autocast() if draws or not self.use_vllm else nullcontext():
            if draws:
                completion_ids = self._roll_out(prompt_ids)
            else:
                completion_ids = super()._generate_single_turn(prompt_ids, images, multimodal_fields, has_tool_images)
        # A completion without tokens keeps its row: as two EOS, since any other completion ends at its first
        return [ids or [self._tokenizer.eos_token_id] * 2 for ids in completion_ids]

    def _roll_out(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        from .mixed_sampling import roll_out  # not needed where vLLM draws every token

        rollouts = roll_out(self, prompt_ids, self._step // self._reads_per_set)
        completion_ids, *self._sampled_states, self._teacher_drew, metrics = rollouts
        self._averages[self._mode].update(metrics)
        return completion_ids

    # Accelerate casts in the model's own forward, which forward redirection goes around. Without this, tokens would be
    # drawn in mixed precision and scored and trained in full.
    def autocast_smart_context_manager(self, cache_enabled: bool | None = True):
        return self.accelerator.autocast()

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with nullcontext() if self._server is None else self._server.checkpoint_on_failure(self):
            return self._rollouts(inputs)

    def _rollouts(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with neutral_generation_configs([self.accelerator.unwrap_model(self.model)]):
            rollouts = super()._generate_and_score_completions(inputs)
        real = len(inputs) if self.model.training else real_rows(self.accelerator, len(inputs))
        rollouts |= without_idle_rows(rollouts, self._tokenizer.eos_token_id, real)
        rollouts |= self._score(rollouts, [row["prompt"] for row in inputs])
        rollouts |= self._rollout_log.drawn_by(self._teacher_drew, rollouts["completion_mask"].shape[1])

        metrics = rollout_metrics(rollouts, inputs[:real], self.processing_class, self._mode, self.answer_checker)
        self._averages[self._mode].update(metrics)
        return rollouts

    @timed("time/scoring")
    @torch.no_grad()
    def _score(self, rollouts: dict[str, Tensor], prompts: list) -> dict[str, Tensor]:
        """The teacher's states `(B, T, H_t)`, or its scores, and credit `(B, T)` unless the first pass can make it."""
        size, mask = self.args.per_device_train_batch_size, rollouts["completion_mask"]
        sampled, self._sampled_states = self._sampled_states, (None, None)
        served = {} if self._server is None else {"teacher_logps": self._server.completion_logps(rollouts)}
        parts = []
        for first in range(0, len(prompts), size):
            rows = slice(first, first + size)
            batch = [rollouts[key][rows] for key in _ROWS]
            own, states = (pad_states(known, rows, mask.shape[1]) for known in sampled)
            with self.compute_loss_context_manager():
                part = {}
                if not served:
                    states = self._with_teacher(completion_states, *batch) if states is None else states
                    part["teacher_hidden_states"] = states.cpu() if self.args.teacher_states_on_cpu else states
                if self._scores_student and self.model.training:
                    student = self.accelerator.unwrap_model(self.model_wrapped)
                    call = self.model_wrapped, student, self._student_scores, student, batch, own, states
                    part |= self._forward_redirection(*call)._asdict()
            parts.append(part)
        scores = {key: torch.cat([part[key] for part in parts]) for key in parts[0]} | served
        if self.args.teacher_states_on_cpu and torch.cuda.is_available() and not served:
            scores["teacher_hidden_states"] = scores["teacher_hidden_states"].pin_memory()
        if "student_logps" in scores:
            check_teacher_logps(scores["teacher_logps"], prompts, size, self.state.global_step)
            scores |= self._credit(TokenScores(*map(scores.pop, TokenScores._fields)), mask.bool())
        return scores

    def _student_scores(self, student, rows: list[Tensor], states: Tensor | None, teacher_states: Tensor):
        """Scores as `(b, T)`, from the student's hidden states or a pass over the rows."""
        if states is None:
            states = completion_states(student, *rows)
        mask = rows[-1].bool()
        models = self._at(mask, student, states, teacher_states)
        return token_scores(*models, rows[-2][mask], *self._settings).by_row(mask)

    def _at(self, mask: Tensor, student, states: Tensor, teacher_states: Tensor | None) -> tuple:
        """States `(N, H)` of completion tokens, and heads, as `divergence.py` takes them; none of a served teacher."""
        models = states[mask], lm_head(student, self.vocab_size)
        if teacher_states is None:
            return *models, None, None
        # The adapter never touches the head, so a base teacher shares the student's
        teacher = student if self.teacher_model is None else self.accelerator.unwrap_model(self.teacher_model)
        teacher_states = teacher_states.to(mask.device, non_blocking=True)
        return *models, teacher_states[mask], lm_head(teacher, self.vocab_size)

    def _with_teacher(self, method: Callable, *args):
        """Call `method(teacher, *args)` through the wrapper that gathers the teacher's parameters, if it has one."""
        base_teaches = self.teacher_model is None
        wrapper = self.model_wrapped if base_teaches else self.teacher_model
        teacher = self.accelerator.unwrap_model(wrapper)
        with teacher.disable_adapter() if base_teaches else nullcontext():
            return self._forward_redirection(wrapper, teacher, method, teacher, *args)

    def _credit(self, scores: TokenScores, mask: Tensor) -> dict[str, Tensor]:
        """What the long-term loss needs of each token, constant over the passes. All `(B, T)`, fp32."""
        args, (kl, _, old, teacher) = self.args, scores
        sampling = mixture_logps(old, teacher, args.teacher_mix_alpha)
        rewards = token_rewards(old, teacher, mask, args.reward_scaling, args.reward_clip)
        later = kl if args.credit == "exact" else None
        credit = advantages(rewards, mask, args.gamma, args.inclusive_returns, args.length_normalization, later)
        if args.num_generations > 1:
            credit = leave_one_out(credit, mask, args.num_generations)
        if args.whiten_advantages:
            credit = whiten(credit, mask, self.accelerator.reduce)  # which sums over processes
        weights = (old - sampling).exp()
        self._averages["train"].update(credit_metrics(rewards, credit, weights, mask, args.reward_clip))
        logps = {"old_per_token_logps": old, "teacher_per_token_logps": teacher, "sampling_per_token_logps": sampling}
        return logps | {"advantages": credit}

    @timed("time/loss")
    def _compute_loss(self, unwrapped_student, inputs, num_items_in_batch):
        args, training, averages = self.args, self.model.training, self._averages[self._mode]
        mask = inputs["completion_mask"].bool()  # (b, T)
        rows = [inputs[key] for key in _ROWS]
        if "corpus_ids" in inputs:
            states, corpus_states = self._corpus.states(unwrapped_student, rows, inputs["corpus_ids"])
        else:
            states = completion_states(unwrapped_student, *rows)
        models = self._at(mask, unwrapped_student, states, inputs.get("teacher_hidden_states"))
        if training:
            loss, scores = self._policy_loss(models, inputs, mask)
        else:
            loss, scores, metrics = evaluate_tokens(models, inputs, mask, self._settings)
            averages.update(metrics)
        self._finite.watch(scores, inputs)
        self._rollout_log.watch(scores, inputs)
        averages.update(score_metrics(scores, mask, training))
        loss = loss / (mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)

        if "corpus_ids" in inputs:
            teacher = inputs.get("corpus_teacher_hidden_states"), models[3]
            corpus_loss, metrics = self._corpus.loss(corpus_states, models[1], inputs["corpus_ids"], *teacher)
            # All blocks have one length, so the mean over micro-batches and processes is the mean over tokens
            loss = loss + self.lm_coef * corpus_loss / args.gradient_accumulation_steps
            averages.update(metrics)
        return loss, scores.entropy.sum(), mask.sum()

    def _policy_loss(self, models: tuple, inputs: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, TokenScores]:
        """Long-term and single-step loss, summed over the tokens of a micro-batch, and the scores of its tokens."""
        args, tokens, surrogate = self.args, inputs["completion_ids"][mask], None
        if args.has_long_term:
            if "advantages" not in inputs:
                # The first pass over a set that `_score` left to it. Kept for the next ones in the buffer itself,
                # because the wrapper of the model may have copied `inputs` on its way here.
                credit = self._credit(token_scores(*models, tokens, *self._settings).by_row(mask), mask)
                self._buffered_inputs[self._step % args.steps_per_generation] |= credit
                inputs = inputs | credit
            keys = ("sampling_per_token_logps", "advantages", "old_per_token_logps")
            sampling, credit, old = (inputs[key][mask] for key in keys)  # (N,)

            def long_term(logps, block=slice(None)):
                anchor = None if args.clip_importance_weight else old[block]
                return long_term_loss(logps, sampling[block], credit[block], args.epsilon, anchor)

            def surrogate(logps, block):
                return long_term(logps, block)[0]

        if not args.single_step_decomposition:
            models = *models[:2], None, None
        loss, scores = policy_loss(*models, tokens, *self._settings, surrogate)
        if args.has_long_term:
            self._averages["train"].update(long_term_metrics(*long_term(scores.student_logps), credit, args.epsilon))
        if not args.single_step_decomposition:
            scores = scores._replace(kl=None, teacher_logps=inputs["teacher_per_token_logps"][mask])
        return loss, scores

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            self._metrics["train"] |= {name: [value] for name, value in self._averages["train"].pop().items()}
        super().log(logs, start_time)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        # Put into the result here, under the name of this dataset: `log` knows only the prefix "eval_"
        metrics = known_means(self._metrics["eval"]) | self._averages["eval"].pop()
        self._metrics["eval"].clear()
        if "kl/sampled" in metrics:
            metrics["loss"] = metrics.get("kl", metrics["kl/sampled"])  # over tokens; the loop averages over batches
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _resume_settings(self) -> dict[str, Any]:
        return resume_settings(self.args, None if self._corpus is None else len(self._corpus.blocks), self.lm_coef)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        where = resume_from_checkpoint, self.args.output_dir
        checkpoint = checkpoint_to_go_on_from(*where, self._resume_settings())
        self._buffered_inputs = None  # a second call samples its own rollouts
        try:
            return super().train(resume_from_checkpoint=checkpoint, **kwargs)
        finally:
            # What vLLM draws with next may be the best checkpoint, or be numbered from step 0 again
            self._last_loaded_step = -1

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._finite.check(grad_norm)  # the last moment before the optimizer step
        return grad_norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        self._finite.check_weights()
        # First, so that no kill and no push to the Hub sees a checkpoint without it
        if _internal_call and output_dir is not None and self.args.should_save:
            write_settings(output_dir, self._resume_settings())
        super().save_model(output_dir, _internal_call)

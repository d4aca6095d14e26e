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
import importlib.util
import json
import math
import random
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.trainer_utils import get_last_checkpoint
from trl import DistillationTrainer
from trl.models import prepare_deepspeed
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import get_config_model_id, pad, repeat_iterable_dataset, split_tensor_dict

from ..divergence import (
    LMHead,
    backbone_states,
    completion_states,
    join_completions,
    lm_head,
    select_states,
    token_divergence,
    token_logps,
)
from ..models import (
    check_same_tokens,
    load_teacher,
    load_teacher_tokenizer,
    match_vocabulary,
    vocabulary_rows,
)
from ..text import distinct_n, references_of, repetition, rouge_l
from .credit import advantages, long_term_loss, masked_moments, mixture_logps, token_rewards, whiten
from .data import (
    ResumableRepeatSampler,
    check_corpus,
    check_prompts,
    cut_corpus,
    drop_long_prompts,
    shuffled_rows,
)
from .minillm_config import MiniLLMConfig
from .mixed_sampling import mixed_generate


logger = get_logger(__name__)

# Written into every checkpoint. A run that resumes with another value of one of these would not continue that run.
_RESUME_FILE = "minillm_config.json"
_RESUME_FIELDS = (
    "seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_iterations",
    "teacher_mix_alpha",
    "temperature",
    "max_completion_length",
    "single_step_decomposition",
    "return_mode",
    "gamma",
    "length_normalization",
    "whiten_advantages",
    "reward_scaling",
    "reward_clip",
    "epsilon",
    "clip_importance_weight",
)


class MiniLLMTrainer(DistillationTrainer):
    """
    Trainer for [MiniLLM](https://huggingface.co/papers/2306.08543): white-box distillation by the sequence-level reverse
    KL divergence KL(student || teacher), optimized with a policy gradient.

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
            `args.teacher_model_name_or_path`. It must share the student's tokenizer; LM heads padded to different sizes
            are cut to the smaller one. Leave it out when `args.teacher_is_base` is set.
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
        callbacks (list of [`~transformers.TrainerCallback`], *optional*):
            List of callbacks to customize the training loop.
        optimizers (`tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None]`, *optional*, defaults to `(None, None)`):
            Optimizer and scheduler to use.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantization of the student when it is loaded from a name.
        peft_config ([`~peft.PeftConfig`], *optional*):
            PEFT configuration used to wrap the student.
        tools (*optional*):
            Not supported; must be `None`.
        answer_checker (`Callable[[str, dict], bool | None]`, *optional*):
            Called in evaluation with each completion and its dataset row, for `eval_accuracy`. `None`, for a completion
            without an answer, counts as wrong.

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
                booktitle    = {The Twelfth International Conference on Learning Representations, {ICLR} 2024, Vienna, Austria, May 7-11, 2024},
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
        if teacher_model is None:
            teacher_model = args.teacher_model_name_or_path
        if args.teacher_is_base == (teacher_model is not None):
            raise ValueError(
                "MiniLLMTrainer needs exactly one teacher. Pass `teacher_model` (or set `teacher_model_name_or_path`), "
                "or set `teacher_is_base=True` to learn from the student's own base model."
            )
        if isinstance(teacher_model, PreTrainedModel | PeftModel) and args.teacher_model_init_kwargs is not None:
            raise ValueError("You passed `teacher_model_init_kwargs`, but `teacher_model` is already instantiated.")
        if args.teacher_is_base and peft_config is None and not isinstance(model, PeftModel):
            raise ValueError(
                "`teacher_is_base=True` disables the student's adapter to get the teacher, but the student has no "
                "adapter. Pass a `peft_config` or a `PeftModel`."
            )
        if args.lm_coef and lm_dataset is None:
            raise ValueError(
                f"`lm_coef` is {args.lm_coef}, but there is no corpus. Pass `lm_dataset`, or leave `lm_coef` unset."
            )
        if train_dataset is None:
            raise ValueError("MiniLLMTrainer needs a `train_dataset` with a `prompt` column.")
        eval_datasets = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
        rollout = args.per_device_train_batch_size * args.steps_per_generation * args.world_size
        check_prompts(train_dataset, "train_dataset", rollout)
        for dataset_name, dataset in eval_datasets.items():
            if dataset is not None:
                check_prompts(dataset, dataset_name)
        if lm_dataset is not None:
            check_corpus(lm_dataset)
        if processing_class is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            processing_class = AutoTokenizer.from_pretrained(
                name,
                revision=(args.model_init_kwargs or {}).get("revision") if isinstance(model, str) else None,
                padding_side="left",
                truncation_side="left",
                trust_remote_code=args.trust_remote_code,
            )
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            raise ValueError(
                f"MiniLLMTrainer trains on text only, but `processing_class` is a {type(processing_class).__name__}. "
                "Pass a tokenizer."
            )
        if teacher_model is not None:
            teacher_tokenizer = load_teacher_tokenizer(
                teacher_model, revision=args.teacher_model_revision, trust_remote_code=args.trust_remote_code
            )
            if teacher_tokenizer is not None:
                check_same_tokens(processing_class, teacher_tokenizer)
            else:
                logger.warning(
                    "The teacher comes without a tokenizer, so it cannot be checked that it reads tokens as the student "
                    "does. Pass the teacher as a path to have it checked."
                )

        super().__init__(
            model=model,
            # The parent class demands vocabularies of equal size, so the teacher is prepared here
            teacher_model=None,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        self.answer_checker = answer_checker
        self._has_rouge = importlib.util.find_spec("rouge_score") is not None
        if not self._has_rouge and any(
            dataset is not None and "completion" in (dataset.column_names or []) for dataset in eval_datasets.values()
        ):
            logger.warning("Rouge-L needs rouge-score: `pip install trl-distill[eval]`. It will not be logged.")

        self._prepare_teacher(teacher_model)
        self.lm_coef = 0.0 if lm_dataset is None else 1.0 if args.lm_coef is None else args.lm_coef
        self._corpus = None
        if self.lm_coef > 0.0:
            self._corpus = cut_corpus(lm_dataset, self.processing_class, args.lm_max_length)
        self._drop_long_prompts()

        # A token has no credit from its own rollout set before the set is scored. That takes an extra student pass,
        # unless the first inner pass can serve: it then must see the parameters that the set was sampled with, so the
        # whole set must be one optimizer step, and no statistic may span its micro-batches.
        self._scores_old_logps = args.has_long_term and (
            args.steps_per_generation != args.gradient_accumulation_steps or args.whiten_advantages
        )
        self._totals = {"train": defaultdict(lambda: [0.0, 0.0]), "eval": defaultdict(lambda: [0.0, 0.0])}
        self._empty_rows: list[bool] = []

    # ---------------------------------------------------------------------------------------------------- preparation

    def _prepare_teacher(self, teacher_model: str | PreTrainedModel | None):
        args, student = self.args, self.model
        if args.teacher_is_base:
            # The same tokens, heads and wrapper: the student serves with its adapter disabled
            if isinstance(student.get_output_embeddings(), AuxiliaryTrainingWrapper):
                raise ValueError(
                    "`teacher_is_base=True` needs the LM head of the base model, but the adapter trains a copy of it. "
                    "Remove `lm_head` from `modules_to_save`."
                )
            self.vocab_size = vocabulary_rows(student)
            logger.warning(
                "The teacher is the student's base model. A fresh adapter equals its teacher, so the loss starts at 0; "
                "start from a trained adapter."
            )
            return
        if isinstance(teacher_model, str):
            init_kwargs = dict(args.teacher_model_init_kwargs or {})
            if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED", "FSDP"):
                # Each process holds its own teacher; a quantized one must be placed while it is loaded
                quantized = init_kwargs.get("quantization_config") is not None
                init_kwargs["device_map"] = {"": args.distributed_state.device} if quantized else None
            init_kwargs.setdefault("revision", args.teacher_model_revision)
            init_kwargs.setdefault("trust_remote_code", args.trust_remote_code)
            teacher_model = load_teacher(teacher_model, **init_kwargs)
        teacher_model.eval().requires_grad_(False)
        for role, model in {"student": student, "teacher": teacher_model}.items():
            if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
                raise ValueError(
                    f"The {role} is split over several devices ({model.hf_device_map}). Make one GPU visible, load it "
                    "in 4 bit, or shard it with `accelerate launch` (FSDP2, ZeRO-3)."
                )

        self.vocab_size = match_vocabulary(self.processing_class, None, student, teacher_model)
        student_rows = vocabulary_rows(student)
        if self._dist.is_zero3 and student_rows != vocabulary_rows(teacher_model):
            raise ValueError(
                f"The LM heads have {student_rows} (student) and {vocabulary_rows(teacher_model)} (teacher) rows. Under "
                "DeepSpeed ZeRO-3 they cannot be cut. Call `resize_token_embeddings` on one model first, or use FSDP2."
            )
        if student_rows > self.vocab_size:
            if args.use_vllm:
                raise ValueError(
                    f"The student's LM head has {student_rows} rows, {student_rows - self.vocab_size} more than the "
                    "teacher's, and vLLM could sample them. Call `resize_token_embeddings` on the student, or set "
                    "`use_vllm=False`."
                )
            unshared = [*(self.generation_kwargs.get("suppress_tokens") or []), *range(self.vocab_size, student_rows)]
            self.generation_kwargs["suppress_tokens"] = self.generation_config.suppress_tokens = unshared

        if self.is_deepspeed_enabled:
            self.teacher_model = prepare_deepspeed(teacher_model, self.accelerator)
        else:
            # Under FSDP accelerate leaves the placement to the sharding, which a frozen model does not get
            self.teacher_model = self.accelerator.prepare_model(
                teacher_model, device_placement=True, evaluation_mode=True
            )

    def _drop_long_prompts(self):
        contexts = [
            getattr(model.config.get_text_config(), "max_position_embeddings", None)
            for model in (self.model, self.teacher_model)
            if model is not None
        ]
        contexts = [context for context in contexts if context is not None]
        if contexts and self._corpus is not None and self.args.lm_max_length > min(contexts):
            raise ValueError(
                f"`lm_max_length` is {self.args.lm_max_length}, but the models' context is {min(contexts)} tokens."
            )
        limit = min(contexts) - self.generation_config.max_new_tokens if contexts else None

        def keep_fitting(dataset, name):
            return drop_long_prompts(dataset, name, lambda prompts: self._tokenize_prompts(prompts)[0], limit)

        self.train_dataset = keep_fitting(self.train_dataset, "train_dataset")
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: keep_fitting(data, name) for name, data in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = keep_fitting(self.eval_dataset, "eval_dataset")
        check_prompts(self.train_dataset, "train_dataset", self._rollout_size)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, "completion", "answer"]))

    # ------------------------------------------------------------------------------- rollout sets and their inner passes

    @property
    def _rollout_size(self) -> int:
        """Prompts of one rollout set over all processes."""
        return self._train_batch_size * self.args.steps_per_generation * self.accelerator.num_processes

    # Each set is read `num_iterations * steps_per_generation` times, once per micro-batch; only the first reading samples.
    # The parent class does the same with `gradient_accumulation_steps` in place of both.
    def get_train_dataloader(self) -> DataLoader:
        dataset = self.train_dataset
        if isinstance(dataset, IterableDataset):
            if self.shuffle_dataset:
                dataset = dataset.shuffle(seed=self.args.seed)
            dataset = repeat_iterable_dataset(
                dataset,
                mini_repeat_count=1,
                batch_size=self._rollout_size,
                repeat_count=self.args.num_iterations * self.args.steps_per_generation,
            )
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
            mini_repeat_count=1,
            batch_size=self._rollout_size,
            repeat_count=self.args.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
            batches_read=lambda: self.state.global_step * self.args.gradient_accumulation_steps,
        )

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is None:
            # First batch of a run. After a resume the count goes on, so that sets start where they would have started;
            # a set that the checkpoint cut in two is sampled anew for its remaining passes, never reused.
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        if (
            self._buffered_inputs is None
            or self._step % (self.args.num_iterations * self.args.steps_per_generation) == 0
        ):
            self._buffered_inputs = None  # frees the old set before the new one is made
            self._buffered_inputs = self._split_rollouts(self._generate_and_score_completions(generation_batch))
        inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        if self._corpus is not None:
            inputs |= self._corpus_batch()
        return inputs

    def _split_rollouts(self, rollouts: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Micro-batches in a fixed partition, each with the token count of its optimizer step over all processes."""
        batches = split_tensor_dict(rollouts, self.args.steps_per_generation)
        for first in range(0, len(batches), self.args.gradient_accumulation_steps):
            step = batches[first : first + self.args.gradient_accumulation_steps]
            tokens = torch.stack([batch["completion_mask"].sum() for batch in step]).sum()
            tokens = self.accelerator.reduce(tokens, reduction="sum").float()
            for batch in step:
                batch["num_items_in_batch"] = tokens
        return batches

    def _corpus_batch(self) -> dict[str, Tensor]:
        """The corpus blocks `(b, lm_max_length)` of this micro-step, a function of the step alone."""
        rows = self.args.per_device_train_batch_size
        first = (self._step * self.accelerator.num_processes + self.accelerator.process_index) * rows
        picked = shuffled_rows(len(self._corpus), first, rows, self.args.seed)
        batch = {"corpus_ids": self._corpus[picked].to(self.accelerator.device)}
        if self.args.lm_kd_ratio > 0.0:
            ones = torch.ones_like(batch["corpus_ids"])
            with torch.no_grad(), self.compute_loss_context_manager():
                batch["corpus_teacher_states"] = self._with_teacher(backbone_states, batch["corpus_ids"], ones)
        return batch

    # -------------------------------------------------------------------------------------------------------- sampling

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, has_tool_images=False):
        start = time.perf_counter()
        mode = "train" if self.model.training else "eval"
        with self.accelerator.autocast():  # one for all tokens: it casts fp32 weights once and not at every token
            if mode == "train" and self.args.teacher_mix_alpha > 0.0:
                completion_ids = self._mixed_rollout(prompt_ids)
            else:
                completion_ids = super()._generate_single_turn(prompt_ids, images, multimodal_fields, has_tool_images)
        self._metrics[mode]["time/rollout"].append(time.perf_counter() - start)
        # A completion without tokens keeps its row in the batch as one masked token
        self._empty_rows = [len(ids) == 0 for ids in completion_ids]
        return [ids or [self._tokenizer.eos_token_id] for ids in completion_ids]

    def _mixed_rollout(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        prompts = [torch.tensor(ids) for ids in prompt_ids]
        input_ids = pad(prompts, padding_value=self._tokenizer.pad_token_id, padding_side="left")
        attention_mask = pad([torch.ones_like(ids) for ids in prompts], padding_value=0, padding_side="left")
        # Coins are a function of the rollout set, so that a resumed run draws the same. A sharded model makes each forward
        # a collective, and then all processes must call the same model.
        rollout_set = self._step // (self.args.num_iterations * self.args.steps_per_generation)
        sharded = self.accelerator.num_processes > 1 and (self._dist.is_zero3 or self._dist.is_fsdp)
        stream = 0 if sharded else self.accelerator.process_index
        seed = random.Random(f"{self.args.seed}, {rollout_set}, {stream}").getrandbits(32)
        coins = torch.Generator().manual_seed(seed)
        with (
            self._ready_to_generate(self.model_wrapped) as student,
            self._ready_to_generate(self.teacher_model) as teacher,
        ):
            rollout = mixed_generate(
                student,
                student if teacher is None else teacher,
                input_ids.to(self.accelerator.device),
                attention_mask.to(self.accelerator.device),
                alpha=self.args.teacher_mix_alpha,
                max_new_tokens=self.generation_config.max_new_tokens,
                eos_token_ids=self.eos_token_ids,
                pad_token_id=self._tokenizer.pad_token_id,
                temperature=self.temperature,
                vocab_size=self.vocab_size,
                generator=coins,
                synced_gpus=sharded,
                teacher_context=student.disable_adapter if teacher is None else nullcontext,
            )
        lengths = rollout.lengths.tolist()
        self._add("mix/teacher_share", rollout.teacher_tokens, sum(lengths))
        self._add("mix/teacher_calls", rollout.teacher_calls, 1)
        return [ids[:length] for ids, length in zip(rollout.completion_ids.tolist(), lengths, strict=True)]

    @contextmanager
    def _ready_to_generate(self, model):
        if model is None:
            yield None
            return
        with (
            unwrap_model_for_generation(
                model,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as unwrapped_model,
            self._dist.summon_full_params(model, recurse=False),
        ):
            yield unwrapped_model

    # --------------------------------------------------------------------------------------------------------- scoring

    # Accelerate casts in the model's own forward, which forward redirection goes around. Without this, tokens would be
    # drawn in mixed precision and scored and trained in full.
    def autocast_smart_context_manager(self, cache_enabled: bool | None = True):
        return self.accelerator.autocast()

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        mode = "train" if self.model.training else "eval"
        rollouts = super()._generate_and_score_completions(inputs)
        # Neither rows without a completion nor rows that fill up the last batch of an evaluation count
        real_rows = self._real_rows(len(inputs))
        ignored = [empty or row >= real_rows for row, empty in enumerate(self._empty_rows)]
        ignored = torch.tensor(ignored, device=rollouts["completion_mask"].device)
        rollouts["completion_mask"] = rollouts["completion_mask"] * ~ignored[:, None]

        start = time.perf_counter()
        rollouts |= self._score(rollouts, [row["prompt"] for row in inputs])
        self._metrics[mode]["time/scoring"].append(time.perf_counter() - start)

        completions = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(rollouts["completion_ids"].cpu(), rollouts["completion_mask"].cpu(), strict=True)
        ][:real_rows]
        self._metrics[mode]["text/distinct_4"].append(distinct_n(completions, 4))
        self._add("text/repetition", sum(repetition(ids, 4) for ids in completions), len(completions))
        if mode == "eval":
            self._compare_with_references(completions, inputs[:real_rows])
        return rollouts

    def _real_rows(self, rows: int) -> int:
        """How many rows of this batch are not repeats that make the last batch of all processes equally long."""
        state = self.accelerator.gradient_state
        if self.model.training or not state.end_of_dataloader or state.remainder <= 0:
            return rows
        return min(max(state.remainder - self.accelerator.process_index * rows, 0), rows)

    @torch.no_grad()
    def _score(self, rollouts: dict[str, Tensor], prompts: list) -> dict[str, Tensor]:
        """One teacher pass, and a student pass where credit needs it. All results are `(B, T)` or `(B, T, H_t)`."""
        rows, size = len(rollouts["completion_ids"]), self.args.per_device_train_batch_size
        keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        parts = []
        for first in range(0, rows, size):
            batch = {key: rollouts[key][first : first + size] for key in keys}
            with self.compute_loss_context_manager():
                states, teacher_logps = self._with_teacher(self._states_and_logps, batch)
                part = {"teacher_states": states, "teacher_logps": teacher_logps}
                if self._scores_old_logps and self.model.training:
                    student = self.accelerator.unwrap_model(self.model_wrapped)
                    part["old_logps"] = self._forward_redirection(
                        self.model_wrapped, student, self._states_and_logps, student, batch
                    )[1]
            if not teacher_logps.isfinite().all():
                row = int((~teacher_logps.isfinite()).any(dim=1).nonzero()[0])
                raise ValueError(
                    f"The teacher gives a log-probability that is not finite at step {self.state.global_step} "
                    f"(micro-batch {first // size}, row {row}), on the prompt {prompts[first + row]!r}. Check the "
                    "teacher's weights, or load it in bfloat16 or float32 instead of float16."
                )
            if self.args.teacher_states_on_cpu:
                part["teacher_states"] = states.cpu()
            parts.append(part)
        scores = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        if self.args.teacher_states_on_cpu and torch.cuda.is_available():
            scores["teacher_states"] = scores["teacher_states"].pin_memory()
        if "old_logps" in scores:
            scores |= self._credit(scores["old_logps"], scores["teacher_logps"], rollouts["completion_mask"])
        return scores

    def _with_teacher(self, method: Callable, *args):
        """Call `method(teacher, *args)` through the wrapper that gathers the teacher's parameters, if it has one."""
        if self.teacher_model is not None:
            teacher = self.accelerator.unwrap_model(self.teacher_model)
            return self._forward_redirection(self.teacher_model, teacher, method, teacher, *args)
        student = self.accelerator.unwrap_model(self.model_wrapped)
        with student.disable_adapter():
            return self._forward_redirection(self.model_wrapped, student, method, student, *args)

    def _states_and_logps(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden states `(b, T, H)` that predict the completion, and its log-probabilities `(b, T)`, 0 on padding."""
        states = completion_states(model, **batch)
        mask = batch["completion_mask"].bool()
        head = lm_head(model, self.vocab_size)
        logps = token_logps(
            states[mask], head, batch["completion_ids"][mask], self.temperature, self.args.loss_chunk_tokens
        )
        return states, logps.new_zeros(mask.shape).masked_scatter(mask, logps)

    def _credit(self, old_logps: Tensor, teacher_logps: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What the long-term loss needs of each token, constant over the passes. All `(B, T)`, fp32."""
        args, mask = self.args, mask.bool()
        sampling_logps = mixture_logps(old_logps, teacher_logps, args.teacher_mix_alpha)
        rewards = token_rewards(old_logps, teacher_logps, mask, args.reward_scaling, args.reward_clip)
        credit = advantages(rewards, mask, args.gamma, args.inclusive_returns, args.length_normalization)
        if args.whiten_advantages:
            moments = masked_moments(credit, mask, lambda total: self.accelerator.reduce(total, reduction="sum"))
            credit = whiten(credit, mask, *moments)

        tokens = mask.sum()
        weights = (old_logps - sampling_logps).exp()[mask]
        self._add("reward/mean", rewards.sum(), tokens)
        if args.reward_clip is not None:
            self._add("reward/clipped", (rewards.abs() >= args.reward_clip).sum(), tokens)
        self._add("advantage/mean", credit.sum(), tokens)
        self._add("advantage/square", credit.square().sum(), tokens)
        self._add("weight/mean", weights.sum(), tokens)
        if len(weights):
            self._metrics["train"]["weight/min"].append(weights.min().item())
        return {"old_logps": old_logps, "sampling_logps": sampling_logps, "advantages": credit}

    # ------------------------------------------------------------------------------------------------------------ loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        start = time.perf_counter()
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # Kept outside the wrapped forward, which may have copied `inputs` on its way
        inputs.update(self._first_pass)
        for key in ("corpus_ids", "corpus_teacher_states"):  # of this pass only; the rest is kept for the next
            inputs.pop(key, None)
        self._metrics["train" if self.model.training else "eval"]["time/loss"].append(time.perf_counter() - start)
        return loss

    def _compute_loss(self, unwrapped_student, inputs, num_items_in_batch):
        args, training = self.args, self.model.training
        mask = inputs["completion_mask"].bool()  # (b, T)
        tokens = inputs["completion_ids"][mask]  # (N,)
        hidden, corpus_hidden = self._student_states(unwrapped_student, inputs, mask)
        student_head = lm_head(unwrapped_student, self.vocab_size)
        total = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        self._first_pass = {}
        loss = hidden[:0].sum()  # 0, tied to the graph: a micro-batch without tokens must still take part in backward
        entropy = hidden.new_full((), float("nan"))  # known only where the whole vocabulary is visited

        with torch.enable_grad() if training and args.has_long_term else torch.no_grad():
            logps = token_logps(hidden, student_head, tokens, self.temperature, args.loss_chunk_tokens)  # (N,)
        self._add("kl/sampled", (logps.detach() - inputs["teacher_logps"][mask]).sum(), len(tokens))

        if training and args.has_long_term:
            if "advantages" not in inputs:
                old_logps = torch.zeros_like(inputs["teacher_logps"]).masked_scatter(mask, logps.detach())
                self._first_pass = self._credit(old_logps, inputs["teacher_logps"], mask)
                inputs = inputs | self._first_pass
            credit, sampling_logps, old_logps = (
                inputs[key][mask] for key in ("advantages", "sampling_logps", "old_logps")
            )
            per_token, ratio = long_term_loss(
                logps, sampling_logps, credit, args.epsilon, None if args.clip_importance_weight else old_logps
            )
            loss = loss + per_token.sum() / total
            self._add("loss/long", per_token.sum(), len(tokens))
            self._add("ratio/mean", ratio.sum(), len(tokens))
            self._add("clip/low", ((ratio < 1 - args.epsilon) & (credit < 0)).sum(), len(tokens))
            self._add("clip/high", ((ratio > 1 + args.epsilon) & (credit > 0)).sum(), len(tokens))

        if args.single_step_decomposition or not training:
            teacher_head = self._teacher_head(unwrapped_student)
            teacher_hidden = inputs["teacher_states"].to(hidden.device, non_blocking=True)[mask]
            divergence = (hidden, student_head, teacher_hidden, teacher_head)
            kl, entropies = token_divergence(*divergence, 1.0, self.temperature, args.loss_chunk_tokens)  # (N,)
            loss = loss + kl.sum() / total
            entropy = entropies.sum()
            self._add("kl/step", kl.sum(), len(tokens))
            self._add("kl/sequence", kl.sum(), mask.any(dim=1).sum())
            if training:
                self._add("loss/single", kl.sum(), len(tokens))
            else:
                forward_kl, _ = token_divergence(*divergence, 0.0, self.temperature, args.loss_chunk_tokens)
                self._add("kl/forward", forward_kl.sum(), len(tokens))

        if corpus_hidden is not None:
            loss = loss + self._corpus_loss(unwrapped_student, corpus_hidden, student_head, inputs)
        return loss, entropy.detach(), mask.sum()

    def _student_states(self, model, inputs, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Hidden states `(N, H)` of completion tokens and `(M, H)` of corpus tokens, from one backbone forward."""
        input_ids, attention_mask, positions = join_completions(
            inputs["prompt_ids"], inputs["prompt_mask"], inputs["completion_ids"], inputs["completion_mask"]
        )
        corpus = inputs.get("corpus_ids")
        if corpus is not None:
            rows = [*input_ids, *corpus]
            masks = [*attention_mask, *torch.ones_like(corpus)]
            input_ids = pad(rows, padding_value=self._tokenizer.pad_token_id, padding_side="right")
            attention_mask = pad(masks, padding_value=0, padding_side="right")
        states = backbone_states(model, input_ids, attention_mask)
        hidden = select_states(states[: len(mask)], positions)[mask]
        if corpus is None:
            return hidden, None
        return hidden, states[len(mask) :, : corpus.shape[1] - 1].flatten(0, 1)

    def _teacher_head(self, unwrapped_student) -> LMHead:
        # The adapter never touches the head, so a base teacher shares the student's
        model = unwrapped_student if self.teacher_model is None else self.accelerator.unwrap_model(self.teacher_model)
        return lm_head(model, self.vocab_size)

    def _corpus_loss(self, student, hidden: Tensor, student_head: LMHead, inputs) -> Tensor:
        """Weighted language-modelling loss, a mean over the corpus tokens of the whole optimizer step."""
        args = self.args
        targets = inputs["corpus_ids"][:, 1:].flatten()  # (M,)
        cross_entropy = -token_logps(hidden, student_head, targets, chunk_tokens=args.loss_chunk_tokens)
        self._add("loss/lm", cross_entropy.sum(), len(targets))
        per_token = cross_entropy
        if args.lm_kd_ratio > 0.0:
            states = inputs["corpus_teacher_states"][:, :-1].flatten(0, 1)
            divergence, _ = token_divergence(
                hidden, student_head, states, self._teacher_head(student), 0.0, chunk_tokens=args.loss_chunk_tokens
            )
            self._add("loss/lm_kd", divergence.sum(), len(targets))
            per_token = (1 - args.lm_kd_ratio) * cross_entropy + args.lm_kd_ratio * divergence
        # All blocks have one length, so the mean over micro-batches and processes is the mean over tokens
        return self.lm_coef * per_token.mean() / args.gradient_accumulation_steps

    # ------------------------------------------------------------------------------------------ evaluation and logging

    def _compare_with_references(self, completions: list[list[int]], rows: list[dict[str, Any]]):
        # Row by row: `batch_decode` turns an empty list into one text
        texts = [self.processing_class.decode(ids, skip_special_tokens=True) for ids in completions]
        references = [references_of(row) for row in rows]
        if self._has_rouge:
            pairs = zip(texts, references, strict=True)
            scores = [rouge_l(text, answers) for text, answers in pairs if answers is not None]
            self._add("rougeL", sum(scores), len(scores))
        if self.answer_checker is not None:
            # `None`, no answer found, is no right answer: otherwise a model that falls silent would score higher
            checks = [bool(self.answer_checker(text, row)) for text, row in zip(texts, rows, strict=True)]
            self._add("accuracy", sum(checks), len(checks))

    def _add(self, name: str, numerator: Tensor | float, denominator: Tensor | float):
        """Add to a metric that is logged as a ratio of sums over micro-batches and processes."""
        totals = self._totals["train" if self.model.training else "eval"][name]
        for index, value in enumerate((numerator, denominator)):
            # No `.item()`: it would wait for the GPU in every micro-batch
            totals[index] = totals[index] + (value.detach().float() if isinstance(value, Tensor) else value)

    def _averages(self, mode: str) -> dict[str, float]:
        """Ratios of the sums over all processes since the last call. A collective: all processes must call it."""
        own = {name: [float(value) for value in pair] for name, pair in self._totals[mode].items()}
        self._totals[mode].clear()
        gathered = gather_object([own])
        ratios = {}
        for name in dict.fromkeys(name for totals in gathered for name in totals):
            numerator, denominator = map(sum, zip(*(totals.get(name, (0, 0)) for totals in gathered), strict=True))
            if denominator > 0:
                ratios[name] = numerator / denominator
        if "advantage/square" in ratios:
            variance = ratios.pop("advantage/square") - ratios["advantage/mean"] ** 2
            ratios["advantage/std"] = max(variance, 0.0) ** 0.5
        return ratios

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            for name, value in self._averages("train").items():
                self._metrics["train"][name] = [value]
        super().log(logs, start_time)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        # Put into the result here, under the name of this dataset: `log` knows only the prefix "eval_"
        metrics = {
            name: sum(known) / len(known)
            for name, values in self._metrics["eval"].items()
            if (known := [value for value in values if not math.isnan(value)])
        }
        self._metrics["eval"].clear()
        metrics |= self._averages("eval")
        if "kl/step" in metrics:
            metrics["loss"] = metrics["kl/step"]  # over tokens; the loop averages over batches
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    # --------------------------------------------------------------------------------------------------------- resuming

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        checkpoint = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)
        if isinstance(checkpoint, str):
            self._check_resumable(Path(checkpoint))
        self._buffered_inputs = None  # a second call samples its own rollouts
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _resume_fields(self) -> dict[str, Any]:
        corpus = None
        if self._corpus is not None:
            corpus = {"blocks": len(self._corpus), "lm_max_length": self.args.lm_max_length}
            corpus |= {"lm_coef": self.lm_coef, "lm_kd_ratio": self.args.lm_kd_ratio}
        settings = {name: getattr(self.args, name) for name in _RESUME_FIELDS}
        return settings | {"world_size": self.args.world_size, "corpus": corpus}

    def _check_resumable(self, checkpoint: Path):
        path = checkpoint / _RESUME_FILE
        if not path.exists():
            raise ValueError(
                f"{checkpoint} holds no {_RESUME_FILE}, so it is no checkpoint of a MiniLLM run. To start from its "
                "weights, pass it as `model`."
            )
        saved = json.loads(path.read_text())
        changed = {
            name: (saved.get(name), value) for name, value in self._resume_fields().items() if saved.get(name) != value
        }
        if changed:
            name, (before, now) = next(iter(changed.items()))
            raise ValueError(
                f"{checkpoint} was made with other settings: {', '.join(changed)}; `{name}` was {before!r} and is now "
                f"{now!r}. Resume with the old settings, or start a new run with this checkpoint as `model`."
            )

    def _save_checkpoint(self, model, trial):
        # First, so that no kill and no push to the Hub sees a checkpoint without it
        checkpoint = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            checkpoint.mkdir(parents=True, exist_ok=True)
            (checkpoint / _RESUME_FILE).write_text(json.dumps(self._resume_fields(), indent=2))
        super()._save_checkpoint(model, trial)

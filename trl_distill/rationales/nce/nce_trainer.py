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

import functools
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, set_seed
from trl import SFTTrainer

from ...checkpoints import ResumableTrainer
from ...divergence import backbone_states, lm_head, recorded_states, token_divergence
from ...endings import check_trainer_ending
from ...models import dense_head_weight, load_teacher_tokenizer, match_vocabulary
from ..data import PAPER, ColumnCollator, check_lora, check_rows, default_args, log_means
from .calibration import COLUMNS, WEIGHT, adapter_states, check_adapters, check_weights, prepare_rows
from .nce_config import NCEConfig


# The name that PEFT writes into the folder itself and not into one below it, so that the folder is one stock LoRA
STUDENT = "default"


def nce_token_loss(logps: Tensor, divergence: Tensor, weight: Tensor, alpha: float) -> Tensor:
    r"""
    Losses `(B, T)` of the tokens, in the form of the code released with [Turning Dust into
    Gold](https://huggingface.co/papers/2312.12832):

    $$ L = (1 - \alpha)\,\mathrm{CE} + \alpha\,(0.5 + \beta_i)\,T^2\,
    \mathrm{KL}(p_\text{nat} \,\|\, p_\text{student}), $$

    from the student's log-probabilities of the labels `(B, T)`, the `divergence` `T ** 2` KL(NAT || student) in nats
    `(B, T)` and the `weight` `0.5 + beta` of each row `(B,)`.

    The release has the cross-entropy with NAT's probabilities in place of the KL. It exceeds the KL by NAT's entropy,
    which does not depend on the student: values differ, gradients do not.
    """
    return -(1 - alpha) * logps + alpha * weight[:, None] * divergence


class NCETrainer(ResumableTrainer, SFTTrainer):
    """
    Trainer for NCE, negative calibrated enhancement, the second step of [Turning Dust into
    Gold](https://huggingface.co/papers/2312.12832): a student learns right rationales and the predictions of a NAT
    model on them, more from those rows on which the negative adapter and NAT differ. It is not noise-contrastive
    estimation.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from peft import LoraConfig
    >>> from transformers import AutoModelForCausalLM, AutoTokenizer
    >>> from trl_distill import NCEConfig, NCETrainer, calibration_weights, load_nat

    >>> tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-0.5B")
    >>> model = load_nat(AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B"), "out/nat")
    >>> dataset = load_dataset("json", data_files="augmented.jsonl", split="train")  # prompt, completion
    >>> args = NCEConfig("out/nce")
    >>> dataset = calibration_weights(model, dataset, tokenizer, args)

    >>> trainer = NCETrainer(model, args=args, train_dataset=dataset, peft_config=LoraConfig(r=8, lora_alpha=16))
    >>> trainer.train()
    ```

    The model that is saved is the student alone: with a `peft_config`, one stock LoRA that loads with plain
    `PeftModel.from_pretrained(base_model, output_dir)`, merges and can be served.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            For `objective="kd"`, a NAT model from `load_nat`: the student becomes a fresh adapter on the same base, so
            that one copy of the base serves teacher and student. With a `teacher_model`, or for
            `objective="weighted_ce"`, any student, as in [`~trl.SFTTrainer`].
        teacher_model ([`~peft.PeftModel`], *optional*):
            NAT model of the same vocabulary, if it is not on the student's base.
        args ([`NCEConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        train_dataset ([`~datasets.Dataset`]):
            Rows `prompt` and `completion`, with `weight` and `weight_hash` from [`calibration_weights`] unless
            `args.kd_weight` is set. Rows whose `label` is false are left out.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Rows for evaluation, with the same columns: the loss is the training objective.
        peft_config ([`~peft.LoraConfig`], *optional*):
            LoRA of the student. Required if `model` is a NAT model.
        kwargs:
            `processing_class`, `callbacks`, `optimizers` and `quantization_config`, as in [`~trl.SFTTrainer`].
    """

    _tag_names = ["trl", "nce"]
    _name = "NCE"
    _paper = PAPER

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        teacher_model: PeftModel | None = None,
        args: NCEConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        *,
        peft_config: LoraConfig | None = None,
        **kwargs,
    ):
        args = args or default_args(NCEConfig, model, "NCE")
        # Everything that can be checked without a model comes before the first model is loaded
        check_rows(train_dataset, columns=COLUMNS)
        check_rows(eval_dataset, "eval_dataset", COLUMNS)
        if args.is_calibrated:
            eval_datasets = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
            for name, dataset in {"train": train_dataset, **eval_datasets}.items():
                if dataset is not None:
                    check_weights(dataset, name)
        if args.objective == "weighted_ce" and teacher_model is not None:
            raise ValueError(
                "`objective='weighted_ce'` has no teacher. Remove `teacher_model`, or set `objective='kd'`."
            )
        if args.objective == "kd":
            # `distributed_state` says "FSDP" only once there is an accelerator
            if args.fsdp or args.deepspeed_plugin is not None or parse_flag_from_env("ACCELERATE_USE_FSDP"):
                raise ValueError(
                    "`objective='kd'` has not been verified with FSDP or DeepSpeed. Use DDP (`--accelerate_config "
                    "ddp`), with `load_in_4bit` if memory is short, or `objective='weighted_ce'`."
                )
            check_adapters(model if teacher_model is None else teacher_model)
        if isinstance(model, PeftModel) and "nat" in model.peft_config:
            check_student_config(model, peft_config)
            set_seed(args.seed)  # as SFTTrainer does before it draws an adapter
            model.requires_grad_(False)
            model.add_adapter(STUDENT, peft_config)
            model.set_adapter(STUDENT)
            peft_config = None

        super().__init__(model, args, None, train_dataset, eval_dataset, peft_config=peft_config, **kwargs)
        check_trainer_ending(self, train_dataset)
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled or parallelism.tp_enabled):
            raise ValueError("NCE weighs whole rows, and context, sequence and tensor parallelism cut them. Use DDP.")
        if args.is_calibrated:
            self.data_collator = ColumnCollator(self.data_collator, (WEIGHT,))
        if args.objective == "kd":
            self._prepare_teacher(teacher_model)

    def _prepare_teacher(self, teacher_model: PeftModel | None) -> None:
        self.teacher_model, self.vocab_size = teacher_model, None
        for role, model in {"student": self.model, "teacher": teacher_model}.items():
            if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
                raise ValueError(
                    f"The {role} is split over several devices ({model.hf_device_map}). Make one GPU visible, or load "
                    "it in 4 bit."
                )
        if teacher_model is None:
            dense_head_weight(self.model)  # of student and teacher
            return
        tokenizer = load_teacher_tokenizer(teacher_model, trust_remote_code=self.args.trust_remote_code)
        self.vocab_size = match_vocabulary(self.processing_class, tokenizer, self.model, teacher_model)
        if max(self.processing_class.get_vocab().values()) >= self.vocab_size:
            raise ValueError(
                f"The student's tokenizer has added tokens that a model of {self.vocab_size} rows cannot read. Train "
                "student and teacher with one tokenizer."
            )
        teacher_model.requires_grad_(False)
        teacher_model.set_adapter("nat", inference_mode=True)
        self.teacher_model = self.accelerator.prepare_model(teacher_model.eval(), evaluation_mode=True)

    # Data

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        prepare = super()._prepare_dataset
        dataset = prepare_rows(prepare, dataset, processing_class, args, dataset_name, args.is_calibrated)
        return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.args.is_calibrated and WEIGHT not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, WEIGHT]

    # Loss

    def compute_loss(
        self, model, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ):
        args, beta = self.args, inputs.pop(WEIGHT, None)  # (B,)
        distils = args.objective == "kd" and args.alpha > 0
        teacher_states = self._teacher_states(inputs) if distils else None  # (N, H), before the student's pass
        totals: dict[str, tuple[Tensor, Tensor]] = {}  # of metrics: sum and count

        # The parent class calls this in place of the model. It then sums `log_probs` and divides by the tokens of the
        # step, so that both terms of the loss get one divisor, over all micro-batches and processes.
        def forward(fused_lm_head: bool = False, **kwargs):
            if not fused_lm_head:
                return model(**kwargs)
            with recorded_states(self.model) as student_states:
                outputs = model(fused_lm_head=True, **kwargs)
            logps, mask = outputs.log_probs, outputs.label_mask  # (B, T)
            tokens = mask.sum()
            totals["ce"] = -logps.detach().sum(), tokens
            if args.objective == "weighted_ce":
                outputs.log_probs = (1 + beta[:, None]) * logps
            elif distils:
                weight = 0.5 + beta if args.is_calibrated else logps.new_full(mask.shape[:1], args.kd_weight)  # (B,)
                divergence = self._distillation(student_states[0][:, :-1], teacher_states, mask, totals)  # (B, T)
                totals["kd"] = (weight[:, None] * divergence).detach().sum(), tokens
                outputs.log_probs = -nce_token_loss(logps, divergence, weight, args.alpha)
            return outputs

        loss = super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)
        if beta is not None:
            totals["weight/mean"] = beta.sum(), torch.tensor(len(beta), device=beta.device)
        log_means(self, totals)
        return loss

    def _teacher_states(self, inputs: dict[str, Tensor]) -> Tensor:
        """NAT's hidden states `(N, H)` at the positions that predict a label."""
        batch = inputs["input_ids"], inputs["attention_mask"]
        # Accelerate casts in the model's own forward, which this goes around
        with torch.no_grad(), self.accelerator.autocast():
            if self.teacher_model is None:
                states = adapter_states(self.model, "nat", *batch)  # (B, L, H)
            else:
                states = backbone_states(self.accelerator.unwrap_model(self.teacher_model), *batch)
        return states[:, :-1][inputs["labels"][:, 1:] != -100]

    def _distillation(self, student_states: Tensor, teacher_states: Tensor, mask: Tensor, totals: dict) -> Tensor:
        """`T ** 2` KL(NAT || student) `(B, T)`, 0 where there is no label, from states `(B, T, H)` and `(N, H)`."""
        temperature, chunk_tokens = self.args.kd_temperature, self.args.loss_chunk_tokens
        teacher = self.model if self.teacher_model is None else self.accelerator.unwrap_model(self.teacher_model)
        student_head, teacher_head = lm_head(self.model, self.vocab_size), lm_head(teacher, self.vocab_size)
        with self.accelerator.autocast():
            kl, _ = token_divergence(  # `beta=0.0` is KL(teacher || student)
                student_states[mask], student_head, teacher_states, teacher_head, 0.0, temperature, chunk_tokens
            )
            totals["kl"] = kl.detach().sum(), mask.sum()
            if not self.model.training:  # one more projection, which training can do without
                itself = (teacher_states, teacher_head, teacher_states, teacher_head)
                _, entropy = token_divergence(*itself, 0.0, temperature, chunk_tokens)
                totals["soft_ce"] = (kl + entropy).sum(), mask.sum()
        return temperature**2 * kl.new_zeros(mask.shape).masked_scatter(mask, kl)

    # The student as files

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not (isinstance(self.model, PeftModel) and "nat" in self.model.peft_config):
            return super()._save(output_dir, state_dict)
        # PEFT writes every adapter that it knows, but `nat` and `neg` have folders of their own already
        self.model.save_pretrained = functools.partial(self.model.save_pretrained, selected_adapters=[STUDENT])
        try:
            super()._save(output_dir, state_dict)
        finally:
            del self.model.save_pretrained


def check_student_config(model: PeftModel, peft_config: PeftConfig | None) -> None:
    """Raise `ValueError` unless the student can be a fresh LoRA on the base of its teacher, and leaves that alone."""
    if peft_config is None:
        raise ValueError(
            "`model` is a NAT model, so the student is a fresh LoRA on its base: pass a `peft_config`. To train a "
            "full model, pass it as `model` and the NAT model as `teacher_model`."
        )
    if STUDENT in model.peft_config:
        raise ValueError(
            f"The NAT model already has an adapter {STUDENT!r}, the name that the student gets. Remove it with "
            f"`model.delete_adapter({STUDENT!r})`."
        )
    check_lora(peft_config)

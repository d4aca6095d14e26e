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

import copy
import json
import os
import textwrap
from pathlib import Path

import torch
from accelerate.logging import get_logger
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoProcessor,
    BitsAndBytesConfig,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import ADAPTER_CONFIG_NAME
from trl import SFTTrainer
from trl.trainer.utils import create_model_from_path, get_config_model_id

from ...checkpoints import CheckpointError, ResumableTrainer, checkpoint_to_resume, first_decides, newest_checkpoint
from ...endings import check_trainer_ending
from ..data import (
    PAPER,
    adapter_sha256,
    adapter_state,
    check_lora,
    check_rows,
    default_args,
    rows_with_label,
    whole_rows,
)
from .integration_unit import (
    NATLoraConfig,
    add_nat,
    gate_parameters,
    load_adapter_weights,
    load_negative,
)
from .nat_config import NegativeAssistedConfig


logger = get_logger(__name__)

NEG, NAT = "neg", "nat"  # names of the adapters, and of their folders


class NegativeAssistedTrainer(ResumableTrainer, SFTTrainer):
    """
    Trainer for [Negative Assisted Training](https://huggingface.co/papers/2312.12832) (NAT): a LoRA that has learned a
    teacher's wrong rationales stays frozen beside the LoRA that learns the right ones, and a gate in every adapted
    layer decides at each token how much of it to use.

    One `train()` runs both stages. Each is plain supervised fine-tuning with its own optimizer and schedule: first the
    *negative* adapter on the rows whose `label` is false, then the *positive* adapter and its gates on the others.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from trl_distill import NegativeAssistedTrainer

    >>> dataset = load_dataset("json", data_files="labelled.jsonl", split="train")  # prompt, completion, label

    >>> trainer = NegativeAssistedTrainer(model="Qwen/Qwen2.5-0.5B", train_dataset=dataset)
    >>> trainer.train()
    >>> trainer.save_model()  # two adapter folders, neg/ and nat/, for load_nat
    ```

    The trained model depends on its input through the gates, so it cannot be merged into one matrix or served as a
    LoRA. [`NCETrainer`] makes an ordinary LoRA of it.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            Base model, as in [`~trl.SFTTrainer`], without adapters. 4-bit and 8-bit models are fine.
        args ([`NegativeAssistedConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        train_dataset ([`~datasets.Dataset`]):
            Rows `prompt`, `completion` and boolean `label`, true if the final answer is right: TRL's [unpaired
            preference](dataset_formats#unpaired-preference) format, standard or conversational.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Rows for evaluation. Each stage is evaluated on the rows that it would train on; without wrong rows the
            negative stage is not evaluated.
        peft_config ([`~peft.LoraConfig`], *optional*):
            LoRA of the adapters. If `None`, that of the released code: rank 8, alpha 16, dropout 0.05, on PEFT's
            default modules for the architecture, the query and value projections of most.
        negative_peft_config ([`~peft.LoraConfig`], *optional*):
            LoRA of the negative adapter where it is to differ. It must cover all modules of `peft_config`.
        data_collator, processing_class, callbacks, quantization_config:
            As in [`~trl.SFTTrainer`], for both stages.
    """

    _tag_names = ["trl", "nat"]
    _name = "NAT"
    _paper = PAPER

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: NegativeAssistedConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: LoraConfig | None = None,
        negative_peft_config: LoraConfig | None = None,
    ):
        args = args or default_args(NegativeAssistedConfig, model, "NAT")
        check_rows(train_dataset)
        check_rows(eval_dataset, "eval_dataset")
        if (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
            raise ValueError("NAT splits and tokenises the rows itself. Remove `skip_prepare_dataset`.")
        if peft_config is None:
            peft_config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, task_type="CAUSAL_LM")
        negative_peft_config = negative_peft_config or peft_config
        check_lora(peft_config)
        check_lora(negative_peft_config, "negative_peft_config")
        self._positive_config = peft_config

        # A trainer of its own for the first stage: a second `train()` of one trainer would keep the optimizer of the
        # first, and the gates would not be in it.
        self.negative_trainer = None
        if args.stages == "both":
            rows_with_label(train_dataset, True, "train")  # an empty side is known before anything is loaded
            negative_args = copy.copy(args)
            negative_args.stages, negative_args.push_to_hub = "negative", False
            negative_args.output_dir = os.path.join(args.output_dir, "negative")
            negative_eval_dataset = _evaluable(eval_dataset, False)
            if eval_dataset is not None and negative_eval_dataset is None:
                logger.warning("No evaluation row is wrong, so the negative stage is trained without evaluation.")
                negative_args.eval_strategy, negative_args.load_best_model_at_end = IntervalStrategy.NO, False
            self.negative_trainer = NegativeAssistedTrainer(
                model=model,
                args=negative_args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=negative_eval_dataset,
                processing_class=processing_class,
                callbacks=copy.copy(callbacks),
                quantization_config=quantization_config,
                negative_peft_config=negative_peft_config,
            )
            model, processing_class = self.negative_trainer.model, self.negative_trainer.processing_class
        else:
            rows_with_label(train_dataset, args.stages == "positive", "train")
            model, processing_class = _load(model, args, processing_class, quantization_config)
            if args.stages == "negative":
                set_seed(args.seed)
                model = get_peft_model(model, negative_peft_config, adapter_name=NEG, **_peft_kwargs(args, model))
            else:
                model = load_negative(model, args.negative_adapter_path, NEG)

        stage_eval_dataset = _evaluable(eval_dataset, args.stages != "negative")
        if eval_dataset is not None and stage_eval_dataset is None:
            raise ValueError(
                f"`label` is {args.stages == 'negative'} in all rows of `eval_dataset`, so the loss of "
                f"`stages={args.stages!r}` cannot be evaluated. Add "
                f"{'wrong' if args.stages == 'negative' else 'right'} rationales, or leave `eval_dataset` out."
            )
        used, args.model_init_kwargs = args.model_init_kwargs, None  # the parent would say that they are ignored
        super().__init__(
            model, args, data_collator, train_dataset, stage_eval_dataset, processing_class, callbacks=callbacks
        )
        args.model_init_kwargs = used
        check_trainer_ending(self, train_dataset)
        if args.stages == "both" and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                "FSDP and DeepSpeed shard a model once, so they cannot run two stages in one process. Train with "
                "`stages='negative'` first, then `stages='positive'` with `negative_adapter_path` set to its output."
            )
        if args.stages != "negative":
            self._add_positive_adapter()
        if args.stages == "both":  # it fits, which must be known before the first stage; it is added anew after it
            self.model.set_adapter(NEG)
            self.model.delete_adapter(NAT)
            self._cast_adapters()

    # What each stage trains on

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if "label" in dataset.column_names and "input_ids" not in dataset.column_names:
            check_rows(dataset, f"{dataset_name}_dataset")  # `evaluate` may be given other rows than the constructor
            dataset = rows_with_label(dataset, args.stages != "negative", dataset_name)
        dataset = whole_rows(super()._prepare_dataset, dataset, processing_class, args, dataset_name)
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    # The positive adapter

    def _add_positive_adapter(self) -> None:
        """Put the positive adapter and its gates on the model, beside the negative adapter as it is now."""
        args, model = self.args, self.model
        set_seed(args.seed + 1)  # of its own: with the seed of `neg`, both would start from the same matrices
        self._negative_sha256 = adapter_sha256(model, NEG)
        config = NATLoraConfig.of(
            self._positive_config,
            value=args.integration_value,
            width=args.integration_width,
            temperature=args.integration_temperature,
            neg_sha256=self._negative_sha256,
        )
        add_nat(model, config, NAT, NEG, **_peft_kwargs(args, model))
        self._cast_adapters()

    def _cast_adapters(self) -> None:
        """
        As TRL does with a quantized base, LoRA matrices in training are bf16. Gates are fp32, where their small
        updates are kept, and so is the frozen adapter, as PEFT loads it.
        """
        if not _is_quantized(self.model):
            return
        gates = gate_parameters(self.model, NAT)
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                in_training = parameter.requires_grad and name not in gates
                parameter.data = parameter.data.to(torch.bfloat16 if in_training else torch.float32)

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        Train the stages of `args.stages`.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint of either stage, or `True` to go on where the last run in `args.output_dir` stopped. A
                finished negative adapter is kept.
            kwargs:
                As in [`~transformers.Trainer`].
        """
        if self.negative_trainer is not None and NAT not in self.model.peft_config:
            resume_from_checkpoint = self._run_negative_stage(resume_from_checkpoint)
            self._add_positive_adapter()
        set_seed(self.args.seed)  # so that a stage does not depend on what ran before it
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        if checkpoint and NAT in self.model.peft_config:
            self._check_negative(checkpoint)
        output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        if NAT in self.model.peft_config:
            assert adapter_sha256(self.model, NEG) == self._negative_sha256, "`neg` was trained"
        return output

    def _run_negative_stage(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """Have a trained `neg` in the model and in its folder; returns the checkpoint for the positive stage."""
        folder, trainer, checkpoint = Path(self.args.output_dir), self.negative_trainer, resume_from_checkpoint
        of_negative = Path(trainer.args.output_dir)  # where its checkpoints are
        marker = folder / NEG / ADAPTER_CONFIG_NAME  # PEFT writes it last
        finished = bool(checkpoint) and first_decides(marker.is_file)
        if checkpoint is True:
            where = folder if finished else of_negative
            checkpoint = first_decides(lambda: newest_checkpoint(where))
            if not finished and checkpoint is None:
                raise CheckpointError(f"Nothing to resume: no checkpoint in {of_negative} or {folder}.")
        elif checkpoint and Path(checkpoint).resolve().parent == of_negative.resolve():
            finished = False
        elif checkpoint and not finished:
            raise CheckpointError(
                f"{checkpoint} belongs to the positive stage, but the negative adapter that it was trained beside is "
                f"not in {folder / NEG}. Resume a checkpoint in {of_negative}, or start anew."
            )
        self.accelerator.wait_for_everyone()  # all processes have looked before one of them writes
        if finished:
            logger.info(f"The negative stage is finished: {folder / NEG} is kept.")
            load_adapter_weights(self.model, str(folder), NEG)
        else:
            if self.args.should_save:
                marker.unlink(missing_ok=True)  # of an older run: killed from here on, this one is not finished
            trainer.train(resume_from_checkpoint=checkpoint)
            self.model.save_pretrained(str(folder), selected_adapters=[NEG], is_main_process=self.args.should_save)
            self.accelerator.wait_for_everyone()
        trainer.optimizer = trainer.lr_scheduler = None  # their memory is wanted by the next stage
        trainer.accelerator.free_memory()
        return checkpoint if finished else None

    # Checkpoints: PEFT keeps named adapters in sub-folders

    def _check_negative(self, checkpoint: str) -> None:
        """Raise if the positive adapter in a checkpoint was trained beside another negative adapter."""
        file = Path(checkpoint, NAT, ADAPTER_CONFIG_NAME)
        config = first_decides(lambda: json.loads(file.read_text()) if file.is_file() else None)
        if config is None:  # with FSDP's sharded state dictionaries there are no folders of adapters
            logger.warning(f"It cannot be checked whether {checkpoint} belongs to this negative adapter.")
        else:
            self._compare_negative(config["nat_config"]["neg_sha256"], checkpoint)

    def _compare_negative(self, found: str, checkpoint: str) -> None:
        if found != self._negative_sha256:
            raise CheckpointError(
                f"The negative adapter in {checkpoint} is not the one of this run (hash {found[:12]} instead of "
                f"{self._negative_sha256[:12]}). Resume with the `negative_adapter_path` of that run."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.is_deepspeed_enabled and NAT in self.model.peft_config:
            # What ZeRO-3 has gathered, for the process that writes, leaves out the adapter that is not trained
            state_dict = (state_dict or {}) | adapter_state(self.model, NEG)
        super()._save(output_dir, state_dict)

    def _quick_start(self, base: str, name: str) -> str:
        """Python code for the model card, which loads what a pipeline cannot."""
        imported, load = f"{__name__.partition('.')[0]} import load_nat", f'load_nat(base, "{name}")'
        if self.args.stages == "negative":
            imported, load = "peft import PeftModel", f'PeftModel.from_pretrained(base, "{name}", subfolder="{NEG}")'
        return textwrap.dedent(f"""\
            from transformers import AutoModelForCausalLM, AutoTokenizer
            from {imported}

            base = AutoModelForCausalLM.from_pretrained("{base}")
            model = {load}
            tokenizer = AutoTokenizer.from_pretrained("{name}")
            inputs = tokenizer("What is 3 + 4?", return_tensors="pt")
            print(tokenizer.decode(model.generate(**inputs, max_new_tokens=128)[0]))""")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if NAT in self.model.peft_config:  # its tensors, too: a folder may hold others than its config says
            self._compare_negative(adapter_sha256(self.model, NEG), resume_from_checkpoint)

    def _load_best_model(self) -> None:
        # The parent looks for an adapter at the top of the checkpoint only, and would go on with the last weights
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def _evaluable(dataset: Dataset | dict[str, Dataset] | None, label: bool) -> Dataset | dict[str, Dataset] | None:
    """Evaluation data that have rows of this label, `None` if no data have."""
    if isinstance(dataset, dict):
        return {name: split for name, split in dataset.items() if _evaluable(split, label) is not None} or None
    return None if dataset is None or label not in dataset["label"][:] else dataset


def _peft_kwargs(args: NegativeAssistedConfig, model: PreTrainedModel) -> dict:
    """Under ZeRO-3, all persistent parameters must have one data type, as in [`~trl.SFTTrainer`]."""
    zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
    return {"autocast_adapter_dtype": False} if zero3 and not _is_quantized(model) else {}


def _is_quantized(model: PreTrainedModel | PeftModel) -> bool:
    return getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)


def _load(
    model: str | PreTrainedModel,
    args: NegativeAssistedConfig,
    processing_class: PreTrainedTokenizerBase | None,
    quantization_config: BitsAndBytesConfig | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model and its tokenizer, loaded as [`~trl.SFTTrainer`] loads them."""
    if isinstance(model, PeftModel):
        raise ValueError(
            "NAT puts two adapters of its own on a base model, but `model` already has adapters. Merge them first "
            "with `model.merge_and_unload()`."
        )
    kwargs = dict(args.model_init_kwargs or {})
    if isinstance(model, str):
        if quantization_config is not None:
            kwargs["quantization_config"] = quantization_config
        if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
            kwargs["device_map"] = None
        kwargs.setdefault("trust_remote_code", args.trust_remote_code)
        model = create_model_from_path(model, **kwargs)
    if processing_class is None:
        name, trust = get_config_model_id(model.config), args.trust_remote_code
        processing_class = AutoProcessor.from_pretrained(
            name, revision=kwargs.get("revision"), trust_remote_code=trust
        )
    return model, processing_class

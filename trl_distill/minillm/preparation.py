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

"""What a run is made of, checked and prepared before its first step: teacher, tokenizer, prompts and corpus."""

from functools import lru_cache
from typing import NamedTuple

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from peft import PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import pack_dataset
from trl.models import prepare_deepspeed
from trl.trainer.utils import get_config_model_id, pad

from ..divergence import LMHead, backbone_states, join_completions, select_states, token_divergence, token_logps
from ..generation import end_token_ids
from ..models import (
    check_same_tokens,
    load_teacher,
    load_teacher_tokenizer,
    match_vocabulary,
    vocabulary_rows,
)
from .metrics import HAS_ROUGE
from .minillm_config import MiniLLMConfig
from .prompts import check_prompts


logger = get_logger(__name__)


def check_teacher(teacher_model: str | PreTrainedModel | None, args: MiniLLMConfig, has_adapter: bool):
    """Refuse what is not exactly one teacher. `has_adapter` is about the student."""
    if args.teacher_is_base == (teacher_model is not None):
        raise ValueError(
            "MiniLLMTrainer needs exactly one teacher. Pass `teacher_model` (or set `teacher_model_name_or_path`), "
            "or set `teacher_is_base=True` to learn from the student's own base model."
        )
    if isinstance(teacher_model, PreTrainedModel | PeftModel) and args.teacher_model_init_kwargs is not None:
        raise ValueError("You passed `teacher_model_init_kwargs`, but `teacher_model` is already instantiated.")
    if args.teacher_is_base and not has_adapter:
        raise ValueError(
            "`teacher_is_base=True` disables the student's adapter to get the teacher, but the student has no "
            "adapter. Pass a `peft_config` or a `PeftModel`."
        )


def prepare_teacher(teacher_model, student, tokenizer, args: MiniLLMConfig, accelerator, is_zero3: bool):
    """The frozen teacher, `None` if it is the student's base, and the number of vocabulary rows that both share."""
    if args.teacher_is_base:  # the same tokens, heads and wrapper: the student serves with its adapter disabled
        if isinstance(student.get_output_embeddings(), AuxiliaryTrainingWrapper):
            raise ValueError(
                "`teacher_is_base=True` needs the LM head of the base model, but the adapter trains a copy of it. "
                "Remove `lm_head` from `modules_to_save`."
            )
        logger.warning(
            "The teacher is the student's base model. A fresh adapter equals its teacher, so the loss starts at 0; "
            "start from a trained adapter."
        )
        return None, vocabulary_rows(student)
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
    shared = match_vocabulary(tokenizer, None, student, teacher_model)
    student_rows, teacher_rows = vocabulary_rows(student), vocabulary_rows(teacher_model)
    if is_zero3 and student_rows != teacher_rows:
        raise ValueError(
            f"The LM heads have {student_rows} (student) and {teacher_rows} (teacher) rows. Under DeepSpeed ZeRO-3 "
            "they cannot be cut. Call `resize_token_embeddings` on one model first, or use FSDP2."
        )
    if args.use_vllm and student_rows > shared:
        raise ValueError(
            f"The student's LM head has {student_rows} rows, {student_rows - shared} more than the teacher's, and "
            "vLLM could sample them. Call `resize_token_embeddings` on the student, or set `use_vllm=False`."
        )
    if accelerator.distributed_type == "DEEPSPEED":
        return prepare_deepspeed(teacher_model, accelerator), shared
    # Under FSDP accelerate leaves the placement to the sharding, which a frozen model does not get
    return accelerator.prepare_model(teacher_model, device_placement=True, evaluation_mode=True), shared


class Tokenizers(NamedTuple):
    """How both models read text."""

    student: PreTrainedTokenizerBase
    teacher: PreTrainedTokenizerBase | None = None  # if it is known
    unknown: set[int] = frozenset()  # tokens of the student's that the teacher's does not have

    def foreign(self, rows: int) -> set[int]:
        """Tokens of the student that the teacher cannot read, with the `rows` that both have in their vocabularies."""
        return self.unknown | {token for token in self.student.get_vocab().values() if token >= rows}


def prepare_tokenizers(tokenizer, student, teacher, args: MiniLLMConfig) -> Tokenizers:
    """Load what was not passed. The teacher must read ordinary tokens as the student does."""
    if tokenizer is None:
        is_name = isinstance(student, str)
        tokenizer = AutoTokenizer.from_pretrained(
            student if is_name else get_config_model_id(student.config),
            revision=(args.model_init_kwargs or {}).get("revision") if is_name else None,
            padding_side="left",
            truncation_side="left",
            trust_remote_code=args.trust_remote_code,
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"MiniLLMTrainer trains on text only, but `processing_class` is a {type(tokenizer).__name__}. "
            "Pass a tokenizer."
        )
    if teacher is not None:
        teacher_tokenizer = load_teacher_tokenizer(
            teacher, revision=args.teacher_model_revision, trust_remote_code=args.trust_remote_code
        )
        if teacher_tokenizer is not None:
            return Tokenizers(tokenizer, teacher_tokenizer, check_same_tokens(tokenizer, teacher_tokenizer))
        logger.warning(
            "The teacher comes without a tokenizer, so it cannot be checked that it reads tokens as the student "
            "does. Pass the teacher as a path to have it checked."
        )
    return Tokenizers(tokenizer)


def generate_for_both(trainer, tokenizers: Tokenizers):
    """Have a trainer draw and pad with tokens that both models have a row for, and end answers where either would."""
    student, teacher = (
        trainer.accelerator.unwrap_model(model) for model in (trainer.model, trainer.teacher_model or trainer.model)
    )
    rows, tokenizer, given = trainer.vocab_size, tokenizers.student, trainer.args.generation_kwargs or {}
    ends, teacher_ends = trainer.eos_token_ids, end_token_ids(teacher, tokenizers.teacher or tokenizers.student)
    if set(ends) != set(teacher_ends):
        logger.warning(
            f"The student ends answers with the tokens {sorted(ends)}, the teacher with {sorted(teacher_ends)}: in "
            "training and evaluation all of these end one. The saved student keeps its own; to have it stop where it "
            "has learned to, set `eos_token_id` in its generation config."
        )
    trainer.eos_token_ids = [end for end in dict.fromkeys([*ends, *teacher_ends]) if end < rows]
    # A row of NaN draws any token instead of stopping the device; whoever scores the completion sees the NaN again
    settings = {"eos_token_id": trainer.eos_token_ids, "remove_invalid_values": True} | given
    if tokenizer.pad_token_id >= rows:
        settings["pad_token_id"] = tokenizer.eos_token_id
    if unshared := range(rows, vocabulary_rows(student)):
        settings["suppress_tokens"] = [*(given.get("suppress_tokens") or []), *unshared]
    trainer.generation_config.update(**settings)
    trainer.generation_kwargs |= settings
    if trainer.use_vllm:
        trainer.vllm_generation.generation_kwargs = {"stop_token_ids": trainer.eos_token_ids} | given


def check_datasets(train_dataset, eval_dataset, lm_dataset, args: MiniLLMConfig):
    """Refuse datasets that cannot be trained on, as far as it can be told before a model is loaded."""
    if args.lm_coef and lm_dataset is None:
        raise ValueError(
            f"`lm_coef` is {args.lm_coef}, but there is no corpus. Pass `lm_dataset`, or leave `lm_coef` unset."
        )
    if train_dataset is None:
        raise ValueError("MiniLLMTrainer needs a `train_dataset` with a `prompt` column.")
    rollout_size = args.per_device_train_batch_size * args.steps_per_generation * args.world_size
    check_prompts(train_dataset, "train_dataset", rollout_size)
    for name, dataset in (eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}).items():
        if dataset is not None:
            check_prompts(dataset, name)
            if not HAS_ROUGE and "completion" in (dataset.column_names or []):
                logger.warning("Rouge-L needs rouge-score: `pip install trl-distill[eval]`. It will not be logged.")
    if lm_dataset is not None and (isinstance(lm_dataset, IterableDataset) or "text" not in lm_dataset.column_names):
        raise ValueError(
            "`lm_dataset` must be a map-style `datasets.Dataset` with a column `text`, got a "
            f"{type(lm_dataset).__name__} with columns {lm_dataset.column_names}."
        )


@lru_cache(maxsize=2)  # a batch reads from one pass, or from the end of one and the start of the next
def _permutation(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


class Corpus:
    """
    Plain text for the language-modelling loss of the paper's Algorithm 1.

    Documents in the column `text`, joined by EOS and cut into blocks; a rest shorter than a block is dropped.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        args: MiniLLMConfig,
        foreign: set[int] = frozenset(),
    ):
        def tokenize(batch):
            return {"input_ids": [ids + [tokenizer.eos_token_id] for ids in tokenizer(batch["text"])["input_ids"]]}

        length = args.lm_max_length
        tokenized = dataset.map(tokenize, batched=True, remove_columns=dataset.column_names)
        packed = pack_dataset(tokenized, seq_length=length, strategy="wrapped")
        blocks = [ids for ids in packed["input_ids"] if len(ids) == length]
        if not blocks:
            raise ValueError(f"`lm_dataset` has fewer tokens than one block of `lm_max_length` ({length}) tokens.")
        self.blocks = torch.tensor(blocks)  # (blocks, lm_max_length)
        unknown = foreign.intersection(self.blocks.unique().tolist())
        if unknown:
            raise ValueError(
                f"`lm_dataset` holds {tokenizer.convert_ids_to_tokens(min(unknown))!r}, which is a token of the "
                "student's tokenizer that the teacher does not have. Remove it from the texts."
            )
        self.args = args

    def batch(self, step: int) -> Tensor:
        """Blocks `(b, lm_max_length)` of a micro-step of any process: each once a pass, by the step alone."""
        count, rows = len(self.blocks), self.args.per_device_train_batch_size
        places = [divmod(step * rows + row, count) for row in range(rows)]
        return self.blocks[torch.stack([_permutation(count, self.args.seed + turn)[row] for turn, row in places])]

    def states(self, model, rows: list[Tensor], ids: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of completions `(B, T, H)` and of blocks `(b * (L - 1), H)`, from one backbone forward."""
        input_ids, attention_mask, positions = join_completions(*rows)
        attention_mask = pad([*attention_mask, *torch.ones_like(ids)])
        states = backbone_states(model, pad([*input_ids, *ids]), attention_mask)
        completions, blocks = states[: len(positions)], states[len(positions) :, : ids.shape[1] - 1]
        return select_states(completions, positions), blocks.flatten(0, 1)

    def loss(
        self, states: Tensor, head: LMHead, ids: Tensor, teacher_states: Tensor | None, teacher_head: LMHead | None
    ) -> tuple[Tensor, dict[str, tuple[Tensor, int]]]:
        """Mean loss of blocks `(b, L)`, from hidden states `(b * (L - 1), H)`; the teacher's are there for the KL."""
        chunk, ratio = self.args.loss_chunk_tokens, self.args.lm_kd_ratio
        targets = ids[:, 1:].flatten()
        per_token_loss = -token_logps(states, head, targets, chunk_tokens=chunk)
        metrics = {"loss/lm": (per_token_loss.sum(), len(targets))}
        if teacher_states is not None:
            divergence, _ = token_divergence(states, head, teacher_states, teacher_head, 0.0, chunk_tokens=chunk)
            metrics["loss/lm_kd"] = (divergence.sum(), len(targets))
            per_token_loss = (1 - ratio) * per_token_loss + ratio * divergence
        return per_token_loss.mean(), metrics

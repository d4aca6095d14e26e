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

"""
What a run is made of, checked and prepared before its first step: teacher, tokenizer, prompts and corpus.

Of a large dataset only what is doubtful is tokenized: Arrow's offsets say how many bytes of text each row has, and no
token stands for less than a byte.
"""

import math
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from peft import PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import pack_dataset
from trl.models import prepare_deepspeed
from trl.trainer.utils import get_config_model_id, pad

from ..divergence import LMHead, backbone_states, join_completions, select_states, token_divergence, token_logps
from ..models import (
    check_same_tokens,
    context_length,
    end_token_ids,
    load_teacher,
    load_teacher_tokenizer,
    match_vocabulary,
    process_placement,
    shard,
    vocabulary_rows,
)
from .metrics import HAS_ROUGE
from .minillm_config import MiniLLMConfig


logger = get_logger(__name__)

_READ_WHOLE = 10_000  # rows that take less than a second to tokenize
_UNICODE_GROWTH = 11  # at most, of a normal form in bytes: U+FDFA has 3, and 33 in NFKC


def check_teacher(teacher_model: str | PreTrainedModel | None, args: MiniLLMConfig, has_adapter: bool):
    """Refuse what is not exactly one teacher. `has_adapter` is about the student."""
    if args.teacher_model_server_url is not None:
        if teacher_model is not None:
            raise ValueError("You passed a `teacher_model` beside `teacher_model_server_url`. Set only one of them.")
        return
    if args.teacher_is_base == (teacher_model is not None):
        raise ValueError(
            "MiniLLMTrainer needs exactly one teacher. Pass `teacher_model` (or set `teacher_model_name_or_path`), "
            "or set `teacher_is_base=True` to learn from the student's own base model, or `teacher_model_server_url`."
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
        init_kwargs |= process_placement(accelerator, init_kwargs.get("quantization_config") is not None)
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
    student_rows = vocabulary_rows(student)
    if is_zero3:
        # A partitioned head cannot be cut where it is used, and the teacher's can be cut for good
        if student_rows > shared:
            raise ValueError(
                f"The student's LM head has {student_rows} rows, {student_rows - shared} more than the teacher's. "
                "Under DeepSpeed ZeRO-3 it cannot be cut. Call `resize_token_embeddings` on the student first, or use "
                "FSDP2."
            )
        if vocabulary_rows(teacher_model) > shared:
            teacher_model.resize_token_embeddings(shared)
    if args.use_vllm and student_rows > shared:
        raise ValueError(
            f"The student's LM head has {student_rows} rows, {student_rows - shared} more than the teacher's, and "
            "vLLM could sample them. Call `resize_token_embeddings` on the student, or set `use_vllm=False`."
        )
    if accelerator.distributed_type == "DEEPSPEED":
        return prepare_deepspeed(teacher_model, accelerator), shared
    if accelerator.is_fsdp2 and getattr(teacher_model, "quantization_method", None) is None:
        return shard(teacher_model, accelerator), shared
    # Under FSDP accelerate leaves the placement to the sharding, which this model does not get
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


def connect_teacher(args: MiniLLMConfig, tokenizers: Tokenizers):
    """The [`TeacherServer`] of a run, `None` without one, and what is known of the tokenizers then."""
    if args.teacher_model_server_url is None:
        return None, tokenizers
    from .teacher_server import connect  # few runs need it

    server, unknown = connect(args, tokenizers.student)
    return server, tokenizers._replace(unknown=unknown)


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


def check_best_metric(eval_dataset, args: MiniLLMConfig, answer_checker: Callable | None):
    """Refuse a `metric_for_best_model` that no evaluation will give, which would end the run after its first one."""
    metric = args.metric_for_best_model or ""
    if args.eval_strategy == "no" or eval_dataset is None:
        return
    if metric.endswith("rougeL"):
        if not HAS_ROUGE:
            raise ImportError(f"`metric_for_best_model: {metric}` needs rouge-score: `pip install trl-distill[eval]`.")
        datasets = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
        if not any("completion" in (dataset.column_names or ["completion"]) for dataset in datasets):
            raise ValueError(
                f"`metric_for_best_model` is {metric!r}, but no evaluation row has a `completion` to compare with. "
                "Add that column, or choose `kl`."
            )
    if metric.endswith("accuracy") and answer_checker is None:
        raise ValueError(f"`metric_for_best_model` is {metric!r}, which only an `answer_checker` gives. Set it.")


def check_prompts(dataset: Dataset | IterableDataset, name: str, rollout_size: int = 1):
    """Refuse a dataset without text prompts, or with fewer than one rollout set takes. A stream is not read."""
    columns = dataset.column_names or []
    if isinstance(dataset, Dataset) and len(dataset) == 0:
        raise ValueError(f"`{name}` is empty.")
    if columns and "prompt" not in columns:
        raise ValueError(f"`{name}` has no column `prompt`, only {columns}. Rename the column that holds the prompts.")
    if "image" in columns or "images" in columns:
        raise ValueError(f"`{name}` has images, but MiniLLMTrainer trains on text only. Remove the column.")
    if isinstance(dataset, Dataset):
        empty = _in_order(dataset, np.concatenate([_is_empty(chunk) for chunk in _chunks(dataset)]))
        if empty.any():
            raise ValueError(f"`{name}` has an empty prompt in row {empty.argmax()}. Remove it.")
        if len(dataset) < rollout_size:
            raise ValueError(
                f"`{name}` has {len(dataset)} usable prompts, but one rollout set takes {rollout_size} "
                "(`per_device_train_batch_size` x `steps_per_generation` x processes). Lower one of them."
            )


def drop_long_prompts(
    dataset, name: str, tokenize: Callable[[list], list[list[int]]], limit: int | None, bytes_grow: int
):
    """
    Keep the rows whose prompt has at most `limit` tokens, `None` for all. A prompt that cannot be read is an error.

    `dataset` is `None`, a dataset, a stream, which is filtered while it is read, or a dictionary of these. A text has
    at most `bytes_grow` tokens a byte.
    """
    if dataset is None:
        return None
    if isinstance(dataset, dict):
        return {key: drop_long_prompts(data, key, tokenize, limit, bytes_grow) for key, data in dataset.items()}
    limit = np.inf if limit is None else limit
    count = partial(_token_counts, name=name, tokenize=tokenize)
    if isinstance(dataset, IterableDataset):
        return dataset.filter(lambda row, index: count([row["prompt"]], [index])[0] <= limit, with_indices=True)

    prompts = dataset.select_columns("prompt")
    lengths = _in_order(dataset, np.concatenate([_text_bytes(chunk) for chunk in _chunks(dataset)]))
    frames = np.empty(len(dataset))
    for rows in _rows_by_roles(dataset):
        shortest = rows[lengths[rows].argmin()]
        frames[rows] = count([prompts[int(shortest)]["prompt"]], [shortest])[0]
    # What the template writes around texts is counted twice: it may depend on more than the roles
    doubtful = bytes_grow * lengths + 2 * frames > limit
    if len(dataset) <= _READ_WHOLE:
        doubtful[:] = True
    counts = np.zeros(len(dataset))
    for first in range(0, len(rows := doubtful.nonzero()[0]), 256):
        batch = rows[first : first + 256]
        counts[batch] = count(prompts[batch]["prompt"], batch)
    kept = counts <= limit
    if kept.all():
        return dataset
    reason = f"longer than {limit} tokens, the models' context minus `max_completion_length`"
    if not kept.any():
        raise ValueError(f"Every prompt of `{name}` is {reason}. Shorten the prompts or the completions.")
    logger.warning(f"Dropped {(~kept).sum()} of {len(kept)} rows of `{name}`: their prompts are {reason}.")
    return dataset.select(kept.nonzero()[0])


def fit_datasets(trainer, models: list[PreTrainedModel]) -> int | None:
    """Keep the rows of a trainer's datasets whose prompts leave room for an answer; how many tokens that is."""
    corpus_length = trainer.args.lm_max_length * bool(trainer._corpus)
    limit = longest_prompt(models, trainer.generation_config.max_new_tokens, corpus_length)
    if trainer._server is not None:
        limit = trainer._server.longest_prompt(trainer.generation_config.max_new_tokens, limit)
    keep_fitting = partial(
        drop_long_prompts,
        tokenize=lambda prompts: trainer._tokenize_prompts(prompts, limit=math.inf)[0],
        limit=limit,
        bytes_grow=tokens_per_byte(trainer._tokenizer),
    )
    trainer.train_dataset = keep_fitting(trainer.train_dataset, "train_dataset")
    trainer.eval_dataset = keep_fitting(trainer.eval_dataset, "eval_dataset")
    check_prompts(trainer.train_dataset, "train_dataset", trainer._repeats["batch_size"])
    return limit


def longest_prompt(models: list[PreTrainedModel], max_new_tokens: int, corpus_length: int) -> int | None:
    """Tokens of a prompt that leaves room for the longest completion; `None` if no model says how much it reads."""
    context = context_length(*models)
    if context is None:
        return None
    if corpus_length > context:
        raise ValueError(f"`lm_max_length` is {corpus_length}, but the models' context is {context} tokens.")
    return context - max_new_tokens


def tokens_per_byte(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens a byte of text can become: one, unless the tokenizer rewrites the text first."""
    rewrites = not tokenizer.is_fast or tokenizer.backend_tokenizer.normalizer is not None
    return _UNICODE_GROWTH if rewrites else 1


def tokenized(tokenize: Callable[[list], tuple], prompts: list) -> tuple:
    """What `tokenize` makes of prompts; an error of the chat template names the prompt."""
    try:
        return tokenize(prompts)
    except (TemplateError, TypeError):  # of a text that is added to none
        for prompt in prompts:
            try:
                tokenize([prompt])
            except (TemplateError, TypeError) as error:
                raise ValueError(f"{error}, in the prompt {prompt!r}. Correct or remove it.") from error
        raise


def check_readable(prompts: list, prompt_ids: list[list[int]], foreign: Collection[int], limit: float | None):
    """Refuse prompts without tokens, with tokens that the teacher does not know, or with more than `limit`."""
    for prompt, ids in zip(prompts, prompt_ids, strict=True):
        if not ids:
            raise ValueError(f"The tokenizer finds no token in the prompt {prompt!r}. Remove it.")
        unknown = [token for token in ids if token in foreign]
        if unknown:
            raise ValueError(
                f"The student's tokenizer reads token {unknown[0]} in the prompt {prompt!r}, which the teacher does "
                "not have. Take it out of the prompts, or out of the chat template that adds it."
            )
        if limit is not None and len(ids) > limit:
            raise ValueError(
                f"A prompt has {len(ids)} tokens, and {limit} leave room for a completion: {prompt!r}. Remove it."
            )


def _token_counts(prompts: list, rows: Sequence[int], name: str, tokenize: Callable) -> list[int]:
    try:
        return [len(ids) for ids in tokenize(prompts)]
    except ValueError as error:
        if len(prompts) == 1:
            raise ValueError(f"The prompt in row {rows[0]} of `{name}` cannot be tokenized: {error}") from error
        return [_token_counts([prompt], [row], name, tokenize)[0] for prompt, row in zip(prompts, rows, strict=True)]


# Arrow: what follows reads where texts begin and end, not the texts


def _chunks(dataset: Dataset) -> list[pa.Array]:
    return dataset.data.column("prompt").chunks


def _in_order(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """Values of the stored rows, as values of the dataset's rows."""
    order = dataset._indices  # of a dataset that was shuffled, split or selected from
    return values if order is None else values[order.column(0).to_numpy()]


def _is_list(array: pa.Array) -> bool:
    return pa.types.is_list(array.type) or pa.types.is_large_list(array.type)


def _is_text(array: pa.Array) -> bool:
    return pa.types.is_string(array.type) or pa.types.is_large_string(array.type)


def _size(array: pa.Array) -> np.ndarray:
    """Items of each list or bytes of each text `(rows,)`, 0 for `None`."""
    return np.asarray(pc.fill_null(pc.list_value_length(array) if _is_list(array) else pc.binary_length(array), 0))


def _offsets(lists: pa.Array) -> np.ndarray:
    """Where each list begins among the items of all, and where the last one ends `(rows + 1,)`."""
    return np.concatenate([[0], np.cumsum(_size(lists))]).astype(np.int32)


def _is_empty(array: pa.Array) -> np.ndarray:
    # Of a type that we do not know: the tokenizer will say so
    return _size(array) == 0 if _is_list(array) or _is_text(array) else np.asarray(pc.is_null(array))


def _text_bytes(array: pa.Array) -> np.ndarray:
    """Bytes of all texts in each row `(rows,)`, more than any where Arrow cannot tell."""
    if isinstance(array, pa.ExtensionArray):  # JSON
        return _text_bytes(array.storage)
    if _is_text(array):
        return _size(array).astype(float)
    if _is_list(array):
        total = np.concatenate([[0.0], np.cumsum(_text_bytes(array.flatten()))])
        return np.diff(total[_offsets(array)])
    if pa.types.is_struct(array.type):
        return sum(map(_text_bytes, array.flatten()), np.zeros(len(array)))
    is_number = pa.types.is_primitive(array.type) or pa.types.is_null(array.type)
    return np.full(len(array), 32.0 if is_number else 1e12)


def _roles(array: pa.Array) -> pa.Array:
    """The roles of each conversation, joined; nothing for other prompts."""
    messages = array.flatten() if _is_list(array) else array
    if not pa.types.is_struct(messages.type) or messages.type.get_field_index("role") < 0:
        return pa.repeat("", len(array))
    roles = pa.ListArray.from_arrays(_offsets(array), pc.fill_null(messages.field("role"), ""))
    return pc.binary_join(roles, " ")


def _rows_by_roles(dataset: Dataset) -> list[np.ndarray]:
    """Rows whose conversations have the same roles in the same order: a template frames them alike."""
    roles = pa.chunked_array([_roles(chunk) for chunk in _chunks(dataset)]).dictionary_encode().combine_chunks()
    codes = _in_order(dataset, roles.indices.to_numpy())
    order = codes.argsort(kind="stable")
    return np.split(order, np.diff(codes[order]).nonzero()[0] + 1)


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

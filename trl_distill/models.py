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

"""Models on the disk and in memory: load, place, match, quantize and merge them."""

import copy
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.trainer_utils import align_special_tokens
from transformers.utils import ADAPTER_CONFIG_NAME, cached_file
from trl.trainer.utils import create_model_from_path


logger = logging.getLogger(__name__)

# Text with cases in which tokenizers of one vocabulary still part: spaces, digits, accents, code, other scripts
_PROBES = (
    "The quick brown fox.",
    " leading  and   many spaces\n\n\ttab",
    "1234567 + 3.14 = ?",
    "naïve café, 你好, мир 🙂",
)


def load_teacher(
    model_name_or_path: str, revision: str | None = None, trust_remote_code: bool = False, **init_kwargs
) -> PreTrainedModel:
    """
    Load a frozen teacher.

    Args:
        model_name_or_path (`str`):
            Model id or folder of a full model or of a PEFT adapter, which is merged into its base unless that is
            quantized.
        revision (`str`, *optional*):
            Branch, tag or commit.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that ships with the checkpoint.
        init_kwargs:
            Keyword arguments of `from_pretrained`. `dtype` defaults to the dtype of the checkpoint, since a frozen
            model needs no fp32 master weights. `quantization_config` may be a dictionary such as
            `{"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}`.

    Returns:
        [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]: Teacher in eval mode, without gradients.

    Raises:
        `ValueError`: If it is the positive adapter of NAT alone.
        `OSError`: If there is no such model, or no base of the adapter.
    """
    init_kwargs.setdefault("dtype", "auto")
    if isinstance(init_kwargs.get("quantization_config"), dict):
        init_kwargs["quantization_config"] = BitsAndBytesConfig(**init_kwargs["quantization_config"])
    init_kwargs.update(revision=revision, trust_remote_code=trust_remote_code)
    adapter = adapter_config(model_name_or_path, revision)
    if adapter is None:
        teacher = create_model_from_path(model_name_or_path, **init_kwargs)
    else:
        if adapter.get("nat_config"):
            raise ValueError(
                f"{model_name_or_path} is the positive adapter of a NAT model, which nobody trained to be without its "
                "gate. Name the folder that holds it."
            )
        try:
            teacher = AutoPeftModelForCausalLM.from_pretrained(model_name_or_path, **init_kwargs)
        except OSError as error:
            if os.path.isdir(base := adapter["base_model_name_or_path"]):  # it is there, and something else is wrong
                raise
            raise OSError(
                f"{model_name_or_path} is an adapter of {base}, which is neither a "
                "folder here nor to be had from the Hub. If it is a folder, it is named from where the adapter was "
                f"trained; `trl-distill merge {model_name_or_path} --base FOLDER --output DIR` joins the two."
            ) from error
        if getattr(teacher.base_model.model, "quantization_method", None) is None:
            teacher = teacher.merge_and_unload()
    return teacher.eval().requires_grad_(False)


def process_placement(accelerator, quantized: bool) -> dict[str, Any]:
    """`device_map` of a frozen model where a launcher has started several processes, nothing where it has not."""
    if accelerator.distributed_type not in ("MULTI_GPU", "DEEPSPEED", "FSDP"):
        return {}
    if quantized:  # whole in each process, and to be placed while it is loaded
        return {"device_map": {"": accelerator.device}}
    efficient = accelerator.is_fsdp2 and accelerator.state.fsdp_plugin.cpu_ram_efficient_loading
    is_empty = efficient and not accelerator.is_main_process  # until the first process hands out its weights
    return {"device_map": {"": "meta"} if is_empty else None}


def shard(model: PreTrainedModel, accelerator) -> PreTrainedModel:
    """
    Shard a frozen model over the processes of FSDP2, layer by layer, so that no process ever holds it whole.

    The weights are those of the first process. The others may have theirs on the device `meta`, if the launcher's
    config asks for `fsdp_cpu_ram_efficient_loading`.
    """
    from accelerate.utils import fsdp2_prepare_model
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    of_trained = accelerator.state.fsdp_plugin
    plugin = copy.copy(of_trained)  # its layers are of the trained model's classes
    plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = transformer_auto_wrap_policy, None
    accelerator.state.fsdp_plugin = plugin
    try:
        model = fsdp2_prepare_model(accelerator, model)
    finally:
        accelerator.state.fsdp_plugin = of_trained
    model.set_reshard_after_forward(True)  # root and head would wait for a backward with what they have gathered
    return model


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter without gradient, whole where FSDP2 or ZeRO-3 has sharded it: a collective for all processes."""
    if isinstance(parameter, DTensor):
        return parameter.detach().full_tensor()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach()


def load_teacher_tokenizer(teacher: str | PreTrainedModel, **kwargs) -> PreTrainedTokenizerBase | None:
    """Tokenizer saved beside the teacher, or `None` if a loaded model does not say where it came from."""
    path = teacher if isinstance(teacher, str) else teacher.config._name_or_path
    if not isinstance(teacher, str) and not (path and Path(path).is_dir()):
        return None  # never ask the Hub for a name that a model object may have made up
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **kwargs)
    except (OSError, ValueError):
        return None
    # Beside weights alone, transformers makes a tokenizer of some families that knows only their special tokens
    return None if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens) else tokenizer


def placement(
    dtype: str = "auto", device: str | None = None, load_in_4bit: bool = False, trust_remote_code: bool = False
) -> dict[str, Any]:
    """
    Keyword arguments of `from_pretrained` for a model that is not trained.

    Args:
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights; `"auto"` is that of the checkpoint.
        device (`str`, *optional*):
            Defaults to the GPU if there is one, else the CPU.
        load_in_4bit (`bool`, *optional*, defaults to `False`):
            Whether to quantize to NF4, the type that training uses.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that ships with the checkpoint.
    """
    kwargs: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    kwargs["device_map"] = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if load_in_4bit:
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    return kwargs


def adapter_config(
    model_name_or_path: str, revision: str | None = None, subfolder: str = "", must_reach: bool = False
) -> dict[str, Any] | None:
    """
    `adapter_config.json` of a folder or Hub repository, `None` if it holds no adapter. A repository that cannot be
    reached holds none, or is the error of the Hub if we `must_reach` it.
    """
    file = cached_file(
        model_name_or_path,
        ADAPTER_CONFIG_NAME,
        revision=revision,
        subfolder=subfolder,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=must_reach,
        _raise_exceptions_for_connection_errors=must_reach,
    )
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def context_length(*models: PreTrainedModel | PreTrainedConfig) -> int | None:
    """Tokens that fit into all of these models or configs, `None` if none of them says."""
    configs = [getattr(model, "config", model).get_text_config() for model in models]
    lengths = [getattr(config, "max_position_embeddings", None) for config in configs]
    return min((length for length in lengths if length is not None), default=None)


def vocabulary_rows(model) -> int:
    """Number of rows of the LM head, which may exceed the tokenizer's vocabulary."""
    weight = dense_head_weight(model)
    return getattr(weight, "ds_shape", weight.shape)[0]  # under ZeRO-3 the local shard is empty


def dense_head_weight(model):
    """Weight of the LM head; raises `ValueError` if it is not a dense floating-point matrix."""
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or not weight.is_floating_point() or hasattr(head, "lora_A"):
        raise ValueError(
            f"The LM head of {type(model).__name__} is a {type(head).__name__} without a dense floating-point weight, "
            "and distillation projects through that weight directly. Keep the head unquantized "
            "(`llm_int8_skip_modules: [lm_head]`) and without an adapter (remove `lm_head` from `target_modules`, or "
            "merge the adapter)."
        )
    return weight


_WAY_OUT = (
    "Use a teacher of the same family. For another tokenizer use GOLD (`trl.experimental.gold`), or sequence-level "
    "distillation, which needs only text: fine-tune the student on the teacher's answers with `trl-distill sft`."
)


def _extra_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Added and special tokens, of which no ordinary text is made."""
    return {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}


def check_same_tokens(
    student_tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase
) -> set[int]:
    """
    Raise `ValueError` unless both tokenizers read ordinary text alike.

    Added and special tokens may differ, as they do within a family (Qwen2.5 and Qwen3, Llama 3 and 3.2).

    Returns:
        `set[int]`: Ids of the student's tokens that the teacher does not know by that id.
    """
    ours, theirs = (tokenizer.get_vocab().items() for tokenizer in (student_tokenizer, teacher_tokenizer))
    foreign, unknown = ours - theirs, theirs - ours
    extra, others = _extra_tokens(student_tokenizer), _extra_tokens(teacher_tokenizer)
    ordinary = {pair for pair in foreign if pair[0] not in extra} | {pair for pair in unknown if pair[0] not in others}
    if ordinary:
        raise ValueError(
            f"Student and teacher are compared token by token, but {len(foreign | unknown)} (token, id) pairs are in "
            f"one vocabulary only, such as {min(ordinary)}. {_WAY_OUT}"
        )
    for probe in _PROBES:
        ours, theirs = student_tokenizer(probe)["input_ids"], teacher_tokenizer(probe)["input_ids"]
        if ours != theirs:
            raise ValueError(
                f"Student and teacher have the same vocabulary, but their tokenizers encode {probe!r} as {ours} and "
                f"{theirs}. {_WAY_OUT}"
            )
    if foreign or unknown:
        logger.warning(
            "Added or special tokens differ: %d of the student's, such as %s, and %d of the teacher's, such as %s. "
            "They are compared by their ids, and a prompt with one of the student's is an error.",
            *(len(foreign), min(foreign, default=None), len(unknown), min(unknown, default=None)),
        )
    return {index for _, index in foreign}


def check_same_reading(
    tokenizer: PreTrainedTokenizerBase, read: Callable[[Sequence[str]], list[list[int]]]
) -> set[int]:
    """
    [`check_same_tokens`] for a teacher whose tokenizer can only be asked: `read` gives the ids of texts, without the
    first one of each and without special tokens around them.
    """
    extra = sorted(_extra_tokens(tokenizer))
    texts = [*_PROBES, *(f"a{token}" for token in extra)]
    ours = [tokenizer(text, add_special_tokens=False)["input_ids"][1:] for text in texts]
    differing = [index for index, theirs in enumerate(read(texts)) if theirs != ours[index]]
    if differing and differing[0] < len(_PROBES):
        raise ValueError(
            f"The teacher's tokenizer encodes {texts[differing[0]]!r} in another way than the student's, and both are "
            f"compared token by token. {_WAY_OUT}"
        )
    unknown = [extra[index - len(_PROBES)] for index in differing]
    if unknown:
        logger.warning(
            "The teacher does not know %d of the student's added or special tokens, such as %s: a prompt with one of "
            "them is an error.",
            *(len(unknown), unknown[0]),
        )
    return set(tokenizer.convert_tokens_to_ids(unknown))


def match_vocabulary(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    student_model: PreTrainedModel,
    teacher_model: PreTrainedModel,
) -> int:
    """
    Number of vocabulary rows that student and teacher share.

    Models of one family often pad the same vocabulary to different sizes (Qwen2.5: 151,936 and 152,064 rows). The rows
    that only one of them has belong to no token, so both heads are cut to the smaller size.

    Args:
        student_tokenizer, teacher_tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizers to compare; `None` for the teacher skips the comparison.
        student_model, teacher_model ([`~transformers.PreTrainedModel`]):
            Unwrapped models whose heads are measured.

    Returns:
        `int`: Rows of the smaller head.

    Raises:
        `ValueError`: If the tokenizers differ, or the smaller head has no row for an ordinary token or the end token.
    """
    if teacher_tokenizer is not None:
        check_same_tokens(student_tokenizer, teacher_tokenizer)
    student_rows = vocabulary_rows(student_model)
    rows = min(student_rows, vocabulary_rows(teacher_model))
    # An added token without a row, such as `[PAD]`, is never drawn; it may stand where nothing is read
    extra = _extra_tokens(student_tokenizer) - {student_tokenizer.eos_token}
    largest = max(index for token, index in student_tokenizer.get_vocab().items() if token not in extra)
    if largest >= rows:
        raise ValueError(
            f"The student's tokenizer has token ids up to {largest}, but the smaller LM head has only {rows} "
            f"rows. {_WAY_OUT}"
        )
    if (student_tokenizer.pad_token_id or 0) >= student_rows:
        raise ValueError(
            f"The student's tokenizer pads with token {student_tokenizer.pad_token_id}, but the student has only "
            f"{student_rows} rows. Call `resize_token_embeddings` on it, or set `pad_token` to `eos_token`."
        )
    return rows


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer, the tokenizer's among them."""
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        ends.insert(0, tokenizer.eos_token_id)
    return ends


@contextmanager
def neutral_generation_configs(models: Sequence[PreTrainedModel]) -> Iterator[None]:
    """Models without settings of their own for a while: generate() fills what is unset from these."""
    holders = [*models, *(model.get_base_model() for model in models if hasattr(model, "get_base_model"))]
    configs = [holder.generation_config for holder in holders]
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, config in zip(holders, configs, strict=True):
            holder.generation_config = config


def keep_4bit_trainable(model: nn.Module) -> None:
    """
    Let gradients flow through the 4-bit layers of a model, also after it was evaluated on a CPU.

    On CPUs with AVX512-BF16, bitsandbytes packs the weights of a layer anew when it runs in eval mode, for speed. No
    gradient flows through packed weights, and nothing says so: after the first evaluation a LoRA would be trained with
    wrong gradients. This switches the packing off. On GPUs nothing is packed.

    Args:
        model ([`~torch.nn.Module`]):
            Model to train, with or without 4-bit layers, in place.

    Raises:
        `ValueError`: If weights are packed already, because the model has run in eval mode.
    """
    if not getattr(model, "is_loaded_in_4bit", False):
        return
    from bitsandbytes.nn import Linear4bit

    for module in (module for module in model.modules() if isinstance(module, Linear4bit)):
        if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
            raise ValueError(
                "The 4-bit model has run in eval mode on this CPU, where bitsandbytes packs the weights so that no "
                "gradient flows through them. Load the model anew; in DPO, leave `precompute_ref_log_probs` out: a "
                "LoRA needs no second model."
            )
        module.support_avx512bf16_for_cpu = False


def _mergeable(adapter: str) -> PeftConfig:
    """Config of an adapter that can be merged; anything else is a `ValueError` that says what it is."""
    try:
        config, nat_config = adapter_config(adapter), adapter_config(adapter, subfolder="nat")
    except OSError:  # neither a folder nor a name that the Hub could have
        config = nat_config = None
    if nat_config is not None:
        raise ValueError(f"{adapter} is a NAT model and cannot be merged. `trl-distill nce` makes a plain LoRA of it.")
    if config is None and (Path(adapter) / "config.json").is_file():
        raise ValueError(f"{adapter} is a full model: there is nothing to merge, start the next stage from it.")
    if config is None:
        raise ValueError(f"{adapter} is no adapter: there is no {adapter}/adapter_config.json, here or on the Hub.")
    if config.get("nat_config"):
        raise ValueError(f"{adapter} is the positive adapter of a NAT model, which cannot be merged without its gate.")
    config = PeftConfig.from_pretrained(adapter)
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise ValueError(
            f"{adapter} is an adapter of type {config.peft_type.value}, which has no weights to put into the base. "
            "Train a LoRA to start another stage from the result."
        )
    return config


def _load_base(base: str, revision: str | None, dtype: str, **kwargs) -> PreTrainedModel:
    """The base in full precision, on the CPU."""
    try:
        is_adapter = adapter_config(base, revision) is not None
        config = None if is_adapter else AutoConfig.from_pretrained(base, revision=revision, **kwargs)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the base {base} cannot be loaded ({error}). If it has moved, or was recorded relative to another "
            "folder, say where it is with --base."
        ) from error
    if is_adapter:
        raise ValueError(f"the base {base} is an adapter itself: merge that one first.")
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"the base {base} is stored quantized, and merging would round the adapter away. Name the unquantized "
            "model with --base."
        )
    return create_model_from_path(base, revision=revision, dtype=dtype, device_map="cpu", **kwargs)


def merge_adapter(
    adapter: str, output: str, base: str | None = None, dtype: str = "bfloat16", trust_remote_code: bool = False
) -> None:
    """
    Put an adapter into its base and write the full model.

    Args:
        adapter (`str`):
            Folder or Hub repository of a PEFT adapter.
        output (`str`):
            Folder to write. It appears when it is complete: a killed run leaves one with the suffix `.part`, which the
            next one replaces.
        base (`str`, *optional*):
            Folder or id of the base. By default what the adapter records.
        dtype (`str`, *optional*, defaults to `"bfloat16"`):
            Data type of the arithmetic and of the file.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that ships with the base.

    Raises:
        `ValueError`: If the adapter cannot be merged, its base cannot be loaded or is quantized, or `output` exists.
    """
    if Path(output).exists():
        raise ValueError(f"{output} exists already. Remove it, or choose another --output.")
    config = _mergeable(adapter)
    # The revision that an adapter records is that of its own base
    base, revision = base or config.base_model_name_or_path, None if base else config.revision
    if not base:
        raise ValueError(f"{adapter} does not record its base model: name it with --base.")
    kwargs = {"trust_remote_code": trust_remote_code}
    model = _load_base(base, revision, dtype, **kwargs)
    # Training saves the tokenizer, with the chat template that it used, beside the adapter
    tokenizer = load_teacher_tokenizer(adapter, **kwargs) or load_teacher_tokenizer(base, revision=revision, **kwargs)
    if tokenizer is None:
        raise ValueError(f"no tokenizer in {adapter} nor in {base}. Save it beside the adapter.")
    # Tokens that were added for the training have rows in the adapter and none in the base
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = PeftModel.from_pretrained(model, adapter, config=config).merge_and_unload(safe_merge=True)
    align_special_tokens(model, tokenizer)  # generation ends where training ended

    part = Path(f"{output}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)

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
What a training holds on its card, counted from the configs of its models: no weights are loaded.

Parameters are counted on the device `meta`. What a forward keeps for the backward is counted on fake tensors, which
have shapes and no values, so that any architecture and adapter is counted as it computes. All sizes are in bytes.
"""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from .divergence import backbone
from .models import adapter_config


CARDS = (8, 12, 16, 24, 40, 80)  # GB of 10^9 bytes, of which each has a little more
CONTEXT, FRAGMENTS = 600_000_000, 0.05  # bytes, and a share of all else: margins that we chose, not measured
COMPUTED = torch.bfloat16  # what mixed precision computes in; float16 has the same size

_BLOCK, _NESTED_BLOCK, _CODE = 64, 256, 16  # weights a constant of NF4, constants a constant of theirs, its levels
_STATES = {"adamw_torch": None, "adamw_torch_fused": None, "paged_adamw_32bit": 32, "paged_adamw": 32, "sgd": 0}
_STATES |= dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), 8)


class Quantization(NamedTuple):
    """How bitsandbytes holds the linear layers of a model, all but its head."""

    bits: int  # 4 or 8
    nested: bool = False  # whether the constants of 4-bit blocks are quantized, too
    skipped: tuple[str, ...] = ()  # `llm_int8_skip_modules`, which takes the place of what is left out by itself

    @classmethod
    def of(cls, config: dict[str, Any] | Any | None) -> "Quantization | None":
        """From a [`~transformers.BitsAndBytesConfig`] or its dictionary."""
        values = {} if config is None else config if isinstance(config, dict) else config.to_dict()
        bits = 4 if values.get("load_in_4bit") else 8 if values.get("load_in_8bit") else None
        if values and bits is None:
            raise ValueError(f"no rule for the quantization {values}, only for `load_in_4bit` and `load_in_8bit`.")
        skipped = tuple(values.get("llm_int8_skip_modules") or ())
        return None if bits is None else cls(bits, bool(values.get("bnb_4bit_use_double_quant")), skipped)


class Activations(NamedTuple):
    """What one forward of a backbone keeps for its backward, in bytes."""

    kept: int  # all that is saved
    checkpointed: int  # with checkpoints: their inputs, what is saved outside of them, and the largest layer once
    copies: int  # of weights, in the type that is computed in
    widest: int  # the largest single tensor, whose gradient stands beside it


class Estimate(NamedTuple):
    """Bytes by what they are for. What is held in a step and in a rollout is never held at once."""

    always: dict[str, int]
    step: dict[str, int]
    rollout: dict[str, int]

    @property
    def peak(self) -> int:
        """What PyTorch has allocated at most."""
        return sum(self.always.values()) + max(sum(self.step.values()), sum(self.rollout.values()))

    @property
    def reserve(self) -> int:
        return CONTEXT + int(FRAGMENTS * self.peak)

    @property
    def total(self) -> int:
        return self.peak + self.reserve

    @property
    def fits(self) -> list[int]:
        """The cards that it fits."""
        return [card for card in CARDS if self.total <= card * 10**9]


# Models


def read_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Config of a full model, from a folder or the Hub."""
    try:
        is_adapter = adapter_config(name, revision) is not None
        kwargs = {"revision": revision, "trust_remote_code": trust_remote_code}
        config = None if is_adapter else AutoConfig.from_pretrained(name, **kwargs)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no config of the model {name}, here or on the Hub ({str(error).splitlines()[0]}). Its weights are not "
            "needed: name a folder that holds its `config.json`."
        ) from error
    if is_adapter:
        raise ValueError(f"{name} is an adapter. Name its base, and set `use_peft` with the fields of the adapter.")
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{name} is stored quantized, for which there is no rule here. Name the unquantized model.")
    return config


def data_type(dtype: str | torch.dtype | None, config: PreTrainedConfig) -> torch.dtype:
    """Type of the weights that `dtype` asks for: `auto` is that of the checkpoint."""
    if dtype in ("auto", None):
        dtype = config.dtype or torch.float32
    return dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)


def empty_model(
    config: PreTrainedConfig, dtype: torch.dtype, auto_class: Any = AutoModelForCausalLM, **kwargs
) -> PreTrainedModel:
    """A model on the device `meta`, which has shapes and no weights."""
    with torch.device("meta"), warnings.catch_warnings():
        return auto_class.from_config(copy.deepcopy(config), dtype=dtype, **kwargs).train()


def quantized_layers(model: PreTrainedModel, quantization: Quantization | None) -> dict[str, nn.Module]:
    """The linear layers that are quantized while an unadapted model is loaded, by name."""
    if quantization is None:
        return {}
    kept = quantization.skipped or get_keys_to_not_convert(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and should_convert_module(name, list(kept))
    }


def quantized_bytes(weight: Tensor, quantization: Quantization) -> tuple[int, int]:
    """Bytes of a quantized weight and of its constants."""
    count, rows = weight.numel(), weight.shape[0]
    if quantization.bits == 8:
        return count, 4 * rows
    blocks = -(-count // _BLOCK)
    constants = blocks + 4 * (-(-blocks // _NESTED_BLOCK) + 256 + 1) if quantization.nested else 4 * blocks
    return -(-count // 2), constants + 4 * _CODE


def model_bytes(model: PreTrainedModel, quantization: Quantization | None = None) -> tuple[int, int]:
    """
    Bytes of an unadapted model with its buffers, and of what a layer needs on top while it computes: its largest
    quantized weight once more, dequantized.
    """
    quantized = [module.weight for module in quantized_layers(model, quantization).values()]
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    plain = sum(tensors[key].nbytes for key in tensors.keys() - {id(weight) for weight in quantized})
    working = max((weight.numel() * COMPUTED.itemsize for weight in quantized), default=0)
    return plain + sum(sum(quantized_bytes(weight, quantization)) for weight in quantized), working


def optimizer_bytes(model: nn.Module, optim: str) -> int:
    """Bytes of the two moments that AdamW keeps of each trained parameter."""
    if optim not in _STATES:
        raise ValueError(f"no rule for `optim: {optim}`, only for {', '.join(_STATES)}.")
    bits, total = _STATES[optim], 0
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for parameter in model.parameters():
        if not parameter.requires_grad or bits == 0:
            continue
        count = parameter.numel()
        if bits is None:
            total += 2 * parameter.nbytes + 4  # torch's have the type of the weights, and count steps
        elif bits == 8 and count >= 4096 and id(parameter) not in embeddings:
            total += 2 * (count + 4 * -(-count // 256))  # bitsandbytes' constants of blocks of 256
        else:
            total += 2 * 4 * count
    return total


def cache_bytes(config: PreTrainedConfig, rows: int, tokens: int, mixed: bool) -> int:
    """
    Bytes of keys and values of `rows` texts of `tokens` tokens, of a model whose weights have `config.dtype`. Each
    layer counts as attention over all of them.
    """
    config = config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    stored = config.dtype or torch.float32
    rotated = getattr(config, "rope_parameters", None)  # keys, in the type of the weights, which values then share
    dtype = COMPUTED if mixed and not rotated else stored
    return 2 * config.num_hidden_layers * heads * width * rows * tokens * dtype.itemsize


# What a forward keeps


class _Attention(torch.autograd.Function):
    """What a fused kernel saves: its inputs, its output, and one float32 number for each query of each head."""

    @staticmethod
    def forward(ctx, query, *others):
        rows, heads, length, width = query.shape
        output = query.new_empty(rows, length, heads, width).transpose(1, 2)
        ctx.save_for_backward(query, *others, output, query.new_empty(rows, heads, length, dtype=torch.float32))
        return output


def _fused(module, query: Tensor, key: Tensor, value: Tensor, *_, masked: bool, **__) -> tuple[Tensor, None]:
    """Attention of `(B, heads, L, width)`: of the three that mixed precision casts, nothing is computed."""
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    if not masked:
        return _Attention.apply(query, key, value).transpose(1, 2).contiguous(), None
    if query.shape[1] > key.shape[1]:  # which masks rule out in the kernels
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    mask = query.new_empty(query.shape[0], 1, query.shape[2], key.shape[2])  # of booleans, each layer makes numbers
    return _Attention.apply(query, key, value, mask).transpose(1, 2).contiguous(), None


def _padded(*args, **kwargs):
    return _fused(*args, masked=True, **kwargs)


def _packed(*args, **kwargs):
    return _fused(*args, masked=False, **kwargs)


# By `attn_implementation`; eager attention is a computation like all others
_KERNELS = {"eager": "eager", "sdpa": "counted_padded", "flash": "counted_packed"}
AttentionInterface.register("counted_padded", _padded)
AttentionInterface.register("counted_packed", _packed)


class _Casts(TorchDispatchMode):
    """Notes which storages are weights, or copies of them in another type."""

    def __init__(self, weights: dict[int, Any]):
        super().__init__()
        self.weights, self.copies = weights, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self.weights:
            self.copies[output.untyped_storage()._cdata] = output.untyped_storage()
        return output


def _make_fake(model: nn.Module) -> dict[int, Any]:
    """Put a model from the device `meta` on one that computes shapes alone, in place; gives its storages."""
    fakes: dict[int, Tensor] = {}  # shared ones stay shared
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in fakes:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    trained = isinstance(tensor, nn.Parameter)
                    fakes[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if trained else fake
                tensors[name] = fakes[id(tensor)]
    return {fake.untyped_storage()._cdata: fake.untyped_storage() for fake in fakes.values()}


@contextlib.contextmanager
def _layers(model: nn.Module, enter: Callable, leave: Callable) -> Iterator[None]:
    """Call `enter` and `leave` around each layer that would be checkpointed."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    hooks = [layer.register_forward_pre_hook(enter) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def count_activations(
    model: PreTrainedModel, rows: int, tokens: int, mixed: bool, attention: str | None = None
) -> Activations:
    """
    What a forward of `rows` texts of `tokens` tokens keeps for its backward, head and loss left out.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model on the device `meta`, as it is trained. It can be used no more.
        rows (`int`), tokens (`int`):
            Shape of the batch.
        mixed (`bool`):
            Whether it is computed under autocast.
        attention (`str`, *optional*):
            As `attn_implementation`. By default PyTorch's, with a mask for padded rows.
    """
    kernel = next((name for part, name in _KERNELS.items() if part in (attention or "sdpa")), "counted_padded")
    below = backbone(model)
    below.config._attn_implementation = kernel
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        casts, saved, per_layer, inputs = _Casts(_make_fake(model)), {}, [], 0
        before = 0

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in casts.weights and storage._cdata not in casts.copies:
                saved[storage._cdata] = storage
            return tensor

        def size() -> int:
            return sum(storage.nbytes() for storage in saved.values())

        def enter(layer, args):
            nonlocal before, inputs
            before, inputs = size(), inputs + args[0].nbytes

        def leave(layer, args, output):
            per_layer.append(size() - before)

        ids = torch.zeros(rows, tokens, dtype=torch.long)
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", COMPUTED, enabled=mixed),
            _layers(below, enter, leave),
            casts,
        ):
            below(input_ids=ids, use_cache=False)
        kept, copies = size(), sum(storage.nbytes() for storage in casts.copies.values())
        widest = max(storage.nbytes() for storage in saved.values())
    checkpointed = kept - sum(per_layer) + inputs + max(per_layer) if per_layer else kept
    return Activations(kept, checkpointed, copies, widest)

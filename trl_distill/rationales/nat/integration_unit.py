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
The integration unit of NAT: a gate on two LoRA adapters of one layer, and its way in and out of PEFT.

In the order of the reading: the mathematics of one layer (`negative_weight`, `integrate`), the variant that PEFT calls
in place of a plain LoRA (`NATVariant`), `attach_nat`, which puts it on a model, and `load_nat`, which restores what
was saved. Shapes: `...` any leading dimensions (B rows, T positions), d_in and d_out the layer's widths, w the gate's
width.

PEFT calls `LoraVariant` private and prone to change. This is the only file that uses it, with `lora_variant`,
`adapter_layer_names` and the classes of LoRA layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import peft
import torch
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from peft.utils import load_peft_weights
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME

from ...models import adapter_config
from ..data import adapter_sha256


# LoRA layers that ask `lora_variant` in their forward. On others (AWQ, AQLM, EETQ, embeddings, convolutions,
# `target_parameters`) the gate would be ignored in silence. GPTQ and HQQ ask too, but have not been run.
_GATED_LAYERS = {"Linear", "Linear4bit", "Linear8bitLt", "GPTQLoraLinear", "HqqLoraLinear"}

# Flat containers, one entry an adapter: PEFT strips the adapter's name from keys such as `lora_nat_q.nat.weight`, so
# that the gate is saved with its adapter and can be loaded under another name.
_GATES = {"mlp": ("lora_nat_q", "lora_nat_k", "lora_nat_v1", "lora_nat_v2"), "identity": ("lora_nat_q", "lora_nat_k")}


@dataclass
class NATLoraConfig(LoraConfig):
    """
    [`~peft.LoraConfig`] of the positive adapter. Its `nat_config` holds `value`, `width` and `temperature` of the
    gate, and `neg_sha256`, the hash of the negative adapter that it was trained beside. It is written into
    `adapter_config.json`, where plain PEFT warns that it ignores it.
    """

    nat_config: dict | None = field(default=None, metadata={"help": "Integration unit of the positive adapter."})

    @classmethod
    def of(cls, config: LoraConfig, **nat_config) -> "NATLoraConfig":
        """The same LoRA with an integration unit."""
        values = {entry.name: getattr(config, entry.name) for entry in fields(config) if entry.init}
        return cls(**values | {"nat_config": nat_config})


def negative_weight(x: Tensor, d_pos: Tensor, d_neg: Tensor, w_q: Tensor, w_k: Tensor, temperature: float) -> Tensor:
    r"""
    Weight of the negative adapter at each token, Eq. (4) of [NAT](https://huggingface.co/papers/2312.12832).

    $$ a = \sigma\big(W_Q x \cdot W_K (d^- - d^+) / \tau\big) - \tfrac{1}{2}, $$

    which is the second entry of a softmax over both adapters plus (0.5, -0.5). The positive adapter has weight `1 -
    a`. The output of the frozen layer is in both keys and cancels.

    From the layer's input `x` `(..., d_in)`, what the adapters add to its output, `d_pos` and `d_neg` `(..., d_out)`,
    and the projections `w_q` `(w, d_in)` and `w_k` `(w, d_out)`, in fp32 outside autocast: weights `(..., 1)` between
    -0.5 and 0.5. The paper has no `temperature`, 1.
    """
    with torch.autocast(x.device.type, enabled=False):
        query = F.linear(x.float(), w_q.float())  # (..., w)
        key = F.linear(d_neg.float() - d_pos.float(), w_k.float())  # (..., w)
        return torch.sigmoid((query * key).sum(-1, keepdim=True) / temperature) - 0.5


def integrate(
    result: Tensor, d_pos: Tensor, d_neg: Tensor, a: Tensor, mlp: tuple[Callable, Callable] | None
) -> Tensor:
    r"""
    Output of the layer, Eq. (5), from that of the frozen layer, what the adapters add to it, `(..., d_out)` each, and
    the weight `a` `(..., 1)` of the negative one.

    With `mlp = (W_V1, W_V2)`, the published form, in which the values pass a small network that replaces the adapters:

    $$ y = y_0 + (1 - a) V(y_0 + d^+) + a V(y_0 + d^-), \quad V(h) = W_{V2}\, \mathrm{GELU}(W_{V1} h). $$

    Without it, a lighter form that is not the paper's: `y_0 + (1 - a) d_pos + a d_neg`.
    """
    if mlp is None:
        return result + ((1 - a) * d_pos + a * d_neg).to(result.dtype)
    first, second = mlp
    dtype = first.weight.dtype
    positive, negative = (F.gelu(first((result + d).to(dtype))) for d in (d_pos, d_neg))  # (..., w) each
    mixed = (1 - a) * positive + a * negative  # W_V2 is linear, so it is applied once
    return result + second(mixed.to(dtype)).to(result.dtype)


class NATVariant(LoraVariant):
    """Forward of the positive adapter beside the frozen negative one, in one LoRA layer."""

    def __init__(self, neg: str, value: str, temperature: float):
        self.neg, self.value, self.temperature = neg, value, temperature

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs) -> Tensor:
        if len(module.active_adapters) > 1:  # `result` would hold the output of those that ran earlier
            raise ValueError(
                f"NAT must be the only active adapter, but {module.active_adapters} are. Call "
                f"`model.set_adapter({active_adapter!r})`: it brings the negative adapter along."
            )
        pos, neg = active_adapter, self.neg
        dropped = module.lora_dropout[pos](x)  # the frozen adapter runs without dropout
        d_pos = module.lora_B[pos](module.lora_A[pos](dropped)) * module.scaling[pos]  # (..., d_out)
        x_neg = x.to(module.lora_A[neg].weight.dtype)
        d_neg = module.lora_B[neg](module.lora_A[neg](x_neg)) * module.scaling[neg]  # (..., d_out)
        q, k, *mlp = (getattr(module, name)[pos] for name in _GATES[self.value])
        a = negative_weight(x, d_pos, d_neg, q.weight, k.weight, self.temperature)  # (..., 1)
        return integrate(result, d_pos, d_neg, a, tuple(mlp) or None)

    def supports_lora_conversion(self) -> bool:
        return False

    @staticmethod
    def _refuse_to_merge(*args, **kwargs):
        raise ValueError(
            "NAT weighs its two adapters anew at every token, so no fixed weight matrix is equal to it and it cannot "
            "be merged. Train an ordinary LoRA from it with NCE (`trl-distill nce`): that one merges."
        )

    merge_safe = merge_unsafe = unmerge = _refuse_to_merge


def _check_layers(model: PeftModel, nat: str, neg: str) -> list[LoraLayer]:
    """The layers that take a gate; raises for those that cannot."""
    gated = []
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or nat not in layer.lora_A and nat not in layer.lora_embedding_A:
            continue
        kind = type(layer).__name__
        if kind not in _GATED_LAYERS:
            raise ValueError(
                f"No gate can stand on {name}, a {kind} of PEFT: it would be ignored there. Take it out of "
                f"`target_modules`, which may name linear layers, {', '.join(sorted(_GATED_LAYERS))} in PEFT's words."
            )
        if neg not in layer.lora_A:
            raise ValueError(
                f"{name} has the positive adapter {nat!r} but not the negative one, {neg!r}. The `target_modules` of "
                "the positive adapter must be among those of the negative one."
            )
        for adapter in (nat, neg):
            if adapter in layer.lora_variant:
                variant = type(layer.lora_variant[adapter]).__name__
                raise ValueError(
                    f"Adapter {adapter!r} already is a variant of LoRA ({variant}), and a layer has room for one. Use "
                    "plain LoRA, without options such as `use_dora`."
                )
        gated.append(layer)
    if not gated:
        linear = {
            name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and ".lora_" not in name
        }
        linear = {name.removesuffix(".base_layer").split(".")[-1] for name in linear}
        raise ValueError(
            f"No layer has the adapter {nat!r}: its `target_modules` match nothing in this model. The model's linear "
            f"layers are {', '.join(sorted(linear)) or 'none'}."
        )
    return gated


def attach_nat(
    model: PeftModel,
    nat: str = "nat",
    neg: str = "neg",
    value: str = "mlp",
    width: int = 128,
    temperature: float = 1.0,
) -> None:
    """
    Turn adapter `nat` of a model into NAT, which integrates the frozen adapter `neg`, and make it active.

    Every layer gets its own gate, initialised as in the paper's code: Kaiming uniform, but zero for the second matrix
    of the value network, so that training starts at the base model. With `value="identity"` the query is zero instead,
    so that training starts at the positive adapter alone.

    Args:
        model ([`~peft.PeftModel`]):
            Model with both adapters, plain LoRA, `neg` on every layer that has `nat`. Ranks may differ.
        nat, neg (`str`, *optional*, defaults to `"nat"` and `"neg"`):
            Names of the adapters.
        value (`str`, *optional*, defaults to `"mlp"`):
            `"mlp"` is Eq. (5); `"identity"` a lighter form without the value network, which is not the paper's.
        width (`int`, *optional*, defaults to `128`):
            Width of query, key and value network.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the gap inside the sigmoid.
    """
    if Version(peft.__version__).release[:2] != (0, 21):
        raise ImportError(
            f"NAT uses private parts of PEFT and is tested with 0.21.x, but {peft.__version__} is installed. Install "
            "it with `pip install 'peft>=0.21,<0.22'`."
        )
    if value not in _GATES:
        raise ValueError(f"`value` must be one of {', '.join(_GATES)}, got {value!r}.")
    if width < 1 or temperature <= 0:
        raise ValueError(f"`width` and `temperature` must be positive, got {width} and {temperature}.")

    for layer in _check_layers(model, nat, neg):
        sizes = {"q": (layer.in_features, width), "k": (layer.out_features, width)}
        sizes |= {"v1": (layer.out_features, width), "v2": (width, layer.out_features)}
        weight = layer.lora_A[nat].weight
        for name in _GATES[value]:
            if not hasattr(layer, name):
                setattr(layer, name, nn.ModuleDict())
                # The instance's own tuple, not the class's: other models have no gate
                layer.adapter_layer_names = (*layer.adapter_layer_names, name)
            linear = nn.Linear(*sizes[name.removeprefix("lora_nat_")], bias=False, dtype=torch.float32)
            if name == ("lora_nat_v2" if value == "mlp" else "lora_nat_q"):
                nn.init.zeros_(linear.weight)
            getattr(layer, name)[nat] = linear.to(weight.device)
        layer.lora_variant[nat] = NATVariant(neg, value, temperature)
    model.set_adapter(nat)  # freezes `neg`


def add_nat(model: PeftModel, config: NATLoraConfig, nat: str = "nat", neg: str = "neg", **kwargs) -> None:
    """Add a fresh positive adapter with the gate of `config` beside `neg`, and make it active."""
    model.add_adapter(nat, config, **kwargs)
    gate = {key: config.nat_config[key] for key in ("value", "width", "temperature")}
    attach_nat(model, nat, neg, **gate)


def gate_parameters(model: PeftModel, nat: str = "nat") -> dict[str, nn.Parameter]:
    """Parameters of the gates, by name."""
    return {name: gate for name, gate in model.named_parameters() if ".lora_nat_" in name and f".{nat}." in name}


def load_adapter_weights(model: PeftModel, path: str, adapter: str) -> None:
    """Load the tensors of an adapter that the model already has from the sub-folder of its name."""
    set_peft_model_state_dict(model, load_peft_weights(path, device="cpu", subfolder=adapter), adapter_name=adapter)


def load_negative(model: PreTrainedModel, path: str, neg: str = "neg", revision: str | None = None) -> PeftModel:
    """
    Put a frozen negative adapter on a base model, quantized or not: active, and in eval mode.

    `path` is the folder or Hub repository of the adapter, or the one above it: PEFT saves an adapter called `neg` into
    `neg/`.
    """
    found = {name: adapter_config(path, revision, name, must_reach=True) for name in ("", "neg")}
    subfolder = next((name for name, config in found.items() if config is not None), None)
    if subfolder is None:
        raise ValueError(f"No adapter in {path} or {path}/neg: there is no {ADAPTER_CONFIG_NAME}.")
    config = found[subfolder]
    if config.get("peft_type") != "LORA":
        raise ValueError(f"The negative adapter in {path} is of type {config.get('peft_type')}; NAT needs a LoRA.")
    if config.get("nat_config"):
        raise ValueError(f"{path} holds a positive adapter with its gate. The negative one is in `neg/` beside it.")
    try:
        # No subfolder at all for the top: PEFT would look for a folder of that name
        where = {"subfolder": subfolder} if subfolder else {}
        return PeftModel.from_pretrained(model, path, adapter_name=neg, revision=revision, **where)
    except RuntimeError as error:
        raise ValueError(
            f"The negative adapter in {path} does not fit this model ({config.get('base_model_name_or_path')} is the "
            f"one it was trained on): {error}"
        ) from error


def load_nat(
    model: PreTrainedModel,
    path: str,
    nat: str = "nat",
    neg: str = "neg",
    is_trainable: bool = False,
    revision: str | None = None,
) -> PeftModel:
    """
    Restore a NAT model from the folder that [`NegativeAssistedTrainer`] has written.

    `PeftModel.from_pretrained` on the sub-folder `nat` loads the positive LoRA without its gate, which is a model that
    nobody trained; it warns about the unexpected `nat_config`.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The base model, in any data type, 4-bit and 8-bit included.
        path (`str`):
            Folder or Hub repository with the sub-folders `nat` and `neg`.
        nat, neg (`str`, *optional*, defaults to `"nat"` and `"neg"`):
            Names that the adapters get in the model.
        is_trainable (`bool`, *optional*, defaults to `False`):
            Whether to train the positive adapter and its gate further.
        revision (`str`, *optional*):
            Branch, tag or commit.

    Returns:
        [`~peft.PeftModel`]: Model with `nat` active. `set_adapter("neg")` gives the negative adapter alone.
    """
    if isinstance(model, PeftModel):
        raise ValueError("`model` already has adapters. Pass the base model, `model.unload()`.")
    raw = adapter_config(path, revision, "nat", must_reach=True)
    if raw is None:
        raise ValueError(f"No NAT in {path}: there is no nat/{ADAPTER_CONFIG_NAME}.")
    gate = raw.get("nat_config")
    if not gate:
        raise ValueError(
            f"{path}/nat is a LoRA without an integration unit: its {ADAPTER_CONFIG_NAME} has no `nat_config`. Load "
            "it with `PeftModel.from_pretrained`, or train it with `NegativeAssistedTrainer`."
        )
    model = load_negative(model, path, neg, revision)
    found = adapter_sha256(model, neg)
    if found != gate.get("neg_sha256"):
        raise ValueError(
            f"The negative adapter in {path}/neg is not the one that {path}/nat was trained beside: its tensors have "
            f"the hash {found[:12]}, expected {str(gate.get('neg_sha256'))[:12]}. Copy both folders of one run."
        )

    known = {entry.name for entry in fields(NATLoraConfig) if entry.init}
    config = NATLoraConfig(**{key: value for key, value in raw.items() if key in known})
    config.inference_mode = not is_trainable
    add_nat(model, config, nat, neg)
    weights = load_peft_weights(path, device="cpu", subfolder="nat", revision=revision)
    expected = set(get_peft_model_state_dict(model, adapter_name=nat))
    if set(weights) != expected:
        missing, unexpected = sorted(expected - set(weights)), sorted(set(weights) - expected)
        raise ValueError(
            f"{path}/nat does not hold the gate that its {ADAPTER_CONFIG_NAME} describes: {len(missing)} tensors are "
            f"missing ({', '.join(missing[:2])}) and {len(unexpected)} unexpected ({', '.join(unexpected[:2])})."
        )
    try:
        set_peft_model_state_dict(model, weights, adapter_name=nat)
    except RuntimeError as error:
        raise ValueError(f"The positive adapter in {path}/nat does not fit this model: {error}") from error
    model.set_adapter(nat, inference_mode=not is_trainable)
    return model.train(is_trainable)

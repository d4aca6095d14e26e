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

from dataclasses import dataclass, field
from typing import Literal

from trl import SFTConfig

from ...hardware import choose_precision


@dataclass
class NegativeAssistedConfig(SFTConfig):
    r"""
    Configuration class for the [`NegativeAssistedTrainer`].

    Extends [`~trl.SFTConfig`], whose parameters hold for both stages. Rows that are longer than `max_length` tokens
    are dropped and counted instead of being cut: what would be cut is the answer.

    Parameters:
        > Parameters that control the stages

        stages (`str`, *optional*, defaults to `"both"`):
            What `train()` does: `"negative"` trains an adapter on the rows whose `label` is false, `"positive"` trains
            the positive adapter and its gate on the others, beside the frozen adapter in `negative_adapter_path`, and
            `"both"` does one after the other.
        negative_adapter_path (`str`, *optional*):
            Folder or Hub repository of a trained negative LoRA, for `stages="positive"`.

        > Parameters that control the gate

        integration_value (`str`, *optional*, defaults to `"mlp"`):
            `"mlp"` is the published form, Eq. (5): a small network on the outputs of both adapters. `"identity"` adds
            the weighted adapters themselves; it is lighter and not the paper's.
        integration_width (`int`, *optional*, defaults to `128`):
            Width of the gate's query, key and value network in each layer. The released code uses `128` for a model of
            width 4,096; there the gates of all layers hold 32 times the parameters of the LoRA.
        integration_temperature (`float`, *optional*, defaults to `1.0`):
            Divides the gap inside the gate's sigmoid. The paper has none.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `learning_rate`: Defaults to `3e-4` instead of `2e-5`, the released code's rate for LoRA.
    """

    learning_rate: float = field(
        default=3e-4, metadata={"help": "The initial learning rate for AdamW. 3e-4 in the released code."}
    )
    stages: Literal["both", "negative", "positive"] = field(
        default="both",
        metadata={
            "help": "What `train()` does: 'negative' trains an adapter on rows with a false label, 'positive' the "
            "positive adapter and its gate beside the frozen one in `negative_adapter_path`, 'both' both in turn.",
            "choices": ["both", "negative", "positive"],
        },
    )
    negative_adapter_path: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub repository of a trained negative LoRA, for `stages: positive`."},
    )
    integration_value: Literal["mlp", "identity"] = field(
        default="mlp",
        metadata={
            "help": "'mlp' is the published form: a small network on the outputs of both adapters. 'identity' adds "
            "the weighted adapters themselves; lighter, not the paper's.",
            "choices": ["mlp", "identity"],
        },
    )
    integration_width: int = field(
        default=128, metadata={"help": "Width of the gate's query, key and value network in each layer."}
    )
    integration_temperature: float = field(
        default=1.0, metadata={"help": "Divides the gap inside the gate's sigmoid. The paper has none."}
    )

    def __post_init__(self):
        choose_precision(self)
        super().__post_init__()
        allowed = {"stages": ("both", "negative", "positive"), "integration_value": ("mlp", "identity")}
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        if (self.negative_adapter_path is not None) != (self.stages == "positive"):
            raise ValueError(
                f"`negative_adapter_path` belongs to `stages='positive'`, which needs it, but got "
                f"{self.negative_adapter_path!r} with `stages={self.stages!r}`. Leave it out to train the negative "
                "adapter here, or set `stages='positive'` to start from an existing one."
            )
        if self.integration_width < 1 or self.integration_temperature <= 0:
            raise ValueError(
                "`integration_width` and `integration_temperature` must be positive, got "
                f"{self.integration_width} and {self.integration_temperature}."
            )


@dataclass
class LabeledSFTConfig(SFTConfig):
    r"""
    Configuration class for the [`LabeledSFTTrainer`].

    Extends [`~trl.SFTConfig`]. Rows that are longer than `max_length` tokens are dropped and counted instead of being
    cut: what would be cut is the answer.

    Parameters:
        > Parameters that control the objective

        objective (`str`, *optional*, defaults to `"cot_kd"`):
            What the rows with a false `label` do, in the words of [NAT](https://huggingface.co/papers/2312.12832):
            `"cot_kd"` leaves them out, `"mix"` trains on them like on the others, `"nt"` (negative training) subtracts
            their cross-entropy, `"ul"` (unlikelihood) adds `-log(1 - p)` of their tokens. `"redi"` is the second stage
            of [REDI](https://huggingface.co/papers/2505.24850), for a model that has been trained on the right rows:
            like `"nt"`, but the loss of a row is the mean of its tokens, and that of a step the mean of its rows.
        negative_weight (`float`, *optional*):
            Weight of the wrong rows' term in `"nt"`, `"ul"` and `"redi"`. If `None`, the paper's: `0.8` for `"redi"`,
            else `0.05`. `"nt"` with `10.0` on the model's own samples weighs like W-REINFORCE with 0.1 for right ones
            and 1 for wrong ones ([2506.01347](https://huggingface.co/papers/2506.01347)).

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `learning_rate`: Defaults to `3e-4` instead of `2e-5`, as in [`NegativeAssistedConfig`].
    """

    learning_rate: float = field(
        default=3e-4, metadata={"help": "The initial learning rate for AdamW. 3e-4 in the released code."}
    )
    objective: Literal["cot_kd", "mix", "nt", "ul", "redi"] = field(
        default="cot_kd",
        metadata={
            "help": "What rows with a false label do: 'cot_kd' leaves them out, 'mix' trains on them like on the "
            "others, 'nt' subtracts their cross-entropy, 'ul' adds the unlikelihood of their tokens, 'redi' subtracts "
            "row means, from a model that has been trained on the right rows.",
            "choices": ["cot_kd", "mix", "nt", "ul", "redi"],
        },
    )
    negative_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the wrong rows' term. Defaults to the papers': 0.8 for 'redi', else 0.05."},
    )

    def __post_init__(self):
        choose_precision(self)
        super().__post_init__()
        if self.objective not in ("cot_kd", "mix", "nt", "ul", "redi"):
            raise ValueError(f"`objective` must be one of cot_kd, mix, nt, ul, redi, got {self.objective!r}.")
        if self.negative_weight is None:
            self.negative_weight = 0.8 if self.objective == "redi" else 0.05
        if self.negative_weight < 0:
            raise ValueError(
                f"`negative_weight` must not be negative, got {self.negative_weight}: `objective='nt'` subtracts "
                "already."
            )
        if self.objective not in ("cot_kd", "mix") and (self.packing or self.padding_free):
            raise ValueError(
                f"`objective={self.objective!r}` weighs whole rows, and `packing` and `padding_free` join rows. Set "
                "both to `False`."
            )
        if self.objective not in ("cot_kd", "mix") and (self.loss_type != "nll" or self.label_smoothing_factor != 0):
            raise ValueError(
                f"`objective={self.objective!r}` is a loss of its own and cannot have `loss_type={self.loss_type!r}` "
                f"with `label_smoothing_factor={self.label_smoothing_factor}`. Leave both at their defaults."
            )

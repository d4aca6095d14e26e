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
class NCEConfig(SFTConfig):
    r"""
    Configuration class for the [`NCETrainer`].

    Extends [`~trl.SFTConfig`]. Rows that are longer than `max_length` tokens are left out and counted instead of being
    cut: what would be cut is the answer.

    Parameters:
        > Parameters that control the objective

        objective (`str`, *optional*, defaults to `"kd"`):
            `"kd"` adds to the cross-entropy a distillation from NAT that weighs each row by `0.5 + beta`. It is the
            published method. `"weighted_ce"` weighs the cross-entropy of each row by `1 + beta` and needs no teacher
            in memory: an option for small machines, and not the paper's.
        alpha (`float`, *optional*, defaults to `0.5`):
            Share of the distillation in `"kd"`, in `[0, 1]`; `0.0` is supervised fine-tuning. The released code uses
            `0.5`.
        kd_temperature (`float`, *optional*, defaults to `1.0`):
            Softmax temperature `T` of both models in the distillation, which is multiplied by `T ** 2`. The released
            code uses `1`.
        kd_weight (`float`, *optional*):
            One weight for all rows in place of `0.5 + beta`: distillation without calibration, the baseline, for which
            `weight` and `weight_hash` are neither needed nor read. The paper's constant is not known.

        > Parameters that control the memory

        loss_chunk_tokens (`int`, *optional*, defaults to `1024`):
            Tokens projected to the vocabulary at a time, in the distillation and in the calibration. The workspace is
            256 KiB a token on GPUs.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `learning_rate`: Defaults to `3e-4` instead of `2e-5`, the released code's rate for LoRA.
    """

    learning_rate: float = field(
        default=3e-4, metadata={"help": "The initial learning rate for AdamW. 3e-4 in the released code."}
    )
    objective: Literal["kd", "weighted_ce"] = field(
        default="kd",
        metadata={
            "help": "'kd' adds to the cross-entropy a distillation from NAT that weighs each row by 0.5 + beta. "
            "'weighted_ce' weighs the cross-entropy of each row by 1 + beta and needs no teacher; not the paper's.",
            "choices": ["kd", "weighted_ce"],
        },
    )
    alpha: float = field(
        default=0.5, metadata={"help": "Share of the distillation in 'kd', in [0, 1]. 0.0 is supervised fine-tuning."}
    )
    kd_temperature: float = field(
        default=1.0,
        metadata={"help": "Softmax temperature T of both models in the distillation, which is multiplied by T ** 2."},
    )
    kd_weight: float | None = field(
        default=None, metadata={"help": "One weight for all rows in place of 0.5 + beta: the uncalibrated baseline."}
    )
    loss_chunk_tokens: int = field(
        default=1024,
        metadata={"help": "Tokens projected to the vocabulary at a time. The workspace is 256 KiB a token on GPUs."},
    )

    @property
    def is_calibrated(self) -> bool:
        """Whether each row needs its own weight."""
        return self.kd_weight is None

    def __post_init__(self):
        choose_precision(self)
        super().__post_init__()

        def require(condition: bool, name: str, rule: str):
            if not condition:
                raise ValueError(f"`{name}` must be {rule}, got {getattr(self, name)!r}.")

        require(self.objective in ("kd", "weighted_ce"), "objective", "'kd' or 'weighted_ce'")
        require(0.0 <= self.alpha <= 1.0, "alpha", "in [0, 1]")
        require(self.kd_temperature > 0.0, "kd_temperature", "above 0")
        require(
            self.kd_weight is None or self.kd_weight >= 0.0, "kd_weight", "at least 0, or None to use `0.5 + beta`"
        )
        require(self.loss_chunk_tokens >= 1, "loss_chunk_tokens", "at least 1")
        # A weight belongs to one row, and these join rows into one
        for name in ("packing", "eval_packing", "padding_free"):
            require(not getattr(self, name), name, "off, since NCE weighs whole rows")
        # These leave the way on which the weights reach the loss
        require(self.loss_type in ("nll", "chunked_nll"), "loss_type", "'nll'")
        require(self.label_smoothing_factor == 0.0, "label_smoothing_factor", "0")
        require(not self.assistant_only_loss, "assistant_only_loss", "off: the loss is on `completion`")
        require(self.chat_template_path is None, "chat_template_path", "unset: NAT has its template in the tokenizer")
        if (self.dataset_kwargs or {}).get("skip_prepare_dataset"):
            raise ValueError("NCE compares the weights with the tokens of their rows. Remove `skip_prepare_dataset`.")
        if self.objective == "weighted_ce" and self.kd_weight is not None:
            raise ValueError(
                f"`kd_weight={self.kd_weight}` belongs to `objective='kd'`. One weight for all rows in 'weighted_ce' "
                "is supervised fine-tuning: use `trl.SFTTrainer`, or remove `kd_weight`."
            )

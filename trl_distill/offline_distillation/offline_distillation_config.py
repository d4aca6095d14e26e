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


"""Configuration of the offline distillation trainer."""

from dataclasses import dataclass, field

from ..sft_config import SFTConfig


@dataclass
class OfflineDistillationConfig(SFTConfig):
    r"""
    Configuration class for the [`OfflineDistillationTrainer`].

    Extends [`~trl.SFTConfig`]. Parameters of the parent class that are not listed keep their meaning.

    Parameters:
        > Parameters that control the objective

        beta (`float`, *optional*, defaults to `0.0`):
            As in [`~trl.DistillationConfig`]: `0.0` is the forward KL(teacher || student), `1.0` the reverse
            KL(student || teacher), in between the generalized Jensen-Shannon divergence. All are taken over the
            recorded tokens and the tail.
        alpha (`float`, *optional*, defaults to `1.0`):
            Share of the distillation in the loss, in `[0, 1]`. The rest is the cross-entropy on the completions, and
            `0.0` is supervised fine-tuning.

        > Parameters that control the memory

        loss_chunk_tokens (`int`, *optional*, defaults to `256`):
            Tokens projected to the vocabulary at a time. The workspace is 8 bytes a token and vocabulary entry.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `max_length`: Defaults to `None` instead of `1024`: rows are cut when they are recorded.
    """

    max_length: int | None = field(
        default=None,
        metadata={"help": "Longest row in tokens. By default what was recorded is trained on."},
    )
    beta: float = field(
        default=0.0,
        metadata={
            "help": "0.0 is the forward KL(teacher || student), 1.0 the reverse KL(student || teacher), in between "
            "the generalized Jensen-Shannon divergence, over the recorded tokens and the tail."
        },
    )
    alpha: float = field(
        default=1.0,
        metadata={
            "help": "Share of the distillation in the loss, in [0, 1]. The rest is the cross-entropy on the "
            "completions."
        },
    )
    loss_chunk_tokens: int = field(
        default=256,
        metadata={
            "help": "Tokens projected to the vocabulary at a time. The workspace is 8 bytes a token and vocabulary "
            "entry."
        },
    )

    def __post_init__(self):
        super().__post_init__()

        def require(condition: bool, name: str, rule: str):
            if not condition:
                raise ValueError(f"`{name}` must be {rule}, got {getattr(self, name)!r}.")

        require(0.0 <= self.beta <= 1.0, "beta", "in [0, 1]")
        require(0.0 <= self.alpha <= 1.0, "alpha", "in [0, 1]")
        require(self.loss_chunk_tokens >= 1, "loss_chunk_tokens", "at least 1")
        # What the teacher has said belongs to the first tokens of one row
        for name in ("packing", "eval_packing", "padding_free"):
            require(not getattr(self, name), name, "off: what was recorded belongs to single rows")
        require(self.truncation_mode == "keep_start", "truncation_mode", "'keep_start'")
        # These leave the way on which the divergence reaches the loss, or are settled by the recording
        require(self.loss_type == "nll", "loss_type", "'nll'")
        require(self.label_smoothing_factor == 0.0, "label_smoothing_factor", "0")
        require(not self.assistant_only_loss, "assistant_only_loss", "off: completions were recorded")
        require(self.chat_template_path is None, "chat_template_path", "unset: the rows are tokens already")
        require(self.eos_token is None, "eos_token", "unset: the rows are tokens already")
        if (self.dataset_kwargs or {}).get("skip_prepare_dataset"):
            raise ValueError("Remove `skip_prepare_dataset`: recorded rows are tokens already.")

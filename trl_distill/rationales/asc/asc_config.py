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

from trl import RewardConfig

from ...hardware import choose_precision


@dataclass
class ASCRankerConfig(RewardConfig):
    r"""
    Configuration class for the [`ASCRankerTrainer`].

    Extends [`~trl.RewardConfig`], whose `center_rewards_coefficient` belongs to pairs of rewards and must stay unset.

    Parameters:
        max_length (`int`, *optional*, defaults to `1024`):
            Longest row, prompt and rationale, in tokens. Longer rows are dropped and counted, and get no score, since
            a rationale without its end cannot be judged. The model's context is a limit, too.

    > [!NOTE]
    > These parameters have default values different from [`~trl.RewardConfig`], those of the code released with the
    > paper, whose ranker is another model with another loss:
    > - `learning_rate`: Defaults to `2e-5` instead of `1e-4`.
    > - `weight_decay`: Defaults to `1e-5` instead of `0.0`.
    > - `num_train_epochs`: Defaults to `5.0` instead of `3.0`.
    """

    learning_rate: float = field(
        default=2e-5, metadata={"help": "The initial learning rate for AdamW. 2e-5 in the released code."}
    )
    weight_decay: float = field(default=1e-5, metadata={"help": "Weight decay of AdamW. 1e-5 in the released code."})
    num_train_epochs: float = field(
        default=5.0, metadata={"help": "Passes over the rows. 5 in the released code, with another model and loss."}
    )
    max_length: int | None = field(
        default=1024,
        metadata={"help": "Longest row, prompt and rationale, in tokens. Longer rows are dropped and get no score."},
    )

    def __post_init__(self):
        choose_precision(self)
        super().__post_init__()
        if self.center_rewards_coefficient is not None:
            raise ValueError(
                f"`center_rewards_coefficient` ({self.center_rewards_coefficient}) shifts rewards of pairs, but the "
                "ranker is trained on single rationales. Leave it unset."
            )

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

"""Stop a DPO run on its first step when its reference is not the model that the training starts from."""

import logging
import math

from transformers import TrainerCallback, TrainerControl, TrainerState
from trl import DPOConfig


logger = logging.getLogger(__name__)

LN_2 = math.log(2)
LOSS_TOLERANCE = 0.02

# Largest mean log-ratio that counts as zero, as a share of the mean log-probability of an answer, and in nats. Seen
# with SmolLM2-135M, answers of -390 nats: exactly 0 in fp32, bf16 and 4 bit, in full and with LoRA; 0.13 % where bf16
# rounds two ways to compute it apart (precomputed reference, DoRA). Wrong references: the same weights in 4 bit 6 %,
# the base under a PiSSA adapter 270 %.
RELATIVE_TOLERANCE = 0.005
ABSOLUTE_TOLERANCE = 0.1


class WrongReferenceError(ValueError):
    """The first step of a DPO run shows that the reference is not the model that the training starts from."""


class ReferenceCheckCallback(TrainerCallback):
    r"""
    Stop a [`~trl.DPOTrainer`] on its first step if the reference is not the model that the training starts from.

    Before the first update policy and reference are one model. So the log-ratios \\( \log \pi(y \mid x) - \log
    \pi_{ref}(y \mid x) \\) of the chosen and of the rejected answers are 0, and with `loss_type=["sigmoid"]` the loss
    is \\( -\log \sigma(0) = \ln 2 = 0.6931 \\). The loss alone sees little when `beta` is small: a reference that
    gives 0.5514 at `beta=0.1` gives 0.6779 at `beta=0.01`. So the logged rewards count too, divided by `beta`.

    The first step is logged for this, whatever the logging settings are. A run that resumes from a checkpoint is not
    checked. With `disable_dropout=False` policy and reference may differ by their dropout alone: then the callback
    warns instead.

    Raises:
        [`WrongReferenceError`]: In the first step, on every process, before anything is saved.

    Example:

    ```python
    trainer = DPOTrainer("runs/dsft-merged", train_dataset=dataset, callbacks=[ReferenceCheckCallback()])
    ```
    """

    def on_step_end(self, args: DPOConfig, state: TrainerState, control: TrainerControl, **kwargs):
        if state.global_step == 1:
            control.should_log = True

    def on_log(self, args: DPOConfig, state: TrainerState, control: TrainerControl, model=None, logs=None, **kwargs):
        if state.global_step != 1 or "rewards/chosen" not in logs:  # the names of an evaluation have a prefix
            return
        uses_dora = any(getattr(config, "use_dora", False) for config in getattr(model, "peft_config", {}).values())
        # The metrics are means over all processes, so that all of them decide alike
        problem = wrong_reference(args, logs, same_arithmetic=not uses_dora and not args.precompute_ref_log_probs)
        if problem is None:
            return
        if args.disable_dropout:
            raise WrongReferenceError(f"{problem} {_WAY_OUT}")
        logger.warning("%s The run goes on, because with `disable_dropout=False` dropout may be the cause.", problem)


def wrong_reference(args: DPOConfig, logs: dict[str, float], same_arithmetic: bool = True) -> str | None:
    """
    What the metrics of a first step say against the reference: what was seen and what was expected, or `None`. Without
    `same_arithmetic` rounding in bf16 can move the loss from ln 2: then only the log-ratios are looked at.
    """
    seen = []
    # A second loss, a weight, the weights of WPO or the loss of a router move the loss from ln 2. Label smoothing,
    # `ld_alpha` and the f-divergences leave it there
    plain = args.loss_type == ["sigmoid"] and args.loss_weights in (None, [1.0]) and not args.use_weighting
    expects_ln_2 = plain and "aux_loss" not in logs and same_arithmetic
    if expects_ln_2 and not abs(logs["loss"] - LN_2) <= LOSS_TOLERANCE:  # so that NaN fails too
        seen.append(f"the loss is {logs['loss']:.4f} instead of ln 2 = {LN_2:.4f} (tolerance {LOSS_TOLERANCE})")
    for answers in ("chosen", "rejected"):
        log_ratio = logs[f"rewards/{answers}"] / args.beta
        tolerance = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * abs(logs[f"logps/{answers}"])
        if not abs(log_ratio) <= tolerance:
            off = f"{log_ratio:.4f} nats instead of 0 (tolerance {tolerance:.2f})"
            seen.append(f"the mean log-ratio of {answers} answers is {off}")
    said = f"The reference is not the model that training starts from: in the first step {', '.join(seen)}."
    return said if seen else None


_WAY_OUT = (
    "Nothing was saved. Likely causes: `ref_model` is another checkpoint, such as the base of the fine-tuned model; "
    "the LoRA does not start at zero (`init_lora_weights` of PiSSA, OLoRA or LoftQ); the model has dropout in its "
    "config, such as `attention_dropout`. Let `model` be the path of the supervised model and leave `ref_model` out. "
    "If it is a LoRA, put it into its base with `trl-distill merge ADAPTER --output DIR`, and start from DIR. "
    "`trl dpo` runs without this check."
)

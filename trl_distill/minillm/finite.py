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

"""A run stops at the first value that is not finite, before a step or a checkpoint makes it part of the student."""

import math

import torch
from torch import Tensor

from ..checkpoints import newest_checkpoint


class FiniteCheck:
    """
    What must be finite in the steps of a trainer.

    Values are looked at once an optimizer step, where its gradient norm is known: to look at each micro-batch would
    wait for the device.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.seen: list[tuple[str, Tensor, Tensor, Tensor]] = []

    def watch(self, name: str, values: Tensor, inputs: dict[str, Tensor]):
        """Note whether `values` `(N,)` of the completion tokens of a micro-batch are finite."""
        mask = inputs["completion_mask"].bool()  # (b, T)
        broken = torch.zeros_like(mask).masked_scatter(mask, ~values.detach().isfinite()).any(dim=1)  # (b,)
        self.seen.append((name, broken, inputs["prompt_ids"], inputs["prompt_mask"]))
        if not self.trainer.model.training:
            self.check()

    def check(self, grad_norm: Tensor | float | None = None):
        """Raise `ValueError` if a watched value or the norm of the gradient is not finite."""
        seen, self.seen = self.seen, []
        if seen and torch.cat([broken for _, broken, _, _ in seen]).any():
            name, broken, ids, mask = next(entry for entry in seen if entry[1].any())
            row = int(broken.nonzero()[0])
            prompt = self.trainer.processing_class.decode(ids[row][mask[row].bool()].tolist())
            self._stop(f"The {name} is not finite", f", on the prompt {prompt!r}")
        # With fp16, a scale that is too large overflows now and then: such a step is skipped and the scale lowered
        if grad_norm is not None and self.trainer.accelerator.mixed_precision != "fp16":
            if not math.isfinite(grad_norm):
                self._stop("The gradient norm is not finite")

    def check_weights(self):
        """Raise `ValueError` if a trained weight is not finite."""
        for name, weight in self.trainer.model.named_parameters():
            own = weight.to_local() if hasattr(weight, "to_local") else weight  # of FSDP2, the shard
            if weight.requires_grad and not own.isfinite().all():
                self._stop(f"The weight {name} is not finite")

    def _stop(self, what: str, where: str = ""):
        step = self.trainer.state.global_step
        # The checkpoint of this very step would hold the weights that have failed
        checkpoint = newest_checkpoint(self.trainer.args.output_dir, before=step)
        last = f"The last checkpoint before it is {checkpoint}." if checkpoint else "There is no checkpoint before it."
        raise ValueError(
            f"{what} at step {step}{where}. Nothing of it was written. {last} Lower `learning_rate`, or check the "
            "weights of student and teacher."
        )

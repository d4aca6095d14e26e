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

"""Precision and device by what the machine has, where the user has named none."""

import functools
import logging
import os
from typing import TYPE_CHECKING, NamedTuple


if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)


class Hardware(NamedTuple):
    """What a machine has, which is not what it is told to use."""

    gpu: bool  # or another accelerator
    gpu_multiplies_bf16: bool
    gpu_multiplies_fp16: bool  # with the loss scaling that training in it needs
    cpu_multiplies_bf16: bool  # has instructions for it: without them it is slow

    @classmethod
    def here(cls) -> "Hardware":
        import torch
        from transformers.utils import is_torch_bf16_gpu_available

        cpu = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        cuda = torch.cuda.is_available()
        return cls(
            torch.accelerator.is_available(),
            # A T4 and its like emulate it, which torch counts unless it is told not to
            torch.cuda.is_bf16_supported(including_emulation=False) if cuda else is_torch_bf16_gpu_available(),
            cuda,
            any(getattr(torch.cpu, name, bool)() for name in cpu),
        )


def choose_precision(args: "TrainingArguments", hardware: Hardware | None = None) -> None:
    """
    Fill in `bf16`, `fp16` and `use_cpu`, in place, before the config of TRL does: there `bf16` is true on any machine.

    Without a value of either, `bf16` is true where the hardware multiplies it, else `fp16` on GPUs of NVIDIA and AMD,
    else neither. Without a GPU `use_cpu` is set. A value that is given is obeyed, or refused by transformers.
    """
    hardware = hardware or Hardware.here()
    sharded = "ACCELERATE_USE_FSDP" in os.environ or "ACCELERATE_USE_DEEPSPEED" in os.environ  # over GPUs alone
    args.use_cpu = args.use_cpu or not (hardware.gpu or sharded)
    if args.bf16 is not None or args.fp16:
        return
    args.bf16 = hardware.cpu_multiplies_bf16 if args.use_cpu else hardware.gpu_multiplies_bf16
    args.fp16 = not (args.bf16 or args.use_cpu) and hardware.gpu_multiplies_fp16
    args._chose_fp16 = args.fp16
    if args.use_cpu or not args.bf16:
        precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
        _say(f"Training in {precision} on the {'CPU' if args.use_cpu else 'GPU'}, by what is here.")


def without_scaling(args: "TrainingArguments") -> bool:
    """
    Take back, in place, an `fp16` that [`choose_precision`] has chosen: it scales the loss, and gradients in bfloat16
    cannot be scaled back. False if a user has set it.
    """
    if getattr(args, "_chose_fp16", False):
        args.fp16, args.mixed_precision = False, "no"
        _say("No mixed precision after all, on a quantized model.")
    return not args.fp16


@functools.cache
def _say(message: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        logger.warning("%s `bf16`, `fp16` and `use_cpu` choose otherwise.", message)

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

"""Training through 4-bit weights on a CPU."""

from torch import nn


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

    for module in model.modules():
        if not isinstance(module, Linear4bit):
            continue
        if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
            raise ValueError(
                "The 4-bit model has run in eval mode on this CPU, where bitsandbytes packs the weights so that no gradient "
                "flows through them. Load the model anew; in DPO, leave `precompute_ref_log_probs` out: a LoRA needs no "
                "second model."
            )
        module.support_avx512bf16_for_cpu = False

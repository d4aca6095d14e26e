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

"""Forms of NAT that only the second laboratory has."""

import random

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from trl_distill import NegativeAssistedTrainer
from trl_distill.generation import pad_ids
from trl_distill.rationales.nat.integration_unit import NATVariant, negative_weight


class HeadVariant(NATVariant):
    """The lighter form of NAT, with a weight for each attention head in place of one for the layer."""

    def __init__(self, neg: str, heads: int):
        super().__init__(neg, "identity", 1.0)
        self.heads = heads

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs) -> Tensor:
        d_pos, d_neg = (
            module.lora_B[name](module.lora_A[name](x)) * module.scaling[name] for name in (active_adapter, self.neg)
        )  # (..., d_out)
        queries, keys = (
            getattr(module, f"lora_nat_{name}")[active_adapter].weight.chunk(self.heads) for name in ("q", "k")
        )  # of each head (w, d_in) and (w, d_out)
        weights = [negative_weight(x, d_pos, d_neg, q, k, 1.0) for q, k in zip(queries, keys, strict=True)]
        a = torch.cat(weights, -1).repeat_interleave(d_pos.shape[-1] // self.heads, -1)  # (..., d_out)
        return result + ((1 - a) * d_pos + a * d_neg).to(result.dtype)


class GatePerHead(NegativeAssistedTrainer):
    """NAT whose gates weigh the adapters in each attention head by itself."""

    def _add_positive_adapter(self) -> None:
        super()._add_positive_adapter()
        width = self.model.config.head_dim if hasattr(self.model.config, "head_dim") else None
        width = width or self.model.config.hidden_size // self.model.config.num_attention_heads
        for layer in self.model.modules():
            if isinstance(layer, LoraLayer) and "nat" in layer.lora_variant:
                heads = layer.out_features // width
                for name, size in (("q", layer.in_features), ("k", layer.out_features)):
                    gate = nn.Linear(size, heads * self.args.integration_width, bias=False)
                    if name == "q":  # training starts at the positive adapter alone
                        nn.init.zeros_(gate.weight)
                    getattr(layer, f"lora_nat_{name}")["nat"] = gate
                layer.lora_variant["nat"] = HeadVariant("neg", heads)


class PushedAway(NegativeAssistedTrainer):
    """
    NAT minus 0.3 times the Jensen-Shannon divergence, at most log 2, of its distributions and the negative adapter's
    on the tokens of a batch of wrong rows.
    """

    weight = 0.3

    def __init__(self, wrong: list[dict], *args, **kwargs):
        super().__init__(*args, **kwargs)
        tokenizer, self.drawn = self.processing_class, random.Random(self.args.seed)
        self.rows = [
            tuple(tokenizer(text)["input_ids"] for text in (row["prompt"], row["prompt"] + row["completion"]))
            for row in wrong
        ]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rows = self.drawn.sample(self.rows, min(len(self.rows), self.args.per_device_train_batch_size))
        ids, mask = pad_ids([whole for _, whole in rows], 0, "right", model.device)  # (B, T)
        starts = torch.tensor([[len(prompt)] for prompt, _ in rows], device=model.device)
        written = (torch.arange(1, ids.shape[1], device=model.device) >= starts) & mask[:, 1:].bool()  # (B, T - 1)
        model.set_adapter("neg")
        with torch.no_grad():
            negative = model(ids, attention_mask=mask).logits[:, :-1][written].log_softmax(-1)  # (N, V)
        model.set_adapter("nat")
        positive = model(ids, attention_mask=mask).logits[:, :-1][written].log_softmax(-1)
        middle = torch.logaddexp(positive, negative) - torch.log(torch.tensor(2.0))
        apart = sum(F.kl_div(middle, side, log_target=True, reduction="batchmean") for side in (positive, negative))
        return loss - self.weight * apart / 2

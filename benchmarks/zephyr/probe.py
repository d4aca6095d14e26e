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
Runs a command of trl-distill that trains, and keeps the logits of the model that it saves.

    python -m benchmarks.zephyr.probe LOGITS.safetensors sft --config FILE
"""

import sys
from importlib import import_module

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from trl_distill.models import keep_4bit_trainable


TEXT = "Bread rises in the oven because yeast makes gas. The capital of Portugal is Lisbon."


def logits_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, packed: bool = False) -> torch.Tensor:
    """
    Logits of a text, `(1, T, V)`.

    `packed` lets bitsandbytes pack 4-bit weights, as it does in eval mode on some CPUs. It then computes in another
    way than in training.
    """
    if not packed:
        keep_4bit_trainable(model)
    input_ids = tokenizer(TEXT, return_tensors="pt")["input_ids"].to(model.device)
    with torch.no_grad():
        return model.eval()(input_ids=input_ids, use_cache=False).logits.float().cpu()


def main(argv: list[str]):
    file, command, *rest = argv
    save_model = Trainer.save_model

    def save_and_probe(self, output_dir=None, _internal_call=False):
        save_model(self, output_dir, _internal_call)
        if not _internal_call:  # no checkpoint, but the end
            model = self.accelerator.unwrap_model(self.model)
            save_file({"logits": logits_of(model, self.processing_class)}, file)

    Trainer.save_model = save_and_probe
    import_module(f"trl_distill.scripts.{command}").run(rest)


if __name__ == "__main__":
    main(sys.argv[1:])

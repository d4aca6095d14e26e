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
NAT, then NCE: what a teacher got wrong goes into an adapter of its own, and into one ordinary LoRA in the end.

`labelled.jsonl` holds `prompt`, `completion` and `label`, as `trl-distill sample` and `trl-distill label` write it.
Read docs/nat_trainer.md before you spend hours on this: in our measurements other uses of wrong rationales do better.

```bash
pip install trl-distill[eval]
accelerate launch examples/rationales.py --dataset labelled.jsonl
```
"""

import argparse

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import (
    NCEConfig,
    NCETrainer,
    NegativeAssistedConfig,
    NegativeAssistedTrainer,
    calibration_weights,
    load_nat,
)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B")
    parser.add_argument("--dataset", required=True, help="a JSON Lines file with `prompt`, `completion` and `label`")
    parser.add_argument("--output_dir", default="runs/rationales")
    parser.add_argument("--num_train_epochs", type=float, default=3)
    args = parser.parse_args(argv)

    dataset = load_dataset("json", data_files=args.dataset, split="train")
    common = {"num_train_epochs": args.num_train_epochs, "per_device_train_batch_size": 8, "logging_steps": 10}

    # The negative adapter learns the wrong rationales, then a gated one beside it the right ones
    nat = f"{args.output_dir}/nat"
    config = NegativeAssistedConfig(output_dir=nat, learning_rate=2e-4, **common)
    trainer = NegativeAssistedTrainer(args.model, config, train_dataset=dataset)
    trainer.train()
    trainer.save_model()

    # A fresh LoRA learns from that model, rows weighted by what the negative adapter changes
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = load_nat(AutoModelForCausalLM.from_pretrained(args.model), nat)
    config = NCEConfig(output_dir=f"{args.output_dir}/nce", learning_rate=2e-4, **common)
    weighted = calibration_weights(model, dataset, tokenizer, config)
    trainer = NCETrainer(model, args=config, train_dataset=weighted, peft_config=LoraConfig(r=8, lora_alpha=16))
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()

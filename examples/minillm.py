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
MiniLLM: a student learns from the probabilities of a teacher, on its own answers.

```bash
pip install trl-distill[qlora,eval]
accelerate launch examples/minillm.py
accelerate launch examples/minillm.py --student Qwen/Qwen2.5-1.5B-Instruct --load_in_4bit   # one card of 24 GB
```
"""

import argparse

from datasets import load_dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from trl_distill import MiniLLMConfig, MiniLLMTrainer


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="Qwen/Qwen2.5-0.5B-Instruct")
    parser.add_argument("--teacher", default="Qwen/Qwen2.5-7B-Instruct")
    parser.add_argument("--dataset", default="trl-lib/ultrafeedback-prompt", help="rows with `prompt`")
    parser.add_argument("--output_dir", default="runs/minillm")
    parser.add_argument("--load_in_4bit", action="store_true", help="both models; trains a LoRA on the student")
    parser.add_argument("--max_steps", type=int, default=200)
    parser.add_argument("--max_completion_length", type=int, default=256)
    args = parser.parse_args(argv)

    config = MiniLLMConfig(
        output_dir=args.output_dir,
        max_steps=args.max_steps,
        max_completion_length=args.max_completion_length,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        learning_rate=5e-5 if args.load_in_4bit else 5e-6,
        eval_strategy="steps",  # reverse KL of the student's own answers, in nats a sequence, is what to watch
        eval_steps=50,
        logging_steps=10,
    )
    quantized = {}
    if args.load_in_4bit:
        four_bit = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}
        config.teacher_model_init_kwargs = {"quantization_config": four_bit}
        quantized = {
            "quantization_config": BitsAndBytesConfig(**four_bit),
            "peft_config": LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        }
    is_file = args.dataset.endswith((".json", ".jsonl"))
    dataset = load_dataset("json", data_files=args.dataset) if is_file else load_dataset(args.dataset)
    rows = dataset["train"].train_test_split(test_size=min(64, len(dataset["train"]) // 4), seed=0)

    trainer = MiniLLMTrainer(
        model=args.student,
        teacher_model=args.teacher,
        args=config,
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        **quantized,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()

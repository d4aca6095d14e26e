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
A student on a card that has no room for its teacher: it is recorded first, and the student trains without it.

What is kept of the teacher are its likeliest tokens at each place and the probability of all others together.

```bash
pip install trl-distill[qlora]
python examples/offline_distillation.py --prompts prompts.jsonl --load_in_4bit
```
"""

import argparse

from trl_distill import (
    OfflineDistillationConfig,
    OfflineDistillationTrainer,
    RecordConfig,
    load_recorded,
    record_teacher,
)
from trl_distill.chat import LocalChatModel, Sampling, samples_to_file
from trl_distill.files import load_rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="Qwen/Qwen2.5-0.5B-Instruct")
    parser.add_argument("--teacher", default="Qwen/Qwen2.5-7B-Instruct")
    parser.add_argument("--load_in_4bit", action="store_true", help="the teacher")
    parser.add_argument("--prompts", required=True, help="a JSON Lines file with `prompt`")
    parser.add_argument("--output_dir", default="runs/offline")
    parser.add_argument("--max_tokens", type=int, default=512, help="of an answer")
    parser.add_argument("--num_train_epochs", type=float, default=3)
    args = parser.parse_args(argv)

    # Stopped while it draws or records? The same command goes on
    with LocalChatModel(args.teacher, load_in_4bit=args.load_in_4bit) as teacher:
        sampling = Sampling(temperature=1.0, max_tokens=args.max_tokens)
        rows = samples_to_file(f"{args.output_dir}/samples.jsonl", teacher, load_rows(args.prompts), 1, sampling)
    config = RecordConfig(args.teacher, load_in_4bit=args.load_in_4bit, output_dir=f"{args.output_dir}/recorded")
    manifest = record_teacher(config, rows, progress=True)
    print(f"{manifest.tokens:,} tokens of the teacher in {config.output_dir}.")

    trainer = OfflineDistillationTrainer(
        args.student,
        OfflineDistillationConfig(
            output_dir=args.output_dir,
            learning_rate=1e-5,
            num_train_epochs=args.num_train_epochs,
            per_device_train_batch_size=8,
            logging_steps=10,
        ),
        train_dataset=load_recorded(config.output_dir),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()

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
Zephyr's dDPO: several models answer, a judge scores, and the student learns to prefer the best answers to others.

The student is a model after supervised fine-tuning. Answers and scores are kept in `OUTPUT_DIR/feedback`: a run that
was stopped asks nothing twice.

```bash
pip install trl-distill[api]; export OPENAI_API_KEY=...
accelerate launch examples/zephyr.py --prompts prompts.jsonl
```
"""

import argparse

from datasets import load_dataset
from trl import DPOTrainer

from trl_distill import FeedbackConfig, ReferenceCheckCallback, run_feedback
from trl_distill.zephyr.dpo_config import DPOConfig  # TRL's, with the precision that this machine has


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="alignment-handbook/zephyr-7b-sft-full")
    parser.add_argument("--prompts", required=True, help="a file or data set of rows with `prompt`")
    parser.add_argument("--responders", nargs="+", default=["gpt-4.1-mini", "gpt-4.1-nano"], help="models that answer")
    parser.add_argument("--judge", default="gpt-4.1", help="the model that scores")
    parser.add_argument("--base_url", help="an OpenAI-compatible server, by default OpenAI's own")
    parser.add_argument("--decontaminate", nargs="+", default=["truthful_qa"], help="prompts not to train on; none")
    parser.add_argument("--output_dir", default="runs/zephyr")
    parser.add_argument("--max_steps", type=int, default=-1)
    args = parser.parse_args(argv)

    server = {} if args.base_url is None else {"base_url": args.base_url}
    run_feedback(
        FeedbackConfig(
            dataset_name=args.prompts,
            output_dir=f"{args.output_dir}/feedback",
            responders=[{"model": name, **server} for name in args.responders],
            judges=[{"model": args.judge, **server}],
            decontaminate=args.decontaminate,
        )
    )

    trainer = DPOTrainer(
        args.student,
        args=DPOConfig(
            output_dir=f"{args.output_dir}/ddpo",
            max_steps=args.max_steps,
            beta=0.1,
            learning_rate=5e-7,
            per_device_train_batch_size=2,
            logging_steps=10,
        ),
        train_dataset=load_dataset("json", data_files=f"{args.output_dir}/feedback/pairs.jsonl", split="train"),
        callbacks=[ReferenceCheckCallback()],
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()

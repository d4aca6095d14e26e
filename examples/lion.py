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
Lion: rounds of imitation, in which new instructions come from where the student is behind a teacher that only answers.

```bash
pip install trl-distill[api,eval]; export OPENAI_API_KEY=...
python examples/lion.py --instructions instructions.jsonl --dry_run    # what it will ask
python examples/lion.py --instructions instructions.jsonl
```
"""

import argparse

from trl_distill import LionConfig, LionLoop


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="Qwen/Qwen2.5-0.5B-Instruct")
    parser.add_argument("--teacher", default="gpt-4.1-mini")
    parser.add_argument("--base_url", help="an OpenAI-compatible server, by default OpenAI's own")
    parser.add_argument("--instructions", required=True, help="a file or data set: `instruction`, or `prompt`")
    parser.add_argument("--output_dir", default="runs/lion")
    parser.add_argument("--n_new", type=int, default=200)
    parser.add_argument("--heldout_size", type=int, default=50)
    parser.add_argument("--max_tokens", type=int, default=512, help="of an answer")
    parser.add_argument("--dry_run", action="store_true")
    args = parser.parse_args(argv)

    config = LionConfig(
        dataset_name=args.instructions,
        output_dir=args.output_dir,
        teacher={"model": args.teacher} | ({} if args.base_url is None else {"base_url": args.base_url}),
        student_model=args.student,
        training={"use_peft": True, "lora_target_modules": ["all-linear"], "learning_rate": 2e-4, "max_length": 1024},
        teacher_max_tokens=args.max_tokens,
        student_max_tokens=args.max_tokens,
        rounds=1,
        n_new=args.n_new,
        heldout_size=args.heldout_size,
        dry_run=args.dry_run,
    )
    loop = LionLoop(config, progress=True)
    if args.dry_run:
        for line in loop.estimate():
            print(line)
        return
    result = loop.run()
    print(f"{result.status}: the student is {result.student}")


if __name__ == "__main__":
    main()

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
Adaptive self-consistency: a ranker learns which rationales are right, and its scores weigh the votes of answers.

`labelled.jsonl` holds `prompt`, `completion` and `label`, as `trl-distill label` writes it, and `questions.jsonl`
`prompt` and `answer`.

```bash
pip install trl-distill[eval]
python examples/voting.py --model runs/student --labelled labelled.jsonl --questions questions.jsonl
```
"""

import argparse

from datasets import load_dataset

from trl_distill import ASCRankerConfig, ASCRankerTrainer, adaptive_self_consistency, self_consistency
from trl_distill.chat import LocalChatModel, Sampling, samples_to_file
from trl_distill.evaluation import equal_answers, extract_answer, reference_answer
from trl_distill.rationales.asc import score_rationales


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="who answers: a folder or a model id")
    parser.add_argument("--ranker", default="Qwen/Qwen2.5-0.5B", help="what the ranker is made of")
    parser.add_argument("--labelled", required=True)
    parser.add_argument("--questions", required=True)
    parser.add_argument("--output_dir", default="runs/ranker")
    parser.add_argument("--num_samples", type=int, default=16)
    parser.add_argument("--max_tokens", type=int, default=512, help="of an answer")
    parser.add_argument("--num_train_epochs", type=float, default=3)
    args = parser.parse_args(argv)

    labelled = load_dataset("json", data_files=args.labelled, split="train")
    config = ASCRankerConfig(output_dir=args.output_dir, num_train_epochs=args.num_train_epochs, logging_steps=10)
    trainer = ASCRankerTrainer(args.ranker, config, train_dataset=labelled)
    trainer.train()
    trainer.save_model()

    questions = load_dataset("json", data_files=args.questions, split="train")
    with LocalChatModel(args.model) as model:
        sampling = Sampling(temperature=1.0, max_tokens=args.max_tokens)
        rows = samples_to_file(f"{args.output_dir}/samples.jsonl", model, questions, args.num_samples, sampling)

    right = {"majority": 0, "weighted": 0}
    for row in rows:
        answers = [extract_answer(text) for text in row["completions"]]
        rationales = [{"prompt": row["prompt"], "completion": text} for text in row["completions"]]
        scores = score_rationales(trainer.model, trainer.processing_class, rationales)
        votes = {"majority": self_consistency(answers), "weighted": adaptive_self_consistency(answers, scores)}
        print(row["prompt"], votes)
        for name, answer in votes.items():
            right[name] += bool(equal_answers(answer, reference_answer(row)))
    print({name: f"{count} of {len(rows)} right" for name, count in right.items()})


if __name__ == "__main__":
    main()

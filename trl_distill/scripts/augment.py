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

r"""
Let a student answer the questions of its training data, and add what is right to the teacher's right answers.

```bash
trl-distill augment \
    --model_name_or_path runs/student \
    --dataset_name labelled.jsonl \
    --num_samples 8 \
    --output_file augmented.jsonl
```

Trained on, that is rejection sampling fine-tuning ([RFT](https://huggingface.co/papers/2308.01825)); from a NAT model
it is the augmentation of NCE. A run that was killed goes on when it is started again. With `--pairs_file` the wrong
answers are kept, too: each beside a right one of its question, as `trl-distill dpo` reads them.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from ..extras import need
from ..files import load_split, write_rows
from ..row_formats import trl_rows
from ..training import user_errors
from .arguments import add_rule, check_outputs, split_arguments
from .loading import nat_folder
from .sample import add_arguments, add_server, model_of, sampling_of


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from ..chat import BaseChatModel


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Sample a student's answers to the questions of labelled rows. Those that are right and new are "
        "written to a file together with the rows that were right already, to train on, or for `trl-distill "
        "calibrate`.",
    )
    add_arguments(parser, num_samples=8, required=True, split="train")
    add_server(parser)
    add = parser.add_argument_group("NAT and output").add_argument
    add("--nat_path", help="Folder or Hub repository of a NAT model that answers, on the model above.")
    add_rule(add)
    add("--output_file", required=True, metavar="FILE", help="JSON Lines file to write.")
    add("--pairs_file", metavar="FILE", help="Write wrong answers beside right ones: prompt, chosen, rejected.")
    return parser


def _load(args: argparse.Namespace) -> "tuple[PeftModel, PreTrainedTokenizerBase]":
    """The NAT model on the base that the user names, and the tokenizer of that."""
    from transformers import AutoTokenizer

    from .. import load_nat
    from ..models import load_teacher, placement

    kwargs = placement(args.dtype, args.device, args.load_in_4bit, args.trust_remote_code)
    base = load_teacher(args.model_name_or_path, args.model_revision, **kwargs)
    common = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
    return load_nat(base, args.nat_path), AutoTokenizer.from_pretrained(args.model_name_or_path, **common)


def _model(args: argparse.Namespace) -> "BaseChatModel":
    if args.nat_path is None:
        return model_of(args)
    if args.base_url is not None:
        raise ValueError("--nat_path is for a model on this machine: leave out --base_url.")
    from ..chat import LocalChatModel
    from ..chat.local import local_folder, weights_digest

    base = local_folder(args.model_name_or_path, args.model_revision, args.trust_remote_code)
    return LocalChatModel(
        f"{args.model_name_or_path} with {args.nat_path}",
        dtype=args.dtype,
        load_in_4bit=args.load_in_4bit,
        batch_size=args.batch_size,
        keep_thoughts=args.keep_thoughts,
        load=lambda: _load(args),
        weights=weights_digest(nat_folder(args.nat_path), base),
    )


def augment(args: argparse.Namespace) -> tuple[list[dict], list[dict], dict[str, int]]:
    """Right rows, the student's own among them, preference pairs, and the counts to report."""
    from ..chat import samples_to_file
    from ..rationales.augment import preference_pairs, question_rows, select_samples

    rows = trl_rows(load_split(args.dataset_name, args.dataset_config, args.dataset_split), "prompt")
    questions, right_rows, unanswered = question_rows(rows)
    if not questions:
        raise ValueError(
            f"No row of {args.dataset_name} says what the right answer is. Add an `answer`, or rows whose `label` is "
            "true."
        )
    with _model(args) as model:
        path = f"{args.output_file}.samples.jsonl"
        samples = samples_to_file(path, model, questions, args.num_samples, sampling_of(args))
    source = "student" if args.nat_path is None else "nat"
    kept, wrong, counts = select_samples(samples, right_rows, args.rule, source)
    counts = {"questions": len(questions), "without_reference": unanswered, "there": len(right_rows), **counts}
    right_rows += kept
    return right_rows, preference_pairs(right_rows, wrong), counts


def run(argv: list[str]) -> None:
    """Parse `argv`, sample, choose and write the file."""
    prog = "trl-distill augment"
    with user_errors(prog):
        args, _, _ = split_arguments(make_parser(prog), argv)
        need("math_verify", "Comparing answers")
        check_outputs(args.output_file, args.pairs_file)
        rows, pairs, counts = augment(args)
        write_rows(args.output_file, rows)
        if args.pairs_file is not None:
            write_rows(args.pairs_file, pairs)
    sys.stdout.write(
        f"{counts['questions']} questions were asked, {counts['without_reference']} left out for want of a right "
        f"answer.\n{counts['sampled']} answers: {counts['kept']} right and new, {counts['duplicates']} right but "
        f"there already, {counts['wrong']} wrong, {counts['no_answer']} without an answer, {counts['truncated']} cut "
        f"off, {counts['not_compared']} not comparable.\n"
        f"{len(rows)} rows, {counts['there']} of them there already: {args.output_file}.\n"
        + (f"{len(pairs)} pairs of a right and a wrong answer: {args.pairs_file}.\n" if args.pairs_file else "")
    )


if __name__ == "__main__":
    run(sys.argv[1:])

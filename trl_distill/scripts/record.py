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
Write down what a teacher says of completions, once, so that `trl-distill offline_distillation` needs no teacher.

```bash
trl-distill record \
    --teacher_model_name_or_path Qwen/Qwen2.5-7B-Instruct \
    --dataset_name samples.jsonl \
    --output_dir recorded
```

A run that was killed goes on when it is started again.
"""

import sys
from typing import TYPE_CHECKING

from ..training import user_errors
from .runs import config_parser, parse_config
from .tables import show


if TYPE_CHECKING:
    from transformers import HfArgumentParser


def make_parser(prog: str | None = None) -> "HfArgumentParser":
    from ..offline_distillation import RecordConfig

    return config_parser(
        RecordConfig,
        prog,
        "Write down what a teacher says of each token of completions: its likeliest tokens, and what is left for all "
        "others together. A folder, from which `trl-distill offline_distillation` trains a student without a teacher.",
    )


def run(argv: list[str]) -> None:
    """Parse `argv` and record."""
    prog = "trl-distill record"
    with user_errors(prog):
        from ..offline_distillation import RecordConfig

        config = parse_config(RecordConfig, make_parser(prog), argv)
        from ..offline_distillation import record_teacher

        manifest = record_teacher(config, progress=True)
    show(
        f"{config.output_dir}: {manifest.tokens:,} tokens of {manifest.rows:,} completions, the likeliest "
        f"{config.loss_top_k} of {manifest.vocab_size:,} tokens each, from {manifest.teacher}."
    )


if __name__ == "__main__":
    run(sys.argv[1:])

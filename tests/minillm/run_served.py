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

"""Three runs with a teacher on a server: undisturbed, with a server that fails on one row, and resumed from there."""

import re
from pathlib import Path

import pytest
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from tests.distributed.run_minillm import FixedCompletions
from tests.runs import TINY_RUN, history
from trl_distill import MiniLLMConfig
from trl_distill.minillm.teacher_server import TeacherServerError


class TakeDown(TrainerCallback):
    """From step 2 on, the server refuses one row: it looks whether this file is there."""

    def __init__(self, file: Path):
        self.file = file

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.file.touch()


def run(folder: Path, processes: int) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(folder / "student", padding_side="left")

    def make(name: str, callbacks=()):
        trainer = FixedCompletions(
            model=AutoModelForCausalLM.from_pretrained(folder / "student"),
            args=MiniLLMConfig(
                **TINY_RUN | {"per_device_train_batch_size": 4 // processes},
                output_dir=str(folder / f"{name}-{processes}"),
                per_device_eval_batch_size=2 // processes,
                gradient_accumulation_steps=2,
                num_iterations=2,
                max_completion_length=8,
                max_steps=8,
                optim="sgd",
                teacher_model_server_url=(folder / "url").read_text(),
                single_step_decomposition=False,
                teacher_mix_alpha=0.0,
            ),
            train_dataset=Dataset.from_dict({"prompt": [f"Say {i}" + "~" * (i == 7) for i in range(16)]}),
            eval_dataset=Dataset.from_dict({"prompt": [f"Ask {i}" for i in range(5)]}),
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        trainer._server.backoff = 0.01
        return trainer

    def losses(trainer):
        return history(trainer).flatten().tolist()

    whole = make("whole")
    whole.train()
    metrics = whole.evaluate()
    broken = make("run", [TakeDown(folder / "down")])
    with pytest.raises(TeacherServerError) as stopped:
        broken.train()
    broken.accelerator.wait_for_everyone()
    (folder / "down").unlink(missing_ok=True)
    broken.accelerator.wait_for_everyone()
    resumed = make("run")
    resumed.train(resume_from_checkpoint=True)
    return {
        "messages": gather_object([str(stopped.value)]),
        "step": int(re.search(r"after step (\d+)", str(stopped.value))[1]),
        "whole": losses(whole),
        "resumed": losses(resumed),
        "eval": [metrics[name] for name in ("eval_loss", "eval_kl/sampled", "eval_kl/sampled_sequence")],
    }

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
"""Run by `test_a_killed_process_goes_on_where_it_was`: trains, and is killed by the system after a step of a stage."""

import os
import signal
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[3]))  # for `tests`

from run_nat import arguments
from transformers import TrainerCallback

from trl_distill import NegativeAssistedConfig, NegativeAssistedTrainer


class Kill(TrainerCallback):
    def __init__(self, stage: str, step: int):
        self.stage, self.step = stage, step

    def on_step_end(self, args, state, control, **kwargs):
        if args.stages == self.stage and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def build(folder: Path, output: Path, callbacks=None) -> NegativeAssistedTrainer:
    settings = dict(integration_width=4, save_strategy="steps", save_steps=1, gradient_accumulation_steps=1)
    values = arguments(folder, output, NegativeAssistedConfig, **settings)
    values["peft_config"].lora_dropout = 0.1  # the state of the random generator must come back too
    return NegativeAssistedTrainer(**values, callbacks=callbacks)


if __name__ == "__main__":
    folder, output, stage, step, resume = sys.argv[1:]
    trainer = build(Path(folder), Path(output), [Kill(stage, int(step))])
    trainer.train(resume_from_checkpoint=resume == "resume")

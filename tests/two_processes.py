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

"""Calls `run` of a script as one of several CPU processes (gloo, DDP), and writes what the first of them gets."""

import gc
import json
import runpy
import sys
from pathlib import Path

import torch.distributed as dist
from accelerate import PartialState


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts may import from `tests`
    script, folder, output = sys.argv[1:]
    state = PartialState(cpu=True)
    result = runpy.run_path(script)["run"](Path(folder), processes=state.num_processes)
    if state.is_main_process:
        Path(output).write_text(json.dumps({"processes": state.num_processes, **result}))
    gc.collect()  # a trainer in a cycle holds the process group, whose threads must end before the interpreter does
    if dist.is_initialized():
        dist.destroy_process_group()

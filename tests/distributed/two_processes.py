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
Calls `run` of a script as one of several CPU processes (gloo), and writes what the first of them gets.

Accelerate makes a process group on CPUs for DDP alone. For FSDP2 and DeepSpeed it is told here that there is one; all
else is what `accelerate launch` with TRL's config files does, which is to set these variables.
"""

import gc
import json
import os
import runpy
import sys
from pathlib import Path


_DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}
ENVIRONMENTS = {
    "ddp": {},
    "zero2": _DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    # From a file: by default all parameters of models as small as ours are kept, or gathered ahead
    "zero3": _DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(Path(__file__).with_name("zero3.json"))},
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
        "FSDP_OFFLOAD_PARAMS": "false",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    },
}


def join(mode: str):
    """Make this process one of several under DDP, ZeRO or FSDP2."""
    os.environ |= ENVIRONMENTS[mode]
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    if mode != "ddp":
        kind = DistributedType.MULTI_GPU if mode == "fsdp2" else DistributedType.MULTI_CPU
        PartialState._prepare_backend = lambda *args: ("gloo", kind)
    if mode.startswith("zero"):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles for minutes
    return PartialState(cpu=mode == "ddp")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))  # scripts may import from `tests`
    script, folder, output, mode = sys.argv[1:]
    state = join(mode)
    result = runpy.run_path(script)["run"](Path(folder), processes=state.num_processes)
    if state.is_main_process:
        Path(output).write_text(json.dumps({"processes": state.num_processes, **result}))
    gc.collect()  # a trainer in a cycle holds the process group, whose threads must end before the interpreter does
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()

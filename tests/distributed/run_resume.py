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
"""Run by `test_the_first_process_chooses_the_checkpoint` on one CPU process and on two, each in its own folder."""

import os
from pathlib import Path

import torch.distributed as dist

from trl_distill.checkpoints import checkpoint_to_resume


def run(folder: Path, processes: int) -> dict:
    own = folder / os.environ.get("RANK", "0")
    found = [checkpoint_to_resume(True, own)]
    if processes > 1:
        found = [None] * processes
        dist.all_gather_object(found, checkpoint_to_resume(True, own))
    return {"found": sorted(set(found))}

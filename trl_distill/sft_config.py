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

from dataclasses import dataclass

import trl

from .hardware import choose_precision


@dataclass
class SFTConfig(trl.SFTConfig):
    """[`~trl.SFTConfig`] whose precision is, by default, that of the machine."""

    def __post_init__(self):
        choose_precision(self)
        super().__post_init__()

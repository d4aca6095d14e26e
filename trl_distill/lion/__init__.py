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

"""Lion: imitate a teacher, find where the student fails, ask for more of that."""

from .estimate import Estimate
from .generation import GenerationError, generate, generation_request
from .imitation import Training, trainings
from .lion_config import LionConfig
from .loop import LionLoop, LionResult
from .pools import Instruction, Partition, Scored, hold_out, partition, read_instructions
from .reading import has_answer, is_refusal, read_instruction
from .similarity import SimilarityIndex, UnicodeTokenizer
from .stages import training_rows


__all__ = [
    "Estimate",
    "GenerationError",
    "Instruction",
    "LionConfig",
    "LionLoop",
    "LionResult",
    "Partition",
    "Scored",
    "SimilarityIndex",
    "Training",
    "UnicodeTokenizer",
    "generate",
    "generation_request",
    "has_answer",
    "hold_out",
    "is_refusal",
    "partition",
    "read_instruction",
    "read_instructions",
    "training_rows",
    "trainings",
]

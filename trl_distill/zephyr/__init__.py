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

"""AI feedback: models answer prompts, judges score the answers, a policy makes preference pairs of them."""

from .compare import run_compare
from .compare_config import CompareConfig
from .feedback import run_feedback
from .feedback_config import FeedbackConfig
from .filters import clean_dialogues, decontaminate, refusal, truecase
from .policies import preference_pairs
from .ultrafeedback import scored_rows


__all__ = [
    "CompareConfig",
    "FeedbackConfig",
    "clean_dialogues",
    "decontaminate",
    "preference_pairs",
    "refusal",
    "run_compare",
    "run_feedback",
    "scored_rows",
    "truecase",
]

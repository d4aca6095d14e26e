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

"""Distillation trainers and recipes that TRL does not have, built on TRL."""

import importlib
from typing import TYPE_CHECKING


__version__ = "0.1.0.dev0"

# Where each public name lives. TRL and torch are imported when a name is first used, so that the command line answers
# at once.
_MODULES = {
    "ASCRankerConfig": "trl_distill.rationales.asc",
    "ASCRankerTrainer": "trl_distill.rationales.asc",
    "CompareConfig": "trl_distill.zephyr",
    "FeedbackConfig": "trl_distill.zephyr",
    "LabeledSFTConfig": "trl_distill.rationales.nat",
    "LabeledSFTTrainer": "trl_distill.rationales.nat",
    "LionConfig": "trl_distill.lion",
    "LionLoop": "trl_distill.lion",
    "MiniLLMConfig": "trl_distill.minillm",
    "MiniLLMTrainer": "trl_distill.minillm",
    "NCEConfig": "trl_distill.rationales.nce",
    "NCETrainer": "trl_distill.rationales.nce",
    "NegativeAssistedConfig": "trl_distill.rationales.nat",
    "NegativeAssistedTrainer": "trl_distill.rationales.nat",
    "OfflineDistillationConfig": "trl_distill.offline_distillation",
    "OfflineDistillationTrainer": "trl_distill.offline_distillation",
    "RecordConfig": "trl_distill.offline_distillation",
    "ReferenceCheckCallback": "trl_distill.zephyr.reference_check",
    "adaptive_self_consistency": "trl_distill.rationales.asc",
    "calibration_weights": "trl_distill.rationales.nce",
    "load_nat": "trl_distill.rationales.nat",
    "load_recorded": "trl_distill.offline_distillation",
    "preference_pairs": "trl_distill.zephyr",
    "record_teacher": "trl_distill.offline_distillation",
    "run_compare": "trl_distill.zephyr",
    "run_feedback": "trl_distill.zephyr",
    "scored_rows": "trl_distill.zephyr",
    "self_consistency": "trl_distill.rationales.asc",
    "weighted_self_consistency": "trl_distill.rationales.asc",
}

__all__ = list(_MODULES)

if TYPE_CHECKING:
    from .lion import LionConfig, LionLoop
    from .minillm import MiniLLMConfig, MiniLLMTrainer
    from .offline_distillation import (
        OfflineDistillationConfig,
        OfflineDistillationTrainer,
        RecordConfig,
        load_recorded,
        record_teacher,
    )
    from .rationales.asc import (
        ASCRankerConfig,
        ASCRankerTrainer,
        adaptive_self_consistency,
        self_consistency,
        weighted_self_consistency,
    )
    from .rationales.nat import (
        LabeledSFTConfig,
        LabeledSFTTrainer,
        NegativeAssistedConfig,
        NegativeAssistedTrainer,
        load_nat,
    )
    from .rationales.nce import NCEConfig, NCETrainer, calibration_weights
    from .zephyr import CompareConfig, FeedbackConfig, preference_pairs, run_compare, run_feedback, scored_rows
    from .zephyr.reference_check import ReferenceCheckCallback


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

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
    "ASCRankerConfig": "trl_distill.rationales.asc.asc_config",
    "ASCRankerTrainer": "trl_distill.rationales.asc.asc_trainer",
    "CompareConfig": "trl_distill.zephyr.compare_config",
    "FeedbackConfig": "trl_distill.zephyr.feedback_config",
    "LabeledSFTConfig": "trl_distill.rationales.nat.nat_config",
    "LabeledSFTTrainer": "trl_distill.rationales.nat.labeled_sft_trainer",
    "LionConfig": "trl_distill.lion.lion_config",
    "LionLoop": "trl_distill.lion.loop",
    "MiniLLMConfig": "trl_distill.minillm.minillm_config",
    "MiniLLMTrainer": "trl_distill.minillm.minillm_trainer",
    "NCEConfig": "trl_distill.rationales.nce.nce_config",
    "NCETrainer": "trl_distill.rationales.nce.nce_trainer",
    "NegativeAssistedConfig": "trl_distill.rationales.nat.nat_config",
    "NegativeAssistedTrainer": "trl_distill.rationales.nat.nat_trainer",
    "OfflineDistillationConfig": "trl_distill.offline_distillation.offline_distillation_config",
    "OfflineDistillationTrainer": "trl_distill.offline_distillation.offline_distillation_trainer",
    "RecordConfig": "trl_distill.offline_distillation.record_config",
    "ReferenceCheckCallback": "trl_distill.zephyr.reference_check",
    "adaptive_self_consistency": "trl_distill.rationales.asc.voting",
    "calibration_weights": "trl_distill.rationales.nce.calibration",
    "load_nat": "trl_distill.rationales.nat.integration_unit",
    "load_recorded": "trl_distill.offline_distillation.store",
    "preference_pairs": "trl_distill.zephyr.policies",
    "record_teacher": "trl_distill.offline_distillation.record",
    "run_compare": "trl_distill.zephyr.compare",
    "run_feedback": "trl_distill.zephyr.feedback",
    "scored_rows": "trl_distill.zephyr.ultrafeedback",
    "self_consistency": "trl_distill.rationales.asc.voting",
    "weighted_self_consistency": "trl_distill.rationales.asc.voting",
}

__all__ = list(_MODULES)

if TYPE_CHECKING:  # the modules themselves: the folders between import lazily, too
    from .lion.lion_config import LionConfig
    from .lion.loop import LionLoop
    from .minillm.minillm_config import MiniLLMConfig
    from .minillm.minillm_trainer import MiniLLMTrainer
    from .offline_distillation.offline_distillation_config import OfflineDistillationConfig
    from .offline_distillation.offline_distillation_trainer import OfflineDistillationTrainer
    from .offline_distillation.record import record_teacher
    from .offline_distillation.record_config import RecordConfig
    from .offline_distillation.store import load_recorded
    from .rationales.asc.asc_config import ASCRankerConfig
    from .rationales.asc.asc_trainer import ASCRankerTrainer
    from .rationales.asc.voting import adaptive_self_consistency, self_consistency, weighted_self_consistency
    from .rationales.nat.integration_unit import load_nat
    from .rationales.nat.labeled_sft_trainer import LabeledSFTTrainer
    from .rationales.nat.nat_config import LabeledSFTConfig, NegativeAssistedConfig
    from .rationales.nat.nat_trainer import NegativeAssistedTrainer
    from .rationales.nce.calibration import calibration_weights
    from .rationales.nce.nce_config import NCEConfig
    from .rationales.nce.nce_trainer import NCETrainer
    from .zephyr.compare import run_compare
    from .zephyr.compare_config import CompareConfig
    from .zephyr.feedback import run_feedback
    from .zephyr.feedback_config import FeedbackConfig
    from .zephyr.policies import preference_pairs
    from .zephyr.reference_check import ReferenceCheckCallback
    from .zephyr.ultrafeedback import scored_rows


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

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

"""Metrics of generated text. They know no training method."""

from .answers import check_answer, equal_answers, extract_answer, reference_answer
from .evaluate import evaluate_model
from .exposure import exposure_bias
from .rouge import rouge_l
from .text import distinct_n, repetition


__all__ = [
    "check_answer",
    "distinct_n",
    "equal_answers",
    "evaluate_model",
    "exposure_bias",
    "extract_answer",
    "reference_answer",
    "repetition",
    "rouge_l",
]

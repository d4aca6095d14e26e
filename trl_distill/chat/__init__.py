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

"""Chat models behind one protocol, and the store that keeps every call."""

from .batch import BatchChatModel
from .endpoint import EndpointChatModel
from .judge import Aspect, Judge, JudgeItem, Judgement, Reading
from .judge_report import judge_report
from .ledger import LedgerRow, read_ledger
from .local import LocalChatModel
from .models import (
    BaseChatModel,
    ChatModel,
    ChatRequest,
    ChatServerError,
    Completion,
    FailedCall,
    FunctionChatModel,
    Prices,
    Sampling,
)
from .samples import Samples, draw_samples, read_samples, samples_to_file
from .settings import chat_model
from .store import BudgetReached, CallStore, Missing, StoredChatModel
from .vllm_engine import VLLMChatModel


__all__ = [
    "Aspect",
    "BaseChatModel",
    "BatchChatModel",
    "BudgetReached",
    "CallStore",
    "ChatModel",
    "ChatRequest",
    "ChatServerError",
    "Completion",
    "EndpointChatModel",
    "FailedCall",
    "FunctionChatModel",
    "Judge",
    "JudgeItem",
    "Judgement",
    "LedgerRow",
    "LocalChatModel",
    "Missing",
    "Prices",
    "Reading",
    "Samples",
    "Sampling",
    "StoredChatModel",
    "VLLMChatModel",
    "chat_model",
    "draw_samples",
    "judge_report",
    "read_ledger",
    "read_samples",
    "samples_to_file",
]

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

"""Judges that are rules: they read the request of [`~trl_distill.chat.Judge`] as a model would, and reply in JSON."""

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from trl_distill.chat import ChatRequest, FunctionChatModel
from trl_distill.evaluation import rouge_l


_BLOCK = re.compile(r"^<(request|reference|answer(?: [A-Z])?) (\w{6})>\n(.*?)\n</\1 \2>$", re.DOTALL | re.MULTILINE)


class Shown(NamedTuple):
    """What a judge is shown: a prompt, answers by label in the order of their slots, and perhaps a reference."""

    prompt: str
    answers: dict[str, str]
    reference: str | None


def read_request(request: ChatRequest) -> Shown:
    blocks = {name: text for name, _, text in _BLOCK.findall(request.messages[-1]["content"])}
    answers = {name.removeprefix("answer").strip(): text for name, text in blocks.items() if name.startswith("answer")}
    return Shown(blocks["request"], answers, blocks.get("reference"))


def rule_judge(name: str, score: Callable[[Shown, str, int], float]) -> FunctionChatModel:
    """A judge that scores an answer by what is shown, its label, and its slot; rounded, and cut at 1 and 10."""

    def reply(request: ChatRequest) -> str:
        shown = read_request(request)
        scores = {label: min(10, max(1, round(score(shown, label, slot)))) for slot, label in enumerate(shown.answers)}
        return json.dumps({"scores": scores} if "" not in scores else {"score": scores[""]})

    return FunctionChatModel(reply, name)


def rouge_judge() -> FunctionChatModel:
    """Rouge-L against the reference, from 1 to 10."""
    return rule_judge(
        "rouge", lambda shown, label, slot: 1 + 0.09 * rouge_l(shown.answers[label], shown.reference or "")
    )

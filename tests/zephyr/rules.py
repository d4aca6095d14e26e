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
"""Responders and a judge that follow rules, in this process or behind a server: every score can be checked."""

import hashlib
import json
import re

from trl_distill.chat import FunctionChatModel


PROMPTS = [f"question {i}" for i in range(12)]


def quality(text):
    """What the judge gives: the number that an answer ends with."""
    return int(re.search(r"\((\d+)\)$", text.strip())[1])


def answer(model, messages, draw):
    """An answer of a model: what it was asked, and a quality from 1 to 10 that follows from all that it sees."""
    seen = json.dumps([model, messages, draw])
    number = int.from_bytes(hashlib.sha256(seen.encode()).digest()[:4], "big") % 10 + 1
    return f"{model} on {messages[-1]['content']!r}, draw {draw} ({number})"


def judge_reply(messages, bonus=()):
    """The qualities of the answers in the prompt of a judge, with a bonus by place, as it wants them."""
    prompt = messages[-1]["content"]
    found = re.findall(r"<answer(?: ([A-Z]))? (\w+)>\n(.*?)\n</answer", prompt, re.DOTALL)
    scores = {label: quality(text) + (bonus[i] if bonus else 0) for i, (label, _, text) in enumerate(found)}
    if list(scores) == [""]:
        return json.dumps({"evidence": "ends with it", "score": scores[""]})
    return json.dumps({"evidence": "ends with it", "scores": scores})


class Counted(FunctionChatModel):
    """A rule that counts what it is asked."""

    def __init__(self, name, function):
        super().__init__(function, name)
        self.requests = []

    def answer(self, batch):
        self.requests += batch
        return super().answer(batch)


def responder(name):
    return Counted(name, lambda request: answer(name, request.messages, request.sample_index))


def pool(*names):
    return [responder(name) for name in names]


def judge(name="judge", bonus=()):
    return Counted(name, lambda request: judge_reply(request.messages, bonus))

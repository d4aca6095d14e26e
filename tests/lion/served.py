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
"""The toy world behind a server; as a script, a run of it that the tests kill."""

import json
import sys

import toy

from tests.chat.chat_server import completion_body
from trl_distill.chat import ChatRequest, EndpointChatModel
from trl_distill.lion import LionConfig, LionLoop


def by_the_rules(body, attempt=1, headers=None):
    """What the server says for the three models behind it."""
    prompt = body["messages"][-1]["content"]
    if body["model"] == "generator":  # the client has mixed the sample index into the seed
        seed = toy.seed_of(prompt)
        return completion_body(toy.task(toy.family_of(seed), f"{seed} {body['seed']}"))
    rule = {"teacher": toy.teacher, "referee": toy.referee}[body["model"]]()
    return completion_body(rule.function(ChatRequest(body["messages"])))


def sent(body):
    """What tells a call from any other: in the seed is the sample index."""
    return body["model"], json.dumps(body["messages"], sort_keys=True), body.get("seed")


def served_loop(folder, base_url, concurrency=1, changes=None, **settings):
    """The loop of the fixture `world`, with teacher, referee and generator behind a server."""
    values = dict(student_model="none", heldout_size=4, rounds=2, n_new=4, replay="none") | (changes or {})
    config = LionConfig(output_dir=str(folder), **values)
    models = {
        name: EndpointChatModel(name, base_url, concurrency=concurrency, backoff=0.01, **settings)
        for name in ("teacher", "referee", "generator")
    }
    train = dict.fromkeys(config.stages, toy.train)
    return LionLoop(config, toy.rows({0: 10, 1: 8, 2: 3, 3: 2}), train=train, student=toy.measured, **models)


if __name__ == "__main__":
    sys.modules["matplotlib.figure"] = None  # as if it were not installed: a picture takes longer than all the rest
    folder, base_url, concurrency, changes = sys.argv[1:]
    served_loop(folder, base_url, int(concurrency), json.loads(changes)).run()

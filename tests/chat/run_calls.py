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
"""A run that the tests kill: asks a server through a store, and writes the answers when all are there."""

import json
import sys
from pathlib import Path

from trl_distill.chat import CallStore, ChatRequest, EndpointChatModel


if __name__ == "__main__":
    store_path, base_url, output, count, concurrency = sys.argv[1:]
    requests = [ChatRequest([{"role": "user", "content": f"question {i}"}]) for i in range(int(count))]
    endpoint = EndpointChatModel("m", base_url, concurrency=int(concurrency), backoff=0.01)
    with CallStore(store_path) as store:
        answers = store.model(endpoint, role="teacher", stage="answers").complete(requests)
    Path(output).write_text(json.dumps([answer.text for answer in answers]))

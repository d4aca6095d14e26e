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
"""A run that the tests kill, or that runs out of disk: responders and judge behind a server."""

import resource
import sys

from trl_distill.chat import EndpointChatModel
from trl_distill.zephyr import FeedbackConfig, run_feedback


def run(output_dir, base_url, count):
    models = {
        name: EndpointChatModel(name, base_url, concurrency=4, backoff=0.01) for name in ("a", "b", "c", "judge")
    }
    run_feedback(
        FeedbackConfig(output_dir=str(output_dir), num_answers=3, decontaminate=[]),
        prompts=[f"question {i}" for i in range(count)],
        responders=[models["a"], models["b"], models["c"]],
        judges=[models["judge"]],
    )


if __name__ == "__main__":
    output_dir, base_url, count, limit = sys.argv[1:]
    if int(limit):  # bytes a file may have: what is written beyond fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    run(output_dir, base_url, int(count))

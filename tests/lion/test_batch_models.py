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

"""Teacher, referee and generator behind a batch endpoint: the loop is that of single calls."""

import json

import served
import toy
from toy import files

from tests.chat.batch_server import BatchServer
from trl_distill.chat import chat_model
from trl_distill.lion import LionConfig, LionLoop


def test_a_loop_in_batches(server, tmp_path):
    server.reply = served.by_the_rules
    served.served_loop(tmp_path / "single", server.base_url).run()
    batches = BatchServer()
    batches.reply = served.by_the_rules
    entry = {"base_url": batches.base_url, "engine": "batch", "poll_interval": 0.001}
    models = {name: chat_model(entry | {"model": name}) for name in ("teacher", "referee", "generator")}
    settings = dict(student_model="none", heldout_size=4, rounds=2, n_new=4, replay="none")
    config = LionConfig(output_dir=str(tmp_path / "batches"), **settings)
    LionLoop(config, toy.rows({0: 10, 1: 8, 2: 3, 3: 2}), train=toy.train, student=toy.stubborn, **models).run()
    batches.stop()
    single, together = files(tmp_path / "single"), files(tmp_path / "batches")
    assert single.keys() == together.keys()
    reports = [json.loads(found.pop("report.json")) for found in (single, together)]
    assert single == together and reports[0]["rounds"] == reports[1]["rounds"]
    calls = [sum(row["calls"] for row in report["ledger"] if row["role"] != "student") for report in reports]
    assert calls[0] == calls[1] == batches.lines == batches.answered.total() and len(batches.batches) < calls[0] / 3

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


"""What a run leaves behind: one page, made of the files in its folder alone."""

from .curves import Curve, curve, number
from .page import Table, calls_table, read_json, render, settings_tables, write_report
from .record import RUN_FILE, describe_run, record_run
from .rollouts import Answer, Compared, Token, shown


__all__ = [
    "RUN_FILE",
    "Answer",
    "Compared",
    "Curve",
    "Table",
    "Token",
    "calls_table",
    "curve",
    "describe_run",
    "number",
    "read_json",
    "record_run",
    "render",
    "settings_tables",
    "shown",
    "write_report",
]

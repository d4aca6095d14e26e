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

"""Fixtures of tests that talk to the scripted server, or draw a report: a folder's conftest imports them."""

import sys

import pytest

from tests.chat.chat_server import ChatServer


@pytest.fixture
def server():
    server = ChatServer()
    yield server
    server.stop()


@pytest.fixture
def picture():
    """For the tests that look at report.png: drawing it takes most of the time of a run."""


@pytest.fixture(autouse=True)
def no_picture(request, monkeypatch):
    if "picture" not in request.fixturenames:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed

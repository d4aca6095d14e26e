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

import sys

import pytest

from trl_distill.chat import EndpointChatModel, LocalChatModel
from trl_distill.extras import check_training_packages, missing, need


@pytest.fixture
def without(monkeypatch):
    """Make packages look as if they were not installed."""
    return lambda *packages: [monkeypatch.setitem(sys.modules, package, None) for package in packages]


@pytest.mark.parametrize(
    ("fields", "package"),
    [
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"optim": "paged_adamw_8bit"}, "bitsandbytes"),
        ({"optim": "adamw_8bit"}, "bitsandbytes"),
        ({"optim": "rmsprop_bnb_32bit"}, "bitsandbytes"),
        ({"answer_checker": "math"}, "math_verify"),
        ({"report_to": "mlflow"}, "mlflow"),
        ({"report_to": ["none", "swanlab"]}, "swanlab"),
    ],
)
def test_what_a_training_needs_is_looked_for(fields, package, without):
    without(package)
    with pytest.raises(ImportError, match=rf"needs the package {package.replace('_', '-')}\. Install it with `pip"):
        check_training_packages({"optim": "adamw_torch", "report_to": "none"} | fields)


def test_what_is_not_needed_is_not_asked_for(without):
    without("bitsandbytes", "math_verify", "wandb")
    check_training_packages({"load_in_4bit": False, "optim": "adamw_torch_8bit", "report_to": ["all"]})
    check_training_packages({})


def test_the_line_names_the_extra(without):
    without("openai", "wandb")
    assert "`pip install trl-distill[api]`" in missing("openai", "x") and "`pip install wandb`" in missing(
        "wandb", "x"
    )
    assert missing("sys", "x") is None
    need("sys", "x")


def test_models_say_what_they_need_before_they_are_asked(without):
    without("openai", "bitsandbytes")
    with pytest.raises(ImportError, match=r"trl-distill\[api\]"):
        EndpointChatModel("m", base_url="http://localhost:1/v1")
    with pytest.raises(ImportError, match=r"trl-distill\[qlora\]"):
        LocalChatModel("m", load_in_4bit=True)
    LocalChatModel("m")

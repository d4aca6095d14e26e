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

import re
import sys

import pytest

from tests.commands import error_of, write_rows
from trl_distill.chat import EndpointChatModel, LocalChatModel
from trl_distill.extras import _OPTIMIZERS, _TRACKERS, check_packages, missing, need
from trl_distill.scripts import augment, evaluate, label, record, sample


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
        ({"optim": "adamw_torch_4bit"}, "torchao"),
        ({"optim": "schedule_free_adamw"}, "schedulefree"),
        ({"answer_checker": "math"}, "math_verify"),
        ({"metric_for_best_model": "eval_rougeL"}, "rouge_score"),
        ({"load_ranker_in_4bit": True}, "bitsandbytes"),
        ({"student": {"model_name_or_path": "m", "load_in_4bit": True}}, "bitsandbytes"),
        ({"models": [{"model": "m", "engine": "vllm"}]}, "vllm"),
        ({"report_to": "mlflow"}, "mlflow"),
        ({"report_to": ["none", "swanlab"]}, "swanlab"),
    ],
)
def test_what_a_training_needs_is_looked_for(fields, package, without):
    without(package)
    with pytest.raises(ImportError, match=rf"needs the package {package.replace('_', '-')}\. Install it with `pip"):
        check_packages({"optim": "adamw_torch", "report_to": "none"} | fields)


def test_what_is_not_needed_is_not_asked_for(without):
    without("bitsandbytes", "math_verify", "wandb")
    check_packages({"load_in_4bit": False, "optim": "adamw_torch", "report_to": ["all"]})
    check_packages({})


def test_all_trackers_and_optimizers_of_transformers_are_known():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.training_args import OptimizerNames

    assert _TRACKERS.keys() == INTEGRATION_TO_CALLBACK.keys()
    of_torch = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
    of_machines = {"adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision"}
    matches = {name.value: [p for p in _OPTIMIZERS if re.search(p, name.value)] for name in OptimizerNames}
    assert {name for name, found in matches.items() if len(found) != 1} == of_torch | of_machines


def test_the_line_names_the_extra(without):
    without("openai", "wandb")
    assert "`pip install trl-distill[api]`" in missing("openai", "x") and "`pip install wandb`" in missing(
        "wandb", "x"
    )
    assert missing("sys", "x") is None
    need("sys", "x")
    without("rouge_score", "optimi")
    assert "trl-distill[eval]" in missing("rouge_score", "x") and "install torch-optimi`" in missing("optimi", "x")


def test_models_say_what_they_need_before_they_are_asked(without):
    without("openai", "bitsandbytes")
    with pytest.raises(ImportError, match=r"trl-distill\[api\]"):
        EndpointChatModel("m", base_url="http://localhost:1/v1")
    with pytest.raises(ImportError, match=r"trl-distill\[qlora\]"):
        LocalChatModel("m", load_in_4bit=True)
    LocalChatModel("m")


def test_a_command_looks_before_it_reads_rows(without, capsys, tmp_path):
    without("bitsandbytes", "math_verify")
    rows = write_rows(tmp_path / "rows.jsonl", ["no JSON"])
    common = ["--dataset_name", rows, "--output_file", str(tmp_path / "out.jsonl")]
    model = ["--model_name_or_path", "m", *common]
    quantized = "needs the package bitsandbytes. Install it with `pip install trl-distill[qlora]`."
    for run, arguments in (
        (record.run, ["--teacher_model_name_or_path", "m", "--dataset_name", rows, "--output_dir", str(tmp_path)]),
        (sample.run, model),
        (evaluate.run, model),
        (augment.run, model),
    ):
        assert quantized in error_of(capsys, run, *arguments, "--load_in_4bit")
    assert "needs the package math-verify" in error_of(capsys, label.run, *common)

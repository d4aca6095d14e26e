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

"""Packages that only some runs need: looked for before the work, and named with the line that installs them."""

import importlib.util
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .text import closest


logger = logging.getLogger(__name__)

_EXTRAS = {"bitsandbytes": "qlora", "math_verify": "eval", "openai": "api", "rouge_score": "eval"}
_IN_INDEX = {"optimi": "torch-optimi"}  # where a package is installed by another name
_OPTIMIZERS = {
    r"bnb|paged|^ademamix|^(adamw|lion)_(8|32)bit": "bitsandbytes",
    r"^adamw_torch_\dbit": "torchao",
    r"^galore": "galore_torch",
    r"^apollo": "apollo_torch",
    r"lomo$": "lomo_optim",
    r"^grokadamw": "grokadamw",
    r"^schedule_free": "schedulefree",
    r"^stable_adamw": "optimi",
}
# Written down, since the module of transformers that knows them takes seconds to import
_TRACKERS = {
    name: name
    for name in "clearml codecarbon comet_ml dagshub dvclive kubeflow mlflow neptune swanlab tensorboard trackio "
    "wandb".split()
} | {"azure_ml": "azureml", "flyte": "flytekit"}


def missing(package: str, what: str) -> str | None:
    """Sentence that says that `what` needs a package and how to install it, `None` if it is there."""
    if importlib.util.find_spec(package) is not None:
        return None
    name = _IN_INDEX.get(package, package.replace("_", "-"))
    line = f"trl-distill[{_EXTRAS[package]}]" if package in _EXTRAS else name
    return f"{what} needs the package {name}. Install it with `pip install {line}`."


def need(package: str, what: str) -> None:
    """Raise `ImportError` if a package is missing that `what` needs."""
    if (message := missing(package, what)) is not None:
        raise ImportError(message)


def warn_of_pictures() -> None:
    """Say at the start of a run that there will be no picture at its end."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        logger.warning("No report.png: it needs matplotlib. Install it with `pip install trl-distill[plot]`.")


def _flat(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Fields, and those of the fields that have some of their own, such as the entries of models."""
    for name, value in fields.items():
        yield name, value
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Mapping):
                yield from _flat(inner)


def check_packages(fields: Mapping[str, Any]) -> None:
    """
    Raise `ImportError` if a run with these fields needs a package that is missing, which it would find out once its
    rows are read and its models loaded, and `ValueError` for an unknown tracker.
    """
    for name, value in _flat(fields):
        if not value:
            continue
        if re.search(r"load_(\w+_)?in_[48]bit$", name):
            need("bitsandbytes", f"`{name}`")
        elif name == "optim":
            for pattern, package in _OPTIMIZERS.items():
                if re.search(pattern, value):
                    need(package, f"`optim: {value}`")
        elif name == "answer_checker" and value == "math":
            need("math_verify", "`answer_checker: math`")
        elif name == "metric_for_best_model" and "rouge" in value:
            need("rouge_score", f"`metric_for_best_model: {value}`")
        elif name == "use_liger_kernel":
            need("liger_kernel", f"`{name}`")
        elif name == "use_vllm" or (name, value) == ("engine", "vllm"):
            need("vllm", "vLLM")
        elif name == "report_to":
            for tracker in [value] if isinstance(value, str) else value:
                _check_tracker(tracker)


def _check_tracker(tracker: str) -> None:
    if tracker in ("none", "all"):
        return
    if tracker not in _TRACKERS:
        hint = closest(tracker, _TRACKERS) or f"Choose from {', '.join(_TRACKERS)}, all, none."
        raise ValueError(f"`report_to` must name trackers, got {tracker!r}. {hint}")
    if tracker != "tensorboard" or importlib.util.find_spec("tensorboardX") is None:
        need(_TRACKERS[tracker], f"`report_to: {tracker}`")

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
from collections.abc import Mapping
from typing import Any

from .text import closest


logger = logging.getLogger(__name__)

_EXTRAS = {"bitsandbytes": "qlora", "math_verify": "eval", "openai": "api"}
_TRACKERS = {"azure_ml": "azureml", "flyte": "flytekit"}  # where the package has another name than in `report_to`


def missing(package: str, what: str) -> str | None:
    """Sentence that says that `what` needs a package and how to install it, `None` if it is there."""
    if importlib.util.find_spec(package) is not None:
        return None
    name = package.replace("_", "-")
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


def check_training_packages(fields: Mapping[str, Any]) -> None:
    """
    Raise `ImportError` if a training with these fields needs a package that is missing, which it would find out once
    its model is loaded, and `ValueError` for an unknown tracker.
    """
    for name in ("load_in_4bit", "load_in_8bit"):
        if fields.get(name):
            need("bitsandbytes", f"`{name}`")
    optimizer = fields.get("optim") or ""
    if re.search(r"bnb|paged|^ademamix|^(adamw|lion)_(8|32)bit", optimizer):
        need("bitsandbytes", f"`optim: {optimizer}`")
    if fields.get("answer_checker") == "math":
        need("math_verify", "`answer_checker: math`")
    trackers = fields.get("report_to") or []
    for tracker in [trackers] if isinstance(trackers, str) else trackers:
        if tracker not in ("none", "all"):
            _check_tracker(tracker)


def _check_tracker(tracker: str) -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    if tracker not in INTEGRATION_TO_CALLBACK:
        known = ", ".join(INTEGRATION_TO_CALLBACK)
        hint = closest(tracker, INTEGRATION_TO_CALLBACK) or f"Choose from {known}, all, none."
        raise ValueError(f"`report_to` must name trackers, got {tracker!r}. {hint}")
    if tracker != "tensorboard" or importlib.util.find_spec("tensorboardX") is None:
        need(_TRACKERS.get(tracker, tracker), f"`report_to: {tracker}`")

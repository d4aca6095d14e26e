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

"""Sums over micro-batches, and completions against references, by hand."""

import math

import pytest
import torch

from trl_distill.minillm.metrics import (
    Averages,
    completion_metrics,
    credit_metrics,
    known_means,
    long_term_metrics,
    reference_metrics,
)


def test_averages_are_ratios_of_sums_and_start_anew():
    averages = Averages()
    averages.add("a", torch.tensor([3.0], requires_grad=True).sum(), torch.tensor(2))
    averages.update({"a": (1.0, 6), "b": (torch.tensor(True), 0)})
    assert not averages.sums["a"][0].requires_grad
    assert averages.pop() == {"a": 0.5}  # nothing was counted for b
    assert averages.pop() == {}


def test_credit_metrics_see_completion_tokens_alone():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    rewards = torch.tensor([[1.0, -3.0, 0.0], [2.0, 0.0, 0.0]])
    weights = torch.tensor([[0.5, 0.75, 9.0], [1.0, -9.0, 9.0]])
    averages = Averages()
    averages.update(credit_metrics(rewards, 2 * rewards, weights, mask, reward_clip=2.0))
    logged = averages.pop()
    assert logged.pop("advantage/std") == pytest.approx(math.sqrt((4 + 36 + 16) / 3))
    assert logged == {
        "reward/mean": 0.0,
        "reward/clipped": pytest.approx(2 / 3),
        "advantage/mean": 0.0,
        "sampling/importance_sampling_ratio/mean": 0.75,
        "sampling/importance_sampling_ratio/min": 0.5,
    }
    nothing = credit_metrics(rewards, rewards, weights, torch.zeros_like(mask), reward_clip=None)
    assert not {"reward/clipped", "sampling/importance_sampling_ratio/min"} & nothing.keys()


def test_clipped_share_depends_on_the_sign_of_the_credit():
    ratio, credit = torch.tensor([0.5, 0.5, 1.5, 1.5, 1.0]), torch.tensor([-1.0, 1.0, -1.0, 1.0, 1.0])
    averages = Averages()
    averages.update(long_term_metrics(torch.ones(5), ratio, credit, epsilon=0.2))
    logged = averages.pop()
    assert logged == pytest.approx(
        {"loss/long": 1.0, "ratio/mean": 1.0, "clip_ratio/low_mean": 0.2, "clip_ratio/high_mean": 0.2}
    )


def test_completions_as_token_ids():
    metrics = completion_metrics([[1, 2, 3, 4, 5, 1, 2, 3, 4], [1, 2, 3, 4], []])
    assert metrics == {"text/distinct_4": (5 / 7, 1), "text/repetition": (pytest.approx(1 / 6), 3)}


def test_references_and_right_answers():
    rows = [{"completion": "the cat"}, {"completion": ["a dog", "the cat sat"]}, {"completion": None}, {}]
    metrics = reference_metrics(["the cat"] * 4, rows, lambda text, row: row.get("completion") and None)
    assert metrics["rougeL"] == (pytest.approx(100 + 80), 2)  # the better of two references; two rows have none
    assert metrics["accuracy"] == (0, 4)  # no answer found is no right answer
    assert "accuracy" not in reference_metrics(["x"], [{}])
    checked = reference_metrics(["yes", "no"], [{"n": 1}, {"n": 2}], lambda text, row: (text, row["n"]) == ("no", 2))
    assert checked["accuracy"] == (1, 2)


def test_means_leave_out_what_is_not_known():
    assert known_means({"a": [1.0, math.nan, 3.0], "b": [math.nan], "c": []}) == {"a": 2.0}

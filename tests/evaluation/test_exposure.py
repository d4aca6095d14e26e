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

import itertools
import math

import pytest
import torch

from trl_distill.evaluation import exposure_bias


def test_exposure_bias_equals_its_definition_over_all_sequences():
    """
    A student and a teacher over {a, b} with memory of the last token, 3 tokens, in plain Python and exact frequencies.

    Every sequence stands in the sample as often as its model writes it: all probabilities are multiples of 1/4.
    """
    student = {None: (0.75, 0.25), "a": (0.75, 0.25), "b": (0.5, 0.5)}  # writes more "a", and is lost after it
    teacher = {None: (0.5, 0.5), "a": (0.25, 0.75), "b": (0.5, 0.5)}

    def step_kl(last):
        return sum(p * math.log(p / q) for p, q in zip(teacher[last], student[last], strict=True))

    def expected(model):
        """Expected step KLs at t = 1, 2, 3 by enumeration of the prefixes."""
        means = []
        for t in range(3):
            total = 0.0
            for prefix in itertools.product("ab", repeat=t):
                probability, last = 1.0, None
                for token in prefix:
                    probability *= model[last]["ab".index(token)]
                    last = token
                total += probability * step_kl(last)
            means.append(total)
        return means

    def sample(model):
        rows = []
        for sequence in itertools.product("ab", repeat=3):
            probability, last, kls = 1.0, None, []
            for token in sequence:
                kls.append(step_kl(last))
                probability *= model[last]["ab".index(token)]
                last = token
            rows += [kls] * round(64 * probability)
        assert len(rows) == 64
        return torch.tensor(rows, dtype=torch.float64)

    on_student, on_teacher = sample(student), sample(teacher)
    result = exposure_bias(on_student, torch.ones(64, 3), on_teacher, torch.ones(64, 3))

    regret, oracle = list(itertools.accumulate(expected(student))), list(itertools.accumulate(expected(teacher)))
    assert result["regret"] == pytest.approx(regret, abs=1e-12)
    assert result["oracle"] == pytest.approx(oracle, abs=1e-12)
    assert result["curve"] == pytest.approx([100 * (r - s) / s for r, s in zip(regret, oracle, strict=True)], abs=1e-9)
    # The first response token has the same (empty) prefix under both models: it counts, and without excess
    assert result["curve"][0] == pytest.approx(0, abs=1e-9) and result["curve"][2] > 40
    assert result["value"] == result["curve"][-1] and result["tokens"] == 3


def test_equal_models_have_no_excess():
    mask = torch.ones(4, 5)
    for kl in (torch.zeros(4, 5), torch.full((4, 5), 1e-8) * torch.randn(4, 5)):  # exact, and fp32 rounding
        result = exposure_bias(kl, mask, torch.zeros(4, 5), mask)
        assert result["curve"] == result["standard_error"] == [0.0] * 5


def test_mean_is_over_running_samples_and_the_curve_ends_with_them():
    student = torch.tensor([[1.0, 9.0, 9.0], [3.0, 4.0, 0.0], [2.0, 6.0, 0.0]])
    student_mask = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 0]])
    teacher, teacher_mask = torch.ones(2, 4), torch.ones(2, 4)
    result = exposure_bias(student, student_mask, teacher, teacher_mask)
    assert result["regret"] == pytest.approx([2.0, 7.0])  # 2, then + (4 + 6)/2; padding has no weight
    assert result["oracle"] == pytest.approx([1.0, 2.0])
    assert result["curve"] == pytest.approx([100.0, 250.0])
    assert result["student_samples"] == [3, 2] and result["teacher_samples"] == [2, 2]
    # One running sample has no spread, so the curve is empty; nothing crashes and nothing is nan
    single = exposure_bias(student[:1], student_mask[:1], teacher, teacher_mask)
    assert single["curve"] == [] and single["value"] is None


def test_standard_error_is_the_spread_over_repetitions():
    """Prompts with their own difficulty, 2 samples of each by both models: the estimator's spread over 400 sets."""
    generator = torch.Generator().manual_seed(0)
    values, errors, naive = [], [], []
    for _ in range(400):
        difficulty = torch.rand(30, 1, generator=generator).repeat(2, 1)  # (60, 1), shared by samples of one prompt
        student = difficulty * (1 + torch.rand(60, 4, generator=generator)) * torch.tensor([1.0, 1.5, 2.0, 2.5])
        teacher = difficulty * (1 + torch.rand(60, 4, generator=generator))
        mask = torch.rand(60, 4, generator=generator) < 0.9
        prompts = torch.arange(30).repeat(2)
        result = exposure_bias(student, mask, teacher, torch.ones(60, 4), prompts, prompts)
        values.append(result["value"])
        errors.append(result["value_standard_error"])
        naive.append(exposure_bias(student, mask, teacher, torch.ones(60, 4))["value_standard_error"])
    spread = torch.tensor(values).std().item()
    assert torch.tensor(errors).mean().item() == pytest.approx(spread, rel=0.15)
    assert torch.tensor(naive).mean().item() > 1.5 * spread  # what it would be without the pairing by prompt


def test_groups_of_one_model_only_are_refused():
    kl, mask = torch.ones(2, 2), torch.ones(2, 2)
    with pytest.raises(ValueError, match="of both models"):
        exposure_bias(kl, mask, kl, mask, student_groups=torch.arange(2))

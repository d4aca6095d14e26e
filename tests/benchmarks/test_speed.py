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
"""The speed benchmarks run, on tiny models, and their arms do the same work."""

import pytest
import torch

from benchmarks import table
from benchmarks.speed import construction, rollout, training_step
from benchmarks.speed.measuring import in_turns, ratio
from trl_distill.divergence import completion_states, lm_head, token_divergence, token_logps


def test_arms_take_turns_and_the_warm_up_is_not_counted():
    calls = []

    def timed(arm, repeat):
        calls.append((repeat, arm))
        return float(len(calls))

    seconds = in_turns(["a", "b"], timed, repeats=2)
    assert calls == [(-1, "b"), (-1, "a"), (0, "a"), (0, "b"), (1, "b"), (1, "a")]
    assert seconds == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


def test_ratio_is_of_medians_with_the_spread_of_rounds():
    assert ratio([2.0, 4.0, 9.0], [1.0, 4.0, 3.0]) == {"of_medians": 4 / 3, "min": 1.0, "max": 3.0}


def test_lockstep_baseline_draws_from_the_mixture(tiny_model):
    # 4000 rows of one prompt: token frequencies against (1 - alpha) q + alpha p
    student, teacher = tiny_model(seed=1, vocab_size=6), tiny_model(seed=2, vocab_size=6)
    ids = torch.tensor([[1, 2]]).repeat(4000, 1)
    torch.manual_seed(0)
    drawn = rollout.both_every_step(student, teacher, ids, torch.ones_like(ids), 1, alpha=0.4)[:, 0]
    with torch.no_grad():
        q, p = (model(ids[:1]).logits[0, -1].softmax(-1) for model in (student, teacher))
    expected = 4000 * (0.6 * q + 0.4 * p)
    chi_square = ((drawn.bincount(minlength=6) - expected) ** 2 / expected).sum()
    assert chi_square < 20.5  # 5 degrees of freedom, p = 0.001
    assert ((drawn.bincount(minlength=6) - 4000 * q) ** 2 / (4000 * q)).sum() > 20.5  # the student alone would fail


def test_kept_tokens_stop_at_the_first_end():
    completion = torch.tensor([[1, 9, 2, 9], [1, 2, 3, 4], [9, 0, 0, 0]])
    assert rollout.kept_tokens(completion, [9, 8]) == 2 + 4 + 1


def test_rollout_benchmark_runs_and_its_table_prints(tiny_model, tokenizer, tmp_path, capsys):
    tiny_model(num_hidden_layers=4).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    output = tmp_path / "rollout.json"
    flags = "--student-layers 2 --batch-sizes 2 --new-tokens 6 --repeats 2 --alpha 0.5 --device cpu".split()
    result = rollout.main(["--teacher", str(tmp_path / "teacher"), "--output", str(output), *flags])
    settings = [(row["precision"], row["rows_end"]) for row in result["rows"]]
    assert settings == [(p, ends) for p in ("float32", "bf16-mixed") for ends in ("never", "at random")]
    assert all(row["teacher_calls_per_step"] == 0.5 for row in result["rows"] if row["rows_end"] == "never")
    capsys.readouterr()
    table.main([str(output)])
    assert "| float32 | 2 |" in capsys.readouterr().out


def test_training_step_benchmark_times_every_arm_and_its_memory():
    sizes = "--vocabularies 300 --hidden 64 --layers 1 --teacher-hidden 64 --teacher-layers 1 --batch-size 2"
    flags = f"{sizes} --prompt-tokens 4 --completion-tokens 4 --repeats 1 --device cpu".split()
    args = training_step.options().parse_args(flags)
    rows = training_step.measure(args, 300, rollout=False) + training_step.measure(args, 300, rollout=True)
    arms = {(row["arm"], row["rollout"]) for row in rows}
    assert arms == {(arm, False) for arm in training_step.ARMS if arm != training_step.DEFAULTS} | {
        (arm, True) for arm in training_step.ARMS if arm != training_step.DENSE
    }
    assert all(row["tokens_per_second"] > 0 for row in rows)
    # In a process of its own: the peak of this one is that of all tests before
    assert training_step.peak_of(args, 300, training_step.TRL) > 0


@pytest.mark.slow
def test_construction_benchmark_runs_and_its_table_prints(tmp_path, capsys):
    output = tmp_path / "construction.json"
    result = construction.main(["--prompts", "64", "--repeats", "1", "--output", str(output)])
    settings = [(row["kind"], row["arm"]) for row in result["rows"]]
    assert settings == [(kind, arm) for kind in ("standard", "conversational") for arm in construction.ARMS]
    assert all(row["seconds"]["median"] > 0 for row in result["rows"])
    capsys.readouterr()
    table.main([str(output)])
    assert "| 64 | conversational | MiniLLMTrainer |" in capsys.readouterr().out


def test_dense_loss_is_that_of_the_package(tiny_model):
    """What the dense arm computes is what the chunked functions give, or the comparison means nothing."""
    student, teacher = tiny_model(seed=1, vocab_size=50), tiny_model(seed=2, vocab_size=50)
    ids = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(0))
    prompt, completion = ids[:, :4], ids[:, 4:]
    rows = (prompt, torch.ones_like(prompt), completion, torch.ones_like(completion))
    states = [completion_states(model, *rows).flatten(0, 1) for model in (student, teacher)]
    heads = [lm_head(model) for model in (student, teacher)]
    logps, teacher_logps = (
        token_logps(state, head, completion.flatten()).view(3, 5) for state, head in zip(states, heads, strict=True)
    )
    kl, _ = token_divergence(states[0], heads[0], states[1], heads[1])
    # The first pass: the ratio is 1, and only its gradient has the credit; the value of the long-term loss is -mean(A)
    rewards = (teacher_logps - logps).detach()
    credit = torch.stack([rewards[:, t + 1 :].mean(1) if t < 4 else torch.zeros(3) for t in range(5)], dim=1)
    expected = (kl.view(3, 5) - credit * (logps - logps.detach()).exp()).mean()
    loss = training_step.dense_loss(student, teacher, ids, prompt_tokens=4)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(value, student.lm_head.weight)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)

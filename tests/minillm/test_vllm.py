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

"""
`use_vllm` with vLLM itself, on a CPU and in this process, and a teacher on its server.

CONTRIBUTING.md says how to make its environment. Every token that the engine draws is compared with what the student's
weights of that moment say.
"""

import contextlib
import itertools
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial

import pytest
import torch
from peft import LoraConfig
from trl.generation import vllm_generation

from tests.minillm.test_mixed_sampling import assert_drawn_from, count
from tests.runs import history, losses
from trl_distill.divergence import backbone_states
from trl_distill.minillm.mixed_sampling import roll_out


pytestmark = pytest.mark.slow
TEMPERATURE = 0.8
BLOCK = 128  # tokens that the prefix cache keeps together on CPUs


@pytest.fixture
def vllm_on_cpu(monkeypatch):
    """vLLM as TRL starts it, but for what its build for CPUs and a test of numbers need."""
    pytest.importorskip("vllm")
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("needs a build of vLLM for CPUs")

    def keep_weights(layer, remove_weight):
        layer.cpu_linear = torch.nn.functional.linear

    # On CPUs, a layer keeps a packed copy in place of its weight, and nothing can load a new one into it
    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", keep_weights)
    # By default a float32 model is rounded to bfloat16, and compiled for half a minute
    monkeypatch.setattr(vllm_generation, "LLM", partial(vllm_generation.LLM, dtype="float32", enforce_eager=True))
    variables = dict(os.environ)
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    yield
    os.environ.clear()  # TRL and vLLM have set some for the processes that they take this one for
    os.environ |= variables


@pytest.fixture
def engine_trainer(vllm_on_cpu, tiny_model, tokenizer, tmp_path, make_trainer):
    """Factory of a trainer whose engine is watched, and of the list of calls that it has answered."""
    # vLLM's kernels for CPUs want heads of this size
    shape = dict(hidden_size=64, num_attention_heads=1, num_key_value_heads=1, initializer_range=0.35)
    engines = []

    def build(teacher_ends=None, **values):
        folder = str(tmp_path / "student")
        tiny_model(seed=0, **shape).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        teacher = tiny_model(seed=1, **shape)
        teacher.generation_config.eos_token_id = teacher_ends or teacher.generation_config.eos_token_id
        engine = dict(use_vllm=True, vllm_max_model_length=256, temperature=TEMPERATURE)
        trainer = make_trainer(folder, teacher, **engine | values)
        engines.append(trainer.vllm_generation.llm.llm_engine.engine_core)
        return trainer, watched(trainer)

    yield build
    for engine in engines:
        engine.shutdown()  # else the garbage collector does, and ends the process group of the next test


def watched(trainer):
    """The outputs of each call of the engine from now on, each token held to the student's weights of the moment."""
    engine, calls = trainer.vllm_generation, []
    engine.logprobs = 0  # only that of the token that is drawn
    generate = engine.llm.generate

    def compare(*args, **kwargs):
        outputs = generate(*args, **kwargs)
        for output in outputs:
            theirs, own = two_readings(trainer.model, output)
            torch.testing.assert_close(theirs, own, rtol=1e-3, atol=1e-3)  # merging an adapter rounds
        calls.append(outputs)
        return outputs

    engine.llm.generate = compare
    return calls


def two_readings(model, output):
    """Log-probabilities `(T,)` of the tokens of one answer, by the engine that drew them and by the model."""
    ids, drawn = output.prompt_token_ids, output.outputs[0]
    theirs = [entry[token].logprob for entry, token in zip(drawn.logprobs, drawn.token_ids, strict=True)]
    own = next_logps(model, [ids + drawn.token_ids])[0, len(ids) - 1 : -1]
    return torch.tensor(theirs), own[range(len(theirs)), drawn.token_ids]


@torch.no_grad()
def next_logps(model, rows):
    """Log-probabilities `(b, T, V)` of what follows each token of rows of one length, in full precision."""
    ids = torch.tensor(rows)
    with torch.autocast("cpu", enabled=False):
        states = backbone_states(model, ids, torch.ones_like(ids))
        return (model.get_output_embeddings()(states) / TEMPERATURE).log_softmax(-1)


def two_token_probabilities(trainer, ids, alpha):
    """Probability of every completion of up to two tokens, each drawn from the mixture."""
    first, second = 0.0, 0.0
    for share, model in ((alpha, trainer.teacher_model), (1 - alpha, trainer.model)):
        first = first + share * next_logps(model, [ids])[0, -1].double().exp()
        following = [[*ids, token] for token in range(len(first))]
        second = second + share * next_logps(model, following)[:, -1].double().exp()
    ends = trainer.eos_token_ids
    probabilities = {(end,): first[end].item() for end in ends}
    for token in set(range(len(first))) - set(ends):
        row = (first[token] * second[token]).tolist()
        probabilities |= {(token, next_token): probability for next_token, probability in enumerate(row)}
    return probabilities


def assert_completions_of(probabilities, rows):
    """Pearson's test. All completions that are too rare for it are one."""
    frequent = {row for row, probability in probabilities.items() if probability * len(rows) >= 5}
    cells = {row: probabilities[row] for row in frequent}
    cells["rare"] = sum(probability for row, probability in probabilities.items() if row not in frequent)
    assert len(cells) > 10
    assert_drawn_from(count(row if row in frequent else "rare" for row in rows), cells)


@pytest.mark.parametrize(
    "alpha, settings",
    [
        (0.0, {}),
        (0.4, {}),
        (0.4, {"bf16": True}),
        (0.4, {"peft_config": LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")}),
        (0.0, {"bf16": True, "peft_config": LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")}),
    ],
    ids=["student", "mixed", "mixed-bf16", "mixed-adapter", "student-bf16-adapter"],
)
def test_every_set_is_drawn_with_the_weights_of_its_step(engine_trainer, prompts, alpha, settings):
    run = dict(num_iterations=2, max_steps=6, max_completion_length=16, eval_dataset=prompts.select(range(4)))
    trainer, calls = engine_trainer(teacher_mix_alpha=alpha, **run | settings)
    trainer.train()
    assert all(map(math.isfinite, losses(trainer) + losses(trainer, "grad_norm")))
    drawn = losses(trainer, "mix/student_calls") if alpha else [1, 1, 1]
    assert len(drawn) == 3 and len(calls) == sum(drawn)  # a set for two steps
    theirs, own = two_readings(trainer.model, calls[0][0])
    assert (theirs - own).abs().max() > 0.1  # the student has moved, so that old weights would be seen

    trained = len(calls)
    assert math.isfinite(trainer.evaluate()["eval_kl"]) and len(calls) == trained + 1


def test_a_second_run_is_drawn_with_the_weights_it_starts_from(engine_trainer):
    trainer, calls = engine_trainer(teacher_mix_alpha=0.0, num_iterations=2, max_steps=2)
    trainer.train()
    trainer.train()
    assert len(calls) == 2  # both at step 0


def test_a_run_of_the_students_tokens_is_one_call(engine_trainer):
    trainer, calls = engine_trainer(teacher_mix_alpha=0.3, num_iterations=1, max_steps=4, max_completion_length=40)
    trainer.train()
    logged = trainer.state.log_history[:4]
    assert [entry["ratio/mean"] for entry in logged] == pytest.approx([1] * 4, abs=1e-4)
    assert 0.1 < sum(entry["mix/teacher_share"] for entry in logged) / 4 < 0.5
    calls = iter(calls)
    for entry in logged:
        runs = list(itertools.islice(calls, int(entry["mix/student_calls"])))
        assert len(runs) > 3
        for earlier, later in itertools.pairwise(runs):
            ends = {tuple(output.prompt_token_ids + output.outputs[0].token_ids) for output in earlier}
            for output in later:  # which goes on where a run has ended, behind a token of the teacher or more
                assert any(tuple(output.prompt_token_ids[: len(end)]) == end for end in ends)
                assert tuple(output.prompt_token_ids) not in ends
    assert not list(calls)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_rollouts_are_samples_of_the_mixture(engine_trainer, tokenizer, alpha):
    trainer, _ = engine_trainer(teacher_mix_alpha=alpha, max_completion_length=2, learning_rate=3e-3)
    ids, rows = tokenizer("Say well")["input_ids"], 1500

    def draw(sets):
        trainer.model.train()
        if alpha == 0.0:
            return [tuple(row) for row in trainer._generate_single_turn([ids] * rows, None, {})]
        return [tuple(roll_out(trainer, [ids], rollout_set).completion_ids[0]) for rollout_set in sets]

    drawn, before = draw(range(rows)), two_token_probabilities(trainer, ids, alpha)
    assert_completions_of(before, drawn)
    for wrong in (0.6, alpha + 0.3):
        with pytest.raises(AssertionError, match="chi-square"):
            assert_completions_of(two_token_probabilities(trainer, ids, wrong), drawn)
    trainer.train()
    drawn = draw(range(rows, 2 * rows))
    assert_completions_of(two_token_probabilities(trainer, ids, alpha), drawn)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_completions_of(before, drawn)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_cached_prefix_goes_with_the_weights_that_made_it(engine_trainer, prompts, alpha):
    long = prompts.map(lambda row: {"prompt": row["prompt"] + BLOCK * "."}).select(range(4))
    settings = dict(num_iterations=1, max_steps=2, learning_rate=3e-3, max_completion_length=24)
    trainer, calls = engine_trainer(teacher_mix_alpha=alpha, train_dataset=long, **settings)
    ids, _ = trainer._tokenize_prompts(list(long["prompt"]))[:2]

    def cached():
        calls.clear()
        trainer.model.train()
        trainer._generate_single_turn(ids, None, {})
        return [{output.num_cached_tokens for output in outputs} for outputs in calls]

    first, second = cached(), cached()
    assert first == [{0}, *[{BLOCK}] * (len(first) - 1)]  # a row is read once, however many runs it has
    assert second == [{BLOCK}] * len(second)
    trainer.train()  # on the same prompts
    assert cached()[0] == {0} and cached()[0] == {BLOCK}


def test_answers_end_where_either_model_ends_one(engine_trainer, tokenizer):
    ends = list(range(100, 160))
    trainer, calls = engine_trainer(teacher_ends=ends, teacher_mix_alpha=0.3, max_steps=4, max_completion_length=16)
    trainer.train()
    assert set(trainer.eos_token_ids) == {*ends, tokenizer.eos_token_id}
    drawn = [output.outputs[0] for outputs in calls for output in outputs]
    assert all(token not in trainer.eos_token_ids for output in drawn for token in output.token_ids[:-1])
    stopped = [output for output in drawn if output.finish_reason == "stop"]
    assert stopped and all(output.token_ids[-1] in trainer.eos_token_ids for output in stopped)


@pytest.fixture
def teacher_server(vllm_on_cpu, tiny_model, tokenizer, tmp_path):
    """Address of a server of a tiny teacher in float32, and the teacher."""
    teacher = tiny_model(seed=1, hidden_size=64, num_attention_heads=1, num_key_value_heads=1)
    for part in (teacher, tokenizer):
        part.save_pretrained(tmp_path / "served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # In place of `vllm serve`, which asks for the version of a package that the build for CPUs has another name for
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path / "served")]
    command += ["--port", str(port), "--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            time.sleep(1)
            assert server.poll() is None, (tmp_path / "log").read_text()[-3000:]
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
        yield url, teacher
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def test_a_teacher_on_a_server_of_vllm_is_the_teacher_in_memory(teacher_server, make_trainer):
    url, teacher = teacher_server
    settings = dict(single_step_decomposition=False, whiten_advantages=True, teacher_mix_alpha=0.0, max_steps=4)
    runs = []
    for place in ({"teacher_model": teacher}, {"teacher_model_server_url": url}):
        trainer = make_trainer(**place, **settings)
        trainer.train()
        runs.append(history(trainer))
    assert len(runs[0]) == 4
    torch.testing.assert_close(*runs, atol=1e-5, rtol=1e-4)

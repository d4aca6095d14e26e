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

"""A teacher on a server trains as the same teacher in memory, and a server that fails costs no step."""

import contextlib
import json
import random
import re
import socket
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast

from tests.minillm.vllm_server import VLLMServer
from tests.runs import assert_same_weights, history
from trl_distill import MiniLLMConfig
from trl_distill.minillm.teacher_server import TeacherServer, TeacherServerError


SERVED = dict(single_step_decomposition=False, teacher_mix_alpha=0.0, length_normalization=False, num_iterations=2)
WHITE = SERVED | dict(whiten_advantages=True)
LEAVE_ONE_OUT = SERVED | dict(num_generations=2)


@pytest.fixture
def serve(tiny_model, tokenizer):
    """Servers of a teacher, that of `make_trainer` by default, which stop when the test ends."""
    with contextlib.ExitStack() as stack:

        def start(model=None, its_tokenizer=tokenizer, **settings):
            server = VLLMServer(model or tiny_model(seed=1), its_tokenizer, **settings)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def make_served(make_trainer, serve):
    """A trainer whose teacher is on a server, by default a fresh one, and does not let it wait."""

    def build(*args, server=None, **settings):
        server = server or serve()
        trainer = make_trainer(*args, teacher_model_server_url=server.url, **WHITE | settings)
        trainer._server.backoff = 0.01
        return trainer

    return build


class TestTraining:
    @pytest.mark.parametrize(
        "settings",
        [
            WHITE,
            LEAVE_ONE_OUT,
            LEAVE_ONE_OUT | WHITE | dict(gradient_accumulation_steps=2, steps_per_generation=4),
            WHITE | dict(score_from="forward", gamma=0.5, reward_clip=1.0),
            WHITE
            | dict(lm_max_length=32, peft_config=LoraConfig(target_modules="all-linear", init_lora_weights=False)),
        ],
        ids=["whitening", "leave-one-out", "both, in four micro-batches", "forward", "LoRA and plain text"],
    )
    def test_equals_a_teacher_in_memory(self, make_trainer, serve, settings, corpus):
        runs = []
        for teacher in ({}, {"teacher_model_server_url": serve().url}):
            torch.manual_seed(0)  # of the adapter
            data = {"lm_dataset": corpus} if "lm_max_length" in settings else {}
            trainer = make_trainer(optim="sgd", **data, **settings, **teacher)
            trainer.train()
            runs.append((history(trainer), torch.cat([p.detach().flatten() for p in trainer.model.parameters()])))
        (steps, weights), (served_steps, served_weights) = runs
        assert len(steps) == 4 and steps[:, 1].min() > 0.01
        torch.testing.assert_close(served_steps, steps, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(served_weights, weights, atol=1e-6, rtol=1e-5)

    def test_evaluation_reports_what_is_known(self, make_trainer, make_served, prompts):
        whole = make_trainer(eval_dataset=prompts, **WHITE).evaluate()
        metrics = make_served(eval_dataset=prompts).evaluate()
        names = ("eval_kl/sampled", "eval_kl/sampled_sequence", "eval_entropy", "eval_rougeL")
        assert metrics["eval_loss"] == metrics["eval_kl/sampled"]
        assert not {"eval_kl", "eval_kl/sequence", "eval_kl/forward"} & metrics.keys()
        for name in names:
            assert metrics[name] == pytest.approx(whole[name], rel=1e-4), name
        tokens = metrics["eval_completions/mean_length"]
        assert metrics["eval_kl/sampled_sequence"] == pytest.approx(tokens * metrics["eval_kl/sampled"], rel=1e-4)

    def test_a_token_that_the_teacher_forbids(self, make_served, serve, tiny_model):
        teacher = tiny_model(seed=1)
        teacher.lm_head.bias = torch.nn.Parameter(torch.zeros(260))
        server = serve(teacher)
        trainer = make_served(server=server)
        teacher.lm_head.bias.data[100:] = -torch.inf
        with pytest.raises(ValueError, match="teacher gives a log-probability that is not finite at step 0"):
            trainer.train()

    def test_a_prompt_with_a_token_that_the_server_does_not_know(self, make_served, serve, tokenizer):
        backend = json.loads(tokenizer.backend_tokenizer.to_str().replace("<|user|>", "<|human|>"))
        other = PreTrainedTokenizerFast(
            tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(backend))
        )
        server = serve(its_tokenizer=other)
        trainer = make_served(server=server)
        assert trainer._foreign == {2}
        chats = Dataset.from_dict({"prompt": [[{"role": "user", "content": f"Say {i}"}] for i in range(8)]})
        with pytest.raises(ValueError, match=r"reads token 2 in the prompt .* which the teacher does not have"):
            make_served(server=server, train_dataset=chats)

    def test_the_servers_context_bounds_prompts(self, make_served, serve, prompts, caplog):
        lengths = sorted(len(prompt) for prompt in prompts["prompt"])
        trainer = make_served(server=serve(max_model_len=lengths[-1] + 8))  # one token short of the longest
        assert len(trainer.train_dataset) == sum(length < lengths[-1] for length in lengths)
        trainer.train()


class TestRequests:
    def test_of_a_few_rows_in_flight_at_a_time(self, serve):
        server = serve()
        server.reply = lambda body: time.sleep(0.05)
        client = TeacherServer(server.url)
        sequences = [[5] * (2 + i % 7) for i in range(64)]
        logps = client.token_logps(sequences)
        assert [len(row) for row in logps] == [len(ids) - 1 for ids in sequences]
        assert 2 <= server.most_in_flight <= 4 and {len(body["prompt"]) for body in server.requests} == {8}

    def test_rows_without_tokens_are_not_sent(self, serve):
        server = serve()
        client = TeacherServer(server.url)
        rollouts = {
            "prompt_ids": torch.tensor([[0, 5], [6, 7], [8, 9]]),
            "prompt_mask": torch.tensor([[0, 1], [1, 1], [1, 1]]),
            "completion_ids": torch.tensor([[10, 11, 12], [13, 0, 0], [0, 0, 0]]),
            "completion_mask": torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]]),
        }
        logps = client.completion_logps(rollouts)
        assert server.requests[-1]["prompt"] == [[5, 10, 11, 12], [6, 7, 13]]
        expected = torch.zeros(3, 3)
        for row, (prompt, completion) in enumerate([([5], [10, 11, 12]), ([6, 7], [13])]):
            scores = server.model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
            for t, token in enumerate(completion):
                expected[row, t] = scores[len(prompt) + t - 1, token]
        torch.testing.assert_close(logps, expected)

    @pytest.mark.parametrize("answer", [(503, "busy"), (429, "busy"), (500, "oops"), (None, "cut")])
    def test_a_busy_server_is_asked_again(self, make_served, serve, answer):
        quiet = make_served()
        quiet.train()
        server = serve()
        trainer = make_served(server=server)
        refusals = [answer, answer]
        server.reply = lambda body: refusals.pop() if refusals else None
        numbers = random.getstate()
        trainer._server.token_logps([[5, 6]])
        assert refusals == [] and random.getstate() == numbers
        refusals += [answer, answer]
        trainer.train()
        assert refusals == []
        assert_same_weights(quiet.model, trainer.model)

    @pytest.mark.parametrize("status", [400, 404])
    def test_a_request_that_is_wrong_is_not_asked_again(self, serve, status):
        server = serve()
        server.reply = lambda body: (status, "no")
        client = TeacherServer(server.url)
        with pytest.raises(TeacherServerError, match=f"No answer from {server.url}/v1/completions: status {status}"):
            client.token_logps([[5, 6]])
        assert len(server.requests) == 1

    def test_this_machine_is_asked_without_a_proxy(self, serve, monkeypatch):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody is
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert TeacherServer(serve().url).token_logps([[5, 6]])

    def test_a_server_that_hangs(self, serve):
        server = serve()
        server.reply = lambda body: time.sleep(0.5)
        client = TeacherServer(server.url + "/v1/", timeout=0.05, backoff=0.01)
        with pytest.raises(TeacherServerError, match="timed out"):
            client.token_logps([[5, 6]])
        assert len(server.requests) <= 2  # no attempt is made once the time is over


class TestFailure:
    def run(self, make_served, server, output_dir, resume=None, breaks_at=None, **settings):
        """A run of six steps, four an epoch, whose server is gone from a step on."""
        values = dict(num_iterations=1, max_steps=6, output_dir=str(output_dir)) | settings
        trainer = make_served(server=server, **values)
        server.reply = lambda body: (503, str(time.time_ns())) if trainer.state.global_step == breaks_at else None
        if breaks_at is None:
            trainer.train(resume_from_checkpoint=resume)
            return trainer
        with pytest.raises(TeacherServerError) as stopped:
            trainer.train()
        return str(stopped.value)

    @pytest.mark.parametrize("step", [2, 4, 5])  # inside an epoch, between two, and inside the second
    def test_the_run_goes_on_as_if_nothing_had_happened(self, make_served, serve, tmp_path, step):
        server = serve()
        whole = self.run(make_served, server, tmp_path / "whole")
        message = self.run(make_served, server, tmp_path / "run", breaks_at=step)
        checkpoint = tmp_path / "run" / f"checkpoint-{step}"
        assert server.url in message and "status 503" in message
        assert f"stopped after step {step} and is saved in {checkpoint}" in message
        resumed = self.run(make_served, serve(), tmp_path / "run", resume=True)  # which has another address
        assert len(history(resumed)) == 6
        assert torch.equal(history(whole), history(resumed))
        assert_same_weights(whole.model, resumed.model)

    def test_a_checkpoint_that_is_there_stays(self, make_served, serve, tmp_path):
        settings = dict(save_strategy="steps", save_steps=2)
        message = self.run(make_served, serve(), tmp_path / "run", breaks_at=4, **settings)
        checkpoint = tmp_path / "run" / "checkpoint-4"
        assert f"saved in {checkpoint}" in message
        broke = int(re.search("status 503, '([0-9]+)'", message)[1])
        assert 0 < (checkpoint / "model.safetensors").stat().st_mtime_ns < broke

    def test_before_the_first_step(self, make_served, serve, tmp_path):
        assert "No step was finished" in self.run(make_served, serve(), tmp_path / "run", breaks_at=0)
        assert list(tmp_path.rglob("checkpoint-*")) == []

    def test_in_an_evaluation(self, make_served, serve, prompts, tmp_path):
        server = serve()
        trainer = make_served(server=server, eval_dataset=prompts, eval_strategy="steps", eval_steps=3)
        server.reply = lambda body: None if trainer.model.training else (503, "gone")
        with pytest.raises(TeacherServerError, match="after step 3 and is saved in .*checkpoint-3"):
            trainer.train()
        server.reply = None
        trainer = make_served(server=server, eval_dataset=prompts)
        server.reply = lambda body: (503, "gone")
        with pytest.raises(TeacherServerError, match=r"See the server's log\.$"):  # no run that could be saved
            trainer.evaluate()


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def without_prompt_logprobs(body):
    return 200, {"choices": [{"index": 0, "text": "x"} for _ in body["prompt"]]}


def logits(body):
    scores = [None, *({str(9): {"logprob": 3.5}} for _ in range(99))]
    return 200, {"choices": [{"index": i, "prompt_logprobs": scores} for i in range(len(body["prompt"]))]}


class TestBadServers:
    @pytest.mark.parametrize(
        ("reply", "expected"),
        [
            (without_prompt_logprobs, "does not return `prompt_logprobs`"),
            (lambda body: (200, {"choices": []}), "does not return `prompt_logprobs`"),
            (logits, "returns logits where log-probabilities belong"),
            (lambda body: (200, "<html>"), "what it sends is no JSON"),
            (lambda body: (401, "who are you?"), "status 401, 'who are you"),
        ],
    )
    def test_wrong_answers(self, make_served, serve, tmp_path, reply, expected):
        server = serve()
        server.reply = reply
        with pytest.raises(TeacherServerError, match=expected) as refused:
            make_served(server=server)
        assert server.url in str(refused.value) and list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("path", "expected"), [("", "refused"), ("/elsewhere", "status 404")])
    def test_wrong_addresses(self, make_trainer, serve, tmp_path, path, expected):
        url = serve().url + path if path else f"http://127.0.0.1:{closed_port()}"
        start = time.monotonic()
        with pytest.raises(TeacherServerError, match=f"No answer from {url}/v1/models: .*{expected}"):
            make_trainer(teacher_model_server_url=url, **WHITE)
        assert time.monotonic() - start < 5 and list(tmp_path.iterdir()) == []

    def test_another_tokenizer(self, make_served, serve, tokenizer, tmp_path):
        text = tokenizer.backend_tokenizer.to_str()
        swapped = text.replace('"a":', '"?":').replace('"b":', '"a":').replace('"?":', '"b":')
        other = PreTrainedTokenizerFast(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(swapped))
        with pytest.raises(TeacherServerError, match="in another way than the student's"):
            make_served(server=serve(its_tokenizer=other))
        assert list(tmp_path.iterdir()) == []

    def test_a_short_context(self, make_served, serve, tmp_path):
        with pytest.raises(TeacherServerError, match="reads 109 tokens, which leaves no room .* `--max-model-len`"):
            make_served(server=serve(max_model_len=109), max_completion_length=108)
        assert list(tmp_path.iterdir()) == []
        make_served(server=serve(max_model_len=140), max_completion_length=100)

    def test_a_student_with_more_rows(self, make_served, tiny_model, tmp_path):
        with pytest.raises(TeacherServerError, match=r"LM head has 264 rows.* 263 is out of vocab.* `resize_token"):
            make_served(tiny_model(vocab_size=264))
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            (dict(single_step_decomposition=True), r"Set `single_step_decomposition=False`\."),
            (dict(teacher_mix_alpha=0.2), r"Set `teacher_mix_alpha=0.0`\."),
            (dict(credit="exact"), r"Set `credit='sampled'`\."),
            (dict(lm_kd_ratio=0.5), r"Set `lm_kd_ratio=0.0`\."),
            (dict(temperature=0.7), r"at temperature 1 and no more. Set `temperature=1.0`\."),
            (dict(teacher_is_base=True), r"Set `teacher_is_base=False`\."),
            (dict(teacher_model_name_or_path="x"), r"Set `teacher_model_name_or_path=None`\."),
            (dict(whiten_advantages=False), "Set `whiten_advantages=True` or `num_generations` above 1"),
            (dict(teacher_model_server_url="localhost:8000"), "must look like http://localhost:8000"),
            (dict(teacher_model_server_url="http://me:secret@host"), "must look like"),
        ],
    )
    def test_what_a_server_cannot_do(self, tmp_path, changes, expected):
        settings = WHITE | dict(teacher_model_server_url="http://localhost:8000", bf16=False, use_cpu=True)
        MiniLLMConfig(str(tmp_path), **settings)
        with pytest.raises(ValueError, match=expected):
            MiniLLMConfig(str(tmp_path), **settings | changes)

    def test_a_second_teacher(self, make_trainer, tiny_model):
        with pytest.raises(ValueError, match="`teacher_model` beside `teacher_model_server_url`"):
            make_trainer(teacher_model=tiny_model(), teacher_model_server_url="http://localhost:8000", **WHITE)


def test_two_processes_end_alike_and_give_what_one_gives(
    on_one_and_two_processes, tmp_path, serve, tiny_model, tokenizer
):
    """The server refuses one row, which one of the processes asks for: both must stop, and both can go on."""
    tiny_model(seed=0).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    server, token, down = serve(), tokenizer.convert_tokens_to_ids("~"), tmp_path / "down"
    server.reply = lambda body: (
        (503, "down") if down.exists() and any(token in ids for ids in body["prompt"]) else None
    )
    (tmp_path / "url").write_text(server.url)
    one, two = on_one_and_two_processes(Path(__file__).with_name("run_served.py"), tmp_path)
    assert len(set(one.pop("messages"))) == len(set(two.pop("messages"))) == 1
    assert one["step"] == two["step"] > 0
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert one["resumed"] == one["whole"] and two["resumed"] == two["whole"]

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
"""Drawing answers: their probabilities, the file that a killed run continues, and what a server says."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.chat.chat_server import text_body
from tests.loop_fixtures import server  # noqa: F401
from trl_distill.chat import EndpointChatModel, LocalChatModel, Sampling, read_ledger
from trl_distill.chat.samples import draw_samples, read_samples, sample_requests, samples_to_file
from trl_distill.generation import generate_ids, generating, generation_config, pad_ids


WORDS = 40


@pytest.fixture(scope="module")
def words():
    """A tokenizer of words, so that the text of a completion says which tokens it has."""
    backend = Tokenizer(models.WordLevel({"<end>": 0} | {f"w{i}": i for i in range(1, WORDS)}, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")


@pytest.fixture
def word_model(tiny_model, tiny_gpt2):
    """Factory of models for `words`, with an end about every sixth token."""

    def build(kind="qwen2", seed=0):
        model = (tiny_gpt2 if kind == "gpt2" else tiny_model)(vocab_size=WORDS, seed=seed)
        model.generation_config.eos_token_id = 0
        with torch.no_grad():
            if kind == "gpt2":
                model.transformer.ln_f.bias.fill_(1.0)  # a part of the hidden state that is always there
                model.lm_head.weight[0] = 0.3
            else:
                model.lm_head.weight[1:] *= 0.5
        return model

    return build


@pytest.fixture
def questions():
    return [
        {"prompt": " ".join(f"w{1 + (i + k) % 39}" for k in range(1 + i % 4)), "answer": str(i)} for i in range(10)
    ]


class Counted(LocalChatModel):
    """A loaded model that counts its batches, and stops like a killed run after some of them."""

    def __init__(self, model, tokenizer, batch_size=6, left=None):
        super().__init__("tiny", batch_size=batch_size, load=lambda: (model, tokenizer), weights="tiny")
        self.left, self.asked = left, []

    def answer(self, batch):
        if len(self.asked) == self.left:
            raise KeyboardInterrupt
        self.asked.append(len(batch))
        return super().answer(batch)


def draw(model, tokenizer, rows, num_samples, batch_size=6, max_tokens=6, seed=42, **sampling):
    """The samples of each row, with log-probabilities."""
    sampling = Sampling(max_tokens=max_tokens, seed=seed, logprobs=True, **sampling)
    with Counted(model, tokenizer, batch_size) as local:
        return draw_samples(local, rows, num_samples, sampling)


def naive_mean_logp(model, tokenizer, prompt, completion, truncated):
    """One sequence, no padding, whole logits, float64."""
    prompt = tokenizer(prompt)["input_ids"]
    answer = tokenizer(completion)["input_ids"] + ([] if truncated else [0])
    with torch.no_grad():
        logits = model.double()(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    model.float()
    return logits.log_softmax(-1)[range(len(answer)), answer].mean().item()


def test_a_model_without_end_and_padding_generates_to_the_limit(tiny_model, words):
    model = tiny_model(vocab_size=WORDS)
    bare = PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer)
    config = generation_config(bare, [], 5, temperature=0.0)
    prompt = pad_ids([[3], [4, 5, 6]], config.pad_token_id, "left", model.device)
    assert prompt[0].tolist() == [[0, 0, 3], [4, 5, 6]] and prompt[1].tolist() == [[0, 0, 1], [1, 1, 1]]
    with generating([model]), torch.no_grad():
        assert [len(answer) for answer in generate_ids(model, *prompt, config)] == [5, 5]


class TestDrawSamples:
    @pytest.mark.parametrize("kind", ["qwen2", "gpt2", "lora"])
    @pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.8}])
    def test_log_probabilities_and_ends(self, word_model, words, questions, kind, sampling):
        model = word_model(kind)
        if kind == "lora":
            model = get_peft_model(model, LoraConfig(init_lora_weights=False))
        samples = draw(model, words, questions, 3, **sampling)
        assert len(samples) == 10
        truncated = [flag for of_one in samples for flag in of_one.truncated]
        assert 2 < sum(truncated) < 28  # both kinds
        for question, of_one in zip(questions, samples, strict=True):
            assert [len(values) for values in of_one] == [3, 3, 3]
            for text, logp, cut in zip(*of_one, strict=True):
                assert len(text.split()) == 6 if cut else len(text.split()) < 6
                expected = naive_mean_logp(model, words, question["prompt"], text, cut)
                assert logp == pytest.approx(expected, rel=1e-4)

    def test_frequencies_are_the_probabilities(self, word_model, words):
        model, prompt = word_model(), {"prompt": "w3 w4"}
        with torch.no_grad():
            p = (model(torch.tensor([[3, 4]])).logits[0, -1] / 0.8).softmax(-1)
        [drawn] = draw(model, words, [prompt], 4000, max_tokens=1, batch_size=2000, temperature=0.8)
        counts = torch.zeros(WORDS)
        for text in drawn.completions:
            counts[words(text)["input_ids"][0] if text else 0] += 1
        error = (counts / 4000 - p) / (p * (1 - p) / 4000).sqrt()
        assert error.abs().max() < 4.5

    def test_greedy_and_its_limits(self, word_model, words, questions):
        model = word_model()
        greedy = draw(model, words, questions, 1, temperature=0.0)
        for sampling in ({"temperature": 1e-4}, {"top_p": 1e-6}):
            limit = draw(model, words, questions, 1, **sampling)
            assert [s.completions for s in limit] == [s.completions for s in greedy]
        for batch_size in (1, 10):  # padding changes nothing
            for alone, together in zip(
                draw(model, words, questions, 1, temperature=0.0, batch_size=batch_size), greedy, strict=True
            ):
                assert alone.completions == together.completions
                assert alone.mean_logps == pytest.approx(together.mean_logps, rel=1e-4)

    def test_draws_follow_from_the_requests_alone(self, word_model, words, questions):
        plain, model = word_model(), word_model().train()
        model.generation_config.repetition_penalty = 9.0  # the model's own settings do not count
        torch.manual_seed(1)
        whole = draw(model, words, questions, 2)
        after = torch.rand(1)
        torch.manual_seed(1)
        assert torch.rand(1) == after and model.training and model.generation_config.repetition_penalty == 9
        assert draw(plain, words, questions, 2) == whole
        assert [s.completions[:2] for s in draw(plain, words, questions[:9], 2)] != [s.completions for s in whole[:9]]

    def test_equal_prompts_and_seeds_share_no_random_numbers(self, word_model, words):
        rows = [{"prompt": "w3 w4"}] * 3
        drawn = [s for seed in (42, 43) for s in draw(word_model(), words, rows, 2, 2, 8, seed)]
        assert len({text for samples in drawn for text in samples.completions}) > 6
        assert len({tuple(samples.mean_logps) for samples in drawn}) == 6

    def test_more_samples_than_a_batch_holds(self, word_model, words, questions):
        samples = draw(word_model(), words, questions[:2], 7, batch_size=3)
        assert [len(of_one.completions) for of_one in samples] == [7, 7]

    def test_conversations_are_rendered(self, tiny_model, tokenizer):
        chat = [{"role": "user", "content": "Hi"}]
        end = tokenizer.eos_token
        rows = [{"prompt": chat}, {"prompt": [*chat, {"role": "assistant", "content": "We"}]}]
        texts = [{"prompt": f"<|user|>Hi{end}<|assistant|>"}, {"prompt": f"<|user|>Hi{end}<|assistant|>We"}]
        settings = dict(num_samples=1, temperature=0.0, max_tokens=5)
        assert draw(tiny_model(), tokenizer, Dataset.from_list(rows[:1]), **settings) == draw(
            tiny_model(), tokenizer, texts[:1], **settings
        )
        assert draw(tiny_model(), tokenizer, rows, **settings) == draw(tiny_model(), tokenizer, texts, **settings)

    def test_rows_may_have_values_for_the_template(self, tiny_model, tokenizer):
        named = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            eos_token=tokenizer.eos_token,
            chat_template="{{ who }}: {{ messages[0]['content'] }}",
        )
        rows = [{"prompt": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": {"who": who}} for who in "ab"]
        settings = dict(num_samples=1, temperature=0.0, max_tokens=5)
        expected = draw(tiny_model(), named, [{"prompt": "a: Hi"}, {"prompt": "b: Hi"}], **settings)
        assert draw(tiny_model(), named, rows, **settings) == expected

    @pytest.mark.parametrize(
        ("rows", "settings", "message"),
        [
            ([], {}, "has no rows"),
            ([{"question": "x"}], {}, "Row 0 has no `prompt`"),
            ([{"prompt": "w1"}, {"prompt": ""}], {}, "Row 1 has an empty `prompt`"),
            ([{"prompt": "w1"}, {"prompt": "  "}], {}, "The tokenizer finds no token in the prompt of row 2, '  '"),
            ([{"prompt": "w1"}], {"temperature": -0.1}, "`temperature` must be 0"),
            ([{"prompt": "w1"}], {"temperature": 0}, "all 2 samples of a prompt are the same"),
            ([{"prompt": "w1"}], {"top_p": 0}, "`top_p`"),
            ([{"prompt": "w1"}], {"num_samples": 0}, "`num_samples`"),
            ([{"prompt": "w1"}], {"max_tokens": 0}, "`max_tokens`"),
            ([{"prompt": "w1"}], {"batch_size": 0}, "`batch_size`"),
            ([{"prompt": "w1"}], {"seed": -1}, "`seed`"),
        ],
    )
    def test_bad_input(self, word_model, words, rows, settings, message):
        with pytest.raises(ValueError, match=message):
            draw(word_model(), words, rows, **{"num_samples": 2} | settings)


def answered(path):
    """Calls with an answer in a store, also while a run writes it."""
    try:
        return sum(row.calls - row.failures - row.unanswered for row in read_ledger(path))
    except (OSError, ValueError):  # it is not there yet
        return 0


class TestFile:
    @pytest.fixture
    def to_file(self, word_model, words, questions, tmp_path):
        def call(model=None, rows=questions, name="samples.jsonl", num_samples=2, left=None, **sampling):
            self.model = Counted(model or word_model(), words, left=left)
            sampling = Sampling(**{"max_tokens": 6, "seed": 42, "logprobs": True} | sampling)
            return samples_to_file(tmp_path / name, self.model, rows, num_samples, sampling, progress=False)

        return call

    def test_rows(self, to_file, word_model, words, questions, tmp_path):
        rows = to_file()
        path = tmp_path / "samples.jsonl"
        assert [json.loads(line) for line in path.read_text().splitlines()] == rows == read_samples(path)
        samples = draw(word_model(), words, questions, 2)
        assert rows == [question | s._asdict() for question, s in zip(questions, samples, strict=True)]
        names = ["prompt", "answer", "completions", "mean_logps", "truncated"]
        assert Dataset.from_json(str(path)).column_names == names

    def test_of_a_complete_file_nothing_is_drawn(self, to_file, tmp_path):
        rows = to_file()
        written = (tmp_path / "samples.jsonl").stat().st_mtime_ns
        assert to_file() == rows and (tmp_path / "samples.jsonl").stat().st_mtime_ns == written
        assert self.model.asked == []

    def test_a_file_without_its_calls_is_not_taken_for_ours(self, to_file, tmp_path):
        to_file()
        (tmp_path / "samples.jsonl.calls.sqlite").unlink()
        with pytest.raises(ValueError, match="exists without its calls in samples.jsonl.calls.sqlite"):
            to_file()
        assert self.model.asked == []

    def test_log_probabilities_draw_nothing_else(self, to_file):
        with_logps, without = to_file(), to_file(name="other.jsonl", logprobs=False)
        assert [row["completions"] for row in without] == [row["completions"] for row in with_logps]
        assert {logp for row in without for logp in row["mean_logps"]} == {None}

    def test_keys_with_nothing_in_them_are_no_part_of_a_message(self):
        rows = [{"prompt": [{"role": "user", "content": "w1", "name": None}]}]
        assert sample_requests(rows, 1, Sampling())[0].messages == [{"role": "user", "content": "w1"}]

    @pytest.mark.parametrize("stops", [[0], [2], [3], [1, 1, 1]])
    def test_goes_on_where_it_stopped(self, to_file, tmp_path, stops):
        for left in stops:
            with pytest.raises(KeyboardInterrupt):
                to_file(left=left)
            assert not (tmp_path / "samples.jsonl").exists()
        to_file()
        assert self.model.asked == [6, 6, 6, 2][sum(stops) :]
        to_file(name="whole.jsonl")
        assert (tmp_path / "samples.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()

    @pytest.mark.parametrize(
        "change",
        [{"seed": 7}, {"temperature": 0.5}, {"num_samples": 3}, {"rows": [{"prompt": "w1"}]}, {"logprobs": False}],
    )
    def test_a_file_of_other_settings_is_refused_before_anything_is_drawn(self, to_file, tmp_path, change):
        to_file()
        before = (tmp_path / "samples.jsonl").read_bytes()
        with pytest.raises(ValueError, match="samples.jsonl exists and holds something else than these samples"):
            to_file(**change)
        assert self.model.asked == [] and (tmp_path / "samples.jsonl").read_bytes() == before

    def test_other_settings_before_the_file_is_there_are_not_mixed(self, to_file, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            to_file(left=2)
        to_file(seed=7)
        to_file(seed=7, name="whole.jsonl")
        assert (tmp_path / "samples.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()

    def test_a_column_that_changed_is_seen(self, to_file, questions):
        to_file()
        with pytest.raises(ValueError, match="holds something else"):
            to_file(rows=[question | {"answer": "other"} for question in questions])
        assert self.model.asked == []

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"temperature": -1}, "`temperature` must be 0"),
            ({"temperature": 0}, "all 2 samples of a prompt are the same"),
            (
                {"rows": [{"prompt": "w1"}, {"prompt": "w1 " * 9}], "max_tokens": 505},
                "1 of 2 prompts leave no room for 505 new tokens in the context of 512, .* row 1 with 9",
            ),
            ({"rows": [{"prompt": "w1", "answer": {1}}]}, "cannot be written as JSON"),
            ({"rows": [{"prompt": {1}}]}, "cannot be written as JSON"),
            ({"rows": [{"prompt": 7}]}, "a text or a list of messages, got 7"),
        ],
    )
    def test_a_mistake_leaves_nothing_behind(self, to_file, tmp_path, changes, message):
        with pytest.raises(ValueError, match=message):
            to_file(**changes)
        assert not list(tmp_path.iterdir())
        assert len(to_file()) == 10

    def test_files_of_others_are_left_alone(self, to_file, tmp_path):
        (tmp_path / "samples.jsonl").write_text("mine")
        with pytest.raises(ValueError, match="exists without its calls in .* Choose another file"):
            to_file()
        assert (tmp_path / "samples.jsonl").read_text() == "mine"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"prompt": "x", "completions": ["y"]}\n{"prompt": "x", "comp', "Line 2 of .* is no JSON"),
            ('{"prompt": "x", "completion": "y"}', "row 1 is no row of samples"),
            ('{"prompt": "x", "completions": ["y"], "mean_logps": []}', "has 1 `completions`, but 0 `mean_logps`"),
            ('{"prompt": "x", "completions": []}', "row 1 has no candidates"),
            ("", "has no rows"),
        ],
    )
    def test_bad_files(self, tmp_path, text, message):
        (tmp_path / "samples.jsonl").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_samples(tmp_path / "samples.jsonl")

    def test_kill_and_go_on(self, word_model, words, tmp_path):
        """`kill -9` of a real process; what goes on after it ends in the file of an uninterrupted run."""
        word_model().save_pretrained(tmp_path / "model")
        words.save_pretrained(tmp_path / "model")
        rows = [{"prompt": f"w{1 + i % 39}", "answer": i} for i in range(40)]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        script = (
            "import json, sys; from pathlib import Path\n"
            "from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast\n"
            "from trl_distill.chat import LocalChatModel, Sampling, samples_to_file\n"
            "folder = Path(sys.argv[1])\n"
            "kinds = AutoModelForCausalLM, PreTrainedTokenizerFast\n"
            "loaded = [kind.from_pretrained(folder / 'model') for kind in kinds]\n"
            "model = LocalChatModel(str(folder / 'model'), batch_size=1, load=lambda: loaded)\n"
            "rows = json.loads((folder / 'rows.json').read_text())\n"
            "samples_to_file(folder / 'killed.jsonl', model, rows, 1, Sampling(max_tokens=8, logprobs=True))\n"
        )
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=env, stderr=subprocess.DEVNULL)
        store, deadline = tmp_path / "killed.jsonl.calls.sqlite", time.monotonic() + 300
        while answered(store) < 4:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed.jsonl").exists() and 4 <= answered(store) < 40

        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model"), words
        model = LocalChatModel(str(tmp_path / "model"), batch_size=1, load=lambda: loaded)
        for name in ("killed", "whole"):
            samples_to_file(tmp_path / f"{name}.jsonl", model, rows, 1, Sampling(max_tokens=8, logprobs=True))
        assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
        [ledger] = read_ledger(store)
        assert ledger.calls - ledger.unanswered == 40 and ledger.unanswered <= 1  # nothing answered was asked again


class TestServer:
    @pytest.fixture
    def from_server(self, server, tmp_path, monkeypatch):  # noqa: F811
        monkeypatch.setenv("TEST_KEY", "sk-secret")
        server.reply = self.reply

        def call(rows, num_samples=2, name="samples.jsonl", concurrency=8, max_attempts=6, **sampling):
            model = EndpointChatModel(
                "model-x",
                server.base_url,
                api_key_env="TEST_KEY",
                concurrency=concurrency,
                max_attempts=max_attempts,
                backoff=0.001,
            )
            sampling = Sampling(**{"seed": 42, "logprobs": True} | sampling)
            return samples_to_file(tmp_path / name, model, rows, num_samples, sampling, progress=False)

        return call

    @staticmethod
    def reply(body, attempt, headers):
        """An answer that names the prompt and the request's seed, cut if that is odd."""
        chat = "messages" in body
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        logps = [-0.25, -1.0] if body.get("logprobs") else None
        return text_body(f"{prompt}: {body['seed']}", "length" if body["seed"] % 2 else "stop", logps, chat)

    @pytest.mark.parametrize("chat", [False, True])
    def test_rows(self, from_server, server, tmp_path, chat):  # noqa: F811
        def prompt(text):
            return [{"role": "user", "content": text}] if chat else text

        rows = [{"prompt": prompt(f"q{i}"), "answer": i, "chat_template_kwargs": {"k": i}} for i in range(12)]
        done = from_server(rows, temperature=0.7, top_p=0.9, max_tokens=33)
        assert done == read_samples(tmp_path / "samples.jsonl") and len(server.requests) == 24
        for i, row in enumerate(done):
            assert row["prompt"] == prompt(f"q{i}") and row["answer"] == i
            seeds = [int(text.removeprefix(f"q{i}: ")) for text in row["completions"]]
            assert row["mean_logps"] == [-0.625, -0.625] and row["truncated"] == [seed % 2 == 1 for seed in seeds]
            assert len(set(seeds)) == 2
        assert set(server.paths) == {"/v1/chat/completions" if chat else "/v1/completions"}
        assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-secret"}
        for body in server.requests:
            assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("model-x", 0.7, 0.9, 33)
        assert sorted(body["chat_template_kwargs"]["k"] for body in server.requests) == sorted([*range(12)] * 2)
        files = [file for file in tmp_path.iterdir() if file.is_file()]
        assert files and all(b"sk-secret" not in file.read_bytes() for file in files)

    def test_no_log_probabilities(self, from_server, server):  # noqa: F811
        (row,) = from_server([{"prompt": [{"role": "user", "content": "q"}]}], logprobs=False)
        assert row["mean_logps"] == [None, None] and "logprobs" not in server.requests[0]

    def test_a_server_that_reports_no_log_probabilities(self, from_server, server):  # noqa: F811
        server.reply = lambda body, *_: text_body("a")
        assert from_server([{"prompt": "q"}])[0]["mean_logps"] == [None, None]

    def test_faults_are_retried(self, from_server, server):  # noqa: F811
        faults = {
            "busy": [(429, {}, {}), (503, {}, {})],
            "broken": [(500, {}, {})],
            "cut": [(200, server.CUT, {})],
            "empty": [{"choices": []}] * 2,
        }

        def reply(body, attempt, headers):
            replies = faults[body["prompt"]]
            return replies[attempt - 1] if attempt <= len(replies) else self.reply(body, attempt, headers)

        server.reply = reply
        done = from_server([{"prompt": name} for name in faults], num_samples=1)
        assert [row["completions"][0].partition(":")[0] for row in done] == ["busy", "broken", "cut", "empty"]
        assert len(server.requests) == 3 + 2 + 2 + 3

    @pytest.mark.parametrize(
        ("reply", "message"),
        [
            (
                (500, {"error": {"message": "ill"}}, {}),
                "1 of 3 calls of model-x failed, .* row 1: .*ill.*What came is",
            ),
            ((401, {"error": {"message": "you"}}, {}), "refuses model-x: .*401.*you.* TEST_KEY"),
            ((404, {}, {}), "refuses model-x: .*404.* Check the name, the address"),
            ({"choices": []}, "row 1: no choice in the answer"),
            ((200, "<html>hello</html>", {"Content-Type": "text/html"}), "row 1: no choice in the answer, .*hello"),
        ],
    )
    def test_lasting_faults_stop_the_run_and_keep_what_is_there(self, from_server, server, tmp_path, reply, message):  # noqa: F811
        rows = [{"prompt": name} for name in ("good", "bad", "late")]
        server.reply = lambda body, *rest: reply if body["prompt"] == "bad" else self.reply(body, *rest)
        with pytest.raises(ConnectionError, match=message):
            from_server(rows, num_samples=1, max_attempts=2, concurrency=1)
        assert not (tmp_path / "samples.jsonl").exists()
        server.reply = self.reply
        server.requests.clear()
        done = from_server(rows, num_samples=1)
        assert "good" not in [body["prompt"] for body in server.requests]
        assert done == from_server(rows, num_samples=1, name="whole.jsonl")

    def test_texts_that_no_file_can_hold(self, from_server, server):  # noqa: F811
        server.reply = lambda *_: text_body("a\ud83d")
        (row,) = from_server([{"prompt": "q"}], num_samples=1)
        assert row["completions"] == ["a?"]

    def test_bad_rows(self, from_server, server):  # noqa: F811
        with pytest.raises(ValueError, match="Row 1 has no `prompt`"):
            from_server([{"prompt": "q"}, {"question": "q"}])
        assert not server.requests

    def test_a_key_that_is_named_and_not_there(self, from_server, server, monkeypatch):  # noqa: F811
        monkeypatch.delenv("TEST_KEY")
        with pytest.raises(ValueError, match="set the environment variable TEST_KEY"):
            from_server([{"prompt": "q"}])
        assert not server.requests

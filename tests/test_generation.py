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

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from trl_distill.generation import read_samples, sample_completions, sample_server_to_file, sample_to_file


WORDS = 40
SETTINGS = dict(max_new_tokens=6, batch_size=6)


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


def draw(*args, **kwargs):
    """All batches of `sample_completions` in one dictionary."""
    return {i: samples for batch in sample_completions(*args, **kwargs) for i, samples in batch.items()}


def naive_mean_logp(model, tokenizer, prompt, completion, truncated):
    """One sequence, no padding, whole logits, float64."""
    prompt = tokenizer(prompt)["input_ids"]
    answer = tokenizer(completion)["input_ids"] + ([] if truncated else [0])
    with torch.no_grad():
        logits = model.double()(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    model.float()
    return logits.log_softmax(-1)[range(len(answer)), answer].mean().item()


class TestSampleCompletions:
    @pytest.mark.parametrize("kind", ["qwen2", "gpt2", "lora"])
    @pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_p": 0.8}])
    def test_log_probabilities_and_ends(self, word_model, words, questions, kind, settings):
        model = word_model(kind)
        if kind == "lora":
            model = get_peft_model(model, LoraConfig(init_lora_weights=False))
        samples = draw(model, words, questions, 3, **SETTINGS, **settings)
        assert sorted(samples) == list(range(10))
        truncated = [flag for of_one in samples.values() for flag in of_one.truncated]
        assert 2 < sum(truncated) < 28  # both kinds
        for i, of_one in samples.items():
            assert [len(values) for values in of_one] == [3, 3, 3]
            for text, logp, cut in zip(*of_one, strict=True):
                assert len(text.split()) == 6 if cut else len(text.split()) < 6
                expected = naive_mean_logp(model, words, questions[i]["prompt"], text, cut)
                assert logp == pytest.approx(expected, rel=1e-4)

    def test_frequencies_are_the_probabilities(self, word_model, words):
        model, prompt = word_model(), {"prompt": "w3 w4"}
        with torch.no_grad():
            p = (model(torch.tensor([[3, 4]])).logits[0, -1] / 0.8).softmax(-1)
        drawn = draw(model, words, [prompt], 4000, max_new_tokens=1, batch_size=2000, temperature=0.8)[0]
        counts = torch.zeros(WORDS)
        for text in drawn.completions:
            counts[words(text)["input_ids"][0] if text else 0] += 1
        error = (counts / 4000 - p) / (p * (1 - p) / 4000).sqrt()
        assert error.abs().max() < 4.5

    def test_greedy_and_its_limits(self, word_model, words, questions):
        model = word_model()
        greedy = draw(model, words, questions, 1, temperature=0.0, **SETTINGS)
        for setting in ({"temperature": 1e-4}, {"top_p": 1e-6}):
            assert [s.completions for s in draw(model, words, questions, 1, **setting, **SETTINGS).values()] == [
                s.completions for s in greedy.values()
            ]
        for batch_size in (1, 10):  # padding changes nothing
            for i, samples in draw(
                model, words, questions, 1, temperature=0.0, max_new_tokens=6, batch_size=batch_size
            ).items():
                assert samples.completions == greedy[i].completions
                assert samples.mean_logps == pytest.approx(greedy[i].mean_logps, rel=1e-4)

    def test_a_batch_depends_on_its_number_and_the_seed_alone(self, word_model, words, questions):
        plain, model = word_model(), word_model().train()
        model.generation_config.repetition_penalty = 9.0  # the model's own settings do not count
        torch.manual_seed(1)
        whole = list(sample_completions(model, words, questions, 2, **SETTINGS))
        after = torch.rand(1)
        torch.manual_seed(1)
        assert torch.rand(1) == after and model.training and model.generation_config.repetition_penalty == 9
        assert list(sample_completions(plain, words, questions, 2, **SETTINGS)) == whole
        assert [len(batch) for batch in whole] == [3, 3, 3, 1]  # three prompts, twice each, are six completions
        lengths = [len(questions[i]["prompt"].split()) for batch in whole for i in batch]
        assert lengths == sorted(lengths, reverse=True)
        for start in range(5):
            assert list(sample_completions(model, words, questions, 2, **SETTINGS, start_batch=start)) == whole[start:]

    def test_batches_and_seeds_share_no_random_numbers(self, word_model, words):
        rows, settings = [{"prompt": "w3 w4"}] * 3, dict(max_new_tokens=8, batch_size=2)
        drawn = [draw(word_model(), words, rows, 2, seed=seed, **settings)[i] for seed in (42, 43) for i in range(3)]
        assert len({text for samples in drawn for text in samples.completions}) > 6
        assert len({tuple(samples.mean_logps) for samples in drawn}) == 6

    def test_more_samples_than_a_batch_holds(self, word_model, words, questions):
        samples = draw(word_model(), words, questions[:2], 7, max_new_tokens=6, batch_size=3)
        assert [len(of_one.completions) for of_one in samples.values()] == [7, 7]

    def test_conversations_are_rendered(self, tiny_model, tokenizer):
        chat = [{"role": "user", "content": "Hi"}]
        end = tokenizer.eos_token
        rows = [{"prompt": chat}, {"prompt": [*chat, {"role": "assistant", "content": "We"}]}]
        texts = [{"prompt": f"<|user|>Hi{end}<|assistant|>"}, {"prompt": f"<|user|>Hi{end}<|assistant|>We"}]
        settings = dict(num_samples=1, temperature=0.0, max_new_tokens=5)
        assert draw(tiny_model(), tokenizer, Dataset.from_list(rows[:1]), **settings) == draw(
            tiny_model(), tokenizer, texts[:1], **settings
        )
        assert draw(tiny_model(), tokenizer, rows, **settings) == draw(tiny_model(), tokenizer, texts, **settings)

    @pytest.mark.parametrize(
        ("rows", "settings", "message"),
        [
            ([], {}, "has no rows"),
            ([{"question": "x"}], {}, "Row 0 has no `prompt`"),
            ([{"prompt": "w1"}, {"prompt": ""}], {}, "Row 1 has an empty `prompt`"),
            ([{"prompt": "w1"}, {"prompt": "  "}], {}, "The tokenizer finds no token in the prompt of row 1, '  '"),
            (
                [{"prompt": "w1"}, {"prompt": "w1 " * 9}],
                {"max_new_tokens": 505},
                "1 of 2 prompts leave no room .* row 1 with 9",
            ),
            ([{"prompt": "w1"}], {"temperature": -0.1}, "`temperature` must be 0"),
            ([{"prompt": "w1"}], {"temperature": 0}, "all 2 samples of a prompt are the same"),
            ([{"prompt": "w1"}], {"top_p": 0}, "`top_p`"),
            ([{"prompt": "w1"}], {"num_samples": 0}, "`num_samples`"),
            ([{"prompt": "w1"}], {"max_new_tokens": 0}, "`max_new_tokens`"),
            ([{"prompt": "w1"}], {"batch_size": 0}, "`batch_size`"),
            ([{"prompt": "w1"}], {"seed": -1}, "`seed`"),
        ],
    )
    def test_bad_input(self, word_model, words, rows, settings, message):
        with pytest.raises(ValueError, match=message):
            sample_completions(word_model(), words, rows, **{"num_samples": 2} | settings)


class TestFile:
    @pytest.fixture
    def to_file(self, word_model, words, questions, tmp_path):
        def call(model=None, rows=questions, name="samples.jsonl", num_samples=2, **changes):
            settings = SETTINGS | {"model_name": "tiny", "progress": False} | changes
            return sample_to_file(tmp_path / name, rows, model or word_model(), words, num_samples, **settings)

        return call

    @pytest.fixture
    def stop_after(self, to_file, word_model, tmp_path):
        """Let a run break off after some batches; returns the bytes that it left."""

        def call(batches):
            model, calls = word_model(), []
            generate = model.generate

            def generate_some(*args, **kwargs):
                calls.append(1)
                if len(calls) > batches:
                    raise KeyboardInterrupt
                return generate(*args, **kwargs)

            model.generate = generate_some
            with pytest.raises(KeyboardInterrupt):
                to_file(model)
            assert not (tmp_path / "samples.jsonl").exists()
            return (tmp_path / "samples.jsonl.part").read_bytes()

        return call

    def test_rows(self, to_file, word_model, words, questions, tmp_path):
        rows = to_file()
        path = tmp_path / "samples.jsonl"
        assert [json.loads(line) for line in path.read_text().splitlines()] == rows == read_samples(path)
        samples = draw(word_model(), words, questions, 2, **SETTINGS)
        for i, row in enumerate(rows):
            assert row == questions[i] | samples[i]._asdict()
        assert sorted(file.name for file in tmp_path.iterdir()) == ["samples.jsonl", "samples.jsonl.settings.json"]
        settings = json.loads((tmp_path / "samples.jsonl.settings.json").read_text())
        assert settings["model"] == "tiny" and settings["seed"] == 42 and len(settings["dataset_sha256"]) == 64
        assert Dataset.from_json(str(path)).column_names == [
            "prompt",
            "answer",
            "completions",
            "mean_logps",
            "truncated",
        ]

    def test_a_complete_file_is_read(self, to_file, word_model, tmp_path):
        rows = to_file()
        written = (tmp_path / "samples.jsonl").stat().st_mtime_ns
        broken = word_model()
        broken.generate = None  # nothing may be drawn
        assert to_file(broken) == rows and (tmp_path / "samples.jsonl").stat().st_mtime_ns == written

    @pytest.mark.parametrize("cut", ["header", "after header", "batch", "last byte", "nothing"])
    def test_goes_on_where_it_stopped(self, to_file, stop_after, word_model, tmp_path, cut):
        stopped = stop_after(2)
        lines = stopped.splitlines(keepends=True)
        assert len(lines) == 3  # settings and two batches
        sizes = {"header": 20, "after header": len(lines[0]), "batch": len(lines[0] + lines[1]) + 30}
        sizes |= {"last byte": len(stopped) - 1, "nothing": len(stopped)}
        (tmp_path / "samples.jsonl.part").write_bytes(stopped[: sizes[cut]])
        model, calls = word_model(), []
        generate = model.generate
        model.generate = lambda *args, **kwargs: calls.append(1) or generate(*args, **kwargs)
        to_file(model)
        assert len(calls) == {"header": 4, "after header": 4, "batch": 3, "last byte": 3, "nothing": 2}[cut]
        to_file(name="whole.jsonl")
        assert (tmp_path / "samples.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
        assert not (tmp_path / "samples.jsonl.part").exists()

    def test_stops_often(self, to_file, stop_after, tmp_path):
        for _ in range(3):
            journal = stop_after(1)
            (tmp_path / "samples.jsonl.part").write_bytes(journal + journal[-40:-1])  # as if killed in the next line
        to_file()
        to_file(name="whole.jsonl")
        assert (tmp_path / "samples.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seed": 7}, "`seed=42`, but now it is 7"),
            ({"temperature": 0.5}, "`temperature=1.0`, but now it is 0.5"),
            ({"num_samples": 3}, "`num_samples=2`, but now it is 3"),
            ({"model_name": "other"}, "`model='tiny'`, but now it is 'other'"),
            ({"rows": [{"prompt": "w1"}]}, "`dataset_sha256=.*`, but now it is "),
        ],
    )
    @pytest.mark.parametrize("complete", [False, True])
    def test_other_settings_are_refused(self, to_file, stop_after, change, message, complete):
        stop_after(1)
        if complete:
            to_file()
        with pytest.raises(ValueError, match=message):
            to_file(**change)

    def test_a_corrected_mistake_is_no_other_setting(self, to_file, tmp_path):
        with pytest.raises(ValueError, match="`temperature` must be 0"):
            to_file(temperature=-1)
        assert not list(tmp_path.iterdir())
        (tmp_path / "samples.jsonl.part").write_text('{"seed": 7}\n')  # a run that drew nothing binds nobody
        assert len(to_file()) == 10

    def test_files_of_others_are_left_alone(self, to_file, tmp_path):
        (tmp_path / "samples.jsonl").write_text("mine")
        with pytest.raises(ValueError, match="was not written by this command"):
            to_file()
        assert (tmp_path / "samples.jsonl").read_text() == "mine"
        with pytest.raises(ValueError, match="cannot be written as JSON"):
            to_file(rows=[{"prompt": "w1", "answer": {1}}], name="other.jsonl")

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
            "from trl_distill.generation import sample_to_file\n"
            "folder = Path(sys.argv[1])\n"
            "model, words = (cls.from_pretrained(folder / 'model') for cls in (AutoModelForCausalLM, PreTrainedTokenizerFast))\n"
            "sample_to_file(folder / 'killed.jsonl', json.loads((folder / 'rows.json').read_text()), model, words, 1,"
            " model_name='tiny', max_new_tokens=8, batch_size=1, progress=False)\n"
        )
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=env)
        journal, deadline = tmp_path / "killed.jsonl.part", time.monotonic() + 120
        while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed.jsonl").exists() and journal.read_bytes().count(b"\n") < 41

        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        for name in ("killed", "whole"):
            settings = dict(model_name="tiny", max_new_tokens=8, batch_size=1, progress=False)
            sample_to_file(tmp_path / f"{name}.jsonl", rows, model, words, 1, **settings)
        assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


class TestServer:
    @pytest.fixture
    def server(self):
        """A server that follows a script: for each prompt the list of its replies, the last one for ever."""

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
                with lock:
                    requests.append((self.path, self.headers["Authorization"], body))
                    replies = script.get(prompt, [None])
                    reply = replies.pop(0) if len(replies) > 1 else replies[0]
                if reply == "cut off":
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [')
                    return
                if isinstance(reply, int):
                    payload, status = {"error": {"message": f"scripted {reply}"}}, reply
                elif isinstance(reply, str):
                    payload, status = reply, 200
                else:
                    payload, status = {"choices": answers(body, prompt) if reply is None else reply}, 200
                data = json.dumps(payload).encode() if not isinstance(payload, str) else payload.encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if isinstance(payload, str) else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        def answers(body, prompt):
            """Choices that name the prompt and the request's seed."""
            choices = []
            for k in range(body["n"] if settings["heeds_n"] else 1):
                text, logp = f"{prompt}: {body['seed']}-{k}", {"logprob": -0.5 * k - 0.25, "token": "x"}
                choice = {"index": k, "finish_reason": "length" if k else "stop"}
                if "messages" in body:
                    logprobs = {"content": [logp, {"logprob": -1.0, "token": "y"}]} if body.get("logprobs") else None
                    choice |= {"message": {"role": "assistant", "content": text}, "logprobs": logprobs}
                else:
                    logprobs = {"token_logprobs": [logp["logprob"], -1.0]} if body.get("logprobs") else None
                    choice |= {"text": text, "logprobs": logprobs}
                choices.append(choice)
            return choices

        script, requests, lock, settings = {}, [], threading.Lock(), {"heeds_n": True}
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.script, server.requests, server.settings = script, requests, settings
        server.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield server
        server.shutdown()
        server.server_close()

    @pytest.fixture
    def from_server(self, server, tmp_path, monkeypatch):
        monkeypatch.setenv("TEST_KEY", "sk-secret")

        def call(rows, num_samples=2, name="samples.jsonl", **changes):
            settings = dict(base_url=server.url, api_key_env="TEST_KEY", progress=False) | changes
            return sample_server_to_file(tmp_path / name, rows, "model-x", num_samples, **settings)

        return call

    @pytest.mark.parametrize("chat", [False, True])
    def test_rows(self, from_server, server, tmp_path, chat):
        def prompt(text):
            return [{"role": "user", "content": text}] if chat else text

        rows = [{"prompt": prompt(f"q{i}"), "answer": i} for i in range(12)]
        done = from_server(rows, temperature=0.7, top_p=0.9, max_new_tokens=33)
        assert done == read_samples(tmp_path / "samples.jsonl") and len(server.requests) == 12
        for i, row in enumerate(done):
            assert row["prompt"] == prompt(f"q{i}") and row["answer"] == i
            assert all(text.startswith(f"q{i}: ") for text in row["completions"])
            assert row["mean_logps"] == [pytest.approx(-0.625), pytest.approx(-0.875)]
            assert row["truncated"] == [False, True]
        for path, key, body in server.requests:
            assert path == ("/v1/chat/completions" if chat else "/v1/completions") and key == "Bearer sk-secret"
            assert (body["model"], body["n"], body["temperature"], body["top_p"]) == ("model-x", 2, 0.7, 0.9)
            assert body["max_tokens"] == 33
        assert len({body["seed"] for *_, body in server.requests}) == 12
        assert all("sk-secret" not in file.read_text() for file in tmp_path.iterdir())  # nor in the settings

    def test_a_server_with_one_choice_a_request(self, from_server, server):
        server.settings["heeds_n"] = False
        (row,) = from_server([{"prompt": "q"}], num_samples=4)
        assert len(set(row["completions"])) == 4 == len(server.requests)  # four seeds

    def test_a_server_with_too_many_choices(self, from_server, server):
        choices = [{"text": text, "finish_reason": "stop", "logprobs": None} for text in "abc"]
        server.script["q"] = [choices]
        assert from_server([{"prompt": "q"}])[0]["completions"] == ["a", "b"]

    def test_no_log_probabilities(self, from_server, server):
        (row,) = from_server([{"prompt": [{"role": "user", "content": "q"}]}], logprobs=False)
        assert row["mean_logps"] == [None, None] and "logprobs" not in server.requests[0][2]

    def test_faults_are_retried(self, from_server, server):
        server.script |= {
            "busy": [429, 503, None],
            "broken": [500, None],
            "cut": ["cut off", None],
            "empty": [[], [], None],
        }
        done = from_server([{"prompt": name} for name in server.script])
        assert [row["completions"][0].partition(":")[0] for row in done] == ["busy", "broken", "cut", "empty"]
        assert len(server.requests) == 3 + 2 + 2 + 3

    @pytest.mark.parametrize(
        ("reply", "message"),
        [
            (500, "failed at row 1: .*scripted 500. What was drawn before is kept"),
            (401, "failed at row 1: .*scripted 401"),
            (404, "failed at row 1: .*scripted 404"),
            ([], "answered row 1 without a choice, 2 times in a row"),
            ("<html>hello</html>", "Does the address end in /v1?"),
        ],
    )
    def test_lasting_faults_stop_the_run_and_keep_what_is_there(self, from_server, server, tmp_path, reply, message):
        rows = [{"prompt": name} for name in ("good", "bad", "late")]
        server.script["bad"] = [reply]
        with pytest.raises(ConnectionError, match=message):
            from_server(rows, max_retries=1, concurrency=1)
        assert len((tmp_path / "samples.jsonl.part").read_bytes().splitlines()) == 2  # settings and one row
        server.script.clear()
        server.requests.clear()
        done = from_server(rows, base_url=server.url.replace("127.0.0.1", "localhost"))  # it may move meanwhile
        assert [body["prompt"] for *_, body in server.requests].count("good") == 0
        assert done == from_server(rows, name="whole.jsonl")

    def test_texts_that_no_file_can_hold(self, from_server, server):
        server.script["q"] = [[{"text": "a\ud83d", "finish_reason": "stop", "logprobs": None}]]
        (row,) = from_server([{"prompt": "q"}], num_samples=1)
        assert row["completions"] == ["a?"]

    def test_bad_rows(self, from_server, server):
        with pytest.raises(ValueError, match="Row 1 has no `prompt`"):
            from_server([{"prompt": "q"}, {"question": "q"}])
        assert not server.requests

    def test_no_key(self, monkeypatch, tmp_path):
        monkeypatch.delenv("NO_KEY", raising=False)
        with pytest.raises(ValueError, match="set the environment variable NO_KEY, or `base_url`"):
            sample_server_to_file(tmp_path / "s.jsonl", [{"prompt": "q"}], "m", 1, api_key_env="NO_KEY")
        with pytest.raises(ConnectionError, match="failed at row 0"):
            sample_server_to_file(
                tmp_path / "s.jsonl", [{"prompt": "q"}], "m", 1, base_url="http://127.0.0.1:9/v1", max_retries=0
            )

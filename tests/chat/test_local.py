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
"""A local model: what it answers, as a real server does, who it is, and when it is in memory."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.serving import served
from trl_distill.chat import (
    CallStore,
    ChatRequest,
    Completion,
    EndpointChatModel,
    FailedCall,
    LocalChatModel,
    Sampling,
)
from trl_distill.chat.local import weights_digest


SHORT = Sampling(max_tokens=6)


def chats(count, sample_index=0, sampling=SHORT):
    prompts = [f"Say {'very ' * (i % 4)}well: {i}" for i in range(count)]
    return [ChatRequest([{"role": "user", "content": prompt}], sampling, sample_index) for prompt in prompts]


def is_loaded(model):
    return "_loaded" in vars(model)


def naive_greedy(model, tokenizer, prompt, max_tokens):
    """One prompt, no padding, no cache, the template written out, float64."""
    ids = tokenizer(f"<|user|>{prompt}<|endoftext|><|assistant|>")["input_ids"]
    length, reason = len(ids), "length"
    for _ in range(max_tokens):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] == tokenizer.eos_token_id:
            reason = "stop"
            break
    return tokenizer.decode(ids[length:], skip_special_tokens=True), reason, length, len(ids) - length


class TestAnswers:
    def test_greedy_answers_are_those_of_each_prompt_alone(self, saved, tokenizer):
        folder, requests = saved(seed=1), chats(9, sampling=Sampling(0.0, max_tokens=20))
        answers = LocalChatModel(folder, device="cpu", batch_size=4).complete(requests)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        for request, answer in zip(requests, answers, strict=True):
            expected = naive_greedy(model, tokenizer, request.messages[0]["content"], 20)
            assert (answer.text, answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == expected
        assert {answer.finish_reason for answer in answers} == {"stop", "length"}

    def test_thoughts_whose_marks_are_special_tokens_are_told_from_the_answer(self, saved, tokenizer):
        folder = saved()
        marked = AutoTokenizer.from_pretrained(folder, extra_special_tokens=["[THINK]", "[/THINK]"])
        marked.save_pretrained(folder)
        ids = marked("[THINK]Hm.[/THINK]Yes, <|user|>.<|endoftext|>")["input_ids"]
        for keep, text in ((False, "Yes, ."), (True, "[THINK]Hm.[/THINK]Yes, .")):
            local = LocalChatModel(folder, device="cpu", keep_thoughts=keep)
            answer = local.as_asked(Completion(local._decode(ids)))
            assert (answer.text, answer.thoughts) == (text, "Hm.")

    @pytest.mark.parametrize("refusal", ["{{ raise_exception('System role not supported') }}", ""])
    def test_a_template_without_a_system_role(self, saved, tokenizer, refusal):
        """Whether it says so or passes over what the system says."""
        folder = saved()
        template = f"{{%- for m in messages if m.role == 'system' %}}{refusal}{{% endfor %}}" + (
            "{%- for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}<|endoftext|>{% endfor %}"
            "{%- if add_generation_prompt %}<|assistant|>{% endif %}"
        )
        without = AutoTokenizer.from_pretrained(folder)
        without.chat_template = template
        without.save_pretrained(folder)
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
        requests = [
            ChatRequest([{"role": "system", "content": "Be brief."}, *turns[:1]], SHORT),
            ChatRequest(
                [{"role": "system", "content": "Be brief."}, *turns, {"role": "user", "content": "Why?"}], SHORT
            ),
            ChatRequest([*turns, {"role": "system", "content": "Be brief."}], SHORT),
        ]
        texts = [
            "<|user|>Be brief.\n\nHi<|endoftext|>",
            "<|user|>Be brief.\n\nHi<|endoftext|><|assistant|>Yes?<|endoftext|><|user|>Why?<|endoftext|>",
            "<|user|>Hi<|endoftext|><|assistant|>Yes?<|endoftext|><|user|>Be brief.<|endoftext|>",
        ]
        local = LocalChatModel(folder, device="cpu")
        assert local._encode(requests) == tokenizer([f"{text}<|assistant|>" for text in texts])["input_ids"]
        assert all(isinstance(answer, Completion) for answer in local.complete(requests))
        local = LocalChatModel(saved("other"), device="cpu")  # whose template has one
        assert tokenizer.decode(local._encode(requests[:1])[0]).startswith("<|system|>Be brief.")

    def test_a_conversation_that_the_template_does_not_take(self, saved):
        folder = saved()
        strict = AutoTokenizer.from_pretrained(folder)
        strict.chat_template = "{%- if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}<|user|>"
        strict.save_pretrained(folder)
        turns = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Why?"}]
        with pytest.raises(ValueError, match="prompt of row 0, with the roles user, user: one turn only"):
            LocalChatModel(folder, device="cpu").complete([ChatRequest(turns)])

    def test_a_plain_text_needs_no_template_and_gets_none(self, saved, tokenizer, tmp_path):
        folder, text = saved(seed=1), "Say well: "
        (tmp_path / "model" / "chat_template.jinja").unlink()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        local, greedy = LocalChatModel(folder, device="cpu"), Sampling(0.0, max_tokens=9)
        [answer, rendered] = local.complete([ChatRequest(t, greedy) for t in (text, f"<|user|>{text}<|endoftext|>")])
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            for _ in range(9):
                ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
        expected = tokenizer.decode(ids[answer.prompt_tokens :][: answer.completion_tokens], skip_special_tokens=True)
        assert answer.prompt_tokens == len(text) and answer.text == expected != rendered.text
        assert answer.mean_logp is None
        with pytest.raises(ValueError, match="no chat template"):
            local.complete(chats(1))

    def test_losses_of_given_answers_are_those_of_each_row_alone(self, saved, tokenizer):
        """Token by token in float64, the end token included; what the context has no room for has none."""
        folder, questions = saved(seed=3), ["Hi", "What is it, in a few words?", "", "x" * 3]
        texts = ["yes", "no, it is not", "well", "y" * 3000]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        losses = LocalChatModel(folder, device="cpu", batch_size=2).answer_losses(
            [ChatRequest([{"role": "user", "content": text}]) for text in questions], texts
        )
        for question, text, loss in zip(questions, texts[:3], losses, strict=False):
            prompt = tokenizer(f"<|user|>{question}<|endoftext|><|assistant|>")["input_ids"]
            ids = prompt + tokenizer(f"{text}<|endoftext|>")["input_ids"]
            with torch.no_grad():
                logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            told = [logps[t - 1, ids[t]].item() for t in range(len(prompt), len(ids))]
            assert loss == pytest.approx(-sum(told) / len(told), abs=1e-5)
        assert losses[3] is None

    @pytest.mark.parametrize("temperature", [0.5, 1.5])
    def test_frequencies_are_the_probabilities(self, saved, tokenizer, temperature):
        sampling = Sampling(temperature, max_tokens=1)
        model = LocalChatModel(saved(), device="cpu", batch_size=1000)
        requests = [ChatRequest([{"role": "user", "content": "Hi"}], sampling, k) for k in range(2000)]
        drawn = Counter(answer.text for answer in model.complete(requests))
        prompt = tokenizer("<|user|>Hi<|endoftext|><|assistant|>", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            p = (model._model(prompt).logits[0, -1].double() / temperature).softmax(-1)
        expected = Counter()
        for token, probability in enumerate(p.tolist()):  # many tokens are half a character, and have one text
            expected[tokenizer.decode([token], skip_special_tokens=True)] += probability
        classes = [([text], q) for text, q in expected.items() if q > 0.004]
        classes.append(([text for text, q in expected.items() if q <= 0.004], 1 - sum(q for _, q in classes)))
        errors = [abs(sum(drawn[t] for t in texts) / 2000 - q) / (q * (1 - q) / 2000) ** 0.5 for texts, q in classes]
        assert len(errors) > 5 and max(errors) < 4.5

    def test_a_batch_draws_the_same_again_and_each_draw_another(self, saved):
        model = LocalChatModel(saved(), device="cpu", batch_size=4)
        torch.manual_seed(5)
        first = model.complete(chats(8))
        state = torch.get_rng_state()
        torch.manual_seed(6)
        assert model.complete(chats(8)) == first
        torch.manual_seed(5)
        assert torch.equal(torch.get_rng_state(), state)  # the process' own random numbers are left alone
        for draw in (dict(sample_index=1), dict(sampling=Sampling(max_tokens=6, seed=1))):
            other = model.complete(chats(8, **draw))
            assert sum(a.text != b.text for a, b in zip(first, other, strict=True)) > 6

    def test_samplings_are_not_mixed_in_a_batch(self, saved):
        greedy, short = Sampling(0.0, max_tokens=8), Sampling(0.0, max_tokens=2)
        requests = [request for pair in zip(chats(5, 0, greedy), chats(5, 0, short), strict=True) for request in pair]
        model = LocalChatModel(saved(), device="cpu")
        assert [sorted(batch) for batch in model.batches(requests)] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
        answers = model.complete(requests)
        assert all(answer.completion_tokens <= 2 for answer in answers[1::2])
        assert any(answer.completion_tokens > 2 for answer in answers[::2])
        lengths = [len(chats(8)[i].messages[0]["content"]) for i in model.batches(chats(8))[0]]
        assert lengths == sorted(lengths, reverse=True)

    def test_a_prompt_that_leaves_no_room_fails_alone(self, saved):
        requests = [*chats(2), ChatRequest([{"role": "user", "content": "x" * 504}], SHORT)]
        model = LocalChatModel(saved(), device="cpu")
        answers = model.complete(requests)  # 507 + 6 > 512
        assert isinstance(answers[2], FailedCall) and "507 tokens" in answers[2].error and "of 512" in answers[2].error
        [room] = model.complete([ChatRequest(requests[2].messages, Sampling(max_tokens=5))])
        assert room.prompt_tokens == 507
        assert answers[:2] == LocalChatModel(saved("same"), device="cpu").complete(requests[:2])
        with pytest.raises(ValueError, match="1 of 3 prompts leave no room .* row 2 with 507 tokens"):
            model.check(requests)
        assert model.check(requests[:2]) is None

    def test_four_bits(self, saved):
        folder = saved(hidden_size=64, intermediate_size=64, initializer_range=0.2)
        model = LocalChatModel(folder, device="cpu", load_in_4bit=True)
        assert all(answer.completion_tokens for answer in model.complete(chats(3)))
        assert model._model.is_loaded_in_4bit
        assert model._model.config.quantization_config.bnb_4bit_quant_type == "nf4"
        assert model.identity != LocalChatModel(folder).identity


class Interrupted(LocalChatModel):
    """Stops like a killed run after some batches."""

    left = None

    def answer(self, batch):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left = None if self.left is None else self.left - 1
        return super().answer(batch)


class TestResume:
    @pytest.mark.parametrize("batches", [1, 2, 4])
    def test_a_run_that_goes_on_draws_what_the_whole_run_would_have_drawn(self, saved, tmp_path, batches):
        long = ChatRequest([{"role": "user", "content": "x" * 504}], SHORT)  # fails in each run
        requests = [*chats(5), long, *chats(8)[5:], *chats(5, sampling=Sampling(0.7, max_tokens=4))]
        model = Interrupted(saved(), device="cpu", batch_size=3)
        answers = {}
        for name, left in (("whole", [None]), ("part", [batches, 1, None])):
            with CallStore(tmp_path / f"{name}.sqlite") as store:
                for model.left in left:
                    try:
                        answers[name] = store.model(model, "student").complete(requests)
                    except KeyboardInterrupt:
                        assert model.left == 0
        assert answers["part"] == answers["whole"]
        assert [type(answer) is FailedCall for answer in answers["whole"]] == [i == 5 for i in range(14)]


class TestMemory:
    def test_loaded_for_what_is_missing_and_one_at_a_time(self, saved, tmp_path):
        one, two = (LocalChatModel(saved(name, seed), device="cpu") for seed, name in enumerate("ab"))
        with CallStore(tmp_path / "calls.sqlite") as store:
            models = [store.model(model, "student") for model in (one, two)]
            assert models[0].missing(chats(3)).calls == 3 and not is_loaded(one)
            answers = models[0].complete(chats(3))
            assert is_loaded(one)
            models[1].complete(chats(3))
            assert is_loaded(two) and not is_loaded(one)
            assert models[0].complete(chats(3)) == answers and not is_loaded(one)  # all of them were stored
            assert models[0].complete(chats(4))[:3] == answers and is_loaded(one) and not is_loaded(two)
        with one:
            pass
        assert not is_loaded(one) and LocalChatModel._in_memory is None

    def test_dtype(self, saved):
        model = LocalChatModel(saved(), device="cpu", dtype="bfloat16")
        model.complete(chats(1))
        assert model._model.dtype == torch.bfloat16


class TestIdentity:
    def test_what_the_model_is_and_not_where_it_lies(self, saved, tmp_path, tokenizer):
        folder = saved()
        base = LocalChatModel(folder).identity
        shutil.copytree(folder, tmp_path / "moved")
        assert LocalChatModel(str(tmp_path / "moved"), name="other", batch_size=3).identity == base
        changed = [
            LocalChatModel(folder, dtype="bfloat16"),
            LocalChatModel(folder, load_in_4bit=True),
            LocalChatModel(folder, chat_template_kwargs={"enable_thinking": False}),
            LocalChatModel(saved("seed", seed=1)),
            LocalChatModel(saved("config", rope_parameters={"rope_type": "default", "rope_theta": 5e5})),
        ]
        template = saved("template")
        other = type(tokenizer).from_pretrained(template, chat_template="{{ messages[0]['content'] }}")
        other.save_pretrained(template)
        nudged = load_file(tmp_path / "moved" / "model.safetensors")
        nudged["model.norm.weight"][0] += 1e-3
        save_file(nudged, tmp_path / "moved" / "model.safetensors", metadata={"format": "pt"})
        changed += [LocalChatModel(template), LocalChatModel(str(tmp_path / "moved"))]
        assert len({str(base), *(str(model.identity) for model in changed)}) == 1 + len(changed) == 8
        assert not any(is_loaded(model) for model in changed)

    def test_an_adapter_is_itself_and_its_base(self, saved, tokenizer, tmp_path):
        base, folder = tmp_path / "base", tmp_path / "adapter0"
        saved("base")
        for seed in (0, 1):
            torch.manual_seed(seed)
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(init_lora_weights=False))
            model.save_pretrained(tmp_path / f"adapter{seed}")
            tokenizer.save_pretrained(tmp_path / f"adapter{seed}")

        def identity(folder):
            return LocalChatModel(str(folder)).identity

        first = identity(folder)
        greedy = chats(4, sampling=Sampling(0.0, max_tokens=6))
        with LocalChatModel(str(folder), device="cpu") as chat:
            assert chat.complete(greedy) != LocalChatModel(str(base), device="cpu").complete(greedy)
        base.rename(tmp_path / "moved")
        config = json.loads((folder / "adapter_config.json").read_text())
        changes = {"base_model_name_or_path": str(tmp_path / "moved")}
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        assert identity(folder) == first  # where the base lies does not matter, but what it is
        (folder / "adapter_config.json").write_text(json.dumps(config | changes | {"lora_alpha": 99}))
        assert identity(folder) != first
        (folder / "adapter_config.json").write_text(json.dumps(config))
        saved("base", seed=1)
        assert identity(folder) != first and identity(tmp_path / "adapter1") != identity(folder)

    def test_adapters_in_one_folder_are_one_model(self, saved, tmp_path):
        """As NAT saves them: each counts, and so does the base, here or where the caller says that it is."""
        base, folder, identities = saved("base"), tmp_path / "nat", set()

        def save(name, seed):
            torch.manual_seed(seed)
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(init_lora_weights=False))
            model.save_pretrained(folder / name)

        for name, seed in (("nat", 0), ("neg", 1), ("nat", 2), ("neg", 3)):
            save(name, seed)
            identities.add(weights_digest(folder))
        assert len(identities) == 4 and weights_digest(folder) == weights_digest(folder, base)
        assert weights_digest(folder, saved("other", seed=1)) not in identities

    def test_an_adapter_without_a_tokenizer_takes_that_of_its_base(self, saved, tmp_path):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(saved("base")), LoraConfig())
        model.save_pretrained(tmp_path / "adapter")
        chat = LocalChatModel(str(tmp_path / "adapter"), device="cpu")
        assert chat.complete(chats(3)) == LocalChatModel(str(tmp_path / "base"), device="cpu").complete(chats(3))

    def test_models_that_cannot_chat(self, saved, tmp_path):
        pickled = saved("pickled")
        (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
        with pytest.raises(ValueError, match="no weights in safetensors"):
            LocalChatModel(pickled).identity  # noqa: B018
        with pytest.raises(ValueError, match="`batch_size`"):
            LocalChatModel(pickled, batch_size=0)


# The happy path against `transformers serve`, which must answer as the local model does


@pytest.fixture
def real_server(saved, tmp_path):
    """Folder and address of a tiny model that `transformers serve` serves."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    folder = saved(seed=1)
    with served(folder, tmp_path / "serve.log") as address:
        yield folder, address


@pytest.mark.slow
def test_a_real_server_answers_as_the_local_model_does(real_server, tmp_path):
    folder, base_url = real_server
    requests = chats(9, sampling=Sampling(0.0, max_tokens=20))
    endpoint = EndpointChatModel(folder, base_url, concurrency=3, prompt_price=1.0, completion_price=2.0)
    with CallStore(tmp_path / "calls.sqlite") as store:
        stored = store.model(endpoint, "teacher")
        answers = stored.complete(requests)
        assert stored.complete(requests) == answers and stored.missing(requests).calls == 0
        [row] = store.ledger()
    local = LocalChatModel(folder, device="cpu").complete(requests)
    local = [replace(answer, text=answer.text.strip()) for answer in local]
    for special in ("<pad>", "<|user|>", "<|assistant|>"):  # only a random model writes them
        answers = [replace(answer, text=answer.text.replace(special, "").strip()) for answer in answers]
    assert answers == local and {answer.finish_reason for answer in local} == {"stop", "length"}
    tokens = sum(a.prompt_tokens for a in local), sum(a.completion_tokens for a in local)
    assert (row.calls, row.prompt_tokens, row.completion_tokens) == (9, *tokens)
    assert row.cost_usd == pytest.approx((tokens[0] + 2 * tokens[1]) / 1e6)

    # It draws only if the generation config says so, whatever the temperature
    drawing = EndpointChatModel(folder, base_url, extra_body={"generation_config": '{"do_sample": true, "top_k": 0}'})
    draws = [ChatRequest(requests[0].messages, Sampling(max_tokens=12), k) for k in range(4)]
    assert len({answer.text for answer in drawing.complete(draws)}) > 1
    assert len({answer.text for answer in endpoint.complete(draws)}) == 1

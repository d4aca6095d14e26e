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

"""`trl-distill chat`: whole conversations with models of each kind, and as a process with lines piped in."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, get_peft_model
from transformers import AutoModelForCausalLM

from tests.commands import error_of
from tests.rationales.nat.adapters import lora
from trl_distill import load_nat
from trl_distill.rationales.nat.integration_unit import NATLoraConfig, adapter_sha256, add_nat
from trl_distill.scripts import chat


GREEDY = ("--temperature", "0", "--max_new_tokens", "6")
KINDS = {"full": AutoModelForCausalLM.from_pretrained, "adapter": AutoPeftModelForCausalLM.from_pretrained}


@pytest.fixture
def saved(tmp_path, tiny_model, tokenizer):
    """Folders of a model, of a LoRA on it and of a NAT on it, of which only the first has a tokenizer."""
    base = str(tmp_path / "full")
    tiny_model(vocab_size=264).save_pretrained(base)  # the saved tokenizer gets one more special token
    tokenizer.save_pretrained(base)
    torch.manual_seed(3)
    values = dict(init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora(**values)).save_pretrained(tmp_path / "adapter")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora(**values), adapter_name="neg")
    config = NATLoraConfig.of(lora(**values), value="mlp", width=4, temperature=1.0)
    config.nat_config["neg_sha256"] = adapter_sha256(model, "neg")
    add_nat(model, config)
    model.save_pretrained(tmp_path / "nat")
    return tmp_path


@pytest.fixture
def talk(capsys, monkeypatch):
    """What a command prints as answers, and what it says beside them."""

    def run(*arguments, lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        chat.run([*map(str, arguments)])
        return capsys.readouterr()

    return run


def drawn(model, tokenizer, prompt):
    """Tokens of what plain transformers answers, greedily."""
    if isinstance(prompt, str):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    output = model.eval().generate(ids, do_sample=False, max_new_tokens=6, eos_token_id=1, pad_token_id=0)
    return output[0, ids.shape[1] :].tolist()


def answer(model, tokenizer, prompt):
    return tokenizer.decode(drawn(model, tokenizer, prompt), skip_special_tokens=True)


def turns(*texts, system=None):
    opening = [] if system is None else [{"role": "system", "content": system}]
    return opening + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize("kind", ["full", "adapter", "nat"])
def test_each_kind_of_model_answers_turn_by_turn(kind, saved, tokenizer, talk):
    folder = saved / kind
    model = KINDS[kind](folder) if kind in KINDS else load_nat(KINDS["full"](saved / "full"), str(folder))
    first = answer(model, tokenizer, turns("Hello"))
    second = answer(model, tokenizer, turns("Hello", first, "And?"))
    lines = ["Hello", "", "And?", "/clear", "Hello", "exit", "never asked"]
    assert talk(folder, *GREEDY, lines=lines).out == f"{first}\n{second}\n{first}\n"
    assert len({first, second}) == 2


@pytest.mark.parametrize("with_role", [True, False])
def test_what_the_system_says_opens_the_conversation(with_role, saved, tokenizer, talk):
    own = tokenizer.chat_template
    without = own.replace("in messages", "in messages if message.role != 'system'", 1)
    template, tokenizer.chat_template = own, own if with_role else without
    try:
        tokenizer.save_pretrained(saved / "full")
        prompt = turns("Hello", system="Be brief.") if with_role else turns("Be brief.\n\nHello")
        expected = answer(KINDS["full"](saved / "full"), tokenizer, prompt)
    finally:
        tokenizer.chat_template = template
    said = talk(saved / "full", "--system", "Be brief.", *GREEDY, lines=["Hello", "/clear", "Hello"])
    assert said.out == f"{expected}\n" * 2


def test_what_is_no_whole_model_says_so(saved, tokenizer, capsys):
    assert "the positive adapter of a NAT model" in error_of(capsys, chat.run, str(saved / "nat/nat"))
    (saved / "full").rename(saved / "moved")
    message = error_of(capsys, chat.run, str(saved / "adapter"))
    assert f"is an adapter of {saved / 'full'}, which is neither a folder here" in message


def test_without_a_chat_template_the_text_goes_on(saved, tokenizer, talk, capsys):
    (saved / "full/chat_template.jinja").unlink()
    model = KINDS["full"](saved / "full")
    first = answer(model, tokenizer, "Once")
    second = answer(model, tokenizer, f"Once{first}\nthen")
    said = talk(saved / "full", *GREEDY, lines=["Once", "then"])
    assert said.out == f"{first}\n{second}\n"
    assert said.err.count("the model goes on with plain text") == 1
    error = error_of(capsys, chat.run, saved / "full", "--system", "Be brief.")
    assert "has no chat template, so it has no place for --system" in error


def test_it_stops_at_each_end_of_the_model(saved, tokenizer, talk):
    """Of the generation config and of the tokenizer, of which the first alone may be that of the template."""
    model = KINDS["full"](saved / "full")
    whole = drawn(model, tokenizer, turns("Hello"))
    model.generation_config.eos_token_id = whole[2]
    model.save_pretrained(saved / "full")
    said = talk(saved / "full", *GREEDY, lines=["Hello"])
    expected = tokenizer.decode(whole[: whole.index(whole[2]) + 1], skip_special_tokens=True)
    assert said.out == f"{expected}\n" and "cut off" not in said.err


def test_samples_differ_by_turn_and_by_seed_alone(saved, talk):
    def said(seed, *lines):
        return talk(saved / "full", "--max_new_tokens", "8", "--seed", seed, lines=lines).out

    one = said(1, "Hello", "/clear", "Hello")
    assert one == said(1, "Hello", "/clear", "Hello") != said(2, "Hello", "/clear", "Hello")
    first = said(1, "Hello")
    assert one.startswith(first) and one != first * 2


def test_a_full_context_says_so(saved, talk):
    said = talk(saved / "full", *GREEDY, lines=["a" * 600, "/clear", "Hello"])
    assert "leave no room for an answer in the context: /clear starts anew" in said.err
    assert said.out


class TestCtrlC:
    def test_stops_the_answer_and_not_the_conversation(self, saved, tokenizer, capsys):
        model = KINDS["full"](saved / "full")
        args = chat.make_parser().parse_args([str(saved / "full"), *GREEDY])
        before, conversation = signal.getsignal(signal.SIGINT), chat.Conversation(model, tokenizer, args)
        whole = conversation.ask("Hello")
        conversation.clear()
        hook = model.register_forward_hook(lambda *_: signal.raise_signal(signal.SIGINT))
        first = conversation.ask("Hello")
        hook.remove()
        assert first == tokenizer.decode(drawn(model, tokenizer, turns("Hello"))[:1]) != whole
        assert capsys.readouterr().err.endswith("(stopped)\n")
        assert conversation.ask("And?") == answer(model, tokenizer, turns("Hello", first, "And?"))
        assert signal.getsignal(signal.SIGINT) is before

    def test_between_answers_ends_the_command(self, saved):
        command = [sys.executable, "-m", "trl_distill.cli", "chat", str(saved / "full"), *GREEDY]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started = subprocess.Popen(command, env=environment, **pipes)
        started.stdin.write(b"Hello\n")
        started.stdin.flush()
        assert started.stdout.read(1)
        while b"cut off" not in started.stderr.readline():
            pass
        started.send_signal(signal.SIGINT)
        _, error = started.communicate(timeout=60)
        assert started.returncode == 130 and b"trl-distill chat: stopped." in error


def test_lines_that_are_piped_into_the_process(saved, tokenizer):
    model = KINDS["full"](saved / "full")
    first = answer(model, tokenizer, turns("Hello"))
    second = answer(model, tokenizer, turns("Hello", first, "And?"))
    command = [sys.executable, "-m", "trl_distill.cli", "chat", str(saved / "full"), *GREEDY]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, input=b"Hello\nAnd?\n", capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == f"{first}\n{second}\n"


def test_what_cannot_be_loaded(tmp_path, capsys):
    assert "MODEL" in error_of(capsys, chat.run)
    assert "nowhere" in error_of(capsys, chat.run, tmp_path / "nowhere")

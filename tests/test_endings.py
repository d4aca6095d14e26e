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

"""A model learns to stop: what its chat template closes an answer with is a token at which generation ends."""

import logging
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.commands import CPU, error_of, write_rows
from trl_distill.chat import FunctionChatModel
from trl_distill.endings import check_ending, check_model_ending
from trl_distill.lion import LionConfig, LionLoop, Training
from trl_distill.scripts import dpo, labeled_sft, nat, nce, sft
from trl_distill.training import shipped


ROOT = Path(__file__).parents[1]


def turns(user="", assistant="", system="", end=""):
    """A template of the usual form, with what stands in front of each role."""
    return (
        "{% for m in messages %}{% if m.role == 'user' %}" + user + "{% elif m.role == 'system' %}" + system
        + "{% else %}" + assistant + "{% endif %}{{ m.content | trim }}" + end + "{% endfor %}"
        + "{% if add_generation_prompt %}" + assistant + "{% endif %}"
    )  # fmt: skip


def heads(opening, closing, end, assistant="assistant"):
    return turns(f"{opening}user{closing}", f"{opening}{assistant}{closing}", f"{opening}system{closing}", end)


CHATML = heads("<|im_start|>", "\n", "<|im_end|>\n")
LLAMA3 = "{{ bos_token }}" + heads("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>")
GEMMA = "{{ bos_token }}" + heads("<start_of_turn>", "\n", "<end_of_turn>\n", "model")
ZEPHYR = heads("<|", "|>\n", "{{ eos_token }}\n")
PHI3 = heads("<|", "|>\n", "<|end|>\n") + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
MISTRAL = "{{ bos_token }}" + turns("[INST] ", end="{{ ' [/INST]' if m.role == 'user' else ' ' + eos_token }}")
GLM = "[gMASK]" + heads("<|", "|>\n", "")
VICUNA = turns("USER: ", " ASSISTANT: ")
ALPACA = turns("### Instruction:\n", "### Response:\n", end="\n\n")


@pytest.fixture(scope="session")
def tokenizer_with():
    """A byte-level tokenizer with these special tokens, of which the first is padding, and a template."""

    def build(template, eos_token, *tokens, bos_token=None):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        special = list(dict.fromkeys(["<pad>", eos_token, *tokens, *([bos_token] if bos_token else [])]))
        backend = Tokenizer(models.BPE({token: i for i, token in enumerate(special + alphabet)}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        names = {"pad_token": "<pad>", "eos_token": eos_token, "bos_token": bos_token, "padding_side": "left"}
        more = {"additional_special_tokens": list(tokens), "chat_template": template}
        return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **more)

    return build


QWEN = (CHATML, "<|endoftext|>", "<|im_start|>", "<|im_end|>")
META = (LLAMA3, "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
GOOGLE = (GEMMA, "<eos>", "<start_of_turn>", "<end_of_turn>")
ZAI = (GLM, "<|endoftext|>", "<|user|>", "<|assistant|>", "[gMASK]")


@pytest.mark.parametrize(
    ("tokens", "closing"),
    [
        (QWEN, "<|im_end|>"),
        (META, "<|eot_id|>"),
        (GOOGLE, "<end_of_turn>"),
        ((CHATML, "</s>", "<|im_start|>", "<|im_end|>"), "<|im_end|>"),
        (
            (heads("<who>", "</who>", "<over> \n"), "<fin>", "<who>", "</who>", "<over>"),
            "<over>",
        ),  # in no list of ours
    ],
)
def test_a_closing_token_that_ends_nothing_is_refused(tokens, closing, tokenizer_with):
    tokenizer = tokenizer_with(*tokens)
    with pytest.raises(ValueError, match="closes an answer with") as error:
        check_ending(tokenizer, [tokenizer.eos_token_id])
    assert f"with {closing}, and the model stops at {tokens[1]} only" in str(error.value)
    assert f"Set `eos_token: {closing}`." in str(error.value)
    with pytest.raises(ValueError, match="stops at no token only"):
        check_ending(tokenizer, [])
    check_ending(tokenizer, [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(closing)])
    tokenizer.eos_token = closing
    check_ending(tokenizer, [tokenizer.eos_token_id])


@pytest.mark.parametrize(
    "tokens",
    [
        (ZEPHYR, "</s>"),
        (MISTRAL, "</s>"),
        (PHI3, "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"),  # it stops one line later
        "{%- if messages[0].role != 'system' %}{{ raise_exception('No system') }}{% endif %}",  # cannot be tried
        (
            CHATML.replace("{{ m.content | trim }}", "{% for part in m.content %}{{ part.text }}{% endfor %}"),
            *QWEN[1:],
        ),
    ],
    ids=["zephyr", "mistral", "phi-3", "other turns", "content in parts"],
)
def test_what_ends_says_nothing(tokens, tokenizer_with, caplog):
    tokens = (tokens, "</s>") if isinstance(tokens, str) else tokens
    tokenizer = tokenizer_with(*tokens, bos_token="<s>")
    check_ending(tokenizer, [tokenizer.eos_token_id])
    assert not caplog.records


@pytest.mark.parametrize(
    ("tokens", "text"),
    [((VICUNA, "</s>"), "''"), ((ALPACA, "</s>"), r"'\n\n'"), ((CHATML, "</s>"), r"'<|im_end|>\n'"), (ZAI, "''")],
    ids=["nothing", "plain text", "a token that is none", "the next turn"],
)
def test_a_template_that_closes_with_no_token_is_a_warning(tokens, text, tokenizer_with, caplog):
    tokenizer = tokenizer_with(*tokens)
    with caplog.at_level(logging.WARNING):
        check_ending(tokenizer, [tokenizer.eos_token_id])
    assert f"closes an answer with {text}, which holds no special token" in caplog.text


def test_a_model_that_stops_where_the_next_turn_begins(tokenizer_with, caplog):
    tokenizer = tokenizer_with(*ZAI)
    check_ending(tokenizer, tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>"]))
    assert not caplog.records


def test_another_template_than_its_own(tokenizer_with):
    tokenizer = tokenizer_with(ZEPHYR, *QWEN[1:])
    check_ending(tokenizer, [tokenizer.eos_token_id])
    with pytest.raises(ValueError, match="<|im_end|>"):
        check_ending(tokenizer, [tokenizer.eos_token_id], CHATML)


# Trainings

SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
QUESTIONS = {"Is it day?": "Yes.", "Is it late?": "No.", "Who is there?": "Me.", "How many?": "Two."}


@pytest.fixture
def student(tokenizer_with, tiny_model, tmp_path):
    """Save a tiny ChatML model, as Qwen2.5 is: its end token is not that of its template."""

    def save(name="base", template=CHATML, ends=None, **config):
        tokenizer = tokenizer_with(template, *QWEN[1:])
        model = tiny_model(vocab_size=len(tokenizer), initializer_range=0.1, **(SIZE | config))
        for settings in (model.config, model.generation_config):
            settings.pad_token_id, settings.eos_token_id = 0, 1
        model.generation_config.eos_token_id = ends or 1
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


def message(role, content):
    return [{"role": role, "content": content}]


@pytest.fixture
def rows(tmp_path):
    """The questions with their answers in a file, with all columns that a trainer wants."""
    answered = [
        {"prompt": message("user", question), "completion": message("assistant", answer), "label": i % 2 == 0}
        for i, (question, answer) in enumerate(QUESTIONS.items())
    ]
    return str(write_rows(tmp_path / "rows.jsonl", answered))


@pytest.fixture
def arguments(student, rows, tmp_path):
    def build(**fields):
        values = {"model_name_or_path": student(), "dataset_name": rows, "output_dir": str(tmp_path / "out")}
        values |= {"max_steps": 1, "per_device_train_batch_size": 4, **CPU} | fields
        return [f"--{name}={value}" for name, value in values.items()]

    return build


LORA = {"use_peft": True, "lora_target_modules": "all-linear"}


@pytest.mark.parametrize(
    ("script", "fields"),
    [
        (sft, {}),
        (sft, LORA),
        (nat, LORA),
        (labeled_sft, {"objective": "ul"}),
    ],
    ids=["sft", "sft, LoRA", "nat", "labeled_sft"],
)
def test_a_training_is_refused_until_it_has_an_end(script, fields, arguments, tmp_path, capsys):
    said = error_of(capsys, script.run, *arguments(**fields))
    assert "<|im_end|>, and the model stops at <|endoftext|> only" in said and "`eos_token: <|im_end|>`" in said
    assert not list(tmp_path.glob("out/**/*.safetensors"))
    script.run(arguments(**fields, eos_token="<|im_end|>"))
    assert list(tmp_path.glob("out/**/*.safetensors"))


def test_so_is_that_of_a_student_of_nat(arguments, tmp_path, capsys):
    end = {"eos_token": "<|im_end|>"}
    nat.run(arguments(output_dir=tmp_path / "nat", **LORA, **end))
    fields = {"nat_path": tmp_path / "nat", "kd_weight": 1.0, **LORA}
    assert "`eos_token: <|im_end|>`" in error_of(capsys, nce.run, *arguments(**fields))
    nce.run(arguments(**fields, **end))


@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_dialogues_are_looked_at_in_any_form(name, arguments, tmp_path, capsys):
    dialogue = message("user", "Is it day?") + message("assistant", "Yes.")
    if name == "conversations":
        dialogue = [{"from": turn["role"], "value": turn["content"]} for turn in dialogue]
    data = write_rows(tmp_path / "dialogues.jsonl", [{name: dialogue}] * 4)
    assert "<|im_end|>" in error_of(capsys, sft.run, *arguments(dataset_name=data))


def test_text_ends_with_the_token_that_the_model_has(arguments, tmp_path):
    data = write_rows(tmp_path / "text.jsonl", [{"prompt": f"{i} + 1 = ", "completion": f"{i + 1}"} for i in range(4)])
    sft.run(arguments(dataset_name=data))


def test_ends_of_the_model_that_its_tokenizer_does_not_name(arguments, student, tokenizer_with):
    end = tokenizer_with(*QWEN).convert_tokens_to_ids("<|im_end|>")
    sft.run(arguments(model_name_or_path=student("instruct", ends=[1, end])))


def test_a_preference_training_has_no_field_for_it(arguments, student, tokenizer_with, tmp_path, capsys):
    pairs = [
        {
            "prompt": message("user", question),
            "chosen": message("assistant", answer),
            "rejected": message("assistant", "?"),
        }
        for question, answer in QUESTIONS.items()
    ]
    data = write_rows(tmp_path / "pairs.jsonl", pairs)
    said = error_of(capsys, dpo.run, *arguments(dataset_name=data))
    assert "Add the id of <|im_end|> to `eos_token_id` in the model's generation_config.json" in said
    end = tokenizer_with(*QWEN).convert_tokens_to_ids("<|im_end|>")
    dpo.run(arguments(dataset_name=data, model_name_or_path=student("instruct", ends=[1, end])))


@pytest.mark.parametrize("fields", [{}, {**LORA, "lora_r": 32}], ids=["full", "lora"])
def test_a_student_that_knows_its_answers_stops_after_them(fields, arguments, rows, tmp_path):
    """What was trained without `eos_token` says "Yes.", and goes on to the limit."""
    steps = {"max_steps": 120, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "eos_token": "<|im_end|>"}
    sft.run(arguments(**steps, **fields))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for question, answer in QUESTIONS.items():
        prompt = tokenizer.apply_chat_template(
            message("user", question), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        ends = {"eos_token_id": tokenizer.eos_token_id} if fields else {}  # an adapter has no generation config
        ids = model.generate(**prompt, max_new_tokens=40, do_sample=False, **ends)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(ids) == f"{answer}<|im_end|>"
        on = model.generate(**prompt, max_new_tokens=40, do_sample=False, eos_token_id=1)
        assert on.shape[1] == prompt["input_ids"].shape[1] + 40  # with the old end alone


def test_lion_is_refused_before_the_first_call(student, tmp_path):
    def asked(request):
        raise AssertionError("a call was made")

    def loop(folder, **training):
        config = LionConfig(output_dir=str(tmp_path / folder), student_model=student(), training=training)
        rows = [{"instruction": f"{number} " * 5} for number in range(90)]
        return LionLoop(config, rows, teacher=FunctionChatModel(asked, "teacher"))

    with pytest.raises(ValueError, match="Set `eos_token: <.im_end.>` in `training`"):
        loop("without")
    assert loop("with", eos_token="<|im_end|>").estimate()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/lion").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_lion_have_an_end(path, student, tokenizer_with, tmp_path):
    """With a tokenizer that is in what counts that of the recipe's student."""
    config = yaml.safe_load(path.read_text())
    if "Qwen" in config["student_model"]:
        model = student()
    else:  # the first LLaMA has no template
        model = student("llama", template=None)
        tokenizer_with(None, "</s>", bos_token="<s>").save_pretrained(model)
    Training(shipped(config["training"])).check(model)


class TestByName:
    def test_of_a_model_that_is_not_loaded(self, student, tmp_path):
        name = student()
        with pytest.raises(ValueError, match="Set `eos_token: <.im_end.>`"):
            check_model_ending(name)
        check_model_ending(name, eos_token="<|im_end|>")
        (tmp_path / "base" / "generation_config.json").unlink()
        with pytest.raises(ValueError, match="stops at <.endoftext.> only"):
            check_model_ending(name)

    def test_a_template_from_a_file_or_from_a_tokenizer(self, student, tokenizer_with, tmp_path):
        name = student()
        (tmp_path / "zephyr.jinja").write_text(ZEPHYR)
        check_model_ending(name, chat_template_path=str(tmp_path / "zephyr.jinja"))
        other = tokenizer_with(*META)
        other.save_pretrained(tmp_path / "other")
        with pytest.raises(ValueError, match="<.eot_id.>, and the model stops at <.end_of_text.> only"):
            check_model_ending(name, chat_template_path=str(tmp_path / "other"))
        other.eos_token = "<|eot_id|>"
        other.save_pretrained(tmp_path / "other")
        check_model_ending(name, chat_template_path=str(tmp_path / "other"))

    def test_of_an_adapter(self, arguments, tmp_path):
        sft.run(arguments(**LORA, eos_token="<|im_end|>"))
        check_model_ending(str(tmp_path / "out"))
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "out")
        with pytest.raises(ValueError, match="<.im_end.>"):
            check_model_ending(str(tmp_path / "out"))

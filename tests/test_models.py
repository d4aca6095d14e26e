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

"""Loading teachers in every shape, and refusing pairs that do not speak the same tokens."""

import copy

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from trl_distill.models import (
    check_same_tokens,
    dense_head_weight,
    load_teacher,
    load_teacher_tokenizer,
    match_vocabulary,
    placement,
    vocabulary_rows,
)


WIDE = dict(hidden_size=64, intermediate_size=64)  # 4-bit blocks hold 64 values
FOUR_BIT = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}


def logits_of(model):
    ids = torch.tensor([[4, 70, 31, 9]])
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


def assert_frozen(model):
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def adapt(model, **kwargs):
    """A LoRA that does something from the start."""
    torch.manual_seed(9)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **kwargs)
    return get_peft_model(model, config).eval()


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A saved full model, and its logits."""
    model = tiny_model(**WIDE, attention_dropout=0.5)
    model.save_pretrained(tmp_path / "full")
    return tmp_path / "full", model


# Loading


def test_full_model(folder):
    path, model = folder
    teacher = load_teacher(str(path))
    assert isinstance(teacher, PreTrainedModel)
    assert_frozen(teacher)
    torch.testing.assert_close(logits_of(teacher), logits_of(model), rtol=0, atol=0)
    assert torch.equal(logits_of(teacher), logits_of(teacher))  # no dropout


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype_is_that_of_the_checkpoint_or_of_the_user(folder, tmp_path, dtype):
    path, model = folder
    assert load_teacher(str(path)).dtype == torch.float32
    assert load_teacher(str(path), dtype=dtype).dtype == torch.bfloat16
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert load_teacher(str(tmp_path / "half")).dtype == torch.bfloat16
    assert load_teacher(str(tmp_path / "half"), dtype="float32").dtype == torch.float32


@pytest.mark.parametrize("dtype", [None, "float32", torch.bfloat16])
def test_adapter_is_merged_into_its_base(folder, tmp_path, dtype):
    path, model = folder
    adapted = adapt(model, target_modules=["q_proj", "v_proj", "down_proj"])
    plain = load_teacher(str(path))
    adapted.peft_config["default"].base_model_name_or_path = str(path)
    adapted.save_pretrained(tmp_path / "adapter")
    kwargs = {} if dtype is None else {"dtype": dtype}
    teacher = load_teacher(str(tmp_path / "adapter"), **kwargs)
    assert not isinstance(teacher, PeftModel)
    assert not any("lora" in name for name, _ in teacher.named_parameters())
    assert_frozen(teacher)
    assert teacher.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    tolerance = dict(rtol=0.1, atol=0.3) if dtype == torch.bfloat16 else dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits_of(teacher), logits_of(adapted), **tolerance)
    assert (logits_of(teacher) - logits_of(plain)).abs().max() > 1.0


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_four_bit_teacher_from_a_dictionary(folder, compute):
    path, model = folder
    config = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute}
    teacher = load_teacher(str(path), quantization_config=config)
    quantized = [name for name, module in teacher.named_modules() if isinstance(module, Linear4bit)]
    assert any("q_proj" in name for name in quantized)
    assert "lm_head" not in quantized
    assert_frozen(teacher)
    assert vocabulary_rows(teacher) == 260
    logits, exact = logits_of(teacher), logits_of(model)
    assert logits.isfinite().all()
    assert 1e-4 < (logits - exact).norm() / exact.norm() < 0.7  # 4 bits, and the same model
    assert config == {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute}


def test_a_model_that_is_not_trained_is_quantized_like_one_that_is(folder):
    teacher = load_teacher(str(folder[0]), **placement(device="cpu", load_in_4bit=True))
    quantization = teacher.config.quantization_config
    assert (quantization.bnb_4bit_quant_type, quantization.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    weights = [module.weight for module in teacher.modules() if isinstance(module, Linear4bit)]
    assert weights and {weight.quant_state.quant_type for weight in weights} == {"nf4"}


def test_adapter_on_a_four_bit_base_is_kept_apart(folder, tmp_path):
    path, model = folder
    adapted = adapt(model, target_modules=["q_proj", "v_proj"])
    adapted.peft_config["default"].base_model_name_or_path = str(path)
    adapted.save_pretrained(tmp_path / "adapter")
    teacher = load_teacher(str(tmp_path / "adapter"), quantization_config=FOUR_BIT)
    assert isinstance(teacher, PeftModel)
    assert_frozen(teacher)
    assert vocabulary_rows(teacher) == 260
    with teacher.disable_adapter():
        without = logits_of(teacher)
    assert (logits_of(teacher) - without).abs().max() > 1e-3


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(OSError):
        load_teacher(str(tmp_path / "nowhere"))


# Heads


def test_rows_are_those_of_the_head_not_of_the_tokenizer(tiny_model, tokenizer):
    assert vocabulary_rows(tiny_model(vocab_size=300)) == 300
    assert vocabulary_rows(adapt(tiny_model(vocab_size=300), target_modules=["q_proj"])) == 300


def test_quantized_head_is_refused(folder, tokenizer):
    path, model = folder
    config = FOUR_BIT | {"llm_int8_skip_modules": ["none"]}
    teacher = load_teacher(str(path), quantization_config=config)
    assert isinstance(teacher.get_output_embeddings(), Linear4bit)
    with pytest.raises(ValueError, match="(?s)Linear4bit.*llm_int8_skip_modules.*lm_head"):
        match_vocabulary(tokenizer, tokenizer, model, teacher)
    with pytest.raises(ValueError, match="Linear4bit"):
        match_vocabulary(tokenizer, tokenizer, teacher, model)


def test_head_with_an_adapter_is_refused(tiny_model, tokenizer):
    adapted = adapt(tiny_model(), target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match="(?s)lm_head.*target_modules.*merge"):
        match_vocabulary(tokenizer, tokenizer, adapted, tiny_model())
    merged = adapted.merge_and_unload()
    assert dense_head_weight(merged).shape == (260, 8)


def test_head_that_is_trained_whole_is_welcome(tiny_model, tokenizer):
    """`modules_to_save` wraps the head but keeps a dense weight."""
    adapted = adapt(tiny_model(), target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert match_vocabulary(tokenizer, tokenizer, adapted, tiny_model()) == 260
    assert dense_head_weight(adapted).requires_grad


# Vocabularies


def rebuilt(tokenizer, rename=None, merges=(), prefix_space=False, swap=False):
    """The tokenizer of the fixtures once more, with changes."""
    vocabulary = tokenizer.get_vocab()
    tokens = [(rename or {}).get(token, token) for token in sorted(vocabulary, key=vocabulary.get)]
    tokens += [first + second for first, second in merges]
    if swap:
        tokens[10], tokens[11] = tokens[11], tokens[10]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=tokenizer.pad_token, eos_token=tokenizer.eos_token
    )


def assert_names_the_ways_out(error):
    message = str(error.value)
    assert "GOLD" in message and "trl.experimental.gold" in message
    assert "sequence-level" in message


@pytest.mark.parametrize("student_rows, teacher_rows, shared", [(260, 260, 260), (260, 288, 260), (300, 264, 264)])
def test_padded_heads_share_the_smaller_one(tiny_model, tokenizer, student_rows, teacher_rows, shared):
    student, teacher = tiny_model(vocab_size=student_rows), tiny_model(seed=1, vocab_size=teacher_rows, **WIDE)
    assert match_vocabulary(tokenizer, rebuilt(tokenizer), student, teacher) == shared
    assert match_vocabulary(tokenizer, None, student, teacher) == shared  # the teacher brought no tokenizer


DIFFERENT = {
    "another special token": dict(rename={"<|assistant|>": "<|bot|>"}),
    "one more token": dict(merges=[("a", "b")]),
    "two ids swapped": dict(swap=True),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_different_vocabularies_are_refused(tiny_model, tokenizer, case):
    other = rebuilt(tokenizer, **DIFFERENT[case])
    for pair in ((tokenizer, other), (other, tokenizer)):
        with pytest.raises(ValueError, match="token by token") as error:
            match_vocabulary(*pair, tiny_model(vocab_size=300), tiny_model(vocab_size=300))
        assert_names_the_ways_out(error)
    if case == "another special token":
        assert "2 (token, id) pairs" in str(error.value)
        assert "'<|assistant|>', 3" in str(error.value) or "'<|bot|>', 3" in str(error.value)


def with_added(tokenizer, *tokens):
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"additional_special_tokens": list(tokens)}, replace_extra_special_tokens=False)
    return other


ADDED = {
    "the student's": (["[PAD]"], []),
    "the teacher's": ([], ["<think>", "</think>"]),
    "both": (["[PAD]", "<call>"], ["<think>"]),
    "at other ids": (["<call>", "<think>"], ["<think>", "<call>"]),
}


@pytest.mark.parametrize("case", ADDED)
def test_added_tokens_may_differ(tiny_model, tokenizer, case, caplog):
    student, teacher = (with_added(tokenizer, *tokens) for tokens in ADDED[case])
    assert match_vocabulary(student, teacher, tiny_model(vocab_size=262), tiny_model(vocab_size=260)) == 260
    assert match_vocabulary(student, teacher, tiny_model(vocab_size=280), tiny_model(vocab_size=270)) == 270
    assert "Added or special tokens differ" in caplog.text
    assert check_same_tokens(student, teacher) == {260 + i for i in range(len(ADDED[case][0]))}
    with pytest.raises(ValueError, match="token by token"):
        check_same_tokens(with_added(rebuilt(tokenizer, swap=True), *ADDED[case][0]), teacher)


def test_equal_tokenizers_say_nothing(tokenizer, caplog):
    assert check_same_tokens(tokenizer, copy.deepcopy(tokenizer)) == set() and not caplog.text


def test_an_end_or_padding_without_a_row_is_refused(tiny_model, tokenizer):
    student = with_added(tokenizer, "[PAD]")
    student.pad_token = "[PAD]"
    with pytest.raises(ValueError, match="pads with token 260, but the student has only 260 rows"):
        match_vocabulary(student, tokenizer, tiny_model(), tiny_model(vocab_size=300))
    assert match_vocabulary(student, tokenizer, tiny_model(vocab_size=261), tiny_model()) == 260
    student.eos_token = "[PAD]"
    with pytest.raises(ValueError, match="(?s)260.*only 260 rows"):
        match_vocabulary(student, tokenizer, tiny_model(vocab_size=261), tiny_model())


def test_equal_vocabularies_that_encode_differently_are_refused(tiny_model, tokenizer):
    other = rebuilt(tokenizer, prefix_space=True)
    assert other.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ValueError, match="(?s)same vocabulary.*encode") as error:
        match_vocabulary(tokenizer, other, tiny_model(), tiny_model())
    assert_names_the_ways_out(error)


@pytest.mark.parametrize(
    "change",
    [
        dict(
            pre_tokenizer=pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        ),
        dict(normalizer=normalizers.Lowercase()),
        dict(normalizer=normalizers.NFD()),
    ],
    ids=["digits", "case", "accents"],
)
def test_probes_tell_usual_differences_apart(tiny_model, tokenizer, change):
    """Digits split or joined, text lowercased, accents decomposed: the vocabulary is the same each time."""
    merges = [("1", "2"), ("3", "4")]
    ours, theirs = rebuilt(tokenizer, merges=merges), rebuilt(tokenizer, merges=merges)
    for part, value in change.items():
        setattr(theirs.backend_tokenizer, part, value)
    model = tiny_model(vocab_size=300)
    assert match_vocabulary(ours, rebuilt(tokenizer, merges=merges), model, model) == 300
    with pytest.raises(ValueError, match="encode"):
        match_vocabulary(ours, theirs, model, model)


def test_head_without_a_row_for_every_token_is_refused(tiny_model, tokenizer):
    for heads in ((259, 300), (300, 259)):
        models = [tiny_model(vocab_size=rows) for rows in heads]
        with pytest.raises(ValueError, match="(?s)259.*only 259 rows"):
            match_vocabulary(tokenizer, tokenizer, *models)


def test_tokenizer_beside_the_teacher(folder, tokenizer, tmp_path):
    path, model = folder
    assert load_teacher_tokenizer(str(tmp_path / "nowhere")) is None
    assert load_teacher_tokenizer(model) is None  # built here, came from nowhere
    model.save_pretrained(path)
    assert load_teacher_tokenizer(str(path)) is None  # a folder of weights alone
    tokenizer.save_pretrained(path)
    for teacher in (str(path), load_teacher(str(path))):
        assert load_teacher_tokenizer(teacher).get_vocab() == tokenizer.get_vocab()

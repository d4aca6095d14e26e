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

"""The chat template of the recipes (A7)."""

import copy
from pathlib import Path

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer


TEMPLATE = Path(__file__).parents[2] / "recipes" / "zephyr" / "zephyr.jinja"
SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "fine"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "no more"},
]
CONVERSATIONS = {
    "one turn": TURNS[:2],
    "system": [SYSTEM, *TURNS[:2]],
    "many turns": TURNS,
    "system, many turns": [SYSTEM, *TURNS],
    "leading newlines": [TURNS[0], {"role": "assistant", "content": "\n\n\nfine"}],
    "leading space": [TURNS[0], {"role": "assistant", "content": "  fine"}],
    "format in the text": [
        {"role": "user", "content": "say <|assistant|>\n"},
        {"role": "assistant", "content": "<|user|>"},
    ],
}


@pytest.fixture(params=CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def messages(request):
    return request.param


def test_the_published_format(chat_tokenizer):
    """Zephyr's own rendering of the card, but for the BOS token in front and the newline at the end."""
    expected = "<s><|system|>\nBe brief.</s>\n<|user|>\nhello</s>\n<|assistant|>\nfine</s>"
    assert chat_tokenizer.apply_chat_template([SYSTEM, *TURNS[:2]], tokenize=False) == expected
    prompt = chat_tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<s><|user|>\nhello</s>\n<|assistant|>\n"


def test_the_prompt_is_a_prefix_of_prompt_and_answer(chat_tokenizer, messages):
    prompt = chat_tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    whole = chat_tokenizer.apply_chat_template(messages)["input_ids"]
    assert whole[: len(prompt)] == prompt
    answer = chat_tokenizer.decode(whole[len(prompt) :])
    assert answer == messages[-1]["content"].strip() + "</s>"


def test_one_bos_and_an_eos_a_turn(chat_tokenizer, messages):
    ids = chat_tokenizer.apply_chat_template(messages)["input_ids"]
    assert ids[0] == chat_tokenizer.bos_token_id
    assert ids.count(chat_tokenizer.bos_token_id) == 1
    assert ids[-1] == chat_tokenizer.eos_token_id
    assert ids.count(chat_tokenizer.eos_token_id) == len(messages)


def test_training_reads_what_serving_writes(chat_tokenizer, messages):
    """A conversation that grows turn by turn, as a server renders it, is a prefix of what is trained on."""
    whole = chat_tokenizer.apply_chat_template(messages)["input_ids"]
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            served = chat_tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True)["input_ids"]
            assert whole[: len(served)] == served


def test_a_tokenizer_without_bos(chat_tokenizer):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.bos_token = None
    assert tokenizer.apply_chat_template(TURNS[:1], tokenize=False) == "<|user|>\nhello</s>"


class TestTraining:
    def rows_of(self, trainer):
        """Tokens that are trained on, and tokens that are only read, of each row."""
        for row in trainer.train_dataset:
            pairs = list(zip(row["input_ids"], row["labels"], strict=True))
            yield [[i for i, label in pairs if (label != -100) == trained] for trained in (True, False)]

    def train_set(self, model, settings, conversations, **changes):
        args = SFTConfig(**(settings | {"chat_template_path": str(TEMPLATE)} | changes))
        return SFTTrainer(model, args, train_dataset=Dataset.from_dict({"messages": conversations}))

    def test_the_mask_covers_the_answers_and_their_eos(self, save_model, chat_tokenizer, settings):
        trainer = self.train_set(save_model(), settings, list(CONVERSATIONS.values()), assistant_only_loss=True)
        for messages, (trained, read) in zip(CONVERSATIONS.values(), self.rows_of(trainer), strict=True):
            answers = [turn["content"].strip() + "</s>" for turn in messages if turn["role"] == "assistant"]
            assert chat_tokenizer.decode(trained) == "".join(answers)
            assert read.count(chat_tokenizer.bos_token_id) == 1

    def test_all_tokens_by_default(self, save_model, chat_tokenizer, settings):
        trainer = self.train_set(save_model(), settings, list(CONVERSATIONS.values()))
        for messages, (trained, read) in zip(CONVERSATIONS.values(), self.rows_of(trainer), strict=True):
            assert trained == chat_tokenizer.apply_chat_template(messages)["input_ids"]
            assert read == []

    def test_dpo_reads_the_same_tokens(self, make_dpo, save_model, pairs, chat_tokenizer):
        for row, pair in zip(make_dpo(save_model()).train_dataset, pairs, strict=True):
            for answer in ("chosen", "rejected"):
                ids = chat_tokenizer.apply_chat_template(pair["prompt"] + pair[answer])["input_ids"]
                assert row["prompt_ids"] + row[f"{answer}_ids"] == ids
                assert chat_tokenizer.decode(row[f"{answer}_ids"]) == pair[answer][0]["content"] + "</s>"

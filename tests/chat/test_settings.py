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

"""A chat model from an entry of a YAML file, and what is said about a wrong entry."""

import pytest

from trl_distill.chat import EndpointChatModel, LocalChatModel, chat_model


def test_an_entry_with_model_is_a_server_s_model():
    model = chat_model({"model": "m", "base_url": "http://localhost:1/v1", "concurrency": 64, "revision": "r"})
    assert type(model) is EndpointChatModel
    assert (model.model, model.base_url, model.concurrency, model.revision) == ("m", "http://localhost:1/v1", 64, "r")


def test_an_entry_with_a_path_is_a_local_model():
    model = chat_model({"model_name_or_path": "folder", "load_in_4bit": True, "batch_size": 3})
    assert type(model) is LocalChatModel
    assert (model.model_name_or_path, model.load_in_4bit, model.batch_size) == ("folder", True, 3)


def test_values_of_a_yaml_file_that_are_meant():
    """A whole number where a fraction may stand, and nothing where nothing may be."""
    model = chat_model({"model": "m", "base_url": None, "timeout": 5, "prompt_price": 0, "completion_price": 1.5})
    assert model.prices == (0, 1.5)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "either `model`"),
        ({"dtype": "bfloat16"}, "got dtype"),
        ({"model": "m", "model_name_or_path": "f"}, "got model, model_name_or_path"),
        ("gpt", "an entry of `key: value` lines, got 'gpt'"),
        (
            {"model": "m", "base_urls": "http://a/v1"},
            "Unknown key `base_urls` of the chat model 'm'. Did you mean base_url?",
        ),
        ({"model": "m", "load_in_4bit": True}, "Unknown key `load_in_4bit`"),
        ({"model_name_or_path": "f", "torch_dtype": "bfloat16"}, "Did you mean dtype?"),
        ({"model_name_or_path": "f", "weights": "mine"}, "Unknown key `weights`"),  # for Python only, as is the next
        (
            {"model": "m", "omit": ["stream"]},
            "`omit` may hold logprobs, max_tokens, response_format, seed, temperature, top_p, got",
        ),
        ({"model": "m", "headers": {"X-Count": 5}}, "The header 'X-Count' must be a text"),
        ({"model": "m", "headers": {"X-Team": "two\nlines"}}, "holds a character that no header can"),
        ({"model_name_or_path": "f", "load": None}, "Unknown key `load`"),
        ({"model": "m", "concurrency": "8"}, "`concurrency` of the chat model 'm' must be int, got '8'"),
        ({"model": "m", "concurrency": True}, "must be int, got True"),
        ({"model": "m", "base_url": 5}, "`base_url` of the chat model 'm' must be str | None, got 5"),
        ({"model_name_or_path": "f", "load_in_4bit": "no"}, "must be bool, got 'no'"),
        ({"model": "m", "concurrency": 0}, "`concurrency` must be 1 or more"),
    ],
)
def test_a_wrong_entry_is_refused(entry, said):
    with pytest.raises(ValueError) as error:
        chat_model(entry)
    assert said in str(error.value)


def test_a_key_in_a_file_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="api_key_env") as error:
        chat_model({"model": "m", "api_key": "sk-secret"})
    assert "sk-secret" not in str(error.value)

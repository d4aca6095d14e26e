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


"""Model cards: what TRL writes and we add, and the tags that the badges of the pages look for."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import generate_model_card

import trl_distill
from trl_distill import __version__
from trl_distill.model_card import _NO_BASE, _NO_MODEL, _SNIPPET, _TABLE, _VERSIONS, _name, add_loop


TRAINERS = [getattr(trl_distill, name) for name in trl_distill.__all__ if name.endswith("Trainer")]


def badges():
    pages = Path("docs").glob("*.md")
    return {tags for page in pages for tags in re.findall(r"huggingface.co/models\?other=([\w,-]+)", page.read_text())}


def test_badges_look_for_tags_that_are_written():
    written = {",".join(reversed(trainer._tag_names)) for trainer in TRAINERS}
    assert badges() == written | {"lion,trl"} and len(written) == len(TRAINERS) == 6


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.__name__)
def test_each_trainer_adds_to_the_card(trainer):
    assert trainer.create_model_card is not _BaseTrainer.create_model_card


def test_what_we_look_for_is_in_the_card_of_trl():
    card = generate_model_card(None, "m", None, None, ["trl"], None, None, "SFT")
    assert _VERSIONS in card.content and _NO_BASE in card.content and _NO_MODEL in card.content
    assert "pipeline(" in _SNIPPET.search(card.content)[0]


def test_the_card_of_a_trainer(tmp_path, tiny_model, tokenizer, prompts):
    from tests.runs import TINY_RUN, make
    from trl_distill import MiniLLMConfig, MiniLLMTrainer

    settings = TINY_RUN | dict(output_dir=str(tmp_path), max_completion_length=8, gamma=0.5, reward_clip=7.0)
    models = dict(model=tiny_model(seed=0), teacher_model=tiny_model(seed=1), processing_class=tokenizer)
    trainer = make(MiniLLMTrainer, MiniLLMConfig, train_dataset=prompts, **models, **settings)
    for _ in range(2):  # it is written anew each time
        trainer.create_model_card(model_name="small", dataset_name="me/rows")
    text = (tmp_path / "README.md").read_text()
    assert text.count(f"Trained by trl-distill {__version__} with `MiniLLMTrainer`") == 1
    assert "| gamma | `0.5` |" in text and "| reward_clip | `7.0` |" in text and "| learning_rate | `0.01` |" in text
    assert "teacher_model_name_or_path" not in text and text.index("What made it") < text.index("### Framework")
    data = ModelCard.load(tmp_path / "README.md").data
    assert {"trl", "minillm"} <= set(data.tags) and data.datasets == "me/rows"


def test_the_card_names_no_base_that_nobody_can_load(tmp_path, tiny_model, tokenizer, prompts):
    from tests.runs import TINY_RUN, make
    from trl_distill.sft_config import SFTConfig
    from trl_distill.sft_trainer import CountingSFTTrainer

    tiny_model(vocab_size=264).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    prompts.info.dataset_name, prompts.info.builder_name = "dolly", "parquet"
    settings = TINY_RUN | dict(output_dir=str(tmp_path / "run"), model=str(tmp_path / "base"))
    trainer = make(CountingSFTTrainer, SFTConfig, train_dataset=prompts, processing_class=tokenizer, **settings)
    trainer.create_model_card(model_name="run")
    text = (tmp_path / "run/README.md").read_text()
    assert "None" not in text and str(tmp_path) not in text
    assert "a fine-tuned version of `base`" in text and 'model="run"' in text
    assert f"Trained by trl-distill {__version__} with `SFTTrainer`." in text and "| data | `dolly` |" in text


def test_names_that_others_can_read(tmp_path):
    names = ["Qwen/Qwen2.5-7B", str(tmp_path / "teacher"), "/gone/teacher", "http://me:key@host:8000", None]
    assert list(map(_name, names)) == ["Qwen/Qwen2.5-7B", "teacher", "teacher", "on a server", None]


def test_what_a_loop_knows_is_added_once(tmp_path):
    path = tmp_path / "README.md"
    add_loop(path, "lion/student", "lion", {})
    assert not path.exists()
    card = generate_model_card(None, "run", "run", None, ["trl", "sft"], None, None, "SFT")
    card.content += f"{_TABLE}| seed | `1` |\n"
    card.save(path)
    for _ in range(2):
        add_loop(path, "lion/student", "lion", {"teacher": "/home/me/gpt", "loop": "Lion, round 1"})
    card = ModelCard.load(path)
    assert card.data.tags == ["generated_from_trainer", "trl", "sft", "lion"]
    assert "# Model Card for lion/student\n" in card.text and 'model="lion/student"' in card.text
    assert card.text.count("| teacher | `gpt` |") == 1 and card.text.count("| loop | `Lion, round 1` |") == 1

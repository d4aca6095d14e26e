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

"""The page's table is what the script gives, and the architectures are those of the published models."""

import json
import re
from pathlib import Path

import pytest
from transformers import AutoConfig

from benchmarks import memory
from trl_distill.memory import empty_model


RESULTS = json.loads(Path("benchmarks/results/memory.json").read_text(encoding="utf-8"))


def test_the_page_has_the_table_of_the_results():
    assert memory.table(RESULTS) in Path("docs/memory.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", memory.recipes())
def test_the_results_are_those_of_the_recipes(name, tmp_path):
    memory.write_models(tmp_path)
    assert memory.count(name, memory.recipes()[name], tmp_path) == RESULTS["recipes"][name]


def test_all_recipes_are_there():
    assert set(RESULTS["recipes"]) == set(memory.recipes()) and len(memory.recipes()) == 18


@pytest.mark.parametrize("name", memory.recipes())
def test_the_recipe_says_it(name):
    facts = RESULTS["recipes"][name]
    recipe = memory.RECIPES / name
    size = f"{facts['total'] / 1e9:.1f} GB"
    header = re.sub(r"\n# +", " ", recipe.read_text(encoding="utf-8"))
    card, counted = re.search(r"1 GPU of (\d+) GB or more.*? ([\d.]+ GB) by `trl-distill memory`", header).groups()
    assert counted == size
    assert int(card) in facts["fits"] and (int(card) == facts["fits"][0] or "which nothing counts" in header)
    readme = (recipe.parent / "README.md").read_text(encoding="utf-8")
    [row] = [line for line in readme.splitlines() if line.startswith(f"| `{recipe.name}`")]
    assert re.search(rf"\| {card} GB \({size}\W", row)


# As their model cards have it; GPT-2's 124M and 1.5B as in transformers' table of pretrained models
PARAMETERS = {
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-7B": 7_615_616_512,
    "LLaMA-7B": 6_738_415_616,
    "Mistral-7B": 7_241_732_096,
    "GPT-2": 124_439_808,
    "GPT-2 1.5B": 1_557_611_200,
}
# In billions: all, and all but the embeddings
QWEN3 = {"0.6B": ("0.6", "0.44"), "1.7B": ("1.7", "1.4"), "4B": ("4.0", "3.6"), "8B": ("8.2", "6.95")}
QWEN3 |= {"14B": ("14.8", "13.2")}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_the_published_models(name, tmp_path):
    memory.write_models(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path / name)
    assert empty_model(config, config.dtype).num_parameters() == PARAMETERS[name]


@pytest.mark.parametrize("size", QWEN3)
def test_parameters_of_qwen3(size, tmp_path):
    memory.write_models(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path / f"Qwen3-{size}")
    count = empty_model(config, config.dtype).num_parameters()
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    for found, published in zip((count, count - embeddings), QWEN3[size], strict=True):
        assert f"{found / 1e9:.{len(published.split('.')[1])}f}" == published

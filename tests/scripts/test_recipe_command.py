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

"""`trl-distill recipe`, and recipes from where there is no checkout."""

import pytest
import yaml

from tests.commands import error_of
from trl_distill.scripts import recipe
from trl_distill.scripts.arguments import read_config
from trl_distill.training import recipe_folder, shipped


def test_all_are_listed_with_what_they_are(capsys):
    recipe.run([])
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    files = {path.relative_to(recipe_folder()).as_posix() for path in recipe_folder().rglob("*") if path.is_file()}
    assert set(listed) == {name for name in files if not name.endswith((".md", ".pyc"))}
    assert listed["minillm/paper_gpt2.yaml"].startswith("GPT-2 120M learns from GPT-2 1.5B")
    assert all(len(text) > 20 and "Licensed" not in text for text in listed.values())


@pytest.mark.parametrize("name", ["lion/local", "lion/local.yaml", "recipes/lion/local.yaml", "local"])
def test_one_is_printed_as_it_is(name, capsys):
    recipe.run([name])
    assert capsys.readouterr().out == (recipe_folder() / "lion/local.yaml").read_text()


def test_a_name_that_is_none(capsys):
    assert "Did you mean lion/local.yaml" in error_of(capsys, recipe.run, "lion/locale.yaml")
    assert "no recipe 'x'" in error_of(capsys, recipe.run, "x")


def test_recipes_are_found_from_elsewhere(tmp_path, monkeypatch, capsys):
    """Those that a command is given, and what they name; a file that is there comes first."""
    monkeypatch.chdir(tmp_path)
    config, _ = read_config(["--config", "recipes/zephyr/dsft_qlora.yaml"])
    template = recipe_folder() / "zephyr/zephyr.jinja"
    assert config["chat_template_path"] == str(template) and template.is_file()
    recipe.run(["lion/paper"])
    (tmp_path / "my.yaml").write_text(capsys.readouterr().out)
    config, _ = read_config(["--config", "my.yaml"])
    assert config["training"]["chat_template_path"] == str(template)

    (tmp_path / "recipes/zephyr").mkdir(parents=True)
    (tmp_path / "recipes/zephyr/zephyr.jinja").write_text("mine")
    config, _ = read_config(["--config", "my.yaml"])
    assert config["training"]["chat_template_path"] == "recipes/zephyr/zephyr.jinja"
    assert shipped(["recipes/none.yaml", 1, None, "data/rows.jsonl"]) == [
        "recipes/none.yaml",
        1,
        None,
        "data/rows.jsonl",
    ]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"dataset_name": "recipes/none"}))
    assert read_config(["--config", "mine.yaml"])[0] == {"dataset_name": "recipes/none"}

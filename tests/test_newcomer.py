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

"""
What a newcomer types: the blocks of README.md and of every quick start, or the first commands of a page that has none,
from the wheel, as they stand on the page.

Nothing is added to a command. Models and data are tiny and have the real names, there is no GPU, and the server that
answers is ours. `NEWCOMER_INDEX=1` installs all that the wheel needs from the index, too.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests import newcomer
from tests.chat.chat_server import ChatServer, completion_body
from tests.newcomer import ROOT
from tests.test_examples import judged


pytestmark = pytest.mark.slow

QUICK_START = re.compile(r"^## Quick start\n(.*?)(?=^## |\Z)", re.M | re.S)
PAGES = {"README.md": (ROOT / "README.md").read_text(encoding="utf-8")}
PAGES |= {
    str(path.relative_to(ROOT)): found.group(1)
    for path in sorted((ROOT / "docs").glob("*.md"))
    if (found := QUICK_START.search(path.read_text(encoding="utf-8")))
}
# Pages without a quick start: their first block is one. Others speak of several machines, or of a config of one's own
FIRST = re.compile(r"^```bash\n.*?^```$", re.M | re.S)
PAGES |= {
    page: FIRST.search((ROOT / page).read_text(encoding="utf-8")).group()
    for page in ("docs/evaluation.md", "docs/memory.md", "docs/which_method.md", "docs/wrong_answers.md")
}
PORT = 8000  # of the pages
WRITTEN = itertools.count()

# What does not run here, by how it begins, and why
NOT_RUN = {
    "make demo": "makes an environment of its own from the index, in a checkout",
    "make test": "this is one of its tests, in a checkout",
    "trl-distill label ": "a model of random weights answers nothing right; the world has labelled rows",
    "pip install": "is what the fixture does, from the wheel: the address on GitHub is not there yet",
}
# What a page says its reader has done before: another page's blocks that come first
BEFORE = {"docs/nce_trainer.md": ("docs/nat_trainer.md", "train_nat.py")}
# What is ready for other pages, and this one makes
MADE_HERE = {"docs/zephyr.md": ["runs/zephyr/dsft-merged", "runs/zephyr/ddpo"]}
# Recipes that train a number of steps which no data makes smaller, or whose judge has no use for random weights: the
# server judges in its place, as the recipe says it can. A file of that name in the folder comes first
JUDGE = "{0}model_name_or_path: Qwen/Qwen2.5-14B-Instruct\n{1}load_in_4bit: true\n{1}batch_size: 8\n"
CHANGED = {
    "minillm/qwen2.5_1.5b_qlora_single_gpu.yaml": {
        "max_steps: 500": "max_steps: 2",
        "eval_steps: 50": "eval_steps: 2",
    },
    "zephyr/feedback.yaml": {JUDGE.format("  - ", "    "): "  - model: gpt-4.1-mini\n"},
    "zephyr/compare.yaml": {JUDGE.format("  ", "  "): "  model: gpt-4.1-mini\n"},
}


def test_every_page_is_here():
    assert len(PAGES) == 17
    blocks = [text for page in PAGES.values() for _, text in newcomer.blocks_of(page)]
    for start in NOT_RUN:
        assert any(command.startswith(start) for text in blocks for command in newcomer.commands_of(text)), start


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return newcomer.make_environment(tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    newcomer.make_world(folder)
    return folder


@pytest.fixture
def server():
    try:
        server = ChatServer(PORT)
    except OSError as error:
        pytest.skip(f"port {PORT}, which the pages name, is taken: {error}")
    server.reply = reply
    yield server
    server.stop()


def reply(body: dict, attempt: int, headers) -> dict:
    """A judge that counts, a writer who never writes the same twice, and a model that answers with its name."""
    said = body["messages"][-1]["content"]
    if "<answer" in said:
        return completion_body(judged(body, lambda text: sum(map(ord, text)) % 5 + 1))
    if "<example>" in said:
        return completion_body(" ".join(f"word{next(WRITTEN)}" for _ in range(6)))
    return completion_body(f"{body['model']} says {said[:40]}")


def steps_of(page: str, folder) -> list[tuple[str, str]]:
    """What a reader of the page runs. Blocks that begin with the name of a file are written to it."""
    steps = []
    for language, text in newcomer.blocks_of(PAGES[page]):
        name = re.match(r"# (\w+\.\w+)\n", text)
        if name:
            (folder / name.group(1)).write_text(text, encoding="utf-8")
        if language == "bash":
            commands = [c for c in newcomer.commands_of(text) if not c.startswith(tuple(NOT_RUN))]
            steps += [(language, command) for command in commands]
        elif language == "python":
            steps.append((language, text))
    return steps


@pytest.mark.parametrize("page", PAGES)
def test_page(page, python, world, server, tmp_path):
    folder = shutil.copytree(world, tmp_path / "work")
    for name in MADE_HERE.get(page, ()):
        shutil.rmtree(folder / name)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME")}
    environment |= {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OPENAI_API_KEY": "none",
        "OPENAI_BASE_URL": server.base_url,
    }
    for name, changes in CHANGED.items():
        command = [python.parent / "trl-distill", "recipe", name]
        recipe = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        for old, new in changes.items():
            assert old in recipe
            recipe = recipe.replace(old, new)
        (folder / "recipes" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "recipes" / name).write_text(recipe)

    steps = steps_of(page, folder)
    if page in BEFORE:
        other, file = BEFORE[page]
        steps = [step for step in steps_of(other, folder) if step[1].startswith(f"# {file}")] + steps
    assert steps
    log = tmp_path / "session.txt"
    with log.open("w") as output:
        done = subprocess.run(
            [python, "-c", newcomer.SESSION, json.dumps(steps)],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=1200,
        )
    said = log.read_text(encoding="utf-8", errors="replace")
    sys.stdout.write(said)
    assert done.returncode == 0, said[-6000:]

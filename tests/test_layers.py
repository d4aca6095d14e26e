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
Who may import whom: foundations know no method, a method knows no other method, nobody below the commands imports or
starts one, and everyone outside uses public names.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import trl_distill
from trl_distill.cli import OTHERS, TRAINING


ROOT = Path(__file__).parents[1]
FOUNDATIONS = {
    "files",
    "progress",
    "row_formats",
    "checkpoints",
    "divergence",
    "top_k",
    "models",
    "generation",
    "endings",
    "text",
    "chat",
    "evaluation",
    "extras",
    "training",
    "sft",
    "sft_config",
    "sft_trainer",
    "script_arguments",
    "hardware",
    "launcher",
    "model_card",
    "report",
    "memory",
}
RATIONALES = {"nat", "nce", "asc"}  # methods of one folder, which share its modules
TOP = {"scripts", "cli", "__init__"}
STARTED = ("trl_distill.cli", "trl_distill.scripts", *(f"trl-distill {command}" for command in TRAINING | OTHERS))


def imported_from_us(path: Path, root: Path = ROOT) -> list[str]:
    """Dotted names that a file imports from `trl_distill`, without that prefix, at any depth of its code."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(root).parent.parts
            parents = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*parents, *filter(None, [node.module])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    return [name.removeprefix("trl_distill.") for name in names if name.startswith("trl_distill.")]


def started_by_us(path: Path) -> Iterator[str]:
    """Commands of ours that stand where a process gets its arguments: in a call, a list or a tuple."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        values = getattr(node, "elts", None) or []
        if isinstance(node, ast.Call):
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
        texts = [value.value if isinstance(value, ast.Constant) else "..." for value in values]
        for pair in pairwise([*texts, ""]):
            text = " ".join(map(str, pair)).strip()  # the module, or the program and its command
            if text.startswith(STARTED) or text == "trl-distill ...":
                yield text


def violations(path: Path, root: Path = ROOT) -> list[str]:
    top, *inner = path.relative_to(root).with_suffix("").parts
    names = imported_from_us(path, root)
    if top != "trl_distill":  # recipes, examples, benchmarks
        return [name for name in names if any(part.startswith("_") for part in name.split("."))]
    if inner[0] in TOP:
        return []
    broken = [name for name in names if name.split(".")[0] not in FOUNDATIONS | {inner[0]}]
    broken += started_by_us(path)
    if inner[0] == "rationales":
        others = RATIONALES - {inner[1]}
        broken += [name for name in names if name.startswith("rationales.") and name.split(".")[1] in others]
    return broken


def circle(root: Path = ROOT) -> list[str] | None:
    """Modules of the package that import each other in a circle, `None` if there is none."""
    files = {path.relative_to(root).with_suffix(""): path for path in (root / "trl_distill").rglob("*.py")}
    modules = {".".join(name.parts[1:]).removesuffix("__init__").strip("."): path for name, path in files.items()}

    def module(name: str) -> str:
        """The module in which an imported name is found: `x.y` may be a module or a name of the module `x`."""
        return name if name in modules else name.rpartition(".")[0]

    graph = {name: {module(imported) for imported in imported_from_us(path, root)} for name, path in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


FILES = sorted(
    path for folder in ("trl_distill", "recipes", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers_hold(path):
    assert violations(path) == []


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("trl_distill/divergence.py", "from .minillm.credit import returns", ["minillm.credit.returns"]),
        ("trl_distill/evaluation/answers.py", "import trl_distill.scripts.sft", ["scripts.sft"]),
        ("trl_distill/zephyr/policies.py", "def f():\n    from trl_distill.lion import x", ["lion.x"]),
        ("trl_distill/rationales/nce/calibration.py", "from ..nat import x", ["rationales.nat.x"]),
        ("trl_distill/rationales/labels.py", "from .nat import x", ["rationales.nat.x"]),
        (
            "trl_distill/rationales/nce/nce_trainer.py",
            "from ...models import x\nfrom ..data import x\nfrom .c import C",
            [],
        ),
        ("trl_distill/scripts/minillm.py", "from ..minillm import MiniLLMTrainer", []),
        ("trl_distill/sixth/loop.py", "from ..cli import main\nfrom . import x", ["cli.main"]),  # a method that is new
        (
            "trl_distill/lion/loop.py",
            'run([sys.executable, "-m", "trl_distill.cli", *x])',
            ["trl_distill.cli ..."],
        ),
        ("trl_distill/lion/loop.py", 'import_module("trl_distill.scripts.sft")', ["trl_distill.scripts.sft"]),
        ("trl_distill/lion/loop.py", 'x = ("nice", "trl-distill", "sft")', ["trl-distill sft"]),
        ("trl_distill/lion/loop.py", 'x = ["trl-distill", command]', ["trl-distill ..."]),
        ("trl_distill/lion/loop.py", 'run("trl-distill merge x", shell=True)', ["trl-distill merge x True"]),
        ("trl_distill/chat/x.py", '"""`trl-distill sft`"""\nx = [version("trl-distill"), "trl"]', []),
        ("trl_distill/chat/x.py", 'raise ValueError(f"{x}: run `trl-distill sft`.")', []),
        ("trl_distill/scripts/lion.py", 'run(["trl-distill", "sft"])', []),
        ("benchmarks/speed/step.py", "from trl_distill.models import _load", ["models._load"]),
        ("benchmarks/speed/step.py", "from trl_distill import MiniLLMTrainer", []),
    ],
)
def test_a_broken_layer_is_seen(tmp_path, file, line, expected):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert violations(path, tmp_path) == expected


def test_there_is_no_circle():
    assert circle() is None


def test_a_circle_is_seen(tmp_path):
    for name, line in {
        "lion/__init__.py": "from .loop import LionLoop",
        "lion/loop.py": "from .estimate import estimate",
        "lion/estimate.py": "def f():\n    from .loop import LionLoop",
    }.items():
        path = tmp_path / "trl_distill" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)
    assert sorted(set(circle(tmp_path))) == ["lion.estimate", "lion.loop"]


def test_type_checkers_find_every_public_name():
    """Each is imported, where types are checked, from the module that defines it, as it is at run time."""
    tree = ast.parse(Path("trl_distill/__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    found = {alias.name: f"trl_distill.{node.module}" for node in block.body for alias in node.names}
    assert found == trl_distill._MODULES
    for name, module in found.items():
        source = ast.parse(Path(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
        assert name in [getattr(node, "name", None) for node in source.body], module

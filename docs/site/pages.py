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
Lays out the pages of the documentation site in `build/pages`, as they lie in the repository: `make docs` renders them.

Pages are written for GitHub. Three things change on the way: a README becomes the index of its folder, a file that a
page links to is copied beside it, and a line such as

    [`MiniLLMTrainer`](../trl_distill/minillm/minillm_trainer.py): `train`, `save_model` <!-- [[autodoc]] -->

becomes the entry of that class in the API reference. What does not resolve stops the build. Needs Python alone, so
that the tests can check pages without what renders them.
"""

import ast
import re
import shutil
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
PATTERNS = ("*.md", "docs/*.md", "examples/README.md", "benchmarks/**/*.md", "recipes/**/README.md")
TRAINER = "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.Trainer"

CODE = re.compile(r"^( *)(`{3,})[^`\n]*\n.*?^\1\2 *$|(?<!`)``(?!`).+?(?<!`)``(?!`)", re.M | re.S)
LINK = re.compile(r"(\[(?:[^\[\]]|\[[^\[\]]*\](?:\([^()]*\))?)*\]\()([^()\s]+)(\))")
AUTODOC = re.compile(
    r"^(?:(#+) ([\w.]+)\n\n)?\[`([\w.]+)`\]\(([\w./]+)\)(?:: ([\w`, ]+))? <!-- \[\[autodoc\]\] -->$", re.M
)


def pages() -> list[Path]:
    return sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))


def outside_code(text: str, change) -> str:
    """`text` with `change` applied to what is in no fenced block and between no double backticks."""
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [change(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(text[end:])])


def entries(page: Path) -> list[tuple[str, str, str, str, str]]:
    """The lines of a page that stand for entries of the API reference: heading, its text, name, source, members."""
    found = []
    outside_code(page.read_text(encoding="utf-8"), lambda part: found.extend(AUTODOC.findall(part)) or part)
    return found


def target(page: Path, link: str) -> Path | None:
    """What a link of a page points to in the repository: a page, a file, or nothing for an address."""
    if re.match(r"[a-z]+:", link) or link.startswith("#"):
        return None
    path = (page.parent / link.partition("#")[0]).resolve()
    if path.is_dir():
        path = path / "README.md"
    if not path.is_file() or not path.is_relative_to(ROOT):
        raise ValueError(f"{page.relative_to(ROOT)} links to {link}, which is no file of the repository.")
    return path


def definition(page: Path, name: str, source: str) -> ast.ClassDef | ast.FunctionDef:
    """The class or function that a line of the API reference names, in the file that the line links to."""
    short = name.rpartition(".")[2]
    for node in ast.parse(target(page, source).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == short:
            return node
    raise ValueError(f"{page.relative_to(ROOT)} documents {name}, but {source} defines no {short}.")


def identifier(name: str, source: str) -> str:
    """The dotted path that leads to a public name, which a module of the same name may hide."""
    path = f"trl_distill.{name}"
    hidden = source.lstrip("./").removesuffix(".py").replace("/", ".") == path
    return f"{path}.{name.rpartition('.')[2]}" if hidden else path


def api_entry(page: Path, heading: str, title: str, name: str, source: str, members: str) -> str:
    node = definition(page, name, source)
    before, after, options = "", "", [f"heading: trl_distill.{name}"]
    if title == node.name:  # its own heading takes the place of the page's
        before = f"[](){{ #{title.lower()} }}\n\n"
        options.append(f"heading_level: {len(heading)}")
    elif title:
        before = f"{heading} {title}\n\n"
    if isinstance(node, ast.ClassDef):
        own = {item.name for item in node.body if isinstance(item, ast.FunctionDef) and ast.get_docstring(item)}
        named, of_transformers = re.findall(r"\w+", members), []
        if node.name.endswith("Trainer"):
            of_transformers = [member for member in named if member not in own]
            links = ", ".join(f"[`{member}`]({TRAINER}.{member})" for member in of_transformers)
            after = f"\n\nAs in `transformers.Trainer`: {links}." if links else ""
        if node.name.endswith("Config"):
            options.append("show_signature: false")
        if members or node.name.endswith("Config"):
            shown = [member for member in named if member not in of_transformers]
            options += [f"members: {shown}"] if shown else ["members: false", "inherited_members: false"]
    entry = [f"::: {identifier(name, source)}", "    options:", *(f"      {option}" for option in options)]
    return before + "\n".join(entry) + after


def site_page(page: Path, copy) -> str:
    """The page as the site renders it. `copy` is called with each file that it links to."""

    def link(match):
        path = target(page, match[2])
        if path is None:
            return match[0]
        if path.suffix != ".md":
            copy(path)
        elif path not in known:
            raise ValueError(f"{page.relative_to(ROOT)} links to {match[2]}, which is no page of the site.")
        address, _, anchor = match[2].partition("#")
        if (page.parent / address).is_dir():
            address = f"{address.rstrip('/')}/README.md"
        address = re.sub(r"(^|/)README\.md$", r"\1index.md", address)
        return f"{match[1]}{address}{'#' if anchor else ''}{anchor}{match[3]}"

    known = set(pages())
    text = page.read_text(encoding="utf-8")
    text = outside_code(text, lambda part: AUTODOC.sub(lambda match: api_entry(page, *match.groups("")), part))
    return outside_code(text, lambda part: LINK.sub(link, part))


def main(output: Path):
    shutil.rmtree(output, ignore_errors=True)

    def copy(path: Path):
        to = output / path.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)

    for name in ("extra.css", "latin_modern_math.woff2"):
        copy(Path(__file__).with_name(name))
    for page in pages():
        text = site_page(page, copy)
        to = output / page.relative_to(ROOT).with_name(page.name.replace("README", "index"))
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "pages")

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

"""The pages: what they link to, quote and document is there, and they can be shown on GitHub and on the site."""

import functools
import http.server
import importlib
import importlib.util
import json
import os
import queue
import re
import runpy
import shutil
import subprocess
import sys
import threading

import pytest


LAYOUT = runpy.run_path("docs/site/pages.py")
ROOT, PAGES = LAYOUT["ROOT"], LAYOUT["pages"]()
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def outside_code(text: str) -> str:
    parts = []
    LAYOUT["outside_code"](text, lambda part: parts.append(part) or part)
    return "\n".join(parts)


def anchors(page) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", outside_code(page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links(page):
    for _, link, _ in LAYOUT["LINK"].findall(outside_code(page.read_text(encoding="utf-8"))):
        to = LAYOUT["target"](page, link)
        anchor = link.partition("#")[2]
        if anchor and not re.match(r"[a-z]+:", link):
            assert anchor in anchors(to or page), f"{link}: {(to or page).name} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_notation(page):
    """GitHub shows neither doc-builder's tags nor its formulas, and a stray bar in a table as one column more."""
    text = page.read_text(encoding="utf-8")
    left = re.sub(r"(?<!\$)`[^`\n]+`(?!\$)", "code", LAYOUT["AUTODOC"].sub("", outside_code(text)))
    assert "[[autodoc]]" not in left, "write [`Name`](../trl_distill/file.py): `method` <!-- [[autodoc]] -->"
    assert "\\(" not in left and "$$" not in left, "write $`x`$, and a fenced block math for a formula of its own"
    assert not re.search(r"\[code\](?!\()", left), "a name in brackets is no link on GitHub: [`Name`](page.md#name)"
    for table in re.findall(r"(?:^\|.*\|$\n?)+", outside_code(text), re.M):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


def test_documented_names():
    documented = []
    for page in PAGES:
        for _, _, name, source, members in LAYOUT["entries"](page):
            LAYOUT["definition"](page, name, source)
            module, _, short = f"trl_distill.{name}".rpartition(".")
            documented.append(getattr(importlib.import_module(module), short))
            for member in re.findall(r"\w+", members):
                assert callable(getattr(documented[-1], member)), f"{name}.{member}"
    import trl_distill

    missing = [name for name in trl_distill.__all__ if getattr(trl_distill, name) not in documented]
    assert not missing, "public names without an entry on any page"


def test_quoted_messages():
    """Messages that the page on trouble quotes are raised somewhere."""
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "trl_distill").rglob("*.py")))
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    tables = [table for table in re.findall(r"(?:^\|.*\|$\n?)+", text, re.M) if table.startswith("| message")]
    cells = [row.split("|")[1] for table in tables for row in table.splitlines()]
    quoted = [quote for cell in cells for quote in re.findall("`([^`]+)`", cell)]
    assert len(quoted) > 30
    assert [quote for quote in quoted if quote not in code] == []


# Runs in the browser: measures the pages at the widths of a desktop and of a phone, searches, and sends what it saw
PROBE = """
<!doctype html><body><script>
const wait = ms => new Promise(done => setTimeout(done, ms));
async function frame(url, width) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.src = url;
  document.body.append(frame);
  await new Promise(done => frame.onload = done);
  await frame.contentDocument.fonts.ready;
  return frame.contentDocument;
}
(async () => {
  const seen = {};
  for (const page of PAGES) for (const width of [1280, 390]) {
    const doc = await frame(page, width), root = doc.documentElement, article = doc.querySelector("article");
    const formulas = [...article.querySelectorAll("math")].map(math => math.getBoundingClientRect());
    seen[page + "@" + width] = {
      overflow: root.scrollWidth - root.clientWidth, text: article.innerText, formulas: formulas.length,
      empty: formulas.filter(box => box.width < 2 || box.height < 2).length,
      images: [...article.querySelectorAll(`img[src^="../"]`)].filter(image => !image.naturalWidth).length,
      entries: article.querySelectorAll(".doc-heading").length,
    };
  }
  const doc = await frame("index.html?q=whitening", 1280);
  for (let i = 0; i < 100 && !doc.querySelector(".md-search-result__item"); i++) await wait(100);
  seen.found = [...doc.querySelectorAll(".md-search-result__item a")].map(link => link.href);
  await fetch("/seen", {method: "POST", body: JSON.stringify(seen)});
})().catch(error => fetch("/seen", {method: "POST", body: JSON.stringify({error: String(error)})}));
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="needs what `make docs` installs")
def test_site_in_a_browser(tmp_path):
    pages = [f"docs/{name}/index.html" for name in ("minillm_trainer", "nce_trainer", "which_method")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(["docs/site", *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    for command in (["docs/site/pages.py"], ["-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path / "site"]):
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT, env=environment)
    (tmp_path / "site/probe.html").write_text(PROBE.replace("PAGES", json.dumps(pages)), encoding="utf-8")
    answers = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_POST(self):
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

    handler = functools.partial(Handler, directory=tmp_path / "site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
        flags += f" disable-component-update disable-sync user-data-dir={tmp_path / 'profile'} remote-debugging-port=0"
        url = f"http://127.0.0.1:{server.server_port}/probe.html"
        browser = subprocess.Popen(
            [BROWSER, *(f"--{flag}" for flag in flags.split()), url],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            seen = answers.get(timeout=120)
        finally:
            browser.terminate()
            browser.wait(30)
            server.shutdown()

    assert "error" not in seen, seen
    assert any("minillm_trainer" in link for link in seen.pop("found"))
    assert len(seen) == 6
    for name, page in seen.items():
        assert page["overflow"] <= 0, f"{name} is wider than its window by {page['overflow']} pixels"
        assert page["formulas"] > 3 and page["empty"] == page["images"] == 0, name
        assert not re.search(r"\\\\\(|\$`|\\mathrm|\[\[autodoc|:::", page["text"]), name
        assert page["entries"] > 1 or "which_method" in name, name

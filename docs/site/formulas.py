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
Formulas as MathML, which browsers show by themselves: no script, and no other server.

On pages they are written as GitHub reads them, `$`...`$` in a line and a fenced block `math` on its own; docstrings
have `\\( ... \\)` and `$$ ... $$`, which TRL's pages have.
"""

from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from math_core import LatexToMathML


_CONVERTER = LatexToMathML()


def mathml(formula: str, display: bool) -> str:
    return _CONVERTER.convert_with_local_state(formula, displaystyle=display)


def block(source, language, css_class, options, md, **kwargs):
    """A fenced block `math`, for `pymdownx.superfences`."""
    return mathml(source, display=True)


class _Formula(InlineProcessor):
    def __init__(self, pattern: str, display: bool, md):
        super().__init__(pattern, md)
        self.display = display

    def handleMatch(self, match, data):
        return self.md.htmlStash.store(mathml(match[1], self.display)), match.start(), match.end()


class Formulas(Extension):
    def extendMarkdown(self, md):
        before_code, after_code = 200, 185  # code spans have 190
        for name, pattern, display, priority in (
            ("page", r"(?<!`)\$`([^`]+)`\$(?!`)", False, before_code),
            ("docstring", r"\\\\?\((.+?)\\\\?\)", False, after_code),
            ("display", r"\$\$([^$]+)\$\$", True, after_code),
            ("dollar", r"(?<![\w$\\])\$(?=\S)([^$\n]*[^\s$])\$(?![\w$])", False, after_code),
        ):
            md.inlinePatterns.register(_Formula(pattern, display, md), f"formula-{name}", priority)


def makeExtension(**kwargs):
    return Formulas(**kwargs)

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

"""Reads the docstrings of the package, which are in the style of Hugging Face, as Google's style."""

import re

from griffe import Extension
from pages import entries, identifier, pages


# Names of the API reference -> where they are in the package
DOCUMENTED = {
    name.rpartition(".")[2]: identifier(name, source) for page in pages() for _, _, name, source, _ in entries(page)
}


def google_style(text: str) -> str:
    # A line such as "gamma (`float`, *optional*, defaults to `1.0`):". Defaults are read from the signature
    text = re.sub(r"^( +)(\*{0,2}\w+(?:, \w+)*)(?: \((.+)\))?:$", _parameter, text, flags=re.M)
    # Groups of parameters: `> Parameters that control the rollouts`
    text = re.sub(r"^( *)(?:Args|Parameters):\n+ +> ", r"\1> ", text, flags=re.M)
    text = re.sub(r"^ *> (Parameters .+)$", r"Parameters: \1", text, flags=re.M)
    # Types of results are code
    text = re.sub(r"^( +)`([^`\n]+)`: ", r"\1\2: ", text, flags=re.M)
    text = re.sub(r"\]\((\w+)(#[\w-]+)?\)", r"](https://huggingface.co/docs/trl/\1\2)", text)  # pages of TRL
    return re.sub(r"\[`(~?)([\w.]+)`\](?!\()", _reference, text)


def _parameter(match) -> str:
    indent, names, described = match.groups()
    kind = re.sub(r"(, )?(\*optional\*|defaults to ).*", "", described or "")
    kind = re.sub(r"\[`~?(?:\w+\.)*(\w+)`\]", r"\1", kind).replace("`", "")
    if not kind and ("," in names or names.endswith("kwargs")):
        kind = "Any"  # the signature has no type for these
    return f"{indent}{names} ({kind}):" if kind else f"{indent}{names}:"


def _reference(match) -> str:
    short = match[2].rpartition(".")[2]
    if short in DOCUMENTED:
        return f"[`{short}`][{DOCUMENTED[short]}]"
    return f"`{short if match[1] else match[2]}`"


class HuggingFaceDocstrings(Extension):
    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = google_style(obj.docstring.value)

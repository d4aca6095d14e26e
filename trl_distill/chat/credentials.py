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

"""What a server is to know and nobody else: keys from the environment, and texts without them."""

import base64
import html
import os
import re
from functools import lru_cache


_REFERENCE = re.compile(r"\$\{(\w+)\}")
_SECRET_NAME = re.compile(r"key|token|secret|passw|auth|cookie|credential", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"^(?:bearer|basic|token) |^(?:sk|pk|gsk|hf|xai)[-_]|^(?=\S*[a-z])(?=\S*\d)\S{24,}$", re.IGNORECASE
)
_URL_USER = re.compile(r"(?<=://)[^/@\s]+@")
_KEY = re.compile(r"\b(?:(?:sk|pk|gsk|xai)-|hf_)\w[\w-]{7,}|\bbearer [\w\-.=+/]{16,}", re.IGNORECASE)
_LONG = 16  # characters from which on a key is nothing that a text may hold by chance, as "none" and "EMPTY" are


def check_headers(headers: dict[str, str]) -> None:
    """Raise `ValueError`, without the value, if a header that a file gives holds what looks like a secret."""
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ValueError(f"The header {name!r} must be a text. Put it in quotes.")
        if _REFERENCE.search(value) is None and (_SECRET_NAME.search(name) or _SECRET_VALUE.search(value)):
            raise ValueError(
                f"The header {name!r} looks like a secret, which must not be in a file. Name an environment variable "
                "that holds it, such as ${MY_KEY}."
            )


class Credentials:
    """
    The key and the headers for one server, read from the environment when they are asked for.

    Args:
        model (`str`), api_key_env (`str`, *optional*), headers (`dict[str, str]`, *optional*):
            For whom they are, the environment variable with the key, and headers whose values may name others as
            `${NAME}`.

    Raises:
        `ValueError`: If a variable that is set holds what no header can: a line break, a tab, a letter outside ASCII.
    """

    def __init__(self, model: str, api_key_env: str | None = None, headers: dict[str, str] | None = None):
        self._model, self._api_key_env, self._headers = model, api_key_env, dict(headers or {})
        names = [name for value in self._headers.values() for name in _REFERENCE.findall(value)]
        self._names = [*([api_key_env] if api_key_env else []), *names]
        self._secrets: set[str] = set()  # all that was read, for a variable may change
        for name, value in self._headers.items():
            if not (name + value).isascii() or not (name + value).isprintable():
                raise ValueError(f"The header {name!r} of {model} holds a character that no header can.")
        for name in self._names:
            self._read(name)

    @property
    def authorize(self) -> bool:
        """Whether there is a header of its own for who asks."""
        return any(name.lower() == "authorization" for name in self._headers)

    def _read(self, name: str) -> str:
        value = os.environ.get(name, "").strip()
        if not value.isascii() or not value.isprintable():
            raise ValueError(
                f"The environment variable {name}, the key for {self._model}, holds a line break or another character "
                "that no key has. Set it anew."
            )
        self._secrets.add(value)
        return value

    def _need(self, name: str) -> str:
        value = self._read(name)
        if not value:
            raise ValueError(f"No API key for {self._model}: set the environment variable {name}.")
        return value

    def key(self) -> str | None:
        """The key, or `None` if none is to be sent. `ValueError` if its variable is not set."""
        return self._need(self._api_key_env) if self._api_key_env else None

    def headers(self) -> dict[str, str]:
        """The headers with the values of their variables. `ValueError` if one is not set."""
        return {
            name: _REFERENCE.sub(lambda match: self._need(match[1]), value) for name, value in self._headers.items()
        }

    def hide(self, text: str, of_any_length: bool = False) -> str:
        """
        A text without the secrets: servers send back what they got, also quoted, escaped or in base64. A short one is
        hidden only on demand, in messages of errors: in an answer it may be an ordinary word.
        """
        for secret in sorted(filter(None, self._secrets), key=len, reverse=True):
            if of_any_length or len(secret) >= _LONG:
                text = _forms(secret).sub("[key]", text)
        return text


def without_secrets(text: str) -> str:
    """
    A text without what looks like a key, and without what the environment holds under the name of one, if that has
    eight characters or more.
    """
    for name, value in os.environ.items():
        if len(value.strip()) >= 8 and _SECRET_NAME.search(name):
            text = _forms(value.strip()).sub("[key]", text)
    return _KEY.sub("[key]", _URL_USER.sub("[key]@", text))


@lru_cache
def _forms(secret: str) -> re.Pattern:
    """A secret as it may stand in a text: as it is, escaped for JSON, Python, HTML or a URL, or in base64."""
    pieces = []
    for piece in re.findall(r"\\+|[^\\]", secret):
        number = ord(piece[0])
        coded = rf"(?i:u00{number:02x}|x{number:02x}|%{number:02x}|&#x{number:x};)|&#0*{number};"
        if html.escape(piece) != piece:
            coded += f"|{html.escape(piece)}"
        # What is quoted twice has more backslashes. Nothing is tried twice: a server may send many halves of a key
        before = r"\\*+" if pieces else ""
        pieces.append(rf"(?>(?:\\|{coded})+)" if piece[0] == "\\" else rf"(?>{before}(?:{coded}|{re.escape(piece)}))")
    forms = ["".join(pieces)]
    if len(secret) >= _LONG:
        for offset in range(3):  # three bytes are four letters, so its place in what was encoded matters
            encoded = base64.b64encode(bytes(offset) + secret.encode()).decode().rstrip("=")
            first, last = (0, 2, 3)[offset], len(encoded) - ((offset + len(secret)) % 3 > 0)
            inside = encoded[first:last]  # letters that hold nothing but the secret
            forms.append(re.escape(inside).replace(r"\+", "[+-]").replace("/", "[/_]"))
    return re.compile("|".join(forms))

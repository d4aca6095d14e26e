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

"""What a server has answered: text, thoughts, how it ends and what it bills, from the JSON of any of them."""

from collections.abc import Sequence
from typing import Any

from .models import Completion


# How servers call the three ends of an answer, OpenAI's name first. Any other word (`abort`, `error`, `tool_calls`)
# and none at all are no end: what came is no answer, or a part of one.
_ENDS = {
    "stop": ("stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete", "completed"),
    "length": ("length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"),
    "content_filter": ("content_filter", "safety", "sensitive", "refusal"),
}
FINISH_REASONS = {word: reason for reason, words in _ENDS.items() for word in words}
_APART = ("reasoning_content", "reasoning", "thinking")  # where servers put thoughts that they tell from the answer


class NoAnswer(Exception):
    """
    The server said yes and sent no answer: no choice, a page of text, a part of an answer.

    Args:
        message (`str`), prompt_tokens, completion_tokens (`int`, *optional*):
            What came instead, and what the server bills for it.
    """

    def __init__(self, message: str, prompt_tokens: int | None = None, completion_tokens: int | None = None):
        super().__init__(message)
        self.prompt_tokens, self.completion_tokens = prompt_tokens, completion_tokens

    @property
    def is_billed(self) -> bool:
        return bool(self.prompt_tokens or self.completion_tokens)


def read_reply(body: Any, plain: bool = False) -> Completion:
    """
    The answer in the JSON of a server's reply. `plain`: to a plain text.

    Raises:
        [`NoAnswer`]: If there is none, or it has no end.
    """
    tokens = _usage(body)
    try:
        choice = body["choices"][0]
        message = choice if plain else choice["message"]
        text, thoughts = _text((message["text"] if plain else message.get("content")) or "")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise NoAnswer(f"no choice in the answer, which begins {str(body)!r}", *tokens) from None
    word = choice.get("finish_reason")
    reason = FINISH_REASONS.get(str(word).partition(":")[0].strip().lower())  # some name what was filtered behind ":"
    if reason is None:
        raise NoAnswer(f"the answer has the finish reason {word!r}, so it may be half of one: {text!r}", *tokens)
    apart = next((message[name] for name in _APART if isinstance(message.get(name), str)), "")
    mean_logp = _mean_logp(choice.get("logprobs"), plain)
    return Completion(
        _writable(text), reason, *tokens, mean_logp=mean_logp, thoughts=_writable(apart + thoughts) or None
    )


def _text(content: str | list[dict[str, Any]]) -> tuple[str, str]:
    """Text and thoughts of a content, which may be a list of parts. `TypeError` and the like if it is neither."""
    if isinstance(content, str):
        return content, ""
    texts, thoughts = [], []
    for part in content:
        if part["type"] in ("thinking", "reasoning"):
            inner = part.get("thinking") or part.get("reasoning") or part.get("text") or ""
            thoughts.append(_text(inner)[0])
        elif part["type"] in ("text", "output_text"):
            texts.append(part["text"])
        else:
            raise TypeError(f"a part of the type {part['type']!r}")
    return "".join(texts), "".join(thoughts)


def _usage(body: Any) -> tuple[int | None, int | None]:
    """Tokens of prompt and answer, as far as the server counts them."""
    usage = body.get("usage") if isinstance(body, dict) else None
    counts = []
    for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
        found = [usage.get(name) for name in names] if isinstance(usage, dict) else []
        counts.append(next((count for count in found if type(count) is int), None))
    return counts[0], counts[1]


def _writable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be written to any file


def _mean_logp(logprobs: Any, plain: bool) -> float | None:
    """Mean over the tokens that the server reports, `None` if it reports none, or none that can be read."""
    try:
        logps: Sequence = logprobs["token_logprobs"] if plain else [token["logprob"] for token in logprobs["content"]]
        return sum(logps) / len(logps) if logps else None
    except (KeyError, TypeError):
        return None

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
Talk to a model in the terminal: a full one, a PEFT adapter, or the two adapters of NAT.

```bash
trl-distill chat runs/minillm --system "Answer in one sentence."
echo "Why is the sky blue?" | trl-distill chat runs/minillm --temperature 0
```

`transformers chat` asks a server, and `transformers serve` does not know the folders of NAT.
"""

import argparse
import contextlib
import math
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..training import user_errors
from .arguments import add_loading_arguments, add_sampling_arguments, split_arguments
from .loading import load_model


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELP = "Ctrl-C stops an answer, /clear starts anew, exit or Ctrl-D ends."


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Talk to a model in the terminal, with its chat template, or let it go on with plain text if it "
        f"has none. {HELP} Lines that are piped in are answered one after the other, as one conversation.",
    )
    parser.add_argument("model", metavar="MODEL", help="Model id, folder, folder of a PEFT adapter or of NAT.")
    parser.add_argument("--system", metavar="TEXT", help="What the system says first.")
    add = parser.add_argument_group("model").add_argument
    add("--model_revision", help="Branch, tag or commit of the model.")
    add_loading_arguments(add)
    add = add_sampling_arguments(parser, in_batches=False)
    add("--seed", type=int, default=42, help="Random seed.")
    return parser


def _note(text: str) -> None:
    """Say what is no answer."""
    sys.stderr.write(f"({text})\n")


@contextlib.contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Ctrl-C is noted, and is no error: what is under way ends by itself."""
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


class Conversation:
    """Messages where the tokenizer has a chat template, else a text that goes on."""

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", args: argparse.Namespace
    ) -> None:
        self.model, self.tokenizer, self.args = model, tokenizer, args
        self.in_messages = tokenizer.chat_template is not None
        if args.system and not self.in_messages:
            raise ValueError(f"{args.model} has no chat template, so it has no place for --system.")
        self.answers = 0
        self.clear()

    def clear(self) -> None:
        """Start anew."""
        system = [{"role": "system", "content": self.args.system}] if self.args.system else []
        self.said: Any = system if self.in_messages else ""

    def _after(self, line: str) -> Any:
        """The prompt that a line makes of what was said."""
        from ..chat.models import fold_system
        from ..generation import takes_system

        if not self.in_messages:
            return f"{self.said}\n{line}" if self.said else line
        messages = [*self.said, {"role": "user", "content": line}]
        return messages if not self.args.system or takes_system(self.tokenizer) else fold_system(messages)

    def ask(self, line: str) -> str:
        """The answer to a line, printed while it is drawn. What Ctrl-C leaves of it is an answer, too."""
        import torch
        from transformers import TextStreamer

        from ..chat.models import derived_seed
        from ..generation import encode_prompts, generate_ids, generating, generation_config
        from ..models import context_length, end_token_ids

        model, tokenizer, args, prompt = self.model, self.tokenizer, self.args, self._after(line)
        ids = torch.tensor(encode_prompts([{"prompt": prompt}], tokenizer), device=model.device)  # (1, P)
        longest = min(args.max_new_tokens, (context_length(model) or math.inf) - ids.shape[1])
        if longest < 1:
            _note(f"{ids.shape[1]} tokens leave no room for an answer in the context: /clear starts anew")
            return ""
        ends = end_token_ids(model, tokenizer)
        config = generation_config(tokenizer, ends, longest, args.temperature, args.top_p)
        with generating([model]), torch.no_grad(), _noting_interrupts() as stopped:
            torch.manual_seed(derived_seed(args.seed, self.answers))
            [tokens] = generate_ids(
                model,
                ids,
                torch.ones_like(ids),
                config,
                streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
                stopping_criteria=[lambda ids, scores: torch.full((len(ids),), bool(stopped), device=ids.device)],
            )
        if tokens[-1] not in ends:
            _note("stopped" if stopped else f"cut off after {len(tokens)} tokens")
        self.answers += 1
        answer = tokenizer.decode(tokens, skip_special_tokens=True)
        self.said = [*prompt, {"role": "assistant", "content": answer}] if self.in_messages else prompt + answer
        return answer


def _lines() -> Iterator[str]:
    """Lines from the terminal, or from what is piped in, that say something."""
    sign = "> " if sys.stdin.isatty() else ""
    with contextlib.suppress(ImportError):  # Windows
        import readline  # noqa: F401  lines can be edited and called back
    with contextlib.suppress(EOFError):
        while (line := input(sign)).strip() != "exit":
            if line.strip():
                yield line


def run(argv: list[str]) -> None:
    """Parse `argv`, load the model and talk."""
    with user_errors("trl-distill chat"):
        args, _, _ = split_arguments(make_parser("trl-distill chat"), argv)
        with contextlib.redirect_stdout(sys.stderr):  # which is for answers, also from what is imported here
            model, tokenizer = load_model(args, args.model, args.model_revision, args.load_in_4bit)
        if tokenizer is None:
            raise ValueError(f"No tokenizer in {args.model}. Save it beside the model.")
        conversation = Conversation(model, tokenizer, args)
        if not conversation.in_messages:
            _note("no chat template: the model goes on with plain text")
        if sys.stdin.isatty():
            _note(HELP)
        for line in _lines():
            if line.strip() == "/clear":
                conversation.clear()
            else:
                conversation.ask(line)


if __name__ == "__main__":
    run(sys.argv[1:])

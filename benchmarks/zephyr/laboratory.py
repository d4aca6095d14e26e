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

"""What all arms share: the base model that has read plain texts, the dialogues, the prompts, and what models write."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.laboratory import build, fit, turn, word_tokenizer
from trl_distill.chat import LocalChatModel, Sampling, draw_samples

from .world import ASSISTANT, TEACHER, Animals


# Spaces between all words, since the tokenizer knows words only
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|> ' + message['content'] + ' <eos> ' }}{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{ASSISTANT} ' }}}}{{% endif %}}"
)
SIZE = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}


@dataclass(frozen=True)
class Laboratory:
    """The world and the sizes of everything. A test makes a minute one."""

    cache: Path  # where models and feedback are kept
    world: Animals = field(default_factory=Animals)
    size: dict = field(default_factory=lambda: dict(SIZE))  # of the model
    base_steps: int = 2000  # batches of 64 texts that the base model reads
    dialogues: int = 4000  # prompts that the teacher answers for dSFT
    prompts: int = 2000  # other prompts, those of the feedback
    test_prompts: int = 1000  # about animals that are in no other prompt
    batch_size: int = 32  # dialogues or pairs of an optimizer step

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return word_tokenizer(self.world.vocabulary, chat_template=TEMPLATE)

    def folder(self, seed: int, name: str) -> Path:
        return self.cache / str(seed) / name.replace(",", "").replace(" ", "-")

    def base(self) -> Path:
        """Folder of the base model, one for all seeds. It is trained where it does not exist yet."""
        folder = self.cache / "base"
        if not (folder / "model.safetensors").exists():
            model = build(self.world, self.size, seed=0, max_length=96)
            fit(model, self._batches(random.Random(1000)), self.base_steps, learning_rate=3e-3)
            self.tokenizer.save_pretrained(folder)
            model.save_pretrained(folder)
        return folder

    def _batches(
        self, generator: random.Random, rows: int = 64, length: int = 64
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Token ids of texts, one after the other, cut into equal rows."""
        tokenizer, ids = self.tokenizer, []
        while True:
            while len(ids) < rows * length:
                ids += tokenizer(f"{self.world.text(generator)} <eos>")["input_ids"]
            input_ids = torch.tensor(ids[: rows * length]).view(rows, length)  # (B, T)
            ids = ids[rows * length :]
            yield {"input_ids": input_ids, "labels": input_ids}

    def load(self, folder: Path) -> PreTrainedModel:
        """A model of an arm, by plain transformers."""
        return AutoModelForCausalLM.from_pretrained(folder).eval()

    def told(self, seed: int) -> list[dict]:
        """The teacher's dialogues of a seed, rows `messages`."""
        generator = random.Random(2000 + seed)
        prompts = self.world.prompts(self.dialogues, seed=2000 + seed)
        return [{"messages": turn(prompt, self.world.write(prompt, TEACHER, generator))} for prompt in prompts]

    def test(self, seed: int) -> list[str]:
        """Prompts of the test, the same for all seeds but 100, on which learning rates are chosen."""
        return self.world.prompts(self.test_prompts, seed=-2 if seed == 100 else -1, test=True)

    def draw(
        self, model: PreTrainedModel, prompts: Sequence[str], seed: int, temperature: float
    ) -> list[tuple[str, bool]]:
        """An answer to each prompt, and whether it came to its end."""
        sampling = Sampling(temperature, max_tokens=self.world.max_completion_length, seed=seed)
        with LocalChatModel("arm", batch_size=256, load=lambda: (model, self.tokenizer)) as arm:
            drawn = draw_samples(arm, [{"prompt": turn(prompt)} for prompt in prompts], 1, sampling)
        return [(samples.completions[0], not samples.truncated[0]) for samples in drawn]

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

"""What all arms share: the base model that has read plain texts, the dialogues, the prompts, and the score of a model."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from benchmarks.quality.models import EOS, PAD, tokenizer_of
from trl_distill.chat import LocalChatModel, Sampling, draw_samples

from .world import ASSISTANT, TEACHER, Animals


# Spaces between all words, since the tokenizer knows words only
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|> ' + message['content'] + ' <eos> ' }}{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{ASSISTANT} ' }}}}{{% endif %}}"
)
SIZE = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}


def turn(prompt: str, answer: str | None = None) -> list[dict[str, str]]:
    """A dialogue of one turn, or its beginning."""
    said = [{"role": "user", "content": prompt}]
    return said if answer is None else [*said, {"role": "assistant", "content": answer}]


@dataclass(frozen=True)
class Laboratory:
    """
    The world and the sizes of everything. A test makes a minute one.

    Args:
        cache (`pathlib.Path`):
            Folder in which models and feedback are kept.
        world ([`Animals`], *optional*):
            Facts, writers and the quality of answers.
        size (`dict`, *optional*):
            Size of the model, keywords of [`~transformers.Qwen2Config`].
        base_steps (`int`, *optional*, defaults to `2000`):
            Batches of 64 texts that the base model reads.
        dialogues (`int`, *optional*, defaults to `4000`):
            Prompts that the teacher answers for dSFT.
        prompts (`int`, *optional*, defaults to `2000`):
            Other prompts, those of the feedback.
        test_prompts (`int`, *optional*, defaults to `1000`):
            Prompts of the test, about animals that are in no other prompt.
        batch_size (`int`, *optional*, defaults to `32`):
            Dialogues or pairs of an optimizer step.
    """

    cache: Path
    world: Animals = field(default_factory=Animals)
    size: dict = field(default_factory=lambda: dict(SIZE))
    base_steps: int = 2000
    dialogues: int = 4000
    prompts: int = 2000
    test_prompts: int = 1000
    batch_size: int = 32

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = tokenizer_of(self.world)
        tokenizer.chat_template = TEMPLATE
        return tokenizer

    def folder(self, seed: int, name: str) -> Path:
        return self.cache / str(seed) / name.replace(",", "").replace(" ", "-")

    def base(self) -> Path:
        """Folder of the base model, one for all seeds. It is trained where it does not exist yet."""
        folder = self.cache / "base"
        if not (folder / "model.safetensors").exists():
            model = self._read_texts()
            self.tokenizer.save_pretrained(folder)
            model.save_pretrained(folder)
        return folder

    def _read_texts(self) -> PreTrainedModel:
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(self.world.vocabulary) + 2,
                num_key_value_heads=self.size["num_attention_heads"],
                max_position_embeddings=96,
                bos_token_id=None,
                eos_token_id=EOS,
                pad_token_id=PAD,
                **self.size,
            )
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / 50, max(1 - step / self.base_steps, 0.02))
        )
        windows = self._windows(random.Random(1000), length=64)
        for _ in range(self.base_steps):
            input_ids = torch.tensor([next(windows) for _ in range(64)])  # (B, T)
            model(input_ids=input_ids, labels=input_ids).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        return model

    def _windows(self, generator: random.Random, length: int) -> Iterator[list[int]]:
        """Token ids of texts, one after the other, cut into equal pieces."""
        tokenizer, ids = self.tokenizer, []
        while True:
            while len(ids) < length:
                ids += tokenizer(f"{self.world.text(generator)} <eos>")["input_ids"]
            yield ids[:length]
            ids = ids[length:]

    def load(self, folder: Path) -> PreTrainedModel:
        """A model of an arm, by plain transformers."""
        return AutoModelForCausalLM.from_pretrained(folder).eval()

    def told(self, seed: int) -> list[dict]:
        """The teacher's dialogues of a seed, rows `messages`."""
        generator = random.Random(2000 + seed)
        prompts = self.world.prompts(self.dialogues, seed=2000 + seed)
        return [{"messages": turn(prompt, self.world.write(prompt, TEACHER, generator))} for prompt in prompts]

    def test(self, seed: int) -> list[str]:
        """Prompts of the test, the same for all arms and seeds. Seed 100, on which learning rates are chosen, has others."""
        return self.world.prompts(self.test_prompts, seed=-2 if seed == 100 else -1, test=True)

    def draw(
        self, model: PreTrainedModel, prompts: Sequence[str], seed: int, temperature: float
    ) -> list[tuple[str, bool]]:
        """An answer to each prompt, and whether it came to its end."""
        sampling = Sampling(temperature, max_tokens=self.world.max_completion_length, seed=seed)
        with LocalChatModel("arm", batch_size=256, load=lambda: (model, self.tokenizer)) as arm:
            drawn = draw_samples(arm, [{"prompt": turn(prompt)} for prompt in prompts], 1, sampling)
        return [(samples.completions[0], not samples.truncated[0]) for samples in drawn]

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

"""The tokenizer of a world, its teacher, and the students that all arms start from: trained from scratch, then kept."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from .worlds import World


PAD, EOS = 0, 1


def tokenizer_of(world: World) -> PreTrainedTokenizerFast:
    """One token a word, padding on the left."""
    ids = {word: i for i, word in enumerate(["<pad>", "<eos>", *world.vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def build(world: World, size: dict, seed: int) -> Qwen2ForCausalLM:
    """A model with fresh weights."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(world.vocabulary) + 2,
        num_key_value_heads=size["num_attention_heads"],
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **size,
    )
    return Qwen2ForCausalLM(config)


def encode(tokenizer, rows: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Rows of (prompt, completion) as `input_ids`, `attention_mask` and `labels`, of shape `(B, P + T)`."""
    tokens = tokenizer([f"{prompt} {completion} <eos>" for prompt, completion in rows])["input_ids"]
    width = max(map(len, tokens))
    input_ids = torch.full((len(rows), width), PAD)
    labels = torch.full((len(rows), width), -100)
    for row, (ids, (prompt, _)) in enumerate(zip(tokens, rows, strict=True)):
        start = len(prompt.split())
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, start : len(ids)] = torch.tensor(ids[start:])
    return {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long(), "labels": labels}


def fit(model: PreTrainedModel, world: World, steps: int, learning_rate: float, seed: int, batch_size: int = 128):
    """Trains a model on ever new rows of the true process: cross-entropy, AdamW, linear decay after 50 steps."""
    generator, tokenizer = random.Random(seed), tokenizer_of(world)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, max(1 - step / steps, 0.02))
    )
    model.train()
    for _ in range(steps):
        batch = encode(tokenizer, [world.sample(generator) for _ in range(batch_size)])
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def _kept(model: PreTrainedModel, path: Path, train) -> PreTrainedModel:
    """`model` with the weights in a file, which `train` makes where it does not exist yet."""
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        train(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    return model.eval()


def teacher_of(world: World, cache: Path) -> PreTrainedModel:
    """The teacher of a world, one for all seeds."""
    return _kept(
        build(world, world.teacher, seed=0),
        cache / f"{world.name}-teacher.pt",
        lambda model: fit(model, world, world.teacher_steps, learning_rate=3e-3, seed=0),
    ).requires_grad_(False)


def student_of(world: World, seed: int, cache: Path) -> PreTrainedModel:
    """The student that all arms of a seed start from: fine-tuned on the true process for a short while."""
    return _kept(
        build(world, world.student, seed=seed),
        cache / f"{world.name}-student-{seed}.pt",
        lambda model: fit(model, world, world.warm_steps, learning_rate=6e-3, seed=1000 + seed),
    )

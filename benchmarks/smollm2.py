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

"""Models that no laboratory trains: SmolLM2, its pruned copies, models of random weights; and the demo's prompts."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from examples.demo import PROMPTS, prune, rank_layers, smollm2  # noqa: F401


NAME = "SmolLM2-135M-Instruct"
SMOLLM2_SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token a byte, after `<pad>` and `<eos>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        chat_template=chat_template,
    )


def random_model(folder: Path, seed: int, **shape) -> str:
    """Folder of a model of random weights with a byte-level tokenizer, by default a tiny one."""
    path = folder / f"random-{seed}-{shape.get('num_hidden_layers', 'tiny')}"
    if not path.exists():
        tokenizer = byte_tokenizer(CHAT)
        torch.manual_seed(seed)
        sizes = dict(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=4)
        heads = dict(num_attention_heads=4, num_key_value_heads=2)
        ids = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
        Qwen2ForCausalLM(Qwen2Config(**sizes | heads | shape, initializer_range=0.2, **ids)).save_pretrained(path)
        tokenizer.save_pretrained(path)
    return str(path)


def demo_prompts(split: str = "") -> list[str]:
    """The demo's prompts, of a split or all."""
    rows = map(json.loads, PROMPTS.read_text(encoding="utf-8").splitlines())
    return [row["prompt"] for row in rows if row["split"].startswith(split)]


def save_pruned(teacher: str, folder: Path, rows: list[dict], layers: int) -> tuple[list[int], dict[str, int]]:
    """
    Leaves out the layers that a teacher misses least in `rows` of `input_ids` and `labels`, and saves the rest.

    Returns the layers that were kept, and how many parameters both have.
    """
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16),
        AutoTokenizer.from_pretrained(teacher),
    )
    student, kept = prune(model, rank_layers(model, tokenizer, rows), layers)
    student.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return kept, {"teacher": model.num_parameters(), "student": student.num_parameters()}

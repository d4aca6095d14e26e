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

"""What a student is worth: divergences to the teacher by sampling, and the text itself."""

import math
import random

import torch
from transformers import PreTrainedModel

from benchmarks.laboratory import EOS, PAD, encode
from trl_distill.evaluation.exposure import exposure_bias
from trl_distill.text import distinct_n, rouge_l

from .worlds import TextWorld


def prompts_of(world: TextWorld, count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [world.prompt(generator) for _ in range(count)]


@torch.no_grad()
def draw(model: PreTrainedModel, tokenizer, prompts: list[str], max_new_tokens: int, seed: int):
    """
    One completion for each prompt, at temperature 1.

    Returns the sequences `(B, P + T)`, their attention mask, and the mask `(B, T)` of the completions, which keep
    their end-of-sequence token.
    """
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    model.eval()
    with torch.random.fork_rng():  # a measurement during training must not change the training
        torch.manual_seed(seed)
        sequences = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            pad_token_id=PAD,
            eos_token_id=EOS,
        )
    ends = (sequences[:, batch["input_ids"].shape[1] :] == EOS).long()
    mask = (ends.cumsum(1) - ends == 0).long()
    return sequences, torch.cat([batch["attention_mask"], mask], dim=1), mask


def texts_of(tokenizer, sequences, mask) -> list[str]:
    completions = sequences[:, -mask.shape[1] :].masked_fill(mask == 0, PAD)
    return tokenizer.batch_decode(completions, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@torch.no_grad()
def log_probs(model: PreTrainedModel, sequences, attention_mask, mask) -> torch.Tensor:
    """Log-probabilities of all words at each completion token, of shape `(B, T, V)`."""
    positions = attention_mask.cumsum(1).sub(1).clamp(min=0)
    logits = model.eval()(input_ids=sequences, attention_mask=attention_mask, position_ids=positions).logits
    return logits[:, -mask.shape[1] - 1 : -1].float().log_softmax(-1)


def _mean(values: torch.Tensor) -> tuple[float, float]:
    values = values.double()
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def sequence_kl(upper: PreTrainedModel, lower: PreTrainedModel, sample) -> tuple[torch.Tensor, torch.Tensor]:
    """
    KL(upper || lower) over whole completions, from samples of `upper`: one term a sample, of shape `(B,)`.

    The second value is the share of each sample's tokens in it, `(B, T)`.
    """
    sequences, attention_mask, mask = sample
    tokens = sequences[:, -mask.shape[1] :, None]
    ratio = log_probs(upper, *sample).gather(-1, tokens) - log_probs(lower, *sample).gather(-1, tokens)
    ratio = ratio[..., 0] * mask
    return ratio.sum(1), ratio


def progress(
    world: TextWorld, student: PreTrainedModel, teacher: PreTrainedModel, tokenizer, samples: int = 512
) -> dict:
    """The two numbers that are followed during training."""
    sample = draw(student, tokenizer, prompts_of(world, samples, seed=-1), world.max_completion_length, seed=7)
    result = {"reverse_kl": _mean(sequence_kl(student, teacher, sample)[0])[0]}
    hopeless = [world.hopeless(text) for text in texts_of(tokenizer, sample[0], sample[2])]
    return result | ({} if None in hopeless else {"hopeless": sum(hopeless) / samples})


def measure(
    world: TextWorld, student: PreTrainedModel, teacher: PreTrainedModel, tokenizer, samples: int = 2048
) -> dict:
    """
    All columns of the table but the wall time, on prompts that no arm has trained on, one completion each.

    Divergences are in nats a sequence, shares between 0 and 1, Rouge-L and ExAccErr in percent. Rouge-L and distinct-4
    take the first 512 samples.
    """
    generator = random.Random(-2)
    prompts = prompts_of(world, samples, seed=-2)
    length = world.max_completion_length
    on_student = draw(student, tokenizer, prompts, length, seed=11)
    on_teacher = draw(teacher, tokenizer, prompts, length, seed=12)
    reverse, reverse_error = _mean(sequence_kl(student, teacher, on_student)[0])
    forward, forward_error = _mean(sequence_kl(teacher, student, on_teacher)[0])

    exact = []  # forward KL of each next token, on both models' text
    for sample in (on_student, on_teacher):
        p = log_probs(teacher, *sample)
        exact.append((p.exp() * (p - log_probs(student, *sample))).sum(-1))  # (B, T)
    exposure = exposure_bias(exact[0], on_student[2], exact[1], on_teacher[2])

    texts = texts_of(tokenizer, on_student[0], on_student[2])
    result = {
        "reverse_kl": reverse,
        "reverse_kl_error": reverse_error,
        "forward_kl": forward,
        "forward_kl_error": forward_error,
        "exposure": exposure["value"],
        "length": on_student[2].sum(1).double().mean().item(),
        "distinct_4": distinct_n(texts[:512]),
    }
    hopeless = [world.hopeless(text) for text in texts]
    if None not in hopeless:
        result["hopeless"] = sum(hopeless) / samples
    correct = [world.correct(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    if None not in correct:
        result["accuracy"] = sum(correct) / samples
    if world.references:
        scores = [
            rouge_l(text, [world.complete(prompt, generator) for _ in range(world.references)])
            for prompt, text in zip(prompts[:512], texts[:512], strict=True)
        ]
        result["rouge_l"] = sum(scores) / len(scores)
    return result


def teacher_facts(world: TextWorld, teacher: PreTrainedModel, tokenizer, samples: int = 4096) -> dict:
    """How well the teacher knows its world: its loss on fresh rows against that of the true process itself."""
    generator = random.Random(-3)
    rows = [world.sample(generator) for _ in range(samples)]
    batch = encode(tokenizer, rows)
    with torch.no_grad():
        logps = teacher(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    token = logps.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)
    loss, error = _mean(-token.sum(1))
    process, _ = _mean(torch.tensor([world.surprise(*row) for row in rows]))
    return {"loss": loss, "loss_error": error, "process_loss": process, "samples": samples}

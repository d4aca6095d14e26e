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
Which rows and tokens count, what is logged of them beside TRL's metrics, and the check that it is finite.

A metric is a pair, numerator and denominator, until it is logged.
"""

import functools
import importlib.util
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl.trainer.utils import split_tensor_dict

from ..divergence import TokenScores, token_divergence, token_scores
from .minillm_config import MiniLLMConfig


HAS_ROUGE = importlib.util.find_spec("rouge_score") is not None


class Averages:
    """Metrics that are logged as ratios of sums over micro-batches and processes."""

    def __init__(self):
        self.sums: dict[str, list[Tensor | float]] = {}

    def add(self, name: str, numerator: Tensor | float, denominator: Tensor | float):
        sums = self.sums.setdefault(name, [0.0, 0.0])
        for index, value in enumerate((numerator, denominator)):
            # No `.item()`: it would wait for the GPU in every micro-batch
            sums[index] = sums[index] + (value.detach().float() if isinstance(value, Tensor) else value)

    def update(self, metrics: dict[str, tuple[Tensor | float, Tensor | float]]):
        for name, pair in metrics.items():
            self.add(name, *pair)

    def pop(self) -> dict[str, float]:
        """Ratios over all processes since the last call. A collective: all processes must call it."""
        own = {name: [float(value) for value in pair] for name, pair in self.sums.items()}
        self.sums.clear()
        gathered = gather_object([own])
        ratios = {}
        for name in dict.fromkeys(name for sums in gathered for name in sums):
            numerator, denominator = map(sum, zip(*(sums.get(name, (0, 0)) for sums in gathered), strict=True))
            if denominator > 0:
                ratios[name] = numerator / denominator
        if "advantage/square" in ratios:
            variance = ratios.pop("advantage/square") - ratios["advantage/mean"] ** 2
            ratios["advantage/std"] = max(variance, 0.0) ** 0.5
        return ratios


def timed(name: str):
    """Log the seconds that a method of a trainer takes."""

    def decorate(method):
        @functools.wraps(method)
        def run(self, *args, **kwargs):
            start = time.perf_counter()
            result = method(self, *args, **kwargs)
            self._metrics[self._mode][name].append(time.perf_counter() - start)
            return result

        return run

    return decorate


def known_means(metrics: dict[str, list[float]]) -> dict[str, float]:
    """Means over batches without those that are not known, which are nan."""
    known = {name: [value for value in values if not math.isnan(value)] for name, values in metrics.items()}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def real_rows(accelerator, rows: int) -> int:
    """How many of these evaluation rows are no repeats, which make the last batch of all processes equally long."""
    state = accelerator.gradient_state
    if not state.end_of_dataloader or state.remainder <= 0:
        return rows
    return min(max(state.remainder - accelerator.process_index * rows, 0), rows)


def without_idle_rows(rollouts: dict[str, Tensor], eos_token_id: int, rows: int) -> dict[str, Tensor]:
    """
    Ids and masks `(B, P)` and `(B, T)`, with tokens only where they count.

    Rows that stand in for an empty completion, as two EOS, have none, nor have those behind the first `rows`, which
    fill up an evaluation. Padding is token 0: the student's own may be a token that the teacher has no row for.
    """
    ids, mask = rollouts["completion_ids"], rollouts["completion_mask"]
    empty = ((ids == eos_token_id) & mask.bool()).sum(dim=1) > 1
    counts = ~empty & (torch.arange(len(ids), device=ids.device) < rows)
    return {
        "prompt_ids": rollouts["prompt_ids"] * rollouts["prompt_mask"],
        "completion_ids": ids * mask,
        "completion_mask": mask * counts[:, None],
    }


def split_rollouts(rollouts: dict[str, Tensor], args: MiniLLMConfig, accelerator) -> list[dict[str, Tensor]]:
    """Micro-batches in a fixed partition, each with the token count of its optimizer step over all processes."""
    batches, accumulation = args.steps_per_generation, args.gradient_accumulation_steps
    tokens = rollouts["completion_mask"].sum(dim=1).view(batches // accumulation, -1)
    tokens = accelerator.reduce(tokens.sum(dim=1)).float()
    return [
        batch | {"num_items_in_batch": tokens[index // accumulation]}
        for index, batch in enumerate(split_tensor_dict(rollouts, batches))
    ]


def credit_metrics(rewards: Tensor, advantages: Tensor, weights: Tensor, mask: Tensor, reward_clip: float | None):
    """Rewards, advantages and importance weights `(B, T)` of a rollout set, over its completion tokens."""
    tokens, weights = mask.sum(), weights[mask]
    metrics = {
        "reward/mean": (rewards.sum(), tokens),
        "advantage/mean": (advantages.sum(), tokens),
        "advantage/square": (advantages.square().sum(), tokens),
        "sampling/importance_sampling_ratio/mean": (weights.sum(), tokens),
    }
    if reward_clip is not None:
        metrics["reward/clipped"] = ((rewards.abs() >= reward_clip).sum(), tokens)
    if len(weights):
        metrics["sampling/importance_sampling_ratio/min"] = (weights.min(), 1)
    return metrics


def evaluate_tokens(models: tuple, inputs: dict[str, Tensor], mask: Tensor, settings: tuple[float, int]):
    """
    Loss, scores and forward KL of the N completion tokens of a micro-batch: the loss is their exact reverse KL, or the
    sampled one if nothing but the teacher's log-probabilities of these tokens is known.
    """
    scores = token_scores(*models, inputs["completion_ids"][mask], *settings)
    if "teacher_logps" in inputs:  # of a server
        scores = scores._replace(kl=None, teacher_logps=inputs["teacher_logps"][mask])
        return (scores.student_logps - scores.teacher_logps).sum(), scores, {}
    forward_kl, _ = token_divergence(*models, 0.0, *settings)
    return scores.kl.sum(), scores, {"kl/forward": (forward_kl.sum(), len(forward_kl))}


def score_metrics(scores: TokenScores, mask: Tensor, training: bool) -> dict[str, tuple[Tensor, Tensor | int]]:
    """Reverse KL of the N tokens of a micro-batch: sampled, and exact where both models' vocabularies were seen."""
    tokens, answers = len(scores.student_logps), mask.any(dim=1).sum()
    sampled = (scores.student_logps - scores.teacher_logps).sum()
    metrics = {"kl/sampled": (sampled, tokens), "kl/sampled_sequence": (sampled, answers)}
    if scores.kl is not None:
        total = scores.kl.sum()
        metrics |= {"kl": (total, tokens), "kl/sequence": (total, answers)}
        if training:
            metrics["loss/single"] = (total, tokens)
    return metrics


def long_term_metrics(per_token_loss: Tensor, ratio: Tensor, credit: Tensor, epsilon: float):
    """Loss, ratio and clipped share of the `N` tokens of a micro-batch; a clipped token has no long-term gradient."""
    tokens = len(ratio)
    return {
        "loss/long": (per_token_loss.sum(), tokens),
        "ratio/mean": (ratio.sum(), tokens),
        "clip_ratio/low_mean": (((ratio < 1 - epsilon) & (credit < 0)).sum(), tokens),
        "clip_ratio/high_mean": (((ratio > 1 + epsilon) & (credit > 0)).sum(), tokens),
    }


def completion_metrics(completions: list[list[int]]) -> dict[str, tuple[float, int]]:
    """Diversity of completions as token ids, and repetition within them."""
    from ..text import distinct_n, repetition

    return {
        "text/distinct_4": (distinct_n(completions, 4), 1),
        "text/repetition": (sum(repetition(ids, 4) for ids in completions), len(completions)),
    }


def reference_metrics(
    completions: list[str],
    rows: list[dict[str, Any]],
    answer_checker: Callable[[str, dict], bool | None] | None = None,
) -> dict[str, tuple[float, int]]:
    """Texts against what their rows know of the right answer: Rouge-L where it is installed, and accuracy."""
    from ..text import references_of, rouge_l

    metrics = {}
    if HAS_ROUGE:
        pairs = zip(completions, map(references_of, rows), strict=True)
        scores = [rouge_l(text, references) for text, references in pairs if references is not None]
        metrics["rougeL"] = (sum(scores), len(scores))
    if answer_checker is not None:
        # `None`, no answer found, is no right answer: otherwise a model that falls silent would score higher
        checks = [bool(answer_checker(text, row)) for text, row in zip(completions, rows, strict=True)]
        metrics["accuracy"] = (sum(checks), len(checks))
    return metrics


def rollout_metrics(
    rollouts: dict[str, Tensor], rows: list[dict[str, Any]], tokenizer, mode: str, answer_checker: Callable | None
) -> dict[str, tuple[float, int]]:
    """What is seen of the completions to the dataset's `rows`, which are the first ones, as tokens and as texts."""
    ids, mask = rollouts["completion_ids"].cpu(), rollouts["completion_mask"].bool().cpu()
    completions = [row[own].tolist() for row, own in zip(ids, mask, strict=True)][: len(rows)]
    metrics = completion_metrics(completions)
    if mode == "eval":
        # Row by row: `batch_decode` turns an empty list into one text
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in completions]
        metrics |= reference_metrics(texts, rows, answer_checker)
    return metrics


class FiniteCheck:
    """
    What must be finite in the steps of a trainer.

    Values are looked at once an optimizer step, where its gradient norm is known: to look at each micro-batch would
    wait for the device.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.seen: list[tuple[str, Tensor, Tensor, Tensor]] = []

    def watch(self, scores: TokenScores, inputs: dict[str, Tensor]):
        """Note whether the scores `(N,)` of the completion tokens of a micro-batch are finite."""
        mask = inputs["completion_mask"].bool()  # (b, T)
        names = {"log-probability": scores.student_logps, "teacher's log-probability": scores.teacher_logps}
        for name, values in (names | {"KL to the teacher": scores.kl}).items():
            if values is not None:
                broken = torch.zeros_like(mask).masked_scatter(mask, ~values.isfinite()).any(dim=1)  # (b,)
                self.seen.append((name, broken, inputs["prompt_ids"], inputs["prompt_mask"]))
        if not self.trainer.model.training:
            self.check()

    def check(self, grad_norm: Tensor | float | None = None):
        """Raise `ValueError` if a watched value or the norm of the gradient is not finite."""
        seen, self.seen = self.seen, []
        if seen and torch.cat([broken for _, broken, _, _ in seen]).any():
            name, broken, ids, mask = next(entry for entry in seen if entry[1].any())
            row = int(broken.nonzero()[0])
            prompt = self.trainer.processing_class.decode(ids[row][mask[row].bool()].tolist())
            self._stop(f"The {name} is not finite", f", on the prompt {prompt!r}")
        # With fp16, a scale that is too large overflows now and then: such a step is skipped and the scale lowered
        if grad_norm is not None and self.trainer.accelerator.mixed_precision != "fp16":
            if not math.isfinite(grad_norm):
                self._stop("The gradient norm is not finite")

    def check_weights(self):
        """Raise `ValueError` if a trained weight is not finite."""
        for name, weight in self.trainer.model.named_parameters():
            own = weight.to_local() if hasattr(weight, "to_local") else weight  # of FSDP2, the shard
            if weight.requires_grad and not own.isfinite().all():
                self._stop(f"The weight {name} is not finite")

    def _stop(self, what: str, where: str = ""):
        from ..checkpoints import newest_checkpoint  # not needed by a run that goes well

        step = self.trainer.state.global_step
        # The checkpoint of this very step would hold the weights that have failed
        checkpoint = newest_checkpoint(self.trainer.args.output_dir, before=step)
        last = f"The last checkpoint before it is {checkpoint}." if checkpoint else "There is no checkpoint before it."
        raise ValueError(
            f"{what} at step {step}{where}. Nothing of it was written. {last} Lower `learning_rate`, or check the "
            "weights of student and teacher."
        )


def check_teacher_logps(logps: Tensor, prompts: list, size: int, step: int):
    """Refuse a teacher's log-probabilities `(B, T)` that are not finite, before they spread over a whitened set."""
    unknown = (~logps.isfinite()).any(dim=1).nonzero()
    if len(unknown):
        row = int(unknown[0])
        raise ValueError(
            f"The teacher gives a log-probability that is not finite at step {step} (micro-batch {row // size}, row "
            f"{row % size}), on the prompt {prompts[row]!r}. Check the teacher's weights, or load it in bfloat16 or "
            "float32 instead of float16."
        )

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
How a model reads, found out on the model itself with a few tokens.

A recurrent state that is continued wrongly, padding that leaks into it, or logits that are not the LM head of the last
hidden states raise no error: tokens would be drawn from one distribution and trained towards another. So what MiniLLM
does with a model is done here once, and compared with what the model itself says of single rows, without padding and
without a cache.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from accelerate.logging import get_logger
from torch import Tensor
from transformers import GenerationConfig
from trl.models.utils import disable_gradient_checkpointing

from ..divergence import LMHead, completion_states, lm_head
from ..models import vocabulary_rows
from .mixed_sampling import Reader, Reading, last_hidden_states


logger = get_logger(__name__)

# The faster ones first
_READINGS = Reading(), Reading(in_blocks=False), Reading(drops_rows=False), Reading(False, False)
_LENGTHS = torch.tensor([5, 3, 1])  # of prompts: more and fewer tokens than the kernel of a convolution
_PROMPT, _STEPS = 5, 7  # tokens of padded prompts and of completions


def find_readings(student, teacher, args) -> tuple[Reading, Reading] | None:
    """
    How student and teacher can be read while they draw; `None` if our sampler is not to draw.

    Models that MiniLLM would draw from or train wrongly are refused. `teacher` is `None` if it is the student's base,
    which reads as the student does.
    """
    readings = (Reading(), Reading()) if args.samples_plainly else None
    # Sharded, or placed only when training starts: what stands here is not what will run
    if args.distributed_state.distributed_type in ("FSDP", "DEEPSPEED"):
        return readings
    for role, model in {"student": student, "teacher": teacher}.items():
        if model is None:
            continue
        name, training = f"The {role} ({type(model).__name__})", role == "student" and args.disable_dropout
        with _undisturbed(model, training), disable_gradient_checkpointing(model, args.gradient_checkpointing_kwargs):
            if training:
                _silence(model, name)
            probe = _Probe(model, name)
            probe.check_training()
            teaches = role == "teacher" or teacher is None
            if (teaches and args.teacher_mix_alpha > 0) or (role == "student" and not args.use_vllm):
                reading = probe.reading() if args.samples_plainly else None
                if reading is None:
                    probe.check_alternative(role, args.teacher_mix_alpha)
                    readings = None
                else:
                    readings = (reading, reading) if role == "student" else (readings[0], reading)
    return readings


@contextmanager
def _undisturbed(model, training: bool) -> Iterator[None]:
    """
    The mode that the model will be in, and afterwards random numbers and the modes of all modules as before.

    In the other mode some layers take another way, and quantized ones pack their weights anew, for good.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        with torch.no_grad(), torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _silence(model, name: str):
    """Leave the training mode of a model that still has noise in it, with a warning."""
    ids = torch.arange(8, device=model.device)[None] % vocabulary_rows(model)
    passes = (model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(dim=-1) for _ in range(2))
    if _gap(*passes) < 5e-3:
        return
    config = model.config.get_text_config().to_dict().items()
    noise = {key: value for key, value in config if value and ("drop" in key or "jitter" in key)}
    if noise:
        logger.warning(
            f"{name} computes something else at each pass in training mode, in spite of `disable_dropout`, so answers "
            "are not scored by the model that drew them. Set what is noise in its config to 0, for instance with "
            f"`model_init_kwargs`: {noise}."
        )
    model.eval()


def _logps(states: Tensor, head: LMHead) -> Tensor:
    """Log-probabilities `(N, V)` of all tokens, from hidden states `(N, H)`."""
    logits = head.logit_scale * F.linear(states.to(head.weight.dtype), head.weight, head.bias).float()
    cap = head.final_logit_softcapping
    return (logits if cap is None else cap * (logits / cap).tanh()).log_softmax(dim=-1)


def _gap(found: Tensor, expected: Tensor) -> float:
    """RMS error of log-probabilities `(N, V)`, in units of how much they differ from place to place."""
    if found.shape != expected.shape:
        return math.inf
    spread = (expected - expected.mean(dim=0)).square().mean().sqrt()
    return ((found - expected).square().mean().sqrt() / spread.clamp(min=1e-3)).item()


def _holds(check: Callable[..., bool], *args) -> bool:
    try:
        return check(*args)
    except Exception:  # of any kind: each model that does not know a case says so in its own way
        return False


class _Probe:
    """Three rows of a few tokens, and what a model itself makes of each."""

    def __init__(self, model, name: str):
        self.model, self.name, self.head = model, name, lm_head(model)
        # In half precision a router may choose another expert here and there; wrong states are wrong at most places
        device, dtype = model.device, model.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        self.tolerance = 5e-3 if dtype.itemsize > 2 else 0.2

        # Not from the end of the vocabulary, where the tokens of images stand
        shape, generator = (len(_LENGTHS), _PROMPT + _STEPS), torch.Generator().manual_seed(0)
        self.ids = torch.randint(self.head.weight.shape[0] // 2, shape, generator=generator).to(device)  # (3, P + T)
        self.mask = (torch.arange(shape[1]) >= _PROMPT - _LENGTHS[:, None]).long().to(device)  # (3, P + T)
        self.positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)
        self.expected, self.states = self._whole_rows(self.ids, _STEPS)  # (3, T, V), (3, T, H)

    def _whole_rows(self, ids: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities and hidden states that predict the last `steps` tokens, from single rows."""
        with last_hidden_states(self.model) as states:
            logits = [
                self.model(input_ids=row[start:][None], use_cache=False).logits
                for row, start in zip(ids, (_PROMPT - _LENGTHS).tolist(), strict=True)
            ]
        logits, states = (torch.cat([row[:, -steps - 1 : -1] for row in rows]) for rows in (logits, states))
        return logits.float().log_softmax(dim=-1), states

    def check_training(self):
        """Refuse a model whose loss would not be about its own logits."""
        if not self.expected.isfinite().all():
            raise ValueError(
                f"{self.name} gives log-probabilities that are not finite. Check its weights, or load it in bfloat16 "
                "or float32 instead of float16."
            )
        gap = _gap(*(x.flatten(0, 1) for x in (_logps(self.states, self.head), self.expected)))
        if not gap < self.tolerance / 5:  # of the same states: only one product is rounded
            raise ValueError(
                f"{self.name} has other logits than its LM head makes of its hidden states, off by {gap:.1%}, and "
                "MiniLLM trains the latter: a layer, a scale or a cap stands between. Use another model, or teach "
                "`divergence.lm_head` the name of the scale."
            )
        rows = [part for x in (self.ids, self.mask) for part in x.split([_PROMPT, _STEPS], dim=1)]
        states = completion_states(self.model, *rows[::2], *rows[1::2])
        gap = _gap(*(x.flatten(0, 1) for x in (_logps(states, self.head), self.expected)))
        if not gap < self.tolerance:
            raise ValueError(
                f"{self.name} reads a row in another way if padding stands behind it, off by {gap:.1%}, so it cannot "
                "be trained in batches. Use another model."
            )

    def reading(self) -> Reading | None:
        """The fastest reading that gives what whole rows give."""
        return next((reading for reading in _READINGS if _holds(self._reads, reading)), None)

    def _reads(self, reading: Reading) -> bool:
        """Padded prompts, a block, one token of fewer rows, and another block."""
        shape = (len(_LENGTHS), _PROMPT, _STEPS)
        reader = Reader(self.model, None, nullcontext, reading, keeps_states=True, shape=shape)
        inputs, rows = (self.ids, self.mask, self.positions), torch.arange(shape[0], device=self.ids.device)
        seen = torch.ones(shape[0], _STEPS, dtype=torch.bool, device=rows.device)
        found, expected = [], []
        for step in (0, 3, 4, _STEPS - 1):
            if step == 4 and reading.drops_rows:
                keep = rows[::2]
                inputs, rows = [x[keep] for x in inputs], rows[keep]
                seen[1, step:] = False
                reader.keep_rows(keep)
            logits = reader.read(*(x[:, : _PROMPT + step] for x in inputs), rows)
            found.append(logits.log_softmax(dim=-1))
            expected.append(self.expected[rows, step])
        kept = _gap(_logps(reader.states[seen], self.head), self.expected[seen])
        return _gap(torch.cat(found), torch.cat(expected)) < self.tolerance and kept < self.tolerance

    def check_alternative(self, role: str, alpha: float):
        """Refuse a model that cannot be read, unless the student draws alone, by `generate`."""
        generates = role == "teacher" or _holds(self._generates)
        if alpha == 0 and generates:
            return
        remedy = "set `teacher_mix_alpha=0.0`, which leaves the drawing to `generate`"
        raise ValueError(
            f"{self.name} cannot continue prompts with padding on their left from a cache: neither blocks nor single "
            "tokens give what whole rows give, so tokens would be drawn from a wrong distribution. Use another model"
            + (f", or {remedy}." if generates else "; `generate` draws from a wrong one, too.")
        )

    def _generates(self) -> bool:
        settings = GenerationConfig(
            max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0
        )
        prompts = {"input_ids": self.ids[:, :_PROMPT], "attention_mask": self.mask[:, :_PROMPT]}
        output = self.model.generate(**prompts, generation_config=settings)
        logits = torch.stack(output.logits, dim=1).float()  # (3, 3, V)
        expected, _ = self._whole_rows(output.sequences, logits.shape[1])
        return _gap(*(x.flatten(0, 1) for x in (logits.log_softmax(dim=-1), expected))) < self.tolerance

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


"""A few rollouts of a run as rows in a file, token by token, with what both models make of them."""

import json
import math
from pathlib import Path

from tokenizers.decoders import DecodeStream
from torch import Tensor

from ..divergence import TokenScores, pad_states


ROLLOUTS_FILE = "rollouts.jsonl"
_SETS, _ROWS, _TOKENS = 20, 4, 512  # at most in a file, of training and of evaluation; in a set, by default; in a row


class RolloutLog:
    """
    Writes the first rows of a micro-batch to `rollouts.jsonl`, some twenty times a run, if `args.log_completions` is
    set: `mode`, `step`, `row`, `prompt`, `reward` (the sum over the answer of teacher minus student, in nats),
    `length`, and for each token its text and both log-probabilities, in `credit` its credit where that is known, and
    in `by_teacher` whether the teacher drew it, where it drew any.

    `args.num_completions_to_print` is the number of rows. Only the first process writes, of what it has drawn.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.on = trainer.args.log_completions and trainer.accelerator.is_main_process
        self.last: dict[str, int] = {}  # step of the last set, by mode
        self.tokenizer = trainer.processing_class

    def drawn_by(self, teacher_drew: Tensor | None, width: int) -> dict[str, Tensor]:
        """What rows carry to `watch`: which tokens the teacher drew, `(B, T)`, as wide as their masks."""
        if not self.on or teacher_drew is None:
            return {}
        return {"teacher_drew": pad_states(teacher_drew[..., None], slice(None), width)[..., 0]}

    def watch(self, scores: TokenScores, inputs: dict[str, Tensor]):
        """Perhaps note the scores `(N,)` of the completion tokens of a micro-batch, of whose `inputs` they are."""
        if not self.on or not self.trainer.is_in_train:
            return
        mode, state, logged = self.trainer._mode, self.trainer.state, self.last
        every = math.ceil(state.max_steps / _SETS)
        every = max(every, state.logging_steps) if mode == "train" else every
        is_last = mode == "eval" and state.global_step == state.max_steps != logged.get(mode)
        if mode in logged and state.global_step - logged[mode] < every and not is_last:
            return
        begins = not logged and state.global_step == 0
        logged[mode] = state.global_step
        path = Path(self.trainer.args.output_dir, ROLLOUTS_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w" if begins else "a", encoding="utf-8") as file:
            for row in self._rows(scores, inputs):
                file.write(json.dumps({"mode": mode, "step": state.global_step} | row, ensure_ascii=False) + "\n")

    def _rows(self, scores: TokenScores, inputs: dict[str, Tensor]):
        mask = inputs["completion_mask"].bool()  # (b, T)
        lengths = mask.sum(dim=1).tolist()
        parts = {"student": scores.student_logps, "teacher": scores.teacher_logps}
        if "advantages" in inputs:
            parts["credit"] = inputs["advantages"][mask]
        first = 0
        for row, length in enumerate(lengths[: self.trainer.args.num_completions_to_print or _ROWS]):
            own, first = slice(first, first + length), first + length
            values = {name: part[own].detach().float().tolist() for name, part in parts.items()}
            prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist()
            ids = inputs["completion_ids"][row][mask[row]].tolist()
            reward = sum(values["teacher"]) - sum(values["student"])
            drawn = {}
            if "teacher_drew" in inputs:
                drew = inputs["teacher_drew"][row].to(mask.device)[mask[row]]
                drawn["by_teacher"] = drew[:_TOKENS].tolist()
            yield {
                "row": row,
                "prompt": self.tokenizer.decode(prompt),
                "reward": _rounded(reward),
                "length": length,
                "tokens": self._texts(ids[:_TOKENS]),
                **{name: [_rounded(value) for value in part[:_TOKENS]] for name, part in values.items()},
                **drawn,
            }

    def _texts(self, ids: list[int]) -> list[str]:
        """The text of each token; of a character of several tokens the last one has it."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return [self.tokenizer.decode([token]) for token in ids]
        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(backend, token) or "" for token in ids]


def _rounded(value: float) -> float | None:
    """As JSON holds it: `None` if it is not finite, which stops the run soon after."""
    return round(value, 4) if math.isfinite(value) else None

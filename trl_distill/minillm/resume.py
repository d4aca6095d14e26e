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

"""A resumed run goes on as if it had never stopped: with the same settings, and with the order of its epoch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl.trainer.utils import RepeatSampler

from ..checkpoints import CheckpointError, checkpoint_to_resume
from .minillm_config import MiniLLMConfig


RESUME_FILE = "minillm_config.json"  # in every checkpoint

# A run that resumes with another value would not continue that run. This holds for all fields that `MiniLLMConfig`
# declares but the following, and for some of its parents.
MAY_CHANGE = {
    "lm_coef",  # of the corpus, which has its own entry with what is in use
    "lm_kd_ratio",
    "lm_max_length",
    "learning_rate",  # the optimizer and the schedule of the checkpoint hold it
    "teacher_model_server_url",  # a server may move
    "loss_chunk_tokens",  # how much is computed at a time
    "teacher_states_on_cpu",  # where it is kept
}
FIELDS_OF_PARENTS = (
    "seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "shuffle_dataset",
    "chat_template_kwargs",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "generation_kwargs",
)


def resume_settings(args: MiniLLMConfig, corpus_blocks: int | None, lm_coef: float) -> dict[str, Any]:
    """What a checkpoint must agree on with the run that resumes from it, as JSON holds it."""
    names = [*FIELDS_OF_PARENTS, *(name for name in MiniLLMConfig.__annotations__ if name not in MAY_CHANGE)]
    settings = {name: getattr(args, name) for name in names} | {"world_size": args.world_size, "corpus": None}
    if corpus_blocks is not None:
        settings["corpus"] = {"blocks": corpus_blocks, "lm_max_length": args.lm_max_length}
        settings["corpus"] |= {"lm_coef": lm_coef, "lm_kd_ratio": args.lm_kd_ratio}
    return json.loads(json.dumps(settings))


def write_settings(checkpoint: str, settings: dict[str, Any]):
    Path(checkpoint).mkdir(parents=True, exist_ok=True)
    Path(checkpoint, RESUME_FILE).write_text(json.dumps(settings, indent=2))


def check_resumable(checkpoint: Path, settings: dict[str, Any]):
    """Refuse a checkpoint of another trainer or of other settings. Files of older versions hold fewer fields."""
    path = checkpoint / RESUME_FILE
    if not path.exists():
        raise CheckpointError(
            f"{checkpoint} holds no {RESUME_FILE}, so it is no checkpoint of a MiniLLM run. To start from its "
            "weights, pass it as the model."
        )
    saved = json.loads(path.read_text())
    changed = [name for name, value in settings.items() if name in saved and saved[name] != value]
    if changed:
        changes = (f"`{name}` was {saved[name]!r} and is now {settings[name]!r}" for name in changed)
        raise CheckpointError(
            f"{checkpoint} was made with other settings: {', '.join(changes)}. Resume with the old ones, or start "
            "a new run with this checkpoint as the model."
        )


def checkpoint_to_go_on_from(
    resume_from_checkpoint: str | bool | None, output_dir: str, settings: dict[str, Any]
) -> str | bool | None:
    """The argument of `Trainer.train`: the newest whole checkpoint for `True`, and none that has other settings."""
    checkpoint = checkpoint_to_resume(resume_from_checkpoint, output_dir)
    if isinstance(checkpoint, str):
        check_resumable(Path(checkpoint), settings)
    return checkpoint


class ResumableRepeatSampler(RepeatSampler):
    """
    [`~trl.trainer.utils.RepeatSampler`] whose order is a function of the epoch.

    The parent draws each epoch's order from a running generator, so a run resumed in its second epoch would read the
    first one's order again. `batches_read` returns how many batches of the run were read before an epoch starts.
    """

    def __init__(self, *args, batches_read: Callable[[], int], **kwargs):
        super().__init__(*args, **kwargs)
        self.batches_read = batches_read

    def __iter__(self):
        if self.shuffle:
            epoch = self.batches_read() // max(len(self) // self.batch_size, 1)
            self.generator.manual_seed(self.seed + epoch)
        return super().__iter__()

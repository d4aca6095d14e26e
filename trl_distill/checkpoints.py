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

"""Going on with a run: which checkpoint is whole, as a kill or a full disk may have cut one off, and its types."""

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar


logger = logging.getLogger(__name__)

T = TypeVar("T")


class CheckpointError(ValueError):
    """There is no checkpoint from which this run could go on, or the one that was named is another run's."""


def damage(checkpoint: Path) -> str | None:
    """
    What is wrong with a checkpoint, `None` if it was written to its end.

    Its state is written last, and the end of each file says that there is nothing missing before it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
        for index in checkpoint.rglob("*.safetensors.index.json"):
            for name in json.loads(index.read_bytes())["weight_map"].values():
                (index.parent / name).stat()
        for file in checkpoint.rglob("*.safetensors"):
            with safe_open(file, framework="np"):  # compares the header with the size
                pass
        for file in (file for suffix in ("pt", "pth", "bin") for file in checkpoint.rglob(f"*.{suffix}")):
            if not zipfile.is_zipfile(file):  # as `torch.save` writes them, with the table of contents at the end
                return f"{file.name} is cut off"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, SafetensorError) as error:
        return f"a file is cut off ({error})"
    return None


def newest_checkpoint(folder: str | Path, before: int | None = None) -> Path | None:
    """The newest whole checkpoint in a folder, of those `before` a step. Damaged newer ones are warned of."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in Path(folder).glob("checkpoint-*")}
    found = {int(step): path for path, step in steps.items() if step.isdecimal()}
    for step in sorted(found, reverse=True):
        if before is not None and step >= before:
            continue
        wrong = damage(found[step])
        if wrong is None:
            return found[step]
        logger.warning("%s is passed over: %s.", found[step], wrong)
    return None


def first_decides(look: Callable[[], T]) -> T:
    """What the first process finds on its disk, on all of them: machines need not see the same files, nor in time."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    found = [look() if PartialState().is_main_process else None]
    return broadcast_object_list(found)[0]


def checkpoint_to_resume(resume_from_checkpoint: str | bool | None, folder: str | Path) -> str | bool | None:
    """The argument of `Trainer.train`, with the newest whole checkpoint for `True`. All processes must call this."""
    if resume_from_checkpoint is not True:
        return resume_from_checkpoint
    checkpoint = first_decides(lambda: newest_checkpoint(folder))
    if checkpoint is None:
        raise CheckpointError(f"nothing to resume: no checkpoint in {folder} that is whole.")
    return str(checkpoint)


class ResumableTrainer:
    """
    Goes before a trainer of TRL: `train(resume_from_checkpoint=True)` takes the newest whole checkpoint, adapters go
    on in the data type that they had, and the model card says what a run was. `save_model` writes what was logged,
    too, so that a page can be made of the folder.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        # PEFT loads bf16 adapters into fp32, but over a quantized base TRL trains them in bf16
        dtypes = {name: weight.dtype for name, weight in self.model.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, weight in self.model.named_parameters():
            if weight.dtype != dtypes[name]:
                weight.data = weight.data.to(dtypes[name])

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self.args.should_save:  # what was logged, beside a model that has no checkpoint
            self.state.save_to_json(str(Path(output_dir or self.args.output_dir, "trainer_state.json")))

    def create_model_card(self, *args, **kwargs):
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            from .model_card import describe

            describe(self)

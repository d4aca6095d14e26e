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

"""What a kill or a full disk leaves of a checkpoint is seen, and passed over."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from trl_distill.checkpoints import checkpoint_to_resume, damage, newest_checkpoint


def write(checkpoint):
    """A checkpoint as transformers writes it: weights, optimizer, state."""
    (checkpoint / "adapter").mkdir(parents=True)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        save_file({"weight": torch.ones(100)}, checkpoint / name)
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"values": torch.ones(100)}, checkpoint / name)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 1}))
    return checkpoint


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


DAMAGE = {
    "no state": (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
    "empty state": (lambda folder: cut(folder / "trainer_state.json", 0), "cut off"),
    "half a state": (lambda folder: cut(folder / "trainer_state.json"), "cut off"),
    "half of the weights": (lambda folder: cut(folder / "model.safetensors"), "cut off"),
    "weights but their end": (lambda folder: cut(folder / "model.safetensors", 0.99), "cut off"),
    "empty weights": (lambda folder: cut(folder / "model.safetensors", 0), "cut off"),
    "half an adapter": (lambda folder: cut(folder / "adapter/adapter_model.safetensors"), "cut off"),
    "half an optimizer": (lambda folder: cut(folder / "optimizer.pt", 0.9), "optimizer.pt is cut off"),
    "no random numbers": (lambda folder: cut(folder / "rng_state.pth", 0), "rng_state.pth is cut off"),
    "a missing shard": (
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-2"}}'),
        "part-2 is missing",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_seen_and_passed_over(tmp_path, case, caplog):
    change, message = DAMAGE[case]
    for step in (2, 8, 10):
        write(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-best").mkdir()
    assert damage(tmp_path / "checkpoint-10") is None
    assert newest_checkpoint(tmp_path).name == "checkpoint-10" and caplog.text == ""
    assert newest_checkpoint(tmp_path, before=10).name == "checkpoint-8"
    change(tmp_path / "checkpoint-10")
    assert message in damage(tmp_path / "checkpoint-10")
    assert checkpoint_to_resume(True, tmp_path) == str(tmp_path / "checkpoint-8")
    assert "checkpoint-10 is passed over: " in caplog.text and message in caplog.text


def test_what_there_is_nothing_to_resume_from(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match="nothing to resume: no checkpoint in"):
            checkpoint_to_resume(True, folder)
    shutil.rmtree(write(tmp_path / "checkpoint-2") / "adapter")
    assert checkpoint_to_resume(True, tmp_path) == str(tmp_path / "checkpoint-2")
    assert [checkpoint_to_resume(given, tmp_path) for given in (None, False, "a/b")] == [None, False, "a/b"]

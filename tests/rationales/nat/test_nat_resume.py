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

"""Quantized models, and runs that go on where they were stopped."""

import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, TrainerCallback

from tests.rationales.nat.adapters import IDS, Snapshot, logits
from tests.runs import assert_same_weights, losses
from trl_distill import NegativeAssistedConfig, NegativeAssistedTrainer, load_nat


class Stop(TrainerCallback):
    def __init__(self, stage, step):
        self.stage, self.step = stage, step

    def on_step_end(self, args, state, control, **kwargs):
        if args.stages == self.stage and state.global_step == self.step:
            raise KeyboardInterrupt


class Count(TrainerCallback):
    """How many steps each stage has really made."""

    def __init__(self):
        self.steps = {"negative": 0, "both": 0}

    def on_step_end(self, args, state, control, **kwargs):
        self.steps[args.stages] += 1


@pytest.mark.parametrize(("bits", "bf16"), [(4, True), (8, False)])
class TestQuantized:
    def test_trains_resumes_and_loads(self, run, make_trainer, quantized, tmp_path, bits, bf16):
        saving = dict(save_strategy="steps", save_steps=1, num_train_epochs=1, bf16=bf16)
        snapshot = Snapshot()
        whole = run("whole", quantized(bits), callbacks=[snapshot], **saving)
        for name, parameter in whole.model.named_parameters():
            assert torch.equal(parameter, snapshot.at["both"][name]) is (".nat." not in name), name
            if ".nat." in name:
                assert parameter.dtype == (torch.float32 if "lora_nat" in name else torch.bfloat16), name
        kinds = {type(module).__name__ for module in whole.model.modules() if hasattr(module, "lora_variant")}
        assert kinds == {"Linear4bit" if bits == 4 else "Linear8bitLt"}

        # Two separate runs are the one call
        run("first", quantized(bits), stages="negative", **saving)
        path = str(tmp_path / "first")
        second = run("second", quantized(bits), stages="positive", negative_adapter_path=path, **saving)
        assert losses(second) == losses(whole) and len(losses(whole)) == 4
        assert_same_weights(second.model, whole.model)

        # Resumed in the negative stage, and in the positive one
        for source, target in (("negative/checkpoint-1", "negative"), ("checkpoint-2", "")):
            folder = tmp_path / f"resumed-{target}"
            if not target:
                shutil.copytree(tmp_path / "whole" / "neg", folder / "neg")
            shutil.copytree(tmp_path / "whole" / source, folder / source)
            resumed = make_trainer(folder.name, quantized(bits), **saving)
            resumed.train(resume_from_checkpoint=str(folder / source))
            assert losses(resumed) == losses(whole)
            assert_same_weights(resumed.model, whole.model)

        loaded = load_nat(quantized(bits), str(tmp_path / "whole"))
        trained = whole.accelerator.unwrap_model(whole.model, keep_fp32_wrapper=False)
        for name, parameter in trained.named_parameters():
            if ".lora_" in name:  # trained in bf16, loaded in fp32
                parameter.data = parameter.data.float()
        assert torch.equal(logits(loaded), logits(trained.eval()))
        ids = loaded.generate(input_ids=IDS, max_new_tokens=4, do_sample=False, eos_token_id=None)
        assert ids.shape == (1, 14)


def test_quantized_by_name(quantized, rows, settings, tmp_path):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    trainer = NegativeAssistedTrainer(
        quantized.path,
        args=NegativeAssistedConfig(str(tmp_path / "run"), integration_width=4, **settings),
        train_dataset=rows,
        quantization_config=config,
    )
    assert trainer.model.is_loaded_in_4bit
    trainer.train()
    mixed = logits(trainer.model.eval(), IDS.expand(3, -1), adapter_names=["nat", "neg", "__base__"])
    expected = [logits(trainer.model)]
    trainer.model.set_adapter("neg")
    expected.append(logits(trainer.model))
    with trainer.model.disable_adapter():
        expected.append(logits(trainer.model))
    torch.testing.assert_close(mixed, torch.cat(expected), rtol=2e-2, atol=2e-2)  # bf16 adapters


class TestResume:
    saving = dict(save_strategy="steps", save_steps=2)

    def test_equals_an_uninterrupted_run(self, run, make_trainer):
        whole = run("whole", **self.saving)
        # The last step of a stage is saved before the stage ends; at the first of the positive stage nothing of it is.
        # A finished negative adapter is kept, and no step is made again but those after the last checkpoint.
        for stage, step, made in (
            ("negative", 3, {"negative": 2, "both": 8}),
            ("negative", 4, {"negative": 2, "both": 8}),
            ("both", 1, {"negative": 0, "both": 8}),
            ("both", 5, {"negative": 0, "both": 4}),
        ):
            folder = f"{stage}-{step}"
            with pytest.raises(KeyboardInterrupt):
                make_trainer(folder, callbacks=[Stop(stage, step)], **self.saving).train()
            count = Count()
            resumed = make_trainer(folder, callbacks=[count], **self.saving)
            resumed.train(resume_from_checkpoint=True)
            assert count.steps == made
            assert losses(resumed) == losses(whole)
            assert_same_weights(resumed.model, whole.model)

    def test_single_stages(self, run, make_trainer, tmp_path):
        negative = run("negative", stages="negative", **self.saving)
        path = str(tmp_path / "negative")
        positive = run("positive", stages="positive", negative_adapter_path=path, **self.saving)
        for folder, step, whole, stage in (
            ("negative", 2, negative, dict(stages="negative")),
            ("positive", 6, positive, dict(stages="positive", negative_adapter_path=path)),
        ):
            resumed = make_trainer("again", **stage, **self.saving)
            resumed.train(resume_from_checkpoint=str(tmp_path / folder / f"checkpoint-{step}"))
            assert losses(resumed) == losses(whole)
            assert_same_weights(resumed.model, whole.model)

    def test_refuses_what_cannot_be_resumed(self, run, make_trainer, tmp_path):
        with pytest.raises(ValueError, match=r"Nothing to resume: no checkpoint in .*negative or .*run\."):
            make_trainer().train(resume_from_checkpoint=True)
        make_trainer("one", num_train_epochs=1, **self.saving).train()
        checkpoint = str(tmp_path / "one" / "checkpoint-4")
        with pytest.raises(ValueError, match="belongs to the positive stage.*or start anew"):
            make_trainer().train(resume_from_checkpoint=checkpoint)
        run("other", stages="negative", num_train_epochs=1, seed=7)
        trainer = make_trainer(stages="positive", negative_adapter_path=str(tmp_path / "other"))
        with pytest.raises(ValueError, match="negative adapter in .*checkpoint-4 is not the one of this run"):
            trainer.train(resume_from_checkpoint=checkpoint)

    def test_refuses_other_tensors_under_the_config_of_this_run(self, run, make_trainer, tmp_path):
        run("negative", stages="negative", num_train_epochs=1)
        stage = dict(stages="positive", negative_adapter_path=str(tmp_path / "negative"))
        make_trainer("positive", **stage, num_train_epochs=1, **self.saving).train()
        checkpoint = tmp_path / "positive" / "checkpoint-4"
        file = checkpoint / "neg" / "adapter_model.safetensors"
        tensors = load_file(file)
        save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, file)
        with pytest.raises(ValueError, match="negative adapter in .*checkpoint-4 is not the one of this run"):
            make_trainer("positive", **stage).train(resume_from_checkpoint=str(checkpoint))

    def test_a_new_run_in_an_old_folder_forgets_the_old_negative_adapter(self, run, make_trainer, rows):
        """Killed in its negative stage, it must not go on with the adapter of the run before."""
        make_trainer("run", **self.saving).train()
        other = rows.map(lambda row: {"completion": row["completion"].upper()})
        whole = run("whole", train_dataset=other, **self.saving)
        with pytest.raises(KeyboardInterrupt):
            make_trainer("run", train_dataset=other, callbacks=[Stop("negative", 3)], **self.saving).train()
        resumed = make_trainer("run", train_dataset=other, **self.saving)
        shutil.rmtree(Path(resumed.args.output_dir, "negative", "checkpoint-4"))  # of the old run, as in any Trainer
        resumed.train(resume_from_checkpoint=True)
        assert_same_weights(resumed.model, whole.model)


def test_a_killed_process_goes_on_where_it_was(base_folder, tmp_path):
    """Killed by the system in the negative stage; resumed and killed in the positive one; resumed to the end."""
    script = Path(__file__).with_name("run_killed.py")
    for stage, step, resume in (("negative", "3", "anew"), ("both", "5", "resume")):
        command = [sys.executable, script, base_folder, tmp_path / "run", stage, step, resume]
        assert subprocess.run(list(map(str, command)), timeout=300).returncode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))[-1] == "checkpoint-4"
    build = runpy.run_path(str(script))["build"]
    count = Count()
    whole, resumed = build(base_folder, tmp_path / "whole"), build(base_folder, tmp_path / "run", [count])
    whole.train()
    resumed.train(resume_from_checkpoint=True)
    assert count.steps == {"negative": 0, "both": 4}
    assert losses(whole) == losses(resumed) and len(losses(whole)) == 8
    assert_same_weights(whole.model, resumed.model)

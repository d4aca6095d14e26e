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

"""A resumed run equals one that was never stopped, or is refused."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from trl import DistillationConfig

from tests.runs import assert_same_weights
from trl_distill import MiniLLMConfig
from trl_distill.minillm.resume import FIELDS_OF_PARENTS, MAY_CHANGE, RESUME_FILE, check_resumable, resume_settings


class TestResume:
    def run(self, make_trainer, corpus, output_dir, resume=None, **settings):
        values = dict(num_iterations=2, max_steps=8, save_strategy="steps", save_steps=4) | settings
        trainer = make_trainer(lm_dataset=corpus, lm_max_length=32, output_dir=str(output_dir), **values)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    @pytest.mark.parametrize("step", [4, 8, 10])  # 8 steps an epoch: inside one, between two, inside the second
    def test_equals_an_uninterrupted_run(self, make_trainer, corpus, tmp_path, step):
        settings = dict(max_steps=12, save_steps=2)
        whole = self.run(make_trainer, corpus, tmp_path / "whole", **settings)
        checkpoint = str(tmp_path / "whole" / f"checkpoint-{step}")
        resumed = self.run(make_trainer, corpus, tmp_path / "again", checkpoint, **settings)
        assert resumed.state.global_step == 12
        assert_same_weights(whole.model, resumed.model)

    def test_inside_a_set_samples_anew_and_keeps_the_order_of_prompts(self, make_trainer, corpus, tmp_path):
        whole = self.run(make_trainer, corpus, tmp_path / "whole", save_steps=3)
        checkpoint = str(tmp_path / "whole" / "checkpoint-3")
        resumed = self.run(make_trainer, corpus, tmp_path / "again", checkpoint, save_steps=3)
        assert resumed._step == whole._step == 8

    @pytest.mark.parametrize("cut_off", ["trainer_state.json", "model.safetensors"])
    def test_passes_over_a_checkpoint_that_a_kill_cut_off(self, make_trainer, corpus, tmp_path, cut_off, caplog):
        settings = dict(max_steps=6, save_steps=2)
        whole = self.run(make_trainer, corpus, tmp_path / "whole", **settings)
        file = tmp_path / "whole" / "checkpoint-6" / cut_off
        file.write_bytes(file.read_bytes()[:-9])
        resumed = self.run(make_trainer, corpus, tmp_path / "whole", True, **settings)
        assert "checkpoint-6 is passed over" in caplog.text and resumed.state.global_step == 6
        assert len([entry for entry in resumed.state.log_history if "loss" in entry]) == 6  # steps 1 to 4 are known
        assert_same_weights(whole.model, resumed.model)

    def test_refuses_another_configuration(self, make_trainer, corpus, tmp_path):
        self.run(make_trainer, corpus, tmp_path / "whole", max_steps=4)
        checkpoint = str(tmp_path / "whole" / "checkpoint-4")
        with pytest.raises(ValueError, match="`gamma` was 1.0 and is now 0.5"):
            self.run(make_trainer, corpus, tmp_path / "again", checkpoint, gamma=0.5)
        with pytest.raises(ValueError, match="other settings: `corpus` was .*'blocks': "):
            self.run(make_trainer, corpus.select(range(8)), tmp_path / "again", checkpoint)
        Path(checkpoint, RESUME_FILE).unlink()
        with pytest.raises(ValueError, match="no checkpoint of a MiniLLM run"):
            self.run(make_trainer, corpus, tmp_path / "again", checkpoint)


# Another valid value of every field that the config declares. A new field fails the test below until it stands here.
OTHER_VALUES = dict(
    learning_rate=1e-3,
    max_completion_length=7,
    disable_dropout=False,
    teacher_mix_alpha=0.1,
    steps_per_generation=2,
    num_generations=2,
    score_from="forward",
    num_iterations=3,
    single_step_decomposition=False,
    return_mode="inclusive",
    credit="exact",
    gamma=0.5,
    length_normalization=True,
    whiten_advantages=False,
    reward_scaling=0.5,
    reward_clip=1.0,
    epsilon=float("inf"),
    clip_importance_weight=True,
    lm_coef=0.5,
    lm_kd_ratio=0.5,
    lm_max_length=64,
    teacher_is_base=True,
    teacher_model_server_url="http://localhost:8001",
    teacher_states_on_cpu=True,
    loss_chunk_tokens=7,
)
VALUES_OF_PARENTS = dict(
    seed=1,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    shuffle_dataset=False,
    chat_template_kwargs={"enable_thinking": False},
    temperature=0.7,
    top_p=0.9,
    top_k=5,
    min_p=0.1,
    repetition_penalty=1.2,
    generation_kwargs={"max_new_tokens": 3},
)


def settings_of(tmp_path, **settings):
    args = MiniLLMConfig(str(tmp_path), bf16=False, use_cpu=True, **settings)
    return resume_settings(args, corpus_blocks=None, lm_coef=0.0)


def saved_checkpoint(tmp_path, settings):
    (tmp_path / RESUME_FILE).write_text(json.dumps(settings))
    return tmp_path


def test_every_field_of_the_config_has_been_thought_of():
    own = {field.name for field in fields(MiniLLMConfig)} - {field.name for field in fields(DistillationConfig)}
    assert own <= OTHER_VALUES.keys() == MiniLLMConfig.__annotations__.keys()
    assert MAY_CHANGE < OTHER_VALUES.keys() and set(FIELDS_OF_PARENTS) == VALUES_OF_PARENTS.keys()


@pytest.mark.parametrize("name", OTHER_VALUES | VALUES_OF_PARENTS)
def test_a_changed_field_is_refused_or_may_change(tmp_path, name):
    value = (OTHER_VALUES | VALUES_OF_PARENTS)[name]
    needed = {"teacher_mix_alpha": 0.0} if name in ("top_p", "top_k", "min_p", "repetition_penalty") else {}
    if name == "teacher_model_server_url":
        needed = {"teacher_mix_alpha": 0.0, "single_step_decomposition": False}
    before = settings_of(tmp_path, **needed)
    now = settings_of(tmp_path, **needed, **{name: value})
    checkpoint = saved_checkpoint(tmp_path, before)
    check_resumable(checkpoint, before)
    if name in MAY_CHANGE:
        check_resumable(checkpoint, now)
    else:
        with pytest.raises(ValueError, match=rf"other settings: .*`{name}` was .* and is now "):
            check_resumable(checkpoint, now)


def test_a_checkpoint_of_an_older_version_is_checked_by_what_it_holds(tmp_path):
    """Before this version, files held 17 fields, the number of processes and the corpus."""
    old = {
        "seed": 42,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 1,
        "num_iterations": 4,
        "teacher_mix_alpha": 0.2,
        "temperature": 1.0,
        "max_completion_length": 256,
        "single_step_decomposition": True,
        "return_mode": "auto",
        "gamma": 1.0,
        "length_normalization": False,
        "whiten_advantages": True,
        "reward_scaling": 1.0,
        "reward_clip": None,
        "epsilon": 0.2,
        "clip_importance_weight": False,
        "world_size": 1,
        "corpus": None,
    }
    checkpoint = saved_checkpoint(tmp_path, old)
    assert old.keys() < settings_of(tmp_path).keys()
    check_resumable(checkpoint, settings_of(tmp_path))
    check_resumable(checkpoint, settings_of(tmp_path, lm_kd_ratio=0.5))  # the file does not say
    with pytest.raises(ValueError, match="`epsilon` was 0.2 and is now 0.3"):
        check_resumable(checkpoint, settings_of(tmp_path, epsilon=0.3))

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

"""Weights, models and settings that NCE refuses, and those that it takes."""

import pytest
from peft import PromptTuningConfig, get_peft_model


def with_columns(dataset, **columns):
    dataset = dataset.remove_columns([name for name in columns if name in dataset.column_names])
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset


class TestRefusals:
    def test_weights(self, make_trainer, weighed, rows):
        values = weighed["weight"][:]

        def with_weights(changed):
            return with_columns(weighed, weight=changed)

        other = rows.map(lambda row: {"completion": row["completion"].replace("The", "So the")})
        for dataset, message in [
            (rows, "train dataset has no column `weight`.*set `kd_weight`"),
            (weighed.remove_columns("weight_hash"), "no column `weight_hash`"),
            (with_weights([*values[:5], float("nan"), *values[6:]]), "`weight` in row 5 of the train dataset is nan"),
            (with_weights([*values[:3], None, *values[4:]]), "in row 3 of the train dataset is None"),
            (with_weights([-0.1, *values[1:]]), "in row 0 of the train dataset is -0.1"),
            (with_weights([value + 0.5 for value in values]), "without the 0.5 that the loss adds"),
            (with_columns(other, weight=values, weight_hash=weighed["weight_hash"][:]), "row 0 of the train"),
            (with_columns(weighed.select([1, 0, *range(2, 12)]), **rows[:]), "belongs to another"),
            (weighed.to_iterable_dataset().map(lambda row: row), "is a stream"),
        ]:  # fmt: skip
            with pytest.raises(ValueError, match=message):
                make_trainer(train_dataset=dataset)
        with pytest.raises(ValueError, match="eval dataset has no column `weight`"):
            make_trainer(eval_dataset=rows)
        with pytest.raises(ValueError, match="extra dataset has no column `weight`"):
            make_trainer().evaluate({"extra": rows})

    def test_weights_of_another_tokenization(self, make_trainer):
        with pytest.raises(ValueError, match="row 0 of the train dataset belongs to another row, or to another token"):
            make_trainer(completion_only_loss=False)

    def test_constant_weight_needs_no_column(self, make_trainer, rows):
        trainer = make_trainer(train_dataset=rows, eval_dataset=rows, kd_weight=1.0)
        trainer.train()
        assert "weight/mean" not in trainer.state.log_history[0] and "eval_kd" in trainer.evaluate()

    def test_several_evaluation_sets_that_come_later(self, make_trainer, weighed):
        """The parent prepares each of them twice."""
        trainer = make_trainer(eval_dataset=weighed)
        metrics = trainer.evaluate({"some": weighed.select(range(5)), "all": weighed})
        assert metrics["eval_all_loss"] == trainer.evaluate()["eval_loss"] != metrics["eval_some_loss"]

    def test_wrong_rows_are_left_out(self, make_trainer, weighed):
        trainer = make_trainer(train_dataset=weighed.add_column("label", [i % 2 == 0 for i in range(12)]))
        assert len(trainer.train_dataset) == 6

    def test_models(self, student_lora, make_trainer, make_nat, tiny_model):
        taken = get_peft_model(tiny_model(), student_lora())
        for name in ("nat", "neg"):
            taken.add_adapter(name, student_lora())
        small_head = dict(model=tiny_model(), teacher_model=make_nat(vocab_size=100))
        prompts = PromptTuningConfig(num_virtual_tokens=2)
        for values, message in [
            ({"model": tiny_model()}, "with the adapters 'nat' and 'neg', but got a Qwen2ForCausalLM"),
            ({"model": "a/model/that/does/not/exist"}, "but got a str with no adapters"),
            ({"peft_config": None}, "pass a `peft_config`"),
            ({"peft_config": prompts}, "must be a `LoraConfig`, got a PromptTuningConfig"),
            ({"objective": "weighted_ce", "teacher_model": make_nat()}, "`objective='weighted_ce'` has no teacher"),
            ({"model": taken}, "already has an adapter 'default'"),
            (small_head, "smaller LM head has only 100 rows"),
        ]:
            with pytest.raises(ValueError, match=message):
                make_trainer(**values)

    @pytest.mark.parametrize(
        "changes",
        [
            {"bias": "all"},
            {"modules_to_save": ["lm_head"]},
            {"init_lora_weights": "pissa"},
            {"trainable_token_indices": [1]},
        ],
    )
    def test_adapters_that_change_the_base_model(self, student_lora, make_trainer, changes):
        with pytest.raises(ValueError, match=f"`{next(iter(changes))}=.*changes the base model"):
            make_trainer(peft_config=student_lora(**changes))

    def test_kd_under_fsdp(self, make_trainer, monkeypatch):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(ValueError, match="`objective='kd'` has not been verified with FSDP"):
            make_trainer("a model that is not loaded")

    @pytest.mark.parametrize(
        "settings, message",
        [
            ({"alpha": 1.5}, r"`alpha` must be in \[0, 1\], got 1.5"),
            ({"kd_temperature": 0.0}, "`kd_temperature` must be above 0"),
            ({"kd_weight": -1.0}, "`kd_weight` must be at least 0"),
            ({"objective": "ce"}, "`objective` must be 'kd' or 'weighted_ce', got 'ce'"),
            ({"loss_chunk_tokens": 0}, "`loss_chunk_tokens` must be at least 1"),
            ({"packing": True}, "`packing` must be off"),
            ({"eval_packing": True}, "`eval_packing` must be off"),
            ({"padding_free": True}, "`padding_free` must be off"),
            ({"loss_type": "dft"}, "`loss_type` must be 'nll'"),
            ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` must be 0"),
            ({"assistant_only_loss": True}, "`assistant_only_loss` must be off"),
            ({"chat_template_path": "template.jinja"}, "`chat_template_path` must be unset"),
            ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "Remove `skip_prepare_dataset`"),
            ({"objective": "weighted_ce", "kd_weight": 1.0}, "`kd_weight=1.0` belongs to `objective='kd'`"),
        ],
    )
    def test_settings(self, make_args, settings, message):
        with pytest.raises(ValueError, match=message):
            make_args(**settings)

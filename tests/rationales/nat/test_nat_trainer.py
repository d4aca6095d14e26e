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
import contextlib
import json
import logging
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, Value
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from trl import SFTConfig, SFTTrainer

from tests.rationales.nat.adapters import TARGETS, Snapshot, assert_loads, logits, trained_adapters
from tests.rationales.nat.adapters import lora as plain_lora
from tests.runs import MODES, assert_same_logits, assert_same_weights, history, losses
from trl_distill import NegativeAssistedConfig, NegativeAssistedTrainer, load_nat


lora = partial(plain_lora, lora_dropout=0.1)


class TestStages:
    def test_one_call_is_two_runs_and_the_first_is_plain_sft(
        self, run, make_trainer, tiny_model, tokenizer, rows, settings, tmp_path
    ):
        both = make_trainer("both")
        torch.rand(5)  # what happens before a stage does not change it
        both.train()
        both.save_model()
        negative = run("negative", stages="negative")
        path = str(tmp_path / "negative")
        positive = run("positive", stages="positive", negative_adapter_path=path)
        for one, two, steps in ((both.negative_trainer, negative, 4), (both, positive, 8)):
            for key in ("loss", "grad_norm", "learning_rate"):
                assert losses(one, key) == losses(two, key) and len(losses(two, key)) == steps
        assert_same_weights(both.model, positive.model)
        for name in ("neg", "nat"):
            files = [tmp_path / top / name / "adapter_model.safetensors" for top in ("both", "positive")]
            assert files[0].read_bytes() == files[1].read_bytes()

        plain = SFTTrainer(
            tiny_model(),
            args=SFTConfig(str(tmp_path / "plain"), **settings),
            train_dataset=rows.filter(lambda row: not row["label"]),
            processing_class=tokenizer,
            peft_config=lora(),
        )
        plain.train()
        assert torch.equal(history(plain), history(negative))
        stock = get_peft_model_state_dict(plain.model)
        ours = get_peft_model_state_dict(negative.model, adapter_name="neg")
        assert stock.keys() == ours.keys() and all(torch.equal(stock[name], ours[name]) for name in stock)

    @pytest.mark.parametrize("value", ["mlp", "identity"])
    def test_trains_all_of_the_positive_adapter_and_nothing_else(self, make_trainer, tiny_model, tmp_path, value):
        snapshot = Snapshot()
        trainer = make_trainer(integration_value=value, callbacks=[snapshot])
        trainer.train()
        start, layers = snapshot.at["both"], 2 * len(TARGETS)
        base = tiny_model().state_dict()
        written = load_file(tmp_path / "run" / "neg" / "adapter_model.safetensors")
        trained = set()
        for name, parameter in trainer.model.named_parameters():
            if ".nat." in name:
                assert parameter.requires_grad and not torch.equal(parameter, start[name]), f"{name} has not moved"
                trained.add(name.split(".")[-3])
                continue
            assert not parameter.requires_grad and parameter.grad is None, name
            assert torch.equal(parameter, start[name]), f"{name} has moved"
            if ".neg." in name:
                assert torch.equal(parameter, written.pop(name.replace(".neg", ""))), name
            else:
                key = name.removeprefix("base_model.model.").replace(".base_layer", "")
                assert torch.equal(parameter, base.pop(key)), f"{name} is not the base model's"
        assert not written and not base
        gate = {"lora_nat_q", "lora_nat_k"} | ({"lora_nat_v1", "lora_nat_v2"} if value == "mlp" else set())
        assert trained == gate | {"lora_A", "lora_B"}
        optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        assert optimized == {id(p) for name, p in trainer.model.named_parameters() if ".nat." in name}
        assert len(optimized) == layers * len(trained)
        first = snapshot.at["negative"]
        for name in first:
            assert torch.equal(first[name], start[name]) is (".neg." not in name), name

    def test_adapters_start_from_different_matrices(self, make_trainer):
        snapshot = Snapshot()
        make_trainer(callbacks=[snapshot]).train()
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.{}.weight"
        assert not torch.equal(snapshot.at["negative"][name.format("neg")], snapshot.at["both"][name.format("nat")])

    def test_first_loss_of_the_positive_stage_is_the_base_models(self, run, tiny_model, tokenizer, rows):
        trainer = run(num_train_epochs=1, per_device_train_batch_size=16)
        total = count = 0
        for row in rows:
            if row["label"]:
                prompt = tokenizer(row["prompt"]).input_ids
                ids = prompt + tokenizer(row["completion"] + tokenizer.eos_token).input_ids
                logps = tiny_model().double()(torch.tensor([ids])).logits[0].log_softmax(-1)
                for t in range(len(prompt), len(ids)):
                    total, count = total - logps[t - 1, ids[t]].item(), count + 1
        assert losses(trainer) == [pytest.approx(total / count, rel=1e-5)]

    def test_each_stage_learns_its_own_rows(self, run, tiny_model, tokenizer, rows):
        trainer = run(per_device_train_batch_size=16, num_train_epochs=30, learning_rate=3e-2, logging_steps=1000)

        def logp(model, label):
            """Mean log-probability of a completion token, from dense logits."""
            found = []
            for row in rows:
                if row["label"] is label:
                    prompt = tokenizer(row["prompt"]).input_ids
                    ids = torch.tensor([prompt + tokenizer(row["completion"]).input_ids])
                    logps = logits(model.eval(), ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
                    found.append(logps[len(prompt) - 1 :])
            return torch.cat(found).mean().item()

        base, model = tiny_model(), trainer.model
        assert logp(model, True) > logp(base, True) + 1
        model.set_adapter("neg")
        assert logp(model, False) > logp(base, False) + 1

    def test_positive_stage_starts_from_any_negative_lora(self, run, tiny_model, tmp_path):
        """One of another rank, on more modules, trained elsewhere and saved under PEFT's own name."""
        elsewhere = get_peft_model(tiny_model(), lora(r=3, target_modules=[*TARGETS, "k_proj"]))
        for name, parameter in elsewhere.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        elsewhere.save_pretrained(tmp_path / "elsewhere")
        path = str(tmp_path / "elsewhere")
        trainer = run(stages="positive", negative_adapter_path=path)
        assert trainer.negative_trainer is None
        assert_loads(trainer, tiny_model())
        loaded = load_nat(tiny_model(), str(tmp_path / "run"))
        loaded.set_adapter("neg")
        assert torch.equal(logits(loaded), logits(elsewhere.eval()))

    def test_negative_adapter_of_its_own_form(self, run, tiny_model):
        trainer = run(negative_peft_config=lora(r=3, target_modules=[*TARGETS, "o_proj"]))
        assert trainer.model.peft_config["neg"].r == 3 and trainer.model.peft_config["nat"].r == 2
        assert_loads(trainer, tiny_model())

    def test_writes_two_adapter_folders_and_leaves_the_arguments_alone(self, run, tiny_model, tmp_path):
        trainer = run(integration_value="identity", integration_temperature=2.0)
        args = trainer.args
        assert args.stages == "both" and args.output_dir == str(tmp_path / "run")
        assert {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()} >= {"neg", "nat"}
        config = json.loads((tmp_path / "run" / "nat" / "adapter_config.json").read_text())["nat_config"]
        assert (config["value"], config["width"], config["temperature"]) == ("identity", 4, 2.0)
        assert_loads(trainer, tiny_model())

    def test_gradient_checkpointing_changes_nothing(self, make_trainer):
        runs = []
        for checkpointing in (False, True):
            trainer = make_trainer(gradient_checkpointing=checkpointing)
            trainer.train()
            runs.append(losses(trainer.negative_trainer, "grad_norm") + losses(trainer, "grad_norm"))
        assert runs[0] == pytest.approx(runs[1], rel=1e-5)

    def test_model_card_cites_the_paper(self, make_trainer):
        trainer = make_trainer(stages="negative")
        trainer.create_model_card()
        card = Path(trainer.args.output_dir, "README.md").read_text()
        assert "li2024turning" in card and "2312.12832" in card

    @pytest.mark.parametrize("stages", ["both", "negative"])
    def test_model_card_shows_code_that_loads_it(self, run, base_folder, stages, tmp_path, monkeypatch, capsys):
        trainer = run(model=str(base_folder), stages=stages)
        trainer.create_model_card()
        [code] = re.findall(r"```python\n(.*?)```", Path(trainer.args.output_dir, "README.md").read_text(), re.S)
        assert "pipeline" not in code and str(tmp_path) not in code
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        exec(code, names := {})
        assert capsys.readouterr().out.startswith("What is 3 + 4?")
        assert set(names["model"].peft_config) == ({"neg", "nat"} if stages == "both" else {"default"})


class TestModels:
    def test_gpt2(self, run, tiny_gpt2):
        """Conv1D layers, on the modules that PEFT knows for the architecture."""
        config = LoraConfig(r=2, task_type="CAUSAL_LM", fan_in_fan_out=True)
        trainer = run(model=tiny_gpt2(), peft_config=config)
        assert trainer.model.peft_config["nat"].target_modules == {"c_attn"}
        assert_loads(trainer, tiny_gpt2())
        assert losses(trainer)[-1] < losses(trainer)[0]

    @pytest.mark.parametrize("alone", [False, True])
    def test_all_linear(self, run, tiny_model, tmp_path, alone):
        stage = dict(peft_config=lora(target_modules="all-linear"))
        if alone:
            run("first", stages="negative", **stage)
            stage |= dict(stages="positive", negative_adapter_path=str(tmp_path / "first"))
        trainer = run(**stage)
        gated = {name.split(".")[-4] for name, _ in trainer.model.named_parameters() if "lora_nat_q" in name}
        assert gated == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        assert_loads(trainer, tiny_model())

    def test_bf16_base(self, run, tiny_model, tmp_path):
        snapshot = Snapshot()
        trainer = run(model=tiny_model().bfloat16(), bf16=True, callbacks=[snapshot])
        for name, parameter in trainer.model.named_parameters():
            assert parameter.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16), name
            assert torch.equal(parameter, snapshot.at["both"][name]) is (".nat." not in name), name
        loaded = load_nat(tiny_model().bfloat16(), str(tmp_path / "run"))
        found = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        assert torch.equal(logits(loaded), logits(found.eval()))

    def test_by_name_with_the_released_lora(self, base_folder, tokenizer, rows, settings, tmp_path):
        trainer = NegativeAssistedTrainer(
            str(base_folder),
            args=NegativeAssistedConfig(str(tmp_path / "run"), integration_width=4, **settings),
            train_dataset=rows,
        )
        trainer.train()
        for name in ("neg", "nat"):
            config = trainer.model.peft_config[name]
            assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (8, 16, 0.05, "none")
            assert config.target_modules == {"q_proj", "v_proj"}
        assert trainer.processing_class.get_vocab() == tokenizer.get_vocab()
        assert NegativeAssistedConfig("x", bf16=False).learning_rate == 3e-4

    def test_conversational_rows(self, run, chats, tokenizer):
        trainer = run(train_dataset=chats, eval_dataset=chats)
        assert len(losses(trainer)) == 2 and len(losses(trainer.negative_trainer)) == 2
        for found, expected in ((trainer, [0, 2, 4, 6]), (trainer.negative_trainer, [1, 3, 5, 7])):
            for dataset in (found.train_dataset, found.eval_dataset):
                for row, i in zip(dataset, expected, strict=True):
                    text = f"<|user|>Q{i}<|endoftext|><|assistant|>answer {i}<|endoftext|>"
                    assert tokenizer.decode(row["input_ids"]) == text
                    trained = [token for token in row["labels"] if token != -100]
                    assert tokenizer.decode(trained) == f"answer {i}<|endoftext|>"


class TestRows:
    def test_stages_split_training_and_evaluation_rows(self, make_trainer, tokenizer, rows, caplog):
        sets = {"a": rows.select(range(9)), "b": rows.select(range(3, 24))}
        with caplog.at_level(logging.INFO, logger="trl_distill.rationales"):
            trainer = make_trainer(eval_dataset=sets)
        for found, label in ((trainer, True), (trainer.negative_trainer, False)):
            for name, dataset in (found.eval_dataset | {"train": found.train_dataset}).items():
                source = (sets | {"train": rows})[name]
                expected = [r["prompt"] + r["completion"] + "<|endoftext|>" for r in source if r["label"] is label]
                assert [tokenizer.decode(row["input_ids"]) for row in dataset] == expected
        assert "The train dataset has 16 right and 8 wrong rows." in caplog.text
        assert "The train dataset has 8 wrong and 16 right rows." in caplog.text
        assert "The a dataset has 6 right and 3 wrong rows." in caplog.text
        metrics = trainer.evaluate()
        assert {name for name in metrics if name.endswith("_loss")} == {"eval_a_loss", "eval_b_loss"}

    def test_prompt_has_no_loss_and_the_end_token_has(self, make_trainer, tokenizer, rows):
        row = make_trainer(stages="negative").train_dataset[0]
        assert tokenizer.decode([token for token in row["labels"] if token != -100]) == (
            rows[0]["completion"] + "<|endoftext|>"
        )
        assert row["labels"][: len("Q0: ")] == [-100] * 4

    def test_evaluating_new_rows_takes_those_of_the_stage(self, run, rows):
        trainer = run(num_train_epochs=1, per_device_eval_batch_size=24)
        found = trainer.evaluate(rows)["eval_loss"]
        assert found == trainer.evaluate(rows.filter(lambda row: row["label"]))["eval_loss"]
        assert found != trainer.evaluate(rows.remove_columns("label"))["eval_loss"]
        assert trainer.evaluate({"new": rows})["eval_new_loss"] == found

    def test_negative_stage_without_evaluation_rows_goes_without(self, make_trainer, rows, caplog):
        right = rows.filter(lambda row: row["label"])
        evaluating = dict(eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True)
        with caplog.at_level(logging.WARNING, logger="trl_distill.rationales"):
            trainer = make_trainer(eval_dataset=right, num_train_epochs=1, **evaluating)
        assert "No evaluation row is wrong" in caplog.text
        trainer.train()
        assert len(losses(trainer, "eval_loss")) == 1 and not losses(trainer.negative_trainer, "eval_loss")
        trainer = make_trainer(eval_dataset={"right": right, "all": rows})
        assert set(trainer.negative_trainer.eval_dataset) == {"all"} and set(trainer.eval_dataset) == {"right", "all"}

    @pytest.mark.parametrize(("stages", "label"), [("both", False), ("negative", True)])
    def test_a_stage_needs_an_evaluation_row(self, make_trainer, rows, stages, label):
        one_kind = rows.filter(lambda row: row["label"] is label)
        kind = "wrong" if label else "right"
        with pytest.raises(ValueError, match=f"`label` is {label} in all rows of `eval_dataset`.*Add {kind}"):
            make_trainer(eval_dataset=one_kind, stages=stages)

    def test_rows_that_are_too_long_are_dropped_and_not_cut(self, make_trainer, tokenizer, rows, caplog):
        with caplog.at_level(logging.WARNING, logger="trl_distill.rationales"):
            trainer = make_trainer(max_length=26)
        assert "Dropped 8 of 16 rows of the train dataset that are longer than 26 tokens" in caplog.text
        texts = [tokenizer.decode(row["input_ids"]) for row in trainer.train_dataset]
        assert len(texts) == 8
        assert set(texts) <= {row["prompt"] + row["completion"] + "<|endoftext|>" for row in rows}
        assert max(map(len, trainer.train_dataset["input_ids"])) == 26  # the limit itself is kept
        with pytest.raises(ValueError, match=r"All 8 rows of the train dataset are longer than 9 tokens .*Raise"):
            make_trainer(max_length=9)

    def test_packing_is_a_causal_model_of_each_row(self, run, make_trainer, tokenizer, rows, tmp_path):
        """Packed with block-diagonal attention, rows have the loss they have alone; long ones are dropped whole."""
        plain = run("plain", per_device_eval_batch_size=24)
        packed = make_trainer(
            "packed",
            stages="positive",
            negative_adapter_path=str(tmp_path / "plain"),
            packing=True,
            eval_packing=True,
            max_length=64,
            per_device_eval_batch_size=24,
        )
        documents = []
        for row in packed.train_dataset:
            start = 0
            for length in row["seq_lengths"]:
                documents.append(tokenizer.decode(row["input_ids"][start : start + length]))
                start += length
        assert len(packed.train_dataset) < len(documents) == 16
        assert set(documents) == {r["prompt"] + r["completion"] + "<|endoftext|>" for r in rows if r["label"]}
        trained = get_peft_model_state_dict(plain.model, adapter_name="nat")
        set_peft_model_state_dict(packed.model, trained, adapter_name="nat")
        assert packed.evaluate(rows)["eval_loss"] == pytest.approx(plain.evaluate(rows)["eval_loss"], rel=1e-5)
        packed.train()
        assert losses(packed)[-1] < losses(plain)[0]

        with pytest.raises(ValueError, match="All 8 rows of the train dataset are longer"):
            make_trainer("short", packing=True, max_length=9)

    def test_both_stages_with_packing(self, run, tiny_model):
        trainer = run(packing=True, max_length=64)
        assert losses(trainer) and losses(trainer.negative_trainer)
        assert_loads(trainer, tiny_model())


class TestBestModel:
    def test_both_stages_end_with_their_best_weights(self, run, rows, tmp_path):
        """The largest loss is called the best one here, so that the best step is the first and not the last."""
        trainer = run(
            eval_dataset=rows,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="steps",
            save_steps=2,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=True,
        )
        assert trainer.negative_trainer.state.best_model_checkpoint.endswith("negative/checkpoint-2")
        assert trainer.state.best_model_checkpoint.endswith("run/checkpoint-2")
        for name, folder in (("neg", "negative/checkpoint-2/neg"), ("nat", "checkpoint-2/nat")):
            best = load_file(tmp_path / "run" / folder / "adapter_model.safetensors")
            found = get_peft_model_state_dict(trainer.model, adapter_name=name)
            assert best.keys() == found.keys() and all(torch.equal(best[key], found[key]) for key in best)
        last = load_file(tmp_path / "run" / "checkpoint-8" / "nat" / "adapter_model.safetensors")
        assert any(not torch.equal(last[key], value) for key, value in found.items())
        assert trainer.model.active_adapter == "nat"
        assert trained_adapters(trainer.model) == {"nat"}


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_give_the_loss_of_one(mode, on_one_and_two_processes, base_folder, tmp_path, tiny_model):
    one, two = on_one_and_two_processes(Path(__file__).with_name("run_nat.py"), base_folder, mode)
    assert two["resumed"] == two["positive"]
    assert one.pop("eval_loss") == pytest.approx(two.pop("eval_loss"), rel=1e-4)
    steps = {"negative": 2, "positive": 4, "resumed": 4, "nt": 6, "ul": 6, "redi": 6}
    for run, entries in one.items():
        assert len(entries) == steps[run]
        for first, second in zip(entries, two[run], strict=True):
            assert first == pytest.approx(second, rel=1e-4), run
    for folder in ("nat", "nat/checkpoint-4"):
        folders = (str(tmp_path / name / folder) for name in ("1", "2"))
        assert_same_logits(lambda path: load_nat(tiny_model(), path), *folders)


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda rows: None, "`train_dataset` is required: rows `prompt`, `completion`, `label`"),
            (
                lambda rows: rows.remove_columns("label"),
                "`train_dataset` has no column label, only prompt, completion.*`trl-distill label` makes them",
            ),
            (lambda rows: rows.remove_columns(["label", "prompt"]), "no column label, prompt, only completion"),
            (
                lambda rows: rows.cast_column("label", Value("int64")),
                r"`label` in `train_dataset` must be boolean.*row 0 has 0.*dataset.map",
            ),
            (
                lambda rows: Dataset.from_list([*rows, {"prompt": "a", "completion": "b", "label": None}]),
                "must be boolean.*row 24 has None",
            ),
            (
                lambda rows: IterableDataset.from_generator(lambda: iter(rows)),
                "`train_dataset` is a stream.*without `streaming=True`",
            ),
        ],
    )
    def test_training_rows(self, make_trainer, rows, change, message):
        with pytest.raises(ValueError, match=message):
            make_trainer(train_dataset=change(rows))

    def test_all_splits_at_once(self, make_trainer, rows):
        with pytest.raises(ValueError, match="`train_dataset` is a dictionary with 'train', 'test'. Pass one of them"):
            make_trainer(train_dataset=DatasetDict(train=rows, test=rows))

    def test_evaluation_rows(self, make_trainer, rows):
        with pytest.raises(ValueError, match="`eval_dataset` has no column label"):
            make_trainer(eval_dataset=rows.remove_columns("label"))
        with pytest.raises(ValueError, match=r"`label` in `eval_dataset\['b'\]` must be boolean"):
            make_trainer(eval_dataset={"a": rows, "b": rows.cast_column("label", Value("string"))})

    def test_evaluation_rows_that_come_later(self, make_trainer, rows):
        with pytest.raises(ValueError, match="`label` in `eval_dataset` must be boolean"):
            make_trainer().evaluate(rows.cast_column("label", Value("int64")))

    @pytest.mark.parametrize("stages", ["both", "negative", "positive"])
    @pytest.mark.parametrize("label", [True, False])
    def test_an_empty_side(self, make_trainer, rows, tmp_path, stages, label):
        dataset = rows.filter(lambda row: row["label"] is label)
        stage = dict(stages=stages, negative_adapter_path=str(tmp_path) if stages == "positive" else None)
        if stages == ("positive" if label else "negative"):  # that stage has its rows
            with pytest.raises(ValueError, match="No adapter in") if label else contextlib.nullcontext():
                make_trainer(train_dataset=dataset, **stage)
            return
        kind = "wrong" if label else "right"
        message = f"nothing can be trained on {kind} ones. Add {kind} rationales, or leave"
        with pytest.raises(ValueError, match=message):
            make_trainer(train_dataset=dataset, model="not/loaded", **stage)  # known before anything is loaded

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (dict(stages="all"), "`stages` must be one of both, negative, positive, got 'all'"),
            (dict(integration_value="linear"), "`integration_value` must be one of mlp, identity, got 'linear'"),
            (dict(integration_width=0), "`integration_width` and `integration_temperature` must be positive, got 0"),
            (dict(integration_temperature=-1.0), "must be positive, got 4 and -1.0"),
            (dict(negative_adapter_path="x"), "belongs to `stages='positive'`.*'x' with `stages='both'`"),
            (dict(stages="positive"), "belongs to `stages='positive'`, which needs it, but got None"),
            (dict(stages="negative", negative_adapter_path="x"), "belongs to `stages='positive'`"),
            (dict(dataset_kwargs={"skip_prepare_dataset": True}), "Remove `skip_prepare_dataset`"),
        ],
    )
    def test_settings(self, make_trainer, change, message):
        with pytest.raises(ValueError, match=message):
            make_trainer(**change)

    @pytest.mark.parametrize(
        ("peft_config", "message"),
        [
            (IA3Config(), "`peft_config` must be a `LoraConfig`, got a IA3Config"),
            (
                lora(modules_to_save=["lm_head"]),
                r"`modules_to_save=\['lm_head'\]` of `peft_config` .*trains more than LoRA matrices",
            ),
            (lora(bias="lora_only"), "`bias='lora_only'` of `peft_config`"),
            (lora(target_modules=["nothing"]), "Target modules .*nothing.* not found in the base model"),
        ],
    )
    def test_adapters(self, make_trainer, peft_config, message):
        with pytest.raises(ValueError, match=message):
            make_trainer(peft_config=peft_config)

    def test_negative_adapter_config_is_named(self, make_trainer):
        with pytest.raises(ValueError, match="`bias='all'` of `negative_peft_config`"):
            make_trainer(negative_peft_config=lora(bias="all"))

    @pytest.mark.parametrize(
        ("positive", "negative", "message"),
        [
            (dict(target_modules=["embed_tokens"]), None, "No gate can stand on .*embed_tokens"),
            (dict(use_dora=True), None, "plain LoRA, without options such as `use_dora`"),
            ({}, dict(target_modules=["q_proj"]), "must be among those of the negative one"),
        ],
    )
    def test_adapters_without_a_place_for_a_gate(self, make_trainer, positive, negative, message):
        """Known when the trainer is built, and not when the negative stage has been trained."""
        negative = None if negative is None else lora(**negative)
        with pytest.raises(ValueError, match=message):
            make_trainer(peft_config=lora(**positive), negative_peft_config=negative)

    def test_a_negative_adapter_that_does_not_fit(self, make_trainer, tiny_model, tmp_path):
        get_peft_model(tiny_model(hidden_size=16), lora()).save_pretrained(tmp_path / "wide")
        get_peft_model(tiny_model(), lora(target_modules=["q_proj"])).save_pretrained(tmp_path / "few")
        for name, message in (
            ("wide", "(?s)negative adapter in .*wide does not fit this model.*size mismatch"),
            ("few", "must be among those of the negative one"),
        ):
            with pytest.raises(ValueError, match=message):
                make_trainer(stages="positive", negative_adapter_path=str(tmp_path / name))

    def test_a_model_that_already_has_adapters(self, make_trainer, tiny_model):
        model = get_peft_model(tiny_model(), lora())
        assert isinstance(model, PeftModel)
        with pytest.raises(ValueError, match=re.escape("already has adapters. Merge them first")):
            make_trainer(model=model)

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
"""Real training of tiny models: what a round trains on, where it begins, and what the loop reads back."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import toy
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from safetensors.torch import save
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from tests.commands import CPU, read_rows, write_rows
from trl_distill import sft
from trl_distill.chat import BudgetReached, Completion, FailedCall, LocalChatModel
from trl_distill.lion import Instruction, LionConfig, LionLoop, Training, training_rows
from trl_distill.training import accelerate_config_path


ROOT = Path(__file__).parents[2]
FIELDS = dict(
    max_steps=6,
    per_device_train_batch_size=4,
    learning_rate=1e-2,
    lr_scheduler_type="constant",
    disable_tqdm=True,
    **CPU,
)
LORA = dict(use_peft=True, lora_r=4, lora_alpha=8, lora_target_modules=["q_proj", "v_proj", "down_proj"])
SIZE = {"hidden_size": 64, "intermediate_size": 128}  # 4-bit blocks need 64


@pytest.fixture
def in_process(monkeypatch):
    """Train here, not in processes of their own, which import for some seconds each."""

    monkeypatch.setattr(Training, "_train", lambda self, config, lock: sft.run(["--config", str(config)]))


@pytest.fixture
def base(tiny_model, tokenizer, tmp_path):
    """A tiny student."""
    tiny_model(vocab_size=264, initializer_range=0.1, **SIZE).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def loop(base, tmp_path):
    """Factory of loops that train that student and let it answer, with rules for all others."""

    def build(folder="run", train=None, fields=FIELDS, **settings):
        values = dict(rounds=1, n_new=3, heldout_size=2, replay="none", student_max_tokens=4, min_hard=1) | settings
        config = LionConfig(output_dir=str(tmp_path / folder), student_model=base, training=fields, **values)
        models = {"teacher": toy.teacher(), "referee": toy.referee(), "generator": toy.generator()}
        return LionLoop(config, toy.rows({0: 5, 1: 4}), train=train, **models)

    yield build
    if LocalChatModel._in_memory is not None:
        LocalChatModel._in_memory.close()


def trained(model, rows, tmp_path, fields=FIELDS, **arguments):
    """The oracle: what TRL's trainer makes of a model and rows."""
    trainer = SFTTrainer(
        model,
        args=SFTConfig(
            str(tmp_path / "oracle"),
            model_init_kwargs={"dtype": "float32"} if isinstance(model, str) else None,
            **fields,
        ),
        train_dataset=Dataset.from_json(str(rows)),
        **arguments,
    )
    trainer.train()
    return trainer.model


def weights(model):
    if isinstance(model, (str, Path)):
        model = AutoModelForCausalLM.from_pretrained(model)
    return {name: value.detach() for name, value in model.state_dict().items()}


def same(a, b, atol=1e-6):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=atol, rtol=0) for name in a)


def nll(folder, rows, tokenizer):
    """Mean negative log-likelihood of the answers' tokens, token by token in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder).double()
    total, count = 0.0, 0
    for row in read_rows(rows):
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        begin = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(logps[t - 1, ids[t]].item() for t in range(begin, len(ids)))
        count += len(ids) - begin
    return total / count


class TestRows:
    def test_what_is_left_out(self):
        pool = [Instruction(f"task {i}") for i in range(5)]
        answers = [Completion("yes"), Completion("no", "length"), FailedCall("error"), Completion(" \n")]
        answers.append(Completion("in part", "content_filter"))
        rows, counts = training_rows(pool, answers)
        assert counts == {"rows": 1, "failed": 1, "empty": 1, "cut_off": 2, "refused": 0}
        assert [row["id"] for row in rows] == [pool[0].id]

    def test_the_loss_is_on_the_answer_alone(self, base, tokenizer, tmp_path):
        """Every token of the prompt is labelled -100, and the answer with its end is what is left."""
        pool = [Instruction("Say yes."), Instruction("Say it in a few words more.")]
        rows, _ = training_rows(pool, [Completion("yes"), Completion("it, and more of it")])
        args = SFTConfig(str(tmp_path / "out"), **CPU)
        data = SFTTrainer(base, args=args, train_dataset=Dataset.from_list(rows)).train_dataset
        for row, answer, instruction in zip(data, ("yes", "it, and more of it"), pool, strict=True):
            kept = [i for i, label in enumerate(row["labels"]) if label != -100]
            prompt = f"<|user|>{instruction.text}<|endoftext|><|assistant|>"
            assert tokenizer.decode(row["input_ids"][: kept[0]]) == prompt
            assert tokenizer.decode([row["labels"][i] for i in kept]) == f"{answer}<|endoftext|>"
            assert kept == list(range(kept[0], len(row["labels"])))


class TestFull:
    def test_two_rounds_learn_and_go_on(self, in_process, loop, base, tokenizer, tmp_path, read):
        """Students that load, answers that become likelier, and rounds that begin where the last one ended."""
        losses = []

        def evaluated(model, rows):
            args = SFTConfig(str(tmp_path / "eval"), per_device_eval_batch_size=16, **CPU)
            data = Dataset.from_json(str(rows))
            return SFTTrainer(str(model), args=args, train_dataset=data, eval_dataset=data).evaluate()["eval_loss"]

        def train(model, rows, output):
            before = tmp_path / "run/round_0/answers.jsonl"
            losses.append(evaluated(model, before))
            Training(FIELDS)(model, rows, output)
            losses.append(evaluated(output, before))

        result = loop(train=train).run()
        assert result.status == "finished" and result.round == 1
        start, end, next_start, _ = losses
        assert next_start == pytest.approx(end, abs=1e-4) and end < start - 0.5

        students = [tmp_path / f"run/round_{k}/student" for k in (0, 1)]
        rows = [tmp_path / f"run/round_{k}/answers.jsonl" for k in (0, 1)]
        for k, begin in enumerate((base, students[0])):
            assert nll(students[k], rows[k], tokenizer) < nll(begin, rows[k], tokenizer) - 0.1
            assert same(students[k], trained(str(begin), rows[k], tmp_path))
        assert not same(students[1], trained(base, rows[1], tmp_path))
        assert not list(tmp_path.rglob("run/round_*/training*")) and not list(tmp_path.rglob("checkpoint-*"))
        for k, card in enumerate(ModelCard.load(student / "README.md") for student in students):
            assert "lion" in card.data.tags and f"# Model Card for run/round_{k}/student\n" in card.text
            assert f"| loop | `Lion, round {k}` |" in card.text and "with `SFTTrainer`" in card.text
            assert f"| teacher | `{toy.teacher().name}` |" in card.text and "None" not in card.text
        assert result.report["rounds"][1]["heldout"]["counts"]["scored"] == 2
        assert sum(row["calls"] for row in result.report["ledger"] if row["role"] == "student") == 7 + 2 * 2

    def test_rounds_from_the_base(self, in_process, loop, base, tmp_path):
        report = loop(init_from="base", fields=FIELDS | {"logging_steps": 2}).run().report
        folder = tmp_path / "run/round_1"
        for row in report["rounds"]:  # the losses are in the report, and the state of the trainer with its student
            state = json.loads((tmp_path / f"run/round_{row['round']}/student/trainer_state.json").read_text())
            assert row["loss"] == [[line["step"], line["loss"]] for line in state["log_history"] if "loss" in line]
            assert [step for step, _ in row["loss"]] == [2, 4, 6] and state["global_step"] == 6
        assert len((folder / "answers.jsonl").read_text().splitlines()) == 7 + 3
        assert same(folder / "student", trained(base, folder / "answers.jsonl", tmp_path))

    def test_same_seed_same_bytes(self, in_process, loop, tmp_path):
        for name in ("a", "b"):
            loop(name).run()
        for name in ("round_0/student/model.safetensors", "round_1/student/model.safetensors", "round_1/scores.jsonl"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        manifests = [json.loads((tmp_path / name / "round_1/manifest.json").read_text()) for name in "ab"]
        assert manifests[0] == manifests[1]


class TestRehearsal:
    """One step of each training, before anything is asked."""

    def asked(self, loop):
        with loop.folder.open_store() as store:
            return sum(row.calls for row in store.ledger())

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"fields": FIELDS | LORA | {"lora_target_modules": ["nothing"]}}, "nothing"),
            ({"student_max_tokens": 5000}, "9 of 9 prompts leave no room for 5000 new tokens in the context"),
        ],
    )
    def test_what_cannot_work_costs_no_call(self, settings, said, in_process, loop, tmp_path):
        failing = loop(**settings)
        with pytest.raises((ValueError, SystemExit)) as stopped:
            failing.run()
        assert said in str(stopped.value.__cause__ or stopped.value)
        assert self.asked(failing) == 0 and not (tmp_path / "run/rehearsal.json").exists()

    def test_a_tokenizer_without_a_template(self, in_process, loop, base):
        (Path(base) / "chat_template.jinja").unlink()
        with pytest.raises(ValueError, match="chat_template"):  # known before the rehearsal, from the tokenizer alone
            loop()

    def test_waits_for_one_that_outlived_its_loop(self, in_process, loop, tmp_path, caplog):
        """Its files go when it has ended, not beneath it."""
        rehearsing = loop(rounds=0)
        (tmp_path / "run/rehearsal_sft").mkdir()
        hold = (
            "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); "
        )
        hold += "time.sleep(1); open(sys.argv[2], 'w')"
        paths = [str(tmp_path / "run" / name) for name in ("rehearsal_sft.lock", "rehearsal_sft/late")]
        with subprocess.Popen([sys.executable, "-c", hold, *paths], stdout=subprocess.PIPE) as orphan:
            orphan.stdout.readline()
            rehearsing.run()
        assert orphan.returncode == 0 and "Waiting for a training of a killed run" in caplog.text
        assert not list((tmp_path / "run").glob("rehearsal_*")) and (tmp_path / "run/rehearsal.json").exists()

    def test_is_done_once_for_the_same_settings(self, in_process, loop, base, tmp_path, caplog):
        caplog.set_level("INFO")
        for settings, times in (({"max_calls": 2}, 1), ({"max_calls": 4}, 1), ({"student_max_tokens": 5}, 2)):
            with pytest.raises(BudgetReached) if "max_calls" in settings else nullcontext():
                loop(rounds=0, **settings).run()
            assert caplog.text.count("Rehearsal: one step") == times
        assert not list((tmp_path / "run").glob("rehearsal_*"))
        rows = tmp_path / "run/round_0/answers.jsonl"
        assert len(list(read_rows(rows))) == 7 and same(
            tmp_path / "run/round_0/student", trained(base, rows, tmp_path)
        )


class TestAdapters:
    @property
    def lora(self):
        targets = LORA["lora_target_modules"]
        return LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=targets, task_type="CAUSAL_LM")

    def logits(self, model, tokenizer):
        ids = torch.tensor([tokenizer("<|user|>family0 word1<|endoftext|><|assistant|>right")["input_ids"]])
        with torch.no_grad():
            return model.eval()(ids).logits

    def test_merged_in_each_round(self, in_process, loop, base, tokenizer, tmp_path):
        """T8: the student on disk is a full model, and says what the trained one said."""
        report = loop(fields=FIELDS | LORA | {"logging_steps": 3}).run().report
        assert [[step for step, _ in row["loss"]] for row in report["rounds"]] == [[3, 6], [3, 6]]
        begin = base
        for k in (0, 1):
            folder = tmp_path / f"run/round_{k}"
            model = trained(begin, folder / "answers.jsonl", tmp_path, peft_config=self.lora)
            assert isinstance(model, PeftModel) and not (folder / "student/adapter_config.json").exists()
            start, student = (AutoModelForCausalLM.from_pretrained(f) for f in (begin, folder / "student"))
            found = self.logits(student, tokenizer)
            assert torch.allclose(found, self.logits(model, tokenizer), atol=1e-4)
            assert not torch.allclose(found, self.logits(start, tokenizer), atol=1e-2)
            begin = str(folder / "student")
            assert {"trl", "sft", "lion"} <= set(ModelCard.load(folder / "student/README.md").data.tags)

    def test_one_adapter_through_all_rounds(self, in_process, loop, base, tokenizer, tmp_path):
        """T8: the student on disk is that adapter on the same base."""
        loop(fields=FIELDS | LORA, adapter_rounds="continue").run()
        begin = None
        for k in (0, 1):
            folder = tmp_path / f"run/round_{k}"
            if begin is None:
                model = trained(base, folder / "answers.jsonl", tmp_path, peft_config=self.lora)
            else:
                start = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), begin, is_trainable=True)
                model = trained(start, folder / "answers.jsonl", tmp_path, processing_class=tokenizer)
            settings = json.loads((folder / "student/adapter_config.json").read_text())
            assert settings["base_model_name_or_path"] == base and not (folder / "student/model.safetensors").exists()
            found = self.logits(AutoPeftModelForCausalLM.from_pretrained(folder / "student"), tokenizer)
            assert torch.allclose(found, self.logits(model, tokenizer), atol=1e-4)
            begin = folder / "student"

    def test_4_bit(self, in_process, loop, base, tokenizer, tmp_path):
        """T7: QLoRA on the CPU; the student is the adapter in the unquantized base, and may answer in 4 bit."""
        fields = FIELDS | LORA | {"load_in_4bit": True, "use_bnb_nested_quant": True}
        result = loop(fields=fields, student_load_in_4bit=True).run()
        assert result.status == "finished"
        rows = [tmp_path / f"run/round_{k}/answers.jsonl" for k in (0, 1)]
        assert nll(tmp_path / "run/round_0/student", rows[0], tokenizer) < nll(base, rows[0], tokenizer) - 0.1
        state = weights(tmp_path / "run/round_1/student")
        assert {value.dtype for value in state.values()} == {torch.float32}
        changed = {name for name, value in weights(base).items() if not torch.equal(value, state[name])}
        parts = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
        assert changed == {f"model.layers.{i}.{part}.weight" for i in (0, 1) for part in parts}


class TestTraining:
    @pytest.fixture
    def commands(self, monkeypatch, tmp_path):
        """What is started: a script in place of Python writes it down, and puts what is in `made` into its place."""
        script, found = tmp_path / "python", tmp_path / "commands"
        script.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {found}\ncp -r {tmp_path}/made/. {tmp_path}/training/run\n"
        )
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        for name in ("training", "made"):
            (tmp_path / name).mkdir()
        (tmp_path / "rows.jsonl").touch()
        return lambda: found.read_text().splitlines()

    def test_how_it_is_launched(self, commands, tmp_path):
        training = Training(
            {"learning_rate": 1e-4},
            accelerate_config="ddp",
            launch={"num_processes": 2, "quiet": True, "debug": False, "main_process_port": 29501},
        )
        training("base", tmp_path / "rows.jsonl", tmp_path / "training/student")
        config = tmp_path / "training/sft.yaml"
        launch = ["trl_distill.launcher", "--quiet", "--config_file", accelerate_config_path("ddp")]
        launch += [
            "--num_processes",
            "2",
            "--quiet",
            "--main_process_port",
            "29501",
            "--module",
            "trl_distill.sft",
            "--config",
            str(config),
        ]
        assert commands() == ["-m", *launch]
        assert yaml.safe_load(config.read_text()) == {
            "model_name_or_path": "base",
            "dataset_name": str(tmp_path / "rows.jsonl"),
            "output_dir": str(tmp_path / "training/run"),
            "learning_rate": 1e-4,
        }
        assert (tmp_path / "training/student").is_dir()

    @pytest.mark.parametrize(("dtype", "merged"), [(None, "float32"), ("auto", "bfloat16"), ("float16", "float16")])
    def test_an_adapter_is_merged_in_the_dtype_of_its_training(
        self, dtype, merged, commands, base, tokenizer, tmp_path
    ):
        model = AutoModelForCausalLM.from_pretrained(base)
        PeftModel(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "made")
        tokenizer.save_pretrained(tmp_path / "made")
        fields = {} if dtype is None else {"dtype": dtype}
        Training(fields)("base", tmp_path / "rows.jsonl", tmp_path / "training/student")
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "training/student", dtype="auto")
        assert {value.dtype for value in found.state_dict().values()} == {getattr(torch, merged)}

    def test_half_a_checkpoint_is_not_gone_on_from(self, commands, tmp_path, caplog):
        begun = {"fields": {}, "model": "base", "rows": hashlib.sha256(b"").hexdigest()}
        (tmp_path / "training/begun.json").write_text(json.dumps(begun))
        for number, parts in ((2, ["trainer_state.json", "model.safetensors"]), (4, ["model.safetensors"])):
            (tmp_path / f"training/run/checkpoint-{number}").mkdir(parents=True)
            for part in parts:
                content = b"{}" if part.endswith("json") else save({"weight": torch.ones(3)})
                (tmp_path / f"training/run/checkpoint-{number}" / part).write_bytes(content)
        Training({})("base", tmp_path / "rows.jsonl", tmp_path / "training/student")
        assert yaml.safe_load((tmp_path / "training/sft.yaml").read_text())["resume_from_checkpoint"] == "latest"
        assert [path.name for path in tmp_path.rglob("checkpoint-*")] == ["checkpoint-2"]
        assert "checkpoint-4 is removed: trainer_state.json is missing" in caplog.text
        assert list((tmp_path / "training/student").iterdir()) == []

    @pytest.mark.parametrize(
        ("fields", "model", "rows", "goes_on"),
        [
            ({"learning_rate": 0.1, "per_device_train_batch_size": 2, "report_to": "none"}, "base", "", True),
            ({"learning_rate": 0.2, "per_device_train_batch_size": 8}, "base", "", False),
            ({"learning_rate": 0.1, "per_device_train_batch_size": 8}, "other", "", False),
            ({"learning_rate": 0.1, "per_device_train_batch_size": 8}, "base", "{}", False),
        ],
    )
    def test_only_what_learns_the_same_is_gone_on_with(self, fields, model, rows, goes_on, commands, tmp_path, caplog):
        """A smaller batch after the memory was full goes on; another learning rate, start or rows begin anew."""
        begun = {"fields": {"learning_rate": 0.1}, "model": "base", "rows": hashlib.sha256(b"").hexdigest()}
        (tmp_path / "training/begun.json").write_text(json.dumps(begun))
        (tmp_path / "training/run/checkpoint-2").mkdir(parents=True)
        (tmp_path / "training/run/checkpoint-2/trainer_state.json").write_text("{}")
        (tmp_path / "training/run/checkpoint-2/model.safetensors").write_bytes(save({"weight": torch.ones(3)}))
        (tmp_path / "rows.jsonl").write_text(rows)
        Training(fields)(model, tmp_path / "rows.jsonl", tmp_path / "training/student")
        written = yaml.safe_load((tmp_path / "training/sft.yaml").read_text())
        assert ("resume_from_checkpoint" in written) == goes_on == bool(list(tmp_path.rglob("checkpoint-*")))
        assert ("begins anew" in caplog.text) != goes_on

    def test_a_training_that_fails(self, monkeypatch, tmp_path):
        (tmp_path / "training").mkdir()
        (tmp_path / "rows.jsonl").touch()
        monkeypatch.setattr(sys, "executable", shutil.which("false"))
        message = r"`trl-distill sft --config .*sft.yaml`, stopped with exit code 1"
        with pytest.raises(ChildProcessError, match=message):
            Training({})("base", tmp_path / "rows.jsonl", tmp_path / "training/student")
        assert not (tmp_path / "training/student").exists()


@pytest.mark.slow
class TestFinish:
    @pytest.mark.parametrize("moved", [[2], [2, 4]])
    def test_after_a_run_that_was_killed_while_it_moved_checkpoints(self, moved, tmp_path):
        for number in (2, 4):
            for folder in ("run", *([""] if number in moved else [])):
                (tmp_path / folder / f"checkpoint-{number}").mkdir(parents=True)
                (tmp_path / folder / f"checkpoint-{number}/trainer_state.json").write_text("{}")
        Training({})._finish(tmp_path / "run", tmp_path / "student")
        assert (tmp_path / "student").is_dir() and not list(tmp_path.glob("*/checkpoint-*"))


class TestKilledTraining:
    """`kill -9` of the loop while it trains. Its training outlives it, and the next run must not disturb it."""

    script = (
        "import sys; from pathlib import Path; import yaml; from trl_distill.lion import Training\n"
        "fields, model, rows, output = sys.argv[1:]\n"
        "Training(yaml.safe_load(fields))(model, Path(rows), Path(output))"
    )

    def start(self, fields, base, rows, output):
        command = [sys.executable, "-c", self.script, yaml.safe_dump(fields), base, str(rows), str(output)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)

    @pytest.mark.parametrize("all_processes", [pytest.param(False, marks=pytest.mark.slow), True])
    def test_goes_on_and_gives_the_same(self, all_processes, base, tmp_path):
        rows = tmp_path / "rows.jsonl"
        pool = [Instruction(toy.task(0, i)) for i in range(6)]
        answers, _ = training_rows(pool, [Completion(f"right {item.text}") for item in pool])
        write_rows(rows, answers)
        fields = FIELDS | {"max_steps": 80, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
        output = tmp_path / "training/student"
        output.parent.mkdir()
        process = self.start(fields, base, rows, output)
        while process.poll() is None and not list(output.parent.glob("run/checkpoint-*/trainer_state.json")):
            time.sleep(0.005)
        assert process.poll() is None, process.stderr.read()
        if all_processes:
            os.killpg(process.pid, 9)
        process.kill()
        process.wait()
        again = self.start(fields, base, rows, output)
        _, said = again.communicate()
        assert again.returncode == 0, said
        assert ("Waiting for a training" in said) == (not all_processes)
        assert "resume_from_checkpoint" in (output.parent / "sft.yaml").read_text()
        assert same(output, trained(base, rows, tmp_path, fields | {"save_strategy": "no"}))

    def test_other_settings_wait_for_the_training_that_is_alive_and_begin_anew(self, base, tmp_path):
        rows = tmp_path / "rows.jsonl"
        pool = [Instruction(toy.task(0, i)) for i in range(6)]
        write_rows(rows, training_rows(pool, [Completion(f"right {item.text}") for item in pool])[0])
        fields = FIELDS | {"max_steps": 80, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
        output = tmp_path / "training/student"
        output.parent.mkdir()
        process = self.start(fields, base, rows, output)
        while process.poll() is None and not list(output.parent.glob("run/checkpoint-*/trainer_state.json")):
            time.sleep(0.005)
        assert process.poll() is None, process.stderr.read()
        process.kill()
        process.wait()
        changed = FIELDS | {"learning_rate": 5e-3, "max_steps": 3}
        again = self.start(changed, base, rows, output)
        _, said = again.communicate()
        assert again.returncode == 0, said
        [pid] = re.findall(r"Waiting for a training of a killed run .* `kill (\d+)` ends it", said)
        assert int(pid) != process.pid and "was begun with other settings or rows, and begins anew" in said
        assert same(output, trained(base, rows, tmp_path, changed))

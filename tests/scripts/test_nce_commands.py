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

"""From labelled rows to one stock LoRA, through a real NAT folder and the three commands of NCE; and `sample`."""

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.commands import CPU, error_of, read_rows, write_rows
from trl_distill import (
    NCEConfig,
    NCETrainer,
    NegativeAssistedConfig,
    NegativeAssistedTrainer,
    calibration_weights,
    cli,
    load_nat,
)
from trl_distill.chat import LocalChatModel, Sampling, draw_samples, read_samples
from trl_distill.evaluation.answers import extract_answer
from trl_distill.rationales.augment import preference_pairs, question_rows, select_samples
from trl_distill.scripts import augment, calibrate, dpo, evaluate, nce, sample


TARGETS = ["q_proj", "v_proj"]
TRAINED = {}  # the NAT in memory, by its folder
CPU = CPU | dict(disable_tqdm=True, gradient_checkpointing=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("nce")


@pytest.fixture
def nat_folder(folder, tiny_model, tokenizer):
    """`base/`, a NAT that was trained on it in `nat/`, made once, and four questions."""
    if not (folder / "nat").exists():
        tiny_model(vocab_size=264).save_pretrained(folder / "base")  # the saved tokenizer gets one more special token
        tokenizer.save_pretrained(folder / "base")
        rows = [
            {"prompt": f"{i} + {i}?\n", "completion": f"It is {2 * i + i % 2}.", "label": i % 2 == 0} for i in range(8)
        ]
        trainer = NegativeAssistedTrainer(
            str(folder / "base"),
            args=NegativeAssistedConfig(
                str(folder / "nat"), max_steps=4, learning_rate=0.1, integration_width=4, **CPU
            ),
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM"),
        )
        trainer.train()
        trainer.save_model()
        write_rows(folder / "questions.jsonl", [{"prompt": f"{i} + {i}?", "answer": str(2 * i)} for i in range(4)])
        TRAINED[folder] = trainer.model.eval()
    return folder


@pytest.fixture
def right_rows(tmp_path):
    rows = [{"prompt": f"{i} + {i}?\n", "completion": f"It is {2 * i}.", "label": True} for i in range(10)]
    write_rows(tmp_path / "right.jsonl", rows)
    return Dataset.from_list(rows)


@pytest.fixture
def write_config(nat_folder, tmp_path):
    def write(**changes):
        values = dict(
            model_name_or_path=str(nat_folder / "base"), nat_path=str(nat_folder / "nat"),
            dataset_name=str(tmp_path / "weighted.jsonl"), use_peft=True, lora_r=4, lora_target_modules=TARGETS,
            output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2, per_device_eval_batch_size=4,
            learning_rate=0.1, logging_steps=1, **CPU,
        )  # fmt: skip
        path, values = tmp_path / "config.yaml", values | changes
        path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
        return str(path)

    return write


def load(nat_folder):
    return load_nat(AutoModelForCausalLM.from_pretrained(nat_folder / "base"), str(nat_folder / "nat"))


class TestWithARealNAT:
    def test_teacher_is_nat_with_its_gate_and_the_student_a_stock_lora(self, nat_folder, right_rows, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(nat_folder / "base")
        args = NCEConfig(str(tmp_path / "out"), max_steps=2, learning_rate=0.1, **CPU)
        model = load(nat_folder)
        weighed = calibration_weights(model, right_rows, tokenizer, args)
        assert len(set(weighed["weight"])) == 10 and all(0 < weight < 1 for weight in weighed["weight"])
        peft_config = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
        trainer = NCETrainer(model, args=args, train_dataset=weighed, peft_config=peft_config)
        frozen = {n: p.clone() for n, p in model.named_parameters() if ".default." not in n}

        rows = trainer.train_dataset.select_columns(["input_ids", "labels", "weight"])
        inputs = trainer.data_collator([rows[i] for i in range(3)])
        trainer.model.train()
        batch = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            hidden = load(nat_folder).base_model.model.model(**batch).last_hidden_state
        assert torch.equal(trainer._teacher_states(inputs), hidden[:, :-1][inputs["labels"][:, 1:] != -100])

        trainer.train()
        trainer.save_model()
        parameters = dict(model.named_parameters())
        assert any("lora_nat_q" in name for name in frozen)
        assert all(torch.equal(parameters[n], p) and parameters[n].grad is None for n, p in frozen.items())
        assert sorted(path.parent.name for path in tmp_path.rglob("adapter_config.json")) == ["out"]
        base = AutoModelForCausalLM.from_pretrained(nat_folder / "base")
        student = PeftModel.from_pretrained(base, tmp_path / "out")
        with torch.no_grad():
            logits = student(**batch).logits
            assert torch.equal(logits, model.eval()(**batch).logits)
            torch.testing.assert_close(student.merge_and_unload()(**batch).logits, logits, rtol=1e-4, atol=1e-4)


class TestAugment:
    def test_questions_of_labelled_rows(self):
        chat = [{"role": "user", "content": "2?"}]
        rows = [
            {"prompt": "1?", "completion": "It is 7.", "label": False},
            {"prompt": "1?", "completion": "It is 1.", "label": True},
            {"prompt": "1?", "completion": "So: 1", "label": True},
            {"prompt": chat, "completion": [{"role": "assistant", "content": "9"}], "label": False, "answer": "2"},
            {"prompt": "3?", "completion": "It is 7.", "label": False},
        ]
        questions, right, unanswered = question_rows(rows)
        assert questions == [{"prompt": "1?", "answer": "1"}, {"prompt": chat, "answer": "2"}]
        assert [row["completion"] for row in right] == ["It is 1.", "So: 1"] and unanswered == 1
        assert all(row["label"] is True and row["source"] == "teacher" for row in right)
        assert [row["source"] for row in question_rows([rows[1] | {"source": "student"}])[1]] == ["student"]
        with pytest.raises(ValueError, match="Row 0 is no labelled answer"):
            question_rows([{"prompt": "1?", "completion": "1", "label": 1}])

    def test_what_is_right_and_new_is_kept(self):
        chat = [{"role": "user", "content": "2?"}]
        right = [{"prompt": "1?", "completion": "The answer is 1."}]
        others = ["no", "It is 1.", "The answer is 1"]
        samples = [
            {
                "prompt": "1?",
                "answer": "1",
                "completions": [" The answer is 1.", *["So the answer is 1."] * 2, "The answer is 2.", *others],
                "truncated": [False] * 6 + [True],
            },
            {"prompt": chat, "answer": "2", "completions": ["The answer is 2."], "truncated": [False]},
        ]
        kept, wrong, counts = select_samples(samples, right, source="nat")
        answer = [{"role": "assistant", "content": "The answer is 2."}]
        assert kept == [
            {"prompt": "1?", "completion": "So the answer is 1.", "label": True, "source": "nat"},
            {"prompt": chat, "completion": answer, "label": True, "source": "nat"},
        ]
        assert wrong == [{"prompt": "1?", "completion": "The answer is 2.", "label": False, "source": "nat"}]
        assert counts == dict(sampled=8, kept=2, duplicates=2, wrong=1, no_answer=2, truncated=1, not_compared=0)
        _, _, counts = select_samples(samples, right, rule="last_number")
        assert counts["kept"] == 3 and counts["no_answer"] == 1  # "It is 1." has an answer then

    def test_wrong_samples_stand_beside_right_ones(self):
        chat, kwargs = [{"role": "user", "content": "2?"}], {"enable_thinking": False}
        texts = [
            "The answer is 8.",
            "The answer is 9.",
            "The answer is 8. ",
            f"The answer is {'6' * 5000}.",
            "Perhaps 7.",
        ]
        samples = [
            {"prompt": "1?", "answer": "1", "completions": [*texts, "Answer: 7"], "truncated": [False] * 5 + [True]},
            {"prompt": chat, "answer": "2", "completions": ["Answer: 2", "Answer: 3"], "truncated": [False] * 2}
            | {"chat_template_kwargs": kwargs},
            {"prompt": "3?", "answer": "3", "completions": ["Answer: 4"], "truncated": [False]},  # no right one
        ]
        right = [{"prompt": "1?", "completion": text} for text in ("The answer is 1.", "One: 1")]
        kept, wrong, counts = select_samples(samples, right)
        assert counts["wrong"] == 5 and counts["not_compared"] == 1
        assert preference_pairs(right + kept, wrong) == [
            {"prompt": "1?", "chosen": "The answer is 1.", "rejected": "The answer is 8."},
            {"prompt": "1?", "chosen": "One: 1", "rejected": "The answer is 9."},
            {
                "prompt": chat,
                "chosen": [{"role": "assistant", "content": "Answer: 2"}],
                "rejected": [{"role": "assistant", "content": "Answer: 3"}],
                "chat_template_kwargs": kwargs,
            },
        ]

    @pytest.mark.parametrize("source", ["nat", "student"])
    def test_command(self, source, nat_folder, tmp_path, capsys):
        """The right answers are what NAT says, so that some samples are right. Any folder may be the student."""
        model, tokenizer = load(nat_folder), AutoTokenizer.from_pretrained(nat_folder / "base")
        prompts = [{"prompt": f"{i} + {i}?\n"} for i in range(2)]
        local = LocalChatModel("nat", batch_size=32, load=lambda: (model, tokenizer))
        drawn = draw_samples(local, prompts, 16, Sampling(max_tokens=100, seed=3, logprobs=True))
        pairs = [zip(of_one.completions, of_one.truncated, strict=True) for of_one in drawn]
        whole = [[text for text, is_cut in of_one if not is_cut] for of_one in pairs]  # samples that ended count only
        answers = [next(filter(None, map(extract_answer, texts)), "no number") for texts in whole]
        assert sum(answer != "no number" for answer in answers) >= 1
        rows = [
            {**prompt, "completion": "I do not know: 5", "label": False, "answer": answer}
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        rows.append({"prompt": prompts[0]["prompt"], "completion": "By hand.", "label": True, "answer": answers[0]})
        write_rows(tmp_path / "labelled.jsonl", rows)
        output = tmp_path / "augmented.jsonl"
        of_nat = ["--model_name_or_path", nat_folder / "base", "--nat_path", nat_folder / "nat"]
        arguments = [
            *(of_nat if source == "nat" else ["--model_name_or_path", nat_folder / "nat"]), "--device", "cpu",
            "--dataset_name", tmp_path / "labelled.jsonl", "--output_file", output, "--num_samples", 16,
            "--max_new_tokens", 100, "--batch_size", 32, "--rule", "last_number", "--pairs_file",
            tmp_path / "pairs.jsonl", "--seed", 3,
        ]  # fmt: skip
        assert cli.main(["augment", *map(str, arguments)]) == 0
        report = capsys.readouterr().out
        written = read_rows(output)
        assert written[0] == {"prompt": "0 + 0?\n", "completion": "By hand.", "label": True, "source": "teacher"}
        assert len(written) > 1 and f"{len(written)} rows, 1 of them there already" in report
        for row in written[1:]:
            i = int(row["prompt"][0])
            assert row["source"] == source and row["completion"] in whole[i]
            assert extract_answer(row["completion"]) == answers[i]
        pairs = read_rows(tmp_path / "pairs.jsonl")
        assert len(pairs) > 1 and f"{len(pairs)} pairs of a right and a wrong answer" in report
        for pair in pairs:
            i = int(pair["prompt"][0])
            assert pair["chosen"] in [row["completion"] for row in written if row["prompt"] == pair["prompt"]]
            assert pair["rejected"] in whole[i] and extract_answer(pair["rejected"]) != answers[i]
        dpo.run([
            "--model_name_or_path", str(nat_folder / "base"), "--dataset_name", str(tmp_path / "pairs.jsonl"),
            "--output_dir", str(tmp_path / "dpo"), "--max_steps", "1", "--per_device_train_batch_size", "2",
            "--use_cpu", "--bf16", "false", "--report_to", "none", "--save_strategy", "no",
        ])  # fmt: skip
        assert (tmp_path / "dpo" / "model.safetensors").is_file()
        before = output.read_bytes()
        augment.run(list(map(str, arguments)))  # reads the samples again and draws none
        assert output.read_bytes() == before
        message = error_of(capsys, augment.run, *arguments[:-2], "--seed", 4)
        assert "samples.jsonl exists and holds something else than these samples" in message

    def test_bad_input(self, nat_folder, tmp_path, capsys):
        rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "1?", "completion": "2", "label": False}])
        common = [
            "--model_name_or_path",
            nat_folder / "base",
            "--nat_path",
            nat_folder / "nat",
            "--dataset_name",
            rows,
        ]
        for file, message in (("out.jsonl", "says what the right answer is"), ("rows.jsonl/out.jsonl", "File exists")):
            assert message in error_of(capsys, augment.run, *common, "--output_file", tmp_path / file)
        rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "1?", "completion": "Answer: 2", "label": True}])
        server = ["--base_url", "http://127.0.0.1:9", "--output_file", tmp_path / "server.jsonl"]
        assert "leave out --base_url" in error_of(capsys, augment.run, *common, *server)


class TestCalibrateAndTrain:
    def test_commands(self, nat_folder, right_rows, write_config, tmp_path, capsys):
        config, output = write_config(), tmp_path / "weighted.jsonl"
        arguments = ["--config", config, "--dataset_name", str(tmp_path / "right.jsonl"), "--output_file", str(output)]
        calibrate.run(arguments)
        assert f"10 of 10 rows weighed: {output}.\nbeta: mean 0." in capsys.readouterr().out
        assert not output.with_name("weighted.jsonl.part").exists()
        args = NCEConfig(str(tmp_path), per_device_eval_batch_size=4, **CPU)
        tokenizer = AutoTokenizer.from_pretrained(nat_folder / "base")
        expected = calibration_weights(load(nat_folder), right_rows, tokenizer, args)
        written = Dataset.from_json(str(output))
        assert written["weight"][:] == pytest.approx(expected["weight"][:], rel=1e-9)
        assert written["weight_hash"][:] == expected["weight_hash"][:]
        assert "weighted.jsonl exists. Remove it" in error_of(capsys, calibrate.run, *arguments)

        nce.run(["--config", config])
        folder = tmp_path / "out"
        assert (folder / "adapter_model.safetensors").is_file() and not (folder / "nat").exists()
        student = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(nat_folder / "base"), folder)
        assert any(parameter.any() for name, parameter in student.named_parameters() if "lora_B" in name)

        # The other ways to train: without a teacher, and all weights beside a teacher on a base of its own
        nce.run(["--config", config, "--objective", "weighted_ce", "--output_dir", str(tmp_path / "light")])
        assert (tmp_path / "light" / "adapter_model.safetensors").is_file()
        no_lora = dict(use_peft=None, lora_r=None, lora_target_modules=None)
        full = write_config(**no_lora, teacher_model_name_or_path=str(nat_folder / "base"))
        nce.run(["--config", full, "--output_dir", str(tmp_path / "full")])
        assert (tmp_path / "full" / "model.safetensors").is_file()

    def test_bad_input(self, right_rows, write_config, tmp_path, capsys):
        rows = ["--dataset_name", tmp_path / "right.jsonl"]
        config = ["--config", write_config()]
        assert "train dataset has no column `weight`" in error_of(capsys, nce.run, *config, *rows)
        assert "no output: set `output_file`" in error_of(capsys, calibrate.run, *config, *rows)
        config = ["--config", write_config(nat_path=None)]
        assert "no NAT model: set `nat_path`" in error_of(capsys, nce.run, *config, *rows)
        config = ["--config", write_config(use_peft=None, lora_r=None, lora_target_modules=None)]
        assert "set `use_peft: true`" in error_of(capsys, nce.run, *config, *rows)
        config = ["--config", write_config(kd_temprature=2)]
        assert "Did you mean kd_temperature?" in error_of(capsys, nce.run, *config, *rows)


def sample_arguments(folder, model, **fields):
    fields = {"dataset_name": folder / "questions.jsonl", "max_new_tokens": 6, "device": "cpu", **fields}
    return [f"--model_name_or_path={folder / model}", *(f"--{name}={value}" for name, value in fields.items())]


class TestSample:
    def test_samples_a_model(self, nat_folder, tmp_path, capsys):
        output = tmp_path / "samples.jsonl"
        argv = sample_arguments(nat_folder, "base", num_samples=3, output_file=output)
        sample.run(argv)
        rows = read_samples(output)
        assert [row["answer"] for row in rows] == ["0", "2", "4", "6"]
        assert all(len(row["completions"]) == len(row["mean_logps"]) == len(row["truncated"]) == 3 for row in rows)
        cut_off = sum(sum(row["truncated"]) for row in rows)
        assert f"12 samples of 4 prompts, {cut_off} of them cut off." in " ".join(capsys.readouterr().out.split())
        before = output.stat().st_mtime_ns
        sample.run(argv)  # complete: nothing is drawn again
        assert output.stat().st_mtime_ns == before

    def test_a_nat_folder_is_a_model_with_its_gates(self, nat_folder, tokenizer, tmp_path):
        greedily = dict(num_samples=1, temperature=0)
        sample.run(sample_arguments(nat_folder, "nat", output_file=tmp_path / "samples.jsonl", **greedily))
        found = [row["completions"][0] for row in read_samples(tmp_path / "samples.jsonl")]

        def greedy(model, i):
            ids = torch.tensor([tokenizer(f"{i} + {i}?")["input_ids"]])
            settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.pad_token_id)
            output = model.generate(input_ids=ids, **settings)
            return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)

        assert found == [greedy(TRAINED[nat_folder], i) for i in range(4)]
        base = AutoModelForCausalLM.from_pretrained(nat_folder / "base")
        plain = PeftModel.from_pretrained(base, str(nat_folder / "nat" / "nat"))
        assert found != [greedy(plain, i) for i in range(4)]  # the positive LoRA without its gates

        completions = tmp_path / "completions.jsonl"
        argv = ["--seeds=0", "--temperature=0", "--no_exposure_bias", f"--completions_file={completions}"]
        evaluate.run(sample_arguments(nat_folder, "nat") + argv)
        assert [row["completion"] for row in read_rows(completions)] == found

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"output_file": "samples.jsonl", "dataset_name": "none.jsonl"}, "No such file: none.jsonl"),
            ({"output_file": "samples.jsonl", "num_samples": 0}, "`num_samples` must be 1 or more, got 0"),
        ],
    )
    def test_bad_input(self, nat_folder, tmp_path, monkeypatch, capsys, fields, message):
        monkeypatch.chdir(tmp_path)
        assert message in error_of(capsys, sample.run, *sample_arguments(nat_folder, "base", **fields))

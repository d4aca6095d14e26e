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

"""Wiring of the training steps: what is loaded is what was trained, resumed runs, losses, and the chat template."""

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

from tests.commands import error_of, stops, write_rows
from trl_distill.models import keep_4bit_trainable
from trl_distill.scripts import dpo, merge, sft
from trl_distill.scripts.arguments import parse_strictly
from trl_distill.training import resolve, train_and_save


IDS = torch.arange(3, 83).view(2, 40)
LN_2 = 0.6931471805599453
LORA = ["--use_peft", "--lora_r", "8", "--lora_target_modules", "q_proj", "v_proj", "up_proj"]
SIDES = ("chosen", "rejected")
IN_4BIT = ["--load_in_4bit", "--use_bnb_nested_quant", "--dtype", "bfloat16"]


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits.float()


@pytest.fixture
def arguments(pairs, tmp_path):
    """Flags of a DPO run on the CPU."""
    pairs.to_json(tmp_path / "pairs.jsonl")

    def build(model, output="out", *more):
        flags = {
            "model_name_or_path": model,
            "dataset_name": tmp_path / "pairs.jsonl",
            "output_dir": tmp_path / output,
            "bf16": False,
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
            "logging_steps": 1,
            "report_to": "none",
            "save_steps": 100,
        }
        return [f"--{name}={value}" for name, value in flags.items()] + ["--use_cpu", "--disable_tqdm=true", *more]

    return build


@pytest.fixture
def dialogues(pairs):
    """The preferred answers, as rows of supervised training."""
    return [{"messages": row["prompt"] + row["chosen"]} for row in pairs]


def assert_reloads(trainer, found):
    """What is loaded says what was trained."""
    torch.testing.assert_close(logits(found), logits(trainer.model), atol=1e-4, rtol=0)


def train(script, argv):
    """What `script.run(argv)` does, but the trainer is handed back."""
    args = parse_strictly(script.make_parser(), argv)
    resolve(args[0], args[1], args[3])
    trainer = script.build_trainer(*args)
    train_and_save(trainer, args[1].resume_from_checkpoint, None)
    return trainer


def losses(trainer):
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


class TestReload:
    """A2: what is loaded from the output folder, by the base that it records, is what was trained."""

    @pytest.fixture
    def merged(self, save_model, save_adapter, tmp_path):
        merge.run([save_adapter(save_model()), "--output", str(tmp_path / "merged"), "--dtype", "float32"])
        return str(tmp_path / "merged")

    def test_merged(self, merged, arguments, tmp_path):
        trainer = train(dpo, arguments(merged, "out", *LORA))
        assert losses(trainer)[1] == pytest.approx(LN_2, abs=1e-6)
        found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
        assert_reloads(trainer, found)
        start = logits(AutoModelForCausalLM.from_pretrained(merged))
        assert (logits(found) - start).abs().max() > 0.01

    def test_full(self, merged, arguments, tmp_path):
        trainer = train(dpo, arguments(merged))
        assert losses(trainer)[1] == pytest.approx(LN_2, abs=1e-6)
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert_reloads(trainer, found)

    def test_4bit(self, merged, arguments, tmp_path):
        trainer = train(dpo, arguments(merged, "out", *LORA, *IN_4BIT))
        assert losses(trainer)[1] == pytest.approx(LN_2, abs=1e-6)
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        base = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"]
        found = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization, dtype=torch.bfloat16)
        found = PeftModel.from_pretrained(found, tmp_path / "out", autocast_adapter_dtype=False)
        keep_4bit_trainable(found)  # some CPUs round the weights differently for a model in eval mode
        assert_reloads(trainer, found)

    def test_an_adapter_that_is_trained_on(self, save_model, save_adapter, make_dpo, tmp_path):
        base = save_model()
        adapter = save_adapter(base)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, is_trainable=True)
        trainer = make_dpo(model)
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(LN_2, abs=1e-6)
        trainer.save_model()
        found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
        assert_reloads(trainer, found)

    @pytest.mark.parametrize("quantization", [[], IN_4BIT], ids=["full precision", "4 bit"])
    def test_supervised_training_of_an_adapter_goes_on(
        self, quantization, save_model, save_adapter, arguments, dialogues, tmp_path
    ):
        adapter = save_adapter(save_model())
        write_rows(tmp_path / "pairs.jsonl", dialogues)
        before = load_file(f"{adapter}/adapter_model.safetensors")
        untrained = train(sft, arguments(adapter, "same", *quantization, "--learning_rate=0"))
        for name, weight in load_file(tmp_path / "same" / "adapter_model.safetensors").items():
            torch.testing.assert_close(weight.float(), before[name].float(), atol=1e-2 if quantization else 0, rtol=0)
        trained = train(sft, arguments(adapter, "out", *quantization))
        assert losses(trained)[1] == pytest.approx(losses(untrained)[1], abs=1e-6)
        assert losses(trained)[4] < losses(trained)[1]
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(tmp_path / "model") and config["r"] == 4
        if not quantization:
            found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
            assert_reloads(trained, found)

    def test_a_new_adapter_on_an_adapter_is_refused(self, save_model, save_adapter, arguments, capsys):
        adapter = save_adapter(save_model())
        message = error_of(capsys, sft.run, *arguments(adapter, "out", "--use_peft"))
        assert "Leave `use_peft` out to go on training it" in message

    def test_an_adapter_folder_is_refused(self, save_model, save_adapter, arguments, tmp_path, capsys):
        adapter = save_adapter(save_model())
        shutil.rmtree(tmp_path / "model")  # the error comes before a model is looked for
        assert f"{adapter} is an adapter" in (message := error_of(capsys, dpo.run, *arguments(adapter)))
        assert f"trl-distill merge {adapter} --output DIR" in message

    def test_a_merge_that_was_forgotten(self, arguments, tmp_path, capsys):
        message = error_of(capsys, dpo.run, *arguments(tmp_path / "dsft-merged"))
        assert "`trl-distill merge ADAPTER --output DIR` makes it" in message


class TestLoss:
    def test_separable_pairs(self, make_dpo, save_model, pairs):
        """A3: the answers differ, so they can be told apart; the reward is beta times a log-ratio."""
        model, reference = save_model(), AutoModelForCausalLM.from_pretrained(save_model())
        trainer = make_dpo(model, eval_dataset=pairs, max_steps=20, logging_steps=1, learning_rate=3e-3)
        trainer.train()
        found = losses(trainer)
        assert found[1] == pytest.approx(LN_2, abs=1e-6)
        assert found[20] < 0.5 * LN_2
        last = trainer.evaluate()
        assert last["eval_rewards/accuracies"] == 1
        assert last["eval_rewards/margins"] > 1

        for beta in (0.1, 0.3):
            same = make_dpo(trainer.model, reference, eval_dataset=pairs, beta=beta).evaluate()
            assert same["eval_rewards/margins"] == pytest.approx(last["eval_rewards/margins"] * beta / 0.1, rel=1e-4)

    def test_against_the_definition(self, make_dpo, save_model, pairs, chat_tokenizer):
        """A4: -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)), in fp64, here for beta = 1."""
        policy = AutoModelForCausalLM.from_pretrained(save_model("policy", seed=1))
        reference = AutoModelForCausalLM.from_pretrained(save_model("reference"))
        trainer = make_dpo(policy, reference, eval_dataset=pairs.select(range(3)), beta=1.0)
        found = trainer.evaluate()["eval_loss"]

        expected = []
        for row in pairs.select(range(3)):
            margin = 0.0
            for answers, sign in (("chosen", 1), ("rejected", -1)):
                prompt = f"<s><|user|>\n{row['prompt'][0]['content'].strip()}</s>\n<|assistant|>\n"
                start = len(chat_tokenizer(prompt)["input_ids"])
                ids = chat_tokenizer(f"{prompt}{row[answers][0]['content']}</s>", return_tensors="pt")["input_ids"]
                for model, factor in ((policy, sign), (reference, -sign)):
                    with torch.no_grad():
                        logps = torch.log_softmax(model.double().eval()(ids).logits[0], dim=-1)
                    margin += factor * sum(logps[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1]))
            expected.append(math.log1p(math.exp(-margin)))
        assert found == pytest.approx(sum(expected) / 3, abs=1e-5)
        assert abs(found - LN_2) > 0.05

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_packed_rows_do_not_see_each_other(self, save_model, settings, attention):
        """A5b: the cross-entropy of every token is the same alone and packed."""
        pair = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]
        rows = [[turn | {"content": turn["content"] * n} for turn in pair] for n in range(3, 19, 3)]
        found = {}
        for packing in (False, True):
            model = AutoModelForCausalLM.from_pretrained(save_model(), attn_implementation=attention)
            args = SFTConfig(**settings, packing=packing, packing_strategy="bfd", max_length=200)
            trainer = SFTTrainer(model, args, train_dataset=Dataset.from_dict({"messages": rows}))
            assert (len(trainer.train_dataset) < len(rows)) == packing
            found[packing] = []
            for row in trainer.train_dataset:
                batch = trainer.data_collator([row])
                labels = batch.pop("labels")[0, 1:]
                with torch.no_grad():
                    scores = trainer.model.eval()(**batch).logits[0, :-1]
                nll = torch.nn.functional.cross_entropy(scores, labels, reduction="none", ignore_index=-100)
                found[packing] += nll[labels != -100].tolist()
        assert len(found[True]) == len(found[False])
        assert sorted(found[True]) == pytest.approx(sorted(found[False]), abs=1e-5)


class TestIn4Bit:
    def test_dpo_learns_through_the_command(self, save_model, arguments, tmp_path):
        """A5."""
        dpo.run(arguments(save_model(), "out", *LORA, *IN_4BIT, "--save_steps=4"))
        state = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())
        loss = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
        assert loss[0] == pytest.approx(LN_2, abs=1e-6)
        assert loss[-1] < 0.9 * LN_2
        adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
        assert {weight.dtype for weight in adapter.values()} == {torch.bfloat16}

    @pytest.mark.parametrize("script", [sft, dpo], ids=["sft", "dpo"])
    def test_an_evaluation_changes_nothing(self, script, save_model, arguments, dialogues, tmp_path):
        """On some CPUs bitsandbytes packs the weights in an evaluation, and no gradient flows through them."""
        data = write_rows(tmp_path / "dialogues.jsonl", dialogues) if script is sft else tmp_path / "pairs.jsonl"
        weights = {}
        for name, flags in (("without", []), ("with", ["--eval_strategy=steps", "--eval_steps=1"])):
            flags += ["--test_split_size=0.25", f"--dataset_name={data}"]
            train(script, arguments(save_model(), name, *LORA, *IN_4BIT, "--lora_dropout=0", *flags))
            weights[name] = load_file(tmp_path / name / "adapter_model.safetensors")
        for name, weight in weights["without"].items():
            torch.testing.assert_close(weights["with"][name], weight, atol=0, rtol=0)


class TestResume:
    """A6."""

    @pytest.mark.parametrize("peft", [True, False], ids=["lora", "full"])
    def test_dpo(self, peft, save_model, arguments, tmp_path):
        flags = [*(LORA if peft else []), "--save_steps=2", "--test_split_size=0.25", "--eval_strategy=epoch"]
        model = save_model()
        whole = train(dpo, arguments(model, "whole", *flags))
        shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
        torch.randn(7), torch.manual_seed(99)  # nothing may depend on what ran before
        resumed = train(dpo, arguments(model, "resumed", *flags, "--resume_from_checkpoint=latest"))
        assert losses(resumed) == losses(whole)
        file = "adapter_model.safetensors" if peft else "model.safetensors"
        expected, found = (load_file(tmp_path / name / file) for name in ("whole", "resumed"))
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, atol=0, rtol=0)

    def test_the_test_rows_are_the_same_in_every_process(self, save_model, arguments, pairs):
        """TRL draws them from the global random state, so that processes would train on each other's test rows."""
        seen = []
        for seed in (1, 2):
            np.random.seed(seed)
            argv = arguments(save_model(), "out", "--test_split_size=0.25", "--eval_strategy=epoch")
            args = parse_strictly(dpo.make_parser(), argv)
            resolve(args[0], args[1], args[3])
            seen.append(dpo.build_trainer(*args).eval_dataset["prompt"][:])
        assert seen[0] == seen[1]


class TestData:
    def test_rows_in_the_format_of_h4(self, save_model, arguments, pairs, tmp_path):
        """Whole conversations in `chosen` and `rejected`, and the prompt once more as text."""
        plain = train(dpo, arguments(save_model(), "plain"))
        rows = [
            {
                "prompt": row["prompt"][0]["content"],
                "prompt_id": str(i),
                "chosen": row["prompt"] + row["chosen"],
                "rejected": row["prompt"] + row["rejected"],
                "messages": row["prompt"] + row["chosen"],
                "score_chosen": 8.0,
                "score_rejected": 4.0,
            }
            for i, row in enumerate(pairs)
        ]
        write_rows(tmp_path / "h4.jsonl", rows)
        found = train(dpo, arguments(save_model(), "h4", f"--dataset_name={tmp_path / 'h4.jsonl'}"))
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            assert found.train_dataset[name][:] == plain.train_dataset[name][:]
        assert losses(found) == losses(plain)

        columns = ("prompt", "prompt_id", "messages")
        write_rows(tmp_path / "chat.jsonl", [{name: row[name] for name in columns} for row in rows])
        trainer = train(sft, arguments(save_model(), "sft", f"--dataset_name={tmp_path / 'chat.jsonl'}"))
        lengths = [len(plain.train_dataset["prompt_ids"][i] + plain.train_dataset["chosen_ids"][i]) for i in range(12)]
        assert [len(ids) for ids in trainer.train_dataset["input_ids"][:]] == lengths

    @pytest.mark.parametrize(
        ("script", "text", "said"),
        [
            (
                sft,
                '{"prompt": [], "chosen": [], "rejected": []}',
                "Needed are messages or prompt and completion or text",
            ),
            (dpo, '{"messages": []}', "the data have the columns messages. Needed are chosen and rejected"),
            (dpo, '{"chosen": ', "data.jsonl cannot be read: JSON parse error"),
            (dpo, "", "data.jsonl cannot be read: it holds no rows"),
        ],
    )
    def test_data_of_another_step_and_damaged_data(self, save_model, arguments, tmp_path, capsys, script, text, said):
        (tmp_path / "data.jsonl").write_text(text)
        assert stops(script.run, *arguments(save_model(), "out", f"--dataset_name={tmp_path / 'data.jsonl'}")) == 2
        assert said in capsys.readouterr().err

    def test_answers_that_are_cut_are_counted(self, save_model, arguments, pairs, chat_tokenizer, tmp_path, capsys):
        longer = [{"role": "assistant", "content": "no" + "!" * 60}]
        rows = [*pairs, pairs[0] | {"rejected": longer}, pairs[1] | {"chosen": longer}]
        lengths = [
            max(len(chat_tokenizer.apply_chat_template(row["prompt"] + row[side])["input_ids"]) for side in SIDES)
            for row in rows
        ]
        assert sorted(lengths)[-2] > sorted(lengths)[-3]
        write_rows(tmp_path / "rows.jsonl", rows)
        for max_length, cut in ((max(lengths), 0), (max(lengths) - 1, 1), (sorted(lengths)[-3], 2)):
            flags = [f"--dataset_name={tmp_path / 'rows.jsonl'}", "--max_steps=1", f"--max_length={max_length}"]
            train(dpo, arguments(save_model(), "out", *flags))
            printed = capsys.readouterr().out
            assert ("have an answer that ends beyond" in printed) == (cut > 0)
            assert cut == 0 or f"{cut} of 14 rows of train_dataset have an answer" in printed

    def test_prompts_that_are_too_long_are_counted(self, save_model, arguments, pairs, tmp_path, capsys):
        rows = [*pairs, pairs[0] | {"prompt": [{"role": "user", "content": "long " * 30}]}]
        write_rows(tmp_path / "long.jsonl", rows)
        flags = [f"--dataset_name={tmp_path / 'long.jsonl'}", "--max_steps=1"]
        trainer = train(dpo, arguments(save_model(), "out", *flags, "--max_length=100"))
        assert len(trainer.train_dataset) == 12
        assert "1 of 13 rows of train_dataset have a prompt of 100 tokens or more" in capsys.readouterr().out
        assert stops(dpo.run, *arguments(save_model(), "out", *flags, "--max_length=20")) == 2
        assert "13 of 13 rows" in (message := capsys.readouterr().err)
        assert "nothing is left. Raise `max_length`" in message


class TestLongRows:
    """Rows 1, 3 and 4 have a prompt of more than 100 tokens; row 4 answers once before it, row 5 has a long answer."""

    ANSWER = {"role": "assistant", "content": "yes"}

    @pytest.fixture
    def rows(self, dialogues):
        question = {"role": "user", "content": "long " * 30}
        talk = [*dialogues[4]["messages"], question, self.ANSWER]
        answer = [dialogues[5]["messages"][0], {"role": "assistant", "content": "yes " * 30}]
        long = {1: [question, self.ANSWER], 3: [question, self.ANSWER], 4: talk, 5: answer}
        return [{"messages": long.get(i, row["messages"])} for i, row in enumerate(dialogues[:8])]

    @pytest.mark.parametrize("packing", [False, True])
    @pytest.mark.parametrize("form", ["messages", "assistant_only_loss", "prompt and completion"])
    def test_answers_beyond_the_limit_are_counted_and_named(
        self, form, packing, rows, save_model, arguments, tmp_path, caplog
    ):
        flags = ["--max_steps=1", "--max_length=90", f"--packing={packing}"]
        if form == "assistant_only_loss":
            flags.append("--assistant_only_loss=true")
        elif form == "prompt and completion":
            rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
        write_rows(tmp_path / "rows.jsonl", rows)
        train(sft, arguments(save_model(), "out", f"--dataset_name={tmp_path / 'rows.jsonl'}", *flags))
        (said,) = [record.getMessage() for record in caplog.records if record.name == "trl_distill.sft_trainer"]
        assert "4 of 8 rows of the train dataset are longer than `max_length` (90)" in said
        # The last answer of row 4 alone is its completion
        lost = "3 of them the whole answer lies beyond it (rows 1, 3, 4)"
        assert (
            lost if form == "prompt and completion" else "2 of them the whole answer lies beyond it (rows 1, 3)"
        ) in said

    def test_nothing_is_said_where_all_fits(self, rows, save_model, arguments, tmp_path, caplog):
        write_rows(tmp_path / "rows.jsonl", rows)
        flags = [f"--dataset_name={tmp_path / 'rows.jsonl'}", "--max_steps=1", "--max_length=512"]
        train(sft, arguments(save_model(), "out", *flags))
        assert not [record for record in caplog.records if record.name == "trl_distill.sft_trainer"]

    @pytest.mark.parametrize("packing", [False, True])
    def test_no_answer_that_fits_is_an_error(self, packing, rows, save_model, arguments, tmp_path, capsys):
        write_rows(tmp_path / "rows.jsonl", rows)
        flags = [f"--dataset_name={tmp_path / 'rows.jsonl'}", "--max_length=4", f"--packing={packing}"]
        assert stops(sft.run, *arguments(save_model(), "out", *flags)) == 2
        assert "8 of 8 rows" in (said := capsys.readouterr().err) and "Raise `max_length`" in said


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_4bit_in_the_type_of_the_checkpoint(
    dtype, expected, save_model, chat_tokenizer, dialogues, arguments, tmp_path
):
    write_rows(tmp_path / "rows.jsonl", dialogues)
    model = str(tmp_path / "bfloat16")
    AutoModelForCausalLM.from_pretrained(save_model(), dtype="bfloat16").save_pretrained(model)
    chat_tokenizer.save_pretrained(model)
    flags = [f"--dataset_name={tmp_path / 'rows.jsonl'}", "--max_steps=1", *LORA, "--load_in_4bit=true"]
    trainer = train(sft, arguments(model, "out", *flags, f"--dtype={dtype}"))
    assert trainer.model.config.quantization_config.bnb_4bit_compute_dtype == expected


# The chat template of the recipes (A7)


TEMPLATE = Path(__file__).parents[2] / "recipes" / "zephyr" / "zephyr.jinja"
SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "fine"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "no more"},
]
CONVERSATIONS = {
    "one turn": TURNS[:2],
    "system": [SYSTEM, *TURNS[:2]],
    "many turns": TURNS,
    "system, many turns": [SYSTEM, *TURNS],
    "leading newlines": [TURNS[0], {"role": "assistant", "content": "\n\n\nfine"}],
    "leading space": [TURNS[0], {"role": "assistant", "content": "  fine"}],
    "format in the text": [
        {"role": "user", "content": "say <|assistant|>\n"},
        {"role": "assistant", "content": "<|user|>"},
    ],
}


@pytest.fixture(params=CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def messages(request):
    return request.param


def test_the_published_format(chat_tokenizer):
    """Zephyr's own rendering of the card, but for the BOS token in front and the newline at the end."""
    expected = "<s><|system|>\nBe brief.</s>\n<|user|>\nhello</s>\n<|assistant|>\nfine</s>"
    assert chat_tokenizer.apply_chat_template([SYSTEM, *TURNS[:2]], tokenize=False) == expected
    prompt = chat_tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<s><|user|>\nhello</s>\n<|assistant|>\n"


def test_the_prompt_is_a_prefix_of_prompt_and_answer(chat_tokenizer, messages):
    prompt = chat_tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    whole = chat_tokenizer.apply_chat_template(messages)["input_ids"]
    assert whole[: len(prompt)] == prompt
    answer = chat_tokenizer.decode(whole[len(prompt) :])
    assert answer == messages[-1]["content"].strip() + "</s>"


def test_one_bos_and_an_eos_a_turn(chat_tokenizer, messages):
    ids = chat_tokenizer.apply_chat_template(messages)["input_ids"]
    assert ids[0] == chat_tokenizer.bos_token_id
    assert ids.count(chat_tokenizer.bos_token_id) == 1
    assert ids[-1] == chat_tokenizer.eos_token_id
    assert ids.count(chat_tokenizer.eos_token_id) == len(messages)


def test_training_reads_what_serving_writes(chat_tokenizer, messages):
    """A conversation that grows turn by turn, as a server renders it, is a prefix of what is trained on."""
    whole = chat_tokenizer.apply_chat_template(messages)["input_ids"]
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            served = chat_tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True)["input_ids"]
            assert whole[: len(served)] == served


def test_a_tokenizer_without_bos(chat_tokenizer):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.bos_token = None
    assert tokenizer.apply_chat_template(TURNS[:1], tokenize=False) == "<|user|>\nhello</s>"


class TestTokensOfTraining:
    def rows_of(self, trainer):
        """Tokens that are trained on, and tokens that are only read, of each row."""
        for row in trainer.train_dataset:
            pairs = list(zip(row["input_ids"], row["labels"], strict=True))
            yield [[i for i, label in pairs if (label != -100) == trained] for trained in (True, False)]

    def train_set(self, model, settings, conversations, **changes):
        args = SFTConfig(**(settings | {"chat_template_path": str(TEMPLATE)} | changes))
        return SFTTrainer(model, args, train_dataset=Dataset.from_dict({"messages": conversations}))

    def test_the_mask_covers_the_answers_and_their_eos(self, save_model, chat_tokenizer, settings):
        trainer = self.train_set(save_model(), settings, list(CONVERSATIONS.values()), assistant_only_loss=True)
        for messages, (trained, read) in zip(CONVERSATIONS.values(), self.rows_of(trainer), strict=True):
            answers = [turn["content"].strip() + "</s>" for turn in messages if turn["role"] == "assistant"]
            assert chat_tokenizer.decode(trained) == "".join(answers)
            assert read.count(chat_tokenizer.bos_token_id) == 1

    def test_all_tokens_by_default(self, save_model, chat_tokenizer, settings):
        trainer = self.train_set(save_model(), settings, list(CONVERSATIONS.values()))
        for messages, (trained, read) in zip(CONVERSATIONS.values(), self.rows_of(trainer), strict=True):
            assert trained == chat_tokenizer.apply_chat_template(messages)["input_ids"]
            assert read == []

    def test_dpo_reads_the_same_tokens(self, make_dpo, save_model, pairs, chat_tokenizer):
        for row, pair in zip(make_dpo(save_model()).train_dataset, pairs, strict=True):
            for answer in ("chosen", "rejected"):
                ids = chat_tokenizer.apply_chat_template(pair["prompt"] + pair[answer])["input_ids"]
                assert row["prompt_ids"] + row[f"{answer}_ids"] == ids
                assert chat_tokenizer.decode(row[f"{answer}_ids"]) == pair[answer][0]["content"] + "</s>"

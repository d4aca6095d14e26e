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

"""Every recipe parses strictly, and runs end to end when it is made tiny."""

import importlib.util
import itertools
import json
import re
from pathlib import Path

import pytest
import yaml
from datasets import load_dataset
from safetensors.torch import load_file

from tests.minillm.test_families import RECENT, VISION, build
from trl_distill.lion import LionConfig
from trl_distill.lion.generation import LION_FILTERS
from trl_distill.lion.imitation import check_training
from trl_distill.scripts import (
    augment,
    calibrate,
    compare,
    dpo,
    feedback,
    labeled_sft,
    lion,
    minillm,
    nat,
    nce,
    offline_distillation,
    ranker,
    record,
    sft,
)
from trl_distill.scripts.arguments import parse_strictly
from trl_distill.scripts.runs import parse_config
from trl_distill.zephyr import CompareConfig, FeedbackConfig


RECIPES = Path(__file__).parents[1] / "recipes"
FILES = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name != "accelerate_configs")
TRAINING = {
    "minillm": minillm,
    "offline_distillation": offline_distillation,
    "nat": nat,
    "labeled_sft": labeled_sft,
    "nce": nce,
    "ranker": ranker,
    "sft": sft,
    "dpo": dpo,
}
LOOPS = {"feedback": (feedback, FeedbackConfig), "compare": (compare, CompareConfig), "lion": (lion, LionConfig)}
COMMANDS = TRAINING | {name: script for name, (script, _) in LOOPS.items()}

# What makes a recipe tiny. All else, every switch of the objective included, stays as it is.
TINY = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "max_steps": 2,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
}
TINY_MINILLM = TINY | {"max_completion_length": 6, "eval_steps": 2, "save_steps": 2}
SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}  # 4-bit blocks need 64
FAMILY_SIZE = {  # on a CPU, inputs and outputs of 4-bit layers are multiples of 64 and 32
    "qwen3_5": {"linear_num_value_heads": 32, "linear_key_head_dim": 16},
    "gemma4": {"global_head_dim": 16, "hidden_size_per_layer_input": 64},
}


def command_of(path):
    """The command that the recipe's header tells to run."""
    return re.search(r"trl-distill (\w+) --config (\S+)", path.read_text()).groups()


def recipes_of(*commands):
    paths = [path for path in FILES if command_of(path)[0] in commands]
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


class TestRecipes:
    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
    def test_header(self, path):
        command, config = command_of(path)
        assert command in COMMANDS
        assert config == str(path.relative_to(RECIPES.parent))
        header = "".join(itertools.takewhile(lambda line: line.startswith("#"), path.open()))
        for word in ("Run:", "Hardware:", "Expected:"):
            assert word in header
        assert not re.search(
            r"(python|bash) recipes/|README", header.partition("# Hardware:")[0]
        )  # no checkout needed
        for name, file in re.findall(r"trl-distill recipe (\S+) > (\S+)", header):
            assert (RECIPES / name).is_file() and f"python {file} " in header

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
    def test_header_says_what_makes_its_data_and_models(self, path):
        """As an error about a missing one promises."""
        header = "".join(itertools.takewhile(lambda line: line.startswith("#"), path.open()))
        named = r"^[^#\n]*(?:name_or_path|dataset_name|nat_path): ((?:data|runs)/\S+)"
        for value in re.findall(named, path.read_text(), re.M):
            assert value in header

    @recipes_of(*TRAINING)
    def test_parses_strictly(self, path):
        parser = COMMANDS[command_of(path)[0]].make_parser()
        _, training_args, model_args, *_ = parse_strictly(parser, ["--config", str(path), "--use_cpu"])
        values = yaml.safe_load(path.read_text())
        for name in ("max_steps", "num_train_epochs", "learning_rate"):
            if name in values:
                assert getattr(training_args, name) == values[name]
        assert model_args.model_name_or_path == values["model_name_or_path"]

    @recipes_of(*LOOPS)
    def test_loops_parse_strictly(self, path):
        script, config_class = LOOPS[command_of(path)[0]]
        config = parse_config(config_class, script.make_parser(), ["--config", str(path)])
        for name, value in yaml.safe_load(path.read_text()).items():
            assert getattr(config, name) == (list(LION_FILTERS) if value == ["lion"] else value)
        if config_class is LionConfig:
            config.make("teacher")
            check_training("training", config.training)


@recipes_of("minillm")
def test_minillm_runs_when_tiny(path, tmp_path, tokenizer, tiny_model, prompts):
    for seed, name, rows in ((0, "student", 264), (1, "teacher", 272)):
        tiny_model(seed=seed, vocab_size=rows, initializer_range=0.1, **SIZE).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    run_tiny_minillm(path, tmp_path, prompts)


@pytest.mark.parametrize("family", RECENT)
def test_recent_families_run_a_recipe_when_tiny(family, tmp_path, tokenizer, prompts):
    """By name, in 4 bit: those that the README names take the place of Qwen3, with the layers that it names."""
    size = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    size |= FAMILY_SIZE.get(family, {})
    for seed, name in enumerate(("student", "teacher")):
        build(family, seed, **size, pad_token_id=0, eos_token_id=1).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    layers = re.search(r"`lora_target_modules: \['(.+)'\]`", (RECIPES / "minillm" / "README.md").read_text())[1]
    changes = {"lora_target_modules": [layers]} if family in VISION else {}
    run_tiny_minillm(RECIPES / "minillm" / "qwen3_0.6b_qlora_8gb.yaml", tmp_path, prompts, **changes)
    adapted = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len({name.split(".")[-3] for name in adapted if name.endswith("lora_B.weight")}) >= 7
    assert not any("vision" in name or "visual" in name for name in adapted)


def run_tiny_minillm(path, tmp_path, prompts, **changes):
    for split in ("train", "validation"):
        prompts.to_json(tmp_path / "data" / f"{split}.jsonl")

    values = yaml.safe_load(path.read_text())
    changes |= TINY_MINILLM | {
        "model_name_or_path": str(tmp_path / "student"),
        "teacher_model_name_or_path": str(tmp_path / "teacher"),
        "dataset_name": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "out"),
    }
    if "steps_per_generation" in values:  # the same number of mini-batches in a rollout set
        mini_batches = values["steps_per_generation"] // values["gradient_accumulation_steps"]
        changes["steps_per_generation"] = mini_batches * TINY["gradient_accumulation_steps"]
    if "lm_dataset_name" in values:
        (tmp_path / "corpus.jsonl").write_text(f"{json.dumps({'text': 'Plain text. ' * 20})}\n" * 4)
        changes |= {
            "lm_dataset_name": str(tmp_path / "corpus.jsonl"),
            "lm_dataset_split": "train",
            "lm_max_length": 16,
        }
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(values | changes))

    minillm.run(["--config", str(config)])

    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    logged = {key: value for entry in state["log_history"] for key, value in entry.items()}
    assert {"loss", "kl", "loss/long", "loss/single", "eval_kl", "eval_rougeL"} <= logged.keys()
    assert ("loss/lm" in logged) == ("lm_dataset_name" in values)
    assert state["best_metric"] == logged["eval_rougeL"]
    saved = "adapter_model.safetensors" if values.get("use_peft") else "model.safetensors"
    assert (tmp_path / "out" / saved).is_file()


@recipes_of("offline_distillation")
def test_offline_distillation_runs_when_tiny(path, tmp_path, tokenizer, tiny_model):
    for seed, name, rows in ((0, "base", 264), (1, "teacher", 272)):
        tiny_model(seed=seed, vocab_size=rows, initializer_range=0.1, **SIZE).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    samples = [{"prompt": [{"role": "user", "content": f"{i}"}], "completions": [f"{i}."]} for i in range(40)]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)))
    flags = ["--teacher_model_name_or_path", tmp_path / "teacher", "--dataset_name", tmp_path / "samples.jsonl"]
    record.run(list(map(str, [*flags, "--output_dir", tmp_path / "recorded", "--load_in_4bit", "--device", "cpu"])))
    config = make_tiny(path, tmp_path, "recorded", "out", eval_steps=2, save_steps=2)
    offline_distillation.run(["--config", config])
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    logged = {key for entry in state["log_history"] for key in entry}
    assert {"divergence", "eval_divergence", "teacher/tail"} <= logged
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.fixture
def labelled(tmp_path, tokenizer, tiny_model):
    """A tiny model in `base` and labelled rationales in `labelled.jsonl`."""
    tiny_model(vocab_size=264, initializer_range=0.1, **SIZE).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"{i} + 1 = ", "completion": f"{i + 1 + i % 2}.", "label": i % 2 == 0} for i in range(40)]
    (tmp_path / "labelled.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def make_tiny(path, folder, data, output, **changes):
    """The recipe with a tiny model, few steps and local data."""
    values = yaml.safe_load(path.read_text())
    changes |= {"model_name_or_path": str(folder / "base"), "dataset_name": str(folder / data)}
    changes["output_dir"] = str(folder / output)
    if "test_split_size" in values:
        changes["test_split_size"] = 0.25
    for name in ("eval_strategy", "save_strategy"):
        if name in values:
            changes |= {name: "steps", f"{name.removesuffix('_strategy')}_steps": 2}
    config = folder / f"{output}.yaml"
    config.write_text(yaml.safe_dump(values | TINY | changes))
    return str(config)


@recipes_of("nce")
def test_nat_and_nce_run_when_tiny(path, labelled):
    nat_recipe = RECIPES / "nat_nce_asc" / path.name.replace("nce_", "nat_")
    nat.run(["--config", make_tiny(nat_recipe, labelled, "labelled.jsonl", "nat")])
    assert (labelled / "nat" / "neg" / "adapter_model.safetensors").is_file()
    assert (labelled / "nat" / "nat" / "adapter_model.safetensors").is_file()

    config = make_tiny(path, labelled, "weighted.jsonl", "nce", nat_path=str(labelled / "nat"))
    weighted = labelled / "weighted.jsonl"
    calibrate.run(
        ["--config", config, "--dataset_name", str(labelled / "labelled.jsonl"), "--output_file", str(weighted)]
    )
    assert {"weight", "weight_hash"} <= json.loads(weighted.read_text().splitlines()[0]).keys()
    nce.run(["--config", config])
    assert (labelled / "nce" / "adapter_model.safetensors").is_file()
    assert not (labelled / "nce" / "nat").exists()


@recipes_of("labeled_sft")
@pytest.mark.parametrize("objective", ["cot_kd", "mix", "nt", "ul", "redi"])
def test_baselines_run_when_tiny(path, objective, labelled):
    labeled_sft.run(["--config", make_tiny(path, labelled, "labelled.jsonl", "out"), "--objective", objective])
    assert (labelled / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("targets", ["all-linear", ["all-linear"]], ids=["text", "list"])
def test_lora_on_all_linear_layers(targets, labelled):
    """Through the commands. The student of NCE stands beside the adapters of NAT, which are linear layers, too."""
    changes = {"lora_target_modules": targets}
    recipes = RECIPES / "nat_nce_asc"
    baseline = make_tiny(recipes / "baselines_qwen2.5_0.5b.yaml", labelled, "labelled.jsonl", "baseline", **changes)
    labeled_sft.run(["--config", baseline])
    nat.run(["--config", make_tiny(recipes / "nat_qwen2.5_0.5b.yaml", labelled, "labelled.jsonl", "nat", **changes)])
    changes |= {"nat_path": str(labelled / "nat"), "objective": "kd"}
    config = make_tiny(recipes / "nce_qwen2.5_0.5b.yaml", labelled, "weighted.jsonl", "nce", **changes)
    files = {"--dataset_name": labelled / "labelled.jsonl", "--output_file": labelled / "weighted.jsonl"}
    calibrate.run(["--config", config, *(str(part) for file in files.items() for part in file)])
    nce.run(["--config", config])
    for folder in ("baseline", "nat/neg", "nat/nat", "nce"):
        weights = load_file(labelled / folder / "adapter_model.safetensors")
        found = {name.split(".")[-3] for name in weights if name.endswith("lora_B.weight")}
        assert found == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, folder


def test_a_student_adds_its_own_right_answers(labelled):
    """The walk of the page on wrong answers: the recipe, `augment`, the recipe again."""
    path = RECIPES / "nat_nce_asc" / "baselines_qwen2.5_0.5b.yaml"
    labeled_sft.run(["--config", make_tiny(path, labelled, "labelled.jsonl", "student")])
    flags = ["--model_name_or_path", labelled / "student", "--dataset_name", labelled / "labelled.jsonl"]
    flags += ["--output_file", labelled / "augmented.jsonl", "--num_samples", 2, "--max_new_tokens", 4]
    augment.run(list(map(str, [*flags, "--device", "cpu", "--rule", "last_number"])))
    rows = [json.loads(line) for line in (labelled / "augmented.jsonl").read_text().splitlines()]
    assert len([row for row in rows if row["source"] == "teacher"]) == 20 and all(row["label"] for row in rows)
    labeled_sft.run(["--config", make_tiny(path, labelled, "augmented.jsonl", "rft")])
    assert (labelled / "rft" / "adapter_model.safetensors").is_file()


@recipes_of("ranker")
def test_ranker_runs_when_tiny(path, labelled):
    ranker.run(["--config", make_tiny(path, labelled, "labelled.jsonl", "out")])
    assert (labelled / "out" / "model.safetensors").is_file()


@pytest.fixture
def dialogues(tmp_path, tokenizer, tiny_model):
    """A tiny model in `base`, and rows in the format of H4's data sets: UltraChat in `sft`, UltraFeedback in `dpo`."""
    tiny_model(vocab_size=264, initializer_range=0.1, **SIZE).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = {"sft": [], "dpo": []}
    for i in range(16):
        question, row = {"role": "user", "content": f"{i} + 1 ="}, {"prompt": f"{i} + 1 =", "prompt_id": str(i)}
        right, wrong = ([question, {"role": "assistant", "content": str(answer)}] for answer in (i + 1, i - 1))
        rows["sft"].append(row | {"messages": right})
        rows["dpo"].append(row | {"chosen": right, "rejected": wrong, "messages": right, "score_chosen": 8.0})
    for name in rows:
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            (tmp_path / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows[name])))
    return tmp_path


@recipes_of("sft", "dpo")
def test_zephyr_runs_when_tiny(path, dialogues):
    command = command_of(path)[0]
    values = yaml.safe_load(path.read_text())
    changes = {"dataset_train_split": "train", "dataset_test_split": "test", "save_total_limit": None}
    if "chat_template_path" in values:
        changes["chat_template_path"] = str(RECIPES.parent / values["chat_template_path"])
    config = make_tiny(path, dialogues, command, "out", **changes)
    COMMANDS[command].run(["--config", config])
    state = json.loads((dialogues / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    logged = {key: value for entry in reversed(state["log_history"]) for key, value in entry.items()}
    assert "eval_loss" in logged
    if command == "dpo":
        assert logged["loss"] == pytest.approx(0.6931472, abs=1e-6)  # of the first step
        assert logged["rewards/chosen"] == logged["rewards/rejected"] == 0
    else:
        template = (RECIPES / "zephyr" / "zephyr.jinja").read_text()
        assert (dialogues / "out" / "chat_template.jinja").read_text().strip() == template.strip()
    saved = "adapter_model.safetensors" if values.get("use_peft") else "model.safetensors"
    assert (dialogues / "out" / saved).is_file()


@pytest.fixture(scope="module")
def prepare_dolly():
    spec = importlib.util.spec_from_file_location("prepare_dolly", RECIPES / "minillm" / "prepare_dolly.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestPrepareDolly:
    ROWS = [
        {"instruction": "Name a fish.", "context": "", "response": "Tope", "category": "open_qa"},
        {"instruction": "Who won?", "context": "Ann beat Bob.", "response": "Ann", "category": "closed_qa"},
        {"instruction": "Who lost?", "context": "", "response": "Bob", "category": "closed_qa"},  # needs its passage
        {"instruction": "Say nothing.", "context": "", "response": " ", "category": "open_qa"},  # no answer
        {"instruction": "long " * 200, "context": "", "response": "yes", "category": "open_qa"},
        {"instruction": "Count to two.", "context": "", "response": "1, 2", "category": "open_qa"},
        {"instruction": "Name a tree.", "context": "", "response": "Oak", "category": "open_qa"},
    ]

    def prepare(self, module, tokenizer, tmp_path, rows, *arguments):
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        (tmp_path / "source.jsonl").write_text("\n".join(map(json.dumps, rows)))
        module.main(
            [f"--source={tmp_path / 'source.jsonl'}", f"--tokenizer={tmp_path / 'tokenizer'}", "--validation_size=1"]
            + ["--test_size=1", f"--output_dir={tmp_path / 'data'}", "--max_prompt_length=300", *arguments]
        )
        return load_dataset(str(tmp_path / "data"))

    def test_alpaca(self, prepare_dolly, tokenizer, tmp_path, capsys):
        splits = self.prepare(prepare_dolly, tokenizer, tmp_path, self.ROWS)
        assert {name: len(split) for name, split in splits.items()} == {"train": 2, "validation": 1, "test": 1}
        rows = {row["completion"]: row["prompt"] for split in splits.values() for row in split}
        assert rows.keys() == {"Tope", "Ann", "1, 2", "Oak"}
        assert rows["Tope"].endswith("\n\n### Instruction:\nName a fish.\n\n### Response:\n")
        assert "### Instruction:\nWho won?\n\n### Input:\nAnn beat Bob.\n\n### Response:\n" in rows["Ann"]
        expected = "Rows: 7 read, 1 without their passage, 1 empty, 1 longer than 300 tokens"
        assert expected in capsys.readouterr().out

    def test_messages(self, prepare_dolly, tokenizer, tmp_path):
        splits = self.prepare(prepare_dolly, tokenizer, tmp_path, self.ROWS, "--format=messages")
        rows = {row["completion"][0]["content"]: row["prompt"] for split in splits.values() for row in split}
        assert rows["Ann"] == [{"role": "user", "content": "Who won?\n\nAnn beat Bob."}]

    def test_rows_that_point_at_a_missing_text(self, prepare_dolly):
        for instruction, lacks in {
            "Given this paragraph about Osaka, who ruled it?": True,
            "From the passage identify the shape.": True,
            "Given a reference text about tea, list its kinds.": True,
            "Write a story about tea.": False,
            "What is a paragraph?": False,
        }.items():
            assert prepare_dolly.lacks_context({"instruction": instruction}) is lacks, instruction

    def test_too_few_rows(self, prepare_dolly, tokenizer, tmp_path):
        with pytest.raises(SystemExit, match="only 1 rows are left"):
            self.prepare(prepare_dolly, tokenizer, tmp_path, self.ROWS[:1])

    def test_missing_column(self, prepare_dolly, tokenizer, tmp_path):
        with pytest.raises(SystemExit, match="has no column 'response', only instruction"):
            self.prepare(prepare_dolly, tokenizer, tmp_path, [{"instruction": "Hi"}])

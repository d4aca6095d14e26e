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

"""`trl-distill merge`: the merged model is base plus adapter, and nothing half-done is left behind."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.commands import error_of
from trl_distill.scripts import merge


IDS = torch.arange(3, 83).view(2, 40)


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits.float()


def run(adapter, output, *arguments):
    merge.run([str(adapter), "--output", str(output), *arguments])


def refusal(capsys, adapter, output, *arguments):
    return error_of(capsys, merge.run, adapter, "--output", output, *arguments)


def assert_merged(output, model):
    """The merged model says what `model` says."""
    found = logits(AutoModelForCausalLM.from_pretrained(output))
    torch.testing.assert_close(found, logits(model), atol=1e-5, rtol=0)
    return found


class TestMergedModel:
    def test_logits_in_fp32(self, save_model, save_adapter, tmp_path, capsys):
        adapter = save_adapter(save_model())
        run(adapter, tmp_path / "merged", "--dtype", "float32")
        found = assert_merged(tmp_path / "merged", AutoPeftModelForCausalLM.from_pretrained(adapter))
        base = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
        assert (found - base).abs().max() > 0.1
        assert f"{tmp_path / 'merged'}. Start the next stage from there" in capsys.readouterr().out

    def test_weights_in_bf16(self, save_model, save_adapter, tmp_path):
        adapter = save_adapter(save_model())
        run(adapter, tmp_path / "merged")
        exact = AutoPeftModelForCausalLM.from_pretrained(adapter).merge_and_unload().state_dict()
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").state_dict()
        assert merged.keys() == exact.keys()
        for name, weight in merged.items():
            assert weight.dtype == torch.bfloat16
            # Base, update and sum are rounded, each by at most half of 2^-8 of what is rounded
            torch.testing.assert_close(weight.float(), exact[name], atol=2e-3, rtol=2**-7)

    @pytest.mark.parametrize(
        "config", [{"use_dora": True}, {"use_rslora": True}, {"modules_to_save": ["lm_head"]}], ids=str
    )
    def test_other_adapters(self, save_model, save_adapter, tmp_path, config):
        adapter = save_adapter(save_model(), **config)
        run(adapter, tmp_path / "merged", "--dtype", "float32")
        assert_merged(tmp_path / "merged", AutoPeftModelForCausalLM.from_pretrained(adapter))

    def test_files(self, save_model, save_adapter, chat_tokenizer, tmp_path):
        adapter = save_adapter(save_model())
        run(adapter, tmp_path / "merged")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
        assert tokenizer("Some text.\n\n")["input_ids"] == chat_tokenizer("Some text.\n\n")["input_ids"]
        assert tokenizer.chat_template == chat_tokenizer.chat_template
        config = json.loads((tmp_path / "merged" / "config.json").read_text())
        generation = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
        assert (config["eos_token_id"], generation["eos_token_id"]) == (2, 2)
        assert (tmp_path / "merged" / "model.safetensors").is_file()
        assert not (tmp_path / "merged" / "adapter_config.json").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "model", "sft"]

    def test_the_tokenizer_of_the_training_wins(self, save_model, save_adapter, chat_tokenizer, tmp_path):
        base, tokenizer = save_model(), copy.deepcopy(chat_tokenizer)
        tokenizer.chat_template, tokenizer.eos_token = "{{ 'trained' }}", "!"
        run(save_adapter(base, tokenizer=tokenizer), tmp_path / "merged")
        assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == "{{ 'trained' }}"
        generation = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
        assert tokenizer.eos_token_id in generation["eos_token_id"]  # generation ends where the training text ended

        run(save_adapter(base, "bare", tokenizer=None), tmp_path / "merged-bare")
        assert AutoTokenizer.from_pretrained(tmp_path / "merged-bare").chat_template == chat_tokenizer.chat_template

    def test_added_tokens(self, save_model, chat_tokenizer, tmp_path):
        """Training that adds tokens, as TRL does when it clones a chat template, saves rows that the base lacks."""
        base, tokenizer = save_model(), copy.deepcopy(chat_tokenizer)
        tokenizer.add_tokens([f"<new{i}>" for i in range(8)])
        model = AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(len(tokenizer))
        config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
        model = get_peft_model(model, config)
        model.save_pretrained(tmp_path / "sft")
        tokenizer.save_pretrained(tmp_path / "sft")
        run(tmp_path / "sft", tmp_path / "merged", "--dtype", "float32")
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        assert found.get_input_embeddings().num_embeddings == len(tokenizer) > 264
        assert_merged(tmp_path / "merged", model)

    def test_another_base(self, save_model, save_adapter, tmp_path):
        adapter = save_adapter(save_model())
        shutil.move(tmp_path / "model", tmp_path / "moved")
        run(adapter, tmp_path / "merged", "--base", str(tmp_path / "moved"), "--dtype", "float32")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "moved"), adapter)
        assert_merged(tmp_path / "merged", model)


class TestRefusals:
    def test_what_is_no_adapter(self, save_model, tmp_path, capsys):
        assert "is a full model: there is nothing to merge" in refusal(capsys, save_model(), tmp_path / "merged")
        (tmp_path / "empty").mkdir()
        for nothing in ("empty", "nowhere"):
            assert "is no adapter: there is no" in refusal(capsys, tmp_path / nothing, tmp_path / "merged")

    def test_nat(self, tmp_path, capsys):
        (tmp_path / "run" / "nat").mkdir(parents=True)
        config = {"peft_type": "LORA", "base_model_name_or_path": "base", "nat_config": {"width": 4}}
        (tmp_path / "run" / "nat" / "adapter_config.json").write_text(json.dumps(config))
        assert "is a NAT model" in refusal(capsys, tmp_path / "run", tmp_path / "merged")
        assert "positive adapter of a NAT model" in refusal(capsys, tmp_path / "run" / "nat", tmp_path / "merged")

    def test_prompt_tuning(self, save_model, tmp_path, capsys):
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        get_peft_model(AutoModelForCausalLM.from_pretrained(save_model()), config).save_pretrained(tmp_path / "soft")
        assert "adapter of type PROMPT_TUNING" in refusal(capsys, tmp_path / "soft", tmp_path / "merged")

    def test_bases(self, save_model, save_adapter, tmp_path, capsys):
        adapter = save_adapter(save_model())
        merged = tmp_path / "merged"
        assert "is an adapter itself" in refusal(capsys, adapter, merged, "--base", adapter)
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        quantized = config | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
        (tmp_path / "model" / "config.json").write_text(json.dumps(quantized))
        assert "is stored quantized" in refusal(capsys, adapter, merged)
        shutil.rmtree(tmp_path / "model")
        message = refusal(capsys, adapter, merged)
        assert f"the base {tmp_path / 'model'} cannot be loaded" in message and "--base" in message
        adapter_config = json.loads(Path(adapter, "adapter_config.json").read_text())
        Path(adapter, "adapter_config.json").write_text(json.dumps(adapter_config | {"base_model_name_or_path": None}))
        assert "does not record its base model: name it with --base" in refusal(capsys, adapter, merged)

    def test_an_existing_folder_is_left_alone(self, save_model, save_adapter, tmp_path, capsys):
        adapter = save_adapter(save_model())
        (tmp_path / "merged").mkdir()
        (tmp_path / "merged" / "notes.txt").write_text("mine")
        assert "exists already" in refusal(capsys, adapter, tmp_path / "merged")
        assert [path.name for path in (tmp_path / "merged").iterdir()] == ["notes.txt"]

    def test_a_broken_adapter_leaves_nothing(self, save_model, save_adapter, tmp_path, capsys):
        adapter = save_adapter(save_model())
        weights = load_file(f"{adapter}/adapter_model.safetensors")
        next(iter(weights.values()))[0, 0] = torch.nan
        save_file(weights, f"{adapter}/adapter_model.safetensors")
        assert "NaN" in refusal(capsys, adapter, tmp_path / "merged")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "sft"]

    def test_what_a_killed_run_left_is_replaced(self, save_model, save_adapter, tmp_path):
        adapter = save_adapter(save_model())
        (tmp_path / "merged.part").mkdir()
        (tmp_path / "merged.part" / "model-00001-of-00002.safetensors").write_text("half")
        run(adapter, tmp_path / "merged")
        assert not (tmp_path / "merged.part").exists()
        assert not list((tmp_path / "merged").glob("model-0*"))

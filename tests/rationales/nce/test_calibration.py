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

import copy
import json
import math
import signal
import subprocess
import sys
import time

import pytest
import torch
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from trl_distill.divergence import LMHead, backbone_states, token_divergence
from trl_distill.rationales.nce import calibration_weights
from trl_distill.rationales.nce.calibration import adapter_states, calibration_weight, row_hash, use_adapter


@pytest.fixture
def weigh(make_nat, rows, tokenizer, make_args):
    def run(model=None, dataset=rows, journal=None, processing_class=tokenizer, **settings):
        return calibration_weights(model or make_nat(), dataset, processing_class, make_args(**settings), journal)

    return run


def sft_rows(model, rows, tokenizer, tmp_path, **settings):
    """Tokens of the rows by an SFTTrainer of its own."""
    args = SFTConfig(str(tmp_path / "sft"), bf16=False, use_cpu=True, report_to="none", **settings)
    return SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer).train_dataset


def naive_weight(model, input_ids, labels):
    """beta of one row in float64, from dense logits and the definition of KL. Shares no line with the calibration."""
    ids = torch.tensor([input_ids])
    model = model.double()
    logps = {}
    for adapter in ("neg", "nat"):
        model.set_adapter(adapter)
        model.eval()
        with torch.no_grad():
            logps[adapter] = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
    total, count = 0.0, 0
    for position in range(1, len(input_ids)):
        if labels[position] != -100:
            p, q = logps["neg"][position - 1], logps["nat"][position - 1]
            total += sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
            count += 1
    return math.tanh(total / count)


class TestClosedForms:
    """p_neg = (1/2, 1/2), p_nat = (3/4, 1/4): KL(neg || nat) = ln(2 / sqrt 3), whose tanh is 1/7."""

    head = LMHead(torch.eye(2))
    neg = torch.tensor([[0.5, 0.5]]).log()
    nat = torch.tensor([[0.75, 0.25]]).log()

    def test_beta_is_one_seventh(self):
        kl, _ = token_divergence(self.neg, self.head, self.nat, self.head, beta=1.0)
        assert kl.item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)
        assert calibration_weight(kl[None], torch.ones(1, 1)).item() == pytest.approx(1 / 7, abs=1e-6)

    def test_the_other_direction_is_another_number(self):
        kl, _ = token_divergence(self.nat, self.head, self.neg, self.head, beta=1.0)
        assert kl.item() == pytest.approx(0.130812, abs=1e-6)
        assert calibration_weight(kl[None], torch.ones(1, 1)).item() == pytest.approx(0.130071, abs=1e-6)

    def test_mean_over_the_mask_and_tanh(self):
        divergence = torch.tensor([[1.0, 1.0, 99.0], [2.0, 4.0, 3.0], [5.0, 5.0, 5.0], [-1e-7, 0.0, 0.0]])
        mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 1, 1]])
        weights = calibration_weight(divergence, mask)
        assert weights.tolist() == pytest.approx([0.761594, 0.995055, 0.0, 0.0], abs=1e-6)
        assert (weights >= 0).all()
        order = [2, 0, 3, 1]
        assert torch.equal(calibration_weight(divergence[order], mask[order]), weights[order])


class TestUseAdapter:
    def test_states_are_those_of_the_adapter_alone(self, make_nat, tiny_model):
        """Beside a third adapter with other targets, in train mode, with dropout in every adapter."""
        ids, mask = torch.randint(4, 200, (2, 9)), torch.ones(2, 9, dtype=torch.long)
        alone = make_nat()
        expected = {}
        for adapter in ("nat", "neg"):
            alone.set_adapter(adapter)
            with torch.no_grad():
                expected[adapter] = backbone_states(alone.eval(), ids, mask)
        model = make_nat()
        model.add_adapter("default", LoraConfig(target_modules=["o_proj", "q_proj"], lora_dropout=0.5))
        model.set_adapter("default")
        model.train()
        with torch.no_grad():
            model.base_model.model.model.layers[0].self_attn.o_proj.lora_B["default"].weight.normal_()
        for adapter in ("nat", "neg"):
            assert torch.equal(adapter_states(model, adapter, ids, mask), expected[adapter])
        assert not torch.equal(expected["nat"], expected["neg"])

    def test_everything_is_as_before(self, make_nat):
        model = make_nat()
        model.add_adapter("default", LoraConfig(target_modules=["q_proj"]))
        model.set_adapter("default")
        model.train()
        model.base_model.model.model.norm.eval()
        frozen = next(p for n, p in model.named_parameters() if "lora_A.default" in n)
        frozen.requires_grad_(False)  # by the user, for example
        before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        modes = {name: module.training for name, module in model.named_modules()}
        with pytest.raises(KeyError), use_adapter(model, "nat"):
            assert model.active_adapter == "nat"
            assert not any(module.training for module in model.modules() if not isinstance(module, torch.nn.Linear))
            assert not any(parameter.requires_grad for parameter in model.parameters())
            raise KeyError
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
        assert {name: module.training for name, module in model.named_modules()} == modes
        assert set(modes.values()) == {True, False}
        assert model.active_adapters == ["default"]


class TestCalibrationWeights:
    def test_match_a_float64_loop_and_training_tokens(self, weigh, make_nat, tiny_model, rows, tokenizer, tmp_path):
        weighed = weigh(make_nat(scale=0.2))
        tokens = sft_rows(tiny_model(), rows, tokenizer, tmp_path)
        reference = make_nat(scale=0.2)
        expected = [naive_weight(reference, row["input_ids"], row["labels"]) for row in tokens]
        assert weighed["weight"][:] == pytest.approx(expected, abs=1e-5)
        assert 0.05 < min(expected) and max(expected) < 0.95  # neither end of tanh hides an error
        assert weighed["weight_hash"][:] == [row_hash(row["input_ids"], row["labels"]) for row in tokens]
        assert weighed.column_names == ["prompt", "completion", "weight", "weight_hash"]

    def test_padding_order_and_chunks_change_nothing(self, weigh, rows):
        weights = weigh()["weight"][:]
        assert weigh(per_device_eval_batch_size=1)["weight"][:] == pytest.approx(weights, abs=1e-6)
        assert weigh(pad_to_multiple_of=64)["weight"][:] == pytest.approx(weights, abs=1e-6)
        assert weigh(loss_chunk_tokens=3)["weight"][:] == pytest.approx(weights, abs=1e-6)
        order = [7, 0, 11, 3, 1, 2, 4, 5, 6, 8, 9, 10]
        assert weigh(dataset=rows.select(order))["weight"][:] == pytest.approx([weights[i] for i in order], abs=1e-6)

    def test_equal_adapters_weigh_nothing(self, weigh, make_nat):
        model = make_nat()
        weights = {name: parameter for name, parameter in model.named_parameters() if ".neg." in name}
        with torch.no_grad():
            for name, parameter in weights.items():
                model.get_parameter(name.replace(".neg.", ".nat.")).copy_(parameter)
        assert weigh(model)["weight"][:] == pytest.approx([0.0] * 12, abs=1e-6)

    def test_conversations(self, weigh, rows, tokenizer, tiny_model, tmp_path):
        chats = rows.map(
            lambda row: {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
        )
        weighed, tokens = weigh(dataset=chats), sft_rows(tiny_model(), chats, tokenizer, tmp_path)
        assert weighed["weight_hash"][:] == [row_hash(row["input_ids"], row["labels"]) for row in tokens]
        assert weighed["prompt"][0] == chats["prompt"][0]

    def test_another_end_token(self, weigh, rows, tokenizer, tiny_model, tmp_path):
        tokens = sft_rows(tiny_model(), rows, copy.deepcopy(tokenizer), tmp_path, eos_token="<|assistant|>")
        weighed = weigh(processing_class=copy.deepcopy(tokenizer), eos_token="<|assistant|>")
        assert weighed["weight_hash"][:] == [row_hash(row["input_ids"], row["labels"]) for row in tokens]
        assert weighed["weight_hash"][:] != weigh()["weight_hash"][:]

    def test_wrong_and_long_rows_are_left_out(self, weigh, rows, caplog):
        lengths = [len(row["prompt"] + row["completion"]) + 1 for row in rows]  # bytes are tokens here, and the end
        labels = [i % 3 != 0 for i in range(12)]
        limit = sorted(lengths)[8]
        weighed = weigh(dataset=rows.add_column("label", labels), max_length=limit)
        kept = [i for i in range(12) if labels[i] and lengths[i] <= limit]
        assert 0 < len(kept) < sum(labels)
        assert weighed["completion"][:] == [rows["completion"][i] for i in kept]
        whole = weigh()
        assert weighed["weight"][:] == pytest.approx([whole["weight"][i] for i in kept], abs=1e-6)

    def test_bad_input(self, weigh, rows, make_nat, tiny_model, tmp_path):
        for dataset, message in [
            (rows.add_column("weight", [0.5] * 12), "has a column `weight` already"),
            (rows.remove_columns("completion"), "`dataset` has no column completion, only prompt"),
            (rows.to_iterable_dataset(), "is a stream"),
            (rows.add_column("label", [1] * 12), "`label` in `dataset` must be boolean.*row 0 has 1"),
            (rows.add_column("label", [False] * 12), "All 12 rows of the calibration dataset are wrong"),
            (rows.add_column("image", [None] * 12), "images"),
        ]:
            with pytest.raises(ValueError, match=message):
                weigh(dataset=dataset)
        with pytest.raises(ValueError, match=r"longer than 3 tokens \(shortest: \d+\)"):
            weigh(max_length=3)
        with pytest.raises(ValueError, match="but got a Qwen2ForCausalLM with no adapters"):
            weigh(tiny_model())
        model = make_nat()
        model.delete_adapter("neg")
        with pytest.raises(ValueError, match=r"but got a PeftModelForCausalLM with \['nat'\]"):
            weigh(model)

    def test_a_weight_that_is_not_finite_is_refused_with_its_row(self, weigh, make_nat, tokenizer):
        model = make_nat()
        with torch.no_grad():  # only a row with this token is hit
            model.get_input_embeddings().weight[tokenizer("7").input_ids[0]] = float("nan")
        with pytest.raises(ValueError, match="not finite in row 7, and so its weight is nan"):
            weigh(model)


KILLED = """
import sys, time
from pathlib import Path
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_distill.rationales.nce import NCEConfig, calibration_weights

folder = Path(sys.argv[1])
base = AutoModelForCausalLM.from_pretrained(folder / "base")
model = PeftModel.from_pretrained(base, folder / "nat", adapter_name="nat")
model.load_adapter(folder / "neg", "neg")
model.base_model.model.model.register_forward_hook(lambda *args: time.sleep(0.1))
args = NCEConfig(str(folder), bf16=False, use_cpu=True, report_to="none", per_device_eval_batch_size=2)
rows = Dataset.from_json(str(folder / "rows.jsonl"))
calibration_weights(model, rows, AutoTokenizer.from_pretrained(folder / "base"), args, folder / "journal")
"""


class TestJournal:
    def test_kill_and_restart(self, weigh, make_nat, tiny_model, rows, tokenizer, tmp_path):
        model = make_nat()
        model.save_pretrained(tmp_path)
        tiny_model().save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        rows.to_json(tmp_path / "rows.jsonl")
        journal = tmp_path / "journal"
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 3):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it must be killed in the middle of its work"
        done = journal.read_bytes().count(b"\n") - 1
        assert 2 <= done < 6
        with open(journal, "ab") as file:  # killed while writing
            file.write(b"[0.5, ")

        model.config._name_or_path = str(tmp_path / "base")
        forwards = []
        model.base_model.model.model.register_forward_hook(lambda *args: forwards.append(1))
        resumed = weigh(model, journal=journal, per_device_eval_batch_size=2)
        assert len(forwards) == 2 * (6 - done)
        whole = weigh(make_nat(), per_device_eval_batch_size=2)
        assert resumed["weight"][:] == whole["weight"][:]  # to the last bit
        forwards.clear()
        assert weigh(model, journal=journal, per_device_eval_batch_size=2)["weight"][:] == whole["weight"][:]
        assert not forwards

    def test_of_another_calibration(self, weigh, make_nat, rows, tmp_path):
        journal = tmp_path / "journal"
        weigh(journal=journal)
        assert set(json.loads(journal.read_text().partition("\n")[0])) >= {"rows", "adapters", "model", "dtype"}
        for changes, name in [
            ({"model": make_nat(seed=1)}, "adapters"),
            ({"dataset": rows.select(range(11))}, "rows"),
            ({"per_device_eval_batch_size": 3}, "batch_size"),
            ({"model": make_nat().bfloat16()}, "adapters, dtype"),
        ]:
            with pytest.raises(ValueError, match=f"weights of another calibration: {name} differ"):
                weigh(journal=journal, **changes)

    def test_that_is_damaged_in_its_middle(self, weigh, tmp_path):
        """Only the last row may be cut off, by a kill: whatever else is no JSON is not made anew in silence."""
        journal = tmp_path / "journal"
        weigh(journal=journal, per_device_eval_batch_size=2)
        lines = journal.read_text().splitlines(keepends=True)
        journal.write_text("".join([*lines[:2], "damaged\n", *lines[3:]]))
        with pytest.raises(ValueError, match="Line 3 of .*journal is no JSON"):
            weigh(journal=journal, per_device_eval_batch_size=2)

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
"""The way of a NAT to disk and back."""

import json
import shutil
import warnings

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from tests.rationales.nat.adapters import TARGETS, logits
from trl_distill.rationales.data import adapter_sha256
from trl_distill.rationales.nat import load_nat
from trl_distill.rationales.nat.integration_unit import load_negative


@pytest.fixture
def model(make_nat):
    return make_nat()


@pytest.fixture
def folder(model, tmp_path):
    """Where the model was saved."""
    model.save_pretrained(tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def load(folder, tiny_model):
    def build(path=folder, base=None, **settings):
        return load_nat(tiny_model() if base is None else base, str(path), **settings)

    return build


def rewrite(file, change):
    """Change the tensors or the JSON of a file."""
    is_json = file.suffix == ".json"
    content = json.loads(file.read_text()) if is_json else load_file(file)
    change(content)
    file.write_text(json.dumps(content)) if is_json else save_file(content, file)


class TestRoundTrip:
    def test_restores_every_bit(self, model, load):
        loaded = load()
        assert torch.equal(logits(loaded), logits(model))
        assert loaded.active_adapter == "nat" and not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        loaded.set_adapter("neg")
        model.set_adapter("neg")
        assert torch.equal(logits(loaded), logits(model))

    @pytest.mark.parametrize("value", ["mlp", "identity"])
    def test_under_other_names(self, make_nat, tiny_model, tmp_path, value):
        model = make_nat(value=value, temperature=3.0)
        model.save_pretrained(tmp_path / "out")
        loaded = load_nat(tiny_model(), str(tmp_path / "out"), nat="student", neg="wrong")
        assert torch.equal(logits(loaded), logits(model))
        assert set(loaded.peft_config) == {"student", "wrong"} and loaded.active_adapter == "student"
        loaded.save_pretrained(tmp_path / "again")
        assert not (tmp_path / "again" / "nat").exists()
        for names in ("out/nat", "again/student"), ("out/neg", "again/wrong"):
            first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in names)
            assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)

    def test_writes_ordinary_adapter_folders(self, model, folder):
        assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["nat", "neg"]
        config = json.loads((folder / "nat" / "adapter_config.json").read_text())
        gate = {"value": "mlp", "width": 5, "temperature": 1.0, "neg_sha256": adapter_sha256(model, "neg")}
        assert config["peft_type"] == "LORA" and config["nat_config"] == gate
        assert "nat_config" not in json.loads((folder / "neg" / "adapter_config.json").read_text())
        names = set(load_file(folder / "nat" / "adapter_model.safetensors"))
        kinds = {name.removesuffix(".weight").split(".")[-1] for name in names}
        assert kinds == {"lora_A", "lora_B", "lora_nat_q", "lora_nat_k", "lora_nat_v1", "lora_nat_v2"}
        assert len(names) == 6 * 2 * len(TARGETS)

    def test_is_trainable(self, load):
        loaded = load(is_trainable=True)
        assert loaded.training and loaded.peft_config["nat"].inference_mode is False
        trained = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
        assert trained == {name for name, _ in loaded.named_parameters() if ".nat." in name} and trained

    def test_plain_peft_warns_and_gives_another_model(self, model, folder, tiny_model):
        with pytest.warns(UserWarning, match="nat_config"):
            stock = PeftModel.from_pretrained(tiny_model(), str(folder / "nat")).eval()
        assert not torch.allclose(logits(stock), logits(model), atol=1e-2)

    def test_plain_peft_loads_the_negative_adapter(self, model, folder, tiny_model):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            stock = PeftModel.from_pretrained(tiny_model(), str(folder / "neg")).eval()
        model.set_adapter("neg")
        assert torch.equal(logits(stock), logits(model))

    def test_hash_knows_every_value_but_no_data_type(self, make_nat, tiny_model):
        model = make_nat().bfloat16()
        hashed = adapter_sha256(model, "neg")
        assert hashed == adapter_sha256(model.float(), "neg") != adapter_sha256(model, "nat")
        alike = get_peft_model(tiny_model(), model.peft_config["neg"], adapter_name="other")
        moved = model.get_parameter("base_model.model.model.layers.0.self_attn.q_proj.lora_A.neg.weight")
        weights = get_peft_model_state_dict(model, adapter_name="neg")
        set_peft_model_state_dict(alike, weights, adapter_name="other")
        assert adapter_sha256(alike, "other") == hashed  # whatever its name is
        moved.data[0, 0] *= 1.01
        assert adapter_sha256(model, "neg") != hashed
        layer = alike.base_model.model.model.layers
        layer[0], layer[1] = layer[1], layer[0]  # the same tensors under other names
        assert adapter_sha256(alike, "other") != hashed

    def test_bf16_base(self, make_nat, tiny_model, tmp_path):
        """Adapters and gate are fp32 on a bf16 model, and come back so."""
        exact = make_nat(tiny_model(initializer_range=0.2))
        model = make_nat(tiny_model(initializer_range=0.2).bfloat16())
        assert {p.dtype for name, p in model.named_parameters() if ".lora_" in name} == {torch.float32}
        found = logits(model)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), logits(exact), rtol=0.1, atol=0.1)
        model.save_pretrained(tmp_path / "out")
        loaded = load_nat(tiny_model(initializer_range=0.2).bfloat16(), str(tmp_path / "out"))
        assert torch.equal(logits(loaded), found)


class TestRefusals:
    @pytest.mark.parametrize("kind", ["lora_nat_q", "lora_nat_v2", "lora_A"])
    def test_a_folder_without_one_tensor(self, folder, load, kind):
        file = folder / "nat" / "adapter_model.safetensors"
        gone = next(name for name in load_file(file) if kind in name)
        rewrite(file, lambda tensors: tensors.pop(gone))
        with pytest.raises(ValueError, match=rf"1 tensors are missing \({gone}\) and 0 unexpected"):
            load()

    @pytest.mark.parametrize(
        ("file", "change", "message"),
        [
            (
                "nat/adapter_model.safetensors",
                lambda tensors: tensors.update({"more.lora_nat_q.weight": torch.zeros(1)}),
                r"0 tensors are missing \(\) and 1 unexpected \(more.lora_nat_q",
            ),
            (
                "nat/adapter_config.json",
                lambda config: config["nat_config"].update(width=6),
                "(?s)does not fit this model.*size mismatch",
            ),
            (
                "neg/adapter_model.safetensors",
                lambda tensors: tensors[min(tensors)][0, 0].add_(1e-3),
                "is not the one that .*nat was trained beside.*Copy both folders",
            ),
        ],
        ids=["a tensor too many", "a gate of another shape", "a foreign negative adapter"],
    )
    def test_changed_files(self, folder, load, file, change, message):
        rewrite(folder / file, change)
        with pytest.raises(ValueError, match=message):
            load()

    def test_missing_folders_and_plain_loras(self, folder, load, tmp_path):
        with pytest.raises(ValueError, match=r"No NAT in .*neg: there is no nat/adapter_config.json"):
            load(folder / "neg")
        with pytest.raises((ValueError, OSError), match="nowhere"):
            load(tmp_path / "nowhere")
        shutil.move(folder / "neg", folder / "gone")
        with pytest.raises(ValueError, match="No adapter in "):
            load()
        shutil.rmtree(folder / "nat")
        for name in ("neg", "nat"):
            shutil.copytree(folder / "gone", folder / name)
        with pytest.raises(ValueError, match=r"nat is a LoRA without an integration unit.*PeftModel.from_pretrained"):
            load()

    def test_another_base_model_and_one_with_adapters(self, model, load, tiny_model):
        with pytest.raises(ValueError, match="(?s)does not fit this model.*size mismatch"):
            load(base=tiny_model(hidden_size=16))
        with pytest.raises(ValueError, match=r"already has adapters.*model.unload\(\)"):
            load(base=model)


def test_negative_adapter_from_its_folder_or_the_one_above(model, folder, tiny_model, tmp_path):
    model.set_adapter("neg")
    for path in (folder, folder / "neg"):
        loaded = load_negative(tiny_model(), str(path), "any")
        assert torch.equal(logits(loaded), logits(model)) and list(loaded.peft_config) == ["any"]
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with pytest.raises(ValueError, match="holds a positive adapter with its gate.*`neg/` beside it"):
        load_negative(tiny_model(), str(folder / "nat"))
    other = get_peft_model(tiny_model(), IA3Config(task_type="CAUSAL_LM"))
    other.save_pretrained(tmp_path / "ia3")
    with pytest.raises(ValueError, match="is of type IA3; NAT needs a LoRA"):
        load_negative(tiny_model(), str(tmp_path / "ia3"))
    with pytest.raises(ValueError, match="(?s)negative adapter in .* does not fit this model.*size mismatch"):
        load_negative(tiny_model(hidden_size=16), str(folder))

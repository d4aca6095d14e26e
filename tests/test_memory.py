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

"""What is counted without weights against what real tiny models hold: bytes of storages, optimizers, saved tensors."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DynamicCache

from trl_distill.divergence import backbone
from trl_distill.memory import (
    CARDS,
    Estimate,
    Quantization,
    cache_bytes,
    count_activations,
    data_type,
    empty_model,
    model_bytes,
    optimizer_bytes,
    quantized_layers,
    read_config,
)


ROWS, TOKENS = 3, 128
SIZE = dict(hidden_size=64, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture
def model(request, tiny_model, tiny_gpt2):
    """A tiny model of the family that a test names, in training mode."""
    if request.param == "gpt2":
        without = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)  # no CPU kernel has it
        return tiny_gpt2(n_embd=64, n_head=4, n_layer=4, **without).train()
    return tiny_model(**SIZE, tie_word_embeddings=request.param == "tied").train()


SETTINGS = [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)]  # weights, mixed precision
untied = pytest.mark.parametrize("model", ["qwen2", "gpt2"], indirect=True)
families = pytest.mark.parametrize("model", ["qwen2", "tied", "gpt2"], indirect=True)


def batch():
    """Tokens, with a padded row."""
    mask = torch.ones(ROWS, TOKENS, dtype=torch.long)
    mask[0, -5:] = 0
    return {"input_ids": torch.zeros_like(mask), "attention_mask": mask, "use_cache": False}


def adapted(model):
    names = ["c_attn", "c_proj", "c_fc"] if model.config.model_type == "gpt2" else "all-linear"
    with torch.device(model.device):
        config = LoraConfig(r=4, lora_dropout=0.05, target_modules=names, task_type="CAUSAL_LM")
        return get_peft_model(model, config)


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights(model, dtype):
    model = AutoModelForCausalLM.from_config(model.config, dtype=dtype)
    assert model_bytes(empty_model(model.config, dtype)) == (model.get_memory_footprint(), 0)


@pytest.mark.parametrize("model", ["qwen2", "tied"], indirect=True)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("nested", [False, True])
def test_quantized_weights(model, bits, nested, tmp_path):
    """The layers, their packed weights and every constant of bitsandbytes."""
    if bits == 8 and nested:
        pytest.skip("8-bit layers have nothing to nest")
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=nested,
    )
    real = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.bfloat16)
    constants, layers = 0, set()
    for name, module in real.named_modules():
        if bits == 4 and (state := getattr(getattr(module, "weight", None), "quant_state", None)) is not None:
            layers.add(name)
            tensors = [state.absmax, state.code]
            tensors += [state.state2.absmax, state.state2.code, state.offset] if nested else []
            constants += sum(tensor.nbytes for tensor in tensors)
        elif bits == 8 and getattr(module, "weight", None) is not None and module.weight.dtype == torch.int8:
            layers.add(name)
            constants += 4 * module.out_features  # one float32 a row, which the CPU makes with the first forward
    empty, quantization = empty_model(model.config, torch.bfloat16), Quantization.of(config)
    assert quantization == Quantization(bits, nested)
    assert set(quantized_layers(empty, quantization)) == layers and len(layers) == 7 * SIZE["num_hidden_layers"]
    assert model_bytes(empty, quantization) == (real.get_memory_footprint() + constants, 2 * 64 * 192)


def test_a_quantized_layer_that_is_left_out(tiny_model):
    empty = empty_model(tiny_model(**SIZE).config, torch.bfloat16)
    quantization = Quantization.of({"load_in_4bit": True, "llm_int8_skip_modules": ["lm_head", "_proj"]})
    assert quantized_layers(empty, quantization) == {}
    with pytest.raises(ValueError, match="no rule for the quantization"):
        Quantization.of({"quant_method": "gptq"})
    assert Quantization.of(None) is None


@families
def test_adapters(model):
    real, empty = adapted(model), adapted(empty_model(model.config, torch.float32))
    sizes = [
        {name: (weight.shape, weight.dtype, weight.requires_grad) for name, weight in one.named_parameters()}
        for one in (real, empty)
    ]
    assert sizes[0] == sizes[1] and any("lora_A" in name for name in sizes[0])


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_lora", [False, True])
def test_states_of_adamw(model, dtype, with_lora):
    model, empty = model.to(dtype), empty_model(model.config, dtype)
    if with_lora:
        model, empty = adapted(model), adapted(empty)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for weight in trained:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    held = sum(tensor.nbytes for state in optimizer.state.values() for tensor in state.values())
    assert optimizer_bytes(empty, "adamw_torch_fused") == held > 0
    count = sum(weight.numel() for weight in trained)
    assert optimizer_bytes(empty, "paged_adamw_32bit") == 8 * count
    assert optimizer_bytes(empty, "sgd") == 0
    with pytest.raises(ValueError, match="no rule for `optim: adafactor`, only for adamw_torch, "):
        optimizer_bytes(empty, "adafactor")


def test_states_in_8_bit():
    """As bitsandbytes makes them, which leaves small tensors and embeddings in float32."""
    bnb = pytest.importorskip("bitsandbytes")
    layers = torch.nn.ModuleList([torch.nn.Linear(100, 90), torch.nn.Embedding(90, 100)])
    optimizer = bnb.optim.AdamW8bit(layers.parameters())
    manager = bnb.optim.GlobalOptimManager.get_instance()
    manager.register_module_override(layers[1], "weight", {"optim_bits": 32})  # as transformers does
    optimizer.override_module, held = [], 0
    optimizer.check_overrides()
    for group_index, group in enumerate(optimizer.param_groups):
        for index, weight in enumerate(group["params"]):
            weight.grad = torch.ones_like(weight)
            optimizer.init_state(group, weight, group_index, index)
            state = optimizer.state[weight]
            held += sum(state[name].nbytes for name in ("state1", "state2", "absmax1", "absmax2") if name in state)
    small, large = 90, 9000
    assert held == 8 * small + 8 * large + 2 * large + 8 * -(-large // 256)
    assert optimizer_bytes(layers, "adamw_bnb_8bit") == held


@families
@pytest.mark.parametrize(("dtype", "mixed"), SETTINGS)
def test_cache(model, dtype, mixed):
    """Of a float32 model with rotated keys, mixed precision keeps these in float32, and values beside them."""
    model = AutoModelForCausalLM.from_config(model.config, dtype=dtype).eval()
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        model(torch.zeros(ROWS, 9, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(model.config, ROWS, 9, mixed) == held > 0


def saved_bytes(model, mixed):
    """Storages that a real forward of the backbone saves for its backward, weights left out."""
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        backbone(model)(**batch())
    return sum(storage.nbytes() for storage in saved.values())


@untied
@pytest.mark.parametrize(("dtype", "mixed"), SETTINGS)
@pytest.mark.parametrize(("with_lora", "attention"), [(False, "sdpa"), (True, "sdpa"), (True, "eager")])
def test_what_a_forward_saves(model, dtype, mixed, with_lora, attention):
    """To 1 %: what is missing are vectors over positions."""
    model.config._attn_implementation = attention
    model, empty = model.to(dtype), empty_model(model.config, dtype)
    if with_lora:
        model, empty = adapted(model), adapted(empty)
    counted = count_activations(empty, ROWS, TOKENS, mixed, attention)
    assert (counted.copies > 0) == (mixed and dtype == torch.float32 or mixed and with_lora)
    assert counted.kept + counted.copies == pytest.approx(saved_bytes(model, mixed), rel=0.01)


@untied
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("checkpoints", [False, True])
def test_peak_of_a_forward_and_backward(model, mixed, checkpoints):
    """
    What PyTorch's tracker of real tensors sees at the highest point, beyond weights and gradients. The count lies
    between 0.95 and 1.6 of it: copies of all weights are counted, and with checkpoints they are never held at once.
    """
    counted = count_activations(empty_model(model.config, torch.float32), ROWS, TOKENS, mixed)
    if checkpoints:
        model.gradient_checkpointing_enable()
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = backbone(model)(**batch()).last_hidden_state.sum()
        loss.backward()
    [peak] = tracker.get_tracker_snapshot("peak").values()
    sizes = {str(kind).rpartition(".")[2]: size for kind, size in peak.items()}
    held = sizes["Total"] - sizes["PARAM"] - sizes["BUFFER"] - sizes["GRAD"]
    expected = (counted.checkpointed if checkpoints else counted.kept) + counted.copies + counted.widest
    assert 0.95 < expected / held < 1.6


def test_checkpoints_hold_less(tiny_model):
    """The inputs of all layers, and one of them: more layers add their inputs alone."""
    few, many = (
        count_activations(
            empty_model(tiny_model(**SIZE | {"num_hidden_layers": n}).config, torch.float32), 2, 64, False
        )
        for n in (4, 8)
    )
    assert many.checkpointed - few.checkpointed == 4 * 2 * 64 * 64 * 4
    assert many.checkpointed < many.kept / 3


def test_counting_leaves_the_config_alone(tiny_model):
    config = tiny_model(**SIZE).config
    before = copy.deepcopy(config).to_dict()
    count_activations(empty_model(config, torch.float32), 1, 4, False)
    assert config.to_dict() == before and config._attn_implementation != "counted_padded"


def test_what_fits():
    estimate = Estimate({"weights": 5 * 10**9}, {"step": 2 * 10**9}, {"rollout": 3 * 10**9})
    assert estimate.peak == 8 * 10**9  # a step and a rollout are never held at once
    assert estimate.total == 8 * 10**9 + 600_000_000 + 400_000_000
    assert estimate.fits == [card for card in CARDS if card >= 9] == [12, 16, 24, 40, 80]


class TestConfigs:
    def test_without_one(self, tmp_path):
        for name in ("Qwen/Qwen2.5-0.5B", str(tmp_path / "nowhere"), str(tmp_path)):
            with pytest.raises(
                ValueError, match="no config of the model .* name a folder that holds its `config.json`"
            ):
                read_config(name)

    def test_of_an_adapter(self, tmp_path, tiny_model):
        adapted(tiny_model()).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="is an adapter. Name its base"):
            read_config(str(tmp_path))

    def test_of_a_quantized_checkpoint(self, tmp_path, tiny_model):
        config = tiny_model().config
        config.quantization_config = {"quant_method": "gptq", "bits": 4}
        config.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="is stored quantized"):
            read_config(str(tmp_path))

    def test_type(self, tiny_model):
        config = tiny_model().config
        config.dtype = torch.bfloat16
        assert data_type("auto", config) == torch.bfloat16
        assert data_type("float32", config) == torch.float32

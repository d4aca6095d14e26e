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
"""One layer against the formula, limits of the gate, and PEFT around it: no training."""

import math

import numpy as np
import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from tests.rationales.nat.adapters import IDS, TARGETS, logits, lora, trained_adapters
from trl_distill.rationales.nat.integration_unit import NATLoraConfig, add_nat, gate_parameters, negative_weight


def weights_of(model, part, adapter="nat"):
    return [p for name, p in model.named_parameters() if f".{part}.{adapter}." in name]


def zero(model, part):
    for weight in weights_of(model, part):
        weight.data.zero_()


def stock_lora(model, name):
    """Tensors of an adapter without its gate."""
    state = get_peft_model_state_dict(model, adapter_name=name)
    return {key: value for key, value in state.items() if "lora_nat" not in key}


def first_layer(model):
    return next(module for module in model.modules() if isinstance(module, LoraLayer))


class TestNegativeWeight:
    def gate(self, gap, temperature=1.0, dtype=torch.float32):
        """A gate whose query is 1 and whose key is `gap`, from numbers that every data type holds."""
        one = torch.ones(1, dtype=dtype)
        d_pos, d_neg = torch.tensor([0.25], dtype=dtype), torch.tensor([1.25], dtype=dtype)
        a = negative_weight(one, d_pos, d_neg, one[None], torch.tensor([[gap]]), temperature)
        return a.item()

    def test_limits(self):
        assert self.gate(0.0) == 0.0  # weights (1, 0)
        assert self.gate(1e9) == 0.5  # (0.5, 0.5)
        assert self.gate(-1e9) == -0.5  # (1.5, -0.5)
        assert self.gate(math.log(3)) == pytest.approx(0.25)  # a softmax of (3/4, 1/4) towards the negative one
        assert self.gate(math.log(9), temperature=2.0) == pytest.approx(0.25)

    def test_is_a_shifted_softmax_over_both_adapters(self):
        """Eq. (4) as it is written, with both keys and the output of the frozen layer in them."""
        torch.manual_seed(0)
        x, y, d_pos, d_neg = (torch.randn(6, n).double() for n in (7, 4, 4, 4))
        w_q, w_k = torch.randn(3, 7).double(), torch.randn(3, 4).double()
        scores = torch.stack([(x @ w_q.T * ((y + d) @ w_k.T)).sum(-1) for d in (d_pos, d_neg)], -1)
        expected = scores.softmax(-1) + torch.tensor([0.5, -0.5])
        a = negative_weight(*(t.float() for t in (x, d_pos, d_neg, w_q, w_k)), 1.0)
        torch.testing.assert_close(torch.cat([1 - a, a], -1).double(), expected, rtol=1e-4, atol=1e-5)
        assert a.abs().max() > 0.1  # not near the trivial case

    def test_the_same_vector_in_both_deltas_changes_nothing(self):
        torch.manual_seed(0)
        x, d_pos, d_neg, shift = torch.randn(6, 7), *torch.randn(3, 6, 4)
        w_q, w_k = torch.randn(3, 7), torch.randn(3, 4)
        a, b = (negative_weight(x, d_pos + s, d_neg + s, w_q, w_k, 1.0) for s in (0, shift))
        torch.testing.assert_close(a, b)
        assert torch.equal(negative_weight(x, d_pos, d_pos, w_q, w_k, 1.0), torch.zeros(6, 1))

    def test_stays_finite_for_a_huge_query(self):
        torch.manual_seed(0)
        x, d_pos, d_neg = torch.randn(6, 7), *torch.randn(2, 6, 4)
        a = negative_weight(x, d_pos, d_neg, torch.randn(3, 7) * 1e6, torch.randn(3, 4), 1.0)
        assert a.abs().max() == 0.5 and a.isfinite().all()

    def test_is_fp32_under_bf16_autocast(self):
        torch.manual_seed(0)
        x, d_pos, d_neg = (torch.randn(6, n).bfloat16() for n in (64, 48, 48))
        w_q, w_k = torch.randn(32, 64), torch.randn(32, 48)
        expected = negative_weight(x, d_pos, d_neg, w_q, w_k, 20.0)
        with torch.autocast("cpu", torch.bfloat16):
            a = negative_weight(x, d_pos, d_neg, w_q, w_k, 20.0)
        assert a.dtype == torch.float32 and torch.equal(a, expected)
        rounded = negative_weight(x, d_pos, d_neg, w_q.bfloat16(), w_k.bfloat16(), 20.0)
        assert not torch.equal(a, rounded)  # bf16 would have shown


def layer_by_the_formula(model, name, x, value, temperature, conv1d=False):
    """Output of one NAT layer in float64 numpy, from the saved tensors and the equations of the paper alone."""
    tensors = {key: p.detach().double().numpy() for key, p in model.named_parameters() if f".{name}." in key}
    get = lambda part: next(tensor for key, tensor in tensors.items() if f"{name}.{part}" in key)  # noqa: E731
    x = x.double().numpy()
    weight = get("base_layer.weight")
    base = x @ (weight if conv1d else weight.T)
    if any("base_layer.bias" in key for key in tensors):
        base = base + get("base_layer.bias")
    keys = {}
    for adapter, scale in (("nat", 4 / 2), ("neg", 9 / 3)):
        keys[adapter] = base + scale * (x @ get(f"lora_A.{adapter}").T) @ get(f"lora_B.{adapter}").T
    score = {
        adapter: np.einsum("bti,wi,bto,wo->bt", x, get("lora_nat_q.nat"), h, get("lora_nat_k.nat")) / temperature
        for adapter, h in keys.items()
    }
    total = np.logaddexp(score["nat"], score["neg"])
    attention = {"nat": np.exp(score["nat"] - total) + 0.5, "neg": np.exp(score["neg"] - total) - 0.5}
    assert np.abs(attention["neg"]).max() > 0.05  # a gate at rest would not show its terms
    if value == "identity":
        return sum(attention[adapter][..., None] * keys[adapter] for adapter in keys)
    erf = np.vectorize(math.erf)
    hidden = {adapter: h @ get("lora_nat_v1.nat").T for adapter, h in keys.items()}
    gelu = {adapter: 0.5 * h * (1 + erf(h / math.sqrt(2))) for adapter, h in hidden.items()}
    return base + sum(attention[adapter][..., None] * (gelu[adapter] @ get("lora_nat_v2.nat").T) for adapter in keys)


class TestLayer:
    def assert_matches_the_formula(self, model, name, value, temperature=1.0, conv1d=False):
        layer = next(module for key, module in model.named_modules() if key.endswith(name))
        x = torch.randn(2, 3, layer.in_features, generator=torch.Generator().manual_seed(5))
        expected = layer_by_the_formula(model, name, x, value, temperature, conv1d)
        with torch.no_grad():
            np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-4, atol=1e-4)
        return expected.shape

    @pytest.mark.parametrize("temperature", [1.0, 2.5])
    @pytest.mark.parametrize("value", ["mlp", "identity"])
    @pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"])
    def test_matches_the_formula_in_float64(self, make_nat, value, name, temperature):
        model = make_nat(value=value, temperature=temperature)
        self.assert_matches_the_formula(model, f"layers.1.{name}", value, temperature)

    @pytest.mark.parametrize("value", ["mlp", "identity"])
    def test_matches_the_formula_on_conv1d_of_gpt2(self, make_nat, tiny_gpt2, value):
        targets = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
        model = make_nat(tiny_gpt2(), positive=targets, negative=targets, value=value)
        for name, width in (("h.0.attn.c_attn", 24), ("h.1.mlp.c_fc", 32)):
            assert self.assert_matches_the_formula(model, name, value, conv1d=True) == (2, 3, width)

    def test_gate_has_the_widths_of_the_layer_and_the_initial_values_of_the_release(self, make_nat):
        for value in ("mlp", "identity"):
            gate = gate_parameters(make_nat(fresh=True, value=value, width=512))
            assert all(parameter.dtype == torch.float32 for parameter in gate.values())
            shapes = {
                (name.split(".")[-4], name.split(".")[-3].removeprefix("lora_nat_")): tuple(parameter.shape)
                for name, parameter in gate.items()
            }
            for target, d_in, d_out in (("q_proj", 8, 8), ("v_proj", 8, 4), ("down_proj", 32, 8)):
                assert shapes.pop((target, "q")) == (512, d_in) and shapes.pop((target, "k")) == (512, d_out)
                if value == "mlp":
                    assert shapes.pop((target, "v1")) == (512, d_out) and shapes.pop((target, "v2")) == (d_out, 512)
            assert not shapes
            zero = "lora_nat_v2" if value == "mlp" else "lora_nat_q"
            for name, parameter in gate.items():
                if zero in name:
                    assert not parameter.any(), name
                else:  # Kaiming uniform with a = sqrt(5): within 1 / sqrt(d_in)
                    bound = parameter.shape[1] ** -0.5
                    assert 0.95 * bound < parameter.abs().max() <= bound, name

    def test_every_part_counts(self, make_nat):
        """Changing one tensor of either adapter or of the gate changes the output."""
        for value in ("mlp", "identity"):
            model = make_nat(value=value)
            before = logits(model)
            for name, parameter in model.named_parameters():
                if ".layers.0.self_attn.v_proj." in name and ".lora_" in name:
                    kept = parameter.data
                    parameter.data = kept * 2
                    assert not torch.equal(logits(model), before), name
                    parameter.data = kept


class TestLimits:
    def test_identity_without_a_query_is_the_positive_lora_alone(self, make_nat, tiny_model):
        model = make_nat(value="identity")
        zero(model, "lora_nat_q")
        alone = get_peft_model(tiny_model(), lora(), adapter_name="nat").eval()
        set_peft_model_state_dict(alone, stock_lora(model, "nat"), adapter_name="nat")
        assert torch.equal(logits(model), logits(alone))

    def test_a_fresh_identity_gate_has_no_query(self, make_nat, tiny_model):
        model = make_nat(value="identity", fresh=True)
        assert torch.equal(logits(model), logits(tiny_model()))  # B is zero too

    def test_mlp_without_its_second_value_matrix_is_the_base(self, make_nat, tiny_model):
        model = make_nat()
        zero(model, "lora_nat_v2")
        assert torch.equal(logits(model), logits(tiny_model()))
        assert torch.equal(logits(make_nat(fresh=True)), logits(tiny_model()))

    def test_mlp_with_a_closed_gate_does_not_see_the_negative_adapter(self, make_nat):
        """There it is base + V(base + d_pos), which the formula above gives for a = 0, and not the positive LoRA."""
        model = make_nat()
        zero(model, "lora_nat_q")
        before = logits(model)
        for matrix in weights_of(model, "lora_A", "neg"):
            matrix.data.mul_(-3)
        torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
        model.set_adapter("neg")
        assert not torch.allclose(logits(model), before, atol=1e-2)

    def test_negative_equal_to_positive_closes_the_gate(self, make_nat):
        same = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0}
        model = make_nat(value="identity", positive=same)
        layer = first_layer(model)
        x = torch.randn(4, layer.in_features)
        layer.scaling["neg"] = layer.scaling["nat"]
        for part in (layer.lora_A, layer.lora_B):
            part["neg"] = part["nat"]
        with torch.no_grad():
            expected = layer.base_layer(x) + layer.lora_B["nat"](layer.lora_A["nat"](x)) * 2
            assert torch.equal(layer(x), expected)

    def test_a_negative_adapter_of_zero_still_gates_the_positive_one(self, make_nat):
        model = make_nat(value="identity")
        layer = first_layer(model)
        layer.lora_B["neg"].weight.data.zero_()
        x = torch.randn(4, layer.in_features)
        with torch.no_grad():
            delta = layer.lora_B["nat"](layer.lora_A["nat"](x)) * 2
            q, k = layer.lora_nat_q["nat"].weight, layer.lora_nat_k["nat"].weight
            share = 1.5 - torch.sigmoid(-((x @ q.T) * (delta @ k.T)).sum(-1, keepdim=True))
            torch.testing.assert_close(layer(x), layer.base_layer(x) + share * delta)
            assert (share - 1).abs().max() > 0.05


class TestGradients:
    def gradients(self, model, ids=IDS):
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {
            kind: [p.grad is not None and bool(p.grad.any()) for name, p in model.named_parameters() if kind in name]
            for kind in ("lora_A.nat", "lora_B.nat", "lora_nat_q", "lora_nat_k", "lora_nat_v1", "lora_nat_v2")
        }

    def learning(self, model):
        flags = self.gradients(model)
        for kind, found in flags.items():
            assert len(set(found)) <= 1, f"{kind} learns in some layers only"
        return {kind.split(".")[0].removeprefix("lora_") for kind, found in flags.items() if any(found)}

    @pytest.mark.parametrize(
        ("value", "steps"),
        [
            ("mlp", [{"nat_v2"}, {"nat_v1", "nat_q", "nat_k", "B"}, {"A"}]),
            ("identity", [{"nat_q", "B"}, {"nat_k", "A"}]),
        ],
    )
    def test_parts_join_in_turn(self, make_nat, value, steps):
        model, learning = make_nat(fresh=True, value=value), set()
        for matrix in weights_of(model, "lora_B", "neg"):
            nn.init.normal_(matrix)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for joining in steps:
            learning |= joining
            assert self.learning(model) == learning
            optimizer.step()

    def test_only_the_positive_adapter_and_its_gate_learn(self, make_nat):
        model = make_nat()
        self.gradients(model)
        for name, parameter in model.named_parameters():
            learns = ".nat." in name
            assert parameter.requires_grad is learns and (parameter.grad is not None) is learns, name
        for name in ("neg", "nat"):
            model.set_adapter(name)
            assert trained_adapters(model) == {name}

    def test_the_negative_adapter_runs_without_dropout(self, make_nat):
        assert torch.equal(logits(make_nat().train()), logits(make_nat()))  # `neg` has dropout 0.9, `nat` none
        dropped = make_nat(positive={"lora_dropout": 0.5}).train()
        assert not torch.equal(logits(dropped), logits(make_nat()))
        found = []
        for training in (True, False):  # its input is not that of the positive adapter, which is 0 here
            dropped.train(training)
            zero(dropped, "lora_B")
            found.append(logits(dropped))
        assert torch.equal(*found)

    def test_gradient_checkpointing_changes_no_gradient(self, make_nat):
        found = []
        for checkpointing in (False, True):
            model = make_nat().train()
            if checkpointing:
                model.enable_input_require_grads()
                model.gradient_checkpointing_enable({"use_reentrant": False})
            model(IDS, labels=IDS).loss.backward()
            found.append([p.grad for p in model.parameters() if p.requires_grad])
        assert found[0] and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class TestInference:
    @pytest.mark.parametrize("value", ["mlp", "identity"])
    def test_no_token_sees_the_future(self, make_nat, value):
        model = make_nat(value=value)
        changed = IDS.clone()
        changed[:, 6:] = 200
        a, b = logits(model), logits(model, changed)
        torch.testing.assert_close(a[:, :6], b[:, :6])
        assert not torch.allclose(a[:, 6:], b[:, 6:], atol=1e-2)

    def test_cache_equals_a_full_forward(self, make_nat):
        model = make_nat()
        whole = logits(model)
        with torch.no_grad():
            cache = model(IDS[:, :4], use_cache=True).past_key_values
            for t in range(4, IDS.shape[1]):
                step = model(IDS[:, t : t + 1], past_key_values=cache, use_cache=True)
                cache = step.past_key_values
                torch.testing.assert_close(step.logits[:, 0], whole[:, t])

    def test_left_padding_changes_nothing(self, make_nat):
        model = make_nat()
        padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), IDS], 1)
        mask = (torch.arange(13) >= 3).long()[None]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        found = logits(model, padded, attention_mask=mask, position_ids=positions)[:, 3:]
        torch.testing.assert_close(found, logits(model))

    def test_greedy_generation_takes_the_argmax_of_full_forwards(self, make_nat):
        model = make_nat()
        found = model.generate(input_ids=IDS, max_new_tokens=8, do_sample=False, eos_token_id=None)
        ids = IDS
        for _ in range(8):
            ids = torch.cat([ids, logits(model, ids)[:, -1:].argmax(-1)], 1)
        assert torch.equal(found, ids)

    def test_sampling_does_not_depend_on_the_cache(self, make_nat):
        model, found = make_nat(), []
        settings = dict(input_ids=IDS, max_new_tokens=12, eos_token_id=None)
        for use_cache in (True, False):
            torch.manual_seed(3)
            found.append(model.generate(**settings, do_sample=True, use_cache=use_cache))
        assert torch.equal(*found)
        assert not torch.equal(found[0], model.generate(**settings, do_sample=False))

    def test_prompts_of_different_lengths_generate_what_each_generates_alone(self, make_nat, tokenizer):
        model = make_nat()
        prompts = ["Say it well", "Q: 1 + 1 =", "x"]
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        settings = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)
        together = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
        for prompt, row in zip(prompts, together, strict=True):
            alone = tokenizer(prompt, return_tensors="pt")
            assert torch.equal(model.generate(**alone, **settings)[0, alone["input_ids"].shape[1] :], row)


class TestAdapters:
    def alone(self, model, tiny_model):
        """Logits of `nat`, of a stock LoRA with the weights of `neg`, and of the base."""
        plain = get_peft_model(tiny_model(), lora(r=3, lora_alpha=9), adapter_name="neg").eval()
        set_peft_model_state_dict(plain, stock_lora(model, "neg"), adapter_name="neg")
        return logits(model), logits(plain), logits(tiny_model())

    def test_switching(self, make_nat, tiny_model):
        model = make_nat()
        nat, neg, base = self.alone(model, tiny_model)
        assert not torch.allclose(nat, neg) and not torch.allclose(neg, base) and not torch.allclose(nat, base)
        model.set_adapter("neg")
        assert torch.equal(logits(model), neg)
        with model.disable_adapter():
            assert torch.equal(logits(model), base)
        model.set_adapter("nat")
        assert torch.equal(logits(model), nat)
        with model.disable_adapter():
            assert torch.equal(logits(model), base)

    @pytest.mark.parametrize("active", ["nat", "neg"])
    def test_one_batch_with_different_adapters(self, make_nat, tiny_model, active):
        model = make_nat()
        expected = torch.cat(self.alone(model, tiny_model))
        model.set_adapter(active)
        names = ["nat", "neg", "__base__"]
        torch.testing.assert_close(logits(model, IDS.expand(3, -1), adapter_names=names), expected)

    def test_two_active_adapters_are_refused(self, make_nat):
        model = make_nat()
        model.base_model.set_adapter(["neg", "nat"])
        with pytest.raises(ValueError, match=r"must be the only active adapter.*set_adapter\('nat'\)"):
            logits(model)

    def test_deleting_nat_leaves_the_negative_adapter(self, make_nat, tiny_model):
        model = make_nat()
        _, neg, _ = self.alone(model, tiny_model)
        model.delete_adapter("nat")
        model.set_adapter("neg")
        assert torch.equal(logits(model), neg) and not gate_parameters(model)

    def test_two_gates_on_one_negative_adapter(self, make_nat):
        """A second NAT beside the first, with another value form; each keeps its own gate."""
        model = make_nat()
        before = logits(model)
        torch.manual_seed(4)
        add_nat(model, NATLoraConfig.of(lora(), value="identity", width=3, temperature=1.0), "other")
        for matrix in [*weights_of(model, "lora_nat_q", "other"), *weights_of(model, "lora_B", "other")]:
            nn.init.normal_(matrix)
        assert not torch.allclose(logits(model), before, atol=1e-2)
        assert trained_adapters(model) == {"other"}
        for name, parts in (("nat", 4), ("other", 2)):
            found = gate_parameters(model, name)
            assert len(found) == parts * 2 * len(TARGETS) and all(f".{name}." in key for key in found)
        model.set_adapter("nat")
        assert torch.equal(logits(model), before)

    def test_other_models_are_not_touched(self, make_nat, tiny_model):
        names = LoraLayer.adapter_layer_names
        make_nat()
        assert LoraLayer.adapter_layer_names == names and not any("nat" in name for name in names)
        other = get_peft_model(tiny_model(), lora())
        assert not any("lora_nat" in name for name in other.state_dict())

    @pytest.mark.parametrize(
        "merge",
        [
            lambda model: model.merge_adapter(),
            lambda model: model.merge_adapter(["nat"]),
            lambda model: model.merge_adapter(safe_merge=True),
            lambda model: model.merge_and_unload(),
            lambda model: model.merge_and_unload(safe_merge=True),
            lambda model: model.merge_and_unload(adapter_names=["nat"]),
        ],
    )
    def test_every_merge_is_refused_and_leaves_the_model_as_it_was(self, make_nat, merge):
        model = make_nat()
        before = logits(model)
        with pytest.raises(ValueError, match=r"cannot be merged.*NCE \(`trl-distill nce`\)"):
            merge(model)
        assert torch.equal(logits(model), before)

    def test_is_no_lora_to_convert_or_to_unmerge(self, make_nat):
        layer = first_layer(make_nat())
        assert layer.supports_lora_conversion("nat") is False and layer.supports_lora_conversion("neg") is True
        with pytest.raises(ValueError, match="cannot be merged"):
            layer.lora_variant["nat"].unmerge(layer, "nat", layer.get_base_layer().weight)

    def test_a_weighted_sum_of_adapters_loses_the_gate(self, make_nat, two_loras):
        """PEFT gives no place to refuse it: `add_weighted_adapter` reads the LoRA matrices and knows no variant."""
        model = make_nat()
        nat = logits(model)
        model.add_weighted_adapter(["nat", "neg"], [0.7, 0.3], "sum", combination_type="cat")
        model.set_adapter("sum")
        assert not torch.allclose(logits(model), nat, atol=1e-2)
        plain = two_loras(negative=dict(r=3, lora_alpha=9))
        for name in ("nat", "neg"):
            set_peft_model_state_dict(plain, stock_lora(model, name), adapter_name=name)
        plain.add_weighted_adapter(["nat", "neg"], [0.7, 0.3], "sum", combination_type="cat")
        plain.set_adapter("sum")
        assert torch.equal(logits(model), logits(plain))

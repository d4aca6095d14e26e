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

"""Chunked log-probabilities and divergences against dense float64 definitions, and the hidden states they read."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from trl_distill.divergence import LMHead, completion_states, lm_head, token_divergence, token_logps


CLOSE = dict(rtol=2e-5, atol=2e-5)


def random_head(vocab, width, seed, bias=False, scale=1.0, softcap=None, spread=1.0):
    """An fp32 head whose logits vary by a few nats."""
    generator = torch.Generator().manual_seed(seed)
    weight = spread * torch.randn(vocab, width, generator=generator) / math.sqrt(width)
    offset = torch.randn(vocab, generator=generator).requires_grad_() if bias else None
    return LMHead(weight.requires_grad_(), offset, scale, softcap)


def random_hidden(rows, width, seed):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def dense_logps(hidden, head, temperature=1.0):
    """The definition, `(N, V)` in float64."""
    logits = hidden.double() @ head.weight.double().T
    if head.bias is not None:
        logits = logits + head.bias.double()
    logits = logits * head.logit_scale
    if head.final_logit_softcapping is not None:
        logits = torch.tanh(logits / head.final_logit_softcapping) * head.final_logit_softcapping
    return (logits / temperature).log_softmax(1)


def dense_kl(hidden, head, teacher_hidden, teacher_head, beta, temperature=1.0):
    q, p = dense_logps(hidden, head, temperature), dense_logps(teacher_hidden, teacher_head, temperature).detach()
    return (q.exp() * (q - p)).sum(1) if beta == 1.0 else (p.exp() * (p - q)).sum(1)


def gradients(values, *leaves, weights=None):
    """Gradients of a weighted sum, so that no two tokens pull alike."""
    weights = torch.linspace(0.5, 1.5, len(values), dtype=values.dtype) if weights is None else weights
    leaves = [leaf for leaf in leaves if leaf is not None]
    return [gradient.double() for gradient in torch.autograd.grad((weights * values).sum(), leaves, retain_graph=True)]


# Hand-made cases that do not need a dense reference


def test_direction_of_the_divergence():
    """Student (1/2, 1/2), teacher (3/4, 1/4), each KL by hand."""
    hidden = torch.ones(1, 1)
    student = LMHead(torch.zeros(2, 1))
    teacher = LMHead(torch.tensor([[math.log(3.0)], [0.0]]))
    reverse, entropy = token_divergence(hidden, student, hidden, teacher, beta=1.0)
    forward, _ = token_divergence(hidden, student, hidden, teacher, beta=0.0)
    assert reverse.item() == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25), abs=1e-6)
    assert forward.item() == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5), abs=1e-6)
    assert abs(forward.item() - reverse.item()) > 1e-2
    assert entropy.item() == pytest.approx(math.log(2), abs=1e-6)
    default, _ = token_divergence(hidden, student, hidden, teacher)
    assert default.item() == reverse.item()


def test_gradient_of_both_directions_to_the_logits():
    """With an identity head the hidden states are the logits: q (log q - log p - KL) and q - p."""
    vocab = 7
    hidden, teacher_hidden = random_hidden(4, vocab, 0), random_hidden(4, vocab, 1)
    head = LMHead(torch.eye(vocab))
    q, p = hidden.detach().double().log_softmax(1), teacher_hidden.detach().double().log_softmax(1)
    kl = (q.exp() * (q - p)).sum(1, keepdim=True)
    reverse, _ = token_divergence(hidden, head, teacher_hidden, head, beta=1.0)
    forward, _ = token_divergence(hidden, head, teacher_hidden, head, beta=0.0)
    ones = torch.ones(4)
    torch.testing.assert_close(gradients(reverse, hidden, weights=ones)[0], q.exp() * (q - p - kl), **CLOSE)
    torch.testing.assert_close(gradients(forward, hidden, weights=ones)[0], q.exp() - p.exp(), **CLOSE)
    logps = token_logps(hidden, head, torch.tensor([0, 3, 6, 2]))
    expected = torch.nn.functional.one_hot(torch.tensor([0, 3, 6, 2]), vocab) - q.exp()
    torch.testing.assert_close(gradients(logps, hidden, weights=ones)[0], expected, **CLOSE)


def test_equal_models_have_no_divergence_and_no_gradient():
    hidden, head = random_hidden(5, 8, 0), random_head(50, 8, 1, bias=True, spread=4.0)
    for beta in (0.0, 1.0):
        divergence, _ = token_divergence(hidden, head, hidden.detach(), head, beta=beta)
        torch.testing.assert_close(divergence, torch.zeros(5), rtol=0, atol=1e-6)
        for gradient in gradients(divergence, hidden, head.weight, head.bias):
            assert gradient.abs().max() < 1e-6


# Chunked against dense


VARIANTS = {
    "plain": (dict(), dict(), 1.0),
    "bias": (dict(bias=True), dict(bias=True), 1.0),
    "temperature": (dict(), dict(), 0.7),
    "scale": (dict(scale=0.25), dict(scale=2.0), 1.0),
    "softcap": (dict(softcap=3.0), dict(softcap=1.5), 1.0),
    "all": (dict(bias=True, scale=1.7, softcap=4.0), dict(bias=True, scale=0.5), 1.3),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_chunked_equals_dense(variant):
    """An odd shape: 3 rows of 47 tokens, 31 wide, 123 tokens in the vocabulary; a wider teacher."""
    student_kwargs, teacher_kwargs, temperature = VARIANTS[variant]
    n, width, vocab = 3 * 47, 31, 123
    hidden, head = random_hidden(n, width, 0), random_head(vocab, width, 1, spread=3.0, **student_kwargs)
    teacher_hidden = random_hidden(n, 2 * width, 2)
    teacher_head = random_head(vocab, 2 * width, 3, spread=3.0, **teacher_kwargs)
    tokens = torch.randint(vocab, (n,), generator=torch.Generator().manual_seed(4))
    leaves = (hidden, head.weight, head.bias)

    logps = token_logps(hidden, head, tokens, temperature)
    dense = dense_logps(hidden, head, temperature)
    expected = dense.gather(1, tokens[:, None])[:, 0]
    assert logps.dtype == torch.float32 and logps.shape == (n,)
    torch.testing.assert_close(logps.double(), expected, **CLOSE)
    for actual, exact in zip(gradients(logps, *leaves), gradients(expected, *leaves), strict=True):
        torch.testing.assert_close(actual, exact, **CLOSE)

    for beta in (1.0, 0.0):
        divergence, entropy = token_divergence(hidden, head, teacher_hidden, teacher_head, beta, temperature)
        expected = dense_kl(hidden, head, teacher_hidden, teacher_head, beta, temperature)
        assert divergence.dtype == torch.float32 and divergence.shape == (n,)
        assert expected.min() > 0.01
        torch.testing.assert_close(divergence.double(), expected, **CLOSE)
        for actual, exact in zip(gradients(divergence, *leaves), gradients(expected, *leaves), strict=True):
            torch.testing.assert_close(actual, exact, **CLOSE)
        torch.testing.assert_close(entropy.double(), -(dense.exp() * dense).sum(1), **CLOSE)
        assert not entropy.requires_grad
        constants = (teacher_hidden, teacher_head.weight)
        assert torch.autograd.grad(divergence.sum(), constants, allow_unused=True) == (None, None)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(2, 40),
    st.floats(0.3, 3.0),
    st.integers(1, 10),
    st.integers(0, 99),
)
def test_chunked_equals_dense_for_any_shape(n, width, vocab, temperature, chunk_tokens, seed):
    hidden, head = random_hidden(n, width, seed), random_head(vocab, width, seed + 1, spread=3.0)
    teacher_hidden, teacher_head = random_hidden(n, width + 1, seed + 2), random_head(vocab, width + 1, seed + 3)
    tokens = torch.arange(n) % vocab
    logps = token_logps(hidden, head, tokens, temperature, chunk_tokens)
    expected = dense_logps(hidden, head, temperature).gather(1, tokens[:, None])[:, 0]
    tolerance = dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logps.double(), expected, **tolerance)
    divergence, _ = token_divergence(hidden, head, teacher_hidden, teacher_head, 1.0, temperature, chunk_tokens)
    expected = dense_kl(hidden, head, teacher_hidden, teacher_head, 1.0, temperature)
    torch.testing.assert_close(divergence.double(), expected, **tolerance)
    for actual, exact in zip(gradients(divergence, hidden), gradients(expected, hidden), strict=True):
        torch.testing.assert_close(actual, exact, **tolerance)


def test_a_real_vocabulary():
    """151,936 rows are five tiles of TRL's kernels, the last one cut."""
    vocab, n = 151_936, 3
    hidden, head = random_hidden(n, 4, 0), random_head(vocab, 4, 1, spread=6.0)
    teacher_hidden, teacher_head = random_hidden(n, 4, 2), random_head(vocab, 4, 3, spread=6.0)
    tokens = torch.tensor([0, 32_768, vocab - 1])
    logps = token_logps(hidden, head, tokens)
    expected = dense_logps(hidden, head).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logps.double(), expected, **CLOSE)
    for actual, exact in zip(
        gradients(logps, hidden, head.weight), gradients(expected, hidden, head.weight), strict=True
    ):
        assert (actual - exact).norm() < 1e-3 * exact.norm()  # fp32 sums over the vocabulary
    divergence, _ = token_divergence(hidden, head, teacher_hidden, teacher_head)
    expected = dense_kl(hidden, head, teacher_hidden, teacher_head, 1.0)
    torch.testing.assert_close(divergence.double(), expected, **CLOSE)
    for actual, exact in zip(
        gradients(divergence, hidden, head.weight), gradients(expected, hidden, head.weight), strict=True
    ):
        assert (actual - exact).norm() < 1e-3 * exact.norm()  # fp32 sums over the vocabulary


def test_blocks_of_rows_change_nothing():
    n, width, vocab = 1031, 5, 17
    hidden, head = random_hidden(n, width, 0), random_head(vocab, width, 1, bias=True)
    teacher_hidden, teacher_head = random_hidden(n, width, 2), random_head(vocab, width, 3)
    tokens = torch.arange(n) % vocab
    results = []
    for chunk_tokens in (1, 3, 1024, 5000):
        logps = token_logps(hidden, head, tokens, chunk_tokens=chunk_tokens)
        divergence, entropy = token_divergence(hidden, head, teacher_hidden, teacher_head, chunk_tokens=chunk_tokens)
        leaves = (hidden, head.weight, head.bias)
        results.append([logps, divergence, entropy, *gradients(logps + divergence, *leaves)])
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk_tokens", [1, 1024])
def test_no_token_keeps_the_graph(chunk_tokens):
    """A process whose rows are all empty must still take part in the backward."""
    hidden, head = random_hidden(0, 6, 0), random_head(11, 6, 1, bias=True)
    teacher_hidden, teacher_head = torch.zeros(0, 4), random_head(11, 4, 2)
    logps = token_logps(hidden, head, torch.zeros(0, dtype=torch.long), chunk_tokens=chunk_tokens)
    divergence, entropy = token_divergence(hidden, head, teacher_hidden, teacher_head, chunk_tokens=chunk_tokens)
    assert logps.shape == divergence.shape == entropy.shape == (0,)
    total = logps.sum() + divergence.sum()
    assert total.item() == 0.0
    total.backward()
    for leaf in (hidden, head.weight, head.bias):
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


# Precision and extremes


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_log_probabilities_do_not_round_logits_to_bf16(dtype, autocast):
    """Against float64 on the same weights, with logits up to 20; bf16 logits alone would be 0.03 off."""
    vocab, width, n = 40_000, 64, 8
    hidden = random_hidden(n, width, 0).detach().to(torch.bfloat16)
    head = LMHead(random_head(vocab, width, 1, spread=5.0).weight.detach().to(dtype))
    tokens = torch.arange(n) * 4999
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logps = token_logps(hidden, head, tokens, temperature=0.7)
    expected = dense_logps(hidden, head, 0.7).gather(1, tokens[:, None])[:, 0]
    assert logps.dtype == torch.float32
    assert (logps.double() - expected).abs().max() < 1e-4
    rounded = (hidden.float() @ head.weight.float().T).bfloat16().double().div(0.7).log_softmax(1)
    assert (rounded.gather(1, tokens[:, None])[:, 0] - expected).abs().max() > 1e-3


def test_divergence_of_bf16_models():
    hidden, teacher_hidden = (random_hidden(6, 64, seed).detach().bfloat16() for seed in (0, 1))
    head, teacher_head = (LMHead(random_head(1000, 64, s, spread=4.0).weight.detach().bfloat16()) for s in (2, 3))
    hidden.requires_grad_()
    divergence, entropy = token_divergence(hidden, head, teacher_hidden, teacher_head)
    assert divergence.dtype == entropy.dtype == torch.float32
    expected = dense_kl(hidden, head, teacher_hidden, teacher_head, 1.0)
    torch.testing.assert_close(divergence.double(), expected.detach(), rtol=1e-4, atol=1e-4)
    actual, exact = gradients(divergence, hidden)[0], gradients(expected, hidden)[0]
    assert (actual - exact).norm() < 0.02 * exact.norm()  # bf16 tiles in the backward


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_logits_stay_finite(size):
    vocab = 9
    logits = size * torch.tensor([[1.0, -1.0, 0.5] * 3, [-1.0] * 8 + [1.0], [0.0] * 9, [1.0] * 9])
    hidden = logits.clone().requires_grad_()
    head = LMHead(torch.eye(vocab))
    teacher_hidden = -logits.flip(1)
    for token in range(vocab):
        logps = token_logps(hidden, head, torch.full((4,), token))
        expected = logits.double().log_softmax(1)[:, token]
        torch.testing.assert_close(logps.double(), expected, rtol=1e-5, atol=1e-4)
        assert gradients(logps, hidden)[0].isfinite().all()
    for beta in (0.0, 1.0):
        divergence, entropy = token_divergence(hidden, head, teacher_hidden, head, beta)
        expected = dense_kl(hidden, head, teacher_hidden, head, beta)
        torch.testing.assert_close(divergence.double(), expected.detach(), rtol=1e-5, atol=1e-3)
        assert gradients(divergence, hidden)[0].isfinite().all() and entropy.isfinite().all()


def test_entropy_of_known_distributions():
    hidden = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1e4, -1e4], [1e4, 0.0, 0.0, 0.0]])
    head = LMHead(torch.eye(4))
    _, entropy = token_divergence(hidden, head, hidden, head)
    torch.testing.assert_close(entropy, torch.tensor([math.log(4), math.log(2), 0.0]), rtol=1e-5, atol=1e-3)


# Vocabularies of different size, and what is kept for the backward


def test_a_teacher_with_more_rows_is_cut_and_renormalised(tiny_model):
    student, teacher = tiny_model(seed=0, vocab_size=20), tiny_model(seed=1, vocab_size=27, hidden_size=16)
    hidden, teacher_hidden = random_hidden(5, 8, 0), random_hidden(5, 16, 1)
    head, cut = lm_head(student, 20), lm_head(teacher, 20)
    divergence, _ = token_divergence(hidden, head, teacher_hidden, cut)
    full = dense_logps(teacher_hidden, lm_head(teacher)).detach().exp()
    p = full[:, :20] / full[:, :20].sum(1, keepdim=True)
    assert (full[:, 20:].sum(1) > 1e-3).all()
    q = dense_logps(hidden, head)
    expected = (q.exp() * (q - p.log())).sum(1)
    torch.testing.assert_close(divergence.double(), expected.detach(), **CLOSE)
    torch.testing.assert_close(gradients(divergence, hidden)[0], gradients(expected, hidden)[0], **CLOSE)
    tokens = torch.tensor([0, 5, 19, 3, 7])
    logps = token_logps(teacher_hidden, cut, tokens)
    torch.testing.assert_close(logps.double().detach(), p.gather(1, tokens[:, None])[:, 0].log(), **CLOSE)


def test_sliced_rows_receive_no_gradient(tiny_model):
    model = tiny_model(vocab_size=27)
    hidden = random_hidden(5, 8, 0)
    head = lm_head(model, 20)
    divergence, _ = token_divergence(hidden, head, hidden.detach(), LMHead(torch.randn(20, 8)))
    (divergence.sum() + token_logps(hidden, head, torch.arange(5)).sum()).backward()
    gradient = model.lm_head.weight.grad
    assert gradient.shape == (27, 8)
    assert torch.equal(gradient[20:], torch.zeros(7, 8))
    assert (gradient[:20].abs().sum(1) > 0).all()


def test_nothing_of_vocabulary_size_per_token_is_saved():
    n, width, vocab = 64, 4, 3000
    hidden, head = random_hidden(n, width, 0), random_head(vocab, width, 1, bias=True)
    teacher_hidden, teacher_head = random_hidden(n, width, 2), random_head(vocab, width, 3)
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logps = token_logps(hidden, head, torch.zeros(n, dtype=torch.long), chunk_tokens=16)
        divergence, _ = token_divergence(hidden, head, teacher_hidden, teacher_head, chunk_tokens=16)
    assert saved
    heads = {tensor.data_ptr() for tensor in (head.weight, head.bias, teacher_head.weight)}
    rest = [tensor for tensor in saved if tensor.data_ptr() not in heads]
    assert max(tensor.numel() for tensor in rest) <= n * width
    (logps + divergence).sum().backward()  # and this is all that the backward needs
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        dense_logps(hidden, head)
    assert max(tensor.numel() for tensor in saved) == n * vocab  # the hook does see a dense implementation


# Heads of real model classes


SMALL = dict(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=16,
    head_dim=8,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=1,
    initializer_range=0.5,
)


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "gemma2", "cohere", "granite", "lora"])
def test_head_reproduces_the_logits_of_the_model(name, tiny_model, tiny_gpt2):
    """Scale and softcap of the model families, read from their configs."""
    torch.manual_seed(0)
    if name == "qwen2":
        model = tiny_model(vocab_size=40)
    elif name == "gpt2":
        model = tiny_gpt2(vocab_size=40)
    elif name == "gemma2":
        model = Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=2.0))
    elif name == "cohere":
        model = CohereForCausalLM(CohereConfig(**{k: v for k, v in SMALL.items() if k != "head_dim"}, logit_scale=0.3))
    elif name == "granite":
        model = GraniteForCausalLM(
            GraniteConfig(**{k: v for k, v in SMALL.items() if k != "head_dim"}, logits_scaling=4.0)
        )
    else:
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
        model = get_peft_model(tiny_model(vocab_size=40), config)
    model.eval()
    prompt, completion = torch.tensor([[3, 4, 5]]), torch.tensor([[7, 8, 9, 2]])
    ids = torch.cat([prompt, completion], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 2:-1].double()
        states = completion_states(model, prompt, torch.ones_like(prompt), completion, torch.ones_like(completion))[0]
        logps = token_logps(states, lm_head(model), completion[0], temperature=0.8)
    expected = (logits / 0.8).log_softmax(1).gather(1, completion[0][:, None])[:, 0]
    torch.testing.assert_close(logps.double(), expected, rtol=1e-4, atol=1e-4)


def test_head_slices_its_bias_with_its_rows():
    head = torch.nn.Linear(4, 9)

    class Model(torch.nn.Module):
        def get_output_embeddings(self):
            return head

    model = Model()
    model.config = GraniteConfig(logits_scaling=2.0)
    weight, bias, scale, softcap = lm_head(model, 6)
    assert torch.equal(weight, head.weight[:6]) and torch.equal(bias, head.bias[:6])
    assert (scale, softcap) == (0.5, None)
    assert lm_head(model).weight is head.weight
    assert lm_head(model, 12).weight is head.weight  # nothing to cut


# Hidden states of completions


def pad_rows(prompts, completions, width=None, completion_width=None):
    """Left-padded prompts and right-padded completions, with padding that is a real token."""
    width = width or max(map(len, prompts))
    completion_width = completion_width or max(map(len, completions))
    pad = 3
    return (
        torch.tensor([[pad] * (width - len(row)) + row for row in prompts]),
        torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts]),
        torch.tensor([row + [pad] * (completion_width - len(row)) for row in completions]),
        torch.tensor([[1] * len(row) + [0] * (completion_width - len(row)) for row in completions]),
    )


PROMPTS = [[4, 5, 6], [7], [1, 8, 9, 1, 5]]  # an EOS inside a prompt stays attended
COMPLETIONS = [[5, 6], [8, 9, 10, 3, 1], []]


@pytest.fixture(params=["qwen2", "gpt2", "lora"])
def reader(request, tiny_model, tiny_gpt2):
    if request.param == "lora":
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        return get_peft_model(tiny_model(vocab_size=12), config).eval()
    return {"qwen2": tiny_model, "gpt2": tiny_gpt2}[request.param](vocab_size=12)


def unpadded_states(model, prompt, completion):
    """One row, one forward, nothing padded, through the model's own `hidden_states` output."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([prompt + completion]), output_hidden_states=True)
    return output.hidden_states[-1][0, len(prompt) - 1 : len(prompt) - 1 + len(completion)]


@pytest.mark.parametrize("width, completion_width", [(5, 5), (9, 5), (5, 11), (8, 7)])
def test_states_equal_those_of_single_unpadded_rows(reader, width, completion_width):
    with torch.no_grad():
        states = completion_states(reader, *pad_rows(PROMPTS, COMPLETIONS, width, completion_width))
    assert states.shape == (3, completion_width, 8)
    assert states.isfinite().all()
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        expected = unpadded_states(reader, prompt, completion)
        torch.testing.assert_close(states[row, : len(completion)], expected, rtol=1e-4, atol=1e-5)


def test_states_do_not_depend_on_the_other_rows(reader):
    order = [2, 0, 1]
    with torch.no_grad():
        states = completion_states(reader, *pad_rows(PROMPTS, COMPLETIONS))
        shuffled = completion_states(reader, *pad_rows([PROMPTS[i] for i in order], [COMPLETIONS[i] for i in order]))
        alone = completion_states(reader, *pad_rows(PROMPTS[:1], COMPLETIONS[:1]))
    for place, row in enumerate(order):
        length = len(COMPLETIONS[row])
        torch.testing.assert_close(shuffled[place, :length], states[row, :length], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone[0], states[0, :2], rtol=1e-4, atol=1e-5)


def test_states_take_gradients_from_completion_tokens_alone(reader):
    rows = pad_rows(PROMPTS, COMPLETIONS)
    mask = rows[-1].bool()
    parameters = [parameter for parameter in reader.parameters() if parameter.requires_grad]
    padded = torch.autograd.grad(completion_states(reader, *rows)[mask].pow(3).sum(), parameters, allow_unused=True)
    single = [0] * len(parameters)
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        if completion:
            row = completion_states(reader, *pad_rows([prompt], [completion]))
            gradient = torch.autograd.grad(row.pow(3).sum(), parameters, allow_unused=True)
            single = [a if b is None else a + b for a, b in zip(single, gradient, strict=True)]
    moved = 0
    for actual, expected in zip(padded, single, strict=True):
        if actual is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
            moved += actual.abs().max() > 1e-3
    assert moved > 2


def test_batch_of_empty_completions(reader):
    prompt_ids, prompt_mask, _, _ = pad_rows(PROMPTS, COMPLETIONS)
    nothing = torch.zeros(3, 0, dtype=torch.long)
    assert completion_states(reader, prompt_ids, prompt_mask, nothing, nothing).shape == (3, 0, 8)

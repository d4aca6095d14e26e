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

"""
Every model family is drawn from, scored and trained rightly, or refused.

What is drawn with caches, padding and rows that leave is replayed by forwards of single rows with neither.
"""

import pytest
import torch
from peft import LoraConfig
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText
from trl.trainer.utils import disable_dropout_in_model

from trl_distill import MiniLLMConfig, MiniLLMTrainer
from trl_distill.divergence import completion_states, lm_head, token_scores
from trl_distill.minillm.mixed_sampling import Reading, mixed_generate
from trl_distill.minillm.probe import find_readings


VOCAB, PAD, ENDS = 24, 5, [0, 7, 11, 13]
PROMPTS = [[1], [2, 3, 1, 4], [0, 3], [9, 8, 2, 1, 6, 4], [12], [3, 3, 17, 20, 2]]

COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    tie_word_embeddings=False,
    pad_token_id=PAD,
    bos_token_id=1,
    eos_token_id=0,
)
MOE = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
SLIDING = dict(sliding_window=4, layer_types=["sliding_attention", "full_attention"])
HYBRID = dict(layer_types=["linear_attention", "full_attention"])
DELTA = HYBRID | dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=4, linear_value_head_dim=4)
SSD = dict(mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4, mamba_n_groups=1, mamba_chunk_size=4, mamba_expand=2)
LATENT = dict(
    num_key_value_heads=4,
    q_lora_rank=8,
    kv_lora_rank=8,
    qk_nope_head_dim=4,
    qk_rope_head_dim=4,
    v_head_dim=8,
    head_dim=4,
)
GPT = dict(n_embd=16, n_head=2, n_layer=2, n_positions=256)
SSM = dict(state_size=4, conv_kernel=4, expand=2, time_step_rank=4)

IN_BLOCKS = {
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": MOE,
    "qwen3_next": MOE | DELTA | dict(shared_expert_intermediate_size=16),
    "qwen3_5_text": DELTA,
    "qwen3_5": DELTA,
    "llama": {},
    "llama4_text": dict(num_local_experts=2, intermediate_size_mlp=24, attention_chunk_size=8),
    "mistral": dict(sliding_window=4),
    "mixtral": MOE,
    "gemma2": dict(query_pre_attn_scalar=8, sliding_window=4, final_logit_softcapping=2.0),
    "gemma3_text": SLIDING | dict(query_pre_attn_scalar=8),
    "gemma4_text": SLIDING | dict(global_head_dim=8, hidden_size_per_layer_input=8, num_kv_shared_layers=0),
    "gemma4": dict(
        num_hidden_layers=4,
        num_kv_shared_layers=2,  # as in E2B and E4B: later layers read the keys of earlier ones
        use_double_wide_mlp=True,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=4,
        global_head_dim=8,
        hidden_size_per_layer_input=8,
        final_logit_softcapping=2.0,
    ),
    "phi3": {},
    "gpt2": GPT,
    "gpt_neox": {},
    "opt": dict(ffn_dim=24, word_embed_proj_dim=8, do_layer_norm_before=False, dropout=0.0),
    "bloom": dict(n_layer=2, n_head=2),
    "falcon": dict(alibi=True, new_decoder_architecture=False),
    "falcon_h1": SSD | dict(mamba_d_ssm=32, lm_head_multiplier=0.5),
    "mamba2": dict(num_heads=4, head_dim=8, state_size=4, n_groups=1, chunk_size=4, expand=2),
    "bamba": SSD | dict(attn_layer_indices=[1]),
    "granitemoehybrid": SSD | MOE | HYBRID | dict(shared_intermediate_size=16, logits_scaling=2.0),
    "lfm2": dict(layer_types=["conv", "full_attention"], conv_L_cache=3, block_auto_adjust_ff_dim=False),
    "olmo2": {},
    "olmo_hybrid": DELTA | dict(linear_num_value_heads=2, linear_value_head_dim=8),
    "nemotron_h": dict(
        layers_block_type=["mamba", "attention", "mlp"],
        mamba_num_heads=4,
        mamba_head_dim=8,
        ssm_state_size=4,
        n_groups=1,
        chunk_size=4,
        expand=2,
        time_step_min=1e-9,  # its step of one token knows no such floor, its scan does
    ),
    "cohere2": SLIDING | dict(logit_scale=0.5),
    "deepseek_v3": LATENT
    | MOE
    | dict(n_routed_experts=4, n_group=2, topk_group=1, first_k_dense_replace=1, n_shared_experts=1),
    "glm4": dict(partial_rotary_factor=0.5),
    "smollm3": {},
    "gpt_oss": SLIDING | MOE,
    "exaone4": SLIDING,
    "minicpm3": LATENT,
    "kimi_linear": HYBRID | MOE | LATENT | dict(q_lora_rank=None, linear_head_dim=8, linear_num_heads=2),
    "zamba2": dict(
        layers_block_type=["linear_attention", "hybrid"],
        mamba_d_state=4,
        n_mamba_heads=4,
        mamba_headdim=8,
        mamba_ngroups=1,
        chunk_size=4,
        num_mem_blocks=1,
        time_step_min=1e-9,
    ),
}
TOKEN_BY_TOKEN = {
    "jamba": dict(
        num_experts=2,
        num_experts_per_tok=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=4,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "zamba": dict(
        layers_block_type=["linear_attention", "hybrid"],
        attention_hidden_size=32,
        attention_head_dim=8,
        mamba_d_state=4,
        mamba_dt_rank=4,
        n_mamba_heads=2,
        use_mamba_kernels=False,
    ),
    "mamba": SSM,
    "falcon_mamba": SSM,
}
REFUSED = {  # by what the message says
    "modernbert-decoder": (dict(local_attention=4, global_attn_every_n_layers=2), "other logits than its LM head"),
    "bert": (dict(is_decoder=True), "other logits than its LM head"),
    "minimax": (MOE | HYBRID | dict(block_size=4), "`generate` draws from a wrong one, too"),
    "recurrent_gemma": (
        dict(lru_width=16, attention_window_size=8, block_types=["recurrent", "attention"]),
        "`generate` draws from a wrong one, too",
    ),
    "rwkv": (dict(attention_hidden_size=16), "`generate` draws from a wrong one, too"),
    "xlstm": (
        dict(num_heads=2, num_blocks=2, chunk_size=4, embedding_dim=16, qk_dim_factor=0.5, v_dim_factor=1.0)
        | dict(chunkwise_kernel="chunkwise--native_autograd", sequence_kernel="native_sequence__native")
        | dict(step_kernel="native", mode="inference"),
        "`generate` draws from a wrong one, too",
    ),
    "openai-gpt": (GPT, "or set `teacher_mix_alpha=0.0`"),
}
RECENT = ["qwen3", "qwen3_5", "gemma4", "smollm3"]  # which the README of the recipes names
VISION = {  # of the classes that most checkpoints of these families name: they read images, too
    "qwen3_5": dict(depth=1, hidden_size=32, intermediate_size=32, num_heads=2, patch_size=4),
    "gemma4": dict(
        num_hidden_layers=1,
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        position_embedding_size=16,
        use_clipped_linears=True,  # PEFT knows the layers within, not these
    ),
}


def build(family, seed=0, **changes):
    """
    A tiny model with weights, biases and norms that are all random, so that nothing hides behind a 0 or a 1.

    Settings of `COMMON` that a family does not know are left out.
    """
    settings = (IN_BLOCKS | TOKEN_BY_TOKEN | {name: values for name, (values, _) in REFUSED.items()})[family]
    kind = CONFIG_MAPPING[f"{family}_text" if family in VISION else family]
    known = kind.__dataclass_fields__ | kind.attribute_map
    aliases = {alias for alias, name in kind.attribute_map.items() if name in settings}
    common = {name: COMMON[name] for name in COMMON if name in known and name not in aliases}
    values = common | settings | changes
    if "vocab_size_per_layer_input" in known:
        values["vocab_size_per_layer_input"] = values["vocab_size"]
    config = kind(**values)
    torch.manual_seed(seed)
    if family in VISION:
        vision = VISION[family] | dict(out_hidden_size=values["hidden_size"])
        parts = dict(text_config=config.to_dict(), vision_config=vision)
        config = CONFIG_MAPPING[family](**parts, tie_word_embeddings=False)
        model = AutoModelForImageTextToText.from_config(config)
    else:
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def settings(tmp_path, **values):
    plain = dict(per_device_train_batch_size=4, max_completion_length=6, learning_rate=0.1, max_steps=1)
    machine = dict(bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none", save_strategy="no")
    return MiniLLMConfig(str(tmp_path), **plain | machine | values)


def padded():
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    return ids, torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])


def generate(student, teacher, readings):
    """Prompts of different lengths, models that take turns, and rows that end early."""
    torch.manual_seed(0)
    with torch.no_grad():
        return mixed_generate(
            student,
            teacher,
            *padded(),
            alpha=0.5,
            max_new_tokens=10,
            eos_token_ids=ENDS,
            pad_token_id=PAD,
            generator=torch.Generator().manual_seed(0),
            keeps_states=True,
            readings=readings,
        )


@torch.no_grad()
def largest_error(rollout, student, teacher):
    """Of log-probabilities from kept states, by logits of single rows without padding and without a cache."""
    heads, errors = (lm_head(student), lm_head(teacher)), []
    for row, (prompt, length) in enumerate(zip(PROMPTS, rollout.lengths.tolist(), strict=True)):
        tokens = rollout.completion_ids[row, :length]
        ids = torch.tensor([prompt + tokens.tolist()])
        states = (part[row, :length] for part in (rollout.student_states, rollout.teacher_states))
        scores = token_scores(*(x for pair in zip(states, heads, strict=True) for x in pair), tokens)
        for model, found in ((student, scores.student_logps), (teacher, scores.teacher_logps)):
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            errors.append((logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0] - found).abs().max())
    return max(errors).item()


@pytest.mark.parametrize("family", IN_BLOCKS | TOKEN_BY_TOKEN)
def test_what_is_kept_is_what_single_rows_give(family, tmp_path):
    student, teacher = build(family, seed=0), build(family, seed=1)
    readings = find_readings(student, teacher, settings(tmp_path))
    assert readings == (Reading(in_blocks=family in IN_BLOCKS),) * 2
    disable_dropout_in_model(student)
    student.train()  # in this mode some layers take another way
    rollout = generate(student, teacher, readings)
    assert (rollout.lengths < rollout.lengths.max()).sum() > 1 and rollout.teacher_calls and rollout.student_calls
    mask = torch.arange(rollout.completion_ids.shape[1]) < rollout.lengths[:, None]
    with torch.no_grad():
        trained = completion_states(student, *padded(), rollout.completion_ids, mask.long())
    student.eval()
    assert largest_error(rollout, student, teacher) < 1e-4
    assert largest_error(rollout._replace(student_states=trained), student, teacher) < 1e-4


@pytest.mark.parametrize("family", TOKEN_BY_TOKEN)
def test_blocks_would_be_wrong(family):
    """The check above sees what the probe is there for."""
    student, teacher = build(family, seed=0), build(family, seed=1)
    try:
        error = largest_error(generate(student, teacher, (Reading(), Reading())), student, teacher)
    except RuntimeError as failed:  # the better case
        assert "must match" in str(failed)
    else:
        assert error > 0.1


@pytest.mark.parametrize("family", REFUSED)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_refused(family, role, tmp_path):
    _, reason = REFUSED[family]
    models = {"student": build("llama"), "teacher": build("llama")} | {role: build(family)}
    if role == "teacher" and "generate" in reason:  # at 0 a teacher reads completions alone
        reason = "or set `teacher_mix_alpha=0.0`"
    with pytest.raises(ValueError, match=f"The {role} .*{reason}"):
        find_readings(models["student"], models["teacher"], settings(tmp_path))
    if reason.startswith("or set"):
        readings = find_readings(models["student"], models["teacher"], settings(tmp_path, teacher_mix_alpha=0.0))
        assert readings == (None if role == "student" else (Reading(), Reading()))
    else:
        with pytest.raises(ValueError, match=f"The {role} .*{reason}"):
            find_readings(models["student"], models["teacher"], settings(tmp_path, teacher_mix_alpha=0.0))


def test_rows_stay_where_a_cache_cannot_drop_them(monkeypatch, tmp_path):
    def fail(*args):
        raise NotImplementedError

    student, teacher = build("llama", seed=0), build("jamba", seed=1)
    monkeypatch.setattr("transformers.cache_utils.DynamicLayer.reorder_cache", fail)
    readings = find_readings(student, teacher, settings(tmp_path))
    assert readings == (Reading(drops_rows=False), Reading(False, False))
    rollout = generate(student, teacher, readings)
    assert (rollout.lengths < rollout.lengths.max()).sum() > 1
    assert largest_error(rollout, student, teacher) < 1e-4


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma2", "qwen3_5_text", "jamba"])
def test_half_precision_reads_alike(family, tmp_path):
    """Rounding is no wrong state, and does not hide one."""
    student = build(family).bfloat16()
    expected = Reading(in_blocks=family in IN_BLOCKS)
    assert find_readings(student, None, settings(tmp_path)) == (expected, expected)


def test_noise_that_no_module_makes(caplog, tmp_path):
    """OPT calls dropout as a function, where `disable_dropout` does not find it."""
    find_readings(build("opt"), None, settings(tmp_path))
    assert "`disable_dropout`" not in caplog.text
    student = build("opt", dropout=0.1)
    find_readings(student, None, settings(tmp_path, disable_dropout=False))
    find_readings(build("llama"), student, settings(tmp_path))
    assert "`disable_dropout`" not in caplog.text
    find_readings(student, None, settings(tmp_path))
    assert "in spite of `disable_dropout`" in caplog.text and "{'dropout': 0.1}" in caplog.text


def test_a_probe_leaves_no_trace(tmp_path):
    student = build("opt", dropout=0.1).train()  # draws random numbers
    student.lm_head.eval()
    modes = [module.training for module in student.modules()]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    find_readings(student, None, settings(tmp_path))
    assert torch.equal(torch.rand(1), expected)
    assert [module.training for module in student.modules()] == modes
    assert all(parameter.grad is None for parameter in student.parameters())
    assert not any(module._forward_hooks for module in student.modules())


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize(
    "family", [*RECENT, "qwen3_5_text", "lfm2", "granitemoehybrid", "nemotron_h", "jamba", "openai-gpt"]
)
def test_one_step(family, alpha, tokenizer, prompts, tmp_path):
    student, teacher = (build(family, seed, vocab_size=len(tokenizer)) for seed in (0, 1))
    before = {name: parameter.clone() for name, parameter in student.named_parameters()}

    def trainer():
        return MiniLLMTrainer(
            model=student,
            teacher_model=teacher,
            args=settings(tmp_path, teacher_mix_alpha=alpha),
            train_dataset=prompts,
            processing_class=tokenizer,
        )

    if family == "openai-gpt" and alpha:
        with pytest.raises(ValueError, match="teacher_mix_alpha=0.0"):
            trainer()
        return
    result = trainer().train()
    assert 0 < result.training_loss < float("inf")
    same = [name for name, parameter in student.named_parameters() if torch.equal(parameter, before[name])]
    same = [name for name in same if "vision" not in name and "visual" not in name]  # which reads no text
    assert len(same) < len(before) / 4, same  # experts that no token chose


@pytest.mark.parametrize("family", RECENT)
def test_one_step_of_a_lora_on_all_linear_layers(family, tokenizer, prompts, tmp_path):
    student, teacher = (build(family, seed, vocab_size=len(tokenizer)) for seed in (0, 1))
    trainer = MiniLLMTrainer(
        model=student,
        teacher_model=teacher,
        args=settings(tmp_path),
        train_dataset=prompts,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    assert 0 < trainer.train().training_loss < float("inf")
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    adapters = {name for name in before if "lora_B" in name and "vision" not in name and "visual" not in name}
    assert moved >= adapters and all("lora_" in name for name in moved)
    assert len({name.split(".")[-4] for name in adapters}) >= 7 and not any("lm_head" in name for name in adapters)

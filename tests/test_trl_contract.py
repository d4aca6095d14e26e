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
The private parts of TRL and of PEFT that this package relies on, in one place: an upgrade that moves one of them fails
here first.
"""

import inspect
from pathlib import Path

import peft
import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from trl import DistillationConfig, DistillationTrainer, RewardTrainer, SFTConfig, SFTTrainer
from trl.distributed import DistributedBackend
from trl.kernels import ChunkedLogProbFunction, chunked_divergence
from trl.kernels.chunked_divergence import VOCAB_CHUNK_SIZE, ChunkedDivergenceFunction, _addmm_fp32, _project
from trl.models import prepare_deepspeed
from trl.models.utils import _ForwardRedirection, unwrap_model_for_generation
from trl.trainer.utils import (
    RepeatSampler,
    create_model_from_path,
    get_config_model_id,
    maybe_gather_lm_head_ctx,
    pad,
    repeat_iterable_dataset,
    split_tensor_dict,
)


# Overridden or called hook -> its parameters. `self` is left out.
SIGNATURES = {
    DistillationTrainer._generate_single_turn: "prompt_ids images multimodal_fields has_tool_images",
    DistillationTrainer._generate_and_score_completions: "inputs",
    DistillationTrainer._prepare_inputs: "generation_batch",
    DistillationTrainer._tokenize_prompts: "prompts",
    DistillationTrainer._compute_loss: "unwrapped_student inputs num_items_in_batch",
    DistillationTrainer.compute_loss: "model inputs return_outputs num_items_in_batch",
    DistillationTrainer._get_train_sampler: "dataset",
    DistillationTrainer.get_train_dataloader: "",
    DistillationTrainer._get_dataloader: "dataset description batch_size sampler_fn is_training dataloader_key",
    DistillationTrainer._set_signature_columns_if_needed: "",
    DistillationTrainer._get_grad_norm: "model grad_norm",
    DistillationTrainer.save_model: "output_dir _internal_call",
    DistillationTrainer._save_checkpoint: "model trial",
    DistributedBackend.summon_full_params: "module kwargs",
    DistillationTrainer.log: "logs start_time",
    SFTTrainer._prepare_dataset: "dataset processing_class args packing formatting_func dataset_name",
    SFTTrainer._set_signature_columns_if_needed: "",
    SFTTrainer.compute_loss: "model inputs return_outputs num_items_in_batch",
    SFTTrainer._get_num_items_in_batch: "batch_samples device",
    SFTTrainer._load_from_checkpoint: "resume_from_checkpoint model",
    SFTTrainer._load_best_model: "",
    SFTTrainer.train: "resume_from_checkpoint trial ignore_keys_for_eval",
    RewardTrainer._prepare_dataset: "dataset processing_class args dataset_name",
    RewardTrainer._set_signature_columns_if_needed: "",
    RewardTrainer.compute_loss: "model inputs return_outputs num_items_in_batch",
    LoraVariant.forward: "module active_adapter x result kwargs",
    LoraVariant.merge_safe: "module active_adapter orig_weight",
    LoraVariant.merge_unsafe: "module active_adapter orig_weight",
    LoraVariant.unmerge: "module active_adapter orig_weight",
    LoraVariant.supports_lora_conversion: "",
    get_config_model_id: "config",
    _ForwardRedirection.__call__: "wrapper_module original_module method args kwargs",
    ChunkedLogProbFunction.forward: "ctx hidden weight bias targets temperature chunk_size final_logit_softcapping "
    "logit_scale outputs",
    ChunkedDivergenceFunction.forward: "ctx student_hidden student_weight student_bias teacher_hidden teacher_weight "
    "teacher_bias beta temperature student_logit_scale student_final_logit_softcapping teacher_logit_scale "
    "teacher_final_logit_softcapping",
    _project: "tile hidden_chunk weight bias start end dtype",
    _addmm_fp32: "acc a b",
    chunked_divergence._use_triton: "device",
    chunked_divergence._stats_kernel: "s_ptr s_stride t_ptr t_stride s_max_ptr s_sum_ptr s_x_sum_ptr t_max_ptr "
    "t_sum_ptr t_weighted_gap_ptr s_weighted_gap_ptr n_cols s_scale s_softcap t_scale t_softcap inv_t S_HAS_SOFTCAP "
    "T_HAS_SOFTCAP BLOCK_SIZE",
    chunked_divergence._backward_kernel: "s_ptr s_stride t_ptr t_stride s_log_z_ptr t_log_z_ptr aux_ptr grad_ptr "
    "n_cols beta s_scale s_softcap t_scale t_softcap inv_t MODE S_HAS_SOFTCAP T_HAS_SOFTCAP BLOCK_SIZE",
    RepeatSampler.__init__: "data_source mini_repeat_count batch_size repeat_count shuffle seed",
    repeat_iterable_dataset: "dataset mini_repeat_count batch_size repeat_count",
    split_tensor_dict: "tensor_dict num_chunks",
    maybe_gather_lm_head_ctx: "params",
    create_model_from_path: "model_id architecture kwargs",
    prepare_deepspeed: "model accelerator",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signature(function):
    found = [name for name in inspect.signature(function).parameters if name != "self"]
    assert found == SIGNATURES[function].split(), (
        f"TRL {trl.__version__} or PEFT {peft.__version__} changed the parameters of {function.__qualname__}. Adapt "
        "the callers, then this table."
    )


def test_called_with_these_keywords():
    assert {"padding_value", "padding_side"} <= set(inspect.signature(pad).parameters)
    assert {"gather_deepspeed3_params", "gradient_checkpointing_kwargs"} <= set(
        inspect.signature(unwrap_model_for_generation).parameters
    )
    assert VOCAB_CHUNK_SIZE == 32768, "the workspace quoted for `loss_chunk_tokens` is 8 bytes times this"
    assert Dataset.from_dict({"prompt": ["a", "b"]}).select([1, 0])._indices is not None  # the order of stored rows
    assert DistillationConfig._VALID_DICT_FIELDS  # JSON strings of these fields are parsed for us


def test_trunk_attributes_and_batch(tiny_model, tokenizer, prompts, tmp_path):
    """Attributes that the parent sets in its constructor, and what it hands to `_compute_loss`."""
    args = DistillationConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", max_completion_length=4)
    trainer = DistillationTrainer(
        tiny_model(), args=args, train_dataset=prompts, processing_class=tokenizer, teacher_model=None
    )
    for name in (
        "_buffered_inputs", "_dist", "_forward_redirection", "_metrics", "_step", "_tokenizer", "chat_template",
        "eos_token_ids", "generation_config", "generation_kwargs", "max_completion_length", "shuffle_dataset",
        "teacher_model", "temperature",
    ):  # fmt: skip
        assert hasattr(trainer, name), f"TRL {trl.__version__} no longer sets `{name}`"
    batch = trainer._generate_and_score_completions([prompts[0], prompts[1]])
    assert {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "num_items_in_batch"} <= set(batch)
    config = trainer.generation_config  # the mixed sampler reads it
    assert config.max_new_tokens == 4 and config.pad_token_id == tokenizer.pad_token_id
    assert config.eos_token_id == trainer.eos_token_ids and tokenizer.eos_token_id in trainer.eos_token_ids
    assert torch.equal(batch["prompt_mask"][:, -1], torch.ones(2, dtype=torch.long))  # left padding
    assert torch.equal(batch["completion_mask"][:, 0], torch.ones(2, dtype=torch.long))  # right padding


@pytest.fixture
def sft_trainer(tiny_model, tokenizer, prompts, tmp_path):
    args = SFTConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", max_length=24)
    return SFTTrainer(tiny_model(), args=args, train_dataset=prompts, processing_class=tokenizer)


def test_sft_loss_is_a_sum_over_the_fused_head(sft_trainer):
    """`LabeledSFTTrainer` stands between the parent's loss and the model, and changes `log_probs`."""
    calls = []

    def forward(**kwargs):
        outputs = sft_trainer.model(**kwargs)
        calls.append((kwargs, outputs))
        return outputs

    batch = next(iter(sft_trainer.get_train_dataloader()))
    loss = sft_trainer.compute_loss(forward, dict(batch), num_items_in_batch=7)
    ((kwargs, outputs),) = calls
    assert kwargs["fused_lm_head"] is True
    assert outputs.log_probs.shape == outputs.label_mask.shape == (8, batch["labels"].shape[1] - 1)
    assert torch.equal(outputs.label_mask.bool(), batch["labels"][:, 1:] != -100)
    assert not outputs.log_probs[~outputs.label_mask.bool()].any()
    torch.testing.assert_close(loss, -outputs.log_probs.sum() / 7)


def test_sft_keeps_three_columns_and_prepares_tokenised_rows_again(sft_trainer, tokenizer):
    sft_trainer._set_signature_columns_if_needed()
    assert sft_trainer._signature_columns == ["input_ids", "labels", "seq_lengths"]
    for name in ("_metrics", "_formatting_func", "_skip_prepare_dataset", "aux_loss_enabled"):
        assert hasattr(sft_trainer, name), f"TRL {trl.__version__} no longer sets `{name}`"
    rows = sft_trainer.train_dataset.select(range(4))
    again = sft_trainer._prepare_dataset(rows, tokenizer, sft_trainer.args, False, None, "train")
    assert again["input_ids"][:] == rows["input_ids"][:] and again["labels"][:] == rows["labels"][:]


def test_lora_layers_ask_for_a_variant():
    """Classes on which a gate of NAT can stand, by their names in PEFT; those of missing libraries by their source."""
    folder = Path(inspect.getfile(LoraLayer)).parent
    for file, name in (
        ("layer.py", "class Linear(nn.Module, LoraLayer)"),
        ("bnb.py", "class Linear4bit("),
        ("bnb.py", "class Linear8bitLt("),
        ("gptq.py", "class GPTQLoraLinear("),
        ("hqq.py", "class HqqLoraLinear("),
    ):
        head, found, body = (folder / file).read_text(encoding="utf-8").partition(name)
        assert found and ".lora_variant[active_adapter].forward(" in body, f"{name} in PEFT {peft.__version__}"
    for file in ("awq.py", "aqlm.py", "eetq.py"):
        assert "lora_variant" not in (folder / file).read_text(encoding="utf-8"), f"{file} could carry a gate now"


def test_lora_layer_attributes(tiny_model, tmp_path):
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="one")
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    assert type(layer).__name__ == "Linear" and layer.lora_variant == {} and layer.active_adapters == ["one"]
    assert isinstance(layer.adapter_layer_names, tuple) and {"lora_A", "lora_B"} <= set(layer.adapter_layer_names)
    assert (layer.in_features, layer.out_features) == (8, 8)
    for name in ("lora_A", "lora_B", "lora_dropout", "lora_embedding_A", "scaling"):
        assert hasattr(layer, name), f"PEFT {peft.__version__} no longer sets `{name}`"

    # A finished negative adapter is known by its config: PEFT must write it after the weights, in a folder of its name
    written = []
    model.peft_config["one"].save_pretrained = lambda folder, **_: written.extend(Path(folder).glob("*.safetensors"))
    model.save_pretrained(tmp_path)
    assert written == [tmp_path / "one" / "adapter_model.safetensors"]

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
The private parts of TRL that this package relies on, in one place: an upgrade that moves one of them fails here first.
"""

import inspect

import pytest
import torch
import trl
from trl import DistillationConfig, DistillationTrainer
from trl.kernels import ChunkedLogProbFunction
from trl.kernels.chunked_divergence import VOCAB_CHUNK_SIZE, ChunkedDivergenceFunction
from trl.models import prepare_deepspeed
from trl.models.utils import _ForwardRedirection, unwrap_model_for_generation
from trl.trainer.utils import (
    RepeatSampler,
    create_model_from_path,
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
    DistillationTrainer._save_checkpoint: "model trial",
    DistillationTrainer.log: "logs start_time",
    _ForwardRedirection.__call__: "wrapper_module original_module method args kwargs",
    ChunkedLogProbFunction.forward: "ctx hidden weight bias targets temperature chunk_size final_logit_softcapping "
    "logit_scale outputs",
    ChunkedDivergenceFunction.forward: "ctx student_hidden student_weight student_bias teacher_hidden teacher_weight "
    "teacher_bias beta temperature student_logit_scale student_final_logit_softcapping teacher_logit_scale "
    "teacher_final_logit_softcapping",
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
        f"TRL {trl.__version__} changed the parameters of {function.__qualname__}. Adapt the callers, then this table."
    )


def test_called_with_these_keywords():
    assert {"padding_value", "padding_side"} <= set(inspect.signature(pad).parameters)
    assert {"gather_deepspeed3_params", "gradient_checkpointing_kwargs"} <= set(
        inspect.signature(unwrap_model_for_generation).parameters
    )
    assert VOCAB_CHUNK_SIZE == 32768, "the workspace quoted for `loss_chunk_tokens` is 8 bytes times this"
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
    assert torch.equal(batch["prompt_mask"][:, -1], torch.ones(2, dtype=torch.long))  # left padding
    assert torch.equal(batch["completion_mask"][:, 0], torch.ones(2, dtype=torch.long))  # right padding

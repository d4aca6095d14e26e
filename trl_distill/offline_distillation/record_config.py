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


"""Configuration of a recording."""

from dataclasses import dataclass, field


@dataclass
class RecordConfig:
    r"""
    Configuration of [`record_teacher`] and of `trl-distill record`.

    Parameters:
        > The teacher

        teacher_model_name_or_path (`str`):
            Model id or folder of a full model or of a PEFT adapter.
        teacher_model_revision (`str`, *optional*):
            Branch, tag or commit of it.
        dtype (`str`, *optional*, defaults to `"auto"`), device (`str`, *optional*):
            Type of the weights, by default that of the checkpoint, and where they are, by default on the GPU if there
            is one.
        load_in_4bit (`bool`, *optional*, defaults to `False`):
            Whether to quantize the teacher to NF4.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that ships with the checkpoint.

        > Completions

        dataset_name (`str`, *optional*):
            Rows with `prompt` and `completion`, standard or conversational, or with `prompt` and a list `completions`,
            as `trl-distill sample` writes them: a JSON, JSON Lines, CSV or Parquet file, a folder, or a data set of
            the Hub.
        dataset_config (`str`, *optional*), dataset_split (`str`, *optional*):
            Configuration and split. The split defaults to `train`, or the only one.
        max_length (`int`, *optional*, defaults to `1024`):
            Tokens of a row that are kept, from its start. What is cut off is neither recorded nor trained on.

        > The store

        output_dir (`str`):
            Folder to write. It appears when it is complete; until then the shards are in `<output_dir>.part`, and the
            same command goes on there.
        loss_top_k (`int`, *optional*, defaults to `64`):
            Likeliest tokens that are kept at each position, beside what is left for all others together.
        logprob_dtype (`str`, *optional*, defaults to `"float16"`):
            Type of the log-probabilities in the store, `"float16"` or `"float32"`.

        > Memory

        batch_size (`int`, *optional*, defaults to `8`):
            Rows that the teacher reads together.
        chunk_tokens (`int`, *optional*, defaults to `256`):
            Tokens projected to the vocabulary at a time. The workspace is 4 bytes a token and vocabulary entry.
        shard_tokens (`int`, *optional*, defaults to `65536`):
            Tokens of completions in a shard, and thereby the most that a kill may lose.
    """

    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model id, folder, or folder of a PEFT adapter."}
    )
    teacher_model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of it."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Type of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    device: str | None = field(default=None, metadata={"help": "Default: the GPU if there is one, else the CPU."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantize the teacher to NF4 with bitsandbytes."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run Python code that ships with the checkpoint."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Rows with `prompt` and `completion` (or `completions`, as `trl-distill sample` writes them): a "
            "JSON, JSONL, CSV or Parquet file, folder, or data set id."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_split: str | None = field(default=None, metadata={"help": "Split. Default: `train`, or the only one."})
    max_length: int | None = field(default=1024, metadata={"help": "Tokens of a row that are kept, from its start."})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder to write. Until it is complete, the shards are in `<output_dir>.part`."},
    )
    loss_top_k: int = field(
        default=64, metadata={"help": "Likeliest tokens kept at each position, beside the mass of all others."}
    )
    logprob_dtype: str = field(
        default="float16",
        metadata={"help": "Type of the log-probabilities in the store.", "choices": ["float16", "float32"]},
    )
    batch_size: int = field(default=8, metadata={"help": "Rows that the teacher reads together."})
    chunk_tokens: int = field(default=256, metadata={"help": "Tokens projected to the vocabulary at a time."})
    shard_tokens: int = field(
        default=65536, metadata={"help": "Tokens of completions in a shard: the most that a kill may lose."}
    )

    def __post_init__(self):
        for name in ("teacher_model_name_or_path", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"Nothing to record: set `{name}`.")
        for name in ("loss_top_k", "batch_size", "chunk_tokens", "shard_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"`max_length` must be at least 2, got {self.max_length}.")
        if self.logprob_dtype not in ("float16", "float32"):
            raise ValueError(f"`logprob_dtype` must be 'float16' or 'float32', got {self.logprob_dtype!r}.")

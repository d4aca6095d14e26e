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
What a training will hold on its card, before it is started.

```bash
trl-distill memory minillm --config recipes/minillm/qwen2.5_1.5b_qlora_single_gpu.yaml [--FIELD VALUE ...]
```

The fields are those of the training, and are read as strictly.
"""

import argparse
import contextlib
import importlib
import json
import sys
import tempfile
import warnings
from typing import TYPE_CHECKING, Any

from ..training import launch_fields, set_model_init_kwargs, user_errors
from .arguments import add_config, check_one_process, split_arguments, strict
from .tables import show


if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn
    from transformers import PreTrainedConfig, TrainingArguments

    from ..memory import Estimate, Quantization

COMMANDS = ("minillm", "nat", "nce", "labeled_sft", "ranker", "offline_distillation", "sft", "dpo")
PROMPT, ROW = 256, 1024  # tokens, where no field bounds them
NAT_WIDTH = 128  # of the gates of a NAT model that is not looked at

# Bytes of the vocabulary's workspace. TRL's kernels take tiles of 4,096 tokens and 32,768 entries.
_TILE_TOKENS, _TILE_ENTRIES = 4096, 32768
_DRAW = 20  # bytes a row and entry while a token is drawn: logits, their exponentials, sums in float64


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s COMMAND --config FILE [--FIELD VALUE ...]",
        description="Count what a training will hold on one card, from the configs of its models: weights, gradients, "
        "optimizer, activations, the vocabulary's workspace and caches, and which cards have room for it. Weights are "
        "not loaded. Any other field is one of the training's own, as for the command itself.",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=f"One of {', '.join(COMMANDS)}.")
    add_config(parser)
    _add_own(parser)
    return parser


def _add_own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--row_tokens",
        type=int,
        help="Tokens of the longest row, prompt and answer. Default: `max_length`, or 1024 if that is unset; for "
        "minillm 256 and `max_completion_length`.",
    )
    parser.add_argument("--json", action="store_true", help="Print bytes as JSON instead of a table.")
    parser.add_argument(
        "--measure", action="store_true", help="On a GPU, run one training step and print its peak beside the count."
    )


def read_fields(command: str, argv: list[str]) -> tuple:
    """The dataclasses of a training, for a GPU that multiplies bfloat16, whatever this machine has."""
    parser = importlib.import_module(f"trl_distill.scripts.{command}").make_parser(f"trl-distill memory {command}")
    values, launch, flags = split_arguments(parser, argv, launch_fields())
    sharded = [*launch, *flags, *(name for name in ("fsdp", "deepspeed") if getattr(values, name))]
    if sharded:
        raise ValueError(
            f"one process that holds everything is counted, so {sharded[0]} has no meaning here. Leave it out; the "
            "rules for sharding are in docs/several_gpus.md."
        )
    half = values.bf16 or values.fp16 or values.bf16 is None
    values.bf16, values.fp16, values.use_cpu = half, False, True
    try:
        return parser.parse_dict(vars(values))
    except TypeError as error:  # such as an unknown key in an entry of `datasets`
        raise ValueError(str(error)) from error


def adapted_model(
    command: str, config: "PreTrainedConfig", args: tuple, quantization: "Quantization | None"
) -> tuple["nn.Module", int, int, int]:
    """The model that is trained, on the device `meta`; bytes of its base, of what is added, and of a layer at work."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl import get_peft_config
    from trl.trainer.utils import disable_dropout_in_model

    from ..memory import data_type, empty_model, model_bytes

    training_args, model_args = args[1:3]
    auto_class = AutoModelForCausalLM
    if command == "ranker":
        auto_class, config.num_labels, model_args.lora_task_type = AutoModelForSequenceClassification, 1, "SEQ_CLS"
    config.dtype = data_type(training_args.model_init_kwargs["dtype"], config)
    model = empty_model(config, config.dtype, auto_class, trust_remote_code=training_args.trust_remote_code)
    size, working = model_bytes(model, quantization)
    own = {id(parameter) for parameter in model.parameters()}
    peft_config = get_peft_config(model_args)
    if command == "nat" and peft_config is None:
        peft_config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, task_type="CAUSAL_LM")
    taught = command == "nce" and training_args.objective == "kd" and args[4].teacher_model_name_or_path is None
    if taught and peft_config is None:
        raise ValueError("student and teacher are adapters of one base: set `use_peft: true`.")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if command == "nat":
            gate = None if training_args.stages == "negative" else training_args.integration_width
            model = _with_nat(model, peft_config, gate, training_args.integration_value)
        elif taught:
            model = _with_nat(model, peft_config, NAT_WIDTH)
            model.requires_grad_(False)
            model.add_adapter("default", peft_config)
            model.set_adapter("default")
        elif peft_config is not None:
            model = get_peft_model(model, peft_config)
    for name, parameter in model.named_parameters():  # as TRL casts the adapters of a quantized base
        if quantization and parameter.requires_grad and not (".lora_nat_" in name or "magnitude_vector" in name):
            parameter.data = parameter.data.to(torch.bfloat16)
    if getattr(training_args, "disable_dropout", False):
        disable_dropout_in_model(model)
    added = sum(parameter.nbytes for parameter in model.parameters() if id(parameter) not in own)
    return model, size, added, working


def _with_nat(model: "nn.Module", peft_config: Any, width: int | None, value: str = "mlp") -> "nn.Module":
    """A negative adapter and, with a `width`, the positive one and its gates."""
    from peft import get_peft_model

    from ..rationales.nat.integration_unit import NATLoraConfig, add_nat

    model = get_peft_model(model, peft_config, adapter_name="neg")
    if width is not None:
        add_nat(model, NATLoraConfig.of(peft_config, value=value, width=width, temperature=1.0))
    return model


def teacher_of(command: str, args: tuple, student: int) -> tuple["PreTrainedConfig | None", int, int]:
    """Config of a frozen model beside the student, its bytes and its largest dequantized layer; `student` in bytes."""
    import torch

    from ..memory import Quantization, data_type, empty_model, model_bytes, read_config
    from ..models import adapter_config

    training_args, model_args, trust = args[1], args[2], args[1].trust_remote_code
    if command == "dpo":
        copied = not (model_args.use_peft or training_args.precompute_ref_log_probs)
        return None, student if copied else 0, 0
    if command == "minillm":
        name, revision = training_args.teacher_model_name_or_path, training_args.teacher_model_revision
        kwargs = training_args.teacher_model_init_kwargs or {}
        if not (name or training_args.teacher_is_base or training_args.teacher_model_server_url):
            raise ValueError("no teacher: set `teacher_model_name_or_path`, `teacher_is_base` or a server.")
    elif command == "nce" and training_args.objective == "kd":
        name, revision, kwargs = args[4].teacher_model_name_or_path, None, {}
    else:
        name, revision, kwargs = None, None, {}
    if name is None:
        return None, 0, 0
    with contextlib.suppress(OSError):
        if adapter := adapter_config(name, revision):  # which is merged into its base
            name, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    config = read_config(name, revision, trust)
    quantization = Quantization.of(kwargs.get("quantization_config"))
    config.dtype = data_type(kwargs.get("dtype", "auto"), config)
    model = empty_model(config, config.dtype, trust_remote_code=trust)
    size, working = model_bytes(model, quantization)
    if command == "nce":
        from trl import get_peft_config

        with torch.device("meta"):
            adapted = _with_nat(model, get_peft_config(model_args) or _default_lora(), NAT_WIDTH)
        size += sum(weight.nbytes for part, weight in adapted.named_parameters() if ".lora_" in part)
    return config, size, working


def _default_lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM")


def _has_corpus(args: tuple) -> bool:
    return args[4].lm_dataset_name is not None


def batch_shape(command: str, args: tuple, row_tokens: int | None) -> tuple[int, int]:
    """Rows and tokens of a row in the forward of a micro-batch."""
    training_args = args[1]
    rows = training_args.per_device_train_batch_size
    if command == "minillm":
        tokens = row_tokens or PROMPT + training_args.max_completion_length
        if tokens <= training_args.max_completion_length:
            raise ValueError(f"`row_tokens` is {tokens}, of which `max_completion_length` leaves no prompt.")
        if not _has_corpus(args):
            return rows, tokens
        return 2 * rows, max(tokens, training_args.lm_max_length)  # answers and corpus in one forward
    limit = training_args.max_length
    tokens = min(row_tokens or limit or ROW, limit or sys.maxsize)
    if command == "dpo":
        return 2 * rows, tokens  # right and wrong answers in one forward
    packed = getattr(training_args, "packing", False) and training_args.packing_strategy.startswith("bfd")
    return (1, rows * tokens) if packed or getattr(training_args, "padding_free", False) else (rows, tokens)


def vocabulary_work(command: str, training_args: "TrainingArguments", head: "nn.Module | None", count: int) -> int:
    """Bytes of the loss of `count` tokens: its tiles, and the gradients of states and of a trained head in float32."""
    if head is None:
        return 0
    entries, width = head.weight.shape
    tile = 2 * min(count, _TILE_TOKENS) * min(entries, _TILE_ENTRIES)
    if command in ("minillm", "offline_distillation"):
        tile = max(tile, 8 * min(count, training_args.loss_chunk_tokens) * entries)
    elif command == "nce" and training_args.objective == "kd":
        tile = max(tile, 8 * min(count, training_args.loss_chunk_tokens) * min(entries, _TILE_ENTRIES))
    trained = head.weight.requires_grad
    rounded = head.weight.itemsize if head.weight.itemsize < 4 else 0
    return tile + 4 * count * width + trained * entries * width * (4 + rounded)


def rollout_bytes(
    training_args: "TrainingArguments", configs: list["PreTrainedConfig"], row_tokens: int | None, entries: int
) -> dict[str, int]:
    """What MiniLLM draws a rollout set with; `configs` of the student, and of the teacher if it draws."""
    from ..memory import COMPUTED, cache_bytes

    rows, answer = (
        training_args.per_device_train_batch_size * training_args.steps_per_generation,
        training_args.max_completion_length,
    )
    roles = zip(("student", "teacher"), configs, strict=False)
    tokens = row_tokens or PROMPT + answer
    held = {
        f"keys and values of the {role}": cache_bytes(config, rows, tokens, training_args.bf16)
        for role, config in roles
    }
    widths = sum(config.get_text_config().hidden_size for config in configs)
    states = answer * widths * COMPUTED.itemsize if training_args.score_from == "rollout" else 0
    return held | {"logits and kept states": rows * (_DRAW * entries + states)}


def estimate(command: str, argv: list[str], row_tokens: int | None = None) -> tuple["Estimate", tuple[int, int]]:
    """
    What a training holds, and the rows and tokens of the forward that were counted.

    Args:
        command (`str`):
            One of [`COMMANDS`].
        argv (`list[str]`):
            Its arguments, `--config` among them.
        row_tokens (`int`, *optional*):
            Tokens of the longest row.
    """
    from ..memory import COMPUTED, Estimate, Quantization, count_activations, optimizer_bytes, read_config

    args = read_fields(command, argv)
    training_args, model_args = args[1:3]
    set_model_init_kwargs(training_args, model_args)
    if getattr(training_args, "use_vllm", False):
        raise ValueError("no rule for `use_vllm`: vLLM takes the share of the card that it is given.")
    config = read_config(model_args.model_name_or_path, model_args.model_revision, training_args.trust_remote_code)
    bits = 4 if model_args.load_in_4bit else 8 if model_args.load_in_8bit else None
    quantization = None if bits is None else Quantization(bits, model_args.use_bnb_nested_quant)
    model, size, adapters, working = adapted_model(command, config, args, quantization)
    teacher_config, teacher, teacher_working = teacher_of(command, args, size)

    head = None if command == "ranker" else model.get_output_embeddings()
    entries = 0 if head is None else head.weight.shape[0]
    rows, tokens = batch_shape(command, args, row_tokens)
    answers = training_args.per_device_train_batch_size * getattr(training_args, "max_completion_length", 0)
    counted = rows * tokens if command != "minillm" else answers + rows // 2 * tokens * _has_corpus(args)
    loss = vocabulary_work(command, training_args, head, counted)
    always = {
        "weights of the student": size,
        f"weights of the {'reference' if command == 'dpo' else 'teacher'}": teacher,
        "adapters and gates": adapters,
        "optimizer": optimizer_bytes(model, training_args.optim.value),
    }
    gradients = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    # What autocast makes of a float32 head: nobody else casts it
    cast = entries and training_args.bf16 and head.weight.itemsize == 4
    copies = head.weight.numel() * COMPUTED.itemsize if cast else 0
    attention = training_args.model_init_kwargs["attn_implementation"]
    activations = count_activations(model, rows, tokens, training_args.bf16, attention)
    copies += activations.copies
    saved = activations.checkpointed if training_args.activation_checkpointing else activations.kept
    dequantized = {"a layer, dequantized": max(working, teacher_working)}
    step = {"gradients": gradients, "copies of weights in bfloat16": copies} | dequantized
    step |= {"activations": saved + activations.widest}
    step |= {"loss over the vocabulary": loss}
    rollout: dict[str, int] = {}
    if command == "minillm":
        if training_args.teacher_model_server_url is None:
            width = (teacher_config or config).get_text_config().hidden_size
            kept_sets = 1 if training_args.teacher_states_on_cpu else training_args.steps_per_generation
            step["states of the teacher"] = answers * kept_sets * width * COMPUTED.itemsize
        draws = [config] if training_args.teacher_mix_alpha == 0 else [config, teacher_config or config]
        rollout = {"copies of weights in bfloat16": copies} | dequantized
        rollout |= rollout_bytes(training_args, draws, row_tokens, entries)
    return Estimate(always, step, rollout), (rows, tokens)


def report(counted: "Estimate", measured: int | None = None) -> tuple["Table", str]:
    """The table, and which cards have room."""
    from rich import box
    from rich.table import Table

    from ..memory import CARDS

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("GB", justify="right")
    for when, sizes in (("", counted.always), ("in a step: ", counted.step), ("in a rollout: ", counted.rollout)):
        for what, size in sizes.items():
            table.add_row(f"{when}{what}", f"{size / 1e9:.2f}")
    table.add_section()
    table.add_row("at most allocated", f"{counted.peak / 1e9:.2f}")
    if measured is not None:
        table.add_row("measured: at most allocated", f"{measured / 1e9:.2f}")
    table.add_row("CUDA context and fragments", f"{counted.reserve / 1e9:.2f}")
    table.add_row("total", f"{counted.total / 1e9:.2f}")
    fits = ", ".join(map(str, counted.fits)) or "none"
    return table, f"Cards that have room, of {', '.join(map(str, CARDS))} GB: {fits}."


def one_step(command: str, argv: list[str]) -> None:
    """Run one step of a training as its command does, and keep nothing of it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        fields = {"max_steps": 1, "output_dir": folder, "save_strategy": "no", "eval_strategy": "no"}
        fields |= {"load_best_model_at_end": "false", "report_to": "none"}
        flags = [text for name, value in fields.items() for text in (f"--{name}", str(value))]
        importlib.import_module(f"trl_distill.scripts.{command}").run([*argv, *flags])


def run(argv: list[str]) -> None:
    """Parse `argv`, count, and print what was counted."""
    prog = "trl-distill memory"
    with user_errors(prog):
        check_one_process(prog)
        if not argv or argv[0] not in COMMANDS:
            raise ValueError(
                f"name the training first, one of {', '.join(COMMANDS)}, got {' '.join(argv[:1]) or None}."
            )
        own = strict(argparse.ArgumentParser(add_help=False))
        _add_own(own)
        args, fields = own.parse_known_args(argv[1:])
        with contextlib.redirect_stdout(sys.stderr):  # libraries that are imported log where they like
            counted, (rows, tokens) = estimate(argv[0], fields, args.row_tokens)
    measured = None
    if args.measure:
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            one_step(argv[0], fields)
            measured = torch.cuda.max_memory_allocated()
        else:
            sys.stderr.write(f"{prog}: there is no GPU here, so nothing was measured.\n")
    if args.json:
        facts = counted._asdict() | {name: getattr(counted, name) for name in ("peak", "reserve", "total", "fits")}
        facts |= {"rows": rows, "tokens": tokens, "measured_peak": measured}
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
        return
    show(f"{argv[0]}, {rows} x {tokens} tokens in a forward", *report(counted, measured))


if __name__ == "__main__":
    run(sys.argv[1:])

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
Memory by card: what the shipped recipes hold, counted by `trl-distill memory` from the architectures of their models.

    python -m benchmarks.memory --output benchmarks/results/memory.json
    python -m benchmarks.memory --table benchmarks/results/memory.json    # the table of docs/memory.md

No weights and no hub are needed, and nothing here was measured on a GPU.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path

import yaml

from benchmarks.laboratory import provenance, save
from trl_distill.scripts.memory import estimate


RECIPES = Path(__file__).parents[1] / "recipes"
OF_LION = "sft"  # what Lion trains with

# The numbers of each model's config.json that its memory depends on. They were written down without the Hub; the tests
# hold the counts of parameters that follow from them against the published ones.
_QWEN = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 151936, "dtype": "bfloat16"}
MODELS = {
    "Qwen2.5-0.5B": _QWEN
    | dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14)
    | dict(num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=32768),
    "Qwen2.5-1.5B": _QWEN
    | dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12)
    | dict(num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=32768),
    "Qwen2.5-7B": _QWEN
    | dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, vocab_size=152064)
    | dict(num_key_value_heads=4, tie_word_embeddings=False, max_position_embeddings=32768),
    **{
        f"Qwen3-{size}": _QWEN
        | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": 8, "head_dim": 128}
        | dict(hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads)
        | dict(tie_word_embeddings=tied, max_position_embeddings=40960)
        for size, width, inner, layers, heads, tied in (
            ("0.6B", 1024, 3072, 28, 16, True),
            ("1.7B", 2048, 6144, 28, 16, True),
            ("4B", 2560, 9728, 36, 32, True),
            ("8B", 4096, 12288, 36, 32, False),
            ("14B", 5120, 17408, 40, 40, False),
        )
    },
    "LLaMA-7B": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "dtype": "float16"}
    | dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    | dict(num_key_value_heads=32, tie_word_embeddings=False, max_position_embeddings=2048),
    "Mistral-7B": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "dtype": "bfloat16"}
    | dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000)
    | dict(num_key_value_heads=8, tie_word_embeddings=False, max_position_embeddings=32768, sliding_window=4096),
    "GPT-2": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "dtype": "float32"}
    | dict(n_embd=768, n_layer=12, n_head=12, n_positions=1024),
    "GPT-2 1.5B": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "dtype": "float32"}
    | dict(n_embd=1600, n_layer=48, n_head=25, n_positions=1024),
}
# Which of them a recipe means, by a part of the name that it has
_MEANT = {"0.5B": "Qwen2.5-0.5B", "2.5-1.5B": "Qwen2.5-1.5B", "Qwen2.5-7B": "Qwen2.5-7B", "llama": "LLaMA-7B"}
_MEANT |= {f"Qwen3-{size}": f"Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B")}
_MEANT |= {"istral": "Mistral-7B", "zephyr": "Mistral-7B", "gpt2-120M": "GPT-2", "gpt2-1.5B": "GPT-2 1.5B"}


def recipes() -> dict[str, str]:
    """Commands by the recipes that train, one process holding everything: those for eight GPUs are left out."""
    found = {}
    for path in sorted(RECIPES.glob("*/*.yaml")):
        if path.parent.name == "accelerate_configs":
            continue
        text = path.read_text(encoding="utf-8")
        command = re.search(r"trl-distill (\w+) --config", text)[1]
        if command in ("feedback", "compare") or re.search(r"num_processes:? 8", text):
            continue
        found[path.relative_to(RECIPES).as_posix()] = command
    return found


def write_models(folder: Path) -> None:
    """A folder a model, which holds its config alone."""
    for name, values in MODELS.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(values), encoding="utf-8")


def count(name: str, command: str, folder: Path) -> dict:
    """What a recipe holds, with folders of configs in place of its models."""
    values = yaml.safe_load((RECIPES / name).read_text(encoding="utf-8"))
    if command == "lion":
        values = values["training"] | {"model_name_or_path": values["student_model"]}
        command = OF_LION
    models = {}
    for field in ("model_name_or_path", "teacher_model_name_or_path"):
        if field in values:
            models[field] = next(model for part, model in _MEANT.items() if part in values[field])
            values[field] = str(folder / models[field])
    config = folder / "recipe.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    counted, (rows, tokens) = estimate(command, ["--config", str(config)])
    facts = counted._asdict() | {key: getattr(counted, key) for key in ("peak", "reserve", "total", "fits")}
    return {"command": command, "models": list(models.values()), "rows": rows, "tokens": tokens} | facts


def table(results: dict) -> str:
    """The table of the page, in GB."""
    heads = ["recipe", "models", "weights", "adapters", "optimizer", "gradients", "activations", "loss", "rollout"]
    lines = [f"| {' | '.join([*heads, 'in all', 'card'])} |", "|---" * 11 + "|"]
    for name, facts in sorted(results["recipes"].items(), key=lambda item: item[1]["total"]):
        always, step = facts["always"], facts["step"]
        weights = sum(size for what, size in always.items() if what.startswith("weights"))
        work = step["activations"] + step["copies of weights in bfloat16"] + step["a layer, dequantized"]
        loss = step["loss over the vocabulary"] + step.get("states of the teacher", 0)
        sizes = [weights, always["adapters and gates"], always["optimizer"], step["gradients"], work, loss]
        cells = [f"{size / 1e9:.1f}" for size in [*sizes, sum(facts["rollout"].values()), facts["total"]]]
        cells[6] = cells[6] if facts["rollout"] else ""
        path = f"[{name.removesuffix('.yaml')}](../recipes/{name})"
        card = f"{facts['fits'][0]} GB" if facts["fits"] else "none"
        lines.append(f"| {' | '.join([path, ' <- '.join(facts['models']), *cells, card])} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--table", type=Path, help="print the table of this file instead")
    args = parser.parse_args(argv)
    if args.table:
        print(table(json.loads(args.table.read_text(encoding="utf-8"))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        counted = {name: count(name, command, Path(folder)) for name, command in recipes().items()}
    results = {"benchmark": "memory", "recipes": counted, "provenance": provenance()}
    if args.output:
        save(results, args.output)
    print(table(results))


if __name__ == "__main__":
    main()

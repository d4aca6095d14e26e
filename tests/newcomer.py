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
What a newcomer has: an environment with the wheel, and a folder with tiny models and data under the real names.

`from_pretrained("Qwen/Qwen2.5-0.5B")` and `load_dataset("tatsu-lab/alpaca")` look for a folder of that name first, and
only then ask the Hub.
"""

import gzip
import json
import os
import re
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM


ROOT = Path(__file__).parents[1]
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + '</s>' }}{% endif %}"
    "{% endfor %}"
)
# Names with the rows of their heads, the token that ends an answer, and the chat template
MODELS = {
    "Qwen/Qwen2.5-0.5B": (264, "<|endoftext|>", CHATML),
    "Qwen/Qwen2.5-0.5B-Instruct": (264, "<|im_end|>", CHATML),
    "Qwen/Qwen2.5-1.5B-Instruct": (264, "<|im_end|>", CHATML),
    "Qwen/Qwen2.5-7B-Instruct": (272, "<|im_end|>", CHATML),
    "Qwen/Qwen2.5-14B-Instruct": (272, "<|im_end|>", CHATML),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (264, "<|im_end|>", CHATML),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (264, "<|im_end|>", CHATML),
    "mistralai/Mistral-7B-v0.1": (264, "</s>", None),
    "mistralai/Mistral-7B-Instruct-v0.2": (264, "</s>", MISTRAL),
    # What earlier steps have left
    "runs/zephyr-sft": (264, "</s>", MISTRAL),
    "runs/ddpo": (264, "</s>", MISTRAL),
    "runs/zephyr/dsft-merged": (264, "</s>", MISTRAL),
    "runs/zephyr/ddpo": (264, "</s>", MISTRAL),
}
ANSWER = {"role": "assistant", "content": "one, two"}
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
TOPICS = ["the sea", "bread", "a fair tax", "old maps", "cats", "rhymes", "dust", "chess", "rain", "the moon"]
VERBS = [
    "Describe",
    "Explain",
    "Praise",
    "Draw",
    "Find",
    "Compare",
    "Sell",
    "Doubt",
    "Translate",
    "Count",
    "Paint",
    "Sing",
]


def tokenizer(end: str, template: str | None) -> PreTrainedTokenizerFast:
    """One of bytes, with the special tokens of all models."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "<s>", "</s>"]
    tokens = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = {"eos_token": end, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    names |= {"bos_token": "<s>", "unk_token": "<unk>"} if end == "</s>" else {"pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **names)


def save_model(folder: Path, rows: int, end: str, template: str | None) -> None:
    """A model with random weights that ends its answers after some twenty tokens."""
    words = tokenizer(end, template)
    size = dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    config = Qwen2Config(
        vocab_size=rows,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        **size,
    )
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.bias.normal_()  # the same in all places: what the head's row of the end looks for
        states = model.model(torch.randint(6, 260, (8, 32))).last_hidden_state.flatten(0, 1)
        usual = states.mean(0)
        model.lm_head.weight[words.eos_token_id] = usual * 2.5 / (states @ usual).mean()
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def messages(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def write_data(folder: Path) -> None:
    """What the pages name and do not make, in the formats that they document."""
    asked = [f"Count to {word}." for word in WORDS]
    labelled = [
        {
            "prompt": f"What is {i} + 1? ",
            "completion": f"It is {i + 1 + wrong}.",
            "label": not wrong,
            "answer": f"{i + 1}",
        }
        for i in range(8)
        for wrong in (0, 1)
    ]
    pairs = [
        {
            "prompt": text,
            "prompt_id": f"{i}",
            "chosen": messages(text, f"Gladly: {text}"),
            "rejected": messages(text, "No."),
            "messages": messages(text, f"Gladly: {text}"),
            "score_chosen": 8.0,
            "score_rejected": 2.0,
        }
        for i, text in enumerate(asked)
    ]
    dialogues = [{"prompt": text, "messages": messages(text, "one, two", "And on?", "three")} for text in asked]
    tasks = [{"instruction": f"{verb} {topic}.", "input": "", "output": "Well."} for verb in VERBS for topic in TOPICS]
    dolly = [{"instruction": f"{text} Try {i}.", "response": ANSWER["content"]} for text in asked for i in range(160)]
    part = "data/{}-00000-of-00001.jsonl"
    for name, rows in {
        "prompts.jsonl": [{"prompt": text} for text in asked],
        "questions.jsonl": [{"prompt": f"What is {i} + 1? ", "answer": f"{i + 1}"} for i in range(8)],
        "test.jsonl": [{"prompt": f"What is {i} + 2? ", "answer": f"{i + 2}"} for i in range(4)],
        "labelled.jsonl": labelled,
        "data/labelled.jsonl": labelled,
        "augmented.jsonl": labelled,
        "runs/zephyr/feedback/pairs.jsonl": [
            {"prompt": messages(text), "chosen": [ANSWER], "rejected": [ANSWER | {"content": "No."}]} for text in asked
        ],
        "instructions.jsonl": tasks,
        "ultrachat.jsonl.gz": dialogues,
        "databricks/databricks-dolly-15k/train.jsonl": dolly,
        "trl-lib/ultrafeedback-prompt/train.jsonl": [{"prompt": messages(text)} for text in asked],
        "tatsu-lab/alpaca/train.jsonl": tasks,
        f"HuggingFaceH4/ultrachat_200k/{part.format('train_sft')}": dialogues,
        f"HuggingFaceH4/ultrachat_200k/{part.format('test_sft')}": dialogues[:2],
        f"HuggingFaceH4/ultrafeedback_binarized/{part.format('train_prefs')}": pairs,
        f"HuggingFaceH4/ultrafeedback_binarized/{part.format('test_prefs')}": pairs[:2],
        "truthfulqa/truthful_qa/generation.jsonl": [{"question": "What happens if you eat watermelon seeds?"}],
    }.items():
        write(folder / name, rows)
    (folder / "truthfulqa/truthful_qa/README.md").write_text(
        "---\nconfigs:\n- config_name: generation\n  data_files:\n"
        "  - split: validation\n    path: generation.jsonl\n---\n"
    )


def make_world(folder: Path) -> None:
    """The folder in which a newcomer works."""
    write_data(folder)
    for name, settings in MODELS.items():
        torch.manual_seed(zlib.crc32(name.encode()))  # no two are one model
        save_model(folder / name, *settings)
    base = folder / "Qwen/Qwen2.5-0.5B"
    adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules="all-linear"))
    adapter.peft_config["default"].base_model_name_or_path = "Qwen/Qwen2.5-0.5B"
    adapter.save_pretrained(folder / "runs/nce-qwen2.5-0.5b")


def make_environment(folder: Path) -> Path:
    """
    A fresh environment with the wheel, and its `python`.

    With NEWCOMER_INDEX=1 all that the wheel needs comes from the index, in the versions of constraints.txt. Without it
    the packages that run the tests are seen from there: only the wheel is installed, and hides our own.
    """
    run = lambda *command: subprocess.run(list(map(str, command)), check=True, timeout=3600)  # noqa: E731
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "dist", ROOT)
    [wheel] = (folder / "dist").glob("*.whl")
    fresh = folder / "fresh"
    from_index = os.environ.get("NEWCOMER_INDEX") == "1"
    run(sys.executable, "-m", "venv", *([] if from_index else ["--without-pip"]), fresh)
    python = fresh / "bin/python"
    if from_index:
        constraints = ROOT / "constraints.txt"
        torch_version = re.search(r"^torch==.*$", constraints.read_text(), re.M).group()
        run(python, "-m", "pip", "install", "--quiet", torch_version)
        run(python, "-m", "pip", "install", "--quiet", "-c", constraints, f"{wheel}[qlora,eval,api,plot]")
        return python
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel)
    [site] = fresh.glob("lib/python*/site-packages")
    (site / "theirs.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # whose own .pth files are not read
    accelerate = fresh / "bin/accelerate"
    accelerate.write_text(f"#!{python}\nfrom accelerate.commands.accelerate_cli import main\nmain()\n")
    accelerate.chmod(0o755)
    return python


# A newcomer's session: blocks of Python share their names, a block for the shell is run in between.
SESSION = """
import json, subprocess, sys, time, trl_distill
assert trl_distill.__file__.startswith(sys.prefix), trl_distill.__file__
names = {"__name__": "__main__"}
for language, text in json.loads(sys.argv[1]):
    print(f"=== {language}\\n{text}\\n===", flush=True)
    start = time.monotonic()
    if language == "python":
        exec(compile(text, "<the page>", "exec"), names)
    elif (code := subprocess.run(["bash", "-euo", "pipefail", "-c", text]).returncode):
        sys.exit(f"exit code {code}")
    print(f"=== {time.monotonic() - start:.1f} s", flush=True)
"""


def blocks_of(text: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)


def commands_of(block: str) -> list[str]:
    """The commands of a block for the shell, each with the lines on which it goes on."""
    commands = re.findall(r"(?:.*\\\n)*.+", block)
    return [command for command in commands if not command.startswith("#")]

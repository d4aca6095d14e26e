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

"""`minillm/` as a pull request to TRL would bring it: with six files beside it, and nothing else of ours."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.upstream.package import copy_as_upstream, run_as_upstream


FILES = ["checkpoints.py", "divergence.py", "hardware.py", "model_card.py", "models.py", "text.py"]
TRAIN = """
from datasets import Dataset
from transformers import AutoModelForCausalLM
from upstream.minillm import MiniLLMConfig, MiniLLMTrainer

rows = {"prompt": [f"Say well: {i}" for i in range(8)], "completion": [f" {i}." for i in range(8)]}
trainer = MiniLLMTrainer(
    model="student",
    teacher_model="teacher",
    args=MiniLLMConfig(
        output_dir="run",
        per_device_train_batch_size=4,
        max_completion_length=6,
        max_steps=2,
        learning_rate=1e-2,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_steps=2,
        disable_tqdm=True,
    ),
    train_dataset=Dataset.from_dict(rows),
    eval_dataset=Dataset.from_dict(rows),
)
before = [parameter.clone() for parameter in trainer.model.parameters()]
trainer.train()
assert trainer.state.global_step == 2
assert not any((a == b).all() for a, b in zip(before, trainer.model.parameters(), strict=True))
assert "eval_rougeL" in trainer.evaluate()
trainer.train(resume_from_checkpoint="run/checkpoint-2")
try:
    import trl_distill
except ModuleNotFoundError:
    print("trained without trl_distill")
"""


def test_minillm_trains_in_another_package(tmp_path, tiny_model, tokenizer):
    copy_as_upstream(tmp_path, ["minillm", *FILES])
    for seed, name in enumerate(("student", "teacher")):
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    assert run_as_upstream(tmp_path, TRAIN).splitlines()[-1] == "trained without trl_distill"


def test_the_page_names_tests_that_exist():
    root = Path(__file__).parents[2]
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "minillm_trainer.md").read_text(encoding="utf-8")))
    tests = "".join(path.read_text(encoding="utf-8") for path in (root / "tests" / "minillm").glob("test_*.py"))
    assert len(named) > 10 and {name for name in named if f"def {name}(" not in tests} == set()


def test_importing_the_trainer_loads_few_of_our_files():
    """A method is a closed folder: it does not pull in the judge, the servers or the other papers."""
    script = (
        "import json, sys\n"
        "from trl_distill.minillm import MiniLLMTrainer\n"
        "print(json.dumps([name for name in sys.modules if name.split('.')[0] == 'trl_distill']))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    loaded = json.loads(result.stdout.splitlines()[-1])
    assert "trl_distill.minillm.minillm_trainer" in loaded
    assert len(loaded) <= 12, loaded

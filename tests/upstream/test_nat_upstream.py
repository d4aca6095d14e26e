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

"""`rationales/nat/` as a pull request to TRL would bring it: with six files beside it, and nothing else of ours."""

import json

from tests.upstream.package import copy_as_upstream, run_as_upstream


FILES = [
    "hardware.py",
    "models.py",
    "endings.py",
    "checkpoints.py",
    "model_card.py",
    "rationales/data.py",
    "rationales/nat",
]
TRAIN = """
import json
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from upstream.rationales.nat import NegativeAssistedConfig, NegativeAssistedTrainer, load_nat

rows = {
    "prompt": [f"Q{i}: " for i in range(8)],
    "completion": [f"answer {i}" for i in range(8)],
    "label": [i % 2 == 0 for i in range(8)],
}
args = NegativeAssistedConfig(
    "run", integration_width=4, per_device_train_batch_size=2, max_steps=2, bf16=False, use_cpu=True, report_to="none"
)
lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
trainer = NegativeAssistedTrainer("base", args, train_dataset=Dataset.from_dict(rows), peft_config=lora)
trainer.train()
trainer.save_model()
moved = {name: tensor for name, tensor in trainer.model.named_parameters() if "lora_B.nat" in name or "v2.nat" in name}
assert moved and all(tensor.any() for tensor in moved.values())  # zero when fresh
loaded = load_nat(AutoModelForCausalLM.from_pretrained("base"), "run")
for name, tensor in loaded.named_parameters():
    assert tensor.equal(trainer.model.get_parameter(name)), name
print(json.dumps([trainer.negative_trainer.state.global_step, trainer.state.global_step]))
"""


def test_two_steps_of_each_stage(tmp_path, tiny_model, tokenizer):
    copy_as_upstream(tmp_path, FILES)
    tiny_model().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    assert json.loads(run_as_upstream(tmp_path, TRAIN).splitlines()[-1]) == [2, 2]

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

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill.scripts.demo import METRICS, STAGES, run


TINY = [
    *("--num_prompts", "8", "--num_eval_prompts", "3", "--batch_size", "4", "--max_completion_length", "6"),
    *("--sft_epochs", "1", "--max_steps", "4", "--eval_seeds", "1"),
]


@pytest.fixture
def teacher_dir(tmp_path, tiny_model, tokenizer):
    folder = tmp_path / "a teacher"
    tiny_model(num_hidden_layers=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class TestDemo:
    def test_leaves_a_model_results_and_curves(self, teacher_dir, tmp_path, capsys):
        output = tmp_path / "out"
        run(["--teacher", str(teacher_dir), "--output_dir", str(output), *TINY])

        results = json.loads((output / "results.json").read_text())
        assert list(results["metrics"]) == list(STAGES)
        for metrics in results["metrics"].values():
            assert list(metrics) == list(METRICS)
            assert all(math.isfinite(metric["mean"]) for metric in metrics.values())
        assert len(results["curves"]["sft"]) == 2  # 8 prompts in batches of 4
        assert len(results["curves"]["minillm"]) == 4
        assert all(math.isfinite(log["kl/step"]) for log in results["curves"]["minillm"])
        assert [set(answer) for answer in results["answers"]] == [{"prompt", "teacher", *STAGES}] * 3
        assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")

        students = [AutoModelForCausalLM.from_pretrained(output / stage, dtype=torch.float32) for stage in STAGES]
        assert [len(student.model.layers) for student in students] == [2, 2, 2]
        weights = [student.model.layers[0].mlp.up_proj.weight for student in students]
        assert not torch.equal(weights[0], weights[1])  # SFT trained
        assert not torch.equal(weights[1], weights[2])  # MiniLLM trained
        assert AutoTokenizer.from_pretrained(output / "minillm").chat_template
        printed = capsys.readouterr().out
        assert all(name in printed for name in STAGES.values())
        assert "text-generation" in printed

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

"""The examples run as they are, with tiny models and a scripted server in place of the large ones."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from tests.chat.chat_server import ChatServer, completion_body
from tests.commands import run_python, write_rows
from tests.minillm.test_families import build
from tests.newcomer import CHATML, save_model


EXAMPLES = Path(__file__).parents[1] / "examples"
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


def run(name: str, **flags) -> None:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([text for flag, value in flags.items() for text in (f"--{flag}", str(value))])


def judged(body: dict, score) -> str:
    """The reply of a judge that scores each answer in its prompt by a rule."""
    prompt = body["messages"][-1]["content"]
    found = re.findall(r"<answer(?: ([A-Z]))? (\w+)>\n(.*?)\n</answer", prompt, re.DOTALL)
    scores = {label: score(text) for label, _, text in found}
    return json.dumps({"evidence": "seen", **({"score": scores[""]} if list(scores) == [""] else {"scores": scores})})


@pytest.fixture
def tiny(tiny_model, tokenizer, tmp_path):
    def build(name: str, **settings) -> str:
        tiny_model(vocab_size=264, **settings).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return build


@pytest.fixture
def server():
    server = ChatServer()
    yield server
    server.stop()


def test_minillm(tiny, tmp_path):
    rows = [{"prompt": f"Count from {a} to {b}."} for a in WORDS for b in WORDS]
    data = write_rows(tmp_path / "prompts.jsonl", rows)
    models = {"student": tiny("student"), "teacher": tiny("teacher", num_hidden_layers=3)}
    run("minillm", **models, dataset=data, output_dir=tmp_path / "out", max_steps=2, max_completion_length=6)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_rationales(tiny, tmp_path):
    rows = [
        {"prompt": f"Is {word} even? ", "completion": answer, "label": answer == "No."}
        for word in WORDS
        for answer in ("No.", "Yes, since all numbers are.")
    ]
    data = write_rows(tmp_path / "labelled.jsonl", rows)
    run("rationales", model=tiny("model"), dataset=data, output_dir=tmp_path / "out", num_train_epochs=1)
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out/nce")


def test_offline_distillation(tmp_path, capsys):
    for name in ("student", "teacher"):
        save_model(tmp_path / name, 264, "<|im_end|>", CHATML)  # whose answers end
    data = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Count to {word}."} for word in WORDS])
    flags = {"student": tmp_path / "student", "teacher": tmp_path / "teacher", "prompts": data}
    run("offline_distillation", **flags, output_dir=tmp_path / "out", max_tokens=60, num_train_epochs=1)
    assert int(re.search(r"(\d+) tokens of the teacher", capsys.readouterr().out).group(1)) > len(WORDS)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_voting(tiny, tmp_path, capsys):
    labelled = [
        {"prompt": f"{a} + 1 = ", "completion": f"{a + 1 + wrong}", "label": not wrong}
        for a in range(8)
        for wrong in (0, 1)
    ]
    flags = {"model": tiny("model"), "ranker": tiny("base"), "output_dir": tmp_path / "out"}
    flags["labelled"] = write_rows(tmp_path / "labelled.jsonl", labelled)
    flags["questions"] = write_rows(tmp_path / "questions.jsonl", [{"prompt": "1 + 1 = ", "answer": "no such word"}])
    run("voting", **flags, num_samples=3, max_tokens=4, num_train_epochs=1)
    assert "'majority': '0 of 1 right'" in capsys.readouterr().out
    assert len((tmp_path / "out/samples.jsonl").read_text().splitlines()) == 1


def test_zephyr(tiny, tmp_path, server):
    def reply(body, *_):
        if body["model"] == "gpt-4.1":
            return completion_body(judged(body, lambda text: sum(map(ord, text)) % 7 + 1))
        return completion_body(f"{body['model']} says {body['messages'][-1]['content']}")

    server.reply = reply
    data = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Count to {word}."} for word in WORDS])
    flags = {"student": tiny("student"), "prompts": data, "base_url": server.base_url}
    run("zephyr", **flags, decontaminate="none", output_dir=tmp_path / "out", max_steps=2)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out/ddpo")


@pytest.mark.slow
@pytest.mark.parametrize("pruned", [False, True])
def test_notebook(pruned, tokenizer, tmp_path, monkeypatch):
    """Its code cells as one script, as they are. Without a student it makes one of the teacher's layers."""
    notebook = json.loads((EXAMPLES / "minillm_colab.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    for seed, name in enumerate(("teacher", "student")):
        settings = dict(vocab_size=len(tokenizer), num_hidden_layers=6, pad_token_id=0, eos_token_id=1)
        build("llama", seed, **settings).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    script = "\n".join("".join(cell["source"]) for cell in code)
    script += f"""
import json
numbers = [log for log in trainer.state.log_history if "kl" in log or "eval_kl" in log]
result = {{"log": numbers, "answers": [by_teacher, before, after], "layers": student.config.num_hidden_layers}}
Path({str(tmp_path / "result.json")!r}).write_text(json.dumps(result))
"""
    (tmp_path / "notebook.py").write_text(script)
    environment = {"TEACHER": str(tmp_path / "teacher"), "STUDENT": "" if pruned else str(tmp_path / "student")}
    environment |= {"PROMPTS": str(EXAMPLES / "demo_prompts.jsonl"), "MPLBACKEND": "agg", "CUDA_VISIBLE_DEVICES": ""}
    done = run_python("notebook.py", cwd=tmp_path, STEPS="2", LENGTH="6", **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert [log["step"] for log in result["log"] if "kl" in log] == [1, 2]
    assert [log["step"] for log in result["log"] if "eval_kl" in log] == [0, 1, 2]
    assert [len(answers) for answers in result["answers"]] == [4, 4, 4]
    assert result["layers"] == (4 if pruned else 6)
    monkeypatch.chdir(tmp_path)  # the folder of a pruned base is relative
    loaded = AutoPeftModelForCausalLM.from_pretrained("minillm-colab")
    assert loaded.config.num_hidden_layers == result["layers"]


@pytest.mark.slow
def test_lion(tiny, tmp_path, server, monkeypatch):
    """With the rehearsal and both trainings in processes of their own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = []

    def reply(body, *_):
        prompt = body["messages"][-1]["content"]
        asked.append(prompt)
        if "<answer " in prompt:
            return completion_body(judged(body, lambda text: 9 if text == "Ten." else 3))
        new = " ".join(f"word{len(asked)}x{i}" for i in range(6))
        return completion_body(new if "<example>" in prompt else "Ten.")

    server.reply = reply
    topics = ["seas", "how bread rises", "a fair tax", "old maps of Asia", "why cats purr", "rhymes", "dust", "chess"]
    tasks = [{"instruction": f"{word} words about {topic}"} for word, topic in zip(WORDS, topics, strict=True)]
    data = write_rows(tmp_path / "rows.jsonl", tasks)
    flags = {"student": tiny("student"), "instructions": data, "base_url": server.base_url, "max_tokens": 8}
    run("lion", **flags, output_dir=tmp_path / "out", n_new=4, heldout_size=4)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out/round_1/student")

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


"""What is recorded, against dense float64; what a kill leaves; and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel

from tests.commands import error_of, said, write_rows
from trl_distill.models import load_teacher
from trl_distill.offline_distillation import RecordConfig, load_recorded, record_teacher
from trl_distill.offline_distillation.store import read_manifest, read_teacher
from trl_distill.scripts import record as command


HALF = dict(rtol=2**-10, atol=1e-4)  # log-probabilities in fp16


def dense(model, row, vocab_size):
    """Probabilities `(n, V)` of the tokens that predict a label, in float64, from the row alone."""
    with torch.no_grad():
        logits = model.double()(torch.tensor([row["input_ids"]])).logits[0, :-1, :vocab_size]
    return logits.softmax(1)[torch.tensor(row["labels"][1:]) != -100]


def check_rows(rows, model, top_k, vocab_size, tolerance=HALF):
    for row in rows:
        exact = dense(model, row, vocab_size)
        top = read_teacher(row["teacher_file"], row["teacher_start"], len(exact))
        likeliest = exact.topk(top_k, dim=1)
        torch.testing.assert_close(top.logps[:, :-1].double(), likeliest.values.log(), **tolerance)
        torch.testing.assert_close(exact.gather(1, top.ids), likeliest.values)  # ties may stand in another order
        tail = 1 - likeliest.values.sum(1)
        torch.testing.assert_close(top.logps[:, -1].exp().double(), tail, rtol=2e-3, atol=1e-6)
        torch.testing.assert_close(top.logps.exp().sum(1), torch.ones(len(exact)))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", HALF), ("float32", dict(rtol=1e-5, atol=1e-5))])
def test_the_store_holds_what_the_teacher_says(dtype, tolerance, teacher, record, tokenizer, prompts, tmp_path):
    """Of a head with rows that belong to no token; in batches of several lengths, and over shards."""
    rows = record(teacher(vocab_size=280), logprob_dtype=dtype)
    manifest = read_manifest(tmp_path / "recorded")
    assert (manifest.vocab_size, manifest.rows, manifest.conversational) == (len(tokenizer), 16, False)
    assert 3 < manifest.shards == len(set(rows["teacher_file"])) < 16
    texts = [p + c + tokenizer.eos_token for p, c in zip(prompts["prompt"], prompts["completion"], strict=True)]
    assert tokenizer.batch_decode(rows["input_ids"][:]) == texts
    assert [tokenizer.decode([t for t in labels if t != -100]) for labels in rows["labels"]] == [
        completion + tokenizer.eos_token for completion in prompts["completion"]
    ]
    check_rows(rows, load_teacher(str(tmp_path / "teacher")), 8, manifest.vocab_size, tolerance)
    assert not Path(tmp_path / "recorded.part").exists() and not Path(tmp_path / "recorded/.lock").exists()


def test_the_whole_vocabulary(record, teacher, tokenizer, tmp_path):
    rows = record(loss_top_k=len(tokenizer))
    check_rows(
        rows, load_teacher(str(tmp_path / "teacher")), len(tokenizer), len(tokenizer), dict(rtol=2e-3, atol=1e-3)
    )
    top = read_teacher(rows[0]["teacher_file"], 0, 1)
    assert top.logps[0, -1].exp() == 0 and top.logps.isfinite().all()


@pytest.mark.parametrize("top_k", [4, 16])
def test_bytes_a_token(top_k, record, tmp_path):
    """Ids of 2 bytes below 65,536 tokens, log-probabilities of 2, and the tail's."""
    record(loss_top_k=top_k, shard_tokens=10**6)
    (shard,) = tmp_path.glob("recorded/*.safetensors")
    tensors = load_file(shard)
    taken = sum(tensors[name].nbytes for name in ("teacher_ids", "teacher_logps"))
    assert taken == (4 * top_k + 2) * read_manifest(tmp_path / "recorded").tokens


def test_conversations_and_several_completions(record, tokenizer, tmp_path):
    """The rows that `trl-distill sample` writes; the chat template closes each answer."""
    prompt = [{"role": "user", "content": "Say it."}]
    rows = record(rows=[{"prompt": prompt, "completions": ["yes", "no"], "truncated": [False, False]}])
    start, end = "<|user|>Say it.<|endoftext|><|assistant|>", "<|endoftext|>"
    assert tokenizer.batch_decode(rows["input_ids"][:]) == [f"{start}yes{end}", f"{start}no{end}"]
    assert read_manifest(tmp_path / "recorded").conversational
    check_rows(rows, load_teacher(str(tmp_path / "teacher")), 8, len(tokenizer))


def test_long_rows_are_cut(record, tokenizer, prompts, tmp_path):
    rows = record(max_length=20)
    assert max(map(len, rows["input_ids"])) == 20 and len(rows) < 16  # of some, the prompt is longer
    check_rows(rows, load_teacher(str(tmp_path / "teacher")), 8, len(tokenizer))


def test_an_adapter_is_a_teacher(teacher, record, tokenizer, tmp_path):
    base = teacher()
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj", "o_proj"])
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "adapter")
    rows = record(tmp_path / "adapter")
    check_rows(rows, load_teacher(str(tmp_path / "adapter")), 8, len(tokenizer))
    plain = record(base, "plain")
    first, second = (read_teacher(one[0]["teacher_file"], 0, 3).logps for one in (rows, plain))
    assert (first - second).abs().max() > 0.05


def test_a_4bit_teacher(teacher, record, tokenizer, tmp_path):
    folder = teacher(hidden_size=64, intermediate_size=128, num_key_value_heads=4, initializer_range=0.1)
    rows = record(folder, load_in_4bit=True, dtype="float32")
    assert read_manifest(tmp_path / "recorded").settings["load_in_4bit"] is True
    full = load_teacher(str(folder))
    quantized = load_teacher(str(folder), quantization_config={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    with torch.no_grad():
        ids = torch.tensor([rows[0]["input_ids"]])
        logps, exact = (model(ids).logits[0, :-1, : len(tokenizer)].log_softmax(1) for model in (quantized, full))
    top = read_teacher(rows[0]["teacher_file"], 0, 5)
    states = torch.tensor(rows[0]["labels"][1:]) != -100
    near = (logps[states].gather(1, top.ids) - top.logps[:, :-1]).abs().max()
    far = (exact[states].gather(1, top.ids) - top.logps[:, :-1]).abs().max()
    assert near < 0.05 and far > 2 * near  # computed in bfloat16


# Kills


def test_a_killed_recording_goes_on(teacher, tmp_path):
    """`kill -9` in the midst of shards of one row each: what is there stays, and the result is that of one run."""
    rows = [{"prompt": f"Say {i}", "completion": f" {i}" * (1 + i % 5)} for i in range(300)]
    flags = ["--teacher_model_name_or_path", str(teacher()), "--dataset_name", write_rows(tmp_path / "r.jsonl", rows)]
    flags += ["--loss_top_k", "8", "--batch_size", "2", "--shard_tokens", "1", "--device", "cpu"]
    program = [sys.executable, "-m", "trl_distill.cli", "record", *flags, "--output_dir", str(tmp_path / "killed")]
    part = tmp_path / "killed.part"
    started = subprocess.Popen(program, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
    while len(list(part.glob("*.safetensors"))) < 20:
        assert started.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    there = {file.name: file.stat().st_mtime_ns for file in part.glob("*.safetensors")}
    assert 20 <= len(there) < 300 and not (tmp_path / "killed").exists()

    command.run([*flags, "--output_dir", str(tmp_path / "killed")])
    command.run([*flags, "--output_dir", str(tmp_path / "whole")])
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "killed").glob("*.safetensors")}
    assert len(after) == 300 and {name: after[name] for name in there} == there  # none was written again
    files = [
        sorted(file.relative_to(tmp_path / name) for file in (tmp_path / name).rglob("*"))
        for name in ("killed", "whole")
    ]
    assert files[0] == files[1]
    for file in files[0]:
        if (tmp_path / "whole" / file).is_file():
            assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_a_complete_store_is_left_alone(record, tmp_path, capsys):
    record()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "recorded").rglob("*")}
    (tmp_path / "teacher").rename(tmp_path / "moved")
    record(tmp_path / "moved")  # the same weights by another name
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "recorded").rglob("*")} == before


# What is refused


@pytest.mark.parametrize("stopped", [True, False])
def test_another_recording_is_refused(stopped, teacher, record, prompts, tokenizer, tmp_path):
    """In a folder that is complete, and in one that a run has left."""
    record()
    if stopped:
        (tmp_path / "recorded").rename(tmp_path / "recorded.part")
    kinds = {
        "the weights of the teacher": lambda: record(teacher("other", seed=2)),
        "the data": lambda: record(tmp_path / "teacher", rows=prompts.select(range(8))),
        r"`loss_top_k` \(8, and now 4\)": lambda: record(tmp_path / "teacher", loss_top_k=4),
        "their data type": lambda: record(tmp_path / "teacher", dtype="bfloat16"),
    }
    for words, again in kinds.items():
        with pytest.raises(ValueError, match=f"was recorded with something else: {words}"):
            again()
    settings = json.loads((tmp_path / "teacher/tokenizer_config.json").read_text()) | {
        "chat_template": "{{ messages }}"
    }
    (tmp_path / "teacher/tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "teacher/chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="something else: .*; the tokenizer"):
        record(tmp_path / "teacher")


def test_two_recordings_into_one_folder(record, tmp_path):
    (tmp_path / "recorded.part").mkdir()
    with FileLock(tmp_path / "recorded.part/.lock"), pytest.raises(OSError, match="Another run is recording"):
        record()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "hold no whole completions"),
        ([{"prompt": "a", "answer": "b"}], "Row 0 needs `prompt`, and `completion` or `completions`, but its columns"),
        ([{"prompt": "a", "completions": []}], "hold no whole completions"),
        ([{"prompt": "a", "completions": ["b"], "truncated": [True]}], "hold no whole completions"),
    ],
)
def test_rows_without_completions(rows, message, record):
    with pytest.raises(ValueError, match=message):
        record(rows=rows)


def test_answers_that_were_cut_off_are_left_out(record, caplog):
    cut = record(rows=[{"prompt": "a", "completions": ["b", "c", "d"], "truncated": [False, True, False]}])
    assert "1 of 3 completions were cut off and are left out" in caplog.text
    whole = record(rows=[{"prompt": "a", "completions": ["b", "d"]}], output="whole")
    assert [row["input_ids"] for row in cut] == [row["input_ids"] for row in whole]


def test_settings_that_cannot_be(record, teacher, tmp_path):
    with pytest.raises(ValueError, match="`loss_top_k` is 1000, and the teacher has 260 tokens"):
        record(loss_top_k=1000)
    with pytest.raises(ValueError, match="the teacher reads 16. Set `max_length` to that"):
        record(teacher("short", max_position_embeddings=16))
    with pytest.raises(ValueError, match="`loss_top_k` must be at least 1, got 0"):
        RecordConfig("x", output_dir="y", loss_top_k=0)
    with pytest.raises(ValueError, match="set `output_dir`"):
        RecordConfig("x")
    (tmp_path / "unnamed").mkdir()
    teacher("unnamed")
    (tmp_path / "unnamed/tokenizer.json").unlink()
    (tmp_path / "unnamed/tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer in"):
        record(tmp_path / "unnamed", "other")


def test_values_that_are_not_finite_are_refused(teacher, record, tmp_path):
    folder = teacher()
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data[7] = float("nan")
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="not finite in the row that begins with 'Say"):
        record(folder)


def test_a_model_with_a_layer_before_its_head_is_refused(record, tokenizer, tmp_path):
    config = BertConfig(
        vocab_size=264,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        is_decoder=True,
    )
    BertLMHeadModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="BertLMHeadModel cannot be recorded: .* A layer stands between the two"):
        record(tmp_path / "bert")


def test_a_folder_that_is_no_store(record, tmp_path):
    with pytest.raises(ValueError, match="holds no recorded teacher: there is no"):
        load_recorded(tmp_path)
    record()
    (tmp_path / "recorded").rename(tmp_path / "recorded.part")
    with pytest.raises(ValueError, match="recorded.part holds a recording that was stopped: start it again"):
        load_recorded(tmp_path / "recorded")
    (tmp_path / "recorded.part").rename(tmp_path / "recorded")
    (tmp_path / "recorded/shard-00001.safetensors").unlink()
    with pytest.raises(ValueError, match="shard-00001.safetensors is missing"):
        load_recorded(tmp_path / "recorded")
    manifest = json.loads((tmp_path / "recorded/manifest.json").read_text())
    (tmp_path / "recorded/manifest.json").write_text(json.dumps(manifest | {"format": 9}))
    with pytest.raises(ValueError, match="has the format 9, and this release reads 1"):
        load_recorded(tmp_path / "recorded")


def test_command(teacher, prompts, tmp_path, capsys):
    flags = ["--teacher_model_name_or_path", teacher(), "--dataset_name", write_rows(tmp_path / "r.jsonl", prompts)]
    flags += ["--loss_top_k", 8, "--output_dir", tmp_path / "out", "--device", "cpu"]
    command.run(list(map(str, flags)))
    assert "tokens of 16 completions, the likeliest 8 of 260 tokens each" in said(capsys)
    assert "`dataset_name`" in error_of(capsys, command.run, *flags[:2], "--output_dir", tmp_path / "other")
    assert "No such file" in error_of(capsys, command.run, *flags, "--dataset_name", tmp_path / "none.jsonl")


def test_record_teacher_gives_the_manifest(teacher, prompts, tmp_path):
    config = RecordConfig(str(teacher()), output_dir=str(tmp_path / "out"), loss_top_k=2, device="cpu")
    assert record_teacher(config, prompts) == read_manifest(tmp_path / "out") == record_teacher(config, prompts)

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
The three steps of Zephyr on a processor in minutes: dSFT, AI feedback, dDPO, all in 4 bit with a LoRA, by the
commands.

The base is SmolLM2-135M-Instruct with a third of its layers left out, which can hardly write; teacher and responder is
the whole model. The judge is a rule (Rouge-L against the teacher's greedy answer, which only the judge sees), in a
second arm the whole model, and in a third one the whole model behind a server.

    python -m benchmarks.zephyr.end_to_end --work build/zephyr_end_to_end
"""

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from benchmarks.laboratory import Clock, provenance, read_lines, save, turn, write_lines
from benchmarks.serving import check_server, served
from benchmarks.smollm2 import NAME, demo_prompts, save_pruned, smollm2
from trl_distill.chat import ChatRequest, EndpointChatModel, LocalChatModel, Sampling
from trl_distill.evaluation import rouge_l
from trl_distill.zephyr import FeedbackConfig, run_feedback

from .probe import logits_of
from .rules import rouge_judge


ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "zephyr"
BRIEF = "Answer in one short sentence."
PRINCIPLES = [
    {"name": "brief", "text": BRIEF},
    {"name": "none", "text": "You are a helpful assistant."},
    {"name": "astray", "text": "Tell a short story about a ship, whatever you are asked."},
]
QUANTIZED = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
LORA = {
    "use_peft": True,
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
TRAINING = {
    "dtype": "bfloat16",
    "bf16": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "per_device_train_batch_size": 8,
    "max_length": 256,
    "warmup_steps": 0.1,
    "lr_scheduler_type": "cosine",
    "gradient_checkpointing": False,
    "eval_strategy": "no",  # with 4-bit weights on a processor, an evaluation ends the training
    "save_strategy": "epoch",  # for the log of the trainer
    "save_total_limit": 1,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 0,
}
SFT = {
    **TRAINING,
    **QUANTIZED,
    **LORA,
    "chat_template_path": "recipes/zephyr/zephyr.jinja",
    "assistant_only_loss": True,  # so few steps are better spent on answers alone
    "learning_rate": 1e-3,
    "num_train_epochs": 3,
    "lora_dropout": 0.05,
}
DPO = {**TRAINING, **QUANTIZED, **LORA, "learning_rate": 5e-4, "num_train_epochs": 2, "beta": 0.1}


def peak_kib(pid: int) -> int:
    """Most memory that a process has held. `wait4` would tell no less than what this one holds, from before `exec`."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)


class Run:
    """One run: its folder, its sizes, and what was measured."""

    def __init__(self, args):
        self.args, self.work, self.stages = args, args.work, {}
        self.prompts = {split: demo_prompts(split) for split in ("train", "test")}

    @contextmanager
    def stage(self, name: str):
        """Measures what this process does."""
        clock = Clock()
        yield
        self.stages[name] = {key: round(value, 1) for key, value in clock.facts().items()}
        print(f"{name}: {self.stages[name]}", flush=True)

    def command(self, name: str, *argv: str | Path, module: str | None = None) -> subprocess.CompletedProcess:
        """Runs a command of trl-distill, and measures its time and its memory."""
        line = [sys.executable, "-m", *([module] if module else ["trl_distill.cli"]), *map(str, argv)]
        log = self.work / f"{name.replace(' ', '-')}.log"
        start = time.perf_counter()
        with open(log, "w") as file:
            process, peak, before = subprocess.Popen(line, stdout=file, stderr=file), 0, os.times()
            while process.poll() is None:
                peak = max(peak, peak_kib(process.pid))
                time.sleep(0.5)
        after = os.times()
        self.stages[name] = {
            "seconds": round(time.perf_counter() - start, 1),
            "cpu_seconds": round(sum(after[2:4]) - sum(before[2:4]), 1),  # of children that have ended
            "peak_gib": round(peak / 2**20, 2),
            "exit_code": process.returncode,
        }
        print(f"{name}: {self.stages[name]}", flush=True)
        if process.returncode:
            print(log.read_text()[-3000:], flush=True)
        return subprocess.CompletedProcess(line, process.returncode, log.read_text())

    def config(self, name: str, settings: dict) -> Path:
        path = self.work / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path


def ask(
    model: LocalChatModel, prompts: list[str], temperature: float, max_tokens: int, system: str | None
) -> list[str]:
    """One answer to each prompt."""
    before = [{"role": "system", "content": system}] if system else []
    sampling = Sampling(temperature, max_tokens=max_tokens, seed=0)
    requests = [ChatRequest(before + turn(prompt), sampling) for prompt in prompts]
    return [answer.text.strip() for answer in model.complete(requests)]


def prepare(run: Run):
    """Teacher, its answers, and the pruned base."""
    args, work = run.args, run.work
    teacher = smollm2(work / "teacher", torch.bfloat16)
    train, feedback = run.prompts["train"][: args.dialogues], run.prompts["train"][args.dialogues :][: args.prompts]
    test = run.prompts["test"][: args.test_prompts]
    with run.stage("answers of the teacher"), LocalChatModel(teacher, batch_size=32, device="cpu") as model:
        dialogues = ask(model, train, 0.7, args.max_tokens, BRIEF)
        references = ask(model, feedback + test, 0.0, args.max_tokens, BRIEF)
    rows = [{"messages": turn(*pair)} for pair in zip(train, dialogues, strict=True)]
    write_lines(work / "dialogues.jsonl", rows)
    pairs = list(zip(feedback + test, references, strict=True))
    write_lines(work / "prompts.jsonl", [{"prompt": p, "reference": r} for p, r in pairs[: len(feedback)]])
    write_lines(work / "test.jsonl", [{"prompt": p, "reference": r} for p, r in pairs[len(feedback) :]])
    with run.stage("pruning"):
        tokenizer = AutoTokenizer.from_pretrained(teacher)
        data = [labelled(tokenizer, row["messages"]) for row in rows[:12]]
        layers = AutoConfig.from_pretrained(teacher).num_hidden_layers
        kept, parameters = save_pruned(teacher, work / "base", data, -(-2 * layers // 3))
    return {
        "layers": {"teacher": layers, "kept": kept},
        "parameters": {"teacher": parameters["teacher"], "base": parameters["student"]},
    }


def labelled(tokenizer, messages: list[dict]) -> dict[str, list[int]]:
    """Token ids of a dialogue, with labels on the last answer."""
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    return {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}


def feedback_settings(run: Run, folder: str) -> dict:
    return {
        "output_dir": str(run.work / folder),
        "dataset_name": str(run.work / "prompts.jsonl"),
        "decontaminate": [],
        "num_answers": 3,
        "principles": PRINCIPLES,
        "temperature": 0.7,
        "max_tokens": run.args.max_tokens,
        "keep_truncated": True,
    }


def collect(run: Run) -> dict:
    """AI feedback with the rule as judge: the teacher under three system prompts, and the student."""
    teacher = LocalChatModel(str(run.work / "teacher"), name=NAME, batch_size=32, device="cpu")
    student = LocalChatModel(str(run.work / "dsft-merged"), name="student", batch_size=32, device="cpu")
    config = FeedbackConfig(**feedback_settings(run, "feedback"), reference_column="reference")
    with run.stage("feedback, rule"):
        return run_feedback(config, responders=[teacher], student=student, judges=[rouge_judge()])


def of_report(report: dict) -> dict:
    """What the results keep of a report of the feedback."""
    return {name: report[name] for name in ("prompts", "answers", "judges", "ledger", "pairs", "models")}


def judged_by_model(
    run: Run, name: str, responder: dict, judge: dict, prompts: int, orders: int | None = None
) -> dict:
    """The command, with the whole model as responder and as judge."""
    folder = run.work / f"feedback-{name}"
    settings = feedback_settings(run, folder.name) | {
        "max_prompts": prompts,
        "judge_max_tokens": 160,
        "judge_orders": orders,
        "max_reasks": 0,
        "responders": [responder],
        "judges": [judge],
    }
    result = run.command(f"feedback, {name}", "feedback", "--config", run.config(f"feedback-{name}", settings))
    if not (folder / "report.json").exists():
        raise SystemExit(result.stdout)
    return of_report(json.loads((folder / "report.json").read_text())) | {"exit_code": result.returncode}


def over_http(run: Run) -> dict:
    """The same feedback from a real server, and whether it answers as the local model does."""
    folder = str(run.work / "teacher")
    questions = run.prompts["train"][:8]
    local = LocalChatModel(folder, batch_size=1, device="cpu")
    with served(folder, run.work / "serve.log") as base_url:
        endpoint = EndpointChatModel(folder, base_url, name=NAME, concurrency=2)
        with run.stage("greedy answers, local"), local:
            here = ask(local, questions, 0.0, 32, None)
        with run.stage("greedy answers, server"):
            there = ask(endpoint, questions, 0.0, 32, None)
        drawing = {"generation_config": '{"do_sample": true, "top_k": 0, "temperature": 0.7}'}
        entry = {"model": folder, "name": NAME, "base_url": base_url, "concurrency": 2}
        result = judged_by_model(
            run, "server", entry | {"extra_body": drawing}, entry, run.args.served_prompts, orders=1
        )
    equal = [a == b for a, b in zip(here, there, strict=True)]
    return result | {"equal_greedy_answers": sum(equal), "greedy_answers": len(equal)}


def training_log(folder: Path) -> dict:
    """First and last entry of the trainer's log."""
    [checkpoint] = folder.glob("checkpoint-*")
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    logs = [entry for entry in log if "loss" in entry]
    keys = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")
    last = logs[-max(1, len(logs) // 4) :]
    return {
        "steps": logs[-1]["step"],
        "first_loss": logs[0]["loss"],
        "last quarter": {key: statistics.mean(entry[key] for entry in last) for key in keys if key in last[0]},
    }


def load_in_4bit(adapter: Path) -> PeftModel:
    """An adapter on the base that it records, by plain transformers and peft."""
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, quantization_config=quantization)
    return PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)


def train(run: Run, command: str, name: str, settings: dict) -> dict:
    """Trains an adapter in 4 bit, and loads it with plain transformers and peft."""
    output, file = run.work / name, run.work / f"{name}-logits.safetensors"
    config = run.config(name, settings | {"output_dir": str(output)})
    result = run.command(name, file, command, "--config", config, module="benchmarks.zephyr.probe")
    if result.returncode:
        raise SystemExit(result.stdout[-3000:])
    tokenizer, trained = AutoTokenizer.from_pretrained(output), load_file(file)["logits"]
    packed = logits_of(load_in_4bit(output), tokenizer, packed=True)
    model = load_in_4bit(output)
    reloaded = logits_of(model, tokenizer)
    with model.disable_adapter():
        plain = logits_of(model, tokenizer)
    facts = training_log(output) | {
        "trained_parameters": sum(p.numel() for n, p in model.named_parameters() if "lora_" in n),
        "reload": {
            name: (logits - trained).abs().max().item()
            for name, logits in (
                ("largest difference", reloaded),
                ("with packed weights", packed),
                ("without the adapter", plain),
            )
        },
        "adapter_on_4_bit": measure_nll(run, model, output),
    }
    del model
    gc.collect()
    return facts


def merged(run: Run, adapter: str, name: str) -> dict:
    """Merges an adapter by the command, and compares the folder with the adapter on its unquantised base."""
    output = run.work / name
    result = run.command(name, "merge", run.work / adapter, "--output", output)
    if result.returncode:
        raise SystemExit(result.stdout[-3000:])
    model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(output)
    base = json.loads((run.work / adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    full = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    full = PeftModel.from_pretrained(full, run.work / adapter).merge_and_unload(safe_merge=True)
    return {"largest difference": (logits_of(model, tokenizer) - logits_of(full, tokenizer)).abs().max().item()}


@torch.no_grad()
def measure_nll(run: Run, model, folder: Path) -> dict:
    """Negative log-likelihood of the teacher's greedy answers to the held-out prompts, end token included."""
    tokenizer, total, count = AutoTokenizer.from_pretrained(folder), 0.0, 0
    for row in read_lines(run.work / "test.jsonl"):
        ids = labelled(tokenizer, turn(row["prompt"], row["reference"]))
        batch = {name: torch.tensor([values]) for name, values in ids.items()}
        tokens = (batch["labels"] != -100).sum().item()
        total += model.eval()(**batch, use_cache=False).loss.item() * tokens
        count += tokens
    return {"nll": total / count, "tokens": count}


def measure(run: Run, folder: Path) -> dict:
    """A whole model on the held-out prompts: likelihood of the references, and its own greedy answers against them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    result = measure_nll(run, model, folder)
    del model
    rows = read_lines(run.work / "test.jsonl")
    with LocalChatModel(str(folder), batch_size=32, device="cpu") as chat:
        answers = ask(chat, [row["prompt"] for row in rows], 0.0, run.args.max_tokens, None)
    scores = [rouge_l(answer, row["reference"]) for answer, row in zip(answers, rows, strict=True)]
    return result | {
        "rouge_l": statistics.mean(scores),
        "rouge_l_standard_error": statistics.stdev(scores) / math.sqrt(len(scores)),
        "words": statistics.mean(len(answer.split()) for answer in answers),
        "examples": [
            {"prompt": row["prompt"], "reference": row["reference"], "answer": answer}
            for row, answer in zip(rows[:4], answers, strict=False)
        ],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, default=Path("build/zephyr_end_to_end"), help="folder for models and calls; must be new")
    add("--output", type=Path, default=Path("benchmarks/results/zephyr_end_to_end.json"))
    add("--dialogues", type=int, default=96)
    add("--prompts", type=int, default=48)
    add("--test_prompts", type=int, default=32)
    add("--model_prompts", type=int, default=8, help="prompts of the arm in which the whole model judges")
    add(
        "--served_prompts", type=int, default=4, help="prompts of the arm in which it is behind a server, in one order"
    )
    add("--max_tokens", type=int, default=40)
    add("--no_server", action="store_true", help="leave out the arm with a server")
    args = parser.parse_args()
    args.work = args.work.absolute()
    args.work.mkdir(parents=True)  # fails on an old run: its calls would be reused, and nothing measured
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    if not args.no_server:
        check_server()

    run, start = Run(args), time.perf_counter()
    sizes = ("dialogues", "prompts", "test_prompts", "model_prompts", "served_prompts", "max_tokens")
    results = {"benchmark": "zephyr/end_to_end", "provenance": provenance(), "clock": "wall"}
    results["settings"] = {name: getattr(args, name) for name in sizes} | {"sft": SFT, "dpo": DPO}

    def keep(name: str, value: dict):
        results[name] = value
        results["stages"] = run.stages
        results["seconds"] = round(time.perf_counter() - start, 1)
        save(results, args.output)

    keep("models", prepare(run))
    data = {
        "dataset_name": str(run.work / "dialogues.jsonl"),
        "model_name_or_path": str(run.work / "base"),
        "chat_template_path": str(RECIPES / "zephyr.jinja"),
    }
    keep("dsft", train(run, "sft", "dsft", SFT | data))
    keep("merge of dsft", merged(run, "dsft", "dsft-merged"))
    keep("feedback", {"rule": of_report(collect(run))})
    data = {
        "dataset_name": str(run.work / "feedback" / "pairs.jsonl"),
        "model_name_or_path": str(run.work / "dsft-merged"),
    }
    keep("ddpo", train(run, "dpo", "ddpo", DPO | data))
    keep("merge of ddpo", merged(run, "ddpo", "ddpo-merged"))
    with run.stage("measuring"):
        held_out = {name: measure(run, run.work / name) for name in ("base", "dsft-merged", "ddpo-merged")}
    keep("held out", held_out)
    entry = {"model_name_or_path": str(run.work / "teacher"), "name": NAME, "batch_size": 32, "device": "cpu"}
    model = judged_by_model(run, "model", entry, entry, args.model_prompts)
    keep("feedback", results["feedback"] | {"model": model})
    if not args.no_server:
        keep("feedback", results["feedback"] | {"server": over_http(run)})


if __name__ == "__main__":
    main()

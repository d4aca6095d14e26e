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

import copy
import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from trl_distill.evaluation import check_answer, evaluate_model, rouge_l
from trl_distill.scripts.evaluate import run


@pytest.fixture
def evaluate(tokenizer):
    """`evaluate_model` with small settings and without a progress bar."""

    def call(model, dataset, **kwargs):
        settings = dict(seeds=(10, 20), max_new_tokens=8, batch_size=5, progress=False)
        return evaluate_model(model, tokenizer, dataset, **(settings | kwargs))

    return call


def end_often(model):
    """Let a tenth of the vocabulary end a completion, so that lengths differ."""
    model.generation_config.eos_token_id = list(range(1, 260, 10))
    return model


def metric(result, name):
    return result["metrics"][name]["per_seed"]


def naive_kls(student, teacher, prompt_ids, completion_ids):
    """Forward and reverse KL of every step of one completion: float64, no padding, whole logits."""
    ids = torch.tensor([prompt_ids + completion_ids])
    log_q, log_p = (
        model.double()(ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1) for model in (student, teacher)
    )
    return (log_p.exp() * (log_p - log_q)).sum(-1), (log_q.exp() * (log_q - log_p)).sum(-1)


def test_metrics_are_what_the_completions_say(evaluate, tiny_model, tokenizer, prompts):
    student, teacher = end_often(tiny_model(seed=0)), tiny_model(seed=1)
    result = evaluate(student, prompts, teacher=teacher, return_completions=True)
    assert len(result["completions"]) == 32 == result["counts"]["completions"]
    for number, seed in enumerate((10, 20)):
        samples = [sample for sample in result["completions"] if sample["seed"] == seed]
        lengths = [len(sample["token_ids"]) for sample in samples]
        assert len(set(lengths)) > 2  # rows of different length, so that padding is at stake
        assert metric(result, "length")[number] == pytest.approx(sum(lengths) / 16)
        unfinished = [sample for sample in samples if sample["token_ids"][-1] % 10 != 1]
        assert 0 < len(unfinished) < 16 and all(len(sample["token_ids"]) == 8 for sample in unfinished)
        assert metric(result, "truncated")[number] == pytest.approx(len(unfinished) / 16)
        for sample in samples:
            assert all(token % 10 != 1 for token in sample["token_ids"][:-1])  # nothing after the first end token
            assert sample["completion"] == tokenizer.decode(sample["token_ids"], skip_special_tokens=True)
        scores = [rouge_l(sample["completion"], prompts[sample["row"]]["completion"]) for sample in samples]
        assert metric(result, "rougeL")[number] == pytest.approx(sum(scores) / 16)

        with torch.no_grad():
            steps = [
                naive_kls(student, teacher, tokenizer(sample["prompt"])["input_ids"], sample["token_ids"])
                for sample in samples
            ]
        student.float(), teacher.float()
        for sample, (forward, reverse) in zip(samples, steps, strict=True):
            assert sample["forward_kl_sequence"] == pytest.approx(forward.sum().item(), rel=1e-4)
            assert sample["reverse_kl_sequence"] == pytest.approx(reverse.sum().item(), rel=1e-4)
        forward, reverse = (torch.cat(side) for side in zip(*steps, strict=True))
        assert metric(result, "forward_kl")[number] == pytest.approx(forward.mean().item(), rel=1e-4)
        assert metric(result, "reverse_kl")[number] == pytest.approx(reverse.mean().item(), rel=1e-4)
        assert metric(result, "reverse_kl_sequence")[number] == pytest.approx(reverse.sum().item() / 16, rel=1e-4)

    for values in result["metrics"].values():
        assert values["mean"] == pytest.approx(sum(values["per_seed"]) / 2)
        assert values["std"] == pytest.approx(abs(values["per_seed"][0] - values["per_seed"][1]) / 2**0.5)
    json.dumps(result, allow_nan=False)


def test_exposure_bias_takes_student_prefixes_for_the_regret_and_teacher_prefixes_for_the_oracle(
    evaluate, tiny_model, tokenizer, prompts
):
    student, teacher = tiny_model(seed=0), tiny_model(seed=1)
    result = evaluate(student, prompts, teacher=teacher, seeds=(3,), return_completions=True)
    as_teacher = evaluate(teacher, prompts, seeds=(3,), return_completions=True)
    sides = {"regret": result["completions"], "oracle": as_teacher["completions"]}
    for name, samples in sides.items():
        assert all(len(sample["token_ids"]) == 8 for sample in samples)
        with torch.no_grad():
            forward = [
                naive_kls(student, teacher, tokenizer(sample["prompt"])["input_ids"], sample["token_ids"])[0]
                for sample in samples
            ]
        student.float(), teacher.float()
        expected = torch.stack(forward).mean(0).cumsum(0).tolist()
        assert result["exposure_bias"][name] == pytest.approx(expected, rel=1e-4)
    assert result["exposure_bias"]["curve"][0] == pytest.approx(0, abs=1e-3)  # one prompt, one first prefix
    assert result["exposure_bias"]["student_samples"] == [16] * 8


@pytest.mark.parametrize("extra_rows", [0, 4])
def test_teacher_equal_to_student(evaluate, tiny_model, tokenizer, prompts, extra_rows):
    student, teacher = end_often(tiny_model()), tiny_model(vocab_size=len(tokenizer) + extra_rows)
    teacher.model.load_state_dict(
        {k: v for k, v in student.model.state_dict().items() if "embed_tokens" not in k}, strict=False
    )
    with torch.no_grad():
        for ours, theirs in (
            (student.lm_head.weight, teacher.lm_head.weight),
            (student.model.embed_tokens.weight, teacher.model.embed_tokens.weight),
        ):
            theirs[: len(tokenizer)] = ours
            theirs[len(tokenizer) :] = 10.0  # rows of no token: they must be neither generated nor compared
    result = evaluate(student, prompts, teacher=teacher)
    for name in ("reverse_kl", "reverse_kl_sequence", "forward_kl"):
        assert metric(result, name) == pytest.approx([0, 0], abs=1e-5)
    exposure = result["exposure_bias"]
    assert set(exposure["curve"]) == set(exposure["standard_error"]) == {0.0}
    if extra_rows == 0:
        # The same samples: the student's end tokens hold for both, whatever the teacher's own config says
        assert exposure["student_samples"] == exposure["teacher_samples"] and exposure["student_samples"][-1] < 32


def test_same_seeds_give_the_same_numbers_and_leave_no_trace(evaluate, tiny_model, prompts):
    model = end_often(tiny_model()).train()
    model.generation_config.top_k, model.generation_config.repetition_penalty = 1, 5.0
    own_config = model.generation_config
    torch.manual_seed(5)
    first = evaluate(model, prompts, return_completions=True)
    after = torch.rand(1)
    torch.manual_seed(6)
    second = evaluate(model, prompts, return_completions=True)
    assert first["completions"] == second["completions"] and first["metrics"] == second["metrics"]
    torch.manual_seed(5)
    assert torch.rand(1) == after
    assert model.training and model.generation_config is own_config
    # The two seeds differ, so the model's own `top_k=1` did not get through
    assert first["completions"][0]["token_ids"] != first["completions"][16]["token_ids"]
    plain = end_often(tiny_model())
    assert evaluate(plain, prompts, return_completions=True)["completions"] == first["completions"]


def test_batch_size_does_not_change_greedy_results(evaluate, tiny_model, prompts):
    student, teacher = end_often(tiny_model(seed=0)), tiny_model(seed=1)
    results = [
        evaluate(student, prompts, teacher=teacher, temperature=0.0, seeds=(1,), batch_size=n, return_completions=True)
        for n in (1, 5, 16)
    ]
    for other in results[1:]:
        for sample, same in zip(other["completions"], results[0]["completions"], strict=True):
            assert sample == same | {name: pytest.approx(same[name], rel=1e-3) for name in same if "_kl_" in name}
        for name, values in results[0]["metrics"].items():
            assert other["metrics"][name]["mean"] == pytest.approx(values["mean"], rel=1e-4)
        assert other["exposure_bias"]["curve"] == pytest.approx(
            results[0]["exposure_bias"]["curve"], rel=1e-3, abs=1e-2
        )


def test_settings_reach_the_sampler(evaluate, tiny_model, prompts):
    model = tiny_model()
    greedy = evaluate(model, prompts, temperature=0.0, return_completions=True)["completions"]
    for setting in ({"top_p": 1e-6}, {"temperature": 1e-4}):
        sampled = evaluate(model, prompts, return_completions=True, **setting)["completions"]
        assert [s["token_ids"] for s in sampled] == [s["token_ids"] for s in greedy], setting
    with torch.no_grad():
        model.lm_head.weight[7] = 3 * model.lm_head.weight.abs().max(0).values * model.lm_head.weight[7].sign()
    free = evaluate(model, prompts, max_new_tokens=64)
    held = evaluate(model, prompts, max_new_tokens=64, no_repeat_ngram_size=4)
    assert metric(free, "repetition_4")[0] > 0 == metric(held, "repetition_4")[0]


def test_formats_of_rows(evaluate, tiny_model, tokenizer):
    chat = [{"role": "user", "content": "Hi"}]
    rendered = f"<|user|>Hi{tokenizer.eos_token}<|assistant|>"
    rows = [
        {"prompt": chat, "completion": [{"role": "assistant", "content": "right"}]},
        {"prompt": rendered, "completion": ["wrong", "right"]},
        {"prompt": [*chat, {"role": "assistant", "content": "Well"}], "completion": "right"},
        {"prompt": "Hi", "completion": None},
    ]
    model = tiny_model()
    result = evaluate(model, rows, temperature=0.0, return_completions=True)
    completions = [sample["token_ids"] for sample in result["completions"]]
    assert completions[0] == completions[1] != completions[3]  # a chat and its rendering are one prompt
    assert result["counts"]["with_reference"] == 3
    assert "rougeL" in result["completions"][0] and "rougeL" not in result["completions"][3]
    assert "rougeL" not in evaluate(model, rows[3:])["metrics"]  # prompt-only
    assert evaluate(model, Dataset.from_list(rows[:1]))["metrics"].keys() == result["metrics"].keys()


def test_accuracy(evaluate, tiny_model, prompts):
    rows = [{"prompt": f"What is {i}?", "answer": str(i)} for i in range(10)]
    verdicts = [True, False, None, True, False]
    result = evaluate(tiny_model(), rows, answer_checker=lambda text, row: verdicts[int(row["answer"]) % 5])
    assert metric(result, "accuracy") == [0.4, 0.4] and metric(result, "no_answer") == [0.2, 0.2]
    result = evaluate(tiny_model(), rows, answer_checker=check_answer, return_completions=True)
    for sample in result["completions"]:
        assert sample["right"] == check_answer(sample["completion"], rows[sample["row"]])


def test_adapters(evaluate, tiny_model, prompts):
    model = tiny_model()
    base = evaluate(model, prompts)["metrics"]
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", exclude_modules=["lm_head"]))
    config = model.generation_config
    assert evaluate(model, prompts)["metrics"] == base  # a fresh adapter changes nothing
    assert model.generation_config is config and model.get_base_model().generation_config is config
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert evaluate(model, prompts, teacher=tiny_model())["metrics"]["reverse_kl"]["mean"] > 0.01


def test_long_prompts_are_counted_and_dropped(evaluate, tiny_model):
    rows = [{"prompt": "a" * 40, "completion": "x"}, {"prompt": "b" * 30}, {"prompt": "c"}]
    model = tiny_model(max_position_embeddings=40)
    result = evaluate(model, rows, return_completions=True)
    assert result["counts"] == {
        "rows": 3,
        "prompts": 2,
        "dropped_prompts": 1,
        "with_reference": 0,
        "completions": 4,
    }
    assert {sample["row"] for sample in result["completions"]} == {1, 2}
    assert evaluate(model, rows, max_prompt_length=1)["counts"]["prompts"] == 1
    with pytest.raises(ValueError, match="All 1 prompts are longer than 32 tokens"):
        evaluate(model, rows[:1])


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, "no rows"),
        ([{"question": "x"}], {}, r"no `prompt`; its columns are \['question'\]"),
        ([{"prompt": "x"}, {"prompt": ""}], {}, "Row 1 has an empty `prompt`"),
        ([{"prompt": []}], {}, "Row 0 has an empty `prompt`"),
        ({"train": [{"prompt": "x"}]}, {}, "Pass one split"),
        ([{"prompt": "x"}], {"seeds": (1, 1)}, "different numbers"),
        ([{"prompt": "x"}], {"seeds": ()}, "`seeds`"),
        ([{"prompt": "x"}], {"temperature": -1}, "`temperature`"),
        ([{"prompt": "x"}], {"top_p": 0}, "`top_p`"),
        ([{"prompt": "x"}], {"max_new_tokens": 0}, "`max_new_tokens`"),
        ([{"prompt": "x"}], {"batch_size": 0}, "`batch_size`"),
    ],
)
def test_bad_input(evaluate, tiny_model, rows, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_model(), rows, **settings)


@pytest.fixture
def saved(tmp_path, tiny_model, tokenizer, prompts):
    """Folders of a student, of a teacher and of an adapter, and a file of prompts."""
    for name, seed in (("student", 0), ("teacher", 1)):
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    prompts.to_json(tmp_path / "prompts.jsonl")
    return tmp_path


def command(folder, *arguments):
    return [
        *("--model_name_or_path", str(folder / "student"), "--dataset_name", str(folder / "prompts.jsonl")),
        *("--device", "cpu", "--max_new_tokens", "4", "--seeds", "1", "2"),
        *map(str, arguments),
    ]


def test_command(saved, capsys, evaluate, tiny_model, prompts):
    out, texts = saved / "out.json", saved / "texts.jsonl"
    teacher = ("--teacher_model_name_or_path", saved / "teacher")
    run(command(saved, *teacher, "--output_file", out, "--completions_file", texts))
    result = json.loads(out.read_text())
    settings = dict(seeds=(1, 2), max_new_tokens=4, batch_size=16)
    assert (
        result["metrics"] == evaluate(tiny_model(seed=0), prompts, teacher=tiny_model(seed=1), **settings)["metrics"]
    )
    assert result["settings"]["teacher"] == str(saved / "teacher") and result["settings"]["seeds"] == [1, 2]
    assert len(texts.read_text().splitlines()) == 32
    assert not list(saved.glob("*.part"))
    table = capsys.readouterr().out
    for label in ("Rouge-L", "reverse KL", "ExAccErr", "distinct-4"):
        assert label in table


def test_command_reads_yaml_adapters_and_saved_datasets(saved, capsys, tiny_model):
    get_peft_model(tiny_model(seed=0), LoraConfig()).save_pretrained(saved / "adapter")
    adapter_config = saved / "adapter" / "adapter_config.json"
    values = json.loads(adapter_config.read_text()) | {"base_model_name_or_path": str(saved / "student")}
    adapter_config.write_text(json.dumps(values))
    Dataset.from_dict({"prompt": ["1 + 1 =", "2 + 2 ="], "answer": [2, 4]}).save_to_disk(saved / "folder")
    config = saved / "evaluate.yaml"
    config.write_text(
        f"model_name_or_path: {saved / 'adapter'}\ndataset_name: {saved / 'folder'}\ncheck_answers: true\n"
        f"seeds: [1, 2]\nmax_new_tokens: 4\noutput_file: {saved / 'out.json'}\n"
    )
    run(["--config", str(config), "--seeds", "7", "--max_rows", "1"])
    result = json.loads((saved / "out.json").read_text())
    assert result["counts"]["completions"] == 1 and result["settings"]["seeds"] == [7]
    assert "accuracy" in result["metrics"] and "rougeL" not in result["metrics"]
    assert "there is no Rouge-L" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset_name", "{folder}/missing.jsonl"], "No such file"),
        (["--dataset_name", "{folder}/questions.jsonl"], "has no column `prompt`, only question"),
        (
            ["--check_answers", "--dataset_name", "{folder}/plain.jsonl"],
            "1 of 2 rows have none, the first of them row 1",
        ),
        (["--dataset_split", "test"], "choose from train"),
        (["--max_new_token", "3"], "Did you mean max_new_tokens"),
        (["--model_name_or_path", "{folder}"], ""),
    ],
)
def test_command_explains_mistakes(saved, capsys, arguments, message):
    (saved / "questions.jsonl").write_text('{"question": "x"}\n')
    (saved / "plain.jsonl").write_text('{"prompt": "x", "completion": "3"}\n{"prompt": "y", "completion": "none"}\n')
    with pytest.raises(SystemExit) as stop:
        run(command(saved, *(argument.format(folder=saved) for argument in arguments)))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "trl-distill evaluate: error: " in error and message in error and "Traceback" not in error


def test_an_answer_ends_where_either_model_ends_it(evaluate, tiny_model, prompts, caplog):
    student, teacher = tiny_model(seed=0), end_often(tiny_model(seed=1))
    result = evaluate(student, prompts, teacher=teacher, max_new_tokens=40, return_completions=True)
    assert all(token % 10 != 1 for row in result["completions"] for token in row["token_ids"][:-1])
    assert metric(result, "truncated")[0] < 0.5
    assert "The model ends answers with [1], the teacher with [1, 11, 21" in caplog.text


def test_an_added_token_is_padding_or_an_error(tiny_model, tokenizer, prompts):
    student, teacher = tiny_model(vocab_size=261), tiny_model(seed=1)
    padded = copy.deepcopy(tokenizer)
    padded.add_special_tokens({"pad_token": "[PAD]"})
    settings = dict(teacher=teacher, teacher_tokenizer=tokenizer, seeds=(1,), max_new_tokens=4, progress=False)
    result = evaluate_model(student, padded, prompts, return_completions=True, **settings)
    assert all(max(row["token_ids"]) < 260 for row in result["completions"])
    with pytest.raises(ValueError, match="prompt of row 1 has the token 260"):
        evaluate_model(student, padded, [{"prompt": "a"}, {"prompt": "a[PAD]"}], **settings)

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
import os
import resource
from pathlib import Path

import pytest
import yaml
from peft import AutoPeftModelForCausalLM, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.commands import error_of, run_python
from tests.rationales.nat.adapters import lora
from trl_distill import cli
from trl_distill.scripts import dpo, minillm, nat, sft
from trl_distill.scripts.arguments import parse_strictly, present_day, read_config
from trl_distill.training import accelerate_config_path, launch_fields


SERVED = {"single_step_decomposition": False, "teacher_mix_alpha": 0.0}
SCRIPTS = {"minillm": minillm, "sft": sft, "dpo": dpo}


@pytest.fixture(scope="module")
def fields():
    """The fields of each training command."""
    return {name: {action.dest for action in script.make_parser()._actions} for name, script in SCRIPTS.items()}


class TestPresentDayNames:
    def test_replacements_are_fields_and_old_names_are_not(self, fields):
        for old, use in present_day()["use"].items():
            replacements = use.split(", ")
            unknown = [name for name in replacements if not any(name in known for known in fields.values())]
            assert not unknown, f"{old} is sent to {unknown}, which no command has"
            helped = [command for command, known in fields.items() if old not in known and known & {*replacements}]
            assert helped, f"{old} is a field everywhere, or its replacements are nowhere"
            assert old not in launch_fields(), f"{old} is a flag of accelerate launch"
        assert present_day()["notes"].keys() <= present_day()["use"].keys()
        assert not present_day()["gone"].keys() & fields["dpo"]

    @pytest.mark.parametrize(
        ("command", "old", "new"),
        [
            ("sft", "max_seq_length", "max_length"),
            ("minillm", "max_seq_length", "max_completion_length"),
            ("dpo", "evaluation_strategy", "eval_strategy"),
            ("sft", "no_cuda", "use_cpu"),
            ("minillm", "torch_dtype", "dtype"),
            ("minillm", "teacher_mixed_alpha", "teacher_mix_alpha"),
            ("sft", "warmup_ratio", "warmup_steps"),
        ],
    )
    def test_error_names_the_replacement(self, command, old, new, tmp_path, capsys):
        config = tmp_path / "config.yaml"
        config.write_text(f"{old}: 1\n")
        message = error_of(capsys, cli.main, command, "--config", str(config))
        assert message.startswith(
            f"trl-distill {command}: error: unknown field `{old}` in the config file: use `{new}`"
        )
        message = error_of(capsys, SCRIPTS[command].run, f"--{old}", "1")
        assert f"unknown field `{old}` on the command line: use `{new}`" in message

    @pytest.mark.parametrize("command", ["sft", "dpo"])
    def test_a_file_of_the_alignment_handbook_is_told_every_key_that_has_to_go(self, command, tmp_path, capsys):
        """Keys of recipes/zephyr-7b-beta, 2023 to 2025, and where the error sends them."""
        successors = {
            "chat_template": "use `chat_template_path`" if command == "sft" else "leave it out, the template is read",
            "dataset_mixer": "use `datasets`",
            "dataset_mixture": "use `datasets`",
            "dataset_splits": "use `datasets`",
            "evaluation_strategy": "use `eval_strategy`",
            "hub_model_revision": "use `hub_revision`",
            "max_prompt_length": "leave it out, prompts have no limit of their own",
            "max_seq_length": "use `max_length`",
            "overwrite_output_dir": "leave it out, a new run always",
            "preprocessing_num_workers": "use `dataset_num_proc`",
            "push_to_hub_model_id": "use `hub_model_id`",
            "tokenizer_name_or_path": "use `model_name_or_path`",
            "torch_dtype": "use `dtype`",
            "use_flash_attention_2": "use `attn_implementation`",
            "warmup_ratio": "use `warmup_steps`",
        }
        config = tmp_path / "config.yaml"
        fields = {"bf16": True, "learning_rate": 2e-5, "seed": 42} | dict.fromkeys(successors, 1)
        config.write_text(yaml.safe_dump(fields))
        message = error_of(capsys, cli.main, command, "--config", str(config))
        assert message.count("unknown field") == len(successors)
        for old, successor in successors.items():
            assert f"unknown field `{old}` in the config file: {successor}" in message


class TestStrictParsing:
    @pytest.mark.parametrize(
        ("text", "arguments", "expected"),
        [
            ("learning_rat: 1", [], "unknown field `learning_rat` in the config file. Did you mean learning_rate"),
            ("xyzzy: 1", [], "unknown field `xyzzy` in the config file. See --help."),
            ("xyzzy: 1\nlr: 2", [], "See --help. unknown field `lr` in the config file: use `learning_rate`."),
            ("", ["--learning", "1"], "unknown field `learning` on the command line"),  # no abbreviations
            ("", ["stray"], "unexpected argument 'stray'"),
            ("", ["--num_processes", "1", "stray"], "unexpected argument 'stray'"),
            ("", ["--max_steps", "many"], "invalid int value: 'many'"),
            ("", ["--accelerate_config", "zero9"], "'zero9' is neither a file nor one of cpu, ddp,"),
            ("max_steps: 1.5", [], "`max_steps` must be of type int, got 1.5"),
            ("max_steps: often", [], "`max_steps` must be of type int, got 'often'"),
            ("lr_scheduler_type: cosinus", [], "`lr_scheduler_type` must be one of linear, cosine"),
            ("- a list", [], "must hold `field: value` lines, got list"),
            ("a: b: c", [], "is not valid YAML"),
            ("env: 3", [], "must hold `NAME: value` lines, got 3"),
            ("save_steps: [500]", [], "`save_steps` must be of type float, got [500]"),
            ("num_train_epochs: {a: 1}", [], "`num_train_epochs` must be of type float, got {'a': 1}"),
            ("packing: [true]", [], "`packing` must be true or false, got [True]"),
            ("bf16: 2", [], "`bf16` must be true or false, got 2"),
            ("", ["--config", "b.yaml"], "config.yaml, b.yaml. Put them into one."),
            ("", ["my.yml"], "unexpected argument 'my.yml'. Did you mean `--config my.yml`?"),
            ("", ["--seed", "1", "my.yaml"], "unexpected argument 'my.yaml'. Did you mean `--config my.yaml`?"),
            ("", ["--student", "none"], "unknown field `student` on the command line: use `model_name_or_path`."),
        ],
    )
    def test_mistakes_stop_before_the_launch(self, text, arguments, expected, tmp_path, capsys):
        config = tmp_path / "config.yaml"
        config.write_text(text or "max_steps: 1")
        assert expected in error_of(capsys, cli.main, "sft", "--config", str(config), *arguments)

    @pytest.mark.parametrize(
        ("command", "arguments", "expected"),
        [
            ("evaluate", ["evaluate.yaml"], "Did you mean `--config evaluate.yaml`?"),
            ("sample", ["--modle_name_or_path", "x"], "Did you mean model_name_or_path"),  # before what is required
            ("feedback", ["--student", "none"], "`student` has fields of its own"),
            ("feedback", ["--judges", "gpt-4.1"], "`judges` has fields of its own"),
            ("lion", ["--teacher=gpt-4.1"], "`teacher` has fields of its own"),
            ("lion", ["--student", "none"], "unknown field `student` on the command line. Did you mean student_model"),
            ("recipe", ["minillm.yaml"], "no recipe 'minillm.yaml'"),
        ],
    )
    def test_mistakes_in_flags_of_other_commands(self, command, arguments, expected, capsys):
        assert expected in error_of(capsys, cli.main, command, *arguments)

    def test_missing_config_file(self, capsys):
        assert "No such file" in error_of(capsys, cli.main, "sft", "--config", "nowhere.yaml")

    def test_unknown_command(self, capsys):
        assert cli.main(["minilm"]) == 2
        assert "unknown command 'minilm'. Did you mean minillm?" in capsys.readouterr().err
        assert cli.main(["xyzzy"]) == 2
        assert "unknown command 'xyzzy'. Choose from minillm, nat," in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("command", "instead"), [("demo", "`make demo`"), ("convert-handbook", "`trl-distill sft`")]
    )
    def test_removed_command(self, command, instead, capsys):
        assert cli.main([command, "--help"]) == 2
        message = capsys.readouterr().err
        assert message.startswith("trl-distill: error: ") and instead in message and message.count("\n") == 1

    def test_values_of_the_file_flags_win(self, sft_config):
        config = sft_config(learning_rate="1e-3", gradient_checkpointing=False, report_to=["none"])
        script_args, training_args, *_ = parse_strictly(sft.make_parser(), ["--config", config, "--max_steps=7"])
        assert (training_args.learning_rate, training_args.max_steps) == (1e-3, 7)
        assert training_args.gradient_checkpointing is False
        assert script_args.dataset_name.endswith("rows.jsonl")

    def test_entries_of_datasets_are_strict(self, sft_config):
        config = sft_config(datasets=[{"path": "json", "datafiles": "x"}])
        with pytest.raises(ValueError, match="datafiles"):
            parse_strictly(sft.make_parser(), ["--config", config])

    def test_launcher_flags_are_refused_after_the_module(self):
        with pytest.raises(ValueError, match="--num_processes belongs to `accelerate launch`"):
            parse_strictly(sft.make_parser(), ["--num_processes", "2"])

    def test_env_section(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TRL_DISTILL_TEST", "old")
        config = tmp_path / "config.yaml"
        config.write_text("env:\n  TRL_DISTILL_TEST: 1\nmax_steps: 3\n")
        assert read_config([f"--config={config}", "--seed", "1"]) == ({"max_steps": 3}, ["--seed", "1"])
        assert os.environ["TRL_DISTILL_TEST"] == "1"


class TestLaunch:
    def test_launcher_and_script_get_their_shares(self, sft_config):
        config = sft_config(accelerate_config="ddp", num_machines=1, multi_gpu=False, quiet=True)
        arguments = ["--config", config, "--num_processes", "2", "--seed", "2", "--accelerate-config", "cpu"]
        args = cli.launch_arguments("sft", arguments)
        assert args.training_script == "trl_distill.scripts.sft" and args.num_processes == 2
        assert args.module is args.quiet is True
        assert Path(args.config_file).name == "cpu.yaml"  # the flag wins over the file
        assert args.training_script_args == ["--config", config, "--seed", "2"]

    def test_accelerate_configs_by_name(self):
        from accelerate.commands.config.config_args import load_config_from_file

        on_eight = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
        for name, distributed_type in ({"cpu": "NO", "single_gpu": "NO"} | on_eight).items():
            config = load_config_from_file(accelerate_config_path(name))
            assert config.distributed_type.value == distributed_type
            assert config.num_processes == (8 if name in on_eight else 1)
            assert config.mixed_precision == ("no" if name == "cpu" else "bf16")
        for name in ("cpu", "single_gpu"):  # TRL has none, and one with eight processes
            assert Path(accelerate_config_path(name)).is_relative_to(Path(__file__).parents[2])
        fsdp = load_config_from_file(accelerate_config_path("fsdp2")).fsdp_config
        assert (fsdp["fsdp_version"], fsdp["fsdp_state_dict_type"]) == (2, "FULL_STATE_DICT")
        for name, stage in (("zero2", 2), ("zero3", 3)):
            assert load_config_from_file(accelerate_config_path(name)).deepspeed_config["zero_stage"] == stage
        assert "trl" in accelerate_config_path("zero1")  # TRL's own stay reachable

    def test_sft_through_the_launcher(self, sft_config, tmp_path):
        done = run_python("-m", "trl_distill.cli", "sft", "--config", sft_config(), "--accelerate_config", "cpu")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out" / "model.safetensors").is_file()
        for noise in ("is deprecated", "Setting accelerator to CPU", "Failed to load CPU gemm_4bit_forward"):
            assert noise not in done.stdout + done.stderr

    def test_only_what_nobody_can_change_is_left_unsaid(self):
        script = (
            "import logging, warnings; from trl_distill.launcher import _SAID_BY, quiet; quiet(); quiet()\n"
            "logging.basicConfig(format='%(message)s')\n"
            "for name, begin in _SAID_BY.items():\n"
            "    logging.getLogger(name).warning(begin + ' and more', *['x'] * begin.count('%s'))\n"
            "    logging.getLogger(name).warning('another of %s', name)\n"
            "for old in ('gradient_checkpointing', 'is_gradient_checkpointing', 'use_reentrant'):\n"
            "    warnings.warn(f'`{old}` is deprecated and will be removed.', FutureWarning)\n"
            "warnings.warn('`gradient_checkpointing` is deprecated', UserWarning)"
        )
        said = run_python("-c", script).stderr
        assert said.count("another of ") == 4 and "and more" not in said
        assert "`use_reentrant` is deprecated" in said and "FutureWarning: `gradient" not in said
        assert "UserWarning: `gradient_checkpointing`" in said

    def test_failed_script_gives_its_exit_code_without_traceback(self, sft_config):
        config = sft_config(resume_from_checkpoint="latest")
        done = run_python("-m", "trl_distill.cli", "sft", "--config", config, "--accelerate_config", "cpu")
        assert done.returncode == 2
        assert "trl-distill sft: error: nothing to resume: no checkpoint in" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["minillm", "--dataset_name", "none.jsonl"], "No such file: none.jsonl"),
            (["minillm", "--lm_dataset_name", "none.jsonl"], "No such file: none.jsonl"),
            (["nce", "--teacher_model_name_or_path", "/none"], "No such file or folder: /none"),
            (["sft", "--report_to", "dvclive"], "needs the package dvclive"),
            (["record", "--config", "a.yaml", "--config", "b.yaml"], "--config names 2 files"),
            (["evaluate", "--model_name_or_path", "m", "--dataset_name", "./none"], "No such file or folder: ./none"),
            (["lion", "--student_model", "m"], "`output_dir` is not set"),
        ],
    )
    def test_what_is_missing_is_told_within_three_seconds_of_processor_time(self, arguments, expected):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run_python("-m", "trl_distill.cli", *arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3

    def test_help_answers_at_once(self):
        def seconds():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert "minillm  " in run_python("-m", "trl_distill.cli", "--help").stdout
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        assert min(seconds() for _ in range(3)) < 0.5

    @pytest.mark.parametrize(
        "argv", [["--help"], ["label", "--help"], ["merge", "--help"], ["evaluate", "--help"], ["asc", "--help"]]
    )
    def test_help_needs_no_torch(self, argv):
        lines = (
            "import atexit, sys",
            "atexit.register(lambda: print(sys.modules.get('torch') is not None))",
            "import trl_distill.cli",
        )
        done = run_python("-c", "; ".join([*lines, f"trl_distill.cli.main({argv})"]))
        assert done.stdout.startswith("usage: ") and done.stdout.endswith("False\n"), done.stderr


class TestScripts:
    def test_dpo(self, sft_config, tmp_path):
        rows = [{"prompt": f"Say {i}", "chosen": f" {i}", "rejected": " no"} for i in range(4)]
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
        dpo.run(["--config", sft_config(dataset_name=str(tmp_path / "pairs.jsonl"))])
        assert (tmp_path / "out" / "model.safetensors").is_file()

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"dataset_name": None}, "no data: set `dataset_name`"),
            ({"eval_strategy": "steps"}, "no test split: set `test_split_size`"),
            ({"resume_from_checkpoint": True}, "nothing to resume"),
            ({"dataset_name": __file__}, "expected one of .json, .jsonl, .csv, .parquet"),
            ({"dataset_name": "data/none.parquet"}, "No such file: data/none.parquet"),
            ({"dataset_name": "./none"}, "No such file or folder: ./none"),
            (
                {"dataset_name": "data/none"},
                "no file or folder data/none here, either. If a recipe names it, the recipe's",
            ),
            ({"model_name_or_path": "runs/a/none"}, "No such file or folder: runs/a/none. If a recipe names it, the"),
            ({"fp16": True, "load_in_4bit": True, "use_peft": True}, "cannot be scaled. Leave `fp16`"),
            ({"report_to": ["dvclive"]}, "needs the package dvclive. Install it with `pip install dvclive`."),
            ({"report_to": "wandbb"}, "`report_to` must name trackers, got 'wandbb'. Did you mean wandb"),
        ],
    )
    @pytest.mark.parametrize("command", SCRIPTS)
    def test_data_and_resume_errors(self, command, changes, expected, sft_config, capsys):
        assert expected in error_of(capsys, SCRIPTS[command].run, "--config", sft_config(**changes))

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("runs/none", "If a folder is meant, there is none of that name here."),
            ("runs/a/none", "No such file or folder: runs/a/none."),
        ],
    )
    def test_a_model_that_is_nowhere(self, name, expected, sft_config, capsys):
        config = sft_config(model_name_or_path=name)
        assert expected in error_of(capsys, sft.run, "--config", config)
        if expected.startswith("No such"):  # said before a process is started
            assert expected in error_of(capsys, cli.main, "sft", "--config", config)

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, "exactly one teacher"),
            ({"model_name_or_path": None, "teacher_is_base": True}, "no student"),
            ({"teacher_is_base": True}, "no adapter"),
            (
                {"teacher_model_server_url": "http://localhost:1"},
                "Set `single_step_decomposition=False`, `teacher_mix",
            ),
            (
                {"teacher_model_server_url": "http://localhost:1"} | SERVED,
                "No answer from http://localhost:1/v1/models",
            ),
            ({"teacher_mix_alpha": 1.5}, "`teacher_mix_alpha` must be in [0, 1), got 1.5"),
            ({"dataset_train_split": "learn"}, "the data have no split 'learn', only train"),
            ({"answer_checker": "spelling"}, "`answer_checker` must be one of math, got 'spelling'"),
        ],
    )
    def test_minillm_errors(self, changes, expected, sft_config, capsys):
        assert expected in error_of(capsys, minillm.run, "--config", sft_config(**changes))

    def test_a_metric_that_no_evaluation_gives(self, sft_config, capsys):
        evaluated = dict(eval_strategy="steps", eval_steps=1, test_split_size=4, metric_for_best_model="rougeL")
        error = error_of(capsys, sft.run, "--config", sft_config(**evaluated))
        assert "trl-distill sft: error: The `metric_for_best_model` training argument is set to" in error
        assert "'eval_loss'" in error

    def test_corpus_without_its_column(self, sft_config, tmp_path, capsys):
        config = sft_config(
            teacher_model_name_or_path=str(tmp_path / "student"),
            lm_dataset_name=str(tmp_path / "rows.jsonl"),
        )
        message = error_of(capsys, minillm.run, "--config", config)
        assert "has no column 'text', only prompt, completion: set `lm_dataset_text_field`" in message

    def test_minillm_resumes_from_the_last_checkpoint(self, sft_config, tmp_path, capsys):
        changes = {
            "teacher_model_name_or_path": str(tmp_path / "student"),
            "max_completion_length": 4,
            "num_iterations": 1,
            "save_strategy": "steps",
            "save_steps": 1,
        }
        minillm.run(["--config", sft_config(**changes)])
        first = tmp_path / "out" / "checkpoint-1" / "trainer_state.json"
        written = first.stat().st_mtime_ns
        minillm.run(["--config", sft_config(**changes, resume_from_checkpoint=True), "--max_steps", "2"])
        assert json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2
        assert first.stat().st_mtime_ns == written  # step 1 was not done again
        others = ["--resume_from_checkpoint=latest", "--gamma=0.9", "--max_completion_length=5"]
        message = error_of(capsys, minillm.run, "--config", sft_config(**changes), *others)
        assert "other settings: " in message and "`gamma` was 1.0 and is now 0.9" in message
        assert "`max_completion_length` was 4 and is now 5" in message

    @pytest.mark.parametrize("base_teaches", [False, True])
    def test_minillm_goes_on_with_an_adapter(self, base_teaches, sft_config, tmp_path, capsys):
        base = tmp_path / "student"
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora(init_lora_weights=False))
        model.save_pretrained(tmp_path / "adapter")
        AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "adapter")
        teacher = {"teacher_is_base": True} if base_teaches else {"teacher_model_name_or_path": str(base)}
        changes = {"model_name_or_path": str(tmp_path / "adapter"), "max_completion_length": 4, "num_iterations": 1}
        config = sft_config(**teacher, **changes, learning_rate=1e-2, logging_steps=1)
        assert "Leave `use_peft` out" in error_of(capsys, minillm.run, "--config", config, "--use_peft")
        minillm.run(["--config", config])
        trained = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
        assert trained.peft_config["default"].base_model_name_or_path == str(base)
        before, after = (get_peft_model_state_dict(one) for one in (model, trained))
        assert before.keys() == after.keys() and all((before[name] != after[name]).any() for name in before)

    def test_what_begins_with_a_full_model_says_so(self, sft_config, tmp_path, capsys):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
        get_peft_model(model, lora()).save_pretrained(tmp_path / "adapter")
        message = error_of(capsys, nat.run, "--config", sft_config(model_name_or_path=str(tmp_path / "adapter")))
        assert "is an adapter, and this training begins with a full model" in message

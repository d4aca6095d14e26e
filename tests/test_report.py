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


"""The page of a run: what is on it, and that nothing of it is loaded or runs."""

import json
import math
import os
import re
from html.parser import HTMLParser

import pytest

from trl_distill.chat.credentials import without_secrets
from trl_distill.report import Curve, curve, describe_run, number, record_run, write_report
from trl_distill.sft_config import SFTConfig


VOID = {"meta", "circle", "br"}


class Page(HTMLParser):
    """Refuses a page whose elements are not closed in turn, or that loads or runs something."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.titles = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "img", "iframe", "object", "base"), tag
        for name, value in attributes:
            assert name not in ("src", "href", "srcset", "action", "xlink:href") and not name.startswith("on"), name
            assert "http" not in (value or ""), value
            self.titles += [value] if name == "title" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID, tag

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.words += [" "] if tag in ("td", "dt", "p", "b", "small") else []

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            assert "url(" not in data and "@import" not in data
        else:
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def state(folder, history, **values):
    folder.mkdir(parents=True, exist_ok=True)
    step = history[-1]["step"]
    content = {"global_step": step, "max_steps": 100, "log_history": history} | values
    (folder / "trainer_state.json").write_text(json.dumps(content))


class TestCurves:
    def test_points_are_where_they_belong(self):
        drawn = curve(Curve("loss", {"training": [(0, 1.0), (5, 3.0), (10, 2.0)]}))
        points = [
            tuple(map(float, point.split(","))) for point in re.search(r'points="(.*?)"', drawn)[1].split()
        ]  # the y axis of a picture goes down
        assert points == [(4.0, 106.0), (150.0, 4.0), (296.0, 55.0)]
        assert "1 to 3" in drawn and "step 0 to 10" in drawn

    def test_a_spike_stays(self):
        points = [(step, 1.0) for step in range(10_001)]
        points[4321] = (4321, 9.0)
        drawn = curve(Curve("loss", {"training": points}))
        assert len(re.search(r'points="(.*?)"', drawn)[1].split()) <= 400
        assert ",4.0 " in drawn and "1 to 9" in drawn

    def test_what_is_not_finite_is_left_out(self):
        drawn = curve(Curve("loss", {"training": [(1, math.nan), (2, 5.0), (3, math.inf)]}))
        assert "nan" not in drawn and "inf" not in drawn and "5 to 5" in drawn
        assert "no finite value" in curve(Curve("loss", {"training": [(1, math.nan)]}))

    def test_names_are_escaped(self):
        assert "<script>" not in curve(Curve("<script>", {"<script>": [(1, 1.0)]}))

    @pytest.mark.parametrize(
        ("value", "text"), [(None, "-"), (3, "3"), (1234567.0, "1,234,567"), (0.123456, "0.1235"), (math.nan, "nan")]
    )
    def test_numbers(self, value, text):
        assert number(value) == text


class TestPage:
    def test_first_best_and_last_of_an_evaluation(self, tmp_path):
        values = [(10, 3.0, 0.2), (20, 1.0, 0.6), (30, 2.0, 0.5)]
        state(tmp_path, [{"step": s, "eval_kl": kl, "eval_accuracy": a, "eval_runtime": 7.25} for s, kl, a in values])
        text = Page(write_report(tmp_path).read_text()).text
        assert "eval_kl 3 1 20 2 eval_accuracy 0.2 0.6 20 0.5" in text
        assert "7.25" not in text and "stopped, or still running" in text

    def test_groups(self, tmp_path):
        state(tmp_path, [{"step": 1, "loss": 1.0, "loss/long": 1.0, "kl": 1.0, "grad_norm": 1.0, "eval_loss": 2.0}])
        titles = re.findall(r"<(?:h2|b)>(.*?)</", write_report(tmp_path).read_text())
        assert titles[:7] == ["Loss", "loss", "loss/long", "Logged by the method", "kl", "Logged by TRL", "grad_norm"]

    def test_the_newest_whole_state_counts(self, tmp_path):
        for step in (10, 20, 30):
            state(tmp_path / f"checkpoint-{step}", [{"step": step, "loss": 1.0}])
            os.utime(tmp_path / f"checkpoint-{step}/trainer_state.json", (step, step))
        (tmp_path / "checkpoint-30/trainer_state.json").write_text('{"log_history": [')  # a kill cut it off
        assert "steps 20 of 100" in Page(write_report(tmp_path).read_text()).text

    def test_an_earlier_run_in_the_same_folder_does_not_count(self, tmp_path):
        state(tmp_path, [{"step": 70, "loss": 1.0}])
        os.utime(tmp_path / "trainer_state.json", (1, 1))
        record_run(tmp_path, describe_run("trl-distill sft", [SFTConfig(output_dir="x", use_cpu=True)]), "cpu", 1)
        text = Page(write_report(tmp_path).read_text()).text
        assert "no state is saved yet" in text and "70 of" not in text

    def test_a_stage_with_a_folder_of_its_own(self, tmp_path):
        state(tmp_path, [{"step": 5, "loss": 1.0}])
        state(tmp_path / "negative/checkpoint-4", [{"step": 4, "loss": 0.25}])
        assert "Loss (negative) loss training 0.25" in Page(write_report(tmp_path).read_text()).text

    def test_a_folder_of_something_else(self, tmp_path):
        with pytest.raises(ValueError, match="holds neither run.json nor a trainer_state.json"):
            write_report(tmp_path)

    def test_rollouts(self, tmp_path):
        state(tmp_path, [{"step": 9, "loss": 1.0}])
        row = {"row": 0, "prompt": "<script>alert(1)</script>", "reward": -1.5, "length": 2, "tokens": ["<b>", "\b"]}
        row |= {"student": [-1.0, -2.0], "teacher": [-3.0, None], "credit": [0.5, 0.25]}
        rows = [row | {"mode": "train", "step": step} for step in range(9)]
        rows += [row | {"mode": "eval", "step": 0}, row | {"mode": "eval", "step": 9, "tokens": ["new", "er"]}]
        lines = [json.dumps(line) for line in rows]
        (tmp_path / "rollouts.jsonl").write_text("\n".join([*lines, lines[0], lines[0][:50]]))  # killed, as it wrote
        html = write_report(tmp_path).read_text()
        page = Page(html)
        assert "<script>alert(1)</script>" in page.text and "6 of 9 recorded steps" in page.text
        assert "Answers before training and after 9 steps" in page.text and "newer" in page.text
        assert '<span class="n4" title="teacher -3.00, student -1.00, credit 0.50">&lt;b&gt;</span>' in html
        assert '<span title="not finite">\N{SYMBOL FOR BACKSPACE}</span>' in html
        assert html.count("<summary>after ") == 6 and "Underlined" not in page.text

    def test_who_drew_a_token(self, tmp_path):
        state(tmp_path, [{"step": 9, "loss": 1.0}])
        row = {
            "mode": "train",
            "step": 3,
            "row": 0,
            "prompt": "p",
            "reward": 2.0,
            "length": 3,
            "tokens": ["a", "b", "c"],
        }
        row |= {"student": [-1.0, -1.0, -1.0], "teacher": [-1.0, 0.0, -3.0], "by_teacher": [True, True, False]}
        (tmp_path / "rollouts.jsonl").write_text(json.dumps(row) + "\n")
        html = write_report(tmp_path).read_text()
        assert '<span class="t" title="teacher -1.00, student -1.00, drawn by the teacher">a</span>' in html
        assert '<span class="p3 t" title="teacher 0.00, student -1.00, drawn by the teacher">b</span>' in html
        assert '<span class="n4" title="teacher -3.00, student -1.00, drawn by the student">c</span>' in html
        page = Page(html)
        assert "3 tokens 2 of 3 by the teacher reward 2" in page.text and ".t { text-decoration: underline" in html
        assert "Underlined tokens were drawn by the teacher, the others by the student." in page.text


class TestSecrets:
    SECRETS = "hf_abcdefghijklmnop", "sk-proj-abcdefghijkl", "my-own-passphrase"

    def test_in_fields_and_in_the_environment(self, tmp_path, monkeypatch):
        token, key, phrase = self.SECRETS
        monkeypatch.setenv("SERVICE_PASSWORD", phrase)
        args = SFTConfig(output_dir="x", use_cpu=True, hub_token=token, run_name=f"run of {phrase}")
        args.model_init_kwargs = {"token": phrase, "headers": {"Authorization": "short-one"}, "dtype": "float32"}
        args.hub_model_id, args.eos_token = f"https://me:{phrase[:4]}@host/{key}", "<|im_end|>"
        record_run(tmp_path, describe_run("trl-distill sft", [args]), "cpu", 1)
        page = write_report(tmp_path).read_text()
        for text in (page, (tmp_path / "run.json").read_text()):
            assert [secret for secret in (*self.SECRETS, "short-one", "me:my") if secret in text] == []
            assert "im_end" in text and "float32" in text and "run of [key]" in text
        assert "training_args" not in page

    def test_in_rollouts(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SERVICE_PASSWORD", self.SECRETS[2])
        state(tmp_path, [{"step": 1, "loss": 1.0}])
        row = {"row": 0, "prompt": f"Is it {self.SECRETS[2]}?", "reward": 0.0, "length": 0, "tokens": []}
        row |= {"student": [], "teacher": [], "mode": "train", "step": 0}
        (tmp_path / "rollouts.jsonl").write_text(json.dumps(row) + "\n")
        assert "Is it [key]?" in write_report(tmp_path).read_text()

    def test_names_and_plain_words_stay(self, monkeypatch):
        monkeypatch.setenv("SHORT_KEY", "none")
        for text in ("hf-internal-testing/tiny", "a risk-free-investment", "none", "Basic understanding of it"):
            assert without_secrets(text) == text


def test_what_differs_from_its_default():
    args = SFTConfig(output_dir="x", use_cpu=True, learning_rate=1.5e-4, report_to="none", max_length=None)
    run = describe_run("trl-distill sft", [args])
    assert {"output_dir", "use_cpu", "learning_rate", "max_length"} <= set(run["changed"]) <= set(run["settings"])
    assert not {"report_to", "accelerator_config", "seed", "debug"} & set(run["changed"])
    assert run["settings"]["learning_rate"] == 1.5e-4 and run["settings"]["seed"] == 42

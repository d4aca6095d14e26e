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
"""The loop with models that are no rules: behind a server with faults, and a real referee."""

import hashlib
import time
from collections import Counter

import pytest
import torch
import toy
from served import by_the_rules, sent, served_loop
from toy import results

from trl_distill.chat import ChatServerError, Completion, LocalChatModel


def fault_of(body):
    """Which fault a call has, if any: it follows from the call."""
    return int(hashlib.sha256(repr(sent(body)).encode()).hexdigest(), 16) % 7


class TestServer:
    def faulty(self, server):
        cut = {"is": Counter()}

        def reply(body, attempt, headers):
            fault = fault_of(body)
            if attempt == 1 and (fault in (1, 2, 3) or fault == 4 and body["model"] == "teacher"):
                cut["is"][fault] += 1
                if fault == 1:
                    return 429, {"error": {"message": "busy"}}, {"Retry-After": "0"}
                if fault == 2:
                    return 500, {"error": {"message": "broken"}}, {}
                if fault == 3:
                    return 200, server.CUT, {}
                time.sleep(1.5)  # longer than the client waits
            answer = by_the_rules(body)
            if body["model"] == "teacher" and toy.family_of(body["messages"][-1]["content"]) == 1:
                answer["choices"][0]["finish_reason"] = "length"
            return answer

        server.reply = reply
        return cut["is"]

    def test_a_faulty_one_gives_what_the_rules_give(self, server, world, tmp_path):
        faults = self.faulty(server)
        result = served_loop(tmp_path / "run", server.base_url, concurrency=8, timeout=1.0, max_attempts=3).run()

        def teach(request):
            prompt = request.messages[-1]["content"]
            return Completion(f"right {prompt}", "length" if toy.family_of(prompt) == 1 else "stop")

        watch = toy.Watch()
        models = watch.models(teacher=toy.Rule(teach, "teacher"), student=toy.stubborn)
        world("rules", models=models).run()
        assert results(tmp_path / "run") == results(tmp_path / "rules")
        assert result.report["rounds"][0]["answers"]["cut_off"] > 0

        calls = {role: sum(row["calls"] for row in result.report["ledger"] if row["role"] == role) for role in models}
        assert all(calls[role] == watch.asked[role] for role in ("teacher", "referee", "generator"))
        asked = Counter(body["model"] for body in server.requests)
        for role, attempts in asked.items():
            retries = sum(row["retries"] for row in result.report["ledger"] if row["role"] == role)
            assert attempts == calls[role] + retries
        attempts = Counter(map(sent, server.requests))
        assert set(attempts.values()) == {1, 2} and len(attempts) == sum(calls[role] for role in asked)
        assert set(faults) == {1, 2, 3, 4} and sum(faults.values()) == sum(count == 2 for count in attempts.values())

    def test_calls_that_fail_for_good_leave_their_items_out(self, server, tmp_path):
        def reply(body, *_):
            bad = body["model"] == "teacher" and toy.family_of(body["messages"][-1]["content"]) == 1
            return (400, {"error": {"message": "no such thing"}}, {}) if bad else by_the_rules(body)

        server.reply = reply
        report = served_loop(tmp_path / "run", server.base_url).run().report
        failed = report["rounds"][0]["answers"]["failed"]
        assert failed > 0 and report["rounds"][1]["discrimination"]["unscored"]["teacher failed"] >= failed
        assert "no such thing" not in (tmp_path / "run/round_0/answers.jsonl").read_text()

    def test_a_server_that_is_gone_stops_the_run_which_can_go_on(self, server, tmp_path, world):
        answered = Counter()

        def reply(body, *_):
            answered[body["model"]] += 1
            gone = answered["referee"] > 10 and not answered["back"]
            return (401, {"error": {"message": "who?"}}, {}) if gone else by_the_rules(body)

        server.reply = reply
        with pytest.raises(ChatServerError, match="refuses referee"):
            served_loop(tmp_path / "run", server.base_url).run()
        answered["back"] = 1
        served_loop(tmp_path / "run", server.base_url).run()
        world("rules", models=toy.models(student=toy.stubborn)).run()
        assert results(tmp_path / "run") == results(tmp_path / "rules")
        assert Counter(Counter(map(sent, server.requests)).values())[2] == 1


class TestRealReferee:
    @pytest.fixture
    def referee(self, tiny_model, tokenizer, tmp_path):
        """A model that says `A:7` and `B=4` to everything: it prefers a letter, whatever the answers are."""
        model = tiny_model(vocab_size=264, hidden_size=264, num_hidden_layers=1, max_position_embeddings=4096)
        chain = tokenizer("<|assistant|>A:7\nB=4<|endoftext|>")["input_ids"]
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(torch.eye(264))
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.model.norm.weight.fill_(4.0)
            model.lm_head.weight.zero_()
            for now, then in zip(chain[:-1], chain[1:], strict=True):
                model.lm_head.weight[then, now] = 1.0
        model.save_pretrained(tmp_path / "referee")
        tokenizer.save_pretrained(tmp_path / "referee")
        yield LocalChatModel(str(tmp_path / "referee"), name="referee")
        if LocalChatModel._in_memory is not None:
            LocalChatModel._in_memory.close()

    def student(self, folder):
        """Says what the teacher says."""
        return toy.Rule(toy.teacher().function, "student")

    @pytest.mark.parametrize("temperature", [0.0, 0.2])
    def test_equal_answers_are_two_calls_and_no_gap(self, temperature, referee, world, read):
        """Both orders of two equal answers are one prompt, and still two calls. Its bias cancels out."""

        models = {"referee": referee, "student": self.student}
        result = world(models=models, referee_temperature=temperature, rounds=1).run()
        assert result.status == "converged"
        facts = result.report["rounds"][1]["discrimination"]
        assert facts["mean_gap"] == 0 and facts["counts"] == {"hard": 0, "easy": 19, "below_floor": 0, "unscored": 0}
        assert {(row["teacher"], row["student"]) for row in read("round_1/scores.jsonl")} == {(5.5, 5.5)}
        [calls] = [row["calls"] for row in result.report["ledger"] if row["role"] == "referee" and row["round"] == 1]
        assert calls == 2 * 19 and facts["referee"]["reasks"] == 0

    def test_in_one_order_its_bias_is_the_gap(self, referee, world, read):
        world(models={"referee": referee, "student": self.student}, referee_orders=1, rounds=1).run()
        assert {row["teacher"] - row["student"] for row in read("round_1/scores.jsonl")} == {-3, 3}

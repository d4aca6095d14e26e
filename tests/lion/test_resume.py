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
"""Runs that are killed, changed and begun again: they go on where they were, and give what they would have given."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import toy
from served import by_the_rules, sent
from toy import results

from trl_distill.chat import FailedCall
from trl_distill.chat.models import derived_seed
from trl_distill.lion import LionConfig, LionLoop


HERE = Path(__file__).parent


@pytest.fixture
def whole(world, tmp_path):
    """What an uninterrupted run makes."""
    watch = toy.Watch()
    world("whole", models=watch.models(student=toy.stubborn)).run()
    return results(tmp_path / "whole"), watch.asked


class Runs:
    """Runs of one folder, the calls of all of them together."""

    def __init__(self, world, **settings):
        self.world, self.settings, self.answered, self.asked = world, settings, Counter(), Counter()

    def run(self, kill=None):
        watch = toy.Watch(kill)
        try:
            return self.world(models=watch.models(student=toy.stubborn), **self.settings).run()
        except toy.Killed:
            return None
        finally:
            self.answered += watch.answered
            self.asked += watch.asked


def not_recorded(world, tmp_path):
    """A run that stopped in the evaluation of round 1, and whose manifest does not say that its student is trained."""
    runs = Runs(world)
    runs.run(kill=("student", 4 + 19 + 2))
    path = tmp_path / "run/round_1/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["stages"]["training"]
    path.write_text(json.dumps(manifest))
    return runs


class TestKilledCalls:
    @pytest.mark.parametrize("role", ["teacher", "student", "referee", "generator", "train"])
    def test_at_a_call_of_each_role(self, role, world, whole, tmp_path):
        expected, asked = whole
        moments = sorted({1, 2, asked[role] // 3, asked[role] // 2, asked[role] - 1, asked[role]})
        for k, number in enumerate(moment for moment in moments if moment > 0):
            runs = Runs(lambda k=k, **settings: world(f"{role} {k}", **settings))
            assert runs.run(kill=(role, number)) is None and runs.run().status == "finished"
            assert results(tmp_path / f"{role} {k}") == expected
            assert set(runs.answered.values()) == {1}
            assert runs.answered.total() == sum(asked[name] for name in asked if name != "train")
            assert runs.asked["train"] == 3 + (role == "train")

    @pytest.mark.slow
    def test_at_every_call_of_one_run(self, world, whole, tmp_path):
        """Each run gets one answer further."""
        expected, asked = whole
        runs, kills = Runs(world), 0
        while runs.run(kill=("any", 2)) is None:
            kills += 1
        assert results(tmp_path / "run") == expected
        assert set(runs.answered.values()) == {1} and kills == asked.total() - 1


class Disk:
    """Counts the files that are put in place, and kills the run before one of them."""

    def __init__(self, monkeypatch, kill=None):
        self.count, self.kill = 0, kill
        self.replace, self.rename = os.replace, Path.rename
        monkeypatch.setattr(os, "replace", lambda a, b: self.step(self.replace, a, b))
        monkeypatch.setattr(Path, "rename", lambda a, b: self.step(self.rename, a, b))

    def step(self, function, a, b):
        self.count += 1
        if self.count == self.kill:
            raise toy.Killed
        return function(a, b)


class TestKilledWrites:
    def count(self, world, monkeypatch):
        with monkeypatch.context() as patch:
            disk = Disk(patch)
            world("counted", models=toy.models(student=toy.stubborn)).run()
        return disk.count

    def check(self, numbers, world, expected, tmp_path, monkeypatch):
        for number in numbers:
            runs = Runs(lambda number=number, **settings: world(f"write {number}", **settings))
            with monkeypatch.context() as patch:
                Disk(patch, kill=number)
                assert runs.run() is None
            assert runs.run().status == "finished"
            assert results(tmp_path / f"write {number}") == expected
            assert set(runs.answered.values()) == {1}

    def test_before_a_file_is_in_place(self, world, whole, tmp_path, monkeypatch):
        count = self.count(world, monkeypatch)
        assert count > 40
        self.check(random.Random().sample(range(1, count + 1), 6), world, whole[0], tmp_path, monkeypatch)

    @pytest.mark.slow
    def test_before_each_file_is_in_place(self, world, whole, tmp_path, monkeypatch):
        self.check(range(1, self.count(world, monkeypatch) + 1), world, whole[0], tmp_path, monkeypatch)

    def test_between_the_last_step_of_a_training_and_its_record(self, world, whole, tmp_path):
        """The student is in place, the manifest does not say so yet: it is not trained again."""
        runs = not_recorded(world, tmp_path)
        (tmp_path / "run/round_1/training/run/checkpoint-1").mkdir(parents=True)
        assert runs.run().status == "finished" and runs.asked["train"] == 3
        assert results(tmp_path / "run") == whole[0]


class TestRestart:
    @pytest.mark.parametrize(
        "place",
        ["0.answers", "0.training", "0.evaluation", "1.discrimination", "1.generation", "1.answers", "2.training"],
    )
    def test_from_any_stage_gives_the_same_without_a_call(self, place, world, whole, tmp_path):
        runs = Runs(world)
        runs.run()
        asked = Counter(runs.asked)
        runs.settings["restart_from"] = place
        assert runs.run().status == "finished" and results(tmp_path / "run") == whole[0]
        round, stage = int(place[0]), place[2:]
        trained = [k for k in range(3) if k > round or k == round and stage != "evaluation"]
        assert runs.asked - asked == Counter(train=len(trained))

    def test_removes_what_follows_and_nothing_else(self, world, tmp_path):
        runs = Runs(world)
        runs.run()
        before = results(tmp_path / "run")
        runs.settings["restart_from"] = "1.answers"
        assert runs.run(kill=("train", 1)) is None
        left = {name for name in before if name.startswith("round_") and (tmp_path / "run" / name).exists()}
        gone = {name for name in before if name.startswith("round_2/")}
        gone |= {f"round_1/{name}" for name in ("student/made_with.json", "student/seen.json", "evaluation.json")}
        assert {name for name in before if name.startswith("round_")} - left == gone

    def test_a_student_that_was_not_recorded_is_not_taken_for_the_new_one(self, world, whole, tmp_path):
        runs = not_recorded(world, tmp_path)
        (tmp_path / "run/round_1/student/seen.json").write_text("{}")
        runs.settings["restart_from"] = "1.answers"
        assert runs.run().status == "finished" and results(tmp_path / "run") == whole[0]

    def test_killed_while_it_removes(self, world, whole, tmp_path, monkeypatch):
        """Then what is gone is said, or what is left is right: never an old result for a new one."""
        for number in range(4):
            folder = f"removal {number}"
            runs = Runs(lambda folder=folder, **settings: world(folder, **settings))
            runs.run()
            with monkeypatch.context() as patch:
                count, rmtree = Counter(), shutil.rmtree

                def remove(path, *args, count=count, number=number, rmtree=rmtree, **settings):
                    count["calls"] += 1
                    if count["calls"] > number:
                        raise toy.Killed
                    rmtree(path, *args, **settings)

                patch.setattr(shutil, "rmtree", remove)
                runs.settings["restart_from"] = "1.generation"
                assert runs.run() is None
            del runs.settings["restart_from"]
            try:
                runs.run()
            except ValueError as error:
                assert "is gone since the stage" in str(error) and "--restart_from" in str(error)
                runs.settings["restart_from"] = "1.generation"
                runs.run()
            assert results(tmp_path / folder) == whole[0]

    def test_of_a_run_that_another_one_works_on(self, world, tmp_path):
        runs = Runs(world)
        runs.run()
        loop = world(models=toy.models(student=toy.stubborn))
        with loop.folder.open_store(), pytest.raises(OSError, match="Another run has the call store"):
            world(models=toy.models(student=toy.stubborn), restart_from="0.answers")
        assert (tmp_path / "run/round_2/evaluation.json").exists()


class TestChanges:
    @pytest.mark.parametrize(
        ("changes", "said", "place"),
        [
            ({"seed": 1}, "`seed` was 42, is 1", None),
            ({"heldout_size": 6}, "`heldout_size` was 4, is 6", None),
            ({"teacher": {"model": "b"}}, "`teacher` was None, is {'model': 'b'}", "0.answers"),
            ({"teacher_max_tokens": 9, "tau": 3.0}, "`teacher_max_tokens` was 1024, is 9", "0.answers"),
            ({"training": {"learning_rate": 1.0}}, "`training` was {}, is {'learning_rate': 1.0}", "0.training"),
            ({"student_model": "other"}, "`student_model` was 'none', is 'other'", "0.training"),
            ({"tau": 2.0, "max_reasks": 1}, "`max_reasks` was 2, is 1; `tau` was 1.0, is 2.0", "1.discrimination"),
            ({"cache_sample": 9, "n_new": 5}, "`cache_sample` was None, is 9", "1.discrimination"),
        ],
    )
    @pytest.mark.parametrize("dry_run", [False, True])
    def test_what_a_finished_stage_depends_on_is_fixed(self, dry_run, changes, said, place, world, whole, tmp_path):
        """The message says which stage would be made anew; the folder is as it was."""
        runs = Runs(world)
        runs.run(kill=("generator", 1))
        before = toy.files(tmp_path / "run")
        with pytest.raises(ValueError) as stopped:
            world(**changes, dry_run=dry_run)
        assert said in str(stopped.value) and "another `output_dir`" in str(stopped.value)
        assert place is None or f"`--restart_from {place}`" in str(stopped.value)
        assert ("--restart_from" in str(stopped.value)) == ("--keep_finished" in str(stopped.value)) == bool(place)
        assert toy.files(tmp_path / "run") == before
        assert runs.run().status == "finished" and results(tmp_path / "run") == whole[0]

    @pytest.mark.parametrize(
        ("kill", "changes"),
        [
            (("referee", 9), {"referee_max_tokens": 900}),  # the evaluation of round 0 is under way
            (("referee", 3), {"referee": {"model": "better", "base_url": "http://127.0.0.1:1/v1"}}),
            (("generator", 1), {"generator_temperature": 1.3, "n_new": 5, "filters": [], "rouge_threshold": 0.6}),
            (("train", 1), {"training": {"learning_rate": 1e-3, "per_device_train_batch_size": 1}}),
            (("train", 2), {"training": {"per_device_train_batch_size": 1, "report_to": "wandb", "bf16": True}}),
            (("generator", 1), {"strategy": "random"}),
            (("generator", 1), {"oversample": 2}),
        ],
    )
    def test_the_remedies_of_errors_are_taken(self, kill, changes, world, tmp_path):
        """A better referee, a higher temperature, a smaller batch: of what is finished nothing depends on them."""
        runs = Runs(world)
        runs.run(kill=kill)
        before = runs.asked["teacher"]
        runs.settings = changes
        assert runs.run().status == "finished"
        assert runs.asked["teacher"] - before <= 12 * (1 + ("oversample" in changes))  # held out, and new ones

    def test_an_evaluation_is_no_obstacle(self, world, caplog):
        """Nothing follows from it: what was measured otherwise is said, and stays."""
        Runs(world).run(kill=("generator", 1))
        evaluator = {"model": "e", "base_url": "http://127.0.0.1:1/v1"}
        models = toy.models(student=toy.stubborn, evaluator=toy.referee())
        assert world(models=models, evaluator=evaluator).run().status == "finished"
        assert "Round 0 was evaluated with other settings: `evaluator` was None, is {'model': 'e'}" in caplog.text

    def test_what_is_finished_can_be_kept(self, world, tmp_path, read):
        """From here on another referee: the manifests say who judged what."""
        runs = Runs(world)
        runs.run(kill=("train", 2))
        changes = {"tau": 2.0, "referee": {"model": "better", "base_url": "http://127.0.0.1:1/v1"}}
        with pytest.raises(ValueError, match="1.discrimination"):
            world(**changes)
        assert world(models=toy.models(student=toy.stubborn), **changes, keep_finished=True).run().status == "finished"
        made = [read(f"round_{k}/manifest.json")["stages"]["discrimination"]["settings"] for k in (1, 2)]
        assert [facts["tau"] for facts in made] == [1.0, 2.0] and made[1]["referee"]["model"] == "better"
        with pytest.raises(ValueError) as stopped:  # not what decides which stages there are
            world(**changes, keep_finished=True, strategy="random")
        assert "`strategy` was 'adversarial', is 'random'" in str(stopped.value)
        assert "--keep_finished" not in str(stopped.value)
        with pytest.raises(ValueError, match="`seed` was 42, is 1"):
            world(**changes, keep_finished=True, seed=1)

    def test_a_restart_takes_new_settings_for_what_it_makes(self, world, tmp_path):
        runs = Runs(world)
        runs.run()
        runs.settings = dict(tau=2.0, n_new=5, restart_from="2.discrimination")
        with pytest.raises(ValueError, match="1.discrimination"):  # that is older
            runs.run()
        runs.settings["restart_from"] = "1.discrimination"
        assert runs.run().status == "finished"
        whole = Runs(lambda **settings: world("other", **settings), tau=2.0, n_new=5)
        whole.run()
        assert results(tmp_path / "run") == results(tmp_path / "other")

    @pytest.mark.parametrize(
        ("gone", "found", "place"),
        [
            ("round_1", "round_2 holds the stage discrimination", "1.discrimination"),
            ("round_1/manifest.json", "round_2 holds the stage discrimination", "1.discrimination"),
            ("round_0/manifest.json", "round_1 holds the stage discrimination", "in another|pools"),
        ],
    )
    def test_a_broken_chain_names_the_stage_to_restart_from(self, gone, found, place, world, whole, tmp_path):
        runs = Runs(world)
        runs.run()
        path = tmp_path / "run" / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if gone == "round_0/manifest.json":  # nothing says that anything is finished: all is made again
            assert runs.run().status == "finished" and results(tmp_path / "run") == whole[0]
            return
        with pytest.raises(ValueError) as stopped:
            runs.run()
        assert found in str(stopped.value) and f"`--restart_from {place}`" in str(stopped.value)
        runs.settings["restart_from"] = place
        assert runs.run().status == "finished" and results(tmp_path / "run") == whole[0]

    def test_a_round_that_was_made_anew_is_not_followed_by_an_old_one(self, world, tmp_path):
        """Round 2 of another run, which began with another student."""
        for name, seed in (("run", 42), ("other", 7)):
            Runs(lambda name=name, seed=seed, **settings: world(name, seed=seed, **settings)).run()
        shutil.rmtree(tmp_path / "run/round_2")
        shutil.copytree(tmp_path / "other/round_2", tmp_path / "run/round_2")
        with pytest.raises(ValueError, match=r"what it followed from has changed.*--restart_from 2.discrimination"):
            Runs(world).run()

    def test_a_first_round_that_was_made_anew_is_not_followed_by_old_ones(self, world, tmp_path):
        Runs(world).run()
        shutil.rmtree(tmp_path / "run/round_0")
        runs = Runs(world, heldout_size=5)
        for _ in range(2):
            with pytest.raises(
                ValueError, match=r"what it followed from has changed.*--restart_from 1.discrimination"
            ):
                runs.run()
        runs.settings["restart_from"] = "1.discrimination"
        assert runs.run().status == "finished"
        Runs(lambda **settings: world("other", **settings), heldout_size=5).run()
        assert results(tmp_path / "run") == results(tmp_path / "other")

    @pytest.mark.parametrize("changes", [{"training": {"learning_rate": 1.0}}, {"stages": ["sft", "dpo"]}])
    def test_a_student_that_was_not_recorded_is_not_taken_for_one_of_other_settings(self, changes, world, tmp_path):
        not_recorded(world, tmp_path)
        train = []
        stages = {name: lambda *args, name=name: train.append(name) or toy.train(*args) for name in ("sft", "dpo")}
        models = toy.models(student=toy.stubborn, train=stages)
        assert (
            world(models=models, rounds=1, keep_finished="training" in changes, **changes).run().status == "finished"
        )
        assert train == changes.get("stages", ["sft"])

    @pytest.mark.parametrize("changes", [{"replay": "share"}, {"replay": "all"}, {"init_from": "base"}])
    def test_the_first_round_does_not_depend_on_how_later_ones_go_on(self, changes, world):
        runs = Runs(world, rounds=1)
        runs.run()
        trained = runs.asked["train"]
        runs.settings = changes | {"restart_from": "1.answers"}
        assert runs.run().status == "finished" and runs.asked["train"] == trained + 2

    @pytest.mark.parametrize("sizes", [(1, 5), (5, 1), (4, 5)])
    def test_n_new_does_not_change_which_stages_there_are(self, sizes, world):
        before, after = (dict(n_new=size, oversample=1.1, rounds=1) for size in sizes)
        Runs(world, **before).run(kill=("train", 1))
        loop = world(models=toy.models(student=toy.stubborn), **before)
        places = ("answers", 0), ("training", 0), ("evaluation", 0), ("discrimination", 1), ("generation", 1)
        toy.done(loop, *places)
        assert Runs(world, **after, keep_finished=True).run().status == "finished"

    def test_a_copy_of_a_round_beside_it(self, world, tmp_path):
        runs = Runs(world)
        runs.run(kill=("generator", 1))
        for name in ("round_0_old", "round_1.bak", "round_"):
            shutil.copytree(tmp_path / "run/round_0", tmp_path / "run" / name)
        runs.settings["restart_from"] = "1.discrimination"
        assert runs.run().status == "finished" and (tmp_path / "run/round_1.bak").is_dir()

    def test_random_goes_on_where_nothing_was_hard(self, world):
        models = toy.models(student=lambda _: toy.teacher())
        assert world(models=models).run().status == "converged"
        result = world(models=models, strategy="random").run()
        assert (result.status, result.round) == ("finished", 2)

    def test_a_folder_of_an_older_version(self, world, tmp_path):
        runs = Runs(world)
        runs.run(kill=("generator", 1))
        for path in (tmp_path / "run").glob("round_*/manifest.json"):
            stages = json.loads(path.read_text())["stages"]
            old = {
                stage: {name: value for name, value in facts.items() if name not in ("settings", "follows")}
                for stage, facts in stages.items()
            }
            path.write_text(json.dumps({"stages": old}))
        for settings in ({}, {"keep_finished": True}, {"restart_from": "0.answers"}):
            with pytest.raises(ValueError, match="an older version made it.*a copy of `calls.sqlite`"):
                world(**settings)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"stages": 3}', '{"rounds": {}}'])
    def test_a_damaged_manifest_names_its_file(self, content, world, tmp_path):
        runs = Runs(world)
        runs.run(kill=("generator", 1))
        path = tmp_path / "run/round_1/manifest.json"
        path.write_text(content)
        with pytest.raises(ValueError, match=rf"{path} is damaged"):
            runs.run()

    def test_another_data_file_is_noticed(self, tmp_path):
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in toy.rows({0: 10, 1: 8})))

        def loop(**settings):
            values = dict(dataset_name=str(data), output_dir=str(tmp_path / "run"), student_model="none", rounds=0)
            config = LionConfig(**values, heldout_size=3, **settings)
            return LionLoop(config, **toy.models(student=toy.stubborn))

        loop().run()
        data.write_text("".join(json.dumps(row) + "\n" for row in toy.rows({0: 10, 1: 9})))
        with pytest.raises(ValueError, match="`dataset_sha256` was"):
            loop()
        data.unlink()  # it is not needed any more
        assert loop().run().status == "finished"

    def test_what_may_change(self, world, whole, tmp_path):
        runs = Runs(world)
        runs.run(kill=("generator", 1))
        runs.settings = dict(max_attempts_factor=9, max_calls=10**6, student_batch_size=3)
        runs.settings |= dict(launch={"num_processes": 2}, accelerate_config="ddp")
        assert runs.run().status == "finished" and set(runs.answered.values()) == {1}
        assert results(tmp_path / "run") == whole[0]

    def test_how_a_model_is_reached_may_change_and_which_it_is_may_not(self, world):
        def settings(**entry):
            entry = {"model": "a", "base_url": "http://here/v1", "concurrency": 4, "revision": "1"} | entry
            return {"teacher": entry, "rounds": 0}

        world(**settings()).run()
        elsewhere = {"base_url": "http://there/v1", "concurrency": 1, "prompt_price": 1.0, "completion_price": 1.0}
        world(**settings(**elsewhere, timeout=3.0, api_key_env="KEY", backoff=2.0, max_attempts=2))
        for entry in ({"model": "b"}, {"revision": "2"}, {"extra_body": {"top_k": 1}}):
            with pytest.raises(ValueError, match="`teacher` was"):
                world(**settings(**entry))

    @pytest.mark.parametrize("kill", [("teacher", 5), ("train", 1)])
    def test_before_the_first_student_all_may_change_and_no_answer_is_lost(self, kill, world, tmp_path):
        runs = Runs(world, training={"learning_rate": 1.0})
        runs.run(kill=kill)
        runs.settings = dict(training={"learning_rate": 2.0}, heldout_size=6, n_new=5)
        assert runs.run().status == "finished" and set(runs.answered.values()) == {1}
        fresh = Runs(lambda **settings: world("fresh", **settings), **runs.settings)
        fresh.run()
        assert results(tmp_path / "run") == results(tmp_path / "fresh")

    @pytest.mark.parametrize(
        ("name", "stage"),
        [
            ("round_0/heldout.jsonl", None),
            ("round_0/cache_pool.jsonl", None),
            ("round_0/answers.jsonl", "0.answers"),
            ("round_0/student/seen.json", "0.training"),
            ("round_0/evaluation.json", "0.evaluation"),
            ("round_1/scores.jsonl", "1.discrimination"),
            ("round_1/train_pool.jsonl", "1.generation"),
            ("round_2/student/seen.json", "2.training"),
        ],
    )
    def test_a_result_that_was_changed_or_removed_is_not_built_upon(self, name, stage, world, whole, tmp_path):
        runs = Runs(world)
        runs.run()
        path = tmp_path / "run" / name
        content = path.read_bytes()
        for change, said in ((lambda: path.write_bytes(content + b" "), "has changed"), (path.unlink, "is gone")):
            change()
            with pytest.raises(ValueError) as stopped:
                runs.run()
            folder = path.parent if path.parent.name == "student" else path
            if said == "has changed" or folder == path:
                assert f"{folder} {said} since the stage" in str(stopped.value)
            assert (f"--restart_from {stage}" if stage else "in another `output_dir`") in str(stopped.value)
        path.write_bytes(content)
        assert runs.run().status == "finished"  # put back
        path.unlink()
        if stage is not None:
            runs.settings["restart_from"] = stage
            runs.run()
            assert results(tmp_path / "run") == whole[0]

    def test_calls_that_failed_are_asked_again_by_a_restart(self, world, read):
        down = {"is": True}

        def answer(request):
            failed = down["is"] and toy.family_of(request.messages[-1]["content"]) == 1
            return FailedCall("busy") if failed else toy.teacher().function(request)

        models = {"teacher": toy.Rule(answer, "teacher"), "student": toy.stubborn}
        world(models=models, rounds=0, heldout_size=0).run()
        assert len(read("round_0/answers.jsonl")) == 15
        down["is"] = False
        assert world(models=models, rounds=0, heldout_size=0).run().report["rounds"][0]["answers"]["failed"] == 8
        report = world(models=models, rounds=0, heldout_size=0, restart_from="0.answers").run().report
        assert report["rounds"][0]["answers"] == {"rows": 23, "failed": 0, "empty": 0, "cut_off": 0, "refused": 0}
        [row] = report["ledger"]
        assert (row["calls"], row["failures"]) == (15 + 8 + 8, 8)

    def test_a_store_of_another_run_is_used_again(self, world, tmp_path):
        Runs(world).run()
        (tmp_path / "other").mkdir()
        shutil.copy(tmp_path / "run/calls.sqlite", tmp_path / "other")
        other = Runs(lambda **settings: world("other", **settings), tau=2.0)
        other.run()
        assert other.asked == Counter(train=3)

    def test_a_folder_that_was_moved(self, world, tmp_path):
        Runs(world).run(kill=("referee", 20))
        (tmp_path / "run").rename(tmp_path / "moved")
        moved = Runs(lambda **settings: world("moved", **settings))
        assert moved.run().status == "finished"
        Runs(lambda **settings: world("whole", **settings)).run()
        assert results(tmp_path / "moved") == results(tmp_path / "whole")


def stored(path, state):
    """The calls of a store that were sent to the server."""
    if not path.exists():
        return set()
    with sqlite3.connect(path) as connection:
        sql = "SELECT request FROM calls WHERE state = ? AND role != 'student'"
        rows = connection.execute(sql, (state,)).fetchall()
    found = []
    for call in (json.loads(request) for [request] in rows):
        seed = call["sampling"]["seed"]
        seed = None if seed is None else derived_seed(seed, call["sample_index"])
        found.append((call["role"], json.dumps(call["messages"], sort_keys=True), seed))
    assert state != "answered" or len(set(found)) == len(found)
    return set(found)


class TestKill:
    concurrency = 4

    def start(self, folder, server, changes):
        command = [sys.executable, str(HERE / "served.py"), str(folder), server.base_url, str(self.concurrency)]
        command.append(json.dumps(changes))
        environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def check(self, kills, step, server, tmp_path, whole, changes=None):
        draw, folder, answered = random.Random(), tmp_path / "run", set()
        store = folder / "calls.sqlite"
        server.reply = by_the_rules
        server.delay = lambda body: draw.random() * 0.04  # slow enough for the run to see every kill
        for _ in range(kills):
            before = len(server.requests)
            process = self.start(folder, server, changes)
            target, moment = before + draw.randrange(step), draw.random() * 0.05
            while process.poll() is None and len(server.requests) <= target:
                time.sleep(0.001)
            time.sleep(moment)
            assert process.poll() is None, process.stderr.read().decode()
            process.send_signal(signal.SIGKILL)
            process.wait()
            time.sleep(0.05)  # the server counts what is on its way
            assert not answered & {sent(body) for body in server.requests[before:]}
            answered = stored(store, "answered")
        before = len(server.requests)
        process = self.start(folder, server, changes)
        assert process.wait() == 0, process.stderr.read().decode()
        assert not answered & {sent(body) for body in server.requests[before:]}

        assert results(folder) == whole
        asked, in_flight = Counter(map(sent, server.requests)), stored(store, "sent")
        assert set(asked) == stored(store, "answered") >= in_flight
        repeated = {call: count - 1 for call, count in asked.items() if count > 1}
        assert repeated.keys() <= in_flight and sum(repeated.values()) <= kills * self.concurrency

    def test_three_kills(self, server, tmp_path, whole):
        self.check(3, 40, server, tmp_path, whole[0])

    @pytest.mark.slow
    def test_twenty_kills(self, server, tmp_path, whole):
        self.check(20, 7, server, tmp_path, whole[0])

    @pytest.mark.slow
    def test_twenty_kills_with_all_stages(self, server, world, tmp_path):
        changes = dict(oversample=2, replay="share", stages=["sft", "dpo"], miner="both", loss_share=0.5)
        train = dict.fromkeys(changes["stages"], toy.train)
        world("whole", models=toy.models(student=toy.measured, train=train), **changes).run()
        self.check(20, 7, server, tmp_path, results(tmp_path / "whole"), changes)

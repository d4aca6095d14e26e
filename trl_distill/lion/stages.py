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

"""The stages of a round. Each takes what earlier ones have put into the folder, and puts its own results there."""

import json
import logging
import math
import shutil
from collections import Counter
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..chat import CallStore, FailedCall
from ..chat.models import CUT_OFF, derived_seed
from ..files import write_json, write_rows
from ..text import rouge_l
from .folder import LionFolder
from .generation import KINDS, generate, quotas
from .imitation import lock_of
from .mining import mine
from .pools import write_pool
from .reading import is_refusal
from .roles import Answers, Pool, Roles
from .similarity import UNICODE, SimilarityIndex


logger = logging.getLogger(__name__)


def training_rows(
    instructions: Pool, answers: Answers, keep_refusals: bool = False
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """
    Instructions and the teacher's answers as rows for [`~trl.SFTTrainer`], whose loss is on the completion.

    Returns:
        `tuple[list[dict], dict[str, int]]`: Conversational rows `prompt`, `completion` with the `id` of the
        instruction, and counts: `rows`, and what was left out: `failed`, `empty`, `cut_off`, `refused`.
    """
    rows, counts = [], Counter(rows=0, failed=0, empty=0, cut_off=0, refused=0)
    for instruction, answer in zip(instructions, answers, strict=True):
        if isinstance(answer, FailedCall):
            counts["failed"] += 1
        elif answer.finish_reason in CUT_OFF:
            counts["cut_off"] += 1
        elif not answer.text.strip():
            counts["empty"] += 1
        elif not keep_refusals and is_refusal(answer.text, instruction.text):
            counts["refused"] += 1
        else:
            counts["rows"] += 1
            prompt = [{"role": "user", "content": instruction.text}]
            completion = [{"role": "assistant", "content": answer.text}]
            rows.append({"id": instruction.id, "prompt": prompt, "completion": completion})
    return rows, dict(counts)


def preference_rows(pool: Pool, theirs: Answers, ours: Answers, keep_refusals: bool = False) -> list[dict[str, Any]]:
    """
    Rows for [`~trl.DPOTrainer`] with the `id` of the instruction: the teacher's answer chosen, the student's rejected,
    where both are whole and differ, and the teacher's is no refusal, unless these are kept.
    """
    rows = []
    for instruction, chosen, rejected in zip(pool, theirs, ours, strict=True):
        whole = [answer for answer in (chosen, rejected) if not isinstance(answer, FailedCall)]
        texts = [answer.text.strip() for answer in whole if answer.finish_reason not in CUT_OFF]
        if len(texts) == 2 and all(texts) and texts[0] != texts[1]:
            if not keep_refusals and is_refusal(texts[0], instruction.text):
                continue
            said = [[{"role": "assistant", "content": answer.text}] for answer in whole]
            prompt = [{"role": "user", "content": instruction.text}]
            rows.append({"id": instruction.id, "prompt": prompt, "chosen": said[0], "rejected": said[1]})
    return rows


def answers(folder: LionFolder, roles: Roles, store: CallStore, round: int) -> None:
    """The teacher answers what the round trains on."""
    manifest, pool = folder.begin(round), folder.to_answer(round)
    replies = roles.ask(store, roles.teacher, "teacher", ("answers", round), pool)
    rows, counts = training_rows(pool, replies, folder.config.keep_refusals)
    if not rows:
        raise ValueError(f"The teacher {roles.teacher.name} gave no answer to train on: {counts}.")
    write_rows(manifest.folder / "answers.jsonl", rows)
    folder.finish(round, "answers", ["answers.jsonl"], counts=counts)


def training(folder: LionFolder, roles: Roles, store: CallStore, round: int) -> None:
    """The student learns the answers."""
    goes_on = round > 0 and folder.config.init_from == "previous"
    start = str(folder.student(round - 1)) if goes_on else folder.config.student_model
    rows = folder.round(round) / "answers.jsonl"
    _train(folder, roles, round, "training", start, rows)


def dpo(folder: LionFolder, roles: Roles, store: CallStore, round: int) -> None:
    """The student learns to prefer the teacher's answers to its own where it was behind: both are in the store."""
    place, pool = ("dpo", round), folder.hard(round)
    theirs = roles.ask(store, roles.teacher, "teacher", place, pool)
    ours = roles.ask(store, roles.student(folder.student(round - 1)), "student", place, pool)
    rows = preference_rows(pool, theirs, ours, folder.config.keep_refusals)
    if not rows:
        raise ValueError(f"None of {len(pool)} hard instructions has two whole answers to make a pair for `dpo`.")
    path = folder.begin(round).folder / "pairs.jsonl"
    write_rows(path, rows)
    _train(folder, roles, round, "dpo", str(folder.student(round, "training")), path, counts={"rows": len(rows)})


def minillm(folder: LionFolder, roles: Roles, store: CallStore, round: int) -> None:
    """The student answers what the round is about and what is hard itself, and the teacher rates each token."""
    pool = {item.id: item for item in [*folder.to_answer(round), *folder.hard(round)]}.values()
    rows = [{"id": item.id, "prompt": [{"role": "user", "content": item.text}]} for item in pool]
    path = folder.begin(round).folder / "prompts.jsonl"
    write_rows(path, rows)
    _train(folder, roles, round, "minillm", str(folder.student(round, "training")), path, counts={"rows": len(rows)})


def _train(folder: LionFolder, roles: Roles, round: int, stage: str, start: str, rows: Path, **facts: Any) -> None:
    from ..model_card import add_loop

    manifest, student = folder.begin(round), folder.student(round, stage)
    work, made = manifest.folder / stage, folder.made_with(round, stage)
    note = student / "made_with.json"
    if not note.exists() or json.loads(note.read_text(encoding="utf-8")) != made:
        shutil.rmtree(student, ignore_errors=True)
    if not student.exists():  # else a run was killed between its last step and the record of it
        shutil.rmtree(work / "student", ignore_errors=True)
        work.mkdir(exist_ok=True)
        roles.train["sft" if stage == "training" else stage](start, rows, work / "student")
        name = Path(folder.path.name, student.relative_to(folder.path)).as_posix()
        rows_of_card = {"teacher": roles.teacher.name, "loop": f"Lion, round {round}"}
        add_loop(work / "student" / "README.md", name, "lion", rows_of_card)
        write_json(work / "student" / note.name, made)
        (work / "student").rename(student)
    shutil.rmtree(work, ignore_errors=True)
    lock_of(work).unlink(missing_ok=True)  # nobody waits: the call store lets one run into this folder
    results = [student.name, *([] if stage == "training" else [rows.name])]
    folder.finish(round, stage, results, start=folder.name_of(start), loss=losses_of(student), **facts)


def losses_of(student: Path) -> list[tuple[int, float]]:
    """Steps and losses of a training, where they are numbers, from the state that the trainer has left."""
    state = student / "trainer_state.json"
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.exists() else []
    return [(row["step"], row["loss"]) for row in history if math.isfinite(row.get("loss", math.nan))]


def discrimination(folder: LionFolder, roles: Roles, store: CallStore, round: int) -> None:
    """What is hard for the student of the last round in the Cache Pool."""
    manifest, known = folder.begin(round), folder.known_scores(round)
    place, student = ("discrimination", round), folder.student(round - 1)
    rows, facts = mine(roles, store, place, student, folder.to_score(round), list(known.values()))
    by_id = {row["id"]: row for row in rows}
    in_order = [by_id[item.id] for item in folder.pool(round - 1) if item.id in by_id]
    write_rows(manifest.folder / "scores.jsonl", in_order)
    folder.finish(round, "discrimination", ["scores.jsonl"], **facts)


def generation(folder: LionFolder, roles: Roles, store: CallStore, round: int) -> None:
    """New instructions, which replace the Train Pool and extend the Cache Pool, or are candidates for both."""
    config, manifest, pool = folder.config, folder.begin(round), folder.pool(round - 1)
    n_new = config.n_candidates
    wanted, seeds = quotas(n_new, config.hard_share), dict.fromkeys(KINDS, pool)
    if config.strategy == "adversarial":
        kinds = {row["id"]: row["kind"] for row in folder.scores(round)}
        seeds = {kind: [item for item in pool if kinds.get(item.id) == kind] for kind in KINDS}
        for kind, other in (KINDS, KINDS[::-1]):
            if wanted[kind] and not seeds[kind]:
                wanted = {kind: 0, other: n_new}
                logger.warning("No instruction is %s: all %d new ones are made from %s ones.", kind, n_new, other)
    texts = [item.text for item in [*pool, *folder.heldout]]
    sampling_seed = derived_seed(config.seed, round)
    with roles.generator as model:
        new, counts = generate(
            store.model(model, "generator", "generation", round),
            seeds,
            wanted,
            SimilarityIndex([*texts, *folder.avoided], config.rouge_threshold),
            round=round,
            seed=config.seed,
            sampling=config.sampling("generator", sampling_seed),
            filters=config.filters,
            max_attempts_factor=config.max_attempts_factor,
            prompts=config.prompts,
        )
    is_candidate = "selection" in folder.stages(round)
    files = {"candidates.jsonl": new} if is_candidate else _pools(folder, round, new)
    for name, content in files.items():
        write_pool(manifest.folder / name, content)
    counts |= {"wanted": wanted, "pool": len(pool)}
    folder.finish(round, "generation", list(files), counts=counts, sampling_seed=sampling_seed)


def _pools(folder: LionFolder, round: int, new: Pool) -> dict[str, Pool]:
    """The files of both pools with new instructions."""
    return {"cache_pool.jsonl": [*folder.pool(round - 1), *new], "train_pool.jsonl": new}


def selection(folder: LionFolder, roles: Roles, store: CallStore, round: int) -> None:
    """Of more new instructions than are used, those that are hardest for the student, who has seen none of them."""
    manifest, candidates = folder.begin(round), folder.pool(round, "candidates")
    rows, facts = mine(roles, store, ("selection", round), folder.student(round - 1), candidates)

    def hardness(row: dict[str, Any]) -> tuple[float, float]:
        gap = -math.inf if row["teacher"] is None else row["teacher"] - row["student"]
        return gap, row.get("loss") or -math.inf

    known = sorted((row for row in rows if row["kind"] not in (None, "below_floor")), key=hardness, reverse=True)
    taken = {row["id"] for row in known[: folder.config.n_new]}
    files = _pools(folder, round, [item for item in candidates if item.id in taken])
    for name, content in files.items():
        write_pool(manifest.folder / name, content)
    write_rows(manifest.folder / "selection.jsonl", [row | {"taken": row["id"] in taken} for row in rows])
    facts["counts"] |= {"candidates": len(candidates), "taken": len(taken)}
    folder.finish(round, "selection", [*files, "selection.jsonl"], **facts)


def evaluation(folder: LionFolder, roles: Roles, store: CallStore, round: int) -> None:
    """Student and teacher on the held-out slice: what the referee says, and how near the texts are."""
    manifest = folder.begin(round)
    place, role = ("evaluation", round), roles.evaluates
    compared = roles.compare(store, place, folder.student(round), folder.heldout, role)
    scored = [(teacher, student) for teacher, student, _ in compared.scores.values() if teacher is not None]
    gaps = [teacher - student for teacher, student in scored]
    facts: dict[str, Any] = {"counts": {"heldout": len(folder.heldout), "scored": len(scored)}}
    if scored:
        facts |= {
            "win_rate": mean(float(gap < 0) for gap in gaps),
            "tie_rate": mean(float(gap == 0) for gap in gaps),
            "loss_rate": mean(float(gap > 0) for gap in gaps),
            "mean_gap": mean(gaps),
            "mean_gap_se": stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None,
            "relative_score": sum(student for _, student in scored) / sum(teacher for teacher, _ in scored),
        }
    if compared.answers:
        facts["rouge_l_to_teacher"] = mean(
            rouge_l(ours, theirs, UNICODE) for theirs, ours in compared.answers.values()
        )
    facts |= {"unscored": dict(compared.unscored), "referee": compared.report}
    rows = [
        {"id": id, "teacher": teacher, "student": student, "unscored": reason, "answers": compared.answers.get(id)}
        for id, (teacher, student, reason) in sorted(compared.scores.items())
    ]
    write_json(manifest.folder / "evaluation.json", facts | {"scores": rows})
    folder.finish(round, "evaluation", ["evaluation.json"], **facts)

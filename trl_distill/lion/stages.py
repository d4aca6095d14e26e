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

import logging
import math
import shutil
from collections import Counter
from statistics import mean, stdev
from typing import Any

from ..chat import CallStore, FailedCall
from ..chat.models import CUT_OFF, derived_seed
from ..files import write_json, write_rows
from ..text import rouge_l
from .folder import LionFolder
from .generation import KINDS, generate, quotas
from .pools import Scored, partition, write_pool
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


def answers(folder: LionFolder, roles: Roles, store: CallStore, round: int) -> None:
    """The teacher answers what the round trains on."""
    manifest, pool = folder.begin(round), folder.to_answer(round)
    replies = roles.ask(store, roles.teacher, "teacher", ("answers", round), pool)
    rows, counts = training_rows(pool, replies, folder.config.keep_refusals)
    if not rows:
        raise ValueError(f"The teacher {roles.teacher.name} gave no answer to train on: {counts}.")
    write_rows(manifest.folder / "answers.jsonl", rows)
    manifest.finish("answers", ["answers.jsonl"], counts=counts)


def training(folder: LionFolder, roles: Roles, store: CallStore, round: int) -> None:
    """The student learns the answers."""
    manifest, student = folder.begin(round), folder.student(round)
    goes_on = round > 0 and folder.config.init_from == "previous"
    start = str(folder.student(round - 1)) if goes_on else folder.config.student_model
    work = manifest.folder / "training"
    if not student.exists():  # else a run was killed between its last step and the record of it
        shutil.rmtree(work / "student", ignore_errors=True)
        work.mkdir(exist_ok=True)
        roles.train(start, manifest.folder / "answers.jsonl", work / "student")
        (work / "student").rename(student)
    shutil.rmtree(work, ignore_errors=True)
    manifest.finish("training", ["student"], start=f"round_{round - 1}/student" if goes_on else start)


def discrimination(folder: LionFolder, roles: Roles, store: CallStore, round: int) -> None:
    """The student of the last round and the teacher answer the Cache Pool, and the referee scores both."""
    config, manifest = folder.config, folder.begin(round)
    pool, known = folder.to_score(round), folder.known_scores(round)
    compared = roles.compare(store, ("discrimination", round), folder.student(round - 1), pool)
    rows = []
    for instruction in folder.pool(round - 1):
        if instruction.id in known:
            rows.append(known[instruction.id])
        elif instruction.id in compared.scores:
            teacher, student, reason = compared.scores[instruction.id]
            row = {"id": instruction.id, "teacher": teacher, "student": student, "round": round, "unscored": reason}
            rows.append(row)
    scored = [Scored(row["id"], row["teacher"], row["student"]) for row in rows if row["teacher"] is not None]
    if not scored:
        raise ValueError(
            f"The referee {roles.referee.name} scored none of {len(rows)} instructions: {dict(compared.unscored)}. "
            f"Its replies are in {store.path}. Take another referee, or raise `referee_max_tokens`."
        )
    parts = partition(scored, config.tau, config.tau_quantile, config.min_teacher_score)
    kind = {id: name for name, ids in zip(("hard", "easy", "below_floor"), parts, strict=False) for id in ids}
    rows = [row | {"kind": kind.get(row["id"])} for row in rows]
    write_rows(manifest.folder / "scores.jsonl", rows)
    counts = Counter(row["kind"] or "unscored" for row in rows)
    manifest.finish(
        "discrimination",
        ["scores.jsonl"],
        tau=parts.tau if math.isfinite(parts.tau) else str(parts.tau),
        counts={name: counts[name] for name in ("hard", "easy", "below_floor", "unscored")},
        unscored=dict(compared.unscored),
        mean_gap=mean(item.gap for item in scored),
        referee=compared.report,
    )


def generation(folder: LionFolder, roles: Roles, store: CallStore, round: int) -> None:
    """New instructions, which replace the Train Pool and extend the Cache Pool."""
    config, manifest, pool = folder.config, folder.begin(round), folder.pool(round - 1)
    wanted, seeds = quotas(config.n_new, config.hard_share), dict.fromkeys(KINDS, pool)
    if config.strategy == "adversarial":
        kinds = {row["id"]: row["kind"] for row in folder.scores(round)}
        seeds = {kind: [item for item in pool if kinds.get(item.id) == kind] for kind in KINDS}
        for kind, other in (KINDS, KINDS[::-1]):
            if wanted[kind] and not seeds[kind]:
                wanted = {kind: 0, other: config.n_new}
                said = "No instruction is %s: all %d new ones are made from %s ones."
                logger.warning(said, kind, config.n_new, other)
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
        )
    files = {"cache_pool.jsonl": [*pool, *new], "train_pool.jsonl": new}
    for name, content in files.items():
        write_pool(manifest.folder / name, content)
    counts |= {"wanted": wanted, "pool": len(pool)}
    manifest.finish("generation", list(files), counts=counts, sampling_seed=sampling_seed)


def evaluation(folder: LionFolder, roles: Roles, store: CallStore, round: int) -> None:
    """Student and teacher on the held-out slice: what the referee says, and how near the texts are."""
    manifest = folder.begin(round)
    compared = roles.compare(store, ("evaluation", round), folder.student(round), folder.heldout)
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
        facts["rouge_l_to_teacher"] = mean(rouge_l(ours, theirs, UNICODE) for theirs, ours in compared.answers)
    facts |= {"unscored": dict(compared.unscored), "referee": compared.report}
    rows = [
        {"id": id, "teacher": teacher, "student": student, "unscored": reason}
        for id, (teacher, student, reason) in sorted(compared.scores.items())
    ]
    write_json(manifest.folder / "evaluation.json", facts | {"scores": rows})
    manifest.finish("evaluation", ["evaluation.json"], **facts)

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

"""The arms of the second laboratory: each use of wrong rationales, and the controls."""

import shutil
from collections.abc import Callable
from dataclasses import replace

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import DynamicCache, Qwen2ForCausalLM

from benchmarks.laboratory import Clock
from trl_distill import NCEConfig, NCETrainer, calibration_weights, load_nat
from trl_distill.generation import pad_ids

from .arms import trainable
from .gates import GatePerHead, PushedAway
from .second import Run, SecondLaboratory, first_mistakes, lora


def kept(run: Run, arm: str):
    """The student of another arm, to be trained on. Trained now, if it is not there yet."""
    run = replace(run, arm=arm, rate=run.rates[arm])
    folder = run.folder(arm, run.rate)
    if not folder.exists():
        train(run)
    if run.full:
        return Qwen2ForCausalLM.from_pretrained(str(folder))
    return PeftModel.from_pretrained(run.laboratory.base(), str(folder), is_trainable=True)


def rft(run: Run, rows_of: Callable | None = None, **values):
    """
    The student's own right samples join the teacher's, round by round. `rows_of` makes rows for training of all wrong
    and all right ones, the student's own among them; by default wrong ones are left out.
    """
    model, rounds = kept(run, "cot kd"), run.laboratory.rounds
    right, wrong = ({(row["prompt"], row["completion"]): row for row in rows} for rows in (run.right, run.wrong))
    for number in range(rounds):
        for row in run.own(model, number):
            (right if row["label"] else wrong)[row["prompt"], row["completion"]] = row
        rows = rows_of(list(wrong.values()), list(right.values())) if rows_of else list(right.values())
        model = run.sft(model, rows, run.laboratory.steps // rounds, **values)
    return model


def found(run: Run, rows_of: Callable) -> Callable:
    """`rows_of` with first mistakes that roll-outs of the student of CoT KD find; rows without one are left out."""
    known, model = {}, kept(run, "cot kd").eval()

    def key(row: dict) -> tuple[str, str]:
        return row["prompt"], row["completion"]

    def rows(wrong: list[dict] | None = None, right: list[dict] | None = None) -> list[dict]:
        wrong = run.wrong if wrong is None else wrong
        new = [row for row in wrong if key(row) not in known]
        known.update(zip(map(key, new), first_mistakes(run, model, new), strict=True))
        wrong = [row for row in wrong if known[key(row)] is not None]
        return rows_of(wrong, right, lambda row: known[key(row)])

    return rows


def nsr(run: Run):
    """Own samples, the right ones with the weight 0.1, the wrong ones with the weight -1."""
    model, rounds = kept(run, "cot kd"), run.laboratory.rounds
    for number in range(rounds):
        rows, steps = run.own(model, number), run.laboratory.steps // rounds
        model = run.sft(model, rows, steps, objective="nt", negative_weight=10.0)
    return model


def pairs_of(rows: list[dict], right: list[dict]) -> list[dict]:
    """Each wrong answer beside a right one to the same question: the student's own, or else the teacher's."""
    chosen = {row["prompt"]: row["completion"] for row in [*right, *(row for row in rows if row["label"])]}
    return [
        {"prompt": row["prompt"], "chosen": chosen[row["prompt"]], "rejected": row["completion"]}
        for row in rows
        if not row["label"] and row["prompt"] in chosen
    ]


def pairs(run: Run):
    """Rounds of preference pairs of own samples."""
    model, rounds = kept(run, "cot kd"), run.laboratory.rounds
    for number in range(rounds):
        found, steps = pairs_of(run.own(model, number), run.right), run.laboratory.steps // rounds
        model = run.dpo(model, found, steps) if found else run.sft(model, run.right, steps)
    return model


def negative_then_positive(run: Run):
    """The negative adapter is trained on with right rows."""
    folder = str(run.negative())
    model = PeftModel.from_pretrained(run.laboratory.base(), folder, is_trainable=True)
    return run.sft(model, run.right, 2 * run.laboratory.steps)


def zero(run: Run):
    """NAT beside an adapter that adds nothing: B of a fresh one is 0."""
    folder = run.laboratory.folder(run.seed, "zero")
    get_peft_model(run.laboratory.base(), lora(run.laboratory.rank), adapter_name="neg").save_pretrained(folder)
    return run.nat(folder)


def augmented(run: Run, model) -> list[dict]:
    """The teacher's right rows, and the right ones of a student's samples to the same questions."""
    laboratory, questions = run.laboratory, run.laboratory.asked(run.seed)
    drawn = laboratory.draw(model, questions, laboratory.augmentation, seed=run.seed, logprobs=False)
    known = {(row["prompt"], row["completion"]) for row in run.right}
    new = [row for row in laboratory.label(questions, drawn) if row["label"]]
    return run.right + [row for row in new if (row["prompt"], row["completion"]) not in known]


def from_the_base(run: Run):
    """RFT in one round, whose rows a fresh adapter learns."""
    return run.sft(run.fresh(), augmented(run, kept(run, "cot kd").eval()), 2 * run.laboratory.steps)


def nce(run: Run, objective: str | None):
    """
    A fresh adapter learns the teacher's right rows and NAT's own, weighted by what the negative adapter knows; without
    an objective, with one weight.
    """
    laboratory, folder = run.laboratory, run.folder("nat", run.rates["nat"])
    if not folder.exists():
        train(replace(run, arm="nat", rate=run.rates["nat"]))
    nat = load_nat(laboratory.base(), str(folder))
    rows = augmented(run, nat)
    if objective is None:
        return run.sft(run.fresh(), rows, 2 * laboratory.steps)
    args = NCEConfig(**run.settings(2 * laboratory.steps, completion_only_loss=True, objective=objective))
    weighted = calibration_weights(nat, Dataset.from_list(rows), laboratory.tokenizer, args)
    model = nat if objective == "kd" else laboratory.base()
    common = {"processing_class": laboratory.tokenizer, "peft_config": lora(laboratory.rank)}
    return run.train(NCETrainer(model, args=args, train_dataset=weighted, **common))


class Contrast:
    """Greedy answers by the logits of one adapter minus a share of another's, with no training."""

    def __init__(self, model: PeftModel, share: float):
        self.model, self.share = model.eval(), share

    @torch.no_grad()
    def answers(self, laboratory: SecondLaboratory, questions: list[str]) -> list[bool]:
        tokenizer, model = laboratory.tokenizer, self.model
        ids, mask = pad_ids([tokenizer(question)["input_ids"] for question in questions], 0, "left", model.device)
        caches, written = {name: DynamicCache() for name in ("default", "neg")}, []
        for _ in range(laboratory.pupil.max_completion_length):
            logits = {}
            for name, cache in caches.items():
                model.set_adapter(name)
                positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                outputs = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
                logits[name] = outputs.logits[:, -1]
            ids = (logits["default"] - self.share * logits["neg"]).argmax(-1, keepdim=True)
            written.append(ids)
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
        rows = zip(questions, torch.cat(written, 1).tolist(), strict=True)
        ends = tokenizer.eos_token_id
        return [
            laboratory.pupil.correct(question, tokenizer.decode(row[: row.index(ends)] if ends in row else row))
            for question, row in rows
        ]


def contrast(run: Run):
    """The student of CoT KD, longer, minus a share of the negative adapter: the `rate`."""
    model = kept(run, "cot kd, longer")
    model.load_adapter(str(run.negative()), "neg")
    return Contrast(model, run.rate)


def going_on(rows_of: Callable[[Run], list[dict]], **values) -> Callable:
    """An arm that goes on from the student of CoT KD with other rows."""
    return lambda run: run.sft(kept(run, "cot kd"), rows_of(run), **values)


def pushed_away(run: Run):
    """NAT that is held away from what its negative adapter says on wrong rows."""
    return run.nat(run.negative(), lambda *args, **kwargs: PushedAway(run.wrong, *args, **kwargs))


ON_WRONG_STEPS = "negative on wrong steps"
UL, RIGHT_ONLY, REDI = {"objective": "ul"}, {"objective": "ul", "negative_weight": 0.0}, {"objective": "redi"}
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # of learning rates
FROM_BASE, GOING_ON, SHARES = GRID[3:6], GRID[2:5], (0.1, 0.3, 0.5)
# What each arm does, and what is tried on the pilot seed: learning rates, or shares
ARMS: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "cot kd": (lambda run: run.sft(run.fresh(), run.right), FROM_BASE),
    "cot kd, longer": (going_on(lambda run: run.right), GOING_ON),
    "rft": (rft, GOING_ON),
    "pairs": (pairs, GOING_ON),
    "ul": (going_on(Run.balanced, **UL), GOING_ON),
    "redi": (going_on(Run.balanced, **REDI), GOING_ON),
    "nsr": (nsr, GOING_ON),
    "right steps": (going_on(Run.marked, **RIGHT_ONLY), GOING_ON),
    "right steps, ul": (going_on(Run.marked, **UL), GOING_ON),
    "right steps, redi": (going_on(Run.marked, **REDI), GOING_ON),
    "first wrong token, ul": (going_on(Run.to_the_first_wrong_token, **UL), GOING_ON),
    "first wrong token, redi": (going_on(Run.to_the_first_wrong_token, **REDI), GOING_ON),
    "from the first mistake, ul": (going_on(lambda run: run.balanced(run.from_the_first_mistake()), **UL), GOING_ON),
    "from the first mistake, redi": (
        going_on(lambda run: run.balanced(run.from_the_first_mistake()), **REDI),
        GOING_ON,
    ),
    "right steps, rolled out": (going_on(lambda run: found(run, run.marked)(), **RIGHT_ONLY), GOING_ON),
    "first wrong token, rolled out, ul": (
        going_on(lambda run: found(run, run.to_the_first_wrong_token)(), **UL),
        GOING_ON,
    ),
    "rft, right steps": (lambda run: rft(run, run.marked, **RIGHT_ONLY), GOING_ON),
    "rft, first wrong token, ul": (lambda run: rft(run, run.to_the_first_wrong_token, **UL), GOING_ON),
    "rft, first wrong token, rolled out, ul": (
        lambda run: rft(run, found(run, run.to_the_first_wrong_token), **UL),
        GOING_ON,
    ),
    "contrast": (contrast, SHARES),
    "negative then positive": (negative_then_positive, FROM_BASE),
    "nat": (lambda run: run.nat(run.negative()), FROM_BASE),
    "nat, zero adapter": (zero, FROM_BASE),
    "nat, negative on wrong steps": (
        lambda run: run.nat(run.negative(run.from_the_first_mistake(), ON_WRONG_STEPS)),
        FROM_BASE,
    ),
    "nat, pushed away": (pushed_away, FROM_BASE),
    "nat identity": (lambda run: run.nat(run.negative(), integration_value="identity"), FROM_BASE),
    "nat identity, a gate per head": (
        lambda run: run.nat(run.negative(), GatePerHead, integration_value="identity"),
        FROM_BASE,
    ),
    "lora of nat's size": (
        lambda run: run.sft(run.fresh(run.laboratory.rank_of_nats_size), run.right, 2 * run.laboratory.steps),
        FROM_BASE,
    ),
    "mix": (
        lambda run: run.sft(run.fresh(), run.right + run.wrong, 2 * run.laboratory.steps, objective="mix"),
        FROM_BASE,
    ),
    "nce weighted_ce": (lambda run: nce(run, "weighted_ce"), FROM_BASE),
    "nce kd": (lambda run: nce(run, "kd"), FROM_BASE),
    "nce, one weight": (lambda run: nce(run, None), FROM_BASE),
    "rft, from the base": (from_the_base, FROM_BASE),
}
CONTROLS = (
    "cot kd", "cot kd, longer", "rft", "mix", "right steps", "right steps, rolled out", "rft, right steps",
    "rft, from the base", "nce, one weight", "negative then positive", "nat, zero adapter", "lora of nat's size",
)  # fmt: skip
KEPT = ("cot kd", "cot kd, longer", "nat", "rft", "first wrong token, ul")  # students that others need, or that vote
FULL = ["cot kd", "cot kd, longer", "rft", "pairs", "ul", "redi", "right steps", "right steps, ul"]
FULL += ["first wrong token, ul"]


def train(run: Run) -> dict:
    """Trains one arm, and scores what was best of it."""
    clock, laboratory = Clock(), run.laboratory
    about = {"full": run.full, "share": run.share, "seed": run.seed, "arm": run.arm, "rate": run.rate}
    questions = laboratory.test(run.seed)
    model = ARMS[run.arm][0](run)
    if isinstance(model, Contrast):
        return about | {"right": model.answers(laboratory, questions)} | clock.facts()
    run.best.put_back(model)
    if run.arm in KEPT:
        folder = run.folder(run.arm, run.rate)
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
    return about | {
        "trainable_parameters": trainable(model),
        "optimizer_steps": run.best.step,
        "stopped_at": run.best.at,
        "held_out": run.best.right / laboratory.held_out_questions,
        "right": laboratory.accuracy(model, questions),
        **clock.facts(),
    }

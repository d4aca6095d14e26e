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

"""The loop of AI feedback: who answers which prompt, what the judges say, and the files that come out."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..chat import (
    BaseChatModel,
    BatchChatModel,
    CallStore,
    ChatRequest,
    Completion,
    FailedCall,
    FunctionChatModel,
    Judge,
    JudgeItem,
    Missing,
    judge_report,
)
from ..extras import warn_of_pictures
from ..files import load_rows, write_json, write_rows
from ..row_formats import trl_rows
from .answers import Ask, Candidate, assign, candidates_of, count_answers, judged, rating_row, with_principle
from .feedback_config import FeedbackConfig, check_models
from .policies import preference_pairs, sft_rows
from .presets import read_aspects, read_principles
from .prompts import read_prompts
from .report import draw_report, model_statistics, pair_statistics, save_picture


_PROMPTS_AT_A_TIME = 1000  # for a judge: its requests repeat each answer for every aspect and order


def run_feedback(
    config: FeedbackConfig,
    *,
    prompts: Iterable[dict[str, Any] | str] | None = None,
    responders: Sequence[BaseChatModel] | None = None,
    student: BaseChatModel | None = None,
    judges: Sequence[BaseChatModel] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Let models answer prompts and judges score the answers, and make preference pairs of them.

    `config.output_dir` then holds `pairs.jsonl` (rows for [`~trl.DPOTrainer`]), `sft.jsonl` (the chosen answers, rows
    for [`~trl.SFTTrainer`]), `ratings.jsonl` (every answer with all its ratings, which `trl-distill binarize` reads),
    `report.json`, `report.png` and `calls.sqlite` with every call. The same run again asks nothing twice: it goes on
    where it was stopped, and writes the same files. With other settings it reuses the calls that are the same.

    One model works at a time: each answers all its prompts before the next, and a local one is in memory meanwhile.

    Args:
        config ([`FeedbackConfig`]):
            All settings.
        prompts (`Iterable[dict or str]`, *optional*):
            Rows, or texts, in place of those of `config.dataset_name`.
        responders, judges (`list[BaseChatModel]`, *optional*):
            Models in place of those of the entries in `config`.
        student ([`BaseChatModel`], *optional*):
            The same for the student.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show progress bars.

    Returns:
        `dict[str, Any]`: What `report.json` holds. With `config.dry_run` instead `{"missing": [...]}`: for each model
        the calls that are still to be made, and their estimated tokens and cost.

    Raises:
        `ValueError`: If a setting or a row is wrong, a judge gives `max_unreadable` replies in a row that cannot be
            read, or no pair comes out.
        `OSError`: If a file cannot be written, or a server answers nobody.
        [`~trl_distill.chat.BudgetReached`]: If `max_calls` or `budget_usd` is reached. A higher limit goes on.

    Example:

    ```python
    from trl_distill.chat import EndpointChatModel
    from trl_distill.zephyr import FeedbackConfig, run_feedback

    models = [EndpointChatModel(name, base_url="http://localhost:8000/v1") for name in ("model-a", "model-b")]
    config = FeedbackConfig(output_dir="feedback", num_answers=2, decontaminate=[])
    report = run_feedback(config, prompts=["Why is the sky blue?"], responders=models, judges=models[:1])
    ```
    """
    pool = config.make("responders") if responders is None else list(responders)
    students = config.make("student") if student is None else [student]
    judges = config.make("judges") if judges is None else list(judges)
    check_models([*pool, *students], judges)
    if not pool and not students and not config.completions_column:
        raise ValueError("Nobody answers: set `responders`, `student`, or `completions_column` for ready answers.")
    if not judges:
        raise ValueError("Nobody judges: set `judges`.")
    if config.output_dir is None:
        raise ValueError("No place for the results: set `output_dir`.")
    if prompts is None:
        if config.dataset_name is None:
            raise ValueError("No prompts: set `dataset_name` to a file, a folder or a data set of the Hub.")
        prompts = load_rows(config.dataset_name, config.dataset_config, config.dataset_split)
        prompts = trl_rows(prompts, "prompt", config.prompt_column)
    rows = ({config.prompt_column: row} if isinstance(row, str) else row for row in prompts)
    items, prompt_counts = read_prompts(rows, config)

    path = Path(config.output_dir) / "calls.sqlite"
    if config.dry_run and not path.is_file():  # nothing to look up, for which local models would be downloaded
        pool, students, judges = ([stand_in(model) for model in models] for models in (pool, students, judges))
    if not config.dry_run:
        warn_of_pictures()
    with open_store(path, config, progress) as store:
        run = _Run(config, store, items, pool, students, judges)
        if config.dry_run:
            return {"missing": run.missing()}
        ratings, judge_reports = run.judge(run.answer())
        report = {
            "settings": config.settings(),
            "prompts": prompt_counts,
            "answers": count_answers(ratings),
            "judges": judge_reports,
            "ledger": [row._asdict() for row in store.ledger()],
        }
    return _finish(config, ratings, report)


def stand_in(model: BaseChatModel) -> BaseChatModel:
    """A model of the same name and prices that is not asked."""
    stand_in = FunctionChatModel(lambda request: "", model.name)
    stand_in.prices = model.prices
    return stand_in


@contextmanager
def open_store(path: Path, config: FeedbackConfig, progress: bool) -> Iterator[CallStore]:
    limits = dict(max_calls=config.max_calls, budget_usd=config.budget_usd, progress=progress)
    with tempfile.TemporaryDirectory() as folder:
        if config.dry_run:  # leaves nothing behind, waits for no other run, and no limit ends it
            limits = {"read_only": path.is_file()}
            path = path if path.is_file() else Path(folder) / path.name
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        with CallStore(path, **limits) as store:
            yield store


class _Run:
    """The stages of a run, each of which knows the results of the one before."""

    def __init__(
        self,
        config: FeedbackConfig,
        store: CallStore,
        prompts: list[JudgeItem],
        pool: list[BaseChatModel],
        students: list[BaseChatModel],
        judges: list[BaseChatModel],
    ):
        self.config, self.prompts = config, prompts
        answering = [*pool, *students]
        check_identities(answering, "With more `num_answers` than models it answers a prompt several times.")
        check_identities(judges, "Two names would give its ratings twice the weight.")
        # All are opened before the first call, so that a mistake in the last one costs nothing.
        self.responders = [(model, store.model(model, role="responder", stage="answers")) for model in answering]
        self.judges = []
        for model in judges:
            asked = store.model(model, role="judge", stage="ratings")
            judge = Judge(
                asked,
                mode=config.judge_mode,
                aspects=read_aspects(config.aspects),
                scale=tuple(config.judge_scale),
                num_orders=config.judge_orders,
                max_reasks=config.max_reasks,
                max_unreadable=config.max_unreadable,
                temperature=config.judge_temperature,
                max_tokens=config.judge_max_tokens,
                seed=config.seed,
                prefix="judge_",
            )
            self.judges.append((model, asked, judge))
        names, own = [model.name for model in pool], students[0].name if students else None
        draws = dict(num_answers=config.num_answers, principles=read_principles(config.principles), seed=config.seed)
        self.asks = [assign(prompt.id, names, own, **draws) if answering else [] for prompt in prompts]

    def requests(self, name: str) -> dict[tuple[int, Ask], ChatRequest]:
        """All that one model is to answer, by the number of the prompt."""
        sampling = self.config.sampling()
        return {
            (i, ask): ChatRequest(with_principle(prompt.prompt, ask.principle), sampling, ask.sample_index)
            for i, (prompt, asks) in enumerate(zip(self.prompts, self.asks, strict=True))
            for ask in asks
            if ask.model == name
        }

    def candidates(self, given: dict[tuple[int, Ask], Completion | FailedCall]) -> list[list[Candidate]]:
        """All answers to each prompt."""
        rules = dict(keep_truncated=self.config.keep_truncated, dedupe_identical=self.config.dedupe_identical)
        return [
            candidates_of(prompt, [(ask, given[i, ask]) for ask in asks], **rules)
            for i, (prompt, asks) in enumerate(zip(self.prompts, self.asks, strict=True))
        ]

    def answer(self) -> list[list[Candidate]]:
        """Let every model answer its prompts, one after the other."""
        given = {}
        for model, asked in self.responders:
            requests = self.requests(model.name)
            with model:
                given |= zip(requests, asked.complete(list(requests.values())), strict=True)
        return self.candidates(given)

    def items(self, candidates: list[list[Candidate]]) -> dict[int, JudgeItem]:
        """What the judges are asked, by the number of the prompt."""
        return {
            i: replace(self.prompts[i], answers=[c["text"] for c in shown], models=[c["model"] for c in shown])
            for i, of_prompt in enumerate(candidates)
            if (shown := judged(of_prompt))
        }

    def judge(self, candidates: list[list[Candidate]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The rows of `ratings.jsonl`, and a report on each judge."""
        items = self.items(candidates)
        judgements, reports = {}, {}
        for model, _, judge in self.judges:
            with model:
                results = [result for part in _parts(items, model) for result in judge.judge(part)]
            judgements[model.name] = dict(zip(items, results, strict=True))
            reports[model.name] = judge_report(list(items.values()), results, judge_name=model.name)
        rows = [
            rating_row(prompt, of_prompt, {name: known[i] for name, known in judgements.items() if i in known})
            for i, (prompt, of_prompt) in enumerate(zip(self.prompts, candidates, strict=True))
        ]
        return rows, reports

    def missing(self) -> list[dict[str, Any]]:
        """What is still to be asked: exact for the responders, without re-asks for the judges."""
        rows, given = [], {}
        for model, asked in self.responders:
            requests = self.requests(model.name)
            missing = asked.missing(list(requests.values()))
            rows.append({"role": "responder", "model": model.name, **missing._asdict()})
            if missing.calls:  # texts of the longest length stand for the answers
                long = "x" * self.config.max_tokens
                given |= {(i, ask): Completion(f"{ask.model} {ask.sample_index} {long}") for i, ask in requests}
            else:
                given |= zip(requests, asked.complete(list(requests.values())), strict=True)
        items = self.items(self.candidates(given))
        for model, asked, judge in self.judges:
            parts = [asked.missing(judge.requests(part)) for part in _parts(items, model)]
            *counts, costs = zip(*parts, strict=True) if parts else [()] * 4
            total = Missing(*map(sum, counts), None if None in costs else sum(costs))
            rows.append({"role": "judge", "model": model.name, **total._asdict()})
        return rows


def _parts(items: dict[int, JudgeItem], model: BaseChatModel) -> Iterator[list[JudgeItem]]:
    # Who answers within a day is asked all at once
    size = len(items) or 1 if isinstance(model, BatchChatModel) else _PROMPTS_AT_A_TIME
    for start in range(0, len(items), size):
        yield list(items.values())[start : start + size]


def check_identities(models: Iterable[BaseChatModel], why: str) -> None:
    known: dict[str, str] = {}
    for model in models:
        other = known.setdefault(json.dumps(model.identity, sort_keys=True), model.name)
        if other != model.name:
            raise ValueError(f"{other} and {model.name} are one model, with the same answers. Name it once. {why}")


def _finish(config: FeedbackConfig, ratings: list[dict[str, Any]], report: dict[str, Any]) -> dict[str, Any]:
    """Make the pairs, and write all files."""
    pairs, counts = preference_pairs(ratings, **config.policy())
    report |= {"pairs": counts, "pair_statistics": pair_statistics(pairs)}
    report["models"] = model_statistics(ratings, pairs)
    folder = Path(config.output_dir)
    write_rows(folder / "ratings.jsonl", ratings)
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "sft.jsonl", sft_rows(pairs))
    write_json(folder / "report.json", report)
    (folder / "report.png").unlink(missing_ok=True)  # of an older run
    if not pairs:
        said = ", ".join(f"{name} {count}" for name, count in (report["answers"] | counts).items() if count)
        raise ValueError(f"No pair came out ({said}). Look at `unscored` in {folder / 'ratings.jsonl'}.")
    save_picture(folder / "report.png", draw_report, report, pairs)
    return report

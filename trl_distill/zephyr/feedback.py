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
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..chat import (
    BaseChatModel,
    CallStore,
    ChatRequest,
    Completion,
    FailedCall,
    FunctionChatModel,
    Judge,
    JudgeItem,
    Judgement,
    Missing,
    judge_report,
)
from ..files import load_rows, whole_path, write_json, write_rows
from .assignment import Ask, assign, with_principle
from .feedback_config import FeedbackConfig, check_models
from .policies import preference_pairs, sft_rows
from .presets import read_aspects, read_principles
from .prompts import FeedbackPrompt, read_prompts
from .ratings import Answer, answers_of, count_answers, rating_row
from .report import draw_report, model_statistics, pair_statistics


logger = logging.getLogger(__name__)

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

    `config.output_dir` then holds `pairs.jsonl` (rows for [`~trl.DPOTrainer`]), `sft.jsonl` (the chosen answers, rows for
    [`~trl.SFTTrainer`]), `ratings.jsonl` (every answer with all its ratings, which `trl-distill binarize` reads),
    `report.json`, `report.png` and `calls.sqlite` with every call. The same run again asks nothing twice: it goes on where
    it was stopped, and writes the same files. With other settings it reuses the calls that are the same.

    One model works at a time: each answers all its prompts before the next, and a local one is in memory only meanwhile.

    Args:
        config ([`FeedbackConfig`]):
            All settings.
        prompts (`Iterable[dict or str]`, *optional*):
            Rows, or texts, in place of those of `config.dataset_name`.
        responders (`list[BaseChatModel]`, *optional*), student ([`BaseChatModel`], *optional*), judges
        (`list[BaseChatModel]`, *optional*):
            Models in place of those of the entries in `config`.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show progress bars.

    Returns:
        `dict[str, Any]`: What `report.json` holds. With `config.dry_run` instead `{"missing": [...]}`: for each model the
        calls that are still to be made, and their estimated tokens and cost.

    Raises:
        `ValueError`: If a setting or a row is wrong, or no pair comes out.
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
    responders = list(config.make_responders() if responders is None else responders)
    student = config.make_student() if student is None else student
    judges = list(config.make_judges() if judges is None else judges)
    check_models(responders, student, judges)
    if not responders and student is None and not config.completions_column:
        raise ValueError("Nobody answers: set `responders`, `student`, or `completions_column` for ready answers.")
    if not judges:
        raise ValueError("Nobody judges: set `judges`.")
    if config.output_dir is None:
        raise ValueError("No place for the results: set `output_dir`.")
    if prompts is None:
        if config.dataset_name is None:
            raise ValueError("No prompts: set `dataset_name` to a file, a folder or a data set of the Hub.")
        prompts = load_rows(config.dataset_name, config.dataset_config, config.dataset_split)
    rows = ({config.prompt_column: row} if isinstance(row, str) else row for row in prompts)
    prompts, prompt_counts = read_prompts(rows, config)

    if config.dry_run and not _store_path(config).is_file():
        # Nothing is stored, so there is nothing to look up, for which local models would be downloaded and read.
        responders, judges = list(map(_stand_in, responders)), list(map(_stand_in, judges))
        student = None if student is None else _stand_in(student)
    with _open_store(config, progress) as store:
        run = _Run(config, store, prompts, responders, student, judges)
        if config.dry_run:
            return {"missing": run.missing()}
        answers = run.answer()
        ratings, judge_reports = run.judge(answers)
        ledger = [row._asdict() for row in store.ledger()]
    report = {
        "settings": config.settings(),
        "prompts": prompt_counts,
        "answers": count_answers(ratings),
        "judges": judge_reports,
        "ledger": ledger,
    }
    return _finish(config, ratings, report)


def _store_path(config: FeedbackConfig) -> Path:
    return Path(config.output_dir) / "calls.sqlite"


def _stand_in(model: BaseChatModel) -> BaseChatModel:
    """A model of the same name and prices that is not asked."""
    stand_in = FunctionChatModel(lambda request: "", model.name)
    stand_in.prices = model.prices
    return stand_in


@contextmanager
def _open_store(config: FeedbackConfig, progress: bool) -> Iterator[CallStore]:
    path = _store_path(config)
    if config.dry_run:  # leaves nothing behind, and no limit ends it
        with tempfile.TemporaryDirectory() as folder:
            with CallStore(path if path.is_file() else Path(folder) / path.name) as store:
                yield store
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with CallStore(path, max_calls=config.max_calls, budget_usd=config.budget_usd, progress=progress) as store:
        yield store


class _Run:
    """The stages of a run, each of which knows the results of the one before."""

    def __init__(
        self,
        config: FeedbackConfig,
        store: CallStore,
        prompts: list[FeedbackPrompt],
        responders: list[BaseChatModel],
        student: BaseChatModel | None,
        judges: list[BaseChatModel],
    ):
        self.config, self.prompts = config, prompts
        self.responders = {model.name: model for model in [*responders, *([student] if student is not None else [])]}
        _check_identities(
            self.responders.values(), "With more `num_answers` than models it answers a prompt several times."
        )
        _check_identities(judges, "Two names would give its ratings twice the weight.")
        # All are opened before the first call, so that a mistake in the last one costs nothing.
        self.ask = {
            name: store.model(model, role="responder", stage="answers") for name, model in self.responders.items()
        }
        self.judge_models = {model.name: model for model in judges}
        self.judge_asks = {model.name: store.model(model, role="judge", stage="ratings") for model in judges}
        self.judges = {
            name: Judge(
                model,
                mode=config.judge_mode,
                aspects=read_aspects(config.aspects),
                scale=tuple(config.judge_scale),
                num_orders=config.judge_orders,
                max_reasks=config.max_reasks,
                max_tokens=config.judge_max_tokens,
                seed=config.seed,
            )
            for name, model in self.judge_asks.items()
        }
        pool, own = [model.name for model in responders], None if student is None else student.name
        draws = dict(num_answers=config.num_answers, principles=read_principles(config.principles), seed=config.seed)
        self.asks = [assign(prompt.id, pool, own, **draws) if pool or own else [] for prompt in prompts]

    def requests(self, name: str) -> dict[tuple[int, Ask], ChatRequest]:
        """All that one model is to answer, by the number of the prompt."""
        sampling = self.config.sampling()
        return {
            (i, ask): ChatRequest(with_principle(prompt.messages, ask.principle), sampling, ask.sample_index)
            for i, (prompt, asks) in enumerate(zip(self.prompts, self.asks, strict=True))
            for ask in asks
            if ask.model == name
        }

    def complete(self, name: str) -> dict[tuple[int, Ask], Completion | FailedCall]:
        """The answers of one model."""
        requests = self.requests(name)
        return dict(zip(requests, self.ask[name].complete(list(requests.values())), strict=True))

    def answers(self, given: dict[tuple[int, Ask], Completion | FailedCall]) -> list[list[Answer]]:
        """All answers to each prompt."""
        return [
            answers_of(
                prompt,
                [(ask, given[i, ask]) for ask in asks],
                keep_truncated=self.config.keep_truncated,
                dedupe_identical=self.config.dedupe_identical,
            )
            for i, (prompt, asks) in enumerate(zip(self.prompts, self.asks, strict=True))
        ]

    def answer(self) -> list[list[Answer]]:
        """Let every model answer its prompts, one model after the other."""
        given = {}
        for name, model in self.responders.items():
            with model:
                given |= self.complete(name)
        return self.answers(given)

    def items(self, answers: list[list[Answer]]) -> dict[int, JudgeItem]:
        """What the judges are asked, by the number of the prompt."""
        items = {}
        for i, (prompt, of_prompt) in enumerate(zip(self.prompts, answers, strict=True)):
            left = [answer for answer in of_prompt if answer.dropped is None]
            if left:
                texts, models = [answer.text for answer in left], [answer.model for answer in left]
                items[i] = JudgeItem(prompt.id, prompt.messages, texts, models, prompt.reference)
        return items

    def judge(self, answers: list[list[Answer]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The rows of `ratings.jsonl`, and a report on each judge."""
        items = self.items(answers)
        judgements: dict[str, dict[int, Judgement]] = {}
        reports = {}
        for name, judge in self.judges.items():
            with self.judge_models[name]:
                results = [result for part in _parts(items.values()) for result in judge.judge(part)]
            judgements[name] = dict(zip(items, results, strict=True))
            reports[name] = judge_report(list(items.values()), results, judge_name=name)
        rows = [
            rating_row(prompt, of_prompt, {name: known[i] for name, known in judgements.items() if i in known})
            for i, (prompt, of_prompt) in enumerate(zip(self.prompts, answers, strict=True))
        ]
        return rows, reports

    def missing(self) -> list[dict[str, Any]]:
        """What is still to be asked: exact for the responders, without re-asks for the judges."""
        rows, given = [], {}
        for name in self.responders:
            requests = self.requests(name)
            missing = self.ask[name].missing(list(requests.values()))
            rows.append({"role": "responder", "model": name, **missing._asdict()})
            if missing.calls:  # texts of the longest length stand for the answers
                long = "x" * self.config.max_tokens
                given |= {(i, ask): Completion(f"{ask.model} {ask.sample_index} {long}") for i, ask in requests}
            else:
                given |= self.complete(name)
        items = self.items(self.answers(given)).values()
        for name, judge in self.judges.items():
            parts = [self.judge_asks[name].missing(judge.requests(part)) for part in _parts(items)]
            *counts, costs = zip(*parts, strict=True) if parts else [()] * 4
            total = Missing(*map(sum, counts), None if None in costs else sum(costs))
            rows.append({"role": "judge", "model": name, **total._asdict()})
        return rows


def _parts(items: Iterable[JudgeItem]) -> Iterator[list[JudgeItem]]:
    items = list(items)
    for start in range(0, len(items), _PROMPTS_AT_A_TIME):
        yield items[start : start + _PROMPTS_AT_A_TIME]


def _check_identities(models: Iterable[BaseChatModel], why: str) -> None:
    known: dict[str, str] = {}
    for model in models:
        other = known.setdefault(json.dumps(model.identity, sort_keys=True), model.name)
        if other != model.name:
            raise ValueError(
                f"{other} and {model.name} are one model, and would give the same answers. Name it once. {why}"
            )


def _finish(config: FeedbackConfig, ratings: list[dict[str, Any]], report: dict[str, Any]) -> dict[str, Any]:
    """Make the pairs, and write all files."""
    pairs, counts = preference_pairs(
        ratings,
        score="overall",
        rejected=config.rejected,
        min_margin=config.min_margin,
        max_pairs_per_prompt=config.max_pairs_per_prompt,
        dedupe_identical=config.dedupe_identical,
        max_length_ratio=config.max_length_ratio,
        seed=config.seed,
    )
    report |= {
        "pairs": counts,
        "pair_statistics": pair_statistics(pairs),
        "models": model_statistics(ratings, pairs),
    }
    folder = Path(config.output_dir)
    write_rows(folder / "ratings.jsonl", ratings)
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "sft.jsonl", sft_rows(pairs))
    write_json(folder / "report.json", report)
    (folder / "report.png").unlink(missing_ok=True)  # of an older run
    if not pairs:
        said = ", ".join(f"{name} {count}" for name, count in (report["answers"] | counts).items() if count)
        raise ValueError(
            f"No pair came out ({said}). All ratings are in {folder / 'ratings.jsonl'}: look there, and at what "
            "`unscored` says."
        )
    try:
        with whole_path(folder / "report.png") as path:
            draw_report(path, report, pairs)
    except ImportError:
        logger.warning("No report.png: it needs matplotlib. Install it with `pip install trl-distill[bench]`.")
    return report

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

"""The win rate of two models, or of two files of answers: who says what, whom the judge prefers, what comes out."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..chat import (
    BaseChatModel,
    ChatRequest,
    Completion,
    FailedCall,
    Judge,
    Sampling,
    StoredChatModel,
    judge_report,
)
from ..extras import warn_of_pictures
from ..files import load_rows, write_json, write_rows
from ..row_formats import trl_rows
from .compare_config import CompareConfig, check_contestants
from .compare_report import comparison, count_answers, draw_comparison, judge_items, pair_row
from .feedback import check_identities, open_store, stand_in
from .feedback_config import check_models
from .questions import QUESTIONS, Answer, Question, read_answers, read_questions, write_answers
from .report import save_picture


def run_compare(
    config: CompareConfig,
    *,
    prompts: Iterable[dict[str, Any] | str] | None = None,
    models: Sequence[BaseChatModel] | None = None,
    judge: BaseChatModel | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """
    The win rate of one model over another, by a judge that sees each pair of answers in both orders.

    `config.output_dir` then holds `report.json`, `report.png`, `pairs.jsonl` (a prompt with both answers, their scores
    in each order and the verdict), `answers/` (what each model said, as AlpacaEval and MT-Bench write it, if the
    prompts are theirs) and `calls.sqlite` with every call. The same run again asks nothing twice: it goes on where it
    was stopped, and writes the same files.

    Args:
        config ([`CompareConfig`]):
            All settings.
        prompts (`Iterable[dict or str]`, *optional*):
            Rows, or texts, in place of those of `config.dataset_name`.
        models (`list[BaseChatModel]`, *optional*), judge ([`BaseChatModel`], *optional*):
            Models in place of those of the entries in `config`.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show progress bars.

    Returns:
        `dict[str, Any]`: What `report.json` holds: `win_rate` of `model` over `baseline` with counts and `interval`,
        see [`~trl_distill.zephyr.win_rate.win_rate`], the same by category, and what may lie behind it. With
        `config.dry_run` instead `{"missing": [...]}`: for each stage and model the calls that are still to be made,
        and their estimated tokens and cost.

    Raises:
        `ValueError`: If a setting, a row or a file of answers is wrong, or no pair gets a verdict.
        `OSError`: If a file cannot be written, or a server answers nobody.
        [`~trl_distill.chat.BudgetReached`]: If `max_calls` or `budget_usd` is reached. A higher limit goes on.

    Example:

    ```python
    from trl_distill.chat import EndpointChatModel, LocalChatModel
    from trl_distill.zephyr import CompareConfig, run_compare

    report = run_compare(
        CompareConfig(output_dir="compare"),
        prompts=["Why is the sky blue?"],
        models=[LocalChatModel("runs/ddpo", name="dpo"), LocalChatModel("runs/dsft", name="sft")],
        judge=EndpointChatModel("gpt-4.1"),
    )
    print(report["win_rate"]["win_rate"], report["win_rate"]["interval"])
    ```
    """
    models = config.make_models() if models is None else list(models)
    judge = config.make_judge() if judge is None else judge
    names = [*(model.name for model in models), *(config.answers or {})]
    check_contestants(names)
    if judge is None:
        raise ValueError("Nobody judges: set `judge`.")
    check_models(models, [judge])
    if config.output_dir is None:
        raise ValueError("No place for the results: set `output_dir`.")
    questions, prompt_counts = _questions(config, prompts)
    ready = {name: read_answers(path, questions) for name, path in (config.answers or {}).items()}

    path = Path(config.output_dir) / "calls.sqlite"
    if config.dry_run and not path.is_file():  # nothing to look up, for which local models would be downloaded
        *models, judge = map(stand_in, (*models, judge))
    check_identities(models, "Its answers would be compared with themselves.")
    if not config.dry_run:
        warn_of_pictures()
    with open_store(path, config, progress) as store:
        # All are opened before the first call, so that a mistake in the last one costs nothing.
        asked = [(model, store.model(model, role="contestant", stage="answers")) for model in models]
        verdicts = store.model(judge, role="judge", stage="verdicts")
        referee = Judge(
            verdicts,
            scale=tuple(config.judge_scale),
            max_reasks=config.max_reasks,
            max_tokens=config.judge_max_tokens,
            seed=config.seed,
        )
        answers = {name: of_file for name, (of_file, _) in ready.items()}
        if config.dry_run:
            missing = []
            for model, stored in asked:
                answers[model.name] = _answer(questions, config.sampling(), _planned(stored, missing))
            requests = referee.requests(list(judge_items(questions, answers).values()))
            last = {"stage": "verdicts", "model": judge.name, **verdicts.missing(requests)._asdict()}
            return {"missing": [*missing, last]}
        for model, stored in asked:
            with model:
                answers[model.name] = _answer(questions, config.sampling(), stored.complete)
        items = judge_items(questions, answers)
        with judge:
            judgements = dict(zip(items, referee.judge(list(items.values())), strict=True))
        ledger = [row._asdict() for row in store.ledger()]

    pairs = [
        pair_row(question, {name: answers[name][i] for name in names}, judgements.get(i))
        for i, question in enumerate(questions)
    ]
    of_judge = judge_report(list(items.values()), list(judgements.values()), judge_name=judge.name)
    counts = {name: count_answers(answers[name]) for name in names}
    for name, (_, unused) in ready.items():
        counts[name]["unused"] = unused
    report = {"settings": config.settings(), "prompts": prompt_counts, "answers": counts, **comparison(pairs, names)}
    report["warnings"] += of_judge["warnings"]
    folder = Path(config.output_dir)
    (folder / "answers").mkdir(exist_ok=True)
    for model in models:
        write_answers(folder / "answers", model.name, questions, answers[model.name])
    return _finish(folder, pairs, report | {"judge": of_judge, "ledger": ledger})


def _questions(
    config: CompareConfig, prompts: Iterable[dict[str, Any] | str] | None
) -> tuple[list[Question], dict[str, int]]:
    """What is asked, and counts of the rows."""
    if prompts is None:
        if config.dataset_name is None:
            raise ValueError("No prompts: set `dataset_name` to a file, a folder or a data set of the Hub.")
        prompts = load_rows(config.dataset_name, config.dataset_config, config.dataset_split)
        prompts = trl_rows(prompts, "prompt", *QUESTIONS, config.prompt_column or "prompt")
    return read_questions(
        ({config.prompt_column or "prompt": row} if isinstance(row, str) else row for row in prompts),
        prompt_column=config.prompt_column,
        category_column=config.category_column,
        reference_column=config.reference_column,
        max_prompts=config.max_prompts,
    )


def _answer(
    questions: Sequence[Question],
    sampling: Sampling,
    complete: Callable[[list[ChatRequest]], list[Completion | FailedCall]],
) -> list[Answer]:
    """What a model says to all questions: their first turns, then the second ones after its own answers, and so on."""
    answers = [Answer([])] * len(questions)
    for turn in range(1 + max(len(question.later) for question in questions)):
        numbers = [i for i, q in enumerate(questions) if turn <= len(q.later) and answers[i].error is None]
        requests = [ChatRequest(questions[i].after(answers[i].turns), sampling) for i in numbers]
        for i, given in zip(numbers, complete(requests), strict=True):
            answers[i] = answers[i].then(given)
    return answers


def _planned(
    stored: StoredChatModel, missing: list[dict[str, Any]]
) -> Callable[[list[ChatRequest]], list[Completion | FailedCall]]:
    """In the place of `complete`: notes in `missing` what would be asked, and asks nothing."""
    turns = itertools.count(1)

    def complete(requests: list[ChatRequest]) -> list[Completion | FailedCall]:
        counts, turn = stored.missing(requests), next(turns)
        stage = "answers" if turn == 1 else f"answers, turn {turn}"
        missing.append({"stage": stage, "model": stored.name, **counts._asdict()})
        if not counts.calls:
            return stored.complete(requests)
        # Texts of the longest length stand for the answers
        return [Completion(f"{stored.name} " + "x" * request.sampling.max_tokens) for request in requests]

    return complete


def _finish(folder: Path, pairs: list[dict[str, Any]], report: dict[str, Any]) -> dict[str, Any]:
    """Write all files."""
    write_rows(folder / "pairs.jsonl", pairs)
    write_json(folder / "report.json", report)
    (folder / "report.png").unlink(missing_ok=True)  # of an older run
    if report["win_rate"]["win_rate"] is None:
        said = ", ".join(f"{reason} {count}" for reason, count in report["unscored"].items())
        raise ValueError(f"No pair has a verdict ({said}). Look at `unscored` in {folder / 'pairs.jsonl'}.")
    save_picture(folder / "report.png", draw_comparison, report, pairs)
    return report

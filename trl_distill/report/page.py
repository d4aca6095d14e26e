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


"""The page of a run: curves, evaluations, answers, cost and settings, in one file that loads nothing."""

import datetime
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..chat.credentials import without_secrets
from ..files import whole_file
from .curves import Curve, curve, number
from .record import RUN_FILE
from .rollouts import ROLLOUTS_FILE, read_rollouts


if TYPE_CHECKING:
    from jinja2 import Template

_SUMS = re.compile(r"epoch|step|total_flos|train_.*|eval_(.*_)?(runtime|\w+_per_second)")
_LOSS = re.compile(r"loss(/.*)?")
_TRL = re.compile(
    r"learning_rate|grad_norm|step_time|num_tokens|entropy|mean_token_accuracy|aux_loss|completions/.*|rewards/.*|logits/.*"
    r"|logps/(chosen|rejected)"
)
_LOWER = re.compile(r"(?<!time/)loss|kl|(^|_)ce$|repetition|clipped")
_HIGHER = re.compile(r"accura|rouge|auc|margin|distinct|reward")


class Table(NamedTuple):
    """A table of a page. Columns behind the first `texts` hold numbers; `folded` ones are opened by the reader."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    texts: int = 1
    folded: bool = False


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader(__package__, "")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"curve": curve, "number": number}
    return environment.get_template("page.html")


def render(path: str | PathLike, title: str, **parts: Any) -> None:
    """
    Write a page, as a whole.

    Args:
        path (`str` or `os.PathLike`):
            The file.
        title (`str`):
            Its heading.
        parts (*optional*):
            `facts` (pairs of label and text), `warnings` (texts), `groups` (pairs of heading and a list of
            [`Curve`]s), `evaluation` (a `Table`), `compared` (`title`, `note` and `rows`, each a [`Compared`]),
            `rollouts`, `recorded` and `mixed`, as `read_rollouts` gives them, and `tables` (of `Table`). All that is
            not a `Markup` is escaped.
    """
    page = _template().render(title=title, **parts)
    with whole_file(path) as file:
        file.write(without_secrets(page))


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is not there, or cut off by a kill."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _since(run: dict[str, Any]) -> float:
    """From when on a file belongs to a run: one that goes on has older ones, too."""
    return 0.0 if (run.get("settings") or {}).get("resume_from_checkpoint") else run.get("started", 0.0)


def _state(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The newest state that a run has written. Those of an earlier run in the same folder do not count."""
    since = _since(run)
    files = [folder / "trainer_state.json", *folder.glob("checkpoint-*/trainer_state.json")]
    states = [(path.stat().st_mtime, read_json(path)) for path in files if path.is_file()]
    states = [(time, state) for time, state in states if time >= since and "log_history" in state]
    return max(states, key=lambda state: (state[0], len(state[1]["log_history"])), default=(0.0, {}))[1]


def _series(history: Iterable[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """By its name each metric that was logged, as `(step, value)`."""
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            if isinstance(value, int | float) and not _SUMS.fullmatch(name):
                found.setdefault(name, []).append((entry.get("step", 0), value))
    return found


def _groups(history: Iterable[dict[str, Any]], where: str = "") -> list[tuple[str, list[Curve]]]:
    """Pictures of all metrics, each with its value in evaluation: losses, those of the method, those of TRL."""
    series = _series(history)
    grouped: dict[str, list[Curve]] = {
        f"Loss{where}": [],
        f"Logged by the method{where}": [],
        f"Logged by TRL{where}": [],
    }
    loss, ours, trl = grouped.values()
    for name in dict.fromkeys(name.removeprefix("eval_") for name in series):
        lines = {"training": series.get(name), "evaluation": series.get(f"eval_{name}")}
        group = loss if _LOSS.fullmatch(name) else trl if _TRL.fullmatch(name) else ours
        group.append(Curve(name, {line: points for line, points in lines.items() if points}))
    return [(title, sorted(curves)) for title, curves in grouped.items() if curves]


def _evaluation(history: Iterable[dict[str, Any]]) -> Table | None:
    rows = []
    for name, points in _series(history).items():
        if name.startswith("eval_"):
            of = min if _LOWER.search(name[5:]) else max if _HIGHER.search(name[5:]) else None
            known = [point for point in points if point[1] == point[1]]  # not NaN
            best = of(known, key=lambda point: point[1]) if of and known else (None, None)
            rows.append((name, points[0][1], best[1], best[0], points[-1][1]))
    return Table("Evaluation", ("", "first", "best", "at step", "last"), rows) if rows else None


def calls_table(ledger: Iterable[dict[str, Any]]) -> Table:
    """Calls, tokens and cost of a ledger's rows as dictionaries, and their sums; the cost is `None` if one is."""
    names = ("round", "stage", "role", "model", "calls", "prompt_tokens", "completion_tokens", "cost_usd")
    body = [[row[name] for name in names] for row in ledger]
    columns = list(zip(*body, strict=True))[4:]
    total = ["total", "", "", "", *(None if None in column else sum(column) for column in columns)]
    head = (*names[:5], "tokens in", "tokens out", "US $")
    return Table("Calls and cost", head, [*body, total] if body else [], texts=4)


def _ledger(path: Path) -> Table:
    from ..chat import read_ledger

    return calls_table(row._asdict() for row in (read_ledger(path) if path.is_file() else ()))


def _facts(run: dict[str, Any], state: dict[str, Any]) -> list[tuple[str, str]]:
    history, facts = state.get("log_history", ()), []
    ends = [entry for entry in history if "train_runtime" in entry]
    if run:
        started = datetime.datetime.fromtimestamp(run["started"]).isoformat(" ", "minutes")
        facts += [("command", run["command"]), ("data", ", ".join(run["data"])), ("teacher", run["teacher"])]
        facts += [("model", run["settings"].get("model_name_or_path")), ("started", started)]
    if state:
        status = "finished" if ends else "stopped, or still running: as of its last checkpoint"
        facts += [("status", status), ("steps", f"{number(state['global_step'])} of {number(state['max_steps'])}")]
    else:
        facts.append(("status", "no state is saved yet"))
    tokens = [entry["num_tokens"] for entry in history if "num_tokens" in entry]
    if ends:
        facts.append(("time", str(datetime.timedelta(seconds=round(ends[-1]["train_runtime"])))))
    if tokens:
        facts.append(("tokens", number(tokens[-1])))
    if run:
        facts.append(("device", f"{run['device']}, {run['processes']} process{'es' * (run['processes'] > 1)}"))
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in run["versions"].items())))
    return [(label, text) for label, text in facts if text]


def write_report(folder: str | PathLike) -> Path:
    """
    Write `report.html` into the folder of a training, of the files that are there: `trainer_state.json`, its own or
    that of the newest checkpoint, `run.json`, `rollouts.jsonl` and `calls.sqlite`.

    Raises:
        `ValueError`: If it holds neither of the first two.
    """
    folder = Path(folder)
    run = read_json(folder / RUN_FILE)
    state = _state(folder, run)
    if not run and not state:
        raise ValueError(
            f"{folder} is no folder of a training: it holds neither {RUN_FILE} nor a trainer_state.json, nor does a "
            "checkpoint in it."
        )
    history = state.get("log_history", [])
    groups = _groups(history)
    for inner in sorted({path.parent.parent for path in folder.glob("*/checkpoint-*/trainer_state.json")}):
        groups += _groups(_state(inner, run).get("log_history", []), f" ({inner.name})")
    tables = [_ledger(folder / "calls.sqlite"), *settings_tables(run)]
    parts = {"facts": _facts(run, state), "groups": groups, "evaluation": _evaluation(history), "tables": tables}
    render(
        folder / "report.html", folder.resolve().name, **parts, **read_rollouts(folder / ROLLOUTS_FILE, _since(run))
    )
    return folder / "report.html"


def settings_tables(run: dict[str, Any]) -> list[Table]:
    """Settings of a run as [`describe_run`] gives them: those that differ from their defaults, and all."""

    def line(name: str) -> list[str]:
        value = run["settings"][name]
        return [name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]

    return [
        Table("Settings that differ from their defaults", (), [line(name) for name in run.get("changed", ())], 2),
        Table("All settings", (), [line(name) for name in sorted(run.get("settings", ()))], 2, folded=True),
    ]

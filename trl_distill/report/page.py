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
from ..files import read_rows, whole_file
from .curves import Curve, curve, number
from .record import RUN_FILE


if TYPE_CHECKING:
    from jinja2 import Template

ROLLOUTS_FILE = "rollouts.jsonl"
_SETS = 6  # of rollouts, on a page
_SUMS = re.compile(r"epoch|step|total_flos|train_.*|eval_(.*_)?(runtime|\w+_per_second)")
_LOSS = re.compile(r"loss(/.*)?")
_TRL = re.compile(
    r"learning_rate|grad_norm|step_time|num_tokens|entropy|mean_token_accuracy|aux_loss|completions/.*|rewards/.*|logits/.*"
    r"|logps/(chosen|rejected)"
)
_LOWER = re.compile(r"(?<!time/)loss|kl|(^|_)ce$|repetition|clipped")
_HIGHER = re.compile(r"accura|rouge|auc|margin|distinct|reward")
_SHADES = (0.1, 0.5, 1.0, 2.0)  # nats from which on a token is coloured, and more strongly


_SHOWN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}  # control characters, as signs


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
            [`Curve`]s), `tables` (of `Table`), `rollouts` and `compared`, as `_rollouts` gives them. All that is not
            a `Markup` is escaped.
    """
    page = _template().render(title=title, **parts)
    with whole_file(path) as file:
        file.write(without_secrets(page))


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is not there, or cut off by a kill."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _state(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The newest state that a run has written. Those of an earlier run in the same folder do not count."""
    since = 0.0 if (run.get("settings") or {}).get("resume_from_checkpoint") else run.get("started", 0.0)
    files = [folder / "trainer_state.json", *folder.glob("checkpoint-*/trainer_state.json")]
    states = [(path.stat().st_mtime, _json(path)) for path in files if path.is_file()]
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


def _token(text: str, student: float | None, teacher: float | None, credit: float | None) -> tuple[str, str, str]:
    """A token, its shade, and what is known of it."""
    if student is None or teacher is None:
        return text.translate(_SHOWN), "", "not finite"
    ratio = teacher - student
    strength = sum(abs(ratio) >= bound for bound in _SHADES)
    about = f"teacher {teacher:.2f}, student {student:.2f}" + ("" if credit is None else f", credit {credit:.2f}")
    return text.translate(_SHOWN), ("" if strength == 0 else f"{'p' if ratio > 0 else 'n'}{strength}"), about


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    credit = row.get("credit") or [None] * len(row["tokens"])
    tokens = [_token(*token) for token in zip(row["tokens"], row["student"], row["teacher"], credit, strict=True)]
    return {
        "prompt": row["prompt"].translate(_SHOWN),
        "tokens": tokens,
        "reward": row["reward"],
        "length": row["length"],
    }


def _rollouts(path: Path) -> dict[str, Any]:
    """
    Of the recorded rollouts `rollouts`, pairs of a step and its answers, and `compared`, pairs of answers of the first
    and the last evaluation with the two steps. A step that was done again after a resume counts once.
    """
    sets: dict[str, dict[int, dict[int, dict[str, Any]]]] = {"train": {}, "eval": {}}
    try:
        for row in read_rows(path) if path.is_file() else ():
            sets[row["mode"]].setdefault(row["step"], {})[row["row"]] = _answer(row)
    except (ValueError, KeyError):  # a kill has cut the last line off
        pass
    found: dict[str, Any] = {}
    if steps := sorted(sets["train"]):
        last = len(steps) - 1
        shown = sorted({steps[round(last * place / (_SETS - 1))] for place in range(_SETS)})
        found["rollouts"] = [(step, list(sets["train"][step].values())) for step in shown]
        found["recorded"] = len(steps)
    if len(steps := sorted(sets["eval"])) > 1:
        first, last = (sets["eval"][steps[place]] for place in (0, -1))
        found["compared"] = [(first[row], last[row]) for row in first if row in last]
        found["compared_steps"] = steps[0], steps[-1]
    return found


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
    run = _json(folder / RUN_FILE)
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
    settings = run.get("settings", {})
    lines = {name: [name, _shown(value)] for name, value in settings.items()}
    tables = [
        _ledger(folder / "calls.sqlite"),
        Table("Settings that differ from their defaults", (), [lines[name] for name in run.get("changed", ())], 2),
        Table("All settings", (), sorted(lines.values()), 2, folded=True),
    ]
    parts = {"facts": _facts(run, state), "groups": groups, "evaluation": _evaluation(history), "tables": tables}
    render(folder / "report.html", folder.resolve().name, **parts, **_rollouts(folder / ROLLOUTS_FILE))
    return folder / "report.html"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

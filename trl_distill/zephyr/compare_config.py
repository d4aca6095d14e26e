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

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from ..chat import BaseChatModel, Sampling, chat_model
from .feedback_config import check_models


@dataclass
class CompareConfig:
    r"""
    Configuration of [`run_compare`] and of `trl-distill compare`.

    Two are compared, named in `models`, in `answers`, or one in each. The win rate is that of the first one, models
    before answers. Entries of models are those of [`~trl_distill.chat.chat_model`]: with `model` a server's model,
    with `model_name_or_path` a local one.

    Parameters:
        > Who is compared

        models (`dict[str, dict]`, *optional*):
            Entries of models that answer, by a name of yours.
        answers (`dict[str, str]`, *optional*):
            Files of ready answers by a name: model outputs of AlpacaEval, answers of MT-Bench, or rows with `prompt`
            and `completion`.

        > Data

        dataset_name (`str`, *optional*):
            Prompts: a JSON, JSON Lines, CSV or Parquet file, a folder, or a data set of the Hub. Questions of
            AlpacaEval (`instruction`) and of MT-Bench (`turns`) are read as they are.
        dataset_config (`str`, *optional*), dataset_split (`str`, *optional*):
            Configuration and split. The split defaults to `train`, or the only one.
        prompt_column (`str`, *optional*), category_column (`str`, *optional*), reference_column (`str`, *optional*):
            Columns of the prompts (by default `turns`, `prompt` or `instruction`: texts, messages that end with the
            user's, or lists of the user's turns), of what the win rate is split by (by default `category` or
            `dataset`), and of right answers, which the judge sees where a row has one.
        max_prompts (`int`, *optional*):
            Use the first prompts only.
        output_dir (`str`):
            Folder for the calls and the results.

        > Answers of models

        temperature (`float`, *optional*, defaults to `0.7`), top_p (`float`, *optional*, defaults to `1.0`),
        max_tokens (`int`, *optional*, defaults to `2048`):
            How answers are drawn, by default as AlpacaEval draws those of Zephyr. A later turn follows the model's own
            answers to the earlier ones.

        > Judge

        judge (`dict`):
            Entry of the model that judges. It sees each pair in both orders.
        judge_scale (`list[float]`, *optional*, defaults to `[1, 10]`):
            Lowest and highest score.
        max_reasks (`int`, *optional*, defaults to `2`), judge_max_tokens (`int`, *optional*, defaults to `512`):
            How often the judge is asked again if its reply cannot be read, and its longest reply.

        > Run

        max_calls (`int`, *optional*), budget_usd (`float`, *optional*):
            Calls that may be made, all runs in `output_dir` together, and dollars that they may cost.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to say what is still to be asked, and ask nothing.
        seed (`int`, *optional*, defaults to `42`):
            Random seed.
    """

    models: dict[str, Any] | None = field(
        default=None, metadata={"help": "Models to compare. In the YAML file: entries by name."}
    )
    answers: dict[str, Any] | None = field(
        default=None, metadata={"help": "Ready answers to compare. In the YAML file: files by name."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Prompts: a JSON, JSONL, CSV or Parquet file, folder, or data set id."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_split: str | None = field(default=None, metadata={"help": "Split. Default: `train`, or the only one."})
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column of the prompts. Default: `turns`, `prompt` or `instruction`."}
    )
    category_column: str | None = field(
        default=None, metadata={"help": "Column to split the win rate by. Default: `category` or `dataset`."}
    )
    reference_column: str | None = field(
        default=None, metadata={"help": "Column of right answers, which the judge sees."}
    )
    max_prompts: int | None = field(default=None, metadata={"help": "Use the first prompts only."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the calls and the results."})
    temperature: float = field(default=0.7, metadata={"help": "Temperature of the answers. 0 is greedy decoding."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of sampling of the answers."})
    max_tokens: int = field(default=2048, metadata={"help": "Longest answer in tokens."})
    judge: dict[str, Any] | None = field(
        default=None, metadata={"help": "The model that judges. In the YAML file: an entry."}
    )
    judge_scale: list[float] = field(
        default_factory=lambda: [1, 10], metadata={"help": "Lowest and highest score of the judge."}
    )
    max_reasks: int = field(default=2, metadata={"help": "How often the judge is asked again for a readable reply."})
    judge_max_tokens: int = field(default=512, metadata={"help": "Longest reply of the judge in tokens."})
    max_calls: int | None = field(default=None, metadata={"help": "Calls that may be made, all runs together."})
    budget_usd: float | None = field(default=None, metadata={"help": "US dollars that they may cost."})
    dry_run: bool = field(default=False, metadata={"help": "Say what is still to be asked, and ask nothing."})
    seed: int = field(default=42, metadata={"help": "Random seed."})

    def __post_init__(self):
        for name, least in (("max_prompts", 1), ("max_calls", 0), ("budget_usd", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be {least} or more, got {value}.")
        for name, path in self._entries("answers"):
            if not isinstance(path, str):
                raise ValueError(f"`answers`: {name!r} must be a file, got {path!r:.200}. A model stands in `models`.")
        try:
            low, high = map(float, self.judge_scale)
        except (TypeError, ValueError):
            low, high = 0.0, 0.0
        if not low < high:
            raise ValueError(f"`judge_scale` must be the lowest and the highest score, got {self.judge_scale!r}.")
        self.sampling()
        check_models(self.make_models(), [judge] if (judge := self.make_judge()) else [])

    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return Sampling(self.temperature, self.top_p, self.max_tokens, self.seed)

    def make_models(self) -> list[BaseChatModel]:
        """The models of the field `models`, called as there."""
        made = []
        for name, entry in self._entries("models"):
            if isinstance(entry, dict) and "name" in entry:
                raise ValueError(f"`models`: {name!r} is its name already: remove `name: {entry['name']}`.")
            made.append(_make("models", entry | {"name": name} if isinstance(entry, dict) else entry))
        return made

    def make_judge(self) -> BaseChatModel | None:
        """The model of the field `judge`."""
        return None if self.judge is None else _make("judge", self.judge)

    def _entries(self, field_name: str) -> list[tuple[str, Any]]:
        entries = getattr(self, field_name)
        if not isinstance(entries, dict | None):
            raise ValueError(f"`{field_name}` must hold `name: ...` lines, got {entries!r:.200}.")
        return list((entries or {}).items())

    def settings(self) -> dict[str, Any]:
        """What the results follow from: the fields without places, limits and the dry run."""
        places = ("output_dir", "max_calls", "budget_usd", "dry_run")
        return {name: value for name, value in asdict(self).items() if name not in places}


def _make(field_name: str, entry: Any) -> BaseChatModel:
    try:
        return chat_model(entry)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{field_name}`: {error}") from error


def check_contestants(names: list[str]) -> None:
    """Refuse what cannot be compared, or cannot be told apart in files, before the first call."""
    if len(names) != 2 or len(set(names)) < 2:
        raise ValueError(
            "Two are compared, each with a name of its own, in `models`, in `answers`, or one in each, got "
            f"{', '.join(map(str, names)) or 'none'}."
        )
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", str(name)):
            raise ValueError(f"{name!r} must be of letters, digits, `.`, `_` and `-`: files are named after it.")

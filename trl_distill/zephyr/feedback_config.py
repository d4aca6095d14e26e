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

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..chat import BaseChatModel, Sampling, chat_model
from .policies import Rejected, preference_pairs
from .presets import ULTRAFEEDBACK_SCALE, read_aspects, read_principles


@dataclass
class FeedbackConfig:
    r"""
    Configuration of [`run_feedback`] and of `trl-distill feedback`.

    Entries of models are those of [`~trl_distill.chat.chat_model`]: with `model` a server's model, with
    `model_name_or_path` a local one.

    Parameters:
        > Data

        dataset_name (`str`, *optional*):
            Prompts: a JSON, JSON Lines, CSV or Parquet file, a folder, or a data set of the Hub.
        dataset_config (`str`, *optional*), dataset_split (`str`, *optional*):
            Configuration and split. The split defaults to `train`, or the only one.
        prompt_column (`str`, *optional*, defaults to `"prompt"`), reference_column (`str`, *optional*):
            Columns of the prompts (texts, or messages that end with the user's; a column `prompt_id` names them), and
            of right answers, which the judges see.
        completions_column (`str`, *optional*), models_column (`str`, *optional*):
            Columns with lists of ready answers, judged beside those of the responders, and of who wrote them.
        max_prompts (`int`, *optional*):
            Use the first prompts only.
        decontaminate (`list[str]`, *optional*, defaults to `["truthful_qa"]`):
            Evaluations whose questions are dropped from the prompts: `truthful_qa`, loaded from the Hub, or files with
            a question a line (`.txt`) or rows with `question`, `prompt` or `instruction`. `none` checks nothing.
        output_dir (`str`):
            Folder for the calls and the results.

        > Answers

        responders (`list[dict]`, *optional*), student (`dict`, *optional*):
            Entries of the models that answer, and of the model that is to be trained. The student answers every
            prompt, without a principle, as one of `num_answers`; without responders it gives all of them.
        num_answers (`int`, *optional*, defaults to `4`):
            Answers a prompt. Who gives them is drawn; no model answers one twice before all have answered it once.
        principles (`str` or `list[dict]`, *optional*):
            System prompts of which each answer gets one at random: `ultrafeedback`, or entries with `name`, `text` and
            `weight`. A system prompt that the prompt has stays, in front. They are not part of the training rows.
        temperature (`float`, *optional*), top_p (`float`, *optional*), max_tokens (`int`, *optional*, defaults to
        `1024`):
            How answers are drawn. A temperature and a nucleus that are not set are 1.0 for a local model, and the
            server's own at a server (vLLM takes them from the model's generation config).
        keep_truncated (`bool`, *optional*, defaults to `False`):
            Whether to judge answers that were cut off.

        > Judges

        judges (`list[dict]`):
            Entries of the models that judge. An answer's score is the mean over the judges.
        judge_mode (`str`, *optional*, defaults to `"listwise"`), judge_orders (`int`, *optional*):
            `"listwise"`, in so many orders of the answers (default: as many as there are answers), or `"absolute"`,
            see [`~trl_distill.chat.Judge`].
        judge_scale (`list[float]`, *optional*):
            Lowest and highest rating. Defaults to 1 and 10, and to 1 and 5 with the aspects `ultrafeedback`.
        aspects (`str` or `list[dict]`, *optional*):
            What is rated: one overall aspect, `ultrafeedback` for its four, or entries with `name`, `guideline`,
            `weight` and `optional`. The score is the mean of the aspects by their weights, which are 1 unless set.
        max_reasks (`int`, *optional*, defaults to `2`), judge_max_tokens (`int`, *optional*, defaults to `512`):
            How often a judge is asked again if its reply cannot be read, and its longest reply, thoughts included.
        judge_temperature (`float`, *optional*, defaults to `0.0`):
            Temperature of the judges. `None` (in YAML `null`) leaves it to the server.
        max_unreadable (`int`, *optional*, defaults to `50`):
            Replies of a judge in a row that cannot be read after which the run stops. `None` never stops it.

        > Pairs, see [`preference_pairs`]

        rejected (`str`, *optional*, defaults to `"random_lower"`), min_margin (`float`, *optional*, defaults to
        `0.0`), max_pairs_per_prompt (`int`, *optional*), max_length_ratio (`float`, *optional*):
            Policy, `"random_lower"`, `"random_rest"`, `"min"`, `"second"` or `"all_pairs"`, and limits.
        dedupe_identical (`bool`, *optional*, defaults to `True`):
            Whether equal answers are judged once.

        > Run

        max_calls (`int`, *optional*), budget_usd (`float`, *optional*):
            Calls that may be made, all runs in `output_dir` together, and dollars that they may cost.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to say what is still to be asked, and ask nothing.
        seed (`int`, *optional*, defaults to `42`):
            Random seed.
    """

    dataset_name: str | None = field(
        default=None, metadata={"help": "Prompts: a JSON, JSONL, CSV or Parquet file, folder, or data set id."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_split: str | None = field(default=None, metadata={"help": "Split. Default: `train`, or the only one."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompts: texts, or messages."})
    reference_column: str | None = field(
        default=None, metadata={"help": "Column of right answers, which the judges see."}
    )
    completions_column: str | None = field(
        default=None, metadata={"help": "Column with lists of answers that are there already."}
    )
    models_column: str | None = field(default=None, metadata={"help": "Column with the names of who wrote them."})
    max_prompts: int | None = field(default=None, metadata={"help": "Use the first prompts only."})
    decontaminate: list[str] = field(
        default_factory=lambda: ["truthful_qa"],
        metadata={
            "help": "Drop prompts with questions of these: truthful_qa, files with a question a line or a column, "
            "`none`."
        },
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the calls and the results."})
    responders: list[dict[str, Any]] | None = field(
        default=None, metadata={"help": "Models that answer. In the YAML file: a list of entries."}
    )
    student: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "The model that is to be trained; answers every prompt. In the YAML file: an entry."},
    )
    num_answers: int = field(default=4, metadata={"help": "Answers a prompt."})
    principles: list[dict[str, Any]] | str | None = field(
        default=None,
        metadata={"help": "System prompts of the responders: `ultrafeedback`, or in the YAML file a list of entries."},
    )
    temperature: float | None = field(
        default=None, metadata={"help": "Temperature of the answers. Default: 1 on this machine, a server's own."}
    )
    top_p: float | None = field(
        default=None, metadata={"help": "Nucleus of sampling of the answers. Default: 1 here, a server's own."}
    )
    max_tokens: int = field(default=1024, metadata={"help": "Longest answer in tokens."})
    keep_truncated: bool = field(default=False, metadata={"help": "Judge answers that were cut off, too."})
    judges: list[dict[str, Any]] | None = field(
        default=None, metadata={"help": "Models that judge. In the YAML file: a list of entries."}
    )
    judge_mode: Literal["listwise", "absolute"] = field(
        default="listwise", metadata={"help": "All answers of a prompt in one request, or each in its own."}
    )
    judge_orders: int | None = field(
        default=None, metadata={"help": "Orders in which answers are shown. Default: as many as there are answers."}
    )
    judge_scale: list[float] | None = field(
        default=None,
        metadata={"help": "Lowest and highest rating. Default: 1 10, and 1 5 with the aspects `ultrafeedback`."},
    )
    aspects: list[dict[str, Any]] | str | None = field(
        default=None,
        metadata={
            "help": "What is rated. Default: one overall. `ultrafeedback`, or in the YAML file a list of entries."
        },
    )
    max_reasks: int = field(default=2, metadata={"help": "How often a judge is asked again for a readable reply."})
    judge_max_tokens: int = field(default=512, metadata={"help": "Longest reply of a judge in tokens."})
    judge_temperature: float | None = field(
        default=0.0, metadata={"help": "Temperature of the judges. `null` in the YAML file: the server's own."}
    )
    max_unreadable: int | None = field(
        default=50, metadata={"help": "Unreadable replies of a judge in a row after which the run stops."}
    )
    rejected: Rejected = field(default="random_lower", metadata={"help": "Which answer stands against the best one."})
    min_margin: float = field(default=0.0, metadata={"help": "Smallest difference of the scores of a pair."})
    max_pairs_per_prompt: int | None = field(default=None, metadata={"help": "How many of `all_pairs` are kept."})
    dedupe_identical: bool = field(default=True, metadata={"help": "Judge equal answers once."})
    max_length_ratio: float | None = field(
        default=None, metadata={"help": "Leave out pairs in which one text is longer than so many times the other."}
    )
    max_calls: int | None = field(default=None, metadata={"help": "Calls that may be made, all runs together."})
    budget_usd: float | None = field(default=None, metadata={"help": "US dollars that they may cost."})
    dry_run: bool = field(default=False, metadata={"help": "Say what is still to be asked, and ask nothing."})
    seed: int = field(default=42, metadata={"help": "Random seed."})

    def __post_init__(self):
        sources = [self.decontaminate] if isinstance(self.decontaminate, str) else self.decontaminate or []
        if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
            raise ValueError(f"`decontaminate` must be a list of files and names, got {sources!r}.")
        self.decontaminate = sources
        for name in ("dataset_name", "prompt_column", "reference_column", "completions_column", "models_column"):
            if not isinstance(value := getattr(self, name), str | None):
                raise ValueError(f"`{name}` must be one name, got {value!r}.")
        for name, least in (
            ("num_answers", 1),
            ("max_prompts", 1),
            ("max_unreadable", 1),
            ("max_calls", 0),
            ("budget_usd", 0),
            ("judge_temperature", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be {least} or more, got {value}.")
        if self.judge_scale is None:
            self.judge_scale = list(ULTRAFEEDBACK_SCALE) if self.aspects == "ultrafeedback" else [1, 10]
        try:
            low, high = map(float, self.judge_scale)
        except (TypeError, ValueError):
            low, high = 0.0, 0.0
        if not low < high:
            raise ValueError(f"`judge_scale` must be the lowest and the highest rating, got {self.judge_scale!r}.")
        if self.judge_mode not in ("listwise", "absolute"):
            hint = "What was called pairwise is listwise with two answers."
            raise ValueError(f"`judge_mode` must be listwise or absolute, got {self.judge_mode!r}. {hint}")
        if self.num_answers < 2 and not self.completions_column:
            raise ValueError(f"A pair needs two answers, but `num_answers` is {self.num_answers}.")
        if self.models_column and not self.completions_column:
            raise ValueError("`models_column` names who wrote the answers of `completions_column`, which is not set.")
        read_principles(self.principles)
        read_aspects(self.aspects)
        preference_pairs([], **self.policy())  # its checks
        self.sampling()
        check_models([*self.make("responders"), *self.make("student")], self.make("judges"))

    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return Sampling(self.temperature, self.top_p, self.max_tokens, self.seed)

    def policy(self) -> dict[str, Any]:
        """How [`preference_pairs`] makes the pairs."""
        names = ("rejected", "min_margin", "max_pairs_per_prompt", "dedupe_identical", "max_length_ratio", "seed")
        return {"score": "overall"} | {name: getattr(self, name) for name in names}

    def make(self, role: str) -> list[BaseChatModel]:
        """The models of the field `responders`, `student` or `judges`."""
        entries = getattr(self, role)
        if role == "student" and entries is not None:
            entries = [entries]
        if not isinstance(entries, list | None):
            raise ValueError(f"`{role}` must be a list of entries, got {entries!r:.200}.")
        try:
            return [chat_model(entry) for entry in entries or []]
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{role}`: {error}") from error

    def settings(self) -> dict[str, Any]:
        """What the results follow from: the fields without places, limits and the dry run."""
        places = ("output_dir", "max_unreadable", "max_calls", "budget_usd", "dry_run")
        return {name: value for name, value in asdict(self).items() if name not in places}


def check_models(responders: Sequence[BaseChatModel], judges: Sequence[BaseChatModel]) -> None:
    """Refuse models that files or the store could not tell apart, before the first call."""
    for role, models in (("responders", responders), ("judges", judges)):
        for name, count in Counter(model.name for model in models).items():
            if count > 1:
                raise ValueError(f"Two of the {role} are called {name!r}. Give each its own `name`.")
    addresses: dict[str, str] = {}
    for model in [*responders, *judges]:
        if model.address is not None:
            known = addresses.setdefault(json.dumps(model.identity, sort_keys=True), model.address)
            if known != model.address:
                asked = f"{model.name} is asked at {known} and at {model.address}"
                raise ValueError(f"{asked}. Set `revision` for each if these are two models.")

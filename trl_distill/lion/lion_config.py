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
import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

from ..chat import BaseChatModel, Sampling, chat_model
from .generation import DEFAULT_FILTERS, LION_FILTERS, check_filters
from .pools import partition


# What the results of a stage depend on. It may change until such a stage is finished; all else may always change: how
# far a run goes, what it may cost, and how it is computed.
_COMPARISON = (
    "teacher teacher_temperature teacher_max_tokens student_dtype student_load_in_4bit student_temperature "
    "student_max_tokens referee_temperature referee_max_tokens referee_orders max_reasks prompts"
)
_MINING = f"{_COMPARISON} referee tau tau_quantile min_teacher_score miner loss_share"
_OF_STAGE = {
    "pools": "dataset_name dataset_config dataset_split max_instructions heldout_size seed",
    "discrimination": f"{_MINING} cache_sample rescore",
    "generation": "generator generator_temperature generator_max_tokens n_new oversample hard_share rouge_threshold "
    "filters decontaminate strategy prompts",
    "selection": f"{_MINING} n_new",
    "answers": "teacher teacher_temperature teacher_max_tokens init_from replay keep_refusals",
    "training": "student_model training init_from adapter_rounds stages",
    "dpo": "dpo stages teacher keep_refusals",
    "minillm": "minillm stages teacher",
    "evaluation": f"{_COMPARISON} evaluator",
}
_OF_LATER_ROUNDS = ("stages", "init_from", "replay")
SHAPE = ("strategy", "stages", "oversample")  # they decide which stages there are
# Of a model's entry: how it is reached, paid and run, not which model it is. If it has moved, the call store asks.
_ACCESS = ("base_url", "api_key_env", "concurrency", "max_attempts", "timeout", "backoff", "max_consecutive_failures")
_ACCESS += ("prompt_price", "completion_price", "max_tokens_parameter", "omit", "headers", "device", "batch_size")
# Fields that say how a training is computed and watched, not what it learns
_HARDWARE = (
    "per_device_ gradient_accumulation_steps gradient_checkpointing bf16 fp16 tf32 use_cpu dataloader_ deepspeed fsdp "
    "ddp_ dataset_num_proc torch_compile torch_empty_cache_steps use_liger_kernel attn_implementation eval_ do_eval "
    "activation_offloading save_ logging_ log_ report_to run_name project trackio_ push_to_hub hub_ disable_tqdm"
).split()
_MODELS = ("teacher", "referee", "generator", "evaluator")
_ON_POLICY = ("dpo", "minillm")
_AT_LEAST_0 = ("heldout_size", "rounds", "max_reasks", "max_calls", "budget_usd", "seed")
_AT_LEAST_1 = ("max_instructions", "n_new", "max_attempts_factor", "min_hard", "cache_sample", "student_batch_size")
_AT_LEAST_1 += ("max_unreadable", "oversample")


def what_is_learned(training: dict[str, Any]) -> dict[str, Any]:
    """The fields of a training but for those of the hardware, which may change between two runs of it."""
    return {name: value for name, value in training.items() if not name.startswith(tuple(_HARDWARE))}


@dataclass
class LionConfig:
    r"""
    Configuration of [`LionLoop`] and of `trl-distill lion`.

    Entries of models are those of [`~trl_distill.chat.chat_model`]: with `model` a server's model, with
    `model_name_or_path` a local one.

    Parameters:
        > Pools

        dataset_name (`str`):
            Instructions to start from: a JSON, JSON Lines, CSV or Parquet file, a folder, or a data set of the Hub.
            Rows as for [`read_instructions`].
        dataset_config (`str`, *optional*), dataset_split (`str`, *optional*):
            Configuration and split. The split defaults to `train`, or the only one.
        max_instructions (`int`, *optional*), heldout_size (`int`, *optional*, defaults to `80`):
            Take so many of them at random, and set so many of these aside for evaluation before the first round, by
            groups of near copies (see [`hold_out`]).
        output_dir (`str`):
            Folder for calls, pools, students and reports.

        > Models

        teacher (`dict`):
            Entry of the model that is imitated.
        referee (`dict`, *optional*), generator (`dict`, *optional*), evaluator (`dict`, *optional*):
            Entries of the models that compare answers, write instructions, and compare the answers to the held-out
            slice, so that a student is not measured by whom it learned to please. The first two default to the
            teacher, the last one to the referee.
        student_model (`str`):
            Id or folder of the model that learns.
        student_dtype (`str`, *optional*, defaults to `"auto"`), student_load_in_4bit (`bool`, *optional*, defaults to
        `False`), student_batch_size (`int`, *optional*, defaults to `16`):
            How the student is loaded when it answers.

        > Sampling

        teacher_temperature (`float`, *optional*, defaults to `0.7`), teacher_max_tokens (`int`, *optional*, defaults
        to `1024`), student_temperature (`float`, *optional*, defaults to `0.7`), student_max_tokens (`int`,
        *optional*, defaults to `1024`), referee_temperature (`float`, *optional*, defaults to `0.2`),
        referee_max_tokens (`int`, *optional*, defaults to `512`), generator_temperature (`float`, *optional*, defaults
        to `1.0`), generator_max_tokens (`int`, *optional*, defaults to `512`):
            The paper's values; the last one is our own. A temperature that is `None` is left to the server.

        prompts (`str`, *optional*, defaults to `"ours"`):
            `"released"`: generator and referee are asked in the words of the released code, system lines included.
            They are under the MIT licence, see `released.yaml`.

        > Imitation

        keep_refusals (`bool`, *optional*, defaults to `False`):
            Whether the student is trained on answers in which the teacher refuses, see [`is_refusal`].
        training (`dict[str, Any]`, *optional*):
            Fields of `trl-distill sft`, such as `learning_rate`, `use_peft` or `chat_template_path`.
        init_from (`str`, *optional*, defaults to `"previous"`):
            `"previous"`: each round goes on with the student of the last one. `"base"`: each round trains
            `student_model` anew, on all rows so far.
        replay (`str`, *optional*, defaults to `"share"`):
            With `init_from="previous"`: rows of earlier rounds that join the new ones, so that the student does not
            forget. `"share"`: as many as there are new ones, at random. `"all"`: all.
        stages (`list[str]`, *optional*, defaults to `["sft"]`):
            Trainings of a round, one after the other, the first of them `sft`. From round 1 on it may be followed by
            `dpo`, on pairs of the teacher's and the student's answer to the hard instructions, or by `minillm`, on
            the prompts of the round and the hard ones, where the teacher's weights are at hand.
        dpo (`dict[str, Any]`, *optional*), minillm (`dict[str, Any]`, *optional*):
            Fields of `trl-distill dpo` and of `trl-distill minillm`, whose teacher is that of the loop.
        adapter_rounds (`str`, *optional*, defaults to `"merge"`):
            With `use_peft`. `"merge"`: each round's adapter is merged, and the next one starts a new one on the merged
            model. `"continue"`: one adapter is trained through all rounds.
        accelerate_config (`str`, *optional*), launch (`dict[str, Any]`, *optional*):
            How the training is launched, as for `trl-distill sft`: the name of an accelerate config or a file, and
            flags of `accelerate launch`, such as `{"num_processes": 8}`.

        > Discrimination

        strategy (`str`, *optional*, defaults to `"adversarial"`):
            `"adversarial"`: new instructions come from hard and easy ones. `"random"`: from any: the control.
        miner (`str`, *optional*, defaults to `"referee"`):
            Who says what is hard. `"referee"`: a comparison of both answers. `"loss"`: the student's mean loss a token
            on the teacher's answer, without a call. `"both"`: the loss chooses whom the referee compares.
        loss_share (`float`, *optional*, defaults to `0.25`):
            The share with the largest losses that the loss calls hard, or hands to the referee.
        tau (`float`, *optional*, defaults to `1.0`), tau_quantile (`float`, *optional*), min_teacher_score (`float`,
        *optional*):
            What is hard, see [`partition`].
        cache_sample (`int`, *optional*):
            Score a random part of the Cache Pool of this size. The referee is most of the bill.
        rescore (`str`, *optional*, defaults to `"all"`):
            `"all"`: score the whole pool each round. `"new_only"`: keep the scores that older students got.
        referee_orders (`int`, *optional*, defaults to `2`):
            2: both orders of the two answers. 1: one, at half the price, with the referee's bias for a place.
        max_reasks (`int`, *optional*, defaults to `2`):
            How often the referee is asked again if its reply cannot be read.
        max_unreadable (`int`, *optional*, defaults to `50`):
            Replies of the referee in a row that cannot be read after which the run stops. `None` never stops it.
        min_hard (`int`, *optional*, defaults to `1`):
            With fewer hard instructions the loop has converged, and stops.

        > Generation

        rounds (`int`, *optional*, defaults to `3`), n_new (`int`, *optional*, defaults to `6000`), hard_share
        (`float`, *optional*, defaults to `0.5`):
            Rounds after the first imitation, new instructions in each, and the share that is made from hard ones.
        oversample (`float`, *optional*, defaults to `1.0`):
            How many instructions are written for each that is used. With more than one, the teacher answers all, and
            those are used that the miner finds hardest: the student has not been trained on any of them.
        max_attempts_factor (`float`, *optional*, defaults to `5.0`):
            Requests to the generator, as a multiple of what is wanted.
        rouge_threshold (`float`, *optional*, defaults to `0.7`):
            A new instruction whose Rouge-L F-measure with one of the pools is above it is dropped.
        filters (`list[str]`, *optional*, defaults to `["cut_off", "too_short", "refusal", "with_answer"]`):
            What else is dropped: also `says_instruction`, `starts_with_punctuation`, `starts_with_non_ascii`; `lion`
            for all. The released code has all but `refusal` and `with_answer`.
        decontaminate (`list[str]`, *optional*):
            Files with questions, one a line or in rows with `question`, `prompt` or `instruction`, or `truthful_qa`,
            of which no near copy shall be generated.

        > Run

        max_calls (`int`, *optional*), budget_usd (`float`, *optional*):
            Calls that may be made, the student's too, and what they may cost, all runs in `output_dir` together.
        rehearse (`bool`, *optional*, defaults to `True`):
            Whether one step of each training is done before anything is asked, so that a student that cannot be
            trained, a missing chat template or too short a context cost nothing.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to say what is still to be asked, and ask nothing.
        restart_from (`str`, *optional*):
            Round and stage, such as `2.generation`, whose result and all later ones are removed and made anew, each
            time that it is set. Answers in the store are used again.
        keep_finished (`bool`, *optional*, defaults to `False`):
            Whether stages that were finished with other settings are kept as they are, and the new ones hold from here
            on. The manifests say which was made how.
        seed (`int`, *optional*, defaults to `42`):
            Random seed.
    """

    dataset_name: str | None = field(default=None, metadata={"help": "Instructions: a file, folder, or data set id."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_split: str | None = field(default=None, metadata={"help": "Split. Default: `train`, or the only one."})
    max_instructions: int | None = field(default=None, metadata={"help": "Take so many of them at random."})
    heldout_size: int = field(default=80, metadata={"help": "Instructions that are set aside for evaluation."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for calls, pools, students and reports."})

    teacher: dict[str, Any] | None = field(
        default=None, metadata={"help": "The model that is imitated. In the YAML file: an entry."}
    )
    referee: dict[str, Any] | None = field(
        default=None, metadata={"help": "The model that compares answers. Default: the teacher."}
    )
    generator: dict[str, Any] | None = field(
        default=None, metadata={"help": "The model that writes instructions. Default: the teacher."}
    )
    evaluator: dict[str, Any] | None = field(
        default=None, metadata={"help": "The judge of the held-out slice. Default: the referee."}
    )
    student_model: str | None = field(default=None, metadata={"help": "Id or folder of the model that learns."})
    student_dtype: str = field(default="auto", metadata={"help": "Data type of the student when it answers."})
    student_load_in_4bit: bool = field(default=False, metadata={"help": "Whether the student answers in 4 bit."})
    student_batch_size: int = field(default=16, metadata={"help": "Answers of the student generated together."})

    teacher_temperature: float | None = field(default=0.7, metadata={"help": "Temperature of the teacher's answers."})
    teacher_max_tokens: int = field(default=1024, metadata={"help": "Longest answer of the teacher in tokens."})
    student_temperature: float | None = field(default=0.7, metadata={"help": "Temperature of the student's answers."})
    student_max_tokens: int = field(default=1024, metadata={"help": "Longest answer of the student in tokens."})
    referee_temperature: float | None = field(default=0.2, metadata={"help": "Temperature of the referee."})
    referee_max_tokens: int = field(default=512, metadata={"help": "Longest reply of the referee in tokens."})
    generator_temperature: float | None = field(default=1.0, metadata={"help": "Temperature of the generator."})
    generator_max_tokens: int = field(default=512, metadata={"help": "Longest new instruction in tokens."})

    keep_refusals: bool = field(default=False, metadata={"help": "Whether to train on the teacher's refusals."})
    prompts: Literal["ours", "released"] = field(
        default="ours", metadata={"help": "What generator and referee are asked: ours, or the authors' words."}
    )
    training: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Fields of `trl-distill sft`. In the YAML file: a section."}
    )
    init_from: Literal["previous", "base"] = field(
        default="previous", metadata={"help": "Where each round's training starts: the last student, or the base."}
    )
    replay: Literal["none", "share", "all"] = field(
        default="share", metadata={"help": "Rows of earlier rounds that join the new ones: none, as many, or all."}
    )
    stages: list[str] = field(
        default_factory=lambda: ["sft"], metadata={"help": "Trainings of a round: sft, then dpo or minillm."}
    )
    dpo: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Fields of `trl-distill dpo`. In the YAML file: a section."}
    )
    minillm: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Fields of `trl-distill minillm`. In the YAML file: a section."}
    )
    adapter_rounds: Literal["merge", "continue"] = field(
        default="merge", metadata={"help": "Merge the adapter of each round, or train one through all rounds."}
    )
    accelerate_config: str | None = field(
        default=None, metadata={"help": "Accelerate config of the training: a name or a file."}
    )
    launch: dict[str, Any] | None = field(
        default=None, metadata={"help": "Flags of accelerate launch for the training, such as num_processes."}
    )

    strategy: Literal["adversarial", "random"] = field(
        default="adversarial", metadata={"help": "New instructions from hard and easy ones, or from any (control)."}
    )
    miner: Literal["referee", "loss", "both"] = field(
        default="referee", metadata={"help": "What is hard by the referee, by the student's loss, or by both in turn."}
    )
    loss_share: float = field(default=0.25, metadata={"help": "The share with the largest losses."})
    tau: float = field(default=1.0, metadata={"help": "Gap of the scores from which on an instruction is hard."})
    tau_quantile: float | None = field(default=None, metadata={"help": "In place of tau: the share that is hard."})
    min_teacher_score: float | None = field(
        default=None, metadata={"help": "Leave out instructions on which the teacher scores less."}
    )
    cache_sample: int | None = field(default=None, metadata={"help": "Score a random part of the pool of this size."})
    rescore: Literal["all", "new_only"] = field(
        default="all", metadata={"help": "Score the whole pool each round, or only what has no score."}
    )
    referee_orders: int = field(default=2, metadata={"help": "Orders in which two answers are compared: 2 or 1."})
    max_reasks: int = field(default=2, metadata={"help": "How often the referee is asked again."})
    max_unreadable: int | None = field(
        default=50, metadata={"help": "Unreadable replies of the referee in a row after which the run stops."}
    )
    min_hard: int = field(default=1, metadata={"help": "With fewer hard instructions the loop has converged."})

    rounds: int = field(default=3, metadata={"help": "Rounds after the first imitation."})
    n_new: int = field(default=6000, metadata={"help": "New instructions a round."})
    hard_share: float = field(default=0.5, metadata={"help": "Share of new ones that is made from hard ones."})
    oversample: float = field(default=1.0, metadata={"help": "Instructions that are written for each that is used."})
    max_attempts_factor: float = field(
        default=5.0, metadata={"help": "Requests to the generator, as a multiple of what is wanted."}
    )
    rouge_threshold: float = field(default=0.7, metadata={"help": "Largest Rouge-L with an instruction of the pools."})
    filters: list[str] = field(
        default_factory=lambda: list(DEFAULT_FILTERS),
        metadata={"help": f"What else is dropped: some of {', '.join(LION_FILTERS)}; lion for all; none."},
    )
    decontaminate: list[str] = field(
        default_factory=list, metadata={"help": "Files with questions of which no near copy shall be generated."}
    )

    max_calls: int | None = field(default=None, metadata={"help": "Calls that may be made, all runs together."})
    budget_usd: float | None = field(default=None, metadata={"help": "US dollars that they may cost."})
    rehearse: bool = field(default=True, metadata={"help": "Do one step of each training before anything is asked."})
    dry_run: bool = field(default=False, metadata={"help": "Say what is still to be asked, and ask nothing."})
    restart_from: str | None = field(
        default=None, metadata={"help": "Round and stage, such as 2.generation, from which on all is made anew."}
    )
    keep_finished: bool = field(
        default=False, metadata={"help": "Keep what was made with other settings; the new ones hold from here on."}
    )
    seed: int = field(default=42, metadata={"help": "Random seed."})

    def check_named(self):
        """Raise `ValueError` unless it is said what is trained, and where it is kept."""
        for name in ("output_dir", "student_model"):
            if getattr(self, name) is None:
                raise ValueError(f"`{name}` is not set.")

    def __post_init__(self):
        for name in (*_AT_LEAST_0, *_AT_LEAST_1):
            value, least = getattr(self, name), int(name in _AT_LEAST_1)
            if value is not None and not (value >= least and (value < math.inf or name == "budget_usd")):
                finite = ", and finite" if value == math.inf else ""
                raise ValueError(f"`{name}` must be {least} or more{finite}, got {value}.")
        for name in ("hard_share", "rouge_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")
        if self.referee_orders not in (1, 2):
            raise ValueError(f"`referee_orders` must be 2 (both orders) or 1, got {self.referee_orders}.")
        for of in fields(self):
            value, choices = getattr(self, of.name), get_args(of.type)
            if get_origin(of.type) is Literal and value not in choices:
                raise ValueError(f"`{of.name}` must be one of {', '.join(choices)}, got {value!r}.")
        for name in ("filters", "decontaminate"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ValueError(f"`{name}` must be a list, got {value!r}.")
            setattr(self, name, list(value or ()))
        self.training = self.training or {}
        self.filters = {("lion",): list(LION_FILTERS), ("none",): []}.get(tuple(self.filters), self.filters)
        check_filters(self.filters)
        partition([], self.tau, self.tau_quantile, self.min_teacher_score)
        self._check_mining()
        self._check_stages()
        for role in ("student", "teacher", "referee", "generator"):
            self.sampling(role)
        if self.dry_run and self.restart_from is not None:
            raise ValueError("`dry_run` changes nothing, and `restart_from` removes results. Set one of them.")

    @property
    def n_candidates(self) -> int:
        """How many new instructions are written in a round."""
        return round(self.n_new * self.oversample)

    def _check_mining(self) -> None:
        if not 0 < self.loss_share <= 1:
            raise ValueError(f"`loss_share` must be in (0, 1], got {self.loss_share}.")
        if self.miner != "referee" and self.rescore == "new_only":
            raise ValueError("`rescore: new_only` keeps scores of a referee. Leave it out, or set `miner: referee`.")

    def _check_stages(self) -> None:
        known = [["sft"], *(["sft", stage] for stage in _ON_POLICY)]
        if self.stages not in known:
            raise ValueError(f"`stages` must be one of {', '.join(map(str, known))}, got {self.stages!r}.")
        for stage in _ON_POLICY:
            setattr(self, stage, getattr(self, stage) or {})
            if getattr(self, stage) and stage not in self.stages:
                raise ValueError(f"`{stage}` is set, and `stages` is {self.stages}. Add it there, or leave it out.")
        if self.stages == ["sft"]:
            return
        if "dpo" in self.stages and self.miner == "loss":
            raise ValueError("`dpo` takes pairs that a referee has compared. Set `miner` to referee or both.")
        if "dpo" in self.stages and self.rescore == "new_only":
            raise ValueError(
                "`dpo` takes pairs of the last student, and `rescore: new_only` keeps older scores. Set `all`."
            )
        if self.adapter_rounds == "continue":
            raise ValueError(f"`{self.stages[-1]}` starts from a whole model. Set `adapter_rounds: merge`.")

    def sampling(self, role: str, seed: int | None = None) -> Sampling:
        """How `"teacher"`, `"student"`, `"referee"` or `"generator"` answers."""
        temperature, max_tokens = (getattr(self, f"{role}_{name}") for name in ("temperature", "max_tokens"))
        return Sampling(temperature, None, max_tokens, self.seed if seed is None else seed)

    def make(self, role: str) -> BaseChatModel:
        """The model of the role `"teacher"`, `"referee"`, `"generator"` or `"evaluator"`."""
        entry = self.entry(role)
        if entry is None:
            raise ValueError("No `teacher`: name the model that is to be imitated.")
        try:
            return chat_model(entry)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{role}`: {error}") from error

    def entry(self, role: str) -> dict[str, Any] | None:
        """The entry of a model, or of the one that it defaults to."""
        return getattr(self, role) or (self.referee if role == "evaluator" else None) or self.teacher

    def settings_of(self, stage: str, round: int) -> dict[str, Any]:
        """The fields on which the results of a stage depend, as JSON."""
        settings = {name: getattr(self, name) for name in _OF_STAGE[stage].split()}
        for role in settings.keys() & set(_MODELS):
            entry = self.entry(role)
            settings[role] = entry and {key: value for key, value in entry.items() if key not in _ACCESS}
        for name in settings.keys() & {"training", *_ON_POLICY}:
            settings[name] = what_is_learned(settings[name])
        if round == 0:  # it is but one imitation, from the base, and of all there is
            settings = {name: value for name, value in settings.items() if name not in _OF_LATER_ROUNDS}
        if not math.isfinite(settings.get("tau", 0.0)):
            settings["tau"] = str(settings["tau"])
        return json.loads(json.dumps(settings))

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
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from trl import DistillationConfig


@dataclass
class MiniLLMConfig(DistillationConfig):
    r"""
    Configuration class for the [`MiniLLMTrainer`].

    Extends [`~trl.DistillationConfig`]. Parameters of the parent class that are not listed keep their meaning; `beta`
    must stay `1.0`, the reverse KL, and `temperature` is one value for sampling, rewards, importance weights and loss.

    Parameters:
        > Parameters that control the rollouts

        teacher_mix_alpha (`float`, *optional*, defaults to `0.2`):
            Share of the teacher in the sampling distribution, Eq. (4) of the
            [MiniLLM](https://huggingface.co/papers/2306.08543) paper, in `[0, 1)`. Above `0.0`, completions are
            sampled without truncated sampling, and vLLM draws the student's tokens between two of the teacher's, which
            takes `vllm_mode="colocate"`. Evaluation samples from the student alone.
        num_generations (`int`, *optional*, defaults to `1`):
            Answers to each prompt of a rollout set. Above `1`, a token's credit counts from the mean of the other
            answers at its step (leave-one-out). Must divide the answers of a set on each process.
        score_from (`str`, *optional*, defaults to `"rollout"`):
            Where the rollout's log-probabilities come from: the hidden states with which both models drew the tokens
            (`"rollout"`: no model reads a token twice before training), or a forward pass over whole answers
            (`"forward"`). Rollouts by vLLM or with truncated sampling keep no states and are always read again.
        steps_per_generation (`int`, *optional*):
            Micro-batches of one rollout set on each process. Must be a multiple of `gradient_accumulation_steps`,
            which is the default: one optimizer step per set and pass. The paper's shape, 256 rollouts in mini-batches
            of 64, is `4 * gradient_accumulation_steps`.
        num_iterations (`int`, *optional*, defaults to `4`):
            Passes over each rollout set (PPO's inner epochs).

        > Parameters that control the credit of each token

        single_step_decomposition (`bool`, *optional*, defaults to `True`):
            Whether to add the exact per-token reverse KL, the single-step term of Eq. (3).
        return_mode (`str`, *optional*, defaults to `"auto"`):
            Whether a token's own reward is part of its credit: `"exclusive"` (no: the single-step term holds it),
            `"inclusive"` (yes: Eq. (2), and the released code), or `"auto"`: the first with
            `single_step_decomposition`, else the second.
        credit (`str`, *optional*, defaults to `"sampled"`):
            What later tokens count in a token's credit: their sampled rewards, or minus the exact reverse KL of each
            step (`"exact"`), the expectation of the reward under the student.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount of later rewards, in `[0, 1]`. The paper has none; `0.0` leaves only the single-step term.
        length_normalization (`bool`, *optional*, defaults to `False`):
            Whether to divide each credit by the number of rewards it sums, Eq. (6). The paper does; in the laboratory
            (`benchmarks/results/quality_credit.json`) this gives most of the long-term gain away.
        whiten_advantages (`bool`, *optional*, defaults to `True`):
            Whether to shift and scale credits to mean 0 and variance 1 over the tokens of the whole rollout set. Not
            in the paper; without length normalization it keeps answers from growing short in the laboratory.
        reward_scaling (`float`, *optional*, defaults to `1.0`):
            Divisor of the rewards. The released code uses `0.5`.
        reward_clip (`float`, *optional*):
            Bound on the size of the scaled rewards. The released code uses `100`.
        epsilon (`float`, *optional*, defaults to `0.2`):
            Half-width of the clip of the probability ratio. `inf` switches the clip off.
        clip_importance_weight (`bool`, *optional*, defaults to `False`):
            Whether the importance weight is part of the clipped ratio, as in the paper and the released code. It then
            stops the long-term gradient of tokens that the student makes less than 0.44 times as likely as the teacher
            (at `teacher_mix_alpha` and `epsilon` of `0.2`), which keeps bad starts alive. If `False`, only the change
            of the student since the rollout is clipped.

        > Parameters that control the language-modelling loss

        lm_coef (`float`, *optional*):
            Weight of the language-modelling loss on the corpus passed to the trainer as `lm_dataset`. If `None`, it is
            `1.0` with a corpus. A value above 0 without a corpus is an error.
        lm_kd_ratio (`float`, *optional*, defaults to `0.0`):
            Share of the forward KL to the teacher in the loss on the corpus; the rest is cross-entropy. The released
            code uses `0.5`.
        lm_max_length (`int`, *optional*, defaults to `512`):
            Length in tokens of the blocks into which the corpus is cut.

        > Parameters that control the teacher

        teacher_is_base (`bool`, *optional*, defaults to `False`):
            Whether the teacher is the student's own base model with the adapter disabled. Needs a PEFT student.
        teacher_model_server_url (`str`, *optional*):
            Address of a vLLM server of the teacher (`vllm serve`), such as `"http://localhost:8000"`, in place of a
            teacher in memory. It gives the log-probability of each sampled token at temperature 1 and no more, which
            is what the plain policy gradient takes: `single_step_decomposition=False`, `teacher_mix_alpha=0.0`, and a
            baseline, by `whiten_advantages` or by `num_generations` above `1`.
        teacher_states_on_cpu (`bool`, *optional*, defaults to `False`):
            Whether to keep the teacher's hidden states in host memory between the passes over a rollout set.
        loss_chunk_tokens (`int`, *optional*, defaults to `256`):
            Tokens projected to the vocabulary at a time. The workspace is 8 bytes a token and vocabulary entry on
            GPUs, 297 MiB for 256 tokens and a vocabulary of 152k; 12 bytes on CPUs.

    > [!NOTE]
    > These parameters have default values different from [`~trl.DistillationConfig`]:
    > - `learning_rate`: Defaults to `5e-6` instead of `1e-6`.
    > - `max_completion_length`: Defaults to `256` instead of `512`.
    > - `disable_dropout`: Defaults to `True` instead of `False`.
    """

    # Parameters whose default values are overridden from DistillationConfig
    learning_rate: float = field(default=5e-6, metadata={"help": "The initial learning rate for AdamW."})
    max_completion_length: int | None = field(
        default=256, metadata={"help": "Maximum number of tokens to generate per completion."}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Whether to disable dropout in the student model during training."}
    )

    # Parameters that control the rollouts
    teacher_mix_alpha: float = field(
        default=0.2, metadata={"help": "Share of the teacher in the sampling distribution, in [0, 1)."}
    )
    num_generations: int = field(default=1, metadata={"help": "Answers to each prompt of a rollout set."})
    score_from: str = field(
        default="rollout",
        metadata={
            "help": "Take log-probabilities from the rollout, or from a forward pass.",
            "choices": ["rollout", "forward"],
        },
    )
    steps_per_generation: int | None = field(
        default=None,
        metadata={"help": "Micro-batches of one rollout set on each process; by default one optimizer step."},
    )
    num_iterations: int = field(default=4, metadata={"help": "Passes over each rollout set (PPO's inner epochs)."})

    # Parameters that control the credit of each token
    single_step_decomposition: bool = field(
        default=True, metadata={"help": "Whether to add the exact per-token reverse KL, the single-step term."}
    )
    return_mode: str = field(
        default="auto",
        metadata={
            "help": "Whether a token's own reward is part of its credit: 'exclusive' (no), 'inclusive' (yes), 'auto'.",
            "choices": ["auto", "exclusive", "inclusive"],
        },
    )
    credit: str = field(
        default="sampled",
        metadata={
            "help": "What later tokens count: sampled rewards, or the exact step KL.",
            "choices": ["sampled", "exact"],
        },
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount of later rewards; 0.0 leaves only the single step."})
    length_normalization: bool = field(
        default=False, metadata={"help": "Whether to divide each credit by the number of rewards it sums."}
    )
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Whether to whiten credits over the whole rollout set."}
    )
    reward_scaling: float = field(default=1.0, metadata={"help": "Divisor of the rewards."})
    reward_clip: float | None = field(default=None, metadata={"help": "Bound on the size of the scaled rewards."})
    epsilon: float = field(default=0.2, metadata={"help": "Half-width of the clip of the probability ratio."})
    clip_importance_weight: bool = field(
        default=False, metadata={"help": "Whether the importance weight is part of the clipped ratio."}
    )

    # Parameters that control the language-modelling loss
    lm_coef: float | None = field(
        default=None, metadata={"help": "Weight of the language-modelling loss; 1.0 if there is a corpus."}
    )
    lm_kd_ratio: float = field(
        default=0.0, metadata={"help": "Share of the forward KL to the teacher in the loss on the corpus."}
    )
    lm_max_length: int = field(
        default=512, metadata={"help": "Length in tokens of the blocks into which the corpus is cut."}
    )

    # Parameters that control the teacher
    teacher_is_base: bool = field(
        default=False, metadata={"help": "Whether the teacher is the PEFT student with its adapter disabled."}
    )
    teacher_model_server_url: str | None = field(
        default=None, metadata={"help": "Address of a vLLM server of the teacher, such as http://localhost:8000."}
    )
    teacher_states_on_cpu: bool = field(
        default=False, metadata={"help": "Whether to keep the teacher's hidden states in host memory between passes."}
    )
    loss_chunk_tokens: int = field(default=256, metadata={"help": "Tokens projected to the vocabulary at a time."})

    @property
    def inclusive_returns(self) -> bool:
        """Whether a token's own reward is part of its credit."""
        if self.return_mode == "auto":
            return not self.single_step_decomposition
        return self.return_mode == "inclusive"

    @property
    def has_long_term(self) -> bool:
        """Whether any token can get credit: without discounting to 0, or with its own reward."""
        return self.gamma > 0.0 or self.inclusive_returns

    @property
    def first_pass_scores(self) -> bool:
        """
        Whether the first inner pass over a rollout set can also score it, as credit needs.

        It must see the parameters that the set was sampled with, so that the set is one optimizer step, and no
        statistic may span its micro-batches.
        """
        spans = self.whiten_advantages or self.num_generations > 1
        one_step = self.steps_per_generation == self.gradient_accumulation_steps
        return self.steps_per_generation == 1 or (one_step and not spans)

    def __post_init__(self):
        from ..hardware import choose_precision  # here, so that an import of this file loads little

        choose_precision(self)
        super().__post_init__()
        if self.steps_per_generation is None:
            self.steps_per_generation = self.gradient_accumulation_steps

        def require(condition: bool, name: str, rule: str):
            if not condition:
                raise ValueError(f"`{name}` must be {rule}, got {getattr(self, name)!r}.")

        require(0.0 <= self.teacher_mix_alpha < 1.0, "teacher_mix_alpha", "in [0, 1)")
        require(self.num_iterations >= 1, "num_iterations", "at least 1")
        answers = self.per_device_train_batch_size * self.steps_per_generation
        require(
            self.num_generations >= 1 and answers % self.num_generations == 0,
            "num_generations",
            f"a positive divisor of the {answers} answers of a rollout set on each process "
            "(`per_device_train_batch_size` x `steps_per_generation`)",
        )
        require(self.score_from in ("rollout", "forward"), "score_from", "rollout or forward")
        require(self.credit in ("sampled", "exact"), "credit", "sampled or exact")
        require(
            self.steps_per_generation >= 1 and self.steps_per_generation % self.gradient_accumulation_steps == 0,
            "steps_per_generation",
            f"a positive multiple of `gradient_accumulation_steps` ({self.gradient_accumulation_steps}), so that each "
            "rollout set is a whole number of optimizer steps",
        )
        require(self.return_mode in ("auto", "exclusive", "inclusive"), "return_mode", "auto, exclusive or inclusive")
        require(0.0 <= self.gamma <= 1.0, "gamma", "in [0, 1]")
        require(self.reward_scaling > 0.0, "reward_scaling", "above 0")
        require(self.reward_clip is None or self.reward_clip > 0.0, "reward_clip", "above 0, or None for no bound")
        require(self.epsilon > 0.0, "epsilon", "above 0")
        require(self.lm_coef is None or self.lm_coef >= 0.0, "lm_coef", "at least 0")
        require(0.0 <= self.lm_kd_ratio <= 1.0, "lm_kd_ratio", "in [0, 1]")
        require(self.lm_max_length >= 2, "lm_max_length", "at least 2")
        require(self.loss_chunk_tokens >= 1, "loss_chunk_tokens", "at least 1")
        require(self.temperature > 0.0, "temperature", "above 0")
        require((self.max_completion_length or 0) >= 1, "max_completion_length", "at least 1")
        require(self.beta == 1.0, "beta", "1.0, the reverse KL (for other divergences use `trl.DistillationTrainer`)")
        require(
            self.neftune_noise_alpha is None,
            "neftune_noise_alpha",
            "None, since noise on the embeddings would change the log-probabilities that tokens are scored with",
        )
        if not (self.single_step_decomposition or self.has_long_term):
            raise ValueError(
                "With `single_step_decomposition=False`, `return_mode='exclusive'` and `gamma=0.0` nothing is left to "
                "train. Switch the single-step term on, or give tokens credit with `gamma` above 0."
            )
        if self.teacher_is_base and self.teacher_model_name_or_path is not None:
            raise ValueError(
                "`teacher_is_base=True` takes the student's base model as teacher, but `teacher_model_name_or_path` "
                f"is {self.teacher_model_name_or_path!r}. Set only one of them."
            )
        if self.teacher_is_base and not self.disable_dropout:
            raise ValueError("`teacher_is_base=True` needs `disable_dropout=True`: the teacher runs in the student.")
        if self.teacher_model_server_url is not None:
            self._require_sampled_scores()
        if self.teacher_mix_alpha > 0.0:
            self._require_plain_sampling()

    # A server gives no distribution over the vocabulary, draws nothing for us, and its `temperature` is about tokens
    # that it draws: those that it is sent are scored at 1
    def _require_sampled_scores(self):
        url = urlsplit(self.teacher_model_server_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query:
            raise ValueError(
                "`teacher_model_server_url` must look like http://localhost:8000, without a user and a query, got "
                f"{self.teacher_model_server_url!r}."
            )
        needed = dict(
            single_step_decomposition=False,
            teacher_mix_alpha=0.0,
            credit="sampled",
            lm_kd_ratio=0.0,
            temperature=1.0,
            teacher_is_base=False,
            teacher_model_name_or_path=None,
        )
        changes = [f"`{name}={value!r}`" for name, value in needed.items() if getattr(self, name) != value]
        if not (self.whiten_advantages or self.num_generations > 1):
            changes.append("`whiten_advantages=True` or `num_generations` above 1, for a baseline")
        if changes:
            raise ValueError(
                "The teacher at `teacher_model_server_url` gives the log-probability of each sampled token at "
                f"temperature 1 and no more. Set {', '.join(changes)}."
            )

    def _changed_sampling(self) -> dict[str, tuple[Any, Any]]:
        """Settings that change the distribution which completions are drawn from, and what leaves it as it is."""
        neutral: dict[str, Any] = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
        settings = {name: getattr(self, name) for name in neutral}
        settings |= self.generation_kwargs or {}  # these override the fields
        neutral |= {"temperature": self.temperature, "do_sample": True}
        harmless = {"max_new_tokens", "cache_implementation", "use_cache"}
        return {
            name: (value, neutral.get(name))
            for name, value in settings.items()
            if name not in harmless and not (name in neutral and value == neutral[name])
        }

    @property
    def samples_plainly(self) -> bool:
        """Whether training draws completions by our sampler, from the models' own distributions."""
        return not self._changed_sampling() and (self.teacher_mix_alpha > 0.0 or not self.use_vllm)

    # With a share of the teacher, the probability that a token was drawn with must be known exactly
    def _require_plain_sampling(self):
        for name, (value, neutral) in self._changed_sampling().items():
            raise ValueError(
                f"`{name}={value!r}` changes the distribution that completions are drawn from, and with "
                f"`teacher_mix_alpha={self.teacher_mix_alpha}` the importance weights would be wrong. "
                + (f"Set it to {neutral!r}" if hasattr(self, name) else "Remove it from `generation_kwargs`")
                + ", or set `teacher_mix_alpha=0.0`."
            )
        if self.use_vllm and (self.vllm_mode, self.vllm_tensor_parallel_size) != ("colocate", 1):
            raise ValueError(
                "vLLM draws the student's tokens between two of the teacher's, which each process must ask for on its "
                f"own, but `vllm_mode` is {self.vllm_mode!r} and `vllm_tensor_parallel_size` is "
                f"{self.vllm_tensor_parallel_size}. Set 'colocate' and 1, or `teacher_mix_alpha=0.0`."
            )
        if self.use_vllm and self.vllm_enable_sleep_mode:
            raise ValueError(
                "`vllm_enable_sleep_mode=True` drops vLLM's weights after each of its calls, and with "
                f"`teacher_mix_alpha={self.teacher_mix_alpha}` a rollout makes many. Set it to `False`."
            )

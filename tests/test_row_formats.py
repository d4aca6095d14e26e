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
Rows of LLaMA-Factory and ms-swift, as their documentation writes them: data/README.md of the one, Custom-dataset.md of
the other.
"""

import json
from importlib import resources

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st

from tests.commands import write_rows
from trl_distill.files import load_rows, load_split
from trl_distill.row_formats import _say, trl_rows


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def said(**turns):
    return [{"from": role.removesuffix("_"), "value": text} for role, text in turns.items()]


# A row of each format, and what it is as a conversation with its last answer
ANSWERED = {
    "alpaca": ({"instruction": "Add.", "input": "1 + 1", "output": "2"}, [user("Add.\n1 + 1")], "2"),
    "alpaca without input": ({"instruction": "Hi", "input": "", "output": "Yo"}, [user("Hi")], "Yo"),
    "alpaca without instruction": ({"instruction": "", "input": "Hi", "output": "Yo"}, [user("Hi")], "Yo"),
    "alpaca with everything": (
        {"instruction": "q", "input": None, "output": "a", "system": "s", "history": [["q0", "a0"], ["q1", "a1"]]},
        [system("s"), user("q0"), assistant("a0"), user("q1"), assistant("a1"), user("q")],
        "a",
    ),
    "query and response": (
        {"system": "s", "query": "q", "response": "a", "history": [["q0", "a0"]]},
        [system("s"), user("q0"), assistant("a0"), user("q")],
        "a",
    ),
    "sharegpt": (
        {"conversations": said(human="q0", gpt="a0", human_="q", gpt_="a"), "system": "s"},
        [system("s"), user("q0"), assistant("a0"), user("q")],
        "a",
    ),
    "sharegpt with a turn of the system, which wins": (
        {"conversations": said(system="s", user="q", assistant="a"), "system": "other"},
        [system("s"), user("q")],
        "a",
    ),
    "sharegpt of ms-swift": (
        {"system": "s", "conversation": [{"human": "q0", "assistant": "a0"}, {"human": "q", "assistant": "a"}]},
        [system("s"), user("q0"), assistant("a0"), user("q")],
        "a",
    ),
    "messages": ({"messages": [system("s"), user("q"), assistant("a")]}, [system("s"), user("q")], "a"),
}
ASKED = {
    "alpaca": ({"instruction": "Add.", "input": "1 + 1"}, [user("Add.\n1 + 1")]),
    "query": ({"query": "q", "response": None}, [user("q")]),
    "sharegpt": ({"conversations": said(human="q0", gpt="a0", human_="q")}, [user("q0"), assistant("a0"), user("q")]),
    "messages": ({"messages": [system("s"), user("q")]}, [system("s"), user("q")]),
}
PAIRS = {
    "alpaca": {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
    "sharegpt": {
        "conversations": said(human="q"),
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "messages": {"messages": [user("q")], "chosen": assistant("good"), "rejected": assistant("bad")},
    "ms-swift": {"messages": [user("q"), assistant("good")], "rejected_response": "bad"},
    "ms-swift, a turn": {"messages": [user("q"), assistant("good")], "rejected_response": [assistant("bad")]},
    "ms-swift, whole conversations": {
        "messages": [user("q"), assistant("good")],
        "rejected_messages": [user("q"), assistant("bad")],
        "rejected_response": None,
    },
    "query and response": {"query": "q", "response": "good", "rejected_response": "bad"},
}
EMPTY = (None, "", "[]", [])
TURNS = ("conversations", "conversation", "messages")


def read(row, wanted, *known):
    """What a row is read as, which is the same from a data set, a stream and rows one by one, and stays so."""
    row = {"id": 7} | row
    rows = Dataset.from_list([row])
    converted = trl_rows(rows, wanted, *known)
    [found] = converted
    assert trl_rows(converted, wanted, *known) is converted
    stream = trl_rows(rows.to_iterable_dataset(), wanted, *known)
    [streamed] = stream
    if wanted != "prompt" and row.get("tools") in EMPTY:
        streamed.pop("tools", None)  # which a later row may have
    assert isinstance(stream, IterableDataset) and streamed == found
    one_by_one = list(trl_rows(iter([row]), wanted, *known))
    assert one_by_one == [found] and list(trl_rows(iter(one_by_one), wanted, *known)) == [found]
    assert found.pop("id") == 7
    return found


@pytest.mark.parametrize("name", ANSWERED)
def test_prompts(name):
    row, turns, answer = ANSWERED[name]
    assert read(row, "prompt") == {"prompt": turns, "completion": [assistant(answer)]}


@pytest.mark.parametrize("name", ASKED)
def test_prompts_without_an_answer(name):
    row, turns = ASKED[name]
    assert list(trl_rows(Dataset.from_list([row]), "prompt")) == [{"prompt": turns}]
    assert list(trl_rows(iter([row]), "prompt")) == [{"prompt": turns}]


@pytest.mark.parametrize("name", ANSWERED)
def test_supervised(name):
    row, turns, answer = ANSWERED[name]
    whole = {"messages": [*turns, assistant(answer)]}
    expected = whole if set(TURNS) & row.keys() else {"prompt": turns, "completion": [assistant(answer)]}
    assert read(row, "sft") == expected


@pytest.mark.parametrize("name", PAIRS)
def test_preferences(name):
    expected = {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}
    assert read(PAIRS[name], "preference") == expected


TEXT = st.text().filter(bool)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.none() | TEXT)
def test_texts_stay_byte_for_byte_in_every_format(pairs, told):
    """One conversation in four formats is one conversation."""
    *history, (question, answer) = pairs
    turns = [turn for pair in pairs for turn in zip(("human", "gpt"), pair, strict=True)]
    rows = [
        {"instruction": question, "input": "", "output": answer, "history": [list(pair) for pair in history]},
        {"query": question, "response": answer, "history": [list(pair) for pair in history]},
        {"conversations": [{"from": role, "value": text} for role, text in turns]},
        {"conversation": [{"human": asked, "assistant": given} for asked, given in pairs]},
    ]
    opening = [] if told is None else [system(told)]
    expected = opening + [message for asked, given in pairs for message in (user(asked), assistant(given))]
    for row in rows:
        [found] = trl_rows(iter([row | {"system": told}]), "prompt")
        assert found["prompt"] + found["completion"] == expected
        assert list(trl_rows(iter([found]), "prompt")) == [found]


class TestRowsOfTRL:
    """They do what they did."""

    @pytest.mark.parametrize(
        ("row", "wanted", "known"),
        [
            ({"prompt": "q", "completion": "a", "instruction": "x"}, "sft", ()),
            ({"prompt": [user("q")], "messages": [user("q"), assistant("a")]}, "prompt", ()),
            ({"messages": [user("q"), assistant("a")], "images": ["a.png"]}, "sft", ()),
            ({"messages": [user("q"), {"role": "tool", "name": "f", "content": "1"}, assistant("a")]}, "sft", ()),
            ({"conversations": [user("q"), assistant("a")]}, "sft", ()),
            ({"text": "t", "instruction": "x", "output": "y"}, "sft", ("text",)),  # tatsu-lab/alpaca
            ({"input_ids": [1, 2], "query": "q"}, "sft", ()),
            ({"text": "t"}, "prompt", ()),
            ({"prompt": "q", "chosen": "a", "rejected": "b", "messages": [user("q")]}, "preference", ()),
            ({"instruction": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q")]}, "preference", ()),
            ({"chosen": "a", "rejected": "b"}, "preference", ()),
            ({"instruction": "q", "output": "a"}, "preference", ()),  # the trainer says what is missing
            ({"instruction": "q", "input": "x"}, "prompt", ("instruction",)),  # read by Lion itself
        ],
    )
    def test_stay(self, row, wanted, known):
        rows = Dataset.from_list([row])
        assert trl_rows(rows, wanted, *known) is rows
        assert list(trl_rows(iter([row]), wanted, *known)) == [row]

    def test_no_rows(self):
        rows = Dataset.from_list([])
        assert trl_rows(rows, "sft") is rows and list(trl_rows(iter([]), "prompt")) == []


class TestEmptyColumns:
    """They say nothing, and to TRL an empty `tools` is no JSON, an empty `images` a row with pictures."""

    @pytest.mark.parametrize("value", EMPTY, ids=repr)
    @pytest.mark.parametrize("name", ["tools", "images", "videos", "audios", "rejected_tools", "kto_tag"])
    @pytest.mark.parametrize("wanted", ["sft", "prompt"])
    @pytest.mark.parametrize("kind", ["alpaca", "query and response", "sharegpt", "sharegpt of ms-swift", "messages"])
    def test_are_none(self, kind, wanted, name, value):
        row = {key: value for key, value in ANSWERED[kind][0].items() if key != "history"}
        [expected] = trl_rows(iter([row]), wanted)
        assert read(row | {name: value}, wanted) == expected

    @pytest.mark.parametrize("value", EMPTY, ids=repr)
    @pytest.mark.parametrize("kind", ["alpaca", "query and response"])
    def test_no_history(self, kind, value):
        row = {key: text for key, text in ANSWERED[kind][0].items() if key != "history"}
        assert read(row | {"history": value}, "sft") == read(row, "sft")

    @pytest.mark.parametrize("name", ["tools", "images"])
    @pytest.mark.parametrize("kind", PAIRS)
    def test_are_none_in_pairs(self, kind, name):
        [expected] = trl_rows(iter([PAIRS[kind]]), "preference")
        assert read(PAIRS[kind] | {name: ""}, "preference") == expected

    def test_of_some_rows(self):
        rows = [ANSWERED["sharegpt"][0] | {"tools": tools} for tools in ("", "[]", json.dumps(TOOLS), "")]
        found = trl_rows(Dataset.from_list(rows), "sft")
        assert found["tools"][:] == [None, None, json.dumps(TOOLS), None]
        assert [row["messages"] for row in found] == [[*ANSWERED["sharegpt"][1], assistant("a")]] * 4
        rows = [ANSWERED["alpaca"][0] | {"images": images} for images in ("", "a.png")]
        for made in (Dataset.from_list, iter):
            with pytest.raises(ValueError, match="Row 1, read as alpaca: `images` is not read"):
                list(trl_rows(made(rows), "sft"))


TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {key: {}}}}}
    for name, key in (("weather", "city"), ("add", "numbers"))
]


def call(*calls):
    calls = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def result(text):
    return {"role": "tool", "content": text}


WEATHER, SUM = ("weather", {"city": "Oslo"}), ("add", {"numbers": [1, 2.5]})
SAYS = [json.dumps({"name": name, "arguments": given}) for name, given in (WEATHER, SUM)]
CALLED = [user("q"), call(WEATHER, SUM), result("snow"), result("3.5"), assistant("a")]
CALLS = {
    "sharegpt": {
        "conversations": said(human="q", function_call=f"[{', '.join(SAYS)}]", observation="snow", observation_="3.5")
        + said(gpt="a")
    },
    "ms-swift messages": {
        "messages": [user("q"), *({"role": "tool_call", "content": text} for text in SAYS)]
        + [{"role": "tool_response", "content": "snow"}, result("3.5"), assistant("a")],
    },
    "TRL's own": {"messages": CALLED},
}


class TestTools:
    """What TRL passes to a chat template: functions as JSON, calls, and results of the role `tool`."""

    @pytest.mark.parametrize("bare", [False, True])
    @pytest.mark.parametrize("kind", CALLS)
    def test_supervised(self, kind, bare):
        tools = json.dumps([tool["function"] for tool in TOOLS] if bare else TOOLS)
        rows = [CALLS[kind] | {"tools": tools}]
        if kind != "TRL's own":  # whose rows Arrow has mixed up before
            rows.append({next(iter(CALLS[kind])): CALLS[kind][next(iter(CALLS[kind]))][-1:], "tools": ""})
        rows = Dataset.from_list(rows, on_mixed_types="use_json")
        if kind == "sharegpt":
            rows = rows.select([0])
        found = trl_rows(rows, "sft")
        assert found[0] == {"messages": CALLED, "tools": json.dumps(TOOLS)}
        assert list(trl_rows(found, "sft")) == list(found) == list(trl_rows(rows.to_iterable_dataset(), "sft"))
        if kind == "ms-swift messages":
            assert found[1] == {"messages": [assistant("a")], "tools": None}

    def test_a_thought_stays_before_its_call(self):
        turns = said(human="q", function_call=f"<think>Hm.</think>{SAYS[0]}")
        [found] = trl_rows(iter([{"conversations": turns, "tools": json.dumps(TOOLS)}]), "sft")
        assert found["messages"][1] == call(WEATHER) | {"content": "<think>Hm.</think>"}
        turns = [user("q"), assistant("Hm."), {"role": "tool_call", "content": SAYS[0]}]
        [found] = trl_rows(iter([{"messages": turns, "tools": json.dumps(TOOLS)}]), "sft")
        assert found["messages"][1:] == [call(WEATHER) | {"content": "Hm."}]

    def test_preferences(self):
        row = {
            "conversations": said(human="q"),
            "chosen": said(function_call=SAYS[0])[0],
            "rejected": said(gpt="?")[0],
        }
        found = trl_rows(Dataset.from_list([row | {"tools": json.dumps(TOOLS)}]), "preference")
        expected = {"prompt": [user("q")], "chosen": [call(WEATHER)], "rejected": [assistant("?")]}
        assert found[0] == expected | {"tools": json.dumps(TOOLS)}

    @pytest.mark.parametrize("template", ["qwen2_5", "qwen3", "llama3_1"])
    def test_templates_show_each_call_with_its_own_arguments(self, template, tokenizer):
        turns = [user("q"), call(WEATHER), result("snow"), call(SUM), result("3.5"), assistant("a")]
        text = (resources.files("trl") / "chat_templates" / f"{template}.jinja").read_text()
        rows = []
        for first, second in (SAYS, reversed(SAYS)):
            calls = said(function_call=first, observation="snow") + said(function_call=second, observation="3.5")
            rows.append({"conversations": said(human="q") + calls + said(gpt="a"), "tools": json.dumps(TOOLS)})
        found = trl_rows(Dataset.from_list(rows), "sft")[0]
        shown, expected = (
            tokenizer.apply_chat_template(messages, tools=TOOLS, chat_template=text, tokenize=False)
            for messages in (found["messages"], turns)
        )
        assert shown == expected and "Oslo" in shown and "null" not in shown


@pytest.mark.parametrize("wanted", ["sft", "prompt"])
def test_system_beside_messages(wanted):
    """TRL would learn the turns alone. A turn of the system wins."""
    turns = [user("q"), assistant("a")]
    for row, told in (
        ({"messages": turns, "system": "s"}, [system("s")]),
        ({"messages": [system("s"), *turns], "system": "other"}, [system("s")]),
        ({"messages": turns, "system": ""}, []),
    ):
        found = read(row, wanted)
        assert found.get("messages", found.get("prompt", []) + found.get("completion", [])) == told + turns
    rows = Dataset.from_list([{"messages": turns, "system": text} for text in (None, "s")])
    assert len(trl_rows(rows, "sft")[1]["messages"]) == 3


class TestFiles:
    def test_rows_that_differ(self, tmp_path):
        """Answers, system and history may be anywhere, and missing elsewhere."""
        rows = [
            {"instruction": "a", "output": "A"},
            {"instruction": "b", "input": "c", "output": None, "history": [["q", "r"]]},
            {"instruction": "d", "output": "D", "system": "s"},
        ]
        expected = [
            {"prompt": [user("a")], "completion": [assistant("A")]},
            {"prompt": [user("q"), assistant("r"), user("b\nc")], "completion": None},
            {"prompt": [system("s"), user("d")], "completion": [assistant("D")]},
        ]
        path = write_rows(tmp_path / "rows.jsonl", rows)
        assert list(trl_rows(load_split(path), "prompt")) == expected
        del expected[1]["completion"]
        assert list(trl_rows(load_rows(path), "prompt")) == expected

    def test_an_answer_may_first_come_late(self):
        rows = [{"query": "q", "response": "a" if i in (0, 1500) else None} for i in range(1501)]
        found = trl_rows(Dataset.from_list(rows), "prompt")
        assert [i for i, answer in enumerate(found["completion"]) if answer] == [0, 1500]

    def test_csv(self, tmp_path):
        (tmp_path / "rows.csv").write_text("instruction,input,output\nAdd.,1 + 1,2\nHi,,Yo\n")
        found = list(trl_rows(load_split(str(tmp_path / "rows.csv")), "sft"))
        assert [row["prompt"][0]["content"] for row in found] == ["Add.\n1 + 1", "Hi"]

    def test_turns_with_tool_calls_of_trl_keep_them(self):
        call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
        messages = [
            user("q"),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "name": "f", "content": "1"},
            assistant("a"),
        ]
        [found] = trl_rows(iter([{"messages": messages}]), "prompt")
        assert found == {"prompt": messages[:-1], "completion": messages[-1:]}
        rows = [{"messages": [user("q"), assistant("a")]}] * 1500 + [{"messages": messages}]  # of another batch
        found = trl_rows(Dataset.from_list(rows), "prompt")[1500]
        assert found["prompt"][1]["tool_calls"] == [call] and found["completion"][0]["content"] == "a"


@pytest.mark.parametrize(
    ("row", "wanted", "expected"),
    [
        ({"instruction": "q", "conversations": said(human="q")}, "sft", "several formats, instruction, conversations"),
        ({"query": "q", "messages": [user("q")]}, "prompt", "several formats, query, messages: which one is meant"),
        (
            {"conversations": said(human="q", function_call="f")},
            "prompt",
            "Row 0, read as sharegpt: a turn is of 'function_call', and calls of tools are read by `sft` and `dpo`",
        ),
        ({"conversations": said(human="q", observation="1")}, "sft", "a turn is of 'observation', and calls of tools"),
        ({"conversations": said(human="q", tool="1")}, "sft", "beside a column `tools` of functions. Add it"),
        ({"conversation": [{"tool": "1", "assistant": "a"}]}, "sft", "a turn is of 'tool', and calls of tools"),
        ({"conversations": said(human="q", gpt="a"), "tools": "[{}]"}, "prompt", "`tools` is read by `sft` and `dpo`"),
        ({"conversations": said(human="q", gpt="a"), "tools": "f"}, "sft", "`tools` must be the JSON text of a list"),
        (
            {"conversations": said(human="q", function_call="f"), "tools": "[{}]"},
            "sft",
            "a call must be JSON with `name`",
        ),
        (
            {"messages": [user("q"), {"role": "tool_call", "content": SAYS[0]}]},
            "prompt",
            "a turn is of 'tool_call', and calls of tools",
        ),
        (
            {"messages": CALLED, "rejected_messages": [user("q"), assistant("bad")]},
            "preference",
            "`rejected_messages` must be `messages` with another last answer",
        ),
        ({"messages": [user("q"), assistant("a")], "rejected_response": None}, "preference", "no rejected answer"),
        ({"instruction": "<image>?", "output": "a", "images": ["a.png"]}, "sft", "`images` is not read"),
        (
            {"instruction": "q", "output": "a", "kto_tag": False},
            "sft",
            "Row 0, read as alpaca: `kto_tag` marks an answer",
        ),
        ({"messages": [user("q"), assistant("a")], "kto_tag": True}, "sft", "no command learns from single marks"),
        (
            {"conversations": said(human="q", narrator="1")},
            "sft",
            "a turn is of 'narrator', expected one of",
        ),
        ({"conversations": []}, "prompt", "`conversations` asks nothing"),
        ({"conversations": said(gpt="a")}, "prompt", "`conversations` asks nothing"),
        ({"conversations": "q"}, "prompt", "`conversations` must be a list of turns, got 'q'"),
        ({"instruction": "", "input": "", "output": "a"}, "sft", "`instruction` is empty"),
        ({"instruction": "q"}, "sft", "it has no answer. `output` must be a text."),
        ({"query": "q"}, "sft", "it has no answer. `response` must be a text."),
        ({"instruction": "q", "output": ["a", "b"]}, "sft", "expected a text, got ['a', 'b']"),
        ({"instruction": "q", "output": "a", "history": "[['q', 'a']]"}, "sft", "`history` must be a list of pairs"),
        ({"instruction": "q", "output": "a", "history": [["q"]]}, "sft", "`history` must be a list of pairs"),
        (
            {"conversations": said(human="q", gpt="a"), "chosen": "c", "rejected": "r"},
            "preference",
            "is the assistant's",
        ),
        ({"query": "q", "rejected_response": "r"}, "preference", "stands beside a last answer"),
        (
            {"conversations": said(human="q"), "chosen": said(human="c")[0], "rejected": said(gpt="r")[0]},
            "preference",
            "an answer must be the assistant's",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(row, wanted, expected):
    for rows in (Dataset.from_list([row]), iter([row])):
        with pytest.raises(ValueError) as raised:
            trl_rows(rows, wanted)
        assert expected in str(raised.value)


def test_the_row_is_named():
    rows = [{"instruction": "q", "output": "a"}] * 3 + [{"instruction": "q", "output": None}]
    for make in (Dataset.from_list, iter):
        with pytest.raises(ValueError, match="Row 3, read as alpaca: it has no answer"):
            list(trl_rows(make(rows), "sft"))


def test_what_was_recognised_is_said_once(caplog):
    _say.cache_clear()
    row, _, _ = ANSWERED["alpaca with everything"]
    for _ in range(2):
        trl_rows(Dataset.from_list([row]), "sft")
    trl_rows(iter([ANSWERED["sharegpt"][0]]), "sft")
    trl_rows(iter([PAIRS["alpaca"]]), "preference")
    assert caplog.messages == [
        "Rows of the format alpaca (instruction, input, output, system, history) are read as `prompt`, `completion`. "
        "Answers in `history` are read, not learned.",
        "Rows of the format sharegpt (conversations, system) are read as `messages`. A turn of the system wins over "
        "`system`. All of their text is learned; with `assistant_only_loss` the answers are.",
        "Rows of the format alpaca (instruction, input, chosen, rejected) are read as `prompt`, `chosen`, `rejected`.",
    ]

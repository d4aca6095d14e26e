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

"""The filters for dialogues and `trl-distill clean`: oracles C1 to C3 of the Zephyr specification, and what stays."""

import gzip
import json
import string

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.commands import error_of, read_rows, write_rows
from trl_distill import cli
from trl_distill.scripts import clean
from trl_distill.zephyr.filters import clean_dialogues, decontaminate, refusal, truecase


def dialogue(*texts, system=None):
    """Messages of a user and an assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system is not None else []) + messages


class TestTruecase:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Hello. how are you?", "Hello. How are you?"),  # the example of the data set's card
            ("hello there, friend", "Hello there, friend"),
            ("Is it? yes, it is! good to know.", "Is it? Yes, it is! Good to know."),
            ("It is red.\nit is blue.\n\nwhat else is it?", "It is red.\nIt is blue.\n\nWhat else is it?"),
            ("It was 1990. then he left.", "It was 1990. Then he left."),
            ("See https://a.org/b.html. it is there.", "See https://a.org/b.html. It is there."),
            ("Use `a.b`. then go on.", "Use `a.b`. Then go on."),
            ("How do i get there? i'm lost, and i’ve no map.", "How do I get there? I'm lost, and I’ve no map."),
            ("My wife and i think that i can.", "My wife and I think that I can."),
            ("il pleut. étienne reste là.", "Il pleut. Étienne reste là."),
            ("A cat sat. a dog ran. well-known facts.", "A cat sat. A dog ran. Well-known facts."),
            (
                "Run it:\n\n```python\nx = 1\n```\n\nIt works. try it.",
                "Run it:\n\n```python\nx = 1\n```\n\nIt works. Try it.",
            ),
        ],
    )
    def test_repairs(self, text, expected):
        assert truecase(text) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " \n",
            "```\nwhat is this. it is code.\n```",
            "~~~\nnot closed. so all is code",
            "Like so:\n\n    first line. second line\n\ttabbed. line",
            "Call `do it. now` and ``a ` b. c`` there.",
            "<pre>one. two</pre> and <b title='a. b'>it</b>",
            "It costs \\(n. m\\), or $a. b$, or $$c. d$$.",
            "x = 3. then",
            "for i in range(10):\n    print(i)",
            "const a = b. c;",
            "He came in. See www.example.com/a. html and mail me at a.b@example.com.",
            "Open readme.md? no_such.txt! a/b.c is it.",
            "Many, e.g. apples, i.e. fruit, etc. and so on vs. none at 5 a.m. or p.m. on Fri. next week.",
            "J. von Neumann met Dr. von Braun, Mr. de Gaulle and St. peter.",
            "It is 3.5 or 1.2.3 or No. five, pp. ten, approx. six in. long, 2 tbsp. sugar.",
            "Well... maybe. .. or not… who knows",
            "Why? iPhone. eBay! macOS? npm2 runs.",
            "1. first\n2. second\na. third\niv. fourth\n- fifth\n* sixth",
            "Which one?\na) red\nb) blue\n\nA.\nblue",
            "There are 10! ways and n! orders.",
            "red, green, blue",
            "true",
            "not really",
            "привет. как дела? это хорошо.",
            "你好. 怎么样? γεια. τι κάνεις;",
            "HELLO. HOW ARE YOU? I AM FINE.",
            "The sum over i is for all i in A, so that i can be j.",
            "Vi bor i Danmark. Det er koldt i dag.",
            "Die Straße. ßa is no word.",
            '"Really?" she asked. "Yes." she knew',
        ],
    )
    def test_leaves_alone(self, text):
        assert truecase(text) == text

    def test_takes_no_capital_away(self):
        assert truecase("Hello. How Are YOU?") == "Hello. How Are YOU?"

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.sampled_from(
                    (
                        "hello. how are you? i'm i am do i e.g. etc. a.m. J. 1. a. a) ``` ` ~~~ $ \\( \\) <b> </b> "
                        "http://a.b/c. iPhone ... … ! ? - * | , \n \n\n \t 10! привет. ß. été. ǆ. ŉ. ⅷ ⓐ. ªb. = ; { ( "
                        "// -> for x in y:"
                    ).split(" ")
                ),
                st.text(string.ascii_letters + " .!?\n'`$", max_size=8),
                st.text(max_size=4),
            )
        ).map(" ".join)
    )
    def test_idempotent_and_of_the_same_length(self, text):
        once = truecase(text)
        assert truecase(once) == once
        assert len(once) == len(text)
        assert once.casefold() == text.casefold()
        assert all(new == old or (old.islower() and not new.islower()) for old, new in zip(text, once, strict=True))


class TestRefusal:
    @pytest.mark.parametrize(
        ("text", "phrase"),
        [
            ("I do not have emotions.", "i do not have emotions"),  # the two examples of the data set's card
            ("I don't have opinions.", "i don't have opinions"),
            ("I don’t have OPINIONS", "i don't have opinions"),
            ("Well,\nas I said, I do not\thave emotions", "i do not have emotions"),
            ("As an AI language model, I don't have personal experiences.", "i don't have personal experiences"),
            ("I'm a bot, so I don't have feelings, but I can help.", "i'm a bot, so i don't have feelings"),
            ("I am an AI and do not have personal preferences.", "i am an ai and do not have personal preferences"),
            ("I, as a language model, do not have a personal opinion.", None),
            ("As an AI, I cannot have an opinion on that.", "i cannot have an opinion"),
            ("As an AI, I don't have the ability to feel emotions.", "i don't have the ability to feel emotions"),
            ("I am not capable of experiencing emotions.", "i am not capable of experiencing emotions"),
            ("Because I'm a machine I have no feelings.", "i have no feelings"),
            ("I lack consciousness.", "i lack consciousness"),
            ("AI models like me do not have beliefs.", "like me do not have beliefs"),
            ("As an AI, I don't have a favorite color.", "i don't have a favorite"),
            ("I am not sentient.", "i am not sentient"),
        ],
    )
    def test_drops(self, text, phrase):
        found = refusal(dialogue("What do you think?", text))
        assert found is not None
        assert phrase is None or found == phrase

    @pytest.mark.parametrize(
        "text",
        [
            "Robots do not have emotions. You don't have opinions.",
            "I don't have any experience with web development.",
            "I don't have an opinion on the patch.",
            "She said: I don't have feelings for him.",
            "I don't have strong feelings about it, and no favorite.",
            "As an AI language model, I do not have access to news.",
            "I am not conscious of that.",
            "I have opinions and emotions.",
            "Hawaii do not have emotions",  # an i within a word
        ],
    )
    def test_keeps(self, text):
        assert refusal(dialogue("Hm?", text)) is None

    def test_only_the_assistant_counts(self):
        phrase = "I do not have emotions. I don't have opinions."
        assert refusal(dialogue(phrase, "Fine.", phrase, system=phrase)) is None
        assert refusal(dialogue("Hi", "Hello", "Well?", f"Yes. {phrase}")) == "i do not have emotions"


class TestCleanDialogues:
    def test_counts_add_up(self):
        rows = [
            {"messages": dialogue("hello. how are you?", "fine. and you?"), "id": 1},
            {"messages": dialogue("Hello.", "Hi."), "id": 2},
            {"messages": dialogue("Do you like it?", "I don't have opinions."), "id": 3},
            {"messages": dialogue("I don't have opinions.", "Fine."), "id": 4},
            {"messages": dialogue("What is the capital of the state of Texas?", "Austin."), "id": 5},
            {"messages": []},
            {"text": "no dialogue"},
        ]
        against = ["what is the capital of the state of texas"]
        cleaned, counts = clean_dialogues(rows, against=against)
        assert [row["id"] for row in cleaned] == [1, 2, 4]
        assert cleaned[0]["messages"] == dialogue("Hello. How are you?", "Fine. And you?")
        assert counts == {
            "rows": 7,
            "kept": 3,
            "changed": 1,
            "malformed": {"no turns": 1, "no dialogue": 1},
            "refusals": {"i don't have opinions": 1},
            "contaminated": {against[0]: 1},
        }
        dropped = [sum(counts[kind].values()) for kind in ("malformed", "refusals", "contaminated")]
        assert counts["kept"] + sum(dropped) == counts["rows"]
        assert rows[0]["messages"][0]["content"] == "hello. how are you?"  # the input is not changed

    def test_filters_can_be_switched_off(self):
        rows = [{"messages": dialogue("hello. how are you?", "well. I don't have opinions.")}]
        assert clean_dialogues(rows, truecase=False, refusals=False)[0] == rows
        assert clean_dialogues(rows, truecase=False)[1]["kept"] == 0
        assert clean_dialogues(rows, refusals=False)[1]["changed"] == 1

    def test_all_forms_of_rows(self):
        texts = ("hello. how are you?", "fine. and you?")
        clean = dialogue("Hello. How are you?", "Fine. And you?")
        sharegpt = [{"from": "human", "value": texts[0]}, {"from": "gpt", "value": texts[1]}]
        messages = dialogue(*texts)
        rows = [
            {"messages": messages, "prompt": texts[0], "prompt_id": "a"},  # ultrachat_200k
            {"conversations": sharegpt, "n": 1},
            {"data": list(texts), "id": "7"},  # the first release of UltraChat
            {"prompt": messages[:1], "completion": messages[1:]},
        ]
        cleaned, counts = clean_dialogues(rows)
        assert cleaned == [
            {"messages": clean, "prompt_id": "a"},
            {"messages": clean, "n": 1},
            {"messages": clean, "id": "7"},
            {"prompt": clean[:1], "completion": clean[1:]},
        ]
        assert counts["changed"] == counts["kept"] == 4

    @pytest.mark.parametrize(
        ("messages", "reason"),
        [
            ([], "no turns"),
            (["hello"], "turn without role and content"),
            ([{"role": "user"}, {"role": "assistant", "content": "a"}], "content is no text"),
            ([{"role": "user", "content": [{"type": "text"}]}], "content is no text"),
            ([{"role": "tool", "content": "a"}], "unknown role"),
            ([{"role": None, "content": "a"}], "unknown role"),
            ([{"role": ["user"], "content": "a"}], "unknown role"),
            (dialogue("a") + [{"role": "assistant", "content": "b", "tool_calls": [{}]}], "tool call"),
            (dialogue("a", "half a pair \ud83d"), "text that cannot be written as UTF-8"),
            ([{"role": "user", "content": "a"}], "no assistant turn"),
            ([{"role": "system", "content": "a"}], "no assistant turn"),
            ([{"role": "assistant", "content": "a"}], "roles out of order"),
            (dialogue("a", "b") + dialogue("c")[:1] * 2, "roles out of order"),
            (dialogue("a", "b") + [{"role": "system", "content": "c"}], "roles out of order"),
            (dialogue("a", " \n"), "empty turn"),
            (dialogue("", "b"), "empty turn"),
        ],
    )
    def test_malformed(self, messages, reason):
        assert clean_dialogues([{"messages": messages}])[1]["malformed"] == {reason: 1}

    def test_an_open_end_and_an_empty_system_message_are_fine(self):
        rows = [{"messages": dialogue("A", "B", "C", system="")}]
        assert clean_dialogues(rows)[0] == rows


class TestDecontaminate:
    QUESTION = "What happens to you if you eat watermelon seeds?"  # nine words

    @pytest.mark.parametrize(
        ("prompt", "is_kept"),
        [
            (QUESTION, False),
            ("  what HAPPENS, to you; if you eat\nwatermelon_seeds", False),
            (f"Answer in one word. {QUESTION} Be kind.", False),
            (dialogue(f"Q: {QUESTION}"), False),
            (dialogue("Hi", QUESTION, "Tell me."), True),  # the assistant's turn
            (dialogue("Hi", "Hello", QUESTION), False),
            (dialogue("Hi", system=QUESTION), False),
            ({"prompt": QUESTION, "completion": "x"}, False),
            ({"prompt": dialogue(QUESTION), "chosen": []}, False),
            ({"instruction": QUESTION}, False),
            ({"conversations": [{"from": "gpt", "value": QUESTION}]}, True),
            ("What happens to you if you eat watermelon?", True),  # a part of it
            ("What happens to you if you eat melon seeds?", True),
            ("xWhat happens to you if you eat watermelon seeds?", True),
        ],
    )
    def test_equal_or_contained(self, prompt, is_kept):
        kept, counts = decontaminate([prompt], ["Why?", self.QUESTION])
        assert kept == [prompt] * is_kept
        dropped = {} if is_kept else {self.QUESTION: 1}
        assert counts == {"rows": 1, "kept": len(kept), "dropped": 1 - len(kept), "questions": dropped}

    def test_short_questions_must_be_equal(self):
        prompts = ["answer the following question", "Answer the following question. Why is the sky blue?"]
        assert decontaminate(prompts, ["Answer the following question."])[0] == prompts[1:]
        assert decontaminate(prompts, ["Answer the following question."], min_words=4)[0] == []

    def test_questions_with_the_same_opening(self):
        against = [
            "one two three four five six seven eight nine ten",
            "one two three four five six seven eight eleven",
        ]
        kept, counts = decontaminate([f"0 {against[1]} 12", f"0 {against[0]}", against[0][:-4]], against)
        assert kept == [against[0][:-4]]
        assert counts["questions"] == dict.fromkeys(reversed(against), 1)

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(st.lists(st.sampled_from("ab"), max_size=6), max_size=4),
        st.lists(st.lists(st.sampled_from("ab"), max_size=9), max_size=6),
        st.integers(1, 4),
    )
    def test_against_a_search_in_strings(self, questions, prompts, min_words):
        """The oracle joins the words by spaces and searches the text."""

        def is_clean(prompt):
            text = f" {' '.join(prompt)} "
            return not any(
                question and (question == prompt or (len(question) >= min_words and f" {' '.join(question)} " in text))
                for question in questions
            )

        texts = [" ".join(prompt) for prompt in prompts]
        kept, counts = decontaminate(texts, [" ".join(question) for question in questions], min_words=min_words)
        assert kept == [text for text, prompt in zip(texts, prompts, strict=True) if is_clean(prompt)]
        assert sum(counts["questions"].values()) == counts["dropped"] == len(texts) - len(kept)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="must be a list of questions, got one text"):
            decontaminate(["a"], "a question")
        with pytest.raises(ValueError, match="`min_words` must be 1 or more, got 0"):
            decontaminate(["a"], ["b"], min_words=0)
        with pytest.raises(ValueError, match=r"needs `prompt`, .*got \['text'\]"):
            decontaminate([{"text": "a"}], ["b"])


# The command


QUESTION = "How many seconds are there in a leap year?"
ROWS = [
    {"messages": dialogue("hello. how are you?", "Fine."), "prompt": "hello. how are you?", "n": 0},
    {"messages": dialogue("Do you like tea?", "I don't have opinions."), "prompt": "Do you like tea?", "n": 1},
    {"messages": dialogue(f"Tell me. {QUESTION}", "Many."), "prompt": QUESTION, "n": 2},
    {"messages": dialogue("", "Hm?"), "prompt": "", "n": 3},
    {"messages": dialogue("Was it §ö?", "It was."), "prompt": "Was it §ö?", "n": 4},
]
CLEAN = [
    {"messages": dialogue("Hello. How are you?", "Fine."), "n": 0},
    {"messages": dialogue("Was it §ö?", "It was."), "n": 4},
]


def refused(capsys, file, output, *flags):
    return error_of(capsys, clean.run, file, "--output", output, *flags)


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text(f"{QUESTION}\n")
    return str(file)


@pytest.mark.parametrize(("source", "target"), [("in.jsonl", "out.jsonl"), ("in.jsonl.gz", "out.jsonl.gz")])
def test_files_and_counts(source, target, questions, tmp_path, capsys):
    arguments = [write_rows(tmp_path / source, ROWS), "--output", str(tmp_path / target), "--decontaminate", questions]
    cli.main(["clean", *arguments, "--report_file", str(tmp_path / "counts.json")])
    assert read_rows(tmp_path / target) == CLEAN
    assert json.loads((tmp_path / "counts.json").read_text()) == {
        "rows": 5,
        "kept": 2,
        "changed": 1,
        "malformed": {"empty turn": 1},
        "refusals": {"i don't have opinions": 1},
        "contaminated": {QUESTION: 1},
    }
    table = " ".join(capsys.readouterr().out.split())
    assert "rows 5" in table
    assert "emotions or opinions denied, dropped 1 i don't have opinions 1" in table
    assert "kept 2 with repaired capitals 1" in table
    assert {file.name for file in tmp_path.iterdir()} == {source, target, "questions.txt", "counts.json"}


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_other_formats(suffix, questions, tmp_path):
    file = tmp_path / f"in.{suffix}"
    data = Dataset.from_list(ROWS)
    data.to_json(file, lines=False) if suffix == "json" else data.to_parquet(file)
    clean.run([str(file), "--output", str(tmp_path / "out.jsonl"), "--decontaminate", questions])
    assert read_rows(tmp_path / "out.jsonl") == CLEAN


def test_filters_can_be_switched_off(tmp_path):
    file = write_rows(tmp_path / "in.jsonl", ROWS)
    clean.run([file, "--output", str(tmp_path / "out.jsonl"), "--no_truecase", "--no_refusals"])
    expected = [{"messages": row["messages"], "n": row["n"]} for row in ROWS if row["n"] != 3]
    assert read_rows(tmp_path / "out.jsonl") == expected


class TestErrors:
    def test_nothing_is_left_and_the_old_output_stays(self, tmp_path, capsys):
        output = tmp_path / "out.jsonl"
        output.write_text("old")
        file = write_rows(tmp_path / "in.jsonl", [{"text": "a"}, {"text": "b"}])
        assert "is left: 2 no dialogue. A row needs `messages`" in refused(capsys, file, output)
        assert "is left: it holds no rows" in refused(capsys, write_rows(tmp_path / "no.jsonl", []), output)
        assert output.read_text() == "old"
        assert len(list(tmp_path.iterdir())) == 3

    def test_damaged_input(self, tmp_path, capsys):
        file = tmp_path / "in.jsonl"
        file.write_text(json.dumps(ROWS[0]) + "\n{no\n")
        assert "Line 2 of" in refused(capsys, file, tmp_path / "out.jsonl")
        file = tmp_path / "in.jsonl.gz"
        file.write_bytes(gzip.compress(json.dumps(ROWS).encode())[:-9])
        assert "incomplete" in refused(capsys, file, tmp_path / "out.jsonl")
        assert not (tmp_path / "out.jsonl").exists()

    def test_missing_files(self, tmp_path, capsys):
        file = write_rows(tmp_path / "in.jsonl", ROWS)
        assert "No such file" in refused(capsys, tmp_path / "none.jsonl", tmp_path / "out.jsonl")
        assert "File exists" in refused(capsys, file, tmp_path / "in.jsonl" / "out.jsonl")  # its folder is a file
        output = tmp_path / "out.jsonl"
        assert "none.txt" in refused(capsys, file, output, "--decontaminate", "none.txt")
        assert "Two outputs have the name" in refused(capsys, file, output, "--report_file", output)
        assert "is a folder" in refused(capsys, file, tmp_path)
        assert "No split 'test'" in refused(capsys, file, output, "--dataset_split", "test")
        assert "unknown field `truecase`" in refused(capsys, file, "o", "--truecase")

from __future__ import annotations

import json
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.messages.limits import MAX_TEXT_CHARACTERS
from taskherd.runner.agents.words import MAX_LAST_LINES, last_sentence, last_with_words, last_words, words_of


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("All tests pass.", "All tests pass."),
        ("  indented  ", "indented"),
        ("\x1b[1;32mgreen\x1b[0m and \x1b]0;a title\x07done\x1b(B\x1b[m", "green and done"),
        ("50%\r100% of the files", "100% of the files"),
        ("│ Which package? │", "Which package?"),
        ("╭─── Claude Code ───╮", "Claude Code"),
        ("⠹ Thinking", "Thinking"),
        ("● Bash(make test)", "● Bash(make test)"),
        ("完成", "完成"),
        ("Готово", "Готово"),
        ("[y/N]", "[y/N]"),
        ("{x} is set", "{x} is set"),
        ('"Hello" she said', '"Hello" she said'),
        ("", ""),
        ("   \t", ""),
        ("```", ""),
        ("```python", ""),
        ("~~~", ""),
        ("────────────", ""),
        ("╰──────────╯", ""),
        ("==== ---- ....", ""),
        ("⠋", ""),
        ("✻ ✶ ·", ""),
        ("12:30:01 100%", ""),
        ("> ", ""),
        ("__", ""),
        ("\x1b[2K\x1b[1A", ""),
        ("\x1b[38;5", ""),
        ("\x1b]0;only a title", ""),
        ("\x1bPdevice control\x1b\\", ""),
        ('{"type": "result", "result": "Done"}', ""),
        ('{"type":"result","resu', ""),
        ('["a", "b"]', ""),
        ("[true]", ""),
        ('"is_error": false,', ""),
        ('"an element",', ""),
        ("}", ""),
    ],
)
def test_the_words_of_a_line(line: str, words: str) -> None:
    """Letters of any script make words; fences, rules, spinners, JSON and control sequences do not."""
    assert words_of(line) == words


@given(st.lists(st.text() | st.just("It works."), max_size=20))
def test_words_are_readable(lines: list[str]) -> None:
    """Whatever the output is, its words have a letter, are one line, and have no words inside that differ from them."""
    words = last_with_words(lines)
    assert not words or any(letter.isalpha() for letter in words)
    assert not any(letter in words for letter in "\x1b\x00\r")
    assert words == words.strip()
    assert not words or words_of(words) == words


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("I read it. Now I fix app.py", "Now I fix app.py"),
        ("First this.\nThen I fix it! Does it work?", "Does it work?"),
        ("It is fixed. (All **tests** pass.)", "(All **tests** pass.)"),
        ("**Done.** Version 1.5 is at https://a.example/b?c=1.2", "Version 1.5 is at https://a.example/b?c=1.2"),
        ("So. Use it, e.g. ruff, i.e. linters vs. formatters", "Use it, e.g. ruff, i.e. linters vs. formatters"),
        ("1. Read it\n2. Fix it", "Fix it"),
        ("I ran it: exit status 0. All is well…", "All is well…"),
        ("It works. 🎉", "It works."),
        ("It works. ...\n```\n{}\n```\n", "It works."),
        ("完成。测试通过。", "测试通过。"),
        ("123. 456.", "default"),
        ("", "default"),
    ],
)  # fmt: skip
def test_the_last_sentence(text: str, sentence: str) -> None:
    """It ends before a space, and a line ends one, too; names of files, numbers and abbreviations are parts of it."""
    assert last_sentence(text, "default") == sentence


def test_a_sentence_that_grows_shows_when_it_is_finished() -> None:
    """As a text comes, its last sentence changes with each sentence, not with each chunk; only the first one grows."""
    text = "Hm. Now I run app.py! They pass. So"
    shown = [last_sentence(text[:end], goes_on=True) for end in range(1, len(text) + 1)]
    changes = [each for each, _ in groupby(shown)]
    assert changes == ["H", "Hm", "Hm.", "Now I run app.py!", "They pass."]
    assert last_sentence(text) == "So"


@given(st.text() | st.lists(st.sampled_from(["It works", ". ", "! ", "\n", "a", ".", "。", "1"])).map("".join))
def test_a_sentence_is_a_part_of_a_line(text: str) -> None:
    """Whatever a text is, its last sentence is a part of one line's words, and has a letter."""
    for goes_on in (False, True):
        sentence = last_sentence(text, goes_on=goes_on)
        assert not sentence or any(letter.isalpha() for letter in sentence)
        assert any(sentence in words_of(line) for line in text.split("\n"))


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_no_line_of_a_json_object_has_words(value: object) -> None:
    """However an object is printed, none of its lines is taken for words."""
    for indent in (None, 2):
        printed = json.dumps({"key": value}, indent=indent)
        assert last_with_words(printed.split("\n"), "nothing") == "nothing"


@given(st.text(max_size=20_000))
def test_last_words_are_bounded(text: str) -> None:
    """The last words are at most ten lines and 2,000 characters."""
    words = last_words(text)
    assert len(words) <= MAX_TEXT_CHARACTERS
    assert words.count("\n") < MAX_LAST_LINES


def test_the_last_lines_with_words_are_the_last_words() -> None:
    """Lines without words are left out, and the lines keep their order."""
    text = "\n".join(["```", *(f"line {number}" for number in range(20)), "```", "────", "Traceback: no such file", ""])
    assert last_words(text).splitlines() == [*(f"line {number}" for number in range(11, 20)), "Traceback: no such file"]

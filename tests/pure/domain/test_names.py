"""Names of tasks: validation, and generation from prompts."""

from __future__ import annotations

import re
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.domain import names

RANDOMNESS = names.NameRandomness(lambda: "curious-cuscus", lambda: "1a2b")


def test_which_names_are_valid() -> None:
    """A name is 1 to 32 letters and digits with single hyphens between them, but not ``new`` or ``create``."""
    for good in ("a", "A", "0", "a-b", "Fix-the-Bug-2", "x" * 32, "newer", "create-1"):
        assert names.name_error(good) is None
    for bad in ("", "-a", "a-", "a--b", "a_b", "a b", "é", "a\n", "new", "create", "x" * 33):
        assert names.name_error(bad)


def test_generated_names() -> None:
    """A generated name is the first words of the prompt, up to 27 characters, or random words, and a suffix."""
    rows = {
        "Fix the login page": "fix-the-login-page-1a2b",
        "  Don't   PANIC!!  (please)": "dont-panic-please-1a2b",
        "Écrire où ça Straße": "ecrire-ou-ca-strasse-1a2b",
        "Please rewrite all of the documentation": "please-rewrite-all-of-the-1a2b",
        "aaaaaaaaa bbbbbbbbb ccccccc dd": "aaaaaaaaa-bbbbbbbbb-ccccccc-1a2b",
        "aaaaaaaaa bbbbbbbbb ccccccc": "aaaaaaaaa-bbbbbbbbb-ccccccc-1a2b",
        "aaaaaaaaa bbbbbbbbb cccccccc dd": "aaaaaaaaa-bbbbbbbbb-1a2b",
        "x" * 40: "x" * 27 + "-1a2b",
        "": "curious-cuscus-1a2b",
        "!?": "curious-cuscus-1a2b",
        "日本語": "curious-cuscus-1a2b",
    }
    for prompt, name in rows.items():
        assert names.draw(prompt, RANDOMNESS)[0] == name
    assert names.draw("", names.NameRandomness(lambda: "", lambda: "1a2b"))[0] == "task-1a2b"


def test_a_longer_name_is_drawn_for_the_case_that_the_first_is_in_use() -> None:
    """It begins like the first one, if need be with fewer words, and has eight digits of its own."""
    counter = count()
    randomness = names.NameRandomness(lambda: "curious-cuscus", lambda: f"{next(counter):04x}")
    assert names.draw("fix", randomness) == ("fix-0000", "fix-00010002")
    assert names.draw("Please rewrite all of the documentation", randomness) == (
        "please-rewrite-all-of-the-0003",
        "please-rewrite-all-of-00040005",
    )
    assert names.draw("x" * 40, randomness)[1] == "x" * 23 + "-00070008"
    assert names.draw("", randomness)[1] == "curious-cuscus-000a000b"


@given(st.text(max_size=200))
def test_any_prompt_gives_a_valid_name(prompt: str) -> None:
    """For any prompt both names are valid, in lower case, and end in four and eight hex digits."""
    for name, digits in zip(names.draw(prompt, RANDOMNESS), (4, 8), strict=True):
        assert names.name_error(name) is None
        assert re.fullmatch(rf"[a-z0-9]+(-[a-z0-9]+)*-[0-9a-f]{{{digits}}}", name)


def test_display_names() -> None:
    """A display name is the prompt with a capital letter, truncated between words, or the words of the name."""
    rows = {
        "fix the  login\npage": "Fix the login page",
        "x" * 64: "X" + "x" * 63,
        "x" * 65: "X" + "x" * 62 + "…",
        "word " * 20: "Word" + " word" * 11 + "…",
        f"{'a' * 30} {'b' * 32} c": f"A{'a' * 29} {'b' * 32}…",
        f"{'a' * 30} {'b' * 33} c": f"A{'a' * 29}…",
        "日本語": "日本語",
    }
    for prompt, display in rows.items():
        assert names.display_name(prompt) == display
    assert names.display_name("", "curious-cuscus-1a2b") == "Curious cuscus"
    assert names.display_name("", "curious-cuscus-1a2b3c4d") == "Curious cuscus"
    assert names.display_name("!!", "my-task") == "My task"
    assert names.display_name("") == ""


@given(st.text(max_size=200))
def test_any_display_name_fits(prompt: str) -> None:
    """For any prompt a display name has 1 to 64 characters."""
    assert 1 <= len(names.display_name(prompt, "a-name-1a2b")) <= 64


def test_only_the_beginning_of_a_prompt_is_read() -> None:
    """Of a prompt its first 1,000 characters make the names, if they end within a word, too."""
    for spaces, name, display in ((997, "fix-1a2b", "Fix"), (999, "f-1a2b", "F"), (1_000, "curious-cuscus-1a2b", "")):
        prompt = " " * spaces + "fix the login"
        assert names.draw(prompt, RANDOMNESS)[0] == name
        assert names.display_name(prompt) == display


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("", "must be >= 1 character"),
        ("x" * 33, "must be <= 32 characters"),
        ("é" * 17, "must be <= 32 characters"),
        ("new", 'cannot use "new" as a name'),
        ("create", 'cannot use "create" as a name'),
        ("a--b", "must be alphanumeric with single hyphens between the parts"),
    ],
)
def test_why_a_name_is_invalid(name: str, error: str) -> None:
    """The length is counted in bytes, and each fault has its own words."""
    assert names.name_error(name) == error


def test_a_display_name_turns_no_text_around() -> None:
    """Characters that change the direction of a text are left out, and white space becomes one space."""
    assert names.display_name("a\u202ebc\u2069 \t d") == "Abc d"
    assert names.display_name("\u200f!\u061c", "x-y-1a2b") == "X y"

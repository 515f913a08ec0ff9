"""Names of tasks: which are allowed, and what is made of a prompt."""

from __future__ import annotations

import re
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from taskherd.domain import names

DICE = names.NameRandomness(lambda: "curious-cuscus", lambda: "1a2b")


def test_valid() -> None:
    """Letters and digits with single hyphens between them, 1 to 32 bytes, not ``new`` or ``create``."""
    for good in ("a", "A", "0", "a-b", "Fix-the-Bug-2", "x" * 32, "newer", "create-1"):
        assert names.name_error(good) is None
    for bad in ("", "-a", "a-", "a--b", "a_b", "a b", "é", "a\n", "new", "create", "x" * 33):
        assert names.name_error(bad)


def test_generated_names() -> None:
    """The prompt's first words, cut between words at 27 characters, and a suffix; random words where it has none."""
    rows = {
        "Fix the login page": "fix-the-login-page-1a2b",
        "  Don't   PANIC!!  (please)": "dont-panic-please-1a2b",
        "Écrire où ça Straße": "ecrire-ou-ca-strasse-1a2b",
        "Please rewrite all of the documentation": "please-rewrite-all-of-the-1a2b",
        "aaaaaaaaa bbbbbbbbb ccccccc dd": "aaaaaaaaa-bbbbbbbbb-ccccccc-1a2b",
        "x" * 40: "x" * 27 + "-1a2b",
        "": "curious-cuscus-1a2b",
        "!?": "curious-cuscus-1a2b",
        "日本語": "curious-cuscus-1a2b",
    }
    for prompt, name in rows.items():
        assert names.generate(prompt, frozenset(), DICE) == name
    assert names.generate("", frozenset(), names.NameRandomness(lambda: "", lambda: "1a2b")) == "task-1a2b"


def test_a_taken_name_is_drawn_again() -> None:
    """Another suffix first, then random words; the draws are bounded."""
    counter = count()
    dice = names.NameRandomness(lambda: "curious-cuscus", lambda: f"{next(counter):04x}")
    assert names.generate("fix", {"fix-0000", "fix-0001"}, dice) == "fix-0002"
    taken = {"fix-1a2b"}
    assert names.generate("fix", taken, DICE) == "curious-cuscus-1a2b"
    taken.add("curious-cuscus-1a2b")
    assert names.generate("fix", taken, DICE) in taken


@given(st.text(max_size=200))
def test_any_prompt_gives_a_valid_name(prompt: str) -> None:
    """Whatever the prompt, the name is valid, in lower case, and ends in four hex digits."""
    name = names.generate(prompt, frozenset(), DICE)
    assert names.name_error(name) is None
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*-[0-9a-f]{4}", name)


def test_display_names() -> None:
    """The prompt with a capital first letter, cut between words with an ellipsis; else the words of the name."""
    rows = {
        "fix the  login\npage": "Fix the login page",
        "x" * 64: "X" + "x" * 63,
        "x" * 65: "X" + "x" * 62 + "…",
        "word " * 20: "Word" + " word" * 11 + "…",
        "日本語": "日本語",
    }
    for prompt, display in rows.items():
        assert names.display_name(prompt) == display
    assert names.display_name("", "curious-cuscus-1a2b") == "Curious cuscus"
    assert names.display_name("!!", "my-task") == "My task"
    assert names.display_name("") == ""


@given(st.text(max_size=200))
def test_any_display_name_fits(prompt: str) -> None:
    """Whatever the prompt, a display name has at most 64 characters, and some."""
    assert 1 <= len(names.display_name(prompt, "a-name-1a2b")) <= 64

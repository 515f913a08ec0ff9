"""Blank texts: those without a character that somebody can see."""

from __future__ import annotations

import pytest

from taskherd.domain.blank import is_blank


@pytest.mark.parametrize(
    ("text", "blank"),
    [
        ("", True),
        (" \n\t", True),
        ("\u200b \u2028 \u2029", True),
        ("\u115f\u1160\u2800\u3164\uffa0\u034f\u17b4\u17b5\u180b\u180c\u180d\u180f", True),
        ("\ufdff", False),
        ("\ufe00", True),
        ("\ufe0f", True),
        ("\ufe10", False),
        ("\U000e00ff", False),
        ("\U000e0100", True),
        ("\U000e01ef", True),
        ("\U000e01f0", False),
        (".", False),
        ("\u200b.\u200b", False),
        ("\u2801", False),
        ("\ufe0fx", False),
    ],
)
def test_which_texts_are_blank(text: str, blank: bool) -> None:  # noqa: FBT001 - a case
    """Only spaces, control and format characters, fillers, and selectors of variations."""
    assert is_blank(text) is blank

"""Recognize blank texts: prompts, answers and display names without a visible character."""

from __future__ import annotations

import unicodedata
from typing import Final

_UNSEEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})
"""Control and format characters, such as the zero width space, and separators.

https://www.unicode.org/reports/tr44/#General_Category_Values
"""

_UNSEEN: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0\u034f\u17b4\u17b5\u180b\u180c\u180d\u180f") | frozenset(
    map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
)
"""Letters and symbols without a mark: Hangul fillers, the Braille pattern without dots, and selectors of variations."""


def is_blank(text: str) -> bool:
    """Return whether a text is empty, or all its characters are unseen."""
    return all(each in _UNSEEN or unicodedata.category(each) in _UNSEEN_CATEGORIES for each in text.strip())

"""Texts made fit to keep and to show: control characters out, too long ones cut, addresses of odd schemes emptied.

Whatever is taken away is counted in notes, a mapping from what was done to how often.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from taskherd.messages.limits import CONTENT_BYTES, TEXT_CHARACTERS, URL_CHARACTERS

SanitizeCounts: TypeAlias = dict[str, int]
"""How often what was done to the texts of a message: ``control`` (characters removed), ``cut``, ``uri`` (emptied)."""

CONTROL = "control"
CUT = "cut"
URI = "uri"

_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_SCHEME = re.compile(r"(?:https?|file):", re.IGNORECASE)
_WIDEST = 4  # bytes of one character in UTF-8


def add_count(notes: SanitizeCounts, what: str, times: int = 1) -> None:
    """Add to the count of something done to a text."""
    notes[what] = notes.get(what, 0) + times


def sanitize(text: str, notes: SanitizeCounts) -> str:
    """The text without control characters other than newline and tab, and without lone surrogates."""
    if text.isprintable():
        return text
    cleaned, removed = _UNFIT.subn("", text)
    if removed:
        add_count(notes, CONTROL, removed)
    return cleaned


def message(text: str, notes: SanitizeCounts) -> str:
    """A status message, error or detail: cleaned, and cut to 2,000 characters, the last one then being ``…``."""
    if not text.isprintable():
        text = sanitize(text, notes)
    if len(text) <= TEXT_CHARACTERS:
        return text
    add_count(notes, CUT)
    return text[: TEXT_CHARACTERS - 1] + "…"


def content(text: str, notes: SanitizeCounts) -> str:
    """A log entry's content: cleaned, and cut to 64 KiB of UTF-8, ending in ``…`` then."""
    text = sanitize(text, notes)
    if len(text) * _WIDEST <= CONTENT_BYTES:
        return text
    encoded = text.encode()
    if len(encoded) <= CONTENT_BYTES:
        return text
    add_count(notes, CUT)
    return encoded[: CONTENT_BYTES - len("…".encode())].decode(errors="ignore") + "…"


def address(text: str, notes: SanitizeCounts) -> str:
    """A URI or URL; "" when its scheme is not http, https or file, or when it is longer than 2,048 characters."""
    if not text:
        return text
    if not text.isprintable():
        text = sanitize(text, notes)
    if len(text) <= URL_CHARACTERS and _SCHEME.match(text):
        return text
    add_count(notes, URI)
    return ""

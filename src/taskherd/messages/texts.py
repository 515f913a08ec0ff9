"""Sanitize texts: remove control characters, truncate, and clear URIs whose scheme is not http, https or file.

``counts`` accumulates a count per kind of change.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from taskherd.messages.limits import MAX_CONTENT_BYTES, MAX_TEXT_CHARACTERS, MAX_URI_CHARACTERS

SanitizeCounts: TypeAlias = dict[str, int]
"""Changes to the texts of a message: ``control`` (characters removed), ``cut`` (truncated), ``uri`` (cleared)."""

CONTROL = "control"
CUT = "cut"
URI = "uri"

_CONTROL_OR_SURROGATE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_SCHEME = re.compile(r"(?:https?|file):", re.IGNORECASE)
_MAX_CHARACTER_BYTES = 4  # of UTF-8


def add_count(counts: SanitizeCounts, change: str, times: int = 1) -> None:
    """Add to the number of changes of one kind."""
    counts[change] = counts.get(change, 0) + times


def sanitize(text: str, counts: SanitizeCounts) -> str:
    """Remove control characters other than newline and tab, and lone surrogates."""
    if text.isprintable():
        return text
    sanitized, removed = _CONTROL_OR_SURROGATE.subn("", text)
    if removed:
        add_count(counts, CONTROL, removed)
    return sanitized


def sanitize_message(text: str, counts: SanitizeCounts) -> str:
    """Sanitize a status message, error or detail, and truncate it to 2,000 characters, the last of them ``…``."""
    if not text.isprintable():
        text = sanitize(text, counts)
    if len(text) <= MAX_TEXT_CHARACTERS:
        return text
    add_count(counts, CUT)
    return text[: MAX_TEXT_CHARACTERS - 1] + "…"


def sanitize_content(text: str, counts: SanitizeCounts) -> str:
    """Sanitize the content of a log entry, and truncate it to 64 KiB of UTF-8, the end of which is ``…``."""
    text = sanitize(text, counts)
    if len(text) * _MAX_CHARACTER_BYTES <= MAX_CONTENT_BYTES:
        return text
    encoded = text.encode()
    if len(encoded) <= MAX_CONTENT_BYTES:
        return text
    add_count(counts, CUT)
    return encoded[: MAX_CONTENT_BYTES - len("…".encode())].decode(errors="ignore") + "…"


def sanitize_uri(text: str, counts: SanitizeCounts) -> str:
    """Sanitize a URI; return "" if its scheme is not http, https or file, or if it exceeds 2,048 characters."""
    if not text:
        return text
    if not text.isprintable():
        text = sanitize(text, counts)
    if len(text) <= MAX_URI_CHARACTERS and _SCHEME.match(text):
        return text
    add_count(counts, URI)
    return ""

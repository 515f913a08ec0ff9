"""Sanitize texts: remove control characters, truncate, and clear URIs whose scheme is not http, https or file.

Characters that control the direction of text can make it look like another text. They are removed from names and
escaped in messages; contents of log entries and inputs keep them, since they may be part of what they quote.

``counts`` accumulates a count per kind of change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from taskherd.domain.names import BIDI_CONTROL
from taskherd.messages.limits import (
    MAX_CONTENT_BYTES,
    MAX_DATA_BYTES,
    MAX_DATA_LEVELS,
    MAX_DETAIL_BYTES,
    MAX_TEXT_CHARACTERS,
    MAX_TITLE_CHARACTERS,
    MAX_URI_CHARACTERS,
)

SanitizeCounts: TypeAlias = dict[str, int]
"""Changes to texts: ``control`` (characters removed or escaped), ``cut`` (truncated), ``uri`` (cleared)."""

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


def sanitize_name(text: str, counts: SanitizeCounts) -> str:
    """Sanitize a name, and remove its bidirectional control characters."""
    return _replace_bidi_controls(sanitize(text, counts), "", counts)


def _replace_bidi_controls(text: str, by: str | Callable[[re.Match[str]], str], counts: SanitizeCounts) -> str:
    replaced, found = BIDI_CONTROL.subn(by, text)
    if found:
        add_count(counts, CONTROL, found)
    return replaced


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def sanitize_message(text: str, counts: SanitizeCounts) -> str:
    """Sanitize a status message, error or detail, and truncate it to 2,000 characters, the last of them ``…``.

    A bidirectional control character becomes a backslash and its number, such as ``u202e``.
    """
    if not text.isprintable():
        text = _replace_bidi_controls(sanitize(text, counts), _escape, counts)
    if len(text) <= MAX_TEXT_CHARACTERS:
        return text
    add_count(counts, CUT)
    return text[: MAX_TEXT_CHARACTERS - 1] + "…"


def sanitize_content(text: str, counts: SanitizeCounts) -> str:
    """Sanitize the content of a log entry, and truncate it to 64 KiB of UTF-8, the end of which is ``…``."""
    return _truncate(sanitize(text, counts), MAX_CONTENT_BYTES, counts)


def sanitize_detail(text: str, counts: SanitizeCounts) -> str:
    """Sanitize the detail of a request, escape bidirectional control characters, and truncate it to 16 KiB of UTF-8."""
    return _truncate(_sanitize_visibly(text, counts), MAX_DETAIL_BYTES, counts)


def _sanitize_visibly(text: str, counts: SanitizeCounts) -> str:
    """Sanitize a text, and escape its bidirectional control characters."""
    return _replace_bidi_controls(sanitize(text, counts), _escape, counts)


def _truncate(text: str, max_bytes: int, counts: SanitizeCounts) -> str:
    """Truncate a text to a number of bytes of UTF-8, the end of which is ``…``."""
    if len(text) * _MAX_CHARACTER_BYTES <= max_bytes:
        return text
    encoded = text.encode()
    if len(encoded) <= max_bytes:
        return text
    add_count(counts, CUT)
    return encoded[: max_bytes - len("…".encode())].decode(errors="ignore") + "…"


def sanitize_title(text: str, counts: SanitizeCounts) -> str:
    """Sanitize the title of a log entry to one line, and truncate it to 200 characters, the last of them ``…``."""
    text = _replace_bidi_controls(" ".join(sanitize(text, counts).split()), _escape, counts)
    if len(text) <= MAX_TITLE_CHARACTERS:
        return text
    add_count(counts, CUT)
    return text[: MAX_TITLE_CHARACTERS - 1] + "…"


def canonical_data(data: Any, counts: SanitizeCounts, *, visible: bool = False) -> str:
    """Return the data of a log entry or a tool's input as canonical JSON, with sanitized texts.

    ``visible``: bidirectional control characters are escaped.

    Raise ``ValueError`` if it is no JSON (NaN), larger than ``MAX_DATA_BYTES`` or deeper than ``MAX_DATA_LEVELS``, or,
    with ``visible``, if two names in it would become one, which would hide the value of one.
    """
    options: dict[str, Any] = {"sort_keys": True, "ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    clean = _sanitize_visibly if visible else sanitize
    text = json.dumps(_sanitized(data, counts, MAX_DATA_LEVELS, clean), **options)
    if len(text.encode()) > MAX_DATA_BYTES:
        raise ValueError(f"at most {MAX_DATA_BYTES} bytes of JSON were expected")
    return text


def _sanitized(data: Any, counts: SanitizeCounts, levels: int, clean: Callable[[str, SanitizeCounts], str]) -> Any:
    if not levels and isinstance(data, list | dict):
        raise ValueError(f"at most {MAX_DATA_LEVELS} levels of lists and objects were expected")
    match data:
        case str():
            return clean(data, counts)
        case list():
            return [_sanitized(each, counts, levels - 1, clean) for each in data]
        case dict():
            cleaned = {clean(name, counts): _sanitized(each, counts, levels - 1, clean) for name, each in data.items()}
            if clean is _sanitize_visibly and len(cleaned) < len(data):
                raise ValueError("names that differ without their control characters were expected")
            return cleaned
        case _:
            return data


def sanitize_uri(text: str, counts: SanitizeCounts) -> str:
    """Sanitize a URI; return "" if its scheme is not http, https or file, or if it exceeds 2,048 characters.

    One with bidirectional control characters is cleared too (RFC 3987, section 4.1).
    """
    if not text:
        return ""
    if not text.isprintable():
        text = sanitize(text, counts)
    if len(text) <= MAX_URI_CHARACTERS and _SCHEME.match(text) and not BIDI_CONTROL.search(text):
        return text
    add_count(counts, URI)
    return ""

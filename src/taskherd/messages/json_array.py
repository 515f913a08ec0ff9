"""Split a JSON array into its elements without parsing them, so that an invalid element can be kept unchanged."""

from __future__ import annotations

import re

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]+|[\]}]+|,', re.DOTALL)
_SPACE = b" \t\n\r"


def split_json_array(body: bytes) -> list[bytes] | None:
    """Return the bytes of each element, however deeply nested, or None if the body does not have the form of an array.

    Only brackets, commas and strings are examined; the elements may still be invalid JSON.
    """
    body = body.strip(_SPACE)
    if not (body.startswith(b"[") and body.endswith(b"]")):
        return None
    elements: list[bytes] = []
    depth, start = 0, 1
    for token in _TOKEN.finditer(body):
        first = body[token.start()]
        length = token.end() - token.start()
        if first in b"[{":
            depth += length
        elif first in b"]}":
            depth -= length
            if depth <= 0:
                return _add_last(body, elements, start) if depth == 0 and token.end() == len(body) else None
        elif first in b"," and depth == 1:
            elements.append(body[start : token.start()].strip(_SPACE))
            start = token.end()
    return None


def _add_last(body: bytes, elements: list[bytes], start: int) -> list[bytes]:
    last = body[start:-1].strip(_SPACE)
    return [*elements, last] if last or elements else elements

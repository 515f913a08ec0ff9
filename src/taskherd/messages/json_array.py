"""Where the elements of a JSON array begin and end, so that a bad one can be set aside exactly as it came."""

from __future__ import annotations

import re

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]+|[\]}]+|,', re.DOTALL)
_SPACE = b" \t\n\r"


def split_json_array(body: bytes) -> list[bytes] | None:
    """The bytes of each element of an array, however deeply nested; None when this is not the shape of an array.

    Only brackets, commas and strings are looked at: whether an element is JSON is for a parser to say.
    """
    body = body.strip(_SPACE)
    if not (body.startswith(b"[") and body.endswith(b"]")):
        return None
    found: list[bytes] = []
    depth, start = 0, 1
    for token in _TOKEN.finditer(body):
        first = body[token.start()]
        length = token.end() - token.start()
        if first in b"[{":
            depth += length
        elif first in b"]}":
            depth -= length
            if depth <= 0:
                return _ended(body, found, start) if depth == 0 and token.end() == len(body) else None
        elif first in b"," and depth == 1:
            found.append(body[start : token.start()].strip(_SPACE))
            start = token.end()
    return None


def _ended(body: bytes, found: list[bytes], start: int) -> list[bytes]:
    last = body[start:-1].strip(_SPACE)
    return [*found, last] if last or found else found

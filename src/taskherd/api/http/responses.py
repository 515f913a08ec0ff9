"""Responses that are complete in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

JSON: Final = "application/json"
NOT_SHARED: Final = "private, no-cache"
"""The ``Cache-Control`` of responses without one: the same address has another answer for another caller."""


@dataclass(frozen=True, slots=True)
class BufferedResponse:
    """A response that is complete in memory. Without a body it has no content type."""

    status: int
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = JSON

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers as ASGI expects them. A 204 and a 304 have no length (RFC 9110, section 8.6).

        A cache may keep what does not say otherwise for its own user, and asks before each use. It cannot tell by the
        credentials, which may be in a header that HTTP does not know (RFC 9111, section 3.5).
        """
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        if "Cache-Control" not in self.headers:
            raw.append((b"cache-control", NOT_SHARED.encode("latin-1")))
        if self.status not in {204, 304}:
            raw.append((b"content-length", b"%d" % len(self.body)))
        if self.body:
            raw.append((b"content-type", self.content_type.encode("latin-1")))
        return raw


def json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> BufferedResponse:
    """Return a JSON response; the value may contain UUIDs."""
    return BufferedResponse(status, orjson.dumps(value, default=str), headers or {})


def empty(status: int, headers: Mapping[str, str] | None = None) -> BufferedResponse:
    """Return a response without a body."""
    return BufferedResponse(status, b"", headers or {})

"""gzip for large answers, on the routes that declare it and for clients that accept it.

Compressing tells who sees the length of an encrypted answer something about its content, if that person can also choose
a part of it and have it asked for again and again (BREACH). So only lists that a user reads are compressed, never an
answer that contains a token; and no other site can have a browser ask for them, because tokens are in no cookie.
"""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.api.http.responses import BufferedResponse

MIN_COMPRESSED: Final = 2_048
"""Size in bytes from which on an answer is compressed: a smaller one is one or two packets anyway."""
THREAD_FROM: Final = 128 * 1_024
"""Size in bytes from which on this is done in a thread, so that the event loop is never held up for long."""
_LEVEL: Final = 1
"""The fastest: higher ones take up to three times as long, and save another tenth."""
_GZIP: Final = 16 + zlib.MAX_WBITS
_REFUSED: Final = frozenset({"q=0", "q=0.0", "q=0.00", "q=0.000"})


def accepts_gzip(header: str) -> bool:
    """Return whether a client with this Accept-Encoding accepts gzip (RFC 9110, section 12.5.3)."""
    accepted: dict[str, bool] = {}
    for each in header.lower().split(","):
        name, _, weight = each.partition(";")
        accepted[name.strip()] = weight.replace(" ", "") not in _REFUSED
    return accepted.get("gzip", accepted.get("*", False))


async def negotiate(response: BufferedResponse, headers: Mapping[str, str]) -> BufferedResponse:
    """Return the response as this client gets it.

    Its tag is weak, compressed or not, as that of a 304 about it: a strong one would say that the bytes are the same.
    """
    sent = {**_with_weak_tag(response.headers), "Vary": "Accept-Encoding"}
    body = response.body
    if len(body) < MIN_COMPRESSED or not accepts_gzip(headers.get("accept-encoding", "")):
        return replace(response, headers=sent)
    packed = _pack(body) if len(body) < THREAD_FROM else await asyncio.to_thread(_pack, body)
    if len(packed) >= len(body):
        return replace(response, headers=sent)
    return replace(response, body=packed, headers={**sent, "Content-Encoding": "gzip"})


def _pack(body: bytes) -> bytes:
    return zlib.compress(body, _LEVEL, _GZIP)


def _with_weak_tag(headers: Mapping[str, str]) -> dict[str, str]:
    tag = headers.get("ETag")
    return {**headers} if tag is None or tag.startswith("W/") else {**headers, "ETag": f"W/{tag}"}

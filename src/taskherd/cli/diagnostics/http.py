"""Small HTTP requests with a limit on time and size."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import httpx

from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT: Final = 3.0
"""Maximum time for a complete answer, in seconds."""
OK: Final = 200
MAX_BODY: Final = 4 * 1024 * 1024
"""Maximum size of an answer, in bytes; the rest is not read."""
_ANY_ADDRESS: Final[Mapping[str, str]] = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - connected to, not bound


class Refused(Unavailable):
    """Nothing listens there."""


@dataclass(frozen=True, slots=True)
class SmallResponse:
    """The status, headers (case-insensitive names) and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def get(url: str, *, through_proxy: bool = False) -> SmallResponse:
    """Return the answer to a GET request; redirects are not followed.

    Args:
        url: the URL.
        through_proxy: whether a proxy and certificates that the environment names are used.

    Raises:
        Refused: nothing listens there.
        Unavailable: another reason why there is no usable answer.
    """
    try:
        async with (
            asyncio.timeout(TIMEOUT),
            httpx.AsyncClient(timeout=TIMEOUT, trust_env=through_proxy) as client,
            client.stream("GET", url) as response,
        ):
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_BODY:
                    break
            return SmallResponse(response.status_code, response.headers, bytes(body[:MAX_BODY]))
    except httpx.ConnectError as error:
        raise _connect_error(error) from error
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
        raise Unavailable(f"no usable answer ({type(error).__name__})") from error


def base_url(host: str, port: int) -> str:
    """Return the URL of a server on this machine that listens on ``host``, without a trailing slash."""
    address = _ANY_ADDRESS.get(host, host)
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"


def _connect_error(error: httpx.ConnectError) -> Unavailable:
    cause: BaseException | None = error
    for _ in range(8):  # httpx and httpcore wrap the error of the socket
        if isinstance(cause, ConnectionRefusedError):
            return Refused("nothing listens there")
        cause = cause and (cause.__cause__ or cause.__context__)
    return Unavailable(f"cannot connect ({error})")

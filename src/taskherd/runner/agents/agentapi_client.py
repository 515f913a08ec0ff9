"""Requests to the AgentAPI of an agent, which is not trusted: it answers with what, how much and as long as it likes.

No answer is decompressed, each is read up to a limit, and cookies are not kept. Before anything is sent over a
connection, its other end must be the agent's own: another agent could listen there before it does.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final

import httpx

from taskherd.runner.listeners import Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

REQUEST_TIMEOUT: Final = 5.0
"""Seconds within which AgentAPI must give the whole answer to a status request, and connect a stream or post."""
STREAM_TIMEOUT: Final = 60.0
"""Seconds without data after which the stream is reopened: a lost connection may look like a silent agent."""
MAX_ANSWER_BYTES: Final = 64 * 1024
"""Maximum size of an answer that is no stream; AgentAPI's have a few hundred bytes."""
_UNENCODED: Final[Mapping[str, str]] = {"Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class AgentApiResponse:
    """The status and body of a response of AgentAPI."""

    status: int
    body: bytes

    @property
    def is_success(self) -> bool:
        """Whether the request was carried out."""
        return httpx.codes.is_success(self.status)

    @property
    def text(self) -> str:
        """The body as text, also if it is not valid UTF-8."""
        return self.body.decode(errors="replace")


class ForeignListener(httpx.ConnectError):
    """Another process than the agent listens, or has listened, on the agent's port; it was sent nothing."""


def open_client(port: int, identify_peer: Callable[[int], Awaitable[Peer]]) -> httpx.AsyncClient:
    """Return a client of the AgentAPI on this port of this machine.

    ``identify_peer`` says who has the other end of the connection from a port. Requests raise ``ForeignListener`` if
    that is a stranger, and ``httpx.ConnectError`` as long as it is not known.
    """
    cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
    base, transport = f"http://127.0.0.1:{port}", _CheckingTransport(port, identify_peer)
    return httpx.AsyncClient(
        base_url=base, timeout=REQUEST_TIMEOUT, trust_env=False, cookies=cookies, transport=transport
    )


class _CheckingTransport(httpx.AsyncHTTPTransport):
    """A transport that sends nothing over a new connection before its other end was checked."""

    def __init__(self, port: int, identify_peer: Callable[[int], Awaitable[Peer]]) -> None:
        super().__init__(trust_env=False)
        self._port = port
        self._identify_peer = identify_peer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the trace is httpcore's, see https://www.encode.io/httpcore/extensions/."""
        request.extensions = {**request.extensions, "trace": self._trace}
        return await super().handle_async_request(request)

    async def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event != "connection.connect_tcp.complete":
            return
        stream, peer = info["return_value"], Peer.UNKNOWN
        try:
            with suppress(OSError):  # the connection is lost
                _, own_port = stream.get_extra_info("client_addr")
                peer = await self._identify_peer(own_port)
        finally:
            if peer is not Peer.AGENT:
                await stream.aclose()
        if peer is Peer.STRANGER:
            raise ForeignListener(
                f"Another process than the agent listens on the agent's port {self._port}; the runner sends it nothing."
            )
        if peer is Peer.UNKNOWN:
            raise httpx.ConnectError(f"it is not known who has the other end of a connection to port {self._port}")


async def fetch_status(client: httpx.AsyncClient) -> AgentApiResponse:
    """Request the status of the agent.

    Raises:
        httpx.HTTPError: it was not answered within ``REQUEST_TIMEOUT``, or not as ``post`` demands it.
    """
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT):
            return await _request(client, "GET", "/status", timeout=REQUEST_TIMEOUT)
    except TimeoutError as error:
        raise httpx.ReadTimeout(f"no answer within {REQUEST_TIMEOUT:g} s") from error


async def post(client: httpx.AsyncClient, message: Mapping[str, str], read_timeout: float) -> AgentApiResponse:
    """Post a message, and wait for each part of the answer at most ``read_timeout`` seconds.

    Raises:
        httpx.HTTPError: there was no answer, or one that is encoded or larger than ``MAX_ANSWER_BYTES``.
    """
    timeout = httpx.Timeout(REQUEST_TIMEOUT, read=read_timeout)
    return await _request(client, "POST", "/message", json=message, timeout=timeout)


@asynccontextmanager
async def open_events(client: httpx.AsyncClient) -> AsyncIterator[httpx.Response]:
    """Open the stream of events, and yield the response for ``aiter_raw``.

    Raises:
        httpx.HTTPError: it could not be opened, is encoded, or broke.
    """
    headers = {"Accept": "text/event-stream"}
    timeout = httpx.Timeout(REQUEST_TIMEOUT, read=STREAM_TIMEOUT)
    async with _open(client, "GET", "/events", headers=headers, timeout=timeout) as response:
        response.raise_for_status()
        yield response


async def _request(client: httpx.AsyncClient, method: str, path: str, **options: Any) -> AgentApiResponse:
    async with _open(client, method, path, **options) as response:
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise httpx.RemoteProtocolError(f"an answer has more than {MAX_ANSWER_BYTES} bytes")
        return AgentApiResponse(response.status_code, bytes(body))


@asynccontextmanager
async def _open(
    client: httpx.AsyncClient, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[httpx.Response]:
    """Send a request and return the response without its body, which is not encoded."""
    async with client.stream(method, path, headers={**_UNENCODED, **(headers or {})}, **options) as response:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise httpx.RemoteProtocolError("an answer is encoded, although that was not accepted")
        yield response

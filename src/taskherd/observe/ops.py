"""The operations port: /livez (the loop turns), /readyz (and why not), /metrics; small, bounded, HTTP/1.1."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import orjson
from prometheus_client.exposition import choose_encoder

from taskherd.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.observe.metrics import Metrics
    from taskherd.observe.readiness import Readiness

HEADER_MOST = 8_192
"""Bytes of a request's head; a longer one is refused."""
CONNECTIONS_MOST = 64
READ_TIMEOUT = 5.0
_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Response:
    """What is sent back."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"

    def encode(self, *, with_body: bool) -> bytes:
        """Return the bytes of this response; the connection ends with it (RFC 9112, section 9.6)."""
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\nContent-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        return head.encode("latin-1") + (self.body if with_body else b"")


class OpsServer:
    """Serves the operations port of one process until it is closed."""

    def __init__(self, metrics: Metrics, readiness: Readiness, *, read_timeout: float = READ_TIMEOUT) -> None:
        self._metrics = metrics
        self._readiness = readiness
        self._read_timeout = read_timeout
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen on `host` and `port` (0: a free one); return the port. Raises Misconfigured where that can't be."""
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=HEADER_MOST)
        except OSError as error:
            why = error.strerror or type(error).__name__
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                message = f"can't listen on port {port} of {host} ({why}); expected a free port, or 0 for any"
                raise Misconfigured("TASKHERD_OPS_PORT", message) from error
            message = f"can't listen on {host} ({why}); expected an address of this machine"
            raise Misconfigured("TASKHERD_OPS_HOST", message) from error
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and drop whoever is still connected."""
        if self._server is not None:
            self._server.close()
            for writer in tuple(self._open):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= CONNECTIONS_MOST:
            writer.transport.abort()
            return
        self._open.add(writer)
        try:
            async with asyncio.timeout(self._read_timeout):
                head = await reader.readuntil(_HEAD_END)
            await self._reply(head, writer)
        except asyncio.LimitOverrunError:
            await self._send(writer, _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            writer.transport.abort()
        finally:
            self._open.discard(writer)
            writer.close()

    async def _reply(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        request, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        method, _, target = request.partition(" ")
        path, _, version = target.rpartition(" ")
        if not version.startswith("HTTP/1."):
            response = _plain(HTTPStatus.BAD_REQUEST)
        elif method not in {"GET", "HEAD"}:
            response = _plain(HTTPStatus.METHOD_NOT_ALLOWED)
        else:
            response = await self._answer(path.partition("?")[0], headers)
        await self._send(writer, response, with_body=method != "HEAD")

    async def _send(self, writer: asyncio.StreamWriter, response: Response, *, with_body: bool = True) -> None:
        writer.write(response.encode(with_body=with_body))
        async with asyncio.timeout(self._read_timeout):
            await writer.drain()

    async def _answer(self, path: str, headers: Mapping[str, str]) -> Response:
        match path:
            case "/livez":
                return _plain(HTTPStatus.OK)
            case "/readyz":
                return _ready(await self._readiness.reasons())
            case "/metrics":
                encode, content_type = choose_encoder(headers.get("accept", ""))
                return Response(HTTPStatus.OK, encode(self._metrics.registry), content_type)
            case _:
                return _plain(HTTPStatus.NOT_FOUND)


def _plain(status: HTTPStatus) -> Response:
    return Response(status, f"{status.phrase.lower()}\n".encode())


def _ready(reasons: Mapping[str, str | None]) -> Response:
    ready = not any(reasons.values())
    checks = {name: {"ok": not reason, **({"reason": reason} if reason else {})} for name, reason in reasons.items()}
    body = orjson.dumps({"ready": ready, "checks": checks}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return Response(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, body, "application/json")

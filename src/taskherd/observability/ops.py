"""The operations port: /livez (the event loop runs), /readyz (with the reasons if not), and /metrics."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import TYPE_CHECKING, Any

import orjson
import uvicorn
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router
from uvicorn.server import ServerState

from taskherd.errors import Misconfigured
from taskherd.http_protocol import LimitedProtocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Receive, Scope, Send

    from taskherd.observability.metrics import Metrics
    from taskherd.observability.readiness import Readiness

MAX_HEADER = 8_192
"""Maximum size of a request's head, in bytes; a larger one is rejected."""
MAX_CONNECTIONS = 64
READ_TIMEOUT = 5.0
"""Seconds that a client may take to send a request or to read the response."""
_HEADERS = [("Cache-Control", "no-store"), ("Connection", "close")]
"""Headers of every response; the connection is closed after it (RFC 9112, section 9.6)."""


class OpsServer:
    """The server of one process's operations port.

    It uses uvicorn's protocol without ``uvicorn.Server``, which polls ten times per second whether it must stop.
    """

    def __init__(self, metrics: Metrics, readiness: Readiness, *, read_timeout: float = READ_TIMEOUT) -> None:
        self._metrics = metrics
        self._readiness = readiness
        paths = {"/livez": _live, "/readyz": self._ready, "/metrics": self._scrape}
        self._router = Router([Route(path, handler) for path, handler in paths.items()], redirect_slashes=False)
        self._config = self._configure(read_timeout)
        self._state = ServerState()
        self._state.default_headers = self._config.encoded_headers
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen on ``host`` and ``port`` (0: any free one) and return the port. Raise ``Misconfigured`` on failure."""
        try:
            self._server = await asyncio.get_running_loop().create_server(self._connection, host, port)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                message = f"cannot listen on port {port} of {host} ({reason}); expected a free port, or 0 for any"
                raise Misconfigured("TASKHERD_OPS_PORT", message) from error
            message = f"cannot listen on {host} ({reason}); expected an address of this machine"
            raise Misconfigured("TASKHERD_OPS_HOST", message) from error
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and abort all connections."""
        if self._server is None:
            return
        self._server.close()
        for connection in tuple(self._state.connections):
            connection.transport.abort()
        responding = tuple(self._state.tasks)
        for task in responding:
            task.cancel()
        await asyncio.gather(*responding, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    def _configure(self, read_timeout: float) -> uvicorn.Config:
        limits = {
            "head_timeout": read_timeout,
            "max_head_bytes": MAX_HEADER,
            "write_timeout": read_timeout,
            "max_connections": MAX_CONNECTIONS,
        }
        protocol: Any = type("OpsProtocol", (LimitedProtocol,), limits)
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a client's invalid request is not worth a warning
        config = uvicorn.Config(
            self._respond,
            http=protocol,
            interface="asgi3",
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            headers=_HEADERS,
        )
        config.load()
        return config

    def _connection(self) -> asyncio.Protocol:
        make: Any = self._config.http_protocol_class
        connection: asyncio.Protocol = make(config=self._config, server_state=self._state, app_state={})
        return connection

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_supported = scope["http_version"].startswith("1.")  # the parser accepts HTTP/0.9 too
        app: ASGIApp = self._router if is_supported else PlainTextResponse("bad request\n", 400)
        await app(scope, receive, send)

    async def _ready(self, _request: Request) -> Response:
        reasons = await self._readiness.reasons()
        ready = not any(reason and self._readiness.counts(name) for name, reason in reasons.items())
        return Response(_checks(reasons, ready=ready), 200 if ready else 503, media_type="application/json")

    async def _scrape(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._metrics.registry), headers={"Content-Type": content_type})


async def _live(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


def _checks(reasons: Mapping[str, str | None], *, ready: bool) -> bytes:
    checks = {name: {"ok": not reason, **({"reason": reason} if reason else {})} for name, reason in reasons.items()}
    return orjson.dumps({"ready": ready, "checks": checks}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

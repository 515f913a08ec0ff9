"""Follow a log over a WebSocket of text frames, which the server closes when the log is complete."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson
import structlog
from starlette.websockets import WebSocketDisconnect, WebSocketState

from taskherd.api.changes import ChangeFilter
from taskherd.api.http.auth import token_is_valid
from taskherd.api.http.errors import HTTPError
from taskherd.api.workspaces import logs
from taskherd.api.workspaces.queries import get_or_404
from taskherd.errors import Retry, Unavailable

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from taskherd.api.change_feed import Subscriber
    from taskherd.api.context import RequestContext
    from taskherd.api.workspaces.logs import LogKind
    from taskherd.store.read_pool import Row

log = structlog.get_logger(__name__)

POLL_INTERVAL: Final = 5.0
"""Seconds between two reads without a change, which also check whether the caller may still see the log."""
OUTAGE_POLL_INTERVAL: Final = 1.0
"""Seconds between two reads without a subscription to the change feed."""
NORMAL, GOING_AWAY, POLICY_VIOLATION = 1000, 1001, 1008
"""Close codes (RFC 6455, section 7.4.1)."""


async def build(request: RequestContext, socket: WebSocket) -> None:
    """Follow the log of a build until the build has ended."""
    await _follow(request, socket, logs.BUILD)


async def agent(request: RequestContext, socket: WebSocket) -> None:
    """Follow the log of an agent while its build is the task's latest."""
    await _follow(request, socket, logs.AGENT)


@dataclass(frozen=True, slots=True)
class _LogStream:
    """One client that follows one log."""

    request: RequestContext
    socket: WebSocket
    kind: LogKind
    subscriber: Subscriber | None

    async def stream(self, row: Row, after: int, ends: set[asyncio.Task[bool]]) -> int:
        """Send entries until the log is complete or one of ``ends`` is done. Return the close code.

        The row is read before the entries, so if it says that the log is complete, the entries read next are too.
        """
        current: Row | None = row
        while True:
            with suppress(Unavailable, Retry):  # during an outage the socket stays open, and catches up later
                current = current or await self._reload()
                if current is None:
                    return POLICY_VIOLATION
                after = await self._send(current, after)
                if self.kind.complete(current):
                    return NORMAL
            current = None
            change = asyncio.create_task(self._wait_change())
            await asyncio.wait({change, *ends}, return_when=asyncio.FIRST_COMPLETED)
            change.cancel()
            if any(end.done() for end in ends):
                return GOING_AWAY

    async def _wait_change(self) -> None:
        """Wait for a change of the task, or until the next read is due."""
        if self.subscriber is None or self.subscriber.ended:
            await asyncio.sleep(OUTAGE_POLL_INTERVAL)
        else:
            await self.subscriber.next(POLL_INTERVAL)

    async def _send(self, row: Row, after: int) -> int:
        """Send the entries after the id ``after`` and return the id of the last one."""
        while page := await logs.entries(self.request, self.kind, row, after):
            entries = [entry for _, entry in page]
            for frame in [entries] if self.kind.arrays else entries:
                await self.socket.send_text(orjson.dumps(frame).decode())
            after = page[-1][0]
            if len(page) < logs.MAX_ENTRIES:
                break
        return after

    async def _reload(self) -> Row | None:
        """Read the row again. Return None if the token is no longer valid or the caller may no longer see the task."""
        if not await token_is_valid(self.request):
            return None
        try:
            return await get_or_404(self.request, self.kind.lookup)
        except HTTPError:
            return None


async def _follow(request: RequestContext, socket: WebSocket, kind: LogKind) -> None:
    after = request.parameters(logs.LogQuery).after
    row = await get_or_404(request, kind.lookup)
    feed = request.api.change_feed
    async with feed.subscription():
        change_filter = ChangeFilter(request.caller.user_id, task=row["task_id"])
        subscriber = feed.subscribe(change_filter, await feed.position())
        try:
            row = await get_or_404(request, kind.lookup)  # includes all changes before the subscription
            await _serve(_LogStream(request, socket, kind, subscriber), row, after)
        finally:
            if subscriber is not None:
                feed.unsubscribe(subscriber)


async def _serve(log_stream: _LogStream, row: Row, after: int) -> None:
    socket = log_stream.socket
    await socket.accept()
    disconnect = asyncio.create_task(wait_disconnect(socket))
    stopping = asyncio.create_task(log_stream.request.api.stopping.wait())
    try:
        code = await log_stream.stream(row, after, {disconnect, stopping})
        if socket.application_state is WebSocketState.CONNECTED and not disconnect.done():
            await socket.close(code)
    except WebSocketDisconnect:
        log.debug("client disconnected", task_id=str(row["task_id"]))
    finally:
        disconnect.cancel()
        stopping.cancel()
        await asyncio.wait({disconnect, stopping})


async def wait_disconnect(socket: WebSocket) -> bool:
    """Wait until the client disconnects, ignoring its messages."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        continue
    return True

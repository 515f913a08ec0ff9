"""Logs as they grow, over a WebSocket of text frames; closed by us when nothing more can come."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson
import structlog
from starlette.websockets import WebSocketDisconnect, WebSocketState

from taskherd.api.changes import FollowFilter
from taskherd.api.http.endpoint import token_is_valid
from taskherd.api.http.responses import HTTPError
from taskherd.api.workspaces import logs
from taskherd.api.workspaces.queries import get_or_404
from taskherd.errors import Retry, Unavailable

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from taskherd.api.change_feed import Subscriber
    from taskherd.api.context import RequestContext
    from taskherd.api.workspaces.logs import LogKind
    from taskherd.store.reader import Row

log = structlog.get_logger(__name__)

POLL_INTERVAL: Final = 5.0
"""Seconds between two looks where the history tells of nothing: whether the caller may still read this."""
SILENT_POLL_INTERVAL: Final = 1.0
"""The same while the history can't be followed."""
NORMAL, GOING_AWAY, NO_LONGER = 1000, 1001, 1008


async def build(request: RequestContext, socket: WebSocket) -> None:
    """Follow a build until it has ended."""
    await _follow(request, socket, logs.BUILD)


async def agent(request: RequestContext, socket: WebSocket) -> None:
    """Follow an agent for as long as its build is the task's latest."""
    await _follow(request, socket, logs.AGENT)


@dataclass(frozen=True, slots=True)
class _LogStream:
    """Who follows which log, and over what."""

    request: RequestContext
    socket: WebSocket
    kind: LogKind
    follower: Subscriber | None

    async def stream(self, row: Row, begin: int, ends: set[asyncio.Task[bool]]) -> int:
        """Send what comes, until no more can or somebody leaves; the code to close with.

        The row is read before the history: so when it says that all is over, the history that is read then is whole.
        """
        known: Row | None = row
        while True:
            with suppress(Unavailable, Retry):  # the socket is kept, and told later what it missed
                known = known or await self._reload()
                if known is None:
                    return NO_LONGER
                begin = await self._send(known, begin)
                if self.kind.over(known):
                    return NORMAL
            known = None
            heard = asyncio.create_task(self._wait_change())
            await asyncio.wait({heard, *ends}, return_when=asyncio.FIRST_COMPLETED)
            heard.cancel()
            if any(end.done() for end in ends):
                return GOING_AWAY

    async def _wait_change(self) -> None:
        """Wait until something is told of the task, or it is time to look anyway."""
        if self.follower is None or self.follower.ended:
            await asyncio.sleep(SILENT_POLL_INTERVAL)
        else:
            await self.follower.next(POLL_INTERVAL)

    async def _send(self, row: Row, begin: int) -> int:
        """Send the entries behind that id; the id of the last one."""
        while grown := await logs.entries(self.request, self.kind, row, begin):
            told = [entry for _, entry in grown]
            for frame in [told] if self.kind.arrays else told:
                await self.socket.send_text(orjson.dumps(frame).decode())
            begin = grown[-1][0]
            if len(grown) < logs.MAX_ENTRIES:
                break
        return begin

    async def _reload(self) -> Row | None:
        """The row as it is now; None when the caller's token has ended, or the task is gone from them."""
        if not await token_is_valid(self.request):
            return None
        try:
            return await get_or_404(self.request, self.kind.lookup)
        except HTTPError:
            return None


async def _follow(request: RequestContext, socket: WebSocket, kind: LogKind) -> None:
    begin = request.parameters(logs.LogQuery).after
    row = await get_or_404(request, kind.lookup)
    tail = request.api.change_feed
    async with tail.subscription():
        follower = tail.subscribe(FollowFilter(request.caller.user_id, task=row["task_id"]), await tail.position())
        try:
            row = await get_or_404(
                request, kind.lookup
            )  # what changed until here is in it, what changes from here on is told
            await _serve(_LogStream(request, socket, kind, follower), row, begin)
        finally:
            if follower is not None:
                tail.unsubscribe(follower)


async def _serve(following: _LogStream, row: Row, begin: int) -> None:
    socket = following.socket
    await socket.accept()
    leaving = asyncio.create_task(_wait_disconnect(socket))
    stopping = asyncio.create_task(following.request.api.stopping.wait())
    try:
        code = await following.stream(row, begin, {leaving, stopping})
        if socket.application_state is WebSocketState.CONNECTED and not leaving.done():
            await socket.close(code)
    except WebSocketDisconnect:
        log.debug("hung up", task_id=str(row["task_id"]))
    finally:
        leaving.cancel()
        stopping.cancel()
        await asyncio.wait({leaving, stopping})


async def _wait_disconnect(socket: WebSocket) -> bool:
    """Wait until the client leaves; what it says is not listened to."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        continue
    return True

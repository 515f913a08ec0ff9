"""Watch a workspace: Coder's server-sent events, and the same events as the frames of a WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Final

import orjson

from taskherd import retry
from taskherd.api.changes import ChangeFilter
from taskherd.api.http.sse import PING, EventStream
from taskherd.api.http.websocket import NORMAL, TRY_AGAIN_LATER, SendText, serve
from taskherd.api.workspaces.queries import get_or_404, workspace_json
from taskherd.api.workspaces.resources import MAX_STATUSES
from taskherd.errors import Retry, Unavailable
from taskherd.store import builds

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from taskherd.api.change_feed import Subscriber
    from taskherd.api.context import RequestContext
    from taskherd.store.builds import HistoryPage
    from taskherd.store.read_pool import Row

PING_INTERVAL: Final = 10.0
"""Seconds without a change after which a ping is sent, and the workspace is read again."""
OUTAGE_INTERVAL: Final = 1.0
"""The same without a subscription to the change feed."""


async def events(request: RequestContext) -> EventStream:
    """Stream the workspace, now and after each change, until its task is deleted."""
    row = await _first(request)
    return EventStream(request, _frames(request, row), task_id=row["task_id"])


async def socket(request: RequestContext, opened: WebSocket) -> None:
    """Send the workspace, now and after each change, until its task is deleted."""
    row = await _first(request)
    await serve(request, opened, row["task_id"], lambda send_text: _send(request, send_text, row))


async def _first(request: RequestContext) -> Row:
    request.follows = True
    row = await get_or_404(request, builds.latest_of_workspace)
    request.api.change_feed.check_room(request.caller.user_id)
    return row


async def _frames(request: RequestContext, row: Row) -> AsyncGenerator[bytes, None]:
    with suppress(Unavailable):  # of the change feed, at the start; the client connects again
        async with aclosing(_workspaces(request, row)) as workspaces:
            async for workspace in workspaces:
                yield PING if workspace is None else b"event: data\ndata: %b\n\n" % workspace


async def _send(request: RequestContext, send_text: SendText, row: Row) -> int:
    try:
        async with aclosing(_workspaces(request, row)) as workspaces:
            async for workspace in workspaces:
                frame = (
                    b'{"type":"ping","data":null}' if workspace is None else b'{"type":"data","data":%b}' % workspace
                )
                await send_text(frame.decode())
    except Unavailable:  # of the change feed, at the start
        return TRY_AGAIN_LATER
    return NORMAL


async def _workspaces(request: RequestContext, row: Row) -> AsyncGenerator[bytes | None, None]:
    """Generate the workspace as JSON whenever it has changed, and None at the start and while nothing changes.

    Changes that come while the workspace is being read are seen in one read after it. During an outage nothing is read.
    """
    feed = request.api.change_feed
    async with feed.subscription(request.caller.user_id):
        subscriber = feed.subscribe(ChangeFilter(request.caller.user_id, task=row["task_id"]), await feed.position())
        try:
            yield None
            shown, statuses, failures = b"", _Statuses(), 0
            while True:
                try:
                    current = await builds.of_task(request.api.reader, request.caller.user_id, row["task_id"])
                    if current is None:
                        return
                    request.mark_seen()
                    document = workspace_json(current, await statuses.read(request, current))
                    workspace = orjson.dumps(document, default=str)
                    yield workspace if workspace != shown else None
                    shown, failures = workspace, 0
                except (Unavailable, Retry):
                    failures += 1
                    statuses = _Statuses()
                    await retry.wait(request.api.stopping, retry.delay(failures))
                await _wait_change(subscriber)
                if subscriber is not None and subscriber.ended:
                    feed.unsubscribe(subscriber)
                    subscriber, statuses = None, _Statuses()
                if request.api.stopping.is_set():
                    return
        finally:
            if subscriber is not None:
                feed.unsubscribe(subscriber)


class _Statuses:
    """What the app has reported in the latest build, of which only what is new is read."""

    def __init__(self) -> None:
        self._number = 0
        self._until = 0
        self._rows: Sequence[Row] = ()

    async def read(self, request: RequestContext, row: Row) -> Sequence[Row]:
        """Return the newest statuses, newest first. Read all again of another build, or if the history went back."""
        if row["agent_id"] is None:
            return ()
        if row["number"] != self._number:
            self._number, self._until, self._rows = row["number"], 0, ()
        page = await self._read_page(request, row)
        if page.until < self._until:  # a failover has lost the last versions
            self._until, self._rows = 0, ()
            page = await self._read_page(request, row)
        self._rows = [*page.rows, *self._rows][:MAX_STATUSES]
        self._until = page.until
        return self._rows

    async def _read_page(self, request: RequestContext, row: Row) -> HistoryPage:
        return await builds.app_statuses(request.reader, row["task_id"], row["number"], MAX_STATUSES, after=self._until)


async def _wait_change(subscriber: Subscriber | None) -> None:
    if subscriber is None or subscriber.ended:
        await asyncio.sleep(OUTAGE_INTERVAL)
    else:
        await subscriber.next(PING_INTERVAL)

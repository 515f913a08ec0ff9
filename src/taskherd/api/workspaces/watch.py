"""Watch a workspace: Coder's server-sent events, and the same events as the frames of a WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Final

import orjson

from taskherd.api.changes import ChangeFilter
from taskherd.api.http.sse import PING, EventStream
from taskherd.api.http.websocket import NORMAL, TRY_AGAIN_LATER, SendText, serve
from taskherd.api.workspaces.queries import full_workspace, get_or_404
from taskherd.errors import Retry, Unavailable
from taskherd.store import builds

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from taskherd.api.change_feed import Subscriber
    from taskherd.api.context import RequestContext
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
            shown = b""
            while True:
                with suppress(Unavailable, Retry):
                    current = await builds.of_task(request.api.reader, request.caller.user_id, row["task_id"])
                    if current is None:
                        return
                    request.mark_seen()
                    workspace = orjson.dumps(await full_workspace(request, current), default=str)
                    yield workspace if workspace != shown else None
                    shown = workspace
                await _wait_change(subscriber)
                if request.api.stopping.is_set():
                    return
        finally:
            if subscriber is not None:
                feed.unsubscribe(subscriber)


async def _wait_change(subscriber: Subscriber | None) -> None:
    if subscriber is None or subscriber.ended:
        await asyncio.sleep(OUTAGE_INTERVAL)
    else:
        await subscriber.next(PING_INTERVAL)

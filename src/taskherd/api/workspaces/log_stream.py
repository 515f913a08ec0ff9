"""Follow a log over a WebSocket of text frames, which the server closes when the log is complete."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from taskherd import retry
from taskherd.api.changes import ChangeFilter
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.websocket import NORMAL, POLICY_VIOLATION, SendText, serve
from taskherd.api.workspaces import logs
from taskherd.api.workspaces.queries import get_or_404
from taskherd.errors import Retry, Unavailable

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from taskherd.api.change_feed import Subscriber
    from taskherd.api.context import RequestContext
    from taskherd.api.workspaces.logs import LogSpec
    from taskherd.store.read_pool import Row

POLL_INTERVAL: Final = 5.0
"""Seconds between two reads without a change."""
OUTAGE_POLL_INTERVAL: Final = 1.0
"""Seconds between two reads without a subscription to the change feed."""


async def build(request: RequestContext, socket: WebSocket) -> None:
    """Follow the log of a build until the build has ended."""
    await _follow(request, socket, logs.BUILD)


async def agent(request: RequestContext, socket: WebSocket) -> None:
    """Follow the log of an agent while its build is the task's latest."""
    await _follow(request, socket, logs.AGENT)


@dataclass(slots=True)
class _LogStream:
    """One client that follows one log."""

    request: RequestContext
    kind: LogSpec
    subscriber: Subscriber | None
    sent: int
    """The id of the last entry that the client has."""

    async def stream(self, row: Row, send_text: SendText) -> int:
        """Send entries until the log is complete or the caller may no longer see it. Return the close code.

        The row is read before the entries, so if it says that the log is complete, the entries read next are too.
        Only what is new is looked at, but after an outage all that follows the last entry: its end may have been lost.
        """
        current: Row | None = row
        failures, after = 0, self.sent
        while True:
            try:  # during an outage the socket stays open, and catches up later
                current = current or await self._reload()
                if current is None:
                    return POLICY_VIOLATION
                after = await self._send(current, after, send_text)
                if self.kind.complete(current):
                    return NORMAL
                failures = 0
            except (Unavailable, Retry):
                failures += 1
                after = self.sent
                await retry.wait(self.request.api.stopping, retry.delay(failures))
            current = None
            if await self._wait_change():
                after = self.sent

    async def _wait_change(self) -> bool:
        """Wait for a change of the task, or until the next read is due. Return whether changes may have been lost."""
        if self.subscriber is None:
            await asyncio.sleep(OUTAGE_POLL_INTERVAL)
            return False
        await self.subscriber.next(POLL_INTERVAL)
        if not self.subscriber.ended:
            return False
        self.subscriber = None  # it ends when a failover has lost changes, for example
        return True

    async def _send(self, row: Row, after: int, send_text: SendText) -> int:
        """Send the entries after the id ``after`` and return the id after which the next ones follow."""
        more = True
        while more:
            page = await logs.read_page(self.request, self.kind, row, after)
            frames = [page.entries] if self.kind.arrays and page.entries else page.entries
            for frame in frames:
                await send_text(orjson.dumps(frame).decode())
            self.sent = page.entries[-1]["id"] if page.entries else self.sent
            after, more = page.until, page.more
        return after

    async def _reload(self) -> Row | None:
        """Read the row again. Return None if the task was deleted or the caller may no longer see it."""
        try:
            return await get_or_404(self.request, self.kind.lookup)
        except HTTPError:
            return None


async def _follow(request: RequestContext, socket: WebSocket, kind: LogSpec) -> None:
    request.follows = True
    after = request.parameters(logs.LogQuery).after
    row = await get_or_404(request, kind.lookup)
    feed = request.api.change_feed
    feed.check_room(request.caller.user_id)
    async with feed.subscription(request.caller.user_id):
        change_filter = ChangeFilter(request.caller.user_id, task=row["task_id"])
        subscriber = feed.subscribe(change_filter, await feed.position())
        try:
            row = await get_or_404(request, kind.lookup)  # includes all changes before the subscription
            log_stream = _LogStream(request, kind, subscriber, after)
            await serve(request, socket, row["task_id"], lambda send_text: log_stream.stream(row, send_text))
        finally:
            if subscriber is not None:
                feed.unsubscribe(subscriber)

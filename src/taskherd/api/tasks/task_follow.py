"""Stream the changes of one task and its log together, because browsers have few connections for all pages of a host.

An event id is then ``POSITION.REVISION``: where both resume. Either part may be empty, and begins anew.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

from pydantic import Field

from taskherd.api import changes
from taskherd.api.http.errors import invalid
from taskherd.api.http.event_ids import LAST_EVENT_ID
from taskherd.api.http.query_parameters import MAX_POSITION, whole_number
from taskherd.api.http.sse import EventStream
from taskherd.api.tasks import log_follow, sse
from taskherd.api.tasks.documents import IncludeQuery

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext

MAX_WAITING: Final = 8
"""Maximum number of frames that wait for a slow client; each has a bounded size."""
_ID: Final = re.compile(rb"^id: (\d+)$", re.MULTILINE)
_EVENT_IDS: Final = re.compile(r"(\d{0,19})\.(\d{0,19})", re.ASCII)


class WatchTaskQuery(IncludeQuery):
    """Query parameters of a stream of one task."""

    logs: Annotated[int, whole_number(0, log_follow.MAX_ENTRIES, empty=0)] = Field(
        0,
        description="Stream the task's log too, as `logs/watch` does, beginning with that many entries, and"
        " `task.inbox` when inputs were sent, delivered or have failed: how many are `waiting`, of more than 100 at"
        " least 101. Event ids then have two numbers. Empty or 0: only changes of the task.",
    )


async def watch(request: RequestContext) -> EventStream:
    """Stream the changes of one task until it is deleted, and its log if that is asked for."""
    query = request.parameters(WatchTaskQuery)
    limit, with_state_since = query.logs, query.has_state_since
    if not limit:
        return await sse.watch_one(request, with_state_since=with_state_since)
    request.follows = True
    position, revision = _last_event_ids(request)
    task_id = await sse.find_watched(request, position)
    stream = _TaskAndLog(position, revision)
    frames = stream.frames(
        sse.changes_of_task(request, task_id, position, with_state_since=with_state_since),
        log_follow.changes_of_log(request, task_id, revision, limit, with_inbox=True),
    )
    return EventStream(request, frames, task_id=task_id, last=changes.RESUME)


def _last_event_ids(request: RequestContext) -> tuple[int | None, int | None]:
    text = request.headers.get(LAST_EVENT_ID.lower(), "")
    if not text:
        return None, None
    found = _EVENT_IDS.fullmatch(text)
    numbers = [int(part) if part else None for part in found.groups()] if found else []
    if not numbers or any(number is not None and number > MAX_POSITION for number in numbers):
        raise invalid((LAST_EVENT_ID, "Expected the id of an event of a stream with a log."))
    return numbers[0], numbers[1]


_Part: TypeAlias = "tuple[str, bytes | Exception | None]"
"""Which stream a part is of, and its frames; None or an error is its end."""


class _TaskAndLog:
    """The two streams of one client, and where each of them is."""

    def __init__(self, position: int | None, revision: int | None) -> None:
        self._at = {"task": position, "log": revision}
        self._begun = asyncio.Event()
        """Set once the client has the task's document, which it shows before the log."""
        if position is not None:
            self._begun.set()

    async def frames(
        self, task: AsyncGenerator[bytes, None], log: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        """Generate the frames of both, until that of the task ends or the client must resume."""
        queue: asyncio.Queue[_Part] = asyncio.Queue(MAX_WAITING)
        pumps = [
            asyncio.create_task(self._pump(queue, name, source)) for name, source in (("task", task), ("log", log))
        ]
        try:
            while True:
                name, part = await queue.get()
                if isinstance(part, Exception):
                    raise part
                if part is not None:
                    yield self._with_both_ids(name, part)
                if part == changes.RESUME or (part is None and name == "task"):
                    return
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, queue: asyncio.Queue[_Part], name: str, source: AsyncGenerator[bytes, None]) -> None:
        """Put the frames of one stream into the queue, then None, or the error with which it failed."""
        end: Exception | None = None
        try:
            async with aclosing(source) as parts:
                if name == "log":
                    await self._begun.wait()
                async for part in parts:
                    await queue.put((name, part))
        except Exception as error:  # noqa: BLE001 - raised again where the queue is read
            end = error
        await queue.put((name, end))

    def _with_both_ids(self, name: str, part: bytes) -> bytes:
        """Return a part of one stream with event ids that say where both are."""

        def both(found: re.Match[bytes]) -> bytes:
            self._at[name] = int(found[1])
            self._begun.set()
            numbers = (b"" if at is None else b"%d" % at for at in self._at.values())
            return b"id: " + b".".join(numbers)

        return _ID.sub(both, part)

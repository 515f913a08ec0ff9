"""Stream the progress of an action as server-sent events, until it is finished."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import orjson
import structlog

from taskherd.api import changes
from taskherd.api.actions import handlers
from taskherd.api.http.errors import not_found, unavailable
from taskherd.api.http.sse import COMMENT, EventStream
from taskherd.errors import Retry, Unavailable
from taskherd.store import task_actions

if TYPE_CHECKING:
    from uuid import UUID

    from taskherd.api.context import RequestContext
    from taskherd.store.read_pool import Row

log = structlog.get_logger(__name__)

PROGRESS: Final = "action.progress"
MAX_STREAMS, MAX_STREAMS_OF_USER = 100, 5
"""Maximum number of streams of one process, of all users and of one; each reads one row a second."""
TOO_MANY: Final = "Too many streams are open."
INTERVAL: Final = 1.0
"""Seconds between two looks at an action."""
COMMENT_EVERY: Final = 15
"""Number of looks without a change after which a comment is sent."""


async def watch(request: RequestContext) -> EventStream:
    """Stream the progress of an action of the caller."""
    action_id = handlers.action_id_of(request)
    row = await task_actions.find(request.api.reader, request.caller.user_id, action_id)
    if row is None:
        raise not_found()
    if request.api.action_streams.is_full(request.caller.user_id):
        raise unavailable(TOO_MANY)
    return EventStream(request, _frames(request, row), task_id=None, last=changes.RESUME)


async def _frames(request: RequestContext, first: Row) -> AsyncGenerator[bytes, None]:
    api, user_id = request.api, request.caller.user_id
    if api.action_streams.is_full(user_id):  # by streams that began after the look before the response
        log.info("stream ended, client must resume", reason=TOO_MANY)
        yield changes.RESUME
        return
    with api.action_streams.enter(user_id):
        row: Row | None = first
        sent, unchanged = b"", 0
        while row is not None and not api.stopping.is_set():
            data = orjson.dumps(handlers.action_json(row), default=str)
            if data != sent:
                yield changes.make_frame(PROGRESS, data)
                sent, unchanged = data, 0
            elif (unchanged := unchanged + 1) % COMMENT_EVERY == 0:
                yield COMMENT
            if row["finished_at"] is not None:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await api.stopping.wait()
            row = await _read(request, first["id"])
    yield changes.RESUME


async def _read(request: RequestContext, action_id: UUID) -> Row | None:
    """Return the action, or None if it was deleted or cannot be read now."""
    try:
        return await task_actions.find(request.api.reader, request.caller.user_id, action_id)
    except (Unavailable, Retry) as error:
        log.info("stream ended, client must resume", reason=str(error))
        return None

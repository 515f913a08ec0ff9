"""Stream the log of a task as server-sent events: first its newest entries, then each that is added or replaced."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import orjson
import structlog
from pydantic import Field

from taskherd.api import changes
from taskherd.api.http.errors import not_found, unavailable
from taskherd.api.http.event_ids import last_event_id
from taskherd.api.http.query_parameters import MAX_POSITION, QueryModel, whole_number
from taskherd.api.http.sse import COMMENT, EventStream
from taskherd.api.tasks import queries
from taskherd.errors import Retry, Unavailable
from taskherd.store import task_queries

if TYPE_CHECKING:
    from uuid import UUID

    from taskherd.api.context import RequestContext
    from taskherd.api.log_revisions import InboxSummary
    from taskherd.store.read_pool import Row

log = structlog.get_logger(__name__)

MAX_STREAMS, MAX_STREAMS_OF_USER = 1_000, 50
"""Maximum number of streams of one process, of all users and of one."""
TOO_MANY: Final = "Too many streams of logs are open."
MAX_ENTRIES: Final = 1_000
MAX_BYTES: Final = 4 * 1024 * 1024
"""Limits of one event; of more changes the newest are sent, and ``skipped`` says so."""
COMMENT_INTERVAL: Final = 15.0
"""Seconds without an event after which a comment is sent."""
EVENT: Final = "task.logs"
INBOX_EVENT: Final = "task.inbox"


class LogStreamQuery(QueryModel):
    """Query parameters of a stream of a task's log."""

    limit: Annotated[int, whole_number(1, MAX_ENTRIES)] = Field(
        200, description="Maximum number of entries of the first event, the newest; 1 to 1000, by default 200."
    )


async def watch(request: RequestContext) -> EventStream:
    """Stream the log of a task until the task is deleted."""
    request.follows = True
    limit = request.parameters(LogStreamQuery).limit
    after = last_event_id(request)
    task_id = await task_queries.find_id(request.api.reader, queries.task_ref_of(request))
    if task_id is None:
        raise not_found()
    return EventStream(request, changes_of_log(request, task_id, after, limit), task_id=task_id, last=changes.RESUME)


def changes_of_log(
    request: RequestContext, task_id: UUID, after: int | None, limit: int, *, with_inbox: bool = False
) -> AsyncGenerator[bytes, None]:
    """Return the frames of a stream of a task's log, perhaps with its inbox. Raise a 503 if there is no room for it."""
    if request.api.log_streams.is_full(request.caller.user_id):
        raise unavailable(TOO_MANY)
    return _frames(request, task_id, after, limit, with_inbox=with_inbox)


async def _frames(
    request: RequestContext, task_id: UUID, after: int | None, limit: int, *, with_inbox: bool
) -> AsyncGenerator[bytes, None]:
    """Generate the frames: what changed after the revision ``after``, or without one the newest ``limit`` entries.

    A log that is not as far as that is another one: of a new task of the same name, or from a backup. It begins anew.
    """
    api = request.api
    if api.log_streams.is_full(request.caller.user_id):  # by streams that began after the look before the response
        log.info("stream ended, client must resume", reason=TOO_MANY)
        yield changes.RESUME
        return
    try:
        with api.log_streams.enter(request.caller.user_id), api.log_revisions.follow(task_id) as followed:
            revision = after
            inbox: InboxSummary | None = None
            while not api.stopping.is_set():
                rows = await _read(request, task_id, revision, limit)
                if not rows:  # the task was deleted
                    return
                latest = rows[0]["log_revision"]
                if revision is not None and latest < revision:
                    revision = None
                    continue
                if latest != revision:
                    yield _frame(rows, latest, is_first=revision is None)
                revision = latest
                known, inbox = inbox, followed.inbox
                if (
                    with_inbox
                    and inbox is not None
                    and inbox != known
                    and (known or inbox.waiting or after is not None)
                ):
                    yield changes.make_frame(INBOX_EVENT, b'{"waiting":%d}' % inbox.waiting)
                while not await followed.wait_after(revision, inbox, COMMENT_INTERVAL):
                    yield COMMENT
    except (Unavailable, Retry) as error:
        log.info("stream ended, client must resume", reason=str(error))
    yield changes.RESUME


async def _read(request: RequestContext, task_id: UUID, after: int | None, limit: int) -> Sequence[Row]:
    reader, caller = request.api.reader, request.caller.user_id
    if after is None:
        return await task_queries.logs(
            reader, caller, task_id, after=-1, before=MAX_POSITION, entries=limit, content_bytes=MAX_BYTES
        )
    return await task_queries.changed_logs(
        reader, caller, task_id, after=after, entries=MAX_ENTRIES, content_bytes=MAX_BYTES
    )


def _frame(rows: Sequence[Row], revision: int, *, is_first: bool) -> bytes:
    entries = [row for row in rows if row["log_id"] is not None]
    ids = [row["log_id"] for row in entries]
    truncated = (bool(ids) and min(ids) > 0) if is_first else rows[0]["found"] > len(entries)
    data = {"logs": [queries.log_entry(row) for row in entries], "revision": revision, "truncated": truncated}
    return changes.make_frame(EVENT, orjson.dumps(data), revision)

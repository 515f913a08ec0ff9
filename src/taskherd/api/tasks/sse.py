"""Streams of task changes as server-sent events: first the current documents or the missed changes, then all changes.

A stream pages through the stored feed until it reaches the position of ``ChangeFeed``, then subscribes. A change that
is part of its snapshot is not sent again, even if its event is published later.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from uuid import UUID

import structlog

from taskherd.api import changes
from taskherd.api.changes import Change, ChangeFilter
from taskherd.api.http.errors import not_found
from taskherd.api.http.event_ids import last_event_id
from taskherd.api.http.sse import COMMENT, EventStream
from taskherd.api.tasks import documents, queries, search
from taskherd.errors import Retry, Unavailable
from taskherd.store import feed, task_queries
from taskherd.store.task_queries import TaskFilter, TaskPage, TaskRef

if TYPE_CHECKING:
    from datetime import datetime

    from taskherd.api.change_feed import Subscriber
    from taskherd.api.context import RequestContext

log = structlog.get_logger(__name__)

COMMENT_INTERVAL = 15.0
"""Seconds without an event after which a comment is sent."""
PAGE_SIZE: Final = 200
"""Maximum number of documents or changes that one statement reads."""


async def watch_all(request: RequestContext) -> EventStream:
    """Stream the changes of all tasks that the caller may see and that match ``q``."""
    request.follows = True
    query = request.parameters(search.WatchQuery)
    watched = await search.watched(request, query)
    listed = watched.tasks.listed
    change_filter = ChangeFilter(
        request.caller.user_id,
        watched.tasks.owner,
        watched.tasks.organization,
        listed.status,
        state=listed.state,
        template=listed.template,
        health=listed.health,
        waiting=listed.waiting,
        stalled=listed.stalled,
        failed=listed.failed,
        name=watched.name,
        label=listed.term or None,
        with_state_since=query.has_state_since,
    )
    return _stream(request, change_filter, last_event_id(request), watched.tasks, snapshot=query.snapshot)


async def watch_one(request: RequestContext, *, with_state_since: bool) -> EventStream:
    """Stream the changes of one task until it is deleted; a client that resumes may name a deleted task by its id."""
    request.follows = True
    last = last_event_id(request)
    task_id = await find_watched(request, last)
    wanted = ChangeFilter(request.caller.user_id, task=task_id, with_state_since=with_state_since)
    return _stream(request, wanted, last)


async def find_watched(request: RequestContext, last: int | None) -> UUID:
    """Return the id of the task to watch. Raise a 404, unless the client resumes and may see a deleted task."""
    ref = queries.task_ref_of(request)
    task_id = await task_queries.find_id(request.api.reader, ref)
    if task_id is None and last is not None and isinstance(ref.task, UUID):
        task_id = ref.task if await feed.visible_even_deleted(request.api.reader, ref.caller, ref.task) else None
    if task_id is None:
        raise not_found()
    return task_id


def changes_of_task(
    request: RequestContext, task_id: UUID, last: int | None, *, with_state_since: bool
) -> AsyncGenerator[bytes, None]:
    """Return the frames of a stream of one task's changes. Raise a 503 or 429 if there is no room for it."""
    request.api.change_feed.check_room(request.caller.user_id)
    wanted = ChangeFilter(request.caller.user_id, task=task_id, with_state_since=with_state_since)
    return _TaskStream(request, wanted, last).frames()


def _stream(
    request: RequestContext,
    change_filter: ChangeFilter,
    last: int | None,
    tasks: TaskFilter | None = None,
    *,
    snapshot: bool = True,
) -> EventStream:
    request.api.change_feed.check_room(request.caller.user_id)
    frames = _TaskStream(request, change_filter, last, tasks, snapshot=snapshot).frames()
    return EventStream(request, frames, task_id=change_filter.task, last=changes.RESUME)


class _TaskStream:
    """The stream of one client."""

    def __init__(
        self,
        request: RequestContext,
        change_filter: ChangeFilter,
        last: int | None,
        tasks: TaskFilter | None = None,
        *,
        snapshot: bool = True,
    ) -> None:
        self._request = request
        self._tasks = tasks
        self._api = request.api
        self._reader = request.api.reader
        self._feed = request.api.change_feed
        self._filter = change_filter
        self._last = last
        self._snapshot = snapshot
        self._subscriber: Subscriber | None = None
        self._finished = False
        """True once the watched task was deleted."""
        self._sent_versions: dict[UUID, int] = {}
        """Versions in the snapshot that the feed after its position contains again."""

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Generate the frames of the stream."""
        try:
            async with self._feed.subscription(self._filter.caller), aclosing(self._parts()) as parts:
                async for part in parts:
                    self._request.mark_seen()
                    yield part
        except (Unavailable, Retry) as error:
            log.info("stream ended, client must resume", reason=str(error))
        finally:
            if self._subscriber is not None:
                self._feed.unsubscribe(self._subscriber)
        if not self._finished:
            yield changes.RESUME

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        for phase in (self._until_subscribed, self._live):
            async with aclosing(phase()) as parts:
                async for part in parts:
                    yield part

    async def _until_subscribed(self) -> AsyncGenerator[bytes, None]:
        """Generate the snapshot and the missed changes, until the stream has caught up and subscribes."""
        after = self._last
        while self._subscriber is None and not self._finished:
            if after is None or not await feed.position_exists(self._reader, after):
                if self._last is not None:
                    yield changes.RESET
                after = await self._feed.position()
                if self._snapshot:
                    async with aclosing(self._documents(after)) as pages:
                        async for page in pages:
                            yield page
                yield changes.position_frame(after)
            self._subscriber = self._feed.subscribe(self._filter, after)
            while self._subscriber is None and after is not None and not self._finished:
                after, missed = await self._catch_up(after)
                if missed:
                    yield self._frames_of(missed)
                if after is not None:
                    self._subscriber = self._feed.subscribe(self._filter, after)

    async def _live(self) -> AsyncGenerator[bytes, None]:
        """Generate the changes that the feed distributes, and comments."""
        subscriber = self._subscriber
        while subscriber is not None and not subscriber.ended and not self._finished:
            received = await subscriber.next(COMMENT_INTERVAL)
            new = [change for change in received if self._is_new(change)]
            if new:
                yield self._frames_of(new)
            elif not subscriber.ended:
                yield COMMENT

    async def _documents(self, after: int) -> AsyncGenerator[bytes, None]:
        """Generate the current documents, page by page, and record which the feed repeats after position ``after``."""
        self._sent_versions.clear()
        last_row: tuple[datetime, UUID] | None = None
        while True:
            rows, more = await self._page(last_row)
            if not rows:
                return
            self._sent_versions |= await feed.will_replay(
                self._reader, after, [(row["id"], row["version"]) for row in rows]
            )
            as_objects = self._api.nullable_ids_as_objects
            yield b"".join(
                changes.make_frame("task.snapshot", documents.render_row(row, nullable_ids_as_objects=as_objects))
                for row in rows
            )
            if not more:
                return
            last_row = (rows[-1]["created_at"], rows[-1]["id"])

    async def _page(self, after: tuple[datetime, UUID] | None) -> TaskPage:
        wanted = self._filter
        if wanted.task is not None:
            ref = TaskRef(wanted.caller, wanted.caller, wanted.task)
            row = await task_queries.task(self._reader, ref, with_state_since=wanted.with_state_since)
            return TaskPage([] if row is None else [row], more=False)
        assert self._tasks is not None
        if wanted.name is not None and after is None:
            found = await search.named(self._request, self._tasks, wanted.name)
            self._tasks = replace(self._tasks, ids=[task_id for _, task_id in found])
        return await task_queries.tasks(self._reader, replace(self._tasks, limit=PAGE_SIZE, after=after))

    async def _catch_up(self, after: int) -> tuple[int | None, list[Change]]:
        """Read a page of the stored feed. Return the position after it, or None if it has gaps, and its new changes."""
        wanted = self._filter
        feed_position = await self._feed.position()
        if wanted.task is not None:
            page = await feed.catch_up_task(self._reader, wanted.caller, after, PAGE_SIZE, wanted.task)
        else:
            page = await feed.catch_up(
                self._reader, wanted.caller, after, PAGE_SIZE, owner=wanted.owner, organization=wanted.organization
            )
        missed = self._feed.changes_of(page.rows)
        if any(change.pruned for change in missed):
            return None, []
        new = [change for change in missed if not change.erased and change.matches(wanted) and self._is_new(change)]
        return (page.until if page.more else max(page.until, feed_position)), new

    def _is_new(self, change: Change) -> bool:
        sent = self._sent_versions.get(change.task_id)
        if sent is None:
            return True
        if change.version >= sent:
            del self._sent_versions[change.task_id]
        return change.version > sent

    def _frames_of(self, new: Sequence[Change]) -> bytes:
        """Return the changes as SSE frames, and finish the stream if the watched task was deleted."""
        self._finished = self._filter.task is not None and any(change.deleted for change in new)
        return b"".join(change.frame_for(self._filter) for change in new)

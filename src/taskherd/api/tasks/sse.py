"""Following tasks as server-sent events: documents first, or from where the reader was, then every change once.

A reader goes through the history in pages of its own until it meets the tail, and hangs on that from then on. What was
told as a snapshot is not told again, also where its event is published only later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Final
from uuid import UUID

import structlog

from taskherd.api import changes
from taskherd.api.change_feed import MAX_SUBSCRIBERS
from taskherd.api.changes import Change, FollowFilter
from taskherd.api.http.auth import CACHE_TTL
from taskherd.api.http.endpoint import token_is_valid
from taskherd.api.http.responses import invalid, not_found, unavailable
from taskherd.api.http.route import Header, ResponseSpec, Route
from taskherd.api.http.sse import EventStream
from taskherd.api.tasks import documents, queries, search
from taskherd.errors import Retry, Unavailable
from taskherd.store import feed, task_queries
from taskherd.store.task_queries import TaskRef

if TYPE_CHECKING:
    from datetime import datetime

    from taskherd.api.change_feed import Subscriber
    from taskherd.api.context import RequestContext
    from taskherd.store.reader import Row

log = structlog.get_logger(__name__)

COMMENT_EVERY = 15.0 - CACHE_TTL
"""Seconds after which the token is checked again, and a comment is sent if no event is due.

A revoked token ends the stream within 15 seconds: the cache may accept it for one of them.
"""
PAGE: Final = 200
_MAX_POSITION: Final = 2**63 - 1
_LAST: Final = "last-event-id"


async def watch_all(request: RequestContext) -> EventStream:
    """Follow all tasks that the caller may see and that `q` finds."""
    text = await search.task_filter(request, request.parameters(search.WatchQuery))
    wanted = FollowFilter(request.caller.user_id, text.owner, text.organization, text.status)
    return _stream(request, wanted, _last(request))


async def watch_one(request: RequestContext) -> EventStream:
    """Follow one task, to its end; who was away learns also of a task that was deleted meanwhile."""
    last = _last(request)
    named = queries.task_ref_of(request)
    task_id = await task_queries.find_id(request.api.reader, named)
    if task_id is None and last is not None and isinstance(named.task, UUID):
        task_id = named.task if await feed.visible_even_deleted(request.api.reader, named.caller, named.task) else None
    if task_id is None:
        raise not_found()
    return _stream(request, FollowFilter(request.caller.user_id, task=task_id), last)


def _last(request: RequestContext) -> int | None:
    text = request.headers.get(_LAST, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_POSITION)) and int(text) <= _MAX_POSITION):
        raise invalid(("Last-Event-ID", "The id of an event was expected."))
    return int(text)


def _stream(request: RequestContext, wanted: FollowFilter, last: int | None) -> EventStream:
    if request.api.change_feed.subscriber_count >= MAX_SUBSCRIBERS:
        raise unavailable("Too many follow already.")
    return EventStream(_EventFeed(request, wanted, last).frames())


class _EventFeed:
    """One reader's way."""

    def __init__(self, request: RequestContext, wanted: FollowFilter, last: int | None) -> None:
        self._ask = request
        self._api = request.api
        self._reader = request.api.reader
        self._tail = request.api.change_feed
        self._wanted = wanted
        self._last = last
        self._follower: Subscriber | None = None
        self._now = asyncio.get_running_loop().time
        self._check_token_at = self._now() + COMMENT_EVERY
        self._over = False
        self._sent_versions: dict[UUID, int] = {}
        """Versions of the snapshot that the history behind it holds once more."""

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Everything that is sent, each time as much as there is."""
        try:
            async with self._tail.subscription(), aclosing(self._parts()) as parts:
                async for part in parts:
                    if not await self._may_still():
                        break
                    yield part
        except (Unavailable, Retry) as error:
            log.info("told to resume", reason=str(error))
        finally:
            if self._follower is not None:
                self._tail.unsubscribe(self._follower)
        if not self._over:
            yield changes.RESUME

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        for phase in (self._until_met, self._live):
            async with aclosing(phase()) as parts:
                async for part in parts:
                    yield part

    async def _until_met(self) -> AsyncGenerator[bytes, None]:
        """What there is until the reader is where the tail is, and hangs on it."""
        after = self._last
        while self._follower is None and not self._over:
            if after is None or not await feed.position_exists(self._reader, after):
                if self._last is not None:
                    yield changes.RESET
                after = await self._tail.position()
                async with aclosing(self._documents(after)) as pages:
                    async for page in pages:
                        yield page
                yield changes.position_frame(after)
            self._follower = self._tail.subscribe(self._wanted, after)
            while self._follower is None and after is not None and not self._over:
                after, caught = await self._catch_up(after)
                if caught:
                    yield self._encoded(caught)
                if after is not None:
                    self._follower = self._tail.subscribe(self._wanted, after)

    async def _live(self) -> AsyncGenerator[bytes, None]:
        """What the tail hands over, for as long as it does and the reader may see it."""
        follower = self._follower
        while follower is not None and not follower.ended and not self._over:
            fresh = await follower.next(max(0.0, self._check_token_at - self._now()))
            told = [change for change in fresh if self._is_new(change)]
            if told:
                yield self._encoded(told)
            elif not follower.ended:
                yield changes.COMMENT

    async def _documents(self, after: int) -> AsyncGenerator[bytes, None]:
        """The current documents, page by page, and note which of them are told again behind `after`."""
        self._sent_versions.clear()
        place: tuple[datetime, UUID] | None = None
        while True:
            rows = await self._page(place)
            if not rows:
                return
            self._sent_versions |= await feed.will_replay(
                self._reader, after, [(row["id"], row["version"]) for row in rows]
            )
            objects = self._api.settings.api_nullable_ids == "object"
            yield b"".join(
                changes.frame("task.snapshot", documents.render_row(row, objects=objects)) for row in rows[:PAGE]
            )
            if len(rows) <= PAGE:
                return
            place = (rows[PAGE - 1]["created_at"], rows[PAGE - 1]["id"])

    async def _page(self, place: tuple[datetime, UUID] | None) -> Sequence[Row]:
        wanted = self._wanted
        if wanted.task is not None:
            row = await task_queries.task(self._reader, TaskRef(wanted.caller, wanted.caller, wanted.task))
            return [] if row is None else [row]
        return await task_queries.tasks(
            self._reader,
            task_queries.TaskFilter(
                caller=wanted.caller,
                limit=PAGE,
                owner=wanted.owner,
                organization=wanted.organization,
                status=wanted.status,
                after=place,
            ),
        )

    async def _catch_up(self, after: int) -> tuple[int | None, list[Change]]:
        """How far the reader is after one more page of the history, None where it has holes; and what is told of it."""
        wanted = self._wanted
        told_to_all = await self._tail.position()
        if wanted.task is not None:
            until, rows = await feed.catch_up_one(self._reader, wanted.caller, after, PAGE, wanted.task)
            whole = len(rows) < PAGE
        else:
            until, rows = await feed.catch_up(
                self._reader, wanted.caller, after, PAGE, owner=wanted.owner, organization=wanted.organization
            )
            whole = until == after
        found = self._tail.take(rows)
        if any(change.pruned for change in found):
            return None, []
        told = [change for change in found if change.matches(wanted) and self._is_new(change)]
        return (max(until, told_to_all) if whole else until), told

    def _is_new(self, change: Change) -> bool:
        known = self._sent_versions.get(change.task_id)
        if known is None:
            return True
        if change.version >= known:
            del self._sent_versions[change.task_id]
        return change.version > known

    def _encoded(self, told: Sequence[Change]) -> bytes:
        """The bytes of some changes, of which the end of the one task that is followed is the last."""
        self._over = self._wanted.task is not None and any(change.deleted for change in told)
        return b"".join(change.frame for change in told)

    async def _may_still(self) -> bool:
        """Return whether the token is still valid, checked from time to time; assume so during an outage."""
        if self._now() < self._check_token_at:
            return True
        self._check_token_at = self._now() + COMMENT_EVERY
        try:
            return await token_is_valid(self._ask)
        except (Unavailable, Retry):
            return True


_LAST_EVENT_ID: Final = Header(
    "Last-Event-ID", "The id of the last event that was read: what came since is told first.", {"type": "string"}
)
_STREAM: Final = ResponseSpec(
    "Server-sent events. `task.snapshot` (a task's document) for each task there is, then `task.created`,"
    " `task.updated` and `task.deleted` (a CloudEvent), with the position as id; `reset`: the history since"
    " Last-Event-ID is gone, the documents follow; `resume`: connect again with the last id. A comment every 15 s.",
    media="text/event-stream",
)

ROUTES: Final = (
    Route(
        method="GET",
        path="/tasks/watch",
        handler=watch_all,
        summary="Follow AI tasks",
        description=(
            "All that the caller may see and `q` finds. With a status, a task that leaves it is told once more, by a"
            " `task.updated` whose document shows another status."
        ),
        query=search.WatchQuery,
        headers=(_LAST_EVENT_ID,),
        responses={200: _STREAM},
    ),
    Route(
        method="GET",
        path="/tasks/{user}/{task}/watch",
        handler=watch_one,
        summary="Follow an AI task",
        description="Ends with the task.",
        headers=(_LAST_EVENT_ID,),
        responses={200: _STREAM},
    ),
)

"""Reading tasks: one, a list, and a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from taskherd.api.http import etags
from taskherd.api.http.ids import is_searchable
from taskherd.api.http.responses import BufferedResponse, json, not_found
from taskherd.api.tasks import documents, search
from taskherd.domain.reports import rfc3339
from taskherd.domain.view import Status
from taskherd.store import task_queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.api.context import RequestContext
    from taskherd.store.reader import Row
    from taskherd.store.task_queries import TaskRef

MAX_LOG_ENTRIES: Final = 10_000
MAX_LOG_BYTES: Final = 8 * 1024 * 1024
_SNAPSHOT_STATUSES: Final = frozenset({Status.PAUSED, Status.PENDING, Status.INITIALIZING})
"""With one of these no agent can be asked: the log is what it was."""


def task_ref_of(request: RequestContext) -> TaskRef:
    """The task that the path names; raises the 404 where it can't name any."""
    named = request.task_ref()
    for each in (named.user, named.task):
        if isinstance(each, str) and not is_searchable(each):
            raise not_found()
    return named


async def get_or_404(request: RequestContext) -> Row:
    """The row of the task that the path names; raises the 404 where there is none for the caller."""
    row = await task_queries.task(request.api.reader, task_ref_of(request))
    if row is None:
        raise not_found()
    return row


async def get(request: RequestContext) -> BufferedResponse:
    """One task."""
    return task_response(request, await get_or_404(request))


def task_response(request: RequestContext, row: Row) -> BufferedResponse:
    """A task's document, or that it has not changed since the caller last saw it."""
    tag = etags.of_document(row["version"], row["revision"])
    return etags.unchanged(request.headers, tag) or BufferedResponse(
        200, documents.render_row(row, objects=request.api.settings.api_nullable_ids == "object"), {"ETag": tag}
    )


async def list_tasks(request: RequestContext) -> BufferedResponse:
    """The tasks that the caller may read, newest first."""
    query = request.parameters(search.ListQuery)
    wanted = await search.task_filter(request, query)
    rows = await task_queries.tasks(request.api.reader, wanted)
    more, rows = len(rows) > wanted.limit, rows[: wanted.limit]
    headers = {"ETag": etags.of_list(_marks(rows, more=more))}
    same = etags.unchanged(request.headers, headers["ETag"])
    if same is not None:
        return same
    objects = request.api.settings.api_nullable_ids == "object"
    tail: dict[str, Any] = {"count": len(rows)}
    if query.paged:
        tail["next"] = search.cursor(rows[-1]) if more else None
    elif more:
        headers["X-Taskherd-Truncated"] = "true"
    documents_ = b",".join([documents.render_row(row, objects=objects) for row in rows])
    return BufferedResponse(200, b'{"tasks":[' + documents_ + b"]," + orjson.dumps(tail)[1:], headers)


def _marks(rows: Sequence[Row], *, more: bool) -> list[object]:
    marks: list[object] = [more]
    for row in rows:
        marks += (row["id"], row["version"], row["revision"])
    return marks


async def logs(request: RequestContext) -> BufferedResponse:
    """The conversation of a task, in every state; of a very long one the newest part."""
    named = task_ref_of(request)
    caller = request.caller.user_id
    direct = named.task if isinstance(named.task, UUID) and named.user == caller else None
    rows = await _logs(request, direct) if direct else ()
    if not rows:
        task_id = await task_queries.find_id(request.api.reader, named)
        rows = await _logs(request, task_id) if task_id else ()
    if not rows:
        raise not_found()
    told: dict[str, Any] = {
        "logs": [
            {"id": row["log_id"], "content": row["content"], "type": row["type"], "time": rfc3339(row["time"])}
            for row in rows
            if row["log_id"] is not None
        ]
    }
    if rows[0]["status"] in _SNAPSHOT_STATUSES:
        told["snapshot"] = True
        if told["logs"]:
            told["snapshot_at"] = rfc3339(max(row["logged_at"] for row in rows))
    return json(told)


async def _logs(request: RequestContext, task_id: UUID) -> Sequence[Row]:
    return await task_queries.logs(
        request.api.reader, request.caller.user_id, task_id, entries=MAX_LOG_ENTRIES, content_bytes=MAX_LOG_BYTES
    )

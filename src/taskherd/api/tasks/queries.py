"""Handlers that read tasks: one, a list, and the log of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import orjson
from pydantic import Field

from taskherd.api.http import etags
from taskherd.api.http.errors import not_found
from taskherd.api.http.ids import is_searchable
from taskherd.api.http.query_parameters import MAX_POSITION, QueryModel, whole_number
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.tasks import documents, search
from taskherd.domain.reports import format_rfc3339
from taskherd.domain.view import Status
from taskherd.store import task_queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.api.context import RequestContext
    from taskherd.store.read_pool import Row
    from taskherd.store.task_queries import TaskRef

MAX_LOG_ENTRIES: Final = 10_000
MAX_LOG_BYTES: Final = 8 * 1024 * 1024
"""Limits of one response with log entries; the newest are returned."""
_SNAPSHOT_STATUSES: Final = frozenset({Status.PAUSED, Status.PENDING, Status.INITIALIZING})
"""Statuses without a running agent: the log is the last one received."""


class TaskLogQuery(QueryModel):
    """Query parameters of a task's log."""

    after: Annotated[int | None, whole_number(0, MAX_POSITION, expected="Expected the id of an entry.")] = Field(
        None,
        description="ID of an entry; only entries that came after it are returned. By default all entries are. An "
        "entry that is replaced keeps its id: to follow a log, use `logs/watch`, which has it again then.",
    )
    before: Annotated[int, whole_number(0, MAX_POSITION, expected="Expected the id of an entry.")] = Field(
        MAX_POSITION,
        description="ID of an entry; only entries with lower ids are returned. With `limit`, it pages back in a log.",
    )
    limit: Annotated[int | None, whole_number(1, MAX_LOG_ENTRIES)] = Field(
        None, description=f"Maximum number of entries, the newest; at most and by default {MAX_LOG_ENTRIES}."
    )


def task_ref_of(request: RequestContext) -> TaskRef:
    """Return the reference of the task that the path names. Raise a 404 if no user or task can have such a name."""
    ref = request.task_ref()
    for each in (ref.user, ref.task):
        if isinstance(each, str) and not is_searchable(each):
            raise not_found()
    return ref


async def get_or_404(request: RequestContext, *, with_state_since: bool = False) -> Row:
    """Return the row of the task that the path names. Raise a 404 if the caller may not see it."""
    row = await task_queries.task(request.reader, task_ref_of(request), with_state_since=with_state_since)
    if row is None:
        raise not_found()
    return row


async def get(request: RequestContext, *, with_state_since: bool) -> BufferedResponse:
    """Return one task."""
    return task_response(request, await get_or_404(request, with_state_since=with_state_since))


def task_response(request: RequestContext, row: Row) -> BufferedResponse:
    """Return a task's document, or a 304 if it has not changed since the ETag in If-None-Match."""
    tag = etags.of_document(row["id"], row["version"], row["revision"])
    return etags.unchanged(request.headers, tag) or BufferedResponse(
        200, documents.render_row(row, nullable_ids_as_objects=request.api.nullable_ids_as_objects), {"ETag": tag}
    )


async def list_tasks(request: RequestContext) -> BufferedResponse:
    """Return the tasks that the caller may see and that match, newest or last changed first."""
    query = request.parameters(search.ListQuery)
    task_filter = await search.task_filter(request, query)
    rows, more = await task_queries.tasks(request.reader, task_filter)
    headers = {"ETag": etags.of_list(_etag_parts(rows, more=more))}
    unchanged = etags.unchanged(request.headers, headers["ETag"])
    if unchanged is not None:
        return unchanged
    counts: dict[str, Any] = {"count": len(rows)}
    if query.paged:
        counts["next"] = search.cursor(rows[-1]["sorted_at"], rows[-1]["id"]) if more else None
    elif more:
        headers["X-Taskherd-Truncated"] = "true"
    tasks = render_rows(request, rows)
    return BufferedResponse(200, b'{"tasks":' + tasks + b"," + orjson.dumps(counts)[1:], headers)


def render_rows(request: RequestContext, rows: Sequence[Row]) -> bytes:
    """Return the documents of tasks as a JSON array."""
    as_objects = request.api.nullable_ids_as_objects
    return b"[" + b",".join([documents.render_row(row, nullable_ids_as_objects=as_objects) for row in rows]) + b"]"


def _etag_parts(rows: Sequence[Row], *, more: bool) -> list[object]:
    parts: list[object] = [more]
    for row in rows:
        parts += (row["id"], row["version"], row["revision"])
    return parts


async def logs(request: RequestContext) -> BufferedResponse:
    """Return the log of a task in any status, in the order in which it was made; of a very long one the newest part."""
    ref, query = task_ref_of(request), request.parameters(TaskLogQuery)
    by_id = ref.task if isinstance(ref.task, UUID) and ref.user == request.caller.user_id else None
    rows = await _logs(request, by_id, query) if by_id else ()
    if not rows:
        task_id = await task_queries.find_id(request.reader, ref)
        rows = await _logs(request, task_id, query) if task_id else ()
    if not rows:
        raise not_found()
    body: dict[str, Any] = {"logs": [log_entry(row) for row in rows if row["log_id"] is not None]}
    if rows[0]["status"] in _SNAPSHOT_STATUSES:
        body["snapshot"] = True
        if body["logs"]:
            body["snapshot_at"] = format_rfc3339(max(row["logged_at"] for row in rows))
    return json(body)


def log_entry(row: Row) -> dict[str, Any]:
    """Return a log entry as it is sent: Coder's fields, and those of ours that it has."""
    entry = {"id": row["log_id"], "content": row["content"], "type": row["type"], "time": format_rfc3339(row["time"])}
    entry["place"] = [int(row["entry_id"] < 0), row["build_number"], row["first_seq"] or 0, row["log_id"]]
    ours = {"kind": row["kind"], "title": row["title"], "status": row["entry_status"]}
    entry |= {name: value for name, value in ours.items() if value is not None}
    if row["data"] is not None:
        entry["data"] = orjson.Fragment(row["data"])
    return entry


async def _logs(request: RequestContext, task_id: UUID, query: TaskLogQuery) -> Sequence[Row]:
    return await task_queries.logs(
        request.reader,
        request.caller.user_id,
        task_id,
        after=-1 if query.after is None else query.after,
        before=query.before,
        entries=query.limit or MAX_LOG_ENTRIES,
        content_bytes=MAX_LOG_BYTES,
    )

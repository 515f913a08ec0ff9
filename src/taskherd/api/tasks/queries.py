"""Reading tasks: one, a list, and a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from taskherd.api.http import etags
from taskherd.api.http.ids import findable
from taskherd.api.http.responses import Answer, json, not_found
from taskherd.api.tasks import documents, search
from taskherd.domain.reports import rfc3339
from taskherd.domain.view import Status
from taskherd.store import task_queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.api.context import Ask
    from taskherd.store.reader import Row
    from taskherd.store.task_queries import Whose

LOG_ENTRIES_MOST: Final = 10_000
LOG_BYTES_MOST: Final = 8 * 1024 * 1024
_AWAY: Final = frozenset({Status.PAUSED, Status.PENDING, Status.INITIALIZING})
"""With one of these no agent can be asked: the log is what it was."""


def whose(ask: Ask) -> Whose:
    """The task that the path names; raises the 404 where it can't name any."""
    named = ask.whose()
    for each in (named.user, named.task):
        if isinstance(each, str) and not findable(each):
            raise not_found()
    return named


async def found(ask: Ask) -> Row:
    """The row of the task that the path names; raises the 404 where there is none for the caller."""
    row = await task_queries.task(ask.house.reader, whose(ask))
    if row is None:
        raise not_found()
    return row


async def get(ask: Ask) -> Answer:
    """One task."""
    return shown(ask, await found(ask))


def shown(ask: Ask, row: Row) -> Answer:
    """A task's document, or that it has not changed since the caller last saw it."""
    tag = etags.of_document(row["version"], row["revision"])
    return etags.unchanged(ask.headers, tag) or Answer(
        200, documents.rendered(row, objects=ask.house.settings.api_nullable_ids == "object"), {"ETag": tag}
    )


async def listed(ask: Ask) -> Answer:
    """The tasks that the caller may read, newest first."""
    query = ask.parameters(search.ListQuery)
    wanted = await search.wanted(ask, query)
    rows = await task_queries.tasks(ask.house.reader, wanted)
    more, rows = len(rows) > wanted.limit, rows[: wanted.limit]
    headers = {"ETag": etags.of_list(_marks(rows, more=more))}
    same = etags.unchanged(ask.headers, headers["ETag"])
    if same is not None:
        return same
    objects = ask.house.settings.api_nullable_ids == "object"
    tail: dict[str, Any] = {"count": len(rows)}
    if query.paged:
        tail["next"] = search.cursor(rows[-1]) if more else None
    elif more:
        headers["X-Taskherd-Truncated"] = "true"
    documents_ = b",".join([documents.rendered(row, objects=objects) for row in rows])
    return Answer(200, b'{"tasks":[' + documents_ + b"]," + orjson.dumps(tail)[1:], headers)


def _marks(rows: Sequence[Row], *, more: bool) -> list[object]:
    marks: list[object] = [more]
    for row in rows:
        marks += (row["id"], row["version"], row["revision"])
    return marks


async def logs(ask: Ask) -> Answer:
    """The conversation of a task, in every state; of a very long one the newest part."""
    named = whose(ask)
    caller = ask.caller.user_id
    direct = named.task if isinstance(named.task, UUID) and named.user == caller else None
    rows = await _logs(ask, direct) if direct else ()
    if not rows:
        task_id = await task_queries.target(ask.house.reader, named)
        rows = await _logs(ask, task_id) if task_id else ()
    if not rows:
        raise not_found()
    told: dict[str, Any] = {
        "logs": [
            {"id": row["log_id"], "content": row["content"], "type": row["type"], "time": rfc3339(row["time"])}
            for row in rows
            if row["log_id"] is not None
        ]
    }
    if rows[0]["status"] in _AWAY:
        told["snapshot"] = True
        if told["logs"]:
            told["snapshot_at"] = rfc3339(max(row["logged_at"] for row in rows))
    return json(told)


async def _logs(ask: Ask, task_id: UUID) -> Sequence[Row]:
    return await task_queries.logs(
        ask.house.reader, ask.caller.user_id, task_id, entries=LOG_ENTRIES_MOST, content_bytes=LOG_BYTES_MOST
    )

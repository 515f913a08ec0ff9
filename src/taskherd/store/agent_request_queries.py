"""Queries for requests of agents, on behalf of a caller or of the agent itself. For ``ReadPool``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from taskherd.store.read_pool import Reader, ReadPool, Row
from taskherd.store.task_lists import Statement
from taskherd.store.task_queries import CAN_SEE, TaskFilter

_REQUEST: Final = """r.task_id, r.request_id, r.build_number, r.shown, CAST(r.report AS text) AS report, r.since,
       r.received_at, r.answer_option_id, r.answer_text, r.answered_by, w.username AS answered_by_name, r.answered_at,
       r.delivered_at"""

_ORDER: Final = """r.shown <> 'open',
    CASE WHEN r.shown = 'open' THEN r.since END, CASE WHEN r.shown = 'open' THEN r.request_id END,
    r.since DESC, r.request_id DESC"""
"""Open ones first, oldest first; then the others, newest first."""

_ANSWERED_BY: Final = "LEFT JOIN LATERAL (SELECT username FROM users WHERE id = r.answered_by LIMIT 1) AS w ON true"


class QueuePlace(NamedTuple):
    """A place in the queue of open requests: after this one."""

    since: datetime
    task_id: UUID
    request_id: UUID


class TaskPlace(NamedTuple):
    """A place among the requests of a task: after this one, which was open or not."""

    is_open: bool
    since: datetime
    request_id: UUID


async def of_task(pool: Reader, caller: UUID, task_id: UUID, limit: int, after: TaskPlace | None) -> Sequence[Row]:
    """Return requests of a task that the caller may see: open ones, oldest first, then the others, newest first.

    One more than ``limit`` is returned if there are more.
    """
    statement = Statement(caller, task_id)
    place = ""
    if after is not None:
        row = f"({statement.bind(after.since)}, {statement.bind(after.request_id)})"
        is_open, key = "r.shown = 'open'", "(r.since, r.request_id)"
        later_open, earlier_closed = f"{is_open} AND {key} > {row}", f"NOT {is_open} AND {key} < {row}"
        place = f"AND ({later_open} OR NOT {is_open})" if after.is_open else f"AND {earlier_closed}"
    text = f"""
    WITH page AS (
        SELECT r.task_id, r.request_id FROM tasks AS t JOIN agent_requests AS r ON r.task_id = t.id
        WHERE t.id = $2 AND t.deleted_at IS NULL AND {CAN_SEE} {place}
        ORDER BY {_ORDER} LIMIT {statement.bind(limit + 1)}
    )
    SELECT {_REQUEST}
    FROM page JOIN agent_requests AS r ON r.task_id = page.task_id AND r.request_id = page.request_id {_ANSWERED_BY}
    ORDER BY {_ORDER}"""
    return await pool.fetch(text, *statement.values)


async def waiting(pool: Reader, wanted: TaskFilter, limit: int, after: QueuePlace | None) -> tuple[Sequence[Row], bool]:
    """Return the open requests of the tasks that match, oldest first, and whether more tasks wait than are looked at.

    One request more than ``limit`` is returned if there are more. The index of open requests gives their order, and the
    index of tasks those that match, so that requests that are over cost nothing.

    Args:
        pool: what executes the statement.
        wanted: waiting tasks, of which the newest ``wanted.limit`` are looked at.
        limit: the maximum number of requests.
        after: the last request of the page before.
    """
    statement = Statement(wanted.caller)
    indexed = wanted.indexed
    assert indexed is not None  # an index serves the list of waiting tasks
    place = ""
    if after is not None:
        values = ", ".join(statement.bind(value) for value in after)
        place = f"AND (r.since, r.task_id, r.request_id) > ({values})"
    text = f"""
    WITH waiting AS MATERIALIZED ({indexed.select(statement)}),
    page AS (
        SELECT r.* FROM agent_requests AS r
        WHERE r.shown = 'open' AND r.task_id IN (SELECT task_id FROM waiting) {place}
        ORDER BY r.since, r.task_id, r.request_id LIMIT {statement.bind(limit + 1)}
    )
    SELECT {_REQUEST}, t.name AS task_name, t.display_name AS task_display_name, t.owner_id, o.username,
           t.organization_id, m.name AS template_name, m.display_name AS template_display_name,
           (SELECT count(*) FROM waiting) AS waiting_tasks
    FROM page AS r
    CROSS JOIN LATERAL (SELECT * FROM tasks WHERE id = r.task_id LIMIT 1) AS t
    CROSS JOIN LATERAL (SELECT username FROM users WHERE id = t.owner_id LIMIT 1) AS o
    CROSS JOIN LATERAL (SELECT name, display_name FROM templates WHERE id = t.template_id LIMIT 1) AS m
    {_ANSWERED_BY}
    ORDER BY r.since, r.task_id, r.request_id"""
    rows = await pool.fetch(text, *statement.values)
    return rows, bool(rows) and rows[0]["waiting_tasks"] > wanted.limit


OWN: Final = """
SELECT request_id, shown, CAST(report AS text) AS report, answer_option_id, answer_text, answered_at
FROM agent_requests WHERE task_id = $1 AND request_id = $3 AND build_number = $2
"""


async def own(pool: ReadPool, task_id: UUID, build_number: int, request_id: UUID) -> Row | None:
    """Return a request of an agent by what its token says, or None if its task and build have no such request."""
    return await pool.fetch_one(OWN, task_id, build_number, request_id)


class Room(NamedTuple):
    """How many requests a build has, and whether a certain one is among them."""

    open: int
    number: int
    is_known: bool


ROOM: Final = """
SELECT count(*) FILTER (WHERE shown = 'open'), count(*), COALESCE(bool_or(request_id = $3), false)
FROM agent_requests WHERE task_id = $1 AND build_number = $2
"""


async def room(pool: ReadPool, task_id: UUID, build_number: int, request_id: UUID) -> Room:
    """Return how many requests the build of a task has, and whether this one is among them."""
    row = await pool.fetch_one(ROOM, task_id, build_number, request_id)
    assert row is not None
    return Room(*row)


async def owner(pool: ReadPool, task_id: UUID) -> UUID | None:
    """Return the owner of a task, deleted or not, or None if there is no such task."""
    row = await pool.fetch_one("SELECT owner_id FROM tasks WHERE id = $1", task_id)
    return None if row is None else row["owner_id"]

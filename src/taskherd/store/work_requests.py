"""Open work requests: sent after the commit, then repeated with backoff until a report answers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.backoff import MAX_DOUBLINGS
from taskherd.store.pages import bytes_before
from taskherd.store.statements import ColumnArrays, column_names
from taskherd.store.tables import work_requests

WITH_PROMPT: Final = "workspace.start"
"""The type of the requests that have the prompt of their task."""

MAX_DUE_BYTES: Final = 32 * 1024 * 1024
"""Size of the prompts and inputs of due requests at which no further one is picked: each has up to 256 KiB."""


@dataclass(frozen=True, slots=True)
class WorkRequestRow:
    """A work request; ``attempt`` counts how often ``pick_due`` returned it, ``first_sent_at`` is when it first did."""

    request_id: UUID
    task_id: UUID
    build_number: int
    type: str
    input_id: UUID | None
    target_runner: str | None
    attempt: int
    created_at: datetime
    next_at: datetime
    first_sent_at: datetime | None
    interrupt_id: UUID | None = None
    agent_request_id: UUID | None = None


_ROWS: Final = ColumnArrays(work_requests.c, prefix="r_")

INSERT: Final = f"""
INSERT INTO work_requests ({column_names(work_requests.c)})
SELECT * FROM {_ROWS.unnest("n")}
ON CONFLICT (request_id) DO NOTHING
"""
ADD: Final = text(INSERT)

DELETE_OF_BUILDS: Final = text("""
DELETE FROM work_requests AS r
USING unnest(CAST(:task_id AS uuid[]), CAST(:build_number AS integer[])) AS a(task_id, build_number)
WHERE r.task_id = a.task_id AND r.build_number = a.build_number AND r.type LIKE 'workspace.%'
RETURNING r.request_id
""")

DELETE_OF_INPUTS: Final = text("""
DELETE FROM work_requests AS r
USING unnest(CAST(:task_id AS uuid[]), CAST(:input_id AS uuid[])) AS a(task_id, input_id)
WHERE r.task_id = a.task_id AND r.input_id = a.input_id
RETURNING r.request_id
""")

DELETE_OF_INTERRUPTS: Final = text("""
DELETE FROM work_requests AS r
USING unnest(CAST(:task_id AS uuid[]), CAST(:interrupt_id AS uuid[])) AS a(task_id, interrupt_id)
WHERE r.task_id = a.task_id AND r.interrupt_id = a.interrupt_id
""")

DELETE_OF_ANSWERS: Final = text("""
DELETE FROM work_requests AS r
USING unnest(CAST(:task_id AS uuid[]), CAST(:agent_request_id AS uuid[])) AS a(task_id, agent_request_id)
WHERE r.task_id = a.task_id AND r.agent_request_id = a.agent_request_id
""")

# The wait is ``Backoff(first, maximum).longest(attempt)`` of ``taskherd.backoff``, in SQL because one statement updates
# all rows; a test compares the two. Jitter of 10 % keeps the requests of one outage from becoming due together.
#
# The sizes of up to ``:limit`` prompts and inputs are looked up, each by its key: a LIMIT leaves no other plan.
PICK_DUE: Final = text(f"""
WITH due AS (
    SELECT request_id, task_id, type, input_id, next_at
    FROM work_requests WHERE next_at <= :now ORDER BY next_at LIMIT :limit
    FOR UPDATE SKIP LOCKED
), counted AS (
    SELECT d.request_id,
           {bytes_before("COALESCE(p.size, i.size, 0)", "ORDER BY d.next_at, d.request_id")} AS bytes_before
    FROM due AS d
    LEFT JOIN LATERAL (
        SELECT octet_length(c.prompt) AS size
        FROM (SELECT id, prompt_version FROM tasks WHERE id = d.task_id AND d.type = '{WITH_PROMPT}' LIMIT 1) AS t
        CROSS JOIN LATERAL (
            SELECT prompt FROM task_prompts WHERE task_id = t.id AND version = t.prompt_version LIMIT 1
        ) AS c
    ) AS p ON true
    LEFT JOIN LATERAL (
        SELECT octet_length(content) AS size FROM inputs WHERE task_id = d.task_id AND input_id = d.input_id LIMIT 1
    ) AS i ON true
), started AS (
    UPDATE work_requests AS r
    SET attempt = r.attempt + 1,
        first_sent_at = COALESCE(r.first_sent_at, :now),
        next_at = CAST(:now AS timestamptz) + make_interval(secs =>
            LEAST(CAST(:first AS float8) * power(2, LEAST(r.attempt, {MAX_DOUBLINGS})), CAST(:maximum AS float8))
            * (0.9 + 0.2 * random()))
    FROM counted AS c WHERE r.request_id = c.request_id AND c.bytes_before < :bytes
    RETURNING {column_names(work_requests.c, "r")}
)
SELECT * FROM started ORDER BY created_at, type, request_id
""")

OF_TASKS: Final = text(f"""
SELECT {column_names(work_requests.c, "r")}
FROM work_requests AS r WHERE r.task_id = ANY(CAST(:ids AS uuid[])) ORDER BY r.created_at
""")

EXPIRED_INPUTS: Final = text("""
SELECT task_id, input_id FROM work_requests
WHERE input_id IS NOT NULL AND first_sent_at <= :before
ORDER BY first_sent_at LIMIT :limit
""")

DELETE: Final = text("DELETE FROM work_requests WHERE request_id = ANY(CAST(:ids AS uuid[]))")


async def add(connection: AsyncConnection, requests: Sequence[WorkRequestRow]) -> None:
    """Insert requests; an existing request is left unchanged."""
    await connection.execute(ADD, parameters(requests))


def parameters(requests: Sequence[WorkRequestRow]) -> dict[str, Any]:
    """Return the parameters of ``INSERT``."""
    return _ROWS.parameters(requests)


async def delete_of_builds(connection: AsyncConnection, builds: Sequence[tuple[UUID, int]]) -> set[UUID]:
    """Delete the workspace requests of these (task id, build number) pairs and return their ids."""
    values = {"task_id": [task_id for task_id, _ in builds], "build_number": [number for _, number in builds]}
    return {request_id for (request_id,) in await connection.execute(DELETE_OF_BUILDS, values)}


async def delete_of_inputs(connection: AsyncConnection, inputs: Sequence[tuple[UUID, UUID]]) -> set[UUID]:
    """Delete the input requests of these (task id, input id) pairs and return their ids."""
    values = {"task_id": [task_id for task_id, _ in inputs], "input_id": [input_id for _, input_id in inputs]}
    return {request_id for (request_id,) in await connection.execute(DELETE_OF_INPUTS, values)}


async def delete_of_interrupts(connection: AsyncConnection, interrupts: Sequence[tuple[UUID, UUID]]) -> None:
    """Delete the requests of these (task id, interrupt id) pairs."""
    values = {"task_id": [task_id for task_id, _ in interrupts], "interrupt_id": [each for _, each in interrupts]}
    await connection.execute(DELETE_OF_INTERRUPTS, values)


async def delete_of_answers(connection: AsyncConnection, answers: Sequence[tuple[UUID, UUID]]) -> None:
    """Delete the requests that deliver the answers to these (task id, id of the agent's request) pairs."""
    values = {"task_id": [task_id for task_id, _ in answers], "agent_request_id": [each for _, each in answers]}
    await connection.execute(DELETE_OF_ANSWERS, values)


async def pick_due(
    connection: AsyncConnection, now: datetime, limit: int, *, first_delay: float, max_delay: float
) -> list[WorkRequestRow]:
    """Return up to ``limit`` requests that are due, after counting the attempt and setting the time of the next one.

    There may be fewer, at least one, if their prompts and inputs are large: see ``MAX_DUE_BYTES``. Those that have been
    due for longest come first.

    Of those that were created at once, an answer comes before an interrupt, so that the agent gets it first.

    The next attempt is due after ``first_delay`` seconds, doubled by each further attempt up to ``max_delay`` seconds.
    Requests that another worker is processing are skipped.
    """
    values = {"now": now, "limit": limit, "bytes": MAX_DUE_BYTES, "first": first_delay, "maximum": max_delay}
    return [WorkRequestRow(*row) for row in await connection.execute(PICK_DUE, values)]


async def of_tasks(connection: AsyncConnection, ids: Sequence[UUID]) -> list[WorkRequestRow]:
    """Return the open requests of these tasks, oldest first."""
    return [WorkRequestRow(*row) for row in await connection.execute(OF_TASKS, {"ids": ids})]


async def expired_inputs(connection: AsyncConnection, before: datetime, limit: int) -> Sequence[tuple[UUID, UUID]]:
    """Return (task id, input id) of up to ``limit`` inputs without an outcome, first sent at or before ``before``."""
    return [(row[0], row[1]) for row in await connection.execute(EXPIRED_INPUTS, {"before": before, "limit": limit})]


async def delete(connection: AsyncConnection, ids: Sequence[UUID]) -> None:
    """Delete requests that timed out or are no longer needed."""
    await connection.execute(DELETE, {"ids": ids})

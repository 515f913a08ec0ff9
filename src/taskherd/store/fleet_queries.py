"""What a caller may know of the fleet: pools, runners, agents, workers, what waits, and rates. For ``ReadPool``.

Members see the pools of their organizations' templates, with the runners and queues of these, and of tasks those that
they may see. Who is an admin of every active organization sees the whole installation. ``$1`` is always the caller, and
``$2`` whether the caller sees all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from taskherd.store.directory import POOL
from taskherd.store.read_pool import Reader, Row
from taskherd.store.task_lists import IndexedList, Listed, Statement
from taskherd.store.task_queries import CAN_SEE

MAX_POOLS: Final = 100
MAX_RUNNERS: Final = 500
MAX_AGENTS: Final = 20_000
"""Maximum number of connected agents that are counted, and of work requests that are looked at."""
MAX_WAITING: Final = 100
"""Maximum number of waiting tasks that are listed."""
MAX_UNWELL: Final = 1_000
"""Maximum number of tasks with a health that are counted by their runners."""

SEES_ALL: Final = """
SELECT EXISTS (SELECT 1 FROM organizations WHERE active) AND NOT EXISTS (
    SELECT 1 FROM organizations AS o WHERE o.active AND NOT EXISTS (
        SELECT 1 FROM memberships AS a
        WHERE a.user_id = $1 AND a.organization_id = o.id AND a.role = 'admin' AND a.active)) AS sees_all
"""

POOLS: Final = f"""
SELECT p.pool, array_remove(array_agg(DISTINCT p.template ORDER BY p.template), NULL) AS templates FROM (
    SELECT {POOL} AS pool, t.name AS template
    FROM templates AS t JOIN template_versions AS v ON v.id = t.active_version_id
    WHERE t.active AND ($2 OR EXISTS (
        SELECT 1 FROM memberships AS a
        WHERE a.user_id = $1 AND a.organization_id = t.organization_id AND a.active))
    UNION ALL SELECT pool, NULL FROM runners WHERE active AND $2
    UNION ALL SELECT pool, NULL FROM runner_hellos WHERE $2
) AS p GROUP BY p.pool ORDER BY p.pool LIMIT {MAX_POOLS}
"""

RUNNERS: Final = f"""
SELECT COALESCE(h.name, r.name) AS name, COALESCE(h.pool, r.pool) AS pool, h.hello_at, r.name IS NOT NULL AS listed
FROM runner_hellos AS h FULL JOIN (SELECT name, pool FROM runners WHERE active) AS r ON r.name = h.name
WHERE COALESCE(h.pool, r.pool) = ANY($1::text[])
ORDER BY 2, 1 LIMIT {MAX_RUNNERS}
"""

# The leases bound it: there is one for each connected agent, however many tasks there were.
AGENTS: Final = f"""
SELECT c.runner, count(*) AS agents, max(l.last_heartbeat_at) AS heard_at
FROM (SELECT task_id, build_number, last_heartbeat_at FROM leases LIMIT {MAX_AGENTS}) AS l
JOIN build_claims AS c ON c.task_id = l.task_id AND c.build_number = l.build_number
WHERE $2 OR EXISTS (SELECT 1 FROM tasks AS t WHERE t.id = l.task_id AND {CAN_SEE})
GROUP BY c.runner
"""

_WAITING: Final = f"""
FROM (SELECT * FROM work_requests LIMIT {MAX_AGENTS}) AS w
CROSS JOIN LATERAL (SELECT * FROM tasks WHERE id = w.task_id LIMIT 1) AS t
CROSS JOIN LATERAL (SELECT {POOL} AS pool FROM template_versions AS v WHERE v.id = t.template_version_id LIMIT 1) AS v
CROSS JOIN LATERAL (SELECT username FROM users WHERE id = t.owner_id LIMIT 1) AS o
WHERE ($2 OR (t.deleted_at IS NULL AND {CAN_SEE}))
"""

WAITING: Final = f"""
SELECT w.type, w.created_at, w.attempt, w.target_runner AS runner, v.pool, t.id, t.name, t.display_name,
       o.username AS owner_name, t.deleted_at IS NOT NULL AS deleted
{_WAITING} ORDER BY w.created_at, w.request_id LIMIT {MAX_WAITING}
"""

WAITING_BY_TARGET: Final = f"""
SELECT v.pool, w.target_runner AS runner, count(DISTINCT w.task_id) AS tasks, min(w.created_at) AS since
{_WAITING} AND t.deleted_at IS NULL GROUP BY 1, 2
"""

WORKERS: Final = "SELECT worker_id, started_at, seen_at, drained_since FROM workers ORDER BY worker_id LIMIT 100"

RATES: Final = """
SELECT r.hour, sum(r.created)::bigint AS created, sum(r.completed)::bigint AS completed, sum(r.failed)::bigint AS failed
FROM task_rates AS r
WHERE r.hour >= $3 AND ($2 OR EXISTS (
    SELECT 1 FROM memberships AS a
    WHERE a.user_id = $1 AND a.organization_id = r.organization_id AND a.active
      AND (a.role = 'admin' OR r.owner_id = $1)))
GROUP BY r.hour ORDER BY r.hour
"""

DEAD_LETTERS: Final = """
SELECT reason, sum(letters)::bigint AS letters FROM dead_letter_rates WHERE hour >= $1 GROUP BY reason
ORDER BY letters DESC, reason LIMIT 100
"""


async def sees_all(pool: Reader, caller: UUID) -> bool:
    """Return whether the caller is an admin of every active organization, of which there is at least one."""
    row = await pool.fetch_one(SEES_ALL, caller)
    return row is not None and bool(row["sees_all"])


async def pools(pool: Reader, caller: UUID, *, all_: bool) -> Sequence[Row]:
    """Return the pools, each with the names of the templates that use it."""
    return await pool.fetch(POOLS, caller, all_)


async def runners(pool: Reader, names: Sequence[str]) -> Sequence[Row]:
    """Return the runners of these pools; ``listed``: in the directory."""
    return await pool.fetch(RUNNERS, list(names))


async def agents(pool: Reader, caller: UUID, *, all_: bool) -> Sequence[Row]:
    """Return for each runner its number of connected agents, and the time of their last heartbeat."""
    return await pool.fetch(AGENTS, caller, all_)


async def unwell(pool: Reader, caller: UUID, health: str, prefix: str) -> Mapping[str, int]:
    """Return how many of the last ``MAX_UNWELL`` tasks with this health have each term that begins with ``prefix``.

    A task has one such term at most, as the one of its runner.
    """
    statement = Statement(caller)
    tasks = IndexedList(caller, MAX_UNWELL, "changed_at", listed=Listed(health=(health,))).select(statement)
    start, end = statement.bind(prefix), statement.bind(prefix + "\U0010ffff")
    rows = await pool.fetch(
        f"""
        SELECT i.term, count(*) AS tasks FROM ({tasks}) AS l CROSS JOIN LATERAL (
            SELECT term FROM task_index WHERE task_id = l.task_id AND term ~>=~ {start} AND term ~<~ {end} LIMIT 1) AS i
        GROUP BY i.term""",
        *statement.values,
    )
    return {row["term"]: row["tasks"] for row in rows}


async def waiting(pool: Reader, caller: UUID, *, all_: bool) -> Sequence[Row]:
    """Return the tasks whose work requests no runner has answered, those that wait longest first."""
    return await pool.fetch(WAITING, caller, all_)


async def waiting_by_target(pool: Reader, caller: UUID, *, all_: bool) -> Sequence[Row]:
    """Return how many tasks wait for each pool and runner (None: any of the pool), and since when.

    Deleted tasks are left out: nobody waits for their workspaces to be removed.
    """
    return await pool.fetch(WAITING_BY_TARGET, caller, all_)


async def workers(pool: Reader) -> Sequence[Row]:
    """Return the workers that were seen in the last minutes."""
    return await pool.fetch(WORKERS)


async def rates(pool: Reader, caller: UUID, since: datetime, *, all_: bool) -> Sequence[Row]:
    """Return what became of the tasks that the caller may see, by hour; hours without any are left out."""
    return await pool.fetch(RATES, caller, all_, since)


async def dead_letters(pool: Reader, since: datetime) -> Sequence[Row]:
    """Return the reasons of what was dead-lettered, with their numbers."""
    return await pool.fetch(DEAD_LETTERS, since)

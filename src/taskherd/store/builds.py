"""Builds, looked up by the id of the build, its workspace or its agent. The worker writes them, the API reads them.

The reading statements are for ``ReadPool``. ``$1`` is always the caller; the WHERE clause checks access to the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store.read_pool import Reader, Row
from taskherd.store.statements import ColumnArrays, assignments, changing, column_names, stored
from taskherd.store.tables import task_builds
from taskherd.store.task_queries import CAN_SEE
from taskherd.store.task_state_codec import APP_SLUG
from taskherd.store.version_search import version_search


@dataclass(frozen=True, slots=True)
class BuildRow:
    """A build as of ``at``; for a new build ``at`` is also its creation time."""

    build_id: UUID
    task_id: UUID
    number: int
    transition: str
    job_status: str
    workspace_id: UUID | None
    agent_id: UUID | None
    error: str | None
    at: datetime


_ROWS: Final = ColumnArrays(
    [column for column in task_builds.c if column.name != "created_at"], prefix="b_", attributes={"updated_at": "at"}
)

UPSERT: Final = f"""
INSERT INTO task_builds AS b ({column_names(task_builds.c)})
SELECT {stored(task_builds.c, instead={"created_at": "updated_at"})}
FROM {_ROWS.unnest("n")}
ORDER BY build_id
ON CONFLICT (build_id) DO UPDATE
SET {assignments(changing(task_builds), "excluded")}
"""
SAVE: Final = text(UPSERT)

# No further report is stored for a superseded build, so its final status is unknown.
_SELECT: Final = f"""
SELECT b.build_id, b.task_id, b.number, b.transition, b.workspace_id, b.agent_id, b.error, b.created_at, b.updated_at,
       CASE WHEN l.is_latest OR b.job_status IN ('succeeded', 'failed', 'canceled') THEN b.job_status
            ELSE 'unknown' END AS job_status,
       l.is_latest, t.owner_id, o.username, o.avatar_url, t.organization_id, g.name AS organization_name, t.template_id,
       m.name AS template_name, m.display_name AS template_display_name, m.icon AS template_icon,
       m.active_version_id, t.template_version_id, v.name AS template_version_name,
       t.preset_id, CAST(p.parameters AS text) AS parameters,
       t.created_at AS task_created_at, t.updated_at AS task_updated_at,
       t.document ->> 'workspace_name' AS workspace_name,
       CAST(t.document -> 'workspace_agent_health' ->> 'healthy' AS boolean) AS healthy,
       t.document -> 'workspace_agent_health' ->> 'reason' AS health_reason,
       t.document ->> 'workspace_agent_lifecycle' AS lifecycle, t.document ->> 'workspace_app_id' AS app_id,
       {APP_SLUG} AS app_slug,
       CAST(t.document -> 'current_state' AS text) AS current_state
FROM task_builds AS b JOIN tasks AS t ON t.id = b.task_id
CROSS JOIN LATERAL (
    SELECT NOT EXISTS (SELECT 1 FROM task_builds WHERE task_id = b.task_id AND number > b.number) AS is_latest) AS l
CROSS JOIN LATERAL (SELECT username, avatar_url FROM users WHERE id = t.owner_id LIMIT 1) AS o
CROSS JOIN LATERAL (SELECT name FROM organizations WHERE id = t.organization_id LIMIT 1) AS g
CROSS JOIN LATERAL (
    SELECT name, display_name, icon, active_version_id FROM templates WHERE id = t.template_id LIMIT 1) AS m
CROSS JOIN LATERAL (SELECT name FROM template_versions WHERE id = t.template_version_id LIMIT 1) AS v
LEFT JOIN LATERAL (SELECT parameters FROM presets WHERE id = t.preset_id LIMIT 1) AS p ON true
"""
_CAN_SEE: Final = f"t.deleted_at IS NULL AND {CAN_SEE} ORDER BY b.number DESC LIMIT 1"
BUILD: Final = f"{_SELECT} WHERE b.build_id = $2 AND {_CAN_SEE}"
WORKSPACE: Final = f"{_SELECT} WHERE b.workspace_id = $2 AND {_CAN_SEE}"
AGENT: Final = f"{_SELECT} WHERE b.agent_id = $2 AND {_CAN_SEE}"
OF_TASK: Final = f"{_SELECT} WHERE b.task_id = $2 AND {_CAN_SEE}"
ALL_OF_TASK: Final = f"""
{_SELECT} WHERE b.task_id = $2 AND t.deleted_at IS NULL AND {CAN_SEE} ORDER BY b.number DESC LIMIT $3 OFFSET $4
"""
OF_TASKS: Final = f"""{_SELECT}
WHERE b.task_id = ANY($2::uuid[]) AND l.is_latest AND t.deleted_at IS NULL AND {CAN_SEE}
ORDER BY t.created_at DESC, t.id DESC
"""

_NUMBER: Final = "COALESCE(CAST(e.document ->> 'workspace_build_number' AS bigint), 0)"

BEYOND: Final = 2**62
"""More than any version, with which the statements can still compute."""

# The steps of a build's start are among its first versions, and those of its end among its last ones. So many versions
# are looked at on either side, which is everything a build reports in 5 hours at one report every 5 seconds.
STEPS_WINDOW: Final = 2_000

# The history of one build after version ``$2``; ``$4``: only versions that changed one of these fields. Build numbers
# rise with versions, so those of a build are found without reading those of others. ``until``: the last version.
HISTORY: Final = f"""
WITH RECURSIVE
{version_search("first", "task_events", task_id="$1", start="$2::bigint + 1", is_before=f"{_NUMBER} < $3")},
{version_search("stop", "task_events", task_id="$1", start="$2::bigint + 1", is_before=f"{_NUMBER} <= $3")}
SELECT b.stop - 1 AS until, h.* FROM (
    SELECT COALESCE((SELECT max(low) FROM first), $2 + 1) AS first,
           COALESCE((SELECT max(low) FROM stop), $2 + 1) AS stop) AS b
LEFT JOIN LATERAL (
    SELECT e.version, e.occurred_at, e.document ->> 'workspace_status' AS workspace_status,
           e.document ->> 'workspace_agent_lifecycle' AS lifecycle,
           CAST(e.document -> 'workspace_agent_health' ->> 'healthy' AS boolean) AS healthy,
           e.document -> 'workspace_agent_health' ->> 'reason' AS reason
    FROM (VALUES (b.first, LEAST(b.first + {STEPS_WINDOW}, b.stop)),
                 (GREATEST(b.first + {STEPS_WINDOW}, b.stop - {STEPS_WINDOW}), b.stop)) AS w(first, stop)
    CROSS JOIN LATERAL (
        SELECT * FROM task_events WHERE task_id = $1 AND version >= w.first AND version < w.stop
        ORDER BY version LIMIT {STEPS_WINDOW}) AS e
    WHERE e.changes && $4::text[]
    ORDER BY e.version LIMIT $5) AS h ON true
ORDER BY h.version
"""

# Nearly every version of a running agent is one of a status, of which the newest 100 are shown.
STATUSES_WINDOW: Final = 2_000

# What the app of the latest build reported after version ``$4``, the newest first. ``until``: the task's last version.
APP_STATUSES: Final = f"""
SELECT n.version AS until, h.* FROM (
    SELECT version FROM task_events WHERE task_id = $1 ORDER BY version DESC LIMIT 1) AS n
LEFT JOIN LATERAL (
    SELECT e.version, e.occurred_at, e.document -> 'current_state' ->> 'state' AS state,
           e.document -> 'current_state' ->> 'message' AS message, e.document -> 'current_state' ->> 'uri' AS uri
    FROM task_events AS e
    WHERE e.task_id = $1 AND e.version > $4 AND e.version > n.version - {STATUSES_WINDOW}
      AND 'current_state' = ANY(e.changes) AND {_NUMBER} = $2
      AND e.document -> 'current_state' ->> 'state' IS NOT NULL
    ORDER BY e.version DESC LIMIT $3) AS h ON true
ORDER BY h.version DESC
"""


async def save(connection: AsyncConnection, rows: Sequence[BuildRow]) -> None:
    """Insert or update builds of tasks locked in this transaction; the last row of a build wins."""
    await connection.execute(SAVE, parameters(rows))


def parameters(rows: Sequence[BuildRow]) -> dict[str, Any]:
    """Return the parameters of ``UPSERT``."""
    return _ROWS.parameters({row.build_id: row for row in rows}.values())


async def build(pool: Reader, caller: UUID, build_id: UUID) -> Row | None:
    """Return a build with its task's names, or None if it does not exist or the caller may not see it."""
    return await pool.fetch_one(BUILD, caller, build_id)


async def latest_of_workspace(pool: Reader, caller: UUID, workspace_id: UUID) -> Row | None:
    """Return the latest build of a workspace, or None if there is none or the caller may not see it.

    The id of a task also names its workspace, because a workspace has no id before a runner has reported it.
    """
    row = await pool.fetch_one(WORKSPACE, caller, workspace_id)
    return row or await of_task(pool, caller, workspace_id)


async def of_task(pool: Reader, caller: UUID, task_id: UUID) -> Row | None:
    """Return the latest build of a task, or None if there is none or the caller may not see it."""
    return await pool.fetch_one(OF_TASK, caller, task_id)


async def all_of_task(pool: Reader, caller: UUID, task_id: UUID, limit: int, offset: int) -> Sequence[Row]:
    """Return the builds of a task as far as the caller may see them, the newest first."""
    return await pool.fetch(ALL_OF_TASK, caller, task_id, limit, offset)


async def of_tasks(pool: Reader, caller: UUID, task_ids: Sequence[UUID]) -> Sequence[Row]:
    """Return the latest builds of these tasks as far as the caller may see them, newest task first."""
    return await pool.fetch(OF_TASKS, caller, list(task_ids))


class HistoryPage(NamedTuple):
    """What was found in the history of a task."""

    rows: Sequence[Row]
    until: int
    """The last version that was looked at."""


def _history_page(rows: Sequence[Row], after: int) -> HistoryPage:
    until = rows[0]["until"] if rows else after
    return HistoryPage([row for row in rows if row["version"] is not None], until)


async def app_statuses(pool: Reader, task_id: UUID, number: int, limit: int, *, after: int = 0) -> HistoryPage:
    """Return up to ``limit`` statuses that the app of the task's latest build reported after a version, newest first.

    Pruned history is missing, and what is older than the task's last ``STATUSES_WINDOW`` versions.
    """
    return _history_page(await pool.fetch(APP_STATUSES, task_id, number, limit, after), 0)


async def of_agent(pool: Reader, caller: UUID, agent_id: UUID) -> Row | None:
    """Return the build that this agent runs in, or None if there is none or the caller may not see it."""
    return await pool.fetch_one(AGENT, caller, agent_id)


async def history(
    pool: Reader, task_id: UUID, number: int, changes: Sequence[str], *, after: int, limit: int
) -> HistoryPage:
    """Return up to ``limit`` versions after ``after`` that changed any field in ``changes`` of a build, oldest first.

    Pruned history is missing. Of more than twice ``STEPS_WINDOW`` versions, those in the middle are not looked at.
    """
    start = min(after, BEYOND)
    return _history_page(await pool.fetch(HISTORY, task_id, start, number, list(changes), limit), after)

"""Builds, looked up by the id of the build, its workspace or its agent. The worker writes them, the API reads them.

The reading statements are for ``ReadPool``. ``$1`` is always the caller; the WHERE clause checks access to the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store.read_pool import Reader, Row
from taskherd.store.statements import ColumnArrays, assignments, changing, column_names, stored
from taskherd.store.tables import task_builds
from taskherd.store.task_queries import CAN_SEE
from taskherd.store.task_state_codec import APP_SLUG


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

# The history of one build; ``$4``: only versions that changed one of these fields.
HISTORY: Final = """
SELECT e.version, e.occurred_at, e.document ->> 'workspace_status' AS workspace_status,
       e.document ->> 'workspace_agent_lifecycle' AS lifecycle,
       CAST(e.document -> 'workspace_agent_health' ->> 'healthy' AS boolean) AS healthy,
       e.document -> 'workspace_agent_health' ->> 'reason' AS reason
FROM task_events AS e
WHERE e.task_id = $1 AND e.version > $2 AND CAST(e.document ->> 'workspace_build_number' AS bigint) = $3
  AND e.changes && $4::text[]
ORDER BY e.version LIMIT $5
"""


# What the app of one build reported, the newest first.
APP_STATUSES: Final = """
SELECT e.version, e.occurred_at, e.document -> 'current_state' ->> 'state' AS state,
       e.document -> 'current_state' ->> 'message' AS message, e.document -> 'current_state' ->> 'uri' AS uri
FROM task_events AS e
WHERE e.task_id = $1 AND CAST(e.document ->> 'workspace_build_number' AS bigint) = $2
  AND 'current_state' = ANY(e.changes) AND e.document -> 'current_state' ->> 'state' IS NOT NULL
ORDER BY e.version DESC LIMIT $3
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


async def app_statuses(pool: Reader, task_id: UUID, number: int, limit: int) -> Sequence[Row]:
    """Return up to ``limit`` statuses that the app of a build reported, newest first. Pruned history is missing."""
    return await pool.fetch(APP_STATUSES, task_id, number, limit)


async def of_agent(pool: Reader, caller: UUID, agent_id: UUID) -> Row | None:
    """Return the build that this agent runs in, or None if there is none or the caller may not see it."""
    return await pool.fetch_one(AGENT, caller, agent_id)


async def history(
    pool: Reader, task_id: UUID, number: int, changes: Sequence[str], *, after: int, limit: int
) -> Sequence[Row]:
    """Return up to ``limit`` versions after ``after`` that changed any field in ``changes`` of a build, oldest first.

    Pruned history is missing.
    """
    return await pool.fetch(HISTORY, task_id, after, number, list(changes), limit)

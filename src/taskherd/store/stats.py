"""Counts for the metrics, at a cost that does not grow with the number of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

SAMPLE: Final = 50_000
"""Number of tasks up to which counts are exact; above it they are estimated from a sample of about that size."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Live tasks by status, their agents by health (``healthy``, ``none`` or the reason), and the sizes of queues.

    ``stalled``: number of agents that are stalled.
    """

    tasks: dict[str, int]
    agents: dict[str, int]
    stalled: int
    parked: int
    unpublished: int
    oldest_unpublished_at: datetime | None


# Sampling complete pages introduces no bias, because the page of a task does not depend on its status.
TASKS: Final = text("""
SELECT status,
       CASE json_extract_path_text(document, 'workspace_agent_health', 'healthy')
           WHEN 'true' THEN 'healthy'
           WHEN 'false' THEN COALESCE(json_extract_path_text(document, 'workspace_agent_health', 'reason'), 'unhealthy')
           ELSE 'none'
       END AS health,
       count(*),
       count(*) FILTER (WHERE json_extract_path_text(document, 'stalled_since') IS NOT NULL)
FROM tasks TABLESAMPLE SYSTEM (CAST(:percent AS real))
WHERE deleted_at IS NULL
GROUP BY status, health
""")

ESTIMATE: Final = text("SELECT CAST(reltuples AS float8) FROM pg_class WHERE oid = CAST('tasks' AS regclass)")

WAITING: Final = text("""
SELECT (SELECT count(*) FROM parked),
       (SELECT count(*) FROM outbox),
       (SELECT min(occurred_at) FROM outbox)
""")


async def counts(connection: AsyncConnection) -> Counts:
    """Count tasks, agents and queued rows; cheap enough for one worker to do it every few seconds."""
    estimated = float((await connection.execute(ESTIMATE)).scalar_one())
    share = min(1.0, SAMPLE / estimated) if estimated > 0 else 1.0
    tasks: dict[str, int] = {}
    agents: dict[str, int] = {}
    stalled = 0.0
    for status, health, sampled, sampled_stalled in await connection.execute(TASKS, {"percent": 100 * share}):
        count = round(sampled / share)
        tasks[status] = tasks.get(status, 0) + count
        agents[health] = agents.get(health, 0) + count
        stalled += sampled_stalled / share
    parked, unpublished, oldest = (await connection.execute(WAITING)).one()
    return Counts(tasks, agents, round(stalled), parked, unpublished, oldest)

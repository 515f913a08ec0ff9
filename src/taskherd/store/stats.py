"""Counts for the metrics, at a cost that does not grow with the number of tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.domain.directory import OTHER, TemplatePool
from taskherd.store.directory import POOL

SAMPLE: Final = 50_000
"""Number of tasks up to which counts are exact; above it they are estimated from a sample of about that size."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Live tasks by status, template and pool, their agents by health, template and pool, and the sizes of queues.

    Health is ``healthy``, ``none`` or the reason. ``stalled``: numbers of stalled agents, by template and pool.
    """

    tasks: Mapping[tuple[str, ...], float]
    agents: Mapping[tuple[str, ...], float]
    stalled: Mapping[tuple[str, ...], float]
    parked: int
    unpublished: int
    oldest_unpublished_at: datetime | None


# Sampling complete pages introduces no bias, because the page of a task does not depend on its status. Names are joined
# after grouping by version, so their cost does not depend on the number of tasks.
TASKS: Final = text(f"""
WITH counted AS (
    SELECT template_version_id, status,
           CASE json_extract_path_text(document, 'workspace_agent_health', 'healthy')
               WHEN 'true' THEN 'healthy'
               WHEN 'false'
               THEN COALESCE(json_extract_path_text(document, 'workspace_agent_health', 'reason'), 'unhealthy')
               ELSE 'none'
           END AS health,
           count(*) AS tasks,
           count(*) FILTER (WHERE json_extract_path_text(document, 'stalled_since') IS NOT NULL) AS stalled
    FROM tasks TABLESAMPLE SYSTEM (CAST(:percent AS real))
    WHERE deleted_at IS NULL
    GROUP BY template_version_id, status, health
)
SELECT COALESCE(named.template, :other), COALESCE(named.pool, :other), c.status, c.health, sum(c.tasks), sum(c.stalled)
FROM counted AS c
LEFT JOIN template_versions AS v ON v.id = c.template_version_id
LEFT JOIN templates AS t ON t.id = v.template_id
LEFT JOIN unnest(CAST(:templates AS text[]), CAST(:pools AS text[])) AS named(template, pool)
    ON named.template = t.name AND named.pool = {POOL}
GROUP BY 1, 2, c.status, c.health
""")

TASKS_PER_PAGE: Final = 5
"""About how many tasks are on a page of a table that was never analyzed."""

ESTIMATE: Final = text(f"""
SELECT CAST(CASE WHEN reltuples > 0 THEN reltuples
            ELSE {TASKS_PER_PAGE} * pg_relation_size(oid) / CAST(current_setting('block_size') AS bigint) END AS float8)
FROM pg_class WHERE oid = CAST('tasks' AS regclass)
""")

MAX_WAITING: Final = 100_000
"""Number of waiting rows up to which they are counted, and among which the oldest is looked for."""

WAITING: Final = text("""
SELECT (SELECT count(*) FROM (SELECT FROM parked LIMIT :most) AS p), count(*), min(o.occurred_at)
FROM (SELECT occurred_at FROM outbox LIMIT :most) AS o
""")


async def counts(connection: AsyncConnection, template_pools: Collection[TemplatePool]) -> Counts:
    """Count tasks, agents and queued rows; cheap enough for one worker to do it every few seconds.

    Templates and pools that are not among ``template_pools`` are counted as ``OTHER``.
    """
    estimated = float((await connection.execute(ESTIMATE)).scalar_one())
    share = min(1.0, SAMPLE / estimated) if estimated > 0 else 1.0
    values = {
        "percent": 100 * share,
        "other": OTHER.template,
        "templates": [each.template for each in template_pools],
        "pools": [each.pool for each in template_pools],
    }
    tasks, agents, stalled = (defaultdict[tuple[str, ...], float](float) for _ in range(3))
    for template, pool, status, health, sampled, sampled_stalled in await connection.execute(TASKS, values):
        count = round(float(sampled) / share)
        tasks[status, template, pool] += count
        agents[health, template, pool] += count
        stalled[template, pool] += round(float(sampled_stalled) / share)
    parked, unpublished, oldest = (await connection.execute(WAITING, {"most": MAX_WAITING})).one()
    return Counts(tasks, agents, stalled, parked, unpublished, oldest)

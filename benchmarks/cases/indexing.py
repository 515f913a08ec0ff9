"""How many changes a second reach the index of the tasks, in the part of each second that the indexer takes for it."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Final

from benchmarks.harness.services import connected
from taskherd.store import task_index
from taskherd.store.engine import open_engine, transaction
from taskherd.worker.indexer import INDEX_TIME, MAX_INDEXED, REST

if TYPE_CHECKING:
    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncEngine

    from benchmarks.harness.run import Run

TASKS, QUICK_TASKS = 1_000_000, 100_000
CHANGES: Final = 10_000
"""Number of changes in each round, each of another task: the state, which is in the indexes and totals."""
ROUNDS: Final = 5

_CHANGE = """
INSERT INTO task_index_changes (task_id, organization_id, owner_id, template_id, pool, status, state, health, waiting,
                                stalled, created_at, changed_at, terms, deleted)
SELECT i.task_id, organization_id, owner_id, template_id, pool, status,
       CASE state WHEN 'idle' THEN 'working' ELSE 'idle' END, health, waiting, stalled, created_at, now(),
       (SELECT coalesce(json_agg(s.term), '[]') FROM task_index AS s WHERE s.task_id = i.task_id AND s.term <> ''),
       false
FROM task_index AS i
WHERE i.term = '' AND abs(hashtextextended(i.task_id::text, $1)) % $2::bigint < $3
LIMIT $3
"""
_PENDING = "SELECT count(*) FROM task_index_changes"


async def measure(run: Run) -> str:
    """Return the figures, one to a line."""
    tasks = QUICK_TASKS if run.options.quick else TASKS
    await run.services.prepare_tasks(tasks)
    engine = open_engine(run.services.database_url, size=1, application_name="bench")
    try:
        async with connected(run.services.database_url) as admin:
            rates = [await _round(engine, admin, number, tasks) for number in range(ROUNDS)]
    finally:
        await engine.dispose()
    median = statistics.median(rates)
    lines = [
        f"- {tasks:,} tasks: {median:,.0f} changes/s while they are applied ({min(rates):,.0f} to {max(rates):,.0f})",
        f"- {INDEX_TIME:g} s of each second: {median * INDEX_TIME:,.0f} tasks/s",
        f"- while the index is behind: {median / (1 + REST):,.0f} tasks/s",
    ]
    for line in lines:
        run.log(line)
    return "\n".join(lines)


async def _round(engine: AsyncEngine, admin: asyncpg.Connection, number: int, tasks: int) -> float:
    """Record changes of tasks all over the table, apply them as the indexer does, and return how many a second."""
    await admin.execute(_CHANGE, number, tasks, CHANGES, timeout=600)
    pending = int(await admin.fetchval(_PENDING))
    await admin.execute("VACUUM (ANALYZE) task_index_changes")
    began = time.monotonic()
    applied = 0
    while applied < pending:
        async with transaction(engine) as connection:
            applied += len(await task_index.apply(connection, MAX_INDEXED))
    return applied / (time.monotonic() - began)

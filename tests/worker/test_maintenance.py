"""Maintenance that fails, or cannot go on, while the worker does everything else; and what it counts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.domain.directory import TemplatePool
from taskherd.store import partitions
from taskherd.store.engine import transaction
from taskherd.store.task_creation import insert_tasks
from taskherd.store.tasks import StoredTask
from tests.harness.tasks import make_task
from tests.harness.worker import TEMPLATE, VERSION, WorkerHarness, make_report, running_worker

NOW = datetime(2026, 3, 5, 12, tzinfo=UTC)
LOST = {"healthy": False, "reason": "agent has lost connection"}


async def test_a_partition_that_cannot_be_dropped_delays_nothing_else(external: WorkerHarness) -> None:
    """While a session like pg_dump's locks expired partitions, agents are found lost and reports are processed.

    A metric counts the failure.
    """
    await external.database.execute("SELECT taskherd_add_partition('task_events', '2020-01-06')")
    backup = await asyncpg.connect(external.urls[0], timeout=30, command_timeout=30)
    try:
        async with backup.transaction():
            await backup.execute("LOCK TABLE task_events IN ACCESS SHARE MODE")
            async with running_worker(external, sweep_every=0.1, probe_every=0.1, agent_lost_after=2):
                task_id, other = await external.make_active(), await external.make_active()
                await external.until(
                    lambda: (
                        external.document(task_id).get("workspace_agent_health") == LOST
                        and external.document(other).get("workspace_agent_health") == LOST
                    )
                )
                await external.report(make_report("app.status", task_id, state="idle", message="Still here"))
                await external.until(lambda: external.state(task_id).get("message") == "Still here")
                await external.until_metric(1, "taskherd_maintenance_failures_total", step="drop_partitions")
        partition = "SELECT to_regclass('task_events_p20200106') IS NULL"
        assert await external.database.fetchval(partition) is False
    finally:
        await backup.close(timeout=30)
    async with running_worker(external, sweep_every=0.1):
        await external.until_row(partition)


async def test_partitions_are_created_and_dropped_without_long_waits_for_locks(
    resting: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All writes to the table wait behind them; other steps wait for as long as any transaction."""
    limits: dict[str, str] = {}

    def noting(name: str, function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def note(connection: AsyncConnection, *arguments: Any, **named: Any) -> Any:
            limits[name] = (await connection.execute(text("SHOW lock_timeout"))).scalar_one()
            return await function(connection, *arguments, **named)

        return note

    for name in ("next_partition", "create", "prune", "prune_feed"):
        monkeypatch.setattr(partitions, name, noting(name, getattr(partitions, name)))
    await resting.worker._maintenance.run_maintenance(NOW, None)
    assert limits == {"next_partition": "3s", "create": "200ms", "prune": "200ms", "prune_feed": "3s"}


async def test_what_is_counted_is_shown(resting: WorkerHarness) -> None:
    """Tasks, agents and what waits, and for how long: nothing as soon as nothing waits."""
    healthy, lost = '{"workspace_agent_health":{"healthy":true}', '{"workspace_agent_health":{"healthy":false}'
    rows = [
        ("active", f"{healthy}}}", VERSION),
        ("active", f'{healthy},"stalled_since":"2026-03-05T11:00:00Z"}}', VERSION),
        ("error", f"{lost}}}", VERSION),
        ("active", f"{healthy}}}", UUID(int=99)),
    ]
    tasks = [
        StoredTask(
            make_task(UUID(int=number), template_id=TEMPLATE, template_version_id=version), status, document, None
        )
        for number, (status, document, version) in enumerate(rows, start=1)
    ]
    async with transaction(resting.worker._engine) as connection:
        assert len((await insert_tasks(connection, tasks)).tasks) == len(rows)
    await resting.database.execute(
        "INSERT INTO parked (task_id, parked_at, report) SELECT gen_random_uuid(), $1, '{}' FROM generate_series(1, 2)",
        NOW,
    )
    await resting.database.execute(
        "INSERT INTO outbox (task_id, version, occurred_at) SELECT $1, n, $2::timestamptz - n * interval '10 seconds'"
        " FROM generate_series(1, 3) AS n",
        UUID(int=1), NOW,
    )  # fmt: skip
    named = {"template": "claude", "pool": "default"}
    resting.worker._context.directory_cache.replace(1, frozenset({TemplatePool(**named)}))
    await resting.worker._maintenance.run_maintenance(NOW, None)
    metric = resting.metric
    assert [metric("taskherd_tasks", status=status, **named) for status in ("active", "error")] == [2, 1]
    assert [metric("taskherd_agents", health=health, **named) for health in ("healthy", "unhealthy")] == [2, 1]
    assert metric("taskherd_agents_stalled", **named) == 1
    assert metric("taskherd_tasks", status="active", template="other", pool="other") == 1
    waiting = ("taskherd_parked_reports", "taskherd_outbox_events", "taskherd_outbox_oldest_seconds")
    assert [metric(name) for name in waiting] == [2, 3, 30]
    await resting.database.execute("DELETE FROM outbox")
    await resting.worker._maintenance._count(NOW + timedelta(seconds=15))
    assert [metric(name) for name in waiting] == [2, 0, 0]

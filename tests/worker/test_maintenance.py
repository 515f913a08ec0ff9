"""Maintenance that fails, or cannot go on, while the worker does everything else."""

from __future__ import annotations

import asyncpg

from tests.harness.worker import WorkerHarness, make_report, running_worker

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

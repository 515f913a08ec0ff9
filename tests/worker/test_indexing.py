"""How fast the index of the tasks follows them, and what happens if it cannot."""

from __future__ import annotations

import asyncpg
import pytest

from taskherd.worker import indexer
from tests.harness.worker import WorkerHarness, make_report, running_worker
from tests.worker.conftest import StartWorker

PENDING = "SELECT count(*) FROM task_index_changes"
LOST = {"healthy": False, "reason": "agent has lost connection"}


async def test_all_changes_are_indexed_for_which_there_is_time(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More changes than one transaction takes are applied after the same sweep, unless its time has passed."""
    for name in ("MIN_INDEXED", "MAX_INDEXED"):
        monkeypatch.setattr(indexer, name, 1)
    async with start_worker(sweep_every=60) as harness:
        for _ in range(4):
            await harness.create()
        await harness.until_row(PENDING, is_=4)
        monkeypatch.setattr(indexer, "INDEX_TIME", 0.0)
        assert await harness.worker._indexer.update() == 1
        monkeypatch.setattr(indexer, "INDEX_TIME", 3600.0)
        assert await harness.worker._indexer.update() == 3
        await harness.until_row(PENDING, is_=0)


async def test_an_index_that_cannot_be_updated_delays_nothing_else(external: WorkerHarness) -> None:
    """Agents are found lost and reports are processed; a metric counts the failures, and later all is made up for."""
    blocker = await asyncpg.connect(external.urls[0], timeout=30, command_timeout=30)
    try:
        async with running_worker(external, sweep_every=0.1, probe_every=0.1, agent_lost_after=2):
            async with blocker.transaction():
                await blocker.execute("LOCK TABLE task_totals IN EXCLUSIVE MODE")
                task_id = await external.make_active()
                await external.until_metric(1, "taskherd_maintenance_failures_total", step="index")
                await external.until(lambda: external.document(task_id).get("workspace_agent_health") == LOST)
                await external.report(make_report("app.status", task_id, state="idle", message="Still here"))
                await external.until(lambda: external.state(task_id).get("message") == "Still here")
                assert await external.database.fetchval(PENDING) == 1
            await external.until_row(PENDING, is_=0)
    finally:
        await blocker.close(timeout=30)
    assert await external.database.fetchval("SELECT state FROM task_index WHERE term = ''") == "idle"
